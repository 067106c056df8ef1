"""Everything that changes during training, in one object that can be saved and restored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from redraft.data.loader import Loader
from redraft.data.stream_loader import StreamLoader
from redraft.train.ema import Ema
from redraft.train.ranks import Ranks
from redraft.train.tables import TrainTable
from redraft.types import Prepared


@dataclass
class State:
    """The state of a run. ``pack`` it and ``unpack`` it into a fresh one: the run continues bit for bit.

    Its numbers count all ranks and are equal on them, except where a comment says otherwise.
    """

    network: nn.Module
    optimizer: torch.optim.Optimizer
    ema: Ema | None
    loader: Loader | StreamLoader
    noise: torch.Generator  # for the objective, on the host, seeded for each batch: the same on every device and rank
    device: torch.device
    ranks: Ranks = field(default_factory=Ranks)
    step: int = 0  # updates made
    tokens: int = 0  # tokens read, prompt and target, without padding
    flops: int = 0  # this rank's share
    seconds: float = 0.0  # wall clock, over all restarts
    window: Window = field(default_factory=lambda: Window())
    latest: dict[str, Any] | None = None  # values of the last validation ...
    best: dict[str, Any] | None = None  # ... and of the best so far
    validations: int = 0  # how many there were ...
    worse: int = 0  # ... and how many of them after the best one
    best_weights: dict[str, Tensor] = field(default_factory=dict)  # the best weights, if they are to be kept
    objective: dict[str, Any] = field(default_factory=dict)  # fields of the objective that training has chosen
    parameters: dict[str, nn.Parameter] = field(init=False)  # by name; on this rank a part of them, if sharded
    trainable: frozenset[str] = field(init=False)  # names of the parameters that the run changes, in any stage

    def __post_init__(self) -> None:
        self.parameters = dict(self.network.named_parameters())
        self.trainable = frozenset(name for name, p in self.parameters.items() if p.requires_grad)

    def trained(self) -> dict[str, Tensor]:
        """The trained parameters [...] by name, tied ones once. With an adapter the others are those of the base."""
        return {name: p.detach() for name, p in self.parameters.items() if name in self.trainable}

    def spent(self, train: TrainTable, tokens: int, seconds: float) -> float:
        """Share of the budget that is spent, 0..1, for ``tokens`` read in ``seconds``: the greatest of those set."""
        shares = [0.0]
        if train.tokens:
            shares.append(tokens / train.tokens)
        if train.passes:
            shares.append(self.loader.epochs / train.passes)
        if train.minutes:
            shares.append(seconds / (60.0 * train.minutes))
        return min(max(shares), 1.0)

    def all_flops(self) -> int:
        """Operations of training so far, of all ranks."""
        return self.ranks.sum([self.flops])[0]

    def pack(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Tensors [...] for safetensors and plain values for JSON."""
        tensors = {f"model.{name}": t for name, t in self.trained().items()}
        numbers: dict[str, int] = {}
        for name, parameter in self.parameters.items():
            for key, value in self.optimizer.state[parameter].items():
                if isinstance(value, Tensor):  # copied where parameters share it, as the code books of 8 bits
                    tensors[f"optimizer.{name}.{key}"] = value.clone() if key.startswith("qmap") else value
                else:
                    numbers[f"optimizer.{name}.{key}"] = value
        if self.ema is not None:
            tensors |= {f"ema.{name}": t for name, t in self.ema.tensors().items()}
        tensors |= {f"best.{name}": t for name, t in self.best_weights.items()}
        values = {
            "step": self.step,
            "tokens": self.tokens,
            "flops": self.all_flops(),
            "seconds": self.seconds,
            "best": self.best,
            "validations": [self.validations, self.worse],
            "ema_updates": self.ema.updates if self.ema else 0,
            "window": self.window.pack(self.ranks),
            "loader": self.loader.state_dict(),
            "objective": self.objective,
            "optimizer": numbers,
        }
        return tensors, values

    @torch.no_grad()
    def unpack(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        """Restore what ``pack`` returned. The recipe must be the same: names and shapes [...] must match."""
        for name, own in self.trained().items():
            own.copy_(tensors[f"model.{name}"])
        for name, parameter in self.parameters.items():
            prefix = f"optimizer.{name}."
            kept = {key.removeprefix(prefix): t.to(self.device) for key, t in tensors.items() if key.startswith(prefix)}
            plain = values.get("optimizer", {}).items()
            kept |= {key.removeprefix(prefix): value for key, value in plain if key.startswith(prefix)}
            self.optimizer.state[parameter] = kept
        if self.ema is not None:
            self.ema.updates = values["ema_updates"]
            for name, shadow in self.ema.shadow.items():
                shadow.copy_(tensors[f"ema.{name}"])
        self.best_weights = {k.removeprefix("best."): t for k, t in tensors.items() if k.startswith("best.")}
        self.step, self.tokens = values["step"], values["tokens"]
        self.flops = values["flops"] if self.ranks.is_writer else 0
        self.seconds, self.best, self.objective = values["seconds"], values["best"], values.get("objective", {})
        self.validations, self.worse = values.get("validations", (0, 0))
        self.window.unpack(values["window"], self.device, self.ranks)
        self.loader.load_state_dict(values["loader"])


@dataclass
class Window:
    """Sums since the last report. They stay on the device, so that no update waits for the one before it."""

    loss: Tensor | float = 0.0  # sum of the loss over target tokens: this rank's share of it
    norm: Tensor | float = 0.0  # of the last gradient
    targets: int = 0
    stats: dict[str, float] = field(default_factory=dict)  # sums over targets of what objectives report

    def note(self, prepared: Prepared) -> None:
        """Add what an objective reports of a batch."""
        for name, mean in prepared.reported.items():
            self.stats[name] = self.stats.get(name, 0.0) + mean * prepared.tokens

    def add(self, loss: Tensor, targets: int, norm: Tensor) -> None:
        """Add an update: its loss [] per target token, its target tokens, the norm [] of its gradient."""
        self.loss, self.norm = self.loss + loss.detach() * targets, norm.detach()
        self.targets += targets

    def mean(self, ranks: Ranks) -> float:
        """The mean loss over target tokens, as far as this rank knows it."""
        return float(self.loss) * ranks.world / max(self.targets, 1)

    def pack(self, ranks: Ranks) -> tuple[float, float, int, dict[str, float]]:
        """Sums over all ranks of the loss and of what objectives report, last norm of the gradient, target tokens."""
        loss, *sums = ranks.sum([float(self.loss), *self.stats.values()])
        return loss, float(self.norm), self.targets, dict(zip(self.stats, sums, strict=True))

    def unpack(self, values: Sequence[Any], device: torch.device, ranks: Ranks) -> None:
        """Restore what ``pack`` returned, on whatever number of ranks."""
        stats = dict(*values[3:])  # a checkpoint of an earlier version has none
        loss, share = (values[0], 1.0) if ranks.is_writer else (0.0, 0.0)
        self.loss, self.norm = (torch.tensor(v, device=device) for v in (loss, values[1]))
        self.targets, self.stats = int(values[2]), {name: share * total for name, total in stats.items()}
