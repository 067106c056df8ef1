"""Writing GGUF files: the inverse of ``convert.shared.gguf``, for llama.cpp and what is built on it.

Autoregressive models become ``llama``, ``qwen2`` or ``qwen3``, masked models ``dream`` (predictions shifted by one
position) or ``llada`` (not shifted), the architectures of llama.cpp's diffusion example.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from redraft.convert.dream import Dream
from redraft.convert.illada import Illada
from redraft.convert.llama import Llama
from redraft.convert.qwen2 import Qwen2
from redraft.convert.qwen3 import Qwen3
from redraft.convert.shared import llama
from redraft.convert.shared.gguf import ARCHITECTURES, ROPE_FACTORS, llama3_divisors, neighbours, stored_name
from redraft.data.gguf_writing import tokenizer_metadata
from redraft.errors import UserError, suggest
from redraft.gguf_file import need_gguf
from redraft.models.parts.backbone import Backbone
from redraft.models.parts.positions import RopeScaling
from redraft.types import Spec
from redraft.weights import Layout

if TYPE_CHECKING:
    from redraft.data.tokenizer import Tokenizer

TYPES: Mapping[str, str] = {  # --storage -> type of the matrices
    "float32": "F32",
    "float16": "F16",
    "bfloat16": "BF16",
    "q8_0": "Q8_0",
    "q4_0": "Q4_0",
}
_BLOCK = 32  # numbers that a quantised type stores together; a matrix with other rows is stored as F16
_FINER = {"Q4_0": "Q8_0"}  # types of the embedding and of the output matrix, which suffer most
_ENDS = ("token_embd", "output")


@dataclass(frozen=True)
class _Plan:
    """What a file will hold."""

    architecture: str
    config: Mapping[str, Any]  # as Hugging Face names its keys
    layout: Layout
    stretch: RopeScaling | None


def write_gguf(
    network: Backbone, tokenizer: Tokenizer, spec: Spec, path: Path, storage: str, name: str, paired: bool
) -> list[str]:
    """Write a GGUF file. One tensor at a time is in memory beside the network.

    Args:
        storage: a key of ``TYPES``. name: of the model. paired: it answers prompts (``Model.paired``).
    Returns:
        Names of matrices that are stored in another type than asked for, each with this type.
    Raises:
        UserError: llama.cpp has no such network, or the file can't hold its tokenizer.
    """
    gguf = need_gguf()
    if storage not in TYPES:
        raise UserError(f"GGUF files have no storage '{storage}'.", suggest(storage, TYPES))
    plan = _plan(network, spec)
    writer = gguf.GGUFWriter(path, plan.architecture)
    _describe(writer, plan, spec, TYPES[storage], name)
    masked = spec.family.schedule is not None
    size = network.config.vocab_size
    for key, value in tokenizer_metadata(tokenizer, size, spec.tokens, paired, mask=masked).items():
        _add(writer, f"tokenizer.{key}", value)
    kinds, fallbacks = {}, []
    tensors = dict(_tensors(network, plan))
    for stored, tensor in tensors.items():
        kind = kinds[stored] = _kind(stored, tensor, TYPES[storage])
        if tensor.ndim == 2 and kind != TYPES[storage]:
            fallbacks.append(f"{stored} ({kind})")
        _add_info(writer, stored, tensor, gguf.GGMLQuantizationType[kind])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for stored, tensor in tensors.items():
        values = _values(stored, tensor, network, plan)
        writer.write_tensor_data(gguf.quantize(values, gguf.GGMLQuantizationType[kinds[stored]]))
    writer.close()
    return fallbacks


def _plan(network: Backbone, spec: Spec) -> _Plan:
    c: Any = network.config
    if c.window:
        raise llama.not_writable("llama.cpp has no sliding windows in these architectures")
    if spec.network.attention.kind == "causal":
        qkv_alone = c.qkv_bias and not c.out_bias
        kind: Any = Qwen3 if c.qk_norm else Qwen2 if qkv_alone else Llama
        if c.qk_norm and c.qkv_bias:
            raise llama.not_writable("llama.cpp's Qwen3 has no biases")
    else:
        kind = Dream if c.shift else Illada
    config, layout = kind.write(network, spec)
    architecture = next(name for name, one in ARCHITECTURES.items() if one.model_type == config["model_type"])
    if architecture == "llada" and (c.qkv_bias or c.mlp_bias):
        raise llama.not_writable("llama.cpp's LLaDA loads biases and does not add all of them")
    return _Plan(architecture, config, layout, _scaling(architecture, c.stretch))


def _scaling(architecture: str, stretch: RopeScaling | None) -> RopeScaling | None:
    """The scaling of rotary positions.

    Raises:
        UserError: a GGUF file can't describe it.
    """
    if stretch is None:
        return None
    reason = ""
    if stretch.kind == "llama3" and (
        architecture != "llama" or (stretch.low, stretch.high, stretch.original) != (1.0, 4.0, 8192)
    ):
        reason = "its scaling of rotary positions is not that of Llama 3.1 to 3.3"
    elif stretch.kind == "yarn":
        default = llama.yarn_size(stretch.factor)
        if (stretch.low, stretch.high, stretch.size, stretch.growth) != (1.0, 32.0, default, 0.0) or not stretch.whole:
            reason = "its YaRN scaling has settings of its own"
    if reason:
        raise llama.not_writable(reason)
    return stretch


def _describe(writer: Any, plan: _Plan, spec: Spec, kind: str, name: str) -> None:
    """The metadata of the network. llama.cpp needs all of them."""
    gguf, config = need_gguf(), plan.config
    head = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    writer.add_type(gguf.GGUFType.MODEL)
    writer.add_name(name)
    types = {"F32": "ALL_F32", "F16": "MOSTLY_F16", "BF16": "MOSTLY_BF16", "Q8_0": "MOSTLY_Q8_0", "Q4_0": "MOSTLY_Q4_0"}
    writer.add_file_type(gguf.LlamaFileType[types[kind]])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_vocab_size(config["vocab_size"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(head)
    writer.add_value_length(head)
    writer.add_rope_dimension_count(head)
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(config["rope_theta"])
    if plan.stretch is not None and plan.stretch.kind in ("linear", "yarn"):
        writer.add_rope_scaling_type(gguf.RopeScalingType(plan.stretch.kind))
        writer.add_rope_scaling_factor(plan.stretch.factor)
        if plan.stretch.kind == "yarn":
            writer.add_rope_scaling_orig_ctx_len(plan.stretch.original)
    if spec.family.schedule is not None:
        writer.add_causal_attention(False)
        writer.add_diffusion_shift_logits(bool(spec.network.shift))


def _add(writer: Any, key: str, value: Any) -> None:
    """Add a value in the type that llama.cpp expects: ids are unsigned."""
    kinds = need_gguf().GGUFValueType
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, list) and value and isinstance(value[0], int):
        writer.add_key_value(key, value, kinds.ARRAY, sub_type=kinds.INT32)
    elif isinstance(value, list):
        writer.add_key_value(key, value, kinds.ARRAY, sub_type=kinds.STRING)
    else:
        writer.add_string(key, value)


def _tensors(network: Backbone, plan: _Plan) -> Iterator[tuple[str, Tensor]]:
    """The network's tensors by their names in the file, as views of its memory."""
    own = dict(network.named_parameters())
    for name, place in plan.layout.places.items():
        yield stored_name(name), place.view(own[place.name]).detach()
    if plan.stretch is not None and plan.stretch.kind == "llama3":
        head = plan.config["head_dim"]
        yield ROPE_FACTORS, llama3_divisors(head, plan.config["rope_theta"], plan.stretch.factor).float()


