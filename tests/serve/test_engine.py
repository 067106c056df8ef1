"""The engine: texts do not depend on the batch, slots are freed, and every sequence ends."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from redraft.data.tokenizer import Tokenizer
from redraft.errors import UserError
from redraft.generation.loop import Call
from redraft.generation.prompts import prompt_ids
from redraft.generation.start import start_prompts
from redraft.loading import load
from redraft.model import Model
from redraft.presets import preset, shape
from redraft.serve import batching
from redraft.serve.engine import Engine, EngineLimits
from redraft.serve.incremental_text import Span
from redraft.serve.jobs import Event, Failed, Finished, Job, Progress, Rejected, RequestOutcome
from redraft.types import AttentionPattern, Forward, VectorQuery
from tests.drafters import drafter_for

PROMPTS = ["the cat", "a dog ran to the house", "where is", "on a mat the bird sang all day", "mat", "to to to"]
VARIANTS: dict[str, list[dict[str, Any]]] = {
    "masked": [
        {"sampler": "confidence", "steps": 5},
        {"sampler": "confidence", "steps": 4, "options": {"block": 4}, "temperature": 1.0},
        {"sampler": "threshold", "options": {"threshold": 0.2}, "temperature": 0.7, "top_p": 0.9},
        {"sampler": "first_hitting", "temperature": 1.0, "top_k": 9},
        {"sampler": "ancestral", "temperature": 1.0, "steps": 6},
        {"sampler": "confidence", "steps": 6, "options": {"block": 4}, "cache": "dual"},
        {"sampler": "confidence", "steps": 5, "cache": "delayed", "temperature": 1.0},
        {"sampler": "mask_predict", "steps": 4, "cache": "none"},
        {"sampler": "wino"},
        {"sampler": "confidence", "steps": 4, "length": "search"},
        {"sampler": "confidence", "steps": 5, "length": "search", "candidates": 2, "cache": "none"},
    ],
    "autoregressive": [{}, {"temperature": 1.0}, {"options": {"beams": 3}}, {"temperature": 1.0, "cache": "none"}],
}


@dataclass
class Events:
    """Collects the events of an engine."""

    events: list[Event] = field(default_factory=list)
    ready: threading.Condition = field(default_factory=threading.Condition)

    def __call__(self, event: Event) -> None:
        with self.ready:
            self.events.append(event)
            self.ready.notify_all()

    @property
    def ends(self) -> list[Finished | Failed]:
        return [event for event in self.events if not isinstance(event, Progress)]

    def wait(self, count: int) -> list[Finished | Failed]:
        with self.ready:
            assert self.ready.wait_for(lambda: len(self.ends) >= count, 60), "the engine sent no event for a minute"
        return self.ends

    def streamed(self, job: Job) -> str:
        return "".join(e.text for e in self.events if isinstance(e, Progress | Finished) and e.job is job)


def double(folder: Path) -> Model:
    """A model in float64, so that batches of different sizes can't differ by rounding."""
    model = load(folder, "cpu")
    model.network.double()
    return model


def job(model: Model, prompt: str, events: Events, seed: int = 0, **way: Any) -> Job:
    chosen = model.settings(max_new_tokens=12, seed=seed, **way)
    head = prompt_ids(model, prompt)
    drafting = start_prompts(model, [head], chosen)
    return Job(drafting, Span(len(head), len(head) + 12), events)


@pytest.fixture(params=["pairs-masked", "pairs-autoregressive", "text-masked", "text-autoregressive"])
def model(request: pytest.FixtureRequest, folders: dict[str, Path]) -> Model:
    return double(folders[request.param])


@pytest.fixture
def engine(model: Model) -> Iterator[Engine]:
    opened = Engine(model, EngineLimits(rows=7, queue=200))
    yield opened
    opened.close()


def variants(model: Model) -> list[dict[str, Any]]:
    found = VARIANTS[model.family_name]
    return [*found, {"candidates": 3, "steps": 4}] if model.spec.network.length_head else found


