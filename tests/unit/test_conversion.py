"""A model of one family as the beginning of another: what is kept, what is added, and that it trains."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import torch

import redraft
from redraft import loading
from redraft.conversion import convert_family
from redraft.data.tokenizer import Tokenizer
from redraft.data.vocabulary import Ids, Vocabulary
from redraft.errors import UserError
from redraft.families import build_family
from redraft.model import Model
from redraft.models.transformer import Config, Transformer
from redraft.objectives.masked import Masked
from redraft.objectives.wrappers.joint import Joint
from redraft.presets import preset
from redraft.registry import field_names, find, names
from redraft.train.loop import train
from redraft.train.recipe import Recipe
from redraft.types import AttentionPattern, Forward
from tests.tiny import VOCABULARY, family, pairs

WORDS = ["the", "cat", "sat", "on", "a", "mat", "where", "dog", "ran", "to", "house", "bird", "sang", "all", "day"]
TEXTS = [" ".join(WORDS[(n * step + step) % len(WORDS)] for step in range(1, 6 + n % 3)) for n in range(90)]


def model(family: str = "autoregressive", paired: bool = False, **fields: Any) -> Model:
    tokenizer = Tokenizer.bytes()
    shape = preset("toy", tokenizer.vocab_size, dim=32, max_length=128)
    return Model.fresh({"name": family, **fields}, tokenizer, shape, paired, seed=3)


def causal_logits(made: Model, ids: torch.Tensor) -> torch.Tensor:
    pos = torch.arange(ids.shape[1]).expand_as(ids)
    with torch.inference_mode():
        return made.network.eval()(
            Forward(
                tokens=ids, positions=pos, targets=pos + made.spec.network.shift, attention=AttentionPattern("causal")
            )
        )


SHIFTED = [name for name in names("families") if "shift" in field_names(find("families", name))]


@pytest.mark.parametrize("name", SHIFTED)
def test_with_the_shift_kept_causal_logits_are_those_of_the_autoregressive_model(name: str) -> None:
    ids = torch.randint(5, 200, (2, 12))
    start = model()
    before = start.logits(ids).flatten(0, 1)
    made = convert_family(start, {"name": name})
    assert made.spec.network.shift == made.network.config.shift == 1
    assert made.spec.network.attention.kind == ("block" if name == "block" else "full")
    after = causal_logits(made, ids)[:, : before.shape[1]]  # without tokens that the family adds
    assert torch.allclose(after, before, atol=1e-5)


def test_with_the_shift_dropped_predictions_are_read_where_they_belong() -> None:
    masked = convert_family(model(), {"name": "masked", "shift": 0})
    assert masked.network.config.shift == masked.spec.network.shift == 0
    text = masked.generate("the ", max_new_tokens=4)[0]
    assert len(text.ids) <= 4


@pytest.mark.parametrize("name", ["masked", "block", "hybrid", "uniform"])
def test_what_is_saved_can_be_loaded_and_written_with(name: str, tmp_path: Path) -> None:
    start = model()
    start.defaults = {"max_new_tokens": 8, "temperature": 0.0, "sampler": "autoregressive"}
    convert_family(start, {"name": name}).save(tmp_path / "m")
    again = redraft.load(tmp_path / "m", "cpu")
    assert again.family_name == name and again.defaults == {"max_new_tokens": 8, "temperature": 0.0}
    assert again.generate("a")[0].nfe > 0


def test_generation_settings_are_inherited_where_they_fit() -> None:
    """Alike families write alike; another noise keeps the lengths tried, one that ends its texts itself not even these;
    nothing is left that the model would refuse."""
    own = {"sampler": "confidence", "steps": 5, "candidates": 3, "max_new_tokens": 9, "weights": "float32"}
    for name, gone in (
        ("distilled", set()),
        ("masked", set()),
        ("uniform", {"sampler", "steps"}),
        ("block", {"sampler", "steps", "candidates"}),
    ):
        start = model("masked", paired=True)
        start.defaults = dict(own)
        made = convert_family(start, {"name": name, **({"block": 4} if name == "block" else {})})
        assert made.defaults == {key: value for key, value in own.items() if key not in gone}, name
        assert made.generate("a")[0].nfe > 0
    blocks = model("masked", paired=True)
    blocks.defaults = dict(own)
    assert "steps" not in convert_family(blocks, {"name": "masked", "block": 4}).defaults  # more than a block has


def test_the_same_family_stays_what_it_was() -> None:
    start = model("masked", paired=True, weight="bound", prompt_encoder=False)
    same = convert_family(start, {"name": "masked", **vars(start.family)})
    assert same.family == start.family and same.spec == start.spec


def test_a_network_that_is_told_the_time_is_refused_by_one_that_is_not() -> None:
    with pytest.raises(UserError, match="takes the time"):
        convert_family(model("masked", timed=True), {"name": "masked"})


def foreign(folder: Path, size: int, **special: str) -> Vocabulary:
    """A word-level tokenizer from elsewhere."""
    words = {word: i for i, word in enumerate(["[UNK]", *special.values(), *WORDS])}
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="[UNK]"))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    backend.add_special_tokens([tokenizers.AddedToken(token, special=True) for token in special.values()])
    folder.mkdir(parents=True, exist_ok=True)
    backend.save(str(folder / "tokenizer.json"))
    names = {f"{key}_token": token for key, token in special.items()}
    (folder / "tokenizer_config.json").write_text(json.dumps(names))
    return Vocabulary(Ids(size, **{key: words[token] for key, token in special.items()}), folder)


def with_foreign(vocabulary: Vocabulary) -> Model:
    torch.manual_seed(0)
    network = Transformer(Config(vocabulary.vocab_size, dim=32, layers=2, heads=2, shift=1, restart=False)).eval()
    name, built = build_family({"name": "autoregressive", "prompt_encoder": False})
    return Model(network, vocabulary, built, name, False)


def test_the_mask_takes_an_id_that_the_tokenizer_leaves_unused(tmp_path: Path) -> None:
    vocabulary = foreign(tmp_path / "t", 64, eos="</s>")
    used = len(vocabulary.backend.get_vocab(with_added_tokens=True))
    masked = convert_family(with_foreign(vocabulary), {"name": "masked"})
    assert masked.spec.tokens.mask_id == used and masked.network.config.vocab_size == 64
    assert masked.spec.tokens.mask_id in masked.spec.tokens.forbidden
    masked.save(tmp_path / "m")
    again = redraft.load(tmp_path / "m", "cpu")
    assert again.spec == masked.spec and again.tokenizer.backend.token_to_id("<|mask|>") == used
    assert not again.spec.network.prompt_encoder and not again.spec.network.length_head
    named = json.loads((tmp_path / "m" / "tokenizer_config.json").read_text())
    assert named["mask_token"] == "<|mask|>" and named["eos_token"] == "</s>"


def test_where_there_is_none_the_vocabulary_grows_by_the_mean(tmp_path: Path) -> None:
    used = 2 + len(WORDS)
    vocabulary = foreign(tmp_path / "t", used, eos="</s>")
    start = with_foreign(vocabulary)
    ids = torch.arange(2, 10)[None]
    before, table = start.logits(ids).flatten(0, 1), start.network.embedding.weight.clone()
    masked = convert_family(start, {"name": "masked"})
    weight = masked.network.embedding.weight
    assert weight.shape[0] == used + 1 == masked.tokenizer.vocab_size and torch.equal(weight[:used], table)
    torch.testing.assert_close(weight[used], table.mean(0))
    torch.testing.assert_close(causal_logits(masked, ids)[:, :used], before)


def test_a_masked_checkpoint_that_does_not_name_its_mask_is_not_given_another(tmp_path: Path) -> None:
    start = convert_family(with_foreign(foreign(tmp_path / "t", 64, eos="</s>")), {"name": "masked"})
    nameless = Vocabulary(replace(start.tokenizer.ids, mask=-1), tmp_path / "t")  # type: ignore[attr-defined]
    start.tokenizer = nameless
    with pytest.raises(UserError, match="don't name its mask"):
        convert_family(start, {"name": "masked"})


def write(path: Path) -> Path:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS), encoding="utf-8")
    return path


def recipe(start: Path, data: Path, family: dict[str, Any], *overrides: str, curriculum: str = "anneal") -> Recipe:
    tables = {
        "data": {"source": str(data), "text": "text", "length": 32, "fractions": [0.9, 0.05, 0.05]},
        "model": {"from": str(start)},
        "family": family,
        "curriculum": {"name": curriculum},
        "train": {"tokens": 700, "batch_tokens": 330, "validation_rows": 4, "threads": 1, "dtype": "float32"},
    }
    return Recipe.of(tables, overrides=overrides)


def bert(folder: Path) -> Path:
    """A tiny ``BertForMaskedLM`` as transformers writes it, with a tokenizer."""
    from transformers import BertConfig, BertForMaskedLM

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    words = {word: i for i, word in enumerate([*special, *WORDS])}
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="[UNK]"))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    backend.add_special_tokens([tokenizers.AddedToken(token, special=True) for token in special])
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    BertForMaskedLM(BertConfig(vocab_size=len(words), max_position_embeddings=64, **shape)).save_pretrained(folder)
    backend.save(str(folder / "tokenizer.json"))
    return folder


@pytest.mark.parametrize("curriculum", ["anneal", "blocks"])
@pytest.mark.parametrize("shift", [0, 1])
def test_an_autoregressive_checkpoint_is_trained_into_a_masked_one(tmp_path: Path, curriculum: str, shift: int) -> None:
    model().save(tmp_path / "ar")
    wanted = recipe(
        tmp_path / "ar", write(tmp_path / "d.jsonl"), {"name": "masked", "shift": shift}, curriculum=curriculum
    )
    result = train(wanted, tmp_path / "out", device="cpu")
    assert result.steps >= 2 and result.validation is not None and result.validation["is_bound"]
    again = redraft.load(tmp_path / "out", "cpu")
    assert again.family_name == "masked" and again.spec.network.shift == shift
    assert "curriculum" not in json.loads((tmp_path / "out" / "config.json").read_text())


def test_an_encoder_is_trained_into_a_masked_model_that_ends_its_texts(tmp_path: Path) -> None:
    start = bert(tmp_path / "bert")
    family = loading.family_of(start)
    result = train(recipe(start, write(tmp_path / "d.jsonl"), family), tmp_path / "out", device="cpu")
    assert result.steps >= 2
    again = redraft.load(tmp_path / "out", "cpu")
    separator = again.tokenizer.backend.token_to_id("[SEP]")
    assert again.family_name == "masked" and again.spec.tokens.eos_id == separator and again.tokenizer.has("eos")
    assert again.generate("the cat", max_new_tokens=4)[0].nfe > 0


def test_both_losses_at_once() -> None:
    """On random logits the joint loss is the sum of its parts, and its bound that of the masked part."""
    spec, objective = family("masked", True, shift=1, autoregressive=0.5)
    rows = pairs([([5, 6, 4], [7, 5, 1]), ([6, 4], [6, 6, 7, 1])])
    joint = Joint(objective, 0.5)  # type: ignore[arg-type]
    assert isinstance(objective, Masked)
    prepared = joint.prepare(rows, spec, torch.Generator().manual_seed(0))
    alone = objective.prepare(rows, spec, torch.Generator().manual_seed(0))
    logits = torch.randn(len(prepared.target), VOCABULARY.vocab_size, generator=torch.Generator().manual_seed(1))
    logits.requires_grad_()
    terms = joint.loss(logits, prepared)
    terms.loss.backward()
    count = len(alone.target)
    first = objective.loss(logits[:count].detach().clone(), alone)
    clean = logits[count:].detach().clone()
    clean[:, [*spec.tokens.forbidden]] = -torch.inf
    chain = torch.nn.functional.cross_entropy(clean, prepared.target[count:], reduction="sum") / prepared.tokens
    torch.testing.assert_close(terms.loss, first.loss + 0.5 * chain)
    torch.testing.assert_close(terms.nats, first.nats)
    assert torch.equal(prepared.target[count:], rows.ids[rows.target]) and logits.grad is not None
    with pytest.raises(UserError, match="shift"):
        joint.prepare(rows, spec.with_network(shift=0), torch.Generator())


def test_the_clean_stream_is_the_autoregressive_model() -> None:
    spec, objective = family("masked", True, shift=1)
    ar = family("autoregressive", True)
    rows = pairs([([5, 6, 4], [7, 5, 1]), ([6, 4], [6, 6, 7, 1])])
    torch.manual_seed(0)
    network = Transformer(Config(VOCABULARY.vocab_size, dim=32, layers=2, heads=2, shift=1)).eval()
    joint = Joint(objective, 1.0).prepare(rows, spec, torch.Generator().manual_seed(0))  # type: ignore[arg-type]
    with torch.no_grad():
        ours = network(joint.request)[-int(rows.target.sum()) :]
        theirs = network(ar[1].prepare(rows, ar[0], torch.Generator()).request)
    torch.testing.assert_close(ours, theirs)
