"""Parity of BD3-LM (kuleshov-group/bd3lms): network, two-stream training pass, bound, and its two samplers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
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
from redraft.objectives.block import Block
from redraft.objectives.shared.times import stratify
from redraft.parity.outputs import exponential_race, model_logits
from redraft.parity.reference import Check, Reference, Suite
from redraft.samplers.confidence import Confidence
from redraft.samplers.first_hitting import FirstHitting
from redraft.samplers.wrappers.blockwise import Blockwise
from redraft.types import SEALED, AttentionPattern, Batch, CleanStream, Forward, Schedule


def checks(reference: Reference) -> Iterator[Check]:
    """Attention masks, schedules, network, losses and sampling."""
    model, values = reference.load(), reference.tensors("model")
    yield from _masks(reference)
    yield from _schedules(reference)
    yield from _network(reference, model, values)
    yield from _losses(reference, model, values)
    run = reference.tensors("sampler_run")
    for name, replay in (("first_hitting", _first_hitting), ("ddpm", _ancestral)):
        found, expected = replay(model, run)
        yield reference.same(f"sampling, {name}, recorded draws", found, expected)
        begun = ((torch.where((a == -1) & (b != -1), model.spec.tokens.mask_id, a), b) for a, b in _updates(run, name))
        passes = sum(not torch.equal(before, after) for before, after in begun)
        yield reference.same(f"forward passes of sampling, {name}", [[passes]], [[int(run[f"{name}.nfe"])]])


def _two_streams(noisy: Tensor, clean: Tensor, block: int) -> Forward:
    pos = torch.arange(noisy.shape[1]).expand(noisy.shape)
    attend = AttentionPattern("block", block)
    return Forward(noisy, pos, pos, attend, extra=(CleanStream(clean, pos, attend),))


def _masks(reference: Reference) -> Iterator[Check]:
    """Attention masks of the noisy and the clean stream, for several lengths and block lengths."""
    values = reference.tensors("masks")
    for name in values:
        length, block = (int(part[1:]) for part in name.split("_"))
        ids = torch.zeros(1, length, dtype=torch.int64)
        found = streams.dense_mask(_two_streams(ids, ids, block))[0, 0]
        yield reference.close("attention masks of training", found, values[name], 0, 0)


def _schedules(reference: Reference) -> Iterator[Check]:
    """BD3-LM records the probability of a mask, at least 1e-3, and the weight alpha' / (1 - alpha)."""
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
    least, cosine = 1e-3, Cosine()  # rescaled instead of clamped
    masked = 1 - (1 - least) * cosine.alpha(t)
    yield reference.close("schedule, cosine", masked, values["cosine.move_chance"], 1e-5, 1e-6)
    slope = values["cosine.loss_scale"] * (values["cosine.move_chance"] + least)  # 1 - cos has few digits in float32
    yield reference.close("slope of schedule, cosine", (1 - least) * cosine.dalpha(t), slope, 1e-5, 1e-6)


def _network(reference: Reference, model: Model, values: Mapping[str, Tensor]) -> Iterator[Check]:
    size, clean, noisy = model.spec.network.attention.block, values["x0"], values["xt"]
    yield reference.close(
        "logits, context and current block", model_logits(model, values["sample_x"]), values["sample_logits"]
    )
    parts = []
    for begin in range(0, clean.shape[1], size):  # one noisy block after the clean ones
        x = torch.cat([clean[:, :begin], noisy[:, begin : begin + size]], 1)
        parts.append(model_logits(model, x)[:, begin:])
    output = torch.cat(parts, 1)
    yield reference.close("logits, block by block", output, values["logits"])
    with torch.inference_mode():
        flat = model.network(_two_streams(noisy, clean, size))
    yield reference.close("logits, training pass", flat.view(output.shape), values["logits"])
    log_p = output.index_fill(2, torch.tensor(model.spec.tokens.forbidden), -torch.inf).log_softmax(-1)
    at = noisy == model.spec.tokens.mask_id
    expected = values["log_probs"][at]
    allowed = [i for i in range(expected.shape[1]) if i not in model.spec.tokens.forbidden]
    yield reference.close("log-probabilities at masks", log_p[at][:, allowed], expected[:, allowed])


