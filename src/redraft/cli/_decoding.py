"""Options of the verbs that write texts: how it is done. Unset ones are the model's own."""

from __future__ import annotations

from typing import Annotated

import typer

MaxNewTokens = Annotated[int | None, typer.Option(help="Most tokens to write. Unset: the model's own.")]
Steps = Annotated[int | None, typer.Option(help="Denoising steps, for samplers that take them.")]
SamplerName = Annotated[str | None, typer.Option(help="See: redraft models. Unset: the model's own.")]
Options = Annotated[
    list[str] | None, typer.Option(metavar="KEY=VALUE", help="A field of the sampler; repeat for more.")
]
Candidates = Annotated[
    int | None, typer.Option(min=1, help="Output lengths to try; the model keeps the likeliest text.")
]
Length = Annotated[
    str | None,
    typer.Option(metavar="auto|head|search|fixed", help="Where the output length comes from: see docs/choosing.md."),
]
Start = Annotated[int | None, typer.Option(min=0, help="Cells to begin with, for models whose texts grow and shrink.")]
Cache = Annotated[str | None, typer.Option(help="What passes may reuse; see: redraft models. none: nothing.")]
CacheOptions = Annotated[
    list[str] | None, typer.Option(metavar="KEY=VALUE", help="A field of the cache policy; repeat for more.")
]
WeightsAs = Annotated[
    str | None, typer.Option(metavar="float32|bfloat16|int8", help="On CPUs: may be faster, and round.")
]
