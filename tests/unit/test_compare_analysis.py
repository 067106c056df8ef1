"""From measurements to the record: choices on validation rows only, tests on test rows only."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from _studies import BEAM, FEW, GREEDY, MANY, damaged, measured, record, with_texts

from redraft.compare.analysis import analyse
from redraft.compare.measurements import Measurements, Missing
from redraft.compare.record import SCHEMA_VERSION, Record
from redraft.compare.report import render_markdown
from redraft.compare.results import SettingResult
from redraft.compare.sections import study_report
from redraft.compare.select import Selected, mark_kept, select_dropout, select_settings
from redraft.metrics.bleu import Bleu

KINDS = ("training", "likelihoods", "texts", "timings", "baselines")


def setting(found: Record, name: str) -> SettingResult:
    return next(row for row in found.settings if row.id == name)


def only(study: Measurements, kinds: set[str]) -> Measurements:
    """A study in which only these kinds of pieces are finished."""
    for name in set(KINDS) - kinds:
        setattr(study, name, None if name == "baselines" else [])
    study.missing = [Missing("the rest", "the loss is not finite")]
    return study


def test_best_and_fast_are_chosen_on_validation_rows() -> None:
    expected = {"autoregressive": Selected(BEAM.id, BEAM.id), "masked": Selected(MANY.id, MANY.id)}
    assert select_settings(measured()) == expected
    # test rows that say the opposite must not change the choice
    study = measured()
    for number, one in enumerate(study.texts):
        if one.part == "test":
            share = {BEAM.id: 0.9, MANY.id: 0.9}.get(one.setting, 0.0)
            study.texts[number] = with_texts(one, damaged(study.test, share, seed=one.seed))
    assert select_settings(study) == expected
    assert analyse(study).baseline.setting == BEAM.id


def test_the_fast_one_is_the_fastest_within_the_margin() -> None:
    wide = select_settings(measured(margin=60.0))
    assert wide == {"autoregressive": Selected(BEAM.id, GREEDY.id), "masked": Selected(MANY.id, FEW.id)}
    slow = select_settings(measured(margin=60.0, seconds={FEW.id: 0.9}))
    assert slow["masked"] == Selected(MANY.id, MANY.id)


def test_the_dropout_rate_that_is_best_on_validation_rows_is_kept() -> None:
    first, second = (run for run in measured(seeds=1).training)
    assert first.validation is not None
    good, bad = replace(first.validation, bits_per_byte=1.0), replace(first.validation, bits_per_byte=2.0)
    runs = [replace(first, dropout=0.1, validation=bad), replace(first, dropout=0.3, validation=good), second]
    assert select_dropout(runs, first.family) == 0.3
    assert [run.kept for run in mark_kept(runs, {first.family: 0.3})] == [False, True, True]
    fewer = [*runs, replace(first, seed=1, dropout=0.1, validation=bad)]
    assert select_dropout(fewer, first.family) == 0.1  # at 0.3 a seed failed
    assert select_dropout([], first.family) is None


def test_values_are_those_of_the_metric_and_differences_are_to_the_baseline() -> None:
    study = measured(seeds=1)
    found = analyse(study)
    references = [item.references for item in study.test]
    values = {}
    for name in (BEAM.id, FEW.id):
        (one,) = study.texts_of("test", name)
        values[name] = Bleu().score(one.texts, references).value
        assert setting(found, name).quality["bleu"].value == pytest.approx(values[name])
    tested = setting(found, FEW.id).against_baseline["bleu"]
    assert tested.difference == pytest.approx(values[FEW.id] - values[BEAM.id])
    assert tested.verdict == "worse" and tested.high < 0
    assert setting(found, BEAM.id).against_baseline == {}


def test_a_worse_but_faster_model_is_a_trade_off() -> None:
    found = record(damage={MANY.id: 0.35}, seconds={GREEDY.id: 0.9})
    (line,) = found.verdict.lines
    assert found.verdict.inconclusive == ()
    assert (line.quality, line.advice, line.faster_at, line.alternatives) == ("worse", "trade_off", (1, 32), ())
    assert setting(found, MANY.id).speed[0].speedup.ratio == pytest.approx(2.0)  # type: ignore[union-attr]


def test_a_model_that_another_setting_of_the_baseline_dominates_is_no_trade_off() -> None:
    """Faster than beam search, which is the best of its family, but worse and slower than greedy decoding."""
    found = record(damage={MANY.id: 0.35})
    assert found.baseline.speed_setting == BEAM.id
    (line,) = found.verdict.lines
    assert [(one.batch, one.setting, one.quality) for one in line.alternatives] == [
        (1, GREEDY.id, "better"),
        (32, GREEDY.id, "better"),
    ]
    assert all(one.speedup.ratio == pytest.approx(1.5) for one in line.alternatives)  # 0.3 s against 0.2 s
    assert (line.faster_at, line.advice, found.verdict.advice) == ((), "keep", "keep")


def test_a_setting_that_scores_lower_or_is_slower_is_no_alternative() -> None:
    (better,) = record(damage={MANY.id: 0.15, GREEDY.id: 0.5}).verdict.lines
    (faster,) = record(damage={MANY.id: 0.35}, seconds={MANY.id: 0.1}).verdict.lines
    assert better.alternatives == faster.alternatives == ()


def test_without_an_advantage_in_speed_there_are_no_alternatives() -> None:
    (line,) = record(damage={MANY.id: 0.35}, seconds={MANY.id: 5.0}).verdict.lines
    assert line.alternatives == () and line.faster_at == () and line.advice == "keep"


def test_a_better_model() -> None:
    found = record(damage={BEAM.id: 0.4, GREEDY.id: 0.5, MANY.id: 0.02})
    assert (found.verdict.lines[0].quality, found.verdict.advice) == ("better", "switch")


def test_equal_models_are_the_same_only_at_a_margin_that_the_data_can_resolve() -> None:
    equal = {BEAM.id: 0.1, MANY.id: 0.1, GREEDY.id: 0.6, FEW.id: 0.6}
    found = {margin: record(damage=equal, margin=margin, count=60) for margin in (0.05, 40.0)}
    assert found[40.0].verdict.lines[0].quality == "same"
    assert found[0.05].verdict.lines[0].quality == "undecided"


def test_a_study_is_inconclusive_if_the_baseline_does_not_beat_a_trivial_system() -> None:
    found = record(baseline=0.0)
    assert "nearest training example" in found.verdict.inconclusive[0]
    assert found.verdict.lines == () and found.verdict.advice is None
    assert record().verdict.inconclusive == ()


def test_one_seed_is_preliminary() -> None:
    one, three = record(seeds=1), record(seeds=3)
    assert one.verdict.preliminary and not three.verdict.preliminary
    assert setting(one, FEW.id).against_baseline["bleu"].preliminary
    assert one.caveats[0].startswith("Preliminary")


def test_speed_cost_and_compute() -> None:
    found = record()
    one, many = setting(found, FEW.id).speed
    assert one.speedup is not None and one.speedup.ratio == pytest.approx(6.0) and one.batch == 1
    assert many.requests_per_second == pytest.approx(32 * 4 / 0.4)
    assert many.cost_per_thousand == pytest.approx(1000 * 2.0 / (3600 * 320))
    assert many.tokens_per_second == pytest.approx(4 * 320 / 0.4)
    work = setting(found, FEW.id).work
    assert work is not None and work.flops_per_token is not None
    assert work.nfe == pytest.approx(2.0) and work.flops_per_token > 0
    assert setting(found, BEAM.id).speed[0].speedup is None


def test_p_values_are_adjusted_for_all_settings() -> None:
    tests = [row.against_baseline["bleu"] for row in record().settings if row.against_baseline]
    assert len(tests) == 3
    assert all(test.p_holm is not None and test.p_holm >= test.p_difference for test in tests)


def test_length_buckets_hold_every_item_once() -> None:
    found = record()
    assert [bucket.above for bucket in found.buckets] == [0, 10, 20]
    assert sum(bucket.rows for bucket in found.buckets) == 80
    assert all(set(bucket.values) == {BEAM.id, MANY.id} for bucket in found.buckets)


def test_a_caveat_names_the_dropout_and_weight_decay_that_all_families_had() -> None:
    study = measured()
    study.plan = replace(study.plan, train={"weight_decay": 0.05})
    study.training = [replace(run, dropout=0.3) for run in study.training]
    (note,) = (note for note in analyse(study).caveats if "dropout" in note)
    assert "dropout 0.3" in note and "weight decay 0.05" in note


def test_likelihood_of_diffusion_models_is_a_bound() -> None:
    exact, bound = record().likelihood
    assert (exact.is_bound, bound.is_bound) == (False, True)
    assert bound.bits_per_byte.value == pytest.approx(1.2 * exact.bits_per_byte.value)
    assert bound.against_baseline is not None and bound.against_baseline.verdict == "worse"  # more bits are worse
    assert any("upper bounds" in note for note in record().caveats)


@pytest.mark.parametrize(
    "kinds", [{"training"}, {"training", "likelihoods"}, {"training", "texts"}, {"texts", "timings"}, set()]
)
def test_unfinished_studies_are_analysed_too(kinds: set[str]) -> None:
    study = only(measured(), kinds)
    study.texts = [one for one in study.texts if one.part != "test"]
    found = analyse(study)
    assert found.verdict.lines == () and not found.complete and found.verdict.advice is None


def test_a_study_without_its_baseline_has_no_verdict() -> None:
    study = measured()
    study.training = [run for run in study.training if run.family != "autoregressive"]
    study.likelihoods = [one for one in study.likelihoods if one.family != "autoregressive"]
    study.texts = [one for one in study.texts if one.setting not in (GREEDY.id, BEAM.id)]
    study.timings, study.missing = [], [Missing("training autoregressive", "the loss is not finite")]
    found = analyse(study)
    assert found.verdict.lines == () and found.baseline.setting == ""


def test_speed_is_compared_with_the_fast_setting_of_the_baseline() -> None:
    """Beam search that gains less than the margin must not make the other family look fast."""
    found = record(margin=60.0)
    assert (found.baseline.setting, found.baseline.speed_setting) == (BEAM.id, GREEDY.id)
    ratios = [setting(found, name).speed[0].speedup for name in (FEW.id, BEAM.id)]
    assert [ratio and round(ratio.ratio, 3) for ratio in ratios] == [2.0, 0.333]  # against 0.2 s
    assert "autoregressive, greedy" in found.verdict.lines[0].text


def test_the_record_is_plain_json() -> None:
    found = record().to_json()
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert found["schema_version"] == SCHEMA_VERSION


# ---- families over all of their settings


def test_a_family_is_summarised_over_all_of_its_settings() -> None:
    found = record()
    assert [one.family for one in found.families] == list(found.study.families)
    for one in found.families:
        own = [row.quality[found.task.primary].value for row in found.settings if row.family == one.family]
        assert (one.low, one.high, one.settings) == (pytest.approx(min(own)), pytest.approx(max(own)), len(own))
        assert sorted(point.quality for point in one.points) == pytest.approx(sorted(own))
        assert one.parallelism is not None and one.parallelism.low <= one.parallelism.value <= one.parallelism.high
    baseline = next(one for one in found.families if one.family == found.baseline.family)
    best = found.setting(found.baseline.setting)
    assert best is not None and best.work is not None
    reached = baseline.at_equal_quality["passes"]
    assert reached is not None and reached.cost <= best.work.nfe and reached.reached > 0.5
    within = baseline.at_equal_cost["passes"]
    assert within is not None and within.value >= best.quality[found.task.primary].value - 1e-9
    assert baseline.better is None and not baseline.better_everywhere


def test_quality_that_no_setting_reaches_is_not_reached() -> None:
    found = record(damage={FEW.id: 0.9, MANY.id: 0.9})
    masked = next(one for one in found.families if one.family == "masked")
    assert set(masked.at_equal_quality.values()) == {None}
    assert "not reached" in render_markdown(study_report(found))
