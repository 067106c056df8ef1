"""Laws of objectives that look ahead: Diffusion-of-Thought and few-step distillation."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from redraft.errors import UserError
from redraft.likelihood import corrupt
from redraft.models.transformer import Config, Transformer
from redraft.objectives.distill import Distill
from redraft.objectives.glancing import Glancing
from redraft.objectives.masked import Masked
from redraft.objectives.thought import Thought, thoughts
from redraft.train.loop import backward
from redraft.types import Batch, Forward, Prepared, Spec
from tests.tiny import VOCABULARY, family, pairs

A, B, C = VOCABULARY.letters
EOS, SEP, MASK = VOCABULARY.eos_id, VOCABULARY.sep_id, VOCABULARY.mask_id


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def network(seed: int = 0) -> Transformer:
    torch.manual_seed(seed)
    made = Transformer(Config(vocab_size=VOCABULARY.vocab_size, dim=16, layers=1, heads=2, max_length=32))
    for parameter in made.parameters():
        if parameter.ndim == 2:
            nn.init.normal_(parameter)  # opinions, so that what is likeliest is clear
    return made


def batch() -> Batch:
    """Three answers in which C ends a thought: two thoughts, three, and one."""
    rows = [
        ([A, SEP], [A, B, C, B, A, EOS]),
        ([B, SEP], [A, C, B, B, C, A, B, EOS]),
        ([C, A, SEP], [B, A, A, EOS]),
    ]
    return pairs(rows, length=12)


def spec(**changes: Any) -> Spec:
    return replace(family("masked")[0], **changes)


def learnt(objective: Masked, seed: int = 0, nets: dict[str, nn.Module] | None = None, **changes: Any) -> Prepared:
    own = {"main": network()} if nets is None else nets
    return corrupt(objective, batch(), spec(**changes), generator(seed), own)[0]


def same(one: Prepared, other: Prepared) -> bool:
    pairs_of = [(one.ask.x, other.ask.x), (one.ask.want, other.ask.want), (one.weight, other.weight)]
    return all(torch.equal(a, b) for a, b in [*pairs_of, (one.target, other.target)])


# ---- the contract


@pytest.mark.parametrize("seed", range(4))
def test_nothing_scheduled_is_the_plain_objective_bit_for_bit(seed: int) -> None:
    plain, random = Masked().prepare(batch(), spec(), one := generator(seed)), generator(seed)
    found, looked = corrupt(Thought(), batch(), spec(), random, {})
    assert same(found, plain) and looked == []
    assert torch.equal(random.get_state(), one.get_state())  # and so are all the batches that follow


def test_passes_ahead_leave_no_gradient_and_no_trace_in_the_network() -> None:
    main = network().train()
    before = copy.deepcopy(main.state_dict())
    prepared, looked = corrupt(Thought(scheduled=1.0), batch(), spec(), generator(), {"main": main})
    assert looked and main.training and all(p.grad is None for p in main.parameters())
    assert all(torch.equal(before[name], value) for name, value in main.state_dict().items())
    assert not prepared.ask.x.requires_grad


# ---- Diffusion-of-Thought


def test_thoughts_are_counted_from_the_prompt_and_end_with_their_border() -> None:
    number = thoughts(batch(), spec(borders=(C,)))
    assert number[0, 2:8].tolist() == [0, 0, 0, 1, 1, 1]
    assert number[1, 2:10].tolist() == [0, 0, 1, 1, 1, 2, 2, 2]
    assert number[2, 3:7].tolist() == [0, 0, 0, 0]  # the C of the prompt is no border


@pytest.mark.parametrize("coupled", [0.0, 1.0])
def test_thought_by_thought_the_past_is_shown_and_the_future_is_not(coupled: float) -> None:
    rows, one = batch(), spec(borders=(C,))
    number, met = thoughts(rows, one), set()
    for seed in range(40):
        prepared = learnt(Thought(coupled=coupled), seed, borders=(C,))
        asked = (prepared.ask.want >= 0) & rows.target
        for row in range(3):
            wanted = number[row][asked[row]].tolist()
            at = max(wanted)
            met.add((row, at))
            assert coupled or set(wanted) == {at}
            hidden = prepared.ask.x[row] == MASK
            inside = rows.target[row] & (rows.ids[row] != EOS)
            absent = inside & hidden & ~asked[row]
            assert (number[row][absent] > at).all()
            assert coupled or torch.equal(absent, inside & (number[row] > at))
            assert (prepared.ask.x[row] == rows.ids[row])[~hidden].all()
    assert met >= {(0, 0), (0, 1), (1, 0), (1, 1), (1, 2), (2, 0)}


def test_thought_by_thought_every_token_counts_once_in_the_bound() -> None:
    """The mean over thoughts and noise levels of what a position weighs is 1, as in the bound of the whole."""
    rows, seen, draws = batch(), torch.zeros(3, 12, dtype=torch.float64), 3000
    for seed in range(draws):
        prepared = learnt(Thought(scheduled=0.5, coupled=0.5).scoring(), seed, {}, borders=(C,))
        seen[(prepared.ask.want >= 0) & rows.target] += prepared.extra["bound"][~prepared.extra["is_length"]].double()
    counted = seen[rows.target & (rows.ids != EOS)] / draws
    assert counted.mean().item() == pytest.approx(1.0, abs=0.03)
    assert counted.sub(1).abs().max().item() < 0.25  # 4 standard errors of the rarest position


class Wrong(nn.Module):
    """Says ``token`` everywhere, and remembers what it was asked."""

    def __init__(self, token: int) -> None:
        super().__init__()
        self.token, self.asked = token, list[Forward]()

    def forward(self, ask: Forward) -> Tensor:
        self.asked.append(ask)
        logits = torch.zeros(int((ask.want >= 0).sum()), VOCABULARY.vocab_size)
        logits[:, self.token], logits[:, MASK] = 5.0, 9.0
        return logits


@pytest.mark.parametrize("borders", [(), (C,)])
def test_scheduled_rows_see_predictions_where_more_was_hidden_and_learn_the_truth(borders: tuple[int, ...]) -> None:
    rows, filled = batch(), 0
    for seed in range(20):
        wrong = Wrong(C)
        prepared = learnt(Thought(scheduled=1.0), seed, {"main": wrong}, borders=borders)
        for ask in wrong.asked:
            assert ask.net == "main" and bool((ask.want >= 0).any(1).all())
        shown, own = prepared.ask.x != MASK, prepared.ask.x != rows.ids
        assert (prepared.ask.x == C)[shown & own].all()  # the truth, or what the network said
        filled += int((shown & own).sum())
        token = ~prepared.extra["is_length"]
        assert torch.equal(prepared.target[token], rows.ids[(prepared.ask.want >= 0) & rows.target])
    assert filled > 0


# ---- distillation


@pytest.mark.parametrize("order", ["confidence", "random"])
@pytest.mark.parametrize("conditional", [True, False])
def test_a_student_that_is_its_teacher_has_nothing_to_learn_from_one_pass(order: Any, conditional: bool) -> None:
    main, teacher = network(), network()
    one = spec() if conditional else spec(isolate_prompt=False, length_head=False)
    rows = batch() if conditional else replace(batch(), prompt=None)
    objective = Distill(teacher_steps=1, text="data", order=order)
    for seed in range(5):
        prepared, looked = corrupt(objective, rows, one, generator(seed), {"main": main, "teacher": teacher})
        assert len(looked) == 1
        loss = backward(main, objective, prepared, 1.0)
        assert float(loss) == pytest.approx(0, abs=1e-6)
        assert all(p.grad is None or float(p.grad.abs().max()) < 1e-5 for p in main.parameters())


@pytest.mark.parametrize("text", ["teacher", "data"])
def test_no_gradient_reaches_the_teacher_and_the_student_learns_from_it(text: Any) -> None:
    main, teacher = network(0), network(1)
    objective = Distill(teacher_steps=3, text=text)
    prepared, looked = corrupt(objective, batch(), spec(), generator(), {"main": main, "teacher": teacher})
    assert {ask.net for ask in looked} == {"teacher"} and 1 < len(looked) <= 3
    first = float(backward(main, objective, prepared, 1.0))
    assert all(p.grad is None for p in teacher.parameters())
    optimizer = torch.optim.Adam(main.parameters(), 0.05)
    for _ in range(80):
        optimizer.step()
        optimizer.zero_grad()
        last = float(backward(main, objective, prepared, 1.0))
    assert 0 <= last < 0.1 * first


def test_the_teacher_writes_what_confidence_decoding_writes_and_its_distributions_are_kept() -> None:
    """The sampler at as many steps is the reference, given the same length."""
    from redraft.canvas import make_canvas
    from redraft.decode import Loop, Method
    from redraft.samplers.confidence import Confidence

    teacher = network(1).eval()
    one = spec(forbidden=(*spec().forbidden, EOS))  # an early end would cut the sampler's text short
    rows = pairs([([A, SEP], [A, B, C, B, A, B, EOS]), ([C, B, SEP], [B, A, A, B, C, A, EOS])])
    canvas = make_canvas(
        [[A, SEP, *[None] * 6, EOS], [C, B, SEP, *[None] * 6, EOS]], [2, 3], one, seeds=[0, 1], temperature=0.0
    )
    for _ in Loop({"main": teacher}, Method(Confidence(steps=3)), one).run(canvas):
        pass
    objective, nets = Distill(teacher_steps=3), {"main": teacher, "teacher": teacher}
    prepared = corrupt(objective, rows, one, generator(3), nets)[0]
    shown = (prepared.ask.x != MASK) & rows.target
    assert torch.equal(prepared.ask.x[shown], canvas.ids[:, : rows.ids.shape[1]][shown])
    token = ~prepared.extra["is_length"]
    assert torch.equal(prepared.target[token], canvas.ids[(prepared.ask.want >= 0) & rows.target])
    assert torch.equal(prepared.extra["told"][token].argmax(1), prepared.target[token])
    total = prepared.extra["told"].exp().sum(1)
    torch.testing.assert_close(total, torch.ones_like(total))


@pytest.mark.parametrize("make", [lambda: Distill(teacher_steps=0), lambda: Thought(scheduled=1.5)])
def test_wrong_options_are_errors_for_people(make: Any) -> None:
    with pytest.raises(UserError):
        make()


# ---- glancing


class Guesser(nn.Module):
    """Answers right where its list says so, by the order of what is wanted, and wrong elsewhere."""

    def __init__(self, batch: Batch, right: list[bool]) -> None:
        super().__init__()
        self.ids, self.right = batch.ids, right

    def forward(self, ask: Forward) -> Tensor:
        row, column = (ask.want >= 0).nonzero(as_tuple=True)
        token = self.ids[row, ask.want[row, column]]
        other = torch.where(token == A, B, A)
        wanted = torch.where(torch.tensor(self.right * len(token))[: len(token)], token, other)
        return nn.functional.one_hot(wanted, VOCABULARY.vocab_size).float()


def hidden(objective: Glancing, right: list[bool], seed: int = 0) -> list[int]:
    """Tokens hidden in each row of the batch, whose rows have 5, 7 and 3 that noise may touch."""
    plain = spec(length_head=False)
    prepared, looked = corrupt(objective, batch(), plain, generator(seed), {"main": Guesser(batch(), right)})
    assert len(looked) == 1 and bool((looked[0].x[batch().target & (batch().ids != EOS)] == MASK).all())
    return (prepared.ask.x == MASK).sum(1).tolist()


def test_what_is_guessed_right_stays_hidden_and_half_of_the_mistakes_are_shown() -> None:
    count = (batch().target & torch.tensor([[True]])).sum(1).tolist()
    assert hidden(Glancing(weight="flat", share=1.0), [True]) == count
    wrong = [n - -(-n // 2) for n in count]  # half of n mistakes, rounded up, are shown
    assert hidden(Glancing(weight="flat", share=1.0), [False]) == wrong
    assert hidden(Glancing(weight="flat", share=1.0, ratio=0.0), [False]) == count


def test_rows_that_are_not_glanced_at_are_hidden_as_ever() -> None:
    """Sizes of the plain objective: uniform over 1 ... n."""
    sizes = [hidden(Glancing(weight="flat", share=0.0), [True], seed)[2] for seed in range(400)]
    n = int(batch().target.sum(1)[2])
    assert set(sizes) == set(range(1, n + 1))
    assert all(abs(sizes.count(k) / 400 - 1 / n) < 0.1 for k in range(1, n + 1))


def test_glancing_has_no_bound_to_train_on() -> None:
    with pytest.raises(UserError, match="no bound"):
        Glancing(weight="bound")
