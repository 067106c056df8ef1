"""``redraft generate --data``: every row once and in order, whatever interrupts it; the same texts in any portions."""

from __future__ import annotations

import json
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from redraft import load
from redraft.bulk import journal
from redraft.bulk import run as runs
from redraft.bulk.config import Bulk
from redraft.bulk.engine import Job, Worker
from redraft.data.columns import Columns
from tests.cli.door import PAIRS, Answer, Redraft

MODEL = ["--model", "translate-en-de-masked", "--max-new-tokens", 8, "--steps", 2, "--temperature", 1, "--seed", 5]
SETTINGS: dict[str, Any] = {"max_new_tokens": 8, "steps": 2, "temperature": 1.0, "seed": 5}


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def rows(out: Path) -> list[dict[str, Any]]:
    return [row for file in sorted((out / "rows").iterdir()) for row in lines(file)]


def generate(redraft: Redraft, data: Path, out: Path, *more: object) -> Answer:
    return redraft("generate", *MODEL, "--data", data, "--out", out, *more)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """14 rows, of which one is no JSON, one has no prompt, one an empty one, and one is too long."""
    good = [{"id": number, **pair, "more": [number, {"x": None}]} for number, pair in enumerate(PAIRS[:10])]
    texts = [json.dumps(row) for row in good]
    texts[2:2] = ["{", json.dumps({"id": -1, "answer": "x"})]
    texts[7:7] = [json.dumps({"id": -2, "question": " "}), json.dumps({"id": -3, "question": "the cat " * 300})]
    path = tmp_path_factory.mktemp("bulk") / "data.jsonl"
    path.write_text("\n".join(texts) + "\n", encoding="utf-8")
    return path


def test_each_row_has_the_text_of_its_own_prompt_and_seed(redraft: Redraft, data: Path, tmp_path: Path) -> None:
    """What ``Model.generate`` gives for the row alone; the seed counts all rows of the data."""
    out = tmp_path / "out"
    found = generate(redraft, data, out, "--shard-rows", 5, "--batch-size", 3, "--json").json
    assert (found["read"], found["written"], found["bad"], found["shards"]) == (14, 10, 4, 3)
    model, written = load(Path(os.environ["REDRAFT_ZOO"]) / "translate-en-de-masked"), rows(out)
    places = [number for number in range(14) if number not in (2, 3, 7, 8)]
    assert [row["id"] for row in written] == list(range(10))
    for place, row, pair in zip(places, written, PAIRS, strict=False):
        alone = model.generate(pair["question"], **{**SETTINGS, "seed": 5 + place})[0]
        new = {"generated": alone.text, "generated_tokens": len(alone.ids), "generated_finish": alone.finish}
        assert row == {"id": row["id"], **pair, "more": [row["id"], {"x": None}], **new}
    bad = lines(out / "bad-rows.jsonl")
    assert [row["line"] for row in bad] == [3, 4, 8, 9] and {row["file"] for row in bad} == {str(data)}
    assert "not valid JSON" in bad[0]["reason"] and "missing" in bad[1]["reason"] and "context" in bad[3]["reason"]
    assert json.loads((out / "result.json").read_text())["tokens"] == sum(row["generated_tokens"] for row in written)


def test_portions_do_not_change_the_texts(redraft: Redraft, data: Path, tmp_path: Path) -> None:
    generate(redraft, data, tmp_path / "small", "--shard-rows", 2, "--batch-size", 1)
    generate(redraft, data, tmp_path / "large", "--shard-rows", 100, "--batch-size", 100)
    assert rows(tmp_path / "small") == rows(tmp_path / "large")


class Killed(BaseException):
    """In place of a signal."""


