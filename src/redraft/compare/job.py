"""The pieces of a study: each is computed once, kept in the result cache, and taken into the measurements."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch

from redraft.compare.constraint_study import constrained_config
from redraft.compare.external_service import Replies, Reply
from redraft.compare.format import clock
from redraft.compare.measurements import (
    BaselineAnswers,
    Curve,
    CurvePoint,
    GeneratedTexts,
    LossPoint,
    Measurements,
    Missing,
    Part,
    Place,
    PostTrainingRun,
    RowLikelihoods,
    Timing,
    TrainingRun,
    Validation,
)
from redraft.compare.prepared import Prepared
from redraft.compare.select import mark_kept, select_dropout
from redraft.compare.workbench import Trained, Work, Workbench
from redraft.evaluation.decoding import DecodingConfig
from redraft.evaluation.result_cache import ResultCache, digest
from redraft.evaluation.texts import GenerationRun
from redraft.evaluation.timing import TimedCalls
from redraft.executors.base import Executor, Log, Outcome, Resources, Task
from redraft.loading import is_model

NOT_COMPUTED = "it has not been computed yet"


@dataclass(frozen=True)
class Piece:
    """A piece of a study: what it depends on, how it is computed, and where its value belongs."""

    key: Mapping[str, Any]
    label: str
    work: Work
    absorb: Callable[[dict[str, Any]], None]
    family: str = ""  # whose memory it needs
    needs: tuple[str, ...] = ()  # ids of pieces
    alone: bool = False  # it measures times
    reserve: float | None = None  # seconds before the end of the study after which it is left out; None: never

    @property
    def id(self) -> str:
        """The hash of its key."""
        return digest(self.key)


@dataclass
class Job:
    """A study under way. Without a workbench nothing is computed: only finished pieces are read."""

    prepared: Prepared
    bench: Workbench | None
    executor: Executor
    cache: ResultCache
    out: Path
    log: Log
    measured: Measurements
    failures: dict[str, str] = field(default_factory=dict)  # piece -> why it could not be measured
    dropouts: dict[str, float] = field(default_factory=dict)  # selected rate of each family
    _done: set[str] = field(default_factory=set)  # ids of pieces with a value
    _lost: set[str] = field(default_factory=set)  # ids of pieces without one
    _memory: dict[str, int] = field(default_factory=dict)  # bytes that the pieces of a family need

    @property
    def seeds(self) -> range:
        """The seeds of the study."""
        first = self.prepared.study.seed
        return range(first, first + self.prepared.study.seeds)

    # ---- running

    def run(self, pieces: Sequence[Piece]) -> None:
        """Read pieces from the cache, compute the others and keep them there. A failure is noted as missing.

        Values are taken in the order of the pieces, whatever order they were computed in.
        """
        values, why = {piece.id: self.cache.get(piece.key) for piece in pieces}, dict[str, str]()
        absent = {piece.id: piece for piece in pieces if values[piece.id] is None}
        if self.bench is None:
            why = {name: self.failures.get(piece.label, NOT_COMPUTED) for name, piece in absent.items()}
        else:
            for outcome in self.executor.run([self._task(p) for p in absent.values()], self.bench, self.log):
                values[outcome.id], why[outcome.id] = outcome.value, outcome.why
                self._keep(absent[outcome.id], outcome)
        for piece in pieces:
            value = values[piece.id]
            (self._lost if value is None else self._done).add(piece.id)
            if value is not None:
                piece.absorb(value)
            elif self._done.issuperset(piece.needs):
                self.failures[piece.label] = why[piece.id]
                self.measured.missing.append(Missing(piece.label, why[piece.id]))

    def _keep(self, piece: Piece, outcome: Outcome) -> None:
        """Write a value down as soon as it is known."""
        if outcome.value is not None:
            self.cache.put(piece.key, outcome.value)
            self.log(f"{piece.label}: {clock(outcome.seconds)}")
        elif outcome.why:
            self.log(f"{piece.label}: {outcome.why}")

    def _task(self, piece: Piece) -> Task:
        assert self.bench is not None
        until = float("inf") if piece.reserve is None else self.bench.deadline - piece.reserve
        return Task(piece.id, piece.label, piece.work, piece.needs, self._resources(piece), piece.alone, until)

    def _resources(self, piece: Piece) -> Resources:
        """What a piece occupies: as many threads as this process would use, so that its numbers are the same."""
        assert self.bench is not None
        if not self.executor.separate:
            return Resources()
        if piece.family and piece.family not in self._memory:
            self._memory[piece.family] = self.bench.memory(piece.family)
        threads = self.prepared.study.train.get("threads") if piece.key["kind"] == "train" else None
        gpus = int(self.bench.setup.device.type == "cuda" and piece.key["kind"] not in ("baselines", "service"))
        return Resources(threads or torch.get_num_threads(), gpus, self._memory.get(piece.family, 0))

    # ---- training

    def trainings(self) -> list[Piece]:
        """Every family with every seed and dropout rate, all with the same budget."""
        study = self.prepared.study
        rates = study.dropouts or (None,)
        return [self._training(f, seed, rate) for seed in self.seeds for f in study.families for rate in rates]

    def _training(self, family: str, seed: int, dropout: float | None) -> Piece:
        key = self.prepared.key(family, seed, dropout)
        one = Trained(family, seed, self._folder(key))
        label = f"training {family}, seed {seed}" + ("" if dropout is None else f", dropout {dropout:g}")
        piece = {"kind": "train", **key}
        if self.bench is not None and self.cache.get(piece) is not None and not is_model(one.folder):
            self.log(f"{label}: the model was deleted, so it is trained again")
            self.cache.path(piece).unlink()

        def absorb(value: dict[str, Any]) -> None:
            rate = key["recipe"]["train"].get("dropout", 0.0)
            model = str(one.folder.relative_to(self.out.resolve()))
            self.measured.training.append(_training_run(value, family, seed, rate, model))

        return Piece(piece, label, partial(Workbench.train, one=one, dropout=dropout), absorb, family)

    def select_dropouts(self) -> None:
        """Keep each family's best dropout rate. Models trained at other rates are reported and not used further."""
        study, runs = self.prepared.study, self.measured.training
        for family in study.families if study.dropouts else ():
            rate = select_dropout(runs, family)
            if rate is not None:
                self.dropouts[family] = rate
                self.log(f"{family}: dropout {rate:g} is best on validation rows")
        self.measured.training = mark_kept(runs, self.dropouts)

    # ---- likelihood and baselines

    def likelihoods(self) -> list[Piece]:
        """Negative log-likelihood of every test row under every model."""
        return [self._likelihood(one) for one in self._models(self.prepared.study.families)]

    def _likelihood(self, one: Trained) -> Piece:
        key = {"kind": "likelihood", **self._model_key(one), "rows": self.prepared.likelihood_rows}

        def absorb(value: dict[str, Any]) -> None:
            rest = {name: value[name] for name in ("is_bound", "error", "samples")}
            rows = tuple(value["nats"]), tuple(value["bytes"])
            self.measured.likelihoods.append(RowLikelihoods(one.family, one.seed, *rows, **rest))

        work = partial(Workbench.likelihood, one=one)
        return Piece(key, f"likelihood of {one}", work, absorb, one.family, self._needs(one))

    def baselines(self) -> list[Piece]:
        """Texts of trivial systems for the test items, and an n-gram model's bits per byte."""
        prompts, task = [item.prompt for item in self.prepared.test], self.prepared.task.name
        key = {"kind": "baselines", "data": self.prepared.data.hash, "items": digest(prompts), "task": task}

        def absorb(value: dict[str, Any]) -> None:
            texts = {name: tuple(found) for name, found in value["texts"].items()}
            people = tuple(value["human_texts"])
            self.measured.baselines = BaselineAnswers(texts, people, value["order"], value["bits_per_byte"])

        whole = {**key, "rows": self.prepared.plan.test_rows}
        return [Piece(whole, "trivial baselines", Workbench.baselines, absorb)]

    # ---- texts and times

    def texts(
        self, part: Part, settings: Sequence[DecodingConfig], optional: bool = False, constrained: bool = False
    ) -> list[Piece]:
        """A text for every item of a part from the models of all seeds, with every setting.

        Optional settings are left out when time is up; before the test, when what must follow would not fit.
        """
        reserve = None if not optional else self.prepared.plan.reserve if part == "validation" else 0.0
        return [
            self._texts(part, setting, one, reserve, constrained)
            for seed in self.seeds
            for setting in settings
            for one in self._models([setting.family], [seed])
        ]

    def _texts(
        self, part: Part, setting: DecodingConfig, one: Trained, reserve: float | None, constrained: bool
    ) -> Piece:
        items = self.prepared.test if part == "test" else self.prepared.validation
        config = constrained_config(setting, self.prepared.study.constraint) if constrained else setting
        key = {
            "kind": "texts",
            **self._model_key(one),
            "setting": dataclasses.asdict(config),
            "new_tokens": self.prepared.new_tokens(config.family),
            "items": digest([item.asked for item in items]),
        }

        def absorb(value: dict[str, Any]) -> None:
            self.measured.texts.append(GeneratedTexts(setting.id, part, one.seed, GenerationRun(**value), constrained))

        label = f"{'constrained test' if constrained else part}: {setting.label}, seed {one.seed}"
        work = partial(Workbench.texts, one=one, part=part, config=config)
        return Piece(key, label, work, absorb, one.family, self._needs(one), reserve=reserve)

    def timings(self) -> list[Piece]:
        """Every setting that generated texts at every batch size, in turns on the same requests."""
        done = {one.setting for one in self.measured.texts}
        able = [setting for setting in self.prepared.plan.settings if setting.id in done]
        sizes = self.prepared.study.batch_sizes
        return [self._timing(f"timing at batch size {batch}", batch, able, False) for batch in sizes]

    def constrained_timings(self, settings: Sequence[DecodingConfig]) -> list[Piece]:
        """Settings without the study's constraint and under it, in turns on the same requests."""
        seed, study = self.seeds[0], self.prepared.study
        done = {one.setting for one in self.measured.texts if one.constrained and one.seed == seed}
        able = [setting for setting in settings if setting.id in done]
        both = [*able, *(constrained_config(setting, study.constraint) for setting in able)]
        sizes, label = study.batch_sizes if able else (), "timing under the constraint at batch size"
        return [self._timing(f"{label} {batch}", batch, both, True) for batch in sizes]

    def _timing(self, label: str, batch: int, settings: Sequence[DecodingConfig], constrained: bool) -> Piece:
        seed, plan, study = self.seeds[0], self.prepared.plan, self.prepared.study
        models = {one.family: one for one in self._models(study.families, [seed])}
        settings = [setting for setting in settings if setting.family in models]
        limits = [self.prepared.new_tokens(setting.family) for setting in settings]
        key = {
            "kind": "timing",
            "models": [self._key(family, seed) for family in study.families if self._selected(family)],
            "settings": [dataclasses.asdict(setting) for setting in settings],
            "batch": batch,
            "calls": plan.timed_calls,
            "new_tokens": limits,
            "items": digest([item.asked for item in self.prepared.test]),
        }

        def absorb(value: dict[str, Any]) -> None:
            entries = [TimedCalls(e["id"], tuple(e["seconds"]), tuple(e["tokens"])) for e in value["entries"]]
            place = Place(**value["place"]) if "place" in value else None
            self.measured.timings.append(Timing(batch, tuple(entries), constrained, place))

        runners = [(models[setting.family], setting) for setting in settings]
        executor = self.executor.name
        work = partial(Workbench.timing, runners=runners, batch=batch, limits=limits, executor=executor)
        return Piece(key, label, work, absorb, alone=True)

    def service(self) -> list[Piece]:
        """The replies of the study's external service, if there is one, to the test items."""
        service, plan = self.prepared.study.service, self.prepared.plan
        if service is None:
            return []
        key: dict[str, Any] = {
            "kind": "service",
            "service": dataclasses.asdict(service),
            "data": self.prepared.data.hash,
            "new_tokens": plan.new_tokens,
            "items": digest([item.prompt for item in self.prepared.test]),
        }

        def absorb(value: dict[str, Any]) -> None:
            replies = tuple(Reply(**reply) for reply in value["replies"])
            rate = value["requests_per_second"]
            self.measured.service = Replies(service, value["fields"], replies, tuple(value["single"]), rate)

        return [Piece(key, f"external service {service.model}", Workbench.service, absorb)]

    # ---- models

    def _models(self, families: Sequence[str], seeds: Sequence[int] = ()) -> Iterator[Trained]:
        """The models of families whose training has not failed, with the selected dropout rates."""
        for seed in seeds or self.seeds:
            for family in families:
                if self._selected(family) and self._training_id(family, seed) not in self._lost:
                    yield Trained(family, seed, self._folder(self._key(family, seed)))

    def _selected(self, family: str) -> bool:
        """Is it known which of the family's models is used?"""
        return not self.prepared.study.dropouts or family in self.dropouts

    def _needs(self, one: Trained) -> tuple[str, ...]:
        return (self._training_id(one.family, one.seed),)

    def _training_id(self, family: str, seed: int) -> str:
        return digest({"kind": "train", **self._key(family, seed)})

    def _model_key(self, one: Trained) -> dict[str, Any]:
        return self._key(one.family, one.seed)

    def _key(self, family: str, seed: int) -> dict[str, Any]:
        return self.prepared.key(family, seed, self.dropouts.get(family))

    def _folder(self, key: Mapping[str, Any]) -> Path:
        """The folder of a model; the hash distinguishes it from models with another recipe."""
        return self.out.resolve() / "models" / f"{key['family']}-{key['seed']}-{digest(key)[:8]}"


def _training_run(value: Mapping[str, Any], family: str, seed: int, dropout: float, folder: str) -> TrainingRun:
    check, curve = value["validation"], value["curve"]
    return TrainingRun(
        family=family,
        seed=seed,
        dropout=dropout,
        kept=True,
        tokens_per_second=value["tokens"] / value["seconds"] if value["seconds"] else None,
        validation=check and Validation(check["bits_per_byte"], check["bits_error"], check["is_bound"]),
        curve=Curve(
            tuple(CurvePoint(**point) for point in curve["validation"]),
            tuple(LossPoint(**point) for point in curve["update"]),
        ),
        model=folder,
        post=PostTrainingRun(**value["post"]) if value.get("post") else None,
        **{
            name: value[name] for name in ("parameters", "steps", "tokens", "passes", "flops", "seconds", "peak_memory")
        },
    )
