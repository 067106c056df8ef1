"""Registry of public checkpoint formats: one file is one format, read into redraft's networks and sometimes written.

The Python code of a checkpoint is never run. Every key of its configuration is read: a key that the format does not
have, or a value that redraft's networks don't compute, is an error that names it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from redraft.convert.shared import gguf, gguf_export
from redraft.convert.shared.format import Format, Translation
from redraft.convert.shared.keys import Keys
from redraft.data.vocabulary import Vocabulary, find_ids
from redraft.errors import UserError, suggest
from redraft.files import atomic_folder, write_atomically
from redraft.registry import find, names
from redraft.weights import Files, Layout, check_scale, pack, stored

if TYPE_CHECKING:
    from redraft.data.tokenizer import Tokenizer
    from redraft.data.vocabulary import Ids
    from redraft.models.parts.backbone import Backbone
    from redraft.types import Spec

GGUF = "gguf"  # the format that is one file, in place of a file of this folder


@dataclass(frozen=True)
class Foreign:
    """A public checkpoint, opened except for its weights."""

    format: str
    plan: Translation
    network: Backbone  # on the meta device: without memory
    files: Files
    vocabulary: Vocabulary


def open_foreign(folder: Path, config: Mapping[str, Any], given: Mapping[str, int] | None = None) -> Foreign:
    """Recognise the format of a folder and translate its configuration.

    Args:
        config: the content of its config.json.
        given: ids of special tokens by name ("mask") that the files don't name.
    Raises:
        UserError: unknown format, a key or value that is not supported, missing or corrupt files.
    """
    return _open(folder, folder / "config.json", config, given or {}, lambda: Files(folder))


def open_gguf(file: Path, given: Mapping[str, int] | None = None) -> Foreign:
    """The same for a GGUF file, which stands for the Hugging Face checkpoint that it was made from.

    Args:
        given: ids of special tokens by name ("mask") that the file doesn't name.
    Raises:
        UserError: a damaged file, or a key, value or type that is not supported.
    """
    config, files = gguf.read(file)
    found = _open(file, file, config, given or {}, lambda: files)
    own = dict(found.network.named_parameters())
    for name, place in found.plan.layout.places.items():
        wanted = tuple(place.view(own[place.name]).shape)
        if name not in files.where:
            raise UserError(f"{file}: the tensor for '{name}' is missing.", "Copy or download the file again.")
        if files.shape(name) != wanted:
            what = f"{file}: tensor '{files.stored_names[name]}' has shape {list(files.shape(name))}"
            raise UserError(f"{what}, the metadata need {list(wanted)}.", "Copy or download the file again.")
    return found


def _open(
    model: Path, file: Path, config: Mapping[str, Any], given: Mapping[str, int], open_files: Callable[[], Files]
) -> Foreign:
    from redraft.models import empty, shape

    ids = find_ids(model, _flat(config), _max_ids(_flat(config)), given)
    stated = {f"{key}_token_id": number for key, number in given.items()}
    format_name = recognise({**config, **stated}, ids, file)
    files = open_files()
    check_scale(_counts(config), files, str(file))
    plan = translate(format_name, config, file, files.names, ids)
    check_scale(shape(plan.network, str(file)), files, str(file))
    network = empty(plan.network, str(file))
    mask = ids.mask if ids.mask >= 0 or plan.mask is None else plan.mask
    forbidden = (mask,) if plan.forbid_mask and mask >= 0 else ()
    delete = ids.delete if ids.delete >= 0 or plan.delete is None else plan.delete
    ids = replace(ids, size=network.config.vocab_size, mask=mask, delete=delete, forbidden=forbidden)
    return Foreign(format_name, plan, network, files, Vocabulary(ids, model))


def _flat(config: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration with the keys of its table for text, where there is one, beside its own."""
    text = config.get("text_config")
    return {**(text if isinstance(text, Mapping) else {}), **config}


def _counts(config: Mapping[str, Any]) -> dict[str, Any]:
    """The numbers of layers in a configuration, under the names of any format: a translation has a loop over them."""
    found = {key: _counts(value) for key, value in config.items() if isinstance(value, Mapping)}
    return found | {key: value for key, value in config.items() if re.fullmatch("(num|n)_.*(layers?|blocks)", key)}


