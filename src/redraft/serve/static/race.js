// The Race tab: two models generate from the same prompt; both recordings are replayed side by side.

import { stream } from "./api.js";
import { Canvas, tokenCount } from "./canvas.js";
import { $, counted, inUnit, leftToRight, measured, reducedMotion, requiredModel, showNumbers, stoppable, unit } from "./ui.js";

const REPETITIONS = 3; // of each model; the fastest counts
const REPLAY_SECONDS = 4;
const lanes = ["left", "right"].map((side) => ({
  side, box: $(`lane-${side}`), canvas: new Canvas($(`lane-${side}`).querySelector(".canvas")), seconds: 0, model: null,
}));
const replay = { at: 0, seconds: 0, slowdown: 1, timer: null };

function showTime(seconds) {
  replay.at = Math.min(seconds, replay.seconds);
  $("race-scrub").value = replay.seconds ? (1000 * replay.at) / replay.seconds : 0;
  const speed = replay.slowdown > 1 ? `${replay.slowdown}× slow motion` : "at full speed";
  $("race-clock").textContent = `${inUnit(replay.at)} ${unit(replay.at)} · replayed ${replay.slowdown > 1 ? `in ${speed}` : speed}`;
  const fastest = Math.min(...lanes.map((lane) => lane.seconds));
  for (const lane of lanes) {
    const index = lane.canvas.frames.findLastIndex((frame) => frame.seconds <= replay.at);
    if (index < 0) lane.canvas.erase();
    else if (index !== lane.canvas.shown) lane.canvas.show(index);
    const frame = lane.canvas.frames[index];
    const share = lane.seconds ? Math.min(1, replay.at / lane.seconds) : 0;
    lane.box.querySelector(".bar i").style.transform = `scaleX(${share})`;
    lane.box.classList.toggle("first", replay.seconds > 0 && share === 1 && lane.seconds === fastest);
    showNumbers(lane.box.querySelector(".numbers"), measured(frame ? frame.nfe : 0, tokenCount(frame), Math.min(replay.at, lane.seconds)));
  }
}

function play(on) {
  cancelAnimationFrame(replay.timer);
  replay.timer = null;
  $("race-play").textContent = on ? "❚❚" : "▶";
  if (!on) return;
  if (replay.at >= replay.seconds) replay.at = 0;
  let last = performance.now();
  const tick = (now) => {
    showTime(replay.at + (now - last) / 1000 / replay.slowdown);
    last = now;
    if (replay.at < replay.seconds) replay.timer = requestAnimationFrame(tick);
    else { play(false); showResult(); }
  };
  replay.timer = requestAnimationFrame(tick);
}

function showResult() {
  const [fast, slow] = [...lanes].sort((a, b) => a.seconds - b.seconds);
  const effort = (lane) => `${counted(lane.canvas.frames.at(-1).nfe, "forward pass").join(" ")} in ${inUnit(lane.seconds)} ${unit(lane.seconds)}`;
  const ratio = slow.seconds / fast.seconds;
  const difference = ratio < 1.05 ? "less than 5 % faster" : `${ratio.toFixed(1)}× faster`;
  $("race-verdict").textContent = `${fast.model.id} was ${difference}: ${effort(fast)}, against ${effort(slow)}. This compares speed only; compare the quality of the texts yourself.`;
}

async function record(lane, signal) {
  const { model, canvas } = lane;
  const body = { model: model.id, prompt: $("race-prompt").value, max_tokens: 64, diffusing: true, seed: 1, temperature: 0, redraft: {} };
  if (!leftToRight(model)) body.redraft = { steps: Number($("race-steps").value), ...(model.paired ? { candidates: 1 } : {}) };
  let best = null;
  for (let repetition = 0; repetition < REPETITIONS; repetition++) {
    canvas.clear(true);
    await stream("/v1/completions", body, (chunk) => {
      if (chunk.diffusion) canvas.add(chunk.diffusion, leftToRight(model));
    }, signal);
    const frames = canvas.frames;
    if (!best || frames.at(-1).seconds < best.at(-1).seconds) best = frames;
  }
  canvas.frames = best;
  lane.seconds = best.at(-1).seconds;
}

export const race = stoppable($("race-run"), async (signal) => {
  play(false);
  $("race-timeline").hidden = true;
  $("race-verdict").textContent = "";
  for (const lane of lanes) {
    lane.model = requiredModel(`${lane.side}-model`);
    lane.box.querySelector("h2").textContent = `${lane.model.id} · ${leftToRight(lane.model) ? "left to right" : "any order"}`;
    lane.box.classList.remove("first");
    lane.canvas.clear(true);
    showNumbers(lane.box.querySelector(".numbers"), []);
  }
  try { for (const lane of lanes) await record(lane, signal); } catch (error) {
    for (const lane of lanes) lane.canvas.clear();
    throw error;
  }
  replay.seconds = Math.max(...lanes.map((lane) => lane.seconds));
  replay.slowdown = reducedMotion ? 1 : Math.max(1, Math.round(REPLAY_SECONDS / replay.seconds));
  for (const lane of lanes) lane.canvas.element.classList.remove("waiting");
  $("race-timeline").hidden = false;
  showTime(0);
  play(true);
});

$("race-play").addEventListener("click", () => play(replay.timer === null));
$("race-scrub").addEventListener("input", () => { play(false); showTime((replay.seconds * Number($("race-scrub").value)) / 1000); });
