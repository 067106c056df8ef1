// The canvas of a generation: pieces of text by position, blurred where the model is not confident.

const tip = document.getElementById("tip");

export class Canvas {
  constructor(element) {
    this.element = element;
    this.spans = new Map();
    this.frames = [];
    this.shown = -1;
    this.colourByOrder = false;
    element.addEventListener("pointerover", (event) => this.showTip(event.target));
    element.addEventListener("focusin", (event) => this.showTip(event.target));
    for (const kind of ["pointerout", "focusout"]) element.addEventListener(kind, () => { tip.hidden = true; });
  }

  clear(waiting = false) {
    this.frames = [];
    this.shown = -1;
    this.spans.clear();
    this.element.replaceChildren();
    this.element.classList.toggle("waiting", waiting);
    if (waiting) for (let i = 0; i < 7; i++) this.element.append(Object.assign(document.createElement("i"), { className: "slot" }));
  }

  // Adds a picture of the canvas (chunk.diffusion). leftToRight: free positions are not shown.
  add(frame, leftToRight) {
    this.leftToRight = leftToRight;
    if (leftToRight) frame = { ...frame, canvas: frame.canvas.filter((piece) => piece.status !== "free") };
    this.frames.push(frame);
  }

  // The index of the first frame in which a position is filled; -1: none.
  filledAt(position) {
    return this.frames.findIndex((frame) => frame.canvas.some((p) => p.position === position && p.status !== "free"));
  }

  // Removes the text and keeps the frames.
  erase() {
    this.spans.clear();
    this.element.replaceChildren();
    this.shown = -1;
  }

  show(index) {
    const frame = this.frames[index];
    if (!frame) return;
    if (this.element.classList.contains("waiting")) {
      this.element.classList.remove("waiting");
      this.element.replaceChildren();
    }
    this.shown = index;
    const present = new Set();
    let before = null;
    for (const piece of frame.canvas) {
      present.add(piece.position);
      let span = this.spans.get(piece.position);
      if (!span) {
        span = document.createElement("span");
        span.dataset.position = piece.position;
        this.spans.set(piece.position, span);
      }
      const place = before ? before.nextSibling : this.element.firstChild;
      if (place !== span) this.element.insertBefore(span, place);
      this.paint(span, piece);
      before = span;
    }
    this.element.classList.toggle("caret", this.leftToRight && index < this.frames.length - 1);
    for (const [position, span] of this.spans) {
      if (!present.has(position)) { span.remove(); this.spans.delete(position); }
    }
  }

  paint(span, piece) {
    const open = piece.status === "free" || piece.status === "draft";
    const blank = !piece.text;
    const text = blank ? (piece.end ? "" : open ? "▁▁ " : "") : piece.text;
    if (span.textContent !== text || !span.lastChild) {
      const word = span.lastChild?.tagName === "EM" ? span.lastChild : document.createElement("em");
      const lead = text.length - text.trimStart().length; // the space before a word is not coloured
      word.textContent = text.slice(lead);
      span.replaceChildren(text.slice(0, lead), word);
    }
    span.className = `${piece.status}${blank && open ? " slot" : ""}`;
    const confidence = piece.confidence ?? (open ? 0 : 1);
    span.style.setProperty("--confidence", confidence);
    const order = this.frames.length > 1 ? this.filledAt(piece.position) / (this.frames.length - 1) : 1;
    span.style.setProperty("--tint", piece.status === "given" ? 1 : this.colourByOrder ? 1 - Math.max(0, order) : confidence);
    if (piece.status === "sealed") span.tabIndex = 0; else span.removeAttribute("tabindex");
    const state = { given: "given", free: "current prediction", draft: "may still change", sealed: "final" }[piece.status];
    const parts = [state];
    if (piece.confidence !== null) parts.push(`${(100 * piece.confidence).toFixed(0)} % confidence`);
    span.dataset.tip = parts.join(" · ");
    span.dataset.final = piece.status === "sealed" ? "1" : "";
  }

  showTip(element) {
    const target = element.closest?.("[data-tip]");
    if (!target) return;
    let text = target.dataset.tip;
    if (target.dataset.final) {
      const at = this.filledAt(Number(target.dataset.position));
      if (at >= 0) text += ` · generated in step ${this.frames[at].step} of ${this.frames.at(-1).step}`;
    }
    tip.textContent = text;
    tip.hidden = false;
    const box = target.getClientRects()[0];
    const left = Math.min(Math.max(8, box.left + box.width / 2 - tip.offsetWidth / 2), innerWidth - tip.offsetWidth - 8);
    tip.style.left = `${left}px`;
    tip.style.top = `${box.top > 48 ? box.top - tip.offsetHeight - 8 : box.bottom + 8}px`;
  }
}

// Number of generated tokens in a frame.
export function tokenCount(frame) {
  return frame ? frame.canvas.filter((p) => p.status === "sealed" || p.status === "draft").reduce((sum, p) => sum + p.tokens, 0) : 0;
}
