"""Files written whole or not at all: temporary name, fsync, rename."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from redraft.errors import UserError


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write a file; readers see the old content or the new, never a part.

    Raises:
        UserError: disk full or no permission; the old file is untouched.
    """
    data = content.encode("utf-8") if isinstance(content, str) else content
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink()
        raise disk_error(error, path) from None


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """A new folder that takes the place of ``path`` when the block ends well.

    Where ``path`` is a folder already, its files of the same names are replaced, each whole, one after the other, and
    the others stay: it may hold a running training's checkpoints, which must not vanish for an instant.

    Raises:
        UserError: disk full or no permission; the old folder is untouched.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        new = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    except OSError as error:
        raise disk_error(error, path) from None
    try:
        yield new
        for file in new.iterdir():
            if file.is_file():
                file.chmod(0o644)  # safetensors lets only the owner read
            with file.open("rb") as handle:
                os.fsync(handle.fileno())
        new.chmod(0o755)
        if not path.exists():
            os.rename(new, path)
            return
        for file in sorted(new.iterdir()):
            os.replace(file, path / file.name)
    except Exception as error:
        if code := _os_code(error):
            raise disk_error(OSError(code, os.strerror(code)), path) from None
        raise
    finally:
        shutil.rmtree(new, ignore_errors=True)


def _os_code(error: Exception) -> int | None:
    """The system's error number, also where safetensors wraps it into an exception of its own."""
    if isinstance(error, OSError):
        return error.errno
    found = re.search(r"\(os error (\d+)\)", str(error)) if type(error).__name__ == "SafetensorError" else None
    return int(found[1]) if found else None


def disk_error(error: OSError, path: Path) -> UserError:
    """An operating-system error in words."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        what = f"no space left on the disk of '{path}'; nothing was lost or half-written."
        return UserError(what, "Free some space.")
    return UserError(f"can't write '{path}': {error.strerror}.")


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object; a broken one is a UserError that says where."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"'{path}' does not exist.") from None
    except OSError as error:
        raise UserError(f"can't read '{path}': {error.strerror}.") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"'{path}' is corrupt: {error}.") from None
    if not isinstance(values, dict):
        raise UserError(f"'{path}' must hold a JSON object.")
    return values
