// The Story tab: the user and a model take turns; each passage of the model can be generated again.

import { ask, stream } from "./api.js";
import { Canvas } from "./canvas.js";
import { $, leftToRight, requiredModel, selectedModel, showError, stoppable } from "./ui.js";

const LOWEST_TEMPERATURE = 0.5; // of suggestions, so that they differ
const passages = []; // { text, byModel }
const textBefore = (end = passages.length) => passages.slice(0, end).map((passage) => passage.text).join("");

function render() {
  $("story-text").replaceChildren(...passages.map((passage, index) => {
    const span = document.createElement("span");
    span.textContent = passage.text;
    if (passage.byModel) {
      span.className = "model";
      span.tabIndex = 0;
      span.setAttribute("role", "button");
      span.title = "Generate this passage again";
      const again = () => regenerate(index).catch(showError);
      span.addEventListener("click", again);
      span.addEventListener("keydown", (event) => { if (event.key === "Enter") again(); });
    }
    return span;
  }));
  $("story-undo").disabled = !passages.length;
}

const request = (model) => ({
  model: model.id, max_tokens: Number($("story-length").value), temperature: Number($("story-temperature").value),
  seed: Math.floor(Math.random() * 1e6),
});

// Moves the user's text from the input to the story.
function addUserText() {
  const text = $("story-line").value.trim();
  if (!text) return;
  const before = textBefore();
  passages.push({ text: (before && !/\s$/.test(before) ? " " : "") + text, byModel: false });
  $("story-line").value = "";
  $("story-suggestions").replaceChildren();
  render();
}

function addModelText(text) {
  passages.push({ text, byModel: true });
  render();
}

// Generates a passage and shows it in an element that insert() puts into the page.
async function generateInto(body, insert, model, signal) {
  const box = document.createElement("span");
  box.className = "canvas";
  insert(box);
  const canvas = new Canvas(box);
  let text = "";
  try {
    await stream("/v1/completions", { ...body, diffusing: true }, (chunk) => {
      text += chunk.choices[0].text;
      if (!chunk.diffusion) return;
      canvas.add({ ...chunk.diffusion, canvas: chunk.diffusion.canvas.filter((piece) => piece.status !== "given") }, leftToRight(model));
      canvas.show(canvas.frames.length - 1);
    }, signal);
  } catch (error) { render(); throw error; } // an unfinished passage does not stay
  return text;
}

stoppable($("story-run"), async (signal) => {
  const model = requiredModel("story-model");
  addUserText();
  addModelText(await generateInto({ ...request(model), prompt: textBefore() }, (box) => $("story-text").append(box), model, signal));
});

async function regenerate(index) {
  const model = requiredModel("story-model");
  showError(null);
  const after = model.infill ? textBefore().slice(textBefore(index + 1).length) : "";
  const body = { ...request(model), prompt: textBefore(index), ...(after ? { suffix: after } : {}) };
  const old = $("story-text").children[index];
  passages[index].text = await generateInto(body, (box) => old.replaceWith(box), model);
  render();
}

stoppable($("story-suggest"), async (signal) => {
  const model = requiredModel("story-model");
  addUserText();
  const temperature = Math.max(LOWEST_TEMPERATURE, Number($("story-temperature").value));
  const answer = await ask("/v1/completions", { ...request(model), prompt: textBefore(), n: 3, temperature }, signal);
  $("story-suggestions").replaceChildren(...answer.choices.map((choice) => {
    const button = document.createElement("button");
    button.textContent = choice.text.trim() || "(empty)";
    button.addEventListener("click", () => {
      addModelText(choice.text);
      $("story-suggestions").replaceChildren();
      $("story-line").focus();
    });
    return button;
  }));
  $("story-suggestions").firstChild?.focus();
});

$("story-undo").addEventListener("click", () => { passages.pop(); render(); });

// Shows a note for models that were not trained on plain text.
export function onModelChange() { $("story-note").hidden = !selectedModel("story-model")?.paired; }
