"""Tools: every call is valid, in the format of OpenAI's clients, complete and streamed; mistakes are named."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from redraft.constraints import satisfied
from redraft.data.tokenizer import Tokenizer
from redraft.data.tools import PLAIN, CallForm
from redraft.errors import UserError
from redraft.model import Model
from redraft.presets import preset
from redraft.serve.tool_calls import CallReader
from tests import constrained
from tests.serve.conftest import WORDS, listening

CHAT = "/v1/chat/completions"
WEATHER = {
    "type": "object",
    "properties": {"city": {"enum": ["Rome", 'a "b" {c}']}, "days": {"type": "integer", "minimum": 1, "maximum": 7}},
    "required": ["city"],
    "additionalProperties": False,
}
TOOLS = [
    {"type": "function", "function": {"name": "weather", "description": "Of a city.", "parameters": WEATHER}},
    {"type": "function", "function": {"name": "now"}},
]
SCHEMAS = {"weather": WEATHER, "now": {"type": "object", "properties": {}, "additionalProperties": False}}
ASKED = {"messages": [{"role": "user", "content": "the cat"}], "tools": TOOLS, "max_tokens": 60, "temperature": 1}


@pytest.fixture(scope="module")
def openai(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A client of untrained models whose context has room for descriptions of tools."""
    library = pytest.importorskip("openai")
    tokenizer, folders = Tokenizer.train([*WORDS * 20, json.dumps(TOOLS)], 300), {}
    for name, family, paired in (
        ("masked", "masked", False),
        ("pairs", "masked", True),
        ("ar", "autoregressive", False),
    ):
        shape = preset("toy", tokenizer.vocab_size, dim=32, max_length=1024)
        model = Model.fresh({"name": family}, tokenizer, shape, paired, seed=1)
        folders[name] = tmp_path_factory.mktemp("tools") / name
        model.save(folders[name])
    with listening(folders, compile_timeout=300.0) as address:  # the first one starts a process
        yield library.OpenAI(base_url=f"{address}/v1", api_key="unused", max_retries=0)


def valid(call: Any) -> bool:
    arguments = json.loads(call.function.arguments)
    return call.type == "function" and bool(call.id) and constrained.conforms(arguments, SCHEMAS[call.function.name])


@pytest.mark.parametrize("model", ["masked", "pairs", "ar"])
def test_calls_are_valid_complete_and_streamed(openai: Any, model: str) -> None:
    for seed in (3,):
        asked = {"model": model, **ASKED, "tool_choice": "required", "seed": seed, "n": 2}
        whole = openai.chat.completions.create(**asked)
        for choice in whole.choices:
            assert choice.finish_reason == "tool_calls" and choice.message.content is None
            assert choice.message.tool_calls and all(map(valid, choice.message.tool_calls))
        with openai.chat.completions.stream(**asked) as stream:
            for _ in stream:
                pass
            streamed = stream.get_final_completion()
        for one, other in zip(whole.choices, streamed.choices, strict=True):
            assert other.finish_reason == "tool_calls" and not other.message.content
            assert [(c.function.name, c.function.arguments) for c in one.message.tool_calls] == [
                (c.function.name, c.function.arguments) for c in other.message.tool_calls
            ]


def test_one_call_of_the_tool_that_is_named(openai: Any) -> None:
    named = {"type": "function", "function": {"name": "now"}}
    for model in ("masked", "ar"):
        choice = openai.chat.completions.create(model=model, **ASKED, tool_choice=named).choices[0]
        (call,) = choice.message.tool_calls
        assert (call.function.name, call.function.arguments, choice.finish_reason) == ("now", "{}", "tool_calls")
        single = openai.chat.completions.create(
            model=model, **ASKED, tool_choice="required", parallel_tool_calls=False, seed=4
        )
        assert len(single.choices[0].message.tool_calls) == 1


@pytest.mark.parametrize("stream", [False, True])
def test_a_model_may_answer_with_text(openai: Any, stream: bool) -> None:
    """Untrained models rarely write the marker of a call. Without tools, or with none, they answer as without them."""
    asked = {"model": "masked", **ASKED, "max_tokens": 20, "seed": 5}
    for more in ({}, {"tool_choice": "auto"}, {"tool_choice": "none"}):
        if stream:
            parts = list(openai.chat.completions.create(**asked, **more, stream=True))
            content = "".join(part.choices[0].delta.content or "" for part in parts)
            finish = parts[-1].choices[0].finish_reason
        else:
            choice = openai.chat.completions.create(**asked, **more).choices[0]
            content, finish = choice.message.content, choice.finish_reason
        assert finish in ("stop", "length") and content is not None and not content.startswith(PLAIN.begin)
    bare = {key: value for key, value in asked.items() if key != "tools"}
    plain = openai.chat.completions.create(**bare).choices[0].message.content
    assert openai.chat.completions.create(**asked, tool_choice="none").choices[0].message.content == plain


def test_results_of_tools_belong_to_the_conversation(openai: Any) -> None:
    call = openai.chat.completions.create(model="ar", **ASKED, tool_choice="required").choices[0].message
    results = [{"role": "tool", "tool_call_id": one.id, "content": "sunny"} for one in call.tool_calls]
    talk = [*ASKED["messages"], call, *results]
    for more in ({}, {"tools": TOOLS}):
        answer = openai.chat.completions.create(model="ar", messages=talk, max_tokens=20, **more)
        assert answer.choices[0].finish_reason in ("stop", "length", "tool_calls")
        assert answer.usage.prompt_tokens > 40


