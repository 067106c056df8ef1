"""Configuration keys and tensor names of Llama, shared by the formats that follow it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from redraft.convert.shared.keys import Keys
from redraft.errors import UserError
from redraft.models.parts.backbone import Backbone
from redraft.models.parts.mlp import Activation
from redraft.models.parts.positions import RopeScaling
from redraft.models.transformer import Config, Transformer
from redraft.types import Spec
from redraft.weights import Layout, TensorMap

ACTIVATIONS: Mapping[str, Activation] = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
}
FULL, SLIDING = "full_attention", "sliding_attention"
ROTARY = (".rotary_emb.inv_freq",)  # computed from the configuration; older files store it


def is_masked(config: Mapping[str, Any]) -> bool:
    """Does a ``config.json`` of model type ``llama`` describe a masked model?

    It does if it says so: ``is_causal`` is false; or, where that is not given, ``architectures`` names
    ``DiscreteDiffusionModel`` or there is a ``mask_token_id``. A mask token in the tokenizer's files alone does not
    count: many tokenizers of autoregressive models have one.
    """
    causal = config.get("is_causal")
    if causal is not None:
        return not causal
    return "DiscreteDiffusionModel" in (config.get("architectures") or []) or config.get("mask_token_id") is not None


def read_config(
    keys: Keys, mlp_dim: int | None = None, head_dim: int | None = None, growth: bool = False, **more: Any
) -> Config:
    """The network configuration from the keys that Llama, Qwen and similar formats have in common.

    Args:
        mlp_dim, head_dim: None: read from ``intermediate_size`` and ``head_dim``.
        growth: may queries grow with their positions (``llama_4_scaling_beta``)?
        more: fields that only some formats have.
    Raises:
        UserError: a key is missing, or has a value that is not supported.
    """
    keys.require("hidden_act", "silu", "swish")
    keys.require("use_mrope", False)  # in most files of Qwen2.5
    keys.require("rope_interleaved", False)  # in files of SmolLM, like the next line
    keys.ignore("attention_dropout", "hidden_dropout", "pretraining_tp", "is_causal")
    keys.ignore("is_llama_config", "transformers.js_config", "neftune_noise_alpha")
    theta, stretch = rope(keys, growth=growth)
    length = keys.get("max_position_embeddings", int)
    if stretch is not None and stretch.kind == "yarn":  # some files name only the original context
        length = max(length, int(stretch.factor * stretch.original))
    sliding = more if "window" in more else window_fields(keys, used=True, first=0, width=0)
    if sliding["window"] >= length:
        more |= {"window": 0, "distant": ()}
    elif sliding["window"] and sliding is not more:
        raise keys.unsupported("sliding_window", "This format has no sliding windows.")
    heads = keys.get("num_attention_heads", int)
    return Config(
        vocab_size=keys.get("vocab_size", int),
        dim=keys.get("hidden_size", int),
        layers=keys.get("num_hidden_layers", int),
        heads=heads,
        kv_heads=keys.get("num_key_value_heads", int, heads),
        max_length=length,
        rope_theta=theta,
        stretch=stretch,
        norm_eps=keys.get("rms_norm_eps", float),
        tied=keys.get("tie_word_embeddings", bool, False),
        restart=False,
        mlp_dim=keys.get("intermediate_size", int) if mlp_dim is None else mlp_dim,
        head_dim=keys.get("head_dim", int, 0) if head_dim is None else head_dim,
        **more,
    )


def window_fields(keys: Keys, used: bool, first: int, width: int) -> dict[str, Any]:
    """Fields ``window`` (size of the sliding window) and ``distant`` (layers with full attention) of a configuration.

    Args:
        used, first, width: defaults of the format: are there windows, from which layer on, and of which size.
    Raises:
        UserError: some layers have a window, but the file does not set its size.
    """
    layers, used = keys.get("num_hidden_layers", int), keys.get("use_sliding_window", bool, used)
    given = keys.get("sliding_window", int, 0 if "sliding_window" in keys else width)  # null: none
    window = given if used else 0
    first = keys.get("max_window_layers", int, first)
    full = full_layers(keys, [bool(window) and number >= first for number in range(layers)])
    if len(full) == layers:
        return {"window": 0, "distant": ()}
    if window < 1:
        key = "layer_types" if window == 0 else "sliding_window"
        raise keys.unsupported(key, "Set its size: sliding_window, and use_sliding_window in files of Qwen.")
    return {"window": window, "distant": full}


def full_layers(keys: Keys, sliding: list[bool]) -> tuple[int, ...]:
    """Layers with full attention: those of ``layer_types`` if the key exists, otherwise those not in ``sliding``.

    Raises:
        UserError: ``layer_types`` has an unknown entry, or not one for each layer.
    """
    kinds = keys.get("layer_types", list, [SLIDING if one else FULL for one in sliding])
    if len(kinds) != len(sliding) or set(kinds) - {FULL, SLIDING}:
        raise keys.unsupported("layer_types", f"Supported: {FULL} or {SLIDING}, one for each layer.")
    return tuple(number for number, kind in enumerate(kinds) if kind == FULL)


def rope(keys: Keys, default: float = 10_000.0, growth: bool = False) -> tuple[float, RopeScaling | None]:
    """Base and scaling of rotary positions: ``rope_theta`` and ``rope_scaling``, or ``rope_parameters`` with both.

    ``dynamic`` changes nothing within ``max_position_embeddings``, and longer sequences are not supported.

    Raises:
        UserError: an unknown kind of scaling.
    """
    theta = keys.get("rope_theta", float, default)
    for key in ("rope_scaling", "rope_parameters"):
        if keys.optional(key) is None:
            continue
        table = keys.table(key)
        theta = table.get("rope_theta", float, theta)
        table.require("partial_rotary_factor", 1, 1.0)
        kind = table.optional("rope_type") or table.optional("type") or "default"
        table.ignore("type", "rope_type")
        stretch = None
        if kind == "linear":
            stretch = RopeScaling("linear", table.get("factor", float))
        elif kind == "llama3":
            stretch = RopeScaling(
                "llama3",
                table.get("factor", float),
                table.get("low_freq_factor", float),
                table.get("high_freq_factor", float),
                table.get("original_max_position_embeddings", int),
            )
        elif kind == "yarn":
            stretch = _yarn(table, keys.get("max_position_embeddings", int), growth)
        elif kind == "dynamic":
            table.ignore("factor", "original_max_position_embeddings")
        elif kind != "default":
            raise keys.unsupported(key, "Supported: default, linear, llama3, yarn, dynamic.")
        table.finish()
        return theta, stretch
    return theta, None


def _yarn(table: Keys, context: int, growth: bool) -> RopeScaling:
    """Scaling from the keys of a YaRN table, computed as in transformers."""
    original = table.get("original_max_position_embeddings", int, context)
    factor = table.get("factor", float, context / original)

    one, all_ = table.get("mscale", float, 0.0), table.get("mscale_all_dim", float, 0.0)
    size = yarn_size(factor, one) / yarn_size(factor, all_) if one and all_ else yarn_size(factor)
    return RopeScaling(
        "yarn",
        factor,
        low=table.get("beta_slow", float, 1.0) or 1.0,
        high=table.get("beta_fast", float, 32.0) or 32.0,
        original=original,
        size=table.get("attention_factor", float, size),
        whole=table.get("truncate", bool, True),
        growth=table.get("llama_4_scaling_beta", float, 0.0) if growth else 0.0,
    )


def yarn_size(factor: float, scale: float = 1.0) -> float:
    """By how much YaRN scales rotated vectors, if its configuration does not say otherwise."""
    return 0.1 * scale * math.log(factor) + 1 if factor > 1 else 1.0


def map_attention(places: dict[str, TensorMap], block: str, stored: Mapping[str, str], c: Config, bias: bool) -> None:
    """Add the projections of attention to ``places``: q, k and v become parts of one tensor.

    Args:
        stored: stored names of q, k, v and o.
    """
    start = 0
    for key, heads in (("q", c.heads), ("k", c.key_heads), ("v", c.key_heads)):
        rows = heads * c.head_width
        for ending in ("weight", "bias") if bias else ("weight",):
            places[f"{stored[key]}.{ending}"] = TensorMap(f"{block}.attention.qkv.{ending}", start=start, rows=rows)
        start += rows
    places[f"{stored['o']}.weight"] = TensorMap(f"{block}.attention.out.weight")
    if c.out_bias:
        places[f"{stored['o']}.bias"] = TensorMap(f"{block}.attention.out.bias")


def map_swiglu(
    places: dict[str, TensorMap], mlp: str, stored: Mapping[str, str], hidden: int, bias: bool = False
) -> None:
    """Add the projections of a SwiGLU to ``places``: gate and up become parts of one tensor.

    Args:
        stored: stored names of gate, up and down.
    """
    for ending in ("weight", "bias") if bias else ("weight",):
        for number, key in enumerate(("gate", "up")):
            places[f"{stored[key]}.{ending}"] = TensorMap(f"{mlp}.gate_up.{ending}", start=number * hidden, rows=hidden)
        places[f"{stored['down']}.{ending}"] = TensorMap(f"{mlp}.down.{ending}")


def map_experts(places: dict[str, TensorMap], mlp: str, stored: str, c: Config) -> None:
    """Add router and experts to ``places``, with the names of OLMoE and DeepSeek."""
    assert c.experts is not None
    places[f"{stored}.gate.weight"] = TensorMap(f"{mlp}.router.weight")
    for number in range(c.experts.count):
        for half, key in enumerate(("gate_proj", "up_proj")):
            places[f"{stored}.experts.{number}.{key}.weight"] = TensorMap(
                f"{mlp}.experts_gate_up", at=number, start=half * c.experts.hidden, rows=c.experts.hidden
            )
        places[f"{stored}.experts.{number}.down_proj.weight"] = TensorMap(f"{mlp}.experts_down", at=number)


def projections(prefix: str, *keys: str) -> dict[str, str]:
    """``projections("a.mlp", "gate", "up")`` -> ``{"gate": "a.mlp.gate_proj", "up": "a.mlp.up_proj"}``."""
    return {key: f"{prefix}.{key}_proj" for key in keys}


def layout(c: Config) -> Layout:
    """The layout with Llama's names, including the biases, head norms and experts of a configuration."""
    places = {
        "model.embed_tokens.weight": TensorMap("embedding.weight"),
        "model.norm.weight": TensorMap("norm.weight"),
    }
    for number in range(c.layers):
        own, stored = f"blocks.{number}", f"model.layers.{number}"
        places[f"{stored}.input_layernorm.weight"] = TensorMap(f"{own}.attention_norm.weight")
        places[f"{stored}.post_attention_layernorm.weight"] = TensorMap(f"{own}.mlp_norm.weight")
        map_attention(places, own, projections(f"{stored}.self_attn", "q", "k", "v", "o"), c, c.qkv_bias)
        if c.qk_norm:
            for key in ("q_norm", "k_norm"):
                places[f"{stored}.self_attn.{key}.weight"] = TensorMap(f"{own}.attention.{key}.weight")
        if c.experts is not None and number not in c.experts.dense:
            map_experts(places, f"{own}.mlp", f"{stored}.mlp", c)
        else:
            mlp = projections(f"{stored}.mlp", "gate", "up", "down")
            map_swiglu(places, f"{own}.mlp", mlp, c.hidden, c.mlp_bias)
    if not c.tied:
        places["lm_head.weight"] = TensorMap("head.weight")
    return Layout(places, {"lm_head.weight": "model.embed_tokens.weight"} if c.tied else {}, ROTARY)


