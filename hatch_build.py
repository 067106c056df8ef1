"""Compiles the layers of small networks when the package is installed, if there is a C++ compiler."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

NATIVE = "src/redraft/models/cpu/native"


class CompileLayers(BuildHookInterface):
    """Without a compiler, the package is installed all the same, and these layers run in torch."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile beside the source, and add what was made to a wheel, which is then one for this platform."""
        path = Path(self.root, NATIVE, "build.py")
        spec = importlib.util.spec_from_file_location("redraft_native_build", path)
        assert spec is not None and spec.loader is not None
        build = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(build)
        reason = build.build()
        if reason:
            self.app.display_info(f"The layers of small networks were not compiled: {reason}")
            return
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-{_platform()}"
        build_data["artifacts"] += [f"{NATIVE}/*.library"]


def _platform() -> str:
    """The platform part of a wheel's tag; the libraries need no version of Python."""
    import sysconfig

    return sysconfig.get_platform().replace("-", "_").replace(".", "_")
