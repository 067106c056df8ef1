"""Conversations as prompts.

A chat template in the model's folder (``chat_template.jinja``, or ``chat_template`` in tokenizer_config.json) is filled
in as transformers would. Without one a model is spoken to as follows:

- trained on pairs: the last user message is the prompt, exactly as it was in training; earlier messages are not seen,
  because such a model has never seen any;
- trained on plain text: a transcript, ``User: ...`` and ``Assistant: ...`` a line each, system messages as they are,
  ending in ``Assistant:``; a new ``User:`` line ends the answer.
"""

from __future__ import annotations

import json
import re
import secrets
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from redraft.data.tokenizer import Tokenizer
from redraft.errors import UserError, suggest

Conversation = Sequence[Mapping[str, str]]  # of {"role": ..., "content": ...}
_TURN = "\nUser:"
_SPEAKERS = {"user": "User: ", "assistant": "Assistant: "}


def template_of(folder: Path, name: str = "default") -> str | None:
    """The chat template of a model folder, if it has one. ``name``: which, where there are several.

    Raises:
        UserError: a file that can't be read, or no template of that name.
    """
    file, config = folder / "chat_template.jinja", folder / "tokenizer_config.json"
    if file.is_file():
        return file.read_text(encoding="utf-8")
    if not config.is_file():
        return None
    try:
        found = json.loads(config.read_text(encoding="utf-8")).get("chat_template")
    except ValueError as error:
        raise UserError(f"{config}: not valid JSON: {error}.") from None
    if isinstance(found, list):  # several, by name
        known = {str(one.get("name")): one.get("template") for one in found}
        if name not in known and name != "default":
            raise UserError(f"{config} has no chat template '{name}'.", suggest(name, known))
        found = known.get(name)
    return found if isinstance(found, str) else None


def prompt(
    messages: Conversation, tokenizer: Tokenizer, conditional: bool, template: str | None
) -> tuple[list[int], tuple[str, ...]]:
    """Ids of the prompt, and texts that end the answer.

    Special tokens count only where the template itself wrote them: what people wrote stays text, even if it looks like
    one, so that nobody can forge a turn.

    Args:
        conditional: the model was trained on pairs.
    Raises:
        UserError: the template does not take these messages, or there is no message to answer.
    """
    if template is None:
        text = transcript(messages, conditional)
        return (tokenizer.encode_prompt(text), ()) if conditional else (tokenizer.encode_opening(text), (_TURN,))
    special = [token.content for token in tokenizer.backend.get_added_tokens_decoder().values() if token.special]
    pattern = "|".join(re.escape(name) for name in sorted(special, key=len, reverse=True)) or "(?!)"
    mark = f"\ue000{secrets.token_hex(8)}:{{}}\ue001"  # private use: stands for what only looks like a special token
    hidden: list[str] = []

    def hide(found: re.Match[str]) -> str:
        hidden.append(found[0])
        return mark.format(len(hidden) - 1)

    safe = [{**message, "content": re.sub(pattern, hide, message["content"])} for message in messages]
    text = fill(safe, tokenizer, template)
    ids: list[int] = []
    for number, part in enumerate(re.split(mark.format(r"(\d+)"), text)):
        ids += tokenizer.encode(hidden[int(part)]) if number % 2 else tokenizer.encode_marked(part)
    return ids, ()


def transcript(messages: Conversation, conditional: bool, opened: bool = True) -> str:
    """A conversation as the text that a model without a template is given.

    Args:
        opened: end where the answer begins.
    Raises:
        UserError: there is no message to answer.
    """
    if conditional:
        asked = [message["content"] for message in messages if message["role"] == "user"]
        if not asked or not asked[-1].strip():
            raise UserError("there is no user message to answer.", "End with one that says something.")
        return asked[-1]
    lines = [_SPEAKERS.get(message["role"], "") + message["content"] for message in messages]
    return "\n".join([*lines, "Assistant:"] if opened else lines)


def fill(messages: Conversation, tokenizer: Tokenizer, template: str, opened: bool = True) -> str:
    """A template filled in, in the environment that transformers gives it.

    Args:
        opened: end where the answer begins (``add_generation_prompt``).
    Raises:
        UserError: the template does not take these messages.
    """
    from jinja2 import TemplateError
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    def refuse(why: str) -> None:
        raise UserError(f"the model's chat template refuses these messages: {why}.")

    def as_json(value: Any, indent: int | None = None, ensure_ascii: bool = False) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = as_json
    environment.globals |= {"raise_exception": refuse, "strftime_now": time.strftime}
    names = {f"{key}_token": name for key, name in tokenizer.names.items()}
    try:
        return environment.from_string(template).render(
            messages=messages, tools=None, documents=None, add_generation_prompt=opened, **names
        )
    except (TemplateError, TypeError, ValueError, LookupError, ArithmeticError) as error:
        raise UserError(f"the model's chat template can't be filled in: {error}.") from None
