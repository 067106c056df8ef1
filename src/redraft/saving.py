"""Saving models: what a model folder and an adapter folder hold, and how they are written.

``loading`` reads model folders and ``adapters`` reads adapter folders.

A model folder has ``config.json`` (``ModelConfig``), ``generation_config.json``, ``model.safetensors``, the tokenizer's
files and a model card. An adapter folder is in the layout of ``peft``: ``adapter_config.json`` and
``adapter_model.safetensors``. Beside them lies ``redraft.json`` (``AdapterOrigin``), which ``peft`` ignores.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from redraft import config, models, weights
from redraft.data.templates import CHAT_TEMPLATE
from redraft.data.vocabulary import Vocabulary
from redraft.files import atomic_folder, write_atomically
from redraft.generation.answer_lengths import AnswerLengths
from redraft.models.gpt import Gpt
from redraft.models.parts import lora
from redraft.models.parts.backbone import Backbone
from redraft.models.transformer import Transformer
from redraft.targets import Target
from redraft.weights import Layout, TensorMap

if TYPE_CHECKING:
    from redraft.model import Model

FORMAT = 1
ADAPTER_CONFIG, ADAPTER_WEIGHTS, ADAPTER_ORIGIN = "adapter_config.json", "adapter_model.safetensors", "redraft.json"
PEFT_PREFIX, TRAINED_TOKENS = "base_model.model.", ".token_adapter.trainable_tokens_delta"
_MODEL_TYPE, _ARCHITECTURE = "redraft", "RedraftModel"  # registered with transformers by ``interop.transformers``


@dataclass(frozen=True)
class ModelConfig:
    """The contents of a model folder's ``config.json``."""

    redraft_format: int
    family: dict[str, Any]  # name and fields
    network: dict[str, Any]  # name and shape
    paired: bool  # trained on pairs of prompt and answer
    answer_lengths: AnswerLengths | None = None  # of the training data, for a model of pairs
    trained_length: int = 0  # tokens of the longest row of training; 0: the whole context
    target: Target | None = None  # of a drafter
    vocabulary: dict[str, Any] | None = None  # ``data.vocabulary.Ids`` of a public checkpoint; None: our own tokenizer
    model_type: str = _MODEL_TYPE  # this one and the next are for transformers
    architectures: tuple[str, ...] = (_ARCHITECTURE,)


@dataclass(frozen=True)
class AdapterOrigin:
    """The contents of an adapter folder's ``redraft.json``: how the adapter was trained."""

    family: dict[str, Any]  # name and fields
    paired: bool
    defaults: dict[str, Any]  # generation settings
    answer_lengths: AnswerLengths | None = None  # of the training data, for pairs


def save(model: Model, folder: str | Path, storage: str = "float32", card: str = "") -> None:
    """Write a model folder, or the adapter alone if the model has one. The folder is written completely or not at all.

    Args:
        storage: how weights of a whole model are stored: one of ``weights.STORAGES``.
        card: text of the model card; empty: none.
    Raises:
        UserError: unknown storage, disk full, or no permission.
    """
    if model.adapter is not None:
        _save_adapter(model, model.adapter, Path(folder), card)
    else:
        _save_whole(model, Path(folder), storage, card)


def _save_whole(model: Model, folder: Path, storage: str, card: str) -> None:
    from safetensors.torch import save_file

    lengths, longest = model.answer_lengths, model.trained_length
    described = {
        "redraft_format": FORMAT,
        "family": {"name": model.family_name, **config.to_mapping(model.family)},
        "network": models.describe(model.network),
        "paired": model.paired,
        **({} if lengths is None else {"answer_lengths": config.to_mapping(lengths)}),
        **({"trained_length": longest} if longest else {}),
        **({} if model.target is None else {"target": config.to_mapping(model.target)}),
        "model_type": _MODEL_TYPE,
        "architectures": [_ARCHITECTURE],
    }
    if isinstance(model.tokenizer, Vocabulary):
        described["vocabulary"] = config.to_mapping(model.tokenizer.ids)
    with atomic_folder(folder) as new:
        _write_json(new / "config.json", described)
        _write_json(new / "generation_config.json", model.defaults)
        model.tokenizer.save(new)
        if card:
            write_atomically(new / "README.md", card)
        save_file(weights.pack(model.network.state_dict(), storage), str(new / "model.safetensors"))


