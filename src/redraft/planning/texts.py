"""The memory of training texts before the first update: held as text, made into a vocabulary, and tokenised."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from sys import getsizeof

from redraft.data.examples import PIECE_CHARACTERS, Example
from redraft.train.recipe import Recipe

_ROW = 200  # bytes of an example besides its texts
_SAMPLED = 1 << 22  # characters in which words are counted
_HEAPS = 0.7  # distinct words grow with this power of the text (Heaps' law)
_WORD_BYTES = 1100  # of a distinct word, while a vocabulary is trained: its symbols, pairs and counts
_CHARACTERS = 3.0  # of a token of a trained vocabulary, at least
_PIECE_BYTES = 100  # of a token of the piece that is being tokenised
_WORD = re.compile(r"\w+|[^\w\s]+")


@dataclass(frozen=True)
class Texts:
    """What determines the memory that training texts take."""

    held: int = 0  # bytes of the rows in memory
    characters: int = 0
    words: int = 0  # distinct words, estimated from a sample

    @classmethod
    def of(cls, examples: Iterable[Example], others: Iterable[Iterable[Example]] = ()) -> Texts:
        """Those of some training examples.

        Args:
            others: validation and test examples, which are held beside them.
        """
        held = characters = sampled = 0
        words = set[str]()
        for example in examples:
            size = len(example.target) + len(example.prompt or "")
            held += _ROW + getsizeof(example.target) + getsizeof(example.prompt)
            characters += size
            if sampled < _SAMPLED:
                sampled += size
                words.update(_WORD.findall(example.target))
                words.update(_WORD.findall(example.prompt or ""))
        for rows in others:
            held += sum(_ROW + getsizeof(example.target) + getsizeof(example.prompt) for example in rows)
        growth = (characters / sampled) ** _HEAPS if sampled else 1.0
        return cls(held, characters, int(len(words) * growth))

    def tokens(self, recipe: Recipe) -> int:
        """Tokens, at most, of a recipe's tokenizer."""
        return self.characters if _is_bytes(recipe) else int(self.characters / _CHARACTERS)

    def tokenised(self, recipe: Recipe) -> int:
        """Bytes of the tokens, which stay in memory while a model is trained. A streamed corpus has a buffer."""
        if recipe.data.streaming:
            return int(recipe.data.buffer * (1 << 20))
        return _id_bytes(recipe) * self.tokens(recipe)

    def preparation(self, recipe: Recipe) -> int:
        """Bytes at the peak of the preparation, besides ``tokenised``.

        That is while a vocabulary is trained, or while the texts are tokenised into an array of four bytes a token,
        which grows by an eighth at a time.
        """
        trains = recipe.tokenizer.kind == "bpe" and not recipe.model.from_
        vocabulary = _WORD_BYTES * self.words * trains
        piece = _PIECE_BYTES * self.tokens(recipe) * min(1.0, PIECE_CHARACTERS / max(self.characters, 1))
        return self.held + int(max(vocabulary, piece + 4.5 * self.tokens(recipe)))


def _is_bytes(recipe: Recipe) -> bool:
    return recipe.tokenizer.kind == "bytes" and not recipe.model.from_


def _id_bytes(recipe: Recipe) -> int:
    """Bytes of the id of a token."""
    return 2 if recipe.tokenizer.vocab_size <= 1 << 16 or _is_bytes(recipe) else 4


UNKNOWN = Texts()  # of a plan without data
