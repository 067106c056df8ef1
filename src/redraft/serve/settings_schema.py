"""The table ``redraft`` of a request, made from the declared generation settings.

The table has one field for each field of ``redraft.settings.Settings`` that HTTP may set (``redraft.options``), with
its type, range and description. A new setting needs no change here. Settings that OpenAI's API has too are fields of
the request itself (``OPENAI_NAMES``).
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, create_model, model_validator

from redraft.errors import suggest
from redraft.options import HttpField, declared, http_fields
from redraft.settings import Settings

# Settings that OpenAI's API has too: our name -> the field of the request.
OPENAI_NAMES = {"max_new_tokens": "max_tokens", "temperature": "temperature", "top_p": "top_p", "seed": "seed"}
# Other spellings of fields of the table ``redraft``, accepted there and at the top level.
SPELLINGS = {
    "diffusion_steps": "steps",  # scripts of LLaDA and Dream
    "num_steps": "steps",
    "block_length": "block",
    "block_size": "block",
}
# Fields of samplers that the table accepts without ``options``.
_SAMPLER_FIELDS = ("block", "order", "threshold")
# Options of the command line -> the fields of a request with the same meaning.
_FIELDS_OF_OPTIONS = {
    one.option: "response_format" if name == "constraint" else OPENAI_NAMES.get(name, f"redraft.{name}")
    for name, one in declared(Settings).items()
}
_FLOAT_INTEGERS = 1 << 53  # larger integers are not exact as a float


def _to_int(value: Any) -> Any:
    """JSON has one type of number: 3.0 is an integer."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _to_float(value: Any) -> Any:
    """An integer as a float; one that is too large becomes infinite, which no field accepts."""
    if isinstance(value, int) and not isinstance(value, bool):
        return float(value) if abs(value) < _FLOAT_INTEGERS else math.inf
    return value


CONVERSIONS = {int: BeforeValidator(_to_int), float: BeforeValidator(_to_float)}
Deadline = Annotated[float, Field(gt=0, le=86_400), CONVERSIONS[float]] | None
SETTINGS: Mapping[str, HttpField] = http_fields(Settings)


def optional(declared: HttpField) -> Any:
    """The type of an optional field for a setting, with its range."""
    annotations = [Field(**declared.limits)] if declared.limits else []
    if declared.type in CONVERSIONS:
        annotations.append(CONVERSIONS[declared.type])
    made = Annotated[(declared.type, *annotations)] if annotations else declared.type
    return made | None


class Strict(BaseModel):
    """A JSON object without unknown fields or values of another type."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, strict=True)


def in_request_terms(message: str) -> str:
    """An error message about settings with fields of a request in place of options of the command line."""
    return re.sub(r"--[a-z][a-z-]*", lambda found: _FIELDS_OF_OPTIONS.get(found[0], found[0]), message)


class TableBase(Strict):
    """The table ``redraft``: generation settings beyond OpenAI's. A field that is not set takes the model's default."""

    deadline: Deadline = Field(default=None, description="Seconds after which the request is given up (status 408).")

    @model_validator(mode="before")
    @classmethod
    def _normalize(cls, value: Any) -> Any:
        """Replace other spellings, and move fields of the sampler into ``options``."""
        if not isinstance(value, dict):
            return value
        found: dict[str, Any] = {}
        options = value.get("options")
        options = {} if options is None else options
        for key, one in value.items():
            name = SPELLINGS.get(str(key), str(key))
            if name in _SAMPLER_FIELDS and isinstance(options, dict):
                options = {**options, name: one}
            elif name not in cls.model_fields:
                raise ValueError(f"Unknown field 'redraft.{key}'. {suggest(str(key), cls.model_fields)}")
            elif name != "options" and one is not None:
                found[name] = one
        return {**found, "options": options} if options != {} else found

    @model_validator(mode="after")
    def _only_names(self) -> TableBase:
        """Text settings are names of parts. A request can't give a path, nor a dotted name of Python code."""
        for name, value in self.settings().items():
            if isinstance(value, str) and not re.fullmatch(r"[\w-]+", value):
                raise ValueError(f"redraft.{name} = '{value}' is not a name: use letters, digits, '_' and '-'.")
        return self

    def settings(self) -> dict[str, Any]:
        """The generation settings that are set."""
        values = vars(self)
        return {name: values[name] for name in SETTINGS if values.get(name) not in (None, {})}


if TYPE_CHECKING:
    Table = TableBase
else:
    Table = create_model(
        "GenerationSettings",
        __base__=TableBase,
        __doc__=TableBase.__doc__,
        **{
            name: (optional(declared), Field(None, description=declared.help))
            for name, declared in SETTINGS.items()
            if name not in OPENAI_NAMES
        },
    )
