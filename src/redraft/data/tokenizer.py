"""Text <-> token ids: a trained byte-level BPE, any ``tokenizer.json``, or plain bytes, in one class and one format."""

from __future__ import annotations

import builtins
import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from tokenizers import AddedToken, decoders, models, pre_tokenizers, trainers

from redraft.data.backends import read_tokenizer_json
from redraft.data.gguf_tokenizer import read_part
from redraft.data.templates import CHAT_TEMPLATE, template_of
from redraft.errors import UserError
from redraft.files import parse_json, write_atomically

SPECIALS = ("pad", "eos", "bos", "mask", "sep")  # in the order of their ids in redraft's tokenizers: <pad> is 0
EXTRAS = ("expand", "delete")  # special tokens that only some families need (``families.expand``)
# Usual names in published tokenizers, for configurations that don't name them. Only tokens marked as special count.
_ALIASES: Mapping[str, tuple[str, ...]] = {
    "pad": ("<pad>", "[PAD]", "<|pad|>", "<|padding|>"),
    "eos": ("<eos>", "</s>", "<|endoftext|>", "<|end_of_text|>", "[EOS]"),
    "bos": ("<bos>", "<s>", "<|startoftext|>", "<|begin_of_text|>", "[BOS]", "[CLS]"),
    "mask": ("<mask>", "[MASK]", "<|mask|>", "<|mdm_mask|>", "<|MASK|>", "|<MASK>|"),
    "sep": ("<sep>", "[SEP]", "<|sep|>"),
    "expand": ("<expand>", "<|expand|>"),
    "delete": ("<delete>", "<|delete|>"),
}
_BYTE_TOKEN = re.compile(r"<0x[0-9A-Fa-f]{2}>")


