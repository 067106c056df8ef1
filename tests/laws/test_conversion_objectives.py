"""Laws of learning from the autoregressive model that is converted: its states, its distributions and its texts."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import redraft
from redraft.adapters import public_names
from redraft.data.tokenizer import Tokenizer
from redraft.errors import UserError
from redraft.model import Model
from redraft.models.parts.backbone import Backbone
from redraft.models.parts.lora import adapted, attach, base_of
from redraft.models.transformer import Config, Transformer
from redraft.objectives.base import Objective, SamplePass, Samples
from redraft.objectives.conversion import FOLDER, build_conversions, wrapped
from redraft.objectives.conversion.align import Aligned, misalignment
from redraft.objectives.conversion.base import Origin, positions
from redraft.objectives.conversion.context import context_weights
from redraft.objectives.conversion.on_policy import OnPolicyLoss, left_at_a_round
from redraft.objectives.conversion.soft_targets import SoftBatch, divergence, log_probabilities
from redraft.objectives.shared import vocabulary
from redraft.presets import preset
from redraft.registry import find, names
from redraft.rollouts import prepare_batch
from redraft.train.logging import Event
from redraft.train.loop import train
from redraft.train.phases import teacher
from redraft.train.recipe import Recipe
from redraft.train.setup import prepare
from redraft.types import AttentionPattern, Batch, Forward, Spec, StateQuery
from tests.tiny import VOCABULARY, family, pairs

LAYERS = 2
NONE = torch.tensor([], dtype=torch.int64)
FAMILIES: dict[str, dict[str, Any]] = {
    "masked": {"name": "masked"},
    "shifted": {"name": "masked", "shift": 1},
    "complementary": {"name": "masked", "weight": "uniform", "complementary": True, "shift": 1},
    "block": {"name": "block", "shift": 1},
    "hybrid": {"name": "hybrid"},
}
each_family = pytest.mark.parametrize("name", FAMILIES)


def rows() -> Batch:
    return pairs([([5, 6, 4], [7, 5, 1]), ([6, 4], [6, 6, 7, 5, 1]), ([7, 7, 4], [5, 1])])


def network(seed: int = 0, shift: int = 1) -> Transformer:
    torch.manual_seed(seed)
    made = Transformer(Config(VOCABULARY.vocab_size, dim=16, layers=LAYERS, heads=2, shift=shift)).eval()
    for parameter in made.parameters():
        parameter.data.add_(torch.randn_like(parameter) * 0.1)
    return made


def described(name: str) -> tuple[Spec, Objective[Any]]:
    fields = dict(FAMILIES[name])
    spec, scoring = family(fields.pop("name"), True, **fields)
    return spec, replace(scoring, complementary=True) if name == "complementary" else scoring  # type: ignore[type-var]


def origin(prompt_encoder: bool = True) -> Origin:
    spec = family("autoregressive", True, prompt_encoder=prompt_encoder)[0]
    return Origin(spec, LAYERS, answers_states=True)


def converted(table: Mapping[str, Any], inner: Objective[Any], start: Origin | None = None) -> Objective[Any]:
    return wrapped(build_conversions(table), inner, start or origin())


def prepared_of(objective: Objective[Any], spec: Spec, main: Backbone, frozen: Backbone) -> Any:
    networks = {"main": main, "teacher": frozen}
    return prepare_batch(objective, rows(), spec, torch.Generator().manual_seed(5), networks)[0]


def left_to_right(frozen: Backbone, batch: Batch, prompt_encoder: bool = True) -> Tensor:
    """Log-probabilities [B, L, V] of every token after those before it, without forbidden ids."""
    spec, _ = family("autoregressive", True, prompt_encoder=prompt_encoder)
    pos = torch.arange(batch.ids.shape[1]).expand_as(batch.ids)
    request = Forward(
        batch.ids,
        pos,
        torch.where(pos > 0, pos, -1),
        AttentionPattern("causal"),
        batch.prompt if prompt_encoder else None,
    )
    frozen.config = replace(frozen.config, shift=1)
    logits = frozen(request).index_fill(1, torch.tensor([*spec.tokens.forbidden]), -torch.inf)
    found = torch.full((*batch.ids.shape, VOCABULARY.vocab_size), math.nan)
    found[:, 1:] = logits.log_softmax(-1).view(len(pos), -1, VOCABULARY.vocab_size)
    return found


# ---- hidden states


def test_misalignment_of_two_directions() -> None:
    own = torch.tensor([[[1.0, 0.0]]], requires_grad=True)
    apart = misalignment(own, torch.tensor([[[1.0, 1.0]]]))
    apart.sum().backward()
    assert float(apart.detach()) == pytest.approx(0.292893, abs=1e-6)
    torch.testing.assert_close(misalignment(own, torch.tensor([[[3.0, 3.0]]])), apart)
    assert own.grad is not None and float((own.grad * own).sum().detach()) == pytest.approx(0.0, abs=1e-7)
    assert float(own.grad.abs().sum()) > 0


@pytest.mark.parametrize("kind", ["transformer", "gpt"])
def test_the_states_of_a_causal_reading_of_clean_text_are_the_teachers(kind: str) -> None:
    """A = 0 exactly. The answer holds the logits, then the states from the embeddings to the last norm."""
    made: Backbone = network()
    if kind == "gpt":
        made = redraft.models.build(redraft.models.gpt.Config(VOCABULARY.vocab_size, 16, LAYERS, 2)).eval()
    batch, depths = rows(), (0.0, 0.5, 1.0)
    pos = torch.arange(batch.ids.shape[1]).expand_as(batch.ids)
    plain = Forward(batch.ids, pos, torch.where(batch.target, pos, -1), AttentionPattern("causal"))
    logits = made(plain)
    both, states = (made(plain.with_extra(StateQuery(depths, only))) for only in (False, True))
    assert torch.equal(both, torch.cat([logits, states], 1)) and states.shape == (len(logits), 3 * 16)
    assert float(misalignment(*[part.unflatten(1, (3, 16)) for part in (states, states)]).abs().max()) == 0.0
    last = states[:, -16:]
    torch.testing.assert_close(made.onto_vocabulary(last), logits)
    if kind == "transformer":
        row, at = (plain.targets >= 0).nonzero(as_tuple=True)
        torch.testing.assert_close(states[:, :16], made.embedding.weight[batch.ids[row, at - 1]])


@each_family
def test_the_teacher_reads_clean_text_and_the_model_noisy_text(name: str) -> None:
    """The loss is the family's plus weight times the misalignment, as computed from two separate passes."""
    spec, inner = described(name)
    main, frozen = network(1, spec.network.shift), network(2, spec.network.shift)
    objective = converted({"name": "align", "weight": 3.0}, inner)
    assert isinstance(objective, Aligned) and objective.needs_teacher
    found = prepared_of(objective, spec, main, frozen)
    alone = inner.prepare(rows(), spec, torch.Generator().manual_seed(5))
    with torch.no_grad():
        terms = objective.loss(main(found.request), found)
        plain = inner.loss(main(alone.request), alone)
        depths = StateQuery((0.0, 0.5, 1.0), only=True)
        own = main(alone.request.with_extra(depths)).unflatten(1, (3, 16))
    batch, at = rows(), positions(alone.request)
    known = (at < batch.ids.shape[1]) & batch.target[alone.row, at.clamp(max=batch.ids.shape[1] - 1)]
    pos = torch.arange(batch.ids.shape[1]).expand_as(batch.ids)
    causal = Forward(batch.ids, pos, torch.where(pos > 0, pos, -1), AttentionPattern("causal"), batch.prompt)
    frozen.config = replace(frozen.config, shift=1)
    theirs = frozen(causal.with_extra(depths)).view(len(pos), -1, 3, 16)
    expected = misalignment(own[known], theirs[alone.row[known], at[known] - 1]).mean()
    torch.testing.assert_close(terms.loss, plain.loss + 3.0 * expected)
    torch.testing.assert_close(terms.nats, plain.nats)


