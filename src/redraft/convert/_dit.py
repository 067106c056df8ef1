"""What the formats of MDLM, SEDD and BD3-LM share: one network, one set of names."""

from __future__ import annotations

from redraft.convert._llama import ROTARY
from redraft.models.dit import Config
from redraft.weights import Layout, Place

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
    """Their names, each after ``prefix``."""
    places = {prefix + theirs: Place(ours) for theirs, ours in _ENDS.items()}
    for number in range(c.layers):
        for theirs, ours in _BLOCK.items():
            places[f"{prefix}blocks.{number}.{theirs}"] = Place(f"blocks.{number}.{ours}")
    return Layout(places, unused=(f"{prefix}rotary_emb.inv_freq", *ROTARY, *unused))
