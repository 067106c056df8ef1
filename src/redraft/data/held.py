"""What a program holds in memory while it reads data, and the limit of it."""

from __future__ import annotations

from collections.abc import Mapping
from sys import getsizeof
from typing import Any

from redraft import host_memory
from redraft.errors import UserError

_ROW, _LINE = 400, 150  # bytes of an example and of a line in a list, texts not counted
_SHARE = 0.8  # of the memory that the machine has left


class Held:
    """Counts the bytes that reading holds, and refuses more than the machine has left.

    Nothing else limits the size of data. A few megabytes of gzip may unpack to any number of good rows; a limit on
    sizes, or on how much a file was compressed, would refuse honest data.
    """

    def __init__(self, source: str) -> None:
        left = host_memory.left()
        self.source, self.size = source, 0
        self.most = float("inf") if left is None else _SHARE * left

    def add_row(self, values: Mapping[str, Any]) -> None:
        """Count a row.

        Raises:
            UserError: all rows together are more than the machine has left.
        """
        self._add(_ROW + sum(map(_size, values.values())))

    def add_line(self, text: str) -> None:
        """Count a line of a document. Raises as ``add_row``."""
        self._add(_LINE + len(text))

    def clear(self) -> None:
        """What was counted is no longer held."""
        self.size = 0

    def _add(self, size: int) -> None:
        self.size += size
        if self.size > self.most:
            raise UserError(
                f"'{self.source}' holds more than fits into memory: {host_memory.readable(self.most)} are left.",
                "Give a part of it, or a machine with more memory.",
            )


def _size(value: Any) -> int:
    """Bytes of a value of a row, which may be the messages of a conversation."""
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return getsizeof(value) + sum(map(_size, parts))
