"""How to generate: the one set of options that Python, the command line, recipes and HTTP fill."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from redraft.errors import UserError
from redraft.models._lean import Weights


@dataclass(frozen=True)
class Settings:
    """How to generate. ``None`` takes the family's or the model's own choice."""

    max_new_tokens: int = 64
    sampler: str | None = None
    steps: int | None = None
    options: Mapping[str, Any] = field(default_factory=dict)  # further fields of the sampler
    constraint: Mapping[str, Any] = field(default_factory=dict)  # kind -> text; all of them hold (constraints/)
    guidance: str | None = None
    guide: Mapping[str, Any] = field(default_factory=dict)  # fields of the guidance
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    candidates: int = 1  # output lengths tried per prompt; the model picks the likeliest text
    # head: predicted from the prompt; search: looked for before anything is written; fixed: max_new_tokens, or up to an
    # end-of-text; auto: by the head where there is one, else a search for models of pairs and fixed for plain text
    length: Literal["auto", "head", "search", "fixed"] = "auto"
    start: int | None = (
        None  # cells that a text of changing length begins with; None: a predicted length, or the family's
    )
    cache: str = "exact"  # what passes may reuse: a file of caches/, or none
    cache_options: Mapping[str, Any] = field(default_factory=dict)  # fields of the cache policy
    weights: Weights = "float32"  # on CPUs: bfloat16, or int8 for passes over one position, may be faster, and round
    ignore_eos: bool = False  # write all max_new_tokens; an end-of-text is a token like any other
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("max_new_tokens", 1), ("candidates", 1), ("top_k", 0)):
            if getattr(self, name) < least:
                raise UserError(f"{name} = {getattr(self, name)} must be at least {least}.")
        if self.start is not None and self.start < 0:
            raise UserError(f"start = {self.start} must be at least 0.")
        if not 0 <= self.temperature < float("inf"):
            raise UserError(f"temperature = {self.temperature} must be a number of at least 0.")
        if not 0 <= self.top_p <= 1:
            raise UserError(f"top_p = {self.top_p} must lie in [0, 1].")
        if abs(self.seed) >= 1 << 62:
            raise UserError(f"seed = {self.seed} is too large.", "Use one below 2^62.")