@pytest.mark.parametrize("family", ["expand", "edit"])
def test_variable_length_texts_do_not_depend_on_the_batch(family: str) -> None:
    """Rows grow and shrink next to each other in one key-value store, which has room for the longest."""
    tokenizer = Tokenizer.bytes()
    model = Model.fresh({"name": family}, tokenizer, preset("toy", tokenizer.vocab_size, max_length=64), True, seed=1)
    for parameter in model.network.parameters():
        if parameter.ndim == 2:
            parameter.data.mul_(4)
    model.network.double()
    found = [{"start": start, "temperature": t} for start in (0, 1, 6) for t in (0.0, 1.0)] + [{"temperature": 1.0}]
    asked = [(prompt, seed, way) for seed, prompt in enumerate(PROMPTS[:3]) for way in found]
    offline = [model.generate(prompt, max_new_tokens=12, seed=seed, **way)[0] for prompt, seed, way in asked]
    events = Events()
    engine = Engine(model, EngineLimits(rows=5, queue=200))
    try:
        jobs = [job(model, prompt, events, seed, **way) for prompt, seed, way in asked]
        engine.submit("crowd", jobs)
        ends = {end.job: end for end in events.wait(len(jobs))}
    finally:
        engine.close()
    for one, truth in zip(jobs, offline, strict=True):
        end = ends[one]
        assert isinstance(end, Finished), end
        assert (end.result.text, end.result.ids, end.result.nfe) == (truth.text, truth.ids, truth.nfe)
        assert events.streamed(one) == truth.text


def test_texts_do_not_depend_on_the_batch_and_equal_offline_generation(model: Model, engine: Engine) -> None:
    """All samplers, lengths, temperatures, cache policies and widths at once, more of them than slots."""
    asked = [(prompt, seed, way) for seed, prompt in enumerate(PROMPTS) for way in variants(model)]
    offline = [model.generate(prompt, max_new_tokens=12, seed=seed, **way)[0] for prompt, seed, way in asked]
    events = Events()
    jobs = [job(model, prompt, events, seed, **way) for prompt, seed, way in asked]
    engine.submit("crowd", jobs)
    ends = {end.job: end for end in events.wait(len(jobs))}
    alone = Events()
    lone = job(model, *(asked[3][0], alone), seed=asked[3][1], **asked[3][2])
    engine.submit("alone", [lone])
    ends[jobs[3]] = replace(alone.wait(1)[0], job=jobs[3])
    for one, truth in zip(jobs, offline, strict=True):
        end = ends[one]
        assert isinstance(end, Finished), end
        assert end.result.ids == truth.ids
        assert (end.result.text, end.result.finish) == (truth.text, truth.finish)
        assert end.result.nfe == truth.nfe
        assert end.result.score == pytest.approx(truth.score, abs=1e-6)
        assert events.streamed(one) == truth.text
    assert engine.slots.free == 7
    assert engine.counts["rows"] > 2 * engine.counts["forward_passes"], "few forward passes were shared"


@pytest.mark.parametrize("kind", ["drafter", "reading", "hybrid", "block"])
def test_speculative_and_blockwise_sequences_share_forward_passes(kind: str, folders: dict[str, Path]) -> None:
    """Two networks, or one network with two kinds of request: they must not be batched together."""
    made = double(folders["pairs-autoregressive"])
    ways: list[dict[str, Any]] = [
        {"sampler": "draft_verify", "options": {"block": 3, "adaptive": False}},
        {"sampler": "autoregressive"},
    ]
    if kind == "drafter":
        made.draft_with(double(folders["pairs-masked"]))
    elif kind == "reading":
        made = drafter_for(folders["pairs-autoregressive"], block=4)
        made.network.double()
    else:
        made = Model.fresh({"name": kind, "block": 4}, made.tokenizer, replace(made.network.config, shift=0), True)
        made.network.double()
    if kind == "block":
        ways = [{"sampler": "confidence", "steps": 2}, {"sampler": "first_hitting", "temperature": 1.0}]
    asked = [(prompt, seed, way) for seed, prompt in enumerate(PROMPTS) for way in ways]
    offline = [made.generate(prompt, max_new_tokens=12, seed=seed, **way)[0] for prompt, seed, way in asked]
    opened, events = Engine(made, EngineLimits(rows=7, queue=200)), Events()
    jobs = [job(made, prompt, events, seed, **way) for prompt, seed, way in asked]
    opened.submit("crowd", jobs)
    ends = {end.job: end for end in events.wait(len(jobs))}
    opened.close()
    for one, truth in zip(jobs, offline, strict=True):
        end = ends[one]
        assert isinstance(end, Finished), end
        assert (end.result.ids, end.result.nfe) == (truth.ids, truth.nfe)
    assert opened.counts["rows"] > opened.counts["forward_passes"]


