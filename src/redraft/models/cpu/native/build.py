"""Compiles ``layers.cpp`` for the instruction sets of x86 processors. A script without dependencies, run at install.

    python build.py    # writes layers-avx2.library and layers-avx512.library beside it, or says why not

A library is loaded only by processors that have its instructions, so that a package may hold both. It is linked without
an OpenMP library: it uses the one that torch has loaded, and with it torch's threads.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

SOURCE = Path(__file__).with_name("layers.cpp")
FLAGS = {  # fastest first
    "avx512": ["-mavx512f", "-mavx512vl", "-mavx512bw", "-mavx512dq", "-mavx2", "-mfma"],
    "avx2": ["-mavx2", "-mfma"],
}
_SHARED = ["-std=c++17", "-O3", "-fPIC", "-fopenmp", "-fno-math-errno", "-fno-exceptions", "-Wno-psabi"]


def target(instructions: str) -> Path:
    """The library for a set of instructions, one of ``FLAGS``. Named .so, it would look like a module of Python."""
    return SOURCE.with_name(f"layers-{instructions}.library")


def fingerprint() -> str:
    """A library with another fingerprint was compiled from another version of the source."""
    return hashlib.sha256(SOURCE.read_bytes()).hexdigest()[:16]


def supported() -> bool:
    """Whether the source is for this kind of machine."""
    return platform.system() == "Linux" and platform.machine() == "x86_64"


def build() -> str:
    """Compile both libraries and return an empty string, or why there are none. What is there remains on failure."""
    if not supported():
        return f"there is no compiled code for {platform.system()} on {platform.machine()}"
    compiler = os.environ.get("CXX") or shutil.which("g++") or shutil.which("c++")
    if not compiler:
        return "no C++ compiler (g++) was found"
    try:
        with tempfile.TemporaryDirectory(dir=SOURCE.parent) as folder:
            made = Path(folder)
            for name, flags in FLAGS.items():
                source = f'-DFINGERPRINT="{fingerprint()}"'
                compile_ = [compiler, *_SHARED, *flags, source, "-c", str(SOURCE), "-o", str(made / "layers.o")]
                link = [compiler, "-shared", "-nodefaultlibs", str(made / "layers.o"), "-o", str(made / name)]
                for command in (compile_, link):
                    subprocess.run(command, check=True, capture_output=True, text=True)
            for name in FLAGS:
                os.replace(made / name, target(name))
    except subprocess.CalledProcessError as error:
        return f"{compiler} failed: {error.stderr.strip()[:2000]}"
    except OSError as error:
        return f"compiling failed: {error}"
    return ""


if __name__ == "__main__":
    sys.exit(build() or 0)  # a reason is printed, and the exit code is 1
