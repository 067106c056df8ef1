"""The web page in a real browser: mouse and keyboard, light and dark, small and large, without console messages.

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
    """Opens the page. At the end there must be no console message and no request to another host."""
    messages: list[str] = []
    contexts: list[Any] = []

    def opened(tab: str = "generate", theme: str = "light", width: int = 1100, **options: Any) -> Any:
        context = browser.new_context(
            viewport={"width": width, "height": 820}, color_scheme=theme, reduced_motion="reduce", **options
        )
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(WAIT)
        page.on("console", lambda one: messages.append(one.text) if one.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: messages.append(str(error)))
        page.on("request", lambda one: messages.append(one.url) if not one.url.startswith(address) else None)
        page.goto(f"{address}/#{tab}")
        page.wait_for_selector("#generate-model option", state="attached")
        return page

    yield opened
    for context in contexts:
        context.close()
    assert [line for line in messages if not line.startswith("data:")] == []


def finished(page: Any, canvas: str) -> str:
    """The text of a canvas when all of it is final."""
    page.wait_for_function(
        "(name) => { const c = document.querySelector(name);"
        " return c.querySelector('.sealed') && !c.querySelector('.free, .draft, i.slot'); }",
        arg=canvas,
    )
    return str(page.locator(canvas).inner_text())


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_generation_is_shown_step_by_step(visit: Callable[..., Any], theme: str) -> None:
    page = visit(theme=theme)
    assert page.evaluate("document.documentElement.dataset.theme") == theme
    page.select_option("#generate-model", "text-masked")
    page.fill("#generate-prompt", "the cat sat")
    page.press("#generate-prompt", "Control+Enter")
    text = finished(page, "#generate-canvas")
    assert text
    assert "passes" in page.locator("#generate-numbers").inner_text()
    steps = int(page.get_attribute("#scrub", "max"))
    assert steps >= 1
    page.locator("#scrub").focus()
    page.keyboard.press("Home")
    assert page.locator("#generate-canvas .free").count() > 0
    page.keyboard.press("End")
    assert page.locator("#generate-canvas").inner_text() == text
    page.locator("#generate-canvas .sealed").first.focus()
    assert "generated in step" in page.locator("#tip").inner_text()
    page.check("#by-order")
    assert page.locator("#legend-low").inner_text() == "last"


def test_tabs_by_keyboard_and_left_to_right_generation(visit: Callable[..., Any]) -> None:
    page = visit()
    page.locator("#tab-generate").focus()
    page.keyboard.press("ArrowRight")
    assert page.is_visible("#race") and not page.is_visible("#generate")
    page.keyboard.press("ArrowLeft")
    page.select_option("#generate-model", "pairs-autoregressive")
    assert page.is_disabled("#steps")
    page.click("#generate-run")
    finished(page, "#generate-canvas")


def test_a_race_compares_two_models(visit: Callable[..., Any]) -> None:
    page = visit("race")
    page.select_option("#left-model", "pairs-autoregressive")
    page.select_option("#right-model", "pairs-masked")
    page.click("#race-run")
    page.wait_for_function("() => document.getElementById('race-verdict').textContent.includes('faster')")
    for lane in ("#lane-left", "#lane-right"):
        assert "tokens/s" in page.locator(f"{lane} .numbers").inner_text()
    assert page.locator(".lane.first").count() >= 1
    assert "replayed" in page.locator("#race-clock").inner_text()  # the speed shown is that of the replay


def test_infilling_replaces_the_selection_only(visit: Callable[..., Any]) -> None:
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


def test_a_story_is_continued_and_has_suggestions(visit: Callable[..., Any]) -> None:
    page = visit("story")
    page.select_option("#story-model", "text-autoregressive")
    page.fill("#story-line", "the cat")
    page.press("#story-line", "Control+Enter")
    page.wait_for_selector("#story-text .model")
    page.click("#story-suggest")
    page.wait_for_selector("#story-suggestions button")
    assert page.locator("#story-suggestions button").count() == 3
    page.locator("#story-suggestions button").first.click()
    page.wait_for_function("() => document.querySelectorAll('#story-text .model').length === 2")
    page.click("#story-undo")
    assert page.locator("#story-text .model").count() == 1


def test_code_completion_by_keyboard(visit: Callable[..., Any]) -> None:
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


def test_code_completion_by_touch(visit: Callable[..., Any]) -> None:
    page = visit("code", width=380, is_mobile=True, has_touch=True)
    page.select_option("#code-model", "text-masked")
    page.fill("#code-text", "the cat sat")
    assert page.is_disabled("#code-dismiss")
    page.tap("#code-run")
    page.wait_for_function("() => !document.getElementById('code-dismiss').disabled")
    shown = page.locator("#code-overlay").inner_text()
    assert page.input_value("#code-text") == "the cat sat"
    page.tap("#code-dismiss")
    assert page.is_disabled("#code-dismiss") and page.input_value("#code-text") == "the cat sat"
    page.tap("#code-run")
    page.wait_for_function("() => !document.getElementById('code-dismiss').disabled")
    page.tap("#code-run")
    assert page.input_value("#code-text") == shown


@pytest.mark.parametrize(
    ("tab", "run", "canvas"), [("generate", "#generate-run", "#generate-canvas"), ("race", "#race-run", "")]
)
def test_an_incomplete_stream_is_an_error(visit: Callable[..., Any], tab: str, run: str, canvas: str) -> None:
    page = visit(tab)
    answer = {"status": 200, "content_type": "text/event-stream", "body": ": ping\n\n"}
    page.route("**/v1/completions", lambda route: route.fulfill(**answer))
    page.click(run)
    page.wait_for_selector("#error:not([hidden])")
    assert "ended before" in page.locator("#error").inner_text()
    assert page.locator(f"#{tab} i.slot").count() == 0  # nothing looks as if it were running


def test_a_story_keeps_complete_passages_only(visit: Callable[..., Any]) -> None:
    page = visit("story")
    page.select_option("#story-model", "text-autoregressive")
    page.fill("#story-line", "the cat")
    body = 'data: {"choices": [{"text": " sat"}]}\n\n'
    page.route("**/v1/completions", lambda r: r.fulfill(status=200, content_type="text/event-stream", body=body))
    page.click("#story-run")
    page.wait_for_selector("#error:not([hidden])")
    assert page.locator("#story-text").inner_text() == "the cat"
    assert page.locator("#story-text .canvas").count() == 0


def test_without_an_api_key_the_page_asks_for_one(browser: Any, address: str) -> None:
    context = browser.new_context()
    page = context.new_page()
    page.route("**/v1/models", lambda route: route.fulfill(status=401, json={"error": {"message": "no key"}}))
    page.goto(address)
    page.wait_for_selector("#error:not([hidden])", timeout=WAIT)
    assert "API key" in page.locator("#error").inner_text()
    page.click("#generate-run")
    page.wait_for_function("() => document.getElementById('error').textContent.includes('No model')", timeout=WAIT)
    page.unroute("**/v1/models")
    page.click("#key-button")
    page.fill("#key", "a key of mine")
    page.keyboard.press("Enter")
    page.wait_for_selector("#generate-model option", state="attached", timeout=WAIT)
    assert page.is_hidden("#error")
    context.close()


def test_errors_are_shown_on_the_page(visit: Callable[..., Any], browser: Any, address: str) -> None:
    context = browser.new_context()
    page = context.new_page()
    page.goto(address)
    page.wait_for_selector("#generate-model option", state="attached")
    page.fill("#generate-prompt", "cat " * 400)
    page.click("#generate-run")
    page.wait_for_selector("#error:not([hidden])", timeout=WAIT)
    assert "context" in page.locator("#error").inner_text()
    context.close()


def test_on_a_phone_the_page_fits_the_screen(visit: Callable[..., Any]) -> None:
    page = visit(width=380, is_mobile=True, has_touch=True)
    for tab in ("generate", "race", "infill", "story", "code"):
        page.tap(f"#tab-{tab}")
        assert page.evaluate("document.documentElement.scrollWidth") <= 380, tab
    page.evaluate("() => { document.getElementById('race-timeline').hidden = false; }")
    page.evaluate(
        "() => { document.getElementById('race-clock').textContent = '35 ms · replayed in 114× slow motion'; }"
    )
    page.tap("#tab-race")
    assert page.locator("#race-scrub").bounding_box()["width"] > 100  # wide enough for a thumb


def test_warnings_of_an_answer_are_shown(visit: Callable[..., Any]) -> None:
    page = visit()
    assert page.is_hidden("#warnings")
    ask = (
        "(messages) => import('/api.js')"
        ".then((api) => api.ask('/v1/chat/completions', {model: 'pairs-masked', messages}))"
    )
    last = {"role": "user", "content": "the cat"}
    page.evaluate(ask, [{"role": "system", "content": "be kind"}, last])
    assert "the system message" in page.locator("#warnings").inner_text()
    page.evaluate(ask, [last])
    assert page.is_hidden("#warnings")
