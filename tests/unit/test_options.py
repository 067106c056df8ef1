"""A setting is declared once: the command line, files, requests, results, the search space and the docs follow."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import pytest
import typer

from redraft import config
from redraft.cli._options import Options, expand
from redraft.errors import UserError
from redraft.options import REQUIRED, check, declared, echo, http_fields, search_space, setting, table
from redraft.settings import Settings


@dataclass(frozen=True)
class More(Settings):
    """The generation settings and one more."""

    warmth: float = setting(
        0.5, "How warm the output is.", least=0, below=2, unit="kelvin", request_most=1, tries=(0.2, 0.5)
    )


@dataclass(frozen=True)
class Inner:
    url: str = setting("", "Address.", metavar="URL")
    shots: int = setting(0, "Number of examples.", least=0)


@dataclass(frozen=True)
class Shapes:
    """Every kind of field."""

    name: str = setting(REQUIRED, "Required.", flag="--from")
    sizes: tuple[int, ...] = setting((1, 4), "Sizes to try.", least=1, nonempty=True)
    rates: tuple[float, ...] = setting((), "Rates to try.", least=0, below=1)
    origins: tuple[str, ...] = setting((), "Origins.", flag="--origin", repeat=True)
    kind: Literal["flat", "deep"] = setting("flat", "Kind.")
    port: int | None = setting(None, "Port.", least=0, most=65535)
    quiet: bool = setting(False, "Print nothing.")
    color: bool = setting(True, "Use colors.")
    table: Mapping[str, Any] = setting({}, "A field; repeatable.", flag="--option")
    files: Mapping[str, str] = setting({}, "A text; repeatable.", flag="--file")
    inner: Inner | None = setting(None, "A service.", flag="--service")
    secret: str = setting("", "Only for Python and files.", reach=())
    limit: float = setting(math.inf, "Limit.", finite=False)

    def __post_init__(self) -> None:
        check(self)


def called(cls: type, *arguments: str, **marks: Any) -> dict[str, Any]:
    """What a verb receives for a command line."""
    found: dict[str, Any] = {}

    def verb(*, plain: int = 3, given: Annotated[dict[str, Any], Options(cls, **marks)]) -> None:
        found.update(given)

    verb.__annotations__ = {"plain": int, "given": Annotated[dict[str, Any], Options(cls, **marks)], "return": None}
    app = typer.Typer(add_completion=False, rich_markup_mode=None)
    app.command()(expand(verb))
    typer.main.get_command(app).main(list(arguments), standalone_mode=False)
    return found


def helped(cls: type, capsys: pytest.CaptureFixture[str]) -> str:
    called(cls, "--help")
    return " ".join(capsys.readouterr().out.split())


# one declaration, everywhere


def test_a_new_field_is_on_the_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert called(More, "--warmth", "0.7", "--steps", "4") == {"warmth": 0.7, "steps": 4}
    shown = helped(More, capsys)
    assert "--warmth" in shown and "How warm the output is." in shown and "at least 0 and below 2" in shown
    with pytest.raises(UserError, match="--warmth = 2.0 must be at least 0 and below 2"):
        called(More, "--warmth", "2")


def test_a_new_field_is_in_files() -> None:
    assert config.build(More, {"warmth": 0.7}, "my.toml").warmth == 0.7
    with pytest.raises(UserError, match="warmth"):
        config.build(More, {"warmth": -1}, "my.toml")
    with pytest.raises(UserError, match="Did you mean 'warmth'"):
        config.build(More, {"warmht": 1}, "my.toml")


def test_a_new_field_is_echoed() -> None:
    found = echo(More(warmth=0.7, options={"order": "margin"}))
    assert found["warmth"] == 0.7 and found["options"] == {"order": "margin"}
    assert json.loads(json.dumps(found)) == found
    assert "ignore_eos" in found and "ignore_eos" not in echo(More(), "cli")


def test_a_new_field_is_in_requests() -> None:
    from pydantic import Field, ValidationError, create_model

    found = http_fields(More)
    assert found["warmth"].limits == {"ge": 0, "le": 1, "lt": 2} and found["warmth"].help == "How warm the output is."
    assert "start" not in found
    fields: dict[str, Any] = {
        name: (Annotated[one.type, Field(**one.limits)] | None, Field(None, description=one.help))
        for name, one in found.items()
    }
    request = create_model("Request", **fields)
    assert request(warmth=0.5, options={"order": "margin"}, length="head").warmth == 0.5  # type: ignore[attr-defined]
    for wrong in ({"warmth": 1.5}, {"length": "long"}, {"sampler": ""}, {"steps": 0}):
        with pytest.raises(ValidationError):
            request(**wrong)


def test_a_new_field_is_in_the_search_space_and_the_documentation() -> None:
    assert search_space(More)["warmth"] == (0.2, 0.5)
    assert "| `warmth` | number | 0.5 | at least 0 and below 2 | kelvin | `--warmth` | How warm" in table(More)


def test_every_generation_setting_is_declared() -> None:
    assert list(declared(Settings)) == list(Settings.__dataclass_fields__)
    assert all(one.help.endswith(".") and one.help[0].isupper() for one in declared(Settings).values())


# ranges and choices


@pytest.mark.parametrize(
    ("wrong", "word"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens = 0 must be at least 1. Give another value, or .*default, 64"),
        ({"candidates": 0}, "candidates"),
        ({"top_k": -1}, "top_k"),
        ({"top_p": 1.1}, "between 0 and 1"),
        ({"temperature": -0.1}, "at least 0"),
        ({"temperature": math.nan}, "finite"),
        ({"temperature": math.inf}, "finite"),
        ({"seed": 1 << 62}, "below 2\\^62"),
        ({"start": -1}, "start"),
        ({"length": "hed"}, "Did you mean 'head'"),
        ({"weights": "int4"}, "Did you mean 'int8'"),
    ],
)
def test_values_out_of_range_are_refused(wrong: dict[str, Any], word: str) -> None:
    with pytest.raises(UserError, match=word):
        Settings(**wrong)
    with pytest.raises(UserError, match=next(iter(wrong))):
        config.build(Settings, wrong, "my.toml")


@pytest.mark.parametrize(
    ("wrong", "word"),
    [({"sizes": ()}, "sizes is empty"), ({"sizes": (2, 0)}, "sizes = 0"), ({"rates": (0.1, 1.0)}, "below 1")],
)
def test_each_number_of_a_list_is_checked(wrong: dict[str, Any], word: str) -> None:
    with pytest.raises(UserError, match=word):
        Shapes(name="x", **wrong)
    assert Shapes(name="x", limit=math.inf).limit == math.inf


def test_defaults_are_not_shared() -> None:
    one, other = Shapes(name="x"), Shapes(name="x")
    assert one.table == other.table == {} and one.table is not other.table


# the command line


def test_every_kind_of_field_has_an_option() -> None:
    given = ["--from", "x", "--sizes", "1, 8", "--rates", "0.1", "--origin", "a", "--origin", "b", "--kind", "deep"]
    given += ["--port", "80", "--quiet", "--no-color", "--option", "order=margin", "--option", "block=4"]
    given += ["--service-url", "http://x", "--service-shots", "2"]
    assert called(Shapes, *given) == {
        "name": "x",
        "sizes": (1, 8),
        "rates": (0.1,),
        "origins": ("a", "b"),
        "kind": "deep",
        "port": 80,
        "quiet": True,
        "color": False,
        "table": {"order": "margin", "block": 4},
        "inner": {"url": "http://x", "shots": 2},
    }
    assert config.build(Shapes, called(Shapes, *given), "command line").inner == Inner("http://x", 2)
    assert called(Shapes, "--from", "x") == {"name": "x"}, "what isn't given is absent"


def test_texts_are_read_from_files(tmp_path: Any) -> None:
    (tmp_path / "pattern").write_text("[a-c]\n")
    given = called(Shapes, "--from", "x", "--file", f"regex=@{tmp_path / 'pattern'}", "--file", "length=1-8")
    assert given["files"] == {"regex": "[a-c]", "length": "1-8"}


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (("--sizes", "1,x"), "--sizes 1,x: expected whole numbers"),
        (("--sizes", "1,0"), "--sizes = 0 must be at least 1"),
        (("--kind", "deeep"), "Did you mean 'deep'"),
        (("--port", "70000"), "--port = 70000 must be between 0 and 65535"),
        (("--option", "order"), "not KEY=VALUE"),
        (("--file", "order"), "not KEY=TEXT"),
        (("--file", "a=1", "--file", "a=2"), "given twice"),
        (("--file", "a=@nowhere"), "without @"),
        (("--service-shots", "-1"), "--service-shots = -1"),
    ],
)
def test_wrong_values_name_the_option(arguments: tuple[str, ...], word: str) -> None:
    with pytest.raises(UserError, match=word):
        called(Shapes, "--from", "x", *arguments)


def test_a_verb_chooses_its_options(capsys: pytest.CaptureFixture[str]) -> None:
    assert called(Shapes, "--kind", "deep", only=("kind",)) == {"kind": "deep"}
    with pytest.raises(typer.TyperException, match="--port"):
        called(Shapes, "--from", "x", "--port", "1", leave_out=("port",))
    with pytest.raises(typer.TyperException, match="--secret"):
        called(Shapes, "--from", "x", "--secret", "1")
    with pytest.raises(typer.TyperException) as missing:
        called(Shapes)
    assert "--from" in missing.value.format_message()
    shown = helped(Shapes, capsys)
    assert "[default: 1,4; at least 1]" in shown and "flat|deep" in shown and "[required]" in shown


def test_a_class_can_be_named_by_its_module() -> None:
    assert called("redraft.settings:Settings", "--top-k", "3") == {"top_k": 3}  # type: ignore[arg-type]


def test_a_parameter_of_the_verb_replaces_the_option() -> None:
    def verb(*, seed: int = 7, given: Annotated[dict[str, Any], Options(Settings)]) -> dict[str, Any]:
        return {"own": seed, **given}

    verb.__annotations__ = {"seed": int, "given": Annotated[dict[str, Any], Options(Settings)]}
    app = typer.Typer(add_completion=False, rich_markup_mode=None)
    app.command()(expand(verb))
    assert typer.main.get_command(app).main(["--top-k", "3"], standalone_mode=False) == {"own": 7, "top_k": 3}
