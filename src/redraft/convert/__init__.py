"""One file = one public checkpoint format: which networks of ours its configurations and tensors describe.

Nobody's code is run. Every key of a configuration is read: one that a format does not know, or a value that our
networks do not compute, is an error that names it.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from redraft.convert._keys import Keys
from redraft.data.vocabulary import Ids, Vocabulary, find_ids
from redraft.errors import UserError, suggest
from redraft.files import atomic_folder, write_atomically
from redraft.registry import find, names
from redraft.weights import Files, Layout, pack, stored

if TYPE_CHECKING:
    from redraft.data.tokenizer import Tokenizer
    from redraft.models.parts.backbone import Backbone
    from redraft.types import Spec


@dataclass(frozen=True)
class Plan:
    """What a configuration comes to in our terms."""

    network: Mapping[str, Any]  # name and shape (``models.empty``)
    family: Mapping[str, Any]  # name and options
    layout: Layout
    forbid_mask: bool = False  # its sampling never predicts the mask
    mask: int | None = None  # where the format itself says which id it is
    defaults: Mapping[str, Any] = field(default_factory=dict)  # generation settings


class Format(Protocol):
    """A public checkpoint format. ``names``: of its tensors; ``ids``: special tokens that its files name."""

    summary: str
    citation: str

    @staticmethod
    def fits(config: Mapping[str, Any], ids: Ids) -> bool:
        """Is a configuration of this format?"""
        ...

    @staticmethod
    def read(keys: Keys, names: Collection[str], ids: Ids) -> Plan:
        """Translate a configuration, reading every key of it."""
        ...

    # A format that can be written, too, also has
    #     @staticmethod
    #     def write(network: Backbone, spec: Spec) -> tuple[dict[str, Any], Layout]
    # : its configuration and names for one of our networks, or a UserError that says why it can't hold it.


@dataclass(frozen=True)
class Foreign:
    """A public checkpoint, opened but for its weights."""

    format: str
    plan: Plan
    network: Backbone  # without memory
    files: Files
    vocabulary: Vocabulary


def open_foreign(folder: Path, config: Mapping[str, Any], given: Mapping[str, int] | None = None) -> Foreign:
    """Recognise a folder's format and plan its network.

    Args:
        given: special tokens by name ("mask") where the files do not say.
    Raises:
        UserError: unknown format, a key or value that is not supported, missing or corrupt files.
    """
    from redraft.models import empty

    file = folder / "config.json"
    keys = Keys(config, file)
    ids = find_ids(folder, config, _size(config), given or {})
    format_name = recognise(config, ids, file)
    files = Files(folder)
    plan: Plan = find("convert", format_name).read(keys, files.names, ids)
    keys.finish()
    network = empty(plan.network, str(file))
    mask = ids.mask if ids.mask >= 0 or plan.mask is None else plan.mask
    forbidden = (mask,) if plan.forbid_mask and mask >= 0 else ()
    ids = replace(ids, size=network.config.vocab_size, mask=mask, forbidden=forbidden)
    return Foreign(format_name, plan, network, files, Vocabulary(ids, folder))


def recognise(config: Mapping[str, Any], ids: Ids, file: Path) -> str:
    """The name of the one format that a configuration is of.

    Raises:
        UserError: there is none.
    """
    for name in names("convert"):
        if find("convert", name).fits(config, ids):
            return name
    known = suggest(str(config.get("model_type")), names("convert"))
    what = f"{file}: model_type {config.get('model_type')!r}, architectures {config.get('architectures')!r}"
    raise UserError(f"{what} is no format known here.", known)


def _size(config: Mapping[str, Any]) -> int:
    """Ids of the network's vocabulary, roughly: no special token lies beyond."""
    sizes = [config.get(key) for key in ("embedding_size", "vocab_size")]
    if isinstance(config.get("tokens"), int):  # SEDD: without the absorbing state
        sizes.append(config["tokens"] + 1)
    return max((size for size in sizes if isinstance(size, int)), default=1 << 31)


def writable() -> tuple[str, ...]:
    """Formats that can be written."""
    return tuple(name for name in names("convert") if hasattr(find("convert", name), "write"))


def export(
    format_name: str, network: Backbone, tokenizer: Tokenizer, spec: Spec, folder: Path, storage: str, card: str
) -> None:
    """Write a model as a public format holds it: configuration, weights, tokenizer, card; whole or not at all.

    Raises:
        UserError: the format can't hold this model.
    """
    from safetensors.torch import save_file

    if spec.guesses:
        raise UserError("no public format holds a self-conditioned model.", "Fine-tune it with self_condition = 0.")
    config, layout = find("convert", format_name).write(network, spec)
    special = {f"{key}_token_id": getattr(spec, f"{key}_id") for key in ("pad", "eos") if tokenizer.has(key)}
    if tokenizer.has("bos"):
        special["bos_token_id"] = tokenizer.bos_id
    with atomic_folder(folder) as new:
        described = {**config, **special, "dtype": storage}
        write_atomically(new / "config.json", json.dumps(described, indent=2) + "\n")
        write_atomically(new / "generation_config.json", json.dumps(special, indent=2) + "\n")
        state = pack(stored(network, layout), storage)
        save_file(state, str(new / "model.safetensors"), metadata={"format": "pt"})
        tokenizer.save(new)
        write_atomically(new / "README.md", card)
