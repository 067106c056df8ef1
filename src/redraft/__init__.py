"""redraft: train, fine-tune, sample and compare diffusion and autoregressive language models."""

from __future__ import annotations

from typing import Any

__version__ = "0.1.0"
_EXPORTS = {"load": "redraft.loading", "Model": "redraft.model", "UserError": "redraft.errors"}
__all__ = ["Model", "UserError", "__version__", "load"]


def __getattr__(name: str) -> Any:
    """Public names are imported when first used, so that ``import redraft`` stays fast."""
    if name not in _EXPORTS:
        raise AttributeError(f"module 'redraft' has no attribute '{name}'")
    import importlib

    return getattr(importlib.import_module(_EXPORTS[name]), name)
