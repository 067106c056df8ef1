"""Post-training of every model of a study on the same rewards, after it was trained on the data."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from redraft.errors import UserError
from redraft.registry import field_names, names

if TYPE_CHECKING:
    import torch

    from redraft.compare.setup import Setup
    from redraft.train.logging import Event
    from redraft.train.recipe import Recipe

BEFORE = "before"  # folder of a model as it was, in that of the post-trained one
_PROMPTS_AT_ONCE = 4  # of a batch, at least


def check(objective: Mapping[str, Any], planned: bool) -> None:
    """Check a study's ``post_training``, before anything is trained.

    Args:
        planned: the budget of the study is a time.
    Raises:
        UserError: not an objective with rewards, a wrong option, or the study's time is planned.
    """
    from redraft.posttraining import build_method  # imports torch
    from redraft.registry import find

    fits = [name for name in names("posttraining") if "reward" in field_names(find("posttraining", name))]
    method = build_method(objective)
    if method is None or method.name not in fits:
        what = f"--post-training name={objective.get('name')} has no rewards that all families can get alike."
        raise UserError(what, f"One of {', '.join(fits)}.")
    if planned:
        what = "The time of post-training is not planned."
        raise UserError(what, "Give --budget-tokens or --passes, or leave out --post-training.")


def recipe(setup: Setup, first: Recipe, family: str, start: Path) -> Recipe:
    """The recipe by which a model is trained further: its own, with rewards in place of the data's answers.

    Args:
        first: the recipe by which it was trained. start: its folder.
    """
    from redraft.families import build_family
    from redraft.posttraining import build_method, build_objective

    study, reading = setup.study, setup.readings[family]
    described = dict(study.post_training)
    described["generation"] = {"max_new_tokens": reading.new_tokens, **described.get("generation", {})}
    method = build_method(described)
    assert method is not None
    objective = build_objective(method, build_family(setup.family(family))[1].objective(), setup.spec(family))
    answer = reading.new_tokens
    row = objective.units_of_row() * objective.estimator.rows(answer) * (reading.length + answer)
    train = {
        "passes": min(1.0, study.post_prompts / len(setup.dataset.train)),
        "lr": study.post_lr or method.learning_rate,
        "batch_tokens": max(first.train.batch_tokens, _PROMPTS_AT_ONCE * row),
        "log_every": 1,
    }
    none = {"tokens": 0, "minutes": 0.0, "dropout": 0.0, "drop_prompt": 0.0, "keep_best": False, "ema": 0.0}
    tables = {**first.tables(), "model": {"from": str(start)}, "curriculum": {}, "objective": described}
    tables["train"] |= {**train, **none, "validate_every": 0, "validation_rows": 0}
    return type(first).of(tables, f"post-training of {family}", folder=first.folder)


def run(
    setup: Setup, first: Recipe, family: str, folder: Path, device: torch.device, watch: Callable[[Event], None]
) -> dict[str, Any]:
    """Train the model in ``folder/before`` further, into ``folder`` -> the fields of ``PostTrainingRun``.

    Raises:
        UserError: an estimator or a reward doesn't fit, or as in training.
    """
    from redraft.planning.training import fitted
    from redraft.train.loop import train

    wanted, _ = fitted(recipe(setup, first, family, folder / BEFORE), device)
    result = train(wanted, folder, device=str(device), on_event=watch)
    lines = map(json.loads, (folder / "train" / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
    rewards = [line["reward"] for line in lines if line["kind"] == "update"]
    some = max(1, len(rewards) // 4)
    prompts = round(result.passes * len(setup.dataset.train))
    return {
        "prompts": prompts,
        "texts": prompts * _group(wanted),
        "steps": result.steps,
        "flops": result.flops,
        "seconds": result.seconds,
        "first_reward": sum(rewards[:some]) / some,
        "last_reward": sum(rewards[-some:]) / some,
    }


def _group(wanted: Recipe) -> int:
    """Texts for each prompt."""
    from redraft.posttraining import build_method
    from redraft.posttraining.reward import Reward

    method = build_method(wanted.objective)
    assert isinstance(method, Reward)
    return method.group
