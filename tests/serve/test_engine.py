"""The engine: a text is the same alone, in a crowd and offline; places are freed; nobody waits for ever."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from redraft.data.tokenizer import Tokenizer
from redraft.errors import UserError
from redraft.loading import load
from redraft.model import Model
from redraft.presets import preset, shape
from redraft.serve.engine import Done, Engine, Event, Failed, Job, Limits, Progress, Refused
from redraft.serve.reading import Span
from redraft.serve.scheduler import FairQueue, Full
from redraft.serve.seats import Seats

PROMPTS = ["the cat", "a dog ran to the house", "where is", "on a mat the bird sang all day", "mat", "to to to"]
WAYS: dict[str, list[dict[str, Any]]] = {
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
class Heard:
    """All that an engine told."""

    events: list[Event] = field(default_factory=list)
    ready: threading.Condition = field(default_factory=threading.Condition)

    def __call__(self, event: Event) -> None:
        with self.ready:
            self.events.append(event)
            self.ready.notify_all()

    @property
    def ends(self) -> list[Done | Failed]:
        return [event for event in self.events if not isinstance(event, Progress)]

    def wait(self, count: int) -> list[Done | Failed]:
        with self.ready:
            assert self.ready.wait_for(lambda: len(self.ends) >= count, 60), "the engine fell silent"
        return self.ends

    def streamed(self, job: Job) -> str:
        return "".join(e.text for e in self.events if isinstance(e, Progress | Done) and e.job is job)


def double(folder: Path) -> Model:
    """A model in float64, so that a crowd can't differ from a lone text by rounding."""
    model = load(folder, "cpu")
    model.network.double()
    return model


def job(model: Model, prompt: str, heard: Heard, seed: int = 0, **way: Any) -> Job:
    chosen = model.settings(max_new_tokens=12, seed=seed, **way)
    head = model.prompt_ids(prompt)
    drafting = model.compose([head], chosen)
    return Job(drafting, Span(len(head), len(head) + 12), heard)


@pytest.fixture(params=["pairs-masked", "pairs-autoregressive", "text-masked", "text-autoregressive"])
def model(request: pytest.FixtureRequest, folders: dict[str, Path]) -> Model:
    return double(folders[request.param])


@pytest.fixture
def engine(model: Model) -> Iterator[Engine]:
    opened = Engine(model, Limits(rows=7, queue=200))
    yield opened
    opened.close()


def ways(model: Model) -> list[dict[str, Any]]:
    found = WAYS[model.family_name]
    return [*found, {"candidates": 3, "steps": 4}] if model.spec.length_head else found


@pytest.mark.parametrize("family", ["expand", "edit"])
def test_texts_that_change_their_length_are_the_same_in_a_crowd(family: str) -> None:
    """Rows grow and shrink side by side in one store, which has room for the longest of them."""
    tokenizer = Tokenizer.bytes()
    model = Model.fresh({"name": family}, tokenizer, preset("toy", tokenizer.vocab_size, max_length=64), True, seed=1)
    for parameter in model.network.parameters():
        if parameter.ndim == 2:
            parameter.data.mul_(4)
    model.network.double()
    found = [{"start": start, "temperature": t} for start in (0, 1, 6) for t in (0.0, 1.0)] + [{"temperature": 1.0}]
    asked = [(prompt, seed, way) for seed, prompt in enumerate(PROMPTS[:3]) for way in found]
    offline = [model.generate(prompt, max_new_tokens=12, seed=seed, **way)[0] for prompt, seed, way in asked]
    heard = Heard()
    engine = Engine(model, Limits(rows=5, queue=200))
    try:
        jobs = [job(model, prompt, heard, seed, **way) for prompt, seed, way in asked]
        engine.submit("crowd", jobs)
        ends = {end.job: end for end in heard.wait(len(jobs))}
    finally:
        engine.close()
    for one, truth in zip(jobs, offline, strict=True):
        end = ends[one]
        assert isinstance(end, Done), end
        assert (end.result.text, end.result.ids, end.result.nfe) == (truth.text, truth.ids, truth.nfe)
        assert heard.streamed(one) == truth.text


