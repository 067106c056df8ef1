"""Command-line options made from the fields of a dataclass (see ``redraft.options``).

A verb takes all options of a dataclass as one parameter::

    @verb(order=20)
    def generate(
        *,
        model: Annotated[str, typer.Option(help="A model folder.")],
        given: Annotated[dict[str, Any], Options(Settings)],
        seed: Seed = 0,
    ) -> dict[str, Any]: ...

``given`` maps the names of the fields to the values on the command line; a field that was not given is absent. Values
have the field's type and are in range. A parameter of the verb itself (``seed``) replaces the option of the same name.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin

import typer

from redraft import config
from redraft.errors import UserError
from redraft.options import REQUIRED, Setting, declared

_SEPARATOR = "__"  # between the parameter of a verb and a field, in the names of the options' parameters


@dataclass(frozen=True)
class Options:
    """Marks a verb's parameter as the options of a dataclass.

    Args:
        source: the dataclass, or ``"module:Class"`` for one whose module is slow to import.
        leave_out: fields that this verb doesn't offer.
        only: if not empty, the fields that this verb offers.
        defaults: show the fields' defaults in ``--help``. False where other defaults apply, such as a model's own.
    """

    source: type | str
    leave_out: tuple[str, ...] = ()
    only: tuple[str, ...] = ()
    defaults: bool = True

    def settings(self) -> dict[str, Setting]:
        """The fields that are offered, by name; those of a nested dataclass as ``field.subfield``."""
        source = self.source
        if isinstance(source, str):
            module, _, name = source.partition(":")
            source = vars(importlib.import_module(module))[name]
        found = dict(_flat(source))
        return {
            name: one
            for name, one in found.items()
            if not {name, name.split(".")[0]} & set(self.leave_out)
            and (not self.only or {name, name.split(".")[0]} & set(self.only))
        }


def _flat(cls: Any) -> Iterator[tuple[str, Setting]]:
    for name, one in declared(cls, "cli").items():
        if one.nested is None:
            yield name, one
            continue
        for inner, part in _flat(one.nested):
            yield f"{name}.{inner}", replace(part, flag=f"{one.option}-{part.option.removeprefix('--')}")


def expand(function: Callable[..., Any]) -> Callable[..., Any]:
    """The same verb with one parameter per option, as typer needs it.

    Raises:
        ValueError: two dataclasses of the verb declare the same option.
    """
    signature = inspect.signature(function, eval_str=True)
    groups = {name: mark for name, one in signature.parameters.items() if (mark := _mark(one.annotation)) is not None}
    own = {flag for name, one in signature.parameters.items() if name not in groups for flag in _flags(one)}
    parameters: list[inspect.Parameter] = []
    offered: dict[str, tuple[str, str, Setting]] = {}  # parameter -> (group, field, setting)
    for name, one in signature.parameters.items():
        if name not in groups:
            parameters.append(one.replace(kind=inspect.Parameter.KEYWORD_ONLY))
            continue
        for field, setting in groups[name].settings().items():
            if setting.option in own:
                continue
            if setting.option in {other.option for _, _, other in offered.values()}:
                raise ValueError(f"two dataclasses of {function.__name__} declare {setting.option}")
            parameter = f"{name}{_SEPARATOR}{field.replace('.', _SEPARATOR)}"
            offered[parameter] = name, field, setting
            parameters.append(_parameter(parameter, setting, groups[name].defaults))

    def run(**values: Any) -> Any:
        given: dict[str, dict[str, Any]] = {name: {} for name in groups}
        for parameter, (group, field, setting) in offered.items():
            value = _value(setting, values.pop(parameter))
            if value is not None:
                *tables, last = field.split(".")
                place = given[group]
                for one in tables:
                    place = place.setdefault(one, {})
                place[last] = value
        return function(**values, **given)

    run.__name__, run.__doc__ = function.__name__, function.__doc__
    run.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {}
    return run


def _mark(annotation: Any) -> Options | None:
    if get_origin(annotation) is not Annotated:
        return None
    return next((one for one in get_args(annotation) if isinstance(one, Options)), None)


def _flags(parameter: inspect.Parameter) -> set[str]:
    """The options that a parameter of a verb stands for."""
    flags = {f"--{parameter.name.strip('_').replace('_', '-')}"}
    for one in get_args(parameter.annotation):
        if isinstance(one, typer.models.OptionInfo):
            written = [text for text in (one.default, *(one.param_decls or ())) if isinstance(text, str)]
            flags = set(written) or flags
    return flags


def _parameter(name: str, setting: Setting, show_default: bool) -> inspect.Parameter:
    """One typer option."""
    kind, metavar = _command_line_type(setting)
    off_switch = setting.kind is bool and setting.default is True
    info = typer.Option(
        f"{setting.option}/--no-{setting.option[2:]}" if off_switch else setting.option,
        help=_help(setting, show_default),
        metavar=setting.metavar or metavar or None,
        envvar=setting.envvar or None,
        show_default=False,
    )
    default: Any = None
    if setting.default is REQUIRED:
        default = inspect.Parameter.empty
    elif setting.kind is bool and not off_switch:
        default = False
    annotated: Any = Annotated
    annotation = annotated[kind if default is not None else kind | None, info]
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def _command_line_type(setting: Setting) -> tuple[Any, str]:
    """Type and metavar of an option."""
    if setting.is_mapping:
        return list[str], "KEY=TEXT" if setting.as_text else "KEY=VALUE"
    if setting.is_list and setting.repeat:
        return list[str], ""
    if setting.is_list:
        return str, {int: "INT,INT,...", float: "NUMBER,NUMBER,..."}.get(setting.kind, "NAME,NAME,...")
    if setting.choices:
        return str, "|".join(map(str, setting.choices))
    return (setting.kind if setting.kind in (int, float, bool, Path) else str), ""


def _help(setting: Setting, show_default: bool) -> str:
    """Help text with default and range, such as ``Number of steps. [default: 8; at least 1]``.

    Defaults of zero, False and empty are not shown: they mean that something is off or chosen automatically.
    """
    text, facts = setting.help, []
    if setting.is_mapping or (setting.is_list and setting.repeat):
        text += " Repeatable."
    if show_default and not setting.is_mapping and setting.default is not REQUIRED and setting.default:
        default = setting.default
        facts.append(f"default: {','.join(map(str, default)) if isinstance(default, tuple | list) else default}")
    if not setting.choices and setting.range:
        facts.append(setting.range)
    return f"{text}  [{'; '.join(facts)}]" if facts else text


def _value(setting: Setting, given: Any) -> Any:
    """A value from the command line with the field's type; None: not given.

    Raises:
        UserError: it can't be read, or is not allowed.
    """
    if given is None or given == [] or (given is False and setting.default is not True):
        return None
    if setting.is_mapping:
        read = texts if setting.as_text or get_args(setting.type)[-1:] == (str,) else config.parse_options
        return read(given, setting.option)
    if setting.is_list:
        given = tuple(given) if setting.repeat else listed(given, setting.option, setting.kind)
    else:
        given = next((choice for choice in setting.choices if str(choice) == given), given)
    setting.check(given, setting.option)
    return given


def listed(text: str, option: str, kind: Any = str) -> tuple[Any, ...]:
    """``"1,4,16"`` -> ``(1, 4, 16)``.

    Raises:
        UserError: a part that is not of this kind.
    """
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if kind not in (int, float):
        return tuple(parts)
    try:
        return tuple(map(kind, parts))
    except ValueError:
        wanted, example = ("whole numbers", "1,4,16") if kind is int else ("numbers", "0.1,0.3")
        raise UserError(
            f"{option} {text}: expected {wanted} separated by commas.", f"For example {option} {example}."
        ) from None


def texts(pairs: list[str], option: str) -> dict[str, str]:
    """``["regex=[0-9]+", "json_schema=@FILE"]`` -> text by key; the last line end of a file is left out.

    Raises:
        UserError: not KEY=TEXT, a key given twice, a file that can't be read.
    """
    found: dict[str, str] = {}
    for pair in pairs:
        key, sep, text = pair.partition("=")
        if not sep or not key:
            raise UserError(f"{option}: '{pair}' is not KEY=TEXT.", f"For example {option} 'regex=[0-9]+'.")
        if key in found:
            raise UserError(f"{option}: '{key}' is given twice.", "Combine them into one.")
        found[key] = _file(text[1:], option) if text.startswith("@") else text
    return found


def _file(name: str, option: str) -> str:
    try:
        return Path(name).read_text(encoding="utf-8-sig").removesuffix("\n")  # editors add it
    except OSError as error:
        what = f"{option}: can't read '{name}': {error.strerror}."
        raise UserError(what, "A value that begins with @ is the path of a file; write text without @.") from None
    except UnicodeDecodeError:
        raise UserError(f"{option}: '{name}' is not UTF-8 text.", "Save it as UTF-8.") from None
