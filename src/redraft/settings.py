"""Generation settings: what Python, the command line, files and HTTP may set."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from redraft.limits import MAX_ROWS, MAX_STEPS
from redraft.options import check, setting

Weights = Literal["float32", "bfloat16", "int8"]
Dtype = Literal["auto", "float32", "bfloat16", "float16"]  # of a loaded model's weights (``runtime.weight_type``)
DTYPE_HELP = "Type of the weights. auto: bfloat16 on an accelerator, float32 on a CPU."
DEVICE_HELP = "auto, cpu, cuda, cuda:1, mps ... auto: CUDA if there is one, else MPS, else the CPU."


@dataclass(frozen=True)
class Settings:
    """How to generate. Every setting is declared here and nowhere else; see ``redraft.options``.

    ``Model.settings`` fills it: what the caller gives, then the model's own ``generation_config.json``, then these
    defaults. A default of ``None`` leaves the choice to the family, which has a sampler of its own.

    The same settings and seed give the same text: every random draw comes from a counter-based generator keyed by seed,
    position and step, so that batch size and neighbours in a batch have no influence.
    """

    max_new_tokens: int = setting(64, "Maximum number of new tokens.", least=1, unit="tokens", request_most=1 << 20)
    steps: int | None = setting(
        None,
        "Number of denoising steps, for samplers with a fixed number of steps.",
        least=1,
        most=MAX_STEPS,
        tries=(1, 2, 4, 8, 16, 32, 64, 128, 256),
    )
    sampler: str | None = setting(None, "Name of the sampler (see: redraft models --samplers).")
    options: Mapping[str, Any] = setting({}, "A field of the sampler.", flag="--option")
    temperature: float = setting(
        0.0, "Sampling temperature; 0 takes the most probable token.", least=0, request_most=100
    )
    top_k: int = setting(
        0, "Sample from the k most probable tokens; 0 is off.", least=0, unit="tokens", request_most=1 << 20
    )
    top_p: float = setting(1.0, "Sample from the most probable tokens with this total probability.", least=0, most=1)
    candidates: int = setting(
        1,
        "Number of output lengths to try per prompt; the sequence with the highest log-likelihood is kept.",
        least=1,
        most=MAX_ROWS,
        tries=(1, 2, 4),
    )
    length: Literal["auto", "head", "typical", "search", "fixed"] = setting(
        "auto",
        "How the output length is chosen. head: predicted from the prompt (with one candidate, a masked model compares "
        "the likely lengths by one more pass). typical: the median length of training answers to prompts of this "
        "length. search: by the confidence at several lengths. fixed: max_new_tokens, or up "
        "to an end-of-text token. auto: the length head if the model has one; else, for models of prompt and answer, "
        "typical if the lengths are recorded, and search if not; fixed for plain text.",
    )
    start: int | None = setting(
        None,
        "Initial number of positions, for variable-length models. Unset: the predicted length, or the family's choice.",
        least=0,
        unit="positions",
        reach=("cli",),
    )
    cache: str = setting("exact", "Cache policy (see: redraft models --caches); none recomputes everything.")
    cache_options: Mapping[str, Any] = setting({}, "A field of the cache policy.", flag="--cache-option")
    weights: Weights = setting(
        "float32",
        "Weight format of inference on CPUs. bfloat16 and int8 may be faster, and round.",
        reach=("cli",),
    )
    constraint: Mapping[str, Any] = setting(
        {},
        "A constraint that the output must satisfy; KIND=@FILE reads a file; all must hold.",
        metavar="KIND=TEXT",
        as_text=True,
        reach=("cli",),
    )
    guidance: str | None = setting(
        None, "Guidance method (see: redraft models --guidance).", metavar="NAME", reach=("cli",)
    )
    guide: Mapping[str, Any] = setting({}, "A field of the guidance method.", reach=("cli",))
    ignore_eos: bool = setting(False, "Generate all max_new_tokens; end-of-text is a token like any other.", reach=())
    seed: int = setting(0, "Random seed of the first prompt; prompt i uses seed + i.", above=-(1 << 62), below=1 << 62)

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True)
class DecisionSettings:
    """How ``Model.decide`` scores the labels of slots (``redraft.generation.decide``)."""

    method: Literal["auto", "one_pass", "chain", "likelihood"] = setting(
        "auto",
        "one_pass: all slots are masked and scored in one forward pass. chain: one slot after the other is decided, "
        "and the next given it. likelihood: every combination of labels is scored. auto: one_pass for masked models, "
        "likelihood for others.",
    )
    by: Literal["sum", "token", "byte"] = setting(
        "sum", "The score of a label is log p of all of it, or per token or byte, which does not favour short labels."
    )
    calibrate: bool = setting(
        False, "Subtract from each score the score of the label where all fields and the prompt are empty."
    )
    samples: int = setting(
        128, "Noise samples for each combination, where the likelihood is only known as a bound.", least=2, most=1 << 16
    )
    seed: int = setting(0, "Random seed of these samples.", above=-(1 << 62), below=1 << 62)

    def __post_init__(self) -> None:
        check(self)
