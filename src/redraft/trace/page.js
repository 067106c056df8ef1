// Replays recordings. A frame is [ms, passes, tokens, at, removed, pieces]: its difference from the one before.
// A piece is [text, kind, probability or null, step, writes].
"use strict";
const recordings = JSON.parse(document.getElementById("recordings").textContent);
const by = (id) => document.getElementById(id);
const make = (tag, attributes = {}, ...children) => {
  const element = Object.assign(document.createElement(tag), attributes);
  element.append(...children);
  return element;
};
const mix = (from, to, share) => `color-mix(in srgb, rgb(var(--${to})) ${(100 * share).toFixed(0)}%, rgb(var(--${from})))`;
const STEP_MS = 260; // of the replay
const WHOLE_MS = 9000; // the longest recording takes this long in measured time

class Panel {
  constructor(recording) {
    this.recording = recording;
    this.states = [];
    let pieces = [];
    for (const [, , , at, removed, changed] of recording.frames) {
      pieces = [...pieces.slice(0, at), ...changed, ...pieces.slice(at + removed)];
      this.states.push(pieces);
    }
    this.last = recording.frames.length - 1;
    this.end = recording.frames[this.last][0];
    this.shown = -1;
    this.text = make("div", { className: "text" });
    this.now = make("p", { className: "now" });
    const facts = Object.entries(recording.facts).flatMap(([name, value]) => [make("dt", {}, name), make("dd", {}, value)]);
    this.element = make("article", { className: "panel" }, make("h2", {}, recording.title),
      make("p", { className: "prompt" }, recording.prompt), this.now, this.text, this.pace(),
      make("p", { className: "caption" }, "Tokens written in each step"), make("dl", {}, ...facts));
  }

  // Bars of the number of tokens that each step wrote.
  pace() {
    const written = this.states.slice(1).map((pieces, i) => pieces.filter((p) => p[1] !== "open" && p[3] === i + 1).length);
    const most = Math.max(1, ...written), width = 100 / Math.max(1, written.length);
    const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
    svg.setAttribute("class", "pace");
    svg.setAttribute("viewBox", "0 0 100 30");
    svg.setAttribute("preserveAspectRatio", "none");
    svg.setAttribute("role", "img");
    svg.setAttribute("aria-label", `Tokens written in each of ${written.length} steps`);
    this.bars = written.map((count, i) => {
      const bar = document.createElementNS("http://www.w3.org/2000/svg", "rect");
      const height = count ? Math.max(1.5, 30 * count / most) : 0.6;
      for (const [name, value] of Object.entries({ x: i * width, y: 30 - height, width: width * 0.86, height })) bar.setAttribute(name, value);
      svg.append(bar);
      return bar;
    });
    return svg;
  }

  // The frame to show at a share of the replay, 0 to 1.
  frameAt(moment, clock, longest) {
    if (clock === "step") return Math.min(this.last, Math.floor(moment * longest.steps + 1e-6));
    const ms = moment * longest.ms + 1e-6;
    let index = 0;
    while (index < this.last && this.recording.frames[index + 1][0] <= ms) index += 1;
    return index;
  }

  show(index, colour) {
    if (this.shown === index && this.colour === colour) return;
    [this.shown, this.colour] = [index, colour];
    const [ms, passes, tokens] = this.recording.frames[index];
    this.now.replaceChildren(`step ${index} of ${this.last} · ${passes} passes · ${tokens} tokens · ${ms.toFixed(0)} ms`);
    if (index === this.last) this.now.append(" · ", make("b", {}, "done"));
    this.text.replaceChildren(...this.states[index].map((piece) => this.span(piece, index)));
    this.bars.forEach((bar, i) => bar.setAttribute("class", i < index ? "done" : ""));
  }

