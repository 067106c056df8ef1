"""The pieces of a study: each is measured once and kept in the result cache."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from redraft.compare import baselines
from redraft.compare.constraint_study import constrained_config
from redraft.compare.data import Dataset
from redraft.compare.external_service import Replies, Reply, measure_service
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
    RowLikelihoods,
    Timing,
    TrainingRun,
    Validation,
)
from redraft.compare.plan import LIKELIHOOD_SAMPLES
from redraft.compare.prepared import Prepared
from redraft.compare.select import mark_kept, select_dropout
from redraft.compare.setup import Setup
from redraft.data.loader import batches, tokenise
from redraft.errors import UserError
from redraft.evaluation.decoding import DecodingConfig
from redraft.evaluation.items import make_items, sample
from redraft.evaluation.result_cache import ResultCache, digest
from redraft.evaluation.texts import GenerationRun, generate_texts
from redraft.evaluation.timing import TimedCalls, time_in_turns
from redraft.likelihood import bound
from redraft.loading import is_model, load
from redraft.model import Model
from redraft.train.logging import Event
from redraft.train.loop import train
from redraft.train.memory_plan import fitted

Log = Callable[[str], None]
TIMING_SHARE = 0.25  # of the time left, for the timing at one batch size
NOT_COMPUTED = "it has not been computed yet"
NO_TIME = "there was no time left"


@dataclass
class Job:
    """A study under way. Without a setup nothing is computed: only finished pieces are read."""

    prepared: Prepared
    setup: Setup | None
    cache: ResultCache
    out: Path
    log: Log
    deadline: float  # time.monotonic() after which optional pieces are left out
    measured: Measurements
    failures: dict[str, str] = field(default_factory=dict)  # piece -> why it could not be measured
    dropouts: dict[str, float] = field(default_factory=dict)  # selected rate of each family
    _loaded: dict[tuple[str, int], Model] = field(default_factory=dict)

    @property
    def seeds(self) -> range:
        """The seeds of the study."""
        first = self.prepared.study.seed
        return range(first, first + self.prepared.study.seeds)

    # ---- training

    def train_models(self) -> None:
        """Train or fine-tune every family with every seed and dropout rate, all with the same budget."""
        study = self.prepared.study
        for seed in self.seeds:
            for family in study.families:
                for dropout in study.dropouts or (None,):
                    self._train(family, seed, dropout)

    def _train(self, family: str, seed: int, dropout: float | None) -> None:
        key = self.prepared.key(family, seed, dropout)
        folder = self._folder(key)

        def work() -> dict[str, Any]:
            setup = self._setup()
            recipe = setup.recipe(self.prepared.plan, family, seed, dropout)
            recipe, memory = fitted(recipe, setup.device)
            self.log(str(memory))
            result = train(recipe, folder, device=str(setup.device), on_event=self._watch(f"{family}, seed {seed}"))
            return {**dataclasses.asdict(result), "curve": _curve(folder / "train" / "metrics.jsonl")}

        label = f"training {family}, seed {seed}" + ("" if dropout is None else f", dropout {dropout:g}")
        piece = {"kind": "train", **key}
        if self.setup is not None and self.cache.get(piece) is not None and not is_model(folder):
            self.log(f"{label}: the model was deleted, so it is trained again")
            self.cache.path(piece).unlink()
        value = self._piece(piece, label, work)
        if value is not None:
            rate = key["recipe"]["train"].get("dropout", 0.0)
            self.measured.training.append(_training_run(value, family, seed, rate, str(folder.relative_to(self.out))))

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

    def score_rows(self) -> None:
        """Negative log-likelihood of every test row under every model: exact, or a bound with its Monte-Carlo error."""
        for seed in self.seeds:
            for family in self.prepared.study.families:
                if self._trained(family, seed):
                    self._score(family, seed)

    def _score(self, family: str, seed: int) -> None:
        key = {"kind": "likelihood", **self._model_key(family, seed), "rows": self.prepared.likelihood_rows}

        def work() -> dict[str, Any]:
            setup, model, length = self._setup(), self.model(family, seed), self.prepared.length(family)
            rows = likelihood_rows(setup.dataset, self.prepared.plan.test_rows)
            size = max(4096, length + 1)
            made = batches(tokenise(rows, model.tokenizer), model.tokenizer, length, size, "skip")
            objective = model.family.objective()
            found = bound(model.network, made, objective, model.spec, LIKELIHOOD_SAMPLES, 0)
            return {
                "nats": list(found.rows),
                "bytes": [int(n) for batch in made for n in batch.bytes.tolist()],
                "is_bound": found.is_bound,
                "error": found.bits_per_byte_stderr,
                "samples": found.samples,
            }

        value = self._piece(key, f"likelihood of {family}, seed {seed}", work)
        if value is not None:
            nats, sizes = tuple(value.pop("nats")), tuple(value.pop("bytes"))
            self.measured.likelihoods.append(RowLikelihoods(family, seed, nats, sizes, **value))

    def run_baselines(self) -> None:
        """Texts of trivial systems for the test items, and an n-gram model's bits per byte."""
        prompts, task = [item.prompt for item in self.prepared.test], self.prepared.task.name

        def work() -> dict[str, Any]:
            setup, plan = self._setup(), self.prepared.plan
            rows, texts, people = setup.dataset.train, {}, []
            scored = [e.target for e in likelihood_rows(setup.dataset, plan.test_rows)]
            model = baselines.NgramModel.fit([e.target for e in rows])
            if setup.dataset.paired:
                known, targets = [e.prompt or "" for e in rows], [e.target for e in rows]
                texts["copying the input"] = baselines.copy_input(prompts)
                texts["the nearest training example"] = baselines.nearest(prompts, known, targets)
                if task == "classification":
                    texts["the most common label"] = baselines.most_common(targets, len(prompts))
            else:
                others = make_items(rows, setup.first.tokenizer, len(prompts), False, plan.new_tokens)
                people = [item.references[0] for item in others]
            bits = model.bits_per_byte(scored)
            return {"texts": texts, "human_texts": people, "order": model.order, "bits_per_byte": bits}

        key = {"kind": "baselines", "data": self.prepared.data.hash, "items": digest(prompts), "task": task}
        value = self._piece({**key, "rows": self.prepared.plan.test_rows}, "trivial baselines", work)
        if value is not None:
            texts = {name: tuple(found) for name, found in value["texts"].items()}
            people = tuple(value["human_texts"])
            self.measured.baselines = BaselineAnswers(texts, people, value["order"], value["bits_per_byte"])

    # ---- texts and times

    def generate(
        self, part: Part, settings: Sequence[DecodingConfig], optional: bool = False, constrained: bool = False
    ) -> None:
        """Let the models of all seeds generate a text for every item of a part, with every setting.

        Optional settings are left out when time is up; before the test, when what must follow would not fit.
        """
        for seed in self.seeds:
            for setting in settings:
                if self._trained(setting.family, seed):
                    self._generate(part, setting, seed, optional, constrained)

    def _generate(self, part: Part, setting: DecodingConfig, seed: int, optional: bool, constrained: bool) -> None:
        items = self.prepared.test if part == "test" else self.prepared.validation
        prompts, most = [item.asked for item in items], max(self.prepared.study.batch_sizes)
        plan, constraint = self.prepared.plan, self.prepared.study.constraint
        config = constrained_config(setting, constraint) if constrained else setting
        key = {
            "kind": "texts",
            **self._model_key(setting.family, seed),
            "setting": dataclasses.asdict(config),
            "new_tokens": self.prepared.new_tokens(config.family),
            "items": digest(prompts),
        }
        late = optional and time.monotonic() > self.deadline - (plan.reserve if part == "validation" else 0.0)

        def work() -> dict[str, Any]:
            model = self.model(config.family, seed)
            return dataclasses.asdict(generate_texts(model, prompts, config, key["new_tokens"], most))

        stage = "constrained test" if constrained else part
        value = self._piece(key, f"{stage}: {setting.label}, seed {seed}", work, NO_TIME if late else "")
        if value is not None:
            self.measured.texts.append(GeneratedTexts(setting.id, part, seed, GenerationRun(**value), constrained))

    def time_settings(self) -> None:
        """Time every setting that generated texts at every batch size, in turns on the same requests."""
        done = {one.setting for one in self.measured.texts}
        able = [s for s in self.prepared.plan.settings if s.id in done and self._trained(s.family, self.seeds[0])]
        for batch in self.prepared.study.batch_sizes:
            self._time_in_turns(f"timing at batch size {batch}", batch, able)

    def time_constrained(self, settings: Sequence[DecodingConfig]) -> None:
        """Time settings without the study's constraint and under it, in turns on the same requests."""
        seed, study = self.seeds[0], self.prepared.study
        done = {one.setting for one in self.measured.texts if one.constrained and one.seed == seed}
        able = [setting for setting in settings if setting.id in done]
        both = [*able, *(constrained_config(setting, study.constraint) for setting in able)]
        for batch in study.batch_sizes if able else ():
            self._time_in_turns(f"timing under the constraint at batch size {batch}", batch, both, constrained=True)

    def _time_in_turns(
        self, label: str, batch: int, settings: Sequence[DecodingConfig], constrained: bool = False
    ) -> None:
        seed, plan, study = self.seeds[0], self.prepared.plan, self.prepared.study
        prompts = [item.asked for item in self.prepared.test]
        limits = [self.prepared.new_tokens(setting.family) for setting in settings]
        key = {
            "kind": "timing",
            "models": [self._model_key(family, seed) for family in study.families],
            "settings": [dataclasses.asdict(setting) for setting in settings],
            "batch": batch,
            "calls": plan.timed_calls,
            "new_tokens": limits,
            "items": digest(prompts),
        }

        def work() -> dict[str, Any]:
            runners = [(self.model(setting.family, seed), setting) for setting in settings]
            until = time.monotonic() + TIMING_SHARE * (self.deadline - time.monotonic())
            timed = time_in_turns(runners, prompts, batch, plan.timed_calls, limits, until)
            entries = [dataclasses.asdict(one) for one in timed]
            return {"entries": entries, "device": str(self._setup().device), "threads": torch.get_num_threads()}

        value = self._piece(key, label, work)
        if value is not None:
            entries = [TimedCalls(e["id"], tuple(e["seconds"]), tuple(e["tokens"])) for e in value["entries"]]
            self.measured.timings.append(Timing(batch, tuple(entries), constrained))

    def ask_service(self) -> None:
        """Ask the study's external service, if there is one, for the test items."""
        service = self.prepared.study.service
        if service is None:
            return
        prompts, plan = [item.prompt for item in self.prepared.test], self.prepared.plan

        def work() -> dict[str, Any]:
            rows = [e for e in self._setup().dataset.train if e.prompt is not None]
            shots = [(e.prompt or "", e.target) for e in sample(rows, service.shots)] if service.shots else []
            return dataclasses.asdict(measure_service(service, prompts, shots, plan.new_tokens, plan.timed_calls))

        key: dict[str, Any] = {
            "kind": "service",
            "service": dataclasses.asdict(service),
            "data": self.prepared.data.hash,
        }
        key |= {"new_tokens": plan.new_tokens, "items": digest(prompts)}
        value = self._piece(key, f"external service {service.model}", work)
        if value is not None:
            replies = tuple(Reply(**reply) for reply in value["replies"])
            rate = value["requests_per_second"]
            self.measured.service = Replies(service, value["fields"], replies, tuple(value["single"]), rate)

    # ---- tools

    def model(self, family: str, seed: int) -> Model:
        """A trained model; those of one seed stay in memory."""
        if (family, seed) not in self._loaded:
            self._loaded = {k: v for k, v in self._loaded.items() if k[1] == seed}
            self._loaded[family, seed] = load(
                self._folder(self._model_key(family, seed)), str(self._setup().device), self.prepared.study.dtype
            )
        return self._loaded[family, seed]

    def _setup(self) -> Setup:
        assert self.setup is not None, "finished pieces need no setup, and others are not computed without one"
        return self.setup

    def _piece(
        self, key: Mapping[str, Any], label: str, work: Callable[[], dict[str, Any]], skip: str = ""
    ) -> dict[str, Any] | None:
        """The value of a piece: read from the cache, or computed and kept there. A failure is noted as missing."""
        value = self.cache.get(key)
        if value is not None:
            return value
        if self.setup is None:
            skip = self.failures.get(label, NOT_COMPUTED)
        if not skip:
            begin = time.monotonic()
            try:
                value = work()
            except UserError as error:
                self.log(f"{label}: {error}")
                skip = str(error)
            else:
                self.cache.put(key, value)
                self.log(f"{label}: {clock(time.monotonic() - begin)}")
                return value
        self.failures[label] = skip
        self.measured.missing.append(Missing(label, skip))
        return None

    def _trained(self, family: str, seed: int) -> bool:
        return any(run.kept and (run.family, run.seed) == (family, seed) for run in self.measured.training)

    def _folder(self, key: Mapping[str, Any]) -> Path:
        """The folder of a model; the hash distinguishes it from models with another recipe."""
        return self.out / "models" / f"{key['family']}-{key['seed']}-{digest(key)[:8]}"

    def _model_key(self, family: str, seed: int) -> dict[str, Any]:
        return self.prepared.key(family, seed, self.dropouts.get(family))

    def _watch(self, label: str) -> Callable[[Event], None]:
        """Logs the progress of a training run, at most every ten seconds."""
        last = time.monotonic()

        def watch(event: Event) -> None:
            nonlocal last
            values = event.values
            if event.kind == "update" and time.monotonic() - last > 10:
                last = time.monotonic()
                self.log(
                    f"{label}: {values['progress']:.0%}, loss {values['loss']:.3f}, "
                    f"{values['tokens_per_second']:,.0f} tokens/s, {clock(values['eta_seconds'])} left"
                )
            if event.kind == "validation":
                self.log(f"{label}: {values['bits_per_byte']:.4f} bits per byte on validation rows")

        return watch


def likelihood_rows(dataset: Dataset, most: int) -> list[Any]:
    """The test rows whose likelihood is measured."""
    return sample(dataset.test, most)


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
        **{
            name: value[name] for name in ("parameters", "steps", "tokens", "passes", "flops", "seconds", "peak_memory")
        },
    )


def _curve(path: Path) -> dict[str, list[dict[str, Any]]]:
    """Validation and training loss by tokens, from the metrics of a run; at most 200 points of the training loss."""
    validation, update = [], []
    for line in path.read_text(encoding="utf-8").splitlines():
        event = json.loads(line)
        if event["kind"] == "validation":
            names = ("bits_per_byte", "bits_error", "passes")
            validation.append({"tokens": event["tokens"], **{name: event.get(name) for name in names}})
        elif event["kind"] == "update":
            update.append({"tokens": event["tokens"], "loss": event["loss"]})
    return {"validation": validation, "update": update[:: max(1, len(update) // 200)]}
