"""A model: a network, its tokenizer and its family. It is the main class of the public API."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

import torch
from torch import Tensor

from redraft import config as configs
from redraft import models
from redraft.errors import UserError
from redraft.families import build_family
from redraft.families.base import Family
from redraft.generation import decide as decisions
from redraft.generation import infill as infilling
from redraft.generation import scoring, start
from redraft.generation.answer_lengths import AnswerLengths
from redraft.generation.prompts import Prompt, answerable_prompt_ids, check_length
from redraft.generation.run import GenerationRun
from redraft.models.cpu import cpu_form
from redraft.models.parts.backbone import Backbone
from redraft.settings import DecisionSettings, Settings, Weights
from redraft.types import Forward, Generation, Network, Spec, Step
from redraft.weights import TensorMap

if TYPE_CHECKING:
    from redraft.data.tokenizer import Tokenizer
    from redraft.generation.decide import Decision
    from redraft.generation.scoring import Measure, ScoredOption
    from redraft.generation.slots import Labels, Row
    from redraft.keyword_settings import DecisionKeywords, KeywordSettings
    from redraft.likelihood import Bound
    from redraft.models.cpu import CpuForm
    from redraft.models.parts.lora import Lora
    from redraft.targets import Target


class Model:
    """A network, its tokenizer and its family. Create one with ``redraft.load`` or ``Model.fresh``.

    Attributes:
        paired: trained on pairs of prompt and answer rather than on plain text.
        defaults: the model's own generation settings, as fields of ``Settings``.
        drafter: a model that drafts for this one; see ``draft_with``.
        target: the model that this one drafts for, if it is of family ``drafter``.
        public: names of the network's tensors in the public checkpoint that it was read from; None: redraft's format.
        answer_lengths: how long answers were in training, for a model of pairs; None: not recorded.
        trained_length: tokens of the longest row of training; 0: the whole context, as in a public checkpoint.
        added: tokens that a conversion has just added, whose vectors were never trained.
        adapter: the low-rank adapter of the network, trained on the model ``base``; None: it has none.
    """

    def __init__(
        self,
        network: Backbone,
        tokenizer: Tokenizer,
        family: Family,
        family_name: str,
        paired: bool,
        defaults: Mapping[str, Any] | None = None,
    ) -> None:
        self.network, self.tokenizer, self.family, self.family_name = network, tokenizer, family, family_name
        self.paired = paired
        self.defaults = dict(defaults or {})
        self.drafter: Model | None = None
        self.target: Target | None = None
        self.public: Mapping[str, TensorMap] | None = None
        self.answer_lengths: AnswerLengths | None = None
        self.trained_length = 0
        self.adapter: Lora | None = None
        self.added: tuple[int, ...] = ()
        self.base = ""
        self._cpu_form: tuple[tuple[str | int, ...], CpuForm] | None = None  # with the versions of its weights
        check_fit(self)

    @classmethod
    def fresh(cls, family: Mapping[str, Any], tokenizer: Tokenizer, shape: Any, paired: bool, seed: int = 0) -> Model:
        """Create a new, untrained model. Special tokens that the family needs are added to the tokenizer.

        Args:
            family: ``{"name": ..., **fields}``. shape: the ``Config`` of a network. seed: seed of the initial weights.
        Raises:
            UserError: the network can't be used with the family.
        """
        name, built = build_family(family)
        spec = built.spec(tokenizer)
        shape = built.network_config(shape)
        check_vocabulary(shape, tokenizer, "model")
        tokenizer = tokenizer.with_special_tokens(built.specials)
        shape = replace(shape, vocab_size=spec.tokens.vocab_size, shift=spec.network.shift, timed=spec.network.timed)
        needed = {"edits": spec.edits, "self_conditioning": spec.network.self_conditioning != 0}
        for feature, description in (("edits", "predict edits"), ("self_conditioning", "support self-conditioning")):
            if needed[feature]:
                if not shape.has_field(feature):
                    raise UserError(
                        f"This network doesn't {description}, and family '{name}' needs it.", "Use 'transformer'."
                    )
                shape = replace(shape, **{feature: True})
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            network = models.build(shape)
        return cls(network, tokenizer, built, name, paired)

    @property
    def spec(self) -> Spec:
        """The facts that samplers and objectives use. Models of plain text have no isolated prompt or length head."""
        spec = self.family.spec(self.tokenizer)
        if not self.paired:
            spec = spec.with_network(prompt_encoder=False, length_head=False)
            drafter = spec.family.drafter
            if drafter is not None:
                spec = spec.with_family(drafter=drafter.with_network(prompt_encoder=False, length_head=False))
        if self.drafter is not None:
            drafts = self.drafter.spec.with_network(name="drafter")
            spec = spec.with_family(drafter=self.drafter.spec.family.drafter if self.drafter.target else drafts)
        return spec

    def draft_with(self, drafter: Model | None) -> Model:
        """Let another model draft for this one when it generates with ``draft_verify``: a diffusion model, or one of
        family ``drafter``. None removes it.

        Raises:
            UserError: a drafter that isn't such a model, or one with another tokenizer, kind of data or target.
        """
        if drafter is not None:
            if drafter.target is not None:
                drafter.target.check(self.network, "The drafter")
                drafter.network.attach(self.network)  # one copy in memory
            elif drafter.spec.family.schedule is None:
                raise UserError(f"A model of family '{drafter.family_name}' can't draft.", "Use a diffusion model.")
            if drafter.tokenizer.fingerprint != self.tokenizer.fingerprint:
                raise UserError(
                    "The drafter has another tokenizer.", "Use two models that were trained with the same one."
                )
            if drafter.paired != self.paired:
                data = ["plain text", "pairs"]
                raise UserError(
                    f"The drafter was trained on {data[drafter.paired]}, this model on {data[self.paired]}.",
                    "Use two models that were trained on the same kind of data.",
                )
        self.drafter = drafter
        return self

    def logits(self, ids: Tensor) -> Tensor:
        """Raw logits [B, L, V] for ids [B, L]: of the next token for causal models, of the same position for others.

        Raises:
            UserError: a sequence longer than the context.
        """
        rows, length = ids.shape
        check_length(self, length)
        positions = torch.arange(length).expand(rows, -1)
        facts = self.spec.network
        with torch.inference_mode():
            time = torch.zeros(rows) if facts.timed else None
            request = Forward(ids, positions, positions + facts.shift, facts.attention, time=time)
            flat = self.network.eval()(request)
        return flat.view(rows, length, -1)

    # ---- generation

    def settings(self, **changed: Unpack[KeywordSettings]) -> Settings:
        """The model's default generation settings, overridden by those given (None: not given).

        If only the number of tokens is given, the default number of steps is limited to it. Steps given as an option of
        the sampler take precedence over the default.

        Raises:
            UserError: an unknown setting, or a value of the wrong type or out of range.
        """
        given = {key: value for key, value in changed.items() if value is not None}
        own = dict(self.defaults)
        if "sampler" in given and given["sampler"] != own.get("sampler"):
            own = {key: value for key, value in own.items() if key not in ("sampler", "steps", "options")}
        chosen = configs.build(Settings, {**own, **given}, "generation settings")
        if "steps" in chosen.options and "steps" not in given:
            return replace(chosen, steps=None)  # the sampler's options set the steps
        if "max_new_tokens" in given and "steps" not in given and chosen.steps is not None:
            chosen = replace(chosen, steps=min(chosen.steps, chosen.max_new_tokens))
        return chosen

    def start(self, prompts: Sequence[Prompt], settings: Settings, keep_trace: bool = False) -> GenerationRun:
        """Start a generation: output lengths are chosen, and the first step has not run yet. See ``generation.start``.

        Raises:
            UserError: a prompt longer than the context, or settings that don't work with this model.
        """
        return start.start(self, prompts, settings, keep_trace).begin()

    def generate(
        self,
        prompts: str | Sequence[Prompt],
        batch_size: int = 32,
        keep_trace: bool = False,
        on_batch: Callable[[int], None] | None = None,
        **settings: Unpack[KeywordSettings],
    ) -> list[Generation]:
        """Generate a sequence for every prompt, given as text or as ids. ``settings`` are the fields of ``Settings``.

        The output depends on its prompt, the settings and the seed, but not on other prompts: row i uses seed + i.
        ``on_batch`` is called after each batch with the number of finished sequences.

        Raises:
            UserError: an unknown setting or sampler option, a prompt longer than the context, or an empty one for a
                model of pairs.
        """
        if batch_size < 1:
            raise UserError(f"batch_size = {batch_size} must be at least 1.")
        prompts = [prompts] if isinstance(prompts, str) else list(prompts)
        chosen = self.settings(**settings)
        found: list[Generation] = []
        for begin in range(0, len(prompts), batch_size):
            part = replace(chosen, seed=chosen.seed + begin)
            heads = [answerable_prompt_ids(self, prompt) for prompt in prompts[begin : begin + batch_size]]
            run = self.start(heads, part, keep_trace)
            for _ in run:
                pass
            found += run.results()
            if on_batch is not None:
                on_batch(len(found))
        return found

    def stream(self, prompt: Prompt, **settings: Unpack[KeywordSettings]) -> Iterator[Step]:
        """The steps of one generation as they happen; arguments and errors as ``generate``."""
        yield from self.start([answerable_prompt_ids(self, prompt)], self.settings(**settings))

    def infill(
        self, text: str, prompt: str = "", prefix: str = "", suffix: str = "", **settings: Unpack[KeywordSettings]
    ) -> Generation:
        """Fill the holes of a text: ``"The [[3]] sat on [[1-4]], [[?]]."`` has a hole of three tokens, one of one to
        four tokens, and one of 1 to 12 tokens, whose length the model chooses.

        Args:
            prompt: the prompt that the text answers, for models of pairs. prefix, suffix: text before and after,
                without holes.
        Raises:
            UserError: no hole, a hole of zero tokens, or a model that can't attend to the text after a hole.
        """
        parts = [prefix, *infilling.parse(text), suffix]
        return infilling.fill(self, parts, prompt, infilling.settings(self, settings))

    def edit(
        self, text: str, span: str | tuple[int, int], prompt: str = "", **settings: Unpack[KeywordSettings]
    ) -> Generation:
        """Rewrite only one part of a text: the first occurrence of the words ``span``, or the characters from a to b.
        The new part has half to twice as many tokens as the old one.

        Raises:
            UserError: the text has no such part, or a model that can't attend to the text after it.
        """
        old = span if isinstance(span, str) else text[slice(*span)]
        parts = infilling.with_hole(text, span, len(self.tokenizer.encode(old)))
        return infilling.fill(self, parts, prompt, infilling.settings(self, settings))

    def inference_network(self, weights: Weights = "float32") -> Network:
        """The network in its fastest form for inference, cached until its weights change.

        Raises:
            UserError: weights other than float32 for a network that has no CPU form on this machine.
        """
        network, form = self.network.eval(), cpu_form(self.network, weights)
        if form is None:
            return network
        versions = (weights, *(parameter._version for parameter in network.parameters()))
        if self._cpu_form is None or self._cpu_form[0] != versions:
            self._cpu_form = versions, form(network, weights)  # type: ignore[arg-type] # cpu_form checks the type
        return self._cpu_form[1]

    # ---- likelihood

    def score(
        self,
        prompt: str,
        continuation: str,
        samples: int = 128,
        seed: int = 0,
        sampler: str | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> Bound:
        """-log p(continuation | prompt): exact for autoregressive models, for diffusion models an upper bound with its
        Monte Carlo error.

        For a model trained on pairs, the continuation is the whole answer, end-of-text included. With ``sampler`` it is
        the likelihood under this sampler (module ``likelihood``), exact for ``sampler="confidence"`` with an order such
        as ``{"order": "margin"}``. It takes one forward pass per token, or fewer if ``steps`` is lower.

        Raises:
            UserError: a sequence longer than the context, or a sampler whose likelihood can't be computed.
        """
        return scoring.score(self, prompt, continuation, samples, seed, sampler, options)

    def rolling(self, text: str, stride: int = 0, samples: int = 4, seed: int = 0) -> Bound:
        """-log p of a text of any length, window by window (``likelihood.rolling``).

        Exact for autoregressive models, an upper bound for diffusion models.

        Raises:
            UserError: a model of pairs, or no text.
        """
        return scoring.rolling(self, text, stride, samples, seed)

    def rank(
        self,
        prompt: str,
        options: Sequence[str],
        by: Measure = "sum",
        samples: int = 128,
        seed: int = 0,
        sampler: str | None = None,
        sampler_options: Mapping[str, Any] | None = None,
    ) -> list[ScoredOption]:
        """Rank the options of a multiple-choice question, most likely first.

        Args:
            by: the measure: log p of the whole option, per token, or per byte of UTF-8 (the last two do not favour
                short options). samples, seed, sampler, sampler_options: as in ``score``, the same for every option.
        Raises:
            UserError: fewer than two options, or an empty one.
        """
        return scoring.rank(self, prompt, options, by, samples, seed, sampler, sampler_options)

    def decide(
        self,
        text: str,
        labels: Labels,
        rows: Sequence[Row] = ({},),
        prompt: str = "",
        **settings: Unpack[DecisionKeywords],
    ) -> list[Decision]:
        """Which label belongs into each slot of a text, with a probability for each label. One decision for each row.

        ``decide("Review: {text} Mood: [mood]", {"mood": ["good", "bad"]}, [{"text": "I liked it."}])`` takes one
        forward pass of a masked model for all slots, labels and rows, and likelihoods of other models. The module
        ``generation.decide`` gives the equations. A decision does not depend on the other rows.

        Args:
            text: ``[name]`` is a slot, ``{name}`` a field that each row fills. labels: of each slot.
            rows: the text of each field. prompt: what the text answers, for models of pairs; it may have fields.
            settings: the fields of ``DecisionSettings``.
        Raises:
            UserError: a slot without labels, labels that are equal or that the vocabulary can't express, a missing
                field, or a method that the model can't use.
        """
        given = {key: value for key, value in settings.items() if value is not None}
        chosen = configs.build(DecisionSettings, given, "settings of a decision")
        return decisions.decide(self, text, labels, rows, prompt, chosen)

    # ---- saving

    def save(self, folder: str | Path, storage: str = "float32", card: str = "") -> None:
        """Write a model folder atomically: configuration, generation settings, weights, tokenizer and card.

        If the model has an adapter, only the adapter is written, in the format of ``peft``. It names its base model,
        which ``redraft.load`` then reads too.

        Raises:
            UserError: the folder can't be written.
        """
        from redraft import saving

        saving.save(self, folder, storage, card)


def check_fit(model: Model) -> None:
    """Check that a model's network matches its family and its data.

    Raises:
        UserError: it doesn't match.
    """
    network, spec = model.network, model.spec
    if network.needs_prompt and not spec.network.prompt_encoder:
        reason = "the family does not isolate the prompt" if model.paired else "the data are plain text"
        raise UserError(
            f"A '{network.name}' network encodes a prompt, but {reason}.",
            "Train on pairs (--input and --target) with prompt_encoder on, or use the network 'transformer'.",
        )
    if spec.network.prompt_encoder and not network.isolates_prompts:
        raise UserError(f"A '{network.name}' network reads prompts causally.", "Set prompt_encoder to false.")
    latents = spec.family.continuous
    if (None if latents is None else (latents.width, latents.ratio, latents.tokens)) != network.config.vectors:
        raise UserError(
            f"A '{network.name}' network of this shape is not for family '{model.family_name}'.",
            "Train one from scratch, or restore the family's width and ratio.",
        )


def check_vocabulary(shape: Any, tokenizer: Tokenizer, where: str) -> None:
    """Check that network and tokenizer have the same vocabulary.

    Raises:
        UserError: they differ; ``where`` names the source for the message.
    """
    if shape.vocab_size != tokenizer.vocab_size:
        what = f"{where}: vocab_size = {shape.vocab_size} differs from the tokenizer's {tokenizer.vocab_size}."
        raise UserError(what, f"Set vocab_size to {tokenizer.vocab_size}.")
