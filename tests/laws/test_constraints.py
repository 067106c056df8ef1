"""Laws of constraints: every finished text matches, tokens written together are feasible together, and constraints that
can't be satisfied are errors."""

from __future__ import annotations

import itertools
import re
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from redraft import registry
from redraft.canvas import make_canvas
from redraft.constraints import build, satisfied
from redraft.data.tokenizer import Tokenizer
from redraft.errors import UserError
from redraft.generation.length import choose_lengths
from redraft.generation.loop import Loop, Method
from redraft.model import Model
from redraft.noise.absorbing import Absorbing
from redraft.presets import preset
from redraft.types import (
    FREE,
    SEALED,
    AttentionPattern,
    Canvas,
    Drawing,
    FamilyFacts,
    NetworkFacts,
    Request,
    Spec,
    Step,
    TokenIds,
)
from tests import constrained

METHODS = list(constrained.methods())
QUICK = settings(max_examples=20, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))


# ---- finished texts


def check(kind: str, value: Any, turn: int) -> None:
    """Four generations under one constraint, with samplers and adversaries in turn."""
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
        return  # not supported: such as a pattern that matches only characters that JSON escapes
    check("json_schema", schema, turn)


@pytest.mark.parametrize("length_head", [False, True])
@pytest.mark.parametrize(("name", "sampler"), METHODS, ids=[f"{n}-{i}" for i, (n, _) in enumerate(METHODS)])
def test_every_sampler_satisfies_several_constraints_at_once(name: str, sampler: Any, length_head: bool) -> None:
    wanted = {"keywords": "Haus, cat", "template": "x[[ ]]y[[[0-9]{2,}]]", "length": "8-14"}
    for number, mood in enumerate(constrained.MOODS):
        for text in constrained.write(wanted, name, sampler, mood, 3, 16, length_head, float(number % 2), rows=1):
            assert re.fullmatch(r"x.+y[0-9]{2,}", text) and "Haus" in text and "cat" in text


@pytest.mark.parametrize("length_head", [False, True])
@pytest.mark.parametrize(("name", "sampler"), METHODS, ids=[f"{n}-{i}" for i, (n, _) in enumerate(METHODS)])
def test_length_in_tokens(name: str, sampler: Any, length_head: bool) -> None:
    """Counted on the canvas: the adversary generates end-of-text as early, or as late, as possible."""
    spec, tokenizer = constrained.spec_for(name, length_head), constrained.real_tokenizer()
    head = tokenizer.encode_prompt("Hi")
    for value, low, high in [("4", 4, 4), ("3-5", 3, 5), ("-2", 0, 2), ("6-", 6, 10)]:
        for mood in ("end", "never"):
            canvas = make_canvas([[*head, *[None] * 10]], [len(head)], spec, seeds=[1], copies=sampler.width)
            method = Method(sampler, constraint=build("length", value, tokenizer))
            loop = Loop({"main": constrained.Adversary(spec, mood)}, method, spec)
            if length_head and spec.network.length_head:
                choose_lengths(loop, canvas)
            for _ in loop.run(canvas):
                pass
            ids = canvas.ids[0, len(head) :].tolist()
            assert low <= (ids.index(spec.tokens.eos_id) if spec.tokens.eos_id in ids else len(ids)) <= high


@pytest.mark.parametrize(
    ("value", "pattern"),
    [("3 words", r"\S+(\s\S+){2}"), ("2-4 words", r"\S+(\s\S+){1,3}"), ("12 characters", r"(?s:.){12}")],
)
def test_length_in_words_and_characters(value: str, pattern: str) -> None:
    for name in ("autoregressive", "confidence"):
        sampler = dict(METHODS)[name]
        [text] = constrained.write({"length": value}, name, sampler, "noise", 0, 16, rows=1)
        assert re.fullmatch(pattern, text)


# ---- masks and joint feasibility, against enumeration

LINEAR = registry.find("noise.schedules", "linear")()
SPEC = Spec(
    TokenIds(261, 0, 1, 3, forbidden=(0, 2, 3, 4)),
    NetworkFacts(AttentionPattern("full")),
    FamilyFacts(LINEAR, Absorbing()),
)
BYTES = Tokenizer.bytes()
TEXTS = ["abc", "abd", "bac", "b", "cab", "cabd", "dd"]  # a small language, by its texts
LANGUAGE = build("regex", "|".join(TEXTS), BYTES)


def rows_of(room: int) -> np.ndarray:
    """Every finished row of ``room`` positions: a text, then end-of-text tokens."""
    ids = [BYTES.encode(text) for text in TEXTS if len(text) <= room]
    return np.array([[*row, *[SPEC.tokens.eos_id] * (room - len(row))] for row in ids])


def patterns(room: int) -> list[list[int | None]]:
    """Partly known rows that some text completes."""
    found = {
        tuple(None if hide else int(token) for token, hide in zip(row, hidden, strict=True))
        for row in rows_of(room)
        for hidden in itertools.product([True, False], repeat=room)
    }
    return [list(row) for row in sorted(found, key=str)]


def partly_written(row: list[int | None]) -> Canvas:
    return make_canvas([[2, *row]], [1], SPEC, seeds=[0])


