"""LoRA: what it leaves alone, that merging changes nothing, and that ``peft`` reads and writes the same files."""

from __future__ import annotations

import json
import os
import shutil
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import redraft
from redraft import adapters, loading
from redraft.conversion import convert_family
from redraft.convert import export
from redraft.data.tokenizer import Tokenizer
from redraft.errors import UserError
from redraft.lora import Lora
from redraft.model import Model
from redraft.models.cpu.transformer import CpuTransformer
from redraft.models.parts import lora as parts
from redraft.models.parts.lora import Adapted
from redraft.presets import preset
from redraft.saving import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from redraft.train.logging import Event
from redraft.train.loop import train
from redraft.train.recipe import Recipe

PARITY = Path(os.environ.get("REDRAFT_PARITY") or Path(__file__).parents[3] / "shared" / "parity")
WORDS = ["the", "cat", "sat", "on", "a", "mat", "where", "dog", "ran", "to", "house", "bird", "sang", "all", "day"]
IDS = torch.arange(5, 25)[None]


def model(family: str = "autoregressive", paired: bool = False, **fields: Any) -> Model:
    tokenizer = Tokenizer.bytes()
    shape = preset("toy", tokenizer.vocab_size, dim=32, max_length=128)
    return Model.fresh({"name": family, **fields}, tokenizer, shape, paired, seed=3)


def disturbed(made: Model) -> Model:
    """As after some training: no B is zero any more."""
    generator = torch.Generator().manual_seed(0)
    for module in parts.adapted(made.network):
        with torch.no_grad():
            module.lora_b.normal_(0, 0.05, generator=generator)
    return made


@pytest.mark.parametrize("family", ["autoregressive", "masked"])
def test_at_first_nothing_has_changed(family: str) -> None:
    made = model(family)
    before = made.network(_ask(made)).detach()
    adapters.attach(made, Lora(4), "base")
    assert torch.equal(made.network(_ask(made)), before)


def _ask(made: Model) -> Any:
    from redraft.types import Forward

    pos = torch.arange(IDS.shape[1])[None]
    return Forward(
        tokens=IDS, positions=pos, targets=pos + made.spec.network.shift, attention=made.spec.network.attention
    )


def test_only_adapters_get_gradients() -> None:
    made = disturbed(_adapted(Lora(4, targets=("q_proj", "v_proj", "down_proj"))))
    made.network(_ask(made)).square().sum().backward()
    trained = {name for name, p in made.network.named_parameters() if p.grad is not None}
    assert trained == {name for name, p in made.network.named_parameters() if p.requires_grad}
    assert {name.rpartition(".")[2] for name in trained} == {"lora_a", "lora_b"}
    layers = len(made.network.blocks)
    ranks = [module.lora_a.shape[0] for module in parts.adapted(made.network)]
    assert ranks == [8, 4] * layers  # q and v share a matrix, k between them has no adapter


def _adapted(lora: Lora, family: str = "autoregressive") -> Model:
    made = model(family)
    adapters.attach(made, lora, "base")
    return made


def test_the_keys_between_queries_and_values_are_left_alone() -> None:
    made = disturbed(_adapted(Lora(4, targets=("q_proj", "v_proj"))))
    matrix = made.network.blocks[0].attention.qkv
    assert isinstance(matrix, Adapted)
    x = torch.randn(3, 32)
    difference = matrix(x) - torch.nn.functional.linear(x, matrix.weight)
    assert bool(difference[:, 32:64].eq(0).all()) and bool(difference[:, :32].ne(0).any())
    for part, a, b in matrix.pairs():
        expected = 16 / 4 * x @ a.T @ b.T
        torch.testing.assert_close(difference[:, part.start : part.start + part.rows], expected)


