"""Classifier: towards texts that a small classifier gives a label."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import torch
from torch import Tensor

from redraft.data.examples import kind
from redraft.data.tokenizer import Tokenizer
from redraft.errors import UserError, suggest
from redraft.guidance._bag import BagOfTokens
from redraft.types import FREE, Canvas, Forward, Spec


@dataclass(frozen=True)
class Classifier:
    """Classifier-based guidance of every prediction (D-CBG, Schiff et al. 2024, arXiv:2412.10193):

        p(v at i | x, y)  is proportional to  p(v | x) p(y | x with v at i)^strength

    The classifier is trained on the spot, in seconds, from labelled texts and with the model's own tokenizer
    (``_bag.BagOfTokens``). It reads the answer alone, as far as it is written.

    Fields:
        data: a file of labelled texts, with columns ``text`` and ``label``. value: the label to steer towards.
        strength: 0 is off. order: ``exact`` over the vocabulary, or ``first``, the first-order approximation, which a
            classifier without a closed form would need.
    """

    data: str
    value: str
    text: str = "text"
    label: str = "label"
    strength: float = 1.0
    order: Literal["exact", "first"] = "exact"

    def ready(self, tokenizer: Tokenizer) -> Steered:
        """Train the classifier, or take it from an earlier call.

        Raises:
            UserError: no such file, column or label, or only one label.
        """
        bag, labels = _trained(tokenizer, self.data, self.text, self.label)
        if self.value not in labels:
            raise UserError(f"{self.data} has no label '{self.value}'.", suggest(self.value, labels))
        return Steered(bag, labels.index(self.value), self.strength, self.order, (tokenizer.mask_id, tokenizer.eos_id))


@dataclass(frozen=True, eq=False)
class Steered:
    """A classifier at work."""

    bag: BagOfTokens
    label: int
    strength: float
    order: str
    skipped: tuple[int, ...]  # ids that are no text

    def expand(self, canvas: Canvas, ask: Forward, spec: Spec) -> list[Forward]:
        return [ask]

    def combine(self, canvas: Canvas, ask: Forward, logits: list[Tensor]) -> Tensor:
        if self.strength == 0:
            return logits[0]
        assert ask.rows is not None
        status = canvas.status[ask.rows[:, None], ask.pos.clamp(min=0)]
        text = ~torch.isin(ask.x, torch.tensor(self.skipped)) & (status != FREE)
        answer = text & (ask.pos >= canvas.prompt[ask.rows, None])
        row, column = (ask.want >= 0).nonzero(as_tuple=True)
        scores = self.bag.scores(ask.x, answer)[row]  # [N, Y]
        mine = (ask.pos[row] == ask.about[row, column][:, None]) & answer[row]  # a token about to be replaced
        scores = scores - (self.bag.weight[ask.x[row]] * mine[..., None]).sum(1)
        gain = self.bag.exact(scores, self.label) if self.order == "exact" else self.bag.first_order(scores, self.label)
        given = logits[0].float()
        gain = torch.nn.functional.pad(gain, (0, given.shape[1] - gain.shape[1]))
        return given.log_softmax(-1) + self.strength * gain.to(given.device)


@lru_cache(maxsize=8)
def _trained(tokenizer: Tokenizer, data: str, text: str, label: str) -> tuple[BagOfTokens, list[str]]:
    texts, named = [], []
    for row in kind(data).read(data):
        if row.problem:
            raise UserError(f"{row.where}: {row.problem}.")
        for column in (text, label):
            if column not in row.values:
                raise UserError(f"{row.where} has no column '{column}'.", suggest(column, row.values))
        texts.append(str(row.values[text]))
        named.append(str(row.values[label]))
    labels = sorted(set(named))
    if len(labels) < 2:
        raise UserError(f"{data} has {len(labels)} labels; a classifier needs two.", "Add texts of another label.")
    return BagOfTokens.fit(
        tokenizer.encode_batch(texts), [labels.index(name) for name in named], tokenizer.vocab_size
    ), labels
