"""Training on the pretend device: every kind of recipe, resuming, and the waits of an update."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import redraft
from redraft.train.loop import train
from redraft.train.recipe import Recipe
from tests import pretend_device
from tests.device.counting import RECIPES, UPDATES, per_update, tiny
from tests.device.flows.conftest import FULL


def trained(path: Path, out: Path, **more: Any) -> Any:
    return train(Recipe.load(path, tiny(Recipe.load(path), **more)), out, device="cuda")


FOLDERS = ("toy", "pretrain", "finetune", "zoo") if FULL else ("toy",)
# By default one recipe of each family and of each way to train; the others train like one of these.
LEFT_OUT = () if FULL else ("anneal", "cross-autoregressive", "novels-autoregressive", "novels-block")
TRAINING = [p for folder in FOLDERS for p in sorted((RECIPES / folder).glob("*.toml")) if p.stem not in LEFT_OUT]


@pytest.mark.parametrize("path", TRAINING, ids=lambda p: f"{p.parent.name}-{p.stem}")
def test_a_recipe_trains(path: Path, tmp_path: Path, log: pretend_device.Log) -> None:
    result = trained(path, tmp_path / "run")
    assert result.steps >= 2 and result.validation is not None
    assert not log.of("unmoved")
    if FULL:
        assert redraft.load(tmp_path / "run", device="cuda").network.device.type == "cuda"


VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "accumulated": ("masked", {"train.accumulate": 2, "train.batch_tokens": 512}),
    "averaged": ("masked", {"train.ema": 0.9, "train.keep_best": True, "train.validate_every": 500}),
    "recomputed": ("masked", {"train.activation_checkpointing": "full"}),
    "dropout": ("masked", {"train.dropout": 0.1, "train.drop_prompt": 0.5}),
    "compiled": ("masked", {"train.compile": True}),
    "float32": ("masked", {"train.dtype": "float32"}),
    "bound": ("masked", {"family.weight": "bound", "family.timed": True}),
    "complementary": ("masked", {"family.complementary": True}),
    "smoothed": ("masked", {"family.label_smoothing": 0.1}),
    "joint": ("masked", {"family.shift": 1, "family.autoregressive": 0.5}),
    "open-prompt": ("masked", {"family.prompt_encoder": False, "family.length_head": False}),
    "uniform-hybrid": ("hybrid", {"family.process": "uniform", "family.self_condition": 0.5}),
    "searched-blocks": ("block", {"family.search": True, "train.validate_every": 500}),
    "d3pm-uniform": ("d3pm", {"family.process": "uniform"}),
    "sedd-uniform": ("sedd", {"family.process": "uniform"}),
    "bound-embedding": ("embedding", {"family.weight": "bound", "family.self_condition": 1.0}),
    "uniform-embedding": ("embedding", {"family.weight": "uniform", "family.self_condition": 1.0}),
    "self-conditioned-latent": ("latent", {"family.self_condition": 1.0}),
    "edit-from-noise": ("edit", {"family.noise": 0.5}),
    "random-distilled": ("distilled", {"family.order": "random"}),
    "long-windows": ("novels-masked", {"data.length": 128, "train.batch_tokens": 2048}),
}
SOME = VARIANTS if FULL else ("joint", "bound-embedding")


@pytest.mark.parametrize("name", SOME)
def test_a_variant_trains(name: str, tmp_path: Path) -> None:
    recipe, more = VARIANTS[name]
    assert trained(RECIPES / "toy" / f"{recipe}.toml", tmp_path / "run", **more).steps >= 1


@pytest.mark.parametrize("name", ["preference", "reward"])
def test_post_training(name: str, tmp_path: Path, log: pretend_device.Log) -> None:
    rows = [{"prompt": f"I am {n}.", "chosen": f"Ich bin {n}.", "rejected": "Nein."} for n in range(8)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    objective: dict[str, Any] = {"name": name}
    if name == "reward":
        objective |= {"reward": "chrf", "group": 2, "kl": 0.1, "generation": {"max_new_tokens": 8}}
    columns = {"input": "prompt", "target": "chosen"}
    values = {
        "data": {"source": str(tmp_path / "rows.jsonl"), "fractions": (1.0, 0.0, 0.0), **columns},
        "model": {"from": "translate-en-de-masked"},
        "train": {"passes": 1.0, "batch_tokens": 600, "lr": 1e-4},
        "objective": objective,
    }
    assert train(Recipe.of(values), tmp_path / "run", device="cuda").steps >= 1
    assert not log.of("unmoved")


class Stop(Exception):
    pass


@pytest.mark.skipif(not FULL, reason="REDRAFT_FULL=1 runs it")
@pytest.mark.parametrize("recipe", ["masked", "latent", "lora"])
def test_a_run_goes_on_from_its_checkpoint(recipe: str, tmp_path: Path) -> None:
    def stop(event: Any) -> None:
        if event.kind == "checkpoint":
            raise Stop

    path = RECIPES / "toy" / f"{recipe}.toml"
    more = {"train.tokens": 3000, "train.save_every_tokens": 1000}
    chosen = Recipe.load(path, tiny(Recipe.load(path), **more))
    with pytest.raises(Stop):
        train(chosen, tmp_path / "run", device="cuda", on_event=stop)
    resumed = train(chosen, tmp_path / "run", device="cuda")
    whole = train(chosen, tmp_path / "whole", device="cuda")
    assert resumed.steps == whole.steps > 1
    assert resumed.validation == whole.validation


# Most waits of the host per update of training, for predictions that decide about the next masks. Others never wait.
WAITS = {"self-conditioned": 1.0, "glancing": 1.0, "thought": 1.0, "distilled": 9.0}


@pytest.mark.parametrize("recipe", UPDATES if FULL else ("masked",))
def test_an_update_waits_no_more_than_it_did(recipe: str, tmp_path: Path, log: pretend_device.Log) -> None:
    assert per_update(log, recipe, tmp_path / "run") <= WAITS.get(recipe, 0.0), log.report()
