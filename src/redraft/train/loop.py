"""THE training loop. Every family, every size, every device: one function."""

from __future__ import annotations

import copy
import dataclasses
import json
import math
import shutil
import time
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from redraft import config, runtime
from redraft.courses import build_course
from redraft.errors import UserError
from redraft.files import disk_error, write_atomically
from redraft.guidance._condition import drop_prompts
from redraft.likelihood import bound, corrupt, spread
from redraft.metrics.memory import peak_resident
from redraft.train import checkpoint, optim
from redraft.train.device import to_device
from redraft.train.ema import Ema
from redraft.train.logging import Event, MetricsFile, TensorBoard, Watcher
from redraft.train.recipe import Recipe, TrainTable
from redraft.train.setup import Parts, prepare
from redraft.train.state import State, Window
from redraft.train.throughput import Arithmetic, Meter
from redraft.types import Network, Objective, Prepared, Stage


@dataclass(frozen=True)
class Result:
    """What a finished run came to."""

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
    """Train the model a recipe describes and leave it in ``out``, ready for ``redraft.load``.

    Killed at any moment and called again with the same arguments, it goes on from the last checkpoint and ends with
    the same weights, bit for bit on the same machine with the same number of threads (budgets in minutes aside).
    ``out/train`` holds the checkpoints, ``metrics.jsonl``, TensorBoard files and ``recipe.toml``.

    Raises:
        UserError: wrong recipe or data, a damaged checkpoint, another run in ``out``, a loss that is not finite.
    """
    begun = time.monotonic()
    work, where, table = Path(out) / "train", runtime.device(device), recipe.train
    with ExitStack() as stack:
        stack.enter_context(_alone(work))
        saved = _take_up(recipe, work)
        if (work / "result.json").exists():
            return Result(**json.loads((work / "result.json").read_text(encoding="utf-8")))
        stack.enter_context(_own_settings(table.threads, table.seed, where))

        # 1. The parts, as the recipe names them, and the state, as the last checkpoint left it.
        parts = prepare(recipe, work, where)
        family, spec, state = parts.model.family, parts.model.spec, _fresh(recipe, parts, where)
        objective = family.objective()  # what validation scores by; training may look at part of it only
        stages = _stages(family, objective, state.learns)
        course = build_course(recipe.course)
        if course is not None and any(hasattr(stage.objective, "ahead") for stage in stages):
            raise UserError(f"a course and family '{recipe.family['name']}' don't go together.", "Leave out [course].")
        networks = {"main": state.network, **_teacher(stages[-1].objective, recipe, state.network)}
        low = saved[1]["bfloat16"] if saved else _low_precision(table.dtype, where)
        arithmetic = Arithmetic.of(state.network)
        peak = runtime.peak_matmul(where, torch.bfloat16 if low else torch.float32)
        if saved:  # after everything else that may draw random numbers
            _check_data(saved[1]["data_sha256"], parts)
            state.unpack(*saved)
            objective = _configured(objective, state.objective)
        begun -= state.seconds  # so that now - begun counts all starts together
        tell = stack.enter_context(_watchers(work, state.step, on_event))
        tell(_started(parts, state, peak, low, resumed=saved is not None))
        speed, saved_at = Meter(where, state.tokens, state.flops), time.monotonic()
        spent = state.spent(table, state.tokens, time.monotonic() - begun)
        told: Stage | None = None  # the stage that watchers know of

        # 2. Until the budget is spent ...
        while spent < 1.0 or not state.step:  # at least one update, however short the minutes
            # 3. ... take the clean rows of one update, and the learning rate for the share of the budget they end.
            batches = [next(state.loader) for _ in range(table.accumulate)]
            targets = sum(int(batch.target.sum()) for batch in batches)
            before, state.tokens = state.tokens, state.tokens + sum(int(batch.valid.sum()) for batch in batches)
            gone, spent = spent, state.spent(table, state.tokens, time.monotonic() - begun)
            stage, begins = _stage(stages, gone, state)
            if len(stages) > 1 and stage is not told:
                told, name = stage, type(stage.objective).__name__.lower()
                values = {"number": stages.index(stage) + 1, "of": len(stages), "objective": name}
                tell(Event("stage", state.step, state.tokens, values))
            warmup = table.warmup if table.warmup < 1 else table.warmup * spent / state.tokens / stage.share
            within = min((spent - begins) / stage.share, 1.0)
            rate = optim.learning_rate(table.schedule, within, table.lr, warmup, table.min_lr)

            # 4. Corrupt them on the host, ask the network to repair them, gather the gradient.
            loss = torch.zeros((), device=where)
            for batch in batches:
                batch = drop_prompts(batch, spec, table.drop_prompt, state.noise)
                if course is None:
                    prepared, looked = corrupt(stage.objective, batch, spec, state.noise, networks, low)
                    state.flops += sum(map(arithmetic.forward, looked))
                else:
                    prepared = course.prepare(stage.objective, batch, spec, spent, state.noise)
                state.flops += arithmetic.training(prepared)
                share = prepared.tokens / targets
                loss += backward(state.network, stage.objective, to_device(prepared, where), share, low)

            # 5. One step of the optimizer, and of the average that follows it.
            norm = torch.nn.utils.clip_grad_norm_(state.network.parameters(), table.clip or float("inf"), foreach=True)
            optim.step(state.optimizer, rate)
            if state.ema:
                state.ema.update(state.network)
            state.step += 1
            state.window.add(loss, targets, norm)

            # 6. Now and then report, validate, save. Only here does the host wait for the device.
            last = spent >= 1.0
            if last or state.step == 1 or state.step % table.log_every == 0:
                tell(_update(state, table, rate, spent, speed, peak, time.monotonic() - begun))
            if parts.validation and not last and _crossed(table.validate_every, before, state.tokens):
                with speed.pause():
                    tell(_validated(recipe, state, parts, objective, whole=stage is stages[-1]))
                    objective = _steadiest(state, parts, objective, tell)
            due = time.monotonic() - saved_at >= table.save_every_seconds
            if last or due or _crossed(table.save_every_tokens, before, state.tokens):
                state.seconds = time.monotonic() - begun
                with speed.pause():
                    tell(_save(work, state, parts, low))
                    runtime.release()
                saved_at = time.monotonic()

        # 7. Score what came of it, and write the model where redraft.load looks for it.
        if parts.validation:
            tell(_validated(recipe, state, parts, objective))
        _write_model(state, parts, Path(out))
        state.seconds = time.monotonic() - begun
        result = _result(Path(out), state, parts)
        write_atomically(work / "result.json", json.dumps(dataclasses.asdict(result), indent=2) + "\n")
        tell(Event("done", state.step, state.tokens, dataclasses.asdict(result)))
    return result


