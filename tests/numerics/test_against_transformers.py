"""Public formats, read and written, against the code of transformers, on tiny random models."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from redraft.data.tokenizer import Tokenizer
from redraft.errors import UserError
from redraft.loading import load
from redraft.model import Model
from redraft.models.parts.moe import Experts
from redraft.parity import model_logits
from redraft.presets import preset
from redraft.types import AttentionPattern, DraftQuery, Forward

transformers = pytest.importorskip("transformers")

_SMALL = {
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "vocab_size": 50,
}
_LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
_YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16, "rope_theta": 10_000.0}
_IN_USE = {"use_sliding_window": True, "sliding_window": 6}
_EXPERTS = {"num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 12}
_KINDS = ["sliding_attention", "full_attention", "sliding_attention"]
WINDOWS = [
    ("Mistral", {"num_key_value_heads": 2, "sliding_window": 6}),
    ("Mistral", {"num_key_value_heads": 4, "sliding_window": 1, "head_dim": 8}),
    ("Qwen2", {"num_key_value_heads": 4, **_IN_USE, "max_window_layers": 0}),
    ("Qwen2", {"num_key_value_heads": 2, **_IN_USE, "max_window_layers": 2}),
    ("Qwen3", {"num_key_value_heads": 2, **_IN_USE, "layer_types": _KINDS}),
    ("Qwen3Moe", {"num_key_value_heads": 2, **_IN_USE, **_EXPERTS}),
]
CASES = [
    ("Llama", {"num_key_value_heads": 2, "tie_word_embeddings": True}),
    ("Llama", {"num_key_value_heads": 1, "head_dim": 8, "attention_bias": True, "mlp_bias": True}),
    (
        "Llama",
        {"rope_parameters": {**_LLAMA3, "original_max_position_embeddings": 16, "rope_theta": 500.0}},
    ),
    ("Llama", {"rope_parameters": {"rope_type": "linear", "factor": 3.0, "rope_theta": 10_000.0}}),
    ("Llama", {"rope_parameters": {"rope_type": "dynamic", "factor": 3.0, "rope_theta": 10_000.0}}),
    ("Llama", {"rope_parameters": {**_YARN, "rope_theta": 500.0}}),
    ("Llama", {"head_dim": 16, "rope_parameters": {**_YARN, "mscale": 0.7, "mscale_all_dim": 1.0, "truncate": False}}),
    (
        "Qwen3",
        {"head_dim": 16, "num_key_value_heads": 4}
        | {"rope_parameters": {**_YARN, "attention_factor": 1.5, "beta_fast": 8, "beta_slow": 2}},
    ),
    ("Qwen2", {"num_key_value_heads": 2, "rope_parameters": {**_YARN, "rope_theta": 1e6}, "tie_word_embeddings": True}),
    ("Qwen2", {"num_key_value_heads": 2}),
    ("Qwen2", {"num_key_value_heads": 4, "use_sliding_window": True, "sliding_window": 64, "max_window_layers": 3}),
    ("Qwen3", {"num_key_value_heads": 2, "head_dim": 16}),
    ("Qwen3Moe", {"num_key_value_heads": 2, "head_dim": 8, **_EXPERTS, "mlp_only_layers": [1]}),
    ("Qwen3Moe", {"num_key_value_heads": 4, **_EXPERTS, "norm_topk_prob": True, "decoder_sparse_step": 2}),
    ("Mistral", {"num_key_value_heads": 2, "sliding_window": None}),
    *WINDOWS,
    ("GPT2", {"n_embd": 24, "n_head": 2, "n_layer": 2, "n_positions": 64, "n_inner": 30, "vocab_size": 50}),
    ("Bert", {"num_attention_heads": 2}),
    ("Bert", {"tie_word_embeddings": False, "hidden_act": "relu"}),
    ("ModernBert", {"local_attention": 8, "global_attn_every_n_layers": 2}),
    ("ModernBert", {"local_attention": 6, "norm_bias": True, "attention_bias": True, "mlp_bias": True}),
]


def named(cases: list[tuple[str, dict[str, Any]]]) -> list[Any]:
    return [pytest.param(kind, more, id=f"{kind}-{number}") for number, (kind, more) in enumerate(cases)]


def make(kind: str, more: dict[str, Any], folder: Path) -> Any:
    """A tiny random model of transformers, saved in ``folder``."""
    base = {} if kind == "GPT2" else _SMALL
    special = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    special |= {"cls_token_id": 1, "sep_token_id": 2} if kind == "ModernBert" else {}
    config = getattr(transformers, f"{kind}Config")(**{**base, **special, **more})
    head = {"GPT2": "GPT2LMHeadModel", "Bert": "BertForMaskedLM", "ModernBert": "ModernBertForMaskedLM"}
    reference = getattr(transformers, head.get(kind, f"{kind}ForCausalLM"))(config).eval()
    torch.manual_seed(0)
    for parameter in reference.parameters():
        parameter.data.normal_(std=0.3)
    reference.save_pretrained(folder)
    return reference


@pytest.mark.parametrize(("kind", "more"), named(CASES))
def test_logits(kind: str, more: dict[str, Any], tmp_path: Path) -> None:
    reference = make(kind, more, tmp_path)
    ids = torch.randint(3, 50, (2, 20))
    with torch.no_grad():
        expected = reference(input_ids=ids).logits
    ours = load(tmp_path, "cpu", mask_id=49 if "Bert" in kind else None)
    torch.testing.assert_close(model_logits(ours, ids), expected, rtol=1e-4, atol=1e-4)


def test_the_causal_logits_of_nemotron_labs_diffusion_are_those_of_ministral3(tmp_path: Path) -> None:
    """Its layers are Ministral 3's, whose queries grow with their positions, under other names."""
    growing = {**_YARN, "llama_4_scaling_beta": 0.1, "mscale": 1.0, "mscale_all_dim": 1.0}
    reference = make(
        "Ministral3", {"num_key_value_heads": 2, "head_dim": 8, "rope_parameters": growing}, tmp_path / "a"
    )
    names = {"model.": "encoder.", "lm_head.": "diffusion_head."}
    state = {key: value for key, value in reference.state_dict().items() if value.is_floating_point()}
    for old, new in names.items():
        state = {new + key.removeprefix(old) if key.startswith(old) else key: value for key, value in state.items()}
    (tmp_path / "b").mkdir()
    save_file({key: value.contiguous() for key, value in state.items()}, str(tmp_path / "b" / "model.safetensors"))
    config = json.loads((tmp_path / "a" / "config.json").read_text())
    config |= {"model_type": "nemotron_labs_diffusion", "mask_token_id": 49, "block_size": 8}
    (tmp_path / "b" / "config.json").write_text(json.dumps(config))
    ids = torch.randint(3, 50, (2, 40))
    with torch.no_grad():
        expected = reference(input_ids=ids).logits
    torch.testing.assert_close(model_logits(load(tmp_path / "b", "cpu"), ids), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("kind", "more"), named(WINDOWS))
