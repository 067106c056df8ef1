"""Laws of constraints: every finished text matches, what is written together is feasible together, the impossible is an
error."""

from __future__ import annotations

import itertools
import json
import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from redraft import registry
from redraft.canvas import make_canvas
from redraft.constraints import _numbers as numbers
from redraft.constraints import build, build_all, satisfied
from redraft.constraints._regex import from_regex
from redraft.data.tokenizer import Tokenizer
from redraft.decode import Loop, Method
from redraft.errors import UserError
from redraft.model import Model
from redraft.presets import preset
from redraft.types import FREE, SEALED, Attend, Canvas, Forward, Spec, Step
from tests import constrained

METHODS = list(constrained.methods())
QUICK = settings(max_examples=20, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))


# ---- every finished text


def check(kind: str, value: Any, turn: int) -> None:
    """Four generations of one constraint, by samplers and moods in turn."""
    least = constrained.least_room({kind: value})
    assert least is not None
    for number in range(turn, turn + 4):
        name, sampler = METHODS[number % len(METHODS)]
        mood = constrained.MOODS[number % len(constrained.MOODS)]
        room, warm = max(least + 1, 24), float(number % 2)
        [text] = constrained.write({kind: value}, name, sampler, mood, number, room, number % 3 == 0, warm, rows=1)
        assert constrained.holds(kind, value, text), (text, name, mood)


@QUICK
@given(pattern=constrained.regexes(), turn=st.integers(0, 100))
def test_every_text_matches_its_regular_expression(pattern: str, turn: int) -> None:
    check("regex", pattern, turn)


@QUICK
@given(schema=constrained.schemas(), turn=st.integers(0, 100))
def test_every_text_is_json_that_its_schema_accepts(schema: dict[str, Any], turn: int) -> None:
    try:
        build("json_schema", schema, constrained.real_tokenizer())
    except UserError:
        return  # refused beforehand: such as a pattern that only characters could match which JSON would escape
    check("json_schema", schema, turn)


@pytest.mark.parametrize("length_head", [False, True])
@pytest.mark.parametrize(("name", "sampler"), METHODS, ids=[f"{n}-{i}" for i, (n, _) in enumerate(METHODS)])
def test_every_sampler_keeps_to_several_at_once(name: str, sampler: Any, length_head: bool) -> None:
    wanted = {"keywords": "Haus, cat", "template": "x[[ ]]y[[[0-9]{2,}]]", "length": "8-14"}
    for number, mood in enumerate(constrained.MOODS):
        for text in constrained.write(wanted, name, sampler, mood, 3, 16, length_head, float(number % 2), rows=1):
            assert re.fullmatch(r"x.+y[0-9]{2,}", text) and "Haus" in text and "cat" in text


@pytest.mark.parametrize("length_head", [False, True])
@pytest.mark.parametrize(("name", "sampler"), METHODS, ids=[f"{n}-{i}" for i, (n, _) in enumerate(METHODS)])
def test_length_in_tokens(name: str, sampler: Any, length_head: bool) -> None:
    """Read off the canvas: the adversary writes end-of-text as early, or as late, as it may."""
    spec, tokenizer = constrained.spec_for(name, length_head), constrained.real_tokenizer()
    head = tokenizer.encode_prompt("Hi")
    for value, low, high in [("4", 4, 4), ("3-5", 3, 5), ("-2", 0, 2), ("6-", 6, 10)]:
        for mood in ("end", "never"):
            canvas = make_canvas([[*head, *[None] * 10]], [len(head)], spec, seeds=[1], copies=sampler.width)
            method = Method(sampler, constraint=build("length", value, tokenizer))
            loop = Loop({"main": constrained.Adversary(spec, mood)}, method, spec)
            if length_head and spec.length_head:
                loop.choose_lengths(canvas)
            for _ in loop.run(canvas):
                pass
            ids = canvas.ids[0, len(head) :].tolist()
            assert low <= (ids.index(spec.eos_id) if spec.eos_id in ids else len(ids)) <= high


