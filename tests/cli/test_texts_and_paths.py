"""Texts as other systems write them (byte order marks, line ends, terminals), paths that can't be used, long rows."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.door import PAIRS, Redraft, environment, write
from tests.cli.test_bad_input import COLUMNS, refused

MODEL = "translate-en-de-autoregressive"
PROMPT = PAIRS[0]["question"]


def stdin(monkeypatch: pytest.MonkeyPatch, content: bytes) -> None:
    """As the interpreter opens it: lines end with a line feed alone."""
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content), encoding="utf-8", newline="\n"))


@pytest.mark.parametrize("end", ["\n", "\r\n", ""])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_stdin_is_the_same_with_any_line_end_and_mark(
    redraft: Redraft, monkeypatch: pytest.MonkeyPatch, end: str, mark: str
) -> None:
    text = f"{PROMPT}{end or chr(10)}{PROMPT}{end}"
    expected = redraft("generate", "--model", MODEL, "--prompt", f"{PROMPT}\n{PROMPT}").out
    stdin(monkeypatch, f"{mark}{text}".encode())
    assert redraft("generate", "--model", MODEL, "--prompt", "-").out == expected
    stdin(monkeypatch, f"{mark}{text}".encode())
    turns = redraft("chat", "--model", MODEL, "--json").json["turns"]
    assert [turn["prompt"] for turn in turns] == [PROMPT, PROMPT]


def test_stdin_that_is_no_text_is_refused(redraft: Redraft, monkeypatch: pytest.MonkeyPatch) -> None:
    stdin(monkeypatch, b"caf\xe9\n")
    refused(redraft("generate", "--model", MODEL, "--prompt", "-"), "Standard input is not UTF-8", "0xe9")


def test_files_with_a_byte_order_mark_are_read(redraft: Redraft, tmp_path: Path) -> None:
    def file(name: str, text: str) -> Path:
        (tmp_path / name).write_bytes(b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode())
        return tmp_path / name

    pattern = file("re.txt", "the (cat|dog)\n")
    found = redraft("generate", "--model", MODEL, "--prompt", PROMPT, "--constraint", f"regex=@{pattern}")
    assert found.out in ("the cat\n", "the dog\n")
    schema = file("s.json", '{"type": "boolean"}\n')
    found = redraft("generate", "--model", MODEL, "--prompt", PROMPT, "--constraint", f"json_schema=@{schema}")
    assert found.out in ("true\n", "false\n")
    refused(
        redraft("train", file("r.toml", "[data]\nsorce = 'x'\n"), "--tokens", "1", "--out", tmp_path / "o"), "sorce"
    )
    mixture = file("m.mix.toml", "[[task]]\nname = 'a'\nsource = 'x'\n")
    refused(redraft("evaluate", "--model", MODEL, "--data", mixture), "at least two tasks")


def test_an_output_that_cannot_be_written_is_found_before_the_work(
    redraft: Redraft, pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setattr("redraft.load", lambda *_: pytest.fail("the work has begun"))
    monkeypatch.setattr("redraft.tune.run.load", lambda *_: pytest.fail("the work has begun"))
    evaluate = ("evaluate", "--model", MODEL, "--data", pairs, *COLUMNS, "--out")
    for out, says in ((tmp_path, "it is a folder"), (".", "it is a folder"), (tmp_path / "file" / "x", "is a file")):
        refused(redraft(*evaluate, out), says)
    refused(redraft(*evaluate, tmp_path / ("x" * 300)), "File name too long")
    refused(redraft("tune", "--model", MODEL, "--data", pairs, *COLUMNS, "--out", tmp_path / "file"), "is a file")
    for target in (tmp_path / "file", tmp_path / "file" / "x", tmp_path / ("x" * 300)):
        refused(redraft("convert", MODEL, target), "Can't write")
    assert [path.name for path in tmp_path.iterdir() if path.name.endswith(".tmp")] == []


def test_the_folder_of_an_output_is_made(redraft: Redraft, pairs: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / "x.jsonl"
    assert redraft("evaluate", "--model", MODEL, "--data", pairs, *COLUMNS, "--rows", "2", "--out", out).code == 0
    assert len(out.read_text().splitlines()) == 2


@pytest.mark.parametrize("path", ["x" * 300, "a/" * 3000, "file/x"])
def test_paths_that_no_file_has(redraft: Redraft, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    refused(redraft("generate", "--model", path, "--prompt", "hi"), "There is no model")
    refused(redraft("generate", "--model", MODEL, "--adapter", path, "--prompt", "hi"), "adapter")
    refused(redraft("evaluate", "--model", MODEL, "--data", path), "There is no file")
    refused(redraft("train", path, "--out", "o"))


def test_what_a_terminal_cannot_show_is_replaced() -> None:
    code = (
        "from redraft.cli import _main, _verbs; import sys, typer; from types import SimpleNamespace\n"
        "def show(*, json: bool = False):\n    typer.echo('caf\\u00e9 \\u65e5'); return {'text': '\\u65e5'}\n"
        "_main.verb_names = lambda: ('show',)\n"
        "found = SimpleNamespace(name='show', run=show, help='', resumes=False, processes=False)\n"
        "_main.find_verb = lambda name: found\n"
        "sys.exit(_main.main(['show', *sys.argv[1:]]))"
    )

    def shown(*arguments: str) -> bytes:
        more = environment(PYTHONIOENCODING="cp1252")
        return subprocess.run(
            [sys.executable, "-c", code, *arguments], env=more, capture_output=True, check=True
        ).stdout

    assert shown() == "caf\u00e9 ?\n".encode("cp1252")
    assert json.loads(shown("--json").decode("cp1252").splitlines()[-1]) == {"text": "\u65e5"}


def test_rows_that_do_not_fit_are_left_out_or_named(redraft: Redraft, tmp_path: Path) -> None:
    rows = [*PAIRS[:40], {"question": "cat " * 400, "answer": "mat"}, {"question": "dog", "answer": "the " * 400}]
    data = write(tmp_path / "long.jsonl", rows)
    evaluate = ("evaluate", "--model", MODEL, "--data", data, *COLUMNS, "--rows", "8", "--max-new-tokens", "4")
    refused(redraft(*evaluate), "2 of 42 rows don't fit", "long.jsonl:41", "--skip-bad-rows")
    answer = redraft(*evaluate, "--skip-bad-rows", "--json")
    assert answer.code == 0 and "2 of 42 rows don't fit" in answer.err
    only = write(tmp_path / "only.jsonl", rows[-2:])
    refused(redraft(*evaluate[:4], only, *evaluate[5:], "--skip-bad-rows"), "2 of 2 rows", "longer context")
