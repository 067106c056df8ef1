"""``python -m redraft`` is the ``redraft`` command."""

from __future__ import annotations

from redraft.cli._main import run

if __name__ == "__main__":
    run()
