"""Laws of checkpoint formats: reading and writing is exact, every key is read, unsupported values are user errors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from redraft import registry, weights
from redraft.convert import open_foreign
from redraft.errors import UserError
from tests.checkpoints import CONFIGS, translate, write

CASES = [pytest.param(name, config, id=f"{name}-{n}") for name in CONFIGS for n, config in enumerate(CONFIGS[name])]


def foreign(folder: Path) -> Any:
    """The network of a folder, with weights; its family is not built."""
    from redraft import models
    from redraft.files import read_json

    found = open_foreign(folder, read_json(folder / "config.json"))
    models.allocate(found.network, torch.float32, torch.device("cpu"))
    weights.fill(found.network, found.files, found.plan.layout)
    return found


def test_every_format_has_a_configuration_here() -> None:
    assert set(CONFIGS) == set(registry.names("convert"))


@pytest.mark.parametrize(("name", "config"), CASES)
def test_reading_and_writing_is_exact(name: str, config: dict[str, Any], tmp_path: Path) -> None:
    """Every stored tensor is used exactly once and written back unchanged, also from shards."""
    found = foreign(write(tmp_path / "a", config, shards=3))
    assert found.format == name
    expected = {}
    for file in (tmp_path / "a").glob("*.safetensors"):
        expected |= load_file(file)
    back = weights.stored(found.network, found.plan.layout)
    assert back.keys() == expected.keys()
    for key in back:
        assert torch.equal(back[key], expected[key]), key
    assert sum(t.numel() for t in back.values()) == sum(p.numel() for p in found.network.parameters())


@pytest.mark.parametrize(("name", "config"), CASES)
def test_an_unknown_key_is_named(name: str, config: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="'novel_gate' = 3 is not supported"):
        translate({**config, "novel_gate": 3})


@pytest.mark.parametrize(
    ("name", "key", "value"),
    [
        ("llama", "hidden_act", "gelu"),
        ("llama", "rope_scaling", {"rope_type": "longrope", "factor": 4.0}),
        ("llama", "num_hidden_layers", "two"),
        ("qwen3", "layer_types", ["full_attention", "sliding_attention"]),
        ("qwen3", "layer_types", ["full_attention", "chunked_attention"]),
        ("qwen2", "layer_types", ["full_attention"]),
        ("mistral", "sliding_window", -3),
        ("llama", "sliding_window", 8),
        ("llama", "rope_interleaved", True),
        ("qwen2", "use_mrope", True),
        ("llada_moe", "sliding_window", 8),
        ("sdar", "block_size", None),
        ("sdar", "num_experts", 8),
        ("llada", "alibi", True),
        ("illada", "layer_norm_eps", 1e-5),
        ("llada", "block_type", "sequential"),
        ("llada", "layer_norm_type", "default"),
        ("llada", "scale_logits", True),
        ("llada_moe", "shared_expert_intermediate_size", 64),
        ("llada_moe", "moe_router_score_function", "sigmoid"),
        ("llada2_moe", "norm_topk_prob", False),
        ("llada2_moe", "rotary_dim", 2),
        ("nemotron_labs_diffusion", "dlm_paradigm", "novel"),
        ("diffusion_gemma", "tie_word_embeddings", False),
        ("diffusion_gemma", "text_config", None),
        ("gpt2", "scale_attn_by_inverse_layer_idx", True),
        ("gpt2", "activation_function", "tanh"),
        ("bd3lm", "causal", True),
        ("bert", "position_embedding_type", "relative_key"),
        ("modern_bert", "layer_types", ["full_attention"]),
    ],
)
def test_an_unsupported_value_is_named(name: str, key: str, value: Any) -> None:
    with pytest.raises(UserError, match=f"'{key}'"):
        translate({**CONFIGS[name][0], key: value})


def test_an_unknown_format_lists_the_known_ones() -> None:
    with pytest.raises(UserError, match=r"'mamba'.*Known: .*llada"):
        translate({"model_type": "mamba"})


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("use_bidirectional_attention", "all"),
        ("attention_bias", True),
        ("layer_types", ["full_attention"]),
        ("per_layer_config", {"1": {"head_dim": 8}}),
        ("per_layer_config", {"2": {"head_dim": 8, "window": 3}}),
        ("hidden_activation", "tanh"),
        ("num_experts", None),
        ("rope_parameters", {"sliding_attention": {"rope_type": "yarn"}, "full_attention": {}}),
        ("novel_gate", 3),
    ],
)
def test_an_unsupported_value_of_a_nested_table_is_named(key: str, value: Any) -> None:
    config = CONFIGS["diffusion_gemma"][0]
    text = {**config["text_config"], key: value}
    with pytest.raises(UserError, match="rope_type" if key == "rope_parameters" else f"'{key}'"):
        translate({**config, "text_config": text})
