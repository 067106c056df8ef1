"""``redraft decide``: choose the label of each slot of a text."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from redraft.cli._common import Device, Json, ModelName, Seed, WeightType, listed, log, placement, read_text
from redraft.cli._options import Options
from redraft.cli._verbs import verb
from redraft.errors import UserError, suggest
from redraft.options import echo
from redraft.settings import DecisionSettings

if TYPE_CHECKING:
    from redraft.data.rows import Row
    from redraft.generation.decide import Decision
    from redraft.model import Model

T = TypeVar("T")
_BATCH = 32  # rows in a call of ``Model.decide``


@verb(order=35)
def decide(
    *,
    model: ModelName,
    text: Annotated[
        str, typer.Option(help="Text with slots [NAME] and fields {NAME}; [[NAME]] is text in brackets. - reads stdin.")
    ],
    slot: Annotated[
        list[str],
        typer.Option(metavar="NAME=LABEL,LABEL", help="Labels of a slot; repeat. A JSON list may hold commas."),
    ],
    field: Annotated[
        list[str] | None, typer.Option(metavar="NAME=TEXT", help="Text of a field, for a single text; repeat.")
    ] = None,
    prompt: Annotated[
        str, typer.Option(help="The prompt that the text answers, for models of pairs; with fields.")
    ] = "",
    data: Annotated[
        str | None, typer.Option(help="File or data set: one decision for each row. Its columns are the fields.")
    ] = None,
    split: Annotated[str | None, typer.Option(help="Split of --data, if it has several.")] = None,
    gold: Annotated[
        list[str] | None,
        typer.Option(metavar="SLOT=COLUMN", help="Column of --data with the right label, to count how many are right."),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="File for the decisions of --data, as JSON lines.")] = None,
    given: Annotated[dict[str, Any], Options(DecisionSettings)],
    as_json: Json = False,
    seed: Seed = 0,
    device: Device = "auto",
    dtype: WeightType = "auto",
) -> dict[str, Any]:
    """Choose the label of each slot of a text, with a probability for each label.

    \b
    Examples:
      redraft decide --model base-masked --text "Review: {review} Mood: [mood]." --field review="I liked it." \\
        --slot mood=good,bad
      redraft decide --model runs/mine --text "[label]" --prompt "{sentence}" --slot label=positive,negative \\
        --data reviews.jsonl --out decisions.jsonl
      redraft decide --model runs/mine --text "[label]" --prompt "{sentence}" --slot label=positive,negative \\
        --data reviews.jsonl --gold label=sentiment --method likelihood --json

    A masked model scores all slots and labels in one forward pass. An autoregressive model compares the likelihoods of
    all combinations of labels.
    """
    import redraft
    from redraft.files import check_writable

    labels = _pairs(slot, "--slot", _labels)
    right = _pairs(gold or [], "--gold", str)
    _check(labels, right, data, {"--split": split, "--gold": gold, "--out": out}, field)
    if out is not None:
        check_writable(out)
    rows = None if data is None else _rows(data, split)
    task = _Task(redraft.load(model, device, dtype), read_text(text), labels, prompt, {**given, "seed": seed})
    begin = time.perf_counter()
    values = _pairs(field or [], "--field", str)
    found = _one(task, values, as_json) if rows is None else _many(task, rows, right, out, as_json)
    used = {"seconds": time.perf_counter() - begin, **echo(DecisionSettings(**task.settings), "cli")}
    return {**found, "data": data, **used, "model": model, "family": task.model.family_name, **placement(task.model)}


@dataclass(frozen=True)
class _Task:
    """What to decide, for any rows."""

    model: Model
    text: str
    labels: Mapping[str, list[str]]
    prompt: str
    settings: dict[str, Any]


def _check(
    labels: Mapping[str, Any], right: Mapping[str, str], data: str | None, of_data: Mapping[str, Any], field: Any
) -> None:
    """Check which options stand together."""
    for option, value in of_data.items():
        if data is None and value is not None:
            raise UserError(f"{option} belongs to --data.", "Leave it out, or give --data.")
    if data is not None and field:
        raise UserError("--field and --data can't be combined.", "The columns of the data are the fields.")
    for name in right:
        if name not in labels:
            raise UserError(f"--gold names the slot '{name}', which has no labels.", suggest(name, labels))


def _pairs(texts: list[str], option: str, read: Callable[[str], T]) -> dict[str, T]:
    """``["NAME=VALUE"]`` -> mapping.

    Raises:
        UserError: a text without name, or a name that occurs twice.
    """
    found: dict[str, T] = {}
    for text in texts:
        name, sign, value = text.partition("=")
        if not sign or not name:
            raise UserError(f"{option} '{text}' is not NAME=VALUE.", f"For example {option} mood=good,bad.")
        if name in found:
            raise UserError(f"{option} names '{name}' twice.", "Give each name once.")
        found[name] = read(value)
    return found


def _labels(value: str) -> list[str]:
    """``good,bad`` or ``["good", "not so good, really"]``."""
    if not value.startswith("["):
        return listed(value)
    try:
        found = json.loads(value)
    except ValueError as error:
        raise UserError(f"--slot: {value} is not a JSON list: {error}.", 'For example mood=["good","bad"].') from None
    if not isinstance(found, list) or not all(isinstance(one, str) for one in found):
        raise UserError(f"--slot: {value} is not a list of texts.", 'For example mood=["good","bad"].')
    return found


def _rows(data: str, split: str | None) -> Iterator[Row]:
    """The rows of a file or data set.

    Raises:
        UserError: there are several splits and none is chosen, or (while the rows are read) a row is broken.
    """
    from redraft.data.locate import resolve, source_kind

    found = resolve(data)
    if split is None and len(found) > 1:
        raise UserError(f"'{data}' has the splits {', '.join(found)}.", "Choose one with --split.")
    if split is not None and split not in found:
        raise UserError(f"'{data}' has no split '{split}'.", suggest(split, filter(None, found)))
    files = found[split] if split is not None else next(iter(found.values()))

    def rows() -> Iterator[Row]:
        for file in files:
            for row in source_kind(file).read(file):
                if row.problem:
                    raise UserError(f"{row.where}: {row.problem}.", "Fix the row.")
                yield row

    return rows()


def _one(task: _Task, values: dict[str, str], as_json: bool) -> dict[str, Any]:
    """Decide one text, and print the probabilities."""
    (found,) = task.model.decide(task.text, task.labels, [values], task.prompt, **task.settings)
    if not as_json:
        for name, own in found.probabilities.items():
            ranked = sorted(own.items(), key=lambda one: -one[1])
            typer.echo(f"{name}: {', '.join(f'{label} {p:.3f}' for label, p in ranked)}")
    return {"text": found.text, **_result(found), "nfe": found.nfe}


def _many(
    task: _Task, rows: Iterator[Row], right: Mapping[str, str], out: Path | None, as_json: bool
) -> dict[str, Any]:
    """Decide every row, write or print a line for each, and count how many are right."""
    from redraft.files import write_atomically

    lines: list[str] = []
    correct, passes = dict.fromkeys(right, 0), 0
    for row, found in _decisions(task, rows):
        lines.append(json.dumps({"row": row.where, **_result(found)}, ensure_ascii=False))
        passes += found.nfe
        for name, column in right.items():
            correct[name] += found.labels[name] == _gold(row, column, task.labels[name])
    if out is not None:
        write_atomically(out, "".join(f"{line}\n" for line in lines))
    elif not as_json:
        typer.echo("\n".join(lines))
    shares = {name: count / len(lines) for name, count in correct.items() if lines}
    for name, share in shares.items():
        log(f"{name}: {share:.1%} of {len(lines):,} rows right")
    return {"rows": len(lines), "nfe": passes / max(1, len(lines)), "accuracy": shares}


def _decisions(task: _Task, rows: Iterator[Row]) -> Iterator[tuple[Row, Decision]]:
    """The decision for each row, some rows at a time."""
    from redraft.generation.decide import decide as run

    settings = DecisionSettings(**task.settings)
    while part := list(islice(rows, _BATCH)):
        values, where = [row.values for row in part], [row.where for row in part]
        found = run(task.model, task.text, task.labels, values, task.prompt, settings, where=where)
        yield from zip(part, found, strict=True)


def _gold(row: Row, column: str, labels: list[str]) -> str:
    """The right label of a row.

    Raises:
        UserError: the row doesn't have it, or it is none of the labels.
    """
    if column not in row.values:
        raise UserError(f"{row.where}: The row has no column '{column}'.", suggest(column, row.values))
    found = row.values[column]
    if found not in labels:
        raise UserError(
            f"{row.where}: {found!r} in the column '{column}' is none of the labels.", suggest(found, labels)
        )
    return str(found)


def _result(found: Decision) -> dict[str, Any]:
    return {
        "labels": dict(found.labels),
        "probabilities": {name: dict(own) for name, own in found.probabilities.items()},
    }
