"""Laws of model folders from elsewhere: a size that the weights don't have is refused before anything is built."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import redraft
from redraft.data.tokenizer import Tokenizer
from redraft.errors import UserError
from redraft.model import Model
from redraft.presets import preset
from tests.checkpoints import CONFIGS, write

HUGE = (10**5, 10**9, 2**31, 2**63, 10**30)


def change(file: Path, key: str, value: Any) -> None:
    content = json.loads(file.read_text())
    *path, last = key.split(".")
    place = content
    for name in path:
        place = place[name]
    place[last] = value
    file.write_text(json.dumps(content))


@pytest.fixture
def own(tmp_path: Path) -> Path:
    tokenizer = Tokenizer.bytes()
    Model.fresh({"name": "masked"}, tokenizer, preset("toy", tokenizer.vocab_size), True).save(tmp_path / "own")
    return tmp_path / "own"


@pytest.mark.parametrize("value", HUGE)
@pytest.mark.parametrize("key", ["layers", "dim", "heads", "kv_heads", "mlp_dim", "head_dim", "vocab_size"])
def test_sizes_that_the_weights_do_not_have_are_refused(key: str, value: int, own: Path) -> None:
    """``head_dim`` 10^9 once took 5 GB, and ``layers`` 10^5 minutes, before any weight was looked at."""
    change(own / "config.json", f"network.{key}", value)
    with pytest.raises(UserError):
        redraft.load(own)


@pytest.mark.parametrize("value", HUGE)
def test_positions_have_a_limit_of_their_own(value: int, own: Path) -> None:
    change(own / "config.json", "network.max_length", value)
    if value == 10**5:  # a context that the rotary table of a small network can have
        assert redraft.load(own).network.config.max_length == value
    else:
        with pytest.raises(UserError, match="max_length"):
            redraft.load(own)


@pytest.mark.parametrize("value", HUGE)
@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3", "gpt2"])
def test_sizes_of_public_checkpoints_are_refused(kind: str, value: int, tmp_path: Path) -> None:
    config = CONFIGS[kind][0]
    keys = ("num_hidden_layers", "n_layer", "hidden_size", "n_embd", "intermediate_size", "head_dim", "vocab_size")
    for key in (key for key in keys if key in config):
        folder = write(tmp_path / key, config)
        change(folder / "config.json", key, value)
        with pytest.raises(UserError):
            redraft.load(folder)


@pytest.mark.parametrize(("name", "value"), [("candidates", 100_000), ("steps", 2**31)])
def test_generation_settings_of_a_file_have_the_limits_of_a_request(name: str, value: int, own: Path) -> None:
    change(own / "generation_config.json", name, value)
    with pytest.raises(UserError, match=f"{name} = {value} must be"):
        redraft.load(own)


@pytest.mark.parametrize("name", ["config.json", "generation_config.json", "tokenizer_config.json"])
@pytest.mark.parametrize("content", ["[" * 100_000, '{"a": ' + "9" * 5000 + "}", "[]", "\x00", '{"a"'])
def test_files_that_are_no_json_object_are_named(name: str, content: str, own: Path) -> None:
    (own / name).write_text(content)
    with pytest.raises(UserError, match=name.replace(".", r"\.")):
        redraft.load(own)


# ---- adapters


def adapter(folder: Path, base: Path | str) -> Path:
    folder.mkdir(exist_ok=True)
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "base_model_name_or_path": str(base)}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def test_adapters_without_a_model_below_them_are_refused(tmp_path: Path) -> None:
    itself = adapter(tmp_path / "itself", tmp_path / "itself")
    one, two = adapter(tmp_path / "one", tmp_path / "two"), adapter(tmp_path / "two", tmp_path / "one")
    for folder in (itself, one, two):
        for read in (redraft.load, redraft.loading.family_of, redraft.loading.outline):
            with pytest.raises(UserError, match="no base model"):
                read(folder)
