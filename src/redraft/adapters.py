"""LoRA adapters: attach them for training, read them in the layout of ``peft``, and merge them into a model.

``saving`` writes them.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from redraft import config as configs
from redraft.conversion import convert_family
from redraft.data.templates import template_of
from redraft.errors import UserError
from redraft.files import read_json
from redraft.lora import Lora
from redraft.model import Model
from redraft.models.parts import lora as parts
from redraft.models.parts.frozen import freeze
from redraft.saving import (
    ADAPTER_CONFIG,
    ADAPTER_ORIGIN,
    ADAPTER_WEIGHTS,
    PEFT_PREFIX,
    TRAINED_TOKENS,
    AdapterOrigin,
    peft_name,
    public_names,
)

_WRONG_MODEL = "Use the model that the adapter was trained for."
# Keys of a configuration that do not affect what a trained adapter computes ...
_IGNORED = {"auto_mapping", "base_model_name_or_path", "exclude_modules", "fan_in_fan_out", "inference_mode"}
_IGNORED |= {"layers_pattern", "layers_to_transform", "lora_dropout", "megatron_core", "peft_version"}
_IGNORED |= {"qalora_group_size", "revision", "target_modules", "task_type", "lora_ga_config", "ensure_weight_tying"}
# ... and keys that are read. Every other key must be off.
_READ = {"peft_type", "r", "lora_alpha", "use_rslora", "bias", "init_lora_weights", "trainable_token_indices"}


@dataclass(frozen=True)
class Adapter:
    """An adapter folder, read but for its weights."""

    folder: Path
    lora: Lora
    base_name: str  # name or path of the base model; empty where the files name none
    origin: AdapterOrigin | None  # how it was trained, if by redraft
    tokens: Mapping[str, tuple[int, ...]] = field(default_factory=dict)  # whose vectors it holds, by module

    @property
    def base(self) -> str:
        """The model that the adapter was made for, as its files name it.

        Raises:
            UserError: they name none.
        """
        if not self.base_name:
            what = f"{self.folder / ADAPTER_CONFIG} does not name the base model."
            raise UserError(what, "Give both: --model BASE --adapter FOLDER.")
        return self.base_name


def is_adapter(folder: str | Path) -> bool:
    """Does a folder hold an adapter and no whole model?"""
    return os.path.isfile(Path(folder) / ADAPTER_CONFIG) and not os.path.isfile(Path(folder) / "config.json")


def read(folder: str | Path) -> Adapter:
    """Read an adapter folder, but for its weights.

    Raises:
        UserError: no adapter there, or one of a kind that is not supported. A key of the configuration that is neither
            read nor known to have no effect must be off.
    """
    folder = Path(folder)
    if not os.path.isfile(folder / ADAPTER_CONFIG):
        missing = f"The adapter folder '{folder}' does not exist."
        what = f"'{folder}' is not an adapter: it has no {ADAPTER_CONFIG}." if os.path.isdir(folder) else missing
        raise UserError(what, "Give a folder written by `redraft finetune --lora-rank` or by peft.")
    file = folder / ADAPTER_CONFIG
    values = read_json(file)
    base, origin = values.get("base_model_name_or_path"), folder / ADAPTER_ORIGIN
    return Adapter(
        folder,
        _lora(file, values),
        base if isinstance(base, str) else "",
        configs.build(AdapterOrigin, read_json(origin), str(origin)) if origin.is_file() else None,
        _tokens(file, values),
    )


def attach(model: Model, lora: Lora, base: str, packing: str = "") -> None:
    """Add adapters to a model. From then on only they are trained and saved, and the vectors of tokens that a
    conversion has added (``Model.added``).

    The frozen weights stay in the type that the model has; adapters and hidden states are float32.

    Args:
        base: the name or path under which the base model can be loaded again.
        packing: pack the matrices of the blocks: ``int8`` or ``nf4``.
    Raises:
        UserError: ``lora.targets`` matches no matrix, or nf4 does not run here.
    """
    parts.attach(model.network, lora, public_names(model), model.added)
    freeze(model.network, packing)
    model.adapter, model.base = lora, base


def converted(model: Model, origin: AdapterOrigin) -> Model:
    """The model as it was when an adapter was trained: of the adapter's family, for the same kind of data.

    Raises:
        UserError: the model can't become one of that family (``conversion.convert_family``).
    """
    model = convert_family(model, origin.family)
    model.paired, model.defaults = origin.paired, origin.defaults
    model.answer_lengths = origin.answer_lengths
    return model


def merge(model: Model, adapter: Adapter) -> Model:
    """The model with an adapter merged into its weights, which costs nothing at inference.

    An adapter trained by redraft first converts the model to its own family (``conversion.convert_family``).

    Raises:
        UserError: the adapter is for another network, or its weights can't be read.
    """
    folder, origin = adapter.folder, adapter.origin
    if origin is not None:
        model = converted(model, origin)
    model.tokenizer.chat_template = template_of(folder) or model.tokenizer.chat_template
    state, places = _weights(folder), public_names(model)
    weights = dict(model.network.named_parameters())
    known = {peft_name(model.network, name.removesuffix(".weight")): place for name, place in places.items()}
    for key in [key for key in state if key.endswith(TRAINED_TOKENS)]:
        place = known.get(key.removeprefix(PEFT_PREFIX).removesuffix(TRAINED_TOKENS))
        _replace_rows(None if place is None else weights[place.name], state.pop(key), adapter, key)
    for name in sorted({key.rsplit(".lora_", 1)[0] for key in state}):
        place = known.get(name.removeprefix(PEFT_PREFIX))
        a, b = (state.get(f"{name}.lora_{half}.weight") for half in "AB")
        if place is None or a is None or b is None:
            what = "lacks one of the two matrices of" if place is not None else "adapts a module this model lacks:"
            raise UserError(f"{folder / ADAPTER_WEIGHTS} {what} '{name}'.", _WRONG_MODEL)
        if a.shape[0] != adapter.lora.rank:
            what = (
                f"{folder / ADAPTER_WEIGHTS}: '{name}' has rank {a.shape[0]}, {ADAPTER_CONFIG} says {adapter.lora.rank}"
            )
            raise UserError(f"{what}.", "Copy the adapter again: its scale depends on the rank.")
        whole = weights[place.name] if place.at is None else weights[place.name][place.at]
        part = whole[place.start : place.start + place.rows] if place.rows is not None else whole
        if (b.shape[0], a.shape[1]) != part.shape or a.shape[0] != b.shape[1]:
            found, wanted = [b.shape[0], a.shape[1]], list(part.shape)
            what = f"{folder / ADAPTER_WEIGHTS}: '{name}' is for a matrix {found}, this model's is {wanted}."
            raise UserError(what, _WRONG_MODEL)
        parts.add(part, adapter.lora.scale, a, b)
    return model


def _replace_rows(weight: Tensor | None, rows: Tensor, adapter: Adapter, key: str) -> None:
    """Write the trained vectors [k, D] of some tokens into the matrix [V, D] of all of them."""
    module = key.removesuffix(TRAINED_TOKENS).rpartition(".")[2]
    ids = adapter.tokens.get(module, ())
    fits = weight is not None and rows.shape == (len(ids), weight.shape[1]) and max(ids, default=-1) < len(weight)
    if weight is None or not fits:
        what = f"{adapter.folder / ADAPTER_WEIGHTS}: '{key}' holds vectors of tokens that this model does not have."
        raise UserError(what, _WRONG_MODEL)
    weight.data[list(ids)] = rows.to(weight)


def _tokens(file: Path, values: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """The tokens whose vectors an adapter holds, by the last part of the module's name."""
    given = values.get("trainable_token_indices") or {}
    given = {"embed_tokens": given} if isinstance(given, list) else given
    if not isinstance(given, dict) or not all(
        isinstance(ids, list) and all(isinstance(one, int) and one >= 0 for one in ids) for ids in given.values()
    ):
        raise UserError(f"{file}: 'trainable_token_indices' must be lists of token ids.", "Copy the adapter again.")
    return {module.rpartition(".")[2]: tuple(ids) for module, ids in given.items()}


