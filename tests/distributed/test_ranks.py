"""Two processes train what one trains: the same curve, the same weights, and checkpoints that either can read.

All runs of the two processes are made in one start of them, while this process makes those of one.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from redraft.cli._main import main
from redraft.data.tokenizer import Tokenizer
from redraft.errors import UserError
from redraft.families import build_family
from redraft.model import Model
from redraft.presets import preset
from redraft.train import throughput
from redraft.train.interrupt import Interrupt
from redraft.train.parallel import place
from redraft.train.ranks import Ranks, batch_seeds
from tests.distributed.worker import TOY, Group, Job

# Two processes share the batches of an update, two or four; dropout and averaged weights are those of the recipes.
SMALL = [
    "data.length=112",
    "train.tokens=0",
    "train.batch_tokens=128",
    "train.log_every=1",
    "train.validate_every=0",
    "train.validation_rows=5",
    "train.save_every_seconds=1000",
    "train.threads=1",
    "train.dtype=float32",
]
BYTES = ["tokenizer.kind=bytes", "model.config.layers=2", "model.config.dim=32", "model.config.heads=2"]
STOP = 4
CLOCK = {"seconds", "eta_seconds", "tokens_per_second", "share_of_peak"}
KINDS = ("ddp", "fsdp")


def overrides(name: str, *more: str) -> list[str]:
    network = [] if name in ("lora", "latent") else BYTES
    kept = ["train.keep_best=true"] if name == "masked" else []
    return [*SMALL, *kept, f"train.accumulate={2 if name in ('autoregressive', 'block') else 4}", *network, *more]


TOKENS = {"autoregressive": 10_500, "masked": 20_000, "block": 10_500, "latent": 2500, "self-conditioned": 2500}
TOKENS["lora"] = 1200  # one of our shipped models
if not os.environ.get("REDRAFT_FULL"):
    del TOKENS["self-conditioned"]
FIFTY = ("autoregressive", "masked", "block")
RESUMED = "autoregressive"  # what stops on some processes and goes on with others


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with all runs: NAME-one, NAME-ddp, NAME-fsdp, and those that stopped and went on."""
    root = tmp_path_factory.mktemp("ranks")
    patch = pytest.MonkeyPatch()
    patch.setattr(throughput.runtime, "peak_matmul", lambda *_, **__: 1e12)

    def job(name: str, out: str, *more: str, stop_at: int = 0) -> Job:
        budget = f"train.tokens={TOKENS[name]}"
        parts = name == "block" and not out.endswith("one")  # more of them on one rank than on the other
        return Job(name, str(root / out), overrides(name, budget, *more), stop_at, parts)

    assert job(RESUMED, "one-then-ddp", stop_at=STOP).run() == "stopped"
    shutil.copytree(root / "one-then-ddp", root / "one-then-fsdp")
    jobs = [job(name, f"{name}-{kind}", f"train.parallel={kind}") for name in TOKENS for kind in KINDS]
    jobs += [job(RESUMED, f"{kind}-then-one", f"train.parallel={kind}", stop_at=STOP) for kind in KINDS]
    jobs += [job(RESUMED, f"one-then-{kind}", f"train.parallel={kind}") for kind in KINDS]
    jobs.append(job("masked", "fsdp-bfloat16", "train.parallel=fsdp", "train.dtype=bfloat16"))
    jobs += [job("masked", f"{kind}-diverges", f"train.parallel={kind}", "train.lr=1e30") for kind in KINDS]
    group = Group(jobs, root / "group")
    for name in TOKENS:
        assert job(name, f"{name}-one").run() == "done"
    assert job("masked", "one-bfloat16", "train.dtype=bfloat16").run() == "done"
    ends = group.ended()
    for kind in KINDS:
        assert job(RESUMED, f"{kind}-then-one", f"train.parallel={kind}").run() == "done"
    (root / "ends.json").write_text(json.dumps([ends[number] for number in range(len(jobs))]))
    yield root
    patch.undo()


def curve(out: Path) -> list[dict[str, Any]]:
    lines = map(json.loads, (out / "train" / "metrics.jsonl").read_text().splitlines())
    return [{key: value for key, value in line.items() if key not in CLOCK} for line in lines]


def same_curve(out: Path, expected: Path) -> None:
    """Equal steps, tokens and learning rates, and equal losses and norms up to rounding."""
    found, wanted = curve(out), curve(expected)
    assert len(found) == len(wanted) > 3
    for one, other in zip(found, wanted, strict=True):
        assert one.pop("kind") == other.pop("kind")
        assert one == pytest.approx(other, rel=2e-4, abs=2e-5), one["step"]


def weights(out: Path) -> dict[str, torch.Tensor]:
    return load_file(next(out.glob("*model.safetensors")))


# ---- equal to one process


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", FIFTY)
def test_two_processes_follow_the_curve_of_one(name: str, kind: str, runs: Path) -> None:
    """Losses, norms and the validation of averaged weights over fifty updates with dropout.

    Each process scores its share of the validation rows, one of them one more than the other.
    The logits of ``block`` are computed a few at a time, the number of times depending on the rank.
    """
    same_curve(runs / f"{name}-{kind}", runs / f"{name}-one")
    assert curve(runs / f"{name}-one")[-1]["step"] >= 50


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", sorted(TOKENS.keys() - set(FIFTY)))
def test_passes_that_depend_on_the_batch_and_a_frozen_base(name: str, kind: str, runs: Path) -> None:
    """Two phases with unused parameters; a second pass for some batches only; adapters on a sharded base."""
    same_curve(runs / f"{name}-{kind}", runs / f"{name}-one")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["masked", "latent", "lora"])
