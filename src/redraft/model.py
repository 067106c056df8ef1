"""A model: network, tokenizer and family together. The public door of the package."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from redraft import canvas as canvases
from redraft import config as configs
from redraft import models, runtime, weights
from redraft.decode import CachePolicy, Constraint, Counter, Guidance, Loop, Method, Turns
from redraft.errors import UserError, suggest
from redraft.files import atomic_folder, write_atomically
from redraft.models._lean import Lean, Weights
from redraft.models.parts.backbone import Backbone
from redraft.models.transformer import Config, Transformer
from redraft.registry import find
from redraft.samplers._blockwise import Blockwise
from redraft.types import Canvas, Forward, Generation, Network, Sampler, Spec, Step

if TYPE_CHECKING:
    from redraft.data.tokenizer import Tokenizer
    from redraft.length import Row
    from redraft.likelihood import Bound

_FORMAT = 1
_TYPE, _ARCHITECTURE = "redraft", "RedraftModel"  # what transformers calls it (``interop.transformers``)


@dataclass(frozen=True)
class Settings:
    """How to generate. ``None`` takes the family's or the model's own choice."""

    max_new_tokens: int = 64
    sampler: str | None = None
    steps: int | None = None
    options: Mapping[str, Any] = field(default_factory=dict)  # further fields of the sampler
    constraint: Mapping[str, Any] = field(default_factory=dict)  # kind -> text; all of them hold (constraints/)
    guidance: str | None = None
    guide: Mapping[str, Any] = field(default_factory=dict)  # fields of the guidance
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    candidates: int = 1  # output lengths tried per prompt; the model picks the likeliest text
    # head: predicted from the prompt; search: looked for before anything is written; fixed: max_new_tokens, or up to an
    # end-of-text; auto: by the head where there is one, else a search for models of pairs and fixed for plain text
    length: Literal["auto", "head", "search", "fixed"] = "auto"
    cache: str = "exact"  # what passes may reuse: a file of caches/, or none
    cache_options: Mapping[str, Any] = field(default_factory=dict)  # fields of the cache policy
    weights: Weights = "float32"  # on CPUs: bfloat16, or int8 for passes over one position, may be faster, and round
    ignore_eos: bool = False  # write all max_new_tokens; an end-of-text is a token like any other
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("max_new_tokens", 1), ("candidates", 1), ("top_k", 0)):
            if getattr(self, name) < least:
                raise UserError(f"{name} = {getattr(self, name)} must be at least {least}.")
        if not 0 <= self.temperature < float("inf"):
            raise UserError(f"temperature = {self.temperature} must be a number of at least 0.")
        if not 0 <= self.top_p <= 1:
            raise UserError(f"top_p = {self.top_p} must lie in [0, 1].")
        if abs(self.seed) >= 1 << 62:
            raise UserError(f"seed = {self.seed} is too large.", "Use one below 2^62.")


@dataclass(frozen=True)
class _Described:
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


@dataclass
class Drafting:
    """A generation under way: iterate over it for its steps, then take the results."""

    canvas: Canvas
    loop: Loop
    tokenizer: Tokenizer
    by_score: bool
    trace: list[Step] | None = None
    unmeasured: bool = False  # its length is still to be chosen

    def begin(self) -> Drafting:
        """Choose the length, where the model does; everything else waits for the iteration."""
        if self.unmeasured:
            self.loop.choose_lengths(self.canvas)
            self.unmeasured = False
        return self

    def turns(self) -> Turns[None]:
        """The whole generation, choice of length included, for a driver that runs the network itself."""
        if self.unmeasured:
            yield from self.loop.lengths(self.canvas)
            self.unmeasured = False
        yield from self.loop.turns(self.canvas)

    def __iter__(self) -> Iterator[Step]:
        for step in self.loop.run(self.canvas):
            if self.trace is not None:
                self.trace.append(step)
            yield step

    def results(self) -> list[Generation]:
        """Texts as they stand, one per request."""
        found = []
        for row in canvases.winners(self.canvas, self.by_score):
            ids, finish = canvases.completion(self.canvas, row, self.loop.spec.eos_id)
            same = self.canvas.request == self.canvas.request[row]
            found.append(
                Generation(
                    text=self.tokenizer.decode(ids),
                    ids=ids,
                    nfe=int(self.canvas.nfe[same].max()),
                    score=float(self.canvas.score[row]),
                    finish=finish,
                    trace=self.trace or [],
                )
            )
        return found


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
        self._lean: tuple[tuple[str | int, ...], Lean] | None = None  # with the versions of the weights it was made of

    @classmethod
    def fresh(
        cls, family: Mapping[str, Any], tokenizer: Tokenizer, shape: Config, conditional: bool, seed: int = 0
    ) -> Model:
        """A new, untrained model. ``family`` is ``{"name": ..., **fields}``."""
        name, built = build_family(family)
        spec = built.spec(tokenizer)
        _check_vocabulary(shape, tokenizer, "model")
        shape = replace(shape, shift=spec.shift, timed=spec.timed)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            network = Transformer(shape)
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
            UserError: unknown setting or sampler option, prompt longer than the context.
        """
        if batch_size < 1:
            raise UserError(f"batch_size = {batch_size} must be at least 1.")
        prompts = [prompts] if isinstance(prompts, str) else list(prompts)
        chosen = self.settings(**settings)
        found: list[Generation] = []
        for begin in range(0, len(prompts), batch_size):
            part = replace(chosen, seed=chosen.seed + begin)
            drafting = self.draft(prompts[begin : begin + batch_size], part, keep_trace)
            for _ in drafting:
                pass
            found += drafting.results()
            if on_batch is not None:
                on_batch(len(found))
        return found

    def stream(self, prompt: str | Sequence[int], **settings: Any) -> Iterator[Step]:
        """The steps of one generation as they happen."""
        yield from self.draft([prompt], self.settings(**settings))

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
        return Method(sampler, _cache(settings), self._guidance(settings), self._constraint(settings))

    def _constraint(self, settings: Settings) -> Constraint | None:
        from redraft.constraints import build_all

        return build_all(settings.constraint, self.tokenizer) if settings.constraint else None

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
        """A generation from prompts as ids. Nothing of it has run yet but a search for its length, if it takes one."""
        for head in heads:
            self.check_length(len(head) + settings.max_new_tokens, prompt=len(head))
        if self._length(settings) == "search":
            return self._searched(heads, settings, keep_trace)
        rows = [[*head, *[None] * settings.max_new_tokens] for head in heads]
        return self.prepare(rows, [len(head) for head in heads], settings, keep_trace)

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
        ends_itself = spec.schedule is None or spec.attend.kind == "block"
        if settings.length == "search" and ends_itself:
            raise UserError(f"a model of family '{self.family_name}' ends its text itself.", "Leave length at 'auto'.")
        if settings.length != "auto":
            return settings.length
        if settings.ignore_eos:
            return "fixed"
        if spec.length_head:
            return "head"
        return "search" if self.conditional and not ends_itself else "fixed"

    def _searched(self, heads: Sequence[list[int]], settings: Settings, keep_trace: bool) -> Drafting:
        """Rows of the likeliest lengths by ``length.AnswerLength``, ``candidates`` of them per prompt."""
        from redraft.length import AnswerLength, search

        closing = [self.tokenizer.eos_id] if self.conditional else []
        measure = AnswerLength(self.writer(), self.spec, self.prompt_ids(""), closing)
        constraint = self._constraint(settings)
        rows: list[list[int | None]] = []
        owners, scores = [], []
        for number, head in enumerate(heads):
            most = max(1, settings.max_new_tokens - len(closing))
            found = search(lambda lengths, head=head: measure.scores(head, lengths), most)  # type: ignore[misc]
            if constraint is not None:
                found = _completable(found, constraint.lengths(settings.max_new_tokens), len(closing))
            total = torch.tensor(list(found.values())).logsumexp(0)
            for length in sorted(found, key=lambda length: -found[length])[: settings.candidates]:
                rows.append([*head, *[None] * length, *closing])
                owners.append(number)
                scores.append(found[length] - float(total))
        prompts = [len(heads[owner]) for owner in owners]
        free = max(1, max(row.count(None) for row in rows))
        steps = None if settings.steps is None else min(settings.steps, free)
        lowered = replace(settings, steps=steps, max_new_tokens=free)  # no more steps than there is to write
        drafting = self.prepare(rows, prompts, lowered, keep_trace, length_known=True, owners=owners)
        drafting.canvas.nfe += 2  # as ``search`` looks twice
        drafting.canvas.score += torch.tensor(scores)
        return drafting

    def fill_rows(self, rows: Sequence[Row], prompts: Sequence[int], settings: Settings, free: int) -> Drafting:
        """A generation of rows in which everything free is to be filled, at most ``free`` tokens a row."""
        steps = settings.steps if settings.steps is None else min(settings.steps, free)
        lowered = replace(settings, steps=steps, max_new_tokens=free)
        return self.prepare(rows, prompts, lowered, length_known=True)

    def prepare(
        self,
        rows: Sequence[Sequence[int | None]],
        prompts: Sequence[int],
        settings: Settings,
        keep_trace: bool = False,
        length_known: bool = False,
        owners: Sequence[int] | None = None,
    ) -> Drafting:
        """A generation of which nothing has run yet, from rows of ids with None at free positions.

        Args:
            prompts: length of each row's leading prompt. length_known: every free position is to be filled.
            owners: the request of each row, where several rows are candidates for one.
        Raises:
            UserError: rows longer than the context, or settings that do not go with this model.
        """
        self.check_length(max(map(len, rows)))
        method, spec = self.method(settings), self.spec
        if settings.ignore_eos:
            spec = replace(spec, eos_id=-1)
        self._check_mask(spec)
        guess = not length_known and self._length(settings) == "head"
        if settings.candidates > 1 and not guess and not length_known:
            raise UserError(
                f"candidates = {settings.candidates}: this model does not choose its length beforehand.",
                "Leave it at 1.",
            )
        copies = method.sampler.width if method.sampler.width > 1 else settings.candidates if guess else 1
        board = canvases.make_canvas(
            rows,
            prompts,
            spec,
            seeds=_seeds(settings.seed, range(len(rows)) if owners is None else owners),
            copies=copies,
            requests=owners,
            temperature=settings.temperature,
            top_k=settings.top_k,
            top_p=settings.top_p,
        )
        networks = {"main": self.writer(settings.weights)}
        if self.drafter is not None:
            networks["drafter"] = self.drafter.writer(settings.weights)
        loop = Loop(networks, method, spec, Counter())
        trace: list[Step] | None = [] if keep_trace else None
        return Drafting(board, loop, self.tokenizer, method.sampler.width == 1, trace, guess)

    def writer(self, kind: Weights = "float32") -> Network:
        """The network in its fastest form for writing, kept for as long as its weights stay the same.

        Raises:
            UserError: other weights than float32 for a network that has no such form here.
        """
        network = self.network.eval()
        if not Lean.fits(network):
            if kind != "float32":
                raise UserError(f"{kind} weights are for float32 models on a CPU.", "Leave weights at float32.")
            return network
        made_of = (kind, *(parameter._version for parameter in network.parameters()))
        if self._lean is None or self._lean[0] != made_of:
            self._lean = made_of, Lean(network, kind)  # type: ignore[arg-type]
        return self._lean[1]

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

    def with_holes(self, parts: Sequence[str | int], prompt: Sequence[int]) -> tuple[list[int | None], int]:
        """A row from a prompt and the parts of a text, in which a number is a hole of that many tokens.

        Returns:
            the row, with None at free positions, and the length of its leading prompt.
        Raises:
            UserError: as ``infill``.
        """
        if self.spec.attend.kind == "causal":
            raise UserError(
                "an autoregressive model can't see what follows a hole.", "Use a diffusion model to infill."
            )
        sizes = [part for part in parts if not isinstance(part, str)]
        if not sizes:
            raise UserError("the text has no hole.", "Write a hole of three tokens as [[3]].")
        if min(sizes) < 1:
            raise UserError("a hole of no tokens can't be filled.", "Write a hole of three tokens as [[3]].")
        self.check_length(sum(sizes))
        row: list[int | None] = list(prompt)
        for part in parts:
            row += self.tokenizer.encode(part) if isinstance(part, str) else [None] * part
        if self.conditional:
            row.append(self.tokenizer.eos_id)
        return row, len(prompt)

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

    def _known_ids(self, ids: Sequence[int]) -> list[int]:
        size = self.network.config.vocab_size
        for i in ids:
            if not 0 <= i < size:
                raise UserError(f"prompt id {i} lies beyond the vocabulary of {size}.")
        return [int(i) for i in ids]

    def _check_mask(self, spec: Spec) -> None:
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
        """Write a model folder (config, generation settings, weights, tokenizer, card), whole or not at all."""
        from redraft.data.vocabulary import Vocabulary

        with atomic_folder(Path(folder)) as new:
            described = {
                "redraft_format": _FORMAT,
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


def holes(text: str) -> list[str | int]:
    """``"The [[3]] sat."`` -> ``["The ", 3, " sat."]``."""
    parts = re.split(r"\[\[(\d+)\]\]", text)
    return [int(part) if number % 2 else part for number, part in enumerate(parts)]


def _seeds(seed: int, owners: Sequence[int]) -> list[int]:
    """One for each row: that of its request, moved on for its second, third ... candidate as for copies of a row."""
    rank = [list(owners[:number]).count(owner) for number, owner in enumerate(owners)]
    return [seed + owner + 0x5EED * place for owner, place in zip(owners, rank, strict=True)]


def build_family(described: Mapping[str, Any]) -> tuple[str, Any]:
    """``{"name": "masked", "schedule": "cosine"}`` -> ("masked", Masked(schedule="cosine"))."""
    if "name" not in described:
        raise UserError("[family] needs a name.", "For example name = 'masked'.")
    name = described["name"]
    fields = {key: value for key, value in described.items() if key != "name"}
    return name, configs.build(find("families", name), fields, f"family '{name}'")


def zoo() -> dict[str, Path]:
    """Shipped checkpoints by name: those under $REDRAFT_ZOO, else under ``zoo/`` of the checkout."""
    root = Path(os.environ.get("REDRAFT_ZOO") or Path(__file__).parents[2] / "zoo")
    return {path.parent.name: path.parent for path in sorted(root.glob("*/config.json"))}


def resolve(name_or_path: str | Path) -> Path:
    """The folder of a model.

    Raises:
        UserError: neither a folder with a config.json nor the name of a shipped checkpoint.
    """
    path = Path(name_or_path)
    if (path / "config.json").is_file():
        return path
    known = zoo()
    if str(name_or_path) in known:
        return known[str(name_or_path)]
    if path.is_dir():
        raise UserError(f"'{path}' has no config.json: it is no model folder.")
    if re.fullmatch(r"[\w.-]+/[\w.-]+", str(name_or_path)) and not path.parent.exists():
        return _from_hub(str(name_or_path))
    raise UserError(f"unknown model '{name_or_path}'.", suggest(str(name_or_path), known))


def _from_hub(name: str) -> Path:
    """A snapshot of a repository of the Hugging Face hub, from its cache where it is there already.

    Raises:
        UserError: no such repository, or it can't be reached.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    wanted = ["*.json", "*.safetensors", "*.jinja", "merges.txt", "vocab.txt", "tokenizer.model"]
    try:
        return Path(snapshot_download(name, allow_patterns=wanted, ignore_patterns=["*/*"]))
    except (HfHubHTTPError, LocalEntryNotFoundError, HFValidationError, OSError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(
            f"'{name}' is neither a folder nor a model that the Hugging Face hub gave: {reason}",
            "Check the name and the network, or give the path of a folder.",
        ) from None


def load(
    name_or_path: str | Path,
    device: str | None = None,
    dtype: torch.dtype = torch.float32,
    mask_id: int | None = None,
) -> Model:
    """Load a model: a folder, a shipped checkpoint by name, or a public checkpoint (``redraft.convert``) from a folder
    or from the Hugging Face hub, whose usual variables (HF_HOME, HF_HUB_OFFLINE) hold.

    Weights are mapped into memory and read file by file into a network of type ``dtype`` on ``device``.

    Args:
        mask_id: the mask token of a public checkpoint whose files don't name it.
    Raises:
        UserError: unknown model, corrupt file, or a configuration that is not understood.
    """
    folder = resolve(name_or_path)
    values = read_json(folder / "config.json")
    if "redraft_format" in values:
        if mask_id is not None:
            raise UserError("mask_id is for public checkpoints: this one knows its own.", "Leave it out.")
        network, files, layout, rest = _open_own(folder, values)
    else:
        network, files, layout, rest = _open_foreign(folder, values, mask_id)
    models.allocate(network, dtype, runtime.device(device))
    with _progress(files) as told:
        weights.fill(network, files, layout, told)
    return Model(network.requires_grad_(False).eval(), *rest)


_Opened = tuple[Backbone, weights.Files, weights.Layout, tuple[Any, ...]]


def _open_own(folder: Path, values: Mapping[str, Any]) -> _Opened:
    """A folder of our own format: its network without weights, and the other arguments of ``Model``."""
    from redraft.data.tokenizer import Tokenizer
    from redraft.data.vocabulary import Ids, Vocabulary

    file = folder / "config.json"
    if values["redraft_format"] != _FORMAT:
        raise UserError(f"{file}: format {values['redraft_format']!r} is not known here.")
    described = configs.build(_Described, values, str(file))
    family_name, family = build_family(described.family)
    network = models.empty(described.network, f"{file} network")
    if described.vocabulary is None:
        tokenizer = Tokenizer.load(folder)
    else:
        tokenizer = Vocabulary(configs.build(Ids, described.vocabulary, f"{file} vocabulary"), folder)
    _check_vocabulary(network.config, tokenizer, str(file))
    spec = family.spec(tokenizer)
    if (network.config.shift, network.config.timed) != (spec.shift, spec.timed):
        raise UserError(f"{file}: this network was not made for family '{family_name}' with these options.")
    defaults = read_json(folder / "generation_config.json") if (folder / "generation_config.json").exists() else {}
    configs.build(Settings, defaults, str(folder / "generation_config.json"))  # checked here, used later
    rest = (tokenizer, family, family_name, described.conditional, defaults)
    return network, weights.Files(folder), weights.Layout.own(network), rest


def _open_foreign(folder: Path, values: Mapping[str, Any], mask_id: int | None) -> _Opened:
    """A public checkpoint: the same."""
    from redraft.convert import open_foreign

    found = open_foreign(folder, values, {} if mask_id is None else {"mask": mask_id})
    family_name, family = build_family(found.plan.family)
    rest = (found.vocabulary, family, family_name, False, found.plan.defaults)
    return found.network, found.files, found.plan.layout, rest


@contextmanager
def _progress(files: weights.Files) -> Iterator[Callable[[int, int], None] | None]:
    """A bar on a terminal for what takes more than a moment."""
    if files.size < _LARGE or not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    columns = (TextColumn("loading"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=files.size)
        yield lambda done, total: bar.update(task, completed=done, total=total)


_LARGE = 1 << 28  # bytes of weights


def _completable(scores: dict[int, float], feasible: Tensor, closing: int) -> dict[int, float]:
    """Of lengths without their ``closing`` tokens, those that a constraint allows; the nearest one if it allows none.

    ``feasible`` is as ``Constraint.lengths`` has it. Where nothing closes a text, it may end before its row does.
    """
    fits = feasible if closing else feasible.cumsum(0) > 0
    kept = {length: score for length, score in scores.items() if fits[length + closing - 1]}
    if kept:
        return kept
    allowed = (fits.nonzero()[:, 0] + 1 - closing).clamp(min=1).tolist()
    best = max(scores, key=lambda length: scores[length])
    return {min(allowed, key=lambda length: abs(length - best)): 0.0}


def _cache(settings: Settings) -> CachePolicy | None:
    if settings.cache == "none":
        return None
    policy: CachePolicy = configs.build(
        find("caches", settings.cache), settings.cache_options, f"cache '{settings.cache}'"
    )
    return policy


def _check_vocabulary(shape: Config, tokenizer: Tokenizer, where: str) -> None:
    if shape.vocab_size != tokenizer.vocab_size:
        raise UserError(f"{where}: vocab_size {shape.vocab_size} is not the tokenizer's {tokenizer.vocab_size}.")


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object; a broken one is a UserError that says where."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"'{path}' does not exist.") from None
    except OSError as error:
        raise UserError(f"can't read '{path}': {error.strerror}.") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"'{path}' is corrupt: {error}.") from None
    if not isinstance(values, dict):
        raise UserError(f"'{path}' must hold a JSON object.")
    return values