def _losses(reference: Reference, model: Model, values: Mapping[str, Tensor]) -> Iterator[Check]:
    """Times, weights and the bound of every token for given masks. The mean excludes position 0."""
    spec = model.spec
    x0, xt, t = values["x0"], values["xt"], values["t"]
    even = stratify(values["t_uniform"].flatten()).view(values["t_uniform"].shape) * (1 - 1e-3) + 1e-3
    yield reference.close("times of blocks", even.repeat_interleave(spec.network.attention.block, 1), t, 1e-5, 1e-6)
    yield reference.close("weights of tokens", -1 / t, values["loss_scale"], 1e-5, 0)
    yield reference.close("probability of a mask", 1 - Linear().alpha(t), values["move_chance"], 1e-5, 1e-6)
    at, target = xt == spec.tokens.mask_id, torch.ones_like(xt, dtype=torch.bool)
    target[:, 0] = False
    rows = Batch(x0, target, torch.ones_like(target), None, target.sum(1))
    prepared = Block().request(rows, spec, at, 1 / t, int(target.sum()))
    with torch.inference_mode():  # no block attends to the last one, so its clean stream is left out
        output = model.network(prepared.request)
    yield reference.close("logits, request of the objective", output, values["logits"][at])
    found = Block().loss(values["logits"][at].clone(), prepared)
    expected = values["nelbo_tokens"]
    yield reference.close("bound of texts", found.nats, expected.sum(1), 2e-4)
    yield reference.close("bound, mean of tokens", found.loss, values["nelbo_mean"][0], 2e-4)
    log_p = values["logits"].index_fill(2, torch.tensor(spec.tokens.mask_id), -torch.inf).log_softmax(-1)
    each = -log_p.gather(2, x0[..., None])[..., 0] / t * at
    yield reference.close("bound of tokens", each, expected, 2e-4)


def _request(model: Model, state: Tensor, sampler: Any) -> tuple[Forward, Tensor]:
    """The request of a block sampler for a recorded state (-1: block not begun), and its distributions [W, V]."""
    spec, mask = model.spec.with_tokens(eos_id=-1), model.spec.tokens.mask_id
    row: list[int | None] = [None if token in (-1, mask) else token for token in state.tolist()]
    canvas = make_canvas([row], [1], spec, seeds=[0])
    canvas.status[0, 1:][canvas.ids[0, 1:] != mask] = SEALED
    method = Blockwise(sampler)
    (request,) = method.plan(canvas, method.start(canvas, spec), spec)
    with torch.inference_mode():
        logits = model.network(request)
    return request, logits.index_fill(1, torch.tensor(mask), -torch.inf).softmax(-1)


def _updates(values: Mapping[str, Tensor], name: str) -> list[tuple[Tensor, Tensor]]:
    """(before, after) of every update."""
    after = list(values[f"{name}.states"])
    first = torch.full_like(after[0], -1)
    first[0] = after[0][0]
    if not torch.equal(after[-1], values[f"{name}.ids"].flatten()):
        raise AssertionError("the last recorded state differs from the recorded ids")
    return list(zip([first, *after[:-1]], after, strict=True))


_Ids = tuple[list[list[int]], list[list[int]]]


def _first_hitting(model: Model, values: Mapping[str, Tensor]) -> _Ids:
    """For every update, one masked position of the active block gets the id that the recorded noise samples from our
    distribution. Returns our states and the recorded ones."""
    block, mask = model.spec.network.attention.block, model.spec.tokens.mask_id
    found, expected = [], []
    for number, (before, after) in enumerate(_updates(values, "first_hitting")):
        begin = int((after != -1).nonzero().max()) // block * block
        masked = [p for p in range(begin, begin + block) if before[p] in (-1, mask)]
        request, _ = _request(model, before, FirstHitting())
        position = masked[int(values["first_hitting.index_draw"][number])]
        _, p = _request(model, before, Confidence(steps=block))  # requests the whole block
        uniform = values[f"first_hitting.draws.{number:02}"][0, position - begin]
        drawn = exponential_race(p[masked.index(position)].double(), uniform)
        changed = before.clone()
        changed[masked] = mask
        changed[position] = drawn if int(request.targets[0, 0]) in masked else -1
        found.append(changed.tolist())
        expected.append(after.tolist())
    return found, expected


def _ancestral(model: Model, values: Mapping[str, Tensor]) -> _Ids:
    """The ancestral sampler: q(x_s | x_t) with the network's distribution for x_0. Returns our ids and the recorded
    ones."""
    block, mask, spec, dt = model.spec.network.attention.block, model.spec.tokens.mask_id, model.spec, 1 / 30
    found, expected = [], []
    for number, (before, after) in enumerate(_updates(values, "ddpm")):
        begin = int((after != -1).nonzero().max()) // block * block
        own = slice(begin, begin + block)
        now = torch.where(before[own] == -1, mask, before[own])
        _, p = _request(model, before, Confidence(steps=block))
        t = values["ddpm.t"][number]
        a_s, a_t = (1 - (t - dt)).clamp(max=1), 1 - t
        clean = F.one_hot(now, spec.tokens.vocab_size).double()
        clean[now == mask] = p.double()
        q = Absorbing().posterior(now, clean, a_s, a_t, spec)
        drawn = exponential_race(q, values[f"ddpm.draws.{number:02}"][0])
        found.append(torch.where(now == mask, drawn, now).tolist())
        expected.append(after[own].tolist())
    return found, expected


SUITE = Suite(
    checks,
    {
        "sampler_run.first_hitting.[tu]": "times, which a network without time conditioning does not use",
        "model.uniform": "the draws from which xt was computed",
    },
)
