"""Settings are declared once: as the fields of a dataclass, with their help, range, unit and reach.

To declare a setting, write a field of a frozen dataclass::

    @dataclass(frozen=True)
    class Settings:
        steps: int | None = setting(None, "Denoising steps.", least=1, tries=(4, 8, 16))
        length: Literal["auto", "head"] = setting("auto", "Where the output length comes from.")
        options: Mapping[str, Any] = setting({}, "Fields of the sampler.", flag="--option")
        files: tuple[str, ...] = setting(REQUIRED, "Files to read.", reach=())  # not an option

        def __post_init__(self) -> None:
            check(self)

Everything else is made from these fields:

- TOML, JSON and Python: ``config.build(Settings, {"steps": 8}, "my.toml")``.
- Command line: ``how: Annotated[dict[str, Any], Options(Settings)]`` in the signature of a verb
  (``redraft.cli._options``). The verb receives the values that were given.
- HTTP: ``http_fields(Settings)`` has the type, limits and help of each field that a request may set.
- Results: ``echo(settings)`` is the settings as plain values.
- ``redraft tune``: ``search_space(Settings)`` has the values to try.
- Documentation: ``table(Settings)`` is a Markdown table, ``describe(Settings)`` its rows.

A field can always be set in Python and in files. ``reach`` names the other places that may set it: ``cli``, ``http``.
``tries`` makes it part of the search space. This module imports nothing heavy.
"""

from __future__ import annotations

import dataclasses
import math
import numbers
import types
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal, NamedTuple, TypeVar, Union, get_args, get_origin, get_type_hints

from redraft.errors import UserError, suggest

T = TypeVar("T")

