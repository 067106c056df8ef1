"""``redraft finetune``: continue training a checkpoint on your own data."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from redraft.cli import _processes as p
from redraft.cli import _training as t
from redraft.cli._common import Device, DryRun, Json
from redraft.cli._options import Options, listed
from redraft.cli._verbs import verb
from redraft.errors import UserError
from redraft.lora import ALL, Lora
from redraft.options import declared
from redraft.train.tables import CurriculumTable, DataTable, FamilyTable, ModelTable, ObjectiveTable, TrainTable

LEARNING_RATE, PASSES = 3e-4, 3.0
Reward = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="What --objective reward rewards: a name (see: redraft models --rewards), or FILE.py:FUNCTION.",
    ),
]


@verb(order=50, resumes=True, processes=True)
def finetune(
    context: typer.Context,
    model: Annotated[dict[str, Any], Options(ModelTable, only=("from_",))],
    data: Annotated[dict[str, Any], Options(DataTable)],
    out: t.Out,
    family: Annotated[dict[str, Any], Options(FamilyTable, defaults=False)],
    curriculum: Annotated[dict[str, Any], Options(CurriculumTable)],
    objective: Annotated[dict[str, Any], Options(ObjectiveTable)],
    lora: Annotated[dict[str, Any], Options(Lora, defaults=False)],
    training: Annotated[dict[str, Any], Options(TrainTable, defaults=False)],
    reward: Reward = None,
    set_: t.Set = None,
    dry_run: DryRun = False,
    nproc: p.Processes = 1,
    max_restarts: p.Restarts = 0,
    as_json: Json = False,
    device: Device = "auto",
) -> dict[str, Any]:
    """Continue training a checkpoint on your own data. --from and --data are required.

    \b
    Examples:
      redraft finetune --from translate-en-de-masked --data my.jsonl --input question --target answer --out runs/mine
      redraft finetune --from runs/stories --data notes.txt --minutes 5 --out runs/notes
      redraft finetune --from meta-llama/Llama-3.2-1B --data my.jsonl --lora-rank 8 --lora-targets q_proj,v_proj --out a
      redraft finetune --from base-autoregressive --data notes.txt --family masked --curriculum anneal --out runs/masked
      redraft finetune --from base-autoregressive --data notes.txt --family drafter --out runs/drafter
      redraft finetune --from runs/mine --objective reward --reward numeric --data questions.jsonl --out runs/rewarded

    The checkpoint brings its family, shape and tokenizer, and its generation settings where they fit. With --family it
    is converted first: an autoregressive model becomes a masked one that still predicts the next position
    (--set family.shift=0: its own position).
    With --family drafter it stays as it is: layers beside it learn to draft for it, from texts that it writes itself.
    With --lora-rank the output folder holds an adapter in peft's layout. The folder can be used as a model as long as
    the base model is where it was. --lora-alpha is twice the rank by default.
    Defaults: a learning rate of 3e-4, and three passes over the data if no budget is given; with --objective 1e-5 and
    one pass. If the run is interrupted, the same command resumes it from the last checkpoint.
    """
    from redraft.loading import family_of, stable_name

    start = t.require(model, "from_", "--from")
    t.require(data, "source", "--data")
    objective, rate, passes = _objective(objective, reward, set_ or [])
    if not training.keys() & {"tokens", "passes", "minutes"}:
        training = {**training, "passes": passes}
    values = {
        "data": data,
        "family": family or family_of(start),
        "curriculum": curriculum,
        "model": {"from": stable_name(start)},
        "lora": _lora(lora),
        "train": {"lr": rate, **training},
        "objective": objective,
    }
    made = t.recipe_of(values, "command line", set_)
    p.start(context, made, nproc, max_restarts)
    return t.run(made, out, device, as_json, dry_run)


def _objective(given: dict[str, Any], reward: str | None, set_: list[str]) -> tuple[dict[str, Any], float, float]:
    """The table ``[objective]``, and the defaults of the learning rate and of the passes over the data."""
    from redraft.objectives.conversion import is_conversion
    from redraft.registry import find

    if reward is not None:
        if not _reads_reward(given):
            raise UserError("--reward needs an objective that reads it.", "Add --objective reward.")
        given = {**given, "reward": reward}
    if not given or is_conversion(given):
        return given, LEARNING_RATE, PASSES
    if _reads_reward(given) and reward is None and not any(one.startswith("objective.reward=") for one in set_):
        what = f"--objective {given['name']} needs a reward."
        raise UserError(what, "Add --reward NAME (see: redraft models --rewards).")
    method = find("posttraining", given["name"])
    return given, method.learning_rate, method.passes


def _reads_reward(given: dict[str, Any]) -> bool:
    """Does an ``[objective]`` have a reward among its options?"""
    from redraft.registry import field_names, find, names

    name = given.get("name", "")
    return name in names("posttraining") and "reward" in field_names(find("posttraining", name))


def _lora(given: dict[str, Any]) -> dict[str, Any] | None:
    """The table ``[lora]``; None without ``--lora-rank``: all weights are trained."""
    if "rank" not in given:
        if given:
            option = declared(Lora)[next(iter(given))].option
            raise UserError(f"{option} needs an adapter.", "Add --lora-rank 8.")
        return None
    targets = given.get("targets", ALL)
    if targets != ALL and not set(targets) & set("*+?()[]|^$\\{}"):  # a list of names, not a regular expression
        targets = list(listed(targets, "--lora-targets"))
    return {"alpha": 2.0 * given["rank"], **given, "targets": targets}
