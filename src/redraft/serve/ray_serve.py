"""The application of a server in several processes of Ray Serve, behind its HTTP proxy.

Each replica is a whole server (models, queue, batches) without a listening socket of its own. The proxy hands a request
to one of two replicas drawn at random, the one with fewer requests under way. Seeds come with requests, so an answer
does not depend on the replica.
"""

from __future__ import annotations

import logging
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any

from redraft.errors import UserError
from redraft.interop.ray_session import RaySession, connect
from redraft.serve.app import create_app
from redraft.serve.config import Replication, ServerConfig
from redraft.serve.engine import EngineLimits
from redraft.serve.model_pool import ModelPool
from redraft.serve.server import end_by_force, listen

APP = "redraft"  # of Ray Serve: the same name again updates what is served
_UPSCALE, _DOWNSCALE, _LOOK_BACK = 5.0, 120.0, 10.0  # seconds of more or less load before the replicas change
_CHECK_EVERY, _CHECK_TIMEOUT = 5.0, 30.0  # seconds of a health check
_ASKING = 5.0  # seconds in which all replicas answer
_ENDING = 15.0  # seconds that Ray itself needs to end


class Replica:
    """One process of the server. Ray Serve calls these methods; ``deployment`` makes its class from this one."""

    def __init__(self, config: ServerConfig, threads: int) -> None:
        import torch

        self.config = config
        torch.set_num_threads(threads)

    def __serve_build_asgi_app__(self) -> Any:
        self.served = create_app(self.config)
        return self.served

    def check_health(self) -> None:
        """Called at intervals: a replica that fails is replaced.

        Raises:
            RuntimeError: a model's engine does not answer any more.
        """
        entries = self.served.state.service.pool.entries.values()
        stuck = [entry.name for entry in entries if entry.engine is not None and entry.engine.stuck]
        if stuck:
            raise RuntimeError(f"a step of {', '.join(stuck)} takes more than {self.config.stuck_after:g} s")

    def drain(self) -> int:
        """Refuse new requests with 503, as a single server does when it shuts down. Returns the requests under way."""
        service = self.served.state.service
        service.draining = True
        pending: int = service.pending
        return pending

    async def stop(self) -> None:
        """Give up the requests under way: each gets its 503."""
        await self.served.state.service.stop()


def serve(
    config: ServerConfig,
    on_ready: Callable[[str], None],
    *,
    replication: Replication,
    address: str,
    given: Mapping[str, Any],
) -> None:
    """Serve with Ray Serve.

    On a Ray of this machine it serves until SIGTERM or Ctrl-C, then finishes the requests under way. In a running
    cluster it returns when the replicas are ready; the cluster goes on serving. If it already serves, the replicas are
    replaced one after the other by new ones (a rolling update).

    Args:
        on_ready: called with the server's address.
        address: see ``interop.ray_session.connect``.
        given: the options that the user gave.
    Raises:
        UserError: Ray can't be used, an option makes no sense with it, a model does not exist, or there are too few
            cores or GPUs.
    """
    config, inputs = for_replicas(config, given)
    with connect(address) as session:
        session.check(inputs=inputs)
        if session.local:
            listener = listen(config)  # names what is wrong with the address, and finds a free port
            config = replace(config, port=listener.getsockname()[1])
            listener.close()
        elif not config.port:
            raise UserError("--port 0 is for a server of this machine alone.", "Name a port.")
        deploy(config, replication, session)
        on_ready(f"http://{f'[{config.host}]' if ':' in config.host else config.host}:{config.port}")
        if session.local:
            with _ended_by_signal() as signals:
                signals.wait()
                _shut_down(config, signals)


def deploy(config: ServerConfig, replication: Replication, session: RaySession) -> None:
    """Start the replicas, or replace those that run by new ones, and wait until they are ready.

    Raises:
        UserError: too few cores or GPUs, or a replica that can't start.
    """
    from ray import serve as ray_serve
    from ray.serve.exceptions import RayServeException

    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    made = deployment(config, replication, session)
    where = "HeadOnly" if session.local else "EveryNode"
    try:
        ray_serve.start(proxy_location=where, http_options={"host": config.host, "port": config.port})
        ray_serve.run(made, name=APP, route_prefix="/")
    except (RuntimeError, ValueError, RayServeException) as error:
        text = str(error).strip().splitlines() or [type(error).__name__]
        raise UserError(f"Ray Serve can't start the server: {text[0]}", "See the logs of Ray (docs/ray.md).") from None


