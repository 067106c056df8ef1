"""Adapters on disk, in the layout of ``peft``: ``adapter_config.json`` and ``adapter_model.safetensors``.

Beside them lies ``redraft.json``, which ``peft`` does not look at: the family that the adapter was trained in, and
whether on pairs.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from redraft import config as configs
from redraft.conversion import become
from redraft.errors import UserError
from redraft.files import atomic_folder, read_json, write_atomically
from redraft.model import Model
from redraft.models.gpt import Gpt
from redraft.models.parts import lora as parts
from redraft.models.parts.backbone import Backbone
from redraft.models.parts.lora import Lora
from redraft.models.transformer import Transformer
from redraft.weights import Layout, Place

CONFIG, WEIGHTS, OWN = "adapter_config.json", "adapter_model.safetensors", "redraft.json"
_PREFIX = "base_model.model."
_OTHER = "Take the model that it was trained for."
# Keys of a configuration that change nothing in what a finished adapter computes ...
_SILENT = {"auto_mapping", "base_model_name_or_path", "exclude_modules", "fan_in_fan_out", "inference_mode"}
_SILENT |= {"layers_pattern", "layers_to_transform", "lora_dropout", "megatron_core", "peft_version"}
_SILENT |= {"qalora_group_size", "revision", "target_modules", "task_type", "lora_ga_config", "ensure_weight_tying"}
_READ = {
    "peft_type",
    "r",
    "lora_alpha",
    "use_rslora",
    "bias",
    "init_lora_weights",
}  # ... that are read; all else is off


@dataclass(frozen=True)
class _Own:
    """What ``redraft.json`` holds."""

    family: dict[str, Any]
    conditional: bool
    defaults: dict[str, Any]


def is_adapter(folder: str | Path) -> bool:
    """Is a folder an adapter, and not a whole model?"""
    return (Path(folder) / CONFIG).is_file() and not (Path(folder) / "config.json").is_file()


def base_of(folder: str | Path) -> str:
    """The model that an adapter was made for, as its files name it."""
    base = read_json(Path(folder) / CONFIG).get("base_model_name_or_path")
    if not isinstance(base, str) or not base:
        raise UserError(f"{Path(folder) / CONFIG}: no base model is named.", "Give it: --model BASE --adapter FOLDER.")
    return base


def family_of(folder: str | Path) -> dict[str, Any] | None:
    """The family that an adapter was trained in, where it was trained here."""
    own = _own(Path(folder))
    return own.family if own else None


def attach(model: Model, lora: Lora, base: str) -> None:
    """Give a model adapters, which from now on are all of it that is trained and saved.

    Args:
        base: the name or path that finds the model again.
    """
    parts.attach(model.network, lora, public(model))
    model.adapter, model.base = lora, base


def public(model: Model) -> Mapping[str, Place]:
    """The names under which the world knows a model's matrices: those of the public checkpoint it came from, Llama's
    for a transformer of our own (which can be exported under them), else ours."""
    if model.public is not None:
        return model.public
    return _names(model.network)


def _names(network: Backbone) -> Mapping[str, Place]:
    from redraft.convert import _llama

    if isinstance(network, Transformer):
        return _llama.layout(network.config).places
    return Layout.own(network).places


def save(model: Model, folder: str | Path, card: str = "") -> None:
    """Write a model's adapters, whole or not at all."""
    from safetensors.torch import save_file

    lora = model.adapter
    assert lora is not None
    state: dict[str, Tensor] = {}
    for module in parts.adapted(model.network):
        for part, a, b in module.pairs():
            name = _PREFIX + _outer(model.network, part.name)
            state[f"{name}.lora_A.weight"] = a.detach().cpu().contiguous().clone()
            state[f"{name}.lora_B.weight"] = b.detach().cpu().contiguous().clone()
    modules = sorted({key.removeprefix(_PREFIX).rsplit(".lora_", 1)[0] for key in state})
    described = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM" if model.spec.attend.kind == "causal" else None,
        "base_model_name_or_path": model.base,
        "r": lora.rank,
        "lora_alpha": int(lora.alpha) if lora.alpha == int(lora.alpha) else lora.alpha,
        "lora_dropout": lora.dropout,
        "use_rslora": lora.rslora,
        "target_modules": _shortest(model, modules),
        "fan_in_fan_out": any(place.transposed for place in public(model).values()),
        "bias": "none",
        "init_lora_weights": True,
        "inference_mode": True,
    }
    own = _Own({"name": model.family_name, **configs.to_mapping(model.family)}, model.conditional, model.defaults)
    with atomic_folder(Path(folder)) as new:
        write_atomically(new / CONFIG, json.dumps(described, indent=2) + "\n")
        write_atomically(new / OWN, json.dumps(configs.to_mapping(own), indent=2) + "\n")
        if card:
            write_atomically(new / "README.md", card)
        save_file(state, str(new / WEIGHTS), metadata={"format": "pt"})


