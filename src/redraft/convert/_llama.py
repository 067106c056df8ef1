"""What the formats that follow Llama's names share."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from redraft.convert._keys import Keys
from redraft.errors import UserError
from redraft.models.parts.backbone import Backbone
from redraft.models.parts.mlp import Activation
from redraft.models.parts.positions import Stretch
from redraft.models.transformer import Config, Transformer
from redraft.types import Spec
from redraft.weights import Layout, Place

ACTIVATIONS: Mapping[str, Activation] = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
}
FULL, NEAR = "full_attention", "sliding_attention"
ROTARY = (".rotary_emb.inv_freq",)  # computed from the configuration, stored by older writers


def shape(keys: Keys, mlp_dim: int | None = None, head_dim: int | None = None, **more: Any) -> Config:
    """The keys that Llama, Qwen and their kin have in common; ``more`` are fields that only some have."""
    keys.must("hidden_act", "silu", "swish")
    keys.must("use_mrope", False)  # in most of Qwen2.5
    keys.must("rope_interleaved", False)  # in SmolLM, as the next two
    keys.silent("attention_dropout", "hidden_dropout", "pretraining_tp", "is_causal")
    keys.silent("is_llama_config", "transformers.js_config", "neftune_noise_alpha")
    theta, stretch = rope(keys)
    length = keys.get("max_position_embeddings", int)
    if stretch is not None and stretch.kind == "yarn":  # some files name the original context alone
        length = max(length, int(stretch.factor * stretch.original))
    near = more if "window" in more else windows(keys, used=True, first=0, width=0)
    if near["window"] >= length:
        more |= {"window": 0, "distant": ()}
    elif near["window"] and near is not more:
        raise keys.unsupported("sliding_window", "In this format every layer sees everything.")
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


def windows(keys: Keys, used: bool, first: int, width: int) -> dict[str, Any]:
    """Fields ``window`` and ``distant`` of a shape: how far layers see, and which see everything all the same.

    Args:
        used, first, width: what holds where the file is silent: are there windows, from which layer on, and how wide.
    Raises:
        UserError: layers that should have a window, of which the file doesn't say how wide it is.
    """
    layers, used = keys.get("num_hidden_layers", int), keys.get("use_sliding_window", bool, used)
    given = keys.get("sliding_window", int, 0 if "sliding_window" in keys else width)  # null: none
    window = given if used else 0
    first = keys.get("max_window_layers", int, first)
    seeing = distant(keys, [bool(window) and number >= first for number in range(layers)])
    if len(seeing) == layers:
        return {"window": 0, "distant": ()}
    if window < 1:
        key = "layer_types" if window == 0 else "sliding_window"
        raise keys.unsupported(key, "The file sets no window: sliding_window, and use_sliding_window in Qwen's.")
    return {"window": window, "distant": seeing}


def distant(keys: Keys, near: list[bool]) -> tuple[int, ...]:
    """Layers that see everything: those that ``layer_types`` says, else those that are not ``near``."""
    kinds = keys.get("layer_types", list, [NEAR if one else FULL for one in near])
    if len(kinds) != len(near) or set(kinds) - {FULL, NEAR}:
        raise keys.unsupported("layer_types", f"Known: {FULL}, {NEAR}, one for each layer.")
    return tuple(number for number, kind in enumerate(kinds) if kind == FULL)


def rope(keys: Keys, default: float = 10_000.0) -> tuple[float, Stretch | None]:
    """Rotary base and stretch: ``rope_theta`` and ``rope_scaling``, or ``rope_parameters``, which holds both.

    ``dynamic`` stretches nothing within ``max_position_embeddings``, and no longer text is taken here.
    """
    theta = keys.get("rope_theta", float, default)
    for key in ("rope_scaling", "rope_parameters"):
        if keys.maybe(key) is None:
            continue
        table = keys.table(key)
        theta = table.get("rope_theta", float, theta)
        table.must("partial_rotary_factor", 1, 1.0)
        kind = table.maybe("rope_type") or table.maybe("type") or "default"
        table.silent("type", "rope_type")
        stretch = None
        if kind == "linear":
            stretch = Stretch("linear", table.get("factor", float))
        elif kind == "llama3":
            stretch = Stretch(
                "llama3",
                table.get("factor", float),
                table.get("low_freq_factor", float),
                table.get("high_freq_factor", float),
                table.get("original_max_position_embeddings", int),
            )
        elif kind == "yarn":
            stretch = _yarn(table, keys.get("max_position_embeddings", int))
        elif kind == "dynamic":
            table.silent("factor", "original_max_position_embeddings")
        elif kind != "default":
            raise keys.unsupported(key, "Supported: default, linear, llama3, yarn, dynamic.")
        table.finish()
        return theta, stretch
    return theta, None


def _yarn(table: Keys, context: int) -> Stretch:
    """Rates and size as transformers derives them from the keys of a YaRN table."""
    original = table.get("original_max_position_embeddings", int, context)
    factor = table.get("factor", float, context / original)

    def grown(by: float) -> float:
        return 0.1 * by * math.log(factor) + 1 if factor > 1 else 1.0

    one, all_ = table.get("mscale", float, 0.0), table.get("mscale_all_dim", float, 0.0)
    size = grown(one) / grown(all_) if one and all_ else grown(1.0)
    return Stretch(
        "yarn",
        factor,
        low=table.get("beta_slow", float, 1.0) or 1.0,
        high=table.get("beta_fast", float, 32.0) or 32.0,
        original=original,
        size=table.get("attention_factor", float, size),
        whole=table.get("truncate", bool, True),
    )


def attention(places: dict[str, Place], block: str, theirs: Mapping[str, str], c: Config, bias: bool) -> None:
    """Queries, keys and values side by side. ``theirs``: names of q, k, v and o."""
    start = 0
    for key, heads in (("q", c.heads), ("k", c.key_heads), ("v", c.key_heads)):
        rows = heads * c.head_width
        for ending in ("weight", "bias") if bias else ("weight",):
            places[f"{theirs[key]}.{ending}"] = Place(f"{block}.attention.qkv.{ending}", start=start, rows=rows)
        start += rows
    places[f"{theirs['o']}.weight"] = Place(f"{block}.attention.out.weight")
    if c.out_bias:
        places[f"{theirs['o']}.bias"] = Place(f"{block}.attention.out.bias")


def swiglu(places: dict[str, Place], mlp: str, theirs: Mapping[str, str], hidden: int, bias: bool = False) -> None:
    """Gate and up side by side. ``theirs``: names of gate, up and down."""
    for ending in ("weight", "bias") if bias else ("weight",):
        for number, key in enumerate(("gate", "up")):
            places[f"{theirs[key]}.{ending}"] = Place(f"{mlp}.gate_up.{ending}", start=number * hidden, rows=hidden)
        places[f"{theirs['down']}.{ending}"] = Place(f"{mlp}.down.{ending}")


def experts(places: dict[str, Place], mlp: str, theirs: str, c: Config) -> None:
    """Router and experts under the names of OLMoE and DeepSeek."""
    assert c.experts is not None
    places[f"{theirs}.gate.weight"] = Place(f"{mlp}.router.weight")
    for number in range(c.experts.count):
        for half, key in enumerate(("gate_proj", "up_proj")):
            places[f"{theirs}.experts.{number}.{key}.weight"] = Place(
                f"{mlp}.experts_gate_up", at=number, start=half * c.experts.hidden, rows=c.experts.hidden
            )
        places[f"{theirs}.experts.{number}.down_proj.weight"] = Place(f"{mlp}.experts_down", at=number)


def names(prefix: str, *keys: str) -> dict[str, str]:
    """``names("a.mlp", "gate", "up")`` -> ``{"gate": "a.mlp.gate_proj", "up": "a.mlp.up_proj"}``."""
    return {key: f"{prefix}.{key}_proj" for key in keys}


def layout(c: Config) -> Layout:
    """Llama's names, with the biases, head norms and experts that a shape has."""
    places = {
        "model.embed_tokens.weight": Place("embedding.weight"),
        "model.norm.weight": Place("norm.weight"),
    }
    for number in range(c.layers):
        ours, theirs = f"blocks.{number}", f"model.layers.{number}"
        places[f"{theirs}.input_layernorm.weight"] = Place(f"{ours}.attention_norm.weight")
        places[f"{theirs}.post_attention_layernorm.weight"] = Place(f"{ours}.mlp_norm.weight")
        attention(places, ours, names(f"{theirs}.self_attn", "q", "k", "v", "o"), c, c.qkv_bias)
        if c.qk_norm:
            for key in ("q_norm", "k_norm"):
                places[f"{theirs}.self_attn.{key}.weight"] = Place(f"{ours}.attention.{key}.weight")
        if c.experts is not None and number not in c.experts.dense:
            experts(places, f"{ours}.mlp", f"{theirs}.mlp", c)
        else:
            swiglu(places, f"{ours}.mlp", names(f"{theirs}.mlp", "gate", "up", "down"), c.hidden, c.mlp_bias)
    if not c.tied:
        places["lm_head.weight"] = Place("head.weight")
    return Layout(places, {"lm_head.weight": "model.embed_tokens.weight"} if c.tied else {}, ROTARY)


def plain(network: Backbone, spec: Spec) -> Config:
    """The shape of a network that Llama's and Qwen's code computes.

    Raises:
        UserError: says what it can't.
    """
    c = network.config
    reason = ""
    if not isinstance(network, Transformer):
        reason = f"its network is a {type(network).__name__}"
    elif c.timed or c.experts or c.rotary_dim or c.head_bias:
        reason = "its network is told the time, or has experts or biases that Llama lacks"
    elif spec.attend.kind != "causal":
        reason = "it does not write from left to right"
    elif spec.isolate_prompt:
        reason = "its prompts see themselves whole (isolate_prompt)"
    if reason:
        raise UserError(f"this model can't be written so: {reason}.", "Take --to redraft.")
    assert isinstance(c, Config)
    return c


def describe(c: Config, *without: str) -> dict[str, Any]:
    """The keys that ``shape`` reads, but for those that a format does not know."""
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
        kinds = [FULL if number in c.distant else NEAR for number in range(c.layers)]
        described |= {"use_sliding_window": True, "sliding_window": c.window, "layer_types": kinds}
        described["max_window_layers"] = kinds.index(NEAR)
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
