"""Conversations as prompts, with or without a chat template.

A chat template in the model's folder (``chat_template.jinja``, or ``chat_template`` in tokenizer_config.json) is
rendered as transformers does it. Without a template, the prompt depends on the training data of the model:

- pairs: the last user message is the prompt, exactly as in training. Earlier messages are left out, because the
  training data had none.
- plain text: the prompt is a transcript with one ``User: ...`` or ``Assistant: ...`` line for each message. System
  messages stay as they are. It ends with ``Assistant:``, and a new ``User:`` line ends the answer.
"""

from __future__ import annotations

import json
import re
import secrets
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from redraft.data.gguf_tokenizer import read_part
from redraft.data.tokenizer import Tokenizer
from redraft.errors import UserError, suggest

Conversation = Sequence[Mapping[str, str]]  # messages {"role": ..., "content": ...}
_NEXT_USER = "\nUser:"
_SPEAKERS = {"user": "User: ", "assistant": "Assistant: "}


def template_of(folder: Path, name: str = "default") -> str | None:
    """The chat template of a model folder or a GGUF file; None if it has none.

    Args:
        name: which template, if the folder has several.
    Raises:
        UserError: the file can't be read, or there is no template of that name.
    """
    config = folder / "tokenizer_config.json"
    template, described = read_part(folder, "chat_template.jinja"), read_part(folder, config.name)
    if template is not None:
        return template.decode("utf-8")
    if described is None:
        return None
    try:
        found = json.loads(described).get("chat_template")
    except ValueError as error:
        raise UserError(f"'{config}' is not valid JSON: {error}.", "Fix the file, or copy it again.") from None
    if isinstance(found, list):  # several named templates
        known = {str(one.get("name")): one.get("template") for one in found}
        if name not in known and name != "default":
            raise UserError(f"'{config}' has no chat template '{name}'.", suggest(name, known))
        found = known.get(name)
    return found if isinstance(found, str) else None


def prompt(
    messages: Conversation, tokenizer: Tokenizer, paired: bool, template: str | None
) -> tuple[list[int], tuple[str, ...]]:
    """Token ids of the prompt, and the stop strings of the answer.

    Only the template can write special tokens. The text of a special token inside a message is encoded as ordinary
    text, so that a message can't imitate a turn of the conversation.

    Args:
        paired: the model was trained on pairs.
    Raises:
        UserError: the template can't render these messages, or there is no message to answer.
    """
    if template is None:
        text = transcript(messages, paired)
        return (tokenizer.encode_prompt(text), ()) if paired else (tokenizer.encode_opening(text), (_NEXT_USER,))
    special = [token.content for token in tokenizer.backend.get_added_tokens_decoder().values() if token.special]
    pattern = "|".join(re.escape(name) for name in sorted(special, key=len, reverse=True)) or "(?!)"
    mark = f"\ue000{secrets.token_hex(8)}:{{}}\ue001"  # placeholder for the text of a special token inside a message
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


def transcript(messages: Conversation, paired: bool, opened: bool = True) -> str:
    """A conversation as the prompt text of a model without a chat template.

    Args:
        paired: the model was trained on pairs.
        opened: end where the answer begins.
    Raises:
        UserError: there is no message to answer.
    """
    if paired:
        user = [message["content"] for message in messages if message["role"] == "user"]
        if not user or not user[-1].strip():
            raise UserError("The conversation has no user message to answer.", "End it with a non-empty user message.")
        return user[-1]
    lines = [_SPEAKERS.get(message["role"], "") + message["content"] for message in messages]
    return "\n".join([*lines, "Assistant:"] if opened else lines)


def fill(messages: Conversation, tokenizer: Tokenizer, template: str, opened: bool = True) -> str:
    """Render a chat template in the same environment as transformers.

    Args:
        opened: end where the answer begins (``add_generation_prompt``).
    Raises:
        UserError: the template can't render these messages.
    """
    from jinja2 import TemplateError
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    def refuse(why: str) -> None:
        raise UserError(f"The model's chat template rejects these messages: {why}.", "Change the messages.")

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
        raise UserError(
            f"The model's chat template can't be rendered: {error}.", "Check chat_template in the model's folder."
        ) from None
