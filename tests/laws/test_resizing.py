"""Laws of canvases that grow and shrink, and of the models that write ``expand`` and ``delete``."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

import pytest
import torch

from redraft import registry
from redraft.caches.exact import Exact
from redraft.canvas import Growth, completion, extent, make_canvas, moved, resize
from redraft.data.tokenizer import Tokenizer
from redraft.errors import UserError
from redraft.families.expand import Expand
from redraft.generation.loop import Loop, Method
from redraft.generation.prompts import prompt_ids
from redraft.model import Model
from redraft.models.parts.store import KeyValueStore
from redraft.objectives.expand import Expand as Objective
from redraft.objectives.masked import Masked
from redraft.presets import preset
from redraft.samplers.base import Sampler
from redraft.samplers.wrappers.resizing import Resizing
from redraft.types import DELETE, FREE, GIVEN, INSERT, PAD, SEALED, SET, Canvas, Forward, Spec, Step
from tests import tiny

EOS, MASK = tiny.VOCABULARY.eos_id, tiny.VOCABULARY.mask_id
A, B, C = tiny.VOCABULARY.letters


# ---- moving positions


def random_step(canvas: Canvas, chance: random.Random) -> tuple[Step, list[list[int]]]:
    """Random changes of every kind, and the expected rows from the same changes of Python lists."""
    ops: list[tuple[int, int, int, int]] = []
    expected = []
    for row in range(len(canvas.ids)):
        cells = canvas.ids[row, : int(extent(canvas)[row])].tolist()
        room = int(canvas.limit[row]) - len(cells)
        found: list[int] = []
        for pos, token in enumerate(cells):
            open_ = int(canvas.status[row, pos]) == FREE
            for _ in range(chance.choice([0, 0, 1, 2])):
                if bool(canvas.gap[row, pos]) and room > 0:
                    room -= 1
                    new = chance.randrange(100, 200)
                    ops.append((row, pos, new, INSERT))
                    found.append(new)
            what = chance.choice([None, SET, DELETE]) if open_ else None
            new = chance.randrange(100, 200)
            if what is not None:
                ops.append((row, pos, new, what))
            if what == SET:
                found.append(new)
            elif what is None:
                found.append(token)
        expected.append(found)
    others = [op for op in ops if op[3] != INSERT]
    chance.shuffle(others)  # only the order of insertions at one position matters
    ops = [*others, *(op for op in ops if op[3] == INSERT)]
    row, pos, token, kind = (torch.tensor([op[i] for op in ops], dtype=torch.int64) for i in range(4))
    return Step(row, pos, token, torch.full_like(row, SEALED), torch.zeros(len(row)), kind=kind), expected


def test_positions_move_as_in_lists() -> None:
    spec, _ = tiny.family("masked")
    chance = random.Random(0)
    for _ in range(200):
        rows: list[list[int | None]] = [
            [6, 4, *chance.choices([None, None, 5], k=chance.randrange(1, 7)), EOS] for _ in range(3)
        ]
        canvas = make_canvas(rows, [2] * 3, spec, seeds=[0] * 3, growth=Growth([12, 9, 11]))
        names = torch.arange(canvas.ids.numel()).view(canvas.ids.shape)
        before = canvas.ids.clone()
        step, expected = random_step(canvas, chance)
        found = resize(canvas, step)
        canvas.ids[found.row, found.pos] = found.token
        canvas.status[found.row, found.pos] = found.status.to(torch.int8)
        for row in range(3):
            cells = canvas.status[row] != PAD
            assert canvas.ids[row][cells].tolist() == expected[row]
            assert bool(cells[: int(cells.sum())].all()), "padding is at the end"
        assert found.source is not None
        follow = moved(names, found.source, -1)
        old = moved(before, found.source, -1)
        assert torch.equal(old[follow >= 0], before.flatten()[follow[follow >= 0]])


def test_a_row_never_exceeds_its_limit() -> None:
    spec, _ = tiny.family("masked")
    canvas = make_canvas([[6, 4, None, EOS]], [2], spec, seeds=[0], growth=Growth([6]))
    many = torch.full((5,), 2)
    step = Step(many * 0, many, torch.arange(5) + 50, many * 0 + SEALED, many * 0.0, kind=many * 0 + INSERT)
    found = resize(canvas, step)
    assert found.token.tolist() == [50, 51] and int(extent(canvas)[0]) == 6


@pytest.mark.parametrize(("pos", "kind"), [(1, DELETE), (1, INSERT), (4, DELETE)])
def test_given_tokens_are_not_deleted_or_separated(pos: int, kind: int) -> None:
    spec, _ = tiny.family("masked")
    canvas = make_canvas([[6, 4, None, 5, 6, EOS]], [2], spec, seeds=[0], growth=Growth([12]))
    one = torch.tensor([0])
    with pytest.raises(ValueError, match="given|gap"):
        resize(canvas, Step(one, one + pos, one, one + SEALED, one * 0.0, kind=one + kind))


@dataclass(frozen=True)
class Inserting:
    """Writes letters, and inserts one mask before the first free position of every row at its second step."""

    exact = False
    retracts = False
    width = 1

    def start(self, canvas: Canvas, spec: Spec) -> None:
        return None

    def plan(self, canvas: Canvas, state: None, spec: Spec) -> list[Forward]:
        from redraft.samplers.shared import common

        return common.requests_for(canvas, spec, canvas.status == FREE)

    def apply(self, canvas: Canvas, state: None, spec: Spec, requests: Any, outputs: Any) -> tuple[None, Step]:
        request, out = requests[0], outputs[0]
        turn = canvas.step[request.rows] == 1
        last = (request.targets >= 0).sum(1) - 1
        pos = torch.where(
            turn, request.targets[:, 0], request.targets.gather(1, last[:, None])[:, 0]
        )  # from right to left
        token = torch.where(turn, spec.tokens.mask_id, out.token.gather(1, last[:, None])[:, 0])
        status = torch.where(turn, FREE, SEALED)
        kind = torch.where(turn, INSERT, SET)
        return None, Step(request.rows, pos, token, status, torch.zeros(len(pos)), kind=kind)


def test_stored_keys_of_moved_positions_are_invalidated() -> None:
    """The stores of every policy contain nothing at or after the first moved position."""
    tokenizer = Tokenizer.bytes()
    model = Model.fresh({"name": "masked"}, tokenizer, preset("toy", tokenizer.vocab_size), True, seed=1)
    canvas = make_canvas(
        [[70, 4, None, 80, None, EOS], [71, 72, 4, None, None, EOS]],
        [2, 3],
        model.spec,
        seeds=[0, 1],
        growth=Growth([7, 7]),
    )
    loop = Loop({"main": model.network}, Method(Inserting(), registry.find("caches", "prefix")()), model.spec)
    for step in loop.run(canvas):
        if step.source is not None and bool((step.kind == INSERT).any()):
            for store in loop.stores.values():
                assert isinstance(store, KeyValueStore)
                for row, pos in zip(step.row.tolist(), step.pos.tolist(), strict=True):
                    assert (store.tokens[int(canvas.kv_slot[row]), pos:] == -1).all()
    assert extent(canvas).tolist() == [7, 7] and not bool(canvas.open.any())


@pytest.mark.parametrize("attend", ["full", "causal"])
def test_an_exact_cache_is_exact_across_moves(attend: str) -> None:
    """With causal attention, positions before a moved one are reused, with the same result as running them again."""
    tokenizer, found = Tokenizer.bytes(), []
    for cache in (Exact(), None):
        model = Model.fresh({"name": "masked"}, tokenizer, preset("toy", tokenizer.vocab_size), True, seed=1)
        model.network.double()
        spec = model.spec.with_network(attention=replace(model.spec.network.attention, kind=attend))
        canvas = make_canvas(
            [[70, 4, 75, None, 80, None, EOS], [71, 72, 4, None, None, EOS]],
            [2, 3],
            spec,
            seeds=[0, 1],
            temperature=1.0,
            growth=Growth([9, 8]),
        )
        for _ in Loop({"main": model.network}, Method(Inserting(), cache), spec).run(canvas):
            pass
        found.append(canvas)
    assert torch.equal(found[0].ids, found[1].ids)


# ---- models that expand and delete


RULES: dict[str, dict[str, Any]] = {
    "confidence": {"steps": 5},
    "threshold": {"threshold": 0.3},
    "factor": {"factor": 3.0},
    "hierarchical": {"threshold": 0.3, "low": 0.1},
    "entropy_bound": {"gamma": 2.0},
    "first_hitting": {},
}
each_rule = pytest.mark.parametrize("rule", RULES)


def sampler(rule: str) -> Sampler:
    return Resizing(registry.find("samplers", rule)(**RULES[rule]))


def untrained(paired: bool = True) -> Model:
    tokenizer = Tokenizer.bytes()
    model = Model.fresh({"name": "expand"}, tokenizer, preset("toy", tokenizer.vocab_size), paired, seed=1)
    for parameter in model.network.parameters():
        if parameter.ndim == 2:
            parameter.data.mul_(5)
    model.network.double().requires_grad_(False)
    return model


@dataclass
class Restless:
    """An untrained network with higher logits for expand and delete, which are rare among 263 equally likely tokens."""

    model: Model

    def __call__(self, request: Forward, store: Any = None) -> torch.Tensor:
        logits = self.model.network(request, store)
        liked = [self.model.spec.tokens.expand_id, self.model.spec.tokens.delete_id]
        logits[:, liked] = logits[:, liked] / 2 + logits.logsumexp(1, keepdim=True) - 1
        return logits

    def store(self, seats: int, cells: int) -> KeyValueStore:
        return self.model.network.store(seats, cells)


ROWS: list[list[int | None]] = [
    [70, 71, 4, *[None] * 6, EOS],
    [72, 4, None, None, 80, 81, None, None, EOS],
    [73, 74, 75, 76, 77, 4, None, 90, EOS],
]
PROMPTS, LIMITS = [3, 2, 6], [14, 13, 16]


def run(
    model: Model, rule: str, rows: list[list[int | None]], numbers: list[int], **options: Any
) -> tuple[Canvas, Any]:
    canvas = make_canvas(
        rows,
        [PROMPTS[n] for n in numbers],
        model.spec,
        seeds=[10 + n for n in numbers],
        growth=Growth([LIMITS[n] for n in numbers]),
        temperature=options.pop("temperature", 0.0),
    )
    steps = list(
        Loop({"main": Restless(model)}, Method(sampler(rule), options.get("cache", Exact())), model.spec).run(canvas)
    )
    return canvas, steps


@each_rule
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_given_tokens_keep_their_order_and_all_positions_are_filled(rule: str, temperature: float) -> None:
    model = untrained()
    canvas, steps = run(model, rule, ROWS, [0, 1, 2], temperature=temperature)
    assert not bool(canvas.open.any())
    for number, row in enumerate(ROWS):
        given = [token for token in row if token is not None]
        assert canvas.ids[number][canvas.status[number] == GIVEN].tolist() == given
        assert int(extent(canvas)[number]) <= LIMITS[number]
        # Runs of given tokens are not separated.
        runs = [len(list(part)) for free, part in groupby(row, key=lambda token: token is None) if not free]
        status = canvas.status[number][canvas.status[number] != PAD].tolist()
        found = [len(list(part)) for is_given, part in groupby(status, key=lambda s: s == GIVEN) if is_given]
        assert sum(found) == sum(runs) and all(n in _sums(runs) for n in found)
    written = torch.cat([step.token[step.status == SEALED] for step in steps])
    assert not set(written.tolist()) & {
        *model.spec.tokens.forbidden,
        model.spec.tokens.expand_id,
        model.spec.tokens.delete_id,
    }
    assert temperature == 0 or any(step.source is not None for step in steps), "no length changed: nothing was tested"


def _sums(runs: list[int]) -> set[int]:
    """Lengths of joined runs: all positions between two given runs may be deleted."""
    return {sum(runs[a:b]) for a in range(len(runs)) for b in range(a + 1, len(runs) + 1)}


@each_rule
def test_rows_of_a_batch_are_independent(rule: str) -> None:
    model = untrained()
    together, _ = run(model, rule, ROWS, [0, 1, 2], temperature=1.0)
    for number, row in enumerate(ROWS):
        alone, _ = run(model, rule, [row], [number], temperature=1.0)
        assert completion(together, number, EOS) == completion(alone, 0, EOS)
        assert int(together.nfe[number]) == int(alone.nfe[0])
        assert float(together.score[number]) == pytest.approx(float(alone.score[0]), abs=1e-6)


@each_rule
def test_an_exact_cache_changes_no_growing_sequence(rule: str) -> None:
    model = untrained()
    one, _ = run(model, rule, ROWS, [0, 1, 2], temperature=1.0)
    other, _ = run(model, rule, ROWS, [0, 1, 2], temperature=1.0, cache=None)
    assert torch.equal(one.ids, other.ids)


def test_an_observer_of_the_steps_ends_with_the_same_canvas() -> None:
    """Parents, source and changes of a ``Step`` are sufficient to reproduce the canvas."""
    model = untrained()
    canvas = make_canvas(ROWS, PROMPTS, model.spec, seeds=[1, 2, 3], temperature=1.0, growth=Growth(LIMITS))
    ids, status = canvas.ids.clone(), canvas.status.clone()
    for step in Loop({"main": Restless(model)}, Method(sampler("threshold"), Exact()), model.spec).run(canvas):
        if step.source is not None:
            ids, status = moved(ids, step.source, 0), moved(status, step.source, PAD)
        ids[step.row, step.pos] = step.token
        status[step.row, step.pos] = step.status.to(torch.int8)
        live = canvas.status != PAD
        assert torch.equal(ids[live], canvas.ids[live])
        assert torch.equal(status[live], canvas.status[live])


@dataclass
class Knowing:
    """Predicts the only text. From the number of positions it deletes the last masks, or expands them."""

    text: list[int]
    spec: Spec
    start: int

    def __call__(self, request: Forward, store: object = None) -> torch.Tensor:
        row, column = (request.targets >= 0).nonzero(as_tuple=True)
        want = request.targets[row, column]
        cells = (request.positions >= self.start).sum(1)[row] - 1  # without the closing end-of-text
        place = want - self.start
        wrong = len(self.text) - cells
        token = torch.tensor([*self.text, *[0] * 99])[place]
        top = torch.full((len(request.tokens),), -1).scatter_reduce(0, row, want, "amax")[row]
        token = torch.where((want == top) & (wrong > 0), self.spec.tokens.expand_id, token)
        token = torch.where((want == top) & (wrong < 0), self.spec.tokens.delete_id, token)
        logits = torch.zeros(len(want), self.spec.tokens.vocab_size)
        sure = torch.where((wrong == 0) | (want == top), 20.0, 0.0)
        logits[torch.arange(len(want)), token] = sure + (want == top) * (wrong != 0)
        return logits


@pytest.mark.parametrize("start", [1, 2, 5, 9])
@pytest.mark.parametrize("rule", ["threshold", "factor"])
def test_a_known_text_is_found_from_any_length(rule: str, start: int) -> None:
    spec, _ = tiny.family("expand")
    text = [A, B, C, A, C]
    canvas = make_canvas([[6, 4, *[None] * start, EOS]], [2], spec, seeds=[0], growth=Growth([14]))
    chosen = Resizing(registry.find("samplers", rule)(**({"threshold": 0.9} if rule == "threshold" else {})))
    for _ in Loop({"main": Knowing(text, spec, 2)}, Method(chosen), spec).run(canvas):
        pass
    assert completion(canvas, 0, EOS) == (text, "stop")


def test_generation_with_a_model_that_always_expands_ends() -> None:
    spec, _ = tiny.family("expand")

    def network(request: Forward, store: object = None) -> torch.Tensor:
        logits = torch.zeros(int((request.targets >= 0).sum()), spec.tokens.vocab_size)
        logits[:, spec.tokens.expand_id] = 9.0
        logits[:, A] = 5.0
        return logits

    canvas = make_canvas([[6, 4, None, EOS]], [2], spec, seeds=[0], growth=Growth([10]))
    for _ in Loop({"main": network}, Method(sampler("threshold")), spec).run(canvas):
        pass
    assert completion(canvas, 0, EOS) == ([A] * 7, "stop")


def test_rows_of_fixed_length_contain_no_expand_or_delete() -> None:
    model = untrained()
    canvas = make_canvas(ROWS, PROMPTS, model.spec, seeds=[1, 2, 3], temperature=1.0)
    steps = list(Loop({"main": Restless(model)}, Method(sampler("confidence"), Exact()), model.spec).run(canvas))
    assert all(step.source is None for step in steps)
    assert extent(canvas).tolist() == [len(row) for row in ROWS]


@pytest.mark.parametrize("name", ["remdm", "slow_fast", "mask_predict", "wino", "joint_threshold"])
def test_samplers_with_a_state_per_position_are_refused(name: str) -> None:
    model = untrained()
    with pytest.raises(UserError, match="length"):
        model.generate("a", max_new_tokens=12, sampler=name)


def test_constraints_and_models_of_fixed_length_refuse_to_grow() -> None:
    with pytest.raises(UserError, match="constraint"):
        untrained().generate("a", max_new_tokens=12, constraint={"regex": "a+"}, start=3)
    tokenizer = Tokenizer.bytes()
    fixed = Model.fresh({"name": "masked"}, tokenizer, preset("toy", tokenizer.vocab_size), True)
    with pytest.raises(UserError, match="length"):
        fixed.generate("a", max_new_tokens=12, start=3)


@pytest.mark.parametrize("family", ["expand", "edit"])
@pytest.mark.parametrize("paired", [True, False])
def test_holes_of_unknown_length_keep_the_given_text(family: str, paired: bool) -> None:
    tokenizer = Tokenizer.bytes()
    model = Model.fresh({"name": family}, tokenizer, preset("toy", tokenizer.vocab_size), paired, seed=2)
    for seed in range(4):
        found = model.infill("The [[?]] sat on [[1-6]].", temperature=1.0, seed=seed, start=2)
        middle = found.text.removeprefix("The ").removesuffix(".")
        assert found.text == f"The {middle}." and " sat on " in middle


@pytest.mark.parametrize("family", ["expand", "edit"])
def test_the_animation_and_the_servers_decoder_follow_moving_positions(family: str) -> None:
    from redraft.cli import _animation
    from redraft.serve.incremental_text import IncrementalDecoder, Span
    from redraft.trace.marks import Marks

    tokenizer = Tokenizer.bytes()
    model = Model.fresh({"name": family}, tokenizer, preset("toy", tokenizer.vocab_size), True, seed=2)
    for seed in range(3):
        settings = model.settings(max_new_tokens=16, temperature=1.0, seed=seed, start=4)
        run = model.start(["hello"], settings)
        head = len(prompt_ids(model, "hello"))
        reader = IncrementalDecoder(run, Span(head, head + 16), alternatives=2, predictions=True)
        marks = Marks.blank(run.canvas)
        streamed = ""
        for step in run:
            streamed += reader.add(step)
            marks.note(step)
            _animation.frame(run.canvas, marks, tokenizer, 1.0)
            assert len(marks.rows[0]) == run.canvas.ids.shape[1]
            assert sum(piece["tokens"] for piece in reader.frame()["canvas"]) == int(extent(run.canvas)[0]) - head
        whole = reader.finish()
        offline = model.generate("hello", max_new_tokens=16, temperature=1.0, seed=seed, start=4)[0]
        assert whole.text == offline.text and whole.text.startswith(streamed)
        assert (whole.ids, whole.finish, whole.nfe) == (offline.ids, offline.finish, offline.nfe)
        assert len(whole.tokens) == len(whole.ids)


# ---- what they learn


def spec_of(paired: bool = True) -> Spec:
    return tiny.family("expand", paired)[0]


TEXTS = [([A, B, 4], [C, A, B, B, A, C, C, EOS]), ([C, 4], [EOS]), ([B, C, A, A, 4], [B, B, EOS])]


@pytest.mark.parametrize("paired", [True, False])
def test_every_mask_stands_for_what_it_says(paired: bool) -> None:
    """Read back: one token where a token is asked for, two or more for expand, none for delete; the rest as it was."""
    spec, batch = spec_of(paired), tiny.pairs(TEXTS, length=13)
    if not paired:
        batch = replace(batch, prompt=None)
    seen = set()
    for seed in range(200):
        p = Objective(merge=0.9, surplus=3).prepare(batch, spec, torch.Generator().manual_seed(seed))
        is_length = p.is_length
        at = p.request.targets[p.request.targets >= 0][~is_length]
        asked = {
            (r, c): t
            for r, c, t in zip(p.row[~is_length].tolist(), at.tolist(), p.target[~is_length].tolist(), strict=True)
        }
        for row in range(3):
            cells = p.request.tokens[row][p.request.positions[row] >= 0].tolist()
            text = batch.ids[row][batch.valid[row]].tolist()
            assert [(row, c) in asked for c, token in enumerate(cells)] == [token == MASK for token in cells]
            parts = [asked.get((row, c), token) for c, token in enumerate(cells)]
            seen |= {part for part in parts if part in (spec.tokens.expand_id, spec.tokens.delete_id)}
            parts = [part for part in parts if part != spec.tokens.delete_id]
            assert _matches(parts, text, spec.tokens.expand_id), (parts, text)
            if paired:
                assert cells[-1] == EOS
    assert seen == {spec.tokens.expand_id, spec.tokens.delete_id}


def _matches(parts: list[int], text: list[int], expand: int) -> bool:
    """Is the text what the parts say, an ``expand`` being any two tokens or more?"""
    if not parts:
        return not text
    if parts[0] != expand:
        return bool(text) and parts[0] == text[0] and _matches(parts[1:], text[1:], expand)
    return any(_matches(parts[1:], text[n:], expand) for n in range(2, len(text) + 1))


def test_masks_too_many_count_as_one_token_and_a_sure_oracle_pays_nothing() -> None:
    spec, batch = spec_of(), tiny.pairs(TEXTS, length=13)
    for seed in range(20):
        objective = Objective(merge=0.5, surplus=4)
        p = objective.prepare(batch, spec, torch.Generator().manual_seed(seed))
        gone = (p.target == spec.tokens.delete_id) & ~p.is_length
        tokens = ~gone & ~p.is_length
        for row in set(p.row[gone].tolist()):
            mine = gone & (p.row == row)
            if bool(tokens.any()):
                assert float(p.weight[mine].sum()) == pytest.approx(float(p.weight[tokens][0]), rel=1e-5)
        logits = torch.zeros(len(p.target), spec.tokens.vocab_size)
        logits[torch.arange(len(p.target)), p.target] = 60.0
        assert float(objective.loss(logits, p).loss) == pytest.approx(0, abs=1e-6)
        assert not objective.loss(logits, p).is_bound


def test_what_is_reported_is_the_bound_of_masked_diffusion() -> None:
    spec, batch = spec_of(), tiny.pairs(TEXTS, length=13)
    scoring = Objective(merge=0.5, surplus=4).scoring()
    barred = spec.with_tokens(forbidden=(*spec.tokens.forbidden, spec.tokens.expand_id, spec.tokens.delete_id))
    p, q = (o.prepare(batch, s, torch.Generator().manual_seed(3)) for o, s in ((scoring, spec), (Masked(), barred)))
    logits = torch.randn(len(p.target), spec.tokens.vocab_size, generator=torch.Generator().manual_seed(0))
    one, other = scoring.loss(logits.clone(), p), Masked().loss(logits.clone(), q)
    assert torch.equal(one.nats, other.nats) and one.is_bound


def test_the_special_tokens_come_from_the_tokenizers_files(tmp_path: Any) -> None:
    plain = Tokenizer.train(["a text", "another"], 300)
    made = plain.with_special_tokens(Expand.specials)
    assert (made.expand_id, made.delete_id) == (plain.vocab_size, plain.vocab_size + 1) and plain.expand_id == -1
    assert made.with_special_tokens(Expand.specials) is made
    made.save(tmp_path)
    read = Tokenizer.load(tmp_path)
    assert (read.expand_id, read.delete_id, read.fingerprint) == (made.expand_id, made.delete_id, made.fingerprint)
    assert {read.expand_id, read.delete_id} <= set(read.markers) and read.decode([made.expand_id]) == ""
    assert read.encode("<expand>") == plain.encode("<expand>")


def test_a_checkpoint_goes_on_as_a_growing_one() -> None:
    """Fine-tuning a masked model: two rows more, and all others as they were."""
    from redraft.conversion import convert_family

    tokenizer = Tokenizer.bytes()
    model = Model.fresh({"name": "masked"}, tokenizer, preset("toy", tokenizer.vocab_size), True, seed=1)
    ids = torch.tensor([[70, 71, 4, 3, 3, 1]])
    old, before = model.network.embedding.weight.clone(), model.logits(ids)
    grown = convert_family(model, {"name": "expand"})
    new = grown.network.embedding.weight
    assert torch.equal(new[:-2], old) and torch.allclose(new[-1], old.mean(0))
    assert torch.allclose(grown.logits(ids)[..., :-2], before, atol=1e-5)
    assert grown.spec.tokens.delete_id == len(new) - 1
    with pytest.raises(UserError, match="edits|tokens"):
        convert_family(grown, {"name": "edit"})


def test_a_wrapped_sampler_is_reported_as_the_one_that_was_asked_for() -> None:
    import json

    from redraft.cli._decoding import sampler_name, sampler_options
    from redraft.samplers.confidence import Confidence
    from redraft.samplers.wrappers.blockwise import Blockwise
    from redraft.samplers.wrappers.resizing import Resizing

    asked = Confidence(steps=3)
    for sampler in (asked, Resizing(asked), Blockwise(asked)):
        assert sampler_name(sampler) == "confidence"
        assert json.loads(json.dumps(sampler_options(sampler)))["steps"] == 3