def test_the_model_is_saved_as_by_one_process(name: str, kind: str, runs: Path) -> None:
    """The weights of the best validation, averaged weights, and an adapter."""
    one, two = runs / f"{name}-one", runs / f"{name}-{kind}"
    assert {path.name for path in two.iterdir()} == {path.name for path in one.iterdir()}
    config = "adapter_config.json" if name == "lora" else "config.json"
    assert (two / config).read_text() == (one / config).read_text()
    expected = weights(one)
    for key, found in weights(two).items():
        torch.testing.assert_close(found, expected[key], atol=2e-4, rtol=2e-3)
    results = [json.loads((out / "train" / "result.json").read_text()) for out in (one, two)]
    assert all(results[0][key] == results[1][key] for key in ("steps", "tokens", "passes", "flops", "parameters"))


def test_blocks_gathered_in_bfloat16_follow_autocast(runs: Path) -> None:
    """As by one process, whose products are in bfloat16, up to that type's rounding of gains and of sums."""
    found, wanted = (
        [line for line in curve(runs / name) if line["kind"] in ("update", "validation")]
        for name in ("fsdp-bfloat16", "one-bfloat16")
    )
    assert len(found) == len(wanted) > 50
    for one, other in zip(found, wanted, strict=True):
        key = "loss" if one["kind"] == "update" else "nats_per_token"
        assert one[key] == pytest.approx(other[key], rel=0.02), one["step"]
    assert all(tensor.dtype == torch.float32 for tensor in weights(runs / "fsdp-bfloat16").values())


# ---- checkpoints


@pytest.mark.parametrize("kind", KINDS)
def test_what_two_processes_save_one_continues_and_the_reverse(kind: str, runs: Path) -> None:
    for out in (runs / f"{kind}-then-one", runs / f"one-then-{kind}"):
        same_curve(out, runs / f"{RESUMED}-one")
        assert json.loads((out / "train" / "result.json").read_text())["steps"] >= 50


@pytest.mark.parametrize("kind", KINDS)
def test_a_checkpoint_of_two_processes_is_two_files_and_no_pickle(kind: str, runs: Path) -> None:
    (last,) = sorted((runs / f"masked-{kind}" / "train").glob("checkpoint-*"))[-1:]
    assert {path.suffix for path in last.iterdir()} == {".json", ".safetensors"}
    parts = [load_file(path) for path in last.glob("*.safetensors")]
    assert len(parts) == 2
    largest = max((t.numel() for part in parts for t in part.values()), default=0)
    assert largest < 10**6 and not list(last.parent.glob(".checkpoint*"))


@pytest.mark.parametrize("kind", KINDS)
def test_a_loss_that_is_not_finite_stops_both(kind: str, runs: Path) -> None:
    ends = json.loads((runs / "ends.json").read_text())
    assert all(end == ["done", "done"] for end in ends[: 2 * len(TOKENS)])
    diverged = ends[-2 + KINDS.index(kind)]
    assert len(diverged) == 2 and all("not finite" in end and "lower learning rate" in end for end in diverged)
    stopped = ends[2 * len(TOKENS) + KINDS.index(kind)]
    assert stopped == ["stopped", "stopped"]


# ---- alone


def test_the_seeds_of_batches_differ() -> None:
    seeds = [batch_seeds(seed, number) for seed in (0, 1) for number in range(500)]
    assert len({one for pair in seeds for one in pair}) == 2 * len(seeds)


def test_batches_that_cannot_be_shared_evenly_are_refused() -> None:
    assert Ranks(world=4).share(8) == 2
    with pytest.raises(UserError, match="accumulate=4"):
        Ranks(world=4).share(3)


@pytest.mark.parametrize("family", ["distilled"])
def test_what_cannot_be_sharded_is_refused(family: str) -> None:
    tokenizer = Tokenizer.bytes()
    model = Model.fresh({"name": family}, tokenizer, preset("toy", tokenizer.vocab_size), True, 0)
    objectives = [phase.objective for phase in build_family({"name": family})[1].phases()]
    with pytest.raises(UserError, match="ddp"):
        place(model.network, "fsdp", Ranks(world=2), torch.device("cpu"), objectives)


def test_torchrun_may_repeat_ctrl_c() -> None:
    """The terminal tells every process, and torchrun tells it once more; alone, the second one stops at once."""
    with Interrupt(Ranks(world=2)) as interrupt:
        for _ in range(2):
            signal.raise_signal(signal.SIGINT)
        assert interrupt.requested
    with Interrupt(Ranks()) as interrupt, pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)
        assert interrupt.requested
        signal.raise_signal(signal.SIGINT)


RECIPE = str(TOY / "masked.toml")


@pytest.mark.parametrize(
    ("options", "variables", "says"),
    [
        (["--nproc", "2"], {}, "accumulate=2"),
        (["--max-restarts", "2"], {}, "--nproc"),
        (["--nproc", "3"], {"MASTER_ADDR": "localhost", "RANK": "0", "WORLD_SIZE": "2"}, "already"),
    ],
)
def test_processes_that_cannot_be_started_are_refused(
    options: list[str],
    variables: dict[str, str],
    says: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert main(["train", RECIPE, "--out", str(tmp_path / "run"), *options]) == 2
    assert says in capsys.readouterr().err and not (tmp_path / "run").exists()


def test_a_command_for_one_process_is_refused_under_torchrun(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in {"TORCHELASTIC_RUN_ID": "x", "RANK": "1", "WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    assert main(["models", "--presets"]) == 2
    assert "rank 1: error: 'redraft models'" in capsys.readouterr().err
