"""Draft and verify: diffusion drafts several tokens in one pass, the autoregressive model verifies them in another."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from redraft.canvas import joined
from redraft.errors import UserError
from redraft.limits import MAX_POSITIONS
from redraft.options import setting
from redraft.samplers.base import Draws, Sampler, draws_option
from redraft.samplers.shared import common
from redraft.samplers.shared.common import length_request
from redraft.types import DRAFT, FREE, SEALED, Canvas, DraftQuery, Drawing, Output, Request, Spec, Step


@dataclass(frozen=True)
class DraftVerifyState:
    """The answer lengths that the drafter has predicted."""

    length: Tensor  # [B] tokens, end-of-text included; 0: not predicted yet. Only for drafters with a length head


@dataclass(frozen=True)
class DraftVerify(Sampler):
    """Speculative decoding (Leviathan et al. 2023, arXiv:2211.17192) with a parallel drafter (DiffuSpec, Li et al.
    2025, arXiv:2510.02358; TiDAR, Liu et al. 2025, arXiv:2511.08923).

    The drafter fills ``block`` masks after the text in one pass. One causal pass over the drafts gives the
    autoregressive model's token at each position. The longest prefix of drafts equal to these tokens is kept, and the
    first unequal draft is replaced. So two passes generate at least one token and at most ``block`` + 1.

    The result equals autoregressive generation with the same ``draws``, token for token, at any temperature, so it has
    the model's distribution with any drafter: a token is sampled from random numbers keyed by (seed, position), and
    drafts are only compared with it. Drafts are sampled from the same numbers, so they agree more often the closer the
    two distributions are. (Rounding may break ties differently, because a pass over several positions sums in another
    order than a pass over one.) With ``draws`` gumbel, the verifier's p and the drafter's q agree with probability
    sum_i 1 / sum_j max(p_j / p_i, q_j / q_i). At most sum min(p, q) is possible (Leviathan et al., theorem 3.5).
    Inverse CDF reaches between 0 and that, depending on the order of the vocabulary.

    The drafter is ``FamilyFacts.drafter``: another model (``Model.draft_with``, ``--drafter``), or the same network if
    it was trained for both (family ``hybrid``), or a few layers that read the autoregressive model's hidden states
    (family ``drafter``). The last kind drafts behind a token that the model has generated, and needs only these layers
    for it.
    """

    block: int = setting(8, "Number of tokens that are drafted at once.", least=1, most=MAX_POSITIONS, unit="tokens")

    draws: Draws = draws_option("gumbel")
    adaptive: bool = setting(
        True, "Draft fewer tokens, or none, where a server measures that this is faster. The text is the same."
    )

    exact = True
    retracts = True  # only drafts, never sealed tokens
    tries = {"block": (2, 4, 8, 16)}

    def start(self, canvas: Canvas, spec: Spec) -> DraftVerifyState:
        if spec.family.drafter is None:
            raise UserError(
                "This sampler needs a diffusion model that drafts for an autoregressive one.",
                "Name one with --drafter (Model.draft_with), or use a model of family hybrid.",
            )
        own = spec.family.drafter.network.name == spec.network.name
        if own and spec.family.drafter.family.process is not None:
            common.check_masks(spec.family.drafter)
        return DraftVerifyState(torch.zeros_like(canvas.step))

    def plan(self, canvas: Canvas, state: DraftVerifyState, spec: Spec) -> list[Request]:
        """Verify the drafts of rows that have some, and draft in the others. A single open position needs no draft."""
        assert spec.family.drafter is not None
        begin, run = frontier(canvas)
        drafts = canvas.status == DRAFT
        drafted = run_length(drafts, begin)  # a constraint may have dropped some of them
        live = run > 0
        most = torch.full_like(run, self.block)
        if self.adaptive:
            most = torch.where(canvas.draft_length >= 0, most.minimum(canvas.draft_length), most)
        verify = live & (drafts.any(1) | (run == 1) | (most == 0))
        if spec.family.drafter.network.reads_target:  # behind a token that the target has generated
            verify |= live & (begin <= canvas.prompt)
        requests = []
        if bool(verify.any()):
            requests.append(verification(canvas, spec, verify, begin, torch.minimum(drafted + 1, run), self.draws))
        draft = live & ~verify
        unknown = draft & (state.length == 0) if spec.family.drafter.network.length_head else torch.zeros_like(draft)
        if bool(unknown.any()):
            requests.append(_length_query(canvas, spec.family.drafter, unknown.nonzero()[:, 0]))
        elif bool(draft.any()):
            count = torch.minimum(run - 1, most)  # the verifier adds one token
            requests.append(self._draft(canvas, state, spec.family.drafter, draft, begin, count))
        return requests

    def _draft(
        self, canvas: Canvas, state: DraftVerifyState, drafter: Spec, live: Tensor, begin: Tensor, count: Tensor
    ) -> Request:
        """Request drafts at the ``count`` [B] positions from ``begin`` [B] on."""
        rows = live.nonzero()[:, 0]
        start = begin[rows]
        end = stop = start + count[rows]
        behind = start - 1 if drafter.network.reads_target else start
        columns = torch.arange(canvas.ids.shape[1])
        tokens, network, pattern = drafter.tokens, drafter.network, drafter.network.attention
        ids = canvas.ids[rows].masked_fill(columns >= start[:, None], tokens.mask_id)
        prompt = canvas.prompt[rows] if network.prompt_encoder else None
        if network.length_head:
            # The drafter was trained with a given end-of-text at the end of the answer. It is put at the predicted end,
            # or after the drafts if the answer is already longer.
            end = canvas.prompt[rows] + state.length[rows]
            end = torch.where(end > start + 1, end, stop + 1)
            stop = torch.minimum(stop, end - 1)
            ids[columns == end[:, None] - 1] = tokens.eos_id
        if pattern.kind == "block":  # the rest of the current block
            group = pattern.group(columns.expand_as(ids), prompt)
            end = (group <= group.gather(1, start[:, None])).sum(1)
            stop = torch.minimum(stop, end)
        answer = end - canvas.prompt[rows]
        width = int(end.max())
        return Request(
            tokens=ids[:, :width],
            positions=torch.where(columns < end[:, None], columns, -1)[:, :width],
            targets=common.marked_positions((columns >= start[:, None]) & (columns < stop[:, None])),
            attention=pattern,
            prompt=prompt,
            time=common.time_of_share(drafter, (end - start) / answer) if network.timed else None,
            network=network.name,
            # The same keys as for the verifier.
            drawing=Drawing(rows, torch.zeros_like(rows), gumbel=self.draws == "gumbel"),
            extra=(DraftQuery(network.shift, behind if pattern.kind == "causal" else None),),
        )

    def apply(
        self, canvas: Canvas, state: DraftVerifyState, spec: Spec, requests: list[Request], outputs: list[Output]
    ) -> tuple[DraftVerifyState, Step]:
        steps = []
        for request, out in zip(requests, outputs, strict=True):
            if request.predicts_length:
                state = _with_lengths(canvas, state, request, out)
            elif request.find(DraftQuery) is None:  # autoregressive predictions
                steps.append(verified(canvas, spec, request, out))
            else:
                steps.append(common.write(request, out, request.targets >= 0, DRAFT))
        return state, joined(steps)


def run_length(marked: Tensor, begin: Tensor) -> Tensor:
    """[B] number of consecutive ``marked`` [B, L] positions from ``begin`` [B] on."""
    columns = torch.arange(marked.shape[1] + 1)
    other = torch.cat([~marked, torch.ones_like(marked[:, :1])], 1) & (columns >= begin[:, None])
    return other.to(torch.int8).argmax(1) - begin


def frontier(canvas: Canvas) -> tuple[Tensor, Tensor]:
    """[B] the leftmost open position, and [B] the number of consecutive open positions there (0: none)."""
    closed = torch.cat([~canvas.open, torch.ones_like(canvas.step)[:, None].bool()], 1)
    columns = torch.arange(closed.shape[1])
    begin = torch.where(closed, len(columns) - 1, columns).amin(1)
    end = torch.where(closed & (columns >= begin[:, None]), columns, len(columns) - 1).amin(1)
    return begin, end - begin


def verification(canvas: Canvas, spec: Spec, live: Tensor, begin: Tensor, count: Tensor, draws: Draws) -> Request:
    """Request the autoregressive model's tokens at ``count`` [B] positions from ``begin`` [B] on."""
    rows = live.nonzero()[:, 0]
    start, stop = begin[rows], (begin + count)[rows]
    columns = torch.arange(int(stop.max()))
    width = max(1, int(stop.max()) - 1)  # no target depends on the token of the last one
    return Request(
        tokens=canvas.ids[rows, :width],
        positions=torch.where(columns < stop[:, None] - 1, columns, -1)[:, :width],
        targets=common.marked_positions((columns >= start[:, None]) & (columns < stop[:, None])),
        attention=spec.network.attention,
        prompt=canvas.prompt[rows] if spec.network.prompt_encoder else None,
        network=spec.network.name,
        # The same keys as in ``Autoregressive``.
        drawing=Drawing(rows, torch.zeros_like(rows), gumbel=draws == "gumbel"),
    )