  span([text, kind, probability, step, writes], index) {
    const classes = [kind];
    if (writes > 1) classes.push("rewritten");
    if (step && step === index && index < this.last) classes.push("fresh");
    const span = make("span", { className: classes.join(" ") }, text);
    if (kind === "open") { span.dataset.tip = "not written yet"; return span; }
    const parts = [`“${text.trim() || "space"}”`];
    if (kind === "given") parts.push("given");
    if (probability !== null) parts.push(`probability ${(100 * probability).toFixed(0)} %`);
    if (step) parts.push(`written in step ${step}`);
    if (writes > 1) parts.push(`written ${writes} times`);
    if (kind === "draft") parts.push("may still change");
    span.dataset.tip = parts.join(" · ");
    if (this.colour === "probability" && probability !== null) {
      const tint = probability < 0.5 ? mix("low", "mid", 2 * probability) : mix("mid", "high", 2 * probability - 1);
      span.style.background = `color-mix(in srgb, ${tint} 24%, transparent)`;
    }
    if (this.colour === "order" && step) {
      const tint = mix("first", "last", this.last > 1 ? (step - 1) / (this.last - 1) : 0);
      span.style.background = `color-mix(in srgb, ${tint} 26%, transparent)`;
    }
    return span;
  }
}

const panels = recordings.map((one) => new Panel(one));
by("panels").append(...panels.map((panel) => panel.element));
const longest = { steps: Math.max(...panels.map((p) => p.last)), ms: Math.max(...panels.map((p) => p.end)) };
const linked = Number(location.hash.slice(1)); // page.html#0.5 opens in the middle
let moment = linked >= 0 && linked <= 1 ? linked : 0, playing = false, before = 0;

const LEGENDS = {
  probability: [["low", "unlikely"], ["mid", "even"], ["high", "certain"]],
  order: [["first", "first step"], ["last", "last step"]],
  none: [],
};

function draw() {
  const clock = by("clock").value, colour = by("colour").value;
  for (const panel of panels) panel.show(panel.frameAt(moment, clock, longest), colour);
  by("at").value = moment;
  by("moment").textContent = clock === "step" ? `step ${Math.floor(moment * longest.steps + 1e-6)} of ${longest.steps}`
    : `${(moment * longest.ms).toFixed(0)} of ${longest.ms.toFixed(0)} ms`;
  by("play").textContent = playing ? "Pause" : moment >= 1 ? "Again" : "Play";
}

function legend() {
  const swatch = ([name, words]) => {
    const span = make("span", {}, words);
    span.style.background = `rgb(var(--${name}) / .24)`;
    return span;
  };
  const more = panels.some((p) => p.states.at(-1).some((piece) => piece[4] > 1)) ? ["underlined: rewritten"] : [];
  by("legend").replaceChildren(...LEGENDS[by("colour").value].map(swatch), ...more);
}

function tick(now) {
  if (!playing) return;
  const whole = by("clock").value === "step" ? STEP_MS * longest.steps : WHOLE_MS;
  moment = Math.min(1, moment + (now - before) / Math.max(1, whole));
  before = now;
  if (moment >= 1) playing = false;
  draw();
  if (playing) requestAnimationFrame(tick);
}

function toggle() {
  if (!playing && moment >= 1) moment = 0;
  playing = !playing;
  before = performance.now();
  draw();
  if (playing) requestAnimationFrame(tick);
}

function move(steps) {
  playing = false;
  moment = Math.min(1, Math.max(0, (Math.round(moment * longest.steps) + steps) / Math.max(1, longest.steps)));
  draw();
}

by("at").max = 1;
by("at").addEventListener("input", (event) => { playing = false; moment = Number(event.target.value); draw(); });
by("play").addEventListener("click", toggle);
by("clock").addEventListener("change", draw);
by("colour").addEventListener("change", () => { legend(); draw(); });
document.addEventListener("keydown", (event) => {
  if (["SELECT", "BUTTON"].includes(event.target.tagName)) return;
  const action = { ArrowRight: () => move(1), ArrowLeft: () => move(-1), Home: () => move(-1e9), End: () => move(1e9), " ": toggle }[event.key];
  if (action) { event.preventDefault(); action(); }
});
const tip = by("tip");
document.addEventListener("pointermove", (event) => {
  const words = event.target.closest?.("[data-tip]")?.dataset.tip;
  tip.hidden = !words;
  if (!words) return;
  tip.textContent = words;
  tip.style.left = `${Math.min(event.clientX + 12, innerWidth - tip.offsetWidth - 8)}px`;
  tip.style.top = `${event.clientY + 18 + tip.offsetHeight > innerHeight ? event.clientY - tip.offsetHeight - 12 : event.clientY + 18}px`;
});
legend();
draw();
