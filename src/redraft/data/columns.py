"""Which columns of a source are prompt, target or text, and reading them from a row."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from redraft.data.rows import Row
from redraft.errors import UserError, suggest

# Column names of prompt and target that are recognised, the most specific first. ``a+b`` joins two columns.
_PAIRS = (
    ("src", "ref"),
    ("source", "target"),
    ("prompt", "completion"),
    ("prompt", "response"),
    ("instruction+input", "output"),
    ("instruction", "output"),
    ("instruction", "response"),
    ("document", "summary"),
    ("article", "highlights"),
    ("context+question", "answer"),
    ("question", "answer"),
    ("input", "target"),
    ("input", "output"),
    ("mr", "text"),
    ("text", "summary"),
    ("context", "target"),
)
_TEXTS = ("text", "content", "document")
# Names of a prompt in rows without a target.
_PROMPTS = ("prompt", "question", "instruction+input", "instruction", "input", "source", "src", *_TEXTS)
Turns = tuple[tuple[str, str], ...]  # role and content of each message
_JSON_NAMES = {bool: "true or false", int: "a number", float: "a number", list: "a list", dict: "an object"}


@dataclass(frozen=True)
class Columns:
    """Which columns to use: ``text``, or ``input`` and ``target``, or ``messages`` (a chat). All None: recognise them.

    ``input`` and ``target`` may join columns with a newline: ``"context+question"``. A dot reaches into a column:
    ``"answers.0.text"``. In a chat, each message of the assistant is a target, and the messages before it are its
    prompt; a message with ``"weight": 0`` is no target.
    """

    text: str | None = None
    input: str | None = None
    target: str | None = None
    messages: str | None = None
    rejected: str | None = None  # rejected answers, where ``target`` is the preferred one

    def __str__(self) -> str:
        pairs = (
            ("text", self.text),
            ("input", self.input),
            ("target", self.target),
            ("messages", self.messages),
            ("rejected", self.rejected),
        )

        return ", ".join(f"{role} = '{column}'" for role, column in pairs if column)


class BadRow(Exception):
    """A row that can't be used; the message says why."""


def choose_columns(wanted: Columns, row: Row) -> Columns:
    """The columns to use. Named columns are checked against ``row``; if none are named, they are recognised in it.

    Args:
        row: the first good row of the source.
    Raises:
        UserError: a named column does not exist, or none are named and none are recognised.
    """
    if wanted == Columns():
        return _recognise(row)
    pair = wanted.input is not None or wanted.target is not None
    if sum((wanted.text is not None, wanted.messages is not None, pair)) > 1:
        raise UserError(
            "The columns are named in more than one way.", "Give either --text, or --input and --target, not both."
        )
    if (wanted.input is None) != (wanted.target is None):
        raise UserError(
            "Only one of the columns input and target is named.", "Give both --input and --target, or --text alone."
        )
    for name in (wanted.text, wanted.input, wanted.target, wanted.messages):
        if name is not None:
            _check_present(name, row)
    return wanted


def _check_present(name: str, row: Row) -> None:
    present = list(row.values)
    for column in _joined(name, present):
        if column not in present and column.split(".")[0] not in present:
            raise UserError(f"{row.file} has no column '{column}'.", suggest(column, present))


def choose_prompt(wanted: str | None, row: Row) -> Columns:
    """The column of the prompt alone: ``input``, or ``messages`` for conversations. A target is not needed.

    Args:
        wanted: its name, as in ``Columns.input``; None: recognised in ``row``, the first good row of the source.
    Raises:
        UserError: there is no such column, or none is recognised.
    """
    present = {name.lower(): name for name in row.values}
    if wanted is not None:
        _check_present(wanted, row)
        return Columns(messages=wanted) if isinstance(row.values.get(wanted), list) else Columns(input=wanted)
    if "messages" in present:
        return Columns(messages=present["messages"])
    paired = [prompt for prompt, answer in _PAIRS if answer in present]
    for prompt in (*paired, *_PROMPTS):
        parts = prompt.split("+")
        if all(part in present for part in parts):
            return Columns(input="+".join(present[part] for part in parts))
    raise UserError(
        f"{row.file}: no column has a name of prompts that is recognised (columns: {', '.join(row.values)}).",
        "Name the column with --input.",
    )


def prompt_reader(columns: Columns) -> Callable[[Mapping[str, Any]], str | Turns]:
    """A function from the values of a row to its prompt, for columns from ``choose_prompt``.

    A conversation is read up to its last message that is not the assistant's: an answer that stands there already is
    not shown to the model. The function raises ``BadRow`` for a row that can't be used.
    """
    if columns.messages is not None:
        name = columns.messages
        return lambda values: _open_turns(values, name)
    assert columns.input is not None
    prompt = columns.input
    return lambda values: joined(values, prompt)


def _open_turns(values: Mapping[str, Any], name: str) -> Turns:
    turns = list(turns_of(messages_of(values, name)))
    while turns and turns[-1][0] == "assistant":
        turns.pop()
    if not turns:
        raise BadRow(f"column '{name}' has no message to answer")
    return tuple(turns)


