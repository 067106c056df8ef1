"""What can be tuned: the sampler, its options, the cache policy, and every generation setting with values to try."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from itertools import product
from typing import Any

from redraft.errors import UserError, suggest
from redraft.evaluation.decoding import DecodingConfig
from redraft.evaluation.texts import sampler_of
from redraft.generation.prompts import prompt_ids
from redraft.generation.start import start_rows
from redraft.model import Model
from redraft.options import search_space
from redraft.registry import find, names
from redraft.settings import Settings

_BLOCKS = (0, 8, 16, 32, 64)  # of samplers that can work block by block, and declare nothing else
_FINE = 0.02  # numbers that differ by less than this share count as equal
_OF_CONFIG = {"steps", "candidates"}  # settings to try that a ``DecodingConfig`` has fields or options for

Tries = Mapping[str, tuple[Any, ...]]


@dataclass(frozen=True)
class Space:
    """The decoding configurations of one model.

    A sampler takes part if its class declares ``tries``, such as ``{"threshold": (0.5, 0.7, 0.9)}``. Its ``steps`` and
    ``block`` are varied too, if it has them. The number of output lengths is varied for models with a length head, and
    approximate cache policies are tried for models with full attention; elsewhere the exact cache loses nothing.
    Any other field of ``Settings`` with values to try is varied for every model.
    """

    values: Mapping[str, Tries]  # sampler -> its option -> values to try, in order
    caches: tuple[str, ...]
    candidates: tuple[int, ...]
    more: Tries  # further settings
    model: Model
    settings: Settings

    @classmethod
    def of(cls, model: Model, settings: Settings, samplers: Sequence[str] = (), caches: Sequence[str] = ()) -> Space:
        """The space of a model, or its part with these samplers and caches.

        Raises:
            UserError: an unknown name, or a sampler that can't be used with the model.
        """
        for name in caches:
            if name not in (known := ("none", *names("caches"))):
                raise UserError(f"There is no cache policy '{name}'.", suggest(name, known))
        values = {}
        for name in samplers or names("samplers"):
            kind = find("samplers", name)
            if not tries_of(kind) and not samplers:
                continue
            problem = _problem(model, settings, DecodingConfig(name, cache="exact"))
            if problem is None:
                values[name] = _values(kind, model, settings)
            elif samplers:
                raise problem
        spec, tries = model.spec, search_space(Settings)
        whole = spec.family.schedule is not None and spec.network.attention.kind == "full" and not spec.network.timed
        approximate = [name for name in names("caches") if not find("caches", name).exact] if whole else []
        predicts_length = spec.network.length_head and settings.length in ("auto", "head")
        return cls(
            values,
            tuple(caches) or ("exact", *approximate),
            tries["candidates"] if predicts_length else (settings.candidates,),
            {name: tried for name, tried in tries.items() if name not in _OF_CONFIG},
            model,
            settings,
        )

    def current(self) -> DecodingConfig:
        """The model's own configuration."""
        one = self.settings
        name, options = sampler_of(self.model, one)
        return self._config(name, options, one.candidates, one.cache, one.cache_options)

    def start(self) -> list[DecodingConfig]:
        """A coarse grid: for each sampler all steps and numeric options of its own, everything else fixed."""
        found = []
        for sampler, values in self.values.items():
            coarse = {key: tried for key, tried in values.items() if key != "block" and _numeric(tried)}
            for chosen in product(*coarse.values()):
                options = dict(zip(coarse, chosen, strict=True))
                found.append(self._config(sampler, options, self.settings.candidates, self.caches[0]))
        return [config for config in dict.fromkeys(found) if self.fits(config)]

    def near(self, config: DecodingConfig) -> Iterator[DecodingConfig]:
        """Configurations that differ in one respect: by the next values to try, and by values halfway to them."""
        options, cache = dict(config.options), config.cache or "exact"
        for key, value in _neighbours(find("samplers", config.sampler), options, self.values.get(config.sampler, {})):
            changed = {**options, key: value}
            yield self._config(config.sampler, changed, config.candidates, cache, config.cache_options, config.more)
        yield from (replace(config, candidates=count) for count in self.candidates if count != config.candidates)
        yield from (replace(config, cache=name, cache_options={}) for name in self.caches if name != cache)
        if cache != "none":
            policy = find("caches", cache)
            for key, value in _neighbours(policy, config.cache_options, tries_of(policy)):
                changed = {**config.cache_options, key: value}
                yield self._config(config.sampler, options, config.candidates, cache, changed, config.more)
        own = vars(self.settings)
        for name, tried in self.more.items():
            at = config.more.get(name, own[name])
            for value in _others(at, tried):
                kept = {key: other for key, other in {**config.more, name: value}.items() if other != own[key]}
                yield replace(config, more=kept)

    def fits(self, config: DecodingConfig) -> bool:
        """Can the model use it? The sampler decides when it starts."""
        return _problem(self.model, self.settings, config) is None

    @staticmethod
    def _config(
        sampler: str,
        options: Mapping[str, Any],
        candidates: int,
        cache: str,
        cache_options: Mapping[str, Any] | None = None,
        more: Mapping[str, Any] | None = None,
    ) -> DecodingConfig:
        return DecodingConfig.of(
            sampler,
            options,
            candidates=candidates,
            cache=cache,
            cache_options=cache_options or {},
            more=more or {},
        )


