"""The weights of a run over its processes: whole in each (``ddp``), or a part of them in each (``fsdp``)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from redraft.errors import UserError
from redraft.models.parts.backbone import Backbone
from redraft.models.parts.packed import packed_in
from redraft.models.parts.store import KeyValueView
from redraft.objectives.base import Objective
from redraft.train.ranks import Ranks
from redraft.types import Forward

if TYPE_CHECKING:
    from torch.distributed.fsdp import FSDPModule

_BUCKET_BYTES = 32 << 20  # of gradients that are summed together: many small ones would take a message each


class Weights:
    """The weights of one process, and what the processes of a run do to hold the same or their parts of them."""

    sharded = False

    def __init__(self, network: Backbone) -> None:
        self.network = network

    def ready(self, objective: Objective[Any]) -> None:
        """Prepare for the passes of a batch."""

    def clip(self, limit: float) -> Tensor:
        """Sum the gradient over all ranks, and scale it down if its norm exceeds ``limit``; 0 is no limit.

        Returns:
            [] the norm of the whole gradient before.
        """
        self._sum_gradients()
        trained = list(self.network.parameters())
        gradients = [p.grad for p in trained if p.grad is not None]
        norm = self._whole(torch.nn.utils.get_total_norm(gradients, foreach=True))
        if limit:
            torch.nn.utils.clip_grads_with_norm_(trained, limit, norm, foreach=True)
        return norm

    def _sum_gradients(self) -> None:
        """Sum the gradient over all ranks, if the backward passes have not."""

    def _whole(self, tensor: Tensor) -> Tensor:
        """A tensor [...] of which this process may hold a part."""
        return tensor

    def local(self, tensor: Tensor) -> Tensor:
        """The part of a tensor [...] that this process holds."""
        return tensor

    def settle(self) -> None:
        """Hold no more than in between updates. Call it after passes without a gradient."""

    def gather(self, is_writer: bool) -> None:
        """Hold the whole network, to save it. On other ranks than the writer the network can't be used any more."""


class Replicated(Weights):
    """All weights in every process, and their gradients summed once for every update: data parallelism.

    The sum follows the last backward pass of an update. (``DistributedDataParallel`` sums during that pass; it expects
    that every parameter takes part in one forward and one backward pass, which losses in parts
    (``objectives.shared.vocabulary``) and objectives with several passes don't keep.)
    """

    def __init__(self, network: Backbone, ranks: Ranks) -> None:
        import torch.distributed as dist

        super().__init__(network)
        self._ranks = ranks
        for tensor in (*network.parameters(), *network.buffers()):  # equal, whatever the machines have drawn
            dist.broadcast(tensor.detach(), src=0)

    def _sum_gradients(self) -> None:
        trained = [p for p in self.network.parameters() if p.requires_grad]
        used = self._ranks.any(*(p.grad is not None for p in trained))  # by the batches of some rank
        for parameter, is_used in zip(trained, used, strict=True):
            if is_used and parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        _sum([p.grad for p in trained if p.grad is not None])


@torch.no_grad()
def _sum(gradients: list[Tensor]) -> None:
    """Sum gradients [...] over all ranks, in place."""
    import torch.distributed as dist

    for bucket in _buckets(gradients):
        if len(bucket) == 1 and bucket[0].is_contiguous():
            dist.all_reduce(bucket[0])
            continue
        flat = torch.cat([gradient.flatten() for gradient in bucket])
        dist.all_reduce(flat)
        parts = flat.split([gradient.numel() for gradient in bucket])
        torch._foreach_copy_(bucket, [part.view_as(own) for part, own in zip(parts, bucket, strict=True)])


def _buckets(gradients: Iterable[Tensor]) -> Iterator[list[Tensor]]:
    """Gradients of one type, in order, that fill about ``_BUCKET_BYTES`` together."""
    by_type: dict[torch.dtype, list[Tensor]] = {}
    for gradient in gradients:
        by_type.setdefault(gradient.dtype, []).append(gradient)
    for same in by_type.values():
        bucket, size = list[Tensor](), 0
        for gradient in same:
            if bucket and size + gradient.nbytes > _BUCKET_BYTES:
                yield bucket
                bucket, size = [], 0
            bucket.append(gradient)
            size += gradient.nbytes
        yield bucket


