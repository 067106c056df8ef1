"""Models of ours for Hugging Face's Auto classes: ``import redraft.interop.transformers``, then ``from_pretrained``.

A folder that ``Model.save`` writes is in the Hugging Face layout already. What transformers lacks is the class:

    import redraft.interop.transformers
    from transformers import AutoModel, AutoTokenizer

    model, tokenizer = AutoModel.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    logits = model(**tokenizer("It was", return_tensors="pt")).logits

Logits stand as the network gives them: for autoregressive models those of the next token, else of the same position.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModel, AutoModelForMaskedLM, PretrainedConfig, PreTrainedModel
from transformers.utils import ModelOutput

from redraft.errors import UserError
from redraft.models import describe, empty
from redraft.models.parts.backbone import Backbone
from redraft.types import Attend, Forward


class RedraftConfig(PretrainedConfig):
    """config.json of a model folder: the family and the network as we describe them."""

    model_type = "redraft"

    def __init__(
        self,
        redraft_format: int = 1,
        family: Mapping[str, Any] | None = None,
        network: Mapping[str, Any] | None = None,
        conditional: bool = False,
        vocabulary: Mapping[str, Any] | None = None,
        **rest: Any,
    ) -> None:
        self.redraft_format, self.conditional, self.vocabulary = redraft_format, conditional, vocabulary
        self.family, self.network = dict(family or {}), dict(network or {})
        super().__init__(**rest)


@dataclass
class RedraftOutput(ModelOutput):
    """``logits`` [B, L, V]."""

    logits: Tensor | None = None


class RedraftModel(PreTrainedModel):
    """A network of ours. Prompts that a family isolates are not known here: every text is one stretch."""

    config_class = RedraftConfig
    base_model_prefix = "network"
    main_input_name = "input_ids"

    def __init__(self, config: RedraftConfig) -> None:
        super().__init__(config)
        if config.redraft_format != 1:
            raise UserError(f"format {config.redraft_format!r} is not known here.")
        made = empty(config.network, "config.json network")
        self.network = type(made)(made.config)  # type: ignore[call-arg]
        self.post_init()

    def _init_weights(self, module: Any) -> None:
        """Networks initialise themselves; what they compute from their shape is lost in loading, and made again."""
        if isinstance(module, Backbone):
            computed = dict(empty(describe(module), "network").named_buffers())
            for name, buffer in module.named_buffers():
                buffer.copy_(computed[name])

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, t: Tensor | None = None, **_: Any
    ) -> Any:
        """Logits at every position. ``attention_mask``: 1 where there is text (padding on either side), ``t`` [B] the
        noise time of networks that are told."""
        real = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        pos = torch.where(real.bool(), real.cumsum(1) - 1, -1).cpu()
        order = torch.sort((pos < 0).long(), dim=1, stable=True).indices  # our rows begin with their text
        ids, pos = input_ids.gather(1, order.to(input_ids.device)), pos.gather(1, order)
        shift = self.network.config.shift
        want = torch.where(pos >= 0, pos + shift, -1)
        flat = self.network(Forward(x=ids, pos=pos, want=want, attend=self._attend(), t=t))
        logits = flat.new_zeros(*input_ids.shape, flat.shape[-1])
        row, column = (want >= 0).nonzero(as_tuple=True)
        logits[row.to(logits.device), order[row, column].to(logits.device)] = flat
        return RedraftOutput(logits=logits)

    def _attend(self) -> Attend:
        family = self.config.family
        if family["name"] == "autoregressive":
            return Attend("causal")
        return Attend("block", family["block"]) if family.get("block") else Attend("full")

    def get_input_embeddings(self) -> Any:
        return self.network.embedding


AutoConfig.register("redraft", RedraftConfig)
AutoModel.register(RedraftConfig, RedraftModel)
AutoModelForMaskedLM.register(RedraftConfig, RedraftModel)
