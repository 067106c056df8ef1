"""GGUF files as the Hugging Face checkpoints that they were made from: configuration, tensor names, order of rows.

The formats in ``convert`` then read them like any other checkpoint, and adapters keep the names that ``peft`` knows.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from redraft.convert.shared.keys import Keys
from redraft.data.gguf_tokenizer import special_ids
from redraft.errors import UserError, suggest
from redraft.gguf_file import GgufFile, open_gguf
from redraft.weights import Files

_WHOLE = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
_BLOCK = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_TENSOR = re.compile(r"(?:blk\.(\d+)\.)?(\w+)\.(weight|bias)")
ROPE_FACTORS = "rope_freqs.weight"


@dataclass(frozen=True)
class Architecture:
    """A value of ``general.architecture`` that can be read.

    Fields:
        model_type: that of the Hugging Face configuration.
        paired_rows: in each head, the rows of queries and keys that are rotated together are neighbours. Hugging Face
            has them half a head apart.
        biases: the configuration says whether queries, keys and values have biases. mlp_biases: and the MLP.
        shift: of a masked-diffusion model, the shift of its predictions (``diffusion.shift_logits``); None: the model
            is autoregressive.
    """

    model_type: str
    paired_rows: bool = False
    biases: bool = True
    mlp_biases: bool = False
    shift: int | None = None


ARCHITECTURES: Mapping[str, Architecture] = {
    "llama": Architecture("llama", paired_rows=True, mlp_biases=True),  # Mistral is stored as llama, too
    "qwen2": Architecture("qwen2", biases=False),
    "qwen3": Architecture("qwen3"),
    "dream": Architecture("Dream", biases=False, shift=1),
    "llada": Architecture("illada", paired_rows=True, mlp_biases=True, shift=0),  # with Llama's names, as iLLaDA
}


def read(path: Path) -> tuple[dict[str, Any], GgufFiles]:
    """The ``config.json`` that a GGUF file stands for, and its tensors under their Hugging Face names.

    Raises:
        UserError: the file is damaged, or holds an architecture, a type or a setting that is not supported.
    """
    file = open_gguf(path)
    kind = file.metadata.get("general.type", "model")
    if kind != "model":
        raise UserError(f"{path} holds no language model but '{kind}'.", "Give the GGUF file of a model.")
    parts = file.metadata.get("split.count", 1)
    if parts not in (0, 1):
        what = f"{path} is one of the {parts} parts of a split model."
        raise UserError(what, "Join them: llama-gguf-split --merge FIRST_PART JOINED.")
    name = file.metadata.get("general.architecture")
    if not isinstance(name, str) or name not in ARCHITECTURES:
        what = f"{path}: the architecture {name!r} is not supported in GGUF files."
        raise UserError(what, suggest(str(name), ARCHITECTURES))
    found = ARCHITECTURES[name]
    values = {key: value for key, value in file.metadata.items() if key.startswith((f"{name}.", "diffusion."))}
    config = _config(file, found, name, Keys(values, path))
    order = (config["num_attention_heads"], config["num_key_value_heads"]) if found.paired_rows else None
    return config, GgufFiles(file, order)


def _config(file: GgufFile, found: Architecture, name: str, keys: Keys) -> dict[str, Any]:
    heads = _count(keys, f"{name}.attention.head_count")
    width = _count(keys, f"{name}.embedding_length")
    head = _count(keys, f"{name}.attention.key_length", width // heads)
    keys.require(f"{name}.attention.value_length", head)
    keys.require(f"{name}.rope.dimension_count", head)
    keys.require(f"{name}.attention.causal", found.shift is None)
    if found.shift is not None:
        keys.require("diffusion.shift_logits", bool(found.shift))
    for key in ("expert_count", "expert_used_count", "attention.sliding_window"):
        keys.require(f"{name}.{key}", 0)
    keys.ignore(f"{name}.tensor_data_layout")
    embedding = file.stored.get("token_embd.weight")
    if embedding is None:
        raise file.damaged("tensor 'token_embd.weight' is missing")
    keys.require(f"{name}.vocab_size", embedding.shape[0])
    layers = _count(keys, f"{name}.block_count")
    blocks = {int(one[1]) for one in map(_TENSOR.fullmatch, file.stored) if one is not None and one[1]}
    if blocks != set(range(len(blocks))) or layers != len(blocks):
        raise file.damaged(f"{name}.block_count = {layers}, but it holds tensors of {len(blocks)} blocks")
    config = {
        "model_type": found.model_type,
        "vocab_size": embedding.shape[0],
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": _count(keys, f"{name}.attention.head_count_kv", heads),
        "head_dim": head,
        "intermediate_size": _count(keys, f"{name}.feed_forward_length"),
        "max_position_embeddings": _count(keys, f"{name}.context_length"),
        "rms_norm_eps": _decimal(keys.get(f"{name}.attention.layer_norm_rms_epsilon", float)),
        "rope_theta": _decimal(keys.get(f"{name}.rope.freq_base", float, 10_000.0)),
        "rope_scaling": _scaling(file, name, keys, head),
        "tie_word_embeddings": "output.weight" not in file.stored,
        **({"attention_bias": "blk.0.attn_q.bias" in file.stored} if found.biases else {}),
        **({"mlp_bias": "blk.0.ffn_up.bias" in file.stored} if found.mlp_biases else {}),
        **({"is_causal": True} if found.model_type == "llama" else {}),  # a mask token does not make it a masked model
        **_special_tokens(file),
    }
    keys.finish()
    return config


def _count(keys: Keys, key: str, default: int | None = None) -> int:
    """A number that must be at least 1."""
    found = keys.get(key, int, default)
    if found < 1:
        raise keys.unsupported(key, "It must be at least 1.")
    return found


def _special_tokens(file: GgufFile) -> dict[str, Any]:
    """``*_token_id`` of the configuration; several of them can end a text."""
    found: dict[str, Any] = {f"{name}_token_id": number for name, number in special_ids(file).items()}
    ends = [file.metadata.get(f"tokenizer.ggml.{name}_token_id") for name in ("eos", "eot", "eom")]
    ends = list(dict.fromkeys(end for end in ends if end is not None))
    return {**found, **({"eos_token_id": ends} if ends else {})}


def _scaling(file: GgufFile, name: str, keys: Keys, head: int) -> dict[str, Any] | None:
    """``rope_scaling`` of the configuration."""
    key = f"{name}.rope.scaling"
    keys.ignore(f"{key}.finetuned")
    kind = keys.get(f"{key}.type", str, "none")
    if ROPE_FACTORS in file.stored:
        keys.require(f"{key}.type", "none")
        return _llama3(file, head, keys.get(f"{name}.rope.freq_base", float, 10_000.0))
    if kind == "none":
        return None
    if kind not in ("linear", "yarn"):
        raise keys.unsupported(f"{key}.type", "Supported: none, linear, yarn.")
    found = {"rope_type": kind, "factor": _decimal(keys.get(f"{key}.factor", float))}
    if kind == "yarn":
        keys.require(f"{key}.attn_factor", 1.0)
        original = keys.get(f"{key}.original_context_length", int)
        return {**found, "original_max_position_embeddings": original}
    keys.ignore(f"{key}.original_context_length")
    return found


def _llama3(file: GgufFile, head: int, theta: float) -> dict[str, Any]:
    """The scaling of Llama 3.1 and later: the file holds its result, the divisor of each frequency.

    They are recomputed from the published settings, and must agree.
    """
    stored = file.read(ROPE_FACTORS).float().flatten()
    found = {"factor": round(float(stored.max()), 4), "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    found["original_max_position_embeddings"] = 8192
    if stored.numel() == head // 2:
        divisor = llama3_divisors(head, theta, found["factor"])
        if torch.allclose(divisor, stored.double(), rtol=1e-3):
            return {"rope_type": "llama3", **found}
    what = f"{file.path}: '{ROPE_FACTORS}' holds a scaling of rotary positions other than that of Llama 3.1 to 3.3."
    raise UserError(what, "It is not supported.")


def llama3_divisors(head: int, theta: float, factor: float) -> Tensor:
    """[head / 2] by how much Llama 3.1 divides the frequency of each rotation, for a context of 8,192 before."""
    wave = 2 * torch.pi * theta ** (torch.arange(0, head, 2).double() / head)
    share = (8192 / wave - 1) / 3  # below 0: divided by the whole factor; above 1: unchanged
    divisor = 1 / ((1 - share) / factor + share)
    return torch.where(share < 0, factor, torch.where(share > 1, 1.0, divisor))


def _decimal(number: float) -> float:
    """The decimal number that was stored as float32: 1e-05 for 9.999999747378752e-06."""
    short = float(f"{number:.7g}")
    return short if struct.pack("<f", short) == struct.pack("<f", number) else number


class GgufFiles(Files):
    """The tensors of a GGUF file under their Hugging Face names, with rows in the order of Hugging Face.

    Raises:
        UserError: a tensor has an unsupported type, or lies beyond the end of the file.
    """

    def __init__(self, file: GgufFile, heads: tuple[int, int] | None) -> None:
        """
        Args:
            heads: numbers of query and of key heads if the rows of each head have to be put in order.
        """
        self.folder, self.shards, self.pickled = file.path.parent, [file.path], False
        self.file, self.heads, types = file, heads, file.types
        self.stored_names = {_name(name): name for name in types if name != ROPE_FACTORS}
        self.where = dict.fromkeys(self.stored_names, file.path)
        self.shapes = {name: file.stored[stored].shape for name, stored in self.stored_names.items()}
        self._size = sum(prod(file.stored[name].shape) * (2 if "F16" in types[name].name else 4) for name in types)

    @property
    def size(self) -> int:
        """Bytes of all tensors as they are read."""
        return self._size

    @property
    def dtype(self) -> torch.dtype:
        """float32 if all matrices are; else bfloat16, which is finer than the steps of quantised weights."""
        exact = all(self.file.types[name].name == "F32" for name, one in self.file.stored.items() if len(one.shape) > 1)
        return torch.float32 if exact else torch.bfloat16

    @contextmanager
    def _open(self, shard: Path) -> Iterator[Any]:
        with self.file.mapped():
            yield self

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor, which is not read."""
        return self.file.stored[self.stored_names[name]].shape

    def get_tensor(self, name: str) -> Tensor:
        """Read one tensor, in the shape [...] and order of Hugging Face."""
        tensor = self.file.read(self.stored_names[name])
        if self.heads is None:
            return tensor
        part = re.search(r"\.self_attn\.([qk])_proj\.(weight|bias)$", name)
        return tensor if part is None else halves(tensor, self.heads["qk".index(part[1])])


