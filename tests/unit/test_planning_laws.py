"""Laws of plans: the roofline, what devices send, the operations of an update, and that nothing is built to know."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from redraft.errors import UserError
from redraft.host_memory import resident
from redraft.models.parts.packed import packed_in
from redraft.planning import timing
from redraft.planning.machine import MACHINES, Machine, find, loopback
from redraft.planning.overview import Question, overview, recipe_of
from redraft.planning.parallel import Parallel
from redraft.planning.roofline import Decoder
from redraft.planning.step import step
from redraft.planning.training import Planned
from redraft.planning.twin import Outline

CPU = torch.device("cpu")
H100, H200 = MACHINES["h100"], MACHINES["h200"]
TOY = Question(preset="toy", length=64, batch_tokens=512, dtype="float32")


def outline(question: Question = TOY, *overrides: str) -> Outline:
    return Outline.of(recipe_of(question, overrides=overrides), question.dtype == "bfloat16")


# the roofline

LLAMA = Decoder(weights=7.505e9, layers=32, query_width=4096, kv_width=1024)
MILLISECONDS = {  # by rows, at 1, 8, 32 and 256 positions: arithmetic on the formulas, by hand
    1: (3.16, 3.16, 3.16, 4.06),
    8: (3.35, 3.35, 4.03, 32.5),
    32: (4.02, 4.03, 16.1, 130),
    128: (6.71, 16.1, 64.5, 520),
}


@pytest.mark.parametrize("rows", MILLISECONDS)
def test_the_time_of_a_pass(rows: int) -> None:
    machine = replace(H200, bfloat16=989e12, bandwidth=4.8e12)
    found = [1e3 * LLAMA.seconds(machine, rows, positions, 1024) for positions in (1, 8, 32, 256)]
    assert found == pytest.approx(MILLISECONDS[rows], rel=5e-3)


def test_blocks_break_even_at_more_tokens_in_larger_batches() -> None:
    found = [LLAMA.break_even(H200, rows, 32, 1024) for rows in (1, 8, 32, 128)]
    assert found == pytest.approx((1.0, 1.2, 4.0, 9.6), rel=0.01)
    assert all(LLAMA.break_even(H200, rows, 1, 1024) == 1 for rows in (1, 128)), "autoregression, by definition"


def test_ridges_are_those_of_the_data_sheets() -> None:
    ridges = {name: MACHINES[name].ridge() for name in ("a100", "h100", "h200")}
    assert ridges == pytest.approx({"a100": 153, "h100": 295, "h200": 206}, abs=0.5)


def test_a_mixture_reads_the_experts_that_its_positions_touch() -> None:
    dense = Decoder(10e9, 1, 1, 1)
    sparse = replace(dense, experts=(8, 2), expert_weights=8e9)
    assert sparse.flops(1, 1, 0) == pytest.approx(2 * 4e9, rel=1e-6), "2 of 8 experts compute"
    read = [sparse.bytes(1, m, 0) for m in (1, 2, 1000)]
    assert read == pytest.approx([2 * 4e9, 2 * (10e9 - 8e9 * 0.75**2), 2 * 10e9], rel=1e-3)


# several devices


def test_what_devices_send() -> None:
    """A ring all-reduce sends 2 (n - 1) / n of the gradients; FSDP gathers blocks twice."""
    run = outline()
    gradients = 4 * run.parameters
    assert Parallel(1, "fsdp").sent(run) == {}
    assert Parallel(4, "ddp").sent(run) == {"all-reduce": 1.5 * gradients}
    twice = 4 * (run.stacked + run.parameters)  # weights outside of blocks are gathered once
    assert Parallel(4, "fsdp").sent(run) == {"all-gather": 0.75 * twice, "reduce-scatter": 0.75 * gradients}


def test_sharded_states_are_whole_over_all_devices() -> None:
    question = replace(TOY, machine="h100")
    alone = Planned.of(recipe_of(question), CPU, H100).memory()
    shared, copied = (
        Planned.of(recipe_of(question), CPU, H100, Parallel(4, kind)).memory() for kind in ("fsdp", "ddp")
    )
    for name in ("weights", "optimizer", "gradients"):
        assert 4 * getattr(shared, name) == pytest.approx(getattr(alone, name), abs=4)
        assert getattr(copied, name) == getattr(alone, name)
    assert shared.gathered > 0 and copied.gathered == alone.gathered == 0


# an update


def test_the_operations_of_an_update_are_counted() -> None:
    """As many as three forward passes; one more with checkpointing, of the blocks and without the output projection."""
    run, machine = outline(replace(TOY, family="autoregressive")), replace(H100, reached=1.0, bandwidth=1e30)
    plain, again = (step(run, machine, mode) for mode in ("none", "full"))
    speed = machine.float32
    assert plain.products * speed == pytest.approx(plain.flops, rel=0.03)
    head = 3 * 2 * run.shape.vocab_size * run.shape.dim * 512
    assert again.products * speed == pytest.approx(head + (plain.products * speed - head) * 4 / 3, rel=0.05)
    assert again.flops == plain.flops, "recomputation is not useful work"


def test_an_update_grows_with_batch_and_accumulation() -> None:
    one, two, wide = (
        step(outline(TOY, *changes), H100, "none")
        for changes in ((), ("train.accumulate=2",), ("train.batch_tokens=1024",))
    )
    assert two.products == pytest.approx(2 * one.products) and wide.products == pytest.approx(2 * one.products, rel=0.1)
    assert one.optimizer == two.optimizer == wide.optimizer
    assert two.tokens == wide.tokens == 2 * one.tokens


def test_states_take_sixteen_bytes_a_weight_and_nothing_is_built_to_know() -> None:
    before = resident()
    recipe = recipe_of(Question(preset="8b"), overrides=("train.activation_checkpointing=full",))
    found = Planned.of(recipe, CPU, H100).memory()
    held = found.weights + found.gradients + found.optimizer
    assert held == 16 * 8_030_265_344  # of Llama-3-8B, whose shape it is, with its answer vector
    assert not found.fits
    assert resident() - before < 1 << 29


# this machine's pace


@pytest.mark.parametrize("quick", [1e9, 0.0], ids=["whole", "parts"])
@pytest.mark.parametrize("batches", [1, 4])
def test_a_machine_that_takes_three_times_as_long_has_a_pace_of_three(
    quick: float, batches: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether the whole run is timed, or two parts of it whose times are continued."""
    run = outline(TOY, "model.config.layers=12", f"train.accumulate={batches}")
    machine = replace(H100, accelerator=False)
    timed = list[int]()

    def seconds(part: Outline, mode: str, *rest: object) -> float:
        timed.append(part.shape.layers)
        return 3 * step(part, machine, mode).compute

    monkeypatch.setattr(timing, "_QUICK", quick)
    monkeypatch.setattr(timing, "_seconds", seconds)
    pace = timing.pace(run, machine, "none", CPU)
    assert pace == pytest.approx(3, rel=1e-6) and timed == ([12] if quick else [2, 8])
    plain, paced = step(run, machine, "none"), step(run, machine, "none", pace=pace)
    assert paced.seconds == pytest.approx(3 * plain.seconds)


