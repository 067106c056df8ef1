"""BD3-LM: the network, one training pass of two streams, its bound, and its two samplers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from redraft.canvas import make_canvas
from redraft.model import Model
from redraft.models.parts import streams
from redraft.noise.absorbing import Absorbing
from redraft.noise.schedules.cosine import Cosine
from redraft.noise.schedules.linear import Linear
from redraft.noise.schedules.logarithmic import Logarithmic
from redraft.noise.schedules.polynomial import Polynomial
from redraft.objectives._times import stratify
from redraft.objectives.block import Block
from redraft.parity._asking import answers, race
from redraft.parity._reference import Check, Reference, Suite
from redraft.samplers._blockwise import Blockwise
from redraft.samplers.confidence import Confidence
from redraft.samplers.first_hitting import FirstHitting
from redraft.types import SEALED, Attend, Batch, Clean, Forward, Schedule


def checks(reference: Reference) -> Iterator[Check]:
    model, values = reference.load(), reference.tensors("model")
    yield from _masks(reference)
    yield from _schedules(reference)
    yield from _network(reference, model, values)
    yield from _losses(reference, model, values)
    run = reference.tensors("sampler_run")
    for name, replay in (("first_hitting", _first_hitting), ("ddpm", _ancestral)):
        found, wanted = replay(model, run)
        yield reference.same(f"its sampling, {name}, draws replayed", found, wanted)
        begun = ((torch.where((a == -1) & (b != -1), model.spec.mask_id, a), b) for a, b in _updates(run, name))
        passes = sum(not torch.equal(before, after) for before, after in begun)
        yield reference.same(f"passes of its sampling, {name}", [[passes]], [[int(run[f"{name}.nfe"])]])


def _two_streams(noisy: Tensor, clean: Tensor, block: int) -> Forward:
    pos = torch.arange(noisy.shape[1]).expand(noisy.shape)
    attend = Attend("block", block)
    return Forward(noisy, pos, pos, attend, clean=Clean(clean, pos, attend))


def _masks(reference: Reference) -> Iterator[Check]:
    """Who sees whom, noisy stream and clean one, for some lengths and blocks."""
    values = reference.tensors("masks")
    for name in values:
        length, block = (int(part[1:]) for part in name.split("_"))
        ids = torch.zeros(1, length, dtype=torch.int64)
        found = streams.dense(_two_streams(ids, ids, block))[0, 0]
        yield reference.close("masks of the training pass", found, values[name], 0, 0)


def _schedules(reference: Reference) -> Iterator[Check]:
    """Theirs are the chance of a mask, at least 1e-3, and the weight alpha' / (1 - alpha)."""
    values = reference.tensors("schedules")
    t = values["t"].double()
    ours: dict[str, Schedule] = {
        "loglinear": Linear(),
        "square": Polynomial(2),
        "square_root": Polynomial(0.5),
        "log": Logarithmic(),
    }
    for name, schedule in ours.items():
        masked = (1 - schedule.alpha(t)).clamp(min=1e-3)
        yield reference.close(f"schedule, {name}", masked, values[f"{name}.move_chance"], 1e-5, 1e-7)
        weight = schedule.dalpha(t) / masked
        yield reference.close(f"weight of schedule, {name}", weight, values[f"{name}.loss_scale"], 1e-5, 1e-6)
    least, cosine = 1e-3, Cosine()  # squeezed instead of cut off
    masked = 1 - (1 - least) * cosine.alpha(t)
    yield reference.close("schedule, cosine", masked, values["cosine.move_chance"], 1e-5, 1e-6)
    slope = values["cosine.loss_scale"] * (values["cosine.move_chance"] + least)  # 1 - cos has few digits in float32
    yield reference.close("slope of schedule, cosine", (1 - least) * cosine.dalpha(t), slope, 1e-5, 1e-6)


def _network(reference: Reference, model: Model, values: Mapping[str, Tensor]) -> Iterator[Check]:
    size, clean, noisy = model.spec.attend.block, values["x0"], values["xt"]
    yield reference.close(
        "logits, context and current block", answers(model, values["sample_x"]), values["sample_logits"]
    )
    parts = []
    for begin in range(0, clean.shape[1], size):  # one noisy block at a time, after clean ones
        x = torch.cat([clean[:, :begin], noisy[:, begin : begin + size]], 1)
        parts.append(answers(model, x)[:, begin:])
    output = torch.cat(parts, 1)
    yield reference.close("logits, block by block", output, values["logits"])
    with torch.inference_mode():
        flat = model.network(_two_streams(noisy, clean, size))
    yield reference.close("logits, the training pass", flat.view(output.shape), values["logits"])
    log_p = output.index_fill(2, torch.tensor(model.spec.forbidden), -torch.inf).log_softmax(-1)
    at = noisy == model.spec.mask_id
    wanted = values["log_probs"][at]
    allowed = [i for i in range(wanted.shape[1]) if i not in model.spec.forbidden]
    yield reference.close("log-probabilities at masks", log_p[at][:, allowed], wanted[:, allowed])


