"""Conversations as token ids: one form of a conversation in training, evaluation, chat and server.

If the tokenizer has a chat template (``chat_template.jinja`` in the model's folder, or ``chat_template`` in
tokenizer_config.json), it is rendered as transformers does it (``data.templates``). A model without one that is trained
on conversations of several turns gets one (``adopt``): lines ``role: content``. A model without a template was trained
on something else:

- pairs: the last user message is the prompt, exactly as in training. Other messages are left out, because the training
  data had none (``left_out`` tells which).
- plain text: the prompt is a transcript with one ``User: ...`` or ``Assistant: ...`` line for each message. System
  messages stay as they are. It ends with ``Assistant:``, and a new ``User:`` line ends the answer.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from redraft.data.examples import Example
from redraft.data.templates import render, template_of
from redraft.data.tokenizer import Tokenizer
from redraft.errors import UserError

__all__ = [
    "LeftOut",
    "adopt",
    "example_ids",
    "fill",
    "forgotten",
    "left_out",
    "prompt",
    "stray_markers",
    "template_of",
    "transcript",
]

Conversation = Sequence[Mapping[str, Any]]  # messages {"role": ..., "content": ...}; those with calls: ``data.tools``
_NEXT_USER = "\nUser:"
_SPEAKERS = {"user": "User: ", "assistant": "Assistant: "}
_PROBE = ({"role": "user", "content": "Question"}, {"role": "assistant", "content": "Answer"})
# The form of a conversation in ``data.columns``: one message as it is, several as lines.
_LINES = (
    "{% if messages | length == 1 %}{{ messages[0]['content'] }}{% else %}{% for message in messages %}"
    "{{ message['role'] + ': ' + message['content'] }}{% if not loop.last %}{{ '\n' }}{% endif %}"
    "{% endfor %}{% endif %}"
)


def prompt(
    messages: Conversation,
    tokenizer: Tokenizer,
    paired: bool,
    template: str | None,
    tools: Sequence[Mapping[str, Any]] = (),
) -> tuple[list[int], tuple[str, ...]]:
    """Token ids of the prompt, and the stop strings of the answer.

    Only the template can write special tokens. The text of a special token inside a message is encoded as ordinary
    text, so that a message can't imitate a turn of the conversation.

    Args:
        paired: the model was trained on pairs. tools: that the template describes (``data.tools.with_tools``).
    Raises:
        UserError: the template can't render these messages, or there is no message to answer.
    """
    if template is None:
        text = transcript(messages, paired)
        return (tokenizer.encode_prompt(text), ()) if paired else (tokenizer.encode_opening(text), (_NEXT_USER,))
    pattern = special_pattern(tokenizer)
    mark = f"\ue000{secrets.token_hex(8)}:{{}}\ue001"  # placeholder for the text of a special token inside a message
    hidden: list[str] = []

    def hide(found: re.Match[str]) -> str:
        hidden.append(found[0])
        return mark.format(len(hidden) - 1)

    def hidden_in(part: str) -> str:
        return pattern.sub(hide, part)

    text = fill(_mapped(list(messages), hidden_in), tokenizer, template, tools=_mapped(list(tools), hidden_in))
    ids: list[int] = []
    for number, part in enumerate(re.split(mark.format(r"(\d+)"), text) if hidden else [text]):
        ids += tokenizer.encode(hidden[int(part)]) if number % 2 else tokenizer.encode_marked(part)
    return ids, ()


def _mapped(value: Any, change: Callable[[str], str]) -> Any:
    """A value of JSON with all its texts changed, the names in objects included."""
    if isinstance(value, Mapping):
        return {_mapped(key, change): _mapped(one, change) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_mapped(one, change) for one in value]
    return change(value) if isinstance(value, str) else value


@dataclass(frozen=True)
class LeftOut:
    """The messages of a conversation that a model doesn't get; false if it gets all of them."""

    messages: tuple[int, ...] = ()  # their places in the conversation, from 0
    kinds: tuple[str, ...] = ()  # what they are, in words
    why: str = ""

    @classmethod
    def of(cls, messages: Conversation, lost: Sequence[int], why: str) -> LeftOut:
        """The messages at the places ``lost``."""
        systems = sum(messages[i]["role"] in ("system", "developer") for i in lost)
        rest = len(lost) - systems
        kinds = ["the system message"] if systems == 1 else [f"{systems} system messages"] if systems else []
        kinds += [f"{rest} other message{'s' * (rest > 1)}"] if rest else []
        return cls(tuple(lost), tuple(kinds), why)

    def __bool__(self) -> bool:
        return bool(self.kinds)

    def __str__(self) -> str:
        return f"left out by {self.why}: {' and '.join(self.kinds)}" if self else ""


