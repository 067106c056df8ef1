"""Training on preferences and rewards: what rows are read, exact resume, what is logged, and errors for people."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import redraft
from redraft import adapters
from redraft.data.columns import Columns
from redraft.data.examples import Example, load
from redraft.data.post_training import PreferenceRows, PromptRows, tokenise_preferences
from redraft.data.tokenizer import Tokenizer
from redraft.errors import UserError
from redraft.lora import Lora
from redraft.model import Model
from redraft.models.parts.lora import adapted, base_of
from redraft.presets import preset
from redraft.train.logging import Event
from redraft.train.loop import train
from redraft.train.recipe import Recipe
from redraft.types import Forward

FAMILIES: dict[str, dict[str, Any]] = {
    "masked": {"name": "masked"},
    "block": {"name": "block", "block": 4},
    "autoregressive": {"name": "autoregressive"},
}


def rows(path: Path, values: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(value) + "\n" for value in values))
    return str(path)


# ---- data


def read(path: Path, values: list[dict[str, Any]], reader: Any, columns: Columns | None = None) -> list[Example]:
    return load(rows(path, values), columns, fractions=(1.0, 0.0, 0.0), rows=reader).train.rows


USER, SYSTEM = {"role": "user", "content": "Hi?"}, {"role": "system", "content": "Be short."}
YES, NO = ({"role": "assistant", "content": text} for text in ("Yes.", "No."))


@pytest.mark.parametrize(
    ("row", "prompt"),
    [
        ({"prompt": "Hi?", "chosen": "Yes.", "rejected": "No."}, "Hi?"),
        ({"chosen": "Human: Hi? Yes.", "rejected": "Human: Hi? No."}, "Human: Hi? "),
        ({"prompt": [USER], "chosen": [YES], "rejected": [NO]}, "Hi?"),
        ({"prompt": "Hi?", "chosen": [YES], "rejected": [NO]}, "Hi?"),
        ({"chosen": [SYSTEM, USER, YES], "rejected": [SYSTEM, USER, NO]}, "system: Be short.\nuser: Hi?"),
    ],
)
def test_preferences_have_the_columns_of_trl(row: dict[str, Any], prompt: str, tmp_path: Path) -> None:
    [example] = read(tmp_path / "p.jsonl", [row], PreferenceRows())
    assert (example.prompt, example.target, example.rejected) == (prompt, "Yes.", "No.")
    assert bool(example.turns) == isinstance(row["chosen"], list)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "a", "chosen": "", "rejected": "b"}, "'chosen' is empty"),
        ({"prompt": "a", "chosen": "b", "rejected": None}, "'rejected' is null"),
        ({"chosen": "b", "rejected": "c"}, "don't begin with the same prompt"),
        ({"chosen": [YES], "rejected": [NO]}, "are not the same messages"),
        ({"prompt": "a", "chosen": "b"}, "no column 'rejected'"),
        ({"chosen": [USER, YES, USER, NO], "rejected": [USER, NO]}, "are not the same messages"),
    ],
)
def test_bad_preferences_are_named(row: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        read(tmp_path / "p.jsonl", [row], PreferenceRows())


def test_columns_of_preferences_can_be_named(tmp_path: Path) -> None:
    row = {"q": "Hi?", "good": "Yes.", "bad": "No."}
    [example] = read(tmp_path / "p.jsonl", [row], PreferenceRows("bad"), Columns(input="q", target="good"))
    assert (example.prompt, example.target, example.rejected) == ("Hi?", "Yes.", "No.")


@pytest.mark.parametrize(
    ("row", "prompt", "reference"),
    [
        ({"prompt": "3 5", "numbers": [3, 5], "target": 8}, "3 5", ""),
        ({"question": "q", "answer": "a"}, "q", "a"),
        ({"prompt": [SYSTEM, USER]}, "system: Be short.\nuser: Hi?", ""),
        ({"messages": [USER, YES]}, "Hi?", "Yes."),
    ],
)
def test_prompts_keep_all_columns(row: dict[str, Any], prompt: str, reference: str, tmp_path: Path) -> None:
    [example] = read(tmp_path / "p.jsonl", [row], PromptRows())
    assert (example.prompt, example.target, example.values) == (prompt, reference, row)


def test_a_number_can_be_a_reference(tmp_path: Path) -> None:
    [example] = read(tmp_path / "p.jsonl", [{"q": "1+1", "n": 2}], PromptRows(), Columns(input="q", target="n"))
    assert example.target == "2"
    with pytest.raises(UserError, match="--input"):
        read(tmp_path / "p.jsonl", [{"text": "no prompt"}], PromptRows())


def test_pairs_of_which_one_answer_is_too_long_are_left_out_together() -> None:
    tokenizer = Tokenizer.bytes()
    examples = [Example("p", "a" * n, f"f:{n}", rejected="b" * m) for n, m in ((3, 9), (4, 4), (9, 3), (2, 5))]
    data = tokenise_preferences(examples, tokenizer)
    assembler, fitted = data.assembler(tokenizer, 10, 100, "skip")
    assert fitted.rows.tolist() == [1, 3] and fitted.skipped == ["f:9", "f:3"]
    [batch] = assembler.plan_epoch(None)
    made = assembler.assemble(batch)
    assert made.target.sum(1).tolist() == [5, 3, 5, 6]  # preferred answers, then the rejected ones
    assert made.prompt is not None and torch.equal(made.ids[:2, :2], made.ids[2:, :2])
    with pytest.raises(UserError, match="skip"):
        data.assembler(tokenizer, 10, 100, "truncate_prompt")


# ---- the reference of an adapter


@pytest.mark.parametrize("packing", ["", "int8"])
def test_the_reference_of_an_adapter_is_its_base_without_a_copy(packing: str) -> None:
    tokenizer = Tokenizer.bytes()
    shape = preset("toy", tokenizer.vocab_size, dim=32, max_length=64)
    made = Model.fresh({"name": "masked"}, tokenizer, shape, True, seed=3)
    made.network.requires_grad_(True)
    adapters.attach(made, Lora(4), "base", packing)
    network = made.network.eval()
    ids = torch.arange(5, 25)[None]
    pos = torch.arange(20)[None]
    request = Forward(ids, pos, pos, made.spec.network.attention)
    before = network(request).detach()
    for module in adapted(network):
        torch.nn.init.normal_(module.lora_b)
    base = base_of(network)
    assert torch.equal(base(request), before) and not torch.equal(network(request), before)
    own = {parameter.data_ptr() for parameter in network.parameters()}
    assert {parameter.data_ptr() for parameter in base.parameters()} <= own
    assert all(parameter.requires_grad == ("lora" in name) for name, parameter in network.named_parameters())


# ---- runs


class Interrupted(Exception):
    pass


def interrupt(event: Event) -> None:
    if event.kind == "checkpoint" and event.step >= 2:
        raise Interrupted


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Untrained models of pairs of each family."""
    tokenizer, folder = Tokenizer.bytes(), tmp_path_factory.mktemp("base")
    shape = preset("toy", tokenizer.vocab_size, dim=32, max_length=48)
    for name, family in FAMILIES.items():
        Model.fresh(family, tokenizer, shape, True, seed=3).save(folder / name)
    return {name: folder / name for name in FAMILIES}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("data")
    words = ["red", "blue", "green", "white", "black", "grey", "pink", "brown"]
    preferences = [{"prompt": word, "chosen": f"{word}!", "rejected": word[::-1]} for word in words]
    return {
        "preference": rows(folder / "preferences.jsonl", preferences),
        "reward": rows(
            folder / "prompts.jsonl", [{"prompt": word, "key": number} for number, word in enumerate(words)]
        ),
        "judge": write(folder / "judge.py", "def vowels(text, row): return sum(map(text.count, 'aeiou')) - row['key']"),
    }


