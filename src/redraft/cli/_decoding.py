"""What the verbs that generate share: the decoding options, and the settings that were used."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any

import typer

from redraft.cli._options import Options
from redraft.settings import Settings

if TYPE_CHECKING:
    from redraft.samplers.base import Sampler

# Defaults are not shown: those of the model's generation_config.json apply.
Decoding = Annotated[dict[str, Any], Options(Settings, defaults=False)]
NOT_FOR_HOLES = ("max_new_tokens", "candidates", "length")  # the holes of a text determine the number of tokens
Infilling = Annotated[dict[str, Any], Options(Settings, leave_out=NOT_FOR_HOLES, defaults=False)]
Drafter = Annotated[
    str | None,
    typer.Option(
        help="Model that drafts for an autoregressive one (sampler draft_verify): a diffusion model, or a drafter."
    ),
]


def resolved(settings: Settings, sampler: Sampler) -> Settings:
    """The settings with the sampler that ``Model.method`` made from them, and all fields of this sampler."""
    fields = dict(sampler_options(sampler))
    steps = fields.pop("steps", None)
    return replace(settings, sampler=sampler_name(sampler), steps=steps, options=fields)


def sampler_name(sampler: Sampler) -> str:
    """The name that finds this sampler again: that of its file."""
    from redraft.samplers.base import unwrapped

    return unwrapped(sampler).name


def sampler_options(sampler: Sampler) -> dict[str, Any]:
    """The fields of a sampler."""
    from redraft.samplers.base import unwrapped

    return vars(unwrapped(sampler))