@pytest.mark.parametrize(("together", "packing"), [(2, ""), (1, "int8")])
def test_a_replica_learns_as_the_run_does(together: int, packing: str) -> None:
    """With the run's vocabulary, optimizer and packing; processes that share a machine compute at the same time."""
    tuned = Question(lora_rank=4, base_dtype=packing or "auto", length=32, batch_tokens=64)
    recipe = recipe_of(tuned, "translate-en-de-masked") if packing else recipe_of(replace(TOY, vocab_size=300))
    run = Outline.of(recipe, bfloat16=False)
    replica = run.replica("none")
    assert replica.network.config.vocab_size == run.shape.vocab_size
    assert sum(p.numel() for p in replica.network.parameters() if p.requires_grad) == run.trained
    assert bool(list(packed_in(replica.network))) == bool(packing)
    assert timing._seconds(run, "none", CPU, together) > 0


def test_no_replica_is_built_that_does_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "available", lambda device: 1 << 20)
    assert timing.pace(outline(), H100, "none", CPU) == 1.0


def test_given_speeds_are_not_measured() -> None:
    assert not find("h100").measured and loopback(1 << 20) > 0


# questions


@pytest.mark.parametrize(
    ("changes", "target", "part"),
    [
        ({"preset": ""}, "", "--preset 8b"),
        ({}, "translate-en-de-masked", "Both"),
        ({"machine": "h10"}, "", "Did you mean 'h100'"),
        ({"preset": "9b"}, "", "preset '9b'"),
    ],
)
def test_wrong_questions_are_user_errors(changes: dict[str, str], target: str, part: str) -> None:
    with pytest.raises(UserError, match=part):
        overview(replace(TOY, **{"machine": "h100", **changes}), target)


def test_numbers_replace_those_of_a_machine() -> None:
    found = find("h100", bandwidth=1e12, memory=None)
    assert (found.bandwidth, found.memory) == (1e12, H100.memory)
    assert isinstance(found, Machine)
    with pytest.raises(UserError, match="bandwidth"):
        find("h100", bandwidth=-1.0)


def test_a_model_is_planned_as_it_is() -> None:
    found = overview(Question(machine="rtx4090", lora_rank=8, rows=4), "translate-en-de-masked")
    assert found.trained < found.parameters and found.training.optimizer == 8 * found.trained
    assert found.serving.models[0].weights == 2 * (found.parameters - found.trained)
    assert {one.rows for one in found.passes} == {1, 4}
    assert all(one.break_even >= 1 for one in found.passes)
