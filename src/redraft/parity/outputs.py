"""Computing redraft's outputs for the inputs of a reference: logits, generated ids, losses."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from redraft.canvas import make_canvas
from redraft.generation.loop import CachePolicy, Loop, Method
from redraft.model import Model
from redraft.objectives.masked import Masked
from redraft.objectives.score import Score
from redraft.objectives.uniform import Uniform
from redraft.parity.reference import Check, Reference
from redraft.samplers.ancestral import Ancestral
from redraft.samplers.base import Sampler
from redraft.types import AttentionPattern, Batch, Canvas, Forward, Network, Sampling, Schedule, Spec


def logits(network: Network, ids: Tensor, attend: AttentionPattern, shift: int, t: Tensor | None = None) -> Tensor:
    """Logits [B, L, V] at every position of ids [B, L], as the reference gives them (without shift), at time [B]."""
    pos = torch.arange(ids.shape[1]).expand(ids.shape)
    with torch.inference_mode():
        flat = network(Forward(tokens=ids, positions=pos, targets=pos + shift, attention=attend, time=t))
    return flat.view(*ids.shape, -1)


def model_logits(model: Model, ids: Tensor, attend: AttentionPattern | None = None, t: Tensor | None = None) -> Tensor:
    """Logits [B, L, V] of a model at every position of ids [B, L], at time [B]; default attention: the model's."""
    return logits(model.network, ids, attend or model.spec.network.attention, model.spec.network.shift, t)


def hidden_states(model: Model, ids: Tensor, attend: AttentionPattern | None = None) -> Tensor:
    """The input of every layer and the output of the last norm, [layers + 1, B, L, D], for ids [B, L]."""
    network: Any = model.network
    seen: list[Tensor] = []
    hooks = [block.register_forward_pre_hook(lambda _, given: seen.append(given[0])) for block in network.blocks]
    hooks.append(network.norm.register_forward_hook(lambda _, __, made: seen.append(made.view(*ids.shape, -1))))
    model_logits(model, ids, attend)
    for hook in hooks:
        hook.remove()
    return torch.stack(seen)