def test_a_text_is_the_same_alone_in_a_crowd_and_offline(model: Model, engine: Engine) -> None:
    """All samplers, lengths, temperatures, caches and widths at once, more of them than there are seats."""
    asked = [(prompt, seed, way) for seed, prompt in enumerate(PROMPTS) for way in ways(model)]
    offline = [model.generate(prompt, max_new_tokens=12, seed=seed, **way)[0] for prompt, seed, way in asked]
    heard = Heard()
    jobs = [job(model, prompt, heard, seed, **way) for prompt, seed, way in asked]
    engine.submit("crowd", jobs)
    ends = {end.job: end for end in heard.wait(len(jobs))}
    alone = Heard()
    lone = job(model, *(asked[3][0], alone), seed=asked[3][1], **asked[3][2])
    engine.submit("alone", [lone])
    ends[jobs[3]] = replace(alone.wait(1)[0], job=jobs[3])
    for one, truth in zip(jobs, offline, strict=True):
        end = ends[one]
        assert isinstance(end, Done), end
        assert end.result.ids == truth.ids
        assert (end.result.text, end.result.finish) == (truth.text, truth.finish)
        assert end.result.nfe == truth.nfe
        assert end.result.score == pytest.approx(truth.score, abs=1e-6)
        assert heard.streamed(one) == truth.text
    assert engine.seats.free == 7
    assert engine.counts["rows"] > 2 * engine.counts["passes"], "passes were hardly shared"


@pytest.mark.parametrize("kind", ["drafter", "hybrid", "block"])
def test_drafts_and_blocks_of_many_texts_share_passes(kind: str, folders: dict[str, Path]) -> None:
    """Two networks, or one asked in two ways: requests of different kinds must not be mixed up."""
    made = double(folders["pairs-autoregressive"])
    ways: list[dict[str, Any]] = [{"sampler": "draft_verify", "options": {"block": 3}}, {"sampler": "autoregressive"}]
    if kind == "drafter":
        made.draft_with(double(folders["pairs-masked"]))
    else:
        made = Model.fresh({"name": kind, "block": 4}, made.tokenizer, replace(made.network.config, shift=0), True)
        made.network.double()
    if kind == "block":
        ways = [{"sampler": "confidence", "steps": 2}, {"sampler": "first_hitting", "temperature": 1.0}]
    asked = [(prompt, seed, way) for seed, prompt in enumerate(PROMPTS) for way in ways]
    offline = [made.generate(prompt, max_new_tokens=12, seed=seed, **way)[0] for prompt, seed, way in asked]
    opened, heard = Engine(made, Limits(rows=7, queue=200)), Heard()
    jobs = [job(made, prompt, heard, seed, **way) for prompt, seed, way in asked]
    opened.submit("crowd", jobs)
    ends = {end.job: end for end in heard.wait(len(jobs))}
    opened.close()
    for one, truth in zip(jobs, offline, strict=True):
        end = ends[one]
        assert isinstance(end, Done), end
        assert (end.result.ids, end.result.nfe) == (truth.ids, truth.nfe)
    assert opened.counts["rows"] > opened.counts["passes"]


@pytest.mark.parametrize(
    "family",
    [{"name": "masked"}, {"name": "autoregressive"}, {"name": "masked", "self_condition": 0.5}],
    ids=["masked", "autoregressive", "self-conditioned"],
)
def test_texts_of_an_encoder_decoder_share_passes(family: dict[str, Any], folders: dict[str, Path]) -> None:
    """Rows that encode their prompts, and rows whose prompts are encoded already, in one pass."""
    tokenizer = load(folders["pairs-masked"], "cpu").tokenizer
    made = Model.fresh(family, tokenizer, shape("toy", tokenizer.vocab_size, "cross_attention"), True, 1)
    for parameter in made.network.double().parameters():
        if parameter.ndim == 2:
            parameter.data.mul_(5)
    if made.spec.guesses:
        torch.nn.init.normal_(made.network.guess.weight)
    asked = [(prompt, seed, way) for seed, prompt in enumerate(PROMPTS) for way in ways(made)]
    offline = [made.generate(prompt, max_new_tokens=12, seed=seed, **way)[0] for prompt, seed, way in asked]
    opened, heard = Engine(made, Limits(rows=7, queue=200)), Heard()
    jobs = [job(made, prompt, heard, seed, **way) for prompt, seed, way in asked]
    opened.submit("crowd", jobs)
    ends = {end.job: end for end in heard.wait(len(jobs))}
    opened.close()
    for one, truth in zip(jobs, offline, strict=True):
        end = ends[one]
        assert isinstance(end, Done), end
        assert (end.result.ids, end.result.nfe) == (truth.ids, truth.nfe)
    assert opened.counts["rows"] > 2 * opened.counts["passes"]


def test_only_sealed_text_is_sent_and_never_more_than_stands(model: Model, engine: Engine) -> None:
    """At every step, what was sent is the beginning of what is sent at the end, revising samplers included."""
    heard = Heard()
    jobs = [job(model, prompt, heard, 3, **way) for prompt in PROMPTS[:3] for way in ways(model)]
    engine.submit("crowd", jobs)
    ends = {end.job: end for end in heard.wait(len(jobs))}
    for one in jobs:
        end = ends[one]
        assert isinstance(end, Done)
        sent = ""
        for event in heard.events:
            if event.job is one and not isinstance(event, Failed):
                sent += event.text
                assert end.result.text.startswith(sent)
        assert sent == end.result.text


