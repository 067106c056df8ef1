"""Block diffusion against values recorded from the public code of BD3-LM: masks, passes, losses, sampling.

The recorded files are optional (see ``tests.tiny.golden``); tolerances are those their makers state.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from redraft.canvas import make_canvas
from redraft.models.parts import streams
from redraft.models.parts.attention import see
from redraft.models.parts.positions import rotary_table, rotate
from redraft.noise.absorbing import Absorbing
from redraft.objectives.block import Block
from redraft.samplers._blockwise import Blockwise
from redraft.samplers.confidence import Confidence
from redraft.samplers.first_hitting import FirstHitting
from redraft.types import SEALED, Attend, Batch, Clean, Forward, Spec
from tests.tiny import family, golden

VOCAB, MASK, BLOCK, HEADS = 257, 256, 4, 3


def block_spec(block: int = BLOCK) -> Spec:
    spec, _ = family("block", conditional=False, block=block)
    return replace(spec, vocab_size=VOCAB, mask_id=MASK, forbidden=(MASK,))


def two_streams(noisy: Tensor, clean: Tensor, block: int = BLOCK) -> Forward:
    pos = torch.arange(noisy.shape[1]).expand(noisy.shape)
    attend = Attend("block", block)
    return Forward(noisy, pos, pos, attend, clean=Clean(clean, pos, attend))


@dataclass
class Reference:
    """The recorded checkpoint's network (a DiT at sigma 0) behind our requests: what sees what is ours to say."""

    weights: dict[str, Tensor]

    def __call__(self, ask: Forward, store: object = None) -> Tensor:
        """Logits [N, V] at the wanted positions."""
        w, tokens = self.weights, ask.streams[0]
        x = w["vocab_embed.embedding"][tokens]
        c = torch.cat([torch.ones(1, 128), torch.zeros(1, 128)], 1)  # cosines and sines of 0
        c = F.silu(self._linear("sigma_map.mlp.2", F.silu(self._linear("sigma_map.mlp.0", c))))
        sight = see(ask, rotary_table(64, x.shape[2] // HEADS, 10_000.0), None, restart=False)
        for layer in range(2):
            name = f"blocks.{layer}"
            part = self._linear(f"{name}.adaLN_modulation", c)[:, None].chunk(6, 2)
            y = self._norm(f"{name}.norm1", x) * (1 + part[1]) + part[0]
            qkv = self._linear(f"{name}.attn_qkv", y).unflatten(2, (3, HEADS, -1))
            q, k = (rotate(qkv[:, :, i], sight.table) for i in (0, 1))
            q, k, v = (t.transpose(1, 2) for t in (q, k, qkv[:, :, 2]))
            mixed = F.scaled_dot_product_attention(q, k, v, sight.mask).transpose(1, 2).flatten(2)
            x = x + part[2] * self._linear(f"{name}.attn_out", mixed)
            y = self._norm(f"{name}.norm2", x) * (1 + part[4]) + part[3]
            y = F.gelu(self._linear(f"{name}.mlp.0", y), approximate="tanh")
            x = x + part[5] * self._linear(f"{name}.mlp.2", y)
        shift, scale = self._linear("output_layer.adaLN_modulation", c)[:, None].chunk(2, 2)
        y = self._norm("output_layer.norm_final", x) * (1 + scale) + shift
        row, column = (ask.want >= 0).nonzero(as_tuple=True)
        return self._linear("output_layer.linear", y)[row, ask.want[row, column]]  # positions are columns here

    def _linear(self, name: str, x: Tensor) -> Tensor:
        return F.linear(x, self.weights[f"{name}.weight"], self.weights.get(f"{name}.bias"))

    def _norm(self, name: str, x: Tensor) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], self.weights[f"{name}.weight"])


@pytest.fixture(scope="module")
def reference() -> Reference:
    found = golden("bd3lm", "checkpoint", "model.safetensors")
    return Reference({name.removeprefix("backbone."): tensor for name, tensor in found.items()})


@pytest.mark.parametrize("name", ["L8_B1", "L8_B2", "L8_B4", "L8_B8", "L16_B4", "L12_B3"])
def test_masks(name: str) -> None:
    length, block = (int(part[1:]) for part in name.split("_"))
    ids = torch.zeros(1, length, dtype=torch.int64)
    expected = golden("bd3lm", "goldens", "masks.safetensors")[name].bool()
    assert torch.equal(streams.dense(two_streams(ids, ids, block))[0, 0], expected)


def test_the_training_pass(reference: Reference) -> None:
    values = golden("bd3lm", "goldens", "model.safetensors")
    logits = reference(two_streams(values["xt"], values["x0"])).view_as(values["logits"])
    torch.testing.assert_close(logits, values["logits"], rtol=1e-4, atol=1e-4)


def test_the_sampling_pass(reference: Reference) -> None:
    """Context and current block in one stream, block-causal."""
    values = golden("bd3lm", "goldens", "model.safetensors")
    x = values["sample_x"]
    pos = torch.arange(x.shape[1]).expand(x.shape)
    logits = reference(Forward(x, pos, pos, Attend("block", BLOCK))).view_as(values["sample_logits"])
    torch.testing.assert_close(logits, values["sample_logits"], rtol=1e-4, atol=1e-4)


