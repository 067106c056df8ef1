"""Loading models: by name, folders of our own format, public checkpoints (GGUF files too), and the hub."""

from __future__ import annotations

import os
import re
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from redraft import adapters, hub, models, runtime, weights
from redraft import config as configs
from redraft.convert import Foreign, open_foreign, open_gguf
from redraft.errors import UserError, suggest
from redraft.families import build_family
from redraft.files import read_json
from redraft.generation.answer_lengths import AnswerLengths
from redraft.gguf_file import find_gguf, is_gguf
from redraft.model import Model, check_vocabulary
from redraft.models.parts.backbone import Backbone
from redraft.saving import FORMAT, ModelConfig
from redraft.settings import Dtype, Settings
from redraft.shipped import PACKAGED, check_installed, named_models
from redraft.targets import Target


def is_model(path: Path) -> bool:
    """Is it the folder of a model or of an adapter, or a GGUF file?"""
    return os.path.isfile(path / "config.json") or adapters.is_adapter(path) or is_gguf(path)


def resolve(name_or_path: str | Path) -> Path:
    """The folder or the GGUF file of a model. A name on the hub is downloaded first.

    A folder without a config.json that holds exactly one GGUF file stands for it.

    Raises:
        UserError: not a model folder, a GGUF file, a shipped checkpoint or a name on the hub.
    """
    path = Path(name_or_path)
    if is_model(path):
        return path
    known = named_models()
    if str(name_or_path) in known:
        return known[str(name_or_path)]
    check_installed(str(name_or_path))
    single = find_gguf(path)
    if single is not None:
        return single
    if os.path.isfile(path / "train" / "recipe.toml"):
        raise UserError(
            f"'{path}' holds an unfinished training run and no model yet.",
            "Run the same training command again: it resumes and writes the model there.",
        )
    if os.path.isdir(path):
        raise UserError(
            f"'{path}' is not a model folder: it has no config.json and no GGUF file.",
            "Give the --out folder of a training, a checkpoint folder, or a shipped model (see: redraft models).",
        )
    if _on_hub(name_or_path):
        return hub.pull(str(name_or_path))
    raise UserError(
        f"There is no model '{name_or_path}': no such folder, and no shipped model of that name.",
        suggest(str(name_or_path), known),
    )


def stable_name(name_or_path: str | Path) -> str:
    """The name under which another file can record a model: that of a packaged model, else an absolute path.

    Raises:
        UserError: as for ``resolve``.
    """
    found = resolve(name_or_path)
    packaged = (name for name, model in PACKAGED.items() if model.path == found)
    return next(packaged, str(found.resolve()))


def _on_hub(name_or_path: str | Path) -> bool:
    """Can it only be a name on the hub: OWNER/NAME, and no local path?"""
    return re.fullmatch(r"[\w.-]+/[\w.-]+", str(name_or_path)) is not None and not os.path.exists(
        Path(name_or_path).parent
    )


def _below_adapters(name_or_path: str | Path) -> tuple[Path, list[adapters.Adapter]]:
    """The folder of a whole model, and the adapters on top of it that ``name_or_path`` stands for, the last one first.

    Raises:
        UserError: an adapter's base is the adapter itself, or another one whose base it is.
    """
    folder, above = resolve(name_or_path), list[adapters.Adapter]()
    while adapters.is_adapter(folder):
        if any(folder.resolve() == one.folder.resolve() for one in above):
            names = " -> ".join(f"'{one.folder}'" for one in above)
            raise UserError(f"The adapters {names} -> '{folder}' have no base model.", "Give one: --model BASE.")
        above.append(adapters.read(folder))
        folder = resolve(above[-1].base)
    return folder, above


def _adapter_folder(name_or_path: str | Path) -> Path:
    """The folder of an adapter. A name on the hub is downloaded first."""
    folder = Path(name_or_path)
    return hub.pull(str(name_or_path)) if not os.path.isdir(folder) and _on_hub(name_or_path) else folder