@pytest.mark.parametrize("lora", [Lora(4), Lora(3, 7.0, rslora=True), Lora(2, targets=r".*\.(gate|up)_proj")])
def test_merged_equals_unmerged_and_what_is_saved_equals_merged(lora: Lora, tmp_path: Path) -> None:
    base = model("masked")
    base.save(tmp_path / "base")
    made = redraft.load(tmp_path / "base", "cpu")
    adapters.attach(made, lora, str(tmp_path / "base"))
    disturbed(made)
    assert not CpuTransformer.fits(made.network)
    unmerged = made.logits(IDS)
    made.save(tmp_path / "adapter")
    assert sorted(path.name for path in (tmp_path / "adapter").iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
        "redraft.json",
    ]
    parts.merge(made.network)
    assert CpuTransformer.fits(made.network) and not any(True for _ in parts.adapted(made.network))
    torch.testing.assert_close(made.logits(IDS), unmerged, rtol=1e-5, atol=1e-5)
    assert float((unmerged - redraft.load(tmp_path / "base", "cpu").logits(IDS)).abs().max()) > 1e-2
    for again in (
        redraft.load(tmp_path / "adapter", "cpu"),
        redraft.load(tmp_path / "base", "cpu", adapter=tmp_path / "adapter"),
    ):
        assert torch.equal(again.logits(IDS), made.logits(IDS))
        assert again.generate("the", max_new_tokens=4)[0].text == made.generate("the", max_new_tokens=4)[0].text


def test_names_that_fit_nothing_are_an_error() -> None:
    with pytest.raises(UserError, match="Did you mean 'q_proj'"):
        _adapted(Lora(4, targets=("q_prj",)))
    with pytest.raises(UserError, match="rank"):
        Lora(0)


# ---- training


def write(path: Path, pairs: bool) -> Path:
    texts = [" ".join(WORDS[(n * step + step) % len(WORDS)] for step in range(1, 6 + n % 3)) for n in range(80)]
    rows = [{"text": a} if not pairs else {"input": a, "target": b} for a, b in zip(texts, texts[1:], strict=False)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def recipe(start: Path, data: Path, pairs: bool, lora: dict[str, Any] | None, *overrides: str) -> Recipe:
    columns = {"input": "input", "target": "target"} if pairs else {"text": "text"}
    tables: dict[str, Any] = {
        "data": {"source": str(data), "length": 32, "fractions": [0.9, 0.05, 0.05], **columns},
        "model": {"from": str(start)},
        "family": loading.family_of(start),
        "train": {
            "tokens": 900,
            "batch_tokens": 330,
            "validation_rows": 4,
            "threads": 1,
            "dtype": "float32",
            "lr": 0.01,
        },
    }
    return Recipe.of(tables | ({"lora": lora} if lora else {}), overrides=overrides)


def public(name: str, folder: Path) -> Path:
    """A tiny public checkpoint with a tokenizer, which those of the references come without."""
    if not (PARITY / name / "checkpoint").is_dir():
        pytest.skip(f"no reference checkpoint: {PARITY / name} (set REDRAFT_PARITY)")
    folder.mkdir()
    for file in (PARITY / name / "checkpoint").iterdir():
        shutil.copyfile(file, folder / file.name)
    backend = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({w: i for i, w in enumerate(["[UNK]", *WORDS])}, "[UNK]")
    )
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    backend.save(str(folder / "tokenizer.json"))
    return folder


@pytest.mark.parametrize("pairs", [False, True], ids=["text", "pairs"])
@pytest.mark.parametrize("lora", [None, {"rank": 2}], ids=["full", "lora"])
@pytest.mark.parametrize("name", ["llada", "dream", "llama", "gpt2"])
def test_public_checkpoints_are_fine_tuned(name: str, lora: dict[str, Any] | None, pairs: bool, tmp_path: Path) -> None:
    base = public(name, tmp_path / name)
    data = write(tmp_path / "d.jsonl", pairs)
    result = train(recipe(base, data, pairs, lora), tmp_path / "out", device="cpu")
    before, after = redraft.load(base, "cpu"), redraft.load(tmp_path / "out", "cpu")
    assert result.steps >= 2 and after.paired is pairs
    assert (after.family_name, after.spec.tokens.eos_id) == (before.family_name, before.spec.tokens.eos_id)
    assert float((after.logits(IDS) - before.logits(IDS)).abs().max()) > 1e-4, "nothing was learnt"
    if lora is None:
        after.save(tmp_path / "again")
        assert torch.equal(redraft.load(tmp_path / "again", "cpu").logits(IDS), after.logits(IDS))
    else:
        merged = redraft.load(base, "cpu", adapter=tmp_path / "out")
        assert torch.equal(merged.logits(IDS), after.logits(IDS))
        assert {key.split(".lora_")[0] for key in load_file(tmp_path / "out" / ADAPTER_WEIGHTS)}
    assert after.generate("the cat", max_new_tokens=3, length="fixed")[0].nfe > 0