def left_out(messages: Conversation, tokenizer: Tokenizer, paired: bool, template: str | None) -> LeftOut:
    """Which messages ``prompt`` leaves out."""
    if template is not None:
        text = fill(messages, tokenizer, template)
        lost = [
            i
            for i, one in enumerate(messages)
            if one["role"] != "assistant" and (content := one["content"].strip()) and content not in text
        ]
        why = "the model's chat template"
    elif paired:
        last = max((i for i, one in enumerate(messages) if one["role"] == "user"), default=-1)
        lost = [i for i in range(len(messages)) if i != last]
        why = "a model that was trained on single questions and answers"
    else:
        return LeftOut()
    return LeftOut.of(messages, lost, why)


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


def fill(
    messages: Conversation,
    tokenizer: Tokenizer,
    template: str,
    opened: bool = True,
    tools: Sequence[Mapping[str, Any]] = (),
) -> str:
    """The text of a conversation, rendered by a chat template.

    Args:
        opened: end where the answer begins (``add_generation_prompt``). tools: that the model may call.
    Raises:
        UserError: the template can't render these messages.
    """
    return render(template, messages, tokenizer.names, opened, tools)


@lru_cache(maxsize=8)
def special_pattern(tokenizer: Tokenizer) -> re.Pattern[str]:
    """Finds the texts of special tokens, the longest first."""
    special = [token.content for token in tokenizer.backend.get_added_tokens_decoder().values() if token.special]
    return re.compile("|".join(re.escape(name) for name in sorted(special, key=len, reverse=True)) or "(?!)")


# ---- rows of data


def adopt(tokenizer: Tokenizer, examples: Sequence[Example]) -> None:
    """Give a tokenizer without a chat template one if the examples are conversations of several turns.

    The template has the form of a row's prompt: lines ``role: content``, and what stands around the prompt of a pair.
    It is saved with the model, so that chat and server ask in the form of training.
    """
    if tokenizer.chat_template is not None or all(len(example.turns) < 2 for example in examples):
        return
    before, after = (
        "".join(str(tokenizer.backend.id_to_token(token)) for token in ids) for ids in tokenizer.around_prompt
    )
    opening = after or "\nassistant:\n"  # without a separator, a line opens the answer
    tokenizer.chat_template = f"{_quoted(before)}{_LINES}{_quoted(opening)}"


def _quoted(text: str) -> str:
    return f"{{{{ {json.dumps(text, ensure_ascii=False)} }}}}" if text else ""


def is_rendered(text: str, tokenizer: Tokenizer) -> bool:
    """Is the text of a prompt a conversation that the chat template rendered? It ends as the template opens answers."""
    opening = _opening(tokenizer) if tokenizer.chat_template is not None else ""
    return bool(opening) and text.rstrip().endswith(opening)


def text_ids(text: str, tokenizer: Tokenizer) -> list[int]:
    """The ids of the prompt of a pair. In a rendered conversation, and nowhere else, markers are special tokens."""
    return tokenizer.encode_marked(text) if is_rendered(text, tokenizer) else tokenizer.encode_prompt(text)


