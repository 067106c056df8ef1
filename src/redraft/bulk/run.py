"""Generation for every row of a source: reads a stream, writes shards, and continues after any interruption."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from redraft import __version__
from redraft.bulk.config import Bulk
from redraft.bulk.engine import Answered, Job, Worker, portions
from redraft.bulk.journal import Done, Journal, begin
from redraft.bulk.progress import Log, Progress
from redraft.bulk.shards import JsonLines, ParquetTables, Shards
from redraft.data import stream
from redraft.data.columns import choose_prompt
from redraft.data.locate import resolve
from redraft.errors import UserError
from redraft.files import check_writable, file_marks, folder_of_its_own, read_json, write_atomically
from redraft.loading import resolve as resolve_model

_SHOWN = 5  # bad rows that are listed on the screen


@dataclass(frozen=True)
class Result:
    """The outcome of a generation over rows. Sums count all runs of the folder together, the rate this one alone."""

    out: str
    read: int  # rows of the source
    written: int  # rows with a text
    bad: int  # rows that were left out
    tokens: int  # new tokens
    shards: int
    resumed: int  # rows that earlier runs had finished
    seconds: float  # of this run, without loading the model; with Ray it includes starting Ray and its workers
    rows_per_second: float
    tokens_per_second: float


def run(bulk: Bulk, model: str, given: dict[str, Any], log: Log, ray: str | None = None, **place: Any) -> Result:
    """Generate for every row, or for those that an earlier run in the same folder left.

    Args:
        model: name or folder. given: settings of generation, seed included. log: receives lines on the progress.
        ray: address of Ray (``interop.ray_session.connect``); None: this process does the work.
        place: ``device``, ``dtype``, ``adapter`` and ``drafter`` of ``Job``.
    Raises:
        UserError: wrong data, model or settings; another run in the folder; or a disk that is full.
    """
    if bulk.data is None or bulk.out is None:
        raise UserError("--data and --out belong together.", "Give both: --data FILE --out FOLDER.")
    files = [str(_absolute(file)) for file in stream.in_order(resolve(bulk.data, bulk.data_root))]
    first = stream.first_good(files)
    names = {key: _absolute(name) for key, name in place.items() if key in ("adapter", "drafter")}
    prompt = choose_prompt(bulk.input, first)
    job = Job(str(_absolute(model)), given, prompt, bulk.columns, bulk.batch_size, **{**place, **names})
    check_writable(bulk.out, folder=True)
    with folder_of_its_own(bulk.out, f"Another process is writing to '{bulk.out}'."):
        begin(bulk.out, _described(bulk, job, files))
        shards = _shards(bulk, files)
        with closing(Journal(bulk.out)) as journal:
            if (bulk.out / "result.json").exists():
                log(f"'{bulk.out}' is complete: {journal.done.written:,} rows.")
                return Result(**read_json(bulk.out / "result.json"))
            journal.check(shards, journal.done.shards)
            log(f"prompts: column '{job.prompt.messages or job.prompt.input}' of {len(files):,} files")
            return _run(bulk, job, files, shards, journal, log, ray)


def _run(bulk: Bulk, job: Job, files: list[str], shards: Shards, journal: Journal, log: Log, ray: str | None) -> Result:
    before = journal.done
    if before.read:
        log(f"continues after {before.read:,} rows")
    progress = Progress(log, stream.count(files), before.read)
    try:
        for found in _answers(bulk, job, files, before, progress, ray):
            journal.add(shards, found)
            for one in found.doubtful:
                log(f"{one['file']}:{one['line']}: {one['reason']}")
    except KeyboardInterrupt:
        log("Stopped. The same command continues from what has been saved.")
        raise
    finally:
        journal.write_bad_rows()
    done, seconds = journal.done, progress.seconds
    log(progress.line())
    _tell_bad_rows(bulk.out, done, log)
    result = Result(
        out=str(bulk.out),
        read=done.read,
        written=done.written,
        bad=done.bad,
        tokens=done.tokens,
        shards=done.shards,
        resumed=before.read,
        seconds=seconds,
        rows_per_second=(done.read - before.read) / seconds,
        tokens_per_second=(done.tokens - before.tokens) / seconds,
    )
    write_atomically(journal.folder / "result.json", json.dumps(asdict(result), indent=2) + "\n")
    return result


def _answers(
    bulk: Bulk, job: Job, files: list[str], done: Done, progress: Progress, ray: str | None
) -> Iterator[Answered]:
    """The results of the portions that are left, in order."""
    if ray is not None:
        from redraft.bulk.on_ray import answers
        from redraft.interop.ray_session import connect

        with connect(ray) as session:
            for found in answers(session, job, files, bulk.shard_rows, done.shards, done.end):
                progress.add(found.read, found.tokens, len(found.bad))
                yield found
        return
    worker = Worker(job)
    progress.begin()
    for portion in portions(files, bulk.shard_rows, done.shards, done.end):
        found = worker.answer(portion, progress.add)
        progress.add(len(found.bad), 0, len(found.bad))
        yield found


def _described(bulk: Bulk, job: Job, files: list[str]) -> dict[str, Any]:
    """What decides about the texts and the files of a run."""
    weights = {"model": job.model, "adapter": job.adapter, "drafter": job.drafter}
    return {
        "redraft": __version__,
        "model": job.model,
        "weights": {key: _model_marks(name) for key, name in weights.items() if name is not None},
        "data": stream.marks(files),
        "prompt": asdict(job.prompt),
        "columns": list(job.columns),
        "settings": dict(job.given),
        "device": job.device,
        "dtype": job.dtype,
        "batch_size": bulk.batch_size,
        "shard_rows": bulk.shard_rows,
        "format": _format(bulk, files),
    }


def _absolute(name: str | None) -> str | None:
    """A name for processes in other folders: the absolute path of a file or folder, any other name as it is."""
    return str(Path(name).resolve()) if name is not None and Path(name).exists() else name


def _model_marks(name: str) -> list[Any]:
    """What tells whether a model's files are the same as before."""
    path = resolve_model(name)
    if path.is_file():
        return file_marks(path.parent, [path])
    files = (file for file in path.iterdir() if file.is_file() and not file.name.startswith("."))
    return file_marks(path, sorted(file for file in files if file.name != "README.md"))


def _format(bulk: Bulk, files: list[str]) -> str:
    if bulk.format != "auto":
        return bulk.format
    return "parquet" if _is_parquet(files[0]) else "jsonl"


def _is_parquet(file: str) -> bool:
    return file.lower().endswith(".parquet")


def _shards(bulk: Bulk, files: list[str]) -> Shards:
    assert bulk.out is not None
    folder = bulk.out / "rows"
    if _format(bulk, files) == "jsonl":
        return JsonLines(folder)
    return ParquetTables(folder, files[0] if _is_parquet(files[0]) else None, bulk.columns)


def _tell_bad_rows(out: Path | None, done: Done, log: Log) -> None:
    if not done.bad or out is None:
        return
    log(f"{done.bad:,} of {done.read:,} rows are bad and were left out; {out / 'bad-rows.jsonl'} lists them:")
    with (out / "bad-rows.jsonl").open(encoding="utf-8") as lines:
        for line, _ in zip(lines, range(_SHOWN), strict=False):
            bad = json.loads(line)
            log(f"  {bad['file']}:{bad['line']}: {bad['reason']}")
    if done.bad > _SHOWN:
        log("  ...")
