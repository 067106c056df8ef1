"""The tables of a recipe. Each of their settings is declared here, once; this module imports nothing heavy.

Command-line options, the checks of a recipe and the page ``docs/recipes.md`` are made from these fields
(``redraft.options``).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from redraft.errors import UserError
from redraft.lora import Lora
from redraft.options import declared, setting, table
from redraft.train.schedules import SCHEDULES

_CLI = ("cli",)  # a recipe's settings that are also command-line options


def _check(component: Any, name: str) -> None:
    for field, one in declared(type(component)).items():
        one.check(getattr(component, field), f"[{name}] {field}")


@dataclass(frozen=True)
class DataTable:
    """The training data.

    A relative ``source`` is looked for in ``data_root``, in the folder that the environment variable REDRAFT_DATA
    names, in the recipe's own folder, and in the current folder, in this order.
    """

    source: str = setting(
        "",
        "Training data: a file, a folder, a data set by name, the common start of files NAME.train.jsonl.gz ..., or "
        "hub:OWNER/NAME.",
        flag="--data",
        metavar="SOURCE",
        reach=_CLI,
    )
    validation: str = setting(
        "",
        "Validation data. Unset: the validation split of the training data, or a part of it chosen by hash.",
        metavar="SOURCE",
        reach=_CLI,
    )
    data_root: str = setting(
        "", "Folder in which data sets are looked up by name.", metavar="FOLDER", envvar="REDRAFT_DATA", reach=_CLI
    )
    fractions: tuple[float, float, float] | None = setting(
        None,
        "Shares of training, validation and test rows, where the data has no splits of its own. Unset: 0.8, 0.08, 0.12 "
        "below 8,000 rows, else 0.9, 0.04, 0.06, as in every command.",
        least=0,
        most=1,
        reach=(),
    )
    text: str | None = setting(None, "Column of plain text.", metavar="COLUMN", reach=_CLI)
    input: str | None = setting(
        None, "Column of the prompt. Unset: recognised by its name.", metavar="COLUMN", reach=_CLI
    )
    target: str | None = setting(
        None, "Column of the answer. Unset: recognised by its name.", metavar="COLUMN", reach=_CLI
    )
    skip_bad_rows: bool = setting(False, "Skip rows that can't be read, and list them.", reach=_CLI)
    length: int = setting(
        256,
        "Longest row. Plain text is cut into windows of this length. Unset, when fine-tuning: at most what the "
        "checkpoint supports.",
        least=1,
        unit="tokens",
        reach=(),
    )
    too_long: str = setting(
        "error",
        "What happens to pairs that are longer.",
        choices=("error", "skip", "truncate_prompt"),
        reach=(),
    )

    streaming: bool = setting(
        False,
        "Read the rows again in every pass, instead of holding them in memory and tokenising them before training "
        "(docs/bulk.md). The budget is then --tokens or --minutes.",
        reach=_CLI,
    )
    buffer: float = setting(
        8.0,
        "With streaming: text that is tokenised, shuffled and packed together.",
        above=0,
        most=1 << 16,
        unit="MiB",
        reach=(),
    )

    def __post_init__(self) -> None:
        _check(self, "data")


@dataclass(frozen=True)
class TokenizerTable:
    """The tokenizer of a new model. A checkpoint brings its own."""

    kind: str = setting(
        "bpe",
        "bpe: byte-level BPE trained on the training text. bytes: one token per byte. file: read from path.",
        choices=("bpe", "bytes", "file"),
        reach=(),
    )
    vocab_size: int = setting(8000, "Vocabulary size of a trained tokenizer.", least=1, unit="tokens", reach=())
    path: str = setting("", "Tokenizer to read.", metavar="FILE", reach=())

    def __post_init__(self) -> None:
        _check(self, "tokenizer")


@dataclass(frozen=True)
class ModelTable:
    """The network of a new model, or the checkpoint to start from (``from`` in TOML).

    A checkpoint brings its shape and tokenizer. It is converted first if the recipe's family is not its own
    (``conversion.convert_family``).
    """

    network: str = setting(
        "transformer",
        "Network (a file of models/). Other networks have as many parameters as the transformer, within 1 %.",
        metavar="NAME",
        reach=_CLI,
    )
    preset: str = setting("7m", "Shape of the network (see: redraft models --presets).", metavar="NAME", reach=_CLI)
    config: dict[str, Any] = setting({}, "Fields of the network's shape that differ from the preset.", reach=())
    from_: str = setting(
        "",
        "Checkpoint to start from: a model folder, a shipped model, or a name on the Hugging Face hub.",
        flag="--from",
        metavar="MODEL",
        reach=_CLI,
    )

    def __post_init__(self) -> None:
        _check(self, "model")


@dataclass(frozen=True)
class FamilyTable:
    """The family, by name. Further keys of the table are the fields of the family's class in ``families/``."""

    name: str = setting(
        "masked", "Family of the model (see: redraft models --families).", flag="--family", metavar="NAME", reach=_CLI
    )


@dataclass(frozen=True)
class CurriculumTable:
    """The curriculum, by name. Further keys of the table are the fields of its class in ``curricula/``."""

    name: str = setting(
        "",
        "How attention changes while a checkpoint is trained into another family (see: redraft models --curricula). "
        "Unset: at once.",
        flag="--curriculum",
        metavar="NAME",
        reach=_CLI,
    )


@dataclass(frozen=True)
class ObjectiveTable:
    """Another objective than the family's, by name. Further keys of the table are the fields of its class.

    ``posttraining/`` has those that replace it; ``objectives/conversion/`` those that wrap it, while an autoregressive
    checkpoint becomes a model of another family.
    """

    name: str = setting(
        "",
        "Train on preferences (preference) or rewards (reward, sandwich) instead of the answers of the data "
        "(docs/post-training.md); or, with --family, learn from the checkpoint that is converted "
        "(see: redraft models --conversions).",
        flag="--objective",
        metavar="NAME",
        reach=_CLI,
    )