class Sharded(Weights):
    """A part of all weights, gradients and moments in every process (FSDP2; Zhao et al. 2023, arXiv:2304.11277).

    The weights of a block are gathered for its forward and again for its backward pass; those outside of the blocks,
    such as the embedding, for both together. Every batch's gradient is summed over the ranks and scattered at once, so
    that no rank ever holds all of it.

    All ranks have to gather the same blocks in the same order. With objectives whose number of passes depends on the
    batch (``Objective.needs_rollout``) they don't, so that all weights are gathered before each batch and kept until
    its backward pass: then sharding saves memory for gradients, moments and averages only.

    Where products are in bfloat16, blocks are gathered in bfloat16: autocast would make that copy of each weight
    anyway, and keep it until the end of the backward pass. Parts, sums of gradients, moments and hidden states stay
    float32, and so do the weights outside of the blocks (mixed precision, Micikevicius et al. 2018, arXiv:1710.03740).
    """

    sharded = True

    def __init__(
        self, network: Backbone, ranks: Ranks, device: torch.device, rollouts: bool, bfloat16: bool = False
    ) -> None:
        """
        Args:
            rollouts: some objective of the run needs rollouts.
            bfloat16: products are in bfloat16.
        """
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

        super().__init__(network)
        mesh = init_device_mesh(device.type, (ranks.world,))
        low = MixedPrecisionPolicy(torch.bfloat16, torch.float32, cast_forward_inputs=False)
        for block in network.blocks:
            policy = low if bfloat16 else MixedPrecisionPolicy()
            fully_shard(block, mesh=mesh, reshard_after_forward=not rollouts, mp_policy=policy)
        fully_shard(network, mesh=mesh, reshard_after_forward=False)
        self._let_states_begin()
        self._modules: list[FSDPModule] = [each for each in network.modules() if isinstance(each, FSDPModule)]
        for module in self._modules:  # a sum, because a batch's share of the loss is that of the whole update
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)
            module.set_reduce_scatter_unused_params(True)
            if rollouts:  # all weights are there; what FSDP would fetch ahead depends on the passes of this rank
                module.set_modules_to_backward_prefetch([self._modules[0]])
        self._ranks = ranks
        self._trained = {name: p for name, p in network.named_parameters() if p.requires_grad}
        self._used: set[str] = set()  # names of those that have a gradient from a batch of this rank
        self._note_use()

    def _let_states_begin(self) -> None:
        """Let ``network.states`` gather weights where it is called by itself, and not as a part of ``forward``.

        FSDP lets a method begin a pass, but not one inside of another: the inner one would end both.
        """
        from torch.distributed.fsdp import register_fsdp_forward_method

        inside = [False]
        part = self.network.states
        register_fsdp_forward_method(self.network, "states")
        alone = self.network.states

        def states(request: Forward, store: KeyValueView | None = None) -> Tensor:
            return (part if inside[0] else alone)(request, store)

        def entered(*_: Any) -> None:
            inside[0] = True

        def left(*_: Any) -> None:
            inside[0] = False

        self.network.states = states  # type: ignore[method-assign]
        self.network.register_forward_pre_hook(entered)
        self.network.register_forward_hook(left, always_call=True)

    def _note_use(self) -> None:
        """Note which weights get a gradient. FSDP reduces zeros for the others, to which AdamW would apply its moments.

        A hook on a gathered weight stays when its memory is freed and gathered again.
        """
        noted = set[str]()
        for module in self._modules:
            module.unshard()
            for name, parameter in self.network.named_parameters():
                if name in self._trained and name not in noted and parameter is not self._trained[name]:
                    parameter.register_post_accumulate_grad_hook(lambda _, name=name: self._used.add(name))
                    noted.add(name)
            module.reshard()

    def _sum_gradients(self) -> None:
        used = self._ranks.any(*(name in self._used for name in self._trained))
        for parameter, is_used in zip(self._trained.values(), used, strict=True):
            if not is_used:
                parameter.grad = None
        self._used.clear()

    def ready(self, objective: Objective[Any]) -> None:
        if objective.needs_rollout:
            for module in self._modules:
                module.unshard()

    def _whole(self, tensor: Tensor) -> Tensor:
        from torch.distributed.tensor import DTensor

        return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor

    def local(self, tensor: Tensor) -> Tensor:
        """The part of a tensor [...] that this process holds."""
        from torch.distributed.tensor import DTensor

        return tensor.to_local() if isinstance(tensor, DTensor) else tensor

    def settle(self) -> None:
        for module in self._modules:
            module.reshard()

    @torch.no_grad()
    def gather(self, is_writer: bool) -> None:
        self.settle()
        for module in list(self.network.modules()):
            for name, parameter in list(module.named_parameters(recurse=False)):
                whole = self._whole(parameter.detach())
                kept = whole.cpu() if is_writer else whole.new_empty(0)
                module.register_parameter(name, nn.Parameter(kept, requires_grad=False))
        for each in self._modules:
            plain = type(each).__mro__[2]  # [FSDP<Plain>, FSDPModule, Plain, ...]
            each.__class__ = plain


def place(
    network: Backbone,
    parallel: str,
    ranks: Ranks,
    device: torch.device,
    objectives: Iterable[Objective[Any]],
    bfloat16: bool = False,
) -> Weights:
    """The weights of a run. With ``fsdp`` and several ranks they are divided and put on the device.

    Args:
        network: the same on all ranks.
        parallel: ``ddp`` or ``fsdp``.
        objectives: of all phases of the run.
        bfloat16: products are in bfloat16.
    Raises:
        UserError: the network or an objective can't be sharded.
    """
    every = list(objectives)
    if ranks.world == 1:
        return Weights(network)
    if parallel == "ddp":
        return Replicated(network, ranks)
    if any(objective.needs_teacher for objective in every):
        raise UserError("Distillation can't be trained with parallel = 'fsdp'.", "Use --set train.parallel=ddp.")
    if next(packed_in(network), None) is not None:
        what = "A packed base (int8, nf4) can't be sharded."
        raise UserError(what, "Use --base-dtype bfloat16, or --set train.parallel=ddp.")
    return Sharded(network, ranks, device, any(objective.needs_rollout for objective in every), bfloat16)
