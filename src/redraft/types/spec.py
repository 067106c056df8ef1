"""What a sampler or an objective may rely on: token ids, facts about the network, and facts about the family."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

from redraft.types.attention import AttentionPattern
from redraft.types.protocols import NoiseProcess, Schedule

# Meaning of the network's outputs at a target position:
#   logits      [V] unnormalised log-probabilities of tokens
#   log_scores  [V] log scores (ratios of probabilities), whose sum is meaningful: see ``objectives.score``
#   edit_rates  [2 V + 1] log-rates of insertions, substitutions and deletion: see ``families.edit``
#   vectors     [Z] a prediction of continuous diffusion that is not a distribution over tokens
Outputs = Literal["logits", "log_scores", "edit_rates", "vectors"]

WHOLE = -1  # self-conditioning by the whole distribution (``ExpectedEmbedding``)


@dataclass(frozen=True)
class Continuous:
    """Diffusion of vectors (``noise.gaussian``): one vector of width Z for every ``ratio`` tokens of the answer.

    The noise level is the log-SNR, log(alpha^2 / sigma^2). The network receives it as a fraction of the range from
    ``cleanest`` to ``noisiest`` (``Forward.time``), independent of the schedule.
    """

    width: int  # Z
    ratio: int  # tokens per vector
    tokens: bool  # the network predicts tokens, whose mean vector is the clean one; else v = alpha noise - sigma clean
    cleanest: float  # log-SNR at t = 0
    noisiest: float  # log-SNR at t = 1
    scale: float = 1.0  # scale of the signal: 2 log(scale) is added to the log-SNR (arXiv:2301.10972)


@dataclass(frozen=True)
class TokenIds:
    """The size of the vocabulary, and ids of special tokens."""

    vocab_size: int
    pad_id: int
    eos_id: int  # -1: no token ends a sequence
    mask_id: int
    forbidden: tuple[int, ...] = ()  # ids that are never sampled (mask, padding, markers)
    stop_ids: tuple[int, ...] = ()  # further ids that end a sequence; the loop treats them all as ``eos_id``
    segment_end_ids: tuple[int, ...] = ()  # ids that end a thought, for models that generate thought by thought
    expand_id: int = -1  # predicted where one mask should become two; -1: the model has no such token
    delete_id: int = -1  # predicted where a mask should be removed


@dataclass(frozen=True)
class NetworkFacts:
    """Facts about the network that requests depend on."""

    attention: AttentionPattern
    shift: int = 0  # the logits of position p are at p - shift (autoregressive 1, masked 0)
    timed: bool = False  # the network reads ``Forward.time``
    prompt_encoder: bool = False  # the prompt never attends to the answer (see ``AttentionPattern``)
    length_head: bool = False  # the network predicts the output length, at the last prompt position over ids 0..max
    self_conditioning: int = 0  # tokens of its last prediction that the network reads; 0: none, ``WHOLE``: all of them
    outputs: Outputs = "logits"
    reads_target: bool = False  # drafts from the hidden states of the verifying network, behind a known token
    name: str = "main"  # name of the network in the loop


@dataclass(frozen=True)
class FamilyFacts:
    """Facts about the family: its noise, and its second network if it has one."""

    schedule: Schedule | None = None  # None for autoregressive models
    process: NoiseProcess | None = None  # the noise that the model removes; None for autoregressive models
    continuous: Continuous | None = None  # vectors are diffused instead of tokens
    drafter: Spec | None = None  # spec of the drafting network, which may be the same network


@dataclass(frozen=True)
class Spec:
    """What a sampler or an objective may rely on, in three groups."""

    tokens: TokenIds
    network: NetworkFacts
    family: FamilyFacts

    def with_tokens(self, **changes: Any) -> Spec:
        """A copy with other token ids."""
        return replace(self, tokens=replace(self.tokens, **changes))

    def with_network(self, **changes: Any) -> Spec:
        """A copy with other facts about the network."""
        return replace(self, network=replace(self.network, **changes))

    def with_family(self, **changes: Any) -> Spec:
        """A copy with other facts about the family."""
        return replace(self, family=replace(self.family, **changes))

    @property
    def edits(self) -> bool:
        """The network predicts rates of edits instead of tokens."""
        return self.network.outputs == "edit_rates"

    @property
    def variable_length(self) -> bool:
        """Sequences change their length during generation."""
        return self.tokens.expand_id >= 0 or self.edits

    @property
    def scores(self) -> bool:
        """The sum of exp(output) over the vocabulary is meaningful."""
        return self.network.outputs in ("log_scores", "edit_rates")

    @property
    def masks(self) -> bool:
        """Noise replaces tokens by the mask token."""
        return self.family.process is not None and self.family.process.masks

    @property
    def output_size(self) -> int:
        """Numbers that the network returns for each target position."""
        return 2 * self.tokens.vocab_size + 1 if self.edits else self.tokens.vocab_size