def deployment(config: ServerConfig, replication: Replication, session: RaySession) -> Any:
    """The application of Ray Serve: how many replicas, what each occupies, and its limits.

    Raises:
        UserError: too few cores or GPUs for the replicas.
    """
    from ray import serve as ray_serve

    low, high = replication.bounds
    threads, options = _resources(config, high if session.local else 0, low, session)
    scaling: dict[str, Any] = {"num_replicas": low}
    if replication.autoscale:
        scaling = {
            "autoscaling_config": {
                "min_replicas": low,
                "max_replicas": high,
                "target_ongoing_requests": config.batch,
                "upscale_delay_s": _UPSCALE,
                "downscale_delay_s": _DOWNSCALE,
                "look_back_period_s": _LOOK_BACK,
            }
        }
    made = ray_serve.deployment(
        name=APP,
        ray_actor_options=options,
        max_ongoing_requests=config.connections,
        max_queued_requests=config.connections,
        health_check_period_s=_CHECK_EVERY,
        health_check_timeout_s=_CHECK_TIMEOUT,
        graceful_shutdown_wait_loop_s=0.2,
        graceful_shutdown_timeout_s=config.shutdown_timeout,
        **scaling,
    )
    return made(ray_serve.ingress(None)(Replica)).bind(config, threads)


def _resources(config: ServerConfig, share: int, low: int, session: RaySession) -> tuple[int, dict[str, float]]:
    """Threads of a replica, and what it occupies.

    Args:
        share: replicas among which the cores of this machine are shared; 0: each has the threads of this process.
    """
    import torch

    from redraft import runtime

    nodes = session.nodes
    gpus = int(runtime.device(config.device).type == "cuda")
    able = [node for node in nodes if node.gpus >= gpus]
    cores = max((node.cpus for node in able), default=0)
    cpus = min(torch.get_num_threads(), cores / share if share else cores)
    room = sum(min(int(node.cpus / cpus), node.gpus if gpus else 1 << 20) for node in able) if cpus else 0
    if room < low:
        what = f"The Ray cluster has room for {room} replicas with {cpus:g} cores{' and a GPU' if gpus else ''} each."
        raise UserError(what, "Use fewer --replicas, or more machines.")
    return max(1, int(cpus)), {"num_cpus": cpus, "num_gpus": gpus}


def for_replicas(config: ServerConfig, given: Mapping[str, Any]) -> tuple[ServerConfig, list[Path]]:
    """The configuration of a replica, whose models have absolute paths, and these paths.

    Raises:
        UserError: an option makes no sense with several processes, or a model does not exist.
    """
    if given.get("seed") is not None:
        raise UserError("--seed counts requests, which --ray-serve spreads.", "Send a seed with every request.")
    limits = EngineLimits(config.batch, config.queue, client_share=config.client_share, stuck_after=config.stuck_after)
    pool = ModelPool(config.models, config.device, limits, config.dtype)
    models, inputs = [], []
    for text, entry in zip(config.models, pool.entries.values(), strict=True):
        own = Path(text).exists() or Path(text.partition("=")[2]).exists()  # others are found by name on every node
        models.append(f"{entry.name}={entry.folder}" if own else text)
        inputs += [entry.folder] if own else []
    return replace(config, models=tuple(models)), inputs


@contextmanager
def _ended_by_signal() -> Iterator[_Signals]:
    """Counts the signals that end a server, instead of ending the process."""
    signals = _Signals()
    before = {number: signal.signal(number, signals.count) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield signals
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class _Signals:
    """Signals that end a server: the first begins to drain, the second ends the waiting."""

    def __init__(self) -> None:
        self.seen, self._first = 0, threading.Event()

    def count(self, number: int, frame: FrameType | None) -> None:
        """One more."""
        self.seen += 1
        self._first.set()

    def wait(self) -> None:
        """Until the first. Python runs the handlers of signals only between two waits on some systems."""
        while not self._first.wait(1.0):
            pass


def _shut_down(config: ServerConfig, signals: _Signals) -> None:
    """As ``server.DrainingServer``: refuse new requests, finish those under way, and end in time in any case."""
    from ray import serve as ray_serve

    force = threading.Timer(config.shutdown_timeout + _ENDING, end_by_force)
    force.daemon = True
    force.start()
    until = time.monotonic() + config.shutdown_timeout - min(2.0, config.shutdown_timeout / 2)
    with suppress(Exception):  # a replica that dies meanwhile has no requests any more
        handle = ray_serve.get_app_handle(APP)
        while sum(handle.broadcast("drain").results(timeout_s=_ASKING)):
            if signals.seen > 1 or time.monotonic() > until:
                handle.broadcast("stop").results(timeout_s=_ASKING)
                break
            time.sleep(0.1)
    ray_serve.shutdown()
    force.cancel()
