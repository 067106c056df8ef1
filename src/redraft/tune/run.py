"""The whole job of ``redraft tune``: rows, race, timing, choice, and what is written of it."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import random
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from redraft import config as configs
from redraft.compare import measure, stats
from redraft.compare.material import Item, items, score
from redraft.compare.study import Cells, digest
from redraft.data.examples import Example
from redraft.errors import UserError
from redraft.files import atomic_folder, read_json, write_atomically
from redraft.loading import load, resolve
from redraft.metrics import Metric
from redraft.metrics.flops import Flops
from redraft.metrics.speed import ratio_interval
from redraft.model import Model
from redraft.settings import Settings
from redraft.shipped import zoo
from redraft.tasks import Choice, choose
from redraft.tune import page, race, space
from redraft.tune.race import Piece, Race, Racer
from redraft.tune.space import Space, Trial

FEWEST_ROWS = 24
TIMED = 8  # settings that are timed besides the model's own
ALIKE = 0.03  # share by which latencies must differ to be told apart


@dataclass
class Tuning:
    """
    Args:
        name: the model. examples: validation data; at most ``rows`` of them are used.
        within: how far behind the best the choice may be, in units of the task's first metric.
        batches: batch sizes to time; the first decides. calls: timed calls of each. minutes: of the race; 0: no limit.
    """

    name: str
    examples: Sequence[Example]
    within: float
    out: Path
    rows: int = 256
    task: str | None = None
    seed: int | None = None
    device: str = "auto"
    batches: tuple[int, ...] = (1, 32)
    batch_size: int = 32
    calls: int = 12
    minutes: float = 0.0
    max_new_tokens: int | None = None
    samplers: tuple[str, ...] = ()
    caches: tuple[str, ...] = ()
    tell: Callable[[str], None] = lambda text: None
    model: Model = field(init=False)
    settings: Settings = field(init=False)
    metric: Metric = field(init=False)
    items: list[Item] = field(init=False)
    choice: Choice = field(init=False)
    named: dict[str, Trial] = field(init=False, default_factory=dict)  # settings that were tried

    def __post_init__(self) -> None:
        if not self.examples:
            raise UserError("there are no validation rows.", "--all-rows takes a file as validation data as a whole.")
        self.model = load(self.name, self.device)
        paired = self.examples[0].prompt is not None
        if self.model.conditional != paired:
            kinds = ["plain text", "pairs"]
            raise UserError(f"'{self.name}' is a model of {kinds[not paired]}, the data are {kinds[paired]}.")
        self.settings = self.model.settings(max_new_tokens=self.max_new_tokens, seed=self.seed)
        self.choice = choose(self.examples, self.task)
        self.metric = self.choice.task.metrics()[0]
        self.items = self._items(self.examples, self.rows)
        if not self.within > 0:
            raise UserError(f"within = {self.within} must be above 0.", f"In units of {self.metric.label}.")
        if not self.metric.better:
            raise UserError(f"'{self.metric.label}' is neither better high nor low: it can't be tuned for.")
        if len(self.items) < FEWEST_ROWS:
            raise UserError(
                f"{len(self.items)} validation rows are too few to tell settings apart.",
                f"Give {FEWEST_ROWS} or more; --all-rows takes a file as validation data as a whole.",
            )

    def _items(self, examples: Sequence[Example], rows: int) -> list[Item]:
        """Rows in an order of no meaning, since races begin with the first."""
        found = items(examples, self.model.tokenizer, rows, self.model.conditional, self.settings.max_new_tokens)
        return random.Random(0).sample(found, len(found))

    def run(self) -> dict[str, Any]:
        """Search, time and choose. What was measured before in the same folder is not measured again."""
        begun = time.monotonic()
        room = Space.of(self.model, self.settings, self.samplers, self.caches)
        own = room.own()
        until = begun + 60 * self.minutes if self.minutes else float("inf")
        pieces = -(-len(self.items) // race.ROWS)
        contest = Race(self._value, self.within, self._piece, pieces, until, self.tell)
        racers = contest.run(room, own)
        self.named = {racer.trial.id: racer.trial for racer in racers}
        finalists = self._finalists(contest, own)
        self.tell(f"timing {len(finalists)} settings")
        timed = {batch: self._time(finalists, batch) for batch in self.batches}
        winner = self._winner(contest, timed[self.batches[0]])
        return self._result(contest, racers, own, winner, timed) | {"seconds": time.monotonic() - begun}

    # ---- quality

    def _value(self, total: np.ndarray) -> np.ndarray:
        return self.metric.better * np.asarray(self.metric.combine(total))

    @cached_property
    def cells(self) -> Cells:
        return Cells(self.out)

    @cached_property
    def _same(self) -> dict[str, Any]:
        """What every measured piece depends on besides its setting."""
        rows = digest([(item.prompt, item.references) for item in self.items])
        given = dataclasses.asdict(self.settings)
        fixed = {key: value for key, value in given.items() if key not in space.TUNED}
        return {
            "model": weights_mark(resolve(self.name)),
            "rows": rows,
            "metric": self.metric.name,
            "settings": fixed,
            "batch": self.batch_size,
        }

    def _piece(self, trial: Trial, number: int) -> Piece:
        key = {**self._same, "kind": "tune", "trial": trial.id, "piece": number}
        found = self.cells.get(key)
        if found is None:
            found = self._write(trial, number)
            self.cells.put(key, found)
        return Piece(np.asarray(found["stats"]), found["passes"], found["operations"], found["tokens"])

    def _write(self, trial: Trial, number: int) -> dict[str, Any]:
        first = number * race.ROWS
        part = self.items[first : first + race.ROWS]
        seeded = dataclasses.replace(trial, seed=self.settings.seed + first)
        prompts = [item.prompt for item in part]
        wrote = measure.write_texts(self.model, prompts, seeded, self.settings.max_new_tokens, self.batch_size)
        found = score(self.metric, wrote["texts"], part)
        work = {name: count for name, count in wrote["work"].items() if name != "passes"}
        counted = Flops(self.model.network.config).forward(**work)
        return {
            "stats": found.stats.tolist(),
            "passes": float(sum(wrote["nfe"])),
            "operations": counted,
            "tokens": sum(wrote["tokens"]),
        }

    # ---- time

    def _finalists(self, contest: Race, own: Trial) -> list[Trial]:
        """What is worth timing: all that is good enough and not beaten in counted cost, the best, and the own one."""
        done = [racer for racer in contest.live() if len(racer.pieces) == contest.pieces]
        values = {racer.trial: contest.quality(racer, contest.pieces) for racer in done}
        best = max(values, key=lambda trial: values[trial])
        good = [racer for racer in done if values[racer.trial] >= values[best] - self.within]
        good.sort(key=lambda racer: racer.cost(contest.pieces))
        # passes decide at small batch, operations at large: some of the cheapest by each
        by_work = sorted(good, key=lambda racer: racer.cost(contest.pieces)[::-1])
        turns = [racer.trial for pair in zip(good, by_work, strict=True) for racer in pair]
        return list(dict.fromkeys([own, best, *list(dict.fromkeys(turns))[:TIMED]]))

    def _time(self, trials: Sequence[Trial], batch: int) -> dict[Trial, dict[str, Any]]:
        """Each call runs every setting on the same prompts in turn: what else the machine does hits all of them."""
        prompts = [item.prompt for item in self.items]
        runners = [(self.model, trial) for trial in trials]
        found = measure.race(runners, prompts, batch, self.calls, self.settings.max_new_tokens)
        return dict(zip(trials, found, strict=True))

    def _winner(self, contest: Race, timed: dict[Trial, dict[str, Any]]) -> Trial:
        """Of the settings that are good enough the quickest; among those as quick, the best."""
        values = {trial: contest.quality(contest.racers[trial], contest.pieces) for trial in timed}
        floor = max(values.values()) - self.within
        median = {trial: float(np.median(one["seconds"])) for trial, one in timed.items() if values[trial] >= floor}
        quickest = min(median.values())
        return max((t for t in median if median[t] <= quickest * (1 + ALIKE)), key=lambda t: values[t])

    # ---- what came of it

    def _result(
        self,
        contest: Race,
        racers: Sequence[Racer],
        own: Trial,
        winner: Trial,
        timed: dict[int, dict[Trial, dict[str, Any]]],
    ) -> dict[str, Any]:
        done = [racer for racer in racers if not racer.lost]
        best = max(done, key=lambda racer: contest.quality(racer, contest.pieces))
        rows = [self._row(contest, racer, timed) for racer in racers]
        self._mark_fronts(rows)
        chosen = contest.racers[winner].stats(contest.pieces)
        against = {
            name: self._compared(chosen, other.stats(contest.pieces))
            for name, other in (("best", best), ("own", contest.racers[own]))
        }
        speedup = {}
        for batch, times in timed.items():
            ratio, low, high = ratio_interval(times[winner]["seconds"], times[own]["seconds"])
            speedup[str(batch)] = {"ratio": ratio, "low": low, "high": high}
        return {
            "model": self.name,
            "family": self.model.family_name,
            "parameters": self.model.parameters,
            "task": self.choice.name,
            "metric": self.metric.name,
            "label": self.metric.label,
            "better": self.metric.better,
            "within": self.within,
            "rows": len(self.items),
            "texts_written": sum(len(piece.stats) for racer in racers for piece in racer.pieces),
            "batches": list(self.batches),
            "max_new_tokens": self.settings.max_new_tokens,
            "temperature": self.settings.temperature,
            "own": own.id,
            "best": best.trial.id,
            "winner": winner.id,
            "generation": winner.defaults(),
            "against": against,
            "speedup": speedup,
            "settings": rows,
            "machine": measure.machine(self.model.network.device),
        }

    def test(self, examples: Sequence[Example], trial_id: str, rows: int = 500) -> dict[str, Any]:
        """The score of a setting, by name, and of the model's own on other rows, which had no part in the choice."""
        asked = items(examples, self.model.tokenizer, rows, self.model.conditional, self.settings.max_new_tokens)
        found: dict[str, Any] = {"rows": len(asked)}
        room = Space.of(self.model, self.settings, self.samplers, self.caches)
        scored = {}
        for name, trial in (("own", room.own()), ("winner", self.named[trial_id])):
            wrote = measure.write_texts(
                self.model,
                [item.prompt for item in asked],
                dataclasses.replace(trial, seed=self.settings.seed),
                self.settings.max_new_tokens,
                self.batch_size,
            )
            scored[name] = score(self.metric, wrote["texts"], asked).stats
            around = stats.interval(scored[name][None], self.metric.combine)
            found[name] = {"value": around.value, "low": around.low, "high": around.high}
        return found | {"against_own": self._compared(scored["winner"], scored["own"])}

    def _compared(self, ours: np.ndarray, theirs: np.ndarray) -> dict[str, float]:
        if np.array_equal(ours, theirs):
            return {"difference": 0.0, "low": 0.0, "high": 0.0}
        found = stats.compare(ours[None], theirs[None], self.metric.combine, self.within, self.metric.better).difference
        return {"difference": found.value, "low": found.low, "high": found.high}

    def _row(self, contest: Race, racer: Racer, timed: dict[int, dict[Trial, dict[str, Any]]]) -> dict[str, Any]:
        seen = len(racer.pieces)
        around = stats.interval(racer.stats(seen)[None], self.metric.combine)
        passes, operations = racer.cost(seen)
        tokens, rows = sum(piece.tokens for piece in racer.pieces), len(racer.stats(seen))
        speed = [
            {
                "batch": batch,
                "p50": float(np.median(times[racer.trial]["seconds"])),
                "tokens_per_second": sum(times[racer.trial]["tokens"]) / sum(times[racer.trial]["seconds"]),
            }
            for batch, times in timed.items()
            if racer.trial in times
        ]
        return {
            "id": racer.trial.id,
            **configs.to_mapping(racer.trial),
            "options": dict(racer.trial.options),
            "cache_options": dict(racer.trial.cache_options),
            "rows": rows,
            "quality": {"value": around.value, "low": around.low, "high": around.high},
            "nfe": passes,
            "tokens_per_pass": tokens / max(1.0, passes * rows),
            "flops_per_token": operations * rows / max(1, tokens),
            "speed": speed,
            "lost": racer.lost,
        }

    def _mark_fronts(self, rows: list[dict[str, Any]]) -> None:
        """Among what has seen all rows: what nothing beats in passes, and in latency at each batch size."""
        for row in rows:
            row["front"] = {"nfe": False, **{str(batch): False for batch in self.batches}}
        done = [row for row in rows if not row["lost"]]
        axes: dict[str, Callable[[dict[str, Any]], float | None]] = {"nfe": lambda row: row["nfe"]}
        for batch in self.batches:
            axes[str(batch)] = lambda row, batch=batch: next(  # type: ignore[misc]
                (speed["p50"] for speed in row["speed"] if speed["batch"] == batch), None
            )
        for name, at in axes.items():
            shown = [row for row in done if at(row) is not None]
            points = [(float(at(row) or 0.0), self.metric.better * row["quality"]["value"]) for row in shown]
            for row, on in zip(shown, race.fronts(points), strict=True):
                row["front"][name] = on