def _lora(file: Path, values: Mapping[str, Any]) -> Lora:
    """Rank and scale from ``adapter_config.json``."""
    if values.get("peft_type") != "LORA":
        raise UserError(f"{file}: peft_type {values.get('peft_type')!r} is not supported.", "Only LORA is.")
    for key, value in values.items():
        if key not in _IGNORED | _READ and value not in (None, False, "", [], {}):
            raise UserError(f"{file}: '{key}' = {value!r} is not supported.", "Only plain LoRA is.")
    if values.get("bias", "none") != "none":
        raise UserError(f"{file}: 'bias' = {values['bias']!r} is not supported.", "Only 'none' is.")
    if values.get("init_lora_weights", True) not in (True, False, None, "gaussian"):
        raise UserError(
            f"{file}: 'init_lora_weights' = {values['init_lora_weights']!r} also changes the base model.",
            "Convert it with peft's save_pretrained(..., path_initial_model_for_weight_conversion=...).",
        )
    try:
        return Lora(int(values["r"]), float(values["lora_alpha"]), rslora=bool(values.get("use_rslora", False)))
    except (KeyError, TypeError, ValueError):
        raise UserError(f"{file}: 'r' and 'lora_alpha' must be numbers.", "Copy the adapter again.") from None


def _weights(folder: Path) -> dict[str, Tensor]:
    """The A [rank, in] and B [out, rank] matrices by name, and vectors [k, D] of tokens."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    file = folder / ADAPTER_WEIGHTS
    if not file.is_file():
        raise UserError(f"The adapter file '{file}' does not exist.", "Only safetensors files are read, not pickles.")
    try:
        state = load_file(str(file))
    except (SafetensorError, OSError) as error:
        raise UserError(f"The adapter file '{file}' is corrupt or truncated: {error}.", "Copy it again.") from None
    for key in state:
        if not key.endswith((".lora_A.weight", ".lora_B.weight", TRAINED_TOKENS)):
            raise UserError(f"{file}: unexpected tensor '{key}'.", "Only plain LoRA of linear layers is supported.")
    return state
