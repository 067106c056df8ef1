"""The training loop: one function for every family, model size and device."""

from __future__ import annotations

import copy
import dataclasses
import json
import time
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from redraft import config, runtime
from redraft.curricula import build_curriculum
from redraft.errors import UserError
from redraft.files import write_atomically
from redraft.guidance.shared.condition import drop_prompts
from redraft.host_memory import peak_resident
from redraft.likelihood import prepare_batch
from redraft.objectives.base import Objective, TrainingPhase
from redraft.objectives.shared.vocabulary import backward
from redraft.train import checkpoint, folder, optim, schedules, validation
from redraft.train.divergence import check_finite
from redraft.train.ema import Ema
from redraft.train.folder import Saved
from redraft.train.interrupt import Interrupt
from redraft.train.logging import Event, Watcher
from redraft.train.phases import Phases
from redraft.train.process import process_settings, use_bfloat16
from redraft.train.recipe import Recipe
from redraft.train.reporter import Reporter
from redraft.train.setup import Parts, prepare
from redraft.train.state import State, Window
from redraft.train.throughput import Meter, Peak
from redraft.train.validation import Progress, crossed
from redraft.types import Batch, Prepared


@dataclass(frozen=True)
class Result:
    """The outcome of a finished run."""

    out: str
    steps: int
    tokens: int  # read in training, prompt and target, without padding
    passes: float  # over the training rows
    seconds: float  # wall clock, over all restarts, validation included
    flops: int  # of training, counted
    parameters: int
    peak_memory: int  # bytes: of the device on CUDA, else of the process
    validation: dict[str, Any] | None  # values of the validation event of the model that was saved


def train(recipe: Recipe, out: str | Path, *, device: str | None = None, on_event: Watcher | None = None) -> Result:
    """Train the model that a recipe describes and save it in ``out``, ready for ``redraft.load``.

    If it is killed at any moment and called again with the same arguments, it resumes from the last checkpoint and ends
    with the same weights, bit for bit on the same machine with the same number of threads (except where the budget is
    in minutes). ``out/train`` holds the checkpoints, ``metrics.jsonl``, TensorBoard files and ``recipe.toml``.

    Args:
        on_event: called with every ``Event``; events ``progress`` come from another thread (``Reporter``).
    Raises:
        UserError: wrong recipe or data, a damaged checkpoint, another run in ``out``, or a loss that is not finite.
        KeyboardInterrupt: after Ctrl-C, when the current update has been saved.
    """
    begun = time.monotonic()
    work, where = Path(out) / "train", runtime.device(device)
    with ExitStack() as stack:
        # 1. Set up: take the folder, resume from its last checkpoint if there is one, build the parts.
        stack.enter_context(folder.locked(work))
        saved = folder.last_checkpoint(recipe, work)
        if (result := folder.finished(work)) is not None:
            return config.build(Result, result, f"{work / 'result.json'} (delete it to have it written again)")
        stack.enter_context(process_settings(recipe.train, where))
        reporter = stack.enter_context(Reporter(work, on_event))
        run = _Run(recipe, Path(out), where, reporter, saved, begun)
        interrupt = stack.enter_context(Interrupt())

        while run.spent < 1.0 or not run.state.step:  # at least one update, however short the minutes
            # 2. Update the weights.
            before = Progress(run.state.tokens, run.spent)
            run.update()
            last = run.spent >= 1.0

            # 3. Report, validate and save a checkpoint now and then. Only here does the host wait for the device.
            if last or run.state.step == 1 or run.state.step % recipe.train.log_every == 0:
                run.report()
            if not last and run.validation_is_due(before):
                run.validate()
            if last or interrupt.requested or run.save_is_due(before):
                run.save()
            if interrupt.requested:
                raise KeyboardInterrupt

        # 4. Finish: validate, and write the model where redraft.load finds it.
        return run.finish()


