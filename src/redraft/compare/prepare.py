"""Before a study can run: its rows, its tokenizer, its recipes and its plan."""

from __future__ import annotations

import dataclasses
import json
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from redraft import config, models
from redraft.canvas import make_canvas
from redraft.compare import material, plan
from redraft.compare.material import Item, Material
from redraft.compare.plan import Plan
from redraft.compare.study import Cells, Setting, Study, grid
from redraft.data.tokenizer import Tokenizer
from redraft.errors import UserError
from redraft.families import build_family
from redraft.files import disk_error, read_json, write_atomically
from redraft.loading import family_of, load, resolve
from redraft.presets import shape as shape_of
from redraft.registry import find
from redraft.train.logging import Event
from redraft.train.loop import train
from redraft.train.recipe import Recipe
from redraft.types import Spec

EQUAL = 0.01  # largest relative difference in parameters between families
PROBE_UPDATES, PROBE_TOKENS = 12, 2048  # of training, to measure its speed; tokens of an update, at first
PASS_ROWS = 4000  # rows by which the tokens of a pass are estimated


@dataclass(frozen=True)
class Base:
    """What a study must know of a checkpoint that it starts from. The weights are not kept."""

    family: str
    table: Mapping[str, Any]  # of the family, as its own file has it, so that results of a study keep their keys
    parameters: int
    width: int
    longest: int  # positions it has
    tokenizer: Tokenizer

    @classmethod
    def read(cls, name_or_path: str) -> Base:
        model = load(name_or_path, "cpu")
        shape = model.network.config
        own = read_json(resolve(name_or_path) / "config.json").get("family")
        table = own or family_of(name_or_path)  # of a public one, the family that it loads as
        return cls(model.family_name, table, model.parameters, shape.dim, shape.max_length, model.tokenizer)


