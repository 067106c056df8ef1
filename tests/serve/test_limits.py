"""No request stops the server for others: bounds of options, deadlines, constraints, connections, and the shutdown."""

from __future__ import annotations

import dataclasses
import http.client
import json
import math
import signal
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from redraft import registry
from redraft.constraints import compiled_automata, kinds_of
from redraft.constraints.regex import Regex
from redraft.constraints.shared.automaton_cache import AutomatonCache
from redraft.constraints.shared.compiling import TokenTexts, compiled
from redraft.data.tokenizer import Tokenizer
from redraft.errors import UserError
from redraft.options import declared
from redraft.samplers.base import Sampler
from redraft.serve import server as server_module
from redraft.serve.engine import Engine, EngineLimits
from redraft.serve.jobs import Failed, Finished, RequestOutcome
from redraft.serve.scheduler import FairQueue, QueueFull
from redraft.serve.server import DrainingServer, listen
from tests.serve.conftest import ROUTES, server_config
from tests.serve.test_clients import opened
from tests.serve.test_engine import Events, double, job

PARTS = [(folder, name) for folder in ("samplers", "caches", "guidance") for name in registry.names(folder)]
NUMBERS = [2**31, 2**63, 1e300, -(2**63), math.inf, math.nan]


@pytest.mark.parametrize(("folder", "name"), PARTS)
def test_every_number_of_every_part_has_a_range(folder: str, name: str) -> None:
    kind = registry.find(folder, name)
    settings = declared(kind)
    required = {field.name: "x" for field in dataclasses.fields(kind) if field.default is dataclasses.MISSING}
    for field in dataclasses.fields(kind):
        if field.name in settings and settings[field.name].choices or field.type not in ("int", "float"):
            continue
        one = settings[field.name]
        assert (one.least is not None or one.above is not None) and (one.most is not None or one.below is not None)
        for number in NUMBERS:
            with pytest.raises(UserError, match=f"{field.name} = "):
                kind(**required, **{field.name: number})


@dataclasses.dataclass(frozen=True)
class Own(Sampler):
    """A sampler whose author declares no ranges."""

    count: int = 3
    share: float = 0.5
    start = plan = apply = None  # type: ignore[assignment]


def test_numbers_without_a_declared_range_are_finite_and_bounded() -> None:
    assert Own(count=1 << 20).count == 1 << 20
    for wrong in ({"count": 2**31}, {"share": 1e300}, {"share": math.inf}, {"share": math.nan}):
        with pytest.raises(UserError, match="must be"):
            Own(**wrong)


@pytest.mark.parametrize(
    ("table", "why"),
    [
        ({"sampler": "ancestral", "options": {"steps": 2**31}}, "steps = 2147483648 must be between 1 and 65536"),
        ({"steps": 65_537}, "redraft.steps: input should be less than or equal to 65536"),
        ({"sampler": "remdm", "steps": 65_536}, "steps = 65536 must be between 1 and 4096"),
        ({"sampler": "prophet", "options": {"early": 1e300}}, "early = 1e+300 must be between"),
        ({"cache": "delayed", "cache_options": {"refresh": 2**63}}, "refresh = 9223372036854775808 must be"),
    ],
)
def test_an_option_out_of_range_is_named_with_its_range(client: Any, table: dict[str, Any], why: str) -> None:
    answer = client.post("/v1/completions", json={**ROUTES["/v1/completions"], "redraft": table})
    assert answer.status_code == 400 and answer.json()["error"]["message"].startswith(why)


def test_beams_are_checked_before_anything_is_allocated(client: Any) -> None:
    body = {**ROUTES["/v1/completions"], "model": "text-autoregressive"}
    for beams, why in ((3_000_000, "beams = 3000000 must be between 1 and 256"), (200, "at most 8")):
        answer = client.post("/v1/completions", json={**body, "redraft": {"options": {"beams": beams}}})
        assert answer.status_code == 400 and why in answer.json()["error"]["message"]


def test_a_client_has_a_share_of_the_queue() -> None:
    queue: FairQueue[int] = FairQueue(8, 0.5)
    queue.put("greedy", [1, 2, 3])
    with pytest.raises(QueueFull):
        queue.put("greedy", [4, 5])
    queue.put("greedy", [4])
    queue.put("modest", [5, 6, 7, 8])
    assert FairQueue[int](1, 0.5).most == 1


