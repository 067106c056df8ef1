"""Calls of tools in answers: their constraint, and reading them from a text as it becomes final."""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from redraft.data import chat
from redraft.data.tokenizer import Tokenizer
from redraft.data.tools import CallForm, Message, Tool, with_tools
from redraft.errors import UserError, suggest
from redraft.serve.schema import ChatRequest


@dataclass(frozen=True)
class Conversation:
    """The messages and tools for the prompt of a chat request, and how its answer may call tools."""

    asked: Sequence[Message]  # of the request
    messages: Sequence[Message]  # for the prompt
    tools: Sequence[Tool] = ()
    constraint: Mapping[str, Any] = field(default_factory=dict)  # kind -> text; empty if the answer is text
    form: CallForm | None = None  # None: the answer is text
    origins: Sequence[tuple[int, ...]] | None = (
        None  # of each message for the prompt: places in the request; None: same
    )

    def left_out(self, tokenizer: Tokenizer, paired: bool, template: str | None) -> chat.LeftOut:
        """What of the request the model doesn't get. Results of tools are written in the template's own way."""
        found = chat.left_out(self.messages, tokenizer, paired, template)
        if self.origins is None:
            return found
        lost = [at for at in found.messages if self.messages[at]["role"] != "tool"]
        places = sorted({place for at in lost for place in self.origins[at]})
        told = chat.LeftOut.of(self.asked, places, found.why)
        unseen = 0 in lost and self.form is not None and not self.tools  # the plain form describes tools there
        return replace(told, kinds=(*told.kinds, "the descriptions of the tools")) if unseen else told


def conversation_of(request: ChatRequest, tokenizer: Tokenizer, template: str | None) -> Conversation:
    """The conversation of a request.

    Raises:
        UserError: the request names a tool that it doesn't describe.
    """
    asked = [message.as_template_reads() for message in request.messages]
    choice = request.tool_choice or "auto"
    tools = [] if choice == "none" else [tool.model_dump(exclude_none=True) for tool in request.tools or ()]
    if not tools and not any("tool_calls" in message or message["role"] == "tool" for message in asked):
        return Conversation(asked, asked)
    talk = with_tools(asked, tools, tokenizer, template)
    if not tools:
        return Conversation(asked, talk.messages, origins=talk.origins)
    functions = [tool["function"] for tool in tools]
    if not isinstance(choice, str):
        wanted, names = choice.function.name, [function["name"] for function in functions]
        functions = [function for function in functions if function["name"] == wanted]
        if not functions:
            raise UserError(f"tool_choice names the tool '{wanted}', which 'tools' has not.", suggest(wanted, names))
    calls = {
        "tools": [{key: one[key] for key in ("name", "parameters") if key in one} for one in functions],
        "required": choice != "auto",
        "several": request.parallel_tool_calls is not False and isinstance(choice, str),
        "form": asdict(talk.form),
    }
    constraint = {"tool_calls": json.dumps(calls, ensure_ascii=False)}
    return Conversation(asked, talk.messages, talk.tools, constraint, talk.form, talk.origins)


@dataclass
class ToolCall:
    """One call, as far as its text is known."""

    name: str
    arguments: str = ""
    id: str = field(default_factory=lambda: f"call_{secrets.token_hex(12)}")

    def body(self) -> dict[str, Any]:
        """The call in OpenAI's format."""
        return {"id": self.id, "type": "function", "function": {"name": self.name, "arguments": self.arguments}}


class CallReader:
    """Reads an answer that is text or calls, piece by piece.

    An answer is text until it begins with the marker of a call. A beginning that may become the marker is held back.
    """

    def __init__(self, form: CallForm) -> None:
        self.form, self.calls = form, list[ToolCall]()
        self._head = re.compile(
            re.escape(form.head("NAME")).replace(re.escape('"NAME"'), r'("(?:[^"\\]|\\.)*")'), re.DOTALL
        )
        self._buffer, self._state = "", "start"
        self._depth, self._in_string, self._escaped = 0, False, False

    def feed(self, text: str, final: bool = False) -> dict[str, Any]:
        """What more text adds: OpenAI's ``delta`` of a message.

        Args:
            final: nothing follows, so that nothing is held back.
        """
        self._buffer += text
        delta: dict[str, Any] = {}
        while self._advance(delta):
            pass
        if final and self._state == "start" and self._buffer:
            self._content(delta)
        if "tool_calls" in delta:
            delta["tool_calls"] = list(delta["tool_calls"].values())
        return delta

    def message(self, text: str) -> dict[str, Any]:
        """The message of a complete answer."""
        content = self.feed(text, final=True).get("content")
        calls = {"tool_calls": [call.body() for call in self.calls]} if self.calls else {}
        return {"content": None if self.calls else content or "", **calls}

    def _advance(self, delta: dict[str, Any]) -> bool:
        """Read a part of the buffer. False: the rest waits for more text."""
        if not self._buffer:
            return False
        if self._state == "start":
            return self._decide()
        if self._state == "text":
            self._content(delta)
            return False
        if self._state == "head":
            return self._read_head(delta)
        if self._state == "arguments":
            self._read_arguments(delta)
            return True
        return self._next_call()

    def _decide(self) -> bool:
        marker = self.form.marker
        if self._buffer.startswith(marker):
            self._buffer, self._state = self._buffer[len(self.form.begin) :], "head"
        elif marker.startswith(self._buffer):
            return False
        else:
            self._state = "text"
        return True

    def _content(self, delta: dict[str, Any]) -> None:
        delta["content"] = delta.get("content", "") + self._buffer
        self._buffer = ""

    def _read_head(self, delta: dict[str, Any]) -> bool:
        found = self._head.match(self._buffer)
        if found is None:
            return False
        self._buffer, self._state, self._depth = self._buffer[found.end() :], "arguments", 0
        self.calls.append(ToolCall(json.loads(found[1])))
        at = len(self.calls) - 1
        delta.setdefault("tool_calls", {})[at] = {"index": at, **self.calls[at].body()}
        return True

    def _read_arguments(self, delta: dict[str, Any]) -> None:
        end = next((at + 1 for at, sign in enumerate(self._buffer) if self._closes(sign)), len(self._buffer))
        closed = end < len(self._buffer) or self._depth == 0
        text, self._buffer = self._buffer[:end], self._buffer[end:]
        self._state = "after" if closed else "arguments"
        at = len(self.calls) - 1
        self.calls[at].arguments += text
        entry = delta.setdefault("tool_calls", {}).setdefault(at, {"index": at, "function": {"arguments": ""}})
        entry["function"]["arguments"] += text

    def _closes(self, sign: str) -> bool:
        """Follow the JSON of the arguments by one character; does it end the object?"""
        if self._in_string:
            if self._escaped:
                self._escaped = False
            elif sign == "\\":
                self._escaped = True
            elif sign == '"':
                self._in_string = False
            return False
        if sign == '"':
            self._in_string = True
        self._depth += (sign in "{[") - (sign in "}]")
        return self._depth == 0

    def _next_call(self) -> bool:
        between = f"}}{self.form.between}"
        if self.form.between and self._buffer.startswith(between):
            self._buffer, self._state = self._buffer[len(between) :], "head"
            return True
        if not between.startswith(self._buffer):
            self._buffer = ""  # the end of the calls
        return False
