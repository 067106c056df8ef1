"""Asking networks what a reference asked of them, by our own samplers, loop and objectives."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from redraft.canvas import make_canvas
from redraft.decode import CachePolicy, Loop, Method
from redraft.model import Model
from redraft.objectives.masked import Masked
from redraft.objectives.score import Score
from redraft.objectives.uniform import Uniform
from redraft.parity._reference import Check, Reference
from redraft.runtime import truncate
from redraft.samplers.ancestral import Ancestral
from redraft.types import Attend, Batch, Canvas, Forward, Network, Sampler, Schedule, Spec


def logits(network: Network, ids: Tensor, attend: Attend, shift: int, t: Tensor | None = None) -> Tensor:
    """What a network says at every position, [B, L, V], as its own code would give it (not shifted)."""
    pos = torch.arange(ids.shape[1]).expand(ids.shape)
    with torch.inference_mode():
        flat = network(Forward(x=ids, pos=pos, want=pos + shift, attend=attend, t=t))
    return flat.view(*ids.shape, -1)


def answers(model: Model, ids: Tensor, attend: Attend | None = None, t: Tensor | None = None) -> Tensor:
    return logits(model.network, ids, attend or model.spec.attend, model.spec.shift, t)


def hidden(model: Model, ids: Tensor, attend: Attend | None = None) -> Tensor:
    """What goes into every layer, and what comes out of the last norm: [layers + 1, B, L, D]."""
    network: Any = model.network
    seen: list[Tensor] = []
    hooks = [block.register_forward_pre_hook(lambda _, given: seen.append(given[0])) for block in network.blocks]
    hooks.append(network.norm.register_forward_hook(lambda _, __, made: seen.append(made.view(*ids.shape, -1))))
    answers(model, ids, attend)
    for hook in hooks:
        hook.remove()
    return torch.stack(seen)


def padded(model: Model, values: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Logits at the real positions of rows padded on the left: ours as one ragged batch, and the recorded ones."""
    real = values["padded_attention_mask"].bool()
    lengths, width = real.sum(1), real.shape[1]
    ids = torch.zeros_like(values["padded_input_ids"])
    pos = torch.full_like(ids, -1)
    for row, length in enumerate(lengths.tolist()):
        ids[row, :length] = values["padded_input_ids"][row, width - length :]
        pos[row, :length] = torch.arange(length)
        if "padded_position_ids" in values:
            pos[row, :length] = values["padded_position_ids"][row, width - length :]
    want = torch.where(pos >= 0, pos + model.spec.shift, -1)
    with torch.inference_mode():
        found = model.network(Forward(x=ids, pos=pos, want=want, attend=model.spec.attend))
    return found, values["padded_logits"][real]


@dataclass(frozen=True)
class Written:
    """Texts in the making, by our own loop."""

    texts: list[list[int]]  # prompts and what was written after them
    states: Tensor  # [turns + 1, B, L] ids before every turn, masks where nothing is written yet, and at the end
    passes: int


def write(
    network: Network,
    spec: Spec,
    sampler: Sampler,
    prompts: Sequence[Sequence[int]],
    count: int,
    policy: CachePolicy | None = None,
) -> Written:
    """Prompts with ``count`` more ids each, none of which ends a text."""
    spec = replace(spec, eos_id=-1)
    rows = [[*prompt, *[None] * count] for prompt in prompts]
    canvas = make_canvas(rows, [len(p) for p in prompts], spec, seeds=list(range(len(rows))))
    states = [canvas.ids.clone()]
    for _ in Loop({"main": network}, Method(sampler, policy), spec).run(canvas):
        states.append(canvas.ids.clone())
    texts = [canvas.ids[row, : len(full)].tolist() for row, full in enumerate(rows)]
    return Written(texts, torch.stack(states), int(canvas.nfe.max()))


@dataclass(frozen=True)
class Guided:
    """Classifier-free guidance as LLaDA has it: u + (scale + 1)(c - u), u without the prompt's tokens."""

    network: Network
    prompt: int
    mask_id: int
    scale: float

    def __call__(self, ask: Forward, store: Any = None) -> Tensor:
        hidden = ask.x.clone()
        hidden[:, : self.prompt] = self.mask_id
        without = self.network(replace(ask, x=hidden))
        return without + (self.scale + 1) * (self.network(ask) - without)


@dataclass(frozen=True)
class Truncated:
    """A network of which only the ``count`` likeliest tokens are heard, so that confidences are relative to these."""

    network: Any
    count: int

    def __call__(self, ask: Forward, store: Any = None) -> Tensor:
        logits: Tensor = self.network(ask, store)
        rows = len(logits)
        return truncate(logits, torch.full((rows,), self.count), torch.ones(rows))

    def store(self, seats: int, cells: int) -> Any:
        return self.network.store(seats, cells)