def test_the_number_of_drafts_is_chosen_from_measurements_and_the_text_stays(folders: dict[str, Path]) -> None:
    """An untrained drafter is wrong nearly always, so that drafting stops."""
    made = drafter_for(folders["pairs-autoregressive"], block=8)
    made.network.double()
    offline = [made.generate(prompt, max_new_tokens=12, seed=seed)[0] for seed, prompt in enumerate(PROMPTS)]
    opened, events = Engine(made, EngineLimits(rows=4, queue=200)), Events()
    for repeat in range(4):
        jobs = [job(made, prompt, events, seed) for seed, prompt in enumerate(PROMPTS)]
        opened.submit("crowd", jobs)
        ends = {end.job: end for end in events.wait(len(PROMPTS) * (repeat + 1))}
        for one, truth in zip(jobs, offline, strict=True):
            end = ends[one]
            assert isinstance(end, Finished) and end.result.ids == truth.ids
    opened.close()
    lengths = opened.draft_lengths
    assert all(each.count > 0 for each in lengths.times.values())
    assert lengths.acceptance.tokens(7) < 2.5 and lengths.best(4) in (0, 1)


@pytest.mark.parametrize(
    "family",
    [{"name": "masked"}, {"name": "autoregressive"}, {"name": "masked", "self_condition": 0.5}],
    ids=["masked", "autoregressive", "self-conditioned"],
)
def test_sequences_of_an_encoder_decoder_share_forward_passes(family: dict[str, Any], folders: dict[str, Path]) -> None:
    """Rows that encode their prompts and rows whose prompts are encoded already share one forward pass."""
    tokenizer = load(folders["pairs-masked"], "cpu").tokenizer
    made = Model.fresh(family, tokenizer, shape("toy", tokenizer.vocab_size, "cross_attention"), True, 1)
    for parameter in made.network.double().parameters():
        if parameter.ndim == 2:
            parameter.data.mul_(5)
    if made.spec.network.self_conditioning:
        torch.nn.init.normal_(made.network.self_conditioning.weight)
    asked = [(prompt, seed, way) for seed, prompt in enumerate(PROMPTS) for way in variants(made)]
    offline = [made.generate(prompt, max_new_tokens=12, seed=seed, **way)[0] for prompt, seed, way in asked]
    opened, events = Engine(made, EngineLimits(rows=7, queue=200)), Events()
    jobs = [job(made, prompt, events, seed, **way) for prompt, seed, way in asked]
    opened.submit("crowd", jobs)
    ends = {end.job: end for end in events.wait(len(jobs))}
    opened.close()
    for one, truth in zip(jobs, offline, strict=True):
        end = ends[one]
        assert isinstance(end, Finished), end
        assert (end.result.ids, end.result.nfe) == (truth.ids, truth.nfe)
    assert opened.counts["rows"] > 2 * opened.counts["forward_passes"]


def test_only_final_text_is_sent(model: Model, engine: Engine) -> None:
    """At every step the text sent so far is a prefix of the whole text, for samplers that revise tokens, too."""
    events = Events()
    jobs = [job(model, prompt, events, 3, **way) for prompt in PROMPTS[:3] for way in variants(model)]
    engine.submit("crowd", jobs)
    ends = {end.job: end for end in events.wait(len(jobs))}
    for one in jobs:
        end = ends[one]
        assert isinstance(end, Finished)
        sent = ""
        for event in events.events:
            if event.job is one and not isinstance(event, Failed):
                sent += event.text
                assert end.result.text.startswith(sent)
        assert sent == end.result.text