def tries_of(kind: Any) -> Tries:
    """The values to try that a sampler or cache policy declares itself; those of a base class don't count."""
    found: Tries = vars(kind).get("tries", {})
    return found


def _problem(model: Model, settings: Settings, config: DecodingConfig) -> UserError | None:
    """Why a configuration can't be used for texts of the greatest length; None if it can."""
    given = replace(
        settings,
        sampler=config.sampler,
        steps=None,
        options=dict(config.options),
        candidates=1,
        cache=config.cache or "exact",
        cache_options=dict(config.cache_options),
        **config.more,
    )
    row = [[*prompt_ids(model, ""), *[None] * settings.max_new_tokens]]
    try:
        drafting = start_rows(model, row, [len(row[0]) - settings.max_new_tokens], given)
        if drafting.canvas.sampling.temperature.max() > 0 and drafting.loop.method.sampler.width > 1:
            return UserError("Beam search needs temperature 0.", "Set the temperature to 0.")
        drafting.loop.method.sampler.start(drafting.canvas, drafting.loop.spec)
    except UserError as error:
        return error
    return None


def _values(kind: Any, model: Model, settings: Settings) -> dict[str, tuple[Any, ...]]:
    """Values to try of each option of a sampler, in this model."""
    known, block = {f.name for f in fields(kind)}, model.spec.network.attention.block
    most = block or settings.max_new_tokens
    found: dict[str, tuple[Any, ...]] = {}
    if "steps" in known:
        found["steps"] = search_space(Settings)["steps"]
    if "block" in known and not block:
        found["block"] = tuple(size for size in _BLOCKS if size < settings.max_new_tokens)
    found |= tries_of(kind)
    if "steps" in found:
        found["steps"] = tuple(step for step in found["steps"] if step <= most) or (1,)
    return found


def _neighbours(kind: Any, options: Mapping[str, Any], values: Tries) -> Iterator[tuple[str, Any]]:
    """Each option of a part with each neighbouring value."""
    default = vars(kind())
    for key, tried in values.items():
        for value in _others(options.get(key, default[key]), tried):
            yield key, value


def _others(at: Any, tried: Sequence[Any]) -> list[Any]:
    """The neighbours of a number, or every other value."""
    return _beside(at, tried) if _numeric((at, *tried)) else [other for other in tried if other != at]


def _beside(at: float, tried: Sequence[float]) -> list[float]:
    """The neighbours of a number and the values halfway to them (halfway by ratio for counts), nearest first."""
    ordered = sorted({*tried, at})
    place = ordered.index(at)
    found: list[float] = []
    for other in ordered[max(0, place - 1) : place] + ordered[place + 1 : place + 2]:
        if isinstance(at, int):
            middle: float = round(math.sqrt(at * other)) if min(at, other) > 0 else (at + other) // 2
        else:
            middle = float(f"{(at + other) / 2:.3g}")
        far = abs(other - at) > _FINE * max(abs(other), abs(at))
        found += [value for value in (middle, other) if far and value not in (at, *found)]
    return found


def _numeric(values: Sequence[Any]) -> bool:
    return all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
