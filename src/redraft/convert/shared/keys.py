"""Reading a public configuration so that no key is overlooked."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from redraft.errors import UserError

T = TypeVar("T")

# Keys of any Hugging Face configuration that don't change the function of the network.
_IGNORED = {
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
# Special tokens; ``data.vocabulary.find_ids`` reads them.
_SPECIAL = {f"{name}_token_id" for name in ("pad", "bos", "eos", "mask", "sep", "unk", "cls", "decoder_start")}


class Keys:
    """The keys of a configuration. A key that is neither read nor ignored explicitly is an error in ``finish``.

    Args:
        unstated: values of the published configuration class for keys that the file lacks.
    """

    def __init__(self, values: Mapping[str, Any], file: Path | str, unstated: Mapping[str, Any] | None = None) -> None:
        self.values, self.stated, self.file = {**(unstated or {}), **values}, values.keys(), file
        self.read = {key for key in self.values if key in _IGNORED | _SPECIAL}

    def __contains__(self, key: str) -> bool:
        return key in self.values

    def get(self, key: str, kind: type[T], default: T | None = None) -> T:
        """The value of a key: that of the file, else that of the published class (``unstated``). ``null`` counts as
        missing.

        Args:
            kind: the type of the value.
            default: the value of a missing key; without one, the key must exist.
        Raises:
            UserError: the key is missing, or its value has another type.
        """
        self.read.add(key)
        value = self.values.get(key)
        if value is None:
            if default is None:
                raise UserError(f"{self.file}: Key '{key}' is missing.", "Copy or download the file again.")
            return default
        if kind is float and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            raise UserError(f"{self.file}: '{key}' = {value!r} is not of type {kind.__name__}.", "Fix the file.")
        return value

    def optional(self, key: str) -> Any:
        """The value of a key, or None."""
        self.read.add(key)
        return self.values.get(key)

    def translate(self, key: str, known: Mapping[Any, T], default: Any = None) -> T:
        """The translation of the value of a key, by a table.

        Args:
            default: the value of a missing key.
        Raises:
            UserError: the table does not have the value.
        """
        value = self.optional(key)
        value = default if value is None else value
        if value not in known:
            raise self.unsupported(key, f"Supported: {', '.join(map(repr, known))}.")
        return known[value]

    def require(self, key: str, *allowed: Any) -> None:
        """Check that a key is missing, null, or has a value that redraft's networks compute.

        Raises:
            UserError: it has another value.
        """
        value = self.optional(key)
        if value is not None and value not in allowed:
            raise self.unsupported(key, f"Supported: {', '.join(map(repr, allowed)) or 'null'}.")

    def ignore(self, *keys: str) -> None:
        """Mark keys that don't change the function of the network: training, initialisation, output format."""
        self.read.update(keys)

    def table(self, key: str) -> Keys:
        """A nested table. It needs its own ``finish``.

        Raises:
            UserError: the key is missing, or its value is not an object.
        """
        value = self.get(key, dict)
        return Keys(value, f"{self.file} {key}")

    def unsupported(self, key: str, remedy: str = "") -> UserError:
        """The error for a key or value that is not supported."""
        origin = "" if key in self.stated else " (the default of this format; the file doesn't state it)"
        return UserError(f"{self.file}: '{key}' = {self.values.get(key)!r}{origin} is not supported.", remedy)

    def finish(self) -> None:
        """Check that every key was read or ignored.

        Raises:
            UserError: a key was not.
        """
        for key in self.values:
            if key not in self.read:
                raise self.unsupported(key, "The format of this checkpoint has no such key.")