def test_losses() -> None:
    """The bound of every token for given masks and times, with weight 1/t, and their mean over positions 1 and on."""
    values = golden("bd3lm", "goldens", "model.safetensors")
    x0, xt, t = values["x0"], values["xt"], values["t"]
    hidden, target = xt == MASK, torch.ones_like(xt, dtype=torch.bool)
    target[:, 0] = False
    torch.testing.assert_close(-1 / t, values["loss_scale"], rtol=1e-5, atol=0)
    rows = Batch(x0, target, torch.ones_like(target), None, target.sum(1))
    objective = Block()
    prepared = objective.request(rows, block_spec(), hidden, 1 / t, int(target.sum()))
    assert torch.equal(prepared.ask.x, xt) and torch.equal(prepared.ask.want >= 0, hidden)
    assert prepared.ask.clean is not None
    assert torch.equal(prepared.ask.clean.x, x0[:, :-BLOCK]), "the last block is looked back on by none"
    found = objective.loss(values["logits"][hidden].clone(), prepared)
    torch.testing.assert_close(found.nats, values["nelbo_tokens"].sum(1), rtol=2e-4, atol=1e-4)
    torch.testing.assert_close(found.loss, values["nelbo_mean"].squeeze(), rtol=2e-4, atol=1e-4)


def test_leaving_out_the_last_clean_block_changes_nothing(reference: Reference) -> None:
    values = golden("bd3lm", "goldens", "model.safetensors")
    x0, xt = values["x0"], values["xt"]
    rows = Batch(x0, torch.ones_like(x0).bool(), torch.ones_like(x0).bool(), None, torch.zeros(3))
    prepared = Block().request(rows, block_spec(), xt == MASK, 1 / values["t"], x0.numel())
    torch.testing.assert_close(reference(prepared.ask), values["logits"][xt == MASK], rtol=1e-4, atol=1e-4)


def gumbel(p: Tensor, uniform: Tensor) -> Tensor:
    """Their draw: the largest of p / Exponential(1)."""
    return (p.double() / (1e-10 - (uniform + 1e-10).log())).argmax(-1)


def asked(reference: Reference, state: Tensor, sampler: Any) -> tuple[Forward, Tensor]:
    """What a block sampler asks about a recorded state (-1: not begun), and the distributions [W, V] it gets."""
    spec = block_spec()
    row: list[int | None] = [None if token in (-1, MASK) else token for token in state.tolist()]
    canvas = make_canvas([row], [1], spec, seeds=[0])
    canvas.status[0, 1:][canvas.ids[0, 1:] != MASK] = SEALED
    method = Blockwise(sampler)
    (ask,) = method.plan(canvas, method.start(canvas, spec), spec)
    logits = reference(ask)
    logits[:, MASK] = -torch.inf
    return ask, logits.softmax(-1)


def states(values: dict[str, Tensor], name: str) -> list[tuple[Tensor, Tensor]]:
    """(before, after) of every update; a new block begins as masks."""
    after = list(values[f"{name}.states"])
    first = torch.full_like(after[0], -1)
    first[0] = 255
    return list(zip([first, *after[:-1]], after, strict=True))


def test_first_hitting_run(reference: Reference) -> None:
    """Every update of the recorded run: one masked position of the block at work, and the token that the recorded noise
    draws from the distribution which our request gets."""
    values = golden("bd3lm", "goldens", "sampler_run.safetensors")
    for number, (before, after) in enumerate(states(values, "first_hitting")):
        ask, _ = asked(reference, before, FirstHitting())
        block = ((after != -1).nonzero().max() // BLOCK).item()
        masked = [p for p in range(block * BLOCK, block * BLOCK + BLOCK) if before[p] in (-1, MASK)]
        assert int(ask.want[0, 0]) in masked and int(ask.pos.max()) == block * BLOCK + BLOCK - 1
        place = masked[int(values["first_hitting.index_draw"][number])]
        _, p = asked(reference, before, Confidence(steps=4))  # asks for all of the block
        token = gumbel(p[masked.index(place)], values[f"first_hitting.draws.{number:02}"][0, place - block * BLOCK])
        changed = before.clone()
        changed[masked] = MASK
        changed[place] = token
        assert torch.equal(changed, after)


def test_ancestral_run(reference: Reference) -> None:
    """Theirs is our reverse step: q(x_s | x_t) with the network's distribution for x_0."""
    values = golden("bd3lm", "goldens", "sampler_run.safetensors")
    spec = block_spec()
    dt = 1 / 30
    for number, (before, after) in enumerate(states(values, "ddpm")):
        block = int((after != -1).nonzero().max()) // BLOCK
        own = slice(block * BLOCK, block * BLOCK + BLOCK)
        now = torch.where(before[own] == -1, MASK, before[own])
        ask, p = asked(reference, before, Confidence(steps=4))
        assert ask.want[0].tolist() == [block * BLOCK + i for i in range(BLOCK) if now[i] == MASK]
        t = values["ddpm.t"][number]
        a_s, a_t = (1 - (t - dt)).clamp(max=1), 1 - t
        clean = F.one_hot(now, VOCAB).double()
        clean[now == MASK] = p.double()
        q = Absorbing().posterior(now, clean, a_s, a_t, spec)
        drawn = gumbel(q, values[f"ddpm.draws.{number:02}"][0])
        assert torch.equal(torch.where(now == MASK, drawn, now), after[own]), number