def test_a_kill_at_any_write_loses_and_repeats_nothing(
    zoo: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process ends at the n-th write to the disk, for every n: before, within or after it. Then it runs again."""
    model = str(zoo / "translate-en-de-masked")
    worker = Worker(Job(model, SETTINGS, Columns(input="question"), Bulk().columns, 32))
    monkeypatch.setattr(runs, "Worker", lambda job: worker)  # loaded once

    def work(out: Path) -> None:
        runs.run(Bulk(data=str(data), out=out, shard_rows=5), model, SETTINGS, lambda _: None)

    work(tmp_path / "whole")
    expected = {file.name: file.read_bytes() for file in (tmp_path / "whole" / "rows").iterdir()}
    kills, fsync, replace = 0, os.fsync, os.replace
    for deadly in range(1, 100):
        out, writes = tmp_path / str(deadly), 0

        def counted(act: Any, *arguments: Any, deadly: int = deadly) -> Any:
            nonlocal writes
            writes += 1
            if writes == deadly:
                raise Killed
            return act(*arguments)

        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", lambda *a: counted(fsync, *a))
            patch.setattr(os, "replace", lambda *a: counted(replace, *a))
            try:
                work(out)
            except Killed:
                kills += 1
                if (file := out / "journal.jsonl").exists() and deadly % 2:
                    with file.open("ab") as torn:
                        torn.write(b'{"read": 5, "wri')
            else:
                break
        work(out)
        assert {file.name: file.read_bytes() for file in (out / "rows").iterdir()} == expected
        assert lines(out / "bad-rows.jsonl") == lines(tmp_path / "whole" / "bad-rows.jsonl")
    assert kills > 10


def test_parquet_keeps_its_columns_and_types(redraft: Redraft, tmp_path: Path) -> None:
    """Two files of a folder, in several row groups, continued in the middle of the second."""
    pyarrow = pytest.importorskip("pyarrow")
    import pyarrow.parquet as parquet

    schema = pyarrow.schema(
        [
            ("number", pyarrow.int16()),
            ("question", pyarrow.string()),
            ("when", pyarrow.timestamp("us", tz="UTC")),
            ("blob", pyarrow.binary()),
            ("tags", pyarrow.list_(pyarrow.struct([("a", pyarrow.float32())]))),
        ]
    )
    when = datetime(2026, 1, 2, 3, 4, 5, 6, UTC)
    table = [
        {"number": n, "question": PAIRS[n]["question"], "when": when, "blob": b"\xff\x00", "tags": [{"a": None}]}
        for n in range(12)
    ]
    folder = tmp_path / "data"
    folder.mkdir()
    for number, part in enumerate((table[:5], table[5:])):
        made = pyarrow.Table.from_pylist(part, schema=schema)
        parquet.write_table(made, folder / f"part-{number}.parquet", row_group_size=2)
    out = tmp_path / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(journal.Journal, "add", _until(journal.Journal.add, 3))
        with pytest.raises(Killed):
            generate(redraft, folder, out, "--shard-rows", 3)
    assert generate(redraft, folder, out, "--shard-rows", 3, "--json").json["resumed"] == 9
    written = [parquet.read_table(file) for file in sorted((out / "rows").iterdir())]
    assert [part.num_rows for part in written] == [3, 3, 3, 3]
    for part in written:
        assert part.schema.remove_metadata().equals(
            pyarrow.schema(
                [
                    *schema,
                    ("generated", pyarrow.string()),
                    ("generated_tokens", pyarrow.int64()),
                    ("generated_finish", pyarrow.string()),
                ]
            )
        )
    assert pyarrow.concat_tables(written).select(schema.names).to_pylist() == table


def _until(add: Any, most: int) -> Any:
    """``Journal.add`` that works this many times."""
    done = 0

    def limited(*arguments: Any) -> None:
        nonlocal done
        if done == most:
            raise Killed
        done += 1
        add(*arguments)

    return limited


def test_conversations_are_answered_up_to_their_last_question(redraft: Redraft, tmp_path: Path) -> None:
    asked = [{"role": "user", "content": "the cat"}]
    path = tmp_path / "chats.jsonl"
    chats = [asked, [*asked, {"role": "assistant", "content": "secret"}], [{"role": "assistant", "content": "x"}]]
    path.write_text("".join(json.dumps({"messages": chat}) + "\n" for chat in chats))
    answer = generate(redraft, path, tmp_path / "out", "--temperature", 0, "--json")
    assert answer.json["bad"] == 1
    first, second = rows(tmp_path / "out")
    assert first["generated"] == second["generated"] and second["messages"] == chats[1]


def test_what_is_refused(redraft: Redraft, data: Path, tmp_path: Path) -> None:
    out, taken = tmp_path / "out", tmp_path / "taken"

    def refused(*arguments: object, data: Path = data, out: Path = out) -> str:
        answer = generate(redraft, data, out, *arguments)
        assert answer.code == 2
        return answer.err

    assert "no column 'quest'" in refused("--input", "quest") and "question" in refused("--input", "quest")
    assert "--column" in refused("--column", "answer")
    assert generate(redraft, data, out).code == 0
    assert "column: " not in refused("--column", "other") and "columns: " in refused("--column", "other")
    assert "settings" in refused("--top-k", 3)
    assert generate(redraft, data, out).err.startswith(f"'{out}' is complete")
    taken.mkdir()
    (taken / "rows").mkdir()
    (taken / "rows" / "part-0.jsonl").write_text("x")
    assert "rows" in refused(out=taken) and (taken / "rows" / "part-0.jsonl").exists()
    part = out / "rows" / "part-000000.jsonl"
    part.unlink()
    (out / "result.json").unlink()
    assert str(part) in refused()
    assert redraft("generate", *MODEL).code == redraft("generate", *MODEL, "--prompt", "x", "--out", out).code == 2
