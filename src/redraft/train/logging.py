"""Events of a training run, and the files and displays that receive them."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from redraft.errors import UserError
from redraft.files import write_atomically


@dataclass(frozen=True)
class Event:
    """Something that happened in a run.

    Kinds and their values:
        start       parameters, trained (how many of them), rows, skipped, notes, padding (share of positions), device,
                    processes, dtype, peak_flops (measured FLOP/s of a matrix product), resumed
        update      loss (per target token, since the last one), lr, grad_norm, passes, progress (0..1), and
                    timings: tokens_per_second, share_of_peak (None: measured too low), seconds, eta_seconds; and what
                    the objective reports, such as margin and accuracy, or reward, kl, length, identical, truncated
        progress    doing, done, of (batches), progress, loss, seconds (of this start), eta_seconds: where the run is,
                    after ten seconds without an event. Loss and time left are None while unknown. Not written to files
        validation  nats_per_token, nats_error (one standard error), bits_per_byte, bits_error, is_bound, rows, passes,
                    best (so far), number (1: the first), and of the best one best_step, best_nats
        overfitting best_step, best_nats, nats_per_token (of the last validation), validations (since the best one),
                    kept (the best weights are saved): the validation has become worse. Before ``done``
        objective   the fields chosen for the objective by the variance of its loss
        phase       number, of (how many), objective: a phase begins, in families that are trained in several
        checkpoint  path
        done        the fields of ``Result``
    """

    kind: str
    step: int
    tokens: int
    values: dict[str, Any] = field(default_factory=dict)


Watcher = Callable[[Event], None]


class MetricsFile:
    """``metrics.jsonl``: the events of a run as JSON lines in order, without duplicates after a restart."""

    def __init__(self, path: Path, step: int) -> None:
        """Open for appending. Lines that a killed run wrote past ``step``, the step it resumes from, are dropped.

        Raises:
            UserError: a line that is not an event, though it is complete.
        """
        kept = [line for number, line in enumerate(_lines(path), 1) if _step(path, number, line) <= step]
        write_atomically(path, "".join(f"{line}\n" for line in kept))
        self._file = path.open("a", encoding="utf-8")

    def __call__(self, event: Event) -> None:
        if event.kind in ("update", "validation", "objective"):
            line = {"kind": event.kind, "step": event.step, "tokens": event.tokens, **event.values}
            self._file.write(json.dumps(line) + "\n")
            self._file.flush()

    def close(self) -> None:
        self._file.close()


def _lines(path: Path) -> list[str]:
    """The complete lines of a file that a kill may have truncated."""
    if not path.exists():
        return []
    text = path.read_text(encoding="utf-8", errors="replace")
    return [line for line in text.splitlines() if line.startswith("{") and line.endswith("}")]


def _step(path: Path, number: int, line: str) -> int:
    """The step of a line."""
    try:
        found = json.loads(line)["step"]
        if isinstance(found, int):
            return found
    except (ValueError, KeyError, RecursionError):
        pass
    what = f"{path}:{number} is damaged: it is not an event of this run."
    raise UserError(what, "Delete this line, or the file: only the curve of the earlier steps is lost.")


class TensorBoard:
    """Event files for TensorBoard, under ``folder``."""

    def __init__(self, folder: Path, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder), purge_step=step + 1 if step else None)

    @staticmethod
    def installed() -> bool:
        """Is TensorBoard installed?"""
        return importlib.util.find_spec("tensorboard") is not None

    def __call__(self, event: Event) -> None:
        if event.kind in ("update", "validation"):
            for name, value in event.values.items():
                if isinstance(value, int | float):
                    self._writer.add_scalar(f"{event.kind}/{name}", value, event.step)

    def close(self) -> None:
        self._writer.close()


class Progress:
    """A live line on standard error: loss, tokens/s, share of the matmul peak, time left. Validations scroll above it.

    Use it as a context manager and pass it as ``on_event``.
    """

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
        from rich.progress import Progress as Bar

        self._console = Console(stderr=True)
        texts = (TextColumn("[bold]{task.percentage:3.0f} %"), TextColumn("{task.fields[line]}"))
        self._bar = Bar(BarColumn(bar_width=20), *texts, TimeElapsedColumn(), console=self._console, transient=True)
        self._task = self._bar.add_task("train", total=1.0, line="preparing")

    def __enter__(self) -> Progress:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def __call__(self, event: Event) -> None:
        if event.kind in ("update", "progress"):
            self._bar.update(self._task, completed=event.values["progress"], line=describe(event))
        elif event.kind in ("start", "phase", "validation", "objective", "overfitting", "done"):
            self._console.print(describe(event), markup=False, highlight=False)
            if event.kind == "start":
                self._bar.update(self._task, line="first update")


_SHOWN = ("margin", "accuracy", "drift", "reward", "kl", "length", "identical", "truncated")  # of what is reported


def describe(event: Event) -> str:
    """One line of text for an event."""
    v = event.values
    if event.kind == "start":
        begun = f"resumed at step {event.step}" if v["resumed"] else "new run"
        others = f" and {v['processes'] - 1} other processes" if v["processes"] > 1 else ""
        part = f" ({v['trained'] / 1e6:.2f}M trained)" if v["trained"] < v["parameters"] else ""
        where, rows = f"{v['device']}{others} in {v['dtype']}", v["rows"] or "streamed"
        line = f"{v['parameters'] / 1e6:.2f}M parameters{part} on {where}, {rows} rows, {begun}"
        return "\n".join([*(f"note: {note}" for note in v["notes"]), line])
    if event.kind == "update":
        peak = "" if v["share_of_peak"] is None else f"  {100 * v['share_of_peak']:.0f} % of peak"
        reported = "".join(f"{name} {v[name]:.3g}  " for name in _SHOWN if name in v)
        return (
            f"step {event.step}  loss {v['loss']:.3f}  {reported}{v['tokens_per_second']:,.0f} tokens/s{peak}  "
            f"{_clock(v['eta_seconds'])} left"
        )
    if event.kind == "progress":
        return _describe_progress(event)
    if event.kind == "validation":
        bound = "<=" if v["is_bound"] else "="
        return (
            f"step {event.step}  validation {bound} {v['nats_per_token']:.4f} +- {v['nats_error']:.4f} nats/token, "
            f"{v['bits_per_byte']:.4f} +- {v['bits_error']:.4f} bits/byte{_rank(v)}"
        )
    if event.kind == "overfitting":
        remedy = "the weights of that step are saved" if v["kept"] else "train for less, or --set train.keep_best=true"
        return (
            f"overfitting: the validation was best at step {v['best_step']} ({v['best_nats']:.4f} nats/token) and rose "
            f"to {v['nats_per_token']:.4f}; {remedy}"
        )
    if event.kind == "objective":
        chosen = ", ".join(f"{name} = {value}" for name, value in v.items())
        return f"step {event.step}  the loss varies least with {chosen}"
    if event.kind == "phase":
        return f"step {event.step}  phase {v['number']} of {v['of']} begins: objective '{v['objective']}'"
    if event.kind == "done":
        return f"done: {event.step} updates, {event.tokens:,} tokens in {_clock(v['seconds'])}"
    return f"{event.kind} at step {event.step}"


def _rank(v: dict[str, Any]) -> str:
    """A validation among the others: nothing to say of the first one."""
    if v["number"] == 1 or "best_step" not in v:
        return ""
    return "  (best so far)" if v["best"] else f"  (best: {v['best_nats']:.4f} at step {v['best_step']})"


def _describe_progress(event: Event) -> str:
    v = event.values
    parts = [f"step {event.step}"]
    if v["doing"]:
        parts.append(v["doing"] + (f", batch {v['done'] + 1} of {v['of']}" if v["of"] > 1 else ""))
    if v["loss"] is not None:
        parts.append(f"loss {v['loss']:.3f}")
    if event.step:
        parts.append(f"{100 * v['progress']:.0f} % of the budget")
    parts.append(f"{_clock(v['seconds'])} elapsed")
    if v["eta_seconds"]:
        parts.append(f"{_clock(v['eta_seconds'])} left")
    return "  ".join(parts)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}" if minutes >= 60 else f"{minutes}:{rest:02d}"
