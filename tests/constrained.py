"""Shared by the tests and the benchmark of constraints: random constraints, independent checkers, and networks that
push towards violation."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

from redraft import registry
from redraft.canvas import best_rows, completion, make_canvas
from redraft.constraints import build_all
from redraft.data.tokenizer import Tokenizer
from redraft.errors import UserError
from redraft.generation.length import choose_lengths
from redraft.generation.loop import Loop, Method
from redraft.types import Forward, Spec
from tests.tiny import described

ZOO = Path(__file__).parents[1] / "zoo" / "translate-en-de-masked"


@cache
def real_tokenizer() -> Tokenizer:
    """The vocabulary of a shipped checkpoint: 6,000 tokens of byte-level BPE."""
    return Tokenizer.load(ZOO)


# ---- constraints

_SIGNS = st.sampled_from([*"abcxyz019 ", r"\.", "é", "猫", r"\{", '"'])
_CLASSES = st.sampled_from(["[a-f]", "[^aeiou]", r"\d", ".", r"\w", "[0-9A-Z]", r"[^\W\d]", "[à-ü]"])
_LEAF = st.one_of(_SIGNS, _CLASSES, st.text("abcdeHausüß", min_size=2, max_size=8))


def _times(draw: Any) -> str:
    low = draw(st.integers(0, 3))
    return f"{{{low},{low + draw(st.integers(0, 3))}}}"


@st.composite
def regexes(draw: Any) -> str:
    """Patterns whose unbounded repetitions are of single characters, so that the checker (``re``) stays fast."""

    def part(depth: int) -> str:
        shape = draw(st.integers(0, 4 if depth else 1))
        if shape == 0:
            return str(draw(_LEAF))
        if shape == 1:
            return str(draw(st.one_of(_SIGNS, _CLASSES)) + draw(st.sampled_from(["*", "+", "?", "{2}", "{1,4}", "*?"])))
        inner = [part(depth - 1) for _ in range(draw(st.integers(1, 3)))]
        if shape == 2:
            return f"(?:{'|'.join(inner)})"
        if shape == 3:
            return f"({''.join(inner)}){_times(draw)}"
        return "".join(inner)

    return "".join(part(2) for _ in range(draw(st.integers(1, 3))))


_WORDS = st.text('abcdxyz_ "\\é/', min_size=0, max_size=6)


@st.composite
def schemas(draw: Any, depth: int = 2) -> dict[str, Any]:
    """Schemas with all supported keywords."""
    kinds = ["string", "pattern", "format", "integer", "number", "boolean", "null", "enum", "const", "types"]
    kind = draw(st.sampled_from(kinds + ["array", "tuple", "object", "object", "map", "anyOf"] * (depth > 0)))
    low, more = draw(st.integers(-30, 40)), draw(st.integers(0, 200))
    few, extra = draw(st.integers(0, 3)), draw(st.integers(0, 3))
    if kind in kinds:
        return _scalar_schema(draw, kind, low, more, few, extra)
    inner = schemas(depth - 1)
    if kind == "array":
        return {"type": "array", "items": draw(inner), "minItems": few, "maxItems": few + extra}
    if kind == "tuple":
        heads = draw(st.lists(inner, min_size=1, max_size=3))
        return {
            "type": "array",
            "prefixItems": heads,
            "items": draw(st.one_of(st.just(False), inner)),
            "minItems": few % 3 % len(heads),
        }
    if kind == "object":
        keys = draw(st.lists(_WORDS, min_size=0, max_size=4, unique=True))
        required = [key for key in keys if draw(st.booleans())]
        parts = {key: draw(inner) for key in keys}
        return {"type": "object", "properties": parts, "required": required, "additionalProperties": False}
    if kind == "map":
        return {"type": "object", "additionalProperties": draw(inner)}
    return {"anyOf": draw(st.lists(inner, min_size=1, max_size=3))}


def _scalar_schema(draw: Any, kind: str, low: int, more: int, few: int, extra: int) -> dict[str, Any]:
    if kind == "string":
        return {"type": "string", "minLength": few, "maxLength": few + extra}
    if kind == "pattern":
        return {
            "type": "string",
            "pattern": draw(st.sampled_from([r"^[a-z]{2,5}$", r"^\d+-\w$", "ab", "^(x|yz)+$", "^.a"])),
        }
    if kind == "format":
        return {
            "type": "string",
            "format": draw(st.sampled_from(["date", "time", "date-time", "uuid", "ipv4", "email"])),
        }
    if kind in ("integer", "number"):
        bounds = draw(
            st.sampled_from([("minimum", "maximum"), ("exclusiveMinimum", "exclusiveMaximum"), ("minimum",), ()])
        )
        return {"type": kind} | dict(zip(bounds, (low, low + 2 + more), strict=False))
    if kind == "types":
        return {"type": ["null", "integer"], "minimum": low}
    if kind == "enum":
        return {"enum": draw(st.lists(st.one_of(_WORDS, st.integers(-99, 99), st.none()), min_size=1, max_size=4))}
    if kind == "const":
        return {"const": draw(st.one_of(_WORDS, st.booleans(), st.fixed_dictionaries({"a": st.integers(0, 9)})))}
    return {"type": kind}


# ---- checkers


def conforms(value: Any, schema: dict[str, Any]) -> bool:
    """Does a value satisfy a schema from ``schemas``? Written from the JSON Schema specification alone."""
    if "anyOf" in schema:
        return any(conforms(value, part) for part in schema["anyOf"])
    if "enum" in schema:
        return any(_same(value, other) for other in schema["enum"])
    if "const" in schema:
        return _same(value, schema["const"])
    kinds = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
    return any(_IS[kind](value) for kind in kinds) and _within(value, schema)


_IS = {
    "string": lambda v: isinstance(v, str),
    "integer": lambda v: not isinstance(v, bool) and (isinstance(v, int) or (isinstance(v, float) and v == int(v))),
    "number": lambda v: not isinstance(v, bool) and isinstance(v, int | float),
    "boolean": lambda v: isinstance(v, bool),
    "null": lambda v: v is None,
    "array": lambda v: isinstance(v, list),
    "object": lambda v: isinstance(v, dict),
}
_FORMATS = {
    "date": r"\d{4}-\d\d-\d\d",
    "time": r"\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)",
    "date-time": r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)",
    "uuid": r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}",
    "ipv4": r"\d{1,3}(\.\d{1,3}){3}",
    "email": r"[^@ ]+@[^@ ]+\.[a-z]+",
}


def _within(value: Any, schema: dict[str, Any]) -> bool:
    if isinstance(value, str):
        return (
            schema.get("minLength", 0) <= len(value) <= schema.get("maxLength", 1 << 30)
            and re.search(schema.get("pattern", ""), value) is not None
            and ("format" not in schema or re.fullmatch(_FORMATS[schema["format"]], value) is not None)
        )
    if isinstance(value, int | float) and not isinstance(value, bool):
        above, below = schema.get("exclusiveMinimum", -math.inf), schema.get("exclusiveMaximum", math.inf)
        return schema.get("minimum", value) <= value <= schema.get("maximum", value) and above < value < below
    if isinstance(value, list):
        heads = schema.get("prefixItems", [])
        rest = schema.get("items", True)
        return (
            schema.get("minItems", 0) <= len(value) <= schema.get("maxItems", 1 << 30)
            and all(conforms(item, part) for item, part in zip(value, heads, strict=False))
            and (
                len(value) <= len(heads) or (rest is not False and all(conforms(v, rest) for v in value[len(heads) :]))
            )
        )
    if isinstance(value, dict):
        known, more = schema.get("properties", {}), schema.get("additionalProperties", True)
        return set(schema.get("required", [])) <= set(value) and all(
            conforms(part, known[key]) if key in known else more is not False and conforms(part, more)
            for key, part in value.items()
        )
    return True


def _same(a: Any, b: Any) -> bool:
    return bool(a == b) and isinstance(a, bool) == isinstance(b, bool)


def holds(kind: str, value: Any, text: str) -> bool:
    if kind == "regex":
        return re.fullmatch(value, text) is not None
    assert kind == "json_schema"
    try:
        return conforms(json.loads(text), value)
    except ValueError:
        return False


# ---- writing


@dataclass
class Adversary:
    """Logits that push towards violation: ``end`` at once, ``never`` end, ``one`` token everywhere, ``noise`` so strong
    that positions never agree with one another, ``shy``: -inf for all tokens but a few."""

    spec: Spec
    mood: str
    seed: int = 0

    def __call__(self, request: Forward, store: object = None) -> Tensor:
        row, column = (request.targets >= 0).nonzero(as_tuple=True)
        count, generator = len(row), torch.Generator().manual_seed(self.seed + int(request.targets.sum()))
        logits = torch.randn(count, self.spec.tokens.vocab_size, generator=generator) * 300
        if self.mood in ("end", "never"):
            logits[:, self.spec.tokens.eos_id] = 1e6 if self.mood == "end" else -1e6
        if self.mood == "one":
            logits[:, self.seed * 7919 % self.spec.tokens.vocab_size] = 1e6
        if self.mood == "shy":
            logits[:, torch.randperm(self.spec.tokens.vocab_size, generator=generator)[5:]] = -torch.inf
        return logits

    def expected(self, log_p: Tensor) -> Tensor:
        """Expected vectors [N, Z] of log-probabilities [N, V]: zeros."""
        assert self.spec.family.continuous is not None
        return torch.zeros(len(log_p), self.spec.family.continuous.width)

    def store(self, seats: int, cells: int) -> object:
        raise AssertionError("an adversary has no key-value cache")


MOODS = ("end", "never", "one", "noise", "shy")


def methods() -> Iterator[tuple[str, Any]]:
    """Every sampler; several of them with settings that write many tokens at once."""
    for name in registry.names("samplers"):
        if name == "edit_flow":
            continue  # does not support constraints
        kind = registry.find("samplers", name)
        fields = kind.__dataclass_fields__
        yield name, kind(**({"steps": 3} if "steps" in fields else {}))
        if name == "autoregressive":
            yield name, kind(beams=3)
        if name == "confidence":
            yield name, kind(steps=2, block=8)
            yield name, kind(steps=1, order="random")


# The model family of a sampler, if it is not masked diffusion.
_HOMES = {
    "analytic": "sedd",
    "autoregressive": "autoregressive",
    "causal_blocks": "hybrid",
    "ddim": "embedding",
    "dpm_solver": "embedding",
    "draft_verify": "hybrid",
    "edit_flow": "edit",
    "posterior": "uniform",
    "predictor_corrector": "uniform",
    "psi": "uniform",
    "renoising": "hybrid-uniform",
    "self_speculation": "hybrid",
}


def spec_for(name: str, length_head: bool) -> Spec:
    table = described(_HOMES.get(name, "masked"))
    family = registry.find("families", table.pop("name"))(**table)
    spec: Spec = family.spec(real_tokenizer())
    if length_head:
        return spec
    drafter = spec.family.drafter and spec.family.drafter.with_network(prompt_encoder=False, length_head=False)
    return spec.with_network(prompt_encoder=False, length_head=False).with_family(drafter=drafter)


def write(
    wanted: dict[str, Any],
    name: str,
    sampler: Any,
    mood: str,
    seed: int,
    room: int,
    length_head: bool = False,
    temperature: float = 0.0,
    rows: int = 2,
) -> list[str]:
    """Texts generated under constraints from an adversary's logits in ``room`` positions; one text for each row.

    Raises:
        UserError: the constraints can't be satisfied in that room.
        TimeoutError: more forward passes than any sampler needs.
    """
    tokenizer, spec = real_tokenizer(), spec_for(name, length_head)
    head = tokenizer.encode_prompt("Hi")
    copies = sampler.width if sampler.width > 1 else 2 if length_head and spec.network.length_head else 1
    canvas = make_canvas(
        [[*head, *[None] * room]] * rows,
        [len(head)] * rows,
        spec,
        seeds=range(seed, seed + rows),
        copies=copies,
        temperature=0.0 if sampler.width > 1 else temperature,
    )
    loop = Loop({"main": Adversary(spec, mood, seed)}, Method(sampler, constraint=build_all(wanted, tokenizer)), spec)
    if length_head and spec.network.length_head:
        choose_lengths(loop, canvas)
    for turn, _ in enumerate(loop.run(canvas)):
        if turn > 4 * room + 70:
            raise TimeoutError(f"{name} does not finish")
    assert not canvas.open.any()
    return [
        tokenizer.decode(completion(canvas, row, spec.tokens.eos_id)[0])
        for row in best_rows(canvas, sampler.width == 1 and copies > 1)
    ]


def least_room(wanted: dict[str, Any]) -> int | None:
    """Number of tokens of the shortest text, read from the error for too little room; None: there is no text."""
    try:
        write(wanted, "autoregressive", registry.find("samplers", "autoregressive")(), "noise", 0, 1, rows=1)
    except UserError as error:
        found = re.search(r"at least (\d+) tokens", str(error))
        return int(found[1]) if found else None
    return 1
