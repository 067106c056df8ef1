"""Expand: masked diffusion with variable length; masks can multiply or vanish while they are filled."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from redraft.data.tokenizer import EXTRAS, Tokenizer
from redraft.families.base import Conversion, Family
from redraft.families.shared.vocabulary import vocabulary
from redraft.noise.absorbing import Absorbing
from redraft.objectives.expand import Expand as Objective
from redraft.registry import find
from redraft.samplers.confidence import Confidence
from redraft.types import AttentionPattern, FamilyFacts, NetworkFacts, Spec


@dataclass(frozen=True)
class Expand(Family):
    """DreamOn (Wu et al. 2026, arXiv:2602.01326): a mask can be replaced by two masks, or deleted.

    Works with every sampler that fills masks and never remasks; predictions determine the length
    (``samplers.wrappers.resizing``). A sequence starts with the number of masks that the length head predicts, or else
    with ``start`` masks.
    """

    citation = "arXiv:2602.01326"
    summary = "masked diffusion that adapts the length while it generates: a mask may become two, or none"
    specials = EXTRAS

    merge: float = 0.9  # maximum probability of merging two neighbouring masks in training
    surplus: int = 8  # maximum number of additional masks in training
    start: int = 8  # number of masks that a sequence starts with if the length isn't given or predicted
    schedule: str = "linear"
    prompt_encoder: bool = True
    length_head: bool = True
    length_weight: float = 0.1
    label_smoothing: float = 0.0
    shift: Literal[0, 1] = 0  # 1: position p is predicted at p - 1, as in models converted from autoregressive ones

    @property
    def spare(self) -> int:
        return self.surplus + 1

    @property
    def initial_length(self) -> int:
        return self.start

    @property
    def conversion(self) -> Conversion:
        return Conversion(curricula=("anneal", "blocks"))

    def spec(self, tokenizer: Tokenizer) -> Spec:
        tokenizer = tokenizer.with_special_tokens(self.specials)
        own = tokenizer.expand_id, tokenizer.delete_id
        ids = vocabulary(tokenizer)
        return Spec(
            tokens=replace(
                ids, forbidden=tuple(i for i in ids.forbidden if i not in own), expand_id=own[0], delete_id=own[1]
            ),
            network=NetworkFacts(
                attention=AttentionPattern("full"),
                prompt_encoder=self.prompt_encoder,
                length_head=self.length_head,
                shift=self.shift,
            ),
            family=FamilyFacts(schedule=find("noise.schedules", self.schedule)(), process=Absorbing()),
        )

    def objective(self) -> Objective:
        return Objective(length_weight=self.length_weight, label_smoothing=self.label_smoothing)

    def training(self) -> Objective:
        return Objective(self.merge, self.surplus, self.length_weight, self.label_smoothing)

    def sampler(self) -> Confidence:
        return Confidence()
