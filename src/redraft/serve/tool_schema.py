"""The parts of chat requests about tools, in OpenAI's format."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from redraft.serve.settings_schema import Strict

ToolName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,64}$")]


class Function(Strict):
    """A function that the model may call."""

    name: ToolName
    description: Annotated[str, Field(max_length=10_000)] | None = None
    parameters: dict[str, Any] | None = Field(None, description="JSON Schema of the arguments; unset: no arguments.")
    strict: bool | None = Field(None, description="Without effect: arguments always satisfy the schema.")


class Tool(Strict):
    """A tool in OpenAI's format."""

    type: Literal["function"]
    function: Function


class NamedFunction(Strict):
    """The name of a function."""

    name: ToolName


class NamedTool(Strict):
    """The tool that must be called."""

    type: Literal["function"]
    function: NamedFunction


class CalledFunction(BaseModel):
    """The function that a message called, with its arguments as JSON."""

    model_config = ConfigDict(extra="ignore", strict=True)
    name: str
    arguments: str


class Call(BaseModel):
    """A call in a message of the assistant."""

    model_config = ConfigDict(extra="ignore", strict=True)
    id: str
    type: Literal["function"] = "function"
    function: CalledFunction
