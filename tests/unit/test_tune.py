"""The race of ``redraft tune`` on known scores: it must find the best configuration for its cost with little work."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest

from redraft.data.tokenizer import Tokenizer
from redraft.evaluation.decoding import DecodingConfig
from redraft.evaluation.stats import interval
from redraft.model import Model
from redraft.options import declared
from redraft.presets import preset
from redraft.settings import Settings
from redraft.tune import race
from redraft.tune.race import Piece, Race
from redraft.tune.space import Space, _beside
from redraft.tune.study import FEWEST_ROWS, TuneStudy


@dataclass
class Bench:
    """Settings ``confidence`` with n steps: quality rises with steps up to 8 and stays, costs are the steps.

    Rows differ much more from each other than settings do, and every setting finds the same rows hard.
    """

    rows: int = 256
    noise: float = 0.5  # of a setting on a row, beside that of the row
    written: dict[int, int] = field(default_factory=dict)

    def measure(self, config: DecodingConfig, number: int) -> Piece:
        steps = dict(config.options)["steps"]
        self.written[steps] = self.written.get(steps, 0) + race.ROWS
        hard = np.random.default_rng(number).normal(0, 20, race.ROWS)
        own = np.random.default_rng((number, steps)).normal(0, self.noise, race.ROWS)
        value = 30 - 2.0 * max(0, 8 - steps) + hard + own
        stats = np.stack([value, np.ones(race.ROWS)], 1)
        return Piece(stats, float(steps * race.ROWS), float(steps * race.ROWS), race.ROWS)

    def race(self, within: float) -> Race:
        return Race(lambda total: total[..., 0] / total[..., 1], within, self.measure, self.rows // race.ROWS)


class Line:
    """A space of one number: 1, 2, 4 ... 64 steps to begin with, and what lies between."""

    def start(self) -> list[DecodingConfig]:
        return [of(n) for n in (1, 2, 4, 16, 32, 64)]

    def near(self, config: DecodingConfig) -> Iterator[DecodingConfig]:
        yield from (of(n) for n in _beside(dict(config.options)["steps"], (1, 2, 4, 16, 32, 64)))

    def fits(self, config: DecodingConfig) -> bool:
        return True


def of(steps: int) -> DecodingConfig:
    return DecodingConfig.of("confidence", {"steps": steps})


def steps_of(race: Race) -> list[int]:
    return [dict(racer.config.options)["steps"] for racer in race.live()]


def test_the_cheapest_of_the_best_is_found_though_it_was_not_in_the_grid() -> None:
    bench = Bench()
    contest = bench.race(within=0.5)
    contest.run(Line(), of(64))
    left = [n for n in steps_of(contest) if n != 64]
    assert min(left) == 8
    assert 8 in bench.written and bench.written[8] == bench.rows


def test_what_is_of_no_use_is_written_for_few_rows() -> None:
    bench = Bench()
    bench.race(within=0.5).run(Line(), of(64))
    assert bench.written[1] == bench.written[2] == bench.written[4] == race.ROWS
    everything = bench.rows * len(bench.written)
    assert sum(bench.written.values()) < 0.4 * everything


def test_a_tolerance_lets_cheaper_settings_stay() -> None:
    contest = Bench().race(within=9.0)
    contest.run(Line(), of(64))
    assert min(steps_of(contest)) == 4


def test_the_models_own_setting_is_never_taken_out() -> None:
    bench = Bench()
    contest = bench.race(within=0.5)
    contest.run(Line(), of(1))
    assert 1 in steps_of(contest)
    assert bench.written[1] == bench.rows


def test_no_row_is_written_twice_and_all_that_is_left_has_seen_all() -> None:
    bench = Bench()
    contest = bench.race(within=0.5)
    contest.run(Line(), of(64))
    assert all(rows <= bench.rows for rows in bench.written.values())
    assert all(len(racer.pieces) == contest.pieces for racer in contest.live())


@pytest.mark.parametrize(
    ("points", "front"),
    [
        ([(1.0, 5.0), (2.0, 5.0), (2.0, 6.0), (3.0, 5.5)], [True, False, True, False]),
        ([(1.0, 5.0), (1.0, 5.0)], [True, True]),
    ],
)
def test_the_front_is_what_nothing_beats(points: list[tuple[float, float]], front: list[bool]) -> None:
    assert race.fronts(points) == front


@pytest.mark.parametrize(
    ("at", "tried", "expected"),
    [(4, (1, 4, 16), [2, 1, 8, 16]), (0.7, (0.5, 0.7, 0.9), [0.6, 0.5, 0.8, 0.9]), (1, (1, 2), [2])],
)
def test_neighbours_of_a_number(at: float, tried: tuple[float, ...], expected: list[float]) -> None:
    assert _beside(at, tried) == expected


def test_equal_ways_have_equal_names() -> None:
    assert DecodingConfig.of("threshold", {"threshold": 0.9, "block": 0}) == DecodingConfig.of("threshold", {})
    assert DecodingConfig.of("confidence", {"steps": 16}).id == "confidence/steps=16"  # though 16 is the default
    kept = DecodingConfig.of(
        "confidence", {"steps": 4, "block": 8}, candidates=2, cache="delayed", cache_options={"refresh": 4}
    )
    assert kept.defaults() == {
        "sampler": "confidence",
        "steps": 4,
        "options": {"block": 8},
        "candidates": 2,
        "cache": "delayed",
        "cache_options": {"refresh": 4},
    }


# ---- the space of a real model


def space(family: str, **settings: object) -> Space:
    tokenizer = Tokenizer.bytes()
    model = Model.fresh({"name": family}, tokenizer, preset("toy", tokenizer.vocab_size), paired=True)
    return Space.of(model, model.settings(max_new_tokens=12, **settings))


@pytest.mark.parametrize(
    ("family", "some", "none"),
    [
        ("masked", {"confidence", "threshold", "klass"}, {"autoregressive", "posterior"}),
        ("autoregressive", {"autoregressive"}, {"confidence", "draft_verify"}),
        ("uniform", {"posterior"}, {"confidence", "autoregressive"}),
        ("block", {"confidence", "threshold"}, {"autoregressive"}),
        ("hybrid", {"draft_verify", "autoregressive"}, {"confidence"}),
    ],
)
def test_a_space_holds_what_its_model_can_do(family: str, some: set[str], none: set[str]) -> None:
    room = space(family)
    own, grid = room.current(), room.start()
    assert some <= set(room.values) and not none & set(room.values)
    assert room.fits(own) and all(map(room.fits, grid))
    assert len(grid) == len(set(grid)) and {config.sampler for config in grid} == set(room.values)
    for config in (own, *grid[:2]):
        for other in room.near(config):
            assert other != config and other.sampler == config.sampler
            fields = ("candidates", "cache")
            ours, theirs = dict(config.options), dict(other.options)
            changed = [key for key in ours.keys() | theirs.keys() if ours.get(key) != theirs.get(key)]
            changed += [name for name in fields if getattr(config, name) != getattr(other, name)]
            changed += [""] if config.cache == other.cache and config.cache_options != other.cache_options else []
            assert len(changed) == 1


def test_approximate_caches_are_tried_where_the_exact_one_loses() -> None:
    assert {"exact", "delayed", "drift"} <= set(space("masked").caches)
    assert space("autoregressive").caches == space("block").caches == ("exact",)


def test_beams_draw_nothing() -> None:
    assert any(dict(t.options).get("beams") == 4 for t in space("autoregressive").start())
    assert not any(dict(t.options).get("beams") == 4 for t in space("autoregressive", temperature=1.0).start())


def test_any_setting_that_declares_values_to_try_is_varied() -> None:
    room = replace(space("masked"), more={"temperature": (0.0, 1.0), "length": ("auto", "fixed")})
    current = room.current()
    changed = [dict(one.more) for one in room.near(current) if one.more]
    assert changed == [{"temperature": 0.5}, {"temperature": 1.0}, {"length": "fixed"}]
    warm = next(one for one in room.near(current) if one.more.get("temperature") == 1.0)
    assert room.fits(warm) and warm.generation()["temperature"] == 1.0 == warm.defaults()["temperature"]
    assert warm != current and warm.id == f"{current.id}/temperature=1"
    back = [one for one in room.near(warm) if one.more != warm.more]
    assert current in [replace(one, more={}) for one in back] and {} in [dict(one.more) for one in back]


def test_the_space_has_the_values_that_settings_declare() -> None:
    assert space("masked").candidates == declared(Settings)["candidates"].tries
    assert space("masked").values["confidence"]["steps"] == (1, 2, 4, 8)  # of those, the ones up to 12 new tokens


def test_without_time_only_the_current_configuration_is_measured() -> None:
    """And no configuration without a score is in the results."""
    bench = Bench()
    contest = bench.race(0.5)
    contest.until = 0.0
    tried = contest.run(Line(), of(16))
    assert [racer.config for racer in tried] == [of(16)] and tried[0].pieces


def test_too_few_validation_rows_are_joined_with_the_test_rows(tmp_path: Path) -> None:
    rows = [json.dumps({"input": f"a{i}", "target": f"b{i}"}) for i in range(300)]
    (tmp_path / "all.jsonl").write_text("\n".join(rows))
    study = TuneStudy(data=str(tmp_path / "all.jsonl"))
    splits = study.load()
    joined = study.joined(splits)
    if len(splits.validation) < FEWEST_ROWS:
        assert joined is not None
        assert len(joined.validation) == len(splits.validation) + len(splits.test) and not joined.test
    assert TuneStudy(data=str(tmp_path / "all.jsonl"), test=True).joined(splits) is None
    (tmp_path / "own.validation.jsonl").write_text("\n".join(rows[:5]))
    (tmp_path / "own.test.jsonl").write_text("\n".join(rows[5:90]))
    (tmp_path / "own.train.jsonl").write_text("\n".join(rows[90:]))
    own = TuneStudy(data=str(tmp_path / "own"))
    assert own.joined(own.load()) is None  # its test rows are somebody's choice


def test_an_interval_does_not_reach_below_what_a_metric_can_be() -> None:
    stats = np.zeros((40, 2))
    stats[:, 1] = 1
    stats[0, 0] = 1.0  # one row of 40 is right
    found = interval(stats, lambda total: 100 * total[..., 0] / total[..., 1])
    assert 0 <= found.low <= found.value <= found.high
