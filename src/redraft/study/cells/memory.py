"""Peak memory of one text of a given length, in sampling or in training, in a process of its own."""

from __future__ import annotations

import gc
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from redraft.data.vocabulary import Ids, Vocabulary
from redraft.evaluation.memory import PeakMemory
from redraft.model import Model
from redraft.objectives.shared.vocabulary import backward
from redraft.presets import preset
from redraft.rollouts import prepare_batch
from redraft.study.cells.base import Bench, Cell
from redraft.train import optim
from redraft.types import Batch

_WARM = 64  # tokens of a first text, which loads code and tables


@dataclass(frozen=True)
class Memory(Cell):
    """Random weights in float32. ``less`` is the peak of resident memory above the level with weights and, in training,
    optimizer state; ``full`` includes these (as counted), but not Python and torch.
    """

    alone: ClassVar[bool] = True

    family: dict[str, Any]
    phase: str  # sampling or training
    length: int  # tokens of the text
    preset: str
    vocab_size: int = 8192

    @property
    def label(self) -> str:
        return f"memory of {self.family['name']} in {self.phase} at {self.length} tokens"

    @property
    def weight(self) -> float:
        return 20.0 * self.length

    def work(self, bench: Bench) -> dict[str, Any]:
        """Measure in another process, whose memory nothing else has touched."""
        fresh = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(1, mp_context=fresh) as pool:
            found: dict[str, float] = pool.submit(_measure, self).result()
        return found


def _measure(cell: Memory) -> dict[str, float]:
    torch.set_num_threads(1)
    _once(cell, _WARM)
    return _once(cell, cell.length)


def _once(cell: Memory, length: int) -> dict[str, float]:
    special = Ids(cell.vocab_size, pad=0, eos=1, bos=2, mask=3, sep=4, forbidden=(0, 2, 3, 4))
    shape = preset(cell.preset, cell.vocab_size, max_length=length + 8)
    model = Model.fresh(cell.family, Vocabulary(special), shape, paired=False)
    network, optimizer = model.network, None
    if cell.phase == "training":
        last = model.family.phases()[-1]
        for key, parameter in network.named_parameters():
            parameter.requires_grad_(key.startswith(last.trains))
        optimizer = _optimizer(network)
    else:
        network.requires_grad_(False)
    ids = torch.randint(5, cell.vocab_size, (1, length + 1), generator=torch.Generator().manual_seed(0))
    target = torch.arange(length + 1)[None] > 0
    gc.collect()
    with PeakMemory(torch.device("cpu")) as memory:
        if optimizer is not None:
            batch = Batch(ids, target, torch.ones_like(target), None, torch.zeros(1, dtype=torch.int64))
            generator = torch.Generator().manual_seed(1)
            prepared, _ = prepare_batch(last.objective, batch, model.spec, generator, {"main": network})
            backward(network, last.objective, prepared, 1.0)
            optim.step(optimizer, 1e-3)
        else:
            settings = model.settings(max_new_tokens=length, steps=1, ignore_eos=True, cache="none")
            for _ in model.start([[2]], settings):
                pass
    held = sum(p.numel() * p.element_size() * (3 if optimizer and p.requires_grad else 1) for p in network.parameters())
    less = memory.peak - memory.before
    return {"full": float(less + held), "less": float(less)}


def _optimizer(network: torch.nn.Module) -> torch.optim.Optimizer:
    """An optimizer with its state allocated, so that the measurement doesn't count it."""
    optimizer = optim.adamw(network.train(), 1e-3, (0.9, 0.98), 0.1)
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            zero = torch.zeros_like(parameter)
            optimizer.state[parameter] = {"step": torch.tensor(0.0), "exp_avg": zero, "exp_avg_sq": zero.clone()}
    return optimizer
