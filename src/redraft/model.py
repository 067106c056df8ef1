"""A model: network, tokenizer and family together. The public door of the package."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from redraft import canvas as canvases
from redraft import config as configs
from redraft import models, weights
from redraft.decode import CachePolicy, Constraint, Counter, Guidance, Loop, Method
from redraft.drafting import Drafting
from redraft.errors import UserError, suggest
from redraft.families import build_family
from redraft.files import atomic_folder, write_atomically
from redraft.models._lean import Lean, Weights
from redraft.models._lean_cross import LeanCross
from redraft.models.parts.backbone import Backbone
from redraft.registry import find
from redraft.samplers._blockwise import Blockwise
from redraft.samplers._resizing import Resizing
from redraft.settings import Settings
from redraft.types import Canvas, Forward, Generation, Network, Sampler, Spec, Step

if TYPE_CHECKING:
    from redraft.data.tokenizer import Tokenizer
    from redraft.length import AnswerLength, Row
    from redraft.likelihood import Bound
    from redraft.models.parts.lora import Lora

FORMAT = 1
_TYPE, _ARCHITECTURE = "redraft", "RedraftModel"  # what transformers calls it (``interop.transformers``)


@dataclass(frozen=True)
class Described:
    """What a model folder's config.json holds."""

    redraft_format: int
    family: dict[str, Any]
    network: dict[str, Any]
    conditional: bool
    vocabulary: dict[str, Any] | None = None  # of a public checkpoint (``data.vocabulary.Ids``); else the tokenizer's
    model_type: str = _TYPE  # these two are for transformers
    architectures: tuple[str, ...] = (_ARCHITECTURE,)


@dataclass(frozen=True)
class Ranked:
    """An option and how likely it is."""

    option: str
    score: float  # log p, or its lower bound: of the whole, per token, or per byte
    stderr: float  # Monte-Carlo error of ``score``; 0 where it is exact


