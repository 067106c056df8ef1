"""Text: documents separated by empty lines, or a folder of files with one document each."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from redraft.data.held import Held
from redraft.data.locate import data_files
from redraft.data.rows import Row, Source, lines, undecodable


class Text(Source):
    """A file holds documents separated by empty lines; a folder holds one document in each file.

    The column is ``text``.
    """

    suffixes = (".txt", ".text", ".md")

    def matches(self, path: str) -> bool:
        return super().matches(path) or (os.path.isdir(path) and bool(self._files(path)))

    def read(self, path: str) -> Iterator[Row]:
        held = Held(path)
        if Path(path).is_dir():
            for file in self._files(path):
                yield _document(file, list(_counted(file, held)))
                held.clear()
            return
        block: list[tuple[int, str]] = []
        for number, line in _counted(path, held):
            if line.strip():
                block.append((number, line))
            elif block:
                yield _document(path, block)
                block = []
                held.clear()
        if block:
            yield _document(path, block)

    def _files(self, folder: str) -> list[str]:
        return [file for file in data_files(folder) if super(Text, self).matches(file)]


def _counted(path: str, held: Held) -> Iterator[tuple[int, str]]:
    """The lines of a file, each of which is counted."""
    for number, line in lines(path):
        held.add_line(line)
        yield number, line


def _document(path: str, block: list[tuple[int, str]]) -> Row:
    for number, line in block:
        if problem := undecodable(line):
            return Row({}, path, number, problem)
    return Row({"text": "\n".join(line for _, line in block)}, path, block[0][0] if block else 1)
