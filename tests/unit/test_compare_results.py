"""From cells to results: choices on validation rows only, tests on test rows only, void where nothing was learnt."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from _studies import BEAM, FEW, GREEDY, MANY, damaged, record

from redraft.compare.results import SCHEMA, picks, summarise
from redraft.metrics.bleu import Bleu


def setting(found: dict[str, Any], name: str) -> dict[str, Any]:
    return next(row for row in found["settings"] if row["id"] == name)


def test_best_and_fast_are_chosen_on_validation_rows() -> None:
    study = record()
    assert picks(study) == {"autoregressive": (BEAM.id, BEAM.id), "masked": (MANY.id, MANY.id)}
    # make the test rows say the opposite: the choice must not move
    for cell in study.of("texts", part="test"):
        share = {BEAM.id: 0.9, MANY.id: 0.9}.get(cell["id"], 0.0)
        cell["texts"] = damaged(study.test, share, seed=cell["seed"])
    assert picks(study)["masked"] == (MANY.id, MANY.id)
    assert summarise(study)["baseline"]["setting"] == BEAM.id


def test_the_fast_one_is_the_quickest_within_the_margin() -> None:
    wide = record(margin=60.0)
    assert picks(wide) == {"autoregressive": (BEAM.id, GREEDY.id), "masked": (MANY.id, FEW.id)}
    assert picks(record(margin=60.0, seconds={FEW.id: 0.9}))["masked"] == (MANY.id, MANY.id)


def test_values_are_those_of_the_metric_and_differences_are_test_minus_baseline() -> None:
    study = record(seeds=1)
    found = summarise(study)
    references = [item.references for item in study.test]
    values = {}
    for name in (BEAM.id, FEW.id):
        (cell,) = study.of("texts", part="test", id=name)
        values[name] = Bleu().score(cell["texts"], references).value
        assert setting(found, name)["quality"]["bleu"]["value"] == pytest.approx(values[name])
    tested = setting(found, FEW.id)["against_baseline"]["bleu"]
    assert tested["difference"] == pytest.approx(values[FEW.id] - values[BEAM.id])
    assert tested["verdict"] == "worse" and tested["high"] < 0
    assert setting(found, BEAM.id)["against_baseline"] == {}


def test_a_worse_but_faster_model() -> None:
    found = summarise(record(damage={MANY.id: 0.35}, seconds={GREEDY.id: 0.9}))
    lines = found["verdict"]["lines"]
    assert not found["verdict"]["void"] and lines
    assert lines[0]["quality"] == "worse" and "2.0x faster at batch 1" in lines[0]["text"]
    assert "trade" in found["verdict"]["advice"] and lines[0]["rivals"] == []


def test_a_model_that_another_setting_of_the_baseline_dominates_is_no_trade() -> None:
    """Faster than beam search, which is the best of its family, but worse and slower than greedy decoding."""
    found = summarise(record(damage={MANY.id: 0.35}))
    assert found["baseline"]["speed_setting"] == BEAM.id
    (line,) = found["verdict"]["lines"]
    assert [(r["batch"], r["setting"], r["quality"]) for r in line["rivals"]] == [
        (1, GREEDY.id, "better"),
        (32, GREEDY.id, "better"),
    ]
    assert all(r["ratio"] == pytest.approx(1.5) for r in line["rivals"])  # 0.3 s against 0.2 s
    assert "greedy is better and faster" in found["verdict"]["headline"]
    assert found["verdict"]["advice"].startswith("Keep autoregressive") and "trade" not in found["verdict"]["advice"]


def test_a_setting_that_scores_lower_or_is_slower_is_no_rival() -> None:
    (better,) = summarise(record(damage={MANY.id: 0.15, GREEDY.id: 0.5}))["verdict"]["lines"]
    (quicker,) = summarise(record(damage={MANY.id: 0.35}, seconds={MANY.id: 0.1}))["verdict"]["lines"]
    assert better["rivals"] == quicker["rivals"] == []


def test_where_a_setting_is_no_faster_than_the_baseline_nothing_is_said_of_others() -> None:
    (line,) = summarise(record(damage={MANY.id: 0.35}, seconds={MANY.id: 5.0}))["verdict"]["lines"]
    assert line["rivals"] == [] and "But" not in line["text"] and "slower at every batch size" in line["advice"]


def test_a_better_model() -> None:
    found = summarise(record(damage={BEAM.id: 0.4, GREEDY.id: 0.5, MANY.id: 0.02}))
    assert found["verdict"]["lines"][0]["quality"] == "better"
    assert found["verdict"]["advice"].startswith("Choose masked")


def test_equal_models_are_the_same_only_at_a_margin_the_data_can_hold() -> None:
    equal = {BEAM.id: 0.1, MANY.id: 0.1, GREEDY.id: 0.6, FEW.id: 0.6}
    found = {m: summarise(record(damage=equal, margin=m, count=60)) for m in (0.05, 40.0)}
    assert found[40.0]["verdict"]["lines"][0]["quality"] == "same"
    assert found[0.05]["verdict"]["lines"][0]["quality"] == "undecided"


def test_void_where_the_baseline_does_not_beat_a_floor() -> None:
    found = summarise(record(floor=0.0))
    assert "nearest training example" in found["verdict"]["void"][0]
    assert found["verdict"]["headline"].startswith("Void") and found["verdict"]["lines"] == []
    assert summarise(record())["verdict"]["void"] == []


def test_one_seed_is_preliminary() -> None:
    one, three = summarise(record(seeds=1)), summarise(record(seeds=3))
    assert one["verdict"]["preliminary"] and one["caveats"][0].startswith("Preliminary")
    assert not three["verdict"]["preliminary"]
    assert setting(one, FEW.id)["against_baseline"]["bleu"]["preliminary"]


def test_speed_cost_and_compute() -> None:
    found = summarise(record())
    one, many = setting(found, FEW.id)["speed"]
    assert one["speedup"]["ratio"] == pytest.approx(6.0) and one["batch"] == 1
    assert many["requests_per_second"] == pytest.approx(32 * 4 / 0.4)
    assert many["cost_per_thousand"] == pytest.approx(1000 * 2.0 / (3600 * 320))
    assert many["tokens_per_second"] == pytest.approx(4 * 320 / 0.4)
    work = setting(found, FEW.id)["work"]
    assert work["nfe"] == pytest.approx(2.0) and work["flops_per_token"] > 0
    assert setting(found, BEAM.id)["speed"][0]["speedup"] is None


def test_p_values_are_adjusted_for_all_settings() -> None:
    tests = [s["against_baseline"]["bleu"] for s in summarise(record())["settings"] if s["against_baseline"]]
    assert len(tests) == 3 and all(t["p_holm"] >= t["p_difference"] for t in tests)


def test_length_buckets_hold_every_item_once() -> None:
    found = summarise(record())
    assert [b["above"] for b in found["buckets"]] == [0, 10, 20]
    assert sum(b["rows"] for b in found["buckets"]) == 80
    assert all(set(b["values"]) == {BEAM.id, MANY.id} for b in found["buckets"])


def test_the_report_says_that_one_dropout_for_all_can_favour_a_family() -> None:
    study = record()
    study.plan = replace(study.plan, train={"dropout": 0.3, "weight_decay": 0.05})
    (note,) = (note for note in summarise(study)["caveats"] if "dropout" in note)
    assert "the same dropout 0.3 and weight decay 0.05" in note and "favour" in note


def test_likelihood_says_what_is_a_bound() -> None:
    exact, bound = summarise(record())["likelihood"]
    assert (exact["is_bound"], bound["is_bound"]) == (False, True)
    assert bound["value"] == pytest.approx(1.2 * exact["value"])
    assert bound["against_baseline"]["verdict"] == "worse"  # more bits are worse
    assert any("upper bounds" in note for note in summarise(record())["caveats"])


@pytest.mark.parametrize("kinds", [{"train"}, {"train", "likelihood"}, {"train", "texts"}, {"texts", "race"}, set()])
def test_partial_studies_summarise_too(kinds: set[str]) -> None:
    study = record()
    study.cells = [c for c in study.cells if c["kind"] in kinds and c.get("part") != "test"]
    study.missing = [{"what": "the rest", "why": "cut short"}]
    found = summarise(study)
    assert found["verdict"]["lines"] == [] and not found["complete"]
    assert "unfinished" in found["verdict"]["headline"]


def test_a_study_without_its_baseline_has_no_verdict() -> None:
    study = record()
    study.cells = [c for c in study.cells if c.get("family") != "autoregressive" and c["kind"] != "race"]
    study.missing = [{"what": "training autoregressive", "why": "the loss is not finite"}]
    found = summarise(study)
    assert found["verdict"]["lines"] == [] and found["baseline"]["setting"] == ""


def test_results_are_plain_json() -> None:
    found = summarise(record())
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert found["schema"] == SCHEMA


def test_speed_is_compared_with_the_fast_way_of_the_baseline() -> None:
    """Beam search that gains less than the margin must not make the rival look quick."""
    found = summarise(record(margin=60.0))
    assert found["baseline"] == {"family": "autoregressive", "setting": BEAM.id, "speed_setting": GREEDY.id}
    assert setting(found, FEW.id)["speed"][0]["speedup"]["ratio"] == pytest.approx(2.0)  # 0.2 s against 0.1 s
    assert setting(found, BEAM.id)["speed"][0]["speedup"]["ratio"] == pytest.approx(1 / 3)
    assert "speed and compute against autoregressive, greedy" in found["verdict"]["headline"]