def load(
    name_or_path: str | Path,
    device: str | None = None,
    dtype: torch.dtype | Dtype = "auto",
    mask_id: int | None = None,
    adapter: str | Path | None = None,
    target: Model | None = None,
) -> Model:
    """Load a model: a folder, a shipped or packaged model by name, or a public checkpoint (``redraft.convert``) from a
    folder, a GGUF file or the Hugging Face hub, whose usual variables (HF_HOME, HF_HUB_OFFLINE) apply.

    Weights are mapped into memory and copied file by file into a network of type ``dtype`` on ``device``.

    Args:
        device: auto (None), cpu, cuda, mps ... dtype: auto is bfloat16 on an accelerator and float32 on a CPU.
        mask_id: the mask token of a public checkpoint whose files do not name it.
        adapter: a LoRA adapter (a folder, or a name on the hub) to merge into the weights. An adapter's folder can also
            be given as ``name_or_path``: the base model is then found by the name that the adapter's files record.
        target: the model that a drafter was trained for. Unset: it is loaded, too, by the name that the drafter's files
            record. Other models have no target, and this one is not used.
    Raises:
        UserError: unknown model, corrupt file, an unsupported configuration, or a drafter of another target.
    """
    if adapter is not None:
        found = adapters.read(_adapter_folder(adapter))  # before the base model, which takes longer
        _check_base(found, name_or_path)
        return adapters.merge(load(name_or_path, device, dtype, mask_id), found)
    folder, found_on_top = _below_adapters(name_or_path)
    if found_on_top:
        model = load(folder, device, dtype, mask_id)
        for found in reversed(found_on_top):
            model = adapters.merge(model, found)
        return model
    network, files, layout, rest, recorded = _open(folder, mask_id, target)
    weights.check_shapes(network, files, layout)
    where = runtime.device(device)
    if recorded.target is not None:
        verifies = load(recorded.target.model, device, dtype) if target is None else target
        recorded.target.check(verifies.network, f"The drafter '{name_or_path}'")
        network.attach(verifies.network)
    models.allocate(network, runtime.weight_type(dtype, where), where)
    with _progress(files) as on_read:
        weights.fill(network, files, layout, on_read)
    model = recorded.given_to(Model(network.requires_grad_(False).eval(), *rest))
    model.public = _public(layout)
    return model


def _public(layout: weights.Layout) -> Mapping[str, weights.TensorMap] | None:
    """The names of a public checkpoint's tensors; None: the names are those of the network."""
    return layout.places if any(name != place.name for name, place in layout.places.items()) else None


def pair(model: Model, drafter: str | None, sampler: str | None) -> str | None:
    """Give the model its drafter, if there is one, and return the name of the sampler to use.

    Raises:
        UserError: a sampler other than ``draft_verify``, which would not use the drafter, or an unsuitable drafter.
    """
    if drafter is None:
        return sampler
    if sampler not in (None, "draft_verify"):
        raise UserError(f"Sampler '{sampler}' doesn't use a drafter.", "Leave out --drafter, or use draft_verify.")
    model.draft_with(load(drafter, str(model.network.device), model.network.dtype, target=model))
    return "draft_verify"


def outline(name_or_path: str | Path) -> Model:
    """A model without its weights: the parameters of its network have shapes and no memory (device ``meta``).

    Raises:
        UserError: as for ``load``, except for errors in the weights themselves.
    """
    folder, above = _below_adapters(name_or_path)
    network, _, layout, rest, recorded = _open(folder, None)
    model = recorded.given_to(Model(network.requires_grad_(False).eval(), *rest))
    model.public = _public(layout)
    for found in reversed(above):
        model = model if found.origin is None else adapters.converted(model, found.origin)
    return model


def stored_dtype(name_or_path: str | Path) -> torch.dtype:
    """The type in which a model's weights are stored. They are not read.

    Raises:
        UserError: as for ``load``.
    """
    return _open(_below_adapters(name_or_path)[0], None)[1].dtype


def _check_base(adapter: adapters.Adapter, name_or_path: str | Path) -> None:
    """Warn if an adapter was trained on another model than the one that it is merged into."""
    if not adapter.base_name or _on_hub(adapter.base_name):
        return  # nothing is downloaded for a comparison
    try:
        base, given = resolve(adapter.base_name), resolve(name_or_path)
    except UserError:
        return  # the base model isn't here, so nothing can be compared
    if base.resolve() == given.resolve() or weights.same_files(base, given):
        return
    warnings.warn(
        f"The adapter '{adapter.folder}' was trained on '{adapter.base_name}', not on '{name_or_path}': what it adds "
        "may not suit this model.",
        stacklevel=3,
    )


def family_of(name_or_path: str | Path) -> dict[str, Any]:
    """The family of a checkpoint, as a recipe's table. The weights are not read.

    Raises:
        UserError: as for ``load``.
    """
    model = outline(name_or_path)
    return {"name": model.family_name, **configs.to_mapping(model.family)}


@dataclass(frozen=True)
class ModelInfo:
    """What is known about a model without reading its weights."""

    family: str
    context: int  # positions
    paired: bool  # trained on pairs of prompt and answer
    left_to_right: bool
    infills: bool  # attends to what follows a hole
    defaults: Mapping[str, Any]  # its own generation settings