def _outer(network: Backbone, name: str) -> str:
    """The name within the class that transformers makes of a file: GPT-2's own files leave out where it begins."""
    return f"transformer.{name}" if isinstance(network, Gpt) and name.startswith("h.") else name


def _shortest(model: Model, modules: list[str]) -> list[str]:
    """Last names, where they mean these modules and no others; else whole names."""
    every = {
        _outer(model.network, name.removesuffix(".weight"))
        for name, place in public(model).items()
        if name.endswith(".weight") and place.name.startswith("blocks.")
    }
    last = sorted({name.rpartition(".")[2] for name in modules})
    meant = {name for name in every if name.rpartition(".")[2] in last}
    return last if meant == set(modules) else modules


def merge(model: Model, folder: str | Path) -> Model:
    """The model with an adapter folded into its weights: as fast as without.

    An adapter that was trained here makes the model one of its family first (``conversion.become``).

    Raises:
        UserError: no adapter, one for another network, or of a kind that is not supported.
    """
    folder = Path(folder)
    if not (folder / CONFIG).is_file():
        raise UserError(f"'{folder}' has no {CONFIG}: it is no adapter.", "Name a folder that has one.")
    lora, own = _read(folder), _own(folder)
    if own is not None:
        model = become(model, own.family)
        model.conditional, model.defaults = own.conditional, own.defaults
    state, places = _weights(folder), public(model)
    weights = dict(model.network.named_parameters())
    known = {_outer(model.network, name.removesuffix(".weight")): place for name, place in places.items()}
    for name in sorted({key.rsplit(".lora_", 1)[0] for key in state}):
        place = known.get(name.removeprefix(_PREFIX))
        a, b = (state.get(f"{name}.lora_{half}.weight") for half in "AB")
        if place is None or a is None or b is None:
            what = "lacks half of an adapter" if place is not None else "adapts a module that this model hasn't"
            raise UserError(f"{folder / WEIGHTS} {what}: '{name}'.", _OTHER)
        whole = weights[place.name]
        part = whole[place.start : place.start + place.rows] if place.rows is not None else whole
        if (b.shape[0], a.shape[1]) != part.shape or a.shape[0] != b.shape[1]:
            found, wanted = [b.shape[0], a.shape[1]], list(part.shape)
            raise UserError(f"{folder / WEIGHTS}: '{name}' is for a matrix {found}, this model's is {wanted}.", _OTHER)
        parts.add(part, lora.scale, a, b)
    return model


def _own(folder: Path) -> _Own | None:
    file = folder / OWN
    return configs.build(_Own, read_json(file), str(file)) if file.is_file() else None


def _read(folder: Path) -> Lora:
    """The configuration of a finished adapter; every key that is neither read nor known to mean nothing must be off."""
    file = folder / CONFIG
    values = read_json(file)
    if values.get("peft_type") != "LORA":
        raise UserError(f"{file}: peft_type {values.get('peft_type')!r} is not supported.", "LORA is.")
    for key, value in values.items():
        if key not in _SILENT | _READ and value not in (None, False, "", [], {}):
            raise UserError(f"{file}: '{key}' = {value!r} is not supported.", "Plain LoRA is.")
    if values.get("bias", "none") != "none":
        raise UserError(f"{file}: 'bias' = {values['bias']!r} is not supported.", "'none' is.")
    if values.get("init_lora_weights", True) not in (True, False, None, "gaussian"):
        raise UserError(
            f"{file}: 'init_lora_weights' = {values['init_lora_weights']!r} changes the base model, too.",
            "Convert it with peft's save_pretrained(..., path_initial_model_for_weight_conversion=...).",
        )
    try:
        return Lora(int(values["r"]), float(values["lora_alpha"]), rslora=bool(values.get("use_rslora", False)))
    except (KeyError, TypeError, ValueError):
        raise UserError(f"{file}: 'r' and 'lora_alpha' must be numbers.", "Copy the adapter again.") from None


def _weights(folder: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    file = folder / WEIGHTS
    if not file.is_file():
        raise UserError(f"adapter file '{file}' does not exist.", "Only safetensors are read, no pickles.")
    try:
        state = load_file(str(file))
    except (SafetensorError, OSError) as error:
        raise UserError(f"adapter file '{file}' is corrupt or truncated: {error}.", "Copy it again.") from None
    for key in state:
        if not key.endswith((".lora_A.weight", ".lora_B.weight")):
            raise UserError(f"{file}: unexpected tensor '{key}'.", "Plain LoRA of linear layers is supported.")
    return state
