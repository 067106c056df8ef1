"""Split a request into the input of an encoder (its prompts) and the request of the decoder."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from redraft.types import AttentionPattern, Forward, QueryMask


@dataclass(frozen=True)
class EncoderInput:
    """The part of a request that the encoder reads."""

    request: Forward
    rows: Tensor | None  # [R] bool: with a store, the rows that have any such positions; None: all rows are included
    visible: Tensor  # [R, Q, P] bool: the decoder's query attends to the prompt position, by a QueryMask; else empty


def split_request(request: Forward, stored: bool) -> tuple[Tensor | None, EncoderInput | None, Forward]:
    """Split a request into encoder input and decoder request; in both, positions keep their order, padding is last.

    Returns:
        [R] the first position of each row's decoder (None: there are no prompts); the encoder input (None: the request
        runs no prompt positions); the decoder's request.
    """
    if request.prompt is None:
        return None, None, request
    begin = request.prompt - 1
    inside = (request.positions >= 0) & (request.positions < begin[:, None])
    if not bool(inside.any()):
        return begin, None, request
    encoder, decoder = _columns(inside), _columns((request.positions >= 0) & ~inside)
    answer = replace(request, tokens=request.tokens.gather(1, decoder[0]), positions=_positions(request, *decoder))
    visible, queries = inside[:, :0, None], request.find(QueryMask)
    if queries is not None:
        ids = None
        if queries.query_ids is not None:
            ids = torch.where(decoder[1], queries.query_ids.gather(1, decoder[0]), -1)
        mask = queries.mask.gather(1, decoder[0][:, :, None].expand(-1, -1, queries.mask.shape[2]))
        visible = mask.gather(2, encoder[0][:, None].expand(-1, mask.shape[1], -1)) & encoder[1][:, None]
        own = mask.gather(2, decoder[0][:, None].expand(-1, mask.shape[1], -1)) & decoder[1][:, None]
        answer = answer.with_extra(
            QueryMask(own | ~decoder[1][:, :, None], ids)
        )  # padding attends to something: no NaN
    source = Forward(
        tokens=request.tokens.gather(1, encoder[0]),
        positions=_positions(request, *encoder),
        targets=request.targets[:, :0],
        attention=AttentionPattern("full"),
    )
    has_prompt = inside.any(1) if stored else None
    if has_prompt is not None:
        source = replace(source, tokens=source.tokens[has_prompt], positions=source.positions[has_prompt])
    return begin, EncoderInput(source, has_prompt, visible), answer


def _columns(keep: Tensor) -> tuple[Tensor, Tensor]:
    """The columns marked in ``keep`` [R, Q], at the front of each row, and which of them are real: [R, K] each."""
    count = keep.sum(1)
    width = max(1, int(count.max()))
    order = torch.sort((~keep).to(torch.int8), dim=1, stable=True).indices[:, :width]
    return order, torch.arange(width, device=keep.device) < count[:, None]


def _positions(request: Forward, columns: Tensor, real: Tensor) -> Tensor:
    return torch.where(real, request.positions.gather(1, columns), -1)


def check_targets(request: Forward, shift: int) -> None:
    """Check that no target position is within a prompt, which the decoder doesn't run.

    Raises:
        ValueError: a target position [R, W] is within a prompt.
    """
    if request.prompt is None or request.targets.device.type != "cpu":  # on other devices the check would synchronise
        return
    moved = request.shift(shift)
    if bool(((request.targets >= 0) & (request.target_positions - moved < request.prompt[:, None] - 1)).any()):
        raise ValueError("This network can't predict positions within a prompt.")