def model_info(folder: Path) -> ModelInfo:
    """Describe a model folder or a GGUF file.

    Raises:
        UserError: as for ``load``, except for errors in the weights themselves.
    """
    network, _, _, (tokenizer, family, name, paired, defaults), _ = _open(folder, None)
    spec = family.spec(tokenizer)
    diffuses = spec.family.schedule is not None
    by_token = spec.family.continuous is None or spec.family.continuous.tokens
    return ModelInfo(name, network.config.max_length, paired, not diffuses, diffuses and by_token, defaults)


@dataclass(frozen=True)
class _Recorded:
    """What a model folder records about its training, as attributes of ``Model``."""

    answer_lengths: AnswerLengths | None = None
    target: Target | None = None
    trained_length: int = 0

    def given_to(self, model: Model) -> Model:
        """The model with these attributes."""
        model.answer_lengths, model.target = self.answer_lengths, self.target
        model.trained_length = self.trained_length
        return model


_Opened = tuple[Backbone, weights.Files, weights.Layout, tuple[Any, ...], _Recorded]


def _open(folder: Path, mask_id: int | None, target: Model | None = None) -> _Opened:
    """All of a model but its weights: a network without memory, its files, the other arguments of ``Model``, and what
    is recorded about its training."""
    if is_gguf(folder):
        return _open_foreign(open_gguf(folder, _given(mask_id)))
    values = read_json(folder / "config.json")
    if "redraft_format" not in values:
        return _open_foreign(open_foreign(folder, values, _given(mask_id)))
    if mask_id is not None:
        raise UserError("mask_id is for public checkpoints; this model's files name its mask.", "Leave it out.")
    return _open_own(folder, values, target)


def _open_own(folder: Path, values: Mapping[str, Any], target: Model | None) -> _Opened:
    """Open a folder of our own format."""
    from redraft.data.tokenizer import Tokenizer
    from redraft.data.vocabulary import Ids, Vocabulary

    file = folder / "config.json"
    if values["redraft_format"] != FORMAT:
        what = f"{file}: format {values['redraft_format']!r} is unknown; this version reads format {FORMAT}."
        raise UserError(what, "Use the version of redraft that wrote it.")
    described = configs.build(ModelConfig, values, str(file))
    family_name, family = build_family(described.family)
    files = weights.Files(folder)
    if described.target is None:
        weights.check_scale(models.shape(described.network, f"{file} network"), files, f"{file} network")
    else:
        _check_target(described, file, files, target)
    network = models.empty(described.network, f"{file} network")
    if described.vocabulary is None:
        tokenizer = Tokenizer.load(folder)
    else:
        tokenizer = Vocabulary(configs.build(Ids, described.vocabulary, f"{file} vocabulary"), folder)
    check_vocabulary(network.config, tokenizer, str(file))
    spec = family.spec(tokenizer)
    made_for = network.config.shift, network.config.timed, network.config.self_conditioning
    if made_for != (spec.network.shift, spec.network.timed, spec.network.self_conditioning != 0):
        what = f"{file}: this network was not made for family '{family_name}' with these options."
        raise UserError(what, "Restore the file as it was saved.")
    defaults = read_json(folder / "generation_config.json") if (folder / "generation_config.json").exists() else {}
    configs.build(Settings, defaults, str(folder / "generation_config.json"))  # checked here, used later
    rest = (tokenizer, family, family_name, described.paired, defaults)
    recorded = _Recorded(described.answer_lengths, described.target, described.trained_length)
    return network, files, weights.Layout.own(network), rest, recorded


def _check_target(described: ModelConfig, file: Path, files: weights.Files, target: Model | None) -> None:
    """Check a drafter's configuration: its part for the target's network must be that of the target.

    Raises:
        UserError: it differs, the target can't be found, or the drafter's own part does not belong to its files.
    """
    assert described.target is not None
    try:
        found = outline(described.target.model) if target is None else target
    except UserError as error:
        raise UserError(
            f"{file}: the drafter's target can't be opened: {error.what}", "Name it: --model TARGET --drafter FOLDER."
        ) from None
    shape = models.shape(described.network, f"{file} network")
    if shape.target != found.network.config:
        raise UserError(
            f"{file}: the drafter was trained for a network of another shape than that of '{described.target.model}'.",
            "Use the model that it was trained for.",
        )
    weights.check_scale({"layers": shape.layers}, files, f"{file} network")


def _open_foreign(found: Foreign) -> _Opened:
    """Open a public checkpoint."""
    family_name, family = build_family(found.plan.family)
    rest = (found.vocabulary, family, family_name, False, found.plan.defaults)
    return found.network, found.files, found.plan.layout, rest, _Recorded()


def _given(mask_id: int | None) -> dict[str, int]:
    """Special tokens that the caller names."""
    return {} if mask_id is None else {"mask": mask_id}


@contextmanager
def _progress(files: weights.Files) -> Iterator[Callable[[int, int], None] | None]:
    """Show a progress bar on a terminal while large weights are read."""
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
