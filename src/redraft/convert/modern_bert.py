"""ModernBERT with its language-modelling head, as a network for masked diffusion.

Source: AnswerDotAI/ModernBERT, transformers' ``ModernBertForMaskedLM``. Paper: Warner et al. 2024, arXiv:2412.13663.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from redraft import config
from redraft.convert.llada import MASKED
from redraft.convert.shared import llama
from redraft.convert.shared.format import Format, Translation
from redraft.convert.shared.keys import Keys
from redraft.data.vocabulary import Ids
from redraft.models.modern_bert import Config
from redraft.weights import Layout, TensorMap


class ModernBert(Format):
    """Checkpoints such as ``answerdotai/ModernBERT-base``, to be fine-tuned. The mask is never generated.

    Scaled rotary positions are not supported.
    """

    summary = "ModernBERT (ModernBertForMaskedLM)"
    citation = "arXiv:2412.13663"

    @staticmethod
    def fits(config: Mapping[str, Any], ids: Ids) -> bool:
        return config.get("model_type") == "modernbert"

    @staticmethod
    def read(keys: Keys, names: Collection[str], ids: Ids) -> Translation:
        keys.ignore(
            "attention_dropout",
            "embedding_dropout",
            "mlp_dropout",
            "initializer_cutoff_factor",
            "gradient_checkpointing",
        )
        keys.ignore("classifier_activation", "classifier_bias", "classifier_dropout", "classifier_pooling")
        keys.ignore("deterministic_flash_attn", "repad_logits_with_grad", "reference_compile", "sparse_prediction")
        keys.ignore("sparse_pred_ignore_index", "layer_norm_eps", "position_embedding_type")  # norm_eps is used
        layers = keys.get("num_hidden_layers", int)
        c = Config(
            vocab_size=keys.get("vocab_size", int),
            dim=keys.get("hidden_size", int),
            layers=layers,
            heads=keys.get("num_attention_heads", int),
            mlp_dim=keys.get("intermediate_size", int),
            max_length=keys.get("max_position_embeddings", int),
            distant=_full_layers(keys, layers),
            window=keys.get("local_attention", int, 128),
            norm_eps=keys.get("norm_eps", float, 1e-5),
            activation=keys.translate("hidden_activation", llama.ACTIVATIONS, "gelu"),
            head_activation=keys.translate("classifier_activation", llama.ACTIVATIONS, "gelu"),
            norm_bias=keys.get("norm_bias", bool, False),
            attention_bias=keys.get("attention_bias", bool, False),
            mlp_bias=keys.get("mlp_bias", bool, False),
            transform_bias=keys.get("classifier_bias", bool, False),
            vocabulary_bias=keys.get("decoder_bias", bool, True),
            tied=keys.get("tie_word_embeddings", bool, True),
            **_thetas(keys),
        )
        return Translation({"name": "modern_bert", **config.to_mapping(c)}, MASKED, _layout(c), forbid_mask=True)


def _full_layers(keys: Keys, layers: int) -> tuple[int, ...]:
    """Layers with full attention: each n-th, or those of ``layer_types``."""
    every = keys.get("global_attn_every_n_layers", int, 3)
    return llama.full_layers(keys, [number % every != 0 for number in range(layers)])


def _thetas(keys: Keys) -> dict[str, float]:
    """Rotary bases of the layers with full attention and with a sliding window."""
    found = {
        "distant_theta": keys.get("global_rope_theta", float, 160_000.0),
        "near_theta": keys.get("local_rope_theta", float, 10_000.0),
    }
    if keys.optional("rope_parameters") is not None:
        table = keys.table("rope_parameters")
        for kind, name in (("full_attention", "distant_theta"), ("sliding_attention", "near_theta")):
            part = table.table(kind)
            part.require("rope_type", "default")
            found[name] = part.get("rope_theta", float, found[name])
            part.finish()
        table.finish()
    return found


def _layout(c: Config) -> Layout:
    places = {"model.embeddings.tok_embeddings.weight": TensorMap("embedding.weight")}

    def put(stored: str, own: str, bias: bool) -> None:
        for ending in ("weight", "bias") if bias else ("weight",):
            places[f"{stored}.{ending}"] = TensorMap(f"{own}.{ending}")

    put("model.embeddings.norm", "embedding_norm", c.norm_bias)
    put("model.final_norm", "final_norm", c.norm_bias)
    put("head.dense", "transform", c.transform_bias)
    put("head.norm", "norm", c.norm_bias)
    for number in range(c.layers):
        own, stored = f"blocks.{number}", f"model.layers.{number}"
        if number:
            put(f"{stored}.attn_norm", f"{own}.attention_norm", c.norm_bias)
        put(f"{stored}.attn.Wqkv", f"{own}.attention.qkv", c.attention_bias)
        put(f"{stored}.attn.Wo", f"{own}.attention.out", c.attention_bias)
        put(f"{stored}.mlp_norm", f"{own}.mlp_norm", c.norm_bias)
        put(f"{stored}.mlp.Wi", f"{own}.mlp.gate_up", c.mlp_bias)
        put(f"{stored}.mlp.Wo", f"{own}.mlp.down", c.mlp_bias)
    if c.vocabulary_bias:
        places["decoder.bias"] = TensorMap("bias")
    if not c.tied:
        places["decoder.weight"] = TensorMap("head.weight")
    twins = {"decoder.weight": "model.embeddings.tok_embeddings.weight"} if c.tied else {}
    return Layout(places, twins, (".inv_freq",))