def test_without_weight_the_objective_is_the_familys_own() -> None:
    _, inner = described("shifted")
    table = {
        "name": "align",
        "weight": 0,
        "also": {"name": "soft_targets", "share": 0, "also": {"name": "teacher_texts"}},
    }
    assert converted(table, inner) is inner


def test_some_layers_in_turn_have_the_mean_of_all() -> None:
    spec, inner = described("shifted")
    objective = converted({"name": "align", "layers": 1}, inner)
    assert isinstance(objective, Aligned)
    drawn = {objective._depths(torch.Generator().manual_seed(seed)) for seed in range(40)}
    assert drawn == {(0.0,), (0.5,), (1.0,)}
    found = prepared_of(objective, spec, network(1), network(2))
    assert found.states.shape[1] == 16 and objective.loss(network(1)(found.request), found).loss.isfinite()


# ---- distributions


def test_divergences_of_two_distributions() -> None:
    logits = torch.tensor([[0.9, 0.1]]).log()
    p = torch.tensor([[0.5, 0.5]]).log()
    assert float(divergence(logits, p, None, NONE)) == pytest.approx(0.510826, abs=1e-6)
    assert float(divergence(p, logits, None, NONE)) == pytest.approx(0.368064, abs=1e-6)
    first = torch.tensor([[0]])
    assert float(divergence(logits, p[:, :1], first, NONE)) == pytest.approx(-0.293893, abs=1e-6)
    certain = torch.tensor([[0.0, -math.inf]])
    assert float(divergence(logits, certain, None, NONE)) == pytest.approx(-math.log(0.9), abs=1e-6)


