"""A transformer rearranged for inference on CPUs: the same function in fewer and faster operations."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from redraft.models.cpu.layers import rms_normalise
from redraft.models.cpu.stack import stack_of
from redraft.models.parts.attention import AttentionContext, attention_context
from redraft.models.parts.backbone import Backbone, gather_targets
from redraft.models.parts.lora import adapted
from redraft.models.parts.store import KeyValueStore, KeyValueView
from redraft.models.transformer import Config, Transformer
from redraft.settings import Weights
from redraft.types import Forward


class CpuTransformer:
    """A faster form of ``Transformer`` for CPUs, where small networks are limited by calls and memory traffic.

    - The layers run in one call of compiled code (``native``) where it is installed and supports the shape.
    - Otherwise they are operations of torch (``layers``). Matrices are packed in advance for oneDNN, which applies
      SiLU, the gate and the residual while a result is still in the cache. (torch's default for float32 on CPUs is MKL,
      which on AMD processors reaches less than half the speed of oneDNN, for one row as well as for a thousand.)
    - The gain of a norm is merged into the next matrix, and the components that are rotated together are adjacent
      (``layers.LayerWeights``).
    - The last layer computes only the target positions.

    Equal to the network up to rounding, including that of ``weights``. Weights are copied: make a new form when they
    change. ``compiled`` = False leaves compiled code aside.
    """

    def __init__(self, network: Transformer, weights: Weights = "float32", compiled: bool = True) -> None:
        if not CpuTransformer.fits(network):
            raise ValueError("CPU forms are for float32 networks on a CPU without time conditioning.")
        self.network, self.config = network, network.config
        with torch.no_grad():
            head = network.embedding.weight if network.head is None else network.head.weight
            head = head * network.norm.weight
            self.stack = stack_of([*network.blocks], head, network.config.norm_eps, weights, compiled)
            self.rotary = torch.complex(network.rotary[:, 0], network.rotary[:, 1])

    @staticmethod
    def fits(network: Any) -> bool:
        """Whether this network has a CPU form in its present state on this machine."""
        return isinstance(network, Transformer) and _supported(network.config) and on_cpu(network)

    def store(self, slots: int, positions: int) -> KeyValueStore:
        """A key-value store for this network. The layout of its keys is specific to the CPU form."""
        return self.network.store(slots, positions)

    def expected(self, log_p: Tensor) -> Tensor:
        """The mean embedding of each distribution [N, V] -> [N, D]."""
        return self.network.expected(log_p)

    @torch.inference_mode()
    def __call__(self, request: Forward, store: KeyValueView | None = None) -> Tensor:
        """Flat logits [N, V] in the order of ``request.targets >= 0``."""
        x = self.hidden(request, attention_context(request, self.rotary, store, *self.positions))
        net = self.network
        if net.edits is not None:
            rates: Tensor = net.edits(rms_normalise(x, self.config.norm_eps) * net.norm.weight, net.embedding.weight)
            return rates
        return self.stack.project(x)

    @property
    def positions(self) -> tuple[bool, int | None]:
        """What the attention context depends on: ``Config.restart`` and ``Config.radius``."""
        return self.config.restart, self.config.radius

    def hidden(self, request: Forward, context: AttentionContext, kept: Mapping[int, Tensor] | None = None) -> Tensor:
        """The last hidden states [N, D] of the target positions. ``kept`` receives the output [R, Q, D] of the layers
        that it names, the last one excepted."""
        net = self.network
        x = net.embed(request)
        if net.answer is not None and request.prompt is not None:
            x = torch.addcmul(x, (request.streams[1] >= request.prompt[:, None]).to(x.dtype)[..., None], net.answer)
        return self.stack.run(
            x, request, context, partial(gather_targets, request=request, shift=self.config.shift), kept
        )


def on_cpu(network: Backbone) -> bool:
    """Whether a network can run inference in float32 on a CPU with oneDNN, without unmerged adapters."""
    weight = network.embedding.weight
    ready = not network.training and weight.device.type == "cpu" and weight.dtype == torch.float32
    return ready and torch.backends.mkldnn.is_available() and next(adapted(network), None) is None


def _supported(c: Config) -> bool:
    """``CpuTransformer`` supports this shape: no time, no biases but those of Qwen, full rotary, an MLP per layer."""
    grows = c.stretch is not None and c.stretch.growth > 0
    return not (grows or c.timed or c.out_bias or c.mlp_bias or c.head_bias or c.experts or c.rotary_dim)
