"""Laws of objectives with a rollout: Diffusion-of-Thought, few-step distillation and glancing."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from redraft.errors import UserError
from redraft.likelihood import prepare_batch
from redraft.models.transformer import Config, Transformer
from redraft.objectives.distill import Distill
from redraft.objectives.glancing import Glancing
from redraft.objectives.masked import Masked, MaskedBatch
from redraft.objectives.shared.vocabulary import backward
from redraft.objectives.thought import Thought, thoughts
from redraft.types import Batch, Forward, Prepared, Spec
from tests.tiny import VOCABULARY, changed, family, pairs

A, B, C = VOCABULARY.letters
EOS, SEP, MASK = VOCABULARY.eos_id, VOCABULARY.sep_id, VOCABULARY.mask_id


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def network(seed: int = 0) -> Transformer:
    torch.manual_seed(seed)
    made = Transformer(Config(vocab_size=VOCABULARY.vocab_size, dim=16, layers=1, heads=2, max_length=32))
    for parameter in made.parameters():
        if parameter.ndim == 2:
            nn.init.normal_(parameter)  # larger weights, so that the most likely token is unambiguous
    return made


def batch() -> Batch:
    """Answers of two, three and one thoughts, which end in C."""
    rows = [
        ([A, SEP], [A, B, C, B, A, EOS]),
        ([B, SEP], [A, C, B, B, C, A, B, EOS]),
        ([C, A, SEP], [B, A, A, EOS]),
    ]
    return pairs(rows, length=12)


def spec(**changes: Any) -> Spec:
    return changed(family("masked")[0], **changes)


def prepare(objective: Masked, seed: int = 0, nets: dict[str, nn.Module] | None = None, **changes: Any) -> MaskedBatch:
    own = {"main": network()} if nets is None else nets
    return prepare_batch(objective, batch(), spec(**changes), generator(seed), own)[0]


def same(one: Prepared, other: Prepared) -> bool:
    pairs_of = [
        (one.request.tokens, other.request.tokens),
        (one.request.targets, other.request.targets),
        (one.weight, other.weight),
    ]
    return all(torch.equal(a, b) for a, b in [*pairs_of, (one.target, other.target)])


# ---- the contract


@pytest.mark.parametrize("seed", range(4))
def test_without_scheduled_sampling_it_equals_masked_bit_for_bit(seed: int) -> None:
    plain, random = Masked().prepare(batch(), spec(), one := generator(seed)), generator(seed)
    found, passes = prepare_batch(Thought(), batch(), spec(), random, {})
    assert same(found, plain) and passes == []
    assert torch.equal(random.get_state(), one.get_state())  # the next batches are the same too


def test_rollout_passes_leave_no_gradient_and_do_not_change_the_network() -> None:
    main = network().train()
    before = copy.deepcopy(main.state_dict())
    prepared, passes = prepare_batch(Thought(scheduled=1.0), batch(), spec(), generator(), {"main": main})
    assert passes and main.training and all(p.grad is None for p in main.parameters())
    assert all(torch.equal(before[name], value) for name, value in main.state_dict().items())
    assert not prepared.request.tokens.requires_grad


# ---- Diffusion-of-Thought


def test_thoughts_are_numbered_from_the_prompt_and_include_their_end_token() -> None:
    number = thoughts(batch(), spec(segment_end_ids=(C,)))
    assert number[0, 2:8].tolist() == [0, 0, 0, 1, 1, 1]
    assert number[1, 2:10].tolist() == [0, 0, 1, 1, 1, 2, 2, 2]
    assert number[2, 3:7].tolist() == [0, 0, 0, 0]  # the C of the prompt doesn't end a thought


@pytest.mark.parametrize("coupled", [0.0, 1.0])
def test_thought_by_thought_earlier_thoughts_are_visible_and_later_ones_masked(coupled: float) -> None:
    rows, one = batch(), spec(segment_end_ids=(C,))
    number, met = thoughts(rows, one), set()
    for seed in range(40):
        prepared = prepare(Thought(coupled=coupled), seed, segment_end_ids=(C,))
        asked = (prepared.request.targets >= 0) & rows.target
        for row in range(3):
            wanted = number[row][asked[row]].tolist()
            at = max(wanted)
            met.add((row, at))
            assert coupled or set(wanted) == {at}
            hidden = prepared.request.tokens[row] == MASK
            inside = rows.target[row] & (rows.ids[row] != EOS)
            absent = inside & hidden & ~asked[row]
            assert (number[row][absent] > at).all()
            assert coupled or torch.equal(absent, inside & (number[row] > at))
            assert (prepared.request.tokens[row] == rows.ids[row])[~hidden].all()
    assert met >= {(0, 0), (0, 1), (1, 0), (1, 1), (1, 2), (2, 0)}


def test_thought_by_thought_every_token_has_weight_one_in_the_bound() -> None:
    """The mean weight of a position over thoughts and noise levels is 1, as in the bound of the whole sequence."""
    rows, seen, draws = batch(), torch.zeros(3, 12, dtype=torch.float64), 3000
    for seed in range(draws):
        prepared = prepare(Thought(scheduled=0.5, coupled=0.5).scoring(), seed, {}, segment_end_ids=(C,))
        seen[(prepared.request.targets >= 0) & rows.target] += prepared.bound[~prepared.is_length].double()
    counted = seen[rows.target & (rows.ids != EOS)] / draws
    assert counted.mean().item() == pytest.approx(1.0, abs=0.03)
    assert counted.sub(1).abs().max().item() < 0.25  # 4 standard errors of the rarest position


class ConstantNetwork(nn.Module):
    """Predicts ``token`` everywhere and records its requests."""

    def __init__(self, token: int) -> None:
        super().__init__()
        self.token, self.asked = token, list[Forward]()

    def forward(self, request: Forward) -> Tensor:
        self.asked.append(request)
        logits = torch.zeros(int((request.targets >= 0).sum()), VOCABULARY.vocab_size)
        logits[:, self.token], logits[:, MASK] = 5.0, 9.0
        return logits


@pytest.mark.parametrize("borders", [(), (C,)])
def test_scheduled_rows_contain_predictions_and_have_true_targets(borders: tuple[int, ...]) -> None:
    rows, filled = batch(), 0
    for seed in range(20):
        wrong = ConstantNetwork(C)
        prepared = prepare(Thought(scheduled=1.0), seed, {"main": wrong}, segment_end_ids=borders)
        for request in wrong.asked:
            assert request.network == "main" and bool((request.targets >= 0).any(1).all())
        shown, own = prepared.request.tokens != MASK, prepared.request.tokens != rows.ids
        assert (prepared.request.tokens == C)[shown & own].all()  # the true tokens, or predictions of the network
        filled += int((shown & own).sum())
        token = ~prepared.is_length
        assert torch.equal(prepared.target[token], rows.ids[(prepared.request.targets >= 0) & rows.target])
    assert filled > 0


# ---- distillation


@pytest.mark.parametrize("order", ["confidence", "random"])
@pytest.mark.parametrize("paired", [True, False])
def test_with_one_pass_a_student_equal_to_its_teacher_has_loss_zero(order: Any, paired: bool) -> None:
    main, teacher = network(), network()
    one = spec() if paired else spec(prompt_encoder=False, length_head=False)
    rows = batch() if paired else replace(batch(), prompt=None)
    objective = Distill(teacher_steps=1, text="data", order=order)
    for seed in range(5):
        prepared, passes = prepare_batch(objective, rows, one, generator(seed), {"main": main, "teacher": teacher})
        assert len(passes) == 1
        loss = backward(main, objective, prepared, 1.0)
        assert float(loss) == pytest.approx(0, abs=1e-6)
        assert all(p.grad is None or float(p.grad.abs().max()) < 1e-5 for p in main.parameters())


@pytest.mark.parametrize("text", ["teacher", "data"])
def test_the_teacher_gets_no_gradient_and_the_student_learns_from_it(text: Any) -> None:
    main, teacher = network(0), network(1)
    objective = Distill(teacher_steps=3, text=text)
    prepared, passes = prepare_batch(objective, batch(), spec(), generator(), {"main": main, "teacher": teacher})
    assert {request.network for request in passes} == {"teacher"} and 1 < len(passes) <= 3
    first = float(backward(main, objective, prepared, 1.0))
    assert all(p.grad is None for p in teacher.parameters())
    optimizer = torch.optim.Adam(main.parameters(), 0.05)
    for _ in range(80):
        optimizer.step()
        optimizer.zero_grad()
        last = float(backward(main, objective, prepared, 1.0))
    assert 0 <= last < 0.1 * first


def test_the_teacher_generates_as_confidence_decoding_and_its_distributions_are_kept() -> None:
    """The reference is the sampler with the same number of steps and the same length."""
    from redraft.canvas import make_canvas
    from redraft.generation.loop import Loop, Method
    from redraft.samplers.confidence import Confidence

    teacher = network(1).eval()
    one = spec(forbidden=(*spec().tokens.forbidden, EOS))  # an early end-of-text would stop the sampler
    rows = pairs([([A, SEP], [A, B, C, B, A, B, EOS]), ([C, B, SEP], [B, A, A, B, C, A, EOS])])
    canvas = make_canvas(
        [[A, SEP, *[None] * 6, EOS], [C, B, SEP, *[None] * 6, EOS]], [2, 3], one, seeds=[0, 1], temperature=0.0
    )
    for _ in Loop({"main": teacher}, Method(Confidence(steps=3)), one).run(canvas):
        pass
    objective, nets = Distill(teacher_steps=3), {"main": teacher, "teacher": teacher}
    prepared = prepare_batch(objective, rows, one, generator(3), nets)[0]
    shown = (prepared.request.tokens != MASK) & rows.target
    assert torch.equal(prepared.request.tokens[shown], canvas.ids[:, : rows.ids.shape[1]][shown])
    token = ~prepared.is_length
    assert torch.equal(prepared.target[token], canvas.ids[(prepared.request.targets >= 0) & rows.target])
    assert torch.equal(prepared.teacher_log_p[token].argmax(1), prepared.target[token])
    total = prepared.teacher_log_p.exp().sum(1)
    torch.testing.assert_close(total, torch.ones_like(total))


@pytest.mark.parametrize("make", [lambda: Distill(teacher_steps=0), lambda: Thought(scheduled=1.5)])
def test_invalid_options_are_user_errors(make: Any) -> None:
    with pytest.raises(UserError):
        make()


# ---- glancing


class PartlyRight(nn.Module):
    """Predicts correctly at the targets marked in a list, in their order, and wrongly elsewhere."""

    def __init__(self, batch: Batch, right: list[bool]) -> None:
        super().__init__()
        self.ids, self.right = batch.ids, right

    def forward(self, request: Forward) -> Tensor:
        row, column = (request.targets >= 0).nonzero(as_tuple=True)
        token = self.ids[row, request.targets[row, column]]
        other = torch.where(token == A, B, A)
        wanted = torch.where(torch.tensor(self.right * len(token))[: len(token)], token, other)
        return nn.functional.one_hot(wanted, VOCABULARY.vocab_size).float()


def hidden(objective: Glancing, right: list[bool], seed: int = 0) -> list[int]:
    """The number of masked tokens in each row of the batch; noise may change 5, 7 and 3 tokens of its rows."""
    plain = spec(length_head=False)
    prepared, passes = prepare_batch(objective, batch(), plain, generator(seed), {"main": PartlyRight(batch(), right)})
    assert len(passes) == 1 and bool((passes[0].tokens[batch().target & (batch().ids != EOS)] == MASK).all())
    return (prepared.request.tokens == MASK).sum(1).tolist()


def test_half_as_many_tokens_as_there_are_errors_are_revealed() -> None:
    count = (batch().target & torch.tensor([[True]])).sum(1).tolist()
    assert hidden(Glancing(weight="uniform", share=1.0), [True]) == count
    wrong = [n - -(-n // 2) for n in count]  # half of n errors, rounded up, are revealed
    assert hidden(Glancing(weight="uniform", share=1.0), [False]) == wrong
    assert hidden(Glancing(weight="uniform", share=1.0, ratio=0.0), [False]) == count


def test_other_rows_are_masked_as_in_the_masked_objective() -> None:
    """The number of masks is that of ``Masked``: uniform over 1 ... n."""
    sizes = [hidden(Glancing(weight="uniform", share=0.0), [True], seed)[2] for seed in range(400)]
    n = int(batch().target.sum(1)[2])
    assert set(sizes) == set(range(1, n + 1))
    assert all(abs(sizes.count(k) / 400 - 1 / n) < 0.1 for k in range(1, n + 1))


def test_glancing_rejects_weight_bound() -> None:
    with pytest.raises(UserError, match="weight"):
        Glancing(weight="bound")