def _kind(stored: str, tensor: Tensor, wanted: str) -> str:
    """The type of a tensor in the file: vectors are F32."""
    if tensor.ndim < 2:
        return "F32"
    if stored.partition(".")[0] in _ENDS:
        wanted = _FINER.get(wanted, wanted)
    return "F16" if wanted.startswith("Q") and tensor.shape[-1] % _BLOCK else wanted


def _add_info(writer: Any, stored: str, tensor: Tensor, kind: Any) -> None:
    gguf = need_gguf()
    shape, size = tuple(tensor.shape), int(gguf.GGML_QUANT_SIZES[kind][1])
    count = tensor.numel() // int(gguf.GGML_QUANT_SIZES[kind][0])
    if kind.name in ("F32", "F16"):
        writer.add_tensor_info(stored, shape, np.dtype(np.float32), count * size, raw_dtype=kind)
        return
    bytes_of = gguf.quants.quant_shape_to_byte_shape(shape, kind)
    writer.add_tensor_info(stored, bytes_of, np.dtype(np.uint8), count * size, raw_dtype=kind)


def _values(stored: str, tensor: Tensor, network: Backbone, plan: _Plan) -> np.ndarray:
    """The numbers of a tensor [...], in the order of rows that its architecture rotates."""
    values = tensor.float().cpu().contiguous()
    part = stored.split(".")[-2].removeprefix("attn_")
    if ARCHITECTURES[plan.architecture].paired_rows and part in ("q", "k"):
        heads = plan.config["num_attention_heads" if part == "q" else "num_key_value_heads"]
        values = neighbours(values, heads)
    return values.numpy()
