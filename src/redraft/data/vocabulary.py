"""The vocabulary of a public checkpoint: its tokenizer, unchanged, with the special tokens that it has."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import tokenizers

from redraft.data.backends import read_tokenizer_json
from redraft.data.gguf_tokenizer import read_part, read_tokenizer
from redraft.data.templates import CHAT_TEMPLATE, template_of
from redraft.data.tokenizer import EXTRAS, SPECIALS, Tokenizer, name_specials, read_specials
from redraft.errors import UserError
from redraft.files import parse_json, write_atomically
from redraft.gguf_file import is_gguf

NONE = -1  # the id of a special token that the checkpoint lacks
_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    CHAT_TEMPLATE,
    "vocab.json",
    "merges.txt",
    "vocab.txt",
    "tokenizer.model",
)
_BPE_FILES = ("vocab.json", "merges.txt")
_OLDER = {  # tokenizer_class -> the class of transformers that reads it, and the files that it needs
    "GPT2Tokenizer": ("GPT2Tokenizer", _BPE_FILES),
    "GPT2TokenizerFast": ("GPT2Tokenizer", _BPE_FILES),
    "Qwen2Tokenizer": ("Qwen2Tokenizer", _BPE_FILES),
    "Qwen2TokenizerFast": ("Qwen2Tokenizer", _BPE_FILES),
    "DreamTokenizer": ("Qwen2Tokenizer", _BPE_FILES),
    "BertTokenizer": ("BertTokenizer", ("vocab.txt",)),
    "BertTokenizerFast": ("BertTokenizer", ("vocab.txt",)),
}


@dataclass(frozen=True)
class Ids:
    """Special tokens of a checkpoint by id.

    Fields:
        size: size of the network's vocabulary. pad ... delete: ids; -1 if the checkpoint lacks the token.
        forbidden: ids that are never generated. stop_ids: ids besides ``eos`` that end a text.
    """

    size: int
    pad: int = NONE
    eos: int = NONE
    bos: int = NONE
    mask: int = NONE
    sep: int = NONE
    expand: int = NONE
    delete: int = NONE
    forbidden: tuple[int, ...] = ()
    stop_ids: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        for name in (*SPECIALS, *EXTRAS):
            if not NONE <= getattr(self, name) < self.size:
                raise UserError(
                    f"vocabulary: {name} id {getattr(self, name)} is outside the vocabulary of {self.size} ids.",
                    f"Use an id from 0 to {self.size - 1}, or {NONE} for none.",
                )
        for end in self.stop_ids:
            if not 0 <= end < self.size or end == self.eos:
                raise UserError(
                    f"vocabulary: stop_ids holds {end}, which is eos or outside the vocabulary of {self.size} ids.",
                    f"Use other ids from 0 to {self.size - 1}.",
                )


class Vocabulary(Tokenizer):
    """Ids of a public checkpoint, and its tokenizer if it has one. No token is appended, as the network has no room.

    Prompts begin as the template of the tokenizer begins a text (with ``<s>``, or with nothing), and no token stands
    between prompt and answer. Without a ``tokenizer.json``, prompts are lists of ids, and texts are ids in digits.
    """

    def __init__(self, ids: Ids, folder: Path | None = None) -> None:
        self.folder = folder
        self._number(ids)
        self.added = ()
        self._backend = None if folder is None else read_backend(folder)
        if self._backend is not None:
            self._backend.no_padding()
            self._backend.no_truncation()
            self._backend.encode_special_tokens = True
        self.names = read_specials(folder) if folder is not None else {}
        self.chat_template = template_of(folder) if folder is not None else None

    def _number(self, ids: Ids) -> None:
        self.ids, self.vocab_size, self.markers = ids, ids.size, ids.forbidden
        self.eos_id, self.stop_ids = ids.eos, ids.stop_ids  # -1: no end-of-text token
        # A missing one of the others is replaced by another id, so that every id can be embedded.
        self.pad_id = next((i for i in (ids.pad, ids.eos) if i >= 0), 0)
        self.bos_id = next((i for i in (ids.bos, ids.eos) if i >= 0), self.pad_id)
        self.mask_id, self.sep_id = (i if i >= 0 else self.pad_id for i in (ids.mask, ids.sep))
        self.expand_id, self.delete_id = ids.expand, ids.delete

    def completed(self, mask: bool) -> Vocabulary:
        """A copy with the special tokens that training needs.

        If end-of-text is missing, the separator serves as one (BERT). With ``mask``, a missing mask token is added,
        with the first id after those of the tokenizer.
        """
        found = self._with([])
        if self.ids.eos < 0 and self.ids.sep >= 0:
            found._number(replace(self.ids, eos=self.ids.sep))
        return found._with(["mask"]) if mask and self.ids.mask < 0 else found

    def _with(self, keys: Sequence[str]) -> Vocabulary:
        """A copy with these special tokens, with the first ids after those of the tokenizer."""
        ids, found = self.ids, Vocabulary(self.ids)
        found.folder, found.names, found.added = self.folder, self.names, self.added
        found.chat_template = self.chat_template
        if self._backend is not None:
            found._backend = tokenizers.Tokenizer.from_str(self._backend.to_str())
            found._backend.encode_special_tokens = True
        for key in keys:
            number, name = ids.size, f"<|{key}|>"
            if found._backend is not None:
                number = max(found._backend.get_vocab(with_added_tokens=True).values()) + 1
                found._backend.add_special_tokens([tokenizers.AddedToken(name, special=True, normalized=False)])
                found.names, found.added = {**found.names, key: name}, (*found.added, key)
            new: dict[str, Any] = {key: number, "forbidden": tuple(sorted({*ids.forbidden, number}))}
            ids = replace(ids, size=max(ids.size, number + 1), **new)
        found._number(ids)
        return found

    @property
    def backend(self) -> tokenizers.Tokenizer:  # type: ignore[override]
        """The tokenizer of the checkpoint.

        Raises:
            UserError: the checkpoint has none.
        """
        if self._backend is None:
            raise UserError(
                f"The checkpoint {self.folder or ''} has no tokenizer.json, so texts can't be encoded or decoded.",
                "Add its tokenizer files to the folder, or give prompts as lists of ids.",
            )
        return self._backend

    @property
    def has_token_bytes(self) -> bool:
        """Is there a tokenizer, and is a text the concatenation of the bytes of its tokens?"""
        return self._backend is not None and super().has_token_bytes

    def with_special_tokens(self, extras: Sequence[str]) -> Tokenizer:
        """This vocabulary with these tokens of ``EXTRAS``; missing ones are added after those of the tokenizer."""
        missing = [key for key in extras if getattr(self.ids, key) < 0]
        return self._with(missing) if missing else self

    def has(self, key: str) -> bool:
        """Does this special token (``"mask"``) exist?"""
        return bool(getattr(self.ids, key) >= 0)

    def save(self, folder: str | Path) -> None:
        """Copy the tokenizer's files. An added mask token is written into them, and older formats also get a
        tokenizer.json."""
        if self.folder is None:
            return
        parts = {name: read_part(self.folder, name) for name in _FILES}
        for name, content in parts.items():
            if content is not None:
                write_atomically(Path(folder) / name, content)
        if self.chat_template is not None and self.chat_template != template_of(self.folder):
            write_atomically(Path(folder) / CHAT_TEMPLATE, self.chat_template)
        older = self._backend is not None and parts["tokenizer.json"] is None
        if self.added or older:
            write_atomically(Path(folder) / "tokenizer.json", self.backend.to_str(pretty=True))
            named = _read(self.folder, "tokenizer_config.json")
            named |= {f"{key}_token": self.names[key] for key in self.added}
            if older:  # the tokenizer.json replaces the Python code of the checkpoint
                name = str(named["tokenizer_class"])
                named = {**named, "tokenizer_class": _OLDER[name][0] if name in _OLDER else name}
                named.pop("auto_map", None)
            write_atomically(Path(folder) / "tokenizer_config.json", json.dumps(named, indent=2) + "\n")

    @property
    def around_prompt(self) -> tuple[list[int], list[int]]:
        """Ids that stand before and after the tokens of a prompt."""
        return self.encode_opening(""), []

    @property
    def answer_suffix(self) -> list[int]:
        """End-of-text, if the checkpoint has one."""
        return [self.eos_id] if self.eos_id >= 0 else []

    def encode_opening(self, text: str) -> list[int]:
        """The beginning of a plain text: the ids that the tokenizer's template puts first, then its tokens."""
        found: list[int] = self.backend.encode("", add_special_tokens=True).ids
        if found and found[-1] == self.eos_id:
            found = found[:-1]
        return [*found, *self.encode(text)]

    def encode_prompt(self, text: str) -> list[int]:
        """The prompt of a row: as ``encode_opening``, without a separator."""
        return self.encode_opening(text)

    def encode_target(self, text: str) -> list[int]:
        """The target of a row: its tokens, then ``answer_suffix``."""
        return [*self.encode(text), *self.answer_suffix]

    def decode(self, ids: Iterable[int]) -> str:
        """The text of some ids; without a tokenizer the ids in digits, separated by spaces."""
        return super().decode(ids) if self._backend is not None else " ".join(str(int(i)) for i in ids)


