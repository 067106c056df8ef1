// The page: tabs, theme, API key, the list of models, and keyboard shortcuts.

import { key, models } from "./api.js";
import * as code from "./code.js";
import * as generate from "./generate.js";
import * as infill from "./infill.js";
import * as race from "./race.js";
import * as story from "./story.js";
import { $, leftToRight, selectedModel, served, showError } from "./ui.js";

// ---- tabs

const tabs = [...document.querySelectorAll('[role="tab"]')];
const panelOf = (tab) => tab.getAttribute("aria-controls");

function openTab(tab, focus = true) {
  for (const one of tabs) {
    const selected = one === tab;
    one.setAttribute("aria-selected", selected);
    one.tabIndex = selected ? 0 : -1;
    $(panelOf(one)).hidden = !selected;
  }
  if (focus) tab.focus();
  history.replaceState(null, "", `#${panelOf(tab)}`);
  showError(null);
}
tabs.forEach((tab, index) => {
  tab.addEventListener("click", () => openTab(tab));
  tab.addEventListener("keydown", (event) => {
    const last = tabs.length - 1;
    const to = { ArrowRight: index === last ? 0 : index + 1, ArrowLeft: index ? index - 1 : last, Home: 0, End: last }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    openTab(tabs[to]);
  });
});
const linked = tabs.find((tab) => `#${panelOf(tab)}` === location.hash);
if (linked) openTab(linked, false);

// ---- theme and API key

function setTheme(name) { document.documentElement.dataset.theme = name; }
setTheme(localStorage.getItem("theme") || (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light"));
$("theme").addEventListener("click", () => {
  const next = document.documentElement.dataset.theme === "dark" ? "light" : "dark";
  localStorage.setItem("theme", next);
  setTheme(next);
});
$("key-button").addEventListener("click", () => { $("key").value = key.value; $("key-dialog").showModal(); });
$("key-dialog").addEventListener("close", () => { key.value = $("key").value; loadModels(); });

// ---- models

async function loadModels() {
  try { served.models = await models(); } catch (error) { showError(error); return; }
  showError(null);
  for (const select of document.querySelectorAll("select.models")) {
    const suitable = select.classList.contains("diffusion") ? served.models.filter((model) => model.infill) : served.models;
    const before = select.value;
    select.replaceChildren(...suitable.map((model) => new Option(model.id.includes(model.family) ? model.id : `${model.id} · ${model.family}`, model.id)));
    if (suitable.some((model) => model.id === before)) select.value = before;
  }
  const preselect = (id, condition) => { const found = served.models.find(condition); if (found) $(id).value = found.id; };
  preselect("generate-model", (model) => model.infill);
  preselect("left-model", leftToRight);
  preselect("right-model", (model) => model.infill);
  for (const id of ["story-model", "code-model"]) {
    preselect(id, (model) => !model.paired && model.infill);
    if (selectedModel(id)?.paired) preselect(id, (model) => !model.paired);
  }
  for (const tab of [generate, infill, story, code]) tab.onModelChange();
  showValues();
}
for (const [name, tab] of Object.entries({ generate, infill, story, code })) {
  $(`${name}-model`).addEventListener("change", () => { tab.onModelChange(); showValues(); });
}

// ---- values of the sliders

const TEXTS = { // of values that have a meaning of their own
  steps: (value) => (value === "0" ? "model default" : value),
  temperature: (value) => (value === "0" ? "0 (greedy)" : value),
};
const sliders = document.querySelectorAll('input[type="range"]');
function showValues() {
  for (const { id, value } of sliders) {
    const output = $(`${id}-value`);
    if (output && output.tagName !== "OUTPUT") output.textContent = TEXTS[id] ? TEXTS[id](value) : value;
  }
}
for (const slider of sliders) slider.addEventListener("input", showValues);

// ---- keyboard shortcuts

const RUN = {
  generate: generate.generate, race: race.race, infill: infill.infill,
  story: () => $("story-run").click(), code: () => $("code-run").click(),
};
document.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
    event.preventDefault();
    RUN[panelOf(tabs.find((tab) => tab.getAttribute("aria-selected") === "true"))]?.();
  } else if (event.altKey && event.key.toLowerCase() === "m" && !$("infill").hidden) {
    event.preventDefault();
    infill.markGap();
  }
});

showValues();
loadModels();
