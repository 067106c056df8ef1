"""Every ``redraft`` command in README and docs is one that the command line takes; every make target exists."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def fences(page: Path, language: str) -> list[str]:
    """The code blocks of a page that are marked with a language."""
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def commands(page: Path) -> list[list[str]]:
    text = "\n".join(fences(page, "bash")).replace("\\\n", " ")
    return [shlex.split(line, comments=True) for line in text.splitlines() if line.strip()]


def of(program: str) -> list[tuple[Path, list[str]]]:
    found = [(page, words) for page in PAGES for words in commands(page)]
    return [(page, words[1:]) for page, words in found if words and Path(words[0]).name == program]


def named(case: object) -> str:
    return case.name if isinstance(case, Path) else " ".join(case) if isinstance(case, list) else str(case)


@pytest.mark.parametrize(("page", "arguments"), of("redraft"), ids=named)
def test_documented_commands_parse(page: Path, arguments: list[str]) -> None:
    """The verb exists and takes these options with these values; the verb itself does not run."""
    from redraft.cli._main import command
    from redraft.cli._verbs import verb_names

    assert arguments[0] in verb_names()
    verb = command(arguments[0])
    with verb.make_context(arguments[0], list(arguments[1:])) as context:
        assert not context.args


@pytest.mark.parametrize(("page", "arguments"), of("make"), ids=named)
def test_documented_make_targets_exist(page: Path, arguments: list[str]) -> None:
    rules = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    targets = [word for word in arguments if "=" not in word]
    assert set(targets) <= set(rules)


def test_help_examples_parse() -> None:
    """The examples in every ``--help`` are commands that work, too."""
    from redraft.cli._main import command
    from redraft.cli._verbs import verb_names

    for name in verb_names():
        text = (command(name).help or "").replace("\\\n", " ")
        examples = re.findall(rf"(?:^|\| )\s*redraft ({name}\b[^|\n]*)", text, re.MULTILINE)
        assert examples, name
        for example in examples:
            words = shlex.split(example)
            command(name).make_context(name, words[1:]).close()


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_linked_files_exist(page: Path) -> None:
    links = re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text(encoding="utf-8"))
    assert all((page.parent / link).exists() for link in links), links


@pytest.mark.parametrize("page", [page for page in PAGES if page.name != "log.md"], ids=named)  # a dated record
def test_named_sources_exist(page: Path) -> None:
    """`noise/schedules/linear.py` in a page is a file of the package or of the checkout."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    for name in re.findall(r"`([\w/]+/[\w/]*\.(?:py|toml|md))`", text):
        if name != "samplers/entropy_bound.py":  # the example of a file that one would add
            assert (ROOT / name).exists() or (ROOT / "src" / "redraft" / name).exists(), name


def test_the_two_commands_come_first() -> None:
    first = fences(ROOT / "README.md", "bash")[0].split("\n")
    assert [line.split("#")[0].strip() for line in first[:2]] == ["make demo", "make test"]
