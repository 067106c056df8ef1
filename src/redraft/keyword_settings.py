"""Keyword arguments of ``Model.generate``, ``Model.decide`` and others: declared settings, for checkers.

Made from ``settings.py`` by ``python -m tests.docs.test_settings_types``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, TypedDict

from redraft.settings import Weights


class KeywordSettings(TypedDict, total=False):
    """Settings of a generation, as keyword arguments; None: not given."""

    max_new_tokens: int | None
    """Maximum number of new tokens."""
    steps: int | None
    """Number of denoising steps, for samplers with a fixed number of steps."""
    sampler: str | None
    """Name of the sampler (see: redraft models --samplers)."""
    options: Mapping[str, Any] | None
    """A field of the sampler."""
    temperature: float | None
    """Sampling temperature; 0 takes the most probable token."""
    top_k: int | None
    """Sample from the k most probable tokens; 0 is off."""
    top_p: float | None
    """Sample from the most probable tokens with this total probability."""
    candidates: int | None
    """Number of output lengths to try per prompt; the sequence with the highest log-likelihood is kept."""
    length: Literal["auto", "head", "typical", "search", "fixed"] | None
    """How the output length is chosen. head: predicted from the prompt (with one candidate, a masked model compares
    the likely lengths by one more pass). typical: the median length of training answers to prompts of this length.
    search: by the confidence at several lengths. fixed: max_new_tokens, or up to an end-of-text token. auto: the
    length head if the model has one; else, for models of prompt and answer, typical if the lengths are recorded,
    and search if not; fixed for plain text."""
    start: int | None
    """Initial number of positions, for variable-length models. Unset: the predicted length, or the family's
    choice."""
    cache: str | None
    """Cache policy (see: redraft models --caches); none recomputes everything."""
    cache_options: Mapping[str, Any] | None
    """A field of the cache policy."""
    weights: Weights | None
    """Weight format of inference on CPUs. bfloat16 and int8 may be faster, and round."""
    constraint: Mapping[str, Any] | None
    """A constraint that the output must satisfy; KIND=@FILE reads a file; all must hold."""
    guidance: str | None
    """Guidance method (see: redraft models --guidance)."""
    guide: Mapping[str, Any] | None
    """A field of the guidance method."""
    ignore_eos: bool | None
    """Generate all max_new_tokens; end-of-text is a token like any other."""
    seed: int | None
    """Random seed of the first prompt; prompt i uses seed + i."""


class DecisionKeywords(TypedDict, total=False):
    """Settings of decisions, as keyword arguments; None: not given."""

    method: Literal["auto", "one_pass", "chain", "likelihood"] | None
    """one_pass: all slots are masked and scored in one forward pass. chain: one slot after the other is decided,
    and the next given it. likelihood: every combination of labels is scored. auto: one_pass for masked models,
    likelihood for others."""
    by: Literal["sum", "token", "byte"] | None
    """The score of a label is log p of all of it, or per token or byte, which does not favour short labels."""
    calibrate: bool | None
    """Subtract from each score the score of the label where all fields and the prompt are empty."""
    samples: int | None
    """Noise samples for each combination, where the likelihood is only known as a bound."""
    seed: int | None
    """Random seed of these samples."""
