"""The page in a real browser: clicks and typing, light and dark, small and large, and nothing on the console.

Needs Chromium (Debian: ``chromium``) and Python's ``playwright``; skips where one is missing.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from typing import Any

import pytest

playwright = pytest.importorskip("playwright.sync_api")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")
WAIT = 60_000  # milliseconds, for a busy machine


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as opened:
        chromium = opened.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture
def visit(browser: Any, address: str) -> Iterator[Callable[..., Any]]:
    """Opens the page; afterwards nothing may have been complained of, and nothing fetched from elsewhere."""
    said: list[str] = []
    contexts: list[Any] = []

    def opened(tab: str = "focus", theme: str = "light", width: int = 1100, **options: Any) -> Any:
        context = browser.new_context(
            viewport={"width": width, "height": 820}, color_scheme=theme, reduced_motion="reduce", **options
        )
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(WAIT)
        page.on("console", lambda message: said.append(message.text) if message.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("request", lambda request: said.append(request.url) if not request.url.startswith(address) else None)
        page.goto(f"{address}/#{tab}")
        page.wait_for_selector("#focus-model option", state="attached")
        return page

    yield opened
    for context in contexts:
        context.close()
    assert [line for line in said if not line.startswith("data:")] == []


def finished(page: Any, canvas: str) -> str:
    """The text on a canvas once nothing on it is open."""
    page.wait_for_function(
        "(name) => { const c = document.querySelector(name);"
        " return c.querySelector('.sealed') && !c.querySelector('.free, .draft, i.slot'); }",
        arg=canvas,
    )
    return str(page.locator(canvas).inner_text())


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_a_text_comes_into_focus_and_can_be_gone_back_in(visit: Callable[..., Any], theme: str) -> None:
    page = visit(theme=theme)
    assert page.evaluate("document.documentElement.dataset.theme") == theme
    page.select_option("#focus-model", "text-masked")
    page.fill("#focus-prompt", "the cat sat")
    page.press("#focus-prompt", "Control+Enter")
    text = finished(page, "#focus-canvas")
    assert text
    assert "passes" in page.locator("#focus-numbers").inner_text()
    steps = int(page.get_attribute("#scrub", "max"))
    assert steps >= 1
    page.locator("#scrub").focus()
    page.keyboard.press("Home")
    assert page.locator("#focus-canvas .free").count() > 0
    page.keyboard.press("End")
    assert page.locator("#focus-canvas").inner_text() == text
    page.locator("#focus-canvas .sealed").first.focus()
    assert "written in step" in page.locator("#tip").inner_text()
    page.check("#by-order")
    assert page.locator("#legend-low").inner_text() == "last"


def test_tabs_by_keyboard_and_a_text_left_to_right(visit: Callable[..., Any]) -> None:
    page = visit()
    page.locator("#tab-focus").focus()
    page.keyboard.press("ArrowRight")
    assert page.is_visible("#race") and not page.is_visible("#focus")
    page.keyboard.press("ArrowLeft")
    page.select_option("#focus-model", "pairs-autoregressive")
    assert page.is_disabled("#steps")
    page.click("#focus-run")
    finished(page, "#focus-canvas")


def test_a_race_is_run_and_judged(visit: Callable[..., Any]) -> None:
    page = visit("race")
    page.select_option("#left-model", "pairs-autoregressive")
    page.select_option("#right-model", "pairs-masked")
    page.click("#race-run")
    page.wait_for_function("() => document.getElementById('race-verdict').textContent.includes('faster')")
    for lane in ("#lane-left", "#lane-right"):
        assert "tokens/s" in page.locator(f"{lane} .numbers").inner_text()
    assert page.locator(".lane.first").count() >= 1
    assert "replayed" in page.locator("#race-clock").inner_text()  # that speed is the replay's, not a model's


def test_what_is_selected_is_written_anew_and_the_rest_stays(visit: Callable[..., Any]) -> None:
    page = visit("infill")
    page.select_option("#infill-model", "text-masked")
    page.fill("#infill-text", "the cat sat on a mat")
    page.evaluate("() => { const t = document.getElementById('infill-text'); t.focus(); t.setSelectionRange(4, 11); }")
    page.keyboard.press("Control+Enter")
    page.wait_for_function("() => document.getElementById('infill-numbers').textContent.includes('pass')")
    text = page.input_value("#infill-text")
    assert text.startswith("the") and text.endswith(" on a mat") and "[[" not in text
    page.click("#infill-undo")
    assert page.input_value("#infill-text") == "the cat sat on a mat"


def test_a_story_goes_on_and_offers_ways(visit: Callable[..., Any]) -> None:
    page = visit("story")
    page.select_option("#story-model", "text-autoregressive")
    page.fill("#story-line", "the cat")
    page.press("#story-line", "Control+Enter")
    page.wait_for_selector("#story-text .model")
    page.click("#story-three")
    page.wait_for_selector("#story-ways button")
    assert page.locator("#story-ways button").count() == 3
    page.locator("#story-ways button").first.click()
    page.wait_for_function("() => document.querySelectorAll('#story-text .model').length === 2")
    page.click("#story-undo")
    assert page.locator("#story-text .model").count() == 1


def test_code_is_completed_by_tab(visit: Callable[..., Any]) -> None:
    page = visit("code")
    page.select_option("#code-model", "text-masked")
    page.click("#code-text")
    before = page.input_value("#code-text")
    page.keyboard.press("Tab")
    page.wait_for_function("() => document.getElementById('code-numbers').textContent.includes('pass')")
    page.keyboard.press("Tab")
    after = page.input_value("#code-text")
    assert len(after) >= len(before)
    page.keyboard.press("Escape")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") != "code-text"


def test_code_is_completed_by_touch(visit: Callable[..., Any]) -> None:
    page = visit("code", width=380, is_mobile=True, has_touch=True)
    page.select_option("#code-model", "text-masked")
    page.fill("#code-text", "the cat sat")
    assert page.is_disabled("#code-drop")
    page.tap("#code-run")
    page.wait_for_function("() => !document.getElementById('code-drop').disabled")
    shown = page.locator("#code-ghost").inner_text()
    assert page.input_value("#code-text") == "the cat sat"
    page.tap("#code-drop")
    assert page.is_disabled("#code-drop") and page.input_value("#code-text") == "the cat sat"
    page.tap("#code-run")
    page.wait_for_function("() => !document.getElementById('code-drop').disabled")
    page.tap("#code-run")
    assert page.input_value("#code-text") == shown


@pytest.mark.parametrize(
    ("tab", "run", "canvas"), [("focus", "#focus-run", "#focus-canvas"), ("race", "#race-run", "")]
)
def test_a_stream_that_breaks_off_is_no_finished_text(
    visit: Callable[..., Any], tab: str, run: str, canvas: str
) -> None:
    page = visit(tab)
    answer = {"status": 200, "content_type": "text/event-stream", "body": ": ping\n\n"}
    page.route("**/v1/completions", lambda route: route.fulfill(**answer))
    page.click(run)
    page.wait_for_selector("#trouble:not([hidden])")
    assert "broke off" in page.locator("#trouble").inner_text()
    assert page.locator(f"#{tab} i.slot").count() == 0  # nothing pretends to be under way


def test_a_story_keeps_only_what_was_finished(visit: Callable[..., Any]) -> None:
    page = visit("story")
    page.select_option("#story-model", "text-autoregressive")
    page.fill("#story-line", "the cat")
    body = 'data: {"choices": [{"text": " sat"}]}\n\n'
    page.route("**/v1/completions", lambda r: r.fulfill(status=200, content_type="text/event-stream", body=body))
    page.click("#story-run")
    page.wait_for_selector("#trouble:not([hidden])")
    assert page.locator("#story-text").inner_text() == "the cat"
    assert page.locator("#story-text .canvas").count() == 0


def test_without_a_key_the_page_says_where_to_enter_one(browser: Any, address: str) -> None:
    context = browser.new_context()
    page = context.new_page()
    page.route("**/v1/models", lambda route: route.fulfill(status=401, json={"error": {"message": "no key"}}))
    page.goto(address)
    page.wait_for_selector("#trouble:not([hidden])", timeout=WAIT)
    assert "API key" in page.locator("#trouble").inner_text()
    page.click("#focus-run")
    page.wait_for_function("() => document.getElementById('trouble').textContent.includes('No model')", timeout=WAIT)
    page.unroute("**/v1/models")
    page.click("#key-button")
    page.fill("#key", "a key of mine")
    page.keyboard.press("Enter")
    page.wait_for_selector("#focus-model option", state="attached", timeout=WAIT)
    assert page.is_hidden("#trouble")
    context.close()


def test_errors_are_told_on_the_page(visit: Callable[..., Any], browser: Any, address: str) -> None:
    context = browser.new_context()
    page = context.new_page()
    page.goto(address)
    page.wait_for_selector("#focus-model option", state="attached")
    page.fill("#focus-prompt", "cat " * 400)
    page.click("#focus-run")
    page.wait_for_selector("#trouble:not([hidden])", timeout=WAIT)
    assert "context" in page.locator("#trouble").inner_text()
    context.close()


def test_on_a_phone_nothing_hangs_over(visit: Callable[..., Any]) -> None:
    page = visit(width=380, is_mobile=True, has_touch=True)
    for tab in ("focus", "race", "infill", "story", "code"):
        page.tap(f"#tab-{tab}")
        assert page.evaluate("document.documentElement.scrollWidth") <= 380, tab
    page.evaluate("() => { document.getElementById('race-timeline').hidden = false; }")
    page.evaluate(
        "() => { document.getElementById('race-clock').textContent = '35 ms · replayed in 114× slow motion'; }"
    )
    page.tap("#tab-race")
    assert page.locator("#race-scrub").bounding_box()["width"] > 100  # long enough for a thumb
