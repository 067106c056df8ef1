"""Recorded values of a reference, and what comparing with them comes to."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from redraft.files import read_json
from redraft.loading import load
from redraft.model import Model

IDS, NOTHING = "equal ids", "not compared"


@dataclass(frozen=True)
class Check:
    """One comparison with a reference: numbers within a tolerance, or ids that must be the same."""

    model: str
    what: str
    difference: float  # largest, of numbers; share of ids that differ
    tolerance: str  # "1e-4 + 1e-4 |x|", "equal ids", or "not compared", the note saying why
    ok: bool
    note: str = ""
    used: float = 0.0  # largest difference as a share of the tolerance that it was allowed


class Recorded(Mapping[str, Tensor]):
    """The tensors of one file, which notes those that are asked for."""

    def __init__(self, values: Mapping[str, Tensor], prefix: str, read: set[str]) -> None:
        self.values_, self.prefix, self.read = values, prefix, read

    def __getitem__(self, name: str) -> Tensor:
        self.read.add(self.prefix + name)
        return self.values_[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.values_)

    def __len__(self) -> int:
        return len(self.values_)


@dataclass(frozen=True)
class Reference:
    """A folder of recorded values. ``read`` grows by every value that a check asks for."""

    folder: Path
    graph: str = ""  # a folder within, with a checkpoint of its own
    read: set[str] = field(default_factory=set)

    @property
    def model(self) -> str:
        return self.folder.name

    def part(self, graph: str) -> Reference:
        return replace(self, graph=graph)

    def load(self, mask_id: int | None = None) -> Model:
        return load(self.folder / self.graph / "checkpoint", "cpu", mask_id=mask_id)

    def tensors(self, name: str) -> Recorded:
        from safetensors.torch import load_file

        values: dict[str, Tensor] = load_file(self._file(f"{name}.safetensors"))
        return Recorded(values, f"{self._prefix}{name}.", self.read)

    def values(self, name: str, key: str) -> Any:
        self.read.add(f"{self._prefix}{name}.{key}")
        return read_json(self._file(f"{name}.json"))[key]

    def cases(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.values("generate", "cases")
        return found

    def rest(self) -> list[str]:
        """Names of what is recorded, but was asked for by no check: ``file.key``."""
        from safetensors import safe_open

        names = set()
        for path in self.folder.glob("**/goldens/*"):
            above = path.relative_to(self.folder).parts[:-2]
            prefix = "".join(f"{part}/" for part in above) + f"{path.stem}."
            if path.suffix == ".json":
                names |= {prefix + key for key in read_json(path)}
            else:
                with safe_open(str(path), "pt") as opened:
                    names |= {prefix + key for key in opened.keys()}  # noqa: SIM118 it is no mapping
        return sorted(names - self.read)

    def close(self, what: str, found: Tensor, wanted: Tensor, rtol: float = 1e-4, atol: float = 1e-4) -> Check:
        a, b = found.double(), wanted.double()
        gap = torch.where(a == b, 0.0, (a - b).abs())  # infinities may be equal
        used = torch.where(gap == 0, 0.0, gap / (atol + rtol * b.abs()))
        text = f"{atol:g} + {rtol:g} |x|"
        return Check(self.model, what, float(gap.max()), text, bool((used <= 1).all()), used=float(used.max()))

    def same(self, what: str, found: Sequence[Sequence[int]], wanted: Sequence[Sequence[int]], note: str = "") -> Check:
        a, b = torch.tensor(found), torch.tensor(wanted)
        if a.shape != b.shape:
            return Check(self.model, what, 1.0, IDS, False, f"shapes {list(a.shape)} and {list(b.shape)}")
        share = float((a != b).double().mean())
        return Check(self.model, what, share, IDS, share == 0, note)

    @property
    def _prefix(self) -> str:
        return f"{self.graph}/" if self.graph else ""

    def _file(self, name: str) -> Path:
        return self.folder / self.graph / "goldens" / name


@dataclass(frozen=True)
class Suite:
    """The checks of one reference. ``left``: what is recorded, but compared with nothing (patterns), and why."""

    checks: Callable[[Reference], Iterator[Check]]
    left: Mapping[str, str] = field(default_factory=dict)

    def run(self, reference: Reference) -> Iterator[Check]:
        """Every check, and then what none of them asked for: without a reason for that, it is a failure."""
        yield from self.checks(reference)
        reasons: dict[str, list[str]] = {}
        for name in reference.rest():
            reason = next((reason for pattern, reason in self.left.items() if fnmatch(name, pattern)), "")
            reasons.setdefault(reason, []).append(name)
        for reason, names in reasons.items():
            yield Check(reference.model, ", ".join(names), 0.0, NOTHING, bool(reason), reason or "nobody says why")
