"""Finds the checkpoints that a study fine-tunes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from redraft.compare.study import BUDGETS, Study
from redraft.data.examples import Columns, paired
from redraft.errors import UserError, suggest
from redraft.gguf_file import is_gguf
from redraft.loading import family_of, stable_name
from redraft.shipped import check_installed, named_models, zoo

SCRATCH = "scratch"  # instead of a checkpoint: train from scratch
_SHIPPED = {True: "pairs", False: "base"}  # shipped models for pairs, and for plain text


def choose_bases(named: Sequence[str], given: dict[str, object], has_file: bool) -> dict[str, str]:
    """Checkpoint to fine-tune, by family; empty: train from scratch.

    Without names, and unless a budget, a preset or a study file is given, these are the shipped models for this kind
    of data, if there is one for each family.

    Args:
        named: what ``--from`` got.
        given: the fields of the study that were given.
        has_file: the study is read from a file.
    Raises:
        UserError: a checkpoint does not exist, or the data can't be read.
    """
    families = [str(family) for family in given.get("families") or Study.families]  # type: ignore[attr-defined]
    if named:
        return {} if list(named) == [SCRATCH] else find_bases(named, families)
    if has_file or not given.get("data") or {"preset", *BUDGETS} & given.keys():
        return {}
    columns = Columns(*(_text(given.get(name)) for name in ("text", "input", "target")))
    default = _SHIPPED[paired(str(given["data"]), columns, _text(given.get("data_root")))]
    if any(f"{default}-{family}" not in zoo() for family in families):
        return {}
    return find_bases([default], families)


def find_bases(named: Sequence[str], families: Sequence[str]) -> dict[str, str]:
    """Checkpoint by family. A name is that of a checkpoint, or stands for the checkpoints NAME-<family>.

    Raises:
        UserError: there is neither.
    """
    found: dict[str, str] = {}
    for name in named:
        if _exists(name):
            found[family_of(name)["name"]] = stable_name(name)
            continue
        for family in families:
            if not _exists(f"{name}-{family}"):
                what = f"--from {name}: there is no checkpoint '{name}' and no '{name}-{family}'."
                raise UserError(what, suggest(name, named_models()))
            found[family] = stable_name(f"{name}-{family}")
    return found


def _exists(name: str) -> bool:
    check_installed(name)
    return name in named_models() or (Path(name) / "config.json").is_file() or is_gguf(name)


def _text(value: object) -> str | None:
    return None if value is None else str(value)