def read_backend(folder: Path) -> tokenizers.Tokenizer | None:
    """The tokenizer of a folder: ``tokenizer.json``, or one made from the older files of GPT-2, Qwen2, Dream and BERT;
    or that of a GGUF file.

    None if there are no tokenizer files.

    Raises:
        UserError: the tokenizer is corrupt or in an unsupported format.
    """
    if is_gguf(folder):
        return read_tokenizer(folder)
    file = folder / "tokenizer.json"
    if file.is_file():
        return read_tokenizer_json(file)
    if not any((folder / name).is_file() for name in _FILES):
        return None
    kind = str(_read(folder, "tokenizer_config.json").get("tokenizer_class"))
    name, needed = _OLDER.get(kind, ("", ()))
    if not name or not all((folder / part).is_file() for part in needed):
        raise UserError(
            f"Folder '{folder}' has no tokenizer.json, and its tokenizer class {kind} is not supported.",
            "Convert it with transformers: AutoTokenizer.from_pretrained(...).save_pretrained(...).",
        )
    import transformers

    try:
        made: tokenizers.Tokenizer = getattr(transformers, name).from_pretrained(folder).backend_tokenizer
    except Exception as error:
        raise UserError(
            f"The tokenizer of '{folder}' can't be read from {', '.join(needed)}: {error}.",
            "Copy or download these files again.",
        ) from None
    return made