def ragged_logits(model: Model, values: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Logits [N, V] at the N positions of left-padded rows that are no padding: computed as one ragged batch, and
    recorded."""
    real = values["padded_attention_mask"].bool()
    lengths, width = real.sum(1), real.shape[1]
    ids = torch.zeros_like(values["padded_input_ids"])
    pos = torch.full_like(ids, -1)
    for row, length in enumerate(lengths.tolist()):
        ids[row, :length] = values["padded_input_ids"][row, width - length :]
        pos[row, :length] = torch.arange(length)
        if "padded_position_ids" in values:
            pos[row, :length] = values["padded_position_ids"][row, width - length :]
    want = torch.where(pos >= 0, pos + model.spec.network.shift, -1)
    with torch.inference_mode():
        found = model.network(Forward(tokens=ids, positions=pos, targets=want, attention=model.spec.network.attention))
    return found, values["padded_logits"][real]


@dataclass(frozen=True)
class Generated:
    """The result of ``generate``."""

    texts: list[list[int]]  # ids of prompts and model_logits
    states: Tensor  # [steps + 1, B, L] ids before every step, and at the end; masks at open positions
    passes: int  # forward passes


def generate(
    network: Network,
    spec: Spec,
    sampler: Sampler,
    prompts: Sequence[Sequence[int]],
    count: int,
    policy: CachePolicy | None = None,
    end: int = -1,
) -> Generated:
    """Generate ``count`` ids after each prompt, or up to the id ``end``; with -1, no id ends a text."""
    spec = spec.with_tokens(eos_id=end, stop_ids=())
    rows = [[*prompt, *[None] * count] for prompt in prompts]
    canvas = make_canvas(rows, [len(p) for p in prompts], spec, seeds=list(range(len(rows))))
    states = [canvas.ids.clone()]
    for _ in Loop({"main": network}, Method(sampler, policy), spec).run(canvas):
        states.append(canvas.ids.clone())
    texts = [canvas.ids[row, : len(full)].tolist() for row, full in enumerate(rows)]
    return Generated(texts, torch.stack(states), int(canvas.nfe.max()))


@dataclass(frozen=True)
class Guided:
    """Classifier-free guidance as in LLaDA: u + (scale + 1)(c - u), with u from a masked prompt."""

    network: Network
    prompt: int
    mask_id: int
    scale: float

    def __call__(self, request: Forward, store: Any = None) -> Tensor:
        masked = request.tokens.clone()
        masked[:, : self.prompt] = self.mask_id
        unconditional = self.network(replace(request, tokens=masked))
        return unconditional + (self.scale + 1) * (self.network(request) - unconditional)


@dataclass(frozen=True)
class Truncated:
    """A network whose logits are truncated to the ``count`` likeliest tokens, so that confidences refer to these."""

    network: Any
    count: int

    def __call__(self, request: Forward, store: Any = None) -> Tensor:
        logits: Tensor = self.network(request, store)
        return Sampling.of(len(logits), top_k=self.count).truncate(logits)

    def store(self, seats: int, cells: int) -> Any:
        """The key-value cache of the network."""
        return self.network.store(seats, cells)


@dataclass(frozen=True)
class Replayed(Ancestral):
    """``Ancestral`` with the uniform numbers of a reference, ``table`` [steps, B, L]."""

    table: Any = None

    def uniforms(self, canvas: Canvas, rows: Tensor, grid_step: Tensor, columns: Tensor) -> Tensor:
        """The recorded numbers [S, N] of ``columns`` [N] in ``rows`` [S] at the steps [S]."""
        recorded: Tensor = self.table[grid_step.clamp(max=len(self.table) - 1), rows][:, columns]
        return recorded


def masked_nll(spec: Spec, output: Tensor, noisy: Tensor, clean: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Weighted negative log-likelihood at masks, computed by redraft's objective.

    Args:
        output: logits [B, L, V] as ``logits`` gives them. noisy, clean: [B, L] ids. weight: [B] of a masked token.
    Returns:
        Nats of each row [B], and the cross-entropy of each token [B, L] (0 where it is not masked).
    """
    hidden = noisy == spec.tokens.mask_id
    batch = Batch(clean, torch.ones_like(hidden), torch.ones_like(hidden), None, torch.ones(len(clean)))
    prepared = Masked().request(batch, spec.with_network(length_head=False), hidden, weight, weight)
    if not torch.equal(prepared.request.tokens, noisy):
        raise AssertionError("the recorded noisy text differs from the clean text outside its masks")
    row, column = hidden.nonzero(as_tuple=True)
    flat = output[row, column - spec.network.shift]
    nats = Masked().loss(flat.clone(), prepared).nats
    each = torch.zeros(clean.shape)
    forbidden = torch.tensor([*spec.tokens.forbidden, spec.tokens.mask_id])
    log_p = flat.float().index_fill(1, forbidden, -torch.inf).log_softmax(-1)
    each[row, column] = -log_p.gather(1, clean[row, column][:, None])[:, 0]
    return nats, each


def single_token_rows(ids: Tensor) -> Batch:
    """A batch in which every token of ids [B, L] is a row, so that each has its own loss."""
    column = ids.reshape(-1, 1)
    ones = torch.ones_like(column, dtype=torch.bool)
    return Batch(column, ones, ones, None, column[:, 0])


def per_token(row_values: Tensor, ids: Tensor) -> Tensor:
    """A value of each row [B], repeated for the tokens of ids [B, L]: [B L] float64."""
    return row_values.reshape(-1, 1).expand(ids.shape).reshape(-1).double()


def exponential_race(p: Tensor, uniform: Tensor) -> Tensor:
    """Sample from p [..., V] as the public code does: the largest of p / exponential noise, from uniforms [..., V]."""
    return (p / (1e-10 - (uniform + 1e-10).log())).argmax(-1)


def schedules(reference: Reference, values: Mapping[str, Tensor], ours: Mapping[str, Schedule]) -> Iterator[Check]:
    """alpha and its derivative, from recorded sigma = -log alpha [N] (``total``) and -alpha'/alpha [N] (``rate``).

    alpha is compared instead of sigma: at t = 1, where alpha is 1e-3, sigma in single precision lacks five digits.
    """
    t = values["t"].double()
    for name, schedule in ours.items():
        alpha = (-values[f"{name}.total"].double()).exp()
        yield reference.close(f"schedule, {name}", schedule.alpha(t), alpha, 1e-5, 3e-7)
        slope = values[f"{name}.rate"].double() * alpha
        yield reference.close(f"slope of schedule, {name}", -schedule.dalpha(t), slope, 1e-5, 3e-7)


def score_entropy(spec: Spec, f: Tensor, clean: Tensor, noisy: Tensor, rate: Tensor) -> Tensor:
    """redraft's score entropy of every token [B, L] with masks: logits ``f`` [B, L, V], ``rate`` [B] of a masked
    token."""
    rows, weight = single_token_rows(clean), per_token(rate, clean)
    at = noisy == spec.tokens.mask_id
    asked = Masked().request(rows, spec, at.reshape(-1, 1), weight, torch.zeros_like(weight))
    return Score().loss(f[at].float(), Score().rated(asked, spec)).nats.view(clean.shape)


def uniform_score_entropy(
    spec: Spec, log_score: Tensor, clean: Tensor, noisy: Tensor, sigma: Tensor, rate: Tensor
) -> Tensor:
    """The same with uniform noise, from log-scores [B, L, V] over a vocabulary without a mask."""
    size = log_score.shape[-1]
    spec = spec.with_tokens(vocab_size=size + 1, mask_id=size)  # a mask outside the vocabulary, which no text holds
    rows, alpha = single_token_rows(clean), torch.exp(-per_token(sigma, clean))
    asked = Uniform().request(
        rows, spec, rows.target, noisy.reshape(-1, 1), torch.zeros_like(alpha), alpha, per_token(rate, clean)
    )
    logits = torch.cat([log_score.reshape(-1, size), torch.zeros(clean.numel(), 1)], 1)
    rated = replace(asked, weight=torch.where(asked.is_length, asked.weight, 1.0))
    return Score().loss(logits, rated).nats.view(clean.shape)
