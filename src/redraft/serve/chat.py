"""Conversations as prompts.

A chat template in the model's folder (``chat_template.jinja``, or ``chat_template`` in tokenizer_config.json) is used.
Without one a model is spoken to as follows:

- trained on pairs: the last user message is the prompt, exactly as it was in training; earlier messages are not seen,
  because such a model has never seen any;
- trained on plain text: a transcript, ``User: ...`` and ``Assistant: ...`` a line each, system messages as they are,
  ending in ``Assistant:``; a new ``User:`` line ends the answer.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from redraft.data.tokenizer import Tokenizer
from redraft.errors import UserError
from redraft.model import Model

Conversation = Sequence[Mapping[str, str]]  # of {"role": ..., "content": ...}
_TURN = "\nUser:"
_MARK = "\ue000{}\ue001"  # private use: stands for what people wrote while a template is filled in


def template_of(folder: Path) -> str | None:
    """The chat template of a model folder, if it has one."""
    file = folder / "chat_template.jinja"
    if file.is_file():
        return file.read_text(encoding="utf-8")
    config = folder / "tokenizer_config.json"
    if not config.is_file():
        return None
    found = json.loads(config.read_text(encoding="utf-8")).get("chat_template")
    if isinstance(found, list):  # several, by name
        found = next((one["template"] for one in found if one.get("name") == "default"), None)
    return found if isinstance(found, str) else None


def prompt(messages: Conversation, model: Model, template: str | None) -> tuple[list[int], tuple[str, ...]]:
    """Ids of the prompt, and texts that end the answer.

    Raises:
        UserError: the template does not take these messages, or there is no message to answer.
    """
    if template is not None:
        return _filled(messages, model.tokenizer, template), ()
    if model.conditional:
        asked = [message["content"] for message in messages if message["role"] == "user"]
        if not asked:
            raise UserError("there is no user message to answer.")
        return model.prompt_ids(asked[-1]), ()
    lines = []
    for message in messages:
        name = {"user": "User: ", "assistant": "Assistant: "}.get(message["role"], "")
        lines.append(name + message["content"])
    return model.prompt_ids("\n".join([*lines, "Assistant:"])), (_TURN,)


def _filled(messages: Conversation, tokenizer: Tokenizer, template: str) -> list[int]:
    """A filled-in template as ids. Special tokens count only where the template itself wrote them: text of people that
    looks like one stays text, so nobody can forge a turn."""
    from jinja2 import TemplateError
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    def refuse(why: str) -> None:
        raise UserError(f"the model's chat template refuses these messages: {why}.")

    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    environment.globals["raise_exception"] = refuse
    marked = [{**message, "content": _MARK.format(number)} for number, message in enumerate(messages)]
    names = {f"{key}_token": name for key, name in tokenizer.names.items()}
    try:
        text = environment.from_string(template).render(messages=marked, add_generation_prompt=True, **names)
    except TemplateError as error:
        raise UserError(f"the model's chat template can't be filled in: {error}.") from None
    ids: list[int] = []
    rest = text
    for number, message in enumerate(messages):
        before, mark, rest = rest.partition(_MARK.format(number))
        if not mark:  # a template may leave messages out, or move them
            rest = before
            continue
        ids += _with_specials(before, tokenizer) + tokenizer.encode(message["content"])
    return ids + _with_specials(rest, tokenizer)


def _with_specials(text: str, tokenizer: Tokenizer) -> list[int]:
    """Ids of a template's own text, its special tokens read as such."""
    specials = {token.content: i for i, token in tokenizer.backend.get_added_tokens_decoder().items() if token.special}
    ids: list[int] = []
    while text:
        at, name = min(((text.find(name), name) for name in specials if name in text), default=(len(text), ""))
        ids += tokenizer.encode(text[:at]) if at else []
        ids += [specials[name]] if name else []
        text = text[at + len(name) :]
    return ids
