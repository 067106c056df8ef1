"""A model: network, tokenizer and family together. The public door of the package."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from redraft import canvas as canvases
from redraft import config as configs
from redraft import runtime, weights
from redraft.decode import Counter, Guidance, Loop, Method
from redraft.errors import UserError, suggest
from redraft.files import atomic_folder, write_atomically
from redraft.models._lean import Lean
from redraft.models.transformer import Config, Transformer
from redraft.registry import find
from redraft.types import Canvas, Forward, Generation, Network, Spec, Step

if TYPE_CHECKING:
    from redraft.data.tokenizer import Tokenizer
    from redraft.likelihood import Bound

_FORMAT = 1


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
    cache: bool = True
    weights: Literal["float32", "int8"] = "float32"  # of passes over one position: int8 is faster on CPUs, and rounds
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


@dataclass
class Drafting:
    """A generation under way: iterate over it for its steps, then take the results."""

    canvas: Canvas
    loop: Loop
    tokenizer: Tokenizer
    by_score: bool
    trace: list[Step] | None = None

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
        network: Transformer,
        tokenizer: Tokenizer,
        family: Any,
        family_name: str,
        conditional: bool,
        defaults: Mapping[str, Any] | None = None,
    ) -> None:
        self.network, self.tokenizer, self.family, self.family_name = network, tokenizer, family, family_name
        self.conditional = conditional  # trained on prompt -> answer pairs rather than plain text
        self.defaults = dict(defaults or {})  # generation settings of this model, as Settings fields
        self._lean: tuple[tuple[int, ...], Lean] | None = None  # with the versions of the weights it was made of

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
        return spec

    @property
    def parameters(self) -> int:
        return sum(p.numel() for p in self.network.parameters())

    # ---- using it

    def logits(self, ids: Tensor) -> Tensor:
        """Raw logits [B, L, V] for ids [B, L]: of the next token for causal models, of the same position for others."""
        rows, length = ids.shape
        self._check_length(length)
        pos = torch.arange(length).expand(rows, -1)
        spec = self.spec
        with torch.inference_mode():
            t = torch.zeros(rows) if spec.timed else None
            flat = self.network.eval()(Forward(x=ids, pos=pos, want=pos + spec.shift, attend=spec.attend, t=t))
        return flat.view(rows, length, -1)

    def generate(
        self,
        prompts: str | Sequence[str],
        batch_size: int = 32,
        keep_trace: bool = False,
        on_batch: Callable[[int], None] | None = None,
        **settings: Any,
    ) -> list[Generation]:
        """Write a text for every prompt. ``settings`` are the fields of ``Settings``.

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

    def stream(self, prompt: str, **settings: Any) -> Iterator[Step]:
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
        from redraft.caches.exact import Exact
        from redraft.constraints import build_all

        default = self.family.sampler()
        kind = type(default) if settings.sampler is None else find("samplers", settings.sampler)
        options = dict(settings.options)
        fields = getattr(kind, "__dataclass_fields__", {})
        name = settings.sampler or kind.__module__.rsplit(".", 1)[-1]
        if settings.steps is not None:
            if "steps" not in fields:
                raise UserError(
                    f"sampler '{name}' has no option 'steps'.", f"Its options: {', '.join(fields) or 'none'}."
                )
            options["steps"] = settings.steps
        elif "steps" in fields and "steps" not in options:
            options["steps"] = min(16, settings.max_new_tokens)
        return Method(
            sampler=configs.build(kind, options, f"sampler '{name}'"),
            cache=Exact() if settings.cache else None,
            guidance=self._guidance(settings),
            constraint=build_all(settings.constraint, self.tokenizer) if settings.constraint else None,
        )

    def _guidance(self, settings: Settings) -> Guidance | None:
        if settings.guidance is None:
            if settings.guide:
                raise UserError("options of a guidance need its name.", "For example --guidance classifier_free.")
            return None
        kind = find("guidance", settings.guidance)
        built: Guidance = configs.build(kind, settings.guide, f"guidance '{settings.guidance}'").ready(self.tokenizer)
        return built

    def draft(self, prompts: Sequence[str], settings: Settings, keep_trace: bool = False) -> Drafting:
        """Set up a generation without running it."""
        heads = [self._prompt_ids(prompt) for prompt in prompts]
        for head in heads:
            self._check_length(len(head) + settings.max_new_tokens, prompt=len(head))
        rows = [[*head, *[None] * settings.max_new_tokens] for head in heads]
        return self._drafting(rows, [len(head) for head in heads], settings, keep_trace)

    def _drafting(
        self,
        rows: Sequence[Sequence[int | None]],
        prompts: Sequence[int],
        settings: Settings,
        keep_trace: bool = False,
        length_known: bool = False,
    ) -> Drafting:
        method, spec = self.method(settings), self.spec
        guess = spec.length_head and min(prompts) > 0 and not length_known
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
            seeds=[settings.seed + number for number in range(len(rows))],
            copies=copies,
            temperature=settings.temperature,
            top_k=settings.top_k,
            top_p=settings.top_p,
        )
        loop = Loop({"main": self._writer(settings.weights == "int8")}, method, spec, Counter())
        if guess:
            loop.choose_lengths(board)
        return Drafting(board, loop, self.tokenizer, method.sampler.width == 1, [] if keep_trace else None)

    def _writer(self, int8: bool) -> Network:
        """The network in its fastest form for writing, kept for as long as its weights stay the same.

        Raises:
            UserError: int8 weights for a network that has no such form here.
        """
        network = self.network.eval()
        if not Lean.fits(network):
            if int8:
                raise UserError("int8 weights are for float32 models on a CPU.", "Leave weights at float32.")
            return network
        made_of = (int8, *(parameter._version for parameter in network.parameters()))
        if self._lean is None or self._lean[0] != made_of:
            self._lean = made_of, Lean(network, int8)
        return self._lean[1]

    def infill(self, text: str, prompt: str | None = None, **settings: Any) -> Generation:
        """Fill the holes of a text: ``"The [[3]] sat on [[2]]."`` has one of three and one of two tokens.

        Raises:
            UserError: no hole, one of no tokens, or a model that cannot see what follows one.
        """
        import re

        if self.spec.shift:
            raise UserError(
                "an autoregressive model can't see what follows a hole.", "Use a diffusion model to infill."
            )
        parts = re.split(r"\[\[(\d+)\]\]", text)
        if len(parts) < 3:
            raise UserError("the text has no hole.", "Write a hole of three tokens as [[3]].")
        holes = [int(size) for size in parts[1::2]]
        if 0 in holes:
            raise UserError("a hole of no tokens can't be filled.", "Write a hole of three tokens as [[3]].")
        self._check_length(sum(holes))
        head = self._prompt_ids(prompt or "")
        row: list[int | None] = list(head)
        for number, part in enumerate(parts):
            row += [None] * int(part) if number % 2 else self.tokenizer.encode(part)
        if self.conditional:
            row.append(self.tokenizer.eos_id)
        self._check_length(len(row))
        chosen = self.settings(**{**settings, "max_new_tokens": sum(holes)})
        drafting = self._drafting([row], [len(head)], chosen, length_known=True)
        for _ in drafting:
            pass
        return drafting.results()[0]

    def score(self, prompt: str, continuation: str, samples: int = 128, seed: int = 0) -> Bound:
        """-log p(continuation | prompt): exact for AR, an upper bound with its Monte-Carlo error for diffusion.

        A model trained on pairs is asked for the whole answer, end-of-text included.
        """
        from redraft.likelihood import score

        encode = self.tokenizer.encode_target if self.conditional else self.tokenizer.encode
        head, tail = self._prompt_ids(prompt), encode(continuation)
        self._check_length(len(head) + len(tail))
        size = len(continuation.encode())
        objective = self.family.objective()
        return score(self.network, head, tail, objective, self.spec, samples, seed, self.network.device, size)

    def _prompt_ids(self, prompt: str) -> list[int]:
        if self.conditional:
            return self.tokenizer.encode_prompt(prompt)
        return [self.tokenizer.bos_id, *self.tokenizer.encode(prompt)]

    def _check_length(self, length: int, prompt: int = 0) -> None:
        most = self.network.config.max_length
        if length > most:
            what = f"prompt of {prompt} tokens and {length - prompt} new ones" if prompt else f"{length} tokens"
            raise UserError(
                f"{what} do not fit the model's context of {most}.", "Shorten the prompt or lower --max-new-tokens."
            )

    # ---- keeping it

    def save(self, folder: str | Path, storage: str = "float32", card: str = "") -> None:
        """Write a model folder (config, generation settings, weights, tokenizer, card), whole or not at all."""
        with atomic_folder(Path(folder)) as new:
            described = {
                "redraft_format": _FORMAT,
                "family": {"name": self.family_name, **configs.to_mapping(self.family)},
                "network": {"name": "transformer", **configs.to_mapping(self.network.config)},
                "conditional": self.conditional,
            }
            write_atomically(new / "config.json", json.dumps(described, indent=2) + "\n")
            write_atomically(new / "generation_config.json", json.dumps(self.defaults, indent=2) + "\n")
            self.tokenizer.save(new)
            if card:
                write_atomically(new / "README.md", card)
            from safetensors.torch import save_file

            save_file(weights.pack(self.network.state_dict(), storage), str(new / "model.safetensors"))


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
    raise UserError(f"unknown model '{name_or_path}'.", suggest(str(name_or_path), known))


