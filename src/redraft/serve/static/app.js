import { ask, key, models, stream } from "./api.js";
import { Canvas, count } from "./canvas.js";

const $ = (id) => document.getElementById(id);
const calm = matchMedia("(prefers-reduced-motion: reduce)").matches;
let known = [];
const model = (id) => known.find((one) => one.id === $(id).value);
const causal = (one) => one.left_to_right;
const served = (id) => {
  const one = model(id);
  if (!one) throw new Error("No model is chosen: the list of models has not come yet, or none that fits is served.");
  return one;
};

function trouble(error) {
  if (error && error.name === "AbortError") return;
  $("trouble").hidden = !error;
  $("trouble").textContent = error ? String(error.message || error) : "";
}

// A button that runs something; while it runs, the same button stops it.
function runs(button, work) {
  let running = null;
  const label = button.innerHTML;
  const start = async () => {
    if (running) { running.abort(); return; }
    trouble(null);
    running = new AbortController();
    button.classList.add("busy");
    button.textContent = "Stop";
    try { await work(running.signal); } catch (error) { trouble(error); } finally {
      running = null;
      button.classList.remove("busy");
      button.innerHTML = label;
    }
  };
  button.addEventListener("click", start);
  return start;
}

function numbers(list, parts) {
  list.replaceChildren(...parts.filter(Boolean).map(([value, unit]) => {
    const item = document.createElement("li");
    item.append(Object.assign(document.createElement("b"), { textContent: value }), ` ${unit}`);
    return item;
  }));
}

const ms = (seconds) => (seconds < 1 ? `${(1000 * seconds).toFixed(seconds < 0.1 ? 1 : 0)}` : seconds.toFixed(2));
const unit = (seconds) => (seconds < 1 ? "ms" : "s");
const rate = (tokens, seconds) => (seconds > 0 ? Math.round(tokens / seconds) : 0);
const counted = (n, word) => [n, n === 1 ? word : `${word}${word.endsWith("s") ? "es" : "s"}`];
const wait = (millis) => new Promise((done) => setTimeout(done, millis));

// ---- tabs, theme, key

const tabs = [...document.querySelectorAll('[role="tab"]')];
function choose(tab, focus = true) {
  for (const one of tabs) {
    const on = one === tab;
    one.setAttribute("aria-selected", on);
    one.tabIndex = on ? 0 : -1;
    $(one.getAttribute("aria-controls")).hidden = !on;
  }
  if (focus) tab.focus();
  history.replaceState(null, "", `#${tab.getAttribute("aria-controls")}`);
  trouble(null);
}
tabs.forEach((tab, i) => {
  tab.addEventListener("click", () => choose(tab));
  tab.addEventListener("keydown", (event) => {
    const last = tabs.length - 1;
    const to = { ArrowRight: i === last ? 0 : i + 1, ArrowLeft: i ? i - 1 : last, Home: 0, End: last }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    choose(tabs[to]);
  });
});
const named = tabs.find((tab) => `#${tab.getAttribute("aria-controls")}` === location.hash);
if (named) choose(named, false);

