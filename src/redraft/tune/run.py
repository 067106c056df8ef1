"""A tuning: search, timing and choice."""

from __future__ import annotations

import dataclasses
import hashlib
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from redraft.data.examples import Example
from redraft.errors import UserError
from redraft.evaluation import stats
from redraft.evaluation.decoding import DecodingConfig
from redraft.evaluation.items import Item, check_kind, fitting, make_items
from redraft.evaluation.machine import describe_machine
from redraft.evaluation.result_cache import ResultCache, digest
from redraft.evaluation.scores import score
from redraft.evaluation.stats import Interval
from redraft.evaluation.texts import generate_texts
from redraft.evaluation.timing import TimedCalls, ratio_interval, time_in_turns
from redraft.loading import load, resolve
from redraft.metrics import Array, Metric
from redraft.model import Model
from redraft.settings import Dtype, Settings
from redraft.tasks import Choice, infer_task
from redraft.tune import race
from redraft.tune.race import Piece, Race, Racer
from redraft.tune.results import HeldOutResult, Timing, TriedConfig, TuneResults
from redraft.tune.saving import TUNED
from redraft.tune.space import Space
from redraft.tune.study import FEWEST_ROWS, TuneStudy

TIMED = 8  # configurations that are timed besides the model's own
ALIKE = 0.03  # latencies that differ by less than this share count as equal
TEST_ROWS = 500

Log = Callable[[str], None]
Times = Mapping[DecodingConfig, TimedCalls]


