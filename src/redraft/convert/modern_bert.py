"""ModernBERT with its language-modelling head, as a network for masked diffusion."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from redraft import config
from redraft.convert import Plan, _llama
from redraft.convert._keys import Keys
from redraft.convert.llada import MASKED
from redraft.data.vocabulary import Ids
from redraft.models.modern_bert import Config
from redraft.weights import Layout, Place


class ModernBert:
    """``ModernBertForMaskedLM`` (Warner et al. 2024, arXiv:2412.13663)."""

    summary = "ModernBERT (ModernBertForMaskedLM)"
    citation = "arXiv:2412.13663"

    @staticmethod
    def fits(config: Mapping[str, Any], ids: Ids) -> bool:
        return config.get("model_type") == "modernbert"

    @staticmethod
    def read(keys: Keys, names: Collection[str], ids: Ids) -> Plan:
        keys.silent(
            "attention_dropout",
            "embedding_dropout",
            "mlp_dropout",
            "initializer_cutoff_factor",
            "gradient_checkpointing",
        )
        keys.silent("classifier_activation", "classifier_bias", "classifier_dropout", "classifier_pooling")
        keys.silent("deterministic_flash_attn", "repad_logits_with_grad", "reference_compile", "sparse_prediction")
        keys.silent("sparse_pred_ignore_index", "layer_norm_eps", "position_embedding_type")  # norm_eps is the one used
        layers = keys.get("num_hidden_layers", int)
        c = Config(
            vocab_size=keys.get("vocab_size", int),
            dim=keys.get("hidden_size", int),
            layers=layers,
            heads=keys.get("num_attention_heads", int),
            mlp_dim=keys.get("intermediate_size", int),
            max_length=keys.get("max_position_embeddings", int),
            distant=_distant(keys, layers),
            window=keys.get("local_attention", int, 128),
            norm_eps=keys.get("norm_eps", float, 1e-5),
            activation=keys.choose("hidden_activation", _llama.ACTIVATIONS, "gelu"),
            head_activation=keys.choose("classifier_activation", _llama.ACTIVATIONS, "gelu"),
            norm_bias=keys.get("norm_bias", bool, False),
            attention_bias=keys.get("attention_bias", bool, False),
            mlp_bias=keys.get("mlp_bias", bool, False),
            transform_bias=keys.get("classifier_bias", bool, False),
            vocabulary_bias=keys.get("decoder_bias", bool, True),
            tied=keys.get("tie_word_embeddings", bool, True),
            **_thetas(keys),
        )
        return Plan({"name": "modern_bert", **config.to_mapping(c)}, MASKED, _layout(c), forbid_mask=True)


def _distant(keys: Keys, layers: int) -> tuple[int, ...]:
    """Layers that see everything: each n-th, or as listed."""
    every = keys.get("global_attn_every_n_layers", int, 3)
    return _llama.distant(keys, [number % every != 0 for number in range(layers)])


def _thetas(keys: Keys) -> dict[str, float]:
    """Rotary bases of the two kinds of layer."""
    found = {
        "distant_theta": keys.get("global_rope_theta", float, 160_000.0),
        "near_theta": keys.get("local_rope_theta", float, 10_000.0),
    }
    if keys.maybe("rope_parameters") is not None:
        table = keys.table("rope_parameters")
        for kind, name in (("full_attention", "distant_theta"), ("sliding_attention", "near_theta")):
            part = table.table(kind)
            part.must("rope_type", "default")
            found[name] = part.get("rope_theta", float, found[name])
            part.finish()
        table.finish()
    return found


def _layout(c: Config) -> Layout:
    places = {"model.embeddings.tok_embeddings.weight": Place("embedding.weight")}

    def put(theirs: str, ours: str, bias: bool) -> None:
        for ending in ("weight", "bias") if bias else ("weight",):
            places[f"{theirs}.{ending}"] = Place(f"{ours}.{ending}")

    put("model.embeddings.norm", "embedding_norm", c.norm_bias)
    put("model.final_norm", "final_norm", c.norm_bias)
    put("head.dense", "transform", c.transform_bias)
    put("head.norm", "norm", c.norm_bias)
    for number in range(c.layers):
        ours, theirs = f"blocks.{number}", f"model.layers.{number}"
        if number:
            put(f"{theirs}.attn_norm", f"{ours}.attention_norm", c.norm_bias)
        put(f"{theirs}.attn.Wqkv", f"{ours}.attention.qkv", c.attention_bias)
        put(f"{theirs}.attn.Wo", f"{ours}.attention.out", c.attention_bias)
        put(f"{theirs}.mlp_norm", f"{ours}.mlp_norm", c.norm_bias)
        put(f"{theirs}.mlp.Wi", f"{ours}.mlp.gate_up", c.mlp_bias)
        put(f"{theirs}.mlp.Wo", f"{ours}.mlp.down", c.mlp_bias)
    if c.vocabulary_bias:
        places["decoder.bias"] = Place("bias")
    if not c.tied:
        places["decoder.weight"] = Place("head.weight")
    twins = {"decoder.weight": "model.embeddings.tok_embeddings.weight"} if c.tied else {}
    return Layout(places, twins, (".inv_freq",))
