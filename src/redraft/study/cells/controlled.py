"""Answers under a constraint of each item's own: keywords, length, a regular expression, a template, a hole to fill."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from redraft.constraints import satisfied
from redraft.errors import UserError, suggest
from redraft.evaluation.decoding import DecodingConfig
from redraft.evaluation.items import Item
from redraft.model import Model
from redraft.study.cells.base import Bench, Cell, ModelCell
from redraft.study.cells.data import Data
from redraft.types import Generation

_SHORTEST = 5  # letters of a keyword
FEWEST = 8  # words of a reference that is used


@dataclass(frozen=True)
class Controlled(Cell):
    """Every item's constraint is made from its reference, so that it can be satisfied by a good answer.

    keywords: the two longest words of the reference; length: within two words of its length; regex: one sentence
    that begins as the reference and ends with a full stop; template: its first and last words are given; hole: the
    words of its middle third are missing, and the text on both sides is given. Models that can't attend to the text
    after a hole generate under the template.
    """

    trained: ModelCell
    data: Data
    kind: str
    config: DecodingConfig
    new_tokens: int
    rows: int

    @property
    def label(self) -> str:
        one = self.trained
        return f"answers of {one.model} on {self.data.task} under {self.kind}, {self.config.label}, seed {one.seed}"

    @property
    def weight(self) -> float:
        return 10.0 * self.rows * self.new_tokens

    def work(self, bench: Bench) -> dict[str, Any]:
        """Generate one text after the other, with and without the constraint.

        Raises:
            UserError: there is no such kind.
        """
        if self.kind not in KINDS:
            raise UserError(f"There is no control '{self.kind}'.", suggest(self.kind, KINDS))
        model = bench.model(self.trained.folder(bench.out))
        items = [one for one in self.data.items(bench.out, "test") if len(one.references[0].split()) >= FEWEST]
        texts, free, valid, without, passes = [], [], [], [], []
        for item in items[: self.rows]:
            wanted = KINDS[self.kind](item.references[0])
            plain = model.generate(item.prompt, max_new_tokens=self.new_tokens, **self.config.generation())[0]
            made = self._write(model, item, wanted)
            texts.append(made.text)
            free.append(plain.text)
            passes.append(made.nfe)
            valid += satisfied(wanted, [made.text], [len(made.ids)])
            without += satisfied(wanted, [plain.text], [len(plain.ids)])
        return {"texts": texts, "free": free, "valid": valid, "valid_without": without, "passes": passes}

    def _write(self, model: Model, item: Item, wanted: dict[str, str]) -> Generation:
        settings = self.config.generation()
        if self.kind == "hole" and model.spec.network.attention.kind == "full":
            left, middle, right = thirds(item.references[0])
            size = len(model.tokenizer.encode(" " + middle))
            settings.pop("candidates", None)
            if "steps" in settings["options"]:
                settings["options"] = {**settings["options"], "steps": min(size, settings["options"]["steps"])}
            return model.infill(f"{left} [[{size}]] {right}", item.prompt, **settings)
        return model.generate(item.prompt, max_new_tokens=self.new_tokens, constraint=wanted, **settings)[0]


def thirds(text: str) -> tuple[str, str, str]:
    """A text in three parts of about equally many words."""
    words = text.split()
    first, last = len(words) // 3, 2 * len(words) // 3
    return " ".join(words[:first]), " ".join(words[first:last]), " ".join(words[last:])


def _keywords(text: str) -> dict[str, str]:
    words = sorted(set(re.findall(rf"[A-Za-z]{{{_SHORTEST},}}", text)), key=lambda word: (-len(word), word))
    return {"keywords": ",".join(words[:2] or [text.split()[0].strip(".,")])}


def _length(text: str) -> dict[str, str]:
    count = len(text.split())
    return {"length": f"{max(1, count - 2)}-{count + 2} words"}


def _regex(text: str) -> dict[str, str]:
    return {"regex": rf"{re.escape(text.split()[0])} [^.]+\."}


def _template(text: str) -> dict[str, str]:
    words = text.split()
    return {"template": f"{' '.join(words[:2])} [[ ]] {' '.join(words[-2:])}"}


def _hole(text: str) -> dict[str, str]:
    left, _, right = thirds(text)
    return {"template": f"{left} [[ ]] {right}"}


KINDS: dict[str, Callable[[str], dict[str, str]]] = {
    "keywords": _keywords,
    "length": _length,
    "regex": _regex,
    "template": _template,
    "hole": _hole,
}