def exportable_config(network: Backbone, spec: Spec, experts: bool = False) -> Config:
    """The configuration of a network that the code of Llama and Qwen can compute.

    Args:
        experts: may it have a mixture of experts?
    Raises:
        UserError: it can't; the message says why.
    """
    c = network.config
    reason = ""
    if not isinstance(network, Transformer):
        reason = f"its network is a {type(network).__name__}"
    elif c.timed or (c.experts and not experts) or c.rotary_dim or c.head_bias:
        reason = "its network is conditioned on time, or has experts or biases that Llama lacks"
    elif spec.network.attention.kind != "causal":
        reason = "it is not autoregressive"
    elif spec.network.prompt_encoder:
        reason = "its prompts use full attention (a prompt encoder)"
    if reason:
        raise not_writable(reason)
    assert isinstance(c, Config)
    return c


def not_writable(reason: str) -> UserError:
    """The error for a model that a format can't hold."""
    return UserError(f"This model can't be written in this format: {reason}.", "Use --to redraft.")


def diffusion_config(network: Backbone, spec: Spec, kind: str, shift: int = 0) -> Config:
    """The configuration of a masked-diffusion transformer, to be written in the format of one.

    Args:
        kind: the format's attention, ``full`` or ``block``. shift: of the format's predictions.
    Raises:
        UserError: it is no such model; the message says why.
    """
    c = network.config
    reason = ""
    if not isinstance(network, Transformer):
        reason = f"its network is a {type(network).__name__}"
    elif not spec.masks or spec.scores or c.timed or c.edits:
        reason = "it is not a masked model without time conditioning, as those of public checkpoints are"
    elif spec.network.attention.kind != kind:
        reason = f"its attention is {spec.network.attention.kind}, not {kind}"
    elif c.shift != shift:
        reason = f"it predicts tokens with a shift of {c.shift}, not {shift}"
    elif spec.network.prompt_encoder or spec.network.length_head:
        reason = "its prompts don't attend to the answer, or it has a length head"
    if reason:
        raise not_writable(reason)
    assert isinstance(c, Config)
    return c