def test_what_a_model_does_not_read_is_told(openai: Any) -> None:
    """A model of prompt and answer without a template gets the last message alone, without descriptions of tools."""
    talk = [{"role": "system", "content": "Be brief."}, *ASKED["messages"]]
    for messages, places, words in ((talk, [0], "the system message and "), (ASKED["messages"], [], "")):
        asked = {"model": "pairs", **ASKED, "messages": messages, "tool_choice": "required"}
        (said,) = openai.chat.completions.create(**asked).warnings
        assert said["messages"] == places and f"{words}the descriptions of the tools" in said["message"]
    answer = openai.chat.completions.create(**{"model": "masked", **ASKED, "messages": talk, "tool_choice": "required"})
    assert "warnings" not in (answer.model_extra or {})


CALL = {"id": "1", "type": "function", "function": {"name": "a", "arguments": "{}"}}


def function(parameters: dict[str, Any]) -> dict[str, Any]:
    return {"type": "function", "function": {"name": "a", "parameters": parameters}}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"tools": [TOOLS[0], TOOLS[0]]}, "same name"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools.0.function.name"),
        ({"tools": [{"type": "search"}]}, "tools.0.type"),
        ({"tool_choice": {"type": "function", "function": {"name": "wether"}}}, "Did you mean 'weather'"),
        ({"tools": None, "tool_choice": "required"}, "there are no 'tools'"),
        ({"stop": "x"}, "'stop' can't be combined"),
        ({"response_format": {"type": "regex", "pattern": "a"}}, "'response_format' can't be combined"),
        ({"tools": [function({"type": "array"})]}, "of an object"),
        ({"tools": [function({"not": {}})]}, "of 'a': keyword 'not'"),
        ({"max_tokens": 3, "tool_choice": "required", "tools": [{"type": "function", "function": {"name": "a"}}]},
         "needs at least"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "tool_call_id"),
        ({"messages": [{"role": "user", "content": "x", "tool_calls": [CALL]}]}, "has no 'tool_calls'"),
        ({"messages": [{"role": "assistant", "tool_calls": [{**CALL, "function": {"name": "a"}}]}]}, "arguments"),
    ],
)  # fmt: skip
def test_mistakes_are_named(client: Any, changes: dict[str, Any], words: str) -> None:
    answer = client.post(CHAT, json={"model": "pairs-masked", **ASKED, **changes})
    assert answer.status_code == 400 and words in answer.json()["error"]["message"], answer.text


FORMS = [
    PLAIN,
    CallForm("", "", "", arguments="parameters"),
    CallForm("[", ", ", "]"),
    CallForm("calls: ", "\n", "\nend"),
]
ARGUMENTS = ['{"a":"}\\"{[","b":[{"c":1},2]}', "{}", '{"é":"\\\\"}']


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("size", [1, 2, 7, 1000])
def test_calls_are_read_from_pieces_of_any_size(form: CallForm, size: int) -> None:
    calls = [("one", ARGUMENTS[0]), ('t"wo', ARGUMENTS[1]), ("one", ARGUMENTS[2])][: 3 if form.between else 1]
    text, reader = form.write(calls), CallReader(form)
    parts = [reader.feed(text[at : at + size]) for at in range(0, len(text), size)] + [reader.feed("", final=True)]
    found: dict[int, list[str]] = {}
    for part in parts:
        assert "content" not in part
        for entry in part.get("tool_calls", ()):
            if "id" in entry:
                found[entry["index"]] = [entry["function"]["name"], ""]
            found[entry["index"]][1] += entry["function"]["arguments"]
    assert [tuple(found[at]) for at in range(len(calls))] == calls
    assert [(call.name, call.arguments) for call in reader.calls] == calls


@pytest.mark.parametrize("text", ["", "<", "<tool_cal", "<tool_call>", "hello", " <tool_call>\n{", "{"])
def test_text_that_is_no_call_is_kept(text: str) -> None:
    for size in (1, 100):
        reader = CallReader(PLAIN)
        parts = [reader.feed(text[at : at + size]) for at in range(0, len(text), size)] + [reader.feed("", final=True)]
        assert "".join(part.get("content", "") for part in parts) == text and not reader.calls


def test_the_language_of_calls() -> None:
    functions = [{"name": tool["function"]["name"], "parameters": SCHEMAS[tool["function"]["name"]]} for tool in TOOLS]  # type: ignore[index]
    one, two = PLAIN.write([("now", "{}")]), PLAIN.write([("now", "{}"), ("weather", '{"city":"Rome","days":3}')])
    wrong = [PLAIN.write([("now", '{"a":1}')]), PLAIN.write([("then", "{}")]), PLAIN.write([("weather", "{}")])]
    wrong += [one + " ", PLAIN.begin, PLAIN.begin + "text"]
    texts = ["", "text\n", "<", "<tool_call>", " " + one]
    for required in (True, False):
        for several in (True, False):
            wanted = {"tool_calls": {"tools": functions, "required": required, "several": several}}
            every = [one, two, *wrong, *texts]
            expected = [True, several, *[False] * len(wrong), *[not required] * len(texts)]
            assert satisfied(wanted, every, [0] * len(every)) == expected
    for value, words in (("{", "not valid JSON"), ({}, "no list of tools"), ({"tools": [{}]}, "no name")):
        with pytest.raises(UserError, match=words):
            satisfied({"tool_calls": value}, [""], [0])
    with pytest.raises(UserError, match="unknown key 'requird'"):
        satisfied({"tool_calls": {"tools": functions, "requird": True}}, [""], [0])
