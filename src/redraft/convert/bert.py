"""BERT with its language-modelling head, as a network for masked diffusion."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from redraft import config
from redraft.convert import Plan
from redraft.convert._keys import Keys
from redraft.convert._llama import ACTIVATIONS
from redraft.convert.llada import MASKED
from redraft.data.vocabulary import Ids
from redraft.models.bert import Config
from redraft.weights import Layout, Place


class Bert:
    """``BertForMaskedLM`` (Devlin et al. 2018, arXiv:1810.04805)."""

    summary = "BERT (BertForMaskedLM)"
    citation = "arXiv:1810.04805"

    @staticmethod
    def fits(config: Mapping[str, Any], ids: Ids) -> bool:
        return config.get("model_type") == "bert"

    @staticmethod
    def read(keys: Keys, names: Collection[str], ids: Ids) -> Plan:
        keys.must("position_embedding_type", "absolute")
        keys.must("is_decoder", False)
        keys.must("add_cross_attention", False)
        keys.silent("attention_probs_dropout_prob", "hidden_dropout_prob", "classifier_dropout")
        keys.silent("directionality", "pooler_fc_size", "pooler_num_attention_heads", "pooler_num_fc_layers")
        keys.silent("pooler_size_per_head", "pooler_type")  # of the pooler, which predicts no token
        c = Config(
            vocab_size=keys.get("vocab_size", int),
            dim=keys.get("hidden_size", int),
            layers=keys.get("num_hidden_layers", int),
            heads=keys.get("num_attention_heads", int),
            mlp_dim=keys.get("intermediate_size", int),
            max_length=keys.get("max_position_embeddings", int),
            segments=keys.get("type_vocab_size", int),
            norm_eps=keys.get("layer_norm_eps", float, 1e-12),
            activation=keys.choose("hidden_act", ACTIVATIONS, "gelu"),
            tied=keys.get("tie_word_embeddings", bool, True),
        )
        return Plan({"name": "bert", **config.to_mapping(c)}, MASKED, _layout(c, names), forbid_mask=True)


def _layout(c: Config, names: Collection[str]) -> Layout:
    norm = {"weight": "weight", "bias": "bias"}
    if "bert.embeddings.LayerNorm.gamma" in names:  # the oldest files
        norm = {"weight": "gamma", "bias": "beta"}
    head, bottom = "cls.predictions", "bert.embeddings"
    places = {
        f"{bottom}.word_embeddings.weight": Place("embedding.weight"),
        f"{bottom}.position_embeddings.weight": Place("positions.weight"),
        f"{bottom}.token_type_embeddings.weight": Place("segments.weight"),
        f"{head}.bias": Place("bias"),
    }
    for ending in ("weight", "bias"):
        places[f"{bottom}.LayerNorm.{norm[ending]}"] = Place(f"embedding_norm.{ending}")
        places[f"{head}.transform.dense.{ending}"] = Place(f"transform.{ending}")
        places[f"{head}.transform.LayerNorm.{norm[ending]}"] = Place(f"norm.{ending}")
        for number in range(c.layers):
            ours, theirs = f"blocks.{number}", f"bert.encoder.layer.{number}"
            for place, key in enumerate(("query", "key", "value")):
                places[f"{theirs}.attention.self.{key}.{ending}"] = Place(
                    f"{ours}.attention.qkv.{ending}", start=place * c.dim, rows=c.dim
                )
            places[f"{theirs}.attention.output.dense.{ending}"] = Place(f"{ours}.attention.out.{ending}")
            places[f"{theirs}.attention.output.LayerNorm.{norm[ending]}"] = Place(f"{ours}.attention_norm.{ending}")
            places[f"{theirs}.intermediate.dense.{ending}"] = Place(f"{ours}.mlp.up.{ending}")
            places[f"{theirs}.output.dense.{ending}"] = Place(f"{ours}.mlp.down.{ending}")
            places[f"{theirs}.output.LayerNorm.{norm[ending]}"] = Place(f"{ours}.mlp_norm.{ending}")
    twins = {f"{head}.decoder.bias": f"{head}.bias", f"{head}.decoder.weight": f"{bottom}.word_embeddings.weight"}
    unused: tuple[str, ...] = ("position_ids", "pooler.dense.weight", "pooler.dense.bias")
    unused += ("seq_relationship.weight", "seq_relationship.bias")
    if not c.tied:
        twins = {}
        places[f"{head}.decoder.weight"] = Place("head.weight")
        if f"{head}.decoder.bias" in names:
            places[f"{head}.decoder.bias"] = places.pop(f"{head}.bias")
            unused += (f"{head}.bias",)
    return Layout(places, twins, unused)
