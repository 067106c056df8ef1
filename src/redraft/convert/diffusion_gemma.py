"""DiffusionGemma: blocks of uniform noise, denoised after text that is read causally. Text only. Read and written.

Source: google/diffusiongemma-26B-A4B-it on the Hugging Face hub, transformers' ``DiffusionGemmaForBlockDiffusion``.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from redraft import config
from redraft.convert.shared import llama
from redraft.convert.shared.format import Format, Translation
from redraft.convert.shared.keys import Keys
from redraft.data.vocabulary import Ids
from redraft.errors import UserError
from redraft.files import read_json
from redraft.models.diffusion_gemma import Config
from redraft.models.diffusion_gemma import DiffusionGemma as Network
from redraft.models.parts.backbone import Backbone
from redraft.models.parts.moe import Experts
from redraft.types import Spec
from redraft.weights import Layout, TensorMap

# What the published configuration class assumes for keys that "text_config" lacks.
_TEXT = {"vocab_size": 262_144, "hidden_size": 2304, "intermediate_size": 9216, "num_hidden_layers": 30}
_TEXT |= {"num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256, "global_head_dim": 512}
_TEXT |= {"max_position_embeddings": 131_072, "sliding_window": 512}
_SETTINGS = {"max_denoising_steps": 48, "t_min": 0.4, "t_max": 0.8, "stability_threshold": 1}
_SETTINGS |= {"confidence_threshold": 0.005, "entropy_bound": 0.1}
_OPTIONS = {"t_min": "t_min", "t_max": "t_max", "stability_threshold": "stable", "confidence_threshold": "sure"}
_VISION = ("model.encoder.vision_tower.", "model.encoder.embed_vision.")
_NORMS = {
    "input_layernorm": "attention_norm",
    "post_attention_layernorm": "attended_norm",
    "pre_feedforward_layernorm": "mlp_norm",
    "post_feedforward_layernorm_1": "mlp_out_norm",
    "pre_feedforward_layernorm_2": "experts_norm",
    "post_feedforward_layernorm_2": "experts_out_norm",
    "post_feedforward_layernorm": "sum_norm",
    "self_attn.q_norm": "attention.q_norm",
    "self_attn.k_norm": "attention.k_norm",
}


class DiffusionGemma(Format):
    """Checkpoints ``google/diffusiongemma-*`` for text: the vision tower is skipped, and not written.

    The family is hybrid with uniform noise: the causal reading predicts the next token, as training has it learn, and
    ``renoising`` writes blocks. Not supported: ``use_bidirectional_attention`` all, prompts that see all of themselves.
    """

    summary = "DiffusionGemma (text)"
    citation = "huggingface.co/google/diffusiongemma-26B-A4B-it"
    writable = True
    self_conditioned = True
    unstated = {"canvas_length": 256}

    @staticmethod
    def fits(config: Mapping[str, Any], ids: Ids) -> bool:
        return config.get("model_type") == "diffusion_gemma"

    @staticmethod
    def read(keys: Keys, names: Collection[str], ids: Ids) -> Translation:
        keys.ignore("vision_config", "boi_token_id", "eoi_token_id", "image_token_id")
        keys.ignore("chunk_size_feed_forward", "is_encoder_decoder")
        keys.require("tie_word_embeddings", True)
        text = Keys(keys.get("text_config", dict), f"{keys.file} text_config", _TEXT)
        c = _read_text(text)
        text.finish()
        block = keys.get("canvas_length", int)
        family = {"name": "hybrid", "prompt_encoder": False, "block": block, "process": "uniform"}
        family |= {"diffusion": 1.0, "rate_min": 0.0, "self_condition": 0.5}
        vision = tuple(name for name in names if name.startswith(_VISION))
        network = {"name": "diffusion_gemma", **config.to_mapping(c)}
        return Translation(network, family, _layout(c, vision), defaults=_defaults(keys, block))

    @staticmethod
    def write(network: Backbone, spec: Spec) -> tuple[dict[str, Any], Layout]:
        drafter = spec.family.drafter
        if not isinstance(network, Network) or drafter is None or drafter.masks or spec.network.prompt_encoder:
            raise llama.not_writable("it is no DiffusionGemma that reads text causally and denoises blocks")
        c: Config = network.config
        own: dict[str, Any] = {"model_type": "diffusion_gemma", "architectures": ["DiffusionGemmaForBlockDiffusion"]}
        own |= {"canvas_length": drafter.network.attention.block, "tie_word_embeddings": True}
        return {**own, "text_config": _to_text(c, spec), "vision_config": _NO_VISION}, _layout(c)

    @staticmethod
    def settings(defaults: Mapping[str, Any]) -> dict[str, Any]:
        """Those of ``renoising``, in the terms of transformers."""
        if defaults.get("sampler") != "renoising":
            return {}
        options = defaults.get("options", {})
        found = {name: options[own] for name, own in _OPTIONS.items() if own in options}
        if "bound" in options:
            found["sampler_config"] = {"_cls_name": "EntropyBoundSamplerConfig", "entropy_bound": options["bound"]}
        own = {"max_denoising_steps": defaults.get("steps"), "max_new_tokens": defaults.get("max_new_tokens")}
        return found | {name: value for name, value in own.items() if value is not None}


def _read_text(text: Keys) -> Config:
    text.require("use_bidirectional_attention", "vision")
    text.require("attention_bias", False)  # both readings would have biases of their own
    text.require("tie_word_embeddings", True)
    text.ignore("attention_dropout", "chunk_size_feed_forward", "is_encoder_decoder")
    layers = text.get("num_hidden_layers", int)
    sliding = [bool((number + 1) % 6) for number in range(layers)]
    distant = tuple(sorted({*llama.full_layers(text, sliding), layers - 1}))  # the last one sees all in any case
    heads, width = _distant_heads(text, distant)
    near, far, turning = _rope(text)
    activation = text.translate("hidden_activation", llama.ACTIVATIONS, "gelu_pytorch_tanh")
    eps = text.get("rms_norm_eps", float, 1e-6)
    return Config(
        vocab_size=text.get("vocab_size", int),
        dim=text.get("hidden_size", int),
        layers=layers,
        heads=text.get("num_attention_heads", int),
        kv_heads=text.get("num_key_value_heads", int),
        head_dim=text.get("head_dim", int),
        distant_kv_heads=heads,
        distant_head_dim=width,
        mlp_dim=text.get("intermediate_size", int),
        experts=Experts(
            count=text.get("num_experts", int),
            active=text.get("top_k_experts", int),
            hidden=text.get("moe_intermediate_size", int),
            normalise=True,
            activation=activation,
            scaled=True,
            norm_eps=eps,
        ),
        max_length=text.get("max_position_embeddings", int),
        window=text.get("sliding_window", int),
        distant=distant,
        near_theta=near,
        distant_theta=far,
        distant_turning=turning,
        norm_eps=eps,
        cap=text.get("final_logit_softcapping", float, 30.0),
        activation=activation,
    )


def _distant_heads(text: Keys, distant: tuple[int, ...]) -> tuple[int, int]:
    """Heads of keys, and their width, in the layers that see all text: from a table of these layers, or two keys.

    Raises:
        UserError: the layers differ in other ways.
    """
    heads, width = text.get("num_key_value_heads", int), text.get("global_head_dim", int)
    heads = text.get("num_global_key_value_heads", int, heads)
    table = text.optional("per_layer_config")
    if table is None:
        return heads, width
    known = {"head_dim", "num_key_value_heads"}
    rows = list(table.values()) if isinstance(table, dict) else []
    same = bool(rows) and all(isinstance(row, dict) and row == rows[0] and row.keys() <= known for row in rows)
    if not same or {*table} != {str(layer) for layer in distant}:
        raise text.unsupported("per_layer_config", "Supported: one width and number of heads in all full layers.")
    row = Keys(rows[0], f"{text.file} per_layer_config")
    own = text.get("num_key_value_heads", int), text.get("head_dim", int)
    return row.get("num_key_value_heads", int, own[0]), row.get("head_dim", int, own[1])


def _rope(text: Keys) -> tuple[float, float, float]:
    """The base of the layers with a window, that of the others, and the share of their pairs that turn."""
    if text.optional("rope_parameters") is None:
        return 10_000.0, 1_000_000.0, 0.25
    table = text.table("rope_parameters")
    near, far = table.table(llama.SLIDING), table.table(llama.FULL)
    near.require("rope_type", "default")
    near.require("partial_rotary_factor", 1, 1.0)
    kind = far.translate("rope_type", {"proportional": True, "default": False}, "default")
    share = far.get("partial_rotary_factor", float, 1.0)
    if not kind and share != 1:
        raise far.unsupported("partial_rotary_factor", "It needs the rope_type proportional.")
    far.require("factor", 1, 1.0)
    found = near.get("rope_theta", float), far.get("rope_theta", float), share
    for part in (near, far, table):
        part.finish()
    return found


def _defaults(keys: Keys, block: int) -> dict[str, Any]:
    """Generation settings: those of ``generation_config.json``, or where it lacks them, of the published class."""
    file = keys.file.parent / "generation_config.json" if not isinstance(keys.file, str) else None
    stated = read_json(file) if file is not None and file.is_file() else {}
    stated = {**stated, **(stated.get("sampler_config") or {})}
    if stated.get("_cls_name", "EntropyBoundSamplerConfig") != "EntropyBoundSamplerConfig":
        raise UserError(f"{file}: sampler_config {stated['_cls_name']!r} is not supported.", "Use entropy bounds.")
    own = {key: value if stated.get(key) is None else stated[key] for key, value in _SETTINGS.items()}
    options = {"block": block, "bound": own["entropy_bound"]} | {name: own[key] for key, name in _OPTIONS.items()}
    most = max(1, stated.get("max_new_tokens") or block)
    found: dict[str, Any] = {"sampler": "renoising", "steps": own["max_denoising_steps"], "options": options}
    return {**found, "max_new_tokens": -(-most // block) * block, "temperature": 1.0, "cache": "exact"}


# Transformers builds a vision tower in any case. This is the smallest one; text does not touch it.
_NO_VISION: dict[str, Any] = {"model_type": "gemma4_vision", "hidden_size": 16, "intermediate_size": 16}
_NO_VISION |= {"num_hidden_layers": 1, "num_attention_heads": 1, "num_key_value_heads": 1, "head_dim": 16}
_NO_VISION |= {"patch_size": 4, "position_embedding_size": 8}


def _to_text(c: Config, spec: Spec) -> dict[str, Any]:
    rope = {
        llama.SLIDING: {"rope_type": "default", "rope_theta": c.near_theta},
        llama.FULL: {"rope_type": "proportional", "rope_theta": c.distant_theta}
        | {"partial_rotary_factor": c.distant_turning},
    }
    names = {activation: name for name, activation in llama.ACTIVATIONS.items()}
    return {
        "model_type": "diffusion_gemma_text",
        "vocab_size": c.vocab_size,
        "hidden_size": c.dim,
        "intermediate_size": c.mlp_dim,
        "num_hidden_layers": c.layers,
        "num_attention_heads": c.heads,
        "num_key_value_heads": c.kv_heads,
        "num_global_key_value_heads": c.distant_kv_heads,
        "head_dim": c.head_dim,
        "global_head_dim": c.distant_head_dim,
        "hidden_activation": names[c.activation],
        "max_position_embeddings": c.max_length,
        "rms_norm_eps": c.norm_eps,
        "tie_word_embeddings": True,
        "attention_bias": False,
        "sliding_window": c.window,
        "layer_types": [llama.FULL if layer in c.distant else llama.SLIDING for layer in range(c.layers)],
        "rope_parameters": rope,
        "final_logit_softcapping": c.cap,
        "use_bidirectional_attention": "vision",
        "num_experts": c.experts.count,
        "top_k_experts": c.experts.active,
        "moe_intermediate_size": c.experts.hidden,
        "pad_token_id": spec.tokens.pad_id,
        "eos_token_id": spec.tokens.eos_id,
    }


def _layout(c: Config, unused: tuple[str, ...] = ()) -> Layout:
    decoder, encoder = "model.decoder", "model.encoder.language_model"
    places = {
        f"{decoder}.embed_tokens.weight": TensorMap("embedding.weight"),
        f"{decoder}.norm.weight": TensorMap("norm.weight"),
        f"{decoder}.self_conditioning.pre_norm.weight": TensorMap("previous.norm.weight"),
    }
    previous = llama.projections(f"{decoder}.self_conditioning", "gate", "up", "down")
    llama.map_swiglu(places, "previous.mlp", previous, c.mlp_dim)
    for number in range(c.layers):
        own, stored = f"blocks.{number}", f"{decoder}.layers.{number}"
        for public, name in _NORMS.items():
            places[f"{stored}.{public}.weight"] = TensorMap(f"{own}.{name}.weight")
        _map_heads(places, own, stored, c, number)
        llama.map_swiglu(places, f"{own}.mlp", llama.projections(f"{stored}.mlp", "gate", "up", "down"), c.mlp_dim)
        places[f"{stored}.experts.gate_up_proj"] = TensorMap(f"{own}.experts.experts_gate_up")
        places[f"{stored}.experts.down_proj"] = TensorMap(f"{own}.experts.experts_down")
        places[f"{stored}.router.proj.weight"] = TensorMap(f"{own}.experts.router.weight")
        places[f"{stored}.router.scale"] = TensorMap(f"{own}.experts.input_scale")
        places[f"{stored}.router.per_expert_scale"] = TensorMap(f"{own}.experts.expert_scale")
        places[f"{stored}.layer_scalar"] = TensorMap(f"{own}.write_scale")
        places[f"{encoder}.layers.{number}.layer_scalar"] = TensorMap(f"{own}.read_scale")
    tied = f"{decoder}.embed_tokens.weight"
    return Layout(places, {"lm_head.weight": tied, f"{encoder}.embed_tokens.weight": tied}, unused)


def _map_heads(places: dict[str, TensorMap], own: str, stored: str, c: Config, layer: int) -> None:
    """Add the projections of attention to ``places``. Layers that see all text have no values of their own."""
    far, start = layer in c.distant, 0
    heads, width = (c.distant_kv_heads, c.distant_head_dim) if far else (c.kv_heads, c.head_dim)
    parts = {"q": c.heads * width, "k": heads * width} | ({} if far else {"v": heads * width})
    for key, rows in parts.items():
        places[f"{stored}.self_attn.{key}_proj.weight"] = TensorMap(
            f"{own}.attention.qkv.weight", start=start, rows=rows
        )
        start += rows
    places[f"{stored}.self_attn.o_proj.weight"] = TensorMap(f"{own}.attention.out.weight")
