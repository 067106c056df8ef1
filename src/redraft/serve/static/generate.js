// The Generate tab: one generation, step by step, with a timeline.

import { stream } from "./api.js";
import { Canvas, tokenCount } from "./canvas.js";
import { $, leftToRight, measured, reducedMotion, requiredModel, selectedModel, showNumbers, stoppable } from "./ui.js";

const canvas = new Canvas($("generate-canvas"));
const player = { index: -1, timer: null, receiving: false };

function showStep(index) {
  player.index = Math.max(0, Math.min(index, canvas.frames.length - 1));
  canvas.show(player.index);
  $("scrub").max = Math.max(0, canvas.frames.length - 1);
  $("scrub").value = player.index;
  const frame = canvas.frames[player.index];
  if (!frame) return;
  $("scrub-value").textContent = `step ${frame.step} of ${canvas.frames.at(-1).step}`;
  showNumbers($("generate-numbers"), [
    ...measured(frame.nfe, tokenCount(frame), frame.seconds), frame.rows > 1 && [frame.rows, "candidates"],
  ]);
}

function play(on) {
  clearInterval(player.timer);
  player.timer = null;
  $("play").textContent = on ? "❚❚" : "▶";
  if (!on) return;
  const millis = reducedMotion ? 60 : Math.max(45, Math.min(420, 3200 / Math.max(1, canvas.frames.length)));
  player.timer = setInterval(() => {
    if (player.index < canvas.frames.length - 1) showStep(player.index + 1);
    else if (!player.receiving) play(false);
  }, millis);
}

// The table "redraft" of the request.
function settings(model) {
  const table = {};
  if ($("sampler").value) table.sampler = $("sampler").value;
  if (!leftToRight(model)) {
    if ($("steps").value !== "0") table.steps = Number($("steps").value);
    if (model.paired) table.candidates = Number($("candidates").value);
  }
  return table;
}

export const generate = stoppable($("generate-run"), async (signal) => {
  const model = requiredModel("generate-model");
  play(false);
  canvas.clear(true);
  player.index = -1;
  player.receiving = true;
  $("generate-timeline").hidden = true;
  showNumbers($("generate-numbers"), []);
  const body = {
    model: model.id, prompt: $("generate-prompt").value, max_tokens: Number($("length").value), diffusing: true,
    temperature: Number($("temperature").value), seed: Number($("seed").value || 0), redraft: settings(model),
  };
  try {
    await stream("/v1/completions", body, (chunk) => {
      if (!chunk.diffusion) return;
      canvas.add(chunk.diffusion, leftToRight(model));
      if (player.index < 0) { $("generate-timeline").hidden = false; showStep(0); play(true); }
    }, signal);
  } catch (error) {
    if (!canvas.frames.length) canvas.clear();
    throw error;
  } finally { player.receiving = false; }
  if (player.timer === null && player.index >= 0) play(true);
});

$("play").addEventListener("click", () => {
  if (player.timer === null && player.index >= canvas.frames.length - 1) player.index = -1;
  play(player.timer === null);
});
$("scrub").addEventListener("input", () => { play(false); showStep(Number($("scrub").value)); });
$("by-order").addEventListener("change", () => {
  canvas.colourByOrder = $("by-order").checked;
  $("legend-low").textContent = canvas.colourByOrder ? "last" : "uncertain";
  $("legend-high").textContent = canvas.colourByOrder ? "first" : "confident";
  if (player.index >= 0) showStep(player.index);
});

// Adapts the controls to the selected model.
export function onModelChange() {
  const model = selectedModel("generate-model");
  if (!model) return;
  $("sampler").replaceChildren(new Option("model default", ""), ...model.samplers.map((name) => new Option(name, name)));
  $("steps").disabled = leftToRight(model);
  $("candidates").disabled = leftToRight(model) || !model.paired;
  if (model.context) $("length").max = Math.min(256, Math.max(8, model.context >> 1));
}
