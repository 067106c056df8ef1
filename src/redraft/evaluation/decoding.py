"""One way of decoding a model: the sampler, its options, the temperature and the cache."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from redraft.registry import find


@dataclass(frozen=True)
class DecodingConfig:
    """A decoding configuration, as ``compare`` and ``tune`` measure them.

    ``None`` takes the model's own value (its ``generation_config.json``, else the default of ``Settings``). Equality
    includes the seed; ``id`` does not.
    """

    sampler: str
    options: Mapping[str, Any] = field(default_factory=dict)  # fields of the sampler, steps among them
    candidates: int = 1  # output lengths tried per prompt
    temperature: float | None = None
    top_p: float | None = None
    cache: str | None = None
    cache_options: Mapping[str, Any] = field(default_factory=dict)  # fields of the cache policy
    constraint: Mapping[str, str] = field(default_factory=dict)  # kind -> text
    family: str = ""  # of the models it belongs to, in a study of several
    seed: int | None = None  # of the first row
    more: Mapping[str, Any] = field(default_factory=dict)  # further fields of ``Settings``

    @classmethod
    def of(cls, sampler: str, options: Mapping[str, Any], **fields: Any) -> DecodingConfig:
        """A configuration without the options that equal their defaults, so that equal ways of decoding are equal."""
        cache: Any = fields.get("cache")
        own = fields.pop("cache_options", {})
        kept = _without_defaults(find("samplers", sampler), options)
        own = _without_defaults(find("caches", cache), own) if cache not in (None, "none") else {}
        return cls(sampler, kept, cache_options=own, **fields)

    def __hash__(self) -> int:
        return hash((self.id, self.seed))

    @property
    def id(self) -> str:
        """A short name, such as ``confidence/steps=8/candidates=4``; in a study it begins with the family."""
        parts = [*filter(None, [self.family]), self.sampler, *_pairs(self.options)]
        parts += [f"candidates={self.candidates}"] if self.candidates > 1 else []
        parts += [f"temperature={self.temperature:g}"] if self.temperature else []
        parts += [f"top_p={self.top_p:g}"] if self.top_p is not None and self.top_p < 1 else []
        parts += [f"cache={self.cache}"] if self.cache not in (None, "exact") else []
        parts += [*_pairs(self.cache_options), *_pairs(self.more)]
        return "/".join([*parts, *_pairs(self.constraint)])

    @property
    def steps(self) -> int | None:
        """Denoising steps; None for samplers that have no such option."""
        value = self.options.get("steps")
        return int(value) if value is not None else None

    @property
    def label(self) -> str:
        """A name for reports: ``masked, 8 steps, 4 lengths``."""
        words = [self.family] if self.family else []
        if self.sampler == "autoregressive":
            beams = self.options.get("beams", 1)
            words.append(f"beam {beams}" if beams > 1 else "sampled" if self.temperature else "greedy")
        elif self.sampler != "confidence" or not self.family:
            words.append(self.sampler.replace("_", " "))
        if self.steps is not None:
            words.append(f"{self.steps} step{'s' if self.steps > 1 else ''}")
        for key, value in self.options.items():
            if key not in ("steps", "beams") and not (key == "block" and value == 0):
                words.append(f"{key} {_short(value)}")
        words += [f"{self.candidates} lengths"] if self.candidates > 1 else []
        words += [f"top-p {self.top_p:g}"] if self.top_p is not None and self.top_p < 1 else []
        words += [f"cache {self.cache}"] if self.cache not in (None, "exact") else []
        words += [f"{key} {_short(value)}" for key, value in self.more.items()]
        return ", ".join(words)

    def generation(self) -> dict[str, Any]:
        """Keyword arguments for ``Model.settings``."""
        found: dict[str, Any] = {
            "sampler": self.sampler,
            "options": dict(self.options),
            "candidates": self.candidates,
            "temperature": self.temperature,
            "top_p": self.top_p,
            "cache": self.cache,
            "cache_options": dict(self.cache_options) if self.cache is not None else None,
            "constraint": dict(self.constraint) or None,
            "seed": self.seed,
            **self.more,
        }
        return {name: value for name, value in found.items() if value is not None}

    def defaults(self) -> dict[str, Any]:
        """The same as a model's ``generation_config.json`` stores it."""
        options = dict(self.options)
        found: dict[str, Any] = {"sampler": self.sampler}
        if "steps" in options:
            found["steps"] = options.pop("steps")
        found |= {"options": options} if options else {}
        found |= {"candidates": self.candidates} if self.candidates > 1 else {}
        found |= {"cache": self.cache} if self.cache not in (None, "exact") else {}
        found |= {"cache_options": dict(self.cache_options)} if self.cache_options else {}
        return found | dict(self.more)


def _without_defaults(kind: Any, options: Mapping[str, Any]) -> dict[str, Any]:
    """``steps`` always stays: it is the number that reports plot."""
    default = vars(kind())
    return {key: value for key, value in options.items() if key == "steps" or value != default.get(key)}


def _pairs(options: Mapping[str, Any]) -> list[str]:
    return [f"{key}={_short(value)}" for key, value in sorted(options.items())]


def _short(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
