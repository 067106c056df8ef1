"""From a name or a folder to a model: shipped checkpoints, our own format, public ones, the hub."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from redraft import adapters, hub, models, runtime, weights
from redraft import config as configs
from redraft.errors import UserError, suggest
from redraft.families import build_family
from redraft.files import read_json
from redraft.model import FORMAT, Described, Model, check_vocabulary
from redraft.models.parts.backbone import Backbone
from redraft.settings import Settings
from redraft.shipped import zoo


def resolve(name_or_path: str | Path) -> Path:
    """The folder of a model.

    Raises:
        UserError: neither a folder with a config.json nor the name of a shipped checkpoint.
    """
    path = Path(name_or_path)
    if (path / "config.json").is_file() or adapters.is_adapter(path):
        return path
    known = zoo()
    if str(name_or_path) in known:
        return known[str(name_or_path)]
    if (path / "train" / "recipe.toml").is_file():
        raise UserError(
            f"the training in '{path}' isn't finished: it has no model yet.",
            "Run the command that began it once more: it goes on, and leaves the model there.",
        )
    if path.is_dir():
        raise UserError(
            f"'{path}' has no config.json: it is no model folder.",
            "Name the --out of a training, a folder with a checkpoint, or a shipped model (see: redraft models).",
        )
    if _on_hub(name_or_path):
        return hub.pull(str(name_or_path))
    raise UserError(
        f"there is no model '{name_or_path}': no such folder, and none shipped by that name.",
        suggest(str(name_or_path), known),
    )


def _on_hub(name_or_path: str | Path) -> bool:
    """Can it only be a name on the hub?"""
    return re.fullmatch(r"[\w.-]+/[\w.-]+", str(name_or_path)) is not None and not Path(name_or_path).parent.exists()


def _adapter(name_or_path: str | Path) -> Path:
    """The folder of an adapter.

    Raises:
        UserError: there is no such folder, and it is no name on the hub.
    """
    folder = Path(name_or_path)
    if not folder.is_dir() and _on_hub(name_or_path):
        return hub.pull(str(name_or_path))
    if not (folder / adapters.CONFIG).is_file():
        raise UserError(
            f"'{folder}' {f'has no {adapters.CONFIG}' if folder.is_dir() else 'does not exist'}: it is no adapter.",
            "Name a folder that `redraft finetune --lora-rank` or peft has written.",
        )
    return folder


def load(
    name_or_path: str | Path,
    device: str | None = None,
    dtype: torch.dtype = torch.float32,
    mask_id: int | None = None,
    adapter: str | Path | None = None,
) -> Model:
    """Load a model: a folder, a shipped checkpoint by name, or a public checkpoint (``redraft.convert``) from a folder
    or from the Hugging Face hub, whose usual variables (HF_HOME, HF_HUB_OFFLINE) hold.

    Weights are mapped into memory and read file by file into a network of type ``dtype`` on ``device``.

    Args:
        mask_id: the mask token of a public checkpoint whose files don't name it.
        adapter: a LoRA adapter (a folder, or a name on the hub) to be folded into the weights. The folder of one also
            stands for the model that it makes of its base.
    Raises:
        UserError: unknown model, corrupt file, or a configuration that is not understood.
    """
    if adapter is not None:
        folded = _adapter(adapter)  # looked for before the base is read
        return adapters.merge(load(name_or_path, device, dtype, mask_id), folded)
    folder = resolve(name_or_path)
    if adapters.is_adapter(folder):
        return adapters.merge(load(adapters.base_of(folder), device, dtype, mask_id), folder)
    network, files, layout, rest = _open(folder, mask_id)
    models.allocate(network, dtype, runtime.device(device))
    with _progress(files) as told:
        weights.fill(network, files, layout, told)
    model = Model(network.requires_grad_(False).eval(), *rest)
    if any(name != place.name for name, place in layout.places.items()):
        model.public = layout.places
    return model


def family_of(name_or_path: str | Path) -> dict[str, Any]:
    """The family of a checkpoint as a recipe's table, without reading its weights.

    Raises:
        UserError: as ``load``.
    """
    folder = resolve(name_or_path)
    if adapters.is_adapter(folder):
        return adapters.family_of(folder) or family_of(adapters.base_of(folder))
    _, family, name, *_ = _open(folder, None)[3]
    return {"name": name, **configs.to_mapping(family)}


@dataclass(frozen=True)
class Outline:
    """What can be told of a model without its weights."""

    family: str
    context: int
    conditional: bool
    left_to_right: bool
    infills: bool  # sees what follows a hole
    defaults: Mapping[str, Any]  # its own generation settings


def outline(folder: Path) -> Outline:
    """
    Raises:
        UserError: as ``load``, but for what is wrong with the weights themselves.
    """
    network, _, _, (tokenizer, family, name, conditional, defaults) = _open(folder, None)
    spec = family.spec(tokenizer)
    diffuses = spec.schedule is not None
    by_token = spec.continuous is None or spec.continuous.tokens
    return Outline(name, network.config.max_length, conditional, not diffuses, diffuses and by_token, defaults)


_Opened = tuple[Backbone, weights.Files, weights.Layout, tuple[Any, ...]]


def _open(folder: Path, mask_id: int | None) -> _Opened:
    """A model but for its weights: its network without memory, where they are, and the other arguments of ``Model``."""
    values = read_json(folder / "config.json")
    if "redraft_format" not in values:
        return _open_foreign(folder, values, mask_id)
    if mask_id is not None:
        raise UserError("mask_id is for public checkpoints: this one knows its own.", "Leave it out.")
    return _open_own(folder, values)


def _open_own(folder: Path, values: Mapping[str, Any]) -> _Opened:
    """A folder of our own format."""
    from redraft.data.tokenizer import Tokenizer
    from redraft.data.vocabulary import Ids, Vocabulary

    file = folder / "config.json"
    if values["redraft_format"] != FORMAT:
        raise UserError(f"{file}: format {values['redraft_format']!r} is not known here.")
    described = configs.build(Described, values, str(file))
    family_name, family = build_family(described.family)
    network = models.empty(described.network, f"{file} network")
    if described.vocabulary is None:
        tokenizer = Tokenizer.load(folder)
    else:
        tokenizer = Vocabulary(configs.build(Ids, described.vocabulary, f"{file} vocabulary"), folder)
    check_vocabulary(network.config, tokenizer, str(file))
    spec = family.spec(tokenizer)
    made_for = network.config.shift, network.config.timed, getattr(network.config, "guess", False)
    if made_for != (spec.shift, spec.timed, spec.guesses > 0):
        raise UserError(f"{file}: this network was not made for family '{family_name}' with these options.")
    defaults = read_json(folder / "generation_config.json") if (folder / "generation_config.json").exists() else {}
    configs.build(Settings, defaults, str(folder / "generation_config.json"))  # checked here, used later
    rest = (tokenizer, family, family_name, described.conditional, defaults)
    return network, weights.Files(folder), weights.Layout.own(network), rest


def _open_foreign(folder: Path, values: Mapping[str, Any], mask_id: int | None) -> _Opened:
    """A public checkpoint."""
    from redraft.convert import open_foreign

    found = open_foreign(folder, values, {} if mask_id is None else {"mask": mask_id})
    family_name, family = build_family(found.plan.family)
    rest = (found.vocabulary, family, family_name, False, found.plan.defaults)
    return found.network, found.files, found.plan.layout, rest


@contextmanager
def _progress(files: weights.Files) -> Iterator[Callable[[int, int], None] | None]:
    """A bar on a terminal for what takes more than a moment."""
    if files.size < _LARGE or not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    columns = (TextColumn("loading"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=files.size)
        yield lambda done, total: bar.update(task, completed=done, total=total)


_LARGE = 1 << 28  # bytes of weights