class Model:
    """Network, tokenizer and family. Make one with ``Model.fresh`` or ``redraft.load``."""

    def __init__(
        self,
        network: Backbone,
        tokenizer: Tokenizer,
        family: Any,
        family_name: str,
        conditional: bool,
        defaults: Mapping[str, Any] | None = None,
    ) -> None:
        self.network, self.tokenizer, self.family, self.family_name = network, tokenizer, family, family_name
        self.conditional = conditional  # trained on prompt -> answer pairs rather than plain text
        self.defaults = dict(defaults or {})  # generation settings of this model, as Settings fields
        self.drafter: Model | None = None  # see ``draft_with``
        self.public: Mapping[str, weights.Place] | None = None  # names of its tensors in the public checkpoint it is of
        self.adapter: Lora | None = None  # with one, the network's matrices are ``Adapted``; made for ``base``
        self.base = ""
        self._lean: tuple[tuple[str | int, ...], Lean | LeanCross] | None = (
            None  # with the versions of the weights it was made of
        )
        self.check_prompt()
        self._check_vectors()

    def _check_vectors(self) -> None:
        """Raises UserError for a network that diffuses other vectors than the family, or none where it should."""
        what, own = self.spec.continuous, self.network.config
        wanted = None if what is None else (what.width, what.ratio, what.tokens)
        ratio = getattr(own, "ratio", 0)  # 0: of embeddings
        found = (own.width, max(ratio, 1), not ratio) if hasattr(own, "width") else None
        if wanted != found:
            raise UserError(
                f"a '{models.name_of(self.network)}' network of this shape is not for family '{self.family_name}'.",
                "Train one from scratch, or restore the family's width and ratio.",
            )

    def check_prompt(self) -> None:
        """Raises UserError where the network encodes prompts and the model has none to encode."""
        if self.network.needs_prompt and not self.spec.isolate_prompt:
            name = models.name_of(self.network)
            why = "the family does not isolate the prompt" if self.conditional else "the data are plain text"
            raise UserError(
                f"a '{name}' network encodes a prompt, but {why}.",
                "Train on pairs (--input and --target) with isolate_prompt on, or take the network 'transformer'.",
            )

    @classmethod
    def fresh(
        cls, family: Mapping[str, Any], tokenizer: Tokenizer, shape: Any, conditional: bool, seed: int = 0
    ) -> Model:
        """A new, untrained model. ``family`` is ``{"name": ..., **fields}``, ``shape`` the ``Config`` of a network.

        Special tokens that it needs are added.
        """
        name, built = build_family(family)
        spec = built.spec(tokenizer)
        shape = built.shape(shape) if hasattr(built, "shape") else shape  # a network of the family's own
        check_vocabulary(shape, tokenizer, "model")
        tokenizer = tokenizer.having(getattr(built, "specials", ()))
        shape = replace(shape, vocab_size=spec.vocab_size, shift=spec.shift, timed=spec.timed)
        if spec.edits:
            if not hasattr(shape, "edits"):
                raise UserError(f"this network predicts no edits, and family '{name}' does.", "Take the transformer.")
            shape = replace(shape, edits=True)
        if spec.guesses:
            if not hasattr(shape, "guess"):
                raise UserError("this network can't be told what it predicted before.", "Take the transformer.")
            shape = replace(shape, guess=True)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            network = models.build(shape)
        return cls(network, tokenizer, built, name, conditional)

    @property
    def spec(self) -> Spec:
        """What objective and sampler may know. Plain-text models have no isolated prompt and no length head."""
        spec: Spec = self.family.spec(self.tokenizer)
        if not self.conditional:
            spec = replace(spec, isolate_prompt=False, length_head=False)
            if spec.drafter is not None:
                spec = replace(spec, drafter=replace(spec.drafter, isolate_prompt=False, length_head=False))
        if self.drafter is not None:
            spec = replace(spec, drafter=replace(self.drafter.spec, net="drafter"))
        return spec

    def draft_with(self, drafter: Model | None) -> Model:
        """Let a diffusion model draft for this one where it writes by ``draft_verify``; None takes it away again.

        Raises:
            UserError: a drafter that is no diffusion model, or one with another tokenizer or kind of data.
        """
        if drafter is not None:
            if drafter.spec.schedule is None:
                raise UserError(f"a model of family '{drafter.family_name}' can't draft.", "Take a diffusion model.")
            if drafter.tokenizer.fingerprint != self.tokenizer.fingerprint:
                raise UserError(
                    "the drafter has another tokenizer.", "Take two models that were trained with the same."
                )
            if drafter.conditional != self.conditional:
                what = ["plain text", "pairs"]
                raise UserError(
                    f"the drafter was trained on {what[drafter.conditional]}, this model on {what[self.conditional]}.",
                    "Take two models that were trained on the same kind of data.",
                )
        self.drafter = drafter
        return self

    @property
    def room(self) -> int:
        """Positions a text may take. The last block of an answer is filled up, so that it may need more than it has."""
        return self.network.config.max_length - max(0, self.spec.attend.block - 1) * self.conditional

    @property
    def parameters(self) -> int:
        return sum(p.numel() for p in self.network.parameters())

    # ---- using it

    def logits(self, ids: Tensor) -> Tensor:
        """Raw logits [B, L, V] for ids [B, L]: of the next token for causal models, of the same position for others."""
        rows, length = ids.shape
        self.check_length(length)
        pos = torch.arange(length).expand(rows, -1)
        spec = self.spec
        with torch.inference_mode():
            t = torch.zeros(rows) if spec.timed else None
            flat = self.network.eval()(Forward(x=ids, pos=pos, want=pos + spec.shift, attend=spec.attend, t=t))
        return flat.view(rows, length, -1)

    def generate(
        self,
        prompts: str | Sequence[str | Sequence[int]],
        batch_size: int = 32,
        keep_trace: bool = False,
        on_batch: Callable[[int], None] | None = None,
        **settings: Any,
    ) -> list[Generation]:
        """Write a text for every prompt, given as text or as ids. ``settings`` are the fields of ``Settings``.

        A text depends on its prompt, the settings and the seed, never on its neighbours: row i uses seed + i.
        ``on_batch`` is told after each batch how many texts are written.

        Raises:
            UserError: unknown setting or sampler option, prompt longer than the context, or an empty one for a model of
                pairs.
        """
        if batch_size < 1:
            raise UserError(f"batch_size = {batch_size} must be at least 1.")
        prompts = [prompts] if isinstance(prompts, str) else list(prompts)
        chosen = self.settings(**settings)
        found: list[Generation] = []
        for begin in range(0, len(prompts), batch_size):
            part = replace(chosen, seed=chosen.seed + begin)
            heads = [self.asked(prompt) for prompt in prompts[begin : begin + batch_size]]
            drafting = self.draft(heads, part, keep_trace)
            for _ in drafting:
                pass
            found += drafting.results()
            if on_batch is not None:
                on_batch(len(found))
        return found

    def stream(self, prompt: str | Sequence[int], **settings: Any) -> Iterator[Step]:
        """The steps of one generation as they happen."""
        yield from self.draft([self.asked(prompt)], self.settings(**settings))

    def settings(self, **given: Any) -> Settings:
        """The model's own generation settings, overridden by those given (None: not given).

        Where only the number of tokens is given, the model's own steps are lowered to it. Steps given as an option of
        the sampler win over the model's own.

        Raises:
            UserError: unknown setting, or a value of the wrong type or out of range.
        """
        given = {key: value for key, value in given.items() if value is not None}
        own = dict(self.defaults)
        if "sampler" in given and given["sampler"] != own.get("sampler"):
            own = {key: value for key, value in own.items() if key not in ("sampler", "steps", "options")}
        chosen = configs.build(Settings, {**own, **given}, "generation settings")
        if "steps" in chosen.options and "steps" not in given:
            return replace(chosen, steps=None)  # the model's own steps do not win over those of the sampler's options
        if "max_new_tokens" in given and "steps" not in given and chosen.steps is not None:
            chosen = replace(chosen, steps=min(chosen.steps, chosen.max_new_tokens))
        return chosen

    def method(self, settings: Settings) -> Method:
        """Resolve settings into a sampler, a cache policy, guidance and constraints."""
        default = self.family.sampler()
        kind = type(default) if settings.sampler is None else find("samplers", settings.sampler)
        own = configs.to_mapping(default) if settings.sampler is None else {}
        options = {**{key: value for key, value in own.items() if key != "steps"}, **settings.options}
        fields = getattr(kind, "__dataclass_fields__", {})
        name = settings.sampler or kind.__module__.rsplit(".", 1)[-1]
        if settings.steps is not None:
            if "steps" not in fields:
                raise UserError(
                    f"sampler '{name}' has no option 'steps'.", f"Its options: {', '.join(fields) or 'none'}."
                )
            options["steps"] = settings.steps
        elif "steps" in fields and "steps" not in options:
            options["steps"] = min(16, settings.max_new_tokens, self.spec.attend.block or settings.max_new_tokens)
        sampler: Sampler = configs.build(kind, options, f"sampler '{name}'")
        if self.spec.attend.kind == "block":
            sampler = Blockwise(sampler)
        if self.spec.expand_id >= 0:
            sampler = Resizing(sampler)
        if self._latent and settings.guidance not in (None, "classifier_free"):
            raise UserError(f"guidance '{settings.guidance}' needs predictions of tokens.", "Take classifier_free.")
        return Method(sampler, _cache(settings), self._guidance(settings), self.constraint(settings))

    @property
    def _latent(self) -> bool:
        return self.spec.continuous is not None and not self.spec.continuous.tokens

    def constraint(self, settings: Settings) -> Constraint | None:
        """What texts must satisfy; None: nothing.

        Raises:
            UserError: a model that can't be held to it, or as ``constraints.build``.
        """
        from redraft.constraints import build_all

        if not settings.constraint:
            return None
        if self._latent or self.spec.edits:
            what = "decides on vectors, not on tokens" if self._latent else "begins with tokens and exchanges them"
            raise UserError(
                f"a model of family '{self.family_name}' {what}: it can't be constrained.",
                f"Take a masked model, or one of family '{'embedding' if self._latent else 'expand'}'.",
            )
        if settings.start is not None:
            raise UserError("under a constraint no text grows from a start.", "Leave start out.")
        return build_all(settings.constraint, self.tokenizer)

    def _guidance(self, settings: Settings) -> Guidance | None:
        if settings.guidance is None:
            if settings.guide:
                raise UserError("options of a guidance need its name.", "For example --guidance classifier_free.")
            return None
        kind = find("guidance", settings.guidance)
        built: Guidance = configs.build(kind, settings.guide, f"guidance '{settings.guidance}'").ready(self.tokenizer)
        return built

    def draft(self, prompts: Sequence[str | Sequence[int]], settings: Settings, keep_trace: bool = False) -> Drafting:
        """Set up a generation without running it."""
        return self.compose([self.prompt_ids(prompt) for prompt in prompts], settings, keep_trace).begin()

    def compose(self, heads: Sequence[list[int]], settings: Settings, keep_trace: bool = False) -> Drafting:
        """A generation from prompts as ids, of which nothing has run yet."""
        return self.prepare(settings=settings, keep_trace=keep_trace, **self._rows(heads, settings))

    def check(self, settings: Settings) -> None:
        """Raises UserError for settings that this model refuses to write with. Nothing runs."""
        head = [
            0 if not self.tokenizer.has("mask") or self.tokenizer.mask_id else 1
        ]  # any token: it may be of ids alone
        method, spec, board, _ = self._board(settings=settings, **self._rows([head], settings))
        method.sampler.start(board, spec)
        self._form(settings.weights)

    def _rows(self, heads: Sequence[list[int]], settings: Settings) -> dict[str, Any]:
        """What ``prepare`` is given for prompts."""
        for head in heads:
            self.check_length(len(head) + settings.max_new_tokens, prompt=len(head))
        if self.spec.grows:
            return self._growing(heads, settings)
        if settings.start is not None:
            raise UserError(f"a model of family '{self.family_name}' does not change the length.", "Leave start out.")
        rows = [[*head, *[None] * settings.max_new_tokens] for head in heads]
        return {"rows": rows, "prompts": [len(head) for head in heads]}

    def _length(self, settings: Settings) -> str:
        """How output lengths come about.

        Raises:
            UserError: this model can't do it in the way that was asked for.
        """
        spec = self.spec
        if settings.length == "head" and not spec.length_head:
            raise UserError("this model has no length head.", "Use length 'search' or 'fixed'.")
        if settings.ignore_eos and settings.length in ("head", "search"):
            raise UserError(f"length '{settings.length}' needs the end-of-text.", "Leave ignore_eos out.")
        ends_itself = spec.schedule is None or spec.attend.kind == "block" or spec.grows
        if settings.length == "search" and ends_itself:
            raise UserError(f"a model of family '{self.family_name}' ends its text itself.", "Leave length at 'auto'.")
        if settings.length != "auto":
            return settings.length
        if settings.ignore_eos:
            return "fixed"
        if spec.length_head:
            return "head"
        return "search" if self.conditional and not ends_itself else "fixed"

    def _growing(self, heads: Sequence[list[int]], settings: Settings) -> dict[str, Any]:
        """Rows that begin short, or with a predicted length, and may grow to ``max_new_tokens``.

        Under a constraint, which counts positions, a length that is predicted (or ``max_new_tokens``) stands.
        """
        if settings.ignore_eos:
            raise UserError("ignore_eos needs a length that stands.", "Leave it out.")
        if settings.constraint:
            whole = [[*head, *[None] * settings.max_new_tokens] for head in heads]
            return {"rows": whole, "prompts": [len(head) for head in heads]}
        prompts, most = [len(head) for head in heads], settings.max_new_tokens
        limits = [prompt + most for prompt in prompts]
        if settings.start is None and self._length(settings) == "head":
            rows: list[list[int | None]] = [[*head, *[None] * most] for head in heads]
            return {"rows": rows, "prompts": prompts, "growth": canvases.Growth(limits)}
        closing = self.closing
        start = self.family.start if settings.start is None else settings.start
        free = min(start, most - len(closing))
        rows = [[*head, *[None] * free, *closing] for head in heads]
        growth = canvases.Growth(limits, [[prompt] for prompt in prompts] if closing else ())
        return {"rows": rows, "prompts": prompts, "length_known": True, "growth": growth}

    @property
    def closing(self) -> list[int]:
        """What stands at the end of an answer that is to be filled. Where cells are inserted, one has to be there."""
        return [self.tokenizer.eos_id] if self.conditional or self.spec.edits else []

    def fill_rows(
        self,
        rows: Sequence[Row],
        prompts: Sequence[int],
        settings: Settings,
        free: int,
        growth: canvases.Growth | None = None,
    ) -> Drafting:
        """A generation of rows in which everything free is to be filled, at most ``free`` tokens a row.

        ``growth``: for models that change the length.
        """
        steps = settings.steps if settings.steps is None else min(settings.steps, free)
        lowered = replace(settings, steps=steps, max_new_tokens=free)
        return self.prepare(rows, prompts, lowered, length_known=True, growth=growth)

    def prepare(
        self,
        rows: Sequence[Sequence[int | None]],
        prompts: Sequence[int],
        settings: Settings,
        keep_trace: bool = False,
        length_known: bool = False,
        growth: canvases.Growth | None = None,
    ) -> Drafting:
        """A generation of which nothing has run yet, from rows of ids with None at free positions.

        Args:
            prompts: length of each row's leading prompt. length_known: every free position is to be filled.
            growth: how far rows may grow, if their lengths are not to stand.
        Raises:
            UserError: rows longer than the context, or settings that do not go with this model.
        """
        method, spec, board, how = self._board(rows, prompts, settings, length_known, growth)
        networks = {"main": self.writer(settings.weights)}
        if self.drafter is not None:
            networks["drafter"] = self.drafter.writer(settings.weights)
        loop = Loop(networks, method, spec, Counter())
        trace: list[Step] | None = [] if keep_trace else None
        looked_for, chosen = self._answer_length() if how == "search" else None, how in ("head", "search")
        return Drafting(board, loop, self.tokenizer, method.sampler.width == 1, trace, chosen, looked_for)

    def _board(
        self,
        rows: Sequence[Sequence[int | None]],
        prompts: Sequence[int],
        settings: Settings,
        length_known: bool = False,
        growth: canvases.Growth | None = None,
    ) -> tuple[Method, Spec, Canvas, str]:
        """Of a generation (``prepare``): how it is written, for what kind of model, on what, and whence its lengths."""
        self.check_length(max(map(len, rows)))
        method, spec = self.method(settings), self.spec
        if settings.ignore_eos:
            spec = replace(spec, eos_id=-1)
        self.check_mask()
        if growth is not None and method.constraint is not None:
            raise UserError(
                "a constraint needs a length that stands, and this model changes it.", "Take another model for it."
            )
        how = "fixed" if length_known else self._length(settings)
        chosen = how in ("head", "search")
        if settings.candidates > 1 and not chosen and not length_known:
            raise UserError(
                f"candidates = {settings.candidates}: this model does not choose its length beforehand.",
                "Leave it at 1.",
            )
        copies = method.sampler.width if method.sampler.width > 1 else settings.candidates if chosen else 1
        board = canvases.make_canvas(
            rows,
            prompts,
            spec,
            seeds=[settings.seed + number for number in range(len(rows))],
            copies=copies,
            temperature=settings.temperature,
            top_k=settings.top_k,
            top_p=settings.top_p,
            growth=growth,
        )
        return method, spec, board, how

    def _answer_length(self) -> AnswerLength:
        """What looks for the length of an answer where there is no length head."""
        from redraft.length import AnswerLength

        return AnswerLength(self.spec, self.prompt_ids(""), self.closing)

    def writer(self, kind: Weights = "float32") -> Network:
        """The network in its fastest form for writing, kept for as long as its weights stay the same.

        Raises:
            UserError: other weights than float32 for a network that has no such form here.
        """
        network, form = self.network.eval(), self._form(kind)
        if form is None:
            return network
        made_of = (kind, *(parameter._version for parameter in network.parameters()))
        if self._lean is None or self._lean[0] != made_of:
            self._lean = made_of, form(network, kind)  # type: ignore[arg-type]
        return self._lean[1]

    def _form(self, kind: Weights) -> type[Lean] | type[LeanCross] | None:
        form = next((form for form in (Lean, LeanCross) if form.fits(self.network)), None)
        if form is None and kind != "float32":
            raise UserError(f"{kind} weights are for float32 models on a CPU.", "Leave weights at float32.")
        return form

    def infill(self, text: str, prompt: str = "", prefix: str = "", suffix: str = "", **settings: Any) -> Generation:
        """Fill the holes of a text: ``"The [[3]] sat on [[1-4]], [[?]]."`` has one of three tokens, one of one to four,
        and one of unknown length (1 to 12), which the model chooses.

        Args:
            prompt: what the text answers, for models of pairs. prefix, suffix: text before and after, taken as it is.
        Raises:
            UserError: no hole, one of no tokens, or a model that can't see what follows one.
        """
        from redraft import infilling

        return infilling.fill(self, [prefix, *infilling.parse(text), suffix], prompt, self._filling(settings))

    def edit(self, text: str, span: str | tuple[int, int], prompt: str = "", **settings: Any) -> Generation:
        """Rewrite one part of a text and nothing else: the words ``span``, where they stand first, or the characters
        from a to b. The new wording has half to twice the tokens of the old one.

        Raises:
            UserError: the text has no such part, or a model that can't see what follows it.
        """
        from redraft import infilling

        old = span if isinstance(span, str) else text[slice(*span)]
        parts = infilling.without(text, span, len(self.tokenizer.encode(old)))
        return infilling.fill(self, parts, prompt, self._filling(settings))

    def _filling(self, given: Mapping[str, Any]) -> Settings:
        """Settings for holes, whose sizes say how much is written."""
        if "max_new_tokens" in given:
            raise UserError("infilling has no option 'max_new_tokens'.", "The holes say how much is written.")
        return self.settings(**given)

    def score(
        self,
        prompt: str,
        continuation: str,
        samples: int = 128,
        seed: int = 0,
        sampler: str | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> Bound:
        """-log p(continuation | prompt): exact for AR, an upper bound with its Monte-Carlo error for diffusion.

        A model trained on pairs is asked for the whole answer, end-of-text included. With ``sampler`` it is the
        likelihood under that sampler (``likelihood.under``), exact for ``sampler="confidence"`` with an order such as
        ``{"order": "margin"}``, and of as many passes as there are tokens unless ``steps`` says fewer.
        """
        from redraft import likelihood

        encode = self.tokenizer.encode_target if self.conditional else self.tokenizer.encode
        head, tail = self.prompt_ids(prompt), encode(continuation)
        self.check_length(len(head) + len(tail), most=self.room)
        size, where = len(continuation.encode()), self.network.device
        if sampler is None:
            objective = self.family.objective()
            return likelihood.score(self.network, head, tail, objective, self.spec, samples, seed, where, size)
        batch = likelihood.one_row(head, tail, size)
        settings = Settings(max_new_tokens=max(1, len(tail)), sampler=sampler, options=options or {})
        if "steps" not in settings.options and "steps" in find("samplers", sampler).__dataclass_fields__:
            settings = replace(settings, steps=max(1, len(tail)))
        return likelihood.under(self.network, [batch], self.method(settings).sampler, self.spec, samples, seed)

    def rolling(self, text: str, stride: int = 0, samples: int = 4, seed: int = 0) -> Bound:
        """-log p of a text of any length, read window by window (``likelihood.rolling``): exact for AR, else a bound.

        Raises:
            UserError: a model of pairs, or no text.
        """
        from redraft import likelihood

        if self.conditional:
            raise UserError("this model answers prompts: it has no likelihood of plain text.", "Use score.")
        ids = [self.tokenizer.bos_id, *self.tokenizer.encode(text)]
        window, where = self.network.config.max_length, self.network.device
        objective, size = self.family.objective(), len(text.encode())
        return likelihood.rolling(self.network, ids, objective, self.spec, window, stride, samples, seed, where, size)

    def rank(
        self,
        prompt: str,
        options: Sequence[str],
        by: Literal["sum", "token", "byte"] = "sum",
        samples: int = 128,
        seed: int = 0,
        sampler: str | None = None,
        sampler_options: Mapping[str, Any] | None = None,
    ) -> list[Ranked]:
        """Options of a multiple-choice question, the likeliest first.

        Args:
            by: what is compared: log p of the whole option, per token, or per byte of UTF-8 (the last two do not favour
                short options). samples, seed, sampler, sampler_options: as in ``score``, alike for every option.
        Raises:
            UserError: fewer than two options, or an empty one.
        """
        if len(options) < 2:
            raise UserError("there is nothing to choose from.", "Give two options or more.")
        if by not in ("sum", "token", "byte"):
            raise UserError(f"unknown measure '{by}'.", suggest(by, ("sum", "token", "byte")))
        found = []
        for option in options:
            bound = self.score(prompt, option, samples, seed, sampler, sampler_options)
            unit = {"sum": 1, "token": bound.tokens, "byte": max(1, bound.bytes)}[by]
            found.append(Ranked(option, -bound.nats / unit, bound.stderr / unit))
        return sorted(found, key=lambda one: -one.score)

    def prompt_ids(self, prompt: str | Sequence[int]) -> list[int]:
        """A prompt as it was in training: ids, and the separator or the beginning of text. Ids are taken as they are.

        Raises:
            UserError: an id that is not in the vocabulary.
        """
        if not isinstance(prompt, str):
            return self._known_ids(prompt)
        return self.tokenizer.encode_prompt(prompt) if self.conditional else self.tokenizer.encode_opening(prompt)

    def asked(self, prompt: str | Sequence[int]) -> list[int]:
        """``prompt_ids`` of a prompt that somebody wants an answer to.

        Raises:
            UserError: as ``prompt_ids``; or a model of pairs has nothing to answer.
        """
        if self.conditional and isinstance(prompt, str) and not prompt.strip():
            raise UserError(
                "the prompt is empty, and this model answers prompts.",
                "Give it one; a model of plain text can begin from nothing.",
            )
        return self.prompt_ids(prompt)

    def _known_ids(self, ids: Sequence[int]) -> list[int]:
        size = self.network.config.vocab_size
        for i in ids:
            if not 0 <= i < size:
                raise UserError(f"prompt id {i} lies beyond the vocabulary of {size}.")
        return [int(i) for i in ids]

    def check_mask(self) -> None:
        """Raises UserError where a masked model's files don't say which token the mask is."""
        spec = self.spec
        if spec.schedule is not None and spec.process == "absorbing" and not self.tokenizer.has("mask"):
            raise UserError(
                "this checkpoint's files don't name its mask token.", "Say which id it is: load(..., mask_id=...)."
            )

    def check_length(self, length: int, prompt: int = 0, most: int = 0) -> None:
        """Raises UserError for a text that is longer than ``most`` (0: the context)."""
        most = most or self.network.config.max_length
        if length > most:
            what = f"prompt of {prompt} tokens and {length - prompt} new ones" if prompt else f"{length} tokens"
            raise UserError(
                f"{what} do not fit the model's context of {most}.", "Shorten the prompt or lower --max-new-tokens."
            )

    # ---- keeping it

    def save(self, folder: str | Path, storage: str = "float32", card: str = "") -> None:
        """Write a model folder (config, generation settings, weights, tokenizer, card), whole or not at all.

        Of a model with an adapter the adapter is written alone, in the layout of ``peft``: ``redraft.load`` finds its
        base model by itself.
        """
        from redraft.data.vocabulary import Vocabulary

        if self.adapter is not None:
            from redraft import adapters

            return adapters.save(self, folder, card)

        with atomic_folder(Path(folder)) as new:
            described = {
                "redraft_format": FORMAT,
                "family": {"name": self.family_name, **configs.to_mapping(self.family)},
                "network": models.describe(self.network),
                "conditional": self.conditional,
                "model_type": _TYPE,
                "architectures": [_ARCHITECTURE],
            }
            if isinstance(self.tokenizer, Vocabulary):
                described["vocabulary"] = configs.to_mapping(self.tokenizer.ids)
            write_atomically(new / "config.json", json.dumps(described, indent=2) + "\n")
            write_atomically(new / "generation_config.json", json.dumps(self.defaults, indent=2) + "\n")
            self.tokenizer.save(new)
            if card:
                write_atomically(new / "README.md", card)
            from safetensors.torch import save_file

            save_file(weights.pack(self.network.state_dict(), storage), str(new / "model.safetensors"))


def _cache(settings: Settings) -> CachePolicy | None:
    if settings.cache == "none":
        return None
    policy: CachePolicy = configs.build(
        find("caches", settings.cache), settings.cache_options, f"cache '{settings.cache}'"
    )
    return policy


def check_vocabulary(shape: Any, tokenizer: Tokenizer, where: str) -> None:
    if shape.vocab_size != tokenizer.vocab_size:
        raise UserError(f"{where}: vocab_size {shape.vocab_size} is not the tokenizer's {tokenizer.vocab_size}.")
