"""Bodies of requests for decisions, and of their responses."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, Field, create_model, model_validator

from redraft.errors import suggest
from redraft.options import http_fields
from redraft.serve.schema import IGNORED, Body, check_values
from redraft.serve.settings_schema import Deadline, optional
from redraft.settings import DecisionSettings

_Text = Annotated[str, Field(max_length=1 << 20)]
_Labels = Annotated[list[Annotated[str, Field(min_length=1, max_length=1000)]], Field(min_length=2, max_length=1000)]
_DECISION = http_fields(DecisionSettings)


class DecideBody(Body):
    """The body of ``POST /v1/decide``: a text with slots and their labels, for one or several rows of fields."""

    text: _Text = Field(
        description="[name] is a slot, {name} a field that each row fills; [[name]] and {{name}} are text in brackets."
    )
    labels: Annotated[dict[str, _Labels], Field(min_length=1, max_length=64)] = Field(
        description="The allowed labels of each slot."
    )
    rows: Annotated[list[dict[str, _Text]], Field(min_length=1, max_length=1000)] = Field(
        [{}], description="The text of each field; one decision for each row."
    )
    prompt: _Text = Field("", description="The prompt that the text answers, for models of prompt and answer.")
    deadline: Deadline = Field(None, description="Seconds after which the request is given up (status 408).")

    @model_validator(mode="before")
    @classmethod
    def _check_names(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        check_values(value)
        for key in value:
            if key not in cls.model_fields and key not in IGNORED:
                raise ValueError(f"Unknown field '{key}'. {suggest(key, cls.model_fields)}")
        return {key: one for key, one in value.items() if one is not None and key not in IGNORED}

    @property
    def seconds(self) -> float | None:
        """Seconds after which the request is given up; None: not set."""
        return self.deadline

    def settings(self) -> DecisionSettings:
        """The settings of the request."""
        values = vars(self)
        return DecisionSettings(**{name: values[name] for name in _DECISION if values[name] is not None})


if TYPE_CHECKING:
    DecideRequest = DecideBody
else:
    DecideRequest = create_model(
        "DecideRequest",
        __base__=DecideBody,
        __doc__=DecideBody.__doc__,
        **{name: (optional(one), Field(None, description=one.help)) for name, one in _DECISION.items()},
    )


class DecidedRow(BaseModel):
    """The labels of one row."""

    index: int
    text: str = Field(description="The text with the labels in its slots.")
    labels: dict[str, str] = Field(description="The most probable label of each slot.")
    probabilities: dict[str, dict[str, float]] = Field(description="Of each label of each slot.")
    nfe: int = Field(description="Forward passes that the text took part in; noise samples of a bound.")


class DecideResponse(BaseModel):
    """The response of ``POST /v1/decide``."""

    id: str
    object: Literal["decision"]
    created: int
    model: str
    decisions: list[DecidedRow]
    redraft: dict[str, Any] = Field(description="The settings that were used.")