def translate(format_name: str, config: Mapping[str, Any], file: Path, names: Collection[str], ids: Ids) -> Translation:
    """A configuration in redraft's terms.

    Args:
        names: names of the stored tensors.
    Raises:
        UserError: a key is missing, unknown, or has a value that redraft's networks don't compute.
    """
    kind: type[Format] = find("convert", format_name)
    keys = Keys(config, file, kind.unstated)
    plan = kind.read(keys, names, ids)
    keys.finish()
    return plan


def recognise(config: Mapping[str, Any], ids: Ids, file: Path) -> str:
    """The name of the format of a configuration.

    Raises:
        UserError: the format is unknown.
    """
    for name in names("convert"):
        if find("convert", name).fits(config, ids):
            return name
    known = suggest(str(config.get("model_type")), names("convert"))
    what = f"model_type {config.get('model_type')!r} with architectures {config.get('architectures')!r}"
    raise UserError(f"{file}: The checkpoint format is not supported: {what}.", known)


def _max_ids(config: Mapping[str, Any]) -> int:
    """An upper bound on the ids of the vocabulary: no special token is beyond it."""
    sizes = [config.get(key) for key in ("embedding_size", "vocab_size")]
    if isinstance(config.get("tokens"), int):  # SEDD: without the absorbing state
        sizes.append(config["tokens"] + 1)
    return max((size for size in sizes if isinstance(size, int)), default=1 << 31)


def writable() -> tuple[str, ...]:
    """Names of the formats that can be written."""
    formats: dict[str, type[Format]] = {name: find("convert", name) for name in names("convert")}
    return (*(name for name, kind in formats.items() if kind.writable), GGUF)


def export(
    format_name: str,
    network: Backbone,
    tokenizer: Tokenizer,
    spec: Spec,
    folder: Path,
    storage: str,
    card: str,
    paired: bool = False,
    defaults: Mapping[str, Any] | None = None,
) -> list[str]:
    """Write a model in a public format, atomically: configuration, weights, tokenizer and card.

    As ``gguf``, the folder holds one file with all of them, and the card.

    Args:
        paired: the model answers prompts. A GGUF file records what stands around a prompt.
        defaults: the model's own generation settings, for formats that have a place for them.
    Returns:
        What is stored otherwise than asked for, in words.
    Raises:
        UserError: the format can't hold this model, or the folder can't be written.
    """
    kind: type[Format] = Format if format_name == GGUF else find("convert", format_name)
    if spec.network.self_conditioning and not kind.self_conditioned:
        raise UserError(
            "This format can't hold a model with self-conditioning.", "Fine-tune it with self_condition = 0."
        )
    if format_name != GGUF:
        config, layout = kind.write(network, spec)
    notes: list[str] = []
    with atomic_folder(folder) as new:
        if format_name == GGUF:
            file = new / f"{folder.name}.gguf"
            notes = gguf_export.write_gguf(network, tokenizer, spec, file, storage, folder.name, paired)
        else:
            _write(new, network, tokenizer, spec, config, layout, storage, kind.settings(defaults or {}))
        write_atomically(new / "README.md", card)
    return notes


def _write(
    folder: Path,
    network: Backbone,
    tokenizer: Tokenizer,
    spec: Spec,
    config: Mapping[str, Any],
    layout: Layout,
    storage: str,
    settings: Mapping[str, Any],
) -> None:
    """Write the files of a Hugging Face checkpoint. ``settings``: of generation, in its terms."""
    from safetensors.torch import save_file

    special = {f"{key}_token_id": getattr(spec.tokens, f"{key}_id") for key in ("pad", "eos") if tokenizer.has(key)}
    if tokenizer.has("bos"):
        special["bos_token_id"] = tokenizer.bos_id
    ends = {"eos_token_id": [spec.tokens.eos_id, *spec.tokens.stop_ids]} if spec.tokens.stop_ids else {}
    described = {**config, **special, "dtype": storage}
    write_atomically(folder / "config.json", json.dumps(described, indent=2) + "\n")
    write_atomically(folder / "generation_config.json", json.dumps({**special, **ends, **settings}, indent=2) + "\n")
    state = pack(stored(network, layout), storage)
    save_file(state, str(folder / "model.safetensors"), metadata={"format": "pt"})
    tokenizer.save(folder)