def test_rows_of_a_tokenizer_from_elsewhere_are_what_generation_will_show(tmp_path: Path) -> None:
    """Training rows begin as prompts do, nothing is between prompt and target, and its own end of text closes."""
    from redraft.data.examples import Example
    from redraft.data.tokenising import tokenise

    base = redraft.load(public("llada", tmp_path / "llada"), "cpu")
    rows = tokenise([Example("the cat", "sat", "a:1"), Example("", "dog ran", "a:2")], base.tokenizer)
    assert rows.prompts is not None
    assert rows.ids[: rows.starts[1]].tolist() == [*base.tokenizer.encode_prompt("the cat"), *_ids(base, "sat"), 513]
    second = rows.ids[rows.starts[1] :].tolist()
    assert second == [base.tokenizer.bos_id, *_ids(base, "dog ran"), 513], "something must precede the first token"


def _ids(made: Model, text: str) -> list[int]:
    return made.tokenizer.encode(text)


class Interrupted(Exception):
    pass


def test_an_interrupted_run_ends_as_if_it_had_not_been(tmp_path: Path) -> None:
    model().save(tmp_path / "base")
    data = write(tmp_path / "d.jsonl", False)
    more = ("train.tokens=2500", "train.ema=0.9", "train.save_every_tokens=1000", "train.keep_best=true")
    wanted = recipe(tmp_path / "base", data, False, {"rank": 2, "dropout": 0.1}, *more)
    train(wanted, tmp_path / "whole", device="cpu")

    def watch(event: Event) -> None:
        if event.kind == "checkpoint":
            raise Interrupted

    with pytest.raises(Interrupted):
        train(wanted, tmp_path / "part", device="cpu", on_event=watch)
    assert not (tmp_path / "part" / ADAPTER_CONFIG).exists()
    train(wanted, tmp_path / "part", device="cpu")
    first, second = (load_file(tmp_path / name / ADAPTER_WEIGHTS) for name in ("whole", "part"))
    assert first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)
    saved = next((tmp_path / "whole" / "train").glob("checkpoint-*")) / "state.safetensors"
    assert not any("embedding" in key for key in load_file(saved)), "what isn't trained isn't written"


def test_an_adapter_can_be_trained_further_by_another(tmp_path: Path) -> None:
    model().save(tmp_path / "base")
    data = write(tmp_path / "d.jsonl", False)
    train(recipe(tmp_path / "base", data, False, {"rank": 2}), tmp_path / "one", device="cpu")
    train(recipe(tmp_path / "one", data, False, {"rank": 3}), tmp_path / "two", device="cpu")
    base, one, two = (redraft.load(tmp_path / name, "cpu").logits(IDS) for name in ("base", "one", "two"))
    assert not torch.equal(base, one) and not torch.equal(one, two)
    with pytest.warns(UserWarning, match="two' was trained on .*one', not on .*base'"):
        redraft.load(tmp_path / "base", "cpu", adapter=tmp_path / "two")
    shutil.copytree(tmp_path / "base", tmp_path / "copy")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        redraft.load(tmp_path / "base", "cpu", adapter=tmp_path / "one")
        redraft.load(tmp_path / "copy", "cpu", adapter=tmp_path / "one")


def test_an_autoregressive_model_becomes_a_masked_one_by_an_adapter_alone(tmp_path: Path) -> None:
    model().save(tmp_path / "base")
    data = write(tmp_path / "d.jsonl", False)
    wanted = recipe(tmp_path / "base", data, False, {"rank": 2}, "family.name=masked")
    tables = {**wanted.tables(), "family": {"name": "masked"}, "curriculum": {"name": "anneal"}}
    train(Recipe.of(tables), tmp_path / "out", device="cpu")
    again = redraft.load(tmp_path / "out", "cpu")
    assert again.family_name == "masked" and again.spec.network.shift == 1


