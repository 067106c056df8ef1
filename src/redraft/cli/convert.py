"""``redraft convert``: read public checkpoints, and write models in public formats."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from redraft.cli._common import Device, Json, Seed, log
from redraft.cli._options import Options
from redraft.cli._verbs import verb
from redraft.errors import UserError, suggest
from redraft.options import check, setting

if TYPE_CHECKING:
    from redraft.model import Model


@dataclass(frozen=True)
class Conversion:
    """How to convert a checkpoint."""

    to: str = setting(
        "redraft", "redraft, a public format that fits the model (llama, qwen3, gguf ...), or a family (masked ...)."
    )
    options: Mapping[str, Any] = setting({}, "A field of the family named by --to; repeatable.", flag="--option")
    storage: Literal["float32", "bfloat16", "int8", "float16", "q8_0", "q4_0"] = setting(
        "float32",
        "Format of the stored weights. int8 is only for redraft's own format; float16, q8_0 and q4_0 are for gguf.",
    )
    mask_id: int | None = setting(None, "Id of the mask token, for a checkpoint whose files don't contain it.", least=0)
    adapter: str | None = setting(None, "LoRA adapter to merge into the weights, in peft's format.", metavar="FOLDER")
    push_to_hub: str | None = setting(None, "Also upload the folder to the Hugging Face hub.", metavar="OWNER/NAME")

    def __post_init__(self) -> None:
        check(self)


@verb(order=140)
def convert(
    *,
    source: Annotated[str, typer.Argument(help="Model folder, shipped checkpoint, or name on the Hugging Face hub.")],
    target: Annotated[Path, typer.Argument(help="Folder to write.")],
    given: Annotated[dict[str, Any], Options(Conversion)],
    as_json: Json = False,
    device: Device = "cpu",
    seed: Seed = 0,
) -> dict[str, Any]:
    """Convert a checkpoint to another format or to another family.

    \b
    Examples:
      redraft convert GSAI-ML/LLaDA-8B-Instruct runs/llada --storage bfloat16
      redraft convert runs/my-autoregressive exported --to llama
      redraft convert base-autoregressive exported --to llama --json
      redraft convert base-autoregressive exported --to gguf --storage q8_0
      redraft convert base-autoregressive runs/whole --adapter runs/adapter
      redraft convert base-autoregressive runs/start --to masked --option shift=1

    Folders in redraft's format follow the Hugging Face layout: transformers reads them after you import
    redraft.interop.transformers. Autoregressive models can be written as Llama, which every inference engine supports
    (as Qwen3 with normalised queries and keys, as Mistral with attention windows, as Qwen2 with biases of queries, keys
    and values), or as GGUF for llama.cpp, which also takes masked models with full attention (docs/export.md).

    --adapter merges a LoRA adapter into the weights.

    With a family for --to, the model becomes the starting point of another kind of model: it keeps its weights, and
    gets a mask token if it has none. Then train it: redraft finetune --from runs/start --curriculum anneal.

    --seed has no effect; every command accepts it.
    """
    import torch

    import redraft
    from redraft import hub

    wanted = Conversion(**given)
    _check(wanted, target)
    dtype = torch.bfloat16 if wanted.storage == "bfloat16" else torch.float32
    loaded = redraft.load(source, device, dtype, wanted.mask_id, wanted.adapter)
    model = _write(loaded, target, wanted, f"Made from `{source}` by `redraft convert`.")
    if wanted.push_to_hub is not None:
        hub.push(target, wanted.push_to_hub)
    if not as_json:
        log(f"{model.network.parameter_count / 1e6:.1f}M parameters, family {model.family_name}: {target}")
    size = sum(path.stat().st_size for path in target.iterdir())
    return {
        "source": source,
        "target": str(target),
        "format": wanted.to,
        "storage": wanted.storage,
        "family": model.family_name,
        "parameters": model.network.parameter_count,
        "megabytes": round(size / 1e6, 2),
        "pushed_to": wanted.push_to_hub,
    }


def _check(wanted: Conversion, target: Path) -> None:
    """Find mistakes before anything is loaded.

    Raises:
        UserError: an unknown format, a folder that is not empty, or options that don't fit the format.
    """
    from redraft import hub
    from redraft.convert import GGUF, writable
    from redraft.convert.shared.gguf_export import TYPES
    from redraft.files import check_writable
    from redraft.registry import names
    from redraft.weights import STORAGES

    formats = ("redraft", *writable(), *names("families"))
    if wanted.to not in formats:
        raise UserError(f"--to: there is no format '{wanted.to}'.", suggest(wanted.to, formats))
    if os.path.isdir(target) and any(target.iterdir()):
        raise UserError(f"'{target}' is not empty.", "Name a new folder.")
    check_writable(target, folder=True)
    if wanted.options and (wanted.to in writable() or wanted.to not in names("families")):
        raise UserError("--option sets the fields of a family.", "For example --to masked --option shift=0.")
    known = {"redraft": STORAGES, GGUF: tuple(TYPES)}.get(wanted.to, STORAGES[:2])
    if wanted.to in names("families"):
        known = STORAGES
    if wanted.storage not in known:
        raise UserError(f"Format '{wanted.to}' has no {wanted.storage} weights.", f"Use {' or '.join(known)}.")
    if wanted.push_to_hub is not None:
        hub.check_push(wanted.push_to_hub)


def _write(model: Model, target: Path, wanted: Conversion, origin: str) -> Model:
    """Write a model in a format, or as the starting point of a family; return what was written."""
    from redraft.convert import export, writable

    card = f"# {target.name}\n\n{origin}\n"
    if wanted.to in writable():
        parts = (model.network, model.tokenizer, model.spec)
        notes = export(wanted.to, *parts, target, wanted.storage, card, model.paired, model.defaults)
        if notes:
            log(f"stored in another type: {', '.join(notes)}")
        return model
    if wanted.to != "redraft":
        from redraft.conversion import convert_family

        model = convert_family(model, {"name": wanted.to, **wanted.options})
    model.save(target, wanted.storage, card)
    return model
