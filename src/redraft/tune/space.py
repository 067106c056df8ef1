"""What can be tuned: sampler, its own values, steps, block, candidates and cache."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from itertools import product
from typing import Any

from redraft.errors import UserError, suggest
from redraft.model import Model
from redraft.registry import find, names
from redraft.samplers import unwrapped
from redraft.settings import Settings

_STEPS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
_BLOCKS = (0, 8, 16, 32, 64)
_CANDIDATES = (1, 2, 4)
_FINE = 0.02  # numbers nearer to each other than this share are not told apart


@dataclass(frozen=True)
class Trial:
    """One way of decoding. Options that stand at their defaults are left out, so that equal ways are equal."""

    sampler: str
    options: tuple[tuple[str, Any], ...] = ()  # fields of the sampler, by name, steps among them
    candidates: int = 1
    cache: str = "exact"
    cache_options: tuple[tuple[str, Any], ...] = ()
    seed: int = 0  # of the first row; no part of the name

    @classmethod
    def of(
        cls,
        sampler: str,
        options: Mapping[str, Any],
        candidates: int = 1,
        cache: str = "exact",
        cache_options: Mapping[str, Any] | None = None,
    ) -> Trial:
        kept = _without_defaults(find("samplers", sampler), options)
        own = {} if cache == "none" else _without_defaults(find("caches", cache), cache_options or {})
        return cls(sampler, tuple(sorted(kept.items())), candidates, cache, tuple(sorted(own.items())))

    @property
    def id(self) -> str:
        """A short name, such as ``confidence/steps=8/candidates=4``."""
        parts = [self.sampler, *(f"{key}={_short(value)}" for key, value in self.options)]
        parts += [f"candidates={self.candidates}"] if self.candidates > 1 else []
        parts += [f"cache={self.cache}"] if self.cache != "exact" else []
        return "/".join([*parts, *(f"{key}={_short(value)}" for key, value in self.cache_options)])

    def generation(self) -> dict[str, Any]:
        """Keyword arguments for ``Model.settings``."""
        return {
            "sampler": self.sampler,
            "options": dict(self.options),
            "candidates": self.candidates,
            "cache": self.cache,
            "cache_options": dict(self.cache_options),
            "seed": self.seed,
        }

    def defaults(self) -> dict[str, Any]:
        """The same as a model's generation_config.json holds it."""
        options = dict(self.options)
        found: dict[str, Any] = {"sampler": self.sampler}
        if "steps" in options:
            found["steps"] = options.pop("steps")
        found |= {"options": options} if options else {}
        found |= {"candidates": self.candidates} if self.candidates > 1 else {}
        found |= {"cache": self.cache} if self.cache != "exact" else {}
        return found | ({"cache_options": dict(self.cache_options)} if self.cache_options else {})


TUNED = ("sampler", "steps", "options", "candidates", "cache", "cache_options")  # what ``Trial.defaults`` may hold