def test_a_cached_prompt_is_not_computed_again(folders: dict[str, Path]) -> None:
    for name in ("pairs-masked", "text-autoregressive", "pairs-autoregressive"):
        model = double(folders[name])
        engine, events = Engine(model, EngineLimits(rows=4)), Events()
        run = []
        for turn in range(2):
            before = engine.counts["positions"]
            engine.submit("one", [job(model, "where is the bird that sang all day", events, 1)])
            events.wait(turn + 1)
            run.append(engine.counts["positions"] - before)
        first, second = events.ends
        assert isinstance(first, Finished) and isinstance(second, Finished)
        assert first.result.ids == second.result.ids
        prompt = len(prompt_ids(model, "where is the bird that sang all day"))
        assert run[1] == run[0] - (prompt - 1), name
        engine.close()


def test_cancelled_sequences_free_their_slots(folders: dict[str, Path]) -> None:
    model = double(folders["text-autoregressive"])
    engine, events = Engine(model, EngineLimits(rows=2, queue=50)), Events()
    jobs = [job(model, "the cat", events, seed, temperature=1.0) for seed in range(20)]
    engine.submit("gone", jobs)
    for one in jobs:
        engine.cancel(one)
    ends = events.wait(20)
    assert all(isinstance(end, Finished) or end.outcome is RequestOutcome.CANCELLED for end in ends)
    assert sum(isinstance(end, Failed) for end in ends) >= 10
    engine.submit("other", [job(model, "a dog", events)])
    assert isinstance(events.wait(21)[-1], Finished)
    assert engine.idle and engine.slots.free == 2
    engine.close()


def test_a_deadline_applies_in_the_queue(folders: dict[str, Path]) -> None:
    model = double(folders["text-autoregressive"])
    engine, events = Engine(model, EngineLimits(rows=1)), Events()
    late = job(model, "the cat", events)
    late.deadline = time.monotonic() - 1
    engine.submit("one", [late, job(model, "a dog", events)])
    kinds = {end.job.id: end for end in events.wait(2)}
    failed = kinds[late.id]
    assert isinstance(failed, Failed) and failed.outcome is RequestOutcome.DEADLINE_EXCEEDED
    assert sum(isinstance(end, Finished) for end in kinds.values()) == 1
    engine.close()


def test_an_invalid_request_does_not_affect_others(folders: dict[str, Path]) -> None:
    model = double(folders["text-masked"])
    engine, events = Engine(model, EngineLimits(rows=4)), Events()
    wrong = job(model, "the cat", events, sampler="confidence", steps=99)
    engine.submit("one", [wrong, job(model, "a dog", events, sampler="confidence", steps=4)])
    ends = {end.job: end for end in events.wait(2)}
    failed = ends[wrong]
    assert (
        isinstance(failed, Failed)
        and failed.outcome is RequestOutcome.INVALID_REQUEST
        and "steps = 99" in failed.message
    )
    assert sum(isinstance(end, Finished) for end in ends.values()) == 1
    assert engine.slots.free == 4
    engine.close()


def test_a_full_queue_rejects_with_a_retry_time(folders: dict[str, Path]) -> None:
    model = double(folders["text-autoregressive"])
    engine, events = Engine(model, EngineLimits(rows=1, queue=3)), Events()
    engine.submit("one", [job(model, "the cat", events, seed) for seed in range(3)])
    with pytest.raises(Rejected) as rejected:
        engine.submit("two", [job(model, "the cat", events, seed) for seed in range(3)])
    assert rejected.value.retry_after >= 1
    with pytest.raises(UserError, match="4 sequences; at most 3"):  # they never fit
        engine.submit("two", [job(model, "the cat", events, seed) for seed in range(4)])
    events.wait(3)
    engine.close()


def test_closing_finishes_pending_sequences_and_accepts_no_more(folders: dict[str, Path]) -> None:
    model = double(folders["text-autoregressive"])
    engine, events = Engine(model, EngineLimits(rows=2)), Events()
    engine.submit("one", [job(model, "the cat", events, seed, temperature=1.0) for seed in range(6)])
    engine.close(timeout=60)
    assert [type(end) for end in events.ends] == [Finished] * 6
    with pytest.raises(Rejected, match="shutting down"):
        engine.submit("one", [job(model, "the cat", events)])


