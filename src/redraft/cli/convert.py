"""``redraft convert``: public checkpoints in, and models out in formats that others read."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from redraft.cli._common import Adapter, Device, Json, Seed, log
from redraft.errors import UserError, suggest


def convert(
    source: Annotated[str, typer.Argument(help="A model folder, a shipped checkpoint, or a name on the hub.")],
    target: Annotated[Path, typer.Argument(help="The folder to write.")],
    to: Annotated[
        str,
        typer.Option(
            help="redraft, a public format that holds the model (llama, qwen3 ...), or a family (masked ...)."
        ),
    ] = "redraft",
    option: Annotated[
        list[str] | None, typer.Option(metavar="KEY=VALUE", help="A field of that family; repeat for more.")
    ] = None,
    storage: Annotated[
        str, typer.Option(help="How weights are stored: float32, bfloat16 or, in redraft's, int8.")
    ] = "float32",
    mask_id: Annotated[
        int | None, typer.Option(help="The mask token of a checkpoint whose files don't name it.")
    ] = None,
    adapter: Adapter = None,
    push_to_hub: Annotated[
        str | None, typer.Option(metavar="OWNER/NAME", help="Also upload the folder to the Hugging Face hub.")
    ] = None,
    as_json: Json = False,
    device: Device = "cpu",
    seed: Seed = 0,
) -> dict[str, Any]:
    """Turn a checkpoint into another format.

    \\b
    Examples:
      redraft convert GSAI-ML/LLaDA-8B-Instruct runs/llada --storage bfloat16
      redraft convert runs/my-autoregressive exported --to llama
      redraft convert base-autoregressive exported --to llama --json
      redraft convert base-autoregressive runs/whole --adapter runs/adapter
      redraft convert base-autoregressive runs/start --to masked --option shift=1

    redraft's own folders are in the Hugging Face layout: transformers reads them after importing
    redraft.interop.transformers. Plain autoregressive models can be written as Llama (with normalised queries and keys
    as Qwen3, with windows as Mistral, with biases of queries, keys and values as Qwen2), which every engine serves.

    --adapter folds a LoRA adapter into the weights.

    With a family for --to, the model is made the beginning of another kind of model: weights as they are, a mask token
    where there was none. Then train it: redraft finetune --from runs/start --course anneal.

    --seed is taken for the sake of scripts; nothing here is random.
    """
    import torch

    import redraft
    from redraft import hub
    from redraft.config import parse_options
    from redraft.convert import export, writable
    from redraft.registry import names

    families = () if to in writable() else names("families")
    formats = ("redraft", *writable(), *names("families"))
    if to not in formats:
        raise UserError(f"can't write the format '{to}'.", suggest(to, formats))
    if target.exists() and any(target.iterdir()):
        raise UserError(f"'{target}' is not empty.", "Name a new folder.")
    if option and to not in families:
        raise UserError("--option is for the fields of a family.", "For example --to masked --option shift=0.")
    if to in writable() and storage == "int8":
        raise UserError(f"the format '{to}' has no int8 weights.", "Take float32 or bfloat16.")
    if push_to_hub is not None:
        hub.check_push(push_to_hub)
    dtype = torch.bfloat16 if storage == "bfloat16" else torch.float32
    model = redraft.load(source, device, dtype, mask_id, adapter)
    card = f"# {target.name}\n\nMade from `{source}` by `redraft convert`.\n"
    if to in families:
        from redraft.conversion import become

        model = become(model, {"name": to, **parse_options(option or [], "--option")})
    if to not in writable():
        model.save(target, storage, card)
    else:
        export(to, model.network, model.tokenizer, model.spec, target, storage, card)
    if push_to_hub is not None:
        hub.push(target, push_to_hub)
    if not as_json:
        log(f"{model.parameters / 1e6:.1f}M parameters, family {model.family_name}: {target}")
    size = sum(path.stat().st_size for path in target.iterdir())
    return {
        "source": source,
        "target": str(target),
        "format": to,
        "storage": storage,
        "family": model.family_name,
        "parameters": model.parameters,
        "megabytes": round(size / 1e6, 2),
        "pushed_to": push_to_hub,
    }
