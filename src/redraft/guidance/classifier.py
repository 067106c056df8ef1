"""Classifier: guidance towards texts to which a small classifier assigns a given label."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import torch
from torch import Tensor

from redraft.data.locate import source_kind
from redraft.data.tokenizer import Tokenizer
from redraft.errors import UserError, suggest
from redraft.guidance.base import Guidance, GuidanceOptions
from redraft.guidance.shared.bag_of_words import BagOfTokens
from redraft.options import setting
from redraft.runtime import upload
from redraft.types import FREE, Canvas, Request


@dataclass(frozen=True)
class Classifier(GuidanceOptions):
    """Classifier-based guidance of every prediction (D-CBG, Schiff et al. 2024, arXiv:2412.10193):

        p(v at i | x, y)  is proportional to  p(v | x) p(y | x with v at i)^strength

    The classifier is trained at the start of the generation, in seconds, from labelled texts and with the model's
    tokenizer (``BagOfTokens``). It reads only the tokens of the answer that are already generated.

    Fields:
        data: a file of labelled texts, with columns ``text`` and ``label``. value: the label of the guidance.
        strength: 0 is off. order: ``exact`` over the vocabulary, or ``first``, the first-order approximation, which a
            classifier without a closed form would need.
    """

    data: str
    value: str
    text: str = "text"
    label: str = "label"
    strength: float = setting(1.0, "Strength; 0 is off.", least=-1000, most=1000)
    order: Literal["exact", "first"] = "exact"

    def with_tokenizer(self, tokenizer: Tokenizer) -> TrainedClassifier:
        """The trained classifier. Repeated calls train it once.

        Raises:
            UserError: the file, a column or the label does not exist, or there is only one label.
        """
        bag, labels = _trained(tokenizer, self.data, self.text, self.label)
        if self.value not in labels:
            raise UserError(f"{self.data} has no label '{self.value}'.", suggest(self.value, labels))
        return TrainedClassifier(
            bag, labels.index(self.value), self.strength, self.order, (tokenizer.mask_id, tokenizer.eos_id)
        )


@dataclass(frozen=True, eq=False)
class TrainedClassifier(Guidance):
    """Guidance by a trained classifier."""

    bag: BagOfTokens
    label: int
    strength: float
    order: str
    skipped: tuple[int, ...]  # ids that the classifier does not read

    def combine(self, canvas: Canvas, request: Request, logits: list[Tensor]) -> Tensor:
        if self.strength == 0:
            return logits[0]
        status = canvas.status[request.rows[:, None], request.positions.clamp(min=0)]
        text = ~torch.isin(request.tokens, torch.tensor(self.skipped)) & (status != FREE)
        answer = text & (request.positions >= canvas.prompt[request.rows, None])
        row, column = (request.targets >= 0).nonzero(as_tuple=True)
        scores = self.bag.scores(request.tokens, answer)[row]  # [N, Y]
        # The token at the target position is about to be replaced, so it does not count.
        replaced = (request.positions[row] == request.target_positions[row, column][:, None]) & answer[row]
        scores = scores - (self.bag.weight[request.tokens[row]] * replaced[..., None]).sum(1)
        gain = self.bag.exact(scores, self.label) if self.order == "exact" else self.bag.first_order(scores, self.label)
        unguided = logits[0].float()
        gain = torch.nn.functional.pad(gain, (0, unguided.shape[1] - gain.shape[1]))
        return unguided.log_softmax(-1) + self.strength * upload(gain, unguided.device)


@lru_cache(maxsize=8)
def _trained(tokenizer: Tokenizer, data: str, text: str, label: str) -> tuple[BagOfTokens, list[str]]:
    texts, label_of_text = [], []
    for row in source_kind(data).read(data):
        if row.problem:
            raise UserError(f"{row.where}: {row.problem}.")
        for column in (text, label):
            if column not in row.values:
                raise UserError(f"{row.where} has no column '{column}'.", suggest(column, row.values))
        texts.append(str(row.values[text]))
        label_of_text.append(str(row.values[label]))
    labels = sorted(set(label_of_text))
    if len(labels) < 2:
        raise UserError(f"{data} has {len(labels)} labels; a classifier needs two.", "Add texts with another label.")
    return BagOfTokens.fit(
        tokenizer.encode_batch(texts), [labels.index(name) for name in label_of_text], tokenizer.vocab_size
    ), labels