class Tokenizer:
    """A vocabulary with five special tokens: pad, eos, bos, mask, sep; some families need two more.

    Text is never read as a special token: ``encode("<eos>")`` gives the ids of five characters, so that data can't
    contain an end of text. If a ``tokenizer.json`` lacks one of the five, a new id is appended for it and named in
    ``added`` (the network's embedding must have room for it).

    Attributes:
        vocab_size: highest id + 1.
        pad_id, eos_id, bos_id, mask_id, sep_id: the special tokens.
        expand_id, delete_id: the special tokens of variable-length families; -1 if absent (see ``having``).
        markers: ids that are never generated: all special tokens, except one that also serves as end-of-text.
        stop_ids: further ids that end a text, for public checkpoints that have several.
        added: special tokens that were appended to a foreign tokenizer.
        chat_template: how conversations become text (``data.chat``); saved with the tokenizer.
    """

    stop_ids: tuple[int, ...] = ()

    def __init__(
        self, backend: tokenizers.Tokenizer, specials: Mapping[str, str] | None = None, chat_template: str | None = None
    ) -> None:
        """Wrap a backend.

        Args:
            specials: texts of the special tokens by name (``"pad"``...). One that is not named is looked up by its
                usual texts; if it is not found, it is appended.
        """
        self.chat_template = chat_template
        backend.no_padding()
        backend.no_truncation()
        backend.encode_special_tokens = True  # the backend's name for "treat them as ordinary text"
        before = set(backend.get_vocab(with_added_tokens=True))
        names = name_specials(backend, specials or {})
        backend.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in names.values()])
        self.backend = backend
        self.names = names
        self.added = tuple(key for key in names if names[key] not in before)
        self.pad_id, self.eos_id, self.bos_id, self.mask_id, self.sep_id = (
            _id(backend, names[key]) for key in SPECIALS
        )
        self.vocab_size = max(backend.get_vocab(with_added_tokens=True).values()) + 1
        self.expand_id, self.delete_id = (_id(backend, names[key]) if key in names else -1 for key in EXTRAS)
        self.markers: tuple[int, ...] = tuple(sorted({_id(backend, name) for name in names.values()} - {self.eos_id}))

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int) -> Tokenizer:
        """Train byte-level BPE (Sennrich et al. 2016, arXiv:1508.07909; on bytes as in Radford et al. 2019).

        Lossless: nothing is normalised, and every byte has a token. The same texts give the same tokenizer.

        Raises:
            UserError: ``vocab_size`` has no room for 256 bytes and the special tokens.
        """
        smallest = 256 + len(SPECIALS)
        if vocab_size < smallest:
            raise UserError(
                f"Vocabulary size {vocab_size} is too small: 256 bytes and {len(SPECIALS)} special tokens need ids.",
                f"Use {smallest} or more.",
            )
        backend = _byte_level(models.BPE())
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=[_own(key) for key in SPECIALS],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        backend.train_from_iterator(texts, trainer)
        return cls(backend, {key: _own(key) for key in SPECIALS})

    @classmethod
    def bytes(cls) -> Tokenizer:
        """A tokenizer with one token for each byte: byte ``b`` has id ``5 + b``."""
        symbols = [_own(key) for key in SPECIALS] + _byte_symbols()
        backend = _byte_level(models.BPE(vocab={symbol: i for i, symbol in enumerate(symbols)}, merges=[]))
        return cls(backend, {key: _own(key) for key in SPECIALS})

    @classmethod
    def load(cls, path: str | Path) -> Tokenizer:
        """Read a ``tokenizer.json``, or the folder that holds one, with its special tokens.

        Special tokens are looked up in ``tokenizer_config.json``, then in ``special_tokens_map.json``, then by their
        usual names among the tokens marked as special. One that is not found is appended.

        Raises:
            UserError: the file does not exist or can't be read.
        """
        path = Path(path)
        file = path / "tokenizer.json" if path.is_dir() else path
        if not file.is_file():
            raise UserError(
                f"There is no tokenizer at '{file}'.",
                "Give a tokenizer.json or its folder; transformers' save_pretrained converts other formats to it.",
            )
        return cls(read_tokenizer_json(file), read_specials(file.parent), template_of(file.parent))

    def with_special_tokens(self, extras: Sequence[str]) -> Tokenizer:
        """The same tokenizer with these tokens of ``EXTRAS``; missing ones are appended as new ids."""
        if all(key in self.names for key in extras):
            return self
        named = {key: _own(key) for key in extras} | self.names
        return Tokenizer(tokenizers.Tokenizer.from_str(self.backend.to_str()), named, self.chat_template)

    def save(self, folder: str | Path) -> None:
        """Write ``tokenizer.json`` and ``tokenizer_config.json``, which transformers' AutoTokenizer can read, too."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        config: dict[str, Any] = {f"{key}_token": name for key, name in self.names.items()}
        config |= {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
        write_atomically(folder / "tokenizer.json", self.backend.to_str(pretty=True))
        write_atomically(folder / "tokenizer_config.json", json.dumps(config, indent=2, ensure_ascii=False) + "\n")
        if self.chat_template is not None:
            write_atomically(folder / CHAT_TEMPLATE, self.chat_template)

    def has(self, key: str) -> bool:
        """Does this special token (``"mask"``) exist? Only public checkpoints may lack one (``data.vocabulary``)."""
        return True

    def encode(self, text: str) -> list[int]:
        """Token ids of a text; no special tokens are added."""
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of many texts, without special tokens. TOKENIZERS_PARALLELISM sets the backend's threads.

        Raises:
            UserError: a text is not valid Unicode.
        """
        if self._is_bytes:
            for text in texts:
                check_unicode(text)
            return [[byte + len(SPECIALS) for byte in text.encode()] for text in texts]
        try:
            found = self.backend.encode_batch_fast(list(texts), add_special_tokens=False)
        except (TypeError, UnicodeEncodeError):
            for text in texts:
                check_unicode(text)
            raise
        return [encoding.ids for encoding in found]

    @property
    def around_prompt(self) -> tuple[list[int], list[int]]:
        """Ids that stand before and after the tokens of a prompt."""
        return [], [self.sep_id]

    @property
    def answer_suffix(self) -> list[int]:
        """Ids that stand after a target or a document: end-of-text."""
        return [self.eos_id]

    def encode_marked(self, text: str) -> list[int]:
        """Token ids of a text from a chat template: special tokens in it are recognised, and none is added.

        Raises:
            UserError: the text is not valid Unicode.
        """
        check_unicode(text)
        return list(self._reader.encode(text, add_special_tokens=False).ids)

    def encode_opening(self, text: str) -> list[int]:
        """The beginning of a plain text: bos, then its tokens."""
        return [self.bos_id, *self.encode(text)]

    def encode_prompt(self, text: str) -> list[int]:
        """The prompt of a row: its tokens, then sep."""
        return [*self.encode(text), self.sep_id]

    def encode_target(self, text: str) -> list[int]:
        """The target of a row: its tokens, then eos."""
        return [*self.encode(text), self.eos_id]

    def decode(self, ids: Iterable[int]) -> str:
        """The text of some ids. Special tokens are skipped, and incomplete UTF-8 becomes U+FFFD."""
        return str(self.backend.decode([int(i) for i in ids if int(i) not in self._specials], skip_special_tokens=True))

    def bytes_of(self, ids: Iterable[int]) -> int:
        """Number of UTF-8 bytes of the text of some ids; special tokens count as 0."""
        return int(self.byte_lengths[np.fromiter(ids, dtype=np.int64)].sum())

    @cached_property
    def byte_lengths(self) -> np.ndarray:
        """[vocab_size] int32: number of UTF-8 bytes of each token. Exact for byte-level and byte-fallback vocabularies;
        for others (WordPiece) the length of the text that the token alone decodes to."""
        kinds = self._decoders
        lengths = np.zeros(self.vocab_size, dtype=np.int32)
        extra = self.backend.get_added_tokens_decoder()
        for token, i in self.backend.get_vocab(with_added_tokens=True).items():
            if i in extra:
                lengths[i] = 0 if extra[i].special else len(token.encode())
            elif "ByteLevel" in kinds:
                lengths[i] = len(token)  # each character of the byte-level alphabet represents one byte
            elif "ByteFallback" in kinds and _BYTE_TOKEN.fullmatch(token):
                lengths[i] = 1
            elif kinds & {"ByteFallback", "Metaspace"}:
                lengths[i] = len(token.replace("\u2581", " ").encode())
            else:
                lengths[i] = len(self.backend.decode([i]).encode())
        return lengths

    @property
    def has_token_bytes(self) -> bool:
        """Is the text the concatenation of the bytes of its tokens (``token_bytes``)?"""
        return bool(self._decoders & {"ByteLevel", "ByteFallback", "Metaspace"})

    @cached_property
    def token_bytes(self) -> tuple[builtins.bytes | None, ...]:
        """The bytes that each id adds to a text, for vocabularies whose text is the concatenation of its tokens' bytes.

        None for special tokens, which add nothing, and for unused ids.

        Raises:
            UserError: another kind of vocabulary (WordPiece), where the bytes of a token depend on its neighbours.
        """
        kinds = self._decoders
        if not self.has_token_bytes:
            raise UserError(
                "The bytes of a single token are not defined for this kind of tokenizer (WordPiece or another).",
                "Constraints need a byte-level or SentencePiece vocabulary.",
            )
        extra = self.backend.get_added_tokens_decoder()
        values = {symbol: byte for byte, symbol in enumerate(_byte_symbols())}
        found: list[bytes | None] = [None] * self.vocab_size
        for token, i in self.backend.get_vocab(with_added_tokens=True).items():
            if i in extra:
                found[i] = None if extra[i].special else token.encode()
            elif "ByteLevel" in kinds:
                known = all(symbol in values for symbol in token)
                found[i] = bytes(values[symbol] for symbol in token) if known else None
            elif _BYTE_TOKEN.fullmatch(token):
                found[i] = None if token == "<0x20>" else bytes([int(token[3:5], 16)])  # space has a token of its own
            else:
                found[i] = token.replace("\u2581", " ").encode()
        return tuple(found)

    @cached_property
    def drops_first_space(self) -> bool:
        """Does decoding drop one leading space of a text (SentencePiece)?"""
        spaced = (i for i, text in enumerate(self.token_bytes) if text is not None and text[:1] == b" " and text[1:])
        first = next(spaced, None)
        return first is not None and not self.decode([first]).startswith(" ")

    @cached_property
    def _decoders(self) -> set[str]:
        """Types of the decoders that convert tokens to text."""
        return set(re.findall(r'"type":"(\w+)"', _compact(json.loads(self.backend.to_str())["decoder"])))

    @cached_property
    def fingerprint(self) -> str:
        """Hash of the vocabulary, its rules and its special tokens: equal tokenizers have equal fingerprints."""
        content = json.loads(self.backend.to_str())
        return hashlib.sha256(_compact([content, self.names]).encode()).hexdigest()[:16]

    @cached_property
    def _reader(self) -> tokenizers.Tokenizer:
        """A copy of the backend that recognises special tokens. A copy, as all threads share the setting."""
        copy = tokenizers.Tokenizer.from_str(self.backend.to_str())
        copy.no_padding()
        copy.no_truncation()
        copy.encode_special_tokens = False
        return copy

    @cached_property
    def _is_bytes(self) -> bool:
        """Is this vocabulary that of ``Tokenizer.bytes()``? Then ids are computed without searching for merges."""
        extras = [self.names[key] for key in EXTRAS if key in self.names]
        expected = {symbol: i for i, symbol in enumerate([*map(_own, SPECIALS), *_byte_symbols(), *extras])}
        return self.backend.get_vocab(with_added_tokens=True) == expected

    @cached_property
    def _specials(self) -> frozenset[int]:
        return frozenset(
            (self.pad_id, self.eos_id, self.bos_id, self.mask_id, self.sep_id, self.expand_id, self.delete_id)
        )