@pytest.mark.parametrize("tied", [True, False])
def test_the_vectors_of_tokens_that_a_conversion_adds_are_trained_and_kept(tmp_path: Path, tied: bool) -> None:
    tokenizer = Tokenizer.bytes()
    shape = preset("toy", tokenizer.vocab_size, dim=32, max_length=128, tied=tied)
    start = Model.fresh({"name": "autoregressive"}, tokenizer, shape, False, seed=3)
    start.save(tmp_path / "base")
    made = convert_family(start, {"name": "expand"})
    ids = [made.tokenizer.expand_id, made.tokenizer.delete_id]
    assert list(made.added) == ids and convert_family(made, {"name": "masked"}).added == made.added
    data = write(tmp_path / "d.jsonl", False)
    wanted = recipe(tmp_path / "base", data, False, {"rank": 2}, "family.name=expand")
    train(Recipe.of({**wanted.tables(), "family": {"name": "expand"}}), tmp_path / "out", device="cpu")
    saved = load_file(tmp_path / "out" / ADAPTER_WEIGHTS)
    names = ["model.embed_tokens", *([] if tied else ["lm_head"])]
    keys = {f"base_model.model.{name}.token_adapter.trainable_tokens_delta" for name in names}
    assert {key for key in saved if "lora" not in key} == keys
    indices = json.loads((tmp_path / "out" / ADAPTER_CONFIG).read_text())["trainable_token_indices"]
    assert indices == {name.rpartition(".")[2]: ids for name in names}
    again, before = redraft.load(tmp_path / "out", "cpu").network, made.network
    for name in ("embedding", *([] if tied else ["head"])):
        new, old = again.get_parameter(f"{name}.weight"), before.get_parameter(f"{name}.weight")
        assert torch.equal(new[: ids[0]], old[: ids[0]]), "all other vectors are those of the base"
        if tied or name == "head":  # these tokens are predicted, and never an input
            assert (new[ids] - old[ids]).abs().amax(1).min() > 1e-4


def test_merged_vectors_of_tokens_give_the_same_logits() -> None:
    made = convert_family(model(), {"name": "expand"})
    adapters.attach(made, Lora(2), "base")
    ask = replace(_ask(made), tokens=torch.tensor([[*range(5, 23), *made.added]]))
    disturbed(made)
    assert made.network.added is not None
    torch.nn.init.normal_(made.network.added.embedding)
    with torch.no_grad():
        before = made.network(ask)
        parts.merge(made.network)
        torch.testing.assert_close(made.network(ask), before, rtol=1e-4, atol=1e-4)


# ---- peft


def exported(folder: Path) -> Model:
    """A plain autoregressive model of ours, written as Llama."""
    made = model(prompt_encoder=False)
    export("llama", made.network, made.tokenizer, made.spec, folder, "float32", "")
    return made


def theirs(network: Any) -> Tensor:
    with torch.no_grad():
        logits: Tensor = network(IDS).logits
    return logits


def test_peft_loads_what_was_trained_here(tmp_path: Path) -> None:
    pytest.importorskip("peft")
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    exported(tmp_path / "base")
    data = write(tmp_path / "d.jsonl", False)
    lora = {"rank": 4, "alpha": 6.0, "targets": ["q_proj", "v_proj", "mlp.up_proj"], "rslora": True}
    train(recipe(tmp_path / "base", data, False, lora), tmp_path / "out", device="cpu")
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    before = theirs(base)
    found = theirs(PeftModel.from_pretrained(base, tmp_path / "out").eval())
    torch.testing.assert_close(found, redraft.load(tmp_path / "out", "cpu").logits(IDS), rtol=1e-4, atol=1e-4)
    assert float((found - before).abs().max()) > 1e-3


def _llama(folder: Path) -> Any:
    from transformers import AutoModelForCausalLM

    exported(folder)
    return AutoModelForCausalLM.from_pretrained(folder)


def _gpt2(folder: Path) -> Any:
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    network = GPT2LMHeadModel(GPT2Config(vocab_size=60, n_embd=32, n_layer=2, n_head=2, n_positions=64))
    network.save_pretrained(folder)
    return network.eval()