def write(path: Path, text: str) -> str:
    path.write_text(text)
    return str(path)


TRAIN = {"passes": 2.0, "batch_tokens": 900, "accumulate": 2, "lr": 1e-2, "save_every_tokens": 1, "threads": 1}
TRAIN |= {"dtype": "float32", "log_every": 1, "warmup": 0.0}


def recipe(start: Path, source: str, objective: dict[str, Any], **more: Any) -> Recipe:
    values = {
        "data": {"source": source, "fractions": (1.0, 0.0, 0.0), "length": 24},
        "model": {"from": str(start)},
        "family": FAMILIES[start.name],
        "train": TRAIN,
        "objective": objective,
    }
    return Recipe.of({**values, **more})


def rewarded(data: dict[str, str], **more: Any) -> dict[str, Any]:
    given = {"name": "reward", "reward": f"{data['judge']}:vowels", "group": 3, "kl": 0.1}
    return {**given, "generation": {"max_new_tokens": 6}, **more}


# Family, objective, adapter, and tokens of a batch: about two rows of the data.
RUNS = [("masked", "preference", False, 160), ("autoregressive", "preference", True, 40)]
RUNS += [("masked", "reward", True, 170), ("autoregressive", "reward", False, 80), ("block", "reward", False, 300)]
RUNS += [("masked", "sandwich", False, 170)]