class _Run:
    """A run in progress: its parts, its state, and the steps that ``train`` puts together."""

    def __init__(
        self, recipe: Recipe, out: Path, where: torch.device, reporter: Reporter, saved: Saved | None, begun: float
    ) -> None:
        self.recipe, self.table, self.out, self.work = recipe, recipe.train, out, out / "train"
        self.where, self.reporter = where, reporter
        self.parts = parts = prepare(recipe, self.work, where)
        self.spec, self.state = parts.model.spec, _fresh_state(recipe, parts, where)
        family = parts.model.family
        self.objective: Objective[Any] = family.objective()  # for validation; training may use another
        self.phases = Phases(family, self.state.trainable)
        self.curriculum = build_curriculum(recipe.curriculum)
        if self.curriculum is not None:
            self.phases.check_curriculum(parts.model.family_name)
        self.networks: dict[str, nn.Module] = {"main": self.state.network} | self._teacher()
        self.bfloat16 = saved[1]["bfloat16"] if saved else use_bfloat16(self.table.dtype, where)
        self.cost = self.parts.model.network.forward_cost()
        self.peak = Peak(where, torch.bfloat16 if self.bfloat16 else torch.float32)
        if saved:  # after everything else that may draw random numbers
            fingerprint = parts.model.tokenizer.fingerprint
            folder.check_data(saved[1]["data_sha256"], parts.data_sha256, saved[1].get("tokenizer"), fingerprint)
            self.state.unpack(*saved)
            self.objective = validation.configured(self.objective, self.state.objective)
        self.begun = begun - self.state.seconds  # so that now - begun counts all restarts together
        reporter.open_files(self.state.step)
        reporter.report(self._started(resumed=saved is not None))
        self.meter, self.saved_at = Meter(where, self.state.tokens, self.state.flops), time.monotonic()
        self.spent = self.state.spent(self.table, self.state.tokens, self.seconds)
        reporter.updated(self.state.step, self.state.tokens, self.spent, None)
        self.phase: TrainingPhase | None = None  # of the last update
        self.rate = 0.0  # learning rate of the last update

    @property
    def seconds(self) -> float:
        """Wall clock so far, over all restarts."""
        return time.monotonic() - self.begun

    # ---- setup

    def _teacher(self) -> dict[str, nn.Module]:
        """The frozen copy that the last phase's objective learns from, if it does. No checkpoint is loaded yet."""
        if not self.phases.last.objective.needs_teacher:
            return {}
        if not self.recipe.model.from_:
            what = "Distillation needs a teacher."
            raise UserError(what, "Name a trained checkpoint: [model] from, or finetune --from.")
        return {"teacher": copy.deepcopy(self.state.network).eval().requires_grad_(False)}

    def _started(self, resumed: bool) -> Event:
        network = self.parts.model.network
        values = {
            "parameters": self.parts.model.network.parameter_count,
            "trained": sum(p.numel() for p in network.parameters() if p.requires_grad),
            "rows": self.parts.rows,
            "skipped": self.parts.skipped,
            "notes": list(self.parts.notes),
            "padding": self.parts.loader.padding_share(),
            "device": str(self.where),
            "dtype": "bfloat16" if self.bfloat16 else "float32",
            "peak_flops": self.peak.flops,
            "resumed": resumed,
        }
        return Event("start", self.state.step, self.state.tokens, values)

    # ---- update

    def update(self) -> None:
        """Read some batches, gather their gradient, and change the weights once."""
        table, state = self.table, self.state
        batches = [next(state.loader) for _ in range(table.accumulate)]
        targets = sum(int(batch.target.sum()) for batch in batches)
        state.tokens += sum(int(batch.valid.sum()) for batch in batches)
        spent_before, self.spent = self.spent, state.spent(table, state.tokens, self.seconds)
        phase = self._begin(spent_before)
        loss = torch.zeros((), device=self.where)
        for number, batch in enumerate(batches):
            self.reporter.doing(f"update {state.step + 1}", number, len(batches))
            prepared = self._prepare(phase, batch)
            share = prepared.tokens / targets
            loss += backward(state.network, phase.objective, prepared.to(self.where), share, self.bfloat16)
        norm = torch.nn.utils.clip_grad_norm_(state.network.parameters(), table.clip or float("inf"), foreach=True)
        optim.step(state.optimizer, self.rate)
        if state.ema:
            state.ema.update(state.network)
        state.step += 1
        state.window.add(loss, targets, norm)
        loss_so_far = state.window.mean() if self.reporter.wants_loss else None
        self.reporter.updated(state.step, state.tokens, self.spent, loss_so_far)

    def _begin(self, spent_before: float) -> TrainingPhase:
        """Set the phase and the learning rate of an update, from the budget spent before it and at its end."""
        table, state = self.table, self.state
        phase, begin = self.phases.at(spent_before)
        self.phases.freeze_others(state.network, phase)
        if len(self.phases.phases) > 1 and phase is not self.phase:
            number, name = self.phases.phases.index(phase) + 1, phase.objective.name
            values: dict[str, Any] = {"number": number, "of": len(self.phases.phases), "objective": name}
            self.reporter.report(Event("phase", state.step, state.tokens, values))
        self.phase = phase
        warmup = table.warmup if table.warmup < 1 else table.warmup * self.spent / state.tokens / phase.share
        progress = min((self.spent - begin) / phase.share, 1.0)  # of this phase
        self.rate = schedules.learning_rate(table.schedule, progress, table.lr, warmup, table.min_lr)
        return phase

    def _prepare(self, phase: TrainingPhase, batch: Batch) -> Prepared:
        """Corrupt a batch on the host, and count the operations of learning from it."""
        state = self.state
        batch = drop_prompts(batch, self.spec, self.table.drop_prompt, state.noise)
        if self.curriculum is None:
            prepared, rollout = prepare_batch(
                phase.objective, batch, self.spec, state.noise, self.networks, self.bfloat16
            )
            state.flops += sum(map(self.cost.of_request, rollout))
        else:
            prepared = self.curriculum.prepare(phase.objective, batch, self.spec, self.spent, state.noise)
        state.flops += self.cost.of_training(prepared)
        return prepared

    # ---- report

    def report(self) -> None:
        """Report the updates since the last report.

        Raises:
            UserError: the loss is not finite.
        """
        state = self.state
        loss, norm, targets = state.window.pack()
        state.window = Window()
        check_finite(self.work, state.step, self.table.lr, {"loss": loss}, {})
        tokens, flops = self.meter.lap(state.tokens, state.flops)
        if self.peak.is_due(flops):
            with self.meter.pause():
                self.peak.measure()
        seconds = self.seconds
        values = {
            "loss": loss / targets,
            "lr": self.rate,
            "grad_norm": norm,
            "passes": state.loader.epochs,
            "progress": self.spent,
            "tokens_per_second": tokens,
            "share_of_peak": self.peak.share(flops),
            "seconds": seconds,
            "eta_seconds": self._seconds_left(seconds),
        }
        self.reporter.report(Event("update", state.step, state.tokens, values))

    def _seconds_left(self, seconds: float) -> float:
        """Seconds until the first budget is spent: data by the speed of the last lap, minutes by the clock."""
        read = self.state.spent(self.table, self.state.tokens, 0.0)  # share of the budgets of data
        found = [self.meter.ahead(self.state.tokens * (1.0 - read) / read)] if read else []
        found += [max(60.0 * self.table.minutes - seconds, 0.0)] if self.table.minutes else []
        return min(found, default=0.0)

    # ---- validate and save

    def validate(self) -> None:
        """Score the validation rows, keep the best weights, and choose the steadiest variant of the objective."""
        with self.meter.pause():
            self._score(can_be_best=self.phase is self.phases.last)
            self.reporter.doing("comparing variants of the objective")
            chosen = validation.steadiest(self.state, self.parts, self.objective, self.bfloat16)
            if chosen is not None:
                self.objective = chosen
                event = Event("objective", self.state.step, self.state.tokens, self.state.objective)
                self.reporter.report(event)

    def _score(self, can_be_best: bool) -> None:
        batches = self.reporter.counted("validation", self.parts.validation)
        keep = self.table.keep_best
        event = validation.validate(self.state, self.parts, self.objective, batches, can_be_best, keep, self.bfloat16)
        self.reporter.report(event)

    def validation_is_due(self, before: Progress) -> bool:
        """Is there a validation after the update that began at ``before``? The last one is in ``finish``."""
        now = Progress(self.state.tokens, self.spent)
        rows, every = self.parts.validation, self.table.validate_every
        return bool(rows) and validation.is_due(rows, every, before, now, self.state.validations)

    def save_is_due(self, before: Progress) -> bool:
        """Has it been long enough since the last checkpoint, after the update that began at ``before``?"""
        late = time.monotonic() - self.saved_at >= self.table.save_every_seconds
        return late or crossed(self.table.save_every_tokens, before.tokens, self.state.tokens)

    def save(self) -> None:
        """Save a checkpoint, and return freed memory to the system.

        Raises:
            UserError: the loss or a weight is not finite, or the disk is full. Earlier checkpoints stay.
        """
        state = self.state
        state.seconds = self.seconds
        with self.meter.pause():
            self.reporter.doing("saving a checkpoint")
            tensors, values = state.pack()
            check_finite(self.work, state.step, self.table.lr, {"loss": values["window"][0]}, tensors)
            values |= {"data_sha256": self.parts.data_sha256, "bfloat16": self.bfloat16}
            values["tokenizer"] = self.parts.model.tokenizer.fingerprint
            path = checkpoint.save(self.work, state.step, tensors, values)
            self.reporter.report(Event("checkpoint", state.step, state.tokens, {"path": str(path)}))
            runtime.release_memory()
        self.saved_at = time.monotonic()

    # ---- finish

    def finish(self) -> Result:
        """Validate, save the model, and record the result."""
        state = self.state
        if self.parts.validation:
            self._score(can_be_best=True)
            if (warning := validation.overfitting(self.state)) is not None:
                self.reporter.report(Event("overfitting", state.step, state.tokens, warning))
        self.reporter.doing("saving the model")
        self._save_model()
        state.seconds = self.seconds
        result = self._result()
        write_atomically(self.work / "result.json", json.dumps(dataclasses.asdict(result), indent=2) + "\n")
        self.reporter.report(Event("done", state.step, state.tokens, dataclasses.asdict(result)))
        return result

    @torch.no_grad()
    def _save_model(self) -> None:
        """Save the weights that validation chose, else the averaged weights, else the last."""
        state = self.state
        if state.best_weights:
            for name, own in state.trained().items():
                own.copy_(state.best_weights[name])
            self.parts.model.save(self.out)
            return
        with state.ema.applied(state.network) if state.ema else nullcontext():
            self.parts.model.save(self.out)

    def _result(self) -> Result:
        state, on_device = self.state, self.where.type == "cuda"
        return Result(
            out=str(self.out),
            steps=state.step,
            tokens=state.tokens,
            passes=state.loader.epochs,
            seconds=state.seconds,
            flops=state.flops,
            parameters=self.parts.model.network.parameter_count,
            peak_memory=torch.cuda.max_memory_allocated(self.where) if on_device else peak_resident(),
            validation=state.best if state.best_weights else state.latest,
        )


def _fresh_state(recipe: Recipe, parts: Parts, where: torch.device) -> State:
    table, network = recipe.train, parts.model.network
    return State(
        network=network.train(),
        optimizer=optim.build(table.optimizer, network, table.lr, table.betas, table.weight_decay),
        ema=Ema(network, table.ema) if table.ema else None,
        loader=parts.loader,
        noise=torch.Generator().manual_seed(table.seed),
        device=where,
    )