def check_qwen2(c: Config) -> None:
    """Check that Qwen2 can hold a network: biases of queries, keys and values, and nothing else that Llama lacks.

    Raises:
        UserError: it can't.
    """
    other = c.qk_norm or c.mlp_bias or c.out_bias or c.head_bias or c.experts or c.rotary_dim
    if other or not c.qkv_bias or c.head_dim not in (0, c.dim // c.heads):
        raise not_writable("Qwen2 has biases of queries, keys and values, and no others")


def to_keys(c: Config, *without: str) -> dict[str, Any]:
    """The keys that ``read_config`` reads, ``without`` those that a format does not have."""
    described = {
        "hidden_act": "silu",
        "vocab_size": c.vocab_size,
        "hidden_size": c.dim,
        "num_hidden_layers": c.layers,
        "num_attention_heads": c.heads,
        "num_key_value_heads": c.key_heads,
        "head_dim": c.head_width,
        "intermediate_size": c.hidden,
        "max_position_embeddings": c.max_length,
        "rms_norm_eps": c.norm_eps,
        "rope_theta": c.rope_theta,
        "tie_word_embeddings": c.tied,
        "attention_bias": c.qkv_bias,
        "rope_scaling": None,
        "is_causal": True,
    }
    if c.window:
        kinds = [FULL if number in c.distant else SLIDING for number in range(c.layers)]
        described |= {"use_sliding_window": True, "sliding_window": c.window, "layer_types": kinds}
        described["max_window_layers"] = kinds.index(SLIDING)
    if c.stretch is not None:
        s = c.stretch
        scaling: dict[str, Any] = {"rope_type": s.kind, "factor": s.factor}
        if s.kind == "llama3":
            scaling |= {"low_freq_factor": s.low, "high_freq_factor": s.high}
            scaling["original_max_position_embeddings"] = s.original
        if s.kind == "yarn":
            scaling |= {"beta_slow": s.low, "beta_fast": s.high, "attention_factor": s.size, "truncate": s.whole}
            scaling["original_max_position_embeddings"] = s.original
        described["rope_scaling"] = scaling
    return {key: value for key, value in described.items() if key not in without}
