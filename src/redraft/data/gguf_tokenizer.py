"""The tokenizer of a GGUF file, from its metadata: byte-level BPE (GPT-2), or BPE with byte fallback (SentencePiece).

A GGUF file names the rule by which text is split before merging (``tokenizer.ggml.pre``) and does not hold it. Rules
that are not known here are refused, as another rule gives other tokens without any error. ``transformers`` builds these
tokenizers too, but does not split digits for ``smollm``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, processors

from redraft.errors import UserError
from redraft.gguf_file import GgufFile, is_gguf, open_gguf

SPECIAL_KEYS = {  # redraft's name -> the middle of the key tokenizer.ggml.*_token_id
    "bos": "bos",
    "eos": "eos",
    "unk": "unknown",
    "pad": "padding",
    "sep": "seperator",  # llama.cpp's spelling
    "mask": "mask",
}
NORMAL, UNKNOWN, CONTROL, OWN, UNUSED = 1, 2, 3, 4, 5  # tokenizer.ggml.token_type
_SPACE = "\u2581"
_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{digits}"
    r"| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@dataclass(frozen=True)
class Rule:
    """How a byte-level vocabulary splits text before merging.

    Fields:
        split: a regular expression whose matches are the pieces; empty: GPT-2's. digits: each digit is a piece.
        nfc: text is normalised to NFC. whole: a piece that is a token is not split. begins: with a bos token, unless
        the file says otherwise.
    """

    split: str = ""
    digits: bool = False
    nfc: bool = False
    whole: bool = False
    begins: bool = False

    def pre_tokenizer(self) -> pre_tokenizers.PreTokenizer:
        """The rule as a pre-tokenizer of the library."""
        parts: list[pre_tokenizers.PreTokenizer] = []
        if self.digits:
            parts.append(pre_tokenizers.Digits(individual_digits=True))
        if self.split:
            parts.append(pre_tokenizers.Split(tokenizers.Regex(self.split), "isolated"))
        parts.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=not self.split))
        return pre_tokenizers.Sequence(parts)


_GPT2, _DIGITS = Rule(), Rule(digits=True)
_LLAMA3 = Rule(_WORDS.format(digits="{1,3}"), whole=True, begins=True)
RULES: Mapping[str, Rule] = {  # tokenizer.ggml.pre
    "gpt-2": _GPT2,
    "llama-bpe": _LLAMA3,
    "llama-v3": _LLAMA3,
    "llama3": _LLAMA3,
    "qwen2": Rule(_WORDS.format(digits=""), nfc=True),
    "refact": _DIGITS,
    "smollm": _DIGITS,
    "starcoder": _DIGITS,
}


def read_part(model: Path, name: str) -> bytes | None:
    """The content of a file of a model by its Hugging Face name; None if it has none.

    A GGUF file stands for the folder that it was made from: its metadata give ``tokenizer_config.json``, with the chat
    template.

    Raises:
        UserError: a GGUF file is damaged.
    """
    if is_gguf(model):
        return _described(open_gguf(model)) if name == "tokenizer_config.json" else None
    file = model / name
    return file.read_bytes() if file.is_file() else None


def special_ids(file: GgufFile) -> dict[str, int]:
    """Special tokens of a GGUF file by name ("bos"). Ids that its vocabulary lacks are an error.

    Raises:
        UserError: an id is outside the vocabulary.
    """
    size = len(file.metadata.get("tokenizer.ggml.tokens", ()))
    found = {}
    for name, middle in SPECIAL_KEYS.items():
        key = f"tokenizer.ggml.{middle}_token_id"
        number = file.metadata.get(key)
        if number is None:
            continue
        if not isinstance(number, int) or not 0 <= number < size:
            raise file.damaged(f"{key} = {number!r} is outside the vocabulary of {size} tokens")
        found[name] = number
    return found


def read_tokenizer(path: Path) -> tokenizers.Tokenizer | None:
    """The tokenizer of a GGUF file; None if it has none.

    Raises:
        UserError: a kind of tokenizer that is not supported, or damaged metadata.
    """
    file = open_gguf(path)
    kind = file.metadata.get("tokenizer.ggml.model")
    if kind is None:
        return None
    if kind not in ("gpt2", "llama"):
        raise UserError(
            f"{path}: tokenizer.ggml.model = {kind!r} is not supported.", "Supported: gpt2 (byte-level BPE), llama."
        )
    tokens, types = _tokens(file)
    try:
        made = _byte_level(file, tokens) if kind == "gpt2" else _sentence_piece(file, tokens, types)
        added = [
            AddedToken(token, normalized=False, special=types[number] != OWN)
            for number, token in tokens.items()
            if types[number] in (CONTROL, OWN) or (types[number] == UNKNOWN and kind == "llama")
        ]
        made.add_special_tokens([token for token in added if token.special])
        made.add_tokens([token for token in added if not token.special])
    except UserError:
        raise
    except Exception as error:  # the library raises plain Exception
        raise file.damaged(f"its tokenizer can't be built: {error}") from None
    return made


def _tokens(file: GgufFile) -> tuple[dict[int, str], Sequence[int]]:
    """Tokens by id, without those that only fill the vocabulary up, and the types of all ids."""
    tokens = file.metadata.get("tokenizer.ggml.tokens")
    if not isinstance(tokens, list) or not all(isinstance(token, str) for token in tokens):
        raise file.damaged("tokenizer.ggml.tokens is not a list of texts")
    types = file.metadata.get("tokenizer.ggml.token_type", [1] * len(tokens))
    if not isinstance(types, list) or len(types) != len(tokens):
        raise file.damaged("tokenizer.ggml.token_type does not have one entry for each token")
    fillers = {n for n, token in enumerate(tokens) if types[n] == UNUSED and token == f"[PAD{n}]"}
    found = {number: token for number, token in enumerate(tokens) if number not in fillers}
    if len(set(found.values())) != len(found):
        raise file.damaged("tokenizer.ggml.tokens holds a token twice")
    return found, types


def _byte_level(file: GgufFile, tokens: Mapping[int, str]) -> tokenizers.Tokenizer:
    name = file.metadata.get("tokenizer.ggml.pre")
    if not isinstance(name, str) or name not in RULES:
        raise UserError(
            f"{file.path}: tokenizer.ggml.pre = {name!r}, the rule by which text is split, is not supported.",
            f"Supported: {', '.join(RULES)}.",
        )
    rule = RULES[name]
    pairs = (merge.partition(" ") for merge in _texts(file, "tokenizer.ggml.merges"))
    merges = [(left, right) for left, _, right in pairs]
    made = tokenizers.Tokenizer(models.BPE({t: n for n, t in tokens.items()}, merges, ignore_merges=rule.whole))
    if rule.nfc:
        made.normalizer = normalizers.NFC()
    made.pre_tokenizer = rule.pre_tokenizer()
    made.decoder = decoders.ByteLevel()
    made.post_processor = _ends(file, rule.begins)
    return made


def _sentence_piece(file: GgufFile, tokens: Mapping[int, str], types: Sequence[int]) -> tokenizers.Tokenizer:
    scores = file.metadata.get("tokenizer.ggml.scores")
    if not isinstance(scores, list) or len(scores) != len(types):
        raise file.damaged("tokenizer.ggml.scores does not have one entry for each token")
    ids = {token: number for number, token in tokens.items()}
    unknown = special_ids(file).get("unk")
    made = tokenizers.Tokenizer(
        models.BPE(
            ids,
            _merges(ids, scores),
            unk_token=None if unknown is None else tokens[unknown],
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    spaced = file.metadata.get("tokenizer.ggml.add_space_prefix", True)
    before = [normalizers.Prepend(_SPACE)] if spaced else []
    made.normalizer = normalizers.Sequence([*before, normalizers.Replace(" ", _SPACE)])
    after = [decoders.Strip(" ", 1, 0)] if spaced else []
    made.decoder = decoders.Sequence([decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), *after])
    made.post_processor = _ends(file, begins=True)
    return made


def _merges(ids: Mapping[str, int], scores: Sequence[float]) -> list[tuple[str, str]]:
    """Every way to make a token of two others, the token of the highest score first, as SentencePiece merges."""
    found = []
    for token, number in ids.items():
        for cut in range(1, len(token)):
            if token[:cut] in ids and token[cut:] in ids:
                found.append((-scores[number], -cut, token[:cut], token[cut:]))
    return [(left, right) for _, _, left, right in sorted(found)]


def _ends(file: GgufFile, begins: bool) -> processors.PostProcessor | None:
    """The template that puts bos and eos around a text; None if it puts nothing."""
    ids, tokens = special_ids(file), file.metadata["tokenizer.ggml.tokens"]
    begin = file.metadata.get("tokenizer.ggml.add_bos_token", begins) and "bos" in ids
    end = file.metadata.get("tokenizer.ggml.add_eos_token", False) and "eos" in ids
    names = [(tokens[ids[name]], ids[name]) for name, on in (("bos", begin), ("eos", end)) if on]
    if not names:
        return None
    single = [*([names[0][0]] if begin else []), "$A", *([names[-1][0]] if end else [])]
    return processors.TemplateProcessing(single=single, special_tokens=names)


def _described(file: GgufFile) -> bytes:
    """The ``tokenizer_config.json`` that a GGUF file stands for."""
    tokens = file.metadata.get("tokenizer.ggml.tokens", ())
    values: dict[str, Any] = {f"{name}_token": tokens[number] for name, number in special_ids(file).items()}
    values |= {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    key = "tokenizer.chat_template"
    template = file.metadata.get(key)
    names = _texts(file, "tokenizer.chat_templates", needed=False)
    named = {name: file.metadata.get(f"{key}.{name}") for name in names}
    if named:
        every = {**({} if template is None else {"default": template}), **named}
        values["chat_template"] = [{"name": name, "template": text} for name, text in every.items()]
    elif template is not None:
        values["chat_template"] = template
    return json.dumps(values, indent=2, ensure_ascii=False).encode()


def _texts(file: GgufFile, key: str, needed: bool = True) -> list[str]:
    """A list of texts in the metadata."""
    found = file.metadata.get(key, None if needed else [])
    if not isinstance(found, list) or not all(isinstance(text, str) for text in found):
        raise file.damaged(f"{key} is missing, or not a list of texts")
    return found