def test_a_known_prompt_is_not_computed_again(folders: dict[str, Path]) -> None:
    for name in ("pairs-masked", "text-autoregressive", "pairs-autoregressive"):
        model = double(folders[name])
        engine, heard = Engine(model, Limits(rows=4)), Heard()
        run = []
        for turn in range(2):
            before = engine.counts["positions"]
            engine.submit("one", [job(model, "where is the bird that sang all day", heard, 1)])
            heard.wait(turn + 1)
            run.append(engine.counts["positions"] - before)
        first, second = heard.ends
        assert isinstance(first, Done) and isinstance(second, Done)
        assert first.result.ids == second.result.ids
        prompt = len(model.prompt_ids("where is the bird that sang all day"))
        assert run[1] == run[0] - (prompt - 1), name
        engine.close()


def test_prompts_of_other_lengths_forget_a_seat(folders: dict[str, Path]) -> None:
    """What a cell of an isolated prompt holds depends on where the prompt ends."""
    from redraft.models.parts.store import KeyValueStore

    store = KeyValueStore(1, 2, 8, 1, 2, torch.device("cpu"), torch.float32)
    seats = Seats(2, {("main", 0): store})
    store.tokens[1, :4] = [5, 6, 7, 4]
    seats._isolated[1] = 4
    assert seats.take(1, [5, 6, 7, 4], 4) == [1]
    seats.give([1])
    assert seats.take(1, [5, 6], 2) == [0], "nothing known fits: the lowest seat"
    assert seats.take(1, [5, 6, 7], 3) == [1]
    assert (store.tokens[1] == -1).all()
    seats.give([0, 1])
    store.tokens[:, :3] = [5, 6, 7]
    assert seats.take(1, [5, 6, 7], 3, exact=False) == [0], "what an approximate policy must not see"
    assert (store.tokens[0] == -1).all()
    store.tokens[0, :3] = [5, 6, 7]
    seats.give([0])
    assert seats.take(1, [5, 6, 7], 3) == [1], "nor may others see what it left"


def test_a_closed_connection_frees_its_place(folders: dict[str, Path]) -> None:
    model = double(folders["text-autoregressive"])
    engine, heard = Engine(model, Limits(rows=2, queue=50)), Heard()
    jobs = [job(model, "the cat", heard, seed, temperature=1.0) for seed in range(20)]
    engine.submit("gone", jobs)
    for one in jobs:
        engine.cancel(one)
    ends = heard.wait(20)
    assert all(isinstance(end, Done) or end.kind == "cancelled" for end in ends)
    assert sum(isinstance(end, Failed) for end in ends) >= 10
    engine.submit("other", [job(model, "a dog", heard)])
    assert isinstance(heard.wait(21)[-1], Done)
    assert engine.idle and engine.seats.free == 2
    engine.close()


def test_deadlines_hold_for_those_who_wait_too(folders: dict[str, Path]) -> None:
    model = double(folders["text-autoregressive"])
    engine, heard = Engine(model, Limits(rows=1)), Heard()
    late = job(model, "the cat", heard)
    late.deadline = time.monotonic() - 1
    engine.submit("one", [late, job(model, "a dog", heard)])
    kinds = {end.job.number: end for end in heard.wait(2)}
    failed = kinds[late.number]
    assert isinstance(failed, Failed) and failed.kind == "late"
    assert sum(isinstance(end, Done) for end in kinds.values()) == 1
    engine.close()


def test_a_mistake_is_told_and_hurts_nobody_else(folders: dict[str, Path]) -> None:
    model = double(folders["text-masked"])
    engine, heard = Engine(model, Limits(rows=4)), Heard()
    wrong = job(model, "the cat", heard, sampler="confidence", steps=99)
    engine.submit("one", [wrong, job(model, "a dog", heard, sampler="confidence", steps=4)])
    ends = {end.job: end for end in heard.wait(2)}
    failed = ends[wrong]
    assert isinstance(failed, Failed) and failed.kind == "mistake" and "steps = 99" in failed.why
    assert sum(isinstance(end, Done) for end in ends.values()) == 1
    assert engine.seats.free == 4
    engine.close()


