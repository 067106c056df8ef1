"""Drafters that read their target's hidden states: the text is the target's, and training sees what drafting sees."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import redraft
from redraft.caches.exact import Exact
from redraft.canvas import make_canvas
from redraft.conversion import convert_family
from redraft.data.examples import Example
from redraft.data.tokenising import tokenise
from redraft.data.tokenizer import Tokenizer
from redraft.errors import UserError
from redraft.families.base import OwnTexts
from redraft.generation.loop import Loop, Method
from redraft.generation.start import networks
from redraft.model import Model
from redraft.models.cpu import cpu_form
from redraft.models.drafter import Config, Drafter, layers_read
from redraft.objectives.draft import Draft
from redraft.presets import preset
from redraft.samplers.autoregressive import Autoregressive
from redraft.samplers.draft_verify import DraftVerify
from redraft.targets import Target, fingerprint
from redraft.train import own_texts
from redraft.train.loop import train
from redraft.train.recipe import Recipe
from redraft.types import AttentionPattern, DraftBlocks, DraftQuery, Drawing, Forward, Request
from tests.tiny import cached, pairs

each_kind = pytest.mark.parametrize("paired", [True, False], ids=["paired", "plain"])
each_heat = pytest.mark.parametrize("heat", [{"temperature": 0.0}, {"temperature": 1.0, "top_k": 9}], ids=str)


def target(paired: bool = True, seed: int = 1, layers: int = 4) -> Model:
    """An untrained autoregressive model with large weights, so that predictions differ."""
    tokenizer = Tokenizer.bytes()
    shape = preset("toy", tokenizer.vocab_size, layers=layers, qk_norm=True, kv_heads=1)
    made = Model.fresh({"name": "autoregressive"}, tokenizer, shape, paired, seed)
    for parameter in made.network.parameters():
        if parameter.ndim == 2:
            parameter.data.mul_(5)
    return made


def drafter(paired: bool = True, seed: int = 1, **fields: Any) -> Model:
    main = target(paired, seed)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        made = convert_family(main, {"name": "drafter", "block": 6, **fields})
    for parameter in made.network.parameters():
        parameter.data.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(3)) * 0.1)
    made.target = Target("nowhere", fingerprint(main.network))
    return made


def double(model: Model) -> Model:
    model.network.double().requires_grad_(False).eval()
    return model


# ---- the network


def test_the_layers_that_are_read_are_those_of_the_paper() -> None:
    assert layers_read(36) == (1, 9, 17, 25, 33)
    assert layers_read(32) == (1, 8, 15, 22, 29)
    assert layers_read(4) == (1, 2) and layers_read(2) == (0,)


def test_early_tokens_weigh_most() -> None:
    weight = Draft(block=16, decay=7.0).weights(16)
    assert weight[[0, 1, 7, 14]].tolist() == pytest.approx([1, 0.8669, 0.3679, 0.1353], abs=1e-4)
    assert torch.equal(Draft(block=16).weights(16), weight)


ROWS = torch.tensor([[70, 71, 4, 80, 81, 82, 83, 84, 85, 86], [72, 4, 90, 91, 92, 93, 94, 0, 0, 0]])
LENGTHS, PROMPTS, ANCHORS, SIZE = torch.tensor([10, 7]), torch.tensor([3, 2]), torch.tensor([5, 3]), 4


def drafting(x: Tensor, isolated: bool) -> Request:
    """Drafts behind one anchor of each row, as the sampler requests them."""
    columns = torch.arange(int(ANCHORS.max()) + SIZE)
    end = ANCHORS[:, None] + SIZE
    return Request(
        tokens=x[:, : len(columns)].masked_fill(columns > ANCHORS[:, None], 3),
        positions=torch.where(columns < end, columns, -1),
        targets=ANCHORS[:, None] + torch.arange(1, SIZE),
        attention=AttentionPattern("causal"),
        prompt=PROMPTS if isolated else None,
        drawing=Drawing(torch.arange(2)),
        extra=(DraftQuery(0, ANCHORS),),
    )


def training(x: Tensor, isolated: bool, anchors: Tensor) -> Forward:
    position = torch.arange(x.shape[1])
    targets = torch.where(anchors[:, :, None] >= 0, anchors[:, :, None] + torch.arange(1, SIZE), -1)
    return Forward(
        tokens=x,
        positions=torch.where(position < LENGTHS[:, None], position, -1),
        targets=targets.flatten(1),
        attention=AttentionPattern("causal"),
        prompt=PROMPTS if isolated else None,
        extra=(DraftBlocks(anchors, SIZE),),
    )


@pytest.mark.parametrize("isolated", [True, False])
def test_training_sees_what_drafting_sees_and_nothing_behind_the_anchor(isolated: bool) -> None:
    network = double(drafter()).network
    expected = network(drafting(ROWS, isolated))
    first = torch.tensor([[2, 5, 6], [3, 5, -1]])
    logits = network(training(ROWS, isolated, first)).split([3] * 5)
    torch.testing.assert_close(torch.cat([logits[1], logits[3]]), expected, rtol=1e-9, atol=1e-9)
    changed = torch.where(torch.arange(10) > ANCHORS[:, None], ROWS + 7, ROWS)
    again = network(training(changed, isolated, ANCHORS[:, None]))
    torch.testing.assert_close(again, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("isolated", [True, False])
def test_a_cache_changes_nothing_and_leaves_only_the_block_to_run(isolated: bool) -> None:
    network = double(drafter()).network
    expected = network(drafting(ROWS, isolated))
    store, policy = network.store(2, 14), Exact()
    position = torch.arange(9)
    text = Request(
        tokens=ROWS[:, :9],
        positions=torch.where(position <= ANCHORS[:, None], position, -1),
        targets=ANCHORS[:, None] + 1,
        attention=AttentionPattern("causal"),
        prompt=PROMPTS if isolated else None,
        drawing=Drawing(torch.arange(2)),
    ).with_cache(kv_slot=torch.arange(2))
    for request, shift in ((text, 1), (drafting(ROWS, isolated).with_cache(kv_slot=torch.arange(2)), 0)):
        narrow = policy.narrow(request, store.tokens[:2], shift)
        logits = cached(network, narrow, store)
        store.record(narrow)
    assert int((narrow.positions >= 0).sum()) == 2 * SIZE
    torch.testing.assert_close(logits, expected, rtol=1e-9, atol=1e-9)
    assert (store.tokens[0, 5:] == -1).all() and (store.tokens[0, :5] >= 0).all()


@pytest.mark.parametrize("isolated", [True, False])
def test_the_cpu_form_is_the_same_network(isolated: bool) -> None:
    network = drafter().network.eval().requires_grad_(False)
    form = cpu_form(network)
    assert form is not None
    request = drafting(ROWS, isolated)
    with torch.inference_mode():
        torch.testing.assert_close(form(network)(request), network(request), rtol=1e-3, atol=1e-3)  # type: ignore[arg-type]


# ---- the text


@each_heat
@each_kind
def test_the_text_is_the_targets(paired: bool, heat: dict[str, Any]) -> None:
    """Alone and as the drafter of the target, with and without a cache, in blocks of any size, between given tokens."""
    model = double(drafter(paired))
    main = double(target(paired))
    rows = [[70, 71, 4, *[None] * 17], [72, 4, None, None, 80, 81, *[None] * 9], [73, 74, 75, 76, 4, *[None] * 9]]

    def write(loop: Loop, spec: Any) -> list[list[int]]:
        canvas = make_canvas(rows, [3, 2, 5], spec, seeds=[0, 1, 2], **heat)
        for _ in loop.run(canvas):
            pass
        return canvas.ids.tolist()

    plain = Loop({"main": main.network}, Method(Autoregressive(draws="gumbel"), Exact()), main.spec)
    expected = write(plain, main.spec)
    for block, cache in ((1, Exact()), (5, Exact()), (8, None)):
        loop = Loop({"main": model.network}, Method(DraftVerify(block), cache), model.spec)
        assert write(loop, model.spec) == expected
        assert loop.counter.drafted > 0
    main.draft_with(model)
    assert model.network.companion is main.network, "two copies of the target in memory"
    loop = Loop(networks(main), Method(DraftVerify(3), Exact()), main.spec)
    assert write(loop, main.spec) == expected


def test_a_drafter_is_refused_by_another_target() -> None:
    model = drafter()
    with pytest.raises(UserError, match="trained for 'nowhere', and this model has other weights"):
        target(seed=2).draft_with(model)
    with pytest.raises(UserError, match="float16"):
        other = target()
        other.network.half()
        other.draft_with(model)


# ---- training


def test_blocks_lie_within_the_targets_and_prompts_and_padding_do_not_count() -> None:
    spec = drafter().spec
    batch = pairs([([70, 71, 4], list(range(80, 100))), ([72, 4], [90, 91, 1]), ([73, 4], [1])])
    objective = Draft(block=8)
    assert objective.sizes == (8, 4, 2)
    for seed in range(8):
        prepared = objective.prepare(batch, spec, torch.Generator().manual_seed(seed))
        query = prepared.request.find(DraftBlocks)
        assert query is not None and query.size in objective.sizes
        row, column = (query.anchors >= 0).nonzero(as_tuple=True)
        assert batch.target[row, query.anchors[row, column]].all()
        assert (query.anchors[2] < 0).all(), "an answer of one token has nothing to draft"
        where = prepared.request.targets
        row, column = (where >= 0).nonzero(as_tuple=True)
        assert batch.target[row, where[row, column]].all()
        assert torch.equal(prepared.target, batch.ids[row, where[row, column]]) and torch.equal(prepared.row, row)
        assert float(prepared.weight.sum()) == pytest.approx(prepared.tokens)
        logits = torch.zeros(len(prepared.target), spec.tokens.vocab_size, requires_grad=True)
        terms = objective.loss(logits, prepared)
        uniform = torch.tensor(float(spec.tokens.vocab_size - len(spec.tokens.forbidden))).log()
        assert float(terms.loss.detach()) == pytest.approx(float(uniform), rel=1e-5)
        assert terms.nats[:2].tolist() == pytest.approx([20 * float(uniform), 3 * float(uniform)], rel=1e-4)


def test_a_configuration_that_reads_the_last_layer_is_refused() -> None:
    shape = target().network.config
    with pytest.raises(UserError, match="not its last"):
        Config(shape, reads=(1, 3))
    with pytest.raises(UserError, match="autoregressive"):
        Config(replace(shape, shift=0))


def test_texts_are_the_targets_own_and_written_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An interrupted run continues after its last finished file."""
    model, main = drafter(), target()
    examples = [Example(f"question {number}", "an answer", where=str(number)) for number in range(5)]
    data = tokenise(examples, model.tokenizer)
    monkeypatch.setattr(own_texts, "_CHUNK", 2)
    calls: list[int] = []

    def stop_after_two(done: int, total: int) -> None:
        calls.append(done)
        if len(calls) == 3:
            raise KeyboardInterrupt

    wanted = OwnTexts(count=5, temperature=0.0)
    with pytest.raises(KeyboardInterrupt):
        own_texts.write(own_texts.writer(model), data, wanted, 40, tmp_path, stop_after_two)
    before = {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*.json")}
    assert len(before) == 2
    found = own_texts.write(own_texts.writer(model), data, wanted, 40, tmp_path)
    assert all(file.stat().st_mtime_ns == when for file, when in before.items())
    assert len(found) == 5 and found.prompts is not None
    for row in range(5):
        ids = found.ids[found.starts[row] : found.starts[row + 1]].tolist()
        head, text = ids[: found.prompts[row]], ids[found.prompts[row] :]
        own = main.generate([head], max_new_tokens=len(text))[0]
        assert [*own.ids, main.tokenizer.eos_id][: len(text)] == text


def test_plain_texts_are_continued_from_the_beginnings_of_windows(tmp_path: Path) -> None:
    model = drafter(paired=False)
    data = tokenise([Example(None, "a text of some length, which is cut", where="1")], model.tokenizer)
    found = own_texts.write(own_texts.writer(model), data, OwnTexts(9, 0.0), 16, tmp_path)
    assert found.prompts is not None and found.prompts.tolist() == [5] * 3
    assert found.lengths.max() <= 16


def test_train_save_and_load(tmp_path: Path) -> None:
    """The folder has no weights of the target, and only this target is accepted."""
    target().save(tmp_path / "target")
    lines = [json.dumps({"question": f"q{number}", "answer": "abcdef"[: 1 + number % 6]}) for number in range(60)]
    (tmp_path / "data.jsonl").write_text("\n".join(lines))
    tables = {
        "data": {"source": str(tmp_path / "data.jsonl"), "input": "question", "target": "answer", "length": 24},
        "model": {"from": str(tmp_path / "target")},
        "family": {"name": "drafter", "block": 4, "texts": 12},
        "train": {"tokens": 600, "batch_tokens": 256, "validation_rows": 4},
    }
    train(Recipe.of(tables), tmp_path / "drafter", device="cpu")
    train(Recipe.of(tables), tmp_path / "again", device="cpu")
    one, other = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("drafter", "again"))
    assert one == other, "the same seed gives the same drafter"
    files = sorted((tmp_path / "drafter" / "train" / "own_texts").rglob("*.json"))
    assert [len(json.loads(file.read_text())["texts"]) for file in files] and len(files) == 2  # training, validation
    found = redraft.load(tmp_path / "drafter", "cpu")
    assert isinstance(found.network, Drafter)
    own = sum(p.numel() for p in found.network.parameters())
    assert (tmp_path / "drafter" / "model.safetensors").stat().st_size < 4 * own + 20_000
    expected = redraft.load(tmp_path / "target", "cpu").generate("q1", max_new_tokens=9)[0]
    assert found.generate("q1", max_new_tokens=9)[0].ids == expected.ids

    target(seed=2).save(tmp_path / "target")
    with pytest.raises(UserError, match="other weights"):
        redraft.load(tmp_path / "drafter", "cpu")
    target(layers=3).save(tmp_path / "target")
    with pytest.raises(UserError, match="another shape"):
        redraft.load(tmp_path / "drafter", "cpu")
    (tmp_path / "target").rename(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="--model TARGET --drafter FOLDER"):
        redraft.load(tmp_path / "drafter", "cpu")


def test_a_drafter_needs_a_target() -> None:
    tokenizer = Tokenizer.bytes()
    with pytest.raises(UserError, match="finetune --family drafter --from MODEL"):
        Model.fresh({"name": "drafter"}, tokenizer, preset("toy", tokenizer.vocab_size), True)
    masked = Model.fresh({"name": "masked"}, tokenizer, preset("toy", tokenizer.vocab_size), True)
    with pytest.raises(UserError, match="'transformer' network"):
        convert_family(masked, {"name": "drafter"})