def test_windows_of_ragged_prompts_with_a_cache(kind: str, more: dict[str, Any], tmp_path: Path) -> None:
    """Greedy decoding with prompts shorter and longer than the window: the same ids as transformers."""
    reference = make(kind, more, tmp_path)
    prompts = [[3, 4, 5], [6, 7, 8, 9, 10, 11], [12, 13, 14, 15, 16, 17, 18, 19, 20, 21]]
    expected = []
    for prompt in prompts:
        ids = torch.tensor([prompt])
        for _ in range(16):  # their own cache counts for nothing here: whole passes
            with torch.no_grad():
                ids = torch.cat([ids, reference(input_ids=ids).logits[:, -1:].argmax(-1)], 1)
        expected.append(ids[0, len(prompt) :].tolist())
    ours = load(tmp_path, "cpu")
    for cache in ("exact", "none"):
        found = ours.generate(prompts, max_new_tokens=16, ignore_eos=True, cache=cache)
        assert [text.ids for text in found] == expected


def test_sdar_moe_is_qwen3_moe_read_causally_and_sdar_where_all_experts_are_alike(tmp_path: Path) -> None:
    """There is no reference of its code: the causal logits are those of Qwen3-MoE, and with equal experts whose weights
    sum to one, the logits of blocks are those of the dense model."""
    more = {"num_key_value_heads": 2, "head_dim": 8, **_EXPERTS, "norm_topk_prob": True}
    reference, ids = make("Qwen3Moe", more, tmp_path / "a"), torch.randint(3, 50, (2, 20))
    config = json.loads((tmp_path / "a" / "config.json").read_text())
    own = {"block_size": 4, "mask_token_id": 49}
    (tmp_path / "a" / "config.json").write_text(json.dumps({**config, **own, "model_type": "sdar_moe"}))
    ours = load(tmp_path / "a", "cpu")
    with torch.no_grad():
        expected = reference(input_ids=ids).logits
    torch.testing.assert_close(model_logits(ours, ids, AttentionPattern("causal")), expected, rtol=1e-4, atol=1e-4)
    dense: dict[str, torch.Tensor] = {}
    for name, place in ours.public.items() if ours.public else ():
        tensor = place.view(ours.network.get_parameter(place.name))
        layer, _, rest = name.partition(".mlp.experts.")
        if rest:
            kind = rest.partition(".")[2]
            tensor.copy_(dense.setdefault(f"{layer}.mlp.{kind}", tensor.detach().clone()))
        elif not name.endswith(".mlp.gate.weight"):
            dense[name] = tensor.detach().clone()
    (tmp_path / "b").mkdir()
    save_file({name: tensor.contiguous() for name, tensor in dense.items()}, str(tmp_path / "b" / "model.safetensors"))
    shape = {key: value for key, value in config.items() if key in _SMALL or key in ("head_dim", "rms_norm_eps")}
    shape |= {"num_key_value_heads": 2, "intermediate_size": 12, "rope_theta": 10_000.0, **own, "model_type": "sdar"}
    (tmp_path / "b" / "config.json").write_text(json.dumps(shape))
    plain_sdar = load(tmp_path / "b", "cpu")
    assert plain_sdar.spec.network.attention == ours.spec.network.attention == AttentionPattern("block", 4)
    torch.testing.assert_close(model_logits(ours, ids), model_logits(plain_sdar, ids), rtol=1e-4, atol=1e-4)