def halves(tensor: Tensor, heads: int) -> Tensor:
    """Rows [heads * 2r, ...] of queries or keys in which neighbours are rotated together, in the order of Hugging Face,
    where the partner of row i of a head is row i + r."""
    if tensor.shape[0] % (2 * heads):
        return tensor  # a wrong shape, which the reader of the weights reports
    return tensor.view(heads, -1, 2, *tensor.shape[1:]).transpose(1, 2).reshape(tensor.shape)


def neighbours(tensor: Tensor, heads: int) -> Tensor:
    """The inverse of ``halves``: rows [heads * 2r, ...] in the order of Hugging Face, so that those that are rotated
    together become neighbours."""
    return tensor.view(heads, 2, -1, *tensor.shape[1:]).transpose(1, 2).reshape(tensor.shape)


def stored_name(name: str) -> str:
    """The inverse of ``_name``: ``model.layers.3.self_attn.q_proj.weight`` -> ``blk.3.attn_q.weight``.

    Raises:
        KeyError: no tensor of a GGUF file has this name.
    """
    stem, _, ending = name.rpartition(".")
    whole, block = ({known: short for short, known in table.items()} for table in (_WHOLE, _BLOCK))
    if stem in whole:
        return f"{whole[stem]}.{ending}"
    number, _, rest = stem.removeprefix("model.layers.").partition(".")
    return f"blk.{number}.{block[rest]}.{ending}"


def _name(name: str) -> str:
    """``blk.3.attn_q.weight`` -> ``model.layers.3.self_attn.q_proj.weight``; an unknown name stays."""
    found = _TENSOR.fullmatch(name)
    if found is None:
        return name
    number, stem, ending = found.groups()
    known = _WHOLE.get(stem) if number is None else _BLOCK.get(stem)
    if known is None:
        return name
    return f"{known}.{ending}" if number is None else f"model.layers.{number}.{known}.{ending}"