def verified(canvas: Canvas, spec: Spec, request: Request, out: Output) -> Step:
    """Seal the drafts that equal the verifier's tokens, and the verifier's first other token; mask the other drafts.

    Nothing is sealed after an end-of-text token, where autoregressive generation would have ended.
    """
    rows, real = request.rows, request.targets >= 0
    at = rows[:, None], request.targets.clamp(min=0)
    equal = real & (canvas.status[at] == DRAFT) & (out.token == canvas.ids[at])
    stops = ~equal | (out.token == spec.tokens.eos_id)
    before = torch.cat([torch.zeros_like(stops[:, :1]), stops[:, :-1]], 1)
    sealed = real & ~before.cumsum(1).bool()
    rejected = canvas.status[rows] == DRAFT  # all drafts that are not sealed, also those that are no targets
    row, column = sealed.nonzero(as_tuple=True)
    rejected[row, request.targets[row, column]] = False
    rejected_row, rejected_pos = rejected.nonzero(as_tuple=True)
    return Step(
        row=torch.cat([rows[row], rows[rejected_row]]),
        pos=torch.cat([request.targets[row, column], rejected_pos]),
        token=torch.cat([out.token[row, column], torch.full_like(rejected_pos, spec.tokens.mask_id)]),
        status=torch.cat([torch.full_like(row, SEALED), torch.full_like(rejected_row, FREE)]),
        conf=torch.cat([out.conf[row, column], torch.zeros(len(rejected_row))]),
    )


def _length_query(canvas: Canvas, drafter: Spec, rows: Tensor) -> Request:
    """Request the drafter's predictions of the answer lengths of ``rows`` [R]."""
    request = length_request(canvas.ids[rows], canvas.prompt[rows], drafter, rows)
    return replace(request, network=drafter.network.name).with_extra(DraftQuery(drafter.network.shift))


def _with_lengths(canvas: Canvas, state: DraftVerifyState, request: Request, out: Output) -> DraftVerifyState:
    """The state with the likeliest lengths of at least one token that fit the canvas."""
    most = (canvas.ids.shape[1] - canvas.prompt[request.rows]).clamp(max=out.log_p.shape[1] - 1)
    lengths = torch.arange(out.log_p.shape[1])
    fits = (lengths >= 1) & (lengths <= most[:, None])
    length = state.length.clone()
    length[request.rows] = out.log_p.cpu().masked_fill(~fits, -torch.inf).argmax(1)
    return DraftVerifyState(length)