def test_a_full_queue_refuses_and_says_when(folders: dict[str, Path]) -> None:
    model = double(folders["text-autoregressive"])
    engine, heard = Engine(model, Limits(rows=1, queue=3)), Heard()
    with pytest.raises(Refused) as refused:
        engine.submit("one", [job(model, "the cat", heard, seed) for seed in range(4)])
    assert refused.value.wait >= 1
    engine.submit("one", [job(model, "the cat", heard, seed) for seed in range(3)])
    heard.wait(3)
    engine.close()


def test_closing_finishes_what_is_there_and_takes_nothing_new(folders: dict[str, Path]) -> None:
    model = double(folders["text-autoregressive"])
    engine, heard = Engine(model, Limits(rows=2)), Heard()
    engine.submit("one", [job(model, "the cat", heard, seed, temperature=1.0) for seed in range(6)])
    engine.close(patience=60)
    assert [type(end) for end in heard.ends] == [Done] * 6
    with pytest.raises(Refused, match="shutting down"):
        engine.submit("one", [job(model, "the cat", heard)])


def test_closing_without_patience_tells_everybody(folders: dict[str, Path]) -> None:
    model = double(folders["text-autoregressive"])
    engine, heard = Engine(model, Limits(rows=1)), Heard()
    engine.submit("one", [job(model, "the cat", heard, seed, temperature=1.0) for seed in range(30)])
    engine.close(patience=0.0)
    assert len(heard.ends) == 30
    assert {end.kind for end in heard.ends if isinstance(end, Failed)} == {"closed"}


def test_what_can_never_fit_is_refused_at_once(folders: dict[str, Path]) -> None:
    model = double(folders["text-autoregressive"])
    engine, heard = Engine(model, Limits(rows=2)), Heard()
    with pytest.raises(UserError, match="at most 2"):
        engine.submit("one", [job(model, "the cat", heard, options={"beams": 3})])
    engine.close()


def test_every_field_of_a_request_has_its_place_in_a_pool() -> None:
    """A field that is added to requests must not get lost where they are laid together."""
    from dataclasses import fields

    from redraft.serve import pool
    from redraft.types import Forward

    known = {*pool._PADDED, *pool._JOINED, *pool._SHARED, *pool._UNREAD, "mask", "vectors", "guess"}
    assert {one.name for one in fields(Forward)} <= known


def test_clients_take_turns() -> None:
    queue: FairQueue[str] = FairQueue(10)
    queue.put("greedy", ["g1", "g2", "g3"])
    queue.put("modest", ["m1"])
    queue.put("third", ["t1", "t2"])
    assert [queue.take() for _ in range(6)] == ["g1", "m1", "t1", "g2", "t2", "g3"]
    assert queue.head() is None
    with pytest.raises(Full):
        queue.put("greedy", ["x"] * 11)
    queue.put("greedy", ["x", "y"])
    assert queue.discard(lambda item: item == "x") == ["x"]
    assert [queue.take()] == ["y"] and len(queue) == 0


@pytest.mark.parametrize("stop", [(" ",), ("zz",), ("at", "t"), ("cat s",)])
def test_a_stop_text_ends_the_answer_and_is_not_sent(folders: dict[str, Path], stop: tuple[str, ...]) -> None:
    for name in ("text-autoregressive", "text-masked"):
        model = double(folders[name])
        engine, heard = Engine(model, Limits(rows=8)), Heard()
        jobs = [job(model, prompt, heard, seed, temperature=1.0) for seed, prompt in enumerate(PROMPTS)]
        for one in jobs:
            one.stop = stop
        whole = [model.generate(p, max_new_tokens=12, seed=s, temperature=1.0)[0].text for s, p in enumerate(PROMPTS)]
        engine.submit("one", jobs)
        ends = {end.job: end for end in heard.wait(len(jobs))}
        for one, text in zip(jobs, whole, strict=True):
            at = min((text.find(s) for s in stop if s in text), default=len(text))
            end = ends[one]
            assert isinstance(end, Done)
            assert end.result.text == heard.streamed(one) == text[:at]
            assert at == len(text) or end.result.finish == "stop"
        engine.close()


def test_an_error_of_ours_fails_texts_but_not_the_engine(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from redraft.serve import pool

    model = double(folders["text-masked"])
    engine, heard = Engine(model, Limits(rows=4)), Heard()
    with monkeypatch.context() as broken:
        broken.setattr(pool, "groups", lambda *_: 1 / 0)
        engine.submit("one", [job(model, "the cat", heard, seed) for seed in range(2)])
        ends = heard.wait(2)
    assert {end.kind for end in ends if isinstance(end, Failed)} == {"bug"}
    engine.submit("one", [job(model, "a dog", heard)])
    assert isinstance(heard.wait(3)[-1], Done)
    assert engine.seats.free == 4
    engine.close()