def test_the_likeliest_tokens_are_not_renormalised_and_all_of_them_are_everything() -> None:
    logits, q = torch.randn(4, 8), torch.randn(4, 8)
    forbidden = torch.tensor([2, 3])
    whole = log_probabilities(logits, forbidden, 0)
    assert whole.shape == (4, 8) and float(whole.exp()[:, forbidden].sum()) == 0
    torch.testing.assert_close(whole.exp().sum(1), torch.ones(4))
    assert torch.equal(log_probabilities(logits, forbidden, 8), whole)
    best, ids = log_probabilities(logits, forbidden, 3).unbind(1)
    torch.testing.assert_close(best.float(), whole.gather(1, ids.long()))
    part, kept = divergence(q, best.float(), ids.long(), forbidden), torch.zeros_like(whole).scatter(1, ids.long(), 1.0)
    log_q = q.index_fill(1, forbidden, -torch.inf).log_softmax(1)
    expected = (whole.exp() * (whole - log_q)).nan_to_num(0.0) * kept
    torch.testing.assert_close(part, expected.sum(1))


def test_the_gradient_is_zero_only_where_the_distributions_agree() -> None:
    p = torch.randn(1, 6).log_softmax(1)
    for shift, equal in ((0.7, True), (torch.arange(6.0), False)):
        logits = (p + shift).requires_grad_()
        divergence(logits, p, None, NONE).sum().backward()
        assert logits.grad is not None and (float(logits.grad.abs().max()) < 1e-6) == equal


@each_family
@pytest.mark.parametrize("prompt_encoder", [True, False])
@pytest.mark.parametrize("top", [0, 2])
def test_targets_are_the_teachers_distributions_after_the_text_before_them(
    name: str, prompt_encoder: bool, top: int
) -> None:
    """The loss of every family is (1 - share) of its own and share of the divergence, with its own weights."""
    spec, inner = described(name)
    main, frozen = network(1, spec.network.shift), network(2, spec.network.shift)
    objective = converted({"name": "soft_targets", "share": 0.25, "top": top}, inner, origin(prompt_encoder))
    found = prepared_of(objective, spec, main, frozen)
    assert isinstance(found, SoftBatch)
    batch, at = rows(), positions(found.request)
    expected = left_to_right(frozen, batch, prompt_encoder)
    known = found.known > 0
    assert torch.equal(batch.ids[found.row[known], at[known]], found.target[known])
    theirs = expected[found.row[known], at[known]]
    if found.ids is not None:
        assert found.ids.shape[1] == top
        theirs = theirs.gather(1, found.ids[known])
    torch.testing.assert_close(found.log_p[known].exp(), theirs.exp())
    lengths = getattr(found.inner, "is_length", None)
    assert lengths is None or not bool((known & lengths).any())
    alone = inner.prepare(rows(), spec, torch.Generator().manual_seed(5))
    with torch.no_grad():
        logits = main(alone.request)
        terms = objective.loss(main(found.request), found)
        apart = divergence(logits, found.log_p, found.ids, found.forbidden)
        hard = logits.clone()
        plain = inner.loss(hard, alone)
        one = inner.loss(logits.clone(), replace(alone, weight=alone.weight * known))
    mixed = plain.loss - 0.25 * one.loss + 0.25 * (apart * alone.weight * known).sum() / alone.tokens
    torch.testing.assert_close(terms.loss, mixed)
    torch.testing.assert_close(terms.nats, plain.nats)