@pytest.mark.parametrize(("family", "name", "lora", "tokens"), RUNS)
def test_an_interrupted_run_ends_as_if_it_had_not_been(
    family: str, name: str, lora: bool, tokens: int, base: dict[str, Path], data: dict[str, str], tmp_path: Path
) -> None:
    objective = {"name": "preference"} if name == "preference" else rewarded(data, name=name)
    more: dict[str, Any] = {"train": {**TRAIN, "batch_tokens": tokens}}
    source = data["preference" if name == "preference" else "reward"]
    made = recipe(base[family], source, objective, **more, **({"lora": {"rank": 2}} if lora else {}))
    whole = train(made, tmp_path / "whole", device="cpu")
    assert whole.steps >= 3
    with pytest.raises(Interrupted):
        train(made, tmp_path / "run", device="cpu", on_event=interrupt)
    again = train(made, tmp_path / "run", device="cpu")
    file = "adapter_model.safetensors" if lora else "model.safetensors"
    assert (tmp_path / "run" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes()
    assert again.flops == whole.flops
    logs = [logged(tmp_path / one) for one in ("whole", "run")]
    assert logs[0] == logs[1]
    reported = {"margin", "accuracy", "chosen_gain", "rejected_gain", "drift"}
    reported = reported if name == "preference" else {"reward", "length", "identical", "truncated", "kl"}
    assert all(reported <= line.keys() for line in logs[0])
    first, last = logs[0][0], logs[0][-1]
    if name == "preference":
        assert first["margin"] == 0 and last["margin"] > 0.1  # it learns the eight rows by heart
    else:
        assert first["kl"] == 0 and last["kl"] > 0 and 0 < first["length"] <= 6
    redraft.load(str(tmp_path / "run")).generate("red", max_new_tokens=4)


def logged(out: Path) -> list[dict[str, Any]]:
    """What the log of a run says of its updates, without timings."""
    timings = {"tokens_per_second", "share_of_peak", "seconds", "eta_seconds"}
    lines = map(json.loads, (out / "train" / "metrics.jsonl").read_text().splitlines())
    return [
        {key: value for key, value in line.items() if key not in timings} for line in lines if line["kind"] == "update"
    ]


def test_rewards_are_learned(base: dict[str, Path], data: dict[str, str], tmp_path: Path) -> None:
    """An untrained model, which writes any byte, learns to write those below the letters."""
    file = write(tmp_path / "low.py", "def low(text): return sum(letter < '@' for letter in text)")
    objective = rewarded(data, reward=f"{file}:low", group=8, kl=0.0)
    made = recipe(base["autoregressive"], data["reward"], objective, train=TRAIN | {"passes": 15.0, "accumulate": 1})
    train(made, tmp_path / "run", device="cpu")
    rewards = [line["reward"] for line in logged(tmp_path / "run")]
    assert sum(rewards[-4:]) / 4 > sum(rewards[:4]) / 4 + 1.0


# ---- errors


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train": {"passes": 1.0, "dropout": 0.1}}, "dropout"),
        ({"train": {"passes": 1.0, "keep_best": True}}, "keep_best"),
        ({"train": {"passes": 1.0, "drop_prompt": 0.1}}, "needs the prompts"),
        ({"lora": {"rank": 2, "dropout": 0.1}}, "dropout"),
        ({"curriculum": {"name": "anneal"}}, "curriculum"),
        ({"model": {}}, "Name a trained checkpoint"),
        ({"train": {"passes": 1.0, "batch_tokens": 100}}, "train.batch_tokens"),
    ],
)
def test_combinations_that_make_no_sense(
    changes: dict[str, Any], message: str, base: dict[str, Path], data: dict[str, str], tmp_path: Path
) -> None:
    made = recipe(base["masked"], data["preference"], {"name": "preference"}, **changes)
    with pytest.raises(UserError, match=message):
        train(made, tmp_path / "run", device="cpu")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"reward": "countdwn"}, "Did you mean 'countdown'"),
        ({"reward": "exact"}, "prompts.jsonl:1.*no reference answer"),
        ({"reward": "exact", "reward_options": {"x": 1}}, "unknown option 'x'"),
        ({"generation": {"max_new_tokens": 47}}, "no room for a prompt"),
        ({"generation": {"max_tokens": 8}}, "unknown option 'max_tokens'"),
        ({"estimator": "one_stp"}, "Did you mean 'one_step'"),
        ({"group": 1}, "group = 1"),
        ({"generation": {"max_new_tokens": 6, "candidates": 2}}, "candidates at 1"),
        ({"generation": {"max_new_tokens": 6, "steps": 7}}, "steps"),
    ],
)
def test_wrong_options_of_rewards(
    options: dict[str, Any], message: str, base: dict[str, Path], data: dict[str, str], tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message):
        train(recipe(base["masked"], data["reward"], rewarded(data, **options)), tmp_path / "run", device="cpu")


def test_an_exception_of_a_user_function_shows_the_row(
    base: dict[str, Path], data: dict[str, str], tmp_path: Path
) -> None:
    file = write(tmp_path / "broken.py", "def f(text, row):\n    return 1 / (row['key'] - 3)")
    made = recipe(base["masked"], data["reward"], rewarded(data, reward=f"{file}:f"))
    with pytest.raises(UserError, match=r"ZeroDivisionError.*line 2.*prompts.jsonl:4.*'white'"):
        train(made, tmp_path / "run", device="cpu")
