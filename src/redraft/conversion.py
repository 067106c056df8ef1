"""A model of one family as the beginning of a model of another: same weights, to be adapted by training.

What this can't do is teach: an autoregressive network that is suddenly shown what follows writes nonsense until it is
trained (``[course]`` eases the change).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from redraft import models
from redraft.data.tokenizer import Tokenizer
from redraft.data.vocabulary import Vocabulary
from redraft.errors import UserError
from redraft.families import build_family
from redraft.model import Model
from redraft.models.parts.backbone import Backbone
from redraft.models.parts.readout import Readout
from redraft.registry import find
from redraft.types import Spec

# Generation settings: those that mean the same in any family, and those that stand or fall together.
_COMMON = ("max_new_tokens", "temperature", "top_k", "top_p")
_SAMPLER, _LENGTH = ("sampler", "steps", "options"), ("length", "candidates", "start")
_GROUPS = (_SAMPLER, _LENGTH, ("cache", "cache_options"), ("guidance", "guide"))
_KIND = {*_SAMPLER, *_LENGTH, "temperature", "top_k", "top_p"}  # chosen for pairs, or for plain text


def become(model: Model, family: Mapping[str, Any]) -> Model:
    """The model as one of ``family``, ``{"name": ..., **fields}``. The network is taken over, not copied.

    - **Shift.** Where the family has a ``shift`` that isn't given, the network keeps its own: predictions stand one
      position earlier in what was autoregressive (DiffuLLaMA, arXiv:2410.17891; Dream, 2508.15487). With ``shift = 0``,
      or a family without one, they are read where they belong from now on, and that has to be learnt.
    - **Mask.** A vocabulary without one gets a token for it, the first id that its tokenizer leaves unused, else a new
      one, whose vectors are the mean of all others; so it is with special tokens that the family needs. A tokenizer
      with a separator and no end of text ends by it (BERT).
    - **Guesses.** A network that is to be told what it predicted before (``self_condition``) gets a map for it that
      begins at zero, one that no longer is loses it; within its family it stays as it was, unless given.
    - **Prompt.** Whether it is isolated stays as it was, unless given. A network that knows no isolated prompt gets no
      length head.
    - **Generation settings** of its own are kept where they fit (``keep_fitting``).

    Raises:
        UserError: the family needs what the network hasn't, such as the time.
    """
    given = dict(family)
    fields = getattr(find("families", str(given.get("name"))), "__dataclass_fields__", {}) if "name" in given else {}
    isolated = getattr(model.family, "isolate_prompt", False)
    inherited = {"isolate_prompt": isolated, "shift": model.network.config.shift}
    if not isolated:
        inherited["length_head"] = False
    if given.get("name") == model.family_name:
        inherited |= {key: getattr(model.family, key) for key in ("self_condition", "guesses") if key in fields}
    table = {**{key: value for key, value in inherited.items() if key in fields}, **given}
    name, built = build_family(table)
    model.check_mask()  # one that was trained with a mask must say which id it is
    tokenizer = _complete(model.tokenizer, needs_mask=_masks(built.spec(model.tokenizer)))
    tokenizer = tokenizer.having(getattr(built, "specials", ()))
    spec, network = built.spec(tokenizer), model.network
    if network.config.timed != spec.timed:
        told = "is told the time of the noise" if network.config.timed else "is not told the time of the noise"
        raise UserError(f"this network {told}, and family '{name}' as asked for differs.", "Set the family's timed.")
    if getattr(network.config, "edits", False) != spec.edits:
        what = "tokens" if spec.edits else "edits"
        raise UserError(f"this network predicts {what}: it can't go on as family '{name}'.", "Train one from scratch.")
    if getattr(network.config, "guess", False) != (spec.guesses > 0):
        if not isinstance(network, Readout):
            raise UserError("this network can't be told what it predicted before.", "Leave out self_condition.")
        network.listen(spec.guesses > 0)
    _read_at(network, spec.shift, name)
    if tokenizer.vocab_size > network.config.vocab_size:
        _grow(network, tokenizer.vocab_size)
    alike = type(built.sampler()) is type(model.family.sampler())
    defaults = {key: value for key, value in model.defaults.items() if alike or key not in _SAMPLER}
    made = Model(network, tokenizer, built, name, model.conditional, defaults)
    made.public = model.public
    keep_fitting(made)
    return made


def go_on_with(model: Model, conditional: bool) -> None:
    """Let a model be trained on pairs from now on (``conditional``), or on plain text.

    Where that is new to it, its own generation settings for the other kind of data go: answers are looked for, and open
    text is drawn.

    Raises:
        UserError: plain text, for a network that encodes a prompt.
    """
    if model.conditional != conditional:
        model.defaults = {key: value for key, value in model.defaults.items() if key not in _KIND}
    model.conditional = conditional
    model.check_prompt()
    keep_fitting(model)


def keep_fitting(model: Model) -> None:
    """Of a model's own generation settings, keep those that it can write with.

    A model that was made of another has inherited them. Those of the sampler fit only where both families write with
    the same sampler of their own: steps that were right for one kind of noise say nothing about another.
    """
    own, kept = model.defaults, {key: value for key, value in model.defaults.items() if key in _COMMON}
    single = [(key,) for key in own if key not in _COMMON and not any(key in group for group in _GROUPS)]
    for group in (*_GROUPS, *single):
        more = {key: own[key] for key in group if key in own}
        if more and _writes(model, {**kept, **more}):
            kept |= more
    model.defaults = {key: value for key, value in own.items() if key in kept}


def _writes(model: Model, defaults: Mapping[str, Any]) -> bool:
    model.defaults = dict(defaults)
    try:
        model.check(model.settings())
    except UserError:
        return False
    return True


def _masks(spec: Spec) -> bool:
    """Does a family hide tokens, itself or to draft?"""
    return any(s.schedule is not None and s.process == "absorbing" for s in (spec, spec.drafter or spec))


def _complete(tokenizer: Tokenizer, needs_mask: bool) -> Tokenizer:
    if isinstance(tokenizer, Vocabulary):
        return tokenizer.completed(mask=needs_mask)
    return tokenizer  # one of our own has all special tokens


def _read_at(network: Backbone, shift: int, family: str) -> None:
    """Let the prediction of position p stand at p - shift."""
    if network.config.shift == shift:
        return
    if "shift" not in {field.name for field in dataclasses.fields(network.config)}:
        kind = models.name_of(network)
        raise UserError(f"a network '{kind}' can't go on as family '{family}': its predictions can't be shifted.")
    network.config = replace(network.config, shift=shift)


def _grow(network: Backbone, size: int) -> None:
    """Room for ids up to ``size``: every tensor over the vocabulary gets rows, each the mean of those it has."""
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
