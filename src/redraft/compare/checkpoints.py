"""Finds the checkpoints that a study fine-tunes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from redraft.compare.bases import AUTOREGRESSIVE
from redraft.compare.study import BUDGETS, Study
from redraft.data.examples import Columns, paired
from redraft.errors import UserError
from redraft.loading import family_of, is_model, stable_name
from redraft.registry import names
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
    """Checkpoint by family.

    A name is that of a checkpoint, FAMILY=CHECKPOINT, or stands for the checkpoints NAME-<family>. A family without a
    checkpoint starts from the autoregressive one, converted (``compare.bases``).

    Raises:
        UserError: there is no such checkpoint, or two for one family.
    """
    found: dict[str, str] = {}
    for name in named:
        family, equals, path = name.partition("=")
        if equals and family in names("families"):
            more = {family: _folder(path, f"--from {name}")}
        else:
            more = _named(name, families)
        twice = next((family for family in more if family in found), None)
        if twice is not None:
            raise UserError(f"--from names two checkpoints for family '{twice}'.", "Name one for each family.")
        found |= more
    if AUTOREGRESSIVE in found:
        found = {family: found[AUTOREGRESSIVE] for family in families if family not in found} | found
    order = [*families, *found]
    return dict(sorted(found.items(), key=lambda item: order.index(item[0])))


def _named(name: str, families: Sequence[str]) -> dict[str, str]:
    """The checkpoint ``name``, by its own family, or those of the checkpoints ``name``-<family> that exist."""
    together = {family: f"{name}-{family}" for family in families if _exists(f"{name}-{family}")}
    if together and not _exists(name):
        return {family: _folder(one, f"--from {name}") for family, one in together.items()}
    folder = _folder(name, f"--from {name}")
    return {family_of(folder)["name"]: folder}


def _folder(name: str, option: str) -> str:
    """The name under which the study records a checkpoint."""
    try:
        return stable_name(name)
    except UserError as error:
        raise UserError(f"{option}: {error.what}", error.remedy) from None


def _exists(name: str) -> bool:
    check_installed(name)
    return name in named_models() or is_model(Path(name))


def _text(value: object) -> str | None:
    return None if value is None else str(value)
