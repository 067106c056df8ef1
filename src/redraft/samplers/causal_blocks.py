"""Causal blocks: fill a block of masks after causal text by a threshold of confidence, then the next."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from redraft.canvas import extent, joined
from redraft.errors import UserError
from redraft.limits import MAX_POSITIONS
from redraft.options import setting
from redraft.samplers.base import Draws, Sampler
from redraft.samplers.shared import common
from redraft.types import FREE, Canvas, DraftQuery, Drawing, NoiseStream, Output, Request, Spec, Step


@dataclass(frozen=True)
class CausalBlocks(Sampler):
    """The decoding of Nemotron-Labs-Diffusion, for models that read text causally and draft blocks (family hybrid).

    Blocks of ``block`` positions are counted from the end of the prompt. The first token of a block is that of the
    autoregressive model: a causal pass over the block before gives it, whose keys and values are kept. The other
    positions are masks that see the text before and the whole block. All with p(x) > ``threshold`` are written, and
    always the most confident one. In contrast to ``draft_verify``, nothing is verified.
    """

    block: int = setting(8, "Positions of a block.", least=1, most=MAX_POSITIONS, unit="positions")
    threshold: float = setting(0.9, "Confidence above which a position is written.", above=0, most=1)

    tries = {"threshold": (0.5, 0.7, 0.9), "block": (8, 16, 32)}

    def start(self, canvas: Canvas, spec: Spec) -> None:
        check_drafts(spec)

    def plan(self, canvas: Canvas, state: None, spec: Spec) -> list[Request]:
        free = common.free_in_block(canvas, 0, spec)
        columns = torch.arange(free.shape[1])
        first = torch.where(free, columns, len(columns)).amin(1)
        begin = canvas.prompt + (first - canvas.prompt).div(self.block, rounding_mode="floor") * self.block
        live, leads = free.any(1), (first == begin) & (first > 0)
        found = []
        if bool((live & leads).any()):
            found.append(next_token(canvas, spec, (live & leads).nonzero()[:, 0], first))
        if bool((live & ~leads).any()):
            wanted = free & (columns < begin[:, None] + self.block)
            found.append(draft(canvas, spec, (live & ~leads).nonzero()[:, 0], begin, begin + self.block, wanted))
        return found

    def apply(
        self, canvas: Canvas, state: None, spec: Spec, requests: list[Request], outputs: list[Output]
    ) -> tuple[None, Step]:
        steps = []
        for request, out in zip(requests, outputs, strict=True):
            best = common.best(out.conf, torch.ones_like(request.rows))
            steps.append(common.write(request, out, (out.conf > math.log(self.threshold)) | best))
        return None, joined(steps)


def check_drafts(spec: Spec) -> None:
    """Raises UserError if the model does not draft blocks after causal text in its own network."""
    drafter = spec.family.drafter
    own = drafter is not None and drafter.network.name == spec.network.name and not drafter.network.reads_target
    if drafter is None or not own or drafter.network.attention.kind != "causal":
        raise UserError(
            "This sampler needs a diffusion model that drafts blocks in the network that reads text causally.",
            "Use a model of family hybrid.",
        )
    common.check_masks(drafter)


def next_token(canvas: Canvas, spec: Spec, rows: Tensor, first: Tensor) -> Request:
    """Request the autoregressive model's token at position ``first`` [B] of ``rows`` [R], by a pass that ends there."""
    at = first[rows]
    columns = torch.arange(int(at.max()))
    return Request(
        tokens=canvas.ids[rows, : len(columns)],
        positions=torch.where(columns < at[:, None], columns, -1),
        targets=at[:, None],
        attention=spec.network.attention,
        prompt=canvas.prompt[rows] if spec.network.prompt_encoder else None,
        network=spec.network.name,
        drawing=Drawing(rows, torch.zeros_like(rows)),  # the same keys as in ``Autoregressive``
    )


def draft(
    canvas: Canvas,
    spec: Spec,
    rows: Tensor,
    begin: Tensor,
    end: Tensor,
    wanted: Tensor,
    draws: Draws | None = None,
) -> Request:
    """Request the drafter's tokens at the positions in ``wanted`` [B, L] of ``rows`` [R]. Free ones hold noise.

    The positions from ``begin`` to ``end`` [B] see all of each other, and the text before them, which is causal.
    With ``draws``, the samples have the keys of an autoregressive model, so that equal distributions give equal tokens.
    """
    assert spec.family.drafter is not None
    network, process = spec.family.drafter.network, spec.family.drafter.family.process
    used = extent(canvas)[rows]
    stop = torch.minimum(end[rows], used)
    columns = torch.arange(int(stop.max()))
    seed = canvas.seed[rows]
    assert process is not None
    key = torch.full_like(seed, NoiseStream.INITIAL_TOKENS)
    noise = process.sample(seed, key, columns.expand(len(rows), -1), spec.family.drafter)
    return Request(
        tokens=torch.where(canvas.status[rows, : len(columns)] == FREE, noise, canvas.ids[rows, : len(columns)]),
        positions=torch.where(columns < stop[:, None], columns, -1),
        targets=common.marked_positions(wanted[rows]),
        attention=network.attention,
        prompt=canvas.prompt[rows] if network.prompt_encoder else None,
        network=network.name,
        drawing=Drawing(rows, None if draws is None else torch.zeros_like(rows), gumbel=draws == "gumbel"),
        extra=(DraftQuery(network.shift, begin[rows]),),
    )
