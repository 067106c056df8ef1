"""A prompt without tokens, in every family and through every door: a text begins as in training, or it is refused."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
import tokenizers
import torch

from redraft import registry
from redraft.conversion import convert_family
from redraft.data.examples import Example
from redraft.data.tokenising import tokenise
from redraft.data.tokenizer import Tokenizer
from redraft.data.vocabulary import Ids, Vocabulary
from redraft.errors import UserError
from redraft.generation.prompts import prompt_ids
from redraft.model import Model
from redraft.presets import preset

TEXT = "the cat sat on a mat"


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train([TEXT, "a dog ran"] * 5, 300)


def fresh(name: str, tokenizer: Any, paired: bool) -> Model:
    vectors = {"width": 16} if "width" in registry.find("families", name).__dataclass_fields__ else {}
    shape = preset("toy", tokenizer.vocab_size, dim=32, max_length=64)
    if registry.find("families", name).needs_target:
        return convert_family(fresh("autoregressive", tokenizer, paired), {"name": name})
    return Model.fresh({"name": name, **vectors}, tokenizer, shape, paired, seed=1)


@pytest.mark.parametrize("name", registry.names("families"))
def test_an_empty_prompt_begins_as_in_training_or_is_refused(tokenizer: Tokenizer, name: str) -> None:
    model = fresh(name, tokenizer, paired=True)
    for empty in ("", " ", [], ()):
        with pytest.raises(UserError, match="The prompt is empty"):
            model.generate([empty, "a dog"], max_new_tokens=2)
    if name == "latent":
        return  # its network encodes a prompt
    model = fresh(name, tokenizer, paired=False)
    first, alone = model.generate(["", [tokenizer.bos_id]], max_new_tokens=2)[0], model.generate([[]], max_new_tokens=2)
    beside = model.generate([[], "the cat"], max_new_tokens=2)
    assert first.ids == alone[0].ids == beside[0].ids


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Vocabulary:
    """A tokenizer that puts nothing before a text, such as Qwen's and SmolLM's."""
    folder = tmp_path_factory.mktemp("bare")
    words = {word: i for i, word in enumerate(["<end>", "<mask>", *TEXT.split(), "dog"])}
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="<end>"))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    backend.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<end>", "mask_token": "<mask>"}))
    return Vocabulary(Ids(16, eos=0, mask=1), folder)


@pytest.mark.parametrize("name", ["autoregressive", "hybrid", "masked"])
def test_without_a_first_token_of_its_own_a_text_begins_with_that_of_training(bare: Vocabulary, name: str) -> None:
    assert bare.encode_opening("") == [] and bare.bos_id == 0
    model = fresh(name, bare, paired=False)
    texts = [model.generate(prompt, max_new_tokens=4)[0].ids for prompt in ([""], [[]], [[0]])]
    assert texts[0] == texts[1] == texts[2]
    assert len(list(model.stream([], max_new_tokens=2))) > 0
    # The first token is scored given what training puts before it, and never given itself.
    score = model.score("", "cat", samples=2).nats
    if name == "autoregressive":
        logits = model.logits(torch.tensor([[0]]))[0, 0].clone()
        logits[list(model.spec.tokens.forbidden)] = -torch.inf
        log_p = logits.log_softmax(-1)
        assert score == pytest.approx(-float(log_p[bare.encode("cat")[0]]), abs=1e-5)
    else:
        assert math.isfinite(score)
    if name == "masked":
        assert model.infill("[[2]] cat").text.endswith("cat")
    # A row with an empty prompt among pairs.
    pairs = fresh(name, bare, paired=True)
    assert prompt_ids(pairs, "") == tokenise([Example("", "cat", "x:1")], bare).ids[:1].tolist() == [0]
