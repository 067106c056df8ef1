"""Which ways of decoding stand for a model: its best, and its cheapest that is as good as a given quality."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from redraft.metrics import Metric
from redraft.study.analyses.shared import scores
from redraft.study.cells.base import Cell
from redraft.study.experiment import Experiment, Found, Way


@dataclass(frozen=True)
class Choice:
    """The ways of decoding that are compared on a task. All are chosen on validation rows."""

    best: Way  # of the reference
    fast: Way  # of the reference: the cheapest within the margin of its best
    ours: dict[str, Way]  # of each other model: the cheapest within the margin of the reference's best, else its best

    @property
    def ways(self) -> list[Way]:
        """All of them, each once."""
        found = {way.config.id: way for way in (self.best, self.fast, *self.ours.values())}
        return list(found.values())


def needed(of: Experiment, task: str) -> list[Cell]:
    """The cells from which ``choose`` chooses."""
    wanted: list[Cell] = [of.data(task), of.trivial(task)]
    for model in of.models(task):
        wanted += [cell for way in of.ways(model, task) for cell in of.texts(way, task, "validation")]
    return wanted


def choose(of: Experiment, found: Found, task: str, metric: Metric, margin: float) -> Choice:
    """The choice on validation rows. Cheap means few forward passes, times the output lengths tried."""

    def tried(model: str) -> list[scores.Scored]:
        return [scores.scored(of, found, way, task, metric, "validation") for way in of.ways(model, task)]

    def cost(one: scores.Scored) -> float:
        beams = float(one.way.config.options.get("beams", 1))
        return one.passes * one.way.config.candidates * beams

    def cheapest(ones: Sequence[scores.Scored], floor: float) -> Way | None:
        good = [one for one in ones if one.value >= floor - margin]
        return min(good, key=lambda one: (cost(one), -one.value)).way if good else None

    own = tried(of.claim.reference)
    top = max(own, key=_value)
    ours = {}
    for model in of.others(task):
        ones = tried(model)
        ours[model] = cheapest(ones, top.value) or max(ones, key=_value).way
    return Choice(top.way, cheapest(own, top.value) or top.way, ours)


def _value(one: scores.Scored) -> float:
    return one.value
