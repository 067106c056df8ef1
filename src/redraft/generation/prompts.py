"""Prompts as token ids, and checks of their length."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from redraft.data import chat
from redraft.data.columns import Turns
from redraft.errors import UserError

if TYPE_CHECKING:
    from redraft.model import Model

Prompt = str | Sequence[int] | Turns  # a text, token ids, or a conversation


def prompt_ids(model: Model, prompt: Prompt) -> list[int]:
    """The ids of a prompt as in training, with the separator or the beginning-of-text token. Ids are unchanged, and a
    conversation has the form of ``data.chat.prompt``.

    A prompt without any token becomes the token that training puts before such rows (``data.loader.tokenise``), because
    the first prediction of a causal network, and that of the length, are read at the token before.

    Raises:
        UserError: an id is not in the vocabulary, or the chat template can't render a conversation.
    """
    return _ids(model, prompt) or [model.tokenizer.bos_id]


def _ids(model: Model, prompt: Prompt) -> list[int]:
    tokenizer = model.tokenizer
    if isinstance(prompt, str):
        return chat.text_ids(prompt, tokenizer) if model.paired else tokenizer.encode_opening(prompt)
    messages = [{"role": one[0], "content": one[1]} for one in prompt if isinstance(one, tuple)]
    if messages:
        return chat.prompt(messages, tokenizer, model.paired, tokenizer.chat_template)[0]
    size, ids = model.network.config.vocab_size, [one for one in prompt if not isinstance(one, tuple)]
    for token in ids:
        if not 0 <= token < size:
            raise UserError(f"Prompt id {token} is not in the vocabulary of {size} tokens.")
    return [int(token) for token in ids]


def answerable_prompt_ids(model: Model, prompt: Prompt) -> list[int]:
    """``prompt_ids`` of a prompt that must not be empty for a model trained on pairs.

    Raises:
        UserError: as ``prompt_ids``; or the prompt is empty and the model was trained on pairs.
    """
    if model.paired and not (prompt.strip() if isinstance(prompt, str) else prompt):
        raise UserError(
            "The prompt is empty, and this model answers prompts.",
            "Give a prompt; a model of plain text can continue an empty one.",
        )
    return prompt_ids(model, prompt)


def answer_suffix(model: Model) -> list[int]:
    """Given token ids at the end of an answer. Models that insert positions always need them."""
    return [model.tokenizer.eos_id] if model.paired or model.spec.edits else []


def longest(model: Model) -> int:
    """Maximum positions of a sequence to score. Padding of the answer's last block may need more positions."""
    block = model.spec.network.attention.block
    return int(model.network.config.max_length) - max(0, block - 1) * model.paired


def check_length(model: Model, length: int, prompt: int = 0, most: int = 0) -> None:
    """Check that a sequence fits.

    Args:
        length: positions of the sequence. prompt: positions of its prompt, for the message.
        most: maximum positions; 0: the model's context.
    Raises:
        UserError: it is longer.
    """
    most = most or model.network.config.max_length
    if length > most:
        subject = (
            f"A prompt of {prompt} tokens and {length - prompt} new ones"
            if prompt
            else f"A sequence of {length} tokens"
        )
        raise UserError(
            f"{subject} does not fit the model's context of {most}.", "Shorten the prompt or lower max_new_tokens."
        )


def check_mask(model: Model) -> None:
    """Check that the mask token of a masked model is known.

    Raises:
        UserError: its files do not name it.
    """
    if model.spec.masks and not model.tokenizer.has("mask"):
        raise UserError("This checkpoint's files don't name its mask token.", "Give its id: load(..., mask_id=...).")
