"""Recordings of generations, measures of the order of writing, and the page that replays them."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
from pathlib import Path

import pytest

from redraft.data.tokenizer import Tokenizer
from redraft.model import Model
from redraft.presets import preset
from redraft.trace.marks import Marks
from redraft.trace.order import WritingOrder, kendall, leftmost_order, local_order, parallelism
from redraft.trace.page import render_page
from redraft.trace.recording import record
from redraft.types import FREE

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.mark.parametrize(
    ("steps", "tau", "tau_b"),
    [([1, 3, 2, 4], 2 / 3, 2 / 3), ([1, 1, 2, 2], 2 / 3, 0.816497), ([4, 3, 2, 1], -1, -1), ([1, 2, 2, 1], 0, 0)],
)
def test_kendalls_tau(steps: list[int], tau: float, tau_b: float) -> None:
    assert kendall(steps) == pytest.approx((tau, tau_b), abs=1e-6)


def test_left_to_right_one_token_a_step_is_in_order_by_every_measure() -> None:
    assert WritingOrder.of(range(1, 9)) == WritingOrder(1, 1, 1, 1, 1)


def test_measures_of_parallel_and_reversed_writing() -> None:
    assert parallelism([1, 1, 2, 2]) == 2
    assert local_order([1, 1, 2, 2]) == 1, "writes of one step count from left to right"
    assert leftmost_order([1, 1, 2, 2]) == 0.5, "of two writes in one step, one was at the leftmost open position"
    assert leftmost_order([1, 1, 2, 2], k=2) == 1
    assert local_order([4, 3, 2, 1]) == 0
    assert leftmost_order([4, 3, 2, 1]) == 0.25, "the last write has no choice"
    assert math.isnan(local_order([1])) and math.isnan(kendall([1, 1])[1])
    with pytest.raises(ValueError, match="no position"):
        parallelism([])


@pytest.mark.parametrize(
    ("family", "settings"),
    [
        ("autoregressive", {}),
        ("autoregressive", {"sampler": "autoregressive", "options": {"beams": 3}, "temperature": 0.0}),
        ("masked", {"steps": 4, "candidates": 3}),
        ("masked", {"sampler": "remdm", "steps": 6}),
        ("uniform", {"steps": 5}),
        ("expand", {"start": 4}),
        ("edit", {"start": 4}),
        ("block", {}),
    ],
)
def test_a_recording_ends_in_the_text_of_the_result(family: str, settings: dict[str, object]) -> None:
    """Also where rows are copied (beams), chosen (candidates) or grow, and where tokens are replaced."""
    tokenizer = Tokenizer.bytes()
    model = Model.fresh({"name": family}, tokenizer, preset("toy", tokenizer.vocab_size), True, seed=3)
    chosen = {"max_new_tokens": 12, "temperature": 1.0, **settings}
    one = record(model.start(["hello"], model.settings(**chosen)), family, "hello", {})  # type: ignore[arg-type]
    last = "".join(piece.text for piece in one.frames[-1].pieces)
    assert last.startswith(one.result.text)
    assert one.result.text == model.generate("hello", **chosen)[0].text  # type: ignore[arg-type]
    assert [frame.passes for frame in one.frames] == sorted(frame.passes for frame in one.frames)
    assert all(piece.step <= number for number, frame in enumerate(one.frames) for piece in frame.pieces)
    if one.result.ids:
        assert one.order is not None and one.order.parallelism >= 1
    if family == "autoregressive" and len(one.result.ids) > 2:
        assert one.order == WritingOrder(1, 1, 1, 1, 1)


def test_marks_count_rewriting() -> None:
    tokenizer = Tokenizer.bytes()
    model = Model.fresh({"name": "masked"}, tokenizer, preset("toy", tokenizer.vocab_size), True, seed=3)
    run = model.start(["hello"], model.settings(max_new_tokens=12, temperature=1.0, sampler="remdm", steps=8))
    marks, written = Marks.blank(run.canvas), [0] * run.canvas.ids.shape[1]
    for step in run:
        before = [mark.token for mark in marks.rows[0]]
        marks.note(step)
        for position, token, status in zip(step.pos.tolist(), step.token.tolist(), step.status.tolist(), strict=True):
            written[position] += status > FREE and token != before[position]
    assert [mark.writes for mark in marks.rows[0]] == written


def test_the_page_holds_every_frame_and_no_address() -> None:
    tokenizer = Tokenizer.bytes()
    model = Model.fresh({"name": "masked"}, tokenizer, preset("toy", tokenizer.vocab_size), True, seed=3)
    hostile = "</script><b>"
    one = record(model.start([hostile], model.settings(max_new_tokens=8, steps=4)), "tiny", hostile, {})
    page = render_page([one, one])
    data = page.partition('id="recordings">')[2].partition("</script>")[0]
    decoded = json.loads(data)
    assert [entry["prompt"] for entry in decoded] == [hostile, hostile]
    for entry in decoded:
        pieces: list[object] = []
        for (_, _, tokens, at, removed, changed), frame in zip(entry["frames"], one.frames, strict=True):
            pieces = [*pieces[:at], *changed, *pieces[at + removed :]]
            assert len(pieces) == len(frame.pieces) and tokens == frame.tokens
            texts = ["" if piece.status == FREE else piece.text for piece in frame.pieces]
            assert [piece[0] for piece in pieces] == texts  # type: ignore[index]
    assert "http" not in page.replace("http://www.w3.org/2000/svg", "")


@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")
def test_a_browser_replays_the_page(tmp_path: Path) -> None:
    tokenizer = Tokenizer.bytes()
    model = Model.fresh({"name": "masked"}, tokenizer, preset("toy", tokenizer.vocab_size), True, seed=3)
    one = record(model.start(["hello"], model.settings(max_new_tokens=8, steps=4)), "tiny", "hello", {})
    (tmp_path / "page.html").write_text(render_page([one]), encoding="utf-8")

    def opened(moment: str) -> str:
        arguments = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
        address = f"{(tmp_path / 'page.html').as_uri()}#{moment}"
        call = [str(CHROMIUM), *arguments, "--dump-dom", address]
        return subprocess.run(call, capture_output=True, text=True, timeout=60, check=True).stdout

    begin, end = opened("0"), opened("1")
    assert begin.count('<span class="open"') == len(one.frames[0].pieces) and "step 0 of 4" in begin
    assert 'class="open"' not in end and ">done<" in end and ">Again<" in end
