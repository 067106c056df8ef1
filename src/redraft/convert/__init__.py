"""One file = one public checkpoint format: which networks of ours its configurations and tensors describe.

Nobody's code is run. Every key of a configuration is read: one that a format does not know, or a value that our
networks do not compute, is an error that names it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from redraft.convert._keys import Keys
from redraft.data.vocabulary import Ids, Vocabulary, find_ids
from redraft.errors import UserError, suggest
from redraft.registry import find, names
from redraft.weights import Files, Layout

if TYPE_CHECKING:
    from redraft.models.parts.backbone import Backbone


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
    ids = Ids(network.config.vocab_size, ids.pad, ids.eos, ids.bos, mask, ids.sep, forbidden)
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
