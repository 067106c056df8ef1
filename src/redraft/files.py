"""Reading JSON files, and writing files and folders atomically (temporary name, fsync, rename)."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from redraft.errors import UserError

_END = 1 << 20  # bytes at both ends of a file that tell whether it is the same


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write a file atomically: readers see either the old content or the new content, never a part of it.

    Raises:
        UserError: the disk is full or the file is not writable; the old file stays unchanged.
    """
    data = content.encode("utf-8") if isinstance(content, str) else content
    if not path.name:
        raise UserError(f"Can't write '{path}': it is a folder.", "Name a file in it.")
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


def check_writable(path: Path, folder: bool = False) -> None:
    """Check, before hours of work, that a file (or a folder) can be written. Only the folders above it are made.

    Raises:
        UserError: it can't, or the path is of the other kind.
    """
    place = path if folder else path.parent
    try:
        if not folder and (not path.name or path.is_dir()):
            raise UserError(f"Can't write '{path}': it is a folder.", "Name a file in it.")
        new = folder and not place.exists()
        place.mkdir(parents=True, exist_ok=True)
        trial = place / f".{path.name}.{os.getpid()}.tmp"  # the longest name that ``write_atomically`` needs
        trial.touch()
        trial.unlink()
        if new:
            place.rmdir()
    except (FileExistsError, NotADirectoryError):
        raise UserError(f"Can't write '{path}': a part of it is a file.", "Choose another path.") from None
    except OSError as error:
        raise disk_error(error, path) from None


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary folder that becomes ``path`` when the block ends without an exception.

    If ``path`` is already a folder, its files of the same names are replaced atomically, one after the other, and its
    other files stay: it may hold the checkpoints of a running training, which must always be readable.

    Raises:
        UserError: the disk is full or the folder is not writable; the old folder stays unchanged.
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
                file.chmod(0o644)  # safetensors creates files that only the owner can read
            with file.open("r+b") as handle:  # Windows can't flush a file that is open for reading
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
    """The error number of the operating system, also where safetensors wraps it into its own exception."""
    if isinstance(error, OSError):
        return error.errno
    found = re.search(r"\(os error (\d+)\)", str(error)) if type(error).__name__ == "SafetensorError" else None
    return int(found[1]) if found else None


def _try_lock(file: IO[Any]) -> bool:
    """Lock an open file for this process, which the system unlocks when the process ends. False: another one has it."""
    try:
        import fcntl
    except ImportError:  # Windows
        import msvcrt

        try:
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined,unused-ignore]
        except OSError:
            return False
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def disk_error(error: OSError, path: Path) -> UserError:
    """Convert an operating-system error during writing to a ``UserError``."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        what = f"The disk of '{path}' has no space left; existing files are unchanged."
        return UserError(what, "Free some space, then run the command again.")
    if error.errno in (errno.EISDIR, errno.ENOTDIR, errno.EEXIST):
        return UserError(f"Can't write '{path}': {error.strerror}.", "Move away what is there, or choose another path.")
    return UserError(f"Can't write '{path}': {error.strerror}.", "Check its permissions, or choose another path.")


@contextmanager
def exclusive(path: Path, held: str) -> Iterator[None]:
    """Hold the lock file ``path``. The system releases it when the process ends, however it ends.

    Args:
        held: what is said if another process holds it.
    Raises:
        UserError: another process holds it, or the file can't be written.
    """
    try:
        file = path.open("w")
    except OSError as error:
        raise disk_error(error, path) from None
    with file:
        try:
            free = _try_lock(file)
        except OSError as error:  # a file system without locks
            raise disk_error(error, path) from None
        if not free:
            raise UserError(held, "Wait for it, or choose another --out.")
        yield


@contextmanager
def folder_of_its_own(folder: Path, held: str) -> Iterator[None]:
    """Make a folder and hold its file ``lock``; see ``exclusive``.

    Raises:
        UserError: another process holds it, or it can't be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise disk_error(error, folder) from None
    with exclusive(folder / "lock", held):
        yield


def keep_aside(folder: Path, names: Iterable[str]) -> Path | None:
    """Move files of a folder into its next free ``older/<number>``, and return that; None if there are none.

    Raises:
        UserError: the disk is full, or the folder can't be written.
    """
    present = [folder / name for name in names if (folder / name).exists()]
    if not present:
        return None
    number = 1
    while (folder / "older" / str(number)).exists():
        number += 1
    place = folder / "older" / str(number)
    try:
        place.mkdir(parents=True)
        for file in present:
            os.replace(file, place / file.name)
    except OSError as error:
        raise disk_error(error, place) from None
    return place


def file_marks(folder: Path, files: Iterable[Path]) -> list[tuple[str, int, str]]:
    """The name within the folder, the size, and a hash of the first and the last megabyte of each file.

    Two files of equal marks are taken for the same: data sets and weights are too large to be read for a comparison.

    Raises:
        UserError: a file can't be read.
    """
    found = []
    for path in files:
        try:
            with path.open("rb") as file:
                digest, size = hashlib.sha256(file.read(_END)), os.fstat(file.fileno()).st_size
                file.seek(max(0, size - _END))
                digest.update(file.read(_END))
        except OSError as error:
            raise UserError(f"Can't read '{path}': {error.strerror}.", "Check its permissions.") from None
        found.append((path.relative_to(folder).as_posix(), size, digest.hexdigest()[:16]))
    return found


def remove(path: Path) -> None:
    """Delete a file or a folder with all that it holds."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def read_json(path: Path) -> dict[str, Any]:
    """Read a file that holds one JSON object.

    Raises:
        UserError: the file is missing, unreadable, not valid JSON, or holds something other than an object.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise UserError(f"File '{path}' does not exist.", "Check the path.") from None
    except OSError as error:
        raise UserError(f"Can't read '{path}': {error.strerror}.", "Check its permissions.") from None
    return parse_json(content, path)


def parse_json(content: bytes, path: Path) -> dict[str, Any]:
    """The JSON object that the file ``path`` holds, from its content.

    Raises:
        UserError: not valid JSON, or something other than an object.
    """
    try:
        values = json.loads(content.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:  # not JSON, not UTF-8, a number of thousands of digits, deep nesting
        raise UserError(f"'{path}' is not valid JSON: {error}.", "Fix the file, or copy it again.") from None
    if not isinstance(values, dict):
        raise UserError(f"'{path}' holds a JSON {type(values).__name__} instead of an object.", "Write {...}.")
    return values