@pytest.mark.parametrize(
    ("value", "pattern"),
    [("3 words", r"\S+(\s\S+){2}"), ("2-4 words", r"\S+(\s\S+){1,3}"), ("12 characters", r"(?s:.){12}")],
)
def test_length_in_words_and_characters(value: str, pattern: str) -> None:
    for name in ("autoregressive", "confidence"):
        sampler = dict(METHODS)[name]
        [text] = constrained.write({"length": value}, name, sampler, "noise", 0, 16, rows=1)
        assert re.fullmatch(pattern, text)


# ---- the language


@pytest.mark.parametrize(
    "pattern",
    ["a|ab", "(a|ab)(c|bcd)?", "a*?b", "(?i)aB", "a{2,}?", "(ab?){0,3}c", "(a?){2,3}", "^a|b$", "(a{1,2}b){2,}"]
    + ["[^a]*", "", "(?:)|é", "[à-ü]?x", ".", "(?s:.)", r"\w\W", "(a|bc*){2,}", "x{0}a", "(^a|b$)", "(?:a|b){1,2}C?"],
)  # fmt: skip
def test_a_pattern_means_what_python_says(pattern: str) -> None:
    automaton, judge = from_regex(pattern), re.compile(pattern)
    for size in range(6):
        for signs in itertools.product("abcxé\n" if size < 4 else "abc", repeat=size):
            text = "".join(signs)
            assert automaton.accepts(text.encode()) == (judge.fullmatch(text) is not None), text


