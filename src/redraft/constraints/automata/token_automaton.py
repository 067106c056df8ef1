"""From bytes to tokens: the moves of an automaton by each token of a vocabulary."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from redraft.constraints.automata.byte_automaton import ByteAutomaton
from redraft.errors import UserError

MAX_ENTRIES = 40_000_000  # of the table of moves; building it takes some 30 bytes for each


@dataclass(frozen=True, eq=False)
class TokenAutomaton:
    """Moves of an automaton by tokens. It has S states and the state S, in which the text has ended.

    Tokens with the same moves in every state form a class: K classes, a few hundred for a vocabulary of 100,000.
    Class 0 holds the tokens without any move, class 1 is end-of-text.

    Fields:
        class_of: [V] class of each token. moves: [K, S + 1], the next state, -1 for none. accept: [S + 1] bool.
        source, target: [E] the pairs of states that some token other than end-of-text joins, by ascending target.
        begin, into: where the pairs of each target begin [G], and which target it is [G].
        by_class: (source, target, begin, class) of all moves except end-of-text, by ascending class.
    """

    class_of: np.ndarray
    moves: np.ndarray
    accept: np.ndarray
    source: np.ndarray
    target: np.ndarray
    begin: np.ndarray
    into: np.ndarray
    by_class: tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]

    @property
    def nbytes(self) -> int:
        """Size of its tables in bytes."""
        own = (self.class_of, self.moves, self.accept, self.source, self.target, self.begin, self.into)
        return sum(table.nbytes for table in (*own, *self.by_class))

    @property
    def end(self) -> int:
        """The state in which the text has ended."""
        return len(self.accept) - 1


def over_tokens(automaton: ByteAutomaton, token_bytes: Sequence[bytes | None], eos_id: int) -> TokenAutomaton:
    """The moves of every token from every state.

    A token is a function from states to states, and so is every prefix of a token. Few of these functions differ, so
    the computation goes byte by byte over distinct functions instead of tokens. It is exact and fast (0.1 to 0.5 s for
    150,000 tokens, once for each constraint and tokenizer).

    Args:
        token_bytes: the bytes that each id adds to the text; None for ids that must not be generated.
    Raises:
        UserError: the table would be too large.
    """
    class_of, functions = _functions(automaton, token_bytes)
    states, end = automaton.states, automaton.states
    used, class_of = np.unique(np.append(class_of, 0), return_inverse=True)  # class 0: no moves
    class_of = np.where(class_of[:-1] > 0, class_of[:-1] + 1, 0)
    class_of[eos_id] = 1
    moves = np.full((len(used) + 1, states + 1), -1, dtype=np.int32)
    moves[2:, :states] = functions[used[1:]]
    accept = np.append(automaton.accept, True)
    moves[1, accept] = end
    by, source = np.nonzero(moves[2:] >= 0)
    target = moves[2:][by, source]
    pairs = np.unique(target.astype(np.int64) * (states + 1) + source)
    onto = pairs // (states + 1)
    begin, class_begin = _starts(onto), _starts(by)
    by_class = source.astype(np.int32), target, class_begin, by[class_begin] + 2
    return TokenAutomaton(class_of, moves, accept, pairs % (states + 1), onto, begin, onto[begin], by_class)


def _starts(rising: np.ndarray) -> np.ndarray:
    """The index at which each run of equal values begins."""
    return np.flatnonzero(np.diff(rising, prepend=-1))


def _functions(automaton: ByteAutomaton, token_bytes: Sequence[bytes | None]) -> tuple[np.ndarray, np.ndarray]:
    """The function of each token, as an index [V], and the functions [F, S]. Function 0 has no moves."""
    states = automaton.states
    kind = np.int16 if states < 1 << 15 else np.int32
    columns, byte_class = np.unique(automaton.table, axis=1, return_inverse=True)
    columns = np.concatenate([columns, np.full((1, columns.shape[1]), -1)]).astype(kind)  # row -1: no state
    width = columns.shape[1]
    texts = [text or b"" for text in token_bytes]
    length = np.array([len(text) for text in texts])
    flat = byte_class.ravel()[np.frombuffer(b"".join(texts), dtype=np.uint8)]
    offset = np.cumsum(length) - length
    functions = np.stack([np.full(states, -1, dtype=kind), np.arange(states, dtype=kind)])
    known = {row.tobytes(): number for number, row in enumerate(functions)}
    function = np.where(length > 0, 1, 0)  # before the first byte: the identity
    alive, depth = np.flatnonzero(length > 0), 0
    while len(alive):
        step = function[alive] * width + flat[offset[alive] + depth]
        distinct, which = np.unique(step, return_inverse=True)
        numbers = np.empty(len(distinct), dtype=np.int64)
        fresh: list[np.ndarray] = []
        for begin in range(0, len(distinct), 1024):
            part = distinct[begin : begin + 1024]
            for index, image in enumerate(columns[functions[part // width], (part % width)[:, None]], begin):
                numbers[index] = number = known.setdefault(image.tobytes(), len(known))
                if number == len(functions) + len(fresh):
                    fresh.append(image)
        if len(known) * states > MAX_ENTRIES:
            raise UserError(
                f"The constraint is too large for this vocabulary: its table would have over {MAX_ENTRIES:,} entries.",
                "Give its repetitions smaller bounds, or split it.",
            )
        if fresh:
            functions = np.concatenate([functions, np.stack(fresh)])
        function[alive] = numbers[which]
        depth += 1
        alive = alive[(function[alive] > 0) & (length[alive] > depth)]
    return function, functions
