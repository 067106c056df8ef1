"""How chat templates write calls of tools is found by rendering them; other conversations have a plain form."""

from __future__ import annotations

import json
from typing import Any

import pytest
import tokenizers

from redraft.data import chat
from redraft.data.tokenizer import Tokenizer
from redraft.data.tools import PLAIN, CallForm, call_form, plain, with_tools

TOOLS = [{"type": "function", "function": {"name": "now", "description": "The time. <|end|>"}}]
CALL = {"id": "a", "type": "function", "function": {"name": "now", "arguments": '{"zone": "<|end|>"}'}}
TALK = [
    {"role": "user", "content": "When?"},
    {"role": "assistant", "content": "", "tool_calls": [CALL]},
    {"role": "tool", "content": "noon", "tool_call_id": "a"},
]
_HEAD = "{% if tools %}<|system|>{% for tool in tools %}{{ tool | tojson }}\n{% endfor %}<|end|>{% endif %}"
_TURN = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}CALLS<|end|>\n{% endfor %}"
_OPEN = "{% if add_generation_prompt %}<|assistant|>{% endif %}"
_CALLS = "{% for c in m.tool_calls %}CALL{% endfor %}"


def template(call: str, before: str = "") -> str:
    return _HEAD + _TURN.replace("CALLS", before + _CALLS.replace("CALL", call)) + _OPEN


HERMES = template(
    "{% if not loop.first %}{{ '\\n' }}{% endif %}"
    '<tool_call>\n{"name": "{{ c.function.name }}", "arguments": '
    "{{ c.function.arguments | tojson }}}\n</tool_call>"
)
BARE = template('{"name": "{{ c.function.name }}", "parameters": {{ c.function.arguments | tojson }}}')
ONE = "{% if m.tool_calls | length > 1 %}{{ raise_exception('one call') }}{% endif %}"
SINGLE = template("call {{ c.function | tojson }};", ONE)
MARKED = template("<|call|>{{ c.function | tojson }}")
PYTHONIC = template("{{ c.function.name }}({{ c.function.arguments | tojson }})")
DEAF = _TURN.replace("CALLS", "") + _OPEN


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    made = Tokenizer.bytes()
    marks = ["<|system|>", "<|user|>", "<|assistant|>", "<|tool|>", "<|end|>", "<|call|>"]
    made.backend.add_special_tokens([tokenizers.AddedToken(one, special=True) for one in marks])
    return Tokenizer(made.backend, made.names)


@pytest.mark.parametrize(
    ("written", "form"),
    [
        (HERMES, PLAIN),
        (BARE, CallForm("", "", "", arguments="parameters")),
        (SINGLE, CallForm("call ", "", ";")),
        (MARKED, None),  # a special token can't be generated under a constraint
        (PYTHONIC, None),
        (DEAF, None),
        (None, None),
    ],
)
def test_the_form_of_calls_is_found_by_rendering(tokenizer: Tokenizer, written: str | None, form: Any) -> None:
    assert call_form(tokenizer, written) == form


def test_the_template_writes_tools_calls_and_results(tokenizer: Tokenizer) -> None:
    talk = with_tools(TALK, TOOLS, tokenizer, HERMES)
    ids, stops = chat.prompt(talk.messages, tokenizer, False, HERMES, talk.tools)
    expected = (
        f"<|system|>{json.dumps(TOOLS[0])}\n<|end|><|user|>When?<|end|>\n<|assistant|><tool_call>\n"
        '{"name": "now", "arguments": {"zone": "<|end|>"}}\n</tool_call><|end|>\n<|tool|>noon<|end|>\n<|assistant|>'
    )
    assert tokenizer.backend.decode(ids, skip_special_tokens=False) == expected
    assert talk.form == PLAIN and stops == () and talk.origins == [(0,), (1,), (2,)]
    end = tokenizer.backend.token_to_id("<|end|>")
    assert ids.count(end) == 4  # those of the template: texts of a request write none


def test_the_plain_form_is_text(tokenizer: Tokenizer) -> None:
    talk = with_tools(TALK, TOOLS, tokenizer, DEAF)
    assert (talk.tools, talk.form, talk.origins) == ((), PLAIN, [(), (0,), (1,), (2,)])
    system, asked, called, answered = talk.messages
    assert system["role"] == "system" and json.dumps(TOOLS[0]["function"]) in system["content"]
    assert asked == TALK[0] and PLAIN.begin in system["content"]
    assert called == {"role": "assistant", "content": PLAIN.write([("now", '{"zone": "<|end|>"}')])}
    assert answered == {"role": "user", "content": "<tool_response>\nnoon\n</tool_response>"}
    ids, _ = chat.prompt(talk.messages, tokenizer, False, DEAF)
    assert ids.count(tokenizer.backend.token_to_id("<|end|>")) == 4
    assert chat.prompt(plain(TALK, ()).messages, tokenizer, False, None)[1] == ("\nUser:",)


def test_instructions_and_several_results_are_kept() -> None:
    talk = [{"role": "system", "content": "Be brief."}, *TALK, {"role": "tool", "content": "late", "tool_call_id": "b"}]
    made = plain(talk, TOOLS)
    found = made.messages
    assert made.origins == [(0,), (1,), (2,), (3, 4)]
    assert [one["role"] for one in found] == ["system", "user", "assistant", "user"]
    assert found[0]["content"].startswith("Be brief.\n\nYou can call") and talk[0]["content"] == "Be brief."
    assert found[3]["content"].count("<tool_response>") == 2
    said = plain([{**TALK[1], "content": "Wait."}], ()).messages
    assert said == [{"role": "assistant", "content": f"Wait.\n{PLAIN.write([('now', CALL['function']['arguments'])])}"}]  # type: ignore[index]