def test_characters_are_well_formed_utf_8() -> None:
    automaton = from_regex("(?s:.)")
    for code in [*range(0, 0x10000, 61), 0x7F, 0x80, 0x7FF, 0x800, 0xFFFF, *range(0x10000, 0x110000, 4099), 0x10FFFF]:
        if not 0xD800 <= code < 0xE000:
            assert automaton.accepts(chr(code).encode())
    for broken in (b"\xc0\x80", b"\xe0\x80\x80", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\xff", b"\x80", b"\xe4\xb8"):
        assert not automaton.accepts(broken)


def test_texts_of_anybody_are_judged_by_all_constraints_and_by_their_tokens() -> None:
    texts, tokens = ["ab 12", "ab 123", "cd 12", "ab 12", ""], [3, 3, 3, 9, 0]
    wanted = {"regex": "[a-z]+ [0-9]{2}", "keywords": "ab", "length": "2-5"}
    assert satisfied(wanted, texts, tokens) == [True, False, False, False, False]
    assert satisfied({}, texts, tokens) == [True] * 5


@given(
    low=st.none() | st.integers(-1200, 1200), high=st.none() | st.integers(-1200, 1200), value=st.integers(-1300, 1300)
)
@settings(max_examples=400, deadline=None)
def test_integers_between_bounds(low: int | None, high: int | None, value: int) -> None:
    inside = (low is None or low <= value) and (high is None or value <= high)
    assert bool(re.fullmatch(numbers.integers(low, high) or r"(?!)", str(value))) == inside


_CLOSE = st.integers(-20_000, 20_000).map(lambda thousandths: thousandths / 1000)
_COARSE = st.integers(-84, 84).map(lambda quarters: quarters / 4)


@given(
    low=st.none() | _COARSE | _CLOSE,
    high=st.none() | _COARSE | _CLOSE,
    above=st.booleans(),
    below=st.booleans(),
    value=_COARSE | _CLOSE,
)
@settings(max_examples=400, deadline=None)
def test_decimals_between_bounds(low: float | None, high: float | None, above: bool, below: bool, value: float) -> None:
    inside = (low is None or low < value or (low == value and not above)) and (
        high is None or value < high or (high == value and not below)
    )
    assert bool(re.fullmatch(numbers.decimals(low, high, above, below) or r"(?!)", str(value))) == inside


# ---- masks and joint feasibility, against enumeration

LINEAR = registry.find("noise.schedules", "linear")()
SPEC = Spec(261, 0, 1, 3, Attend("full"), False, False, 0, False, LINEAR, forbidden=(0, 2, 3, 4))
BYTES = Tokenizer.bytes()
TEXTS = ["abc", "abd", "bac", "b", "cab", "cabd", "dd"]  # a small language, by its texts
LANGUAGE = build("regex", "|".join(TEXTS), BYTES)


def rows_of(room: int) -> np.ndarray:
    """Every finished row of ``room`` positions: a text and ends of text."""
    ids = [BYTES.encode(text) for text in TEXTS if len(text) <= room]
    return np.array([[*row, *[SPEC.eos_id] * (room - len(row))] for row in ids])


def patterns(room: int) -> list[list[int | None]]:
    """Partly written rows that some text completes."""
    found = {
        tuple(None if hide else int(token) for token, hide in zip(row, hidden, strict=True))
        for row in rows_of(room)
        for hidden in itertools.product([True, False], repeat=room)
    }
    return [list(row) for row in sorted(found, key=str)]


def partly_written(row: list[int | None]) -> Canvas:
    return make_canvas([[2, *row]], [1], SPEC, seeds=[0])


@pytest.mark.parametrize("room", [3, 4])
def test_the_mask_leaves_exactly_what_some_text_has(room: int) -> None:
    whole = rows_of(room)
    for row in patterns(room):
        free = [at for at, token in enumerate(row) if token is None]
        if not free:
            continue
        canvas = partly_written(row)
        positions = torch.arange(room + 1)[None]
        ask = Forward(
            x=canvas.ids, pos=positions, want=torch.tensor([free]) + 1, attend=SPEC.attend, rows=torch.tensor([0])
        )
        left = LANGUAGE.mask(canvas, ask, torch.zeros(len(free), SPEC.vocab_size)) == 0
        known = np.array([-1 if token is None else token for token in row])
        matching = whole[((whole == known) | (known < 0)).all(1)]
        for number, at in enumerate(free):
            assert set(left[number].nonzero()[:, 0].tolist()) == set(matching[:, at].tolist())


def test_what_is_kept_is_the_likeliest_part_that_goes_together() -> None:
    generator = np.random.default_rng(0)
    whole, room = rows_of(4), 4
    letters = [*BYTES.encode("abcd"), SPEC.eos_id]
    for row in patterns(room):
        free = [at for at, token in enumerate(row) if token is None]
        if len(free) < 2:
            continue
        token, p = generator.choice(letters, len(free)), generator.uniform(0.05, 1, len(free))
        step = Step(
            row=torch.zeros(len(free), dtype=torch.int64),
            pos=torch.tensor(free) + 1,
            token=torch.from_numpy(token),
            status=torch.full((len(free),), SEALED),
            conf=torch.from_numpy(p).log(),
        )
        kept = LANGUAGE.admit(partly_written(row), step)
        known = np.array([-1 if t is None else t for t in row])
        best = 0.0
        for mask in itertools.product([False, True], repeat=len(free)):
            written = known.copy()
            chosen = [at for at, use in enumerate(mask) if use]
            written[[free[at] for at in chosen]] = token[chosen]
            if ((whole == written) | (written < 0)).all(1).any():
                best = max(best, float(p[chosen].sum()))
        assert float(kept.conf.exp().sum()) == pytest.approx(best)
        written = known.copy()
        written[kept.pos.numpy() - 1] = kept.token.numpy()
        assert ((whole == written) | (written < 0)).all(1).any()


def test_taking_back_is_always_admitted() -> None:
    canvas = partly_written(BYTES.encode("abc"))
    canvas.status[0, 1:] = 3  # drafts
    one = torch.tensor([0])
    step = Step(one, one + 2, one + SPEC.mask_id, one + FREE, torch.zeros(1))
    assert len(LANGUAGE.admit(canvas, step).row) == 1


# ---- with models


@pytest.mark.parametrize("family", ["autoregressive", "masked"])
def test_a_text_does_not_depend_on_its_neighbours(family: str) -> None:
    tokenizer = Tokenizer.bytes()
    model = Model.fresh({"name": family}, tokenizer, preset("toy", tokenizer.vocab_size), True, seed=1)
    for parameter in model.network.parameters():
        if parameter.ndim == 2:
            parameter.data.mul_(5)
    model.network.double().requires_grad_(False)
    chosen: dict[str, Any] = {"max_new_tokens": 14, "temperature": 1.0, "constraint": {"regex": r"[a-f]+(-\d\d?){1,3}"}}
    prompts = ["a", "a much longer one", "mid"]
    together = model.generate(prompts, **chosen)
    for number, prompt in enumerate(prompts):
        assert model.generate(prompt, seed=number, **chosen)[0].text == together[number].text
        assert re.fullmatch(r"[a-f]+(-\d\d?){1,3}", together[number].text)


def test_holes_are_filled_within_the_constraint() -> None:
    tokenizer = Tokenizer.bytes()
    model = Model.fresh({"name": "masked"}, tokenizer, preset("toy", tokenizer.vocab_size), True, seed=1)
    text = model.infill("on [[10]] at [[5]]", constraint={"regex": r"on \d{4}-\d\d-\d\d at \d\d:\d\d"}).text
    assert re.fullmatch(r"on \d{4}-\d\d-\d\d at \d\d:\d\d", text)
    with pytest.raises(UserError, match="given leaves no way"):
        model.infill("on [[10]]", constraint={"regex": "at .*"})


def opinionated(family: str, conditional: bool = True, **fields: Any) -> Model:
    tokenizer = Tokenizer.bytes()
    model = Model.fresh({"name": family, **fields}, tokenizer, preset("toy", tokenizer.vocab_size), conditional, seed=1)
    for parameter in model.network.parameters():
        if parameter.ndim == 2:
            parameter.data.mul_(5)
    return model


FORMS: list[tuple[dict[str, Any], str]] = [
    ({"regex": r"[a-f]+(-\d\d?){2,3}"}, r"[a-f]+(-\d\d?){2,3}"),
    ({"json_schema": {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}}, r'\{.*"n".*\}'),
    ({"keywords": "cat,Haus"}, r"(?s:.*cat.*Haus.*|.*Haus.*cat.*)"),
    ({"length": "5-9"}, r"(?s:.*)"),
    ({"length": "3 words"}, r"\S+(\s\S+){2}"),
]


@pytest.mark.parametrize("conditional", [True, False])
@pytest.mark.parametrize("family", ["expand", "block"])
def test_models_that_find_the_length_while_they_write_keep_to_constraints(family: str, conditional: bool) -> None:
    """Blocks of 4 in a text of up to 20 bytes: what is written first must leave room for what has to follow."""
    model = opinionated(family, conditional, **({"block": 4} if family == "block" else {}))
    for wanted, pattern in FORMS:
        for temperature in (0.0, 1.0):
            for found in model.generate(["a", "mid"], max_new_tokens=20, temperature=temperature, constraint=wanted):
                assert re.fullmatch(pattern, found.text), (found.text, wanted)
                assert satisfied(wanted, [found.text], [len(found.ids)]) == [True]
                assert len(found.ids) <= 20


@pytest.mark.parametrize("family", ["masked", "expand"])
def test_holes_of_unknown_size_get_one_that_the_constraint_allows(family: str) -> None:
    model = opinionated(family)
    text = model.infill("on [[?]] at [[1-9]].", constraint={"regex": r"on \d{4}-\d\d-\d\d at \d\d:\d\d\."}).text
    assert re.fullmatch(r"on \d{4}-\d\d-\d\d at \d\d:\d\d\.", text)
    text = model.infill("a [[?]] b [[?]]c", constraint={"regex": "a x+ b y{7}c"}).text  # more than are all tried
    assert re.fullmatch("a x+ b y{7}c", text)
    with pytest.raises(UserError, match="holes of no size"):
        model.infill("on [[1-3]].", constraint={"regex": r"on \d{4}\."})
    with pytest.raises(UserError, match="combinations"):
        model.infill("[[?]] [[?]] [[?]] [[?]]", constraint={"keywords": "cat"})
    with pytest.raises(UserError, match="start"):
        model.infill("on [[?]].", start=3, constraint={"keywords": "cat"})


def test_an_edit_model_refuses_constraints_and_says_what_does_not() -> None:
    """Whether lengths stand or not: what it begins with is text already."""
    model = opinionated("edit")
    for writes in (
        lambda: model.generate("a", max_new_tokens=8, constraint={"regex": "a+"}),
        lambda: model.infill("a [[3]]", constraint={"regex": "a .*"}),
        lambda: model.infill("a [[?]]", constraint={"regex": "a .*"}),
    ):
        with pytest.raises(UserError, match="can't be constrained.*expand"):
            writes()


def test_sentencepiece_drops_the_first_space() -> None:
    """With a word marker in the vocabulary the decoder eats one leading space; the constraint holds for the rest."""
    import tokenizers
    from tokenizers import decoders, models

    words = ["<unk>", "<s>", "</s>", "\u2581", "\u2581a", "a", "b", "\u2581b"]
    pieces = [*words, *(f"<0x{byte:02X}>" for byte in range(256))]
    backend = tokenizers.Tokenizer(models.BPE({p: i for i, p in enumerate(pieces)}, [], byte_fallback=True))
    backend.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer = Tokenizer(backend)
    assert tokenizer.drops_first_space
    spec = replace(
        SPEC,
        vocab_size=tokenizer.vocab_size,
        eos_id=tokenizer.eos_id,
        mask_id=tokenizer.mask_id,
        forbidden=tokenizer.markers,
    )
    for seed in range(20):
        canvas = make_canvas([[tokenizer.bos_id, *[None] * 6]], [1], spec, seeds=[seed])
        sampler = registry.find("samplers", "confidence")(steps=3)
        for _ in Loop(
            {"main": constrained.Adversary(spec, "noise", seed)},
            Method(sampler, constraint=build("regex", " ?a( b|a)*", tokenizer)),
            spec,
        ).run(canvas):
            pass
        ids = canvas.ids[0, 1:].tolist()
        text = tokenizer.decode(ids[: ids.index(spec.eos_id)] if spec.eos_id in ids else ids)
        assert re.fullmatch(" ?a( b|a)*", text), text


# ---- the impossible


@pytest.mark.parametrize("length_head", [False, True])
def test_too_little_room_is_an_error_that_names_the_need(length_head: bool) -> None:
    """The shortest text of this schema, in tokens, is found by asking; one position less must be refused, too."""
    wanted = {"json_schema": {"type": "array", "items": {"type": "integer", "minimum": 100}, "minItems": 9}}
    least = constrained.least_room(wanted)
    assert least is not None and least > 9
    name, sampler = next(method for method in METHODS if method[0] == "confidence")
    [text] = constrained.write(wanted, name, sampler, "noise", 0, least + length_head, length_head, rows=1)
    assert constrained.holds("json_schema", wanted["json_schema"], text)
    with pytest.raises(UserError, match=f"at least {least} tokens, but only {least - 1}"):
        constrained.write(wanted, name, sampler, "noise", 0, least - 1 + length_head, length_head)


@pytest.mark.parametrize(
    ("wanted", "says"),
    [
        ({"regex": "a(?=b)"}, "look-around"),
        ({"regex": r"(a)\1"}, "back-references"),
        ({"regex": r"\ba"}, "word boundaries"),
        ({"regex": "(a"}, "unterminated"),
        ({"regex": "a$b"}, "inside"),
        ({"regex": "(a|b)*a(a|b){40}"}, "too large"),
        ({"regex": "((a{1,60}){1,60}){1,60}"}, "too large"),
        ({"regex": r"[^\s\S]"}, "no text at all"),
        ({"regex": "a+", "keywords": "b"}, "no text at all"),
        ({"length": "5-3"}, "ends below"),
        ({"length": "many"}, "no length"),
        ({"keywords": ","}, "names no words"),
        ({"template": "Age: [[3]]"}, "infill"),
        ({"json_schema": "{"}, "not valid JSON"),
        ({"json_schema": {"$ref": "#"}}, "recursive"),
        (
            {"json_schema": {"type": "array", "items": {"$ref": "#/$defs/a"}, "$defs": {"a": {"$ref": "#"}}}},
            "recursive",
        ),
        ({"json_schema": {"$ref": "#/$defs/no"}}, "does not exist"),
        ({"json_schema": {"type": "array", "uniqueItems": True}}, "uniqueItems"),
        ({"json_schema": {"not": {}}}, "'not'"),
        ({"json_schema": {"type": "strnig"}}, "string"),
        ({"json_schema": {"type": "number", "exclusiveMinimum": 0.5, "maximum": 0.5}}, "no number"),
        ({"json_schema": {"type": "integer", "multipleOf": 2}}, "multipleOf"),
        ({"json_schema": {"type": "integer", "minimum": 5, "maximum": 4}}, "no number"),
        ({"json_schema": {"type": "string", "format": "iri"}}, "format"),
        ({"json_schema": {"oneOf": [{"type": "integer"}, {"type": "number"}]}}, "anyOf"),
        ({"json_schema": {"allOf": [{"type": "string"}, {"minLength": 3}]}}, "allOf"),
        ({"rgex": "a"}, "regex"),
    ],
)
def test_what_can_not_be_followed_is_refused(wanted: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=re.escape(says)):
        build_all(wanted, BYTES)


@pytest.mark.parametrize(
    ("schema", "good", "bad"),
    [
        ({"properties": {"a": {"type": "null"}, "b": {}}}, ['{}', '{"b":[1]}', '{"a": null, "b":{}}'], ['{"c":1}']),
        ({"oneOf": [{"type": "null"}, {"type": "string"}]}, ["null", '"x"'], ["1"]),
        ({"type": "string", "pattern": "^a.c$"}, ['"abc"', '"aéc"'], ['"a\\"c"', '"xabc"']),
        ({"type": "string", "pattern": "b"}, ['"abc"', '"b"'], ['"ac"']),
        ({"prefixItems": [{"type": "null"}], "items": False}, ["[]", "[null]"], ["[1]", "[null,null]"]),
        ({"$ref": "#/$defs/x", "$defs": {"x": {"enum": ["a", "ab", 1.5]}}}, ['"a"', '"ab"', "1.5"], ['"b"']),
        (True, ['"a"', "-1.5e3", '{"k": [1, true]}', "[[1]]"], ["[[[1]]]", '{"k":[{}]}', "01"]),
        ({"type": ["integer", "null"], "minimum": 7}, ["7", "null", "123"], ["6", "07"]),
    ],
)  # fmt: skip
def test_schemas_accept_and_refuse(schema: Any, good: list[str], bad: list[str]) -> None:
    """Good ones are JSON, too; the language is a part of what the schema accepts."""
    kind = registry.find("constraints", "json_schema").of(schema)
    automaton = kind.automaton()
    for text in good:
        json.loads(text)
        assert automaton.accepts(text.encode()), text
    for text in bad:
        assert not automaton.accepts(text.encode()), text
