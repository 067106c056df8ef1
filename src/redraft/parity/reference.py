"""Recorded values of a reference, and the results of comparing with them."""

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
    """One comparison with a reference: numbers within a tolerance, or ids that must be equal."""

    model: str
    what: str
    difference: float  # largest difference of numbers, or share of ids that differ
    tolerance: str  # "1e-4 + 1e-4 |x|", "equal ids", or "not compared" (the note gives the reason)
    ok: bool
    note: str = ""
    used: float = 0.0  # largest difference as a share of its tolerance


class Recorded(Mapping[str, Tensor]):
    """The tensors of one file. Records which of them are read."""

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
    """A folder of recorded values. ``read`` collects the names of the values that checks read."""

    folder: Path
    graph: str = ""  # a folder inside, with its own checkpoint
    read: set[str] = field(default_factory=set)

    @property
    def model(self) -> str:
        """The name of the model."""
        return self.folder.name

    def part(self, graph: str) -> Reference:
        """The reference in a folder inside, with its own checkpoint."""
        return replace(self, graph=graph)

    def load(self, mask_id: int | None = None) -> Model:
        """Load the checkpoint on the CPU."""
        return load(self.folder / self.graph / "checkpoint", "cpu", mask_id=mask_id)

    def tensors(self, name: str) -> Recorded:
        """The tensors of the file ``goldens/name.safetensors``."""
        from safetensors.torch import load_file

        values: dict[str, Tensor] = load_file(self._file(f"{name}.safetensors"))
        return Recorded(values, f"{self._prefix}{name}.", self.read)

    def values(self, name: str, key: str) -> Any:
        """The value of a key in the file ``goldens/name.json``."""
        self.read.add(f"{self._prefix}{name}.{key}")
        return read_json(self._file(f"{name}.json"))[key]

    def cases(self) -> list[dict[str, Any]]:
        """The recorded generations: settings, prompts and outputs."""
        found: list[dict[str, Any]] = self.values("generate", "cases")
        return found

    def unread(self) -> list[str]:
        """Names (``file.key``) of recorded values that no check has read, and other files."""
        from safetensors import safe_open

        names = set()
        for path in self.folder.glob("**/goldens/*"):
            above = path.relative_to(self.folder).parts[:-2]
            prefix = "".join(f"{part}/" for part in above) + f"{path.stem}."
            if path.suffix == ".json":
                names |= {prefix + key for key in read_json(path)}
            elif path.suffix != ".safetensors":
                names.add(prefix + path.suffix[1:])
            else:
                with safe_open(str(path), "pt") as opened:
                    names |= {prefix + key for key in opened.keys()}  # noqa: SIM118 not a mapping
        return sorted(names - self.read)

    def close(self, what: str, found: Tensor, expected: Tensor, rtol: float = 1e-4, atol: float = 1e-4) -> Check:
        """Compare numbers [...]: |found - expected| <= atol + rtol |expected|."""
        a, b = found.double(), expected.double()
        gap = torch.where(a == b, 0.0, (a - b).abs())  # infinities may be equal
        used = torch.where(gap == 0, 0.0, gap / (atol + rtol * b.abs()))
        text = f"{atol:g} + {rtol:g} |x|"
        return Check(self.model, what, float(gap.max()), text, bool((used <= 1).all()), used=float(used.max()))

    def same(self, what: str, found: Sequence[Sequence[int]], expected: Sequence[Sequence[int]]) -> Check:
        """Compare ids, which must be equal."""
        a, b = torch.tensor(found), torch.tensor(expected)
        if a.shape != b.shape:
            return Check(self.model, what, 1.0, IDS, False, f"shapes {list(a.shape)} and {list(b.shape)}")
        share = float((a != b).double().mean()) if a.numel() else 0.0
        return Check(self.model, what, share, IDS, share == 0)

    @property
    def _prefix(self) -> str:
        return f"{self.graph}/" if self.graph else ""

    def _file(self, name: str) -> Path:
        return self.folder / self.graph / "goldens" / name


@dataclass(frozen=True)
class Suite:
    """The checks of one reference.

    Fields:
        not_compared: patterns of names of recorded values that are not compared, and the reasons.
    """

    checks: Callable[[Reference], Iterator[Check]]
    not_compared: Mapping[str, str] = field(default_factory=dict)

    def run(self, reference: Reference) -> Iterator[Check]:
        """Run every check, then list the values that none of them has read. Without a reason they are failures."""
        yield from self.checks(reference)
        reasons: dict[str, list[str]] = {}
        for name in reference.unread():
            reason = next((reason for pattern, reason in self.not_compared.items() if fnmatch(name, pattern)), "")
            reasons.setdefault(reason, []).append(name)
        for reason, names in reasons.items():
            yield Check(reference.model, ", ".join(names), 0.0, NOTHING, bool(reason), reason or "no reason is given")