@pytest.mark.parametrize(
    "make, targets, more",
    [
        (_llama, ["q_proj", "o_proj", "down_proj"], {}),
        (_llama, "all-linear", {"use_rslora": True}),
        (_gpt2, ["c_attn", "c_fc"], {"fan_in_fan_out": True}),
        (_llama, ["q_proj"], {"trainable_token_indices": [7, 20]}),
        (_llama, ["q_proj"], {"trainable_token_indices": {"embed_tokens": [9, 30, 31]}}),
    ],
    ids=["llama", "llama-all", "gpt2", "tokens", "tokens by module"],
)
def test_what_peft_wrote_is_loaded(make: Callable[[Path], Any], targets: Any, more: Any, tmp_path: Path) -> None:
    pytest.importorskip("peft")
    from peft import LoraConfig, get_peft_model

    base = make(tmp_path / "base")
    torch.manual_seed(1)
    config = LoraConfig(r=4, lora_alpha=12, target_modules=targets, task_type="CAUSAL_LM", **more)
    network = get_peft_model(base, config).eval()
    for name, parameter in network.named_parameters():
        if "lora_B" in name or "trainable_tokens_delta" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    network.save_pretrained(tmp_path / "adapter")
    ours = redraft.load(tmp_path / "base", "cpu", adapter=tmp_path / "adapter")
    torch.testing.assert_close(ours.logits(IDS), theirs(network), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "change, says",
    [
        ({"use_dora": True}, "use_dora"),
        ({"peft_type": "IA3"}, "IA3"),
        ({"bias": "all"}, "bias"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"rank_pattern": {"q_proj": 2}}, "rank_pattern"),
        ({"init_lora_weights": "pissa"}, "pissa"),
        ({"r": None}, "numbers"),
    ],
)
def test_what_is_not_plain_lora_is_refused(change: dict[str, Any], says: str, tmp_path: Path) -> None:
    made = disturbed(_adapted(Lora(2)))
    made.save(tmp_path / "a")
    file = tmp_path / "a" / ADAPTER_CONFIG
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(UserError, match=says):
        adapters.merge(model(), adapters.read(tmp_path / "a"))


def test_files_that_do_not_fit_are_an_error_that_names_them(tmp_path: Path) -> None:
    made = disturbed(_adapted(Lora(2, targets=("q_proj",))))
    made.save(tmp_path / "a")
    other = Model.fresh({"name": "autoregressive"}, Tokenizer.bytes(), preset("toy", 261, dim=64), False)
    with pytest.raises(UserError, match="q_proj"):
        adapters.merge(other, adapters.read(tmp_path / "a"))
    file = tmp_path / "a" / ADAPTER_WEIGHTS
    state = load_file(file)
    save_file({key.replace("q_proj", "x_proj"): tensor for key, tensor in state.items()}, file)
    with pytest.raises(UserError, match="x_proj"):
        adapters.merge(model(), adapters.read(tmp_path / "a"))
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(UserError, match="corrupt"):
        adapters.merge(model(), adapters.read(tmp_path / "a"))
    file.unlink()
    with pytest.raises(UserError, match="does not exist"):
        adapters.merge(model(), adapters.read(tmp_path / "a"))
    with pytest.raises(UserError, match="not an adapter"):
        adapters.merge(model(), adapters.read(tmp_path))


def test_what_is_no_adapter_is_refused_before_the_base_is_read(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not an adapter"):
        redraft.load("no such base", "cpu", adapter=tmp_path)
    disturbed(_adapted(Lora(2))).save(tmp_path / "a")
    file = tmp_path / "a" / ADAPTER_CONFIG
    file.write_text(json.dumps(json.loads(file.read_text()) | {"use_dora": True}))
    with pytest.raises(UserError, match="use_dora"):
        redraft.load("no such base", "cpu", adapter=tmp_path / "a")


def test_an_adapter_that_names_no_base_needs_one(tmp_path: Path) -> None:
    disturbed(_adapted(Lora(2))).save(tmp_path / "a")
    file = tmp_path / "a" / ADAPTER_CONFIG
    file.write_text(json.dumps(json.loads(file.read_text()) | {"base_model_name_or_path": None}))
    with pytest.raises(UserError, match="base model"):
        redraft.load(tmp_path / "a", "cpu")
    model().save(tmp_path / "base")
    assert redraft.load(tmp_path / "base", "cpu", adapter=tmp_path / "a").logits(IDS).isfinite().all()