def load(name_or_path: str | Path, device: str | None = None, dtype: torch.dtype = torch.float32) -> Model:
    """Load a model folder or a shipped checkpoint by name.

    Raises:
        UserError: unknown model, corrupt file, or a configuration that is not understood.
    """
    from redraft.data.tokenizer import Tokenizer

    folder = resolve(name_or_path)
    file = folder / "config.json"
    values = read_json(file)
    if values.get("redraft_format") != _FORMAT:
        raise UserError(f"{file}: format {values.get('redraft_format')!r} is not known here.")
    described = configs.build(_Described, values, str(file))
    family_name, family = build_family(described.family)
    shape = dict(described.network)
    if (kind := shape.pop("name", None)) != "transformer":
        raise UserError(f"{file}: network {kind!r} is not known here.", "Known: transformer.")
    network = Transformer(configs.build(Config, shape, f"{file} network"))
    tokenizer = Tokenizer.load(folder)
    _check_vocabulary(network.config, tokenizer, str(file))
    spec = family.spec(tokenizer)
    if (network.config.shift, network.config.timed) != (spec.shift, spec.timed):
        raise UserError(f"{file}: this network was not made for family '{family_name}' with these options.")
    state = weights.read(folder / "model.safetensors", dtype)
    weights.load_into(network.to(dtype), state, folder / "model.safetensors")
    defaults = read_json(folder / "generation_config.json") if (folder / "generation_config.json").exists() else {}
    configs.build(Settings, defaults, str(folder / "generation_config.json"))  # checked here, used later
    network.to(runtime.device(device)).requires_grad_(False).eval()
    return Model(network, tokenizer, family, family_name, described.conditional, defaults)


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
