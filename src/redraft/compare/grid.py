"""The grid of decoding settings that a study measures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields

from redraft.compare.study import Study
from redraft.evaluation.decoding import DecodingConfig
from redraft.registry import find


def grid(
    study: Study,
    family: str,
    *,
    causal: bool,
    predicts_length: bool,
    paired: bool,
    longest: int,
    samplers: tuple[str, ...] = (),
    drafts: tuple[str, dict[str, int]] | None = None,
    block: int = 0,
) -> list[DecodingConfig]:
    """The decoding settings of one family.

    For diffusion models: steps x sampler x block x output lengths. For autoregressive models: greedy and beam search,
    or sampling. Pairs have a right answer, so their texts are decoded at temperature 0. Open-ended text is sampled,
    because the most likely text repeats itself (Holtzman et al. 2020, arXiv:1904.09751).

    Args:
        longest: tokens an answer may have; settings with more steps are left out.
        samplers: samplers of this family. Empty: the study's, or what suits the task for a masked family.
        drafts: sampler and options of a causal model that drafts or denoises blocks itself; None: it does not.
        block: block length of a family that decodes block by block; steps then count per block.
    """
    draws = [(0.0, 1.0)] if paired else [(1.0, 1.0), (1.0, 0.9)]
    ways: list[tuple[str, dict[str, int], int]]
    if causal:
        beams = [1, 4] if paired else [1]
        ways = [("autoregressive", {"beams": count} if count > 1 else {}, 1) for count in beams]
        ways += [(*drafts, 1)] if drafts else []
    else:
        tried = study.candidates if predicts_length and paired else (1,)
        names = samplers or study.samplers or (("confidence",) if paired else ("ancestral",))
        ways = [
            (name, options, count)
            for name in names
            for options in _options(study, name, block, longest)
            for count in tried
        ]
    return [
        DecodingConfig(name, options, candidates=count, temperature=temperature, top_p=top_p, family=family)
        for name, options, count in ways
        for temperature, top_p in draws
    ]


def _options(study: Study, sampler: str, block: int, longest: int) -> list[dict[str, int]]:
    """Steps and block lengths of one sampler, where it has these options."""
    known = {field.name for field in fields(find("samplers", sampler))}
    steps: list[int | None] = [None]
    if "steps" in known:
        most = block or longest
        steps = [count for count in study.steps if count <= most] or [most]
    blocks = [size for size in study.blocks if size < longest] if "block" in known and not block else [None]
    found = []
    for count in steps:
        for size in blocks:
            options = {"steps": count, "block": size or None}
            found.append({key: value for key, value in options.items() if value is not None})
    return found


def thin(settings: Sequence[DecodingConfig], baseline: str) -> list[DecodingConfig]:
    """About half of the grid: every other number of steps of each family, the largest kept.

    If no steps can be left out, only settings with one output length are kept; after that, those without beam search.
    """
    steps: dict[str, list[int]] = {}
    for count, family in sorted({(s.steps, s.family) for s in settings if s.steps is not None}):
        steps.setdefault(family, []).append(count)
    kept = {family: found[::-1][::2] if len(found) > 2 else found for family, found in steps.items()}
    if kept != steps:
        return [s for s in settings if s.steps is None or s.steps in kept[s.family]]
    single = [s for s in settings if s.family == baseline or s.candidates == 1]
    return single if len(single) < len(settings) else [s for s in settings if s.options.get("beams", 1) == 1]


def core(settings: Sequence[DecodingConfig], baseline: str) -> list[DecodingConfig]:
    """The part of the grid that every verdict needs: what remains when it can't be thinned further."""
    kept = list(settings)
    while len(fewer := thin(kept, baseline)) < len(kept):
        kept = fewer
    return kept