@dataclass
class Grounds:
    """What a study stands on before it is planned."""

    study: Study
    out: Path
    device: torch.device
    material: Material
    bases: dict[str, Base]  # the checkpoints to start from, by family; none: from scratch
    tokenizer: Tokenizer
    length: int  # tokens of the longest row
    new_tokens: int  # tokens an answer may have
    validation: list[Item]
    test: list[Item]

    @classmethod
    def lay(cls, study: Study, raw: Material, device: torch.device) -> Grounds:
        """Make the tokenizer, leave out what is too long, write the rows for the training loop, and form the items.

        Raises:
            UserError: wrong checkpoints to start from, rows that can't be used, a full disk.
        """
        out = Path(study.out)
        bases = {family: Base.read(path) for family, path in study.bases.items()}
        tokenizer = _shared_tokenizer(study, bases) if bases else _tokenizer(study, raw, out)
        fitted, length = material.fit(raw, tokenizer, study.length or _longest(bases))
        try:
            for name in ("train", "validation", "test"):
                material.write(getattr(fitted, name), out / "data" / f"{name}.jsonl")
        except OSError as error:
            raise disk_error(error, out) from None
        new_tokens = study.max_new_tokens or material.answer_length(fitted, tokenizer, length)
        return cls(
            study=study,
            out=out,
            device=device,
            material=fitted,
            bases=bases,
            tokenizer=tokenizer,
            length=length,
            new_tokens=new_tokens,
            validation=material.items(fitted.validation, tokenizer, study.validation_rows, fitted.paired, new_tokens),
            test=material.items(fitted.test, tokenizer, study.test_rows, fitted.paired, new_tokens),
        )

    @cached_property
    def sha(self) -> str:
        """Of all rows."""
        return self.material.sha

    @cached_property
    def pass_tokens(self) -> int:
        """Tokens of one pass over the training rows, prompt and target, estimated from the first ones."""
        rows = self.material.train[:PASS_ROWS]
        texts = [text for e in rows for text in (e.prompt, e.target) if text is not None]
        count = len(texts) + sum(map(len, self.tokenizer.encode_batch(texts)))
        return max(1, count * len(self.material.train) // len(rows))

    def family(self, name: str) -> dict[str, Any]:
        """A family's table: that of the checkpoint to start from, if any, with the study's options on top."""
        own = self.bases[name].table if name in self.bases else {"name": name}
        return {**own, **self.study.family_options.get(name, {})}

    def spec(self, name: str) -> Spec:
        spec: Spec = build_family(self.family(name))[1].spec(self.tokenizer)
        return spec

    def recipe(self, chosen: Plan, family: str, seed: int, dropout: float | None = None) -> Recipe:
        """The recipe of one model: the same for all families but for the family itself (``dropout``: the plan's)."""
        folder, base = self.out.resolve(), self.study.bases.get(family)
        columns = {"input": "input", "target": "target"} if self.material.paired else {"text": "text"}
        tables = {
            "data": {
                "source": str(folder / "data" / "train.jsonl"),
                "validation": str(folder / "data" / "validation.jsonl"),
                "length": chosen.length,
                **columns,
            },
            "tokenizer": {"kind": "file", "path": str(folder / "tokenizer")},
            "model": {"from": base} if base else {"network": self.study.network, "preset": chosen.preset},
            "family": self.family(family),
            "train": {**chosen.train, "seed": seed, **({} if dropout is None else {"dropout": dropout})},
        }
        return Recipe.of(tables, f"recipe of {family}", folder=str(folder))

    def key(self, chosen: Plan, family: str, seed: int, dropout: float | None = None) -> dict[str, Any]:
        """What a trained model depends on, wherever its files lie."""
        tables = self.recipe(chosen, family, seed, dropout).tables()
        tables["data"] = {"sha": self.sha, "length": chosen.length}
        tables["tokenizer"] = self.tokenizer.fingerprint
        return {"family": family, "seed": seed, "recipe": tables}

    def settings(self) -> list[Setting]:
        """The decoding grid of every family."""
        found: list[Setting] = []
        for family in self.study.families:
            spec = self.spec(family)
            found += grid(
                self.study,
                family,
                causal=spec.attend.kind == "causal",
                predicts_length=spec.length_head,
                paired=self.material.paired,
                longest=self.new_tokens,
                drafts=spec.drafter is not None,
                block=spec.attend.block,
                samplers=self._samplers(family, spec),
            )
        return found

    def _samplers(self, family: str, spec: Spec) -> tuple[str, ...]:
        """Those of the study that can write for this family; its own where none can, or where noise isn't masks."""
        if spec.process == "absorbing" and not spec.score and not self.study.samplers:
            return ()
        suiting = tuple(name for name in self.study.samplers if _suits(name, spec))
        own = type(build_family(self.family(family))[1].sampler()).__module__.rpartition(".")[2]
        return suiting or (own,)

    # ---- planning

    def planned(self, cells: Cells, tell: Callable[[str], None], begun: float) -> Plan:
        """The plan, made once: a study that is taken up again must not be planned anew.

        Raises:
            UserError: too little time, or families of unequal size.
        """
        study = self.study
        tokens = study.budget_tokens or int(study.passes * self.pass_tokens)
        sizes = () if study.preset or study.bases else self.sizes()
        preset = study.preset or (plan.largest(tokens, self.tokenizer.vocab_size, sizes) if tokens and sizes else "")
        draft = Plan(
            tokens=tokens,
            preset=preset,
            vocab_size=self.tokenizer.vocab_size,
            length=self.length,
            new_tokens=self.new_tokens,
            test_rows=len(self.test),
            validation_rows=len(self.validation),
            timed_calls=study.timed_calls,
            train=self._table(max(tokens, 1)),
            settings=tuple(self.settings()),
        )
        if preset or study.bases:
            self.check_parameters(preset)
        if tokens:
            return draft
        fields = {k: v for k, v in dataclasses.asdict(study).items() if k not in ("out", "price_per_hour")}
        fields = {k: v for k, v in fields.items() if v or k not in ("constraint", "dropouts")}  # older plans have none
        key = {"kind": "plan", "study": fields, "data": self.sha, "draft": dataclasses.asdict(draft)}
        if (found := cells.get(key)) is None:
            tell("measuring this machine")
            made = plan.measured(
                study,
                draft,
                self._probe(draft),
                self.validation,
                self._table,
                begun,
                row_tokens=self.pass_tokens / len(self.material.train),
                held=len(self.material.validation),
                sizes=sizes,
            )
            self.check_parameters(made.preset)
            found = dataclasses.asdict(made)
            cells.put(key, found)
        return config.build(Plan, found, "plan")

    def check_parameters(self, preset: str) -> None:
        """Families are compared at equal size.

        Raises:
            UserError: two networks differ by more than 1 % in parameters.
        """
        counts, odd = self._counts(preset)
        if odd:
            base = self.study.baseline
            larger = [] if self.study.bases else self._equal()
            remedy = "Compare models of equal size: the same preset, without what adds parameters to one of them."
            raise UserError(
                f"'{odd}' has {counts[odd]:,} parameters and '{base}' {counts[base]:,}: more than 1 % apart.",
                f"They are alike at --preset {' or '.join(larger)}." if larger else remedy,
            )

    def sizes(self) -> Sequence[str]:
        """The presets to choose from: those at which the families have as many weights; all, where there are none."""
        return self._equal() or plan.SIZES

    def _equal(self) -> list[str]:
        return [size for size in plan.SIZES if not self._counts(size)[1]]

    def _counts(self, preset: str) -> tuple[dict[str, int], str]:
        """Parameters of each family, and the first family that has too many or too few of them, if any."""
        counts = {family: self._parameters(family, preset) for family in self.study.families}
        first = counts[self.study.baseline]
        return counts, next((family for family, n in counts.items() if abs(n / first - 1) > EQUAL), "")

    def _parameters(self, family: str, preset: str) -> int:
        if family in self.bases:
            return self.bases[family].parameters
        spec = self.spec(family)
        shape = shape_of(preset, spec.vocab_size, self.study.network)
        shape = replace(shape, shift=spec.shift, timed=spec.timed, edits=spec.edits, guess=spec.guesses > 0)
        built = build_family(self.family(family))[1]
        return models.parameters(built.shape(shape) if hasattr(built, "shape") else shape)

    def _table(self, tokens: int) -> dict[str, Any]:
        width = max((base.width for base in self.bases.values()), default=256)
        return plan.training_table(self.study, tokens, self.pass_tokens, self.length, self.material.paired, width)

    def _probe(self, draft: Plan) -> plan.Probe:
        """A function that trains for a few updates: tokens a second, and the model that came of it."""
        usual = {"batch_tokens": max(PROBE_TOKENS, self.length + 1)}

        def probe(family: str, preset: str, pace: Mapping[str, Any]) -> plan.Probed:
            short: dict[str, Any] = {**draft.train, "log_every": 4, "validation_rows": 2, "validate_every": 0}
            short |= usual | dict(pace)
            short["tokens"] = PROBE_UPDATES * short["batch_tokens"] * short.get("accumulate", 1)
            folder, begin = self.out / "plan" / f"{family}-{preset}", time.perf_counter()
            laps: list[tuple[int, float]] = [(0, 0.0)]  # tokens by then, and seconds of the updates since the last
            shutil.rmtree(folder, ignore_errors=True)

            def watch(event: Event) -> None:
                if event.kind == "update":
                    more = event.tokens - laps[-1][0]
                    laps.append((event.tokens, more / event.values["tokens_per_second"]))

            recipe = self.recipe(replace(draft, preset=preset, train=short), family, self.study.seed)
            train(recipe, folder, device=str(self.device), on_event=watch)
            model = load(folder, str(self.device))
            shutil.rmtree(folder, ignore_errors=True)
            aside = time.perf_counter() - begin - sum(seconds for _, seconds in laps)
            steady = laps[1:] if len(laps) > 2 else laps  # the first update warms up
            speed = (steady[-1][0] - steady[0][0]) / sum(seconds for _, seconds in steady[1:])
            return plan.Probed(speed, max(0.0, aside), model)

        return probe


def _suits(sampler: str, spec: Spec) -> bool:
    """Does a sampler take models of this kind? It says so itself when it starts."""
    built, canvas = find("samplers", sampler)(), make_canvas([[None] * 64], [0], spec, seeds=[0])
    try:
        built.start(canvas, spec)
    except UserError:
        return False
    return True


def _tokenizer(study: Study, raw: Material, out: Path) -> Tokenizer:
    """One trained on the training rows, once."""
    size, folder = plan.vocabulary(study, raw), out / "tokenizer"
    mark, made_from = folder / "made_from.json", {"sha": raw.sha, "vocab_size": size}
    if not (mark.exists() and json.loads(mark.read_text(encoding="utf-8")) == made_from):
        try:
            shutil.rmtree(folder, ignore_errors=True)
            Tokenizer.train((text for e in raw.train for text in (e.prompt, e.target) if text), size).save(folder)
        except OSError as error:
            raise disk_error(error, out) from None
        write_atomically(mark, json.dumps(made_from) + "\n")
    return Tokenizer.load(folder)


def _shared_tokenizer(study: Study, bases: Mapping[str, Base]) -> Tokenizer:
    """That of the checkpoints to start from."""
    unnamed = [family for family in study.families if family not in study.bases]
    if unnamed:
        raise UserError(f"no checkpoint to fine-tune for '{unnamed[0]}'.", "Name one for each family.")
    for family, base in bases.items():
        if base.family != family:
            raise UserError(f"'{study.bases[family]}' is of family '{base.family}', not '{family}'.")
    if len({base.tokenizer.fingerprint for base in bases.values()}) > 1:
        raise UserError("the checkpoints to fine-tune have different tokenizers.", "Use a pair trained alike.")
    return bases[study.baseline].tokenizer


def _longest(bases: Mapping[str, Base]) -> int:
    """The longest row that every checkpoint to start from can take; 0 where there are none."""
    return min(material.LONGEST, min(base.longest for base in bases.values()) - 1) if bases else 0


def minutes_end(study: Study, begun: float) -> float:
    """time.monotonic() after which what is optional is left out."""
    minutes = study.minutes or (plan.DEFAULT_MINUTES if study.unlimited else 0.0)
    return begun + 60 * minutes * 0.95 if minutes else float("inf")
