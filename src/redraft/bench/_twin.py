"""A Llama of ``transformers`` with the weights of one of our networks: the baseline of the speed benchmarks."""

from __future__ import annotations

from typing import Any

import torch


def llama_twin(network: Any) -> Any:
    """A ``LlamaForCausalLM`` that computes the same as ``network`` with causal attention."""
    from transformers import LlamaConfig, LlamaForCausalLM

    c = network.config
    head = c.dim // c.heads
    twin = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=c.vocab_size,
            hidden_size=c.dim,
            intermediate_size=c.hidden,
            num_hidden_layers=c.layers,
            num_attention_heads=c.heads,
            num_key_value_heads=c.key_heads,
            max_position_embeddings=c.max_length,
            rms_norm_eps=c.norm_eps,
            rope_parameters={"rope_type": "default", "rope_theta": c.rope_theta},
            tie_word_embeddings=c.tied,
            attn_implementation="sdpa",
            bos_token_id=2,
            eos_token_id=None,
            pad_token_id=0,
        )
    )
    state = {"model.embed_tokens.weight": network.embedding.weight, "model.norm.weight": network.norm.weight}
    state["lm_head.weight"] = network.embedding.weight if network.head is None else network.head.weight
    for number, block in enumerate(network.blocks):
        name = f"model.layers.{number}."
        sizes = [c.heads * head, c.key_heads * head, c.key_heads * head]
        for part, weight in zip("qkv", block.attention.qkv.weight.split(sizes), strict=True):
            state[f"{name}self_attn.{part}_proj.weight"] = weight
        gate, up = block.mlp.gate_up.weight.chunk(2)
        state |= {
            f"{name}self_attn.o_proj.weight": block.attention.out.weight,
            f"{name}mlp.gate_proj.weight": gate,
            f"{name}mlp.up_proj.weight": up,
            f"{name}mlp.down_proj.weight": block.mlp.down.weight,
            f"{name}input_layernorm.weight": block.attention_norm.weight,
            f"{name}post_attention_layernorm.weight": block.mlp_norm.weight,
        }
    with torch.no_grad():
        twin.load_state_dict({key: value.detach().clone() for key, value in state.items()})
    return twin