def check_unicode(text: str) -> None:
    """Check that a text can be encoded as UTF-8.

    Raises:
        UserError: the text holds half of a surrogate pair.
    """
    if text.isascii():
        return
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UserError(
            f"The text is not valid Unicode: character {error.start + 1} is U+{ord(text[error.start]):04X}, half of a "
            "surrogate pair.",
            "Remove it, or decode the text again from its source.",
        ) from None


def _id(backend: tokenizers.Tokenizer, token: str) -> int:
    found = backend.token_to_id(token)
    assert found is not None
    return found


def _own(key: str) -> str:
    return f"<{key}>"


def _byte_level(model: models.Model) -> tokenizers.Tokenizer:
    backend = tokenizers.Tokenizer(model)
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    backend.decoder = decoders.ByteLevel()
    return backend


def _byte_symbols() -> list[str]:
    """The printable character that represents each byte 0..255 in byte-level vocabularies (Radford et al. 2019)."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = iter(range(256, 512))
    return [chr(b) if b in printable else chr(next(others)) for b in range(256)]


def name_specials(backend: tokenizers.Tokenizer, given: Mapping[str, str]) -> dict[str, str]:
    """Texts of the special tokens by name: the given one, else a marked token with a usual text, else ``<name>``.

    Tokens of ``EXTRAS`` are included only if they are given or found.
    """
    marked = {token.content for token in backend.get_added_tokens_decoder().values() if token.special}
    names = {}
    for key in (*SPECIALS, *EXTRAS):
        known = next((alias for alias in _ALIASES[key] if alias in marked), None)
        name = given.get(key) or known or (None if key in EXTRAS else _own(key))
        if name is not None:
            names[key] = name
    return names


def read_specials(folder: Path) -> dict[str, str]:
    """Texts of the special tokens in a folder's tokenizer files, by the names in ``SPECIALS`` and ``EXTRAS``.

    Raises:
        UserError: a file is not valid JSON.
    """
    named = [_read_names(folder, name) for name in ("special_tokens_map.json", "tokenizer_config.json")]
    return named[0] | named[1]


def _read_names(folder: Path, name: str) -> dict[str, str]:
    """The ``*_token`` entries of a tokenizer configuration: a string, or a mapping with its ``content``."""
    content = read_part(folder, name)
    if content is None:
        return {}
    values, found = parse_json(content, folder / name), {}
    for key in (*SPECIALS, *EXTRAS):
        value = values.get(f"{key}_token")
        value = value.get("content") if isinstance(value, dict) else value
        if isinstance(value, str) and value:
            found[key] = value
    return found


def _compact(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"), sort_keys=True, ensure_ascii=False)
