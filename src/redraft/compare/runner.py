"""Carrying out a study: train, score, write, time; every piece a cell that is computed once."""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from redraft import runtime
from redraft.compare import floors, markdown, material, plan, report, results, rival
from redraft.compare.control import Controlled, held
from redraft.compare.material import Item, Material
from redraft.compare.measure import Decoding, machine, race, write_texts
from redraft.compare.plan import Plan
from redraft.compare.prepare import Grounds, minutes_end
from redraft.compare.study import Cells, Setting, Study, digest
from redraft.data.loader import batches, tokenise
from redraft.errors import UserError
from redraft.files import write_atomically
from redraft.likelihood import bound
from redraft.loading import load
from redraft.model import Model
from redraft.train.logging import Event
from redraft.train.loop import train

Tell = Callable[[str], None]
RACE_SHARE = 0.25  # of the time left, for the timing at one batch size


def run(study: Study, tell: Tell, command: str = "") -> dict[str, Any]:
    """Carry out a study, or what is left of it, and write its report.

    ``OUT`` gets ``results.json``, ``report.md`` and ``report.html``, and keeps ``cells/``, ``models/`` and ``data/``.
    Where a piece can't be done (a family that diverges, a setting that a sampler refuses), the report says so and
    holds the rest.

    Returns:
        the content of ``results.json``.
    Raises:
        UserError: the data or the study can't be used at all.
    """
    job = Job.begin(study, tell)
    for line in job.plan.lines(study):
        tell(line)
    for seed in job.seeds:
        for family in study.families:
            for dropout in study.dropouts or (None,):
                job.training(family, seed, dropout)
    job.settle()
    for seed in job.seeds:
        for family in study.families:
            job.likelihood(family, seed)
    job.floors()
    needed = plan.core(job.plan.settings, study.baseline)
    for seed in job.seeds:
        job.texts("validation", needed, seed)
    for seed in job.seeds:
        job.texts("validation", [s for s in job.plan.settings if s not in needed], seed, optional=True)
    for batch in study.batch_sizes:
        job.race(batch)
    chosen, others = job.split_settings()
    for seed in job.seeds:
        job.texts("test", chosen, seed)
    if study.constraint:
        job.control(chosen)
    for seed in job.seeds:
        job.texts("test", others, seed, optional=True)
    job.rival()
    found = results.summarise(job.record(command))
    job.write(found)
    return found


