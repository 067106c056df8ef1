"""Compiled constraints, kept within a number of bytes."""

from __future__ import annotations

import threading
import weakref
from collections import OrderedDict
from collections.abc import Hashable
from typing import TYPE_CHECKING

from redraft.constraints.automata.token_automaton import TokenAutomaton

if TYPE_CHECKING:
    from redraft.data.tokenizer import Tokenizer

_CAPACITY = 256 << 20  # bytes


class AutomatonCache:
    """The automata that were used last. An automaton that is still in use is always found, however large it is.

    Args:
        capacity: bytes of the automata that are kept although nothing uses them.
    """

    def __init__(self, capacity: int = _CAPACITY) -> None:
        self.capacity, self.size = capacity, 0
        self._lock = threading.Lock()
        self._kept: OrderedDict[Hashable, TokenAutomaton] = OrderedDict()
        self._used: weakref.WeakValueDictionary[Hashable, TokenAutomaton] = weakref.WeakValueDictionary()
        self._tokenizers: dict[int, weakref.ref[Tokenizer]] = {}

    def find(self, tokenizer: Tokenizer, kinds: Hashable) -> TokenAutomaton | None:
        """The automaton of these constraints for this tokenizer, if it is known."""
        with self._lock:
            reference = self._tokenizers.get(id(tokenizer))
            if reference is None or reference() is not tokenizer:
                return None
            key = id(tokenizer), kinds
            if key in self._kept:
                self._kept.move_to_end(key)
            return self._used.get(key)

    def keep(self, tokenizer: Tokenizer, kinds: Hashable, automaton: TokenAutomaton) -> None:
        """Remember an automaton. Those that were used longest ago are forgotten."""
        with self._lock:
            number = id(tokenizer)
            reference = self._tokenizers.get(number)
            if reference is None or reference() is not tokenizer:
                self._forget(number)
                self._tokenizers[number] = weakref.ref(tokenizer)
            key = number, kinds
            if key in self._kept:
                self.size -= self._kept.pop(key).nbytes
            self._kept[key] = self._used[key] = automaton
            self.size += automaton.nbytes
            while self.size > self.capacity:
                self.size -= self._kept.popitem(last=False)[1].nbytes

    def _forget(self, number: int) -> None:
        """Remove the automata of a tokenizer that no longer exists."""
        for key in [key for key in self._kept if isinstance(key, tuple) and key[0] == number]:
            self.size -= self._kept.pop(key).nbytes
        for key in [key for key in list(self._used) if isinstance(key, tuple) and key[0] == number]:
            del self._used[key]