@dataclass(frozen=True)
class TrainTable:
    """The budget, the optimizer, and how often to validate, save and report.

    The run ends when the first of the budgets that are set (``tokens``, ``passes``, ``minutes``) is spent. The learning
    rate follows its schedule over the same share of the budget.
    """

    tokens: int = setting(
        0,
        "Budget: tokens read in training, prompt and answer, without padding. The update that reaches it is the last. "
        "0 is none.",
        least=0,
        unit="tokens",
        reach=_CLI,
    )
    passes: float = setting(0.0, "Budget: passes over the training data. 0 is none.", least=0, reach=_CLI)
    minutes: float = setting(
        0.0, "Budget: wall clock over all restarts. 0 is none.", least=0, unit="minutes", reach=_CLI
    )
    batch_tokens: int = setting(4096, "Size of a batch, which is one forward pass.", least=1, unit="tokens", reach=())
    accumulate: int = setting(
        1, "Batches per update. Several processes share them out: a multiple of their number.", least=1, reach=()
    )
    parallel: str = setting(
        "ddp",
        "What each of several processes holds. ddp: all weights. fsdp: a part of weights, gradients and moments, for "
        "models that don't fit.",
        choices=("ddp", "fsdp"),
        reach=(),
    )
    optimizer: str = setting(
        "adamw",
        "adamw, or adamw8bit: its two moments in 8 bits instead of 32 (needs redraft[lowbit]).",
        choices=("adamw", "adamw8bit"),
        reach=(),
    )
    lr: float = setting(1e-3, "Peak learning rate.", least=0, reach=_CLI)
    schedule: str = setting("cosine", "Learning-rate schedule after the warm-up.", choices=SCHEDULES, reach=())
    warmup: float = setting(
        0.05, "Linear warm-up: below 1 a share of the budget, else a number of tokens.", least=0, reach=()
    )
    min_lr: float = setting(0.05, "Learning rate at the end, as a share of lr.", least=0, below=1, reach=())
    weight_decay: float = setting(0.1, "Weight decay of matrices.", least=0, reach=())
    betas: tuple[float, float] = setting((0.9, 0.98), "Coefficients of AdamW.", least=0, below=1, reach=())
    clip: float = setting(1.0, "Largest norm of the gradient; 0 is off.", least=0, reach=())
    ema: float = setting(0.0, "Decay of the averaged weights; 0 is off.", least=0, below=1, reach=())
    dropout: float = setting(0.0, "Dropout.", least=0, below=1, reach=())
    drop_prompt: float = setting(
        0.0,
        "Share of rows whose prompt is masked, as classifier-free guidance needs.",
        least=0,
        below=1,
        reach=(),
    )
    dtype: str = setting(
        "auto",
        "Type of matrix products. auto: bfloat16 where measured at least twice as fast.",
        choices=("auto", "float32", "bfloat16"),
        reach=_CLI,
    )
    compile: bool = setting(False, "Use torch.compile: faster updates after some ten seconds of compiling.", reach=())
    activation_checkpointing: str = setting(
        "auto",
        "Activations that are computed again in the backward pass, to save memory. selective: all but those of large "
        "matrix products (few per cent more time). full: each block (about a third more time). auto: as little as the "
        "machine's memory allows.",
        choices=("auto", "none", "selective", "full"),
        reach=(),
    )
    threads: int = setting(0, "CPU threads; 0 keeps the process's setting.", least=0, reach=())
    seed: int = setting(0, "Random seed; the same seed gives the same model.", least=0, reach=_CLI)
    validate_every: int | None = setting(
        None,
        "Interval between validations; 0: only at the end. Unset: an eighth of the budget, or more where validations "
        "would take more than a tenth of the operations.",
        least=0,
        unit="tokens",
        reach=(),
    )
    validation_rows: int = setting(512, "Most validation rows used.", least=0, unit="rows", reach=())
    keep_best: bool = setting(False, "Save the weights of the best validation instead of the last.", reach=())
    save_every_seconds: float = setting(120.0, "Interval between checkpoints.", least=0, unit="seconds", reach=())
    save_every_tokens: int = setting(0, "Interval between checkpoints; 0 is off.", least=0, unit="tokens", reach=())
    log_every: int = setting(20, "Interval between reports.", least=1, unit="updates", reach=())

    @property
    def checkpointing(self) -> str:
        """``activation_checkpointing``, where ``auto`` has not been resolved by a memory plan: none."""
        return "none" if self.activation_checkpointing == "auto" else self.activation_checkpointing

    def __post_init__(self) -> None:
        _check(self, "train")
        if not (self.tokens or self.passes or self.minutes):
            remedy = "Give one of --tokens, --passes and --minutes, or set it in the recipe's [train]."
            raise UserError("Training has no budget.", remedy)


TABLES: dict[str, type] = {
    "data": DataTable,
    "tokenizer": TokenizerTable,
    "model": ModelTable,
    "family": FamilyTable,
    "train": TrainTable,
    "lora": Lora,
    "curriculum": CurriculumTable,
    "objective": ObjectiveTable,
}


def reference() -> str:
    """All tables of a recipe as Markdown, for ``docs/recipes.md``."""
    parts = []
    for name, cls in TABLES.items():
        text = table(cls).replace("`from_`", "`from`").replace("str \\| tuple[str, ...]", "text or list of text")
        parts.append(f"### `[{name}]`\n\n{text}")
    return "\n\n".join(parts)