def find_ids(folder: Path, config: Mapping[str, Any], size: int, given: Mapping[str, int]) -> Ids:
    """Special tokens of a checkpoint, from its files.

    In this order: the given id; ``*_token_id`` in config.json; the same in generation_config.json; ``*_token`` of the
    tokenizer, or a usual name, looked up in tokenizer.json. If the two files name several end-of-text ids, each of
    them stop_ids a text.

    Args:
        size: size of the network's vocabulary; ids beyond it are ignored.
        given: ids by name that take precedence over the files.
    Raises:
        UserError: an id is not a whole number.
    """
    generation = _read(folder, "generation_config.json")
    by_name: dict[str, int | None] = {}
    backend = read_backend(folder)
    if backend is not None:
        by_name = {
            key: backend.token_to_id(name) for key, name in name_specials(backend, read_specials(folder)).items()
        }
    found: dict[str, Any] = {}
    for key in (*SPECIALS, *EXTRAS):
        entry = f"{key}_token_id"
        values = [given.get(key), config.get(entry), generation.get(entry), by_name.get(key)]
        value = next((value for value in values if value is not None), None)
        if isinstance(value, list):
            value = value[0] if value else None
        if value is None:
            continue
        if not isinstance(value, int):
            raise UserError(f"'{folder}': {key}_token_id = {value!r} is not a whole number.", "Fix config.json.")
        found[key] = value
    known = {key: value for key, value in found.items() if 0 <= value < size}
    named = [config.get("eos_token_id"), generation.get("eos_token_id")]
    stop_ids = [end for value in named for end in (value if isinstance(value, list) else [value])]
    others = dict.fromkeys(
        end for end in stop_ids if isinstance(end, int) and 0 <= end < size and end != known.get("eos")
    )
    return replace(Ids(size), **known, stop_ids=tuple(others))


def _read(folder: Path, name: str) -> dict[str, Any]:
    content = read_part(folder, name)
    return {} if content is None else parse_json(content, folder / name)