def weights_mark(folder: Path) -> str:
    """Tells one model from another without reading all its weights: their names, sizes and times, and its config."""
    files = sorted(folder.glob("*.safetensors"))
    about = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    config = hashlib.sha256((folder / "config.json").read_bytes()).hexdigest()
    return digest([about, config])


def check_place(name: str, to: Path | None) -> Path:
    """The folder whose generation settings may be rewritten.

    Raises:
        UserError: a shipped checkpoint, whose files have check sums, or a public one in a format that is not ours.
    """
    folder = resolve(name)
    if "redraft_format" not in read_json(folder / "config.json"):
        raise UserError(
            f"'{name}' is not in our format: its settings can't be kept beside it.",
            "Use --dry-run, or convert it first: redraft convert SRC DST.",
        )
    if to is not None:
        if to.exists():
            raise UserError(f"'{to}' exists already.", "Name a new folder with --to.")
        return to
    if folder in zoo().values():
        raise UserError(
            f"'{name}' is a shipped checkpoint: its files have check sums.",
            "Name a folder for a tuned copy with --to, or use --dry-run.",
        )
    return folder


def keep(name: str, place: Path, generation: dict[str, Any]) -> None:
    """Write the winner into ``place``'s generation settings; what else they hold stays. Whole or not at all."""
    source = resolve(name)
    old = source / "generation_config.json"
    defaults = read_json(old) if old.exists() else {}
    merged = {key: value for key, value in defaults.items() if key not in space.TUNED} | generation
    configs.build(Settings, merged, str(old))
    text = json.dumps(merged, indent=2) + "\n"
    if place == source:
        write_atomically(old, text)
        return
    with atomic_folder(place) as new:
        for file in source.iterdir():
            if file.is_file():
                shutil.copyfile(file, new / file.name)
        write_atomically(new / "generation_config.json", text)


def write_result(found: dict[str, Any], out: Path) -> None:
    """``tune.json`` and a page to look at."""
    write_atomically(out / "tune.json", json.dumps(found, ensure_ascii=False, indent=1) + "\n")
    write_atomically(out / "tune.html", page.html(found))
