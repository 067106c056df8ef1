"""Memory of the host: what the machine has left, and what this process takes."""

from __future__ import annotations

import sys
from pathlib import Path

_STATUS, _MEMINFO = Path("/proc/self/status"), Path("/proc/meminfo")
_GROUPS = (  # limit and use of a container, by version of control groups
    (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")),
    (Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"), Path("/sys/fs/cgroup/memory/memory.usage_in_bytes")),
)


def left() -> int | None:
    """Bytes that nothing uses; None: the system doesn't say. Limits of containers count."""
    found = [_left_in_group(*files) for files in _GROUPS]
    if _MEMINFO.exists():
        lines = dict(line.split(":", 1) for line in _MEMINFO.read_text().splitlines())
        found.append(int(lines["MemAvailable"].split()[0]) * 1024)
    return min((size for size in found if size is not None), default=None)


def _left_in_group(limit: Path, use: Path) -> int | None:
    try:
        most, now = limit.read_text().strip(), use.read_text().strip()
        counts = dict(line.split() for line in (use.parent / "memory.stat").read_text().splitlines())
    except OSError:
        return None
    # Files that were read and are not in use count, too: the system gives their memory away.
    unused = int(counts.get("total_inactive_file", counts.get("inactive_file", 0)))
    return max(int(most) - int(now) + unused, 0) if most.isdigit() and now.isdigit() else None


def readable(size: float) -> str:
    """``1.25 GB``, ``14 MB``."""
    return f"{size / 1e9:.2f} GB" if size >= 1e9 else f"{size / 1e6:.0f} MB"


def resident() -> int:
    """Resident bytes of this process now; their peak where the system doesn't report the current number, else 0."""
    return _status("VmRSS")


def peak_resident() -> int:
    """Peak resident bytes of this process; 0 on systems that don't report it (Windows)."""
    return _status("VmHWM")


def _status(key: str) -> int:
    if _STATUS.exists():
        for line in _STATUS.read_text().splitlines():
            if line.startswith(key + ":"):
                return int(line.split()[1]) * 1024
    try:
        import resource
    except ImportError:
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
