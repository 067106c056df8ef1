"""BERT with its language-modelling head, as a network for masked diffusion.

Source: google-research/bert, transformers' ``BertForMaskedLM``. Paper: Devlin et al. 2018, arXiv:1810.04805.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from redraft import config
from redraft.convert.llada import MASKED
from redraft.convert.shared.format import Format, Translation
from redraft.convert.shared.keys import Keys
from redraft.convert.shared.llama import ACTIVATIONS
from redraft.data.vocabulary import Ids
from redraft.models.bert import Config
from redraft.weights import Layout, TensorMap


class Bert(Format):
    """Checkpoints such as ``google-bert/bert-base-uncased``, to be fine-tuned. The mask is never generated.

    The pooler and the next-sentence head are ignored. Not supported: relative positions, decoders, cross-attention.
    """

    summary = "BERT (BertForMaskedLM)"
    citation = "arXiv:1810.04805"

    @staticmethod
    def fits(config: Mapping[str, Any], ids: Ids) -> bool:
        return config.get("model_type") == "bert"

    @staticmethod
    def read(keys: Keys, names: Collection[str], ids: Ids) -> Translation:
        keys.require("position_embedding_type", "absolute")
        keys.require("is_decoder", False)
        keys.require("add_cross_attention", False)
        keys.ignore("attention_probs_dropout_prob", "hidden_dropout_prob", "classifier_dropout")
        keys.ignore("directionality", "pooler_fc_size", "pooler_num_attention_heads", "pooler_num_fc_layers")
        keys.ignore("pooler_size_per_head", "pooler_type")  # pooler: not used for tokens
        c = Config(
            vocab_size=keys.get("vocab_size", int),
            dim=keys.get("hidden_size", int),
            layers=keys.get("num_hidden_layers", int),
            heads=keys.get("num_attention_heads", int),
            mlp_dim=keys.get("intermediate_size", int),
            max_length=keys.get("max_position_embeddings", int),
            segments=keys.get("type_vocab_size", int),
            norm_eps=keys.get("layer_norm_eps", float, 1e-12),
            activation=keys.translate("hidden_act", ACTIVATIONS, "gelu"),
            tied=keys.get("tie_word_embeddings", bool, True),
        )
        return Translation({"name": "bert", **config.to_mapping(c)}, MASKED, _layout(c, names), forbid_mask=True)


def _layout(c: Config, names: Collection[str]) -> Layout:
    norm = {"weight": "weight", "bias": "bias"}
    if "bert.embeddings.LayerNorm.gamma" in names:  # the oldest files
        norm = {"weight": "gamma", "bias": "beta"}
    head, bottom = "cls.predictions", "bert.embeddings"
    places = {
        f"{bottom}.word_embeddings.weight": TensorMap("embedding.weight"),
        f"{bottom}.position_embeddings.weight": TensorMap("positions.weight"),
        f"{bottom}.token_type_embeddings.weight": TensorMap("segments.weight"),
        f"{head}.bias": TensorMap("bias"),
    }
    for ending in ("weight", "bias"):
        places[f"{bottom}.LayerNorm.{norm[ending]}"] = TensorMap(f"embedding_norm.{ending}")
        places[f"{head}.transform.dense.{ending}"] = TensorMap(f"transform.{ending}")
        places[f"{head}.transform.LayerNorm.{norm[ending]}"] = TensorMap(f"norm.{ending}")
        for number in range(c.layers):
            own, stored = f"blocks.{number}", f"bert.encoder.layer.{number}"
            for place, key in enumerate(("query", "key", "value")):
                places[f"{stored}.attention.self.{key}.{ending}"] = TensorMap(
                    f"{own}.attention.qkv.{ending}", start=place * c.dim, rows=c.dim
                )
            places[f"{stored}.attention.output.dense.{ending}"] = TensorMap(f"{own}.attention.out.{ending}")
            places[f"{stored}.attention.output.LayerNorm.{norm[ending]}"] = TensorMap(f"{own}.attention_norm.{ending}")
            places[f"{stored}.intermediate.dense.{ending}"] = TensorMap(f"{own}.mlp.up.{ending}")
            places[f"{stored}.output.dense.{ending}"] = TensorMap(f"{own}.mlp.down.{ending}")
            places[f"{stored}.output.LayerNorm.{norm[ending]}"] = TensorMap(f"{own}.mlp_norm.{ending}")
    twins = {f"{head}.decoder.bias": f"{head}.bias", f"{head}.decoder.weight": f"{bottom}.word_embeddings.weight"}
    unused: tuple[str, ...] = ("position_ids", "pooler.dense.weight", "pooler.dense.bias")
    unused += ("seq_relationship.weight", "seq_relationship.bias")
    if not c.tied:
        twins = {}
        places[f"{head}.decoder.weight"] = TensorMap("head.weight")
        if f"{head}.decoder.bias" in names:
            places[f"{head}.decoder.bias"] = places.pop(f"{head}.bias")
            unused += (f"{head}.bias",)
    return Layout(places, twins, unused)
