"""A study: which models are compared, on which data, and with which budget."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from redraft import config
from redraft.compare.external_service import ExternalService
from redraft.errors import UserError
from redraft.evaluation.config import Scoring
from redraft.lora import BASE_DTYPE_HELP, BASE_DTYPES
from redraft.options import check, setting
from redraft.registry import find
from redraft.settings import DEVICE_HELP, DTYPE_HELP, Dtype

BUDGETS = ("budget_tokens", "passes", "minutes")


@dataclass(frozen=True)
class Study(Scoring):
    """Everything that a comparison depends on besides the machine.

    Zero and empty values are planned from the data and the budget. The first family is the baseline that the others
    are compared with.
    """

    data: str = setting("", "File, folder, data set by name, or hub:owner/name.")
    text: str | None = setting(None, "Column of plain text.", metavar="COLUMN")
    input: str | None = setting(None, "Column of the prompt.", metavar="COLUMN")
    target: str | None = setting(None, "Column of the answer to the prompt.", metavar="COLUMN")
    data_root: str = setting("", "Folder in which data sets are looked up by name.", envvar="REDRAFT_DATA")
    skip_bad_rows: bool = setting(False, "Leave out rows that can't be read, and list them.")

    families: tuple[str, ...] = setting(
        ("autoregressive", "masked"), "Model families to compare; the first is the baseline."
    )
    family_options: dict[str, dict[str, Any]] = setting({}, "Fields of a family, by its name.", reach=())
    bases: dict[str, str] = setting(
        {},
        "Checkpoint to start from, by family; an autoregressive one is converted. Empty: train from scratch.",
        reach=(),
    )
    lora_rank: int | None = setting(
        None,
        "Train adapters of this rank (LoRA) on the checkpoints of all families; 0 trains all weights. Unset: rank 16 "
        "if the largest checkpoint has 300M parameters or more, or if --base-dtype is given; else all weights.",
        least=0,
    )
    base_dtype: str = setting("auto", f"Under adapters: {BASE_DTYPE_HELP}", choices=BASE_DTYPES)
    curriculum: dict[str, Any] = setting(
        {},
        "A field of the curriculum with which attention changes while checkpoints are converted: name=anneal, then "
        "until=0.2. Families that it does not suit, and all if unset, change at once.",
        metavar="KEY=VALUE",
    )

    objective: dict[str, Any] = setting(
        {},
        "A field of the objective with which converted models learn from the autoregressive checkpoint (see: redraft "
        "models --conversions): name=soft_targets, then share=0.5. Families that it does not suit, and all if unset, "
        "have their own.",
        metavar="KEY=VALUE",
    )

    post_training: dict[str, Any] = setting(
        {},
        "A field of the rewards by which every model is trained further before it is measured: name=reward, then "
        "reward=chrf, group=8 (docs/post-training.md). All families get the same prompts, and write as many texts.",
        metavar="KEY=VALUE",
    )
    post_prompts: int = setting(256, "Prompts of post-training, of the training rows.", least=1)
    post_lr: float = setting(0.0, "Learning rate of post-training. Unset: that of the objective.", least=0)

    budget_tokens: int = setting(0, "Training tokens of each model, prompt and target.", least=0, unit="tokens")
    passes: float = setting(0.0, "Budget instead: passes over the training rows.", least=0)
    minutes: float = setting(0.0, "Budget instead: wall-clock time of the whole study.", least=0, unit="minutes")
    seeds: int = setting(1, "Training runs of each family. One seed makes the result preliminary.", least=1)
    seed: int = setting(0, "First seed. The same seed gives the same study.", least=0)
    network: str = setting("transformer", "Network of all families: transformer or cross_attention.", metavar="NAME")
    preset: str = setting("", "Size of the networks (see: redraft models).", metavar="NAME")
    vocab_size: int = setting(0, "Vocabulary of the tokenizer that is trained.", least=0, unit="tokens")
    length: int = setting(0, "Longest row, prompt and target; longer rows are left out.", least=0, unit="tokens")
    train: dict[str, Any] = setting({}, "Field of a recipe's [train], for all families.", flag="--set")
    dropouts: tuple[float, ...] = setting(
        (),
        "Dropout rates to try. Each model is trained at each of them; the best on validation rows is kept.",
        flag="--dropout",
        least=0,
        below=1,
    )

    steps: tuple[int, ...] = setting(
        (),
        "Numbers of denoising steps to try. Unset: 1, 2, 4, 8 and 16; 4, 8 and 16 for checkpoints of 50M parameters or "
        "more on a CPU.",
        least=1,
    )
    samplers: tuple[str, ...] = setting((), "Samplers of diffusion families to try. Unset: what suits the task.")
    blocks: tuple[int, ...] = setting((0,), "Block lengths to try; 0 decodes without blocks.", least=0, unit="tokens")
    candidates: tuple[int, ...] = setting(
        (1, 4),
        "Numbers of output lengths to try, for families that predict the length.",
        least=1,
        nonempty=True,
    )
    max_new_tokens: int = setting(0, "Longest output. Unset: what the training targets need.", least=0, unit="tokens")
    constraint: dict[str, str] = setting(
        {},
        "Constraint under which the chosen settings are measured too; =@FILE reads a file.",
        metavar="KIND=TEXT",
        as_text=True,
    )

    margin: float = setting(
        0.0, "Largest difference that counts as equal, in units of the task's first metric. Unset: the task's.", least=0
    )
    test_rows: int = setting(500, "Largest number of test rows.", least=2, unit="rows")
    validation_rows: int = setting(200, "Largest number of validation rows.", least=2, unit="rows")
    batch_sizes: tuple[int, ...] = setting(
        (),
        "Batch sizes to time. Unset: 1 and 32; 1 and 8 for checkpoints of 50M parameters or more on a CPU.",
        least=1,
    )
    timed_calls: int = setting(12, "Timed calls of each setting at each batch size.", least=2)
    price_per_hour: float = setting(0.0, "Price of this machine per hour, to report cost.", least=0)
    service: ExternalService | None = setting(None, "A service with OpenAI's interface to compare with.")
    device: str = setting("auto", DEVICE_HELP)
    dtype: Dtype = setting("auto", f"{DTYPE_HELP} Of the trained models, when they generate.")
    out: str = setting("comparison", "Folder of the report. The same command continues where it stopped.")

    def __post_init__(self) -> None:
        check(self)
        if not self.data:
            raise UserError("A comparison needs data.", "Name a file, a folder or a data set with --data.")
        if len(set(self.families)) != len(self.families) or len(self.families) < 2:
            raise UserError(
                "A comparison needs at least two different families.", "For example --families autoregressive,masked."
            )
        if sum(bool(budget) for budget in (self.budget_tokens, self.passes, self.minutes)) > 1:
            raise UserError("More than one budget was given.", "Give one of --budget-tokens, --passes and --minutes.")
        if len(set(self.dropouts)) != len(self.dropouts):
            raise UserError("dropouts holds a value twice.", "Give different rates, for example --dropout 0.1,0.3.")
        if self.dropouts and "dropout" in self.train:
            raise UserError("Dropout is set twice.", "Give either --dropout or --set dropout=.")
        for kind, text in self.constraint.items():
            find("constraints", kind).of(text).automaton()  # raises for a mistake in it, before any training
        if (self.lora_rank or self.base_dtype != "auto") and not self.bases:
            option = "--lora-rank" if self.lora_rank else "--base-dtype"
            raise UserError("Adapters need checkpoints to adapt.", f"Name one with --from, or leave out {option}.")
        if self.base_dtype != "auto" and self.lora_rank == 0:
            what = "--base-dtype is for frozen weights, and --lora-rank 0 trains all weights."
            raise UserError(what, "Give --lora-rank 16, or leave out --base-dtype.")
        if self.curriculum or self.objective or self.post_training:
            self._check_objectives()
        for name in (*self.family_options, *self.bases):
            if name not in self.families:
                raise UserError(
                    f"There are options for the family '{name}', which is not compared.", "Add it to --families."
                )

    def _check_objectives(self) -> None:
        from redraft.compare.post_training import check as check_post_training
        from redraft.curricula import build_curriculum  # these import torch
        from redraft.objectives.conversion import build_conversions, is_conversion
        from redraft.posttraining import build_method

        if self.post_training:
            check_post_training(self.post_training, planned=self.unlimited or self.minutes > 0)
        if not self.bases and (self.curriculum or self.objective):
            what = "A curriculum is" if self.curriculum else "An objective is"
            raise UserError(f"{what} for conversions.", "Name a checkpoint with --from, or leave it out.")
        build_curriculum(self.curriculum)
        build_method(self.objective)  # raises for an unknown name
        if self.objective and not is_conversion(self.objective):
            what = f"'{self.objective['name']}' is post-training, and a study compares conversions."
            raise UserError(what, "See: redraft models --conversions.")
        build_conversions(self.objective)

    @classmethod
    def load(cls, path: str | Path, overrides: Mapping[str, Any]) -> Study:
        """Read a study from TOML. Values in ``overrides`` replace the file's; None means not given.

        Raises:
            UserError: the file can't be read, or holds an unknown or wrong value.
        """
        given = {key: value for key, value in overrides.items() if value is not None}
        return config.build(cls, config.merge(config.read_toml(Path(path)), given), str(path))

    @property
    def baseline(self) -> str:
        """The family that the others are compared with."""
        return self.families[0]

    @property
    def runs(self) -> int:
        """Training runs of each family."""
        return self.seeds * max(1, len(self.dropouts))

    @property
    def unlimited(self) -> bool:
        """True if no budget was given."""
        return not (self.budget_tokens or self.passes or self.minutes)