def reader(columns: Columns) -> Callable[[Mapping[str, Any]], list[tuple[str | None, str, Turns]]]:
    """A function from the values of a row to its examples (prompt, target, turns), for columns from ``choose_columns``.

    The prompt is None for plain text. A chat has several examples, with the messages before each target as ``turns``.
    The function raises ``BadRow`` for a row that can't be used.
    """
    if columns.messages is not None:
        name = columns.messages
        return lambda values: _chat(values, name)
    if columns.text is not None:
        text = columns.text
        return lambda values: [(None, filled(text_of(values, text), text), ())]
    assert columns.input is not None and columns.target is not None
    prompt, target = columns.input, columns.target
    return lambda values: [(joined(values, prompt), filled(joined(values, target), target), ())]


def _recognise(row: Row) -> Columns:
    present = {name.lower(): name for name in row.values}
    if "messages" in present:
        return Columns(messages=present["messages"])
    for prompt, answer in _PAIRS:
        parts = [*prompt.split("+"), answer]
        if all(part in present for part in parts):
            return Columns(input="+".join(present[part] for part in parts[:-1]), target=present[answer])
    for name in _TEXTS:
        if name in present:
            return Columns(text=present[name])
    raise UserError(
        f"{row.file}: no column has a name that is recognised (columns: {', '.join(row.values)}).",
        "Name the columns with --text, or with --input and --target.",
    )


def _joined(name: str, present: Iterable[str]) -> list[str]:
    return [name] if name in present or "+" not in name else name.split("+")


def joined(values: Mapping[str, Any], name: str) -> str:
    """The text of a column, or of several (``a+b``) on a line each.

    Raises:
        BadRow: one is missing or no text.
    """
    parts = _joined(name, values)
    if len(parts) == 1:
        return text_of(values, parts[0])
    return "\n".join(text for part in parts if (text := text_of(values, part)))


def text_of(values: Mapping[str, Any], name: str) -> str:
    """The text of a column.

    Raises:
        BadRow: it is missing, null or no text.
    """
    value = values.get(name) if name in values else _nested(values, name)
    if not isinstance(value, str):
        found = "null" if value is None else f"not a text but {_JSON_NAMES.get(type(value), type(value).__name__)}"
        raise BadRow(f"column '{name}' is {found if name in values or value is not None else 'missing'}")
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise BadRow(f"column '{name}' holds U+{ord(value[error.start]):04X}, half of a surrogate pair") from None
    return value


def _nested(values: Mapping[str, Any], name: str) -> Any:
    """The value that ``answers.0.text`` names in nested objects and lists; None if there is none."""
    found: Any = values
    for part in name.split("."):
        if isinstance(found, Mapping):
            found = found.get(part)
        elif isinstance(found, list) and part.isdigit() and int(part) < len(found):
            found = found[int(part)]
        else:
            return None
    return found


def filled(text: str, name: str) -> str:
    """The text of a column, which must not be empty.

    Raises:
        BadRow: it is.
    """
    if not text or text.isspace():
        raise BadRow(f"column '{name}' is empty")
    return text


def unanswered(values: Mapping[str, Any], name: str) -> bool:
    """Does a chat end with messages that no message of the assistant follows?"""
    messages = values[name]
    return bool(messages) and messages[-1].get("role") != "assistant"


def _chat(values: Mapping[str, Any], name: str) -> list[tuple[str | None, str, Turns]]:
    """Each message of the assistant, with the messages before it.

    One message before it is the prompt as it is; several become ``role: content`` lines.
    """
    messages = messages_of(values, name)
    turns = turns_of(messages)
    found: list[tuple[str | None, str, Turns]] = []
    for at, (role, content) in enumerate(turns):
        if at and role == "assistant" and messages[at].get("weight", 1) != 0:
            found.append((lines_of(turns[:at]), filled(content, "content"), turns[:at]))
    if not found:
        raise BadRow(f"column '{name}' has no reply of the assistant after another message")
    return found


def messages_of(values: Mapping[str, Any], name: str) -> list[Mapping[str, Any]]:
    """The messages of a column.

    Raises:
        BadRow: it is not a list of messages.
    """
    messages = values.get(name)
    if not isinstance(messages, list) or not all(isinstance(m, Mapping) for m in messages):
        raise BadRow(f"column '{name}' is not a list of messages with role and content")
    return messages


def turns_of(messages: Iterable[Mapping[str, Any]]) -> Turns:
    """Role and content of each message.

    Raises:
        BadRow: a message without them.
    """
    return tuple((text_of(m, "role"), text_of(m, "content")) for m in messages)


def lines_of(turns: Turns) -> str:
    """The prompt that messages are: one as it is, several as ``role: content`` lines."""
    return turns[0][1] if len(turns) == 1 else "\n".join(f"{speaker}: {text}" for speaker, text in turns)