@dataclass
class Tuning:
    """A model, the rows and the metric that its configurations are scored by.

    Args:
        name: the model, by name or folder. examples: validation data; at most ``study.rows`` rows are used.
    Raises:
        UserError: data that don't suit the model, too few rows, or a metric that is neither better high nor low.
    """

    name: str
    study: TuneStudy
    examples: Sequence[Example]
    device: str = "auto"
    log: Log = lambda text: None
    dtype: Dtype = "auto"
    model: Model = field(init=False)
    settings: Settings = field(init=False)
    metric: Metric = field(init=False)
    items: list[Item] = field(init=False)
    choice: Choice = field(init=False)

    def __post_init__(self) -> None:
        study = self.study
        self.model = load(self.name, self.device, self.dtype)
        check_kind(self.model, self.name, self.examples)
        self.settings = self.model.settings(max_new_tokens=study.max_new_tokens, seed=study.seed)
        new_tokens = self.settings.max_new_tokens
        self.examples = fitting(self.model, self.examples, new_tokens, study.skip_bad_rows, self.log)
        self.choice = infer_task(self.examples, study.task, study.metric_options)
        self.metric = self.choice.task.metrics()[0]
        found = self._items(self.examples, study.rows)
        # In random order, because a race begins with the first rows.
        self.items = random.Random(0).sample(found, len(found))
        if not self.metric.better:
            raise UserError(
                f"'{self.metric.label}' has no better direction, so it can't be tuned for.", "Name another --task."
            )
        if len(self.items) < FEWEST_ROWS:
            raise UserError(
                f"{len(self.items)} validation rows are too few to compare configurations.",
                f"Give at least {FEWEST_ROWS}: a file without splits holds out 8 % of its rows for validation, so it "
                f"needs {-(-FEWEST_ROWS * 100 // 8)}. Or use every row as validation data with --all-rows.",
            )

    def _items(self, examples: Sequence[Example], rows: int) -> list[Item]:
        return make_items(examples, self.model.tokenizer, rows, self.model.paired, self.settings.max_new_tokens)

    @cached_property
    def space(self) -> Space:
        """The configurations that the model has."""
        return Space.of(self.model, self.settings, self.study.samplers, self.study.caches)

    def run(self) -> TuneResults:
        """Search, time and choose. What was measured before in the same folder is not measured again."""
        begun = time.monotonic()
        current = self.space.current()
        until = begun + 60 * self.study.minutes if self.study.minutes else float("inf")
        pieces = -(-len(self.items) // race.ROWS)
        contest = Race(self._value, self.study.within, self._piece, pieces, until, self.log)
        racers = contest.run(self.space, current)
        finalists = self._finalists(contest, current)
        self.log(f"timing {len(finalists)} configurations")
        late = until + 30 * self.study.minutes
        timed = {batch: self._time(finalists, batch, late) for batch in self.study.batch_sizes}
        winner = self._winner(contest, timed[self.study.batch_sizes[0]])
        found = self._results(contest, racers, current, winner, timed)
        return found.with_changes(seconds=time.monotonic() - begun)

    # ---- quality

    def _value(self, total: Array) -> Array:
        return self.metric.better * np.asarray(self.metric.combine(total))

    @cached_property
    def cache(self) -> ResultCache:
        """The pieces that were measured in the folder of this tuning."""
        return ResultCache(self.study.out)

    @cached_property
    def _same(self) -> dict[str, Any]:
        """Everything that a measured piece depends on besides its configuration."""
        rows = digest([(item.prompt, item.references) for item in self.items])
        given = dataclasses.asdict(self.settings)
        fixed = {key: value for key, value in given.items() if key not in TUNED}
        return {
            "model": weights_mark(resolve(self.name)),
            "rows": rows,
            "metric": self.metric.signature,
            "settings": fixed,
            "batch": self.study.batch_size,
        }

    def _piece(self, config: DecodingConfig, number: int) -> Piece:
        key = {**self._same, "kind": "tune", "config": config.id, "piece": number}
        found = self.cache.get(key)
        if found is None:
            found = self._generate(config, number)
            self.cache.put(key, found)
        return Piece(np.asarray(found["stats"]), found["passes"], found["operations"], found["tokens"])

    def _generate(self, config: DecodingConfig, number: int) -> dict[str, Any]:
        first = number * race.ROWS
        part = self.items[first : first + race.ROWS]
        seeded = replace(config, seed=self.settings.seed + first)
        prompts, most = [item.asked for item in part], self.settings.max_new_tokens
        generated = generate_texts(self.model, prompts, seeded, most, self.study.batch_size)
        found = score(self.metric, generated.texts, part)
        work = {name: count for name, count in generated.work.items() if name != "passes"}
        return {
            "stats": found.stats.tolist(),
            "passes": float(sum(generated.nfe)),
            "operations": self.model.network.forward_cost().of_counts(**work),
            "tokens": sum(generated.tokens),
        }

    # ---- time

    def _finalists(self, contest: Race, current: DecodingConfig) -> list[DecodingConfig]:
        """What is worth timing: good enough and not beaten in counted cost; the best; and the current one."""
        done = [racer for racer in contest.live() if len(racer.pieces) == contest.pieces]
        values = {racer.config: contest.quality(racer, contest.pieces) for racer in done}
        best = max(values, key=lambda config: values[config])
        good = [racer for racer in done if values[racer.config] >= values[best] - self.study.within]
        good.sort(key=lambda racer: racer.cost(contest.pieces))
        # Forward passes decide at small batches, operations at large ones: some of the cheapest by each.
        by_work = sorted(good, key=lambda racer: racer.cost(contest.pieces)[::-1])
        turns = [racer.config for pair in zip(good, by_work, strict=True) for racer in pair]
        return list(dict.fromkeys([current, best, *list(dict.fromkeys(turns))[:TIMED]]))

    def _time(self, configs: Sequence[DecodingConfig], batch: int, until: float) -> Times:
        """Seconds and tokens of each call; each call runs every configuration on the same prompts in turn.

        Calls end at ``until`` by ``time.monotonic``, but not before the first few.
        """
        prompts = [item.asked for item in self.items]
        runners = [(self.model, config) for config in configs]
        found = time_in_turns(runners, prompts, batch, self.study.calls, self.settings.max_new_tokens, until)
        return dict(zip(configs, found, strict=True))

    def _winner(self, contest: Race, timed: Times) -> DecodingConfig:
        """The fastest of the configurations that are good enough; among equally fast ones, the best."""
        values = {config: contest.quality(contest.racers[config], contest.pieces) for config in timed}
        floor = max(values.values()) - self.study.within
        median = {one: float(np.median(times.seconds)) for one, times in timed.items() if values[one] >= floor}
        fastest = min(median.values())
        return max((one for one in median if median[one] <= fastest * (1 + ALIKE)), key=lambda one: values[one])

    # ---- results

    def _results(
        self,
        contest: Race,
        racers: Sequence[Racer],
        current: DecodingConfig,
        winner: DecodingConfig,
        timed: Mapping[int, Times],
    ) -> TuneResults:
        done = [racer for racer in racers if not racer.eliminated]
        best = max(done, key=lambda racer: contest.quality(racer, contest.pieces))
        chosen = contest.racers[winner].stats(contest.pieces)
        others = {"best": best, "current": contest.racers[current]}
        return TuneResults(
            model=self.name,
            data=self.study.data,
            family=self.model.family_name,
            parameters=self.model.network.parameter_count,
            task=self.choice.name,
            metric=self.metric.name,
            label=self.metric.label,
            signature=self.metric.signature,
            better=self.metric.better,
            within=self.study.within,
            rows=len(chosen),
            texts_generated=sum(len(piece.stats) for racer in racers for piece in racer.pieces),
            batches=list(self.study.batch_sizes),
            max_new_tokens=self.settings.max_new_tokens,
            temperature=self.settings.temperature,
            current=current.id,
            best=best.config.id,
            winner=winner.id,
            generation=winner.defaults(),
            against={name: self._difference(chosen, other.stats(contest.pieces)) for name, other in others.items()},
            speedup={
                str(batch): Interval(*ratio_interval(times[winner].seconds, times[current].seconds))
                for batch, times in timed.items()
            },
            settings=self._mark_fronts([self._tried(racer, timed) for racer in racers]),
            machine=describe_machine(self.model.network.device),
            seconds=0.0,
        )

    def test(self, examples: Sequence[Example], winner: DecodingConfig) -> HeldOutResult:
        """Scores of the winner and of the model's own configuration on rows that had no part in the choice."""
        items = self._items(examples, TEST_ROWS)
        scored = {}
        for name, config in (("current", self.space.current()), ("winner", winner)):
            generated = generate_texts(
                self.model,
                [item.asked for item in items],
                replace(config, seed=self.settings.seed),
                self.settings.max_new_tokens,
                self.study.batch_size,
            )
            scored[name] = score(self.metric, generated.texts, items).stats
        return HeldOutResult(
            rows=len(items),
            current=self._interval(scored["current"]),
            winner=self._interval(scored["winner"]),
            difference=self._difference(scored["winner"], scored["current"]),
        )

    def _interval(self, measured: Array) -> Interval:
        return stats.interval(measured[None], self.metric.combine)

    def _difference(self, ours: Array, theirs: Array) -> Interval:
        if np.array_equal(ours, theirs):
            return Interval(0.0, 0.0, 0.0)
        found = stats.compare(ours[None], theirs[None], self.metric.combine, self.study.within, self.metric.better)
        return found.difference

    def _tried(self, racer: Racer, timed: Mapping[int, Times]) -> TriedConfig:
        seen = len(racer.pieces)
        passes, operations = racer.cost(seen)
        tokens, rows = sum(piece.tokens for piece in racer.pieces), len(racer.stats(seen))
        speed = [
            Timing(
                batch=batch,
                p50=float(np.median(times[racer.config].seconds)),
                tokens_per_second=sum(times[racer.config].tokens) / sum(times[racer.config].seconds),
            )
            for batch, times in timed.items()
            if racer.config in times
        ]
        return TriedConfig(
            id=racer.config.id,
            config=racer.config,
            rows=rows,
            quality=self._interval(racer.stats(seen)),
            nfe=passes,
            tokens_per_pass=tokens / max(1.0, passes * rows),
            flops_per_token=operations * rows / max(1, tokens),
            speed=speed,
            eliminated=racer.eliminated,
        )

    def _mark_fronts(self, tried: Sequence[TriedConfig]) -> list[TriedConfig]:
        """Mark what is on the Pareto front in forward passes and in latency at each batch size, on all rows."""
        axes = ["nfe", *map(str, self.study.batch_sizes)]
        front: dict[str, dict[str, bool]] = {one.id: dict.fromkeys(axes, False) for one in tried}
        for axis in axes:
            shown = [(one, cost) for one in tried if not one.eliminated and (cost := one.cost(axis)) is not None]
            points = [(cost, self.metric.better * one.quality.value) for one, cost in shown]
            for (one, _), on in zip(shown, race.fronts(points), strict=True):
                front[one.id][axis] = on
        return [replace(one, front=front[one.id]) for one in tried]


def weights_mark(folder: Path) -> str:
    """A hash that tells one model from another without reading all weights: of the names, sizes and times of the
    weight files, and of the configuration."""
    files = [folder] if folder.is_file() else sorted(folder.glob("*.safetensors"))
    about = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    described = folder / "config.json"
    config = hashlib.sha256(described.read_bytes() if described.is_file() else b"").hexdigest()
    return digest([about, config])