EVERYWHERE = ("cli", "http")  # besides Python and files
REQUIRED: Any = ...  # the default of a setting that has none
_ALWAYS = frozenset({"python", "toml"})
_KEY = "redraft.setting"
_TEXT_LIMIT = 200  # characters of a text in a request


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What a field of a dataclass declares.

    Attributes:
        help: one or two sentences for ``--help``, the HTTP schema and the documentation.
        least, above, most, below: limits of a number, and of each number of a tuple.
        choices: allowed values. A ``Literal`` type brings its own.
        unit: unit of a number, such as ``seconds``.
        metavar: how ``--help`` shows the value, such as ``NAME``.
        flag: option on the command line, where ``--the-field-name`` doesn't fit. Of a nested dataclass: its prefix.
        envvar: environment variable that the command line reads where the option isn't given.
        as_text: for a mapping on the command line: values are text, and ``KEY=@FILE`` reads a file. Otherwise they are
            TOML, and a bare word is a string.
        repeat: for a tuple on the command line: the option is repeated. Otherwise values are separated by commas.
        finite: refuse NaN and infinities.
        nonempty: refuse an empty tuple.
        request_most: the largest value that an HTTP request may set, where that is less than ``most``.
        tries: values that ``redraft tune`` tries.
        reach: where it may be set: ``python`` and ``toml`` always, ``cli``, ``http``, ``tune`` if there are ``tries``.
        name, type, default: of the field; filled in by ``declared``.
    """

    help: str
    least: float | None = None
    above: float | None = None
    most: float | None = None
    below: float | None = None
    choices: tuple[Any, ...] = ()
    unit: str = ""
    metavar: str = ""
    flag: str = ""
    envvar: str = ""
    as_text: bool = False
    repeat: bool = False
    finite: bool = True
    nonempty: bool = False
    request_most: float | None = None
    tries: tuple[Any, ...] = ()
    reach: frozenset[str] = _ALWAYS
    name: str = ""
    type: Any = None
    default: Any = REQUIRED

    @property
    def kind(self) -> Any:
        """The type without ``None``; of a tuple or list, the type of its members."""
        inner = _without_none(self.type)
        return get_args(inner)[0] if self.is_list else inner

    @property
    def is_list(self) -> bool:
        """Does it hold several values of one type?"""
        return get_origin(_without_none(self.type)) in (tuple, list)

    @property
    def is_mapping(self) -> bool:
        """Does it hold values by name?"""
        inner = _without_none(self.type)
        origin = get_origin(inner) or inner
        return isinstance(origin, type) and issubclass(origin, Mapping)

    @property
    def nested(self) -> type | None:
        """The dataclass that it holds, if it holds one."""
        inner = _without_none(self.type)
        return inner if isinstance(inner, type) and dataclasses.is_dataclass(inner) else None

    @property
    def option(self) -> str:
        """Its spelling on the command line, such as ``--max-new-tokens``."""
        return self.flag or f"--{self.name.replace('_', '-')}"

    @property
    def range(self) -> str:
        """Its limits in words, such as ``at least 1``; empty without limits."""
        if self.choices:
            return f"one of {', '.join(map(str, self.choices))}"
        if self.least is not None and self.most is not None:
            return f"between {_number(self.least)} and {_number(self.most)}"
        limits = (("at least", self.least), ("above", self.above), ("at most", self.most), ("below", self.below))
        return " and ".join(f"{words} {_number(limit)}" for words, limit in limits if limit is not None)

    def check(self, value: Any, label: str = "") -> None:
        """Check the range and choices of one value. ``None`` and mappings pass.

        Args:
            label: how to name the setting in an error; its name if empty.
        Raises:
            UserError: a value that is not allowed.
        """
        label = label or self.name
        if value is None or self.is_mapping or self.nested is not None:
            return
        if not self.is_list:
            self._check_one(value, label)
            return
        if self.nonempty and not len(value):
            raise UserError(f"{label} is empty.", "Give at least one value.")
        for one in value:
            self._check_one(one, label)

    def _check_one(self, value: Any, label: str) -> None:
        if self.choices:
            if value not in self.choices:
                raise UserError(
                    f"{label} = {value!r} is not one of its values.", suggest(value, map(str, self.choices))
                )
            return
        number = isinstance(value, numbers.Real) and not isinstance(value, bool)
        if not number:
            if self.kind in (int, float):
                raise UserError(f"{label} = {value!r} must be a number.", self._remedy())
            return
        if isinstance(value, float) and self.finite and not math.isfinite(value):
            raise UserError(f"{label} = {value} must be a finite number.", self._remedy())
        if not (
            (self.least is None or value >= self.least)
            and (self.above is None or value > self.above)
            and (self.most is None or value <= self.most)
            and (self.below is None or value < self.below)
        ):
            raise UserError(f"{label} = {value} must be {self.range}.", self._remedy())

    def _remedy(self) -> str:
        default = self.default
        if default is REQUIRED or default is None or isinstance(default, tuple | list):
            return "Give another value."
        return f"Give another value, or leave it out to use the default, {default}."


def setting(
    default: T,
    help: str,
    *,
    least: float | None = None,
    above: float | None = None,
    most: float | None = None,
    below: float | None = None,
    choices: Iterable[Any] = (),
    unit: str = "",
    metavar: str = "",
    flag: str = "",
    envvar: str = "",
    as_text: bool = False,
    repeat: bool = False,
    finite: bool = True,
    nonempty: bool = False,
    request_most: float | None = None,
    tries: Iterable[Any] = (),
    reach: Collection[str] = EVERYWHERE,
) -> T:
    """Declare a field of a dataclass as a setting.

    Args:
        default: the default, or ``REQUIRED``. A mapping or list is copied for each instance.
        reach: where it may be set besides Python and files: ``cli``, ``http``.

    ``Setting`` documents the others.

    Raises:
        ValueError: an unknown place.
    """
    if unknown := {*reach} - {*EVERYWHERE}:
        raise ValueError(f"unknown places {unknown}")
    made = Setting(
        help=help,
        least=least,
        above=above,
        most=most,
        below=below,
        choices=tuple(choices),
        unit=unit,
        metavar=metavar,
        flag=flag,
        envvar=envvar,
        as_text=as_text,
        repeat=repeat,
        finite=finite,
        nonempty=nonempty,
        request_most=request_most,
        tries=tuple(tries),
        reach=_ALWAYS | {*reach} | ({"tune"} if tries else set()),
    )
    given: dict[str, Any] = {} if default is REQUIRED else {"default": default}
    if isinstance(default, Mapping | list):
        kind: Any = type(default)
        given = {"default_factory": lambda: kind(default)}
    made_field: T = dataclasses.field(metadata={_KEY: made}, **given)
    return made_field


def check(component: Any) -> None:
    """Check all settings of a dataclass instance; for ``__post_init__``.

    Raises:
        UserError: a value out of range or not among the choices. It names the field, the value and what is allowed.
    """
    for name, one in declared(type(component)).items():
        one.check(getattr(component, name))


def declared(cls: Any, reach: str | None = None) -> dict[str, Setting]:
    """The settings of a dataclass by name, in order; with ``reach`` only those that this place may set."""
    return _declared(cls, reach)


@cache
def _declared(cls: Any, reach: str | None) -> dict[str, Setting]:
    hints = get_type_hints(cls)
    found = {}
    for field in dataclasses.fields(cls):
        one = field.metadata.get(_KEY)
        if one is None or (reach is not None and reach not in one.reach):
            continue
        default = REQUIRED if field.default is dataclasses.MISSING else field.default
        if field.default_factory is not dataclasses.MISSING:
            default = field.default_factory()
        complete = dataclasses.replace(one, name=field.name, type=hints[field.name], default=default)
        if get_origin(complete.kind) is Literal and not one.choices:
            complete = dataclasses.replace(complete, choices=get_args(complete.kind))
        found[field.name] = complete
    return found


def echo(component: Any, reach: str | None = None) -> dict[str, Any]:
    """The settings of an instance as plain values for JSON; with ``reach`` only those that this place may set."""
    return {name: _plain(getattr(component, name)) for name in declared(type(component), reach)}


def search_space(cls: type) -> dict[str, tuple[Any, ...]]:
    """What ``redraft tune`` tries: the values of each setting that declares ``tries``."""
    return {name: one.tries for name, one in declared(cls, "tune").items()}


class HttpField(NamedTuple):
    """A setting as a field of a request. Make it optional: a request that leaves it out takes the model's own."""

    type: Any  # without None
    limits: dict[str, Any]  # keyword arguments of ``pydantic.Field`` for the type
    help: str