def plain(**shape: Any) -> Model:
    tokenizer = Tokenizer.bytes()
    family = {"name": "autoregressive"}
    model = Model.fresh(family, tokenizer, preset("toy", tokenizer.vocab_size, dim=32, **shape), paired=False)
    for parameter in model.network.parameters():
        parameter.data.add_(torch.randn_like(parameter) * 0.1)
    return model


@pytest.mark.parametrize(
    ("to", "shape"),
    [
        ("llama", {}),
        ("llama", {"heads": 4, "kv_heads": 2, "tied": False}),
        ("qwen3", {"qk_norm": True, "head_dim": 12}),
        ("qwen3_moe", {"qk_norm": True, "head_dim": 12, "experts": Experts(4, 2, 20, dense=(1,), normalise=True)}),
        ("qwen3", {"qk_norm": True, "window": 6, "layers": 4, "distant": (0, 1)}),
        ("mistral", {"heads": 4, "kv_heads": 2, "window": 6}),
        ("qwen2", {"qkv_bias": True, "window": 6, "distant": (0,)}),
        ("qwen2", {"qkv_bias": True}),
    ],
)
def test_exported_models_are_read_by_transformers_and_redraft(to: str, shape: dict[str, Any], tmp_path: Path) -> None:
    from redraft.convert import export

    model, ids = plain(**shape), torch.randint(5, 260, (2, 20))
    export(to, model.network, model.tokenizer, model.spec, tmp_path / "out", "float32", "# card\n")
    reference = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32).eval()
    with torch.no_grad():
        found = reference(input_ids=ids).logits
    torch.testing.assert_close(found, model.logits(ids), rtol=1e-4, atol=1e-4)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    assert tokenizer("It was", add_special_tokens=False).input_ids == model.tokenizer.encode("It was")
    again = load(tmp_path / "out")
    assert torch.equal(again.logits(ids), model.logits(ids))
    assert (again.tokenizer.eos_id, again.tokenizer.bos_id) == (model.tokenizer.eos_id, model.tokenizer.bos_id)


def test_models_that_llama_can_not_compute_are_not_exported() -> None:
    from redraft.convert import export

    tokenizer = Tokenizer.bytes()
    shape = preset("toy", tokenizer.vocab_size, dim=32)
    for family, paired, words in (
        ("masked", False, "not autoregressive"),
        ("autoregressive", True, "prompt encoder"),
    ):
        model = Model.fresh({"name": family}, tokenizer, shape, paired)
        with pytest.raises(UserError, match=words):
            export("llama", model.network, tokenizer, model.spec, Path("nowhere"), "float32", "")
    for to, odd in (
        ("llama", {"qk_norm": True}),
        ("llama", {"window": 6}),
        ("llama", {"qkv_bias": True}),
        ("mistral", {"window": 6, "distant": (1,)}),
        ("qwen2", {}),
        ("qwen3", {}),
    ):
        model = plain(**odd)
        with pytest.raises(UserError, match="can't be written as"):
            export(to, model.network, model.tokenizer, model.spec, Path("nowhere"), "float32", "")


