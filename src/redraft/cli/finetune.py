"""``redraft finetune``: go on training a checkpoint on data of one's own."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from redraft.cli import _training as t
from redraft.cli._common import Device, Json


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
      redraft finetune --from base-autoregressive --data notes.txt --family masked --course anneal --out runs/masked

    The checkpoint brings its family, shape and tokenizer. With --family it is converted first: an autoregressive model
    becomes a masked one, its predictions one position earlier as before (--set family.shift=0: where they belong).
    Without a budget it sees the data three times. Stopped at any moment, the same command goes on from the last
    checkpoint.
    """
    from redraft.loading import family_of, resolve

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
        "train": t.table(tokens=tokens, passes=passes, minutes=minutes, lr=lr, seed=seed),
    }
    return t.run(t.recipe_of(values, "command line", set_), out, device, as_json)
