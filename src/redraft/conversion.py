"""Convert a model to another family: the same weights, as the starting point of training.

Conversion alone does not make a good model: an autoregressive network that suddenly attends to later positions produces
noise until it is trained. A curriculum (``[curriculum]`` in a recipe) makes the change gradual.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from redraft import models
from redraft.config import to_mapping
from redraft.data.tokenizer import Tokenizer
from redraft.data.vocabulary import Vocabulary
from redraft.errors import UserError
from redraft.families import build_family
from redraft.generation.prompts import check_mask
from redraft.generation.start import check_settings
from redraft.model import Model, check_fit
from redraft.models.parts.backbone import Backbone
from redraft.registry import field_names, find
from redraft.types import Spec

# Generation settings that mean the same in any family, and groups that are kept or dropped together.
_COMMON = ("max_new_tokens", "temperature", "top_k", "top_p")
_SAMPLER, _LENGTH = ("sampler", "steps", "options"), ("length", "candidates", "start")
_GROUPS = (_SAMPLER, _LENGTH, ("cache", "cache_options"), ("guidance", "guide"))
_KIND = {*_SAMPLER, *_LENGTH, "temperature", "top_k", "top_p"}  # chosen either for pairs or for plain text


def convert_family(model: Model, family: Mapping[str, Any]) -> Model:
    """The model as one of ``family``, ``{"name": ..., **fields}``. The network is reused, not copied.

    - **Shift.** If the family has a ``shift`` and none is given, the network keeps its own: a network that was
      autoregressive keeps predicting the next position (DiffuLLaMA, arXiv:2410.17891; Dream, 2508.15487). With
      ``shift = 0``, or a family without a shift, predictions are read at their own position, which training has to
      teach.
    - **Mask.** A vocabulary without a mask token gets one: the first id that its tokenizer does not use, else a new id,
      whose vectors are the mean of all others. Other special tokens that the family needs are added in the same way. A
      tokenizer with a separator and no end of text ends sequences with the separator (BERT).
    - **Self-conditioning.** A network that becomes self-conditioned (``self_condition``) gets a projection that starts
      at zero; one that no longer is loses it. Within its family the model keeps its setting unless one is given.
    - **Prompt.** Whether the prompt is isolated stays as it was unless given. A network trained without an isolated
      prompt gets no length head.
    - **Answer lengths** of the training data are kept: without a length head they decide it (``TypicalLength``).
    - **Generation settings** are kept where they fit (``keep_fitting``).

    Raises:
        UserError: the family needs something that the network lacks, such as the time as an input.
    """
    given = dict(family)
    fields = field_names(find("families", str(given["name"]))) if "name" in given else []
    isolated = model.family.prompt_encoder
    inherited = {"prompt_encoder": isolated, "shift": model.network.config.shift}
    if not isolated:
        inherited["length_head"] = False
    if given.get("name") == model.family_name:
        inherited |= {
            key: value
            for key, value in to_mapping(model.family).items()
            if key in ("self_condition", "self_condition_tokens")
        }
    table = {**{key: value for key, value in inherited.items() if key in fields}, **given}
    name, built = build_family(table)
    check_mask(model)  # a model that was trained with a mask must name its id
    tokenizer = _complete(model.tokenizer, needs_mask=_masks(built.spec(model.tokenizer)))
    tokenizer = tokenizer.with_special_tokens(built.specials)
    spec, network = built.spec(tokenizer), built.network_for(model.network)
    if network.config.timed != spec.network.timed:
        what = "takes the time as an input" if network.config.timed else "does not take the time as an input"
        raise UserError(f"This network {what}; family '{name}' with these options differs.", "Set the family's timed.")
    if network.config.edits != spec.edits:
        what = "tokens" if spec.edits else "edits"
        raise UserError(f"This network predicts {what} and can't become family '{name}'.", "Train one from scratch.")
    if network.config.self_conditioning != (spec.network.self_conditioning != 0):
        network.enable_self_conditioning(spec.network.self_conditioning != 0)
    _read_at(network, spec.network.shift, name)
    if tokenizer.vocab_size > network.config.vocab_size:
        _grow(network, tokenizer.vocab_size)
    alike = type(built.sampler()) is type(model.family.sampler())
    defaults = {key: value for key, value in model.defaults.items() if alike or key not in _SAMPLER}
    made = Model(network, tokenizer, built, name, model.paired, defaults)
    made.answer_lengths, made.target = model.answer_lengths, model.target
    made.trained_length = model.trained_length
    made.public = model.public if network is model.network else None
    made.added = (*model.added, *_added(model.tokenizer, tokenizer))
    keep_fitting(made)
    return made


def set_paired(model: Model, paired: bool) -> None:
    """Set whether a model is trained on pairs of prompt and answer (``paired``) or on plain text.

    If this changes, generation settings that were chosen for the other kind of data are dropped.

    Raises:
        UserError: plain text, for a network that encodes a prompt.
    """
    if model.paired != paired:
        model.defaults = {key: value for key, value in model.defaults.items() if key not in _KIND}
        model.answer_lengths = None
    model.paired = paired
    check_fit(model)
    keep_fitting(model)


def keep_fitting(model: Model) -> None:
    """Drop those of a model's own generation settings that it cannot generate with.

    A converted model inherits settings. The sampler's settings fit only if both families have the same default
    sampler: a number of steps chosen for one noise process means nothing for another.
    """
    own, kept = model.defaults, {key: value for key, value in model.defaults.items() if key in _COMMON}
    single = [(key,) for key in own if key not in _COMMON and not any(key in group for group in _GROUPS)]
    for group in (*_GROUPS, *single):
        more = {key: own[key] for key in group if key in own}
        if more and _generates_with(model, {**kept, **more}):
            kept |= more
    model.defaults = {key: value for key, value in own.items() if key in kept}


def _generates_with(model: Model, defaults: Mapping[str, Any]) -> bool:
    """Can the model generate with these settings? Leaves them set."""
    model.defaults = dict(defaults)
    try:
        check_settings(model, model.settings())
    except UserError:
        return False
    return True


def _masks(spec: Spec) -> bool:
    """Does a family, or its drafter, mask tokens?"""
    return spec.masks or (spec.family.drafter is not None and spec.family.drafter.masks)


def _complete(tokenizer: Tokenizer, needs_mask: bool) -> Tokenizer:
    """A public checkpoint's tokenizer with the special tokens that training needs; our own has them all."""
    if isinstance(tokenizer, Vocabulary):
        return tokenizer.completed(mask=needs_mask)
    return tokenizer


