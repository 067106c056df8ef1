"""Tensor names of the diffusion transformer that MDLM, SEDD and BD3-LM share."""

from __future__ import annotations

from redraft.convert.shared.llama import ROTARY
from redraft.models.dit import Config
from redraft.weights import Layout, TensorMap

_BLOCK = {
    "norm1.weight": "attention_norm.weight",
    "norm2.weight": "mlp_norm.weight",
    "attn_qkv.weight": "attention.qkv.weight",
    "attn_out.weight": "attention.out.weight",
    "mlp.0.weight": "mlp.up.weight",
    "mlp.0.bias": "mlp.up.bias",
    "mlp.2.weight": "mlp.down.weight",
    "mlp.2.bias": "mlp.down.bias",
    "adaLN_modulation.weight": "modulation.project.weight",
    "adaLN_modulation.bias": "modulation.project.bias",
}
_ENDS = {
    "vocab_embed.embedding": "embedding.weight",
    "sigma_map.mlp.0.weight": "time.first.weight",
    "sigma_map.mlp.0.bias": "time.first.bias",
    "sigma_map.mlp.2.weight": "time.second.weight",
    "sigma_map.mlp.2.bias": "time.second.bias",
    "output_layer.norm_final.weight": "norm.weight",
    "output_layer.linear.weight": "head.weight",
    "output_layer.linear.bias": "head.bias",
    "output_layer.adaLN_modulation.weight": "final_modulation.project.weight",
    "output_layer.adaLN_modulation.bias": "final_modulation.project.bias",
}


def layout(c: Config, prefix: str = "", unused: tuple[str, ...] = ()) -> Layout:
    """The layout of the tensors of a network.

    Args:
        prefix: of every stored name.
        unused: further stored names that are no weights.
    """
    places = {prefix + stored: TensorMap(own) for stored, own in _ENDS.items()}
    for number in range(c.layers):
        for stored, own in _BLOCK.items():
            places[f"{prefix}blocks.{number}.{stored}"] = TensorMap(f"blocks.{number}.{own}")
    return Layout(places, unused=(f"{prefix}rotary_emb.inv_freq", *ROTARY, *unused))