def test_a_last_block_is_padded_where_the_teacher_knows_nothing() -> None:
    spec, inner = described("block")
    batch = pairs([([5, 4], [6, 7, 1])])  # blocks of two: one end-of-text more
    objective = converted({"name": "soft_targets"}, inner)
    networks = {"main": network(1), "teacher": network(2)}
    seen = set[tuple[int, float]]()
    for seed in range(20):
        found = prepare_batch(objective, batch, spec, torch.Generator().manual_seed(seed), networks)[0]
        seen |= set(zip(positions(found.request).tolist(), found.known.tolist(), strict=True))
    assert seen == {(2, 1.0), (3, 1.0), (4, 1.0), (5, 0.0)}


# ---- weights


@pytest.mark.parametrize(
    ("row", "p", "expected"),
    [
        ("cmmc", 0.5, [0, 0.375, 0.375, 0]),
        ("cmmc", 0.3, [0, 0.255, 0.255, 0]),
        ("cmmc", 0.1, [0, 0.095, 0.095, 0]),
        ("cmc", 0.5, [0, 0.5, 0]),
        ("mmmm", 0.5, [0, 0, 0, 0]),
        ("m" + 200 * "c", 0.2, [0.5, *[0] * 200]),
    ],
)
def test_weights_by_context(row: str, p: float, expected: list[float]) -> None:
    hidden = torch.tensor([[letter == "m" for letter in row]])
    torch.testing.assert_close(context_weights(hidden, ~hidden, p), torch.tensor([expected], dtype=torch.float32))


@pytest.mark.parametrize("name", ["shifted", "masked", "complementary"])
def test_weights_by_context_keep_the_sum_of_the_familys(name: str) -> None:
    spec, inner = described(name)
    plain = prepared_of(converted({"name": "context", "plain": 1.0}, inner), spec, network(1), network(2))
    alone = inner.prepare(rows(), spec, torch.Generator().manual_seed(5))
    own = prepared_of(converted({"name": "context", "plain": 0.0}, inner), spec, network(1), network(2))
    is_token = torch.ones_like(alone.row, dtype=torch.bool) if alone.is_length is None else ~alone.is_length
    torch.testing.assert_close(own.weight[is_token].sum(), alone.weight[is_token].sum())
    torch.testing.assert_close(own.weight[~is_token], alone.weight[~is_token])
    assert torch.equal(own.target, alone.target) and not torch.equal(own.weight, alone.weight)
    torch.testing.assert_close(plain.weight[is_token].sum(), alone.weight[is_token].sum())
    with torch.no_grad():
        terms = converted({"name": "context"}, inner).loss(network(1)(own.request), own)
    assert not terms.is_bound and terms.loss.isfinite()


@each_family
def test_what_the_model_is_sure_of_counts_more(name: str) -> None:
    """By 1 + amount times its own probability, which has no gradient."""
    spec, inner = described(name)
    objective = converted({"name": "confident", "amount": 2.0}, inner)
    assert not objective.needs_teacher and not objective.needs_rollout
    prepared = prepared_of(objective, spec, network(1), network(2))
    logits = torch.randn(len(prepared.target), VOCABULARY.vocab_size, requires_grad=True)
    terms = objective.loss(logits, prepared)
    terms.loss.backward()
    lengths = getattr(prepared, "is_length", None)
    is_length = torch.zeros_like(prepared.row, dtype=torch.bool) if lengths is None else lengths
    other = logits.detach().clone().requires_grad_()
    allowed = other.masked_fill(~is_length[:, None] & torch.isin(torch.arange(8), prepared.forbidden), -torch.inf)
    nll = torch.nn.functional.cross_entropy(allowed, prepared.target, reduction="none")
    sure = torch.where(is_length, 0.0, nll.detach().neg().exp())
    expected = (prepared.weight * (1 + 2.0 * sure) * nll)[~is_length].sum() / prepared.tokens
    expected.backward()
    assert logits.grad is not None and other.grad is not None
    torch.testing.assert_close(logits.grad[~is_length], other.grad[~is_length])
    plain = inner.loss(logits.detach().clone(), prepared)
    torch.testing.assert_close(terms.nats, plain.nats)