def _losses(reference: Reference, model: Model, values: Mapping[str, Tensor]) -> Iterator[Check]:
    """Times, weights and the bound of every token for given masks; its mean is over positions 1 and on."""
    spec = model.spec
    x0, xt, t = values["x0"], values["xt"], values["t"]
    even = stratify(values["t_uniform"].flatten()).view(values["t_uniform"].shape) * (1 - 1e-3) + 1e-3
    yield reference.close("times of blocks", even.repeat_interleave(spec.attend.block, 1), t, 1e-5, 1e-6)
    yield reference.close("weights of tokens", -1 / t, values["loss_scale"], 1e-5, 0)
    yield reference.close("chance of a mask", 1 - Linear().alpha(t), values["move_chance"], 1e-5, 1e-6)
    at, target = xt == spec.mask_id, torch.ones_like(xt, dtype=torch.bool)
    target[:, 0] = False
    rows = Batch(x0, target, torch.ones_like(target), None, target.sum(1))
    prepared = Block().request(rows, spec, at, 1 / t, int(target.sum()))
    with torch.inference_mode():  # the last block is looked back on by none, so it runs once
        asked = model.network(prepared.ask)
    yield reference.close("logits, what our objective asks", asked, values["logits"][at])
    found = Block().loss(values["logits"][at].clone(), prepared)
    wanted = values["nelbo_tokens"]
    yield reference.close("bound of texts", found.nats, wanted.sum(1), 2e-4)
    yield reference.close("bound, mean of tokens", found.loss, values["nelbo_mean"][0], 2e-4)
    log_p = values["logits"].index_fill(2, torch.tensor(spec.mask_id), -torch.inf).log_softmax(-1)
    each = -log_p.gather(2, x0[..., None])[..., 0] / t * at
    yield reference.close("bound of tokens", each, wanted, 2e-4)


def _asked(model: Model, state: Tensor, sampler: Any) -> tuple[Forward, Tensor]:
    """What a block sampler asks about a recorded state (-1: not begun), and the distributions [W, V] it gets."""
    spec, mask = replace(model.spec, eos_id=-1), model.spec.mask_id
    row: list[int | None] = [None if token in (-1, mask) else token for token in state.tolist()]
    canvas = make_canvas([row], [1], spec, seeds=[0])
    canvas.status[0, 1:][canvas.ids[0, 1:] != mask] = SEALED
    method = Blockwise(sampler)
    (ask,) = method.plan(canvas, method.start(canvas, spec), spec)
    with torch.inference_mode():
        logits = model.network(ask)
    return ask, logits.index_fill(1, torch.tensor(mask), -torch.inf).softmax(-1)


def _updates(values: Mapping[str, Tensor], name: str) -> list[tuple[Tensor, Tensor]]:
    """(before, after) of every update."""
    after = list(values[f"{name}.states"])
    first = torch.full_like(after[0], -1)
    first[0] = after[0][0]
    if not torch.equal(after[-1], values[f"{name}.ids"].flatten()):
        raise AssertionError("the recorded states don't end in the recorded ids")
    return list(zip([first, *after[:-1]], after, strict=True))


_Ids = tuple[list[list[int]], list[list[int]]]


def _first_hitting(model: Model, values: Mapping[str, Tensor]) -> _Ids:
    """Every update: one masked position of the block at work, and the id that the recorded noise draws from the
    distribution which our request gets. Found and recorded."""
    block, mask = model.spec.attend.block, model.spec.mask_id
    found, wanted = [], []
    for number, (before, after) in enumerate(_updates(values, "first_hitting")):
        begin = int((after != -1).nonzero().max()) // block * block
        masked = [p for p in range(begin, begin + block) if before[p] in (-1, mask)]
        ask, _ = _asked(model, before, FirstHitting())
        place = masked[int(values["first_hitting.index_draw"][number])]
        _, p = _asked(model, before, Confidence(steps=block))  # asks for all of the block
        drawn = race(p[masked.index(place)].double(), values[f"first_hitting.draws.{number:02}"][0, place - begin])
        changed = before.clone()
        changed[masked] = mask
        changed[place] = drawn if int(ask.want[0, 0]) in masked else -1
        found.append(changed.tolist())
        wanted.append(after.tolist())
    return found, wanted


def _ancestral(model: Model, values: Mapping[str, Tensor]) -> _Ids:
    """Theirs is our reverse step: q(x_s | x_t) with the network's distribution for x_0."""
    block, mask, spec, dt = model.spec.attend.block, model.spec.mask_id, model.spec, 1 / 30
    found, wanted = [], []
    for number, (before, after) in enumerate(_updates(values, "ddpm")):
        begin = int((after != -1).nonzero().max()) // block * block
        own = slice(begin, begin + block)
        now = torch.where(before[own] == -1, mask, before[own])
        _, p = _asked(model, before, Confidence(steps=block))
        t = values["ddpm.t"][number]
        a_s, a_t = (1 - (t - dt)).clamp(max=1), 1 - t
        clean = F.one_hot(now, spec.vocab_size).double()
        clean[now == mask] = p.double()
        drawn = race(Absorbing().posterior(now, clean, a_s, a_t, spec), values[f"ddpm.draws.{number:02}"][0])
        found.append(torch.where(now == mask, drawn, now).tolist())
        wanted.append(after[own].tolist())
    return found, wanted


SUITE = Suite(
    checks,
    {
        "sampler_run.first_hitting.[tu]": "times, of which a network that is not told them knows nothing",
        "model.uniform": "the draws from which xt was made",
    },
)
