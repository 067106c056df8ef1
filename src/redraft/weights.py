"""Weights on disk: safetensors only, in float32, bfloat16 or int8 with a scale per row."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from redraft.errors import UserError

STORAGES = ("float32", "bfloat16", "int8")
_SCALE = ".int8_scale"


def pack(state: Mapping[str, Tensor], storage: str) -> dict[str, Tensor]:
    """Tensors as they are stored. int8 keeps matrices as round(w / s) with s = max|row| / 127, vectors in float32.

    Raises:
        UserError: unknown storage.
    """
    if storage not in STORAGES:
        raise UserError(f"unknown storage '{storage}'.", f"Known: {', '.join(STORAGES)}.")
    packed: dict[str, Tensor] = {}
    for name, tensor in state.items():
        tensor = tensor.detach().cpu()
        if storage == "int8" and tensor.ndim == 2:
            scale = tensor.float().abs().amax(1, keepdim=True).clamp(min=1e-12) / 127
            packed[name] = (tensor.float() / scale).round().to(torch.int8)
            packed[name + _SCALE] = scale
        else:
            packed[name] = tensor.to(torch.bfloat16 if storage == "bfloat16" else torch.float32).contiguous()
    return packed


def read(path: Path, dtype: torch.dtype) -> dict[str, Tensor]:
    """Read and unpack a safetensors file.

    Raises:
        UserError: missing, truncated or corrupt file.
    """
    from safetensors import SafetensorError, safe_open

    state: dict[str, Tensor] = {}
    try:
        with safe_open(str(path), framework="pt") as file:
            for name in file.keys():  # noqa: SIM118  (safe_open is no mapping)
                if not name.endswith(_SCALE):
                    tensor = file.get_tensor(name)
                    if tensor.dtype == torch.int8:
                        tensor = tensor.float() * file.get_tensor(name + _SCALE)
                    state[name] = tensor.to(dtype)
    except FileNotFoundError:
        raise UserError(f"checkpoint file '{path}' does not exist.") from None
    except (SafetensorError, OSError) as error:
        raise UserError(f"checkpoint file '{path}' is corrupt or truncated: {error}.", "Copy it again.") from None
    return state


def load_into(network: torch.nn.Module, state: Mapping[str, Tensor], path: Path) -> None:
    """Load a state and insist that every tensor matches.

    Raises:
        UserError: names the first missing, unexpected or misshapen tensor.
    """
    expected = network.state_dict()
    remedy = "config.json and the weights do not belong together."
    for name, tensor in expected.items():
        if name not in state:
            raise UserError(f"{path}: tensor '{name}' is missing.", remedy)
        if state[name].shape != tensor.shape:
            found, wanted = list(state[name].shape), list(tensor.shape)
            raise UserError(f"{path}: tensor '{name}' has shape {found}, the configuration needs {wanted}.", remedy)
    for name in state:
        if name not in expected:
            raise UserError(f"{path}: unexpected tensor '{name}'.", remedy)
    network.load_state_dict(dict(state))
