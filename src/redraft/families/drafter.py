"""Drafter: an autoregressive model with a few more layers that read its hidden states and draft for it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from redraft import models
from redraft.data.tokenizer import Tokenizer
from redraft.errors import UserError
from redraft.families.base import Conversion, Family
from redraft.families.shared.vocabulary import vocabulary
from redraft.models.drafter import Config
from redraft.models.drafter import Drafter as Network
from redraft.models.parts.backbone import Backbone
from redraft.models.transformer import Transformer
from redraft.objectives.autoregressive import Autoregressive
from redraft.objectives.base import OwnTexts
from redraft.objectives.draft import Draft
from redraft.samplers.draft_verify import DraftVerify
from redraft.types import AttentionPattern, FamilyFacts, NetworkFacts, Spec

_REMEDY = "Use: redraft finetune --family drafter --from MODEL."


@dataclass(frozen=True)
class Drafter(Family):
    """DFlash (Chen et al. 2026, arXiv:2602.06036): ``redraft finetune --family drafter --from MODEL``.

    The model that training starts from is the target: it is neither changed nor stored again. Only a few layers of its
    shape are trained, which read its hidden states (``models.drafter``), on texts that the target itself writes after
    the beginnings of the data. The output is the target's, token for token; better drafts need fewer forward passes.
    """

    citation = "arXiv:2602.06036"
    summary = "layers that read an autoregressive model's hidden states, and draft for it in one pass"
    needs_target = True

    block: int = 16  # positions of a block: a known token and drafts; smaller ones are trained too
    layers: int = 0  # own layers; 0: one for every six of the target, at least one and at most five
    prompt_encoder: bool = True
    text: Literal["target", "data"] = "target"  # trained on texts that the target writes, or on the data's own
    texts: int = 8192  # most texts that the target writes
    temperature: float = 0.0  # at which it writes them

    @property
    def conversion(self) -> Conversion:
        """Its quality is that of the model that it drafts for."""
        return Conversion(refused="it drafts for the checkpoint, and generates the same text")

    @property
    def own_texts(self) -> OwnTexts | None:
        """The target's texts, unless ``text`` is data."""
        return OwnTexts(self.texts, self.temperature) if self.text == "target" else None

    def spec(self, tokenizer: Tokenizer) -> Spec:
        spec = Spec(
            tokens=vocabulary(tokenizer),
            network=NetworkFacts(attention=AttentionPattern("causal"), prompt_encoder=self.prompt_encoder, shift=1),
            family=FamilyFacts(),
        )
        drafts = spec.with_network(shift=0, attention=AttentionPattern("causal", self.block), reads_target=True)
        return spec.with_family(drafter=drafts)

    def objective(self) -> Autoregressive:
        """The likelihood of the target."""
        return Autoregressive()

    def training(self) -> Draft:
        """The drafts' cross-entropy."""
        return Draft(block=self.block)

    def validation(self) -> Draft:
        """The drafts' cross-entropy."""
        return self.training()

    def sampler(self) -> DraftVerify:
        return DraftVerify(block=self.block - 1)

    def network_config(self, base: Any) -> Any:
        """
        Raises:
            UserError: always: it has no network without a target.
        """
        raise UserError("A drafter is trained for an autoregressive model.", _REMEDY)

    def network_for(self, network: Backbone) -> Backbone:
        """New layers on an autoregressive transformer; a drafter continues to be trained as it is.

        Raises:
            UserError: another network, or another number of layers than the drafter has.
        """
        if isinstance(network, Network):
            if self.layers not in (0, network.config.layers):
                what = f"This drafter has {network.config.layers} layers, and family.layers is {self.layers}."
                raise UserError(what, "Leave family.layers out.")
            return network
        if not isinstance(network, Transformer) or network.config.shift != 1 or network.config.timed:
            raise UserError("A drafter needs an autoregressive model with a 'transformer' network.", _REMEDY)
        config = Config(network.config, self.layers or min(5, max(1, round(network.config.layers / 6))))
        with models.without_memory():
            made = Network(config)
        models.allocate(made, network.dtype, network.device)
        made.initialise()
        made.attach(network)
        return made