@dataclass(frozen=True)
class Replayed(Ancestral):
    """``Ancestral`` with uniform numbers that a reference drew, ``table`` [turns, B, L]."""

    table: Any = None

    def draws(self, canvas: Canvas, turn: Tensor) -> Tensor:
        recorded: Tensor = self.table[turn.clamp(max=len(self.table) - 1), torch.arange(len(turn))]
        return recorded


def masked_nll(spec: Spec, output: Tensor, noisy: Tensor, clean: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Through our objective: each row's weighted nats at its masks. ``output`` [B, L, V] as ``logits`` gives it,
    ``weight`` [B] of a masked token -> [B], and tokens of cross-entropy [B, L] (0 where nothing is masked)."""
    hidden = noisy == spec.mask_id
    batch = Batch(clean, torch.ones_like(hidden), torch.ones_like(hidden), None, torch.ones(len(clean)))
    prepared = Masked().request(batch, replace(spec, length_head=False), hidden, weight, weight)
    if not torch.equal(prepared.ask.x, noisy):
        raise AssertionError("the recorded noisy text masks what is not the mask")
    row, column = hidden.nonzero(as_tuple=True)
    flat = output[row, column - spec.shift]
    nats = Masked().loss(flat.clone(), prepared).nats
    each = torch.zeros(clean.shape)
    forbidden = torch.tensor([*spec.forbidden, spec.mask_id])
    log_p = flat.float().index_fill(1, forbidden, -torch.inf).log_softmax(-1)
    each[row, column] = -log_p.gather(1, clean[row, column][:, None])[:, 0]
    return nats, each


def singles(ids: Tensor) -> Batch:
    """Every token as a row of its own, so that nats come token by token."""
    column = ids.reshape(-1, 1)
    ones = torch.ones_like(column, dtype=torch.bool)
    return Batch(column, ones, ones, None, column[:, 0])


def spread(row_values: Tensor, ids: Tensor) -> Tensor:
    """A value of each text [B], repeated for its tokens: [B L] float64."""
    return row_values.reshape(-1, 1).expand(ids.shape).reshape(-1).double()


def race(p: Tensor, uniform: Tensor) -> Tensor:
    """A draw as the public code makes it: the largest of p / exponential noise."""
    return (p / (1e-10 - (uniform + 1e-10).log())).argmax(-1)


def schedules(reference: Reference, values: Mapping[str, Tensor], ours: Mapping[str, Schedule]) -> Iterator[Check]:
    """alpha and its slope, from the recorded sigma = -log alpha (``total``) and -alpha'/alpha (``rate``).

    At t = 1, where alpha is 1e-3, single precision leaves sigma and the quotient no five digits; alpha has them.
    """
    t = values["t"].double()
    for name, schedule in ours.items():
        alpha = (-values[f"{name}.total"].double()).exp()
        yield reference.close(f"schedule, {name}", schedule.alpha(t), alpha, 1e-5, 3e-7)
        slope = values[f"{name}.rate"].double() * alpha
        yield reference.close(f"slope of schedule, {name}", -schedule.dalpha(t), slope, 1e-5, 3e-7)


def score_entropy(spec: Spec, f: Tensor, clean: Tensor, noisy: Tensor, rate: Tensor) -> Tensor:
    """Our score entropy of every token [B, L] under masks: logits ``f`` [B, L, V], ``rate`` [B] of a masked token."""
    rows, weight = singles(clean), spread(rate, clean)
    at = noisy == spec.mask_id
    asked = Masked().request(rows, spec, at.reshape(-1, 1), weight, torch.zeros_like(weight))
    return Score().loss(f[at].float(), Score().counted(asked, spec)).nats.view(clean.shape)


def uniform_score_entropy(
    spec: Spec, log_score: Tensor, clean: Tensor, noisy: Tensor, sigma: Tensor, rate: Tensor
) -> Tensor:
    """The same under uniform noise, of log-scores [B, L, V] over a vocabulary without a mask."""
    size = log_score.shape[-1]
    spec = replace(spec, vocab_size=size + 1, mask_id=size)  # a mask beyond the vocabulary, which no text holds
    rows, alpha = singles(clean), torch.exp(-spread(sigma, clean))
    asked = Uniform().request(
        rows, spec, rows.target, noisy.reshape(-1, 1), torch.zeros_like(alpha), alpha, spread(rate, clean)
    )
    logits = torch.cat([log_score.reshape(-1, size), torch.zeros(clean.numel(), 1)], 1)
    return Score().loss(logits, Score().counted(asked, spec)).nats.view(clean.shape)
