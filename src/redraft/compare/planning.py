"""Makes the plan of a study: from the budget that was given, or from short training runs on this machine."""

from __future__ import annotations

import dataclasses
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from redraft import config, models
from redraft.compare import time_budget
from redraft.compare.plan import SIZES, Plan, largest, learning_rate, training_table
from redraft.compare.setup import Setup
from redraft.compare.time_budget import Probe, Workload
from redraft.errors import UserError
from redraft.evaluation.result_cache import ResultCache
from redraft.families import build_family
from redraft.loading import load
from redraft.planning.machine import measured
from redraft.planning.step import step
from redraft.planning.texts import Texts
from redraft.planning.timing import pace
from redraft.planning.training import MemoryPlan, fitted
from redraft.planning.twin import Outline
from redraft.presets import shape as shape_of
from redraft.train.logging import Event
from redraft.train.loop import train
from redraft.train.process import use_bfloat16
from redraft.train.tables import TrainTable

SMALLEST_BATCH, LARGE_BATCH = 1024, 512  # tokens of the smallest update; with large checkpoints on a CPU
PROBE_MINUTES = 0.3  # of a short training run of a large checkpoint
EQUAL = 0.01  # largest relative difference in parameters between families
PROBE_UPDATES, PROBE_TOKENS = 12, 2048  # updates of a short training run; tokens of its updates, at first


