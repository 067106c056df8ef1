"""``redraft finetune``: go on training a checkpoint on data of one's own."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from redraft.cli import _training as t
from redraft.cli._common import Device, Json, listed


def finetune(
    from_: Annotated[str, typer.Option("--from", help="A model folder, or a shipped checkpoint.")],
    data: Annotated[str, typer.Option(help="File, folder, set by name, or hub:owner/name.")],
    out: t.Out,
    validation: t.Validation = None,
    data_root: t.DataRoot = None,
    text: t.Text = None,
    input_: t.Input = None,
    target: t.Target = None,
    skip_bad_rows: t.SkipBadRows = False,
    family: Annotated[
        str | None, typer.Option(help="Turn it into another family, such as masked. Unset: its own.")
    ] = None,
    course: Annotated[
        str | None, typer.Option(metavar="anneal|blocks", help="How attention gets there; see docs/choosing.md.")
    ] = None,
    lora_rank: Annotated[
        int | None, typer.Option(min=1, help="Train a LoRA adapter of this rank, and nothing else.")
    ] = None,
    lora_alpha: Annotated[float | None, typer.Option(min=0, help="Its scale is alpha / rank. Unset: 2 rank.")] = None,
    lora_dropout: Annotated[float, typer.Option(min=0, max=1, help="Of the adapter's inputs.")] = 0.0,
    lora_targets: Annotated[
        str, typer.Option(metavar="NAMES", help="Matrices: q_proj,v_proj ..., or a regular expression.")
    ] = "all-linear",
    rslora: Annotated[bool, typer.Option("--rslora", help="Scale alpha / sqrt(rank).")] = False,
    tokens: t.Tokens = None,
    passes: t.Passes = None,
    minutes: t.Minutes = None,
    lr: t.Rate = 3e-4,
    set_: t.Set = None,
    as_json: Json = False,
    seed: Annotated[int, typer.Option(min=0, help="Same seed, same model.")] = 0,
    device: Device = "auto",
) -> dict[str, Any]:
    """Go on training a checkpoint on data of your own.

    \b
    Examples:
      redraft finetune --from translate-en-de-masked --data my.jsonl --input question --target answer --out runs/mine
      redraft finetune --from runs/stories --data notes.txt --minutes 5 --out runs/notes
      redraft finetune --from meta-llama/Llama-3.2-1B --data my.jsonl --lora-rank 8 --lora-targets q_proj,v_proj --out a
      redraft finetune --from base-autoregressive --data notes.txt --family masked --course anneal --out runs/masked

    The checkpoint brings its family, shape, tokenizer and, where it fits, its own way of writing. With --family it is
    converted first: an autoregressive model becomes a masked one, its predictions one position earlier as before
    (--set family.shift=0: where they belong).
    With --lora-rank the folder holds an adapter as peft writes it; it is a model too, as long as its base is there.
    Without a budget it sees the data three times. Stopped at any moment, the same command goes on from the last
    checkpoint.
    """
    from redraft.loading import family_of, resolve

    lora = None
    if lora_rank is not None:
        alpha = 2.0 * lora_rank if lora_alpha is None else lora_alpha
        lora = {"rank": lora_rank, "alpha": alpha, "dropout": lora_dropout, "targets": _targets(lora_targets)}
        lora["rslora"] = rslora
    if tokens is None and minutes is None and passes is None:
        passes = 3.0
    values = {
        "data": t.table(
            source=data,
            validation=validation,
            data_root=data_root,
            text=text,
            input=input_,
            target=target,
            skip_bad_rows=skip_bad_rows,
        ),
        "family": {"name": family} if family else family_of(from_),
        "course": t.table(name=course),
        "model": {"from": str(resolve(from_).resolve())},
        "lora": lora,
        "train": t.table(tokens=tokens, passes=passes, minutes=minutes, lr=lr, seed=seed),
    }
    return t.run(t.recipe_of(values, "command line", set_), out, device, as_json)


def _targets(text: str) -> str | list[str]:
    """``"q_proj,v_proj"`` -> a list of endings; anything with signs of a regular expression stays one."""
    return text if set(text) & set("*+?()[]|^$\\{}") or text == "all-linear" else listed(text)