@pytest.mark.parametrize("family", ["autoregressive", "masked"])
def test_model_folders_are_read_by_the_auto_classes(family: str, tmp_path: Path) -> None:
    import redraft.interop.transformers  # noqa: F401

    tokenizer = Tokenizer.bytes()
    model = Model.fresh({"name": family}, tokenizer, preset("toy", tokenizer.vocab_size, dim=32), paired=False)
    model.save(tmp_path / "m")
    reference = transformers.AutoModel.from_pretrained(tmp_path / "m").eval()
    ids = torch.randint(5, 260, (2, 9))
    real = torch.ones_like(ids)
    real[1, :3] = 0  # padded on the left
    with torch.no_grad():
        found = reference(input_ids=ids, attention_mask=real).logits
    torch.testing.assert_close(found[0], model.logits(ids[:1])[0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found[1, 3:], model.logits(ids[1:, 3:])[0], rtol=1e-5, atol=1e-5)
    reference.save_pretrained(tmp_path / "n")
    model.tokenizer.save(tmp_path / "n")
    again = transformers.AutoModel.from_pretrained(tmp_path / "n").eval()
    with torch.no_grad():
        assert torch.equal(again(input_ids=ids).logits, reference(input_ids=ids).logits)


# ---- DiffusionGemma


_GEMMA = {
    **_SMALL,
    "num_key_value_heads": 2,
    "head_dim": 6,
    "global_head_dim": 8,
    "sliding_window": 5,
    "num_experts": 4,
}
_GEMMA |= {"top_k_experts": 2, "moe_intermediate_size": 12, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_NO_VISION = {"model_type": "gemma4_vision", "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
_NO_VISION |= {"num_attention_heads": 1, "num_key_value_heads": 1, "head_dim": 16, "patch_size": 4}


def gemma(folder: Path, **more: Any) -> Any:
    """A tiny random DiffusionGemma of transformers, saved in ``folder``."""
    config = transformers.DiffusionGemmaConfig(
        text_config={**_GEMMA, **more}, vision_config=_NO_VISION, canvas_length=8
    )
    reference = transformers.DiffusionGemmaForBlockDiffusion(config).eval()
    torch.manual_seed(0)
    for name, weight in [*reference.named_parameters(), *reference.named_buffers()]:
        if name.endswith("layer_scalar"):
            weight.data.uniform_(0.8, 1.2)
        elif weight.is_floating_point() and isinstance(weight, torch.nn.Parameter):
            weight.data.normal_(std=0.3)
    reference.save_pretrained(folder)
    return reference


def block_logits(model: Model, ids: torch.Tensor, block: torch.Tensor) -> torch.Tensor:
    tokens = torch.cat([ids, block], 1)
    pos = torch.arange(tokens.shape[1]).expand_as(tokens)
    draft = DraftQuery(0, torch.full((len(ids),), ids.shape[1]))
    with torch.inference_mode():
        request = Forward(tokens, pos, pos[:, ids.shape[1] :], AttentionPattern("causal"), extra=(draft,))
        return model.network(request).view(*block.shape, -1)


@pytest.mark.parametrize(
    "more",
    [
        {},  # as transformers writes it, with a table of the layers that differ
        {"num_global_key_value_heads": 1, "use_bidirectional_attention": "vision"},
        {"layer_types": ["full_attention", "sliding_attention", "full_attention"], "hidden_activation": "silu"},
    ],
    ids=["plain", "heads", "layers"],
)
def test_the_blocks_of_diffusion_gemma_and_their_export(more: dict[str, Any], tmp_path: Path) -> None:
    from redraft.convert import export

    reference = gemma(tmp_path / "a", **more)
    ids, block = torch.randint(3, 50, (2, 13)), torch.randint(3, 50, (2, 8))
    with torch.no_grad():
        expected = reference(input_ids=ids, decoder_input_ids=block).logits
    ours = load(tmp_path / "a", "cpu")
    torch.testing.assert_close(block_logits(ours, ids, block), expected, rtol=1e-4, atol=1e-4)
    export("diffusion_gemma", ours.network, ours.tokenizer, ours.spec, tmp_path / "b", "float32", "# card\n")
    again = transformers.DiffusionGemmaForBlockDiffusion.from_pretrained(tmp_path / "b", dtype=torch.float32).eval()
    with torch.no_grad():
        found = again(input_ids=ids, decoder_input_ids=block).logits
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert again.config.canvas_length == 8
