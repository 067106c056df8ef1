// Shared by all tabs: elements, errors, buttons that can be stopped, numbers, and the list of models.

export const $ = (id) => document.getElementById(id);
export const reducedMotion = matchMedia("(prefers-reduced-motion: reduce)").matches;

// ---- models

export const served = { models: [] }; // as /v1/models lists them
export const selectedModel = (selectId) => served.models.find((model) => model.id === $(selectId).value);
export const leftToRight = (model) => model.left_to_right;

export function requiredModel(selectId) {
  const model = selectedModel(selectId);
  if (!model) throw new Error("No model is selected. Either the list of models is not loaded, or the server has no suitable model.");
  return model;
}

// ---- errors

export function showError(error) {
  if (error && error.name === "AbortError") return;
  $("error").hidden = !error;
  $("error").textContent = error ? String(error.message || error) : "";
}

// The warnings of a response ("warnings" in docs/serving.md); null: none.
export function showWarnings(warnings) {
  $("warnings").hidden = !warnings;
  $("warnings").textContent = warnings ? warnings.map((one) => one.message).join(" ") : "";
}

// ---- buttons

// Runs work(signal) on a click. During the work the same button stops it. Returns the click handler.
export function stoppable(button, work) {
  let running = null;
  const label = button.innerHTML;
  const click = async () => {
    if (running) { running.abort(); return; }
    showError(null);
    running = new AbortController();
    button.classList.add("busy");
    button.textContent = "Stop";
    try { await work(running.signal); } catch (error) { showError(error); } finally {
      running = null;
      button.classList.remove("busy");
      button.innerHTML = label;
    }
  };
  button.addEventListener("click", click);
  return click;
}

// ---- numbers

export const inUnit = (seconds) => (seconds < 1 ? `${(1000 * seconds).toFixed(seconds < 0.1 ? 1 : 0)}` : seconds.toFixed(2));
export const unit = (seconds) => (seconds < 1 ? "ms" : "s");
const perSecond = (tokens, seconds) => (seconds > 0 ? Math.round(tokens / seconds) : 0);
export const counted = (n, word) => [n, n === 1 ? word : `${word}${word.endsWith("s") ? "es" : "s"}`];
export const sleep = (millis) => new Promise((done) => setTimeout(done, millis));

// Shows pairs of a value and its unit; false is left out.
export function showNumbers(list, pairs) {
  list.replaceChildren(...pairs.filter(Boolean).map(([value, name]) => {
    const item = document.createElement("li");
    item.append(Object.assign(document.createElement("b"), { textContent: value }), ` ${name}`);
    return item;
  }));
}

export function measured(passes, tokens, seconds, rate = true) {
  const pairs = [counted(passes, "forward pass"), counted(tokens, "token"), [inUnit(seconds), unit(seconds)]];
  return rate ? [...pairs, [perSecond(tokens, seconds), "tokens/s"]] : pairs;
}