def example_ids(examples: Sequence[Example], tokenizer: Tokenizer) -> tuple[list[list[int]], list[list[int]]]:
    """The ids of the prompt and of the target of each example; for plain texts, the prompts are empty.

    Conversations have the form of ``prompt``. The prompt of a pair that ends as the chat template opens an answer is a
    rendered conversation, so its markers are special tokens; in any other text they are ordinary text.

    Raises:
        UserError: the template can't render a conversation.
    """
    plain = [example.prompt or "" for example in examples if not example.turns]
    heads, before, after = iter(tokenizer.encode_batch(plain)), *tokenizer.around_prompt
    targets = tokenizer.encode_batch([example.target for example in examples])
    closing, prompts = _closing(tokenizer), []
    for number, example in enumerate(examples):
        end = tokenizer.answer_suffix
        if example.turns:
            messages = [{"role": role, "content": content} for role, content in example.turns]
            head, _ = prompt(messages, tokenizer, True, tokenizer.chat_template)
            end = closing or end
        elif example.prompt is None:
            head = next(heads)  # of an empty text
        elif is_rendered(example.prompt, tokenizer):
            next(heads)
            head = tokenizer.encode_marked(example.prompt)
            targets[number] = tokenizer.encode_marked(example.target)
            ended = bool(targets[number]) and targets[number][-1] in _ends(tokenizer)
            end = [] if ended else closing or end
        else:
            head = [*before, *next(heads), *after]
        prompts.append(head)
        targets[number] += end
    return prompts, targets


def continued_ids(examples: Sequence[Example], tokenizer: Tokenizer) -> tuple[list[list[int]], list[list[int]]]:
    """The ids of prompts, and of targets that continue them as one plain text, without end-of-text."""
    heads = [tokenizer.encode_opening(example.prompt or "") for example in examples]
    return heads, tokenizer.encode_batch([example.target for example in examples])


def forgotten(examples: Sequence[Example], tokenizer: Tokenizer) -> str:
    """A warning about conversations of which a model without a chat template gets the last user message alone."""
    rows = sum(len(example.turns) > 1 for example in examples) if tokenizer.chat_template is None else 0
    if not rows:
        return ""
    return (
        f"{rows:,} rows are conversations of several messages, and this model was trained on single questions and "
        "answers: it gets the last user message alone."
    )


def stray_markers(examples: Sequence[Example], tokenizer: Tokenizer) -> str:
    """A warning about special tokens that stand in the data as text; empty if there are none."""
    if tokenizer.chat_template is None:
        return ""
    pattern, found, rows = special_pattern(tokenizer), set[str](), 0
    for example in examples:
        if example.turns or is_rendered(example.prompt or "", tokenizer):
            continue
        names = [*pattern.findall(example.prompt or ""), *pattern.findall(example.target)]
        found |= set(names)
        rows += bool(names)
    if not rows:
        return ""
    return (
        f"{rows:,} rows hold the text of special tokens ({', '.join(sorted(found))}), which is read as ordinary text. "
        "Write conversations as 'messages', or prompts as the chat template renders them."
    )


@lru_cache(maxsize=8)
def _opening(tokenizer: Tokenizer) -> str:
    """How the chat template opens an answer, without white space at its end; empty if it does so without a marker."""
    assert tokenizer.chat_template is not None
    try:
        closed, opened = (fill(_PROBE[:1], tokenizer, tokenizer.chat_template, state) for state in (False, True))
    except UserError:  # it asks for other messages
        return ""
    found = opened.removeprefix(closed).strip() if opened.startswith(closed) else ""
    return found if special_pattern(tokenizer).search(found) else ""


def _closing(tokenizer: Tokenizer) -> list[int]:
    """The end-of-text token by which the chat template closes an answer; empty if it closes with no such token."""
    if tokenizer.chat_template is None:
        return []
    try:
        text = fill(_PROBE, tokenizer, tokenizer.chat_template, opened=False)
    except UserError:
        return []
    ids = tokenizer.encode_marked(text.rpartition(_PROBE[1]["content"])[2])
    return next(([token] for token in ids if token in _ends(tokenizer)), [])


def _ends(tokenizer: Tokenizer) -> set[int]:
    return {tokenizer.eos_id, *tokenizer.stop_ids} - {-1}
