"""Tokenised examples and their batches.

Examples are tokenised once into one flat array (``data.tokenising``), and numpy assembles batches from it. The order of
batches depends on a seed, is shared between ranks, and continues exactly after a resume.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from redraft.data.tokenizer import Tokenizer
from redraft.errors import UserError
from redraft.types import Batch

TOO_LONG = ("error", "skip", "truncate_prompt")
_POOL_BATCHES = 64  # shuffled rows of this many batches are sorted by length together


@dataclass
class Tokenised:
    """A corpus as one flat array of ids: ``n`` rows, ``T`` tokens, vocabulary size ``V``.

    Pairs: row ``i`` is prompt, sep, target, eos (or what the tokenizer of a public checkpoint has in place of sep and
    eos, or its chat template writes around messages). Texts: row ``i`` is a document and eos.
    """

    ids: np.ndarray  # [T] uint16 where the vocabulary allows, else int32
    starts: np.ndarray  # [n+1] int64: row i is ids[starts[i]:starts[i+1]]
    prompts: np.ndarray | None  # [n] int64 number of tokens of prompt and sep; None: texts
    bytes: np.ndarray  # [n] int64 UTF-8 bytes of the target text
    where: list[str]  # [n] file:line
    token_bytes: np.ndarray  # [V] float64 bytes of each token, scaled so that their sum over a corpus of texts is exact

    @property
    def lengths(self) -> np.ndarray:
        """[n] int64 number of tokens of each row."""
        return np.diff(self.starts)

    def __len__(self) -> int:
        return len(self.where)

    def assembler(
        self, tokenizer: Tokenizer, length: int, batch_tokens: int, too_long: str
    ) -> tuple[Pairs | Windows, Fit]:
        """What makes batches of rows, and how rows that are too long were treated. Arguments and errors: ``Loader``."""
        data, fitted = fit(self, length, too_long)
        if data.prompts is None:
            return Windows(data, tokenizer, length, batch_tokens), fitted
        return Pairs(data, fitted.rows, tokenizer.pad_id, batch_tokens), fitted


@dataclass
class Fit:
    """Which rows of pairs fit a maximum length, and how longer ones were treated."""

    rows: np.ndarray  # [m] int64 rows in use
    skipped: list[str] = field(default_factory=list)  # file:line of rows left out
    truncated: list[str] = field(default_factory=list)  # file:line of rows that lost the beginning of their prompt


def fit(data: Tokenised, length: int, too_long: str = "error") -> tuple[Tokenised, Fit]:
    """Apply a policy to rows of pairs longer than ``length`` tokens: ``error``, ``skip`` or ``truncate_prompt``.

    ``truncate_prompt`` drops tokens from the beginning of the prompt; sep, target and eos are never cut.

    Raises:
        UserError: the policy is unknown; it is ``error`` and a row is too long; a target alone is too long; or no row
            is left.
    """
    if too_long not in TOO_LONG:
        raise UserError(f"Unknown policy '{too_long}' for rows that are too long.", f"Known: {', '.join(TOO_LONG)}.")
    lengths, every = data.lengths, np.arange(len(data), dtype=np.int64)
    long = np.flatnonzero(lengths > length)
    if data.prompts is None or not len(long):
        return data, Fit(every)
    if too_long == "error":
        first = long[0]
        raise UserError(
            f"{len(long)} of {len(data)} rows are longer than {length} tokens, the first at {data.where[first]} "
            f"({lengths[first]}), the longest of {lengths.max()}.",
            "Raise the maximum length ([data] length), or set [data] too_long to skip or truncate_prompt.",
        )
    if too_long == "skip":
        rows = np.flatnonzero(lengths <= length)
        if not len(rows):
            raise UserError(f"All {len(data)} rows are longer than {length} tokens.", "Raise the maximum length.")
        return data, Fit(rows, skipped=[data.where[i] for i in long])
    return _truncate(data, length, long), Fit(every, truncated=[data.where[i] for i in long])


def _truncate(data: Tokenised, length: int, long: np.ndarray) -> Tokenised:
    assert data.prompts is not None
    lengths, prompts = data.lengths, data.prompts.copy()
    cut = np.zeros_like(lengths)
    cut[long] = lengths[long] - length
    if len(worse := np.flatnonzero(cut >= prompts)):  # sep must stay
        raise UserError(
            f"{data.where[worse[0]]}: The target alone does not fit into {length} tokens ({len(worse)} such rows).",
            "Raise the maximum length, or choose to skip rows that are too long.",
        )
    kept = lengths - cut
    starts = np.concatenate(([0], np.cumsum(kept)))
    ids = data.ids[_ranges(data.starts[:-1] + cut, kept)]
    return Tokenised(ids, starts, prompts - cut, data.bytes, data.where, data.token_bytes)


def _ranges(begins: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """The indices of consecutive ranges: [b0, b0+1, .., b0+l0-1, b1, ..]."""
    ends = np.cumsum(lengths)
    return np.arange(int(ends[-1])) + np.repeat(begins - (ends - lengths), lengths)


class Pairs:
    """Batches of prompt-target rows of similar length.

    An epoch is a seeded permutation of the rows, cut into pools of about 64 batches. Each pool is sorted by length and
    cut into batches of at most ``batch_tokens`` positions, padding included. Then the batches of all pools are
    shuffled.

    Raises:
        UserError: a row is longer than ``batch_tokens``.
    """

    def __init__(
        self, data: Tokenised, rows: np.ndarray, pad_id: int, batch_tokens: int, cost: np.ndarray | None = None
    ) -> None:
        """``cost`` [n]: tokens that a row takes of a batch, where it is trained on in another form; None: its own."""
        self.data, self.rows, self.pad_id, self.batch_tokens = data, rows, pad_id, batch_tokens
        self.lengths, self.cost = data.lengths, data.lengths if cost is None else cost
        longest = int(self.cost[rows].max())
        if longest > batch_tokens:
            raise UserError(
                f"The longest row takes {longest} tokens, but a batch holds at most {batch_tokens}.",
                "Raise the number of tokens of a batch (train.batch_tokens).",
            )

    def plan_epoch(self, generator: np.random.Generator | None) -> list[np.ndarray]:
        """The rows of each batch of an epoch; each row comes once. Without a generator, in order of length."""
        if generator is None:
            return self._cut(self.rows)
        order = generator.permutation(self.rows)
        pool = np.cumsum(self.cost[order]) // (_POOL_BATCHES * self.batch_tokens)
        pools = np.split(order, np.flatnonzero(np.diff(pool)) + 1)
        batches = [batch for rows in pools for batch in self._cut(rows)]
        return [batches[i] for i in generator.permutation(len(batches))]

    def _cut(self, rows: np.ndarray) -> list[np.ndarray]:
        rows = rows[np.argsort(self.cost[rows], kind="stable")]
        lengths, batches, begin = self.cost[rows], [], 0
        while begin < len(rows):
            # lengths are ascending, so count * longest, the size of a padded batch, is ascending too
            room = self.batch_tokens // int(lengths[begin])
            cost = np.arange(1, min(room, len(rows) - begin) + 1) * lengths[begin : begin + room]
            count = int(np.searchsorted(cost, self.batch_tokens, side="right"))
            batches.append(rows[begin : begin + count])
            begin += count
        return batches

    def padding(self, batch: np.ndarray) -> tuple[int, int]:
        """Number of padding positions and of all positions of a batch."""
        lengths = self.lengths[batch]
        size = len(batch) * int(lengths.max())
        return size - int(lengths.sum()), size

    def assemble(self, batch: np.ndarray) -> Batch:
        """The batch of these row numbers."""
        assert self.data.prompts is not None
        lengths, prompts = self.lengths[batch], self.data.prompts[batch]
        at = np.arange(lengths.max())[None, :]
        valid = at < lengths[:, None]
        source = np.minimum(self.data.starts[batch][:, None] + at, len(self.data.ids) - 1)
        ids = np.where(valid, self.data.ids[source].astype(np.int64), self.pad_id)
        return Batch(
            ids=torch.from_numpy(ids),
            target=torch.from_numpy(valid & (at >= prompts[:, None])),
            valid=torch.from_numpy(valid),
            prompt=torch.from_numpy(prompts.copy()),
            bytes=torch.from_numpy(self.data.bytes[batch]),
            number=torch.from_numpy(batch.copy()),
        )


class Windows:
    """Batches of windows, each bos and ``length`` tokens, cut from documents that are joined by eos.

    An epoch joins the documents in a seeded order and cuts this stream, so that window borders differ between epochs.
    No token is dropped: the last window is shorter. A batch is an array of window numbers.

    Raises:
        UserError: a window is longer than ``batch_tokens``.
    """

    def __init__(self, data: Tokenised, tokenizer: Tokenizer, length: int, batch_tokens: int) -> None:
        if length + 1 > batch_tokens:
            raise UserError(
                f"A window has {length + 1} tokens, but a batch holds at most {batch_tokens}.",
                "Raise the number of tokens of a batch.",
            )
        self.data, self.length, self.count = data, length, batch_tokens // (length + 1)
        self.pad_id, self.bos_id = tokenizer.pad_id, tokenizer.bos_id
        self.total = len(data.ids)
        self.windows = -(-self.total // length)
        self._arrange(np.arange(len(data)))

    def _arrange(self, order: np.ndarray) -> None:
        self.begins = self.data.starts[:-1][order]  # where each document of the stream begins in the corpus
        self.ends = np.cumsum(self.data.lengths[order])  # where it ends in the stream
        self.shift = self.begins - (self.ends - self.data.lengths[order])

    def plan_epoch(self, generator: np.random.Generator | None) -> list[np.ndarray]:
        """The windows of each batch of an epoch, after arranging the stream. Without a generator, in order."""
        order, windows = np.arange(len(self.data)), np.arange(self.windows)
        if generator is not None:
            order, windows = generator.permutation(len(self.data)), generator.permutation(self.windows)
        self._arrange(order)
        return [windows[i : i + self.count] for i in range(0, self.windows, self.count)]

    def padding(self, batch: np.ndarray) -> tuple[int, int]:
        """Number of padding positions and of all positions of a batch."""
        used = np.minimum((batch + 1) * self.length, self.total) - batch * self.length
        size = len(batch) * (int(used.max()) + 1)
        return size - len(batch) - int(used.sum()), size

    def assemble(self, batch: np.ndarray) -> Batch:
        """The batch of these window numbers, in the stream that ``plan_epoch`` arranged last."""
        at = batch[:, None] * self.length + np.arange(self.length)[None, :]
        real = at < self.total
        at = np.minimum(at, self.total - 1)
        source = at + self.shift[np.searchsorted(self.ends, at, side="right")]
        tokens = self.data.ids[source].astype(np.int64)
        sizes = np.rint((self.data.token_bytes[tokens] * real).sum(1)).astype(np.int64)
        width = min(self.length, int(self.total - batch.min() * self.length))
        ids = np.full((len(batch), width + 1), self.bos_id, dtype=np.int64)
        ids[:, 1:] = np.where(real, tokens, self.pad_id)[:, :width]
        target = np.zeros(ids.shape, dtype=bool)
        target[:, 1:] = real[:, :width]
        valid = target.copy()
        valid[:, 0] = True
        return Batch(
            ids=torch.from_numpy(ids),
            target=torch.from_numpy(target),
            valid=torch.from_numpy(valid),
            prompt=None,
            bytes=torch.from_numpy(sizes),
        )


class Loader:
    """An endless, seeded iterator of batches; each epoch holds every row (or token of text) exactly once.

    The batches of all epochs form one sequence. Step ``k`` of rank ``r`` among ``world`` takes batch ``k * world + r``.
    So all ranks make the same number of steps, nothing is dropped or repeated, and a run can resume on another number
    of ranks. The plan of an epoch depends only on the seed and the epoch, so all ranks have the same plan.

    Attributes:
        fit: how rows longer than ``length`` were treated.
    """

    def __init__(
        self,
        data: Tokenised,
        tokenizer: Tokenizer,
        length: int,
        batch_tokens: int,
        seed: int = 0,
        rank: int = 0,
        world: int = 1,
        too_long: str = "error",
    ) -> None:
        """
        Args:
            length: pairs: maximum number of tokens of a row, sep and eos included; texts: tokens of a window, bos not
                counted.
            batch_tokens: positions of a batch on each rank, padding included.
            too_long: policy for longer pairs: error, skip or truncate_prompt (see ``fit``).
        Raises:
            UserError: a row is too long for the length (policy ``error``) or for the batch.
            ValueError: ``rank`` is not below ``world``.
        """
        if not 0 <= rank < world:
            raise ValueError(f"rank {rank} of {world}")
        self.assembler, self.fit = data.assembler(tokenizer, length, batch_tokens, too_long)
        self.seed, self.rank, self.world = seed, rank, world
        content = zlib.crc32(data.ids.tobytes())
        self._key = [len(self.fit.rows), len(data.ids), content, length, batch_tokens, seed]
        self._epoch, self._position = 0, 0  # first batch of the next step over all ranks, the same on each rank
        self._plan_epoch, self._plan = 0, self._make_plan(0)

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        epoch, position = self._seek(self._epoch, self._position + self.rank)
        batch = self.assembler.assemble(self._at(epoch)[position])
        self._epoch, self._position = self._seek(self._epoch, self._position + self.world)
        return batch

    @property
    def epochs(self) -> float:
        """Number of passes over the data so far, by all ranks together."""
        return self._epoch + self._position / len(self._at(self._epoch))

    @property
    def batches_per_epoch(self) -> int:
        """Number of batches of the current epoch, of all ranks together."""
        return len(self._at(self._epoch))

    def padding_share(self) -> float:
        """Share of the current epoch's positions that are padding."""
        waste, size = np.array([self.assembler.padding(batch) for batch in self._at(self._epoch)]).sum(0)
        return float(waste / size)

    def state_dict(self) -> dict[str, Any]:
        """The position of the loader: the same on all ranks, for any number of ranks."""
        return {"epoch": self._epoch, "position": self._position, "key": list(self._key)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue at the position of ``state_dict``.

        Raises:
            UserError: the data or settings differ from those of the state, so the batches would differ.
        """
        if list(state["key"]) != self._key:
            raise UserError(
                "The data, maximum length, batch size or seed differ from those of the run to be resumed "
                f"(rows, tokens, checksum, length, batch tokens, seed: {state['key']} before, {self._key} now).",
                "Restore them, or start a new run.",
            )
        self._epoch, self._position = int(state["epoch"]), int(state["position"])

    def _make_plan(self, epoch: int) -> list[np.ndarray]:
        return self.assembler.plan_epoch(np.random.default_rng([self.seed, epoch]))

    def _at(self, epoch: int) -> list[np.ndarray]:
        if epoch != self._plan_epoch:
            self._plan_epoch, self._plan = epoch, self._make_plan(epoch)
        return self._plan

    def _seek(self, epoch: int, position: int) -> tuple[int, int]:
        """Convert a position beyond the end of an epoch to a position in a later epoch."""
        while position >= (size := len(self._at(epoch))):
            epoch, position = epoch + 1, position - size
        return epoch, position


def batches(
    data: Tokenised, tokenizer: Tokenizer, length: int, batch_tokens: int, too_long: str = "error"
) -> list[Batch]:
    """Each row (or token of text) once, in a fixed order: for validation. Arguments and errors as in ``Loader``."""
    assembler, _ = data.assembler(tokenizer, length, batch_tokens, too_long)
    return [assembler.assemble(batch) for batch in assembler.plan_epoch(None)]
