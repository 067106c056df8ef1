"""Reading ``tokenizer.json``: in this process if it looks as usual, else first in a process of its own.

The library that reads it ends the whole process for some contents, such as an id of 2^32 or a deep nesting.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tokenizers

from redraft.errors import UserError

_LARGEST = 1 << 28  # bytes of a file
_SPARE_IDS = 4096  # ids beyond the number of tokens: published vocabularies have some that no token uses
_DEPTH, _PARTS = 24, 20_000  # nesting, and number of values, of everything but the vocabulary
_PATTERN = 4096  # characters of a text in it: regular expressions
_SECONDS, _MEMORY = 60, 4 << 30  # of the other process
_TRIAL = """
import resource, sys
resource.setrlimit(resource.RLIMIT_AS, (int(sys.argv[2]),) * 2)
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
import tokenizers
tokenizers.Tokenizer.from_file(sys.argv[1]).encode("Hello 1, 2.")
"""
_REMEDY = "Copy or download it again."


def read_tokenizer_json(file: Path) -> tokenizers.Tokenizer:
    """Read a ``tokenizer.json``.

    Raises:
        UserError: the file can't be read, is not valid, or ends the process that reads it.
    """
    try:
        usual = file.stat().st_size <= _LARGEST and _is_usual(json.loads(file.read_bytes()), file)
    except OSError as error:
        raise UserError(f"Can't read '{file}': {error.strerror}.", "Check its permissions.") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"'{file}' is not a valid tokenizer.json: {error}.", _REMEDY) from None
    if not usual:
        _try_elsewhere(file)
    try:
        return tokenizers.Tokenizer.from_file(str(file))
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # Exception, or a panic of the library, which is none
        raise UserError(f"'{file}' is not a valid tokenizer.json: {error}.", _REMEDY) from None


def _is_usual(values: Any, file: Path) -> bool:
    """Is everything of the sizes that real tokenizers have?

    Raises:
        UserError: an id that is no number, or far beyond the number of tokens: tables over all ids fill the memory.
    """
    if not isinstance(values, dict) or not isinstance(values.get("model"), dict):
        return False
    model = {key: part for key, part in values["model"].items() if key not in ("vocab", "merges")}
    vocab, added = values["model"].get("vocab"), values.get("added_tokens") or []
    if not isinstance(vocab, dict | list) or not isinstance(added, list):
        return False
    ids = list(vocab.values()) if isinstance(vocab, dict) else [len(vocab)]
    ids += [token.get("id") if isinstance(token, dict) else None for token in added]
    most = 2 * (len(vocab) + len(added)) + _SPARE_IDS
    for number in ids:
        if type(number) is not int or not 0 <= number <= most:
            what = f"'{file}' is not a valid tokenizer.json: {number!r} is the id of one of its {len(ids):,} tokens."
            raise UserError(what, _REMEDY)
    rest = {key: part for key, part in values.items() if key not in ("model", "added_tokens")}
    return _is_small([model, rest])


def _is_small(value: Any) -> bool:
    """Is a JSON value of moderate depth and size?"""
    level, parts = [value], 0
    for _ in range(_DEPTH):
        parts += len(level)
        if parts > _PARTS or any(isinstance(one, str) and len(one) > _PATTERN for one in level):
            return False
        inner: list[Any] = []
        for one in level:
            if isinstance(one, Mapping):
                inner += one.values()
            elif isinstance(one, list):
                inner += one
        level = inner
    return not level


def _try_elsewhere(file: Path) -> None:
    command = [sys.executable, "-c", _TRIAL, str(file), str(_MEMORY + 20 * file.stat().st_size)]
    try:
        found = subprocess.run(command, capture_output=True, timeout=_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        raise UserError(f"'{file}' is not read within {_SECONDS} seconds.", _REMEDY) from None
    if found.returncode:
        said = [line for line in found.stderr.decode("utf-8", "replace").splitlines() if line.strip()]
        reason = said[-1] if said and found.returncode > 0 else "reading it ends the process"
        raise UserError(f"'{file}' is not a valid tokenizer.json: {reason}.", _REMEDY)