def backward(network: Network, objective: Objective, prepared: Prepared, share: float, low: bool = False) -> Tensor:
    """Add ``share`` of a batch's gradient to the parameters; return that share of its loss.

    ``share`` is the batch's part of the update's target tokens, which makes accumulated batches equal one big one.
    ``low``: bfloat16 autocast.
    """
    device = prepared.target.device
    with torch.autocast(device.type, torch.bfloat16) if low else nullcontext():
        logits = network(prepared.ask)
    loss = objective.loss(logits, prepared).loss * share
    loss.backward()
    return loss.detach()


# ---- beginning


def _stages(family: Any, objective: Objective, learns: frozenset[str]) -> Sequence[Stage]:
    """The parts of a training: one of all parameters, unless the family has several. Those whose parameters rest (an
    adapter is trained, and they have none) leave their share of the budget to the others."""
    if hasattr(family, "stages"):
        stages: Sequence[Stage] = family.stages()
        taught = [stage for stage in stages if any(name.startswith(stage.learns) for name in learns)]
        if len(taught) == len(stages):
            return stages
        whole = sum(stage.share for stage in taught)
        return [dataclasses.replace(stage, share=stage.share / whole) for stage in taught]
    return [Stage(1.0, family.training() if hasattr(family, "training") else objective, ("",))]


def _stage(stages: Sequence[Stage], spent: float, state: State) -> tuple[Stage, float]:
    """The stage that training is in when ``spent`` of the budget is gone, and where it began; others' weights rest."""
    begin = 0.0
    for stage in stages[:-1]:
        if spent < begin + stage.share:
            break
        begin += stage.share
    else:
        stage = stages[-1]
    if len(stages) > 1:
        for name, parameter in state.network.named_parameters():
            parameter.requires_grad_(name in state.learns and name.startswith(stage.learns))
    return stage, begin