# ---- the model's own texts


def test_every_round_of_a_block_is_drawn_as_often_and_shows_what_was_written_before_it() -> None:
    order = torch.tensor([[-1, 2, 0, 2, 1, 3, 3, 0]])  # a given position, then blocks of three and of four
    target = order >= 0
    group = torch.tensor([[0, 1, 1, 1, 2, 2, 2, 2]])
    count = dict[tuple[bool, ...], int]()
    for seed in range(1200):
        left = left_at_a_round(order, target, group, torch.Generator().manual_seed(seed))
        assert bool((left <= target).all()) and bool(left[0, 1:4].any()) and bool(left[0, 4:].any())
        for part in (left[0, 1:4], left[0, 4:]):
            count[tuple(part.tolist())] = count.get(tuple(part.tolist()), 0) + 1
    first = {(True, True, True): 600, (True, False, True): 600}  # rounds 0 and 2
    second = {(True, True, True, True): 400, (True, True, True, False): 400, (False, True, True, False): 400}
    assert set(count) == {*first, *second}
    assert all(abs(count[key] - expected) < 5 * math.sqrt(expected) for key, expected in (first | second).items())


def test_on_its_own_text_a_model_of_blocks_of_one_learns_the_divergence_from_the_teacher() -> None:
    """With blocks of one token both read the same text, so that the loss of equal networks is 0, with zero gradient."""
    spec, inner = family("block", True, shift=1, block=1, weight="uniform")
    objective, text = converted({"name": "on_policy"}, inner), rows()
    assert isinstance(objective, OnPolicyLoss) and not objective.curricular
    order = torch.where(text.target, torch.arange(text.ids.shape[1]), -1)
    for seed, equal in ((2, True), (1, False)):
        main, frozen = network(seed), network(2)
        asked = objective.rollout(replace(text, ids=text.ids.masked_fill(text.target, 5)), spec, torch.Generator())
        sampled = next(asked)
        assert isinstance(sampled, SamplePass) and sampled.copies == 1
        wanted = asked.send(Samples(text, torch.zeros(3), torch.zeros(3, dtype=torch.bool), order))
        with torch.no_grad():
            answer = log_probabilities(frozen(wanted.request), torch.tensor([*spec.tokens.forbidden]), 0)  # type: ignore[union-attr]
        with pytest.raises(StopIteration) as end:
            asked.send(answer)
        prepared = end.value.value
        assert sorted(prepared.target.tolist()) == sorted(text.ids[text.target].tolist()), "every block has one round"
        loss = objective.loss(main(prepared.request), prepared).loss
        loss.backward()
        gradient = max(float(p.grad.abs().max()) for p in main.parameters() if p.grad is not None)
        assert (abs(float(loss.detach())) < 1e-6) == equal and (gradient < 1e-5) == equal


# ---- any of them


ALL = {"name": "align", "weight": 2.0, "also": {"name": "soft_targets", "share": 0.5, "top": 3}}