@dataclass
class Planner:
    """Plans a study that is set up."""

    setup: Setup
    cache: ResultCache
    log: Callable[[str], None]
    begun: float  # time.monotonic() when the study began
    _memory: tuple[Plan, dict[str, MemoryPlan]] | None = None  # of the last plan

    def plan(self) -> Plan:
        """The plan. One that needed measurements is cached, so that an interrupted study continues with it.

        Raises:
            UserError: too little time, or families of unequal size.
        """
        setup, study = self.setup, self.setup.study
        tokens = study.budget_tokens or int(study.passes * setup.pass_tokens)
        sizes = () if study.preset or study.bases else self._equal() or SIZES
        preset = study.preset or (largest(tokens, setup.first.tokenizer.vocab_size, sizes) if tokens and sizes else "")
        draft = Plan(
            tokens=tokens,
            preset=preset,
            vocab_size=setup.first.tokenizer.vocab_size,
            length=setup.first.length,
            new_tokens=setup.first.new_tokens,
            test_rows=len(setup.test),
            validation_rows=len(setup.validation),
            timed_calls=study.timed_calls,
            train=self._table(max(tokens, 1)),
            settings=tuple(setup.settings()),
        )
        if preset:
            self.check_parameters(preset)
        if study.bases or preset:
            self.memory(draft)  # before any of them is trained to measure its speed
        return draft if tokens else self._measured(draft, sizes)

    def memory(self, plan: Plan) -> dict[str, MemoryPlan]:
        """The memory of training each family. Nothing is loaded.

        Raises:
            UserError: a family can't be trained on this machine; names what would help.
        """
        if self._memory is not None and self._memory[0] == plan:
            return self._memory[1]
        found: dict[str, MemoryPlan] = {}
        data = self.setup.dataset
        texts = Texts.of(data.train, (data.validation, data.test))
        for family in self.setup.study.families:
            recipe = self.setup.recipe(plan, family, self.setup.study.seed)
            try:
                found[family] = fitted(recipe, self.setup.device, texts=texts)[1]
            except UserError as error:
                remedy = error.remedy.replace("--set train.", "--set ")
                raise UserError(f"Family '{family}': {error.what}", remedy) from None
        self._memory = plan, found
        return found

    def minutes(self, plan: Plan, memory: Mapping[str, MemoryPlan]) -> float:
        """Minutes of training all models of a plan, from the speed of this machine; nothing is trained."""
        machine, study, seconds = measured(self.setup.device), self.setup.study, 0.0
        for family in study.families:
            recipe = self.setup.recipe(plan, family, study.seed)
            bfloat16 = use_bfloat16(recipe.train.dtype, self.setup.device)
            run, mode = Outline.of(recipe, bfloat16), memory[family].checkpointing
            found = step(run, machine, mode, pace=pace(run, machine, mode, self.setup.device))
            seconds += study.runs * recipe.train.tokens / found.tokens_per_second
        return seconds / 60

    def _measured(self, draft: Plan, sizes: Sequence[str]) -> Plan:
        """The plan that fits into the minutes, from the cache or measured now."""
        setup, study = self.setup, self.setup.study
        fields = {k: v for k, v in dataclasses.asdict(study).items() if k not in ("out", "price_per_hour")}
        key = {"kind": "plan", "study": fields, "data": setup.hash, "draft": dataclasses.asdict(draft)}
        found = self.cache.get(key)
        if found is None:
            self.log("measuring the speed of this machine")
            workload = Workload(
                items=setup.validation,
                row_tokens=setup.pass_tokens / len(setup.dataset.train),
                validation_rows=len(setup.dataset.validation),
                new_tokens={family: reading.new_tokens for family, reading in setup.readings.items()},
            )
            limited = time_budget.limited(study, setup.large)
            made = time_budget.fit_plan(limited, draft, self._probe(draft), workload, self._table, self.begun, sizes)
            if made.preset:
                self.check_parameters(made.preset)
            found = dataclasses.asdict(made)
            self.cache.put(key, found)
        return config.build(Plan, found, "plan")

    def dtype(self, table: Mapping[str, Any]) -> str:
        """The type of matrix products in training, of a plan's [train] with ``auto`` decided.

        Where that takes a measurement, its first answer is cached: models of one study must not differ by it.
        """
        wanted, device = str(table.get("dtype", TrainTable.dtype)), self.setup.device
        if wanted != "auto":
            return wanted
        key = {"kind": "dtype", "device": device.type}
        found = self.cache.get(key)
        if found is None:
            found = {"dtype": "bfloat16" if use_bfloat16(wanted, device) else "float32"}
            self.cache.put(key, found)
        return str(found["dtype"])

    def check_parameters(self, preset: str) -> None:
        """Families that are trained from scratch are compared at equal size.

        Raises:
            UserError: two networks differ by more than 1 % in parameters.
        """
        counts, odd = self._counts(preset)
        if odd:
            base, equal = self.setup.study.baseline, self._equal()
            remedy = "Compare models of equal size: use one preset, without options that add parameters to one of them."
            raise UserError(
                f"'{odd}' has {counts[odd]:,} parameters and '{base}' {counts[base]:,}, more than 1 % apart.",
                f"Their sizes are equal at --preset {' or '.join(equal)}." if equal else remedy,
            )

    def _equal(self) -> list[str]:
        """The presets at which all families have equally many weights."""
        return [size for size in SIZES if not self._counts(size)[1]]

    def _counts(self, preset: str) -> tuple[dict[str, int], str]:
        """Parameters of each family, and the first family that has too many or too few of them, if any."""
        counts = {family: self._parameters(family, preset) for family in self.setup.study.families}
        first = counts[self.setup.study.baseline]
        return counts, next((family for family, n in counts.items() if abs(n / first - 1) > EQUAL), "")

    def _parameters(self, family: str, preset: str) -> int:
        setup = self.setup
        spec = setup.spec(family)
        shape = shape_of(preset, spec.tokens.vocab_size, setup.study.network)
        shape = replace(
            shape,
            shift=spec.network.shift,
            timed=spec.network.timed,
            edits=spec.edits,
            self_conditioning=spec.network.self_conditioning != 0,
        )
        built = build_family(setup.family(family))[1]
        return models.parameters(built.network_config(shape))

    def _table(self, tokens: int) -> dict[str, Any]:
        setup = self.setup
        width = max((base.width for base in setup.bases.values()), default=256)
        parameters = max((base.parameters for base in setup.bases.values()), default=0)
        return training_table(
            setup.study,
            tokens,
            setup.pass_tokens,
            setup.first.length,
            setup.dataset.paired,
            learning_rate(width, parameters, setup.lora_rank > 0),
            LARGE_BATCH if setup.large else SMALLEST_BATCH,
        )

    def _probe(self, draft: Plan) -> time_budget.Measure:
        """A function that trains for a few updates and returns the speed and the model."""
        setup = self.setup
        smallest = setup.first.length + 1
        usual = {"batch_tokens": smallest if setup.large else max(PROBE_TOKENS, smallest)}
        logged = 1 if setup.large else 4

        def probe(family: str, preset: str, pace: Mapping[str, Any]) -> Probe:
            short: dict[str, Any] = {**draft.train, "log_every": logged, "validation_rows": 2, "validate_every": 0}
            short |= usual | dict(pace) | ({"minutes": PROBE_MINUTES} if setup.large else {})
            short["tokens"] = PROBE_UPDATES * short["batch_tokens"] * short.get("accumulate", 1)
            folder, begin = setup.out / "plan" / f"{family}-{preset}", time.perf_counter()
            laps: list[tuple[int, float]] = [(0, 0.0)]  # tokens so far, and seconds of the updates since the last
            shutil.rmtree(folder, ignore_errors=True)

            def watch(event: Event) -> None:
                if event.kind == "update":
                    more = event.tokens - laps[-1][0]
                    laps.append((event.tokens, more / event.values["tokens_per_second"]))

            recipe = setup.recipe(replace(draft, preset=preset, train=short), family, setup.study.seed)
            train(recipe, folder, device=str(setup.device), on_event=watch)
            model = load(folder, str(setup.device), setup.study.dtype)
            shutil.rmtree(folder, ignore_errors=True)
            overhead = time.perf_counter() - begin - sum(seconds for _, seconds in laps)
            steady = laps[1:] if len(laps) > 2 else laps  # the first update warms up
            speed = (steady[-1][0] - steady[0][0]) / sum(seconds for _, seconds in steady[1:])
            return Probe(speed / setup.scale(family), max(0.0, overhead), model)

        return probe