def http_fields(cls: type) -> dict[str, HttpField]:
    """The settings that a request may set, for a pydantic model.

    ::

        fields = {
            name: (Annotated[one.type, Field(**one.limits)] | None, Field(None, description=one.help))
            for name, one in http_fields(Settings).items()
        }
        Own = create_model("Own", __base__=Strict, **fields)
    """
    found = {}
    for name, one in declared(cls, "http").items():
        most = one.most if one.request_most is None else one.request_most
        limits: dict[str, Any] = {"ge": one.least, "gt": one.above, "le": most, "lt": one.below}
        kind = one.kind
        if kind is str and not one.choices:
            limits |= {"min_length": 1, "max_length": _TEXT_LIMIT}
        elif one.choices:
            limits, kind = {}, Literal[one.choices]
        if one.is_list:
            kind = list[kind]  # type: ignore[valid-type]
            limits = {}
        if one.is_mapping:
            kind = dict[str, bool | int | float | str]
        found[name] = HttpField(kind, {key: limit for key, limit in limits.items() if limit is not None}, one.help)
    return found


def describe(cls: type, reach: str | None = None) -> list[dict[str, str]]:
    """The settings in words, one mapping each: setting, type, default, range, unit, option, meaning."""
    return [
        {
            "setting": name,
            "type": _type_name(one),
            "default": _default(one.default),
            "range": "" if one.choices else one.range,
            "unit": one.unit,
            "option": one.option if "cli" in one.reach else "",
            "meaning": one.help,
        }
        for name, one in declared(cls, reach).items()
    ]


def table(cls: type, reach: str | None = None) -> str:
    """A Markdown table of the settings, one a row, as the documentation shows it."""
    found = [
        [f"`{cell}`" if cell and column in ("setting", "option") else cell for column, cell in row.items()]
        for row in describe(cls, reach)
    ]
    head = ["setting", "type", "default", "range", "unit", "option", "meaning"]
    rows = [head, ["---"] * len(head), *found]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows)


def _without_none(hint: Any) -> Any:
    if get_origin(hint) not in (Union, types.UnionType):
        return hint
    rest = [one for one in get_args(hint) if one is not type(None)]
    return rest[0] if len(rest) == 1 else hint


def _type_name(one: Setting) -> str:
    if one.choices:
        return ", ".join(map(str, one.choices))
    if one.is_mapping or one.nested is not None:
        return "table"
    names = {str: "text", int: "integer", float: "number", bool: "yes or no"}
    name = names.get(one.kind, str(one.kind).removeprefix("<class '").removesuffix("'>"))
    return f"list of {name}" if one.is_list else name


def _default(value: Any) -> str:
    if value is REQUIRED:
        return "required"
    if value is None or (isinstance(value, Mapping | tuple | list | str) and not len(value)):
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return ", ".join(map(str, value)) if isinstance(value, tuple | list) else str(value)


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {key: _plain(one) for key, one in value.items()}
    return [_plain(one) for one in value] if isinstance(value, tuple | list) else value


def _number(limit: float) -> str:
    """``4611686018427387904`` -> ``2^62``; other numbers as they are."""
    if isinstance(limit, int) and abs(limit) >= 1 << 20 and not abs(limit) & (abs(limit) - 1):
        return f"{'-' if limit < 0 else ''}2^{abs(limit).bit_length() - 1}"
    return str(limit)