@pytest.mark.parametrize("table", [{"name": "align"}, {"name": "soft_targets"}, ALL], ids=["align", "soft", "both"])
@each_family
def test_in_parts_they_have_the_same_loss_and_gradient(
    name: str, table: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    spec, inner = described(name)
    main, frozen, found = network(1, spec.network.shift).train(), network(2, spec.network.shift), []
    objective = converted(table, inner)
    for whole in (True, False):
        if not whole:
            monkeypatch.setattr(vocabulary, "WHOLE", 0)
            monkeypatch.setattr(vocabulary, "PART", 3 * main.logit_width)
        main.zero_grad()
        prepared = prepared_of(objective, spec, main, frozen)
        loss = vocabulary.backward(main, objective, prepared, 1.0)
        found.append((loss, {key: p.grad.clone() for key, p in main.named_parameters() if p.grad is not None}))
    torch.testing.assert_close(found[0], found[1])
    assert all(p.grad is None for p in frozen.parameters())


def test_the_order_of_a_table_does_not_matter() -> None:
    _, inner = described("shifted")
    other = {"name": "soft_targets", "share": 0.5, "top": 3, "also": {"name": "align", "weight": 2.0}}
    assert converted(ALL, inner) == converted(other, inner)


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ({"name": "allign"}, "align"),
        ({"name": "align", "wieght": 1}, "weight"),
        ({"name": "align", "weight": -1}, "weight"),
        ({"name": "align", "also": {"name": "align"}}, "twice"),
        ({"name": "align", "also": {"weight": 1}}, "needs a name"),
        ({"name": "soft_targets", "share": 2}, "share"),
    ],
)
def test_mistakes_are_named(table: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        Recipe.of({"data": {"source": "x"}, "train": {"tokens": 1}, "model": {"from": "x"}, "objective": table})


def test_an_objective_that_has_other_weights_is_refused() -> None:
    joint = find("families", "masked")(shift=1, autoregressive=0.5).training()
    with pytest.raises(UserError, match="joint"):
        converted({"name": "soft_targets"}, joint)
    with pytest.raises(UserError, match="masked"):
        converted({"name": "context"}, described("block")[1])
    with pytest.raises(UserError, match="complementary"):
        converted({"name": "on_policy"}, described("complementary")[1])


# ---- training


def task(folder: Path) -> Path:
    letters = "abcdefgh"
    lines = [{"input": f"{letters[n % 8]}{n}", "target": letters[n % 8] + letters[n % 5]} for n in range(120)]
    path = folder / "d.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


def start(folder: Path, family: str = "autoregressive") -> Path:
    tokenizer = Tokenizer.bytes()
    shape = preset("toy", tokenizer.vocab_size, dim=32, layers=LAYERS, max_length=64)
    made = Model.fresh({"name": family}, tokenizer, shape, True, seed=3)
    made.save(folder / family)
    return folder / family


def recipe(folder: Path, objective: dict[str, Any], family: dict[str, Any], **tables: Any) -> Recipe:
    return Recipe.of(
        {
            "data": {"source": str(task(folder)), "length": 32, "fractions": [0.9, 0.05, 0.05]},
            "model": {"from": str(start(folder))},
            "family": family,
            "objective": objective,
            "train": {"tokens": 900, "batch_tokens": 330, "validation_rows": 4, "threads": 1, "dtype": "float32"},
            **tables,
        }
    )


CASES = [
    ({"name": "align", "layers": 2}, {"name": "block"}),
    (ALL | {"also": {**ALL["also"], "also": {"name": "teacher_texts", "texts": 40}}}, {"name": "masked"}),  # type: ignore[dict-item]
    ({"name": "soft_targets", "top": 5}, {"name": "hybrid"}),
    ({"name": "align", "curriculum": "anneal"}, {"name": "masked"}),
    ({"name": "soft_targets", "curriculum": "blocks"}, {"name": "block", "block": 4}),
    ({"name": "on_policy", "generation": {"max_new_tokens": 5}}, {"name": "block", "block": 4}),
    ({"name": "on_policy", "also": {"name": "align"}}, {"name": "masked", "length_head": False}),
    ({"name": "context", "also": {"name": "soft_targets"}}, {"name": "masked", "shift": 0, "complementary": True}),
    ({"name": "confident"}, {"name": "masked", "self_condition": 0.5}),
]


@pytest.mark.parametrize(("objective", "family"), CASES)
def test_a_checkpoint_is_trained_into_another_family(
    objective: dict[str, Any], family: dict[str, Any], tmp_path: Path
) -> None:
    described = {key: value for key, value in objective.items() if key != "curriculum"}
    tables = {"curriculum": {"name": objective["curriculum"]}} if "curriculum" in objective else {}
    result = train(recipe(tmp_path, described, family, **tables), tmp_path / "out", device="cpu")
    assert result.steps >= 2 and result.validation is not None
    again = redraft.load(tmp_path / "out", "cpu")
    assert again.family_name == family["name"] and again.generate("aaa", max_new_tokens=8)[0].nfe > 0
    assert "objective" not in json.loads((tmp_path / "out" / "config.json").read_text())


class Interrupted(Exception):
    pass


def interrupt(event: Event) -> None:
    if event.kind == "checkpoint" and event.step == 2:
        raise Interrupted


def test_an_interrupted_run_ends_as_if_it_had_not_been(tmp_path: Path) -> None:
    """The texts that the checkpoint has written are kept; those of the model are drawn again alike."""
    written = {"name": "on_policy", "generation": {"max_new_tokens": 5}, "also": {"name": "teacher_texts", "texts": 40}}
    limits = {"tokens": 700, "batch_tokens": 150, "validation_rows": 4, "threads": 1, "dtype": "float32"}
    made = recipe(tmp_path, written, {"name": "block", "block": 4}, train=limits | {"save_every_tokens": 1})
    whole = train(made, tmp_path / "whole", device="cpu")
    with pytest.raises(Interrupted):
        train(made, tmp_path / "run", device="cpu", on_event=interrupt)
    again = train(made, tmp_path / "run", device="cpu")
    assert again.flops == whole.flops and whole.steps >= 3
    files = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("run", "whole")]
    assert files[0] == files[1]


