"""GPT-2."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from redraft import config
from redraft.convert import Plan
from redraft.convert._keys import Keys
from redraft.convert._llama import ACTIVATIONS
from redraft.data.vocabulary import Ids
from redraft.models.gpt import Config
from redraft.weights import Layout, Place


class Gpt2:
    """``GPT2LMHeadModel`` (Radford et al. 2019)."""

    summary = "GPT-2"
    citation = "Radford et al. 2019"

    @staticmethod
    def fits(config: Mapping[str, Any], ids: Ids) -> bool:
        return config.get("model_type") == "gpt2" and "DiscreteDiffusionModel" not in (
            config.get("architectures") or []
        )

    @staticmethod
    def read(keys: Keys, names: Collection[str], ids: Ids) -> Plan:
        prefix = "transformer." if "transformer.wte.weight" in names else ""
        c = shape(keys, tied=keys.get("tie_word_embeddings", bool, True), qkv_bias=True)
        places = {f"{prefix}wte.weight": Place("embedding.weight"), **blocks(c, prefix)}
        if not c.tied:
            places["lm_head.weight"] = Place("head.weight")
        twins = {"lm_head.weight": f"{prefix}wte.weight"} if c.tied else {}
        family = {"name": "autoregressive", "isolate_prompt": False}
        layout = Layout(places, twins, (".attn.bias", ".attn.masked_bias"))
        return Plan({"name": "gpt", **config.to_mapping(c)}, family, layout)


def shape(keys: Keys, tied: bool, qkv_bias: bool) -> Config:
    """The keys of GPT-2."""
    keys.must("scale_attn_weights", True)
    for key in ("scale_attn_by_inverse_layer_idx", "add_cross_attention"):
        keys.must(key, False)
    keys.silent("attn_pdrop", "embd_pdrop", "resid_pdrop", "reorder_and_upcast_attn", "n_ctx")
    keys.silent("summary_activation", "summary_first_dropout", "summary_proj_to_labels", "summary_type")
    keys.silent("summary_use_proj", "tie_word_embeddings")
    return Config(
        vocab_size=keys.get("vocab_size", int),
        dim=keys.get("n_embd", int),
        layers=keys.get("n_layer", int),
        heads=keys.get("n_head", int),
        mlp_dim=keys.get("n_inner", int, 0),
        max_length=keys.get("n_positions", int),
        norm_eps=keys.get("layer_norm_epsilon", float, 1e-5),
        activation=keys.choose("activation_function", ACTIVATIONS, "gelu_new"),
        tied=tied,
        qkv_bias=qkv_bias,
    )


def blocks(c: Config, prefix: str) -> dict[str, Place]:
    """Everything between embedding and head; matrices are stored as [in, out]."""
    places = {f"{prefix}wpe.weight": Place("positions.weight")}
    for ending in ("weight", "bias"):
        places[f"{prefix}ln_f.{ending}"] = Place(f"norm.{ending}")
        for number in range(c.layers):
            ours, theirs = f"blocks.{number}", f"{prefix}h.{number}"
            places[f"{theirs}.ln_1.{ending}"] = Place(f"{ours}.attention_norm.{ending}")
            places[f"{theirs}.ln_2.{ending}"] = Place(f"{ours}.mlp_norm.{ending}")
            for name, place in (("attn.c_proj", "attention.out"), ("mlp.c_fc", "mlp.up"), ("mlp.c_proj", "mlp.down")):
                places[f"{theirs}.{name}.{ending}"] = Place(f"{ours}.{place}.{ending}", transposed=ending == "weight")
            if ending == "weight" or c.qkv_bias:
                turned = ending == "weight"
                places[f"{theirs}.attn.c_attn.{ending}"] = Place(f"{ours}.attention.qkv.{ending}", transposed=turned)
    return places