@contextmanager
def _alone(work: Path) -> Iterator[None]:
    """Hold the run's folder, so that no second process writes to it. The system frees it when the process ends."""
    import fcntl

    try:
        work.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise disk_error(error, work) from None
    with (work / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            what = f"another process is training in '{work.parent}'."
            raise UserError(what, "Wait for it, or choose another --out.") from None
        yield


def _take_up(recipe: Recipe, work: Path) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """The last checkpoint of this very run, if there is one; else the folder is made ready for a new run."""
    path = work / "recipe.toml"
    if checkpoint.checkpoints(work):
        changes = recipe.difference(tomllib.loads(path.read_text(encoding="utf-8")))
        if changes:
            raise UserError(
                f"'{work.parent}' holds a run with another recipe ({'; '.join(changes)}).",
                "Restore these settings to go on with it, or choose another --out.",
            )
        return checkpoint.load_latest(work)
    if any((work.parent / name).exists() for name in ("config.json", "adapter_config.json")):
        raise UserError(f"'{work.parent}' holds a model, and no training to go on with.", "Choose another --out.")
    shutil.rmtree(work / "tokenizer", ignore_errors=True)  # of a run killed before its first checkpoint
    write_atomically(path, recipe.to_toml())
    return None


def _fresh(recipe: Recipe, parts: Parts, where: torch.device) -> State:
    table, network = recipe.train, parts.model.network
    return State(
        network=network.train(),
        optimizer=optim.adamw(network, table.lr, table.betas, table.weight_decay),
        ema=Ema(network, table.ema) if table.ema else None,
        loader=parts.loader,
        noise=torch.Generator().manual_seed(table.seed),
        device=where,
    )


def _teacher(objective: Objective, recipe: Recipe, network: nn.Module) -> dict[str, nn.Module]:
    """The frozen copy that an objective learns from, if it does: made before a checkpoint of the run is taken up."""
    if not getattr(objective, "teacher", False):
        return {}
    if not recipe.model.from_:
        raise UserError("distillation needs a teacher.", "Name a trained checkpoint: [model] from, or finetune --from.")
    return {"teacher": copy.deepcopy(network).eval().requires_grad_(False)}


def _check_data(recorded: str, parts: Parts) -> None:
    if recorded != parts.data_sha256:
        raise UserError(
            "the training texts are not those the run began with.", "Restore the data, or choose another --out."
        )


@contextmanager
def _own_settings(threads: int, seed: int, where: torch.device) -> Iterator[None]:
    """The process settings of a run: threads, memory, torch's generator (of dropout); the caller's come back."""
    before = torch.get_num_threads()
    kept = runtime.keeping_memory() if where.type == "cpu" else nullcontext()
    with kept, torch.random.fork_rng(devices=[where] if where.type == "cuda" else []):
        torch.manual_seed(seed)
        if threads:
            torch.set_num_threads(threads)
        try:
            yield
        finally:
            torch.set_num_threads(before)


def _low_precision(dtype: str, where: torch.device) -> bool:
    """Compute in bfloat16? ``auto``: where it pays. A run that is taken up again stays with its first answer."""
    return dtype == "bfloat16" or (dtype == "auto" and runtime.bfloat16_pays(where))


@contextmanager
def _watchers(work: Path, step: int, on_event: Watcher | None) -> Iterator[Watcher]:
    """One function that tells the metrics file, TensorBoard where installed, and the caller."""
    files: list[Any] = [MetricsFile(work / "metrics.jsonl", step)]
    if TensorBoard.installed():
        files.append(TensorBoard(work / "tensorboard", step))
    listeners: list[Watcher] = [*files, *([on_event] if on_event else [])]

    def tell(event: Event) -> None:
        try:
            for listener in listeners:
                listener(event)
        except OSError as error:
            raise disk_error(error, work) from None

    try:
        yield tell
    finally:
        for file in files:
            file.close()


def _started(parts: Parts, state: State, peak: float, low: bool, resumed: bool) -> Event:
    values = {
        "parameters": parts.model.parameters,
        "trained": sum(p.numel() for p in parts.model.network.parameters() if p.requires_grad),
        "rows": parts.rows,
        "skipped": parts.skipped,
        "padding": parts.loader.padding_share(),
        "device": str(state.device),
        "dtype": "bfloat16" if low else "float32",
        "peak_flops": peak,
        "resumed": resumed,
    }
    return Event("start", state.step, state.tokens, values)


# ---- now and then


def _crossed(every: int, before: int, after: int) -> bool:
    """Has a multiple of ``every`` been passed? 0 is never."""
    return every > 0 and after // every > before // every


def _update(
    state: State, table: TrainTable, rate: float, spent: float, speed: Meter, peak: float, seconds: float
) -> Event:
    """Close the window of sums and report it."""
    loss, norm, targets = state.window.pack()
    state.window = Window()
    if not math.isfinite(loss):
        raise UserError(f"the loss is not finite at step {state.step}.", "Lower train.lr, or lengthen train.warmup.")
    tokens, flops = speed.lap(state.tokens, state.flops)
    values = {
        "loss": loss / targets,
        "lr": rate,
        "grad_norm": norm,
        "passes": state.loader.epochs,
        "progress": spent,
        "tokens_per_second": tokens,
        "share_of_peak": flops / peak,
        "seconds": seconds,
        "eta_seconds": _left(state, table, speed, seconds),
    }
    return Event("update", state.step, state.tokens, values)


def _left(state: State, table: TrainTable, speed: Meter, seconds: float) -> float:
    """Seconds until the first of the budgets is spent: tokens and passes by the speed of late, minutes by the clock."""
    read = state.spent(table, state.tokens, 0.0)  # share of the budgets of data
    found = [speed.ahead(state.tokens * (1.0 - read) / read)] if read else []
    found += [max(60.0 * table.minutes - seconds, 0.0)] if table.minutes else []
    return min(found, default=0.0)


def _validated(recipe: Recipe, state: State, parts: Parts, objective: Objective, whole: bool = True) -> Event:
    """Score the validation rows with the weights that would be kept, and keep them if they are the best yet and
    ``whole``: no part of the model has still to be taught."""
    with state.ema.applied(state.network) if state.ema else nullcontext():
        found = bound(state.network, parts.validation, objective, parts.model.spec, device=state.device)
        values = {
            "nats_per_token": found.nats_per_token,
            "nats_error": found.nats_per_token_stderr,
            "bits_per_byte": found.bits_per_byte,
            "bits_error": found.bits_per_byte_stderr,
            "is_bound": found.is_bound,
            "rows": len(found.rows),
            "passes": state.loader.epochs,
        }
        state.latest = {**values, "step": state.step}
        best = whole and (state.best is None or values["nats_per_token"] < state.best["nats_per_token"])
        if best:
            state.best = state.latest
            if recipe.train.keep_best:
                state.best_weights = {name: t.detach().cpu().clone() for name, t in state.trained().items()}
    return Event("validation", state.step, state.tokens, {**values, "best": best})


def _steadiest(state: State, parts: Parts, objective: Objective, tell: Watcher) -> Objective:
    """Of an objective's variants, where it has any, the one whose loss varies least on the validation rows."""
    found: Sequence[Objective] = objective.candidates() if hasattr(objective, "candidates") else []
    if not found:
        return objective
    rows, network = parts.validation[:_SEARCH_BATCHES], state.network
    best = min(found, key=lambda o: spread(network, rows, o, parts.model.spec, device=state.device))
    state.objective = config.to_mapping(best)
    tell(Event("objective", state.step, state.tokens, state.objective))
    return best


_SEARCH_BATCHES = 2  # validation batches that variants of an objective are compared on


def _configured(objective: Objective, fields: Mapping[str, Any]) -> Objective:
    """The objective with the fields that training had come to; its own where there are none."""
    return config.build(type(objective), fields, "checkpoint's objective") if fields else objective


def _save(work: Path, state: State, parts: Parts, low: bool) -> Event:
    tensors, values = state.pack()
    values |= {"data_sha256": parts.data_sha256, "bfloat16": low}
    path = checkpoint.save(work, state.step, tensors, values)
    return Event("checkpoint", state.step, state.tokens, {"path": str(path)})


# ---- the end


@torch.no_grad()
def _write_model(state: State, parts: Parts, out: Path) -> None:
    """Save the weights that validation chose, else the averaged ones, else the last."""
    if state.best_weights:
        for name, own in state.trained().items():
            own.copy_(state.best_weights[name])
        parts.model.save(out)
        return
    with state.ema.applied(state.network) if state.ema else nullcontext():
        parts.model.save(out)


def _result(out: Path, state: State, parts: Parts) -> Result:
    on_device = state.device.type == "cuda"
    return Result(
        out=str(out),
        steps=state.step,
        tokens=state.tokens,
        passes=state.loader.epochs,
        seconds=state.seconds,
        flops=state.flops,
        parameters=parts.model.parameters,
        peak_memory=torch.cuda.max_memory_allocated(state.device) if on_device else peak_resident(),
        validation=state.best if state.best_weights else state.latest,
    )
