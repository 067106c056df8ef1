"""Generation for rows with Ray Data: one reader, several workers that hold a model, and results in order.

    reader (a streaming task on the machine of this command) -> workers (actors) -> this process, which writes

A portion of rows is one row of Ray's data set, an object in a table of pandas: rows of JSON have no common schema. Ray
repeats a task whose worker was lost. Only as many portions are under way as the workers and Ray's limits on memory
allow.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from typing import Any

from redraft.bulk.engine import Answered, Job, Worker, portions
from redraft.data.stream import Position
from redraft.errors import UserError
from redraft.interop.ray_session import RaySession, ray_package

_COLUMN = "portion"


class RayWorker:
    """An actor: it loads the model once, and answers one portion after the other."""

    def __init__(self, job: Job) -> None:
        self.worker = Worker(job)

    def __call__(self, batch: Any) -> Any:
        """A table of portions in, a table of their results out."""
        return _table([self.worker.answer(portion) for portion in _content(batch)])


def answers(
    session: RaySession, job: Job, files: Sequence[str], size: int, number: int, at: Position
) -> Iterator[Answered]:
    """The results of all portions from the ``number``-th on, in order.

    Args:
        size: rows of a portion. at: where the first portion begins.
    Raises:
        UserError: as ``Worker``, and for files that can't be read.
    """
    ray = ray_package()
    if not session.local:
        session.check()
    gpus = sum(node.gpus for node in session.nodes)
    cpus = sum(node.cpus for node in session.nodes)
    context = ray.data.DataContext.get_current().copy()
    logging.getLogger("ray.data").setLevel(logging.ERROR)  # it reports each of its steps
    context.execution_options.preserve_order = True
    context.target_max_block_size = 1  # a block for each portion, so that each can go to another worker
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    with ray.data.DataContext.current(context):
        rows = ray.data.read_datasource(
            _source(list(files), size, number, at), override_num_blocks=1, num_cpus=0, resources=_here(ray)
        )
        answered = rows.map_batches(
            RayWorker,
            batch_size=1,
            batch_format="pandas",
            fn_constructor_args=(job,),
            compute=ray.data.ActorPoolStrategy(size=gpus or cpus),
            num_gpus=1 if gpus else 0,
            num_cpus=0 if gpus else 1,
        )
        try:
            for batch in answered.iter_batches(batch_size=1, prefetch_batches=0, batch_format="pandas"):
                yield from _content(batch)
        except ray.exceptions.RayError as error:
            if (known := _cause(error)) is None:
                raise
            raise known from None


def _here(ray: Any) -> dict[str, float]:
    """The resources of a task that must run on this machine, where the files are."""
    return {f"node:{ray.util.get_node_ip_address()}": 0.001}


def _source(files: list[str], size: int, number: int, at: Position) -> Any:
    """A data source of Ray with a single task, which yields one portion after the other."""
    from ray.data import Datasource, ReadTask
    from ray.data.block import BlockMetadata

    def read() -> Iterator[Any]:
        for portion in portions(files, size, number, at):
            yield _table([portion])

    class Portions(Datasource):
        def get_read_tasks(self, parallelism: int, *more: Any, **further: Any) -> list[Any]:
            return [ReadTask(read, BlockMetadata(num_rows=None, size_bytes=None, input_files=files, exec_stats=None))]

        def estimate_inmemory_data_size(self) -> int | None:
            return None

    return Portions()


def _table(objects: Sequence[Any]) -> Any:
    """A table with a row for each object."""
    import pandas

    return pandas.DataFrame({_COLUMN: pandas.Series(objects, dtype=object)})


def _content(table: Any) -> list[Any]:
    """The objects of such a table."""
    return list(table[_COLUMN])


def _cause(error: BaseException | None) -> UserError | None:
    """The mistake of the user that Ray has wrapped into its own errors, if it is one."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        if isinstance(error, UserError):
            return UserError(error.what, error.remedy)
        inner = vars(error).get("cause")
        error = inner if isinstance(inner, BaseException) else error.__cause__
    return None
