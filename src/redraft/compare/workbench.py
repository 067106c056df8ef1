"""What computes the pieces of a study, in whatever process: training, likelihoods, texts and times."""

from __future__ import annotations

import dataclasses
import json
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from redraft.compare import baselines, post_training
from redraft.compare.data import Dataset
from redraft.compare.external_service import measure_service
from redraft.compare.format import clock
from redraft.compare.plan import LIKELIHOOD_SAMPLES
from redraft.compare.prepared import Prepared
from redraft.compare.setup import Setup
from redraft.data.loader import batches
from redraft.data.tokenising import tokenise
from redraft.evaluation.decoding import DecodingConfig
from redraft.evaluation.items import make_items, sample
from redraft.evaluation.machine import hardware
from redraft.evaluation.texts import generate_texts
from redraft.evaluation.timing import time_in_turns
from redraft.executors.base import State
from redraft.likelihood import bound
from redraft.loading import load
from redraft.model import Model
from redraft.planning.training import fitted
from redraft.planning.training import plan as plan_memory
from redraft.train.logging import Event
from redraft.train.loop import train
from redraft.train.recipe import Recipe

Work = Callable[["Workbench"], dict[str, Any]]  # computes the value of one piece
TIMING_SHARE = 0.25  # of the time left, for the timing at one batch size


@dataclass(frozen=True)
class Trained:
    """A trained model of a study."""

    family: str
    seed: int
    folder: Path

    def __str__(self) -> str:
        return f"{self.family}, seed {self.seed}"


@dataclass
class Workbench(State):
    """A study that is set up, without what it has measured. Its methods compute one piece each, as plain values.

    It can be sent to another process that sees the same folder.
    """

    prepared: Prepared
    setup: Setup
    deadline: float  # time.time() at which the study should end
    dtype: str  # of matrix products in training, the same for all models and machines
    _loaded: dict[Trained, Model] = field(default_factory=dict)

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "log": _silent, "_loaded": {}}

    def train(self, one: Trained, dropout: float | None) -> dict[str, Any]:
        """Train or fine-tune a model, or go on from its last checkpoint.

        Raises:
            UserError: it does not fit into memory, or diverges.
        """
        recipe, memory = fitted(self._recipe(one.family, one.seed, dropout), self.setup.device)
        self.log(str(memory))
        rewarded, device, watch = bool(self.prepared.study.post_training), self.setup.device, self._watch(str(one))
        folder = one.folder / post_training.BEFORE if rewarded else one.folder
        result = train(recipe, folder, device=str(device), on_event=watch)
        value = {**dataclasses.asdict(result), "curve": _curve(folder / "train" / "metrics.jsonl")}
        if rewarded:
            value["post"] = post_training.run(self.setup, recipe, one.family, one.folder, device, watch)
        return value

    def memory(self, family: str) -> int:
        """Bytes of the host that the training of a family needs; its other pieces need less. 0: the device has them."""
        if self.setup.device.type != "cpu":
            return 0
        return plan_memory(self._recipe(family, self.prepared.study.seed, None), self.setup.device).total

    def _recipe(self, family: str, seed: int, dropout: float | None) -> Recipe:
        recipe = self.setup.recipe(self.prepared.plan, family, seed, dropout)
        return replace(recipe, train=replace(recipe.train, dtype=self.dtype))

    def likelihood(self, one: Trained) -> dict[str, Any]:
        """Negative log-likelihood of every test row: exact, or a bound with its Monte-Carlo error."""
        model, length = self.model(one), self.prepared.length(one.family)
        rows = likelihood_rows(self.setup.dataset, self.prepared.plan.test_rows)
        size = max(4096, length + 1)
        made = batches(tokenise(rows, model.tokenizer), model.tokenizer, length, size, "skip")
        found = bound(model.network, made, model.family.objective(), model.spec, LIKELIHOOD_SAMPLES, 0)
        return {
            "nats": list(found.rows),
            "bytes": [int(n) for batch in made for n in batch.bytes.tolist()],
            "is_bound": found.is_bound,
            "error": found.bits_per_byte_stderr,
            "samples": found.samples,
        }

    def baselines(self) -> dict[str, Any]:
        """Texts of trivial systems for the test items, and an n-gram model's bits per byte."""
        prompts, plan = [item.prompt for item in self.prepared.test], self.prepared.plan
        dataset = self.setup.dataset
        rows, texts, people = dataset.train, {}, []
        scored = [e.target for e in likelihood_rows(dataset, plan.test_rows)]
        model = baselines.NgramModel.fit([e.target for e in rows])
        if dataset.paired:
            known, targets = [e.prompt or "" for e in rows], [e.target for e in rows]
            texts["copying the input"] = baselines.copy_input(prompts)
            texts["the nearest training example"] = baselines.nearest(prompts, known, targets)
            if self.prepared.task.name == "classification":
                texts["the most common label"] = baselines.most_common(targets, len(prompts))
        else:
            others = make_items(rows, self.setup.first.tokenizer, len(prompts), False, plan.new_tokens)
            people = [item.references[0] for item in others]
        bits = model.bits_per_byte(scored)
        return {"texts": texts, "human_texts": people, "order": model.order, "bits_per_byte": bits}

    def texts(self, one: Trained, part: str, config: DecodingConfig) -> dict[str, Any]:
        """A text for every item of a part.

        Raises:
            UserError: the sampler refuses the setting.
        """
        items = self.prepared.test if part == "test" else self.prepared.validation
        limit, most = self.prepared.new_tokens(config.family), max(self.prepared.study.batch_sizes)
        return dataclasses.asdict(generate_texts(self.model(one), [item.asked for item in items], config, limit, most))

    def timing(
        self, runners: Sequence[tuple[Trained, DecodingConfig]], batch: int, limits: Sequence[int], executor: str
    ) -> dict[str, Any]:
        """Times of settings, in turns on the same requests, and where they were measured."""
        loaded = [(self.model(one), config) for one, config in runners]
        until = time.monotonic() + TIMING_SHARE * (self.deadline - time.time())
        prompts, calls = [item.asked for item in self.prepared.test], self.prepared.plan.timed_calls
        timed = time_in_turns(loaded, prompts, batch, calls, limits, until)
        found = hardware(self.setup.device)
        place = {name: found[name] for name in ("gpu", "cpu", "cores", "threads")}
        return {
            "entries": [dataclasses.asdict(one) for one in timed],
            "device": found["device"],
            "threads": torch.get_num_threads(),
            "place": {"executor": executor, "node": socket.gethostname(), **place},
        }

    def service(self) -> dict[str, Any]:
        """Replies of the study's external service to the test items."""
        service, plan = self.prepared.study.service, self.prepared.plan
        assert service is not None
        rows = [e for e in self.setup.dataset.train if e.prompt is not None]
        shots = [(e.prompt or "", e.target) for e in sample(rows, service.shots)] if service.shots else []
        prompts = [item.prompt for item in self.prepared.test]
        return dataclasses.asdict(measure_service(service, prompts, shots, plan.new_tokens, plan.timed_calls))

    def model(self, one: Trained) -> Model:
        """A trained model; those of one seed stay in memory."""
        if one not in self._loaded:
            self._loaded = {other: model for other, model in self._loaded.items() if other.seed == one.seed}
            self._loaded[one] = load(one.folder, str(self.setup.device), self.prepared.study.dtype)
        return self._loaded[one]

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


def _silent(line: str) -> None:
    """The log of a workbench that was sent, until it gets another one."""


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