def test_more_answers_than_a_client_may_queue_are_an_invalid_request(folders: dict[str, Path]) -> None:
    with opened({"text-masked": folders["text-masked"]}, queue=8) as client:
        answer = client.post("/v1/completions", json={**ROUTES["/v1/completions"], "n": 5})
        assert answer.status_code == 400 and "at most 4 of one client" in answer.json()["error"]["message"]


class Endless(Sampler):
    """A sampler whose plan never ends."""

    def start(self, canvas: Any, spec: Any) -> None:
        return None

    def plan(self, canvas: Any, state: Any, spec: Any) -> Any:
        while True:
            try:
                time.sleep(0.001)
            except Exception:
                continue

    def apply(self, *_: Any) -> Any:
        raise AssertionError


def endless(model: Any, events: Events, seconds: float) -> Any:
    made = job(model, "the cat", events)
    made.run.loop.method = dataclasses.replace(made.run.loop.method, sampler=object.__new__(Endless))
    made.deadline = time.monotonic() + seconds
    return made


def test_a_deadline_ends_a_sampler_that_never_returns(folders: dict[str, Path]) -> None:
    model = double(folders["text-autoregressive"])
    engine, events = Engine(model, EngineLimits(rows=2, stuck_after=0.05)), Events()
    bad, good = endless(model, events, 0.3), job(model, "the cat", events)
    engine.submit("one", [bad, good])
    time.sleep(0.2)
    assert engine.stuck
    ends = {end.job.id: end for end in events.wait(2)}
    assert isinstance(ends[good.id], Finished)
    late = ends[bad.id]
    assert isinstance(late, Failed) and late.outcome == RequestOutcome.DEADLINE_EXCEEDED
    cancelled = endless(model, events, 60)
    engine.submit("one", [cancelled])
    engine.cancel(cancelled)
    assert [end.outcome for end in events.wait(3) if isinstance(end, Failed)][-1] == RequestOutcome.CANCELLED
    engine.submit("one", [endless(model, events, 60)])
    engine.close(timeout=0.1)
    (last,) = events.wait(4)[3:]
    assert isinstance(last, Failed) and last.outcome == RequestOutcome.SHUTDOWN


EXPLODING = {"type": "regex", "pattern": "((a{1,100}){1,100}){1,4}"}


def test_a_constraint_that_explodes_holds_up_nobody(folders: dict[str, Path]) -> None:
    """It compiles in another process: killed at the deadline, refused at its bound, while other requests go on."""
    own = Regex("(a|b)*a(a|b){5}c")
    with opened({"text-masked": folders["text-masked"]}) as client:
        body = {**ROUTES["/v1/completions"], "response_format": EXPLODING}
        late = client.post("/v1/completions", json={**body, "redraft": {"deadline": 0.2}})
        assert late.status_code == 408
        found: list[Any] = []
        thread = threading.Thread(target=lambda: found.append(client.post("/v1/completions", json=body)))
        thread.start()
        form = {"type": "regex", "pattern": own.pattern}
        assert client.post("/v1/completions", json={**body, "response_format": form}).status_code == 200
        assert client.post("/v1/completions", json=ROUTES["/v1/completions"]).status_code == 200
        thread.join(60)
        assert found[0].status_code == 400 and "too large" in found[0].json()["error"]["message"]
        tokenizer = client.app.state.service.pool.find("text-masked").model.tokenizer
        known = compiled_automata().find(tokenizer, kinds_of({"regex": own.pattern}))
        assert known is not None, "the server's own process has the result"
        truth = compiled([own], TokenTexts(tokenizer.token_bytes, tokenizer.eos_id, tokenizer.drops_first_space))
        assert (known.moves == truth.moves).all() and (known.class_of == truth.class_of).all()


def test_compiled_constraints_are_kept_within_a_number_of_bytes() -> None:
    tokenizer = Tokenizer.bytes()
    texts = TokenTexts(tokenizer.token_bytes, tokenizer.eos_id, tokenizer.drops_first_space)
    made = [compiled([Regex(f"a{{{size}}}")], texts) for size in (50, 60, 70)]
    cache = AutomatonCache(capacity=made[1].nbytes + made[2].nbytes)
    for number, automaton in enumerate(made):
        cache.keep(tokenizer, number, automaton)
        assert cache.size <= cache.capacity
    assert cache.find(tokenizer, 0) is made[0], "it is still in use"
    del automaton, made[0]
    assert cache.find(tokenizer, 0) is None and cache.find(tokenizer, 1) is made[0]
    assert cache.find(Tokenizer.bytes(), 1) is None