@dataclass
class Job:
    """A study under way."""

    study: Study
    tell: Tell
    out: Path
    cells: Cells
    device: torch.device
    grounds: Grounds
    plan: Plan
    validation: list[Item]
    test: list[Item]
    deadline: float  # time.monotonic() after which what is optional is left out
    done: list[dict[str, Any]] = field(default_factory=list)
    missing: list[dict[str, str]] = field(default_factory=list)
    resumed: int = 0  # cells found finished
    dropout: dict[str, float] = field(default_factory=dict)  # of each family, where the study tries several
    _loaded: dict[tuple[str, int], Model] = field(default_factory=dict)

    # ---- beginning

    @classmethod
    def begin(cls, study: Study, tell: Tell) -> Job:
        """Read the data, make the tokenizer, and plan."""
        begun, out = time.monotonic(), Path(study.out)
        cells, device = Cells(out), runtime.device(study.device)
        tell(f"reading {study.data}")
        raw = material.gather(study)
        tell(f"task     {raw.choice.name}: {raw.choice.reason}")
        grounds = Grounds.lay(study, raw, device)
        chosen = grounds.planned(cells, tell, begun)
        test = grounds.test[: chosen.test_rows]
        if study.constraint:
            share = held(study.constraint, test, raw.paired)
            tell(f"control  {share:.0f} % of the test references satisfy the constraint")
        return cls(
            study=study,
            tell=tell,
            out=out,
            cells=cells,
            device=device,
            grounds=grounds,
            plan=chosen,
            validation=grounds.validation[: chosen.validation_rows],
            test=test,
            deadline=minutes_end(study, begun),
        )

    @property
    def material(self) -> Material:
        return self.grounds.material

    @property
    def seeds(self) -> range:
        return range(self.study.seed, self.study.seed + self.study.seeds)

    # ---- the pieces

    def training(self, family: str, seed: int, dropout: float | None = None) -> None:
        """Train (or fine-tune) one family with one seed, at the same budget as all others."""
        recipe = self.grounds.recipe(self.plan, family, seed, dropout)
        key = self.grounds.key(self.plan, family, seed, dropout)
        folder = self._folder(key)

        def work() -> dict[str, Any]:
            result = train(recipe, folder, device=str(self.device), on_event=self._watch(f"{family} {seed}"))
            curve = _curve(folder / "train" / "metrics.jsonl")
            return {**dataclasses.asdict(result), "out": str(folder.relative_to(self.out)), "curve": curve}

        label = f"training {family}, seed {seed}" + ("" if dropout is None else f", dropout {dropout:g}")
        value = self._cell({"kind": "train", **key}, label, work, {"dropout": dropout})
        if value is not None and not (folder / "config.json").exists():
            self.tell(f"{label}: its model was removed, training again")
            self.cells.path({"kind": "train", **key}).unlink()
            self.done.pop()
            self.training(family, seed, dropout)

    def settle(self) -> None:
        """Of the dropouts tried, keep each family's best: the fewest bits per byte of the validation rows, mean over
        seeds, among those at which no seed failed. What was trained at others is counted, and used no more."""
        for family in self.study.families if self.study.dropouts else ():
            bits: dict[float, list[float]] = {}
            for cell in self.done:
                if cell["kind"] == "train" and cell["family"] == family and cell["validation"]:
                    bits.setdefault(cell["dropout"], []).append(cell["validation"]["bits_per_byte"])
            if bits:
                best = min(bits, key=lambda rate: (-len(bits[rate]), sum(bits[rate])))
                self.dropout[family] = best
                self.tell(f"{family}: dropout {best:g} is best on validation rows")
        for cell in self.done:
            if cell["kind"] == "train" and cell["family"] in self.dropout:
                cell["kept"] = cell["dropout"] == self.dropout[cell["family"]]

    def likelihood(self, family: str, seed: int) -> None:
        """Nats of every test row: exact, or a bound with its Monte-Carlo error."""
        if not self._trained(family, seed):
            return
        rows = material.sample(self.material.test, self.plan.test_rows)
        key = {
            "kind": "likelihood",
            **self._model_key(family, seed),
            "rows": digest([(e.prompt, e.target) for e in rows]),
        }

        def work() -> dict[str, Any]:
            model = self.model(family, seed)
            size = max(4096, self.plan.length + 1)
            made = batches(tokenise(rows, model.tokenizer), model.tokenizer, self.plan.length, size, "skip")
            objective = model.family.objective()
            found = bound(model.network, made, objective, model.spec, plan.LIKELIHOOD_SAMPLES, 0, self.device)
            return {
                "nats": list(found.rows),
                "bytes": [int(n) for batch in made for n in batch.bytes.tolist()],
                "is_bound": found.is_bound,
                "error": found.bits_per_byte_stderr,
                "samples": found.samples,
            }

        self._cell(key, f"likelihood of {family}, seed {seed}", work)

    def floors(self) -> None:
        """What trivial systems write for the test items, and an n-gram model's bits per byte."""
        examples = self.material.train
        asked = [item.prompt for item in self.test]

        def work() -> dict[str, Any]:
            held = [e.target for e in material.sample(self.material.test, self.plan.test_rows)]
            model = floors.NgramModel.fit([e.target for e in examples])
            texts = {}
            if self.material.paired:
                prompts, targets = [e.prompt or "" for e in examples], [e.target for e in examples]
                texts["copying the input"] = floors.copy_input(asked)
                texts["the nearest training example"] = floors.nearest(asked, prompts, targets)
                if self.material.choice.name == "classification":
                    texts["the commonest label"] = floors.commonest(targets, len(asked))
            people: list[str] = []
            if not self.material.paired:
                others = material.items(examples, self.grounds.tokenizer, len(asked), False, self.plan.new_tokens)
                people = [item.references[0] for item in others]
            return {"texts": texts, "people": people, "order": model.order, "bits_per_byte": model.bits_per_byte(held)}

        key = {"kind": "floors", "data": self.grounds.sha, "items": digest(asked), "rows": self.plan.test_rows}
        self._cell({**key, "task": self.material.choice.name}, "floors", work)

    def texts(self, part: str, settings: Sequence[Setting], seed: int, optional: bool = False) -> None:
        """Let a model write an answer to every item of a part, with every setting; with optional ones only while
        there is time, and before the test while there is enough for all that must follow."""
        asked = self.test if part == "test" else self.validation
        prompts, most = [item.prompt for item in asked], max(self.study.batch_sizes)
        for setting in settings:
            if not self._trained(setting.family, seed):
                continue
            key = {
                "kind": "texts",
                **self._model_key(setting.family, seed),
                "setting": dataclasses.asdict(setting),
                "new_tokens": self.plan.new_tokens,
                "items": digest(prompts),
            }
            label = f"{part}: {setting.label}, seed {seed}"
            late = optional and time.monotonic() > self.deadline - (self.plan.reserve if part == "validation" else 0.0)

            def work(setting: Setting = setting) -> dict[str, Any]:
                return write_texts(self.model(setting.family, seed), prompts, setting, self.plan.new_tokens, most)

            named = {"part": part, "id": setting.id}
            self._cell(key, label, work, named, skip="the time was up" if late else "")

    def race(self, batch: int) -> None:
        """Time every setting on the same requests, turn by turn: a busy moment of the machine hits all alike."""
        seed = self.seeds[0]
        able = {c["id"] for c in self.done if c["kind"] == "texts"}  # settings that have written something
        running = [s for s in self.plan.settings if s.id in able and self._trained(s.family, seed)]
        prompts = [item.prompt for item in self.test]
        key = {
            "kind": "race",
            "models": [self._model_key(f, seed) for f in self.study.families],
            "settings": [dataclasses.asdict(s) for s in running],
            "batch": batch,
            "calls": self.plan.timed_calls,
            "new_tokens": self.plan.new_tokens,
            "items": digest(prompts),
        }

        def work() -> dict[str, Any]:
            runners = [(self.model(s.family, seed), s) for s in running]
            calls, share = self.plan.timed_calls, RACE_SHARE * (self.deadline - time.monotonic())
            entries = race(runners, prompts, batch, calls, self.plan.new_tokens, time.monotonic() + share)
            return {"entries": entries, "device": str(self.device), "threads": torch.get_num_threads()}

        self._cell(key, f"timing at batch {batch}", work)

    def control(self, chosen: Sequence[Setting]) -> None:
        """Let the chosen settings write the test items once more under the study's constraint, and time both ways."""
        prompts, most, wanted = [item.prompt for item in self.test], max(self.study.batch_sizes), self.study.constraint
        key: dict[str, Any] = {"constraint": wanted, "new_tokens": self.plan.new_tokens, "items": digest(prompts)}
        able: list[Setting] = []
        for seed in self.seeds:
            for setting in chosen:
                if not self._trained(setting.family, seed):
                    continue

                def work(setting: Setting = setting, seed: int = seed) -> dict[str, Any]:
                    model = self.model(setting.family, seed)
                    return write_texts(model, prompts, Controlled(setting, wanted), self.plan.new_tokens, most)

                own = {"kind": "control", **self._model_key(setting.family, seed), **key}
                label = f"constrained: {setting.label}, seed {seed}"
                value = self._cell({**own, "setting": dataclasses.asdict(setting)}, label, work, {"id": setting.id})
                able += [setting] if value is not None and seed == self.seeds[0] else []
        for batch in self.study.batch_sizes if able else ():
            own = {"kind": "control_race", "batch": batch, "calls": self.plan.timed_calls, **key}
            own["models"] = [self._model_key(family, self.seeds[0]) for family in self.study.families]
            own["settings"] = [dataclasses.asdict(setting) for setting in able]

            def timed(batch: int = batch) -> dict[str, Any]:
                models = [self.model(setting.family, self.seeds[0]) for setting in able]
                ways: list[tuple[Model, Decoding]] = list(zip(models, able, strict=True))
                ways += [(model, Controlled(s, wanted)) for model, s in zip(models, able, strict=True)]
                share = RACE_SHARE * (self.deadline - time.monotonic())
                until = time.monotonic() + share
                return {"entries": race(ways, prompts, batch, self.plan.timed_calls, self.plan.new_tokens, until)}

            self._cell(own, f"timing under the constraint at batch {batch}", timed)

    def rival(self) -> None:
        """Ask the service that the study names, if any, for the test items."""
        service = self.study.rival
        if service is None:
            return
        prompts = [item.prompt for item in self.test]
        pairs = [e for e in self.material.train if e.prompt is not None] if self.material.paired else []
        shots = [(e.prompt or "", e.target) for e in material.sample(pairs, service.shots)] if service.shots else []
        key = {
            "kind": "rival",
            "service": dataclasses.asdict(service),
            "shots": digest(shots),
            "new_tokens": self.plan.new_tokens,
            "items": digest(prompts),
        }

        def work() -> dict[str, Any]:
            return rival.measure(service, prompts, shots, self.plan.new_tokens, self.plan.timed_calls)

        self._cell(key, f"rival {service.model}", work)

    def split_settings(self) -> tuple[list[Setting], list[Setting]]:
        """The settings that validation chose, which must be tested, and the others, which only draw the curve."""
        picked = set(results.picks(self.record("")).values())
        names = {name for pair in picked for name in pair}
        able = {c["id"] for c in self.done if c["kind"] == "texts"}  # settings that have written something
        return (
            [s for s in self.plan.settings if s.id in names],
            [s for s in self.plan.settings if s.id not in names and s.id in able],
        )

    # ---- the end

    def record(self, command: str) -> results.Record:
        """Everything measured so far, for the analysis."""
        return results.Record(
            study=self.study,
            plan=self.plan,
            choice=self.material.choice,
            validation=self.validation,
            test=self.test,
            cells=self.done,
            missing=self.missing,
            data={
                "source": self.study.data,
                "sha": self.grounds.sha,
                "columns": self.material.columns,
                "rows": {n: len(getattr(self.material, n)) for n in ("train", "validation", "test")},
                "notes": self.material.notes,
                "leaks": self.material.leaks,
                "paired": self.material.paired,
            },
            machine=machine(self.device),
            command=command,
            resumed=self.resumed,
        )

    def write(self, found: dict[str, Any]) -> None:
        """results.json and the two reports."""
        write_atomically(self.out / "results.json", json.dumps(found, indent=1, ensure_ascii=False) + "\n")
        write_atomically(self.out / "report.md", markdown.markdown(found))
        write_atomically(self.out / "report.html", report.html(found))

    # ---- tools

    def model(self, family: str, seed: int) -> Model:
        """A trained model, read once."""
        if (family, seed) not in self._loaded:
            self._loaded = {k: v for k, v in self._loaded.items() if k[1] == seed}  # one seed in memory at a time
            self._loaded[family, seed] = load(self._folder(self._model_key(family, seed)), str(self.device))
        return self._loaded[family, seed]

    def _cell(
        self,
        key: dict[str, Any],
        label: str,
        work: Callable[[], dict[str, Any]],
        named: dict[str, Any] | None = None,
        skip: str = "",
    ) -> dict[str, Any] | None:
        """The value of a cell: found, or computed and written. What fails is noted, and the study goes on."""
        value = self.cells.get(key)
        if value is not None:
            self.resumed += 1
        elif skip:
            self.missing.append({"what": label, "why": skip})
            return None
        else:
            begin = time.monotonic()
            try:
                value = work()
            except UserError as error:
                self.tell(f"{label}: {error}")
                self.missing.append({"what": label, "why": str(error)})
                return None
            self.cells.put(key, value)
            self.tell(f"{label}: {plan.clock(time.monotonic() - begin)}")
        self.done.append({**key, **(named or {}), **value})
        return value

    def _trained(self, family: str, seed: int) -> bool:
        mine = [c for c in self.done if c["kind"] == "train" and (c["family"], c["seed"]) == (family, seed)]
        return any(cell.get("kept", True) for cell in mine)

    def _folder(self, key: dict[str, Any]) -> Path:
        """Of a model; a hash tells it from one trained otherwise."""
        return self.out / "models" / f"{key['family']}-{key['seed']}-{digest(key)[:8]}"

    def _model_key(self, family: str, seed: int) -> dict[str, Any]:
        return self.grounds.key(self.plan, family, seed, self.dropout.get(family))

    def _watch(self, label: str) -> Callable[[Event], None]:
        """Report a training run at most every ten seconds."""
        last = time.monotonic()

        def watch(event: Event) -> None:
            nonlocal last
            values = event.values
            if event.kind == "update" and time.monotonic() - last > 10:
                last = time.monotonic()
                self.tell(
                    f"{label}: {values['progress']:.0%}, loss {values['loss']:.3f}, "
                    f"{values['tokens_per_second']:,.0f} tokens/s, {plan.clock(values['eta_seconds'])} left"
                )
            if event.kind == "validation":
                self.tell(f"{label}: validation {values['bits_per_byte']:.4f} bits per byte")

        return watch


# ---- tools


def _curve(path: Path) -> dict[str, list[Any]]:
    """Validation and training loss by tokens, from a run's metrics file, thinned to 200 points."""
    found: dict[str, list[Any]] = {"validation": [], "update": []}
    for line in path.read_text(encoding="utf-8").splitlines():
        event = json.loads(line)
        if event["kind"] == "validation":
            names = ("bits_per_byte", "bits_error", "passes")
            found["validation"].append({"tokens": event["tokens"], **{n: event.get(n) for n in names}})
        elif event["kind"] == "update":
            found["update"].append({"tokens": event["tokens"], "loss": event["loss"]})
    updates = found["update"]
    found["update"] = updates[:: max(1, len(updates) // 200)]
    return found


def command_line() -> str:
    """The command that started this process, for the report."""
    return " ".join(["redraft", *sys.argv[1:]])