@dataclass(frozen=True)
class Space:
    """The ways of decoding that one model has.

    A sampler takes part if it says what to try, ``tries = {"threshold": (0.5, 0.7, 0.9)}``. Steps and blocks are known
    to every sampler that has them, the number of output lengths to models that predict the length, and approximate
    caches to models whose positions see the whole text (elsewhere the exact cache loses nothing).
    """

    values: Mapping[str, Mapping[str, tuple[Any, ...]]]  # sampler -> its option -> what to try, in order
    caches: tuple[str, ...]
    candidates: tuple[int, ...]
    model: Model
    settings: Settings

    @classmethod
    def of(cls, model: Model, settings: Settings, samplers: Sequence[str] = (), caches: Sequence[str] = ()) -> Space:
        """The space of a model, or the part of it that has these samplers and caches.

        Raises:
            UserError: an unknown name, or a sampler that does not go with the model.
        """
        for name in caches:
            if name not in (known := ("none", *names("caches"))):
                raise UserError(f"unknown cache '{name}'.", suggest(name, known))
        values = {}
        for name in samplers or names("samplers"):
            kind = find("samplers", name)
            if "tries" not in vars(kind) and not samplers:
                continue
            problem = _problem(model, settings, Trial(name))
            if problem is None:
                values[name] = _values(kind, model, settings)
            elif samplers:
                raise problem
        spec = model.spec
        whole = spec.schedule is not None and spec.attend.kind == "full" and not spec.timed
        approximate = [name for name in names("caches") if not find("caches", name).exact] if whole else []
        lengths = _CANDIDATES if spec.length_head and settings.length in ("auto", "head") else (settings.candidates,)
        return cls(values, tuple(caches) or ("exact", *approximate), lengths, model, settings)

    def own(self) -> Trial:
        """How the model decodes today."""
        method = self.model.method(self.settings)
        sampler = unwrapped(method.sampler)
        name, options = type(sampler).__module__.rsplit(".", 1)[-1], dict(vars(sampler))
        one = self.settings
        return Trial.of(name, options, one.candidates, one.cache, one.cache_options)

    def start(self) -> list[Trial]:
        """A coarse grid to begin with: of each sampler all steps and numbers of its own, nothing else varied."""
        found = []
        for sampler, values in self.values.items():
            coarse = {key: tried for key, tried in values.items() if key != "block" and _numeric(tried)}
            for chosen in product(*coarse.values()):
                options = dict(zip(coarse, chosen, strict=True))
                found.append(Trial.of(sampler, options, self.settings.candidates, self.caches[0]))
        return [trial for trial in dict.fromkeys(found) if self.fits(trial)]

    def near(self, trial: Trial) -> Iterator[Trial]:
        """Ways that differ from this one in one respect: the next values tried, and the ones halfway to them."""
        options = dict(trial.options)
        kind: Any = find("samplers", trial.sampler)
        for key, tried in self.values.get(trial.sampler, {}).items():
            at = options.get(key, getattr(kind(), key))
            for value in _beside(at, tried) if _numeric(tried) else [other for other in tried if other != at]:
                yield Trial.of(
                    trial.sampler, {**options, key: value}, trial.candidates, trial.cache, dict(trial.cache_options)
                )
        yield from (replace(trial, candidates=count) for count in self.candidates if count != trial.candidates)
        yield from (replace(trial, cache=name, cache_options=()) for name in self.caches if name != trial.cache)
        if trial.cache != "none":
            policy = find("caches", trial.cache)
            for key, tried in getattr(policy, "tries", {}).items():
                at = dict(trial.cache_options).get(key, getattr(policy(), key))
                for value in _beside(at, tried):
                    changed = {**dict(trial.cache_options), key: value}
                    yield Trial.of(trial.sampler, options, trial.candidates, trial.cache, changed)

    def fits(self, trial: Trial) -> bool:
        """Does it go with the model and itself? The sampler says so when it starts."""
        return _problem(self.model, self.settings, trial) is None


def _problem(model: Model, settings: Settings, trial: Trial) -> UserError | None:
    """What speaks against a trial on texts of the greatest length."""
    given = replace(
        settings,
        sampler=trial.sampler,
        steps=None,
        options=dict(trial.options),
        candidates=1,
        cache=trial.cache,
        cache_options=dict(trial.cache_options),
    )
    row = [[*model.prompt_ids(""), *[None] * settings.max_new_tokens]]
    try:
        drafting = model.prepare(row, [len(row[0]) - settings.max_new_tokens], given, length_known=True)
        if drafting.canvas.draw.temperature.max() > 0 and drafting.loop.method.sampler.width > 1:
            return UserError("beams draw nothing.", "Set the temperature to 0.")
        drafting.loop.method.sampler.start(drafting.canvas, drafting.loop.spec)
    except UserError as error:
        return error
    return None


def _values(kind: Any, model: Model, settings: Settings) -> dict[str, tuple[Any, ...]]:
    known, block = {f.name for f in fields(kind)}, model.spec.attend.block
    most = block or settings.max_new_tokens
    found: dict[str, tuple[Any, ...]] = {}
    if "steps" in known:
        found["steps"] = tuple(step for step in _STEPS if step <= most) or (1,)
    if "block" in known and not block:
        found["block"] = tuple(size for size in _BLOCKS if size < settings.max_new_tokens)
    said = dict(vars(kind).get("tries", {}))
    if "steps" in said:
        said["steps"] = tuple(step for step in said["steps"] if step <= most) or (1,)
    return found | said


def _beside(at: float, tried: Sequence[float]) -> list[float]:
    """The neighbours of a number among those tried, and what lies halfway (of counts by ratio), nearest first."""
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


def _without_defaults(kind: Any, options: Mapping[str, Any]) -> dict[str, Any]:
    default = kind()
    return {key: value for key, value in options.items() if key == "steps" or value != getattr(default, key, None)}


def _short(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