def _save_adapter(model: Model, adapter: lora.Lora, folder: Path, card: str) -> None:
    from safetensors.torch import save_file

    state: dict[str, Tensor] = {}
    for module in lora.adapted(model.network):
        for part, a, b in module.pairs():
            name = PEFT_PREFIX + peft_name(model.network, part.name)
            state[f"{name}.lora_A.weight"] = a.detach().cpu().contiguous().clone()
            state[f"{name}.lora_B.weight"] = b.detach().cpu().contiguous().clone()
    tokens = _trained_tokens(model)
    for name, (_, rows) in tokens.items():
        state[f"{PEFT_PREFIX}{name}{TRAINED_TOKENS}"] = rows
    modules = sorted({key.removeprefix(PEFT_PREFIX).rsplit(".lora_", 1)[0] for key in state if ".lora_" in key})
    family = {"name": model.family_name, **config.to_mapping(model.family)}
    origin = AdapterOrigin(family, model.paired, model.defaults, model.answer_lengths)
    with atomic_folder(folder) as new:
        _write_json(new / ADAPTER_CONFIG, _peft_config(model, adapter, modules, tokens))
        _write_json(new / ADAPTER_ORIGIN, config.to_mapping(origin))
        if model.tokenizer.chat_template is not None:
            write_atomically(new / CHAT_TEMPLATE, model.tokenizer.chat_template)
        if card:
            write_atomically(new / "README.md", card)
        save_file(state, str(new / ADAPTER_WEIGHTS), metadata={"format": "pt"})


_TrainedTokens = tuple[list[int], Tensor]  # ids, and their vectors [k, D]


def _trained_tokens(model: Model) -> dict[str, _TrainedTokens]:
    """By the name of a module: the tokens whose vectors were trained beside the adapter."""
    network = model.network
    if network.added is None:
        return {}
    changes = {"embedding.weight": network.added.embedding, "head.weight": network.added.head}
    ids, found = network.added.ids.tolist(), {}
    for public, place in public_names(model).items():
        change = changes.get(place.name)
        if change is not None:
            rows = network.get_parameter(place.name).detach()[ids].float() + change.detach()
            name = peft_name(network, public.removesuffix(".weight"))
            found[name] = ids, rows.cpu().contiguous()
    return found


def _peft_config(
    model: Model, adapter: lora.Lora, modules: list[str], tokens: Mapping[str, _TrainedTokens]
) -> dict[str, Any]:
    """The contents of ``adapter_config.json`` for adapters on these modules, with these vectors of tokens."""
    indices = {name.rpartition(".")[2]: ids for name, (ids, _) in tokens.items()}
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM" if model.spec.network.attention.kind == "causal" else None,
        "base_model_name_or_path": model.base,
        "r": adapter.rank,
        "lora_alpha": int(adapter.alpha) if adapter.alpha == int(adapter.alpha) else adapter.alpha,
        "lora_dropout": adapter.dropout,
        "use_rslora": adapter.rslora,
        "target_modules": _shortest(model, modules),
        "fan_in_fan_out": any(place.transposed for place in public_names(model).values()),
        "bias": "none",
        **({"trainable_token_indices": indices} if indices else {}),
        "init_lora_weights": True,
        "inference_mode": True,
    }


def public_names(model: Model) -> Mapping[str, TensorMap]:
    """The public name of each of a model's tensors, with its place in our network.

    A model from a public checkpoint keeps the checkpoint's names (where it stores all experts of a layer as one tensor,
    each expert has its own name). Our own transformer takes Llama's names, under which
    it can be exported. Any other network keeps its own names.
    """
    from redraft.convert.shared import llama

    if model.public is not None:
        return lora.by_expert(model.network, model.public)
    if isinstance(model.network, Transformer):
        return llama.layout(model.network.config).places
    return Layout.own(model.network).places


def peft_name(network: Backbone, name: str) -> str:
    """The name of a module within the class that transformers builds: GPT-2's own files omit ``transformer.``."""
    return f"transformer.{name}" if isinstance(network, Gpt) and name.startswith("h.") else name


def _shortest(model: Model, modules: list[str]) -> list[str]:
    """The last parts of the module names where these select exactly the same modules, else the full names."""
    every = {
        peft_name(model.network, name.removesuffix(".weight"))
        for name, place in public_names(model).items()
        if name.endswith(".weight") and place.name.startswith("blocks.")
    }
    last = sorted({name.rpartition(".")[2] for name in modules})
    selected = {name for name in every if name.rpartition(".")[2] in last}
    return last if selected == set(modules) else modules


def _write_json(path: Path, values: Mapping[str, Any]) -> None:
    write_atomically(path, json.dumps(values, indent=2) + "\n")