def test_the_passes_of_the_teacher_count_as_compute(tmp_path: Path) -> None:
    """Hidden states without logits cost less than distributions of every token."""
    flops, family = list[int](), {"name": "masked"}
    for objective in ({}, {"name": "confident"}, {"name": "align"}, {"name": "soft_targets"}):
        parts = prepare(recipe(tmp_path, objective, family), tmp_path / "work", torch.device("cpu"))
        batch, cost = next(parts.loader), parts.model.network.forward_cost()
        networks = {"main": parts.model.network, "teacher": parts.model.network}
        made, asked = prepare_batch(parts.phases[0].objective, batch, parts.model.spec, torch.Generator(), networks)
        flops.append(cost.of_training(made) + sum(map(cost.of_request, asked)))
    plain, confident, align, soft = flops
    assert plain == confident < align < soft


def test_the_answers_that_the_teacher_writes_are_learnt(tmp_path: Path) -> None:
    """Of a network whose texts are all alike, whatever the data say."""
    wanted = recipe(tmp_path, {"name": "teacher_texts", "texts": 30}, {"name": "masked"})
    parts = prepare(wanted, tmp_path / "work", torch.device("cpu"))
    written = redraft.load(start(tmp_path), "cpu")
    batch = next(parts.loader)
    answers = {tuple(ids[target].tolist()) for ids, target in zip(batch.ids, batch.target, strict=True)}
    prompts = {tuple(ids[:count].tolist()) for ids, count in zip(batch.ids, batch.prompt, strict=True)}  # type: ignore[arg-type]
    theirs = {(*one.ids, *[written.spec.tokens.eos_id] * (one.finish == "stop"))
              for one in written.generate([list(p) for p in prompts], max_new_tokens=3, temperature=0.0)}  # fmt: skip
    assert answers <= theirs and parts.flops > 0


def test_under_an_adapter_the_teacher_is_the_base_and_takes_no_memory(tmp_path: Path) -> None:
    wanted = recipe(tmp_path, {"name": "align"}, {"name": "masked"}, lora={"rank": 2, "alpha": 4.0})
    made = redraft.load(start(tmp_path), "cpu")
    own = converted({"name": "align"}, described("shifted")[1])
    assert wanted.lora is not None
    attach(made.network, wanted.lora, public_names(made))
    found = teacher(wanted, made.network, own)["teacher"]
    theirs = {id(p) for p in made.network.parameters()}
    assert {id(p) for p in found.parameters()} <= theirs
    assert not any(module.active for module in adapted(found)) and all(m.active for m in adapted(made.network))
    assert type(base_of(made.network)) is type(made.network)
    result = train(wanted, tmp_path / "out", device="cpu")
    assert result.steps >= 2


def test_a_checkpoint_that_is_not_autoregressive_is_refused(tmp_path: Path) -> None:
    wanted = recipe(tmp_path, {"name": "align"}, {"name": "masked"}, model={"from": str(start(tmp_path, "masked"))})
    with pytest.raises(UserError, match="learns from an autoregressive checkpoint"):
        train(wanted, tmp_path / "out", device="cpu")


def test_every_objective_is_tested_here() -> None:
    tested = {"align", "soft_targets", "teacher_texts", "context", "on_policy", "confident"}
    assert set(names(FOLDER)) == tested