def _added(old: Tokenizer, new: Tokenizer) -> list[int]:
    """The special tokens that a tokenizer has and an older one lacks."""
    pairs = [(old.expand_id, new.expand_id), (old.delete_id, new.delete_id)]
    pairs.append((old.mask_id if old.has("mask") else -1, new.mask_id if new.has("mask") else -1))
    return sorted(now for before, now in pairs if before < 0 <= now)


def _read_at(network: Backbone, shift: int, family: str) -> None:
    """Make the network predict the token of position p at position p - shift."""
    if network.config.shift == shift:
        return
    if "shift" not in {field.name for field in dataclasses.fields(network.config)}:
        kind = network.name
        what = f"A '{kind}' network can't become family '{family}': its predictions can't be shifted."
        raise UserError(what, "Choose a family with the network's own shift.")
    network.config = replace(network.config, shift=shift)


def _grow(network: Backbone, size: int) -> None:
    """Enlarge the vocabulary to ``size`` ids: tensors over it get new rows, each the mean of the existing rows."""
    described = {**models.describe(network), "vocab_size": size}
    larger = models.empty(described, "network")
    shapes = {name: parameter.shape for name, parameter in larger.named_parameters()}
    for module_name, module in list(network.named_modules()):
        for name, parameter in list(module.named_parameters(recurse=False)):
            wanted = shapes[f"{module_name}.{name}" if module_name else name]
            if parameter.shape != wanted:
                setattr(module, name, nn.Parameter(_with_means(parameter, wanted[0]), parameter.requires_grad))
    network.config = larger.config


@torch.no_grad()
def _with_means(old: Tensor, rows: int) -> Tensor:
    """[n, ...] -> [rows, ...] (Hewitt 2021, "Initializing new word embeddings for pretrained language models")."""
    mean = old.float().mean(0, keepdim=True).to(old.dtype)
    return torch.cat([old, mean.expand(rows - old.shape[0], *old.shape[1:])])
