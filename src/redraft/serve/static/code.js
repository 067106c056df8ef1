// The Code tab: completion at the cursor of an editor.

import { ask } from "./api.js";
import { $, measured, requiredModel, selectedModel, showError, showNumbers } from "./ui.js";

const editor = {
  text: $("code-text"), overlay: $("code-overlay"), box: document.querySelector(".editor"),
  suggestion: "", at: 0, // the suggestion and its place in the text
  tabLeaves: false, // the Tab key moves the focus instead of completing
  abort: null,
};

function suggest(text) {
  editor.suggestion = text;
  editor.box.classList.toggle("suggesting", Boolean(text));
  $("code-run").firstChild.textContent = text ? "Accept " : "Complete ";
  $("code-dismiss").disabled = !text;
  editor.overlay.replaceChildren();
  if (!text) return;
  const part = (className, textContent) => Object.assign(document.createElement("span"), { className, textContent });
  const { value } = editor.text;
  editor.overlay.append(value.slice(0, editor.at), part("suggestion", text), part("after", value.slice(editor.at)));
}

function accept() {
  const text = editor.suggestion;
  suggest("");
  editor.text.setRangeText(text, editor.at, editor.at, "end");
}

// Requests a completion at the cursor, or accepts the one that is shown.
async function complete() {
  if (editor.suggestion) { accept(); return; }
  const model = requiredModel("code-model");
  showError(null);
  editor.abort?.abort();
  editor.abort = new AbortController();
  const { signal } = editor.abort;
  editor.at = editor.text.selectionStart;
  const before = editor.text.value.slice(0, editor.at), after = editor.text.value.slice(editor.at);
  const body = { model: model.id, prompt: before, max_tokens: Number($("code-length").value), temperature: 0, seed: 0 };
  if (model.infill && after.trim()) body.suffix = after;
  showNumbers($("code-numbers"), [["…", "generating"]]);
  const started = performance.now();
  let answer;
  try { answer = await ask("/v1/completions", body, signal); } catch (error) {
    if (signal === editor.abort.signal) showNumbers($("code-numbers"), []);
    throw error;
  }
  const [choice] = answer.choices;
  suggest(choice.text);
  showNumbers($("code-numbers"), measured(choice.redraft.nfe, choice.redraft.tokens, (performance.now() - started) / 1000, false));
}

editor.text.addEventListener("keydown", (event) => {
  if (event.key === "Escape") {
    editor.abort?.abort();
    editor.tabLeaves = !editor.suggestion;
    suggest("");
  } else if (event.key === "Tab" && !event.shiftKey && !editor.tabLeaves) {
    event.preventDefault();
    complete().catch(showError);
  } else if (!["Shift", "Control", "Alt", "Meta"].includes(event.key)) { editor.tabLeaves = false; }
});
editor.text.addEventListener("input", () => suggest(""));
editor.text.addEventListener("blur", () => { editor.tabLeaves = false; });
$("code-run").addEventListener("click", () => complete().catch(showError));
$("code-dismiss").addEventListener("click", () => suggest(""));

// The cursor starts on the empty line of the example.
const start = editor.text.value.indexOf("        \n");
if (start >= 0) editor.text.setSelectionRange(start + 8, start + 8);

// Shows what the selected model can use.
export function onModelChange() {
  const model = selectedModel("code-model");
  $("code-note").hidden = !model?.paired;
  $("code-context").textContent = model ? (model.infill ? "uses the code on both sides of the cursor" : "uses the code before the cursor") : "";
}