function theme(name) { document.documentElement.dataset.theme = name; }
theme(localStorage.getItem("theme") || (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light"));
$("theme").addEventListener("click", () => {
  const next = document.documentElement.dataset.theme === "dark" ? "light" : "dark";
  localStorage.setItem("theme", next);
  theme(next);
});
$("key-button").addEventListener("click", () => { $("key").value = key.value; $("key-dialog").showModal(); });
$("key-dialog").addEventListener("close", () => { key.value = $("key").value; load(); });

// ---- models and controls

async function load() {
  try { known = await models(); } catch (error) { trouble(error); return; }
  trouble(null);
  for (const select of document.querySelectorAll("select.models")) {
    const fitting = select.classList.contains("diffusion") ? known.filter((one) => one.infill) : known;
    const before = select.value;
    select.replaceChildren(...fitting.map((one) => new Option(one.id.includes(one.family) ? one.id : `${one.id} · ${one.family}`, one.id)));
    if (fitting.some((one) => one.id === before)) select.value = before;
  }
  const pick = (id, wanted) => { const found = known.find(wanted); if (found) $(id).value = found.id; };
  pick("focus-model", (one) => one.infill);
  pick("left-model", causal);
  pick("right-model", (one) => one.infill);
  for (const id of ["story-model", "code-model"]) { pick(id, (one) => !one.conditional && one.infill); if (model(id)?.conditional) pick(id, (one) => !one.conditional); }
  adapt();
  notes();
}

function adapt() {
  const one = model("focus-model");
  if (!one) return;
  $("sampler").replaceChildren(new Option("the model's own", ""), ...one.samplers.map((name) => new Option(name, name)));
  $("steps").disabled = causal(one);
  $("candidates").disabled = causal(one) || !one.conditional;
  if (one.context) $("length").max = Math.min(256, Math.max(8, one.context >> 1));
  label();
}

function notes() {
  for (const name of ["story", "code"]) $(`${name}-note`).hidden = !model(`${name}-model`)?.conditional;
  $("infill-prompt-label").hidden = !(model("infill-model")?.conditional ?? true);
  const one = model("code-model");
  $("code-how").textContent = one ? (one.infill ? "sees both sides of the cursor" : "sees what stands before the cursor") : "";
}

const shown = {
  steps: (v) => (v === "0" ? "its own" : v), length: (v) => v, temperature: (v) => (v === "0" ? "0, the likeliest" : v), candidates: (v) => v,
  "race-steps": (v) => v, "story-length": (v) => v, "story-temperature": (v) => v, "code-length": (v) => v,
};
function label() { for (const [id, text] of Object.entries(shown)) $(`${id}-value`).textContent = text($(id).value); }
for (const id of Object.keys(shown)) $(id).addEventListener("input", label);
$("focus-model").addEventListener("change", adapt);
for (const id of ["story-model", "code-model", "infill-model"]) $(id).addEventListener("change", notes);

// ---- focus

const focus = new Canvas($("focus-canvas"));
const player = { at: -1, timer: null, following: true };

function step(to) {
  player.at = Math.max(0, Math.min(to, focus.frames.length - 1));
  focus.show(player.at);
  $("scrub").max = Math.max(0, focus.frames.length - 1);
  $("scrub").value = player.at;
  const frame = focus.frames[player.at];
  if (!frame) return;
  $("scrub-value").textContent = `step ${frame.step} of ${focus.frames.at(-1).step}`;
  const tokens = count(frame);
  numbers($("focus-numbers"), [counted(frame.nfe, "pass"), counted(tokens, "token"), [ms(frame.seconds), unit(frame.seconds)], [rate(tokens, frame.seconds), "tokens/s"], frame.rows > 1 && [frame.rows, "lengths tried"]]);
}

function play(on) {
  clearInterval(player.timer);
  player.timer = null;
  $("play").textContent = on ? "❚❚" : "▶";
  if (!on) return;
  const pace = calm ? 60 : Math.max(45, Math.min(420, 3200 / Math.max(1, focus.frames.length)));
  player.timer = setInterval(() => {
    if (player.at < focus.frames.length - 1) step(player.at + 1);
    else if (!player.more) play(false);
  }, pace);
}

function own(one) {
  const table = {};
  if ($("sampler").value) table.sampler = $("sampler").value;
  if (!causal(one)) {
    if ($("steps").value !== "0") table.steps = Number($("steps").value);
    if (one.conditional) table.candidates = Number($("candidates").value);
  }
  return table;
}

const write = runs($("focus-run"), async (signal) => {
  const one = served("focus-model");
  play(false);
  focus.clear(true);
  player.at = -1;
  player.more = true;
  $("focus-timeline").hidden = true;
  numbers($("focus-numbers"), []);
  const body = {
    model: one.id, prompt: $("focus-prompt").value, max_tokens: Number($("length").value), diffusing: true,
    temperature: Number($("temperature").value), seed: Number($("seed").value || 0), redraft: own(one),
  };
  try {
    await stream("/v1/completions", body, (chunk) => {
      if (!chunk.diffusion) return;
      focus.add(chunk.diffusion, causal(one));
      if (player.at < 0) { $("focus-timeline").hidden = false; step(0); play(true); }
    }, signal);
  } catch (error) {
    if (!focus.frames.length) focus.clear();
    throw error;
  } finally { player.more = false; }
  if (player.timer === null && player.at >= 0) play(true);
});
$("play").addEventListener("click", () => {
  if (player.timer === null && player.at >= focus.frames.length - 1) player.at = -1;
  play(player.timer === null);
});
$("scrub").addEventListener("input", () => { play(false); step(Number($("scrub").value)); });
$("by-order").addEventListener("change", () => {
  focus.byOrder = $("by-order").checked;
  $("legend-low").textContent = focus.byOrder ? "last" : "a guess";
  $("legend-high").textContent = focus.byOrder ? "first" : "certain";
  if (player.at >= 0) step(player.at);
});

// ---- race

const lanes = ["left", "right"].map((side) => ({
  side, box: $(`lane-${side}`), canvas: new Canvas($(`lane-${side}`).querySelector(".canvas")), ends: 0, model: null,
}));
const race = { at: 0, span: 0, timer: null };

function raceAt(seconds) {
  race.at = Math.min(seconds, race.span);
  $("race-scrub").value = race.span ? (1000 * race.at) / race.span : 0;
  $("race-clock").textContent = `${ms(race.at)} ${unit(race.at)} · replayed ${race.slow > 1 ? `in ${race.slow}× slow motion` : "at full speed"}`;
  for (const lane of lanes) {
    const index = lane.canvas.frames.findLastIndex((frame) => frame.seconds <= race.at);
    const over = race.at >= lane.ends;
    if (index < 0) { lane.canvas.spans.clear(); lane.canvas.element.replaceChildren(); lane.canvas.shown = -1; }
    else if (index !== lane.canvas.shown) lane.canvas.show(index);
    const frame = lane.canvas.frames[index];
    const time = Math.min(race.at, lane.ends);
    const tokens = count(frame);
    lane.box.querySelector(".bar i").style.transform = `scaleX(${lane.ends ? Math.min(1, race.at / lane.ends) : 0})`;
    lane.box.classList.toggle("first", over && lane.ends === Math.min(...lanes.map((l) => l.ends)) && race.span > 0);
    numbers(lane.box.querySelector(".numbers"), [counted(frame ? frame.nfe : 0, "pass"), counted(tokens, "token"), [ms(time), unit(time)], [rate(tokens, time), "tokens/s"]]);
  }
}

function racePlay(on) {
  cancelAnimationFrame(race.timer);
  race.timer = null;
  $("race-play").textContent = on ? "❚❚" : "▶";
  if (!on) return;
  if (race.at >= race.span) race.at = 0;
  let last = performance.now();
  const tick = (now) => {
    raceAt(race.at + (now - last) / 1000 / race.slow);
    last = now;
    if (race.at < race.span) race.timer = requestAnimationFrame(tick);
    else { racePlay(false); verdict(); }
  };
  race.timer = requestAnimationFrame(tick);
}

function verdict() {
  const [fast, slow] = [...lanes].sort((a, b) => a.ends - b.ends);
  const passes = (lane) => { const n = lane.canvas.frames.at(-1).nfe; return `${n} pass${n === 1 ? "" : "es"}`; };
  const ratio = slow.ends / fast.ends;
  $("race-verdict").textContent = `${fast.model.id} was ${ratio < 1.05 ? "hardly" : `${ratio.toFixed(1)}×`} faster: ` +
    `${passes(fast)} in ${ms(fast.ends)} ${unit(fast.ends)}, against ${passes(slow)} in ${ms(slow.ends)} ${unit(slow.ends)}. Which text is better, you judge.`;
}

const start = runs($("race-run"), async (signal) => {
  racePlay(false);
  $("race-timeline").hidden = true;
  $("race-verdict").textContent = "";
  for (const lane of lanes) {
    lane.model = served(`${lane.side}-model`);
    lane.box.querySelector("h2").textContent = `${lane.model.id} · ${causal(lane.model) ? "left to right" : "all at once"}`;
    lane.box.classList.remove("first");
    lane.canvas.clear(true);
    numbers(lane.box.querySelector(".numbers"), []);
  }
  try { await record(signal); } catch (error) {
    for (const lane of lanes) lane.canvas.clear();
    throw error;
  }
  race.span = Math.max(...lanes.map((lane) => lane.ends));
  race.slow = calm ? 1 : Math.max(1, Math.round(4 / race.span));
  for (const lane of lanes) lane.canvas.element.classList.remove("waiting");
  $("race-timeline").hidden = false;
  race.at = 0;
  raceAt(0);
  racePlay(true);
});

async function record(signal) {
  for (const lane of lanes) {
    const body = { model: lane.model.id, prompt: $("race-prompt").value, max_tokens: 64, diffusing: true, seed: 1, temperature: 0, redraft: {} };
    if (!causal(lane.model)) body.redraft = { steps: Number($("race-steps").value), ...(lane.model.conditional ? { candidates: 1 } : {}) };
    let best = null;
    for (let turn = 0; turn < 3; turn++) {
      lane.canvas.clear(true);
      await stream("/v1/completions", body, (chunk) => {
        if (chunk.diffusion) lane.canvas.add(chunk.diffusion, causal(lane.model));
      }, signal);
      const frames = lane.canvas.frames;
      if (!best || frames.at(-1).seconds < best.at(-1).seconds) best = frames;
    }
    lane.canvas.frames = best;
    lane.ends = best.at(-1).seconds;
  }
}
$("race-play").addEventListener("click", () => racePlay(race.timer === null));
$("race-scrub").addEventListener("input", () => { racePlay(false); raceAt((race.span * Number($("race-scrub").value)) / 1000); });

// ---- infill

const gaps = new Canvas($("infill-canvas"));
const drafts = [];

function mark() {
  const box = $("infill-text");
  const { selectionStart: a, selectionEnd: b, value } = box;
  const size = Number($("infill-size").value) || Math.max(1, Math.round((b - a) / 4.5));
  drafts.push(value);
  $("infill-undo").disabled = false;
  const to = b > a && value[b - 1] === " " ? b - 1 : b;
  box.setRangeText(`[[${size}]]`, a, to, "end");
}

const fill = runs($("infill-run"), async (signal) => {
  const box = $("infill-text");
  if (!/\[\[\s*(\?|\d+(\s*-\s*\d+)?)\s*\]\]/.test(box.value)) {
    if (box.selectionStart === box.selectionEnd) throw new Error("Select the words to be redrafted first.");
    mark();
  }
  const one = model("infill-model");
  if (!one) throw new Error("No diffusion model is served: an autoregressive one can't see what follows a gap.");
  gaps.clear(true);
  const body = { model: one.id, text: box.value, diffusing: true, seed: Math.floor(Math.random() * 1e6) };
  if (one.conditional) body.prompt = $("infill-prompt").value;
  let last = null;
  let text = "";
  try {
    await stream("/v1/infill", body, (chunk) => {
      text += chunk.choices?.[0]?.text ?? "";
      if (chunk.diffusion) { gaps.add(chunk.diffusion, false); last = chunk; }
    }, signal);
  } catch (error) { box.value = drafts.pop() ?? box.value; gaps.clear(); throw error; }
  for (let i = 0; i < gaps.frames.length; i++) { gaps.show(i); if (!calm) await wait(Math.min(300, 1500 / gaps.frames.length)); }
  box.value = text;
  const frame = last.diffusion;
  numbers($("infill-numbers"), [counted(frame.nfe, "pass"), counted(count(frame), "token"), [ms(frame.seconds), unit(frame.seconds)]]);
});
$("infill-mark").addEventListener("click", mark);
$("infill-undo").addEventListener("click", () => { $("infill-text").value = drafts.pop(); $("infill-undo").disabled = !drafts.length; });

// ---- story

const story = []; // { text, model }
function tell() {
  const box = $("story-text");
  box.replaceChildren(...story.map((part, i) => {
    const span = document.createElement("span");
    span.textContent = part.text;
    if (part.model) {
      span.className = "model";
      span.tabIndex = 0;
      span.setAttribute("role", "button");
      span.title = "Write this passage anew";
      const again = () => redraft(i).catch(trouble);
      span.addEventListener("click", again);
      span.addEventListener("keydown", (event) => { if (event.key === "Enter") again(); });
    }
    return span;
  }));
  $("story-undo").disabled = !story.length;
}
const told = (end = story.length) => story.slice(0, end).map((part) => part.text).join("");
const telling = (one) => ({ model: one.id, max_tokens: Number($("story-length").value), temperature: Number($("story-temperature").value), seed: Math.floor(Math.random() * 1e6) });

function turn() {
  const line = $("story-line").value.trim();
  if (!line) return;
  const before = told();
  story.push({ text: (before && !/\s$/.test(before) ? " " : "") + line, model: false });
  $("story-line").value = "";
  $("story-ways").replaceChildren();
  tell();
}

async function into(body, path, place, one, signal) {
  const box = document.createElement("span");
  box.className = "canvas";
  place(box);
  const canvas = new Canvas(box);
  let text = "";
  try {
    await stream(path, { ...body, diffusing: true }, (chunk) => {
      text += chunk.choices[0].text;
      if (!chunk.diffusion) return;
      canvas.add({ ...chunk.diffusion, canvas: chunk.diffusion.canvas.filter((piece) => piece.status !== "given") }, causal(one));
      canvas.show(canvas.frames.length - 1);
    }, signal);
  } catch (error) { tell(); throw error; } // what was on its way is no part of the story
  return text;
}

runs($("story-run"), async (signal) => {
  const one = served("story-model");
  turn();
  const text = await into({ ...telling(one), prompt: told() }, "/v1/completions", (box) => $("story-text").append(box), one, signal);
  story.push({ text, model: true });
  tell();
});

async function redraft(i) {
  const one = served("story-model");
  trouble(null);
  const after = !one.infill ? "" : told().slice(told(i + 1).length);
  const body = { ...telling(one), prompt: told(i), ...(after ? { suffix: after } : {}) };
  const old = $("story-text").children[i];
  story[i].text = await into(body, "/v1/completions", (box) => old.replaceWith(box), one);
  tell();
}

runs($("story-three"), async (signal) => {
  const one = served("story-model");
  turn();
  const answer = await ask("/v1/completions", { ...telling(one), prompt: told(), n: 3, temperature: Math.max(0.5, Number($("story-temperature").value)) }, signal);
  $("story-ways").replaceChildren(...answer.choices.map((choice) => {
    const button = document.createElement("button");
    button.textContent = choice.text.trim() || "(nothing)";
    button.addEventListener("click", () => { story.push({ text: choice.text, model: true }); $("story-ways").replaceChildren(); tell(); $("story-line").focus(); });
    return button;
  }));
  $("story-ways").firstChild?.focus();
});
$("story-undo").addEventListener("click", () => { story.pop(); tell(); });

// ---- code

const code = { text: $("code-text"), ghost: $("code-ghost"), box: document.querySelector(".editor"), suggestion: "", at: 0, leave: false, abort: null };

function suggest(text) {
  code.suggestion = text;
  code.box.classList.toggle("suggesting", Boolean(text));
  $("code-run").firstChild.textContent = text ? "Take it " : "Complete ";
  $("code-drop").disabled = !text;
  code.ghost.replaceChildren();
  if (!text) return;
  const part = (name, content) => Object.assign(document.createElement("span"), { className: name, textContent: content });
  code.ghost.append(code.text.value.slice(0, code.at), part("ghost", text), part("after", code.text.value.slice(code.at)));
}

function take() {
  const text = code.suggestion;
  suggest("");
  code.text.setRangeText(text, code.at, code.at, "end");
}

// Asks for a completion at the cursor; where one is shown, takes it.
async function complete() {
  if (code.suggestion) { take(); return; }
  const one = served("code-model");
  trouble(null);
  code.abort?.abort();
  code.abort = new AbortController();
  const { signal } = code.abort;
  code.at = code.text.selectionStart;
  const before = code.text.value.slice(0, code.at), after = code.text.value.slice(code.at);
  const body = { model: one.id, prompt: before, max_tokens: Number($("code-length").value), temperature: 0, seed: 0 };
  if (one.infill && after.trim()) body.suffix = after;
  numbers($("code-numbers"), [["…", "thinking"]]);
  const began = performance.now();
  let answer;
  try { answer = await ask("/v1/completions", body, signal); } catch (error) {
    if (signal === code.abort.signal) numbers($("code-numbers"), []);
    throw error;
  }
  const seconds = (performance.now() - began) / 1000;
  suggest(answer.choices[0].text);
  const effort = answer.choices[0].redraft;
  numbers($("code-numbers"), [counted(effort.nfe, "pass"), counted(effort.tokens, "token"), [ms(seconds), unit(seconds)]]);
}

code.text.addEventListener("keydown", (event) => {
  if (event.key === "Escape") {
    code.abort?.abort();
    code.leave = !code.suggestion;
    suggest("");
  } else if (event.key === "Tab" && !event.shiftKey && !code.leave) {
    event.preventDefault();
    complete().catch(trouble);
  } else if (!["Shift", "Control", "Alt", "Meta"].includes(event.key)) { code.leave = false; }
});
code.text.addEventListener("input", () => suggest(""));
$("code-run").addEventListener("click", () => complete().catch(trouble));
$("code-drop").addEventListener("click", () => suggest(""));
code.text.addEventListener("blur", () => { code.leave = false; });

// ---- keys

document.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
    event.preventDefault();
    const open = tabs.find((tab) => tab.getAttribute("aria-selected") === "true").getAttribute("aria-controls");
    ({ focus: write, race: start, infill: fill, story: () => $("story-run").click(), code: () => $("code-run").click() })[open]?.();
  } else if (event.altKey && event.key.toLowerCase() === "m" && !$("infill").hidden) {
    event.preventDefault();
    mark();
  }
});

label();
load();
