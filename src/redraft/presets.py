"""Named shapes of the transformer, from 0.6M to 100B parameters, with a tied vocabulary of 8192 unless noted."""

from __future__ import annotations

from typing import Any

from redraft.errors import UserError, suggest
from redraft.models import config_class
from redraft.models.transformer import Config
from redraft.registry import names as files

_SHAPES: dict[str, dict[str, int | float | bool]] = {
    "toy": {"dim": 64, "layers": 2, "heads": 2, "max_length": 256},  # 0.6M, for tests
    "1m": {"dim": 96, "layers": 3, "heads": 3, "max_length": 512},  # 1.1M
    "3m": {"dim": 192, "layers": 4, "heads": 4, "max_length": 512},  # 3.3M
    "7m": {"dim": 256, "layers": 6, "heads": 4, "max_length": 512},  # 6.9M
    "25m": {"dim": 448, "layers": 9, "heads": 7, "max_length": 1024},  # 25M
    "35m": {
        "dim": 512,
        "layers": 8,
        "heads": 8,
        "mlp_dim": 1536,
        "max_length": 1024,
    },  # 35.7M untied; used by speed benchmarks
    "125m": {"dim": 768, "layers": 12, "heads": 12, "max_length": 1024},  # 91M
    "350m": {"dim": 1024, "layers": 24, "heads": 16, "max_length": 2048},  # 310M
    "1b": {"dim": 2048, "layers": 22, "heads": 32, "kv_heads": 8, "max_length": 4096, "rope_theta": 500_000.0},
    "8b": {  # the shape of LLaDA-8B and Llama-3-8B
        "dim": 4096,
        "layers": 32,
        "heads": 32,
        "kv_heads": 8,
        "mlp_dim": 14336,
        "max_length": 8192,
        "rope_theta": 500_000.0,
        "tied": False,
    },
    "32b": {  # the shape of Qwen2.5-32B, without its biases
        "dim": 5120,
        "layers": 64,
        "heads": 40,
        "kv_heads": 8,
        "mlp_dim": 27_648,
        "max_length": 8192,
        "rope_theta": 1e6,
        "tied": False,
    },
    "70b": {  # the shape of Llama-3-70B
        "dim": 8192,
        "layers": 80,
        "heads": 64,
        "kv_heads": 8,
        "mlp_dim": 28_672,
        "max_length": 8192,
        "rope_theta": 500_000.0,
        "tied": False,
    },
    "100b": {
        "dim": 10_240,
        "layers": 80,
        "heads": 80,
        "kv_heads": 8,
        "mlp_dim": 32_768,
        "max_length": 8192,
        "rope_theta": 500_000.0,
        "tied": False,
    },
}


def names() -> tuple[str, ...]:
    """The names of all presets, smallest first."""
    return tuple(_SHAPES)


def preset(name: str, vocab_size: int, **changes: int | float | bool) -> Config:
    """The named shape with a vocabulary size, and single fields changed.

    Raises:
        UserError: no such preset, or a field that the network does not have.
    """
    if name not in _SHAPES:
        raise UserError(f"Unknown model preset '{name}'.", suggest(name, _SHAPES))
    known = Config.__dataclass_fields__
    for key in changes:
        if key not in known:
            raise UserError(f"[model] has no option '{key}'.", suggest(key, known))
    return Config(vocab_size=vocab_size, **{**_SHAPES[name], **changes})  # type: ignore[arg-type]


def shape(name: str, vocab_size: int, network: str = "transformer") -> Any:
    """The named shape for a network: the transformer's, or the shape of another network with as many parameters (within
    1 %).

    Raises:
        UserError: no such preset or network, or a network without presets (no ``Config.matching``).
    """
    base = preset(name, vocab_size)
    if network == "transformer":
        return base
    matched = config_class(network).matching(base)
    if matched is None:
        known = ["transformer", *(n for n in files("models") if config_class(n).matching(base) is not None)]
        raise UserError(f"A '{network}' network has no presets.", f"Choose one of {', '.join(known)}.")
    return matched