def test_closing_without_a_timeout_fails_every_sequence(folders: dict[str, Path]) -> None:
    model = double(folders["text-autoregressive"])
    engine, events = Engine(model, EngineLimits(rows=1)), Events()
    engine.submit("one", [job(model, "the cat", events, seed, temperature=1.0) for seed in range(30)])
    engine.close(timeout=0.0)
    assert len(events.ends) == 30
    assert {end.outcome for end in events.ends if isinstance(end, Failed)} == {RequestOutcome.SHUTDOWN}


def test_a_sequence_that_can_never_fit_is_rejected_at_once(folders: dict[str, Path]) -> None:
    model = double(folders["text-autoregressive"])
    engine, events = Engine(model, EngineLimits(rows=2)), Events()
    with pytest.raises(UserError, match="at most 2"):
        engine.submit("one", [job(model, "the cat", events, options={"beams": 3})])
    engine.close()


def test_every_field_of_a_forward_pass_is_merged() -> None:
    """A field that is added to ``Forward`` must not get lost when calls share a forward pass."""

    def call(width: int) -> Call:
        row = torch.arange(width)[None]
        given = {
            "tokens": row,
            "positions": row,
            "targets": row,
            "attention": AttentionPattern("causal"),
            "prompt": torch.tensor([1]),
            "time": torch.tensor([0.5]),
            "network": "drafter",
            "extra": (VectorQuery("predict", vectors=torch.ones(1, width, 2), noisy=row > 1),),
        }
        assert given.keys() == {one.name for one in fields(Forward)}, "set the new field here"
        return Call(Forward(**given), None)

    part, merged = call(5).request, batching.merge([call(3), call(5)]).request
    for one in fields(Forward):
        before, after = getattr(part, one.name), getattr(merged, one.name)
        if isinstance(before, torch.Tensor):
            assert len(after) == 2 and torch.equal(after[1], before[0]), one.name
        elif one.name != "extra":
            assert after == before, one.name
    [query] = merged.extra
    assert isinstance(query, VectorQuery) and query.vectors is not None and query.vectors.shape == (2, 5, 2)


@pytest.mark.parametrize("stop", [(" ",), ("zz",), ("at", "t"), ("cat s",)])
def test_a_stop_text_ends_the_answer_and_is_not_part_of_it(folders: dict[str, Path], stop: tuple[str, ...]) -> None:
    for name in ("text-autoregressive", "text-masked"):
        model = double(folders[name])
        engine, events = Engine(model, EngineLimits(rows=8)), Events()
        jobs = [job(model, prompt, events, seed, temperature=1.0) for seed, prompt in enumerate(PROMPTS)]
        for one in jobs:
            one.stop_texts = stop
        whole = [model.generate(p, max_new_tokens=12, seed=s, temperature=1.0)[0].text for s, p in enumerate(PROMPTS)]
        engine.submit("one", jobs)
        ends = {end.job: end for end in events.wait(len(jobs))}
        for one, text in zip(jobs, whole, strict=True):
            at = min((text.find(s) for s in stop if s in text), default=len(text))
            end = ends[one]
            assert isinstance(end, Finished)
            assert end.result.text == events.streamed(one) == text[:at]
            assert at == len(text) or end.result.finish == "stop"
        engine.close()


def test_an_internal_error_fails_sequences_but_not_the_engine(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = double(folders["text-masked"])
    engine, events = Engine(model, EngineLimits(rows=4)), Events()
    with monkeypatch.context() as broken:
        broken.setattr(batching, "groups", lambda *_: 1 / 0)
        engine.submit("one", [job(model, "the cat", events, seed) for seed in range(2)])
        ends = events.wait(2)
    assert {end.outcome for end in ends if isinstance(end, Failed)} == {RequestOutcome.INTERNAL_ERROR}
    engine.submit("one", [job(model, "a dog", events)])
    assert isinstance(events.wait(3)[-1], Finished)
    assert engine.slots.free == 4
    engine.close()
