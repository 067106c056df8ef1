"""Reading a configuration so that no key is overlooked."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from redraft.errors import UserError

T = TypeVar("T")

# Keys of any Hugging Face configuration that say nothing of the function a network computes.
_SILENT = {
    "_attn_implementation",
    "_attn_implementation_autoset",
    "_commit_hash",
    "_name_or_path",
    "architectures",
    "attn_implementation",
    "auto_map",
    "dtype",
    "finetuning_task",
    "gradient_checkpointing",
    "id2label",
    "initializer_range",
    "label2id",
    "model_type",
    "name_or_path",
    "output_attentions",
    "output_hidden_states",
    "problem_type",
    "return_dict",
    "return_dict_in_generate",
    "task_specific_params",
    "tokenizer_class",
    "torch_dtype",
    "transformers_version",
    "use_cache",
}
# Special tokens, which ``data.vocabulary.find_ids`` reads.
_SPECIAL = {f"{name}_token_id" for name in ("pad", "bos", "eos", "mask", "sep", "unk", "cls", "decoder_start")}


class Keys:
    """The keys of a configuration. Whatever is not asked for, or known to mean nothing here, is an error in the end."""

    def __init__(self, values: Mapping[str, Any], file: Path | str) -> None:
        self.values, self.file = values, file
        self.read = {key for key in values if key in _SILENT | _SPECIAL}

    def __contains__(self, key: str) -> bool:
        return key in self.values

    def get(self, key: str, kind: type[T], default: T | None = None) -> T:
        """The value of a key. ``None`` counts as not given; without a default the key must be there.

        Raises:
            UserError: it is missing, or no ``kind``.
        """
        self.read.add(key)
        value = self.values.get(key)
        if value is None:
            if default is None:
                raise UserError(f"{self.file}: '{key}' is missing.")
            return default
        if kind is float and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            raise UserError(f"{self.file}: '{key}' = {value!r} is no {kind.__name__}.")
        return value

    def maybe(self, key: str) -> Any:
        """The value of a key, or None."""
        self.read.add(key)
        return self.values.get(key)

    def choose(self, key: str, known: Mapping[Any, T], default: Any = None) -> T:
        """The translation of a value.

        Raises:
            UserError: a value without one.
        """
        value = self.maybe(key)
        value = default if value is None else value
        if value not in known:
            raise self.unsupported(key, f"Known: {', '.join(map(repr, known))}.")
        return known[value]

    def must(self, key: str, *allowed: Any) -> None:
        """A key that may be absent or null, or have one of these values, for that is what our networks compute.

        Raises:
            UserError: another value.
        """
        value = self.maybe(key)
        if value is not None and value not in allowed:
            raise self.unsupported(key, f"Supported: {', '.join(map(repr, allowed)) or 'null'}.")

    def silent(self, *keys: str) -> None:
        """Keys that say nothing of the function: training, initialisation, output format."""
        self.read.update(keys)

    def table(self, key: str) -> Keys:
        """A nested table, to be finished by itself."""
        value = self.get(key, dict)
        return Keys(value, f"{self.file} {key}")

    def unsupported(self, key: str, remedy: str = "") -> UserError:
        return UserError(f"{self.file}: '{key}' = {self.values.get(key)!r} is not supported.", remedy)

    def finish(self) -> None:
        """Raises UserError for a key that nobody asked for."""
        for key in self.values:
            if key not in self.read:
                raise self.unsupported(key, "The format of this checkpoint knows no such key.")