@pytest.mark.parametrize("room", [3, 4])
def test_the_mask_leaves_exactly_the_tokens_of_completions(room: int) -> None:
    whole = rows_of(room)
    for row in patterns(room):
        free = [at for at, token in enumerate(row) if token is None]
        if not free:
            continue
        canvas = partly_written(row)
        positions = torch.arange(room + 1)[None]
        request = Request(
            tokens=canvas.ids,
            positions=positions,
            targets=torch.tensor([free]) + 1,
            attention=SPEC.network.attention,
            drawing=Drawing(torch.tensor([0])),
        )
        left = LANGUAGE.mask(canvas, request, torch.zeros(len(free), SPEC.tokens.vocab_size)) == 0
        known = np.array([-1 if token is None else token for token in row])
        matching = whole[((whole == known) | (known < 0)).all(1)]
        for number, at in enumerate(free):
            assert set(left[number].nonzero()[:, 0].tolist()) == set(matching[:, at].tolist())


def test_admit_keeps_the_feasible_part_with_the_highest_probability() -> None:
    generator = np.random.default_rng(0)
    whole, room = rows_of(4), 4
    letters = [*BYTES.encode("abcd"), SPEC.tokens.eos_id]
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


def test_remasking_is_always_admitted() -> None:
    canvas = partly_written(BYTES.encode("abc"))
    canvas.status[0, 1:] = 3  # drafts
    one = torch.tensor([0])
    step = Step(one, one + 2, one + SPEC.tokens.mask_id, one + FREE, torch.zeros(1))
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
    with pytest.raises(UserError, match="given text leaves no way"):
        model.infill("on [[10]]", constraint={"regex": "at .*"})


def scaled_model(family: str, paired: bool = True, **fields: Any) -> Model:
    tokenizer = Tokenizer.bytes()
    model = Model.fresh({"name": family, **fields}, tokenizer, preset("toy", tokenizer.vocab_size), paired, seed=1)
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


@pytest.mark.parametrize("paired", [True, False])
@pytest.mark.parametrize("family", ["expand", "block"])
def test_variable_length_models_satisfy_constraints(family: str, paired: bool) -> None:
    """Blocks of 4 in a text of up to 20 bytes: the first blocks must leave room for the rest of the text."""
    model = scaled_model(family, paired, **({"block": 4} if family == "block" else {}))
    for wanted, pattern in FORMS:
        for temperature in (0.0, 1.0):
            for found in model.generate(["a", "mid"], max_new_tokens=20, temperature=temperature, constraint=wanted):
                assert re.fullmatch(pattern, found.text), (found.text, wanted)
                assert satisfied(wanted, [found.text], [len(found.ids)]) == [True]
                assert len(found.ids) <= 20


@pytest.mark.parametrize("family", ["masked", "expand"])
def test_holes_of_unknown_size_get_a_feasible_size(family: str) -> None:
    model = scaled_model(family)
    text = model.infill("on [[?]] at [[1-9]].", constraint={"regex": r"on \d{4}-\d\d-\d\d at \d\d:\d\d\."}).text
    assert re.fullmatch(r"on \d{4}-\d\d-\d\d at \d\d:\d\d\.", text)
    text = model.infill("a [[?]] b [[?]]c", constraint={"regex": "a x+ b y{7}c"}).text  # more sizes than are all tried
    assert re.fullmatch("a x+ b y{7}c", text)
    with pytest.raises(UserError, match="can.t be satisfied"):
        model.infill("on [[1-3]].", constraint={"regex": r"on \d{4}\."})
    with pytest.raises(UserError, match="combinations"):
        model.infill("[[?]] [[?]] [[?]] [[?]]", constraint={"keywords": "cat"})
    with pytest.raises(UserError, match="start"):
        model.infill("on [[?]].", start=3, constraint={"keywords": "cat"})


def test_edit_models_reject_constraints() -> None:
    """With a fixed length and without: the canvas of an edit model starts as text."""
    model = scaled_model("edit")
    for writes in (
        lambda: model.generate("a", max_new_tokens=8, constraint={"regex": "a+"}),
        lambda: model.infill("a [[3]]", constraint={"regex": "a .*"}),
        lambda: model.infill("a [[?]]", constraint={"regex": "a .*"}),
    ):
        with pytest.raises(UserError, match="can't be constrained.*expand"):
            writes()


def test_sentencepiece_decoders_drop_the_first_space() -> None:
    """The decoder drops one leading space; the constraint holds for the decoded text."""
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
    spec = SPEC.with_tokens(
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
        text = tokenizer.decode(ids[: ids.index(spec.tokens.eos_id)] if spec.tokens.eos_id in ids else ids)
        assert re.fullmatch(" ?a( b|a)*", text), text


# ---- constraints that can't be satisfied


@pytest.mark.parametrize("length_head", [False, True])
def test_too_little_room_is_an_error_that_names_the_minimum(length_head: bool) -> None:
    """The shortest text of this schema fits into its number of tokens; one position less is an error."""
    wanted = {"json_schema": {"type": "array", "items": {"type": "integer", "minimum": 100}, "minItems": 9}}
    least = constrained.least_room(wanted)
    assert least is not None and least > 9
    name, sampler = next(method for method in METHODS if method[0] == "confidence")
    [text] = constrained.write(wanted, name, sampler, "noise", 0, least + length_head, length_head, rows=1)
    assert constrained.holds("json_schema", wanted["json_schema"], text)
    with pytest.raises(UserError, match=f"at least {least} tokens, but only {least - 1}"):
        constrained.write(wanted, name, sampler, "noise", 0, least - 1 + length_head, length_head)
