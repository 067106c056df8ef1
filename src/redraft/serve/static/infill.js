// The Infill tab: a diffusion model replaces parts of a text.

import { stream } from "./api.js";
import { Canvas, tokenCount } from "./canvas.js";
import { $, measured, reducedMotion, selectedModel, showNumbers, sleep, stoppable } from "./ui.js";

const GAP = /\[\[\s*(\?|\d+(\s*-\s*\d+)?)\s*\]\]/;
const CHARACTERS_PER_TOKEN = 4.5; // for the size of a gap that the user does not set
const canvas = new Canvas($("infill-canvas"));
const versions = []; // of the text, for Undo

export function markGap() {
  const box = $("infill-text");
  const { selectionStart: from, selectionEnd: end, value } = box;
  const size = Number($("infill-size").value) || Math.max(1, Math.round((end - from) / CHARACTERS_PER_TOKEN));
  versions.push(value);
  $("infill-undo").disabled = false;
  const to = end > from && value[end - 1] === " " ? end - 1 : end;
  box.setRangeText(`[[${size}]]`, from, to, "end");
}

function undo() {
  $("infill-text").value = versions.pop();
  $("infill-undo").disabled = !versions.length;
}

export const infill = stoppable($("infill-run"), async (signal) => {
  const box = $("infill-text");
  let marked = false;
  if (!GAP.test(box.value)) {
    if (box.selectionStart === box.selectionEnd) throw new Error("The text has no gap. Select the words to replace first.");
    markGap();
    marked = true;
  }
  const model = selectedModel("infill-model");
  if (!model) throw new Error("Infilling needs a diffusion model, and the server has none. Autoregressive models can't use the text after a gap.");
  canvas.clear(true);
  const body = { model: model.id, text: box.value, diffusing: true, seed: Math.floor(Math.random() * 1e6) };
  if (model.paired) body.prompt = $("infill-prompt").value;
  let frame = null;
  let text = "";
  try {
    await stream("/v1/infill", body, (chunk) => {
      text += chunk.choices?.[0]?.text ?? "";
      if (chunk.diffusion) { frame = chunk.diffusion; canvas.add(frame, false); }
    }, signal);
  } catch (error) {
    if (marked) undo();
    canvas.clear();
    throw error;
  }
  for (let i = 0; i < canvas.frames.length; i++) {
    canvas.show(i);
    if (!reducedMotion) await sleep(Math.min(300, 1500 / canvas.frames.length));
  }
  if (!marked) { versions.push(box.value); $("infill-undo").disabled = false; }
  box.value = text;
  showNumbers($("infill-numbers"), measured(frame.nfe, tokenCount(frame), frame.seconds, false));
});

$("infill-mark").addEventListener("click", markGap);
$("infill-undo").addEventListener("click", undo);

// Shows the prompt for models that need one.
export function onModelChange() {
  $("infill-prompt-label").hidden = !(selectedModel("infill-model")?.paired ?? true);
}