def test_a_deadline_ends_the_choice_of_the_sizes_of_holes(folders: dict[str, Path]) -> None:
    with opened({"text-masked": folders["text-masked"]}) as client:
        body = {"model": "text-masked", "text": "the cat " + "[[1-4]] a " * 16, "n": 4, "redraft": {"deadline": 0.05}}
        began = time.monotonic()
        assert client.post("/v1/infill", json=body).status_code == 408
        whole = client.post("/v1/infill", json={**body, "redraft": {}})
        assert whole.status_code == 200 and time.monotonic() - began < 60


@pytest.fixture
def running(folders: dict[str, Path]) -> Iterator[tuple[DrainingServer, Any]]:
    """A server on a free port with short time-outs, as ``redraft serve`` runs it."""
    only = {"text-masked": folders["text-masked"]}
    config = server_config(only, port=0, receive_timeout=0.3, connections=4, shutdown_timeout=4.0)
    listener = listen(config)
    server = server_module.draining_server(config)
    thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.01)
    yield server, listener.getsockname()
    if server.force is not None:
        server.force.cancel()  # it would end the process of the tests
    server.should_exit = True
    thread.join(10)
    assert not thread.is_alive()


def until_closed(address: Any, data: bytes) -> bytes:
    with socket.create_connection(address, timeout=20) as connection:
        connection.sendall(data)
        found = b""
        while part := connection.recv(4096):
            found += part
        return found


GET = b"GET /healthz HTTP/1.1\r\nhost: localhost\r\n\r\n"
POST = b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"


def ask(address: Any, method: str, path: str, body: Any = None) -> tuple[int, Any, Any]:
    """Status, headers and body of an answer, on a connection of its own."""
    connection = http.client.HTTPConnection(*address[:2], timeout=30)
    content = None if body is None else json.dumps(body)
    connection.request(method, path, content, {"Content-Type": "application/json"})
    answer = connection.getresponse()
    found = answer.status, answer.headers, json.loads(answer.read())
    connection.close()
    return found


@pytest.mark.parametrize("half", [b"", GET[:20], POST + b"content-length: 100\r\n\r\n{", GET + GET[:5]])
def test_half_requests_are_closed(running: tuple[DrainingServer, Any], half: bytes) -> None:
    found = until_closed(running[1], half)
    if half.startswith(b"POST"):
        assert found.startswith(b"HTTP/1.1 408") and b"timeout_error" in found


def test_connections_beyond_the_limit_are_closed_and_others_go_on(running: tuple[DrainingServer, Any]) -> None:
    open_ones = [socket.create_connection(running[1], timeout=20) for _ in range(4)]
    time.sleep(0.05)
    assert until_closed(running[1], b"").startswith(b"HTTP/1.1 503")
    open_ones.pop().close()
    time.sleep(0.05)
    assert ask(running[1], "GET", "/healthz")[0] == 200
    for connection in open_ones:
        connection.close()


def test_a_shutdown_answers_with_503_and_ends_what_does_not_end(running: tuple[DrainingServer, Any]) -> None:
    server, address = running
    engine = server.service.pool.find("text-masked").engine
    assert engine is not None
    events = Events()
    bad = endless(engine.model, events, 60)
    found: list[Any] = []
    engine.submit("other", [bad])  # the request waits behind it
    body = {**ROUTES["/v1/completions"], "redraft": {"steps": 8}}
    thread = threading.Thread(target=lambda: found.append(ask(address, "POST", "/v1/completions", body)))
    thread.start()
    while not server.service.pending:
        time.sleep(0.01)
    server.handle_exit(signal.SIGTERM, None)
    status, headers, _ = ask(address, "POST", "/v1/completions", body)
    assert status == 503 and headers["retry-after"]
    status, _, health = ask(address, "GET", "/healthz")
    assert status == 503 and health["status"] == "draining"
    thread.join(20)
    assert found[0][0] == 503 and found[0][2]["error"]["type"] == "server_error"
    (end,) = events.wait(1)
    assert isinstance(end, Failed) and end.outcome == RequestOutcome.SHUTDOWN
