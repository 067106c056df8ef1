"""The training loop: one function for every family, model size and device."""

from __future__ import annotations

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
from redraft.files import write_atomically
from redraft.guidance.shared.condition import drop_prompts
from redraft.host_memory import peak_resident
from redraft.objectives.base import Objective, SamplePass, Samples, TrainingPhase
from redraft.objectives.shared.vocabulary import backward
from redraft.rollouts import prepare_batch
from redraft.train import checkpoint, folder, optim, schedules, validation
from redraft.train.checkpoint import Saved
from redraft.train.divergence import check_finite
from redraft.train.interrupt import Interrupt
from redraft.train.logging import Event, Watcher
from redraft.train.phases import Phases, teacher
from redraft.train.process import process_settings, use_bfloat16
from redraft.train.ranks import Ranks, batch_seeds, joined
from redraft.train.recipe import Recipe
from redraft.train.reporter import Reporter
from redraft.train.setup import fresh_state, prepare
from redraft.train.state import Window
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

    Under torchrun all processes call it, and train one model together (``ranks``).

    Args:
        on_event: called with every ``Event``; events ``progress`` come from another thread (``Reporter``). Of several
            processes, only that of rank 0 calls it.
    Raises:
        UserError: wrong recipe or data, a damaged checkpoint, another run in ``out``, or a loss that is not finite.
        KeyboardInterrupt: after Ctrl-C, when the current update has been saved.
    """
    begun = time.monotonic()
    work = Path(out) / "train"
    with ExitStack() as stack:
        # 1. Set up: take the folder, resume from its last checkpoint if there is one, build the parts.
        ranks, where = stack.enter_context(joined(device))
        ranks.once(lambda: stack.enter_context(folder.locked(work)))
        saved = ranks.once(lambda: folder.last_checkpoint(recipe, work))
        if (result := ranks.once(lambda: folder.finished(work))) is not None:
            return config.build(Result, result, f"{work / 'result.json'} (delete it to have it written again)")
        stack.enter_context(process_settings(recipe.train, where))
        reporter = stack.enter_context(Reporter(work, on_event if ranks.is_writer else None))
        run = _Run(recipe, Path(out), ranks, where, reporter, saved, begun)
        stack.callback(run.close)
        runtime.release_memory()  # what the preparation has freed, so that updates don't add to it
        if where.type == "cpu":
            stack.enter_context(runtime.keep_freed_memory())
        interrupt = stack.enter_context(Interrupt(ranks))

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
            stop, save = ranks.any(interrupt.requested, ranks.is_writer and run.save_is_due(before))
            if last or stop or save:
                run.save()
            if stop:
                raise KeyboardInterrupt

        # 4. Finish: validate, and write the model where redraft.load finds it.
        return run.finish()


class _Run:
    """A run in progress: its parts, its state, and the steps that ``train`` puts together."""

    def __init__(
        self,
        recipe: Recipe,
        out: Path,
        ranks: Ranks,
        where: torch.device,
        reporter: Reporter,
        saved: Saved | None,
        begun: float,
    ) -> None:
        self.recipe, self.table, self.out, self.work = recipe, recipe.train, out, out / "train"
        self.ranks, self.where, self.reporter = ranks, where, reporter
        self.batches = ranks.share(recipe.train.accumulate)  # of an update, on this rank
        self.bfloat16 = saved.values["bfloat16"] if saved else ranks.same(use_bfloat16(self.table.dtype, where))
        self.parts = parts = prepare(recipe, self.work, where, ranks, reporter.doing, self.bfloat16)
        self.saver = folder.saver(self.work, ranks)
        self.spec, self.state = parts.model.spec, fresh_state(recipe, parts, where, ranks)
        family = parts.model.family
        self.objective: Objective[Any] = family.validation()  # training uses those of the phases
        self.phases = Phases(parts.phases, self.state.trainable)
        self.curriculum = build_curriculum(recipe.curriculum)
        if self.curriculum is not None:
            self.phases.check_curriculum(parts.model.family_name)
        self.networks: dict[str, nn.Module] = {"main": self.state.network} | teacher(
            recipe, self.state.network, self.phases.last.objective
        )
        self.cost = self.parts.model.network.forward_cost()
        self.peak = Peak(where, torch.bfloat16 if self.bfloat16 else torch.float32)
        if saved:  # after everything else that may draw random numbers
            fingerprint = parts.model.tokenizer.fingerprint
            values = saved.values
            folder.check_data(values["data_sha256"], parts.data_sha256, values.get("tokenizer"), fingerprint)
            sharded = self.state.parameters if parts.weights.sharded else None
            self.state.unpack(folder.tensors(saved, sharded), values)
            self.phases.choose(self.state.objective)
        self.begun = begun - self.state.seconds  # so that now - begun counts all restarts together
        if ranks.is_writer:
            reporter.open_files(self.state.step)
        reporter.report(self._started(resumed=saved is not None))
        self.meter, self.saved_at = Meter(where, self.state.tokens, self.state.all_flops()), time.monotonic()
        self.spent = self._share_spent()
        reporter.updated(self.state.step, self.state.tokens, self.spent, None)
        self.phase: TrainingPhase | None = None  # of the last update
        self.rate = 0.0  # learning rate of the last update

    @property
    def seconds(self) -> float:
        """Wall clock so far, over all restarts."""
        return time.monotonic() - self.begun

    def _share_spent(self) -> float:
        seconds = self.ranks.same(self.seconds) if self.table.minutes else 0.0  # clocks differ
        return self.state.spent(self.table, self.state.tokens, seconds)

    # ---- setup

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
            "processes": self.ranks.world,
            "dtype": "bfloat16" if self.bfloat16 else "float32",
            "peak_flops": self.peak.flops,
            "resumed": resumed,
        }
        return Event("start", self.state.step, self.state.tokens, values)

    # ---- update

    def update(self) -> None:
        """Read some batches, gather their gradient, and change the weights once."""
        table, state = self.table, self.state
        batches = [next(state.loader) for _ in range(self.batches)]
        objective = self.phases.at(self.spent)[0].objective
        counts = [(objective.units(batch), int(batch.valid.sum())) for batch in batches]
        targets, tokens = self.ranks.sum([sum(each) for each in zip(*counts, strict=True)])
        state.tokens += tokens
        spent_before, self.spent = self.spent, self._share_spent()
        phase = self._begin(spent_before)
        loss = torch.zeros((), device=self.where)
        for number, batch in enumerate(batches):
            self.reporter.doing(f"update {state.step + 1}", number, len(batches))
            prepared = self._prepare(phase, batch, number)
            share = prepared.tokens / targets
            state.window.note(prepared)
            loss += backward(state.network, phase.objective, prepared.to(self.where), share, self.bfloat16)
        norm = self.parts.weights.clip(table.clip)
        optim.step(state.optimizer, self.rate)
        if state.ema:
            state.ema.update()
        state.step += 1
        state.window.add(loss, targets, norm)
        loss_so_far = state.window.mean(self.ranks) if self.reporter.wants_loss else None
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

    def _prepare(self, phase: TrainingPhase, batch: Batch, number: int) -> Prepared:
        """Corrupt this rank's batch ``number`` of the update on the host, and count the operations of its passes."""
        state, ranks = self.state, self.ranks
        place = state.step * self.table.accumulate + number * ranks.world + ranks.rank  # in the run, as in the loader
        noise, dropout = batch_seeds(self.table.seed, place)
        state.noise.manual_seed(noise)
        torch.manual_seed(dropout)
        self.parts.weights.ready(phase.objective)
        batch = drop_prompts(batch, self.spec, self.table.drop_prompt, state.noise)
        spec = self.spec if self.curriculum is None else self.curriculum.spec(self.spec, batch.ids.shape[1], self.spent)
        prepared, rollout = prepare_batch(
            phase.objective, batch, spec, state.noise, self.networks, self.bfloat16, self._sample
        )
        state.flops += sum(map(self.cost.of_request, rollout))
        if self.curriculum is not None:
            prepared = self.curriculum.adapt(prepared, self.spent, state.noise)
        state.flops += self.cost.of_training(prepared)
        return prepared

    def _sample(self, asked: SamplePass) -> Samples:
        """Texts generated by the network in training; their operations are counted."""
        assert self.parts.sampler is not None
        found, flops = self.parts.sampler(asked)
        self.state.flops += flops
        return found

    # ---- report

    def report(self) -> None:
        """Report the updates since the last report.

        Raises:
            UserError: the loss is not finite.
        """
        state = self.state
        loss, norm, targets, stats = state.window.pack(self.ranks)
        state.window = Window()
        check_finite(self.work, state.step, self.table.lr, {"loss": loss}, {}, self.ranks)
        tokens, flops = self.meter.lap(state.tokens, state.all_flops())
        flops /= self.ranks.world  # a second, on each device
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
            **{name: total / targets for name, total in stats.items()},
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
            if validation.steadiest(self.state, self.parts, self.phases.last.objective, self.bfloat16):
                self.phases.choose(self.state.objective)
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
            held = {name: self.parts.weights.local(tensor) for name, tensor in tensors.items()}
            check_finite(self.work, state.step, self.table.lr, {"loss": values["window"][0]}, held, self.ranks)
            values |= {"data_sha256": self.parts.data_sha256, "bfloat16": self.bfloat16}
            values["tokenizer"] = self.parts.model.tokenizer.fingerprint
            self._saved(wait=True)
            self.saver.start(state.step, tensors, values)
            self._saved()
            runtime.release_memory()
        self.saved_at = time.monotonic()

    def _saved(self, wait: bool = False) -> None:
        """Report the checkpoint that is complete; with ``wait``, complete the one that is being saved."""
        path = self.saver.finished(wait)
        if path is not None:
            values = {"path": str(path)}
            self.reporter.report(Event("checkpoint", checkpoint.step_of(path), self.state.tokens, values))

    def close(self) -> None:
        """Complete the checkpoint that is being saved."""
        self.saver.finished(wait=True)

    # ---- finish

    def finish(self) -> Result:
        """Validate, save the model, and record the result."""
        state = self.state
        if self.parts.validation:
            self._score(can_be_best=True)
            if (warning := validation.overfitting(self.state)) is not None:
                self.reporter.report(Event("overfitting", state.step, state.tokens, warning))
        self.reporter.doing("saving the model")
        self._saved(wait=True)
        self._save_model()
        state.seconds = self.seconds
        result = self.ranks.same(self._result())
        text = json.dumps(dataclasses.asdict(result), indent=2) + "\n"
        self.ranks.once(lambda: write_atomically(self.work / "result.json", text))
        self.reporter.report(Event("done", state.step, state.tokens, dataclasses.asdict(result)))
        return result

    @torch.no_grad()
    def _save_model(self) -> None:
        """Save the weights that validation chose, else the averaged weights, else the last."""
        state = self.state
        if state.best_weights:
            for name, own in state.trained().items():
                own.copy_(state.best_weights[name])
        with state.ema.applied() if state.ema and not state.best_weights else nullcontext():
            self.parts.weights.gather(self.ranks.is_writer)
            self.ranks.once(lambda: self.parts.model.save(self.out))

    def _result(self) -> Result:
        state, on_device = self.state, self.where.type == "cuda"
        return Result(
            out=str(self.out),
            steps=state.step,
            tokens=state.tokens,
            passes=state.loader.epochs,
            seconds=state.seconds,
            flops=state.all_flops(),
            parameters=self.parts.model.network.parameter_count,
            peak_memory=torch.cuda.max_memory_allocated(self.where) if on_device else peak_resident(),
            validation=state.best if state.best_weights else state.latest,
        )
