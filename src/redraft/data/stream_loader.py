"""Batches of a corpus that is neither held in memory nor tokenised before training: a loader over a stream."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from redraft.data.corpus import Corpus, Read
from redraft.data.examples import Example
from redraft.data.loader import Pairs, Windows
from redraft.data.stream import Position
from redraft.data.tokenising import tokenise
from redraft.data.tokenizer import Tokenizer
from redraft.errors import UserError
from redraft.types import Batch


@dataclass(frozen=True)
class _Place:
    """Where a pool begins."""

    epoch: int = 0
    start: Position = Position()
    number: int = 0  # of the pool in its pass
    rows: int = 0  # of the pass before it
    skipped: int = 0  # rows of all passes before it that were left out


@dataclass
class _Pool:
    """The rows of one filling of the buffer, tokenised, and their batches in order."""

    place: _Place
    following: _Place
    assembler: Pairs | Windows
    plan: list[np.ndarray]


class StreamLoader:
    """An endless, seeded iterator of batches, with the interface of ``data.loader.Loader``.

    A shuffle buffer is filled with rows, tokenised, shuffled and packed into batches as the in-memory loader does it
    with a whole epoch; then the next rows fill it. The files have another order in each pass. Every row comes once in
    a pass.

    The batches form one sequence, of which step ``k`` of rank ``r`` among ``world`` takes batch ``k * world + r``. Each
    rank reads and tokenises the whole stream, so that a run can resume on another number of ranks. To resume, the rows
    of one filling are read again, after skipping those before them in their file.

    Rows that are left out are told in a warning for each filling.
    """

    def __init__(
        self,
        corpus: Corpus,
        tokenizer: Tokenizer,
        length: int,
        batch_tokens: int,
        buffer: int,
        seed: int = 0,
        rank: int = 0,
        world: int = 1,
        too_long: str = "error",
    ) -> None:
        """
        Args:
            buffer: size of the shuffle buffer, in bytes of text.
            length, batch_tokens, too_long: as for ``Loader``.
        Raises:
            UserError: a row of the first filling is bad, or too long for the length or the batch.
            ValueError: ``rank`` is not below ``world``.
        """
        if not 0 <= rank < world:
            raise ValueError(f"rank {rank} of {world}")
        self.corpus, self.tokenizer, self.buffer = corpus, tokenizer, buffer
        self.sizes = length, batch_tokens, too_long
        self.seed, self.rank, self.world = seed, rank, world
        self._rows: int | None = None  # of a whole pass, once known
        self._open: tuple[_Place, Iterator[Read]] | None = None  # the rows that follow the last pool
        self._key = [corpus.digest(), length, batch_tokens, buffer, seed]
        self._pools, self._position = [self._fill(_Place())], 0  # the base of all ranks: a batch of the first pool

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        pool, number = self._seek(self._position + self.rank)
        batch = pool.assembler.assemble(pool.plan[number])
        self._position += self.world
        while len(self._pools) > 1 and self._position >= len(self._pools[0].plan):
            self._position -= len(self._pools.pop(0).plan)
        return batch

    @property
    def skipped(self) -> int:
        """Rows that were left out so far; in each pass they count again."""
        return self._pools[-1].following.skipped

    @property
    def epochs(self) -> float:
        """Number of passes over the corpus so far. Of the first one only whole passes are known."""
        pool = self._pools[0]
        if self._rows is None:
            return float(pool.place.epoch)
        pool_rows = (self._rows if pool.following.epoch > pool.place.epoch else pool.following.rows) - pool.place.rows
        done = pool.place.rows + pool_rows * self._position / max(len(pool.plan), 1)
        return pool.place.epoch + done / max(self._rows, 1)

    def padding_share(self) -> float:
        """Share of the positions of the batches in the buffer that are padding."""
        pool = self._pools[0]
        waste, size = np.array([pool.assembler.padding(batch) for batch in pool.plan]).sum(0)
        return float(waste / size)

    def state_dict(self) -> dict[str, Any]:
        """The position of the loader, from which any number of ranks can continue."""
        place = self._pools[0].place
        begin = [place.epoch, place.start.file, place.start.row, place.number, place.rows, place.skipped]
        return {"pool": begin, "position": self._position, "rows": self._rows, "key": list(self._key)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue at the position of ``state_dict``.

        Raises:
            UserError: the files or settings differ from those of the state, so the batches would differ.
        """
        if list(state["key"]) != self._key:
            raise UserError(
                "The data, maximum length, batch size, buffer or seed differ from those of the run to be resumed "
                f"(files, length, batch tokens, buffer, seed: {state['key']} before, {self._key} now).",
                "Restore them, or start a new run.",
            )
        epoch, file, row, *counts = map(int, state["pool"])
        self._rows = state["rows"]
        place = _Place(epoch, Position(file, row), *counts)
        if place != self._pools[0].place:
            self._pools = [self._fill(place)]
        del self._pools[1:]
        self._position = int(state["position"])

    def _seek(self, position: int) -> tuple[_Pool, int]:
        """The pool and the number of a batch, counted from the beginning of the first pool in memory."""
        at = 0
        while position >= (size := len(self._pools[at].plan)):
            position, at = position - size, at + 1
            if at == len(self._pools):
                self._pools.append(self._fill(self._pools[-1].following))
        return self._pools[at], position

    def _reading(self, place: _Place) -> Iterator[Read]:
        """The rows of a pass from a place on. Where the last pool ended, reading goes on in the open file."""
        if self._open is not None and self._open[0] == place:
            return self._open[1]
        order = np.random.default_rng([self.seed, place.epoch]).permutation(len(self.corpus.files))
        return self.corpus.rows(order.tolist(), place.start)

    def _fill(self, place: _Place) -> _Pool:
        """Read the rows of a pool, tokenise them and plan their batches."""
        reading = self._reading(place)
        examples, skipped, doubtful, size, rows, end = list[Example](), list[str](), list[str](), 0, 0, None
        for row in reading:
            rows += 1
            examples += row.examples
            size += sum(len((one.prompt or "").encode()) + len(one.target.encode()) for one in row.examples)
            skipped += [row.skipped] if row.skipped else []
            doubtful += [row.doubt] if row.doubt else []
            if size >= self.buffer:
                end = row.end
                break
        if not examples:  # the pass ended where the last pool did
            if not place.rows:
                raise UserError("The corpus holds no training rows.", "Give more rows.")
            self._rows = place.rows + rows
            return self._fill(_Place(place.epoch + 1, skipped=place.skipped + len(skipped)))
        length, batch_tokens, too_long = self.sizes
        data = tokenise(examples, self.tokenizer)
        made, fitted = data.assembler(self.tokenizer, length, batch_tokens, too_long)
        skipped += [f"{where}: longer than {length} tokens" for where in fitted.skipped]
        if end is None:
            self._rows = place.rows + rows
            following = _Place(place.epoch + 1, skipped=place.skipped + len(skipped))
        else:
            following = _Place(place.epoch, end, place.number + 1, place.rows + rows, place.skipped + len(skipped))
            self._open = following, reading
        self._tell(f"rows were left out, {following.skipped:,} so far", skipped)
        self._tell("rows may each be several", doubtful)
        plan = made.plan_epoch(np.random.default_rng([self.seed, place.epoch, place.number + 1]))
        return _Pool(place, following, made, plan)

    def _tell(self, what: str, found: list[str]) -> None:
        """Warn about rows, on one rank."""
        if found and self.rank == 0:
            warnings.warn(f"{len(found):,} {what} (the first: {found[0]})", stacklevel=2)
