"""redraft models for Hugging Face's Auto classes: ``import redraft.interop.transformers``, then ``from_pretrained``.

A folder that ``Model.save`` writes has the Hugging Face layout. This module registers the class that reads it:

    import redraft.interop.transformers
    from transformers import AutoModel, AutoTokenizer

    model, tokenizer = AutoModel.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    logits = model(**tokenizer("It was", return_tensors="pt")).logits

Logits are those of the network: of the next token for autoregressive models, of the same position for others.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModel, AutoModelForMaskedLM, PretrainedConfig, PreTrainedModel
from transformers.utils import ModelOutput

from redraft import hub
from redraft.errors import UserError
from redraft.models import describe, empty
from redraft.models.parts.backbone import Backbone
from redraft.types import AttentionPattern, Forward
from redraft.weights import SCALE, Files, Layout, fill


class RedraftConfig(PretrainedConfig):
    """config.json of a model folder: family, network and vocabulary."""

    model_type = "redraft"

    def __init__(
        self,
        redraft_format: int = 1,
        family: Mapping[str, Any] | None = None,
        network: Mapping[str, Any] | None = None,
        paired: bool = False,
        vocabulary: Mapping[str, Any] | None = None,
        **rest: Any,
    ) -> None:
        self.redraft_format, self.paired, self.vocabulary = redraft_format, paired, vocabulary
        self.family, self.network = dict(family or {}), dict(network or {})
        super().__init__(**rest)


@dataclass
class RedraftOutput(ModelOutput):
    """The output of ``RedraftModel``: ``logits`` [B, L, V]."""

    logits: Tensor | None = None


class RedraftModel(PreTrainedModel):
    """A redraft network. Prompt encoders are not supported: every sequence has one kind of attention."""

    config_class = RedraftConfig
    base_model_prefix = "network"
    main_input_name = "input_ids"

    def __init__(self, config: RedraftConfig) -> None:
        super().__init__(config)
        if config.redraft_format != 1:
            raise UserError(
                f"config.json: redraft_format = {config.redraft_format!r} is not supported.", "Update redraft."
            )
        described = empty(config.network, "config.json network")
        self.network = type(described)(described.config)  # type: ignore[call-arg]
        self.post_init()

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        """As in ``PreTrainedModel``. Matrices stored as 8-bit integers are multiplied by their scales."""
        wants_info = kwargs.pop("output_loading_info", False)
        model, info = super().from_pretrained(pretrained_model_name_or_path, *args, output_loading_info=True, **kwargs)
        if any(name.endswith(SCALE) for name in info["unexpected_keys"]):
            path = Path(pretrained_model_name_or_path)
            folder = path if path.is_dir() else hub.pull(str(pretrained_model_name_or_path))
            network: Backbone = model.network
            fill(network, Files(folder), Layout.own(network), None)
        return (model, info) if wants_info else model

    def _init_weights(self, module: Any) -> None:
        """Compute the buffers of a network again, which loading loses. Networks initialise their own parameters."""
        if isinstance(module, Backbone):
            computed = dict(empty(describe(module), "network").named_buffers())
            for name, buffer in module.named_buffers():
                buffer.copy_(computed[name])

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, t: Tensor | None = None, **_: Any
    ) -> Any:
        """Logits at every position.

        Args:
            input_ids: [B, L]. attention_mask: [B, L] 1 for tokens, 0 for padding on either side.
            t: [B] noise time, for networks with time conditioning.
        """
        real = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        pos = torch.where(real.bool(), real.cumsum(1) - 1, -1).cpu()
        order = torch.sort((pos < 0).long(), dim=1, stable=True).indices  # rows start with their tokens
        ids, pos = input_ids.gather(1, order.to(input_ids.device)), pos.gather(1, order)
        shift = self.network.config.shift
        want = torch.where(pos >= 0, pos + shift, -1)
        flat = self.network(Forward(tokens=ids, positions=pos, targets=want, attention=self._attend(), time=t))
        logits = flat.new_zeros(*input_ids.shape, flat.shape[-1])
        row, column = (want >= 0).nonzero(as_tuple=True)
        logits[row.to(logits.device), order[row, column].to(logits.device)] = flat
        return RedraftOutput(logits=logits)

    def _attend(self) -> AttentionPattern:
        family = self.config.family
        if family["name"] == "autoregressive":
            return AttentionPattern("causal")
        return AttentionPattern("block", family["block"]) if family.get("block") else AttentionPattern("full")

    def get_input_embeddings(self) -> Any:
        """The token embedding."""
        return self.network.embedding


AutoConfig.register("redraft", RedraftConfig)
AutoModel.register(RedraftConfig, RedraftModel)
AutoModelForMaskedLM.register(RedraftConfig, RedraftModel)
