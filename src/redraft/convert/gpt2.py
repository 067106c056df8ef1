"""GPT-2.

Source: openai/gpt-2, transformers' ``GPT2LMHeadModel``. Paper: Radford et al. 2019.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from redraft import config
from redraft.convert.shared.format import Format, Translation
from redraft.convert.shared.keys import Keys
from redraft.convert.shared.llama import ACTIVATIONS
from redraft.data.vocabulary import Ids
from redraft.models.gpt import Config
from redraft.weights import Layout, TensorMap


class Gpt2(Format):
    """Checkpoints such as ``openai-community/gpt2``.

    Not supported: attention without scaling, scaling by layer, cross-attention.
    """

    summary = "GPT-2"
    citation = "Radford et al. 2019"

    @staticmethod
    def fits(config: Mapping[str, Any], ids: Ids) -> bool:
        return config.get("model_type") == "gpt2" and "DiscreteDiffusionModel" not in (
            config.get("architectures") or []
        )

    @staticmethod
    def read(keys: Keys, names: Collection[str], ids: Ids) -> Translation:
        prefix = "transformer." if "transformer.wte.weight" in names else ""
        c = read_config(keys, tied=keys.get("tie_word_embeddings", bool, True), qkv_bias=True)
        places = {f"{prefix}wte.weight": TensorMap("embedding.weight"), **blocks(c, prefix)}
        if not c.tied:
            places["lm_head.weight"] = TensorMap("head.weight")
        twins = {"lm_head.weight": f"{prefix}wte.weight"} if c.tied else {}
        family = {"name": "autoregressive", "prompt_encoder": False}
        layout = Layout(places, twins, (".attn.bias", ".attn.masked_bias"))
        return Translation({"name": "gpt", **config.to_mapping(c)}, family, layout)


def read_config(keys: Keys, tied: bool, qkv_bias: bool) -> Config:
    """The network configuration from the keys of GPT-2."""
    keys.require("scale_attn_weights", True)
    for key in ("scale_attn_by_inverse_layer_idx", "add_cross_attention"):
        keys.require(key, False)
    keys.ignore("attn_pdrop", "embd_pdrop", "resid_pdrop", "reorder_and_upcast_attn", "n_ctx")
    keys.ignore("summary_activation", "summary_first_dropout", "summary_proj_to_labels", "summary_type")
    keys.ignore("summary_use_proj", "tie_word_embeddings")
    return Config(
        vocab_size=keys.get("vocab_size", int),
        dim=keys.get("n_embd", int),
        layers=keys.get("n_layer", int),
        heads=keys.get("n_head", int),
        mlp_dim=keys.get("n_inner", int, 0),
        max_length=keys.get("n_positions", int),
        norm_eps=keys.get("layer_norm_epsilon", float, 1e-5),
        activation=keys.translate("activation_function", ACTIVATIONS, "gelu_new"),
        tied=tied,
        qkv_bias=qkv_bias,
    )


def blocks(c: Config, prefix: str) -> dict[str, TensorMap]:
    """The tensors between embedding and head; matrices are stored as [in, out]."""
    places = {f"{prefix}wpe.weight": TensorMap("positions.weight")}
    for ending in ("weight", "bias"):
        places[f"{prefix}ln_f.{ending}"] = TensorMap(f"norm.{ending}")
        for number in range(c.layers):
            own, stored = f"blocks.{number}", f"{prefix}h.{number}"
            places[f"{stored}.ln_1.{ending}"] = TensorMap(f"{own}.attention_norm.{ending}")
            places[f"{stored}.ln_2.{ending}"] = TensorMap(f"{own}.mlp_norm.{ending}")
            is_matrix = ending == "weight"
            for name, part in (("attn.c_proj", "attention.out"), ("mlp.c_fc", "mlp.up"), ("mlp.c_proj", "mlp.down")):
                places[f"{stored}.{name}.{ending}"] = TensorMap(f"{own}.{part}.{ending}", transposed=is_matrix)
            if is_matrix or c.qkv_bias:
                places[f"{stored}.attn.c_attn.{ending}"] = TensorMap(
                    f"{own}.attention.qkv.{ending}", transposed=is_matrix
                )
    return places
