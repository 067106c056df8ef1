"""Tools in conversations: how a chat template writes calls, and conversations with calls for templates without tools.

A model calls a tool by writing a JSON object with its name and its arguments, between markers that its chat template
uses. ``call_form`` finds these out by rendering a conversation with a call. A template that doesn't know tools, and a
model without a template, use ``PLAIN``, the form of Hermes and Qwen: ``plain`` describes the tools in the system
message and writes calls and results as text.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from redraft.data import chat
from redraft.data.tokenizer import Tokenizer
from redraft.errors import UserError

Tool = Mapping[str, Any]  # {"type": "function", "function": {"name": ..., "description": ..., "parameters": ...}}
Message = Mapping[str, Any]
_NAME, _ARGUMENTS, _RESULT = "probe_the_form", {"key": "value"}, "the result of the probe"
_DECODER = json.JSONDecoder()


@dataclass(frozen=True)
class CallForm:
    """How calls are written: ``begin``, the first call, ``between``, the second call ..., ``end``.

    A call is ``{"name": "NAME", "arguments": {...}}``, where the two keys are those of the form.
    """

    begin: str
    between: str  # empty: an answer has one call at most
    end: str
    name: str = "name"
    arguments: str = "arguments"

    def head(self, tool: str) -> str:
        """A call up to its arguments."""
        return f'{{"{self.name}": {json.dumps(tool)}, "{self.arguments}": '

    @property
    def marker(self) -> str:
        """An answer that begins with it is a call; any other is text."""
        return self.begin or f'{{"{self.name}": "'

    def write(self, calls: Sequence[tuple[str, str]]) -> str:
        """The text of calls, each a name and its arguments as JSON."""
        between = self.between or "\n"
        return self.begin + between.join(f"{self.head(name)}{arguments}}}" for name, arguments in calls) + self.end


PLAIN = CallForm("<tool_call>\n", "\n</tool_call>\n<tool_call>\n", "\n</tool_call>")


@lru_cache(maxsize=8)
def call_form(tokenizer: Tokenizer, template: str | None) -> CallForm | None:
    """How a chat template writes calls; None if it doesn't know tools, or writes calls in another form.

    Special tokens can't be a part of the form, because a constraint on the text of an answer can't contain them.
    """
    if template is None:
        return None
    asked = [{"role": "user", "content": "Question"}]
    result = {"role": "tool", "content": _RESULT, "tool_call_id": "000000000", "name": _NAME}
    try:
        opening = chat.fill(asked, tokenizer, template, tools=_PROBE_TOOLS)
        one = chat.fill([*asked, _probe(1)], tokenizer, template, opened=False, tools=_PROBE_TOOLS)
        answered = chat.fill([*asked, _probe(1), result], tokenizer, template, tools=_PROBE_TOOLS)
    except UserError:
        return None
    if _NAME not in opening or not one.startswith(opening) or _RESULT not in answered:
        return None
    text = one[len(opening) :]
    found = _objects(text)
    if len(found) != 1:
        return None
    (begin, stop, keys), special = found[0], chat.special_pattern(tokenizer)
    closing = special.search(text, stop)
    form = CallForm(text[:begin], "", text[stop : closing.start() if closing else len(text)].rstrip("\n"), *keys)
    if special.search(form.begin) or not text[begin:].startswith(form.head(_NAME)):
        return None
    try:
        two = chat.fill([*asked, _probe(2)], tokenizer, template, opened=False, tools=_PROBE_TOOLS)[len(opening) :]
    except UserError:
        return form
    several = _objects(two)
    between = two[several[0][1] : several[1][0]] if len(several) == 2 else ""
    usable = two.startswith(form.begin) and not special.search(between)
    return CallForm(form.begin, between if usable else "", form.end, *keys)


@dataclass(frozen=True)
class ToolTalk:
    """A conversation with tools as ``chat.prompt`` takes it, and how its answer writes calls."""

    messages: Sequence[Message]
    tools: Sequence[Tool]  # that the template describes
    form: CallForm
    origins: Sequence[tuple[int, ...]]  # of each message: its places in the conversation, none for a description


def with_tools(
    messages: Sequence[Message], tools: Sequence[Tool], tokenizer: Tokenizer, template: str | None
) -> ToolTalk:
    """Messages and tools as the template takes them, or in the plain form."""
    form = call_form(tokenizer, template)
    if form is None:
        return plain(messages, tools)
    places = [(place,) for place in range(len(messages))]
    return ToolTalk([_for_template(message) for message in messages], tools, form, places)


def plain(messages: Sequence[Message], tools: Sequence[Tool]) -> ToolTalk:
    """A conversation whose tools, calls and results are text: tools in the system message, results from the user."""
    found: list[dict[str, Any]] = []
    origins: list[tuple[int, ...]] = []
    results = False  # the last message holds results of tools
    for place, message in enumerate(messages):
        role, content, calls = message["role"], message["content"], message.get("tool_calls") or ()
        if role == "tool":
            text = f"<tool_response>\n{content}\n</tool_response>"
            if results:
                found[-1]["content"] += f"\n{text}"
                origins[-1] += (place,)
                continue
            found.append({"role": "user", "content": text})
        elif calls:
            written = PLAIN.write([(call["function"]["name"], call["function"]["arguments"]) for call in calls])
            found.append({"role": role, "content": f"{content}\n{written}" if content else written})
        else:
            found.append({"role": role, "content": content})
        origins.append((place,))
        results = role == "tool"
    if tools and found and found[0]["role"] in ("system", "developer"):
        found[0]["content"] += f"\n\n{_description(tools)}"
    elif tools:
        found.insert(0, {"role": "system", "content": _description(tools)})
        origins.insert(0, ())
    return ToolTalk(found, (), PLAIN, origins)


def _description(tools: Sequence[Tool]) -> str:
    lines = [json.dumps(tool["function"], ensure_ascii=False) for tool in tools]
    example = f'{PLAIN.begin}{{"name": NAME, "arguments": {{...}}}}{PLAIN.end}'
    return "\n".join(["You can call these functions:", *lines, "To call one, answer with:", example])


def _for_template(message: Message) -> Message:
    """A message whose calls have their arguments as an object, as templates expect them."""
    calls = message.get("tool_calls")
    if not calls:
        return message
    return {**message, "tool_calls": [_with_object(call) for call in calls]}


def _with_object(call: Mapping[str, Any]) -> dict[str, Any]:
    function = dict(call["function"])
    with suppress(ValueError):  # a text that is no JSON stays a text
        function["arguments"] = json.loads(function["arguments"])
    return {**call, "function": function}


_PROBE_TOOLS = (
    {
        "type": "function",
        "function": {
            "name": _NAME,
            "description": "A probe.",
            "parameters": {"type": "object", "properties": {"key": {"type": "string"}}, "required": ["key"]},
        },
    },
)


def _probe(calls: int) -> Message:
    """A message with calls."""
    function = {"name": _NAME, "arguments": _ARGUMENTS}
    ids = [f"{number:09}" for number in range(calls)]  # some templates accept nine characters only
    return {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"id": one, "type": "function", "function": function} for one in ids],
    }


def _objects(text: str) -> list[tuple[int, int, tuple[str, str]]]:
    """The calls of the probe in a text: where each object begins and ends, and its keys."""
    found, at = [], text.find("{")
    while at >= 0:
        try:
            value, end = _DECODER.raw_decode(text, at)
        except ValueError:
            value, end = None, at + 1
        keys = list(value) if isinstance(value, dict) else []
        if len(keys) == 2 and list(value.values()) == [_NAME, _ARGUMENTS]:
            found.append((at, end, (keys[0], keys[1])))
        at = text.find("{", end)
    return found
