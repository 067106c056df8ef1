"""The vocabulary of a public checkpoint: its tokenizer as it is, with whatever special tokens it has."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import tokenizers

from redraft.data.tokenizer import EXTRAS, SPECIALS, Tokenizer, name_specials, read_specials
from redraft.errors import UserError
from redraft.files import write_atomically

NONE = -1  # the id of a special token that a checkpoint does not have
_MASK = "<|mask|>"
_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "vocab.json",
    "merges.txt",
    "vocab.txt",
    "tokenizer.model",
)
_PAIRS = ("vocab.json", "merges.txt")
_OLDER = {  # tokenizer_class -> the class of transformers that reads it, and the files that it needs
    "GPT2Tokenizer": ("GPT2Tokenizer", _PAIRS),
    "GPT2TokenizerFast": ("GPT2Tokenizer", _PAIRS),
    "Qwen2Tokenizer": ("Qwen2Tokenizer", _PAIRS),
    "Qwen2TokenizerFast": ("Qwen2Tokenizer", _PAIRS),
    "DreamTokenizer": ("Qwen2Tokenizer", _PAIRS),
    "BertTokenizer": ("BertTokenizer", ("vocab.txt",)),
    "BertTokenizerFast": ("BertTokenizer", ("vocab.txt",)),
}


@dataclass(frozen=True)
class Ids:
    """Size of the network's vocabulary, special tokens by id (-1: there is none), ids never to be generated, and those
    that end a text besides ``eos``."""

    size: int
    pad: int = NONE
    eos: int = NONE
    bos: int = NONE
    mask: int = NONE
    sep: int = NONE
    expand: int = NONE
    delete: int = NONE
    forbidden: tuple[int, ...] = ()
    ends: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        for name in (*SPECIALS, *EXTRAS):
            if not NONE <= getattr(self, name) < self.size:
                raise UserError(f"vocabulary: {name} id {getattr(self, name)} lies beyond its {self.size} ids.")
        for end in self.ends:
            if not 0 <= end < self.size or end == self.eos:
                raise UserError(f"vocabulary: ends holds {end}: it must be another id below {self.size}.")


class Vocabulary(Tokenizer):
    """Ids of a checkpoint, and its tokenizer if it has one. Nothing is appended: the network has no room for it.

    Prompts begin as the tokenizer's own template makes a text begin (with a ``<s>``, or with nothing), and nothing is
    put between prompt and answer. Without a ``tokenizer.json`` prompts are lists of ids and texts are ids in words.
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

    def _number(self, ids: Ids) -> None:
        self.ids, self.vocab_size, self.markers = ids, ids.size, ids.forbidden
        self.eos_id, self.ends = ids.eos, ids.ends  # -1 ends no text
        # Where the others are missing, another id holds their place, so that every id can be embedded.
        self.pad_id = next((i for i in (ids.pad, ids.eos) if i >= 0), 0)
        self.bos_id = next((i for i in (ids.bos, ids.eos) if i >= 0), self.pad_id)
        self.mask_id, self.sep_id = (i if i >= 0 else self.pad_id for i in (ids.mask, ids.sep))
        self.expand_id, self.delete_id = ids.expand, ids.delete

    def completed(self, mask: bool) -> Vocabulary:
        """The same with what a model that is to be trained must have: an end of text, where a separator can serve as
        one (BERT), and, if ``mask``, a mask token. A new one takes the first id behind those of the tokenizer."""
        ids, found = self.ids, Vocabulary(self.ids, self.folder)
        if ids.eos < 0 and ids.sep >= 0:
            ids = replace(ids, eos=ids.sep)
        if mask and ids.mask < 0:
            number = ids.size
            if found._backend is not None:
                number = max(found._backend.get_vocab(with_added_tokens=True).values()) + 1
                found._backend.add_special_tokens([tokenizers.AddedToken(_MASK, special=True, normalized=False)])
                found.names, found.added = {**found.names, "mask": _MASK}, ("mask",)
            forbidden = (*ids.forbidden, number)
            ids = replace(ids, mask=number, size=max(ids.size, number + 1), forbidden=forbidden)
        found._number(ids)
        return found

    @property
    def backend(self) -> tokenizers.Tokenizer:  # type: ignore[override]
        if self._backend is None:
            raise UserError(
                "this checkpoint has no tokenizer.json: it can be used by ids only.", "Put its tokenizer beside it."
            )
        return self._backend

    def having(self, extras: Sequence[str]) -> Tokenizer:
        """Raises UserError where one is missing."""
        missing = [key for key in extras if getattr(self.ids, key) < 0]
        if missing:
            raise UserError(
                f"this checkpoint's files don't name its {missing[0]} token, which the family needs.",
                f"Name it in its tokenizer_config.json: {missing[0]}_token.",
            )
        return self

    def has(self, key: str) -> bool:
        return bool(getattr(self.ids, key) >= 0)

    def save(self, folder: str | Path) -> None:
        """The tokenizer's files as they are, but for a mask token that was added; for older ones a tokenizer.json."""
        if self.folder is None:
            return
        for name in _FILES:
            if (self.folder / name).is_file():
                shutil.copyfile(self.folder / name, Path(folder) / name)
        older = self._backend is not None and not (self.folder / "tokenizer.json").is_file()
        if self.added or older:
            write_atomically(Path(folder) / "tokenizer.json", self.backend.to_str(pretty=True))
            named = _read(self.folder / "tokenizer_config.json")
            named |= {"mask_token": _MASK} if self.added else {}
            if older:  # so that nobody looks for the code that came with it
                named = {**named, "tokenizer_class": _OLDER[named["tokenizer_class"]][0]}
                named.pop("auto_map", None)
            write_atomically(Path(folder) / "tokenizer_config.json", json.dumps(named, indent=2) + "\n")

    @property
    def around_prompt(self) -> tuple[list[int], list[int]]:
        return self.encode_opening(""), []

    @property
    def closing(self) -> list[int]:
        return [self.eos_id] if self.eos_id >= 0 else []

    def encode_opening(self, text: str) -> list[int]:
        """A text from its beginning, with what the tokenizer's own template puts there."""
        found: list[int] = self.backend.encode("", add_special_tokens=True).ids
        if found and found[-1] == self.eos_id:
            found = found[:-1]
        return [*found, *self.encode(text)]

    def encode_prompt(self, text: str) -> list[int]:
        return self.encode_opening(text)

    def encode_target(self, text: str) -> list[int]:
        return [*self.encode(text), *self.closing]

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids; without a tokenizer the ids themselves, in words."""
        return super().decode(ids) if self._backend is not None else " ".join(str(int(i)) for i in ids)


def read_backend(folder: Path) -> tokenizers.Tokenizer | None:
    """A folder's tokenizer: its ``tokenizer.json``, or one made of the older files of GPT-2, Qwen2, Dream and BERT.

    None where there is none at all.

    Raises:
        UserError: a corrupt one, or of another kind.
    """
    file = folder / "tokenizer.json"
    if file.is_file():
        try:
            return tokenizers.Tokenizer.from_file(str(file))
        except Exception as error:  # the backend raises plain Exception
            raise UserError(f"'{file}' is corrupt: {error}.", "Copy it again.") from None
    if not any((folder / name).is_file() for name in _FILES):
        return None
    kind = str(_read(folder / "tokenizer_config.json").get("tokenizer_class"))
    name, needed = _OLDER.get(kind, ("", ()))
    if not name or not all((folder / part).is_file() for part in needed):
        raise UserError(
            f"{folder}: its tokenizer ({kind}) is not a tokenizer.json.",
            "Make one: transformers' AutoTokenizer.from_pretrained(...).save_pretrained(...).",
        )
    import transformers

    try:
        made: tokenizers.Tokenizer = getattr(transformers, name).from_pretrained(folder).backend_tokenizer
    except Exception as error:
        raise UserError(f"{folder}: its tokenizer can't be read from {', '.join(needed)}: {error}.") from None
    return made


def find_ids(folder: Path, config: Mapping[str, Any], size: int, given: Mapping[str, int]) -> Ids:
    """Special tokens of a checkpoint from its files: those given; then ``*_token_id`` of config.json and
    generation_config.json; then the tokenizer's ``*_token`` or the usual name, looked up in tokenizer.json. Where the
    two files name several ends of text, all of them end one.

    Raises:
        UserError: an id that is no number.
    """
    generation = _read(folder / "generation_config.json")
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
            raise UserError(f"{folder}: {key}_token_id = {value!r} is not an id.")
        found[key] = value
    known = {key: value for key, value in found.items() if 0 <= value < size}
    named = [config.get("eos_token_id"), generation.get("eos_token_id")]
    ends = [end for value in named for end in (value if isinstance(value, list) else [value])]
    others = dict.fromkeys(end for end in ends if isinstance(end, int) and 0 <= end < size and end != known.get("eos"))
    return replace(Ids(size), **known, ends=tuple(others))


def _read(file: Path) -> dict[str, Any]:
    if not file.is_file():
        return {}
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"'{file}' is corrupt: {error}.") from None
    return values if isinstance(values, dict) else {}
