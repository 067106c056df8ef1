"""The metadata of a GGUF file that describe a tokenizer: the inverse of ``data.gguf_tokenizer``."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import tokenizers

from redraft.data.gguf_tokenizer import CONTROL, NORMAL, OWN, RULES, SPECIAL_KEYS, UNUSED, Rule
from redraft.data.tokenizer import Tokenizer
from redraft.errors import UserError
from redraft.types import TokenIds

_STOPS = ("eot", "eom")  # keys of further tokens that end a text
_REMEDY = "Use a format with a tokenizer.json: --to llama, or --to redraft."


def tokenizer_metadata(tokenizer: Tokenizer, size: int, ids: TokenIds, paired: bool, mask: bool) -> dict[str, Any]:
    """Values by key, without their prefix ``tokenizer.``.

    Args:
        size: of the network's vocabulary. Ids without a token become ``[PAD12]``.
        ids: end-of-text and further tokens that end a text.
        paired: the model answers prompts. Without a chat template it gets one, which writes what stands around a
            prompt in training.
        mask: name the mask token.
    Raises:
        UserError: a GGUF file can't hold this tokenizer.
    """
    values = json.loads(tokenizer.backend.to_str())
    added = tokenizer.backend.get_added_tokens_decoder()
    tokens, types = [f"[PAD{number}]" for number in range(size)], [UNUSED] * size
    for token, number in tokenizer.backend.get_vocab(with_added_tokens=True).items():
        if number < size:
            tokens[number], types[number] = token, NORMAL
            if number in added:
                types[number] = CONTROL if added[number].special else OWN
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in values["model"].get("merges") or []]
    found: dict[str, Any] = {
        "ggml.model": "gpt2",
        "ggml.pre": _rule(values),
        "ggml.tokens": tokens,
        "ggml.token_type": types,
        "ggml.merges": merges,
    }
    opening = [] if paired else tokenizer.encode_opening("")
    if opening not in ([], [tokenizer.bos_id]):
        raise UserError(f"A GGUF file can't say that texts begin with the tokens {opening}.", _REMEDY)
    known = [key for key in ("pad", "bos", "sep", *(["mask"] if mask else [])) if tokenizer.has(key)]
    found |= {f"ggml.{SPECIAL_KEYS[key]}_token_id": _special(tokenizer, key) for key in known}
    found |= _ends(ids)
    found |= {"ggml.add_bos_token": bool(opening), "ggml.add_eos_token": False}
    template = tokenizer.chat_template
    if template is None and paired:
        template = prompt_template(tokenizer)
    return found | ({} if template is None else {"chat_template": template})


def prompt_template(tokenizer: Tokenizer) -> str:
    """A chat template for a model of single prompts and answers: the last message, and what stands around a prompt."""
    before, after = (
        "".join(str(tokenizer.backend.id_to_token(token)) for token in ids) for ids in tokenizer.around_prompt
    )
    return f"{{{{ {json.dumps(before)} + messages[-1]['content'] + {json.dumps(after)} }}}}"


def _special(tokenizer: Tokenizer, key: str) -> int:
    return {"pad": tokenizer.pad_id, "bos": tokenizer.bos_id, "sep": tokenizer.sep_id, "mask": tokenizer.mask_id}[key]


def _ends(ids: TokenIds) -> dict[str, int]:
    """End-of-text, and up to two further tokens that end a text."""
    stops: Sequence[int] = ids.stop_ids
    if len(stops) > len(_STOPS):
        raise UserError(f"A GGUF file can't name {len(stops) + 1} tokens that end a text.", _REMEDY)
    found = {f"ggml.{key}_token_id": number for key, number in zip(_STOPS, stops, strict=False)}
    return {**({"ggml.eos_token_id": ids.eos_id} if ids.eos_id >= 0 else {}), **found}


def _rule(values: dict[str, Any]) -> str:
    """The name of the rule by which a byte-level tokenizer splits text, from its ``tokenizer.json``.

    Raises:
        UserError: it is no byte-level BPE, or no rule is its own.
    """
    model = values["model"]
    if model["type"] != "BPE" or model.get("byte_fallback") or "ByteLevel" not in _steps(values["decoder"]):
        raise UserError("Only byte-level BPE tokenizers can be written into GGUF files.", _REMEDY)
    normalizers = [step["type"] for step in _flat(values["normalizer"])]
    own = _flat(values["pre_tokenizer"]), normalizers, bool(model.get("ignore_merges"))
    for name, rule in RULES.items():
        if own == _described(rule):
            return name
    raise UserError(
        "The rule by which this tokenizer splits text has no name in GGUF files that is known here.",
        f"Known: {', '.join(RULES)}. {_REMEDY}",
    )


def _described(rule: Rule) -> tuple[list[dict[str, Any]], list[str], bool]:
    empty = tokenizers.Tokenizer(tokenizers.models.BPE())
    empty.pre_tokenizer = rule.pre_tokenizer()
    return _flat(json.loads(empty.to_str())["pre_tokenizer"]), ["NFC"] if rule.nfc else [], rule.whole


def _flat(step: dict[str, Any] | None) -> list[dict[str, Any]]:
    """The steps of a sequence, without the settings that have no influence on ids."""
    if step is None:
        return []
    if step["type"] == "Sequence":
        inner = next(step[key] for key in ("pretokenizers", "normalizers", "decoders") if key in step)
        return [part for one in inner for part in _flat(one)]
    return [{key: value for key, value in step.items() if key != "trim_offsets"}]


def _steps(step: dict[str, Any] | None) -> list[str]:
    return [one["type"] for one in _flat(step)]
