"""Classes outside of the package, which are found by their dotted path. See ``test_registry.py``."""

from __future__ import annotations

from dataclasses import dataclass

from redraft.objectives.autoregressive import Autoregressive
from redraft.samplers.base import Sampler
from redraft.samplers.shared import common
from redraft.types import Canvas, Output, Request, Spec, Step


@dataclass(frozen=True)
class Leftmost(Sampler):
    """Writes ``count`` free positions per step, from the left."""

    count: int = 1

    def start(self, canvas: Canvas, spec: Spec) -> None:
        common.check_diffusion(spec)

    def plan(self, canvas: Canvas, state: None, spec: Spec) -> list[Request]:
        return common.requests_for(canvas, spec, common.free_in_block(canvas, 0, spec))

    def apply(
        self, canvas: Canvas, state: None, spec: Spec, requests: list[Request], outputs: list[Output]
    ) -> tuple[None, Step]:
        [request], [output] = requests, outputs
        rank = (request.targets >= 0).cumsum(1)
        return None, common.write(request, output, (request.targets >= 0) & (rank <= self.count))


@dataclass(frozen=True)
class Plain(Autoregressive):
    """An objective."""


class NoSampler:
    """Derives from nothing."""


VALUE = 1  # no class
