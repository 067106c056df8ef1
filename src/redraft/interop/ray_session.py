"""Starts Ray on this machine or joins a running cluster: the one place for it.

Ray is imported here and where its own functions are called, never before somebody asks for it::

    with connect("auto") as session:
        session.check(Path("runs/verdict"))
        ...  # ray.remote, ray.data

Every process of Ray imports redraft, so all nodes need the same version of it.
"""

from __future__ import annotations

import os
import secrets
import socket
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout, suppress
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from redraft import __version__
from redraft.errors import UserError
from redraft.files import write_atomically

LOCAL = "local"  # an address: start Ray on this machine, and end it afterwards
AUTO = "auto"  # an address: the cluster of RAY_ADDRESS, or the one that runs on this machine
ADDRESS_HELP = (
    "Spread the work with Ray: over the cores of this machine, or over the cluster at ADDRESS (auto, or HOST:PORT). "
    "Write --ray=ADDRESS, or put --ray last."
)
_HOW_TO_JOIN = (
    "Start a cluster with `ray start --head`. If it has a token (see ~/.ray/auth_token), set RAY_AUTH_MODE=token here."
)
_PATIENCE = 5.0  # seconds in which the machine of an address must answer
_CHECKING = 120.0  # seconds in which every node must have answered a question
_DEFAULTS = {
    "RAY_USAGE_STATS_ENABLED": "0",  # nothing is sent unless the user asked for it
    "RAY_worker_niceness": "0",  # work under Ray is as urgent as the same work without it
    "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "60",  # a busy machine takes more than the usual 5 to import the proxy
}
_ENVIRONMENT = ("OMP_WAIT_POLICY", "ONEDNN_PRIMITIVE_CACHE_CAPACITY", "REDRAFT_DATA")  # for the nodes of a cluster


@dataclass(frozen=True)
class Node:
    """One machine of a cluster, and what Ray may use of it in all."""

    id: str
    name: str
    cpus: int
    gpus: int
    memory: int  # bytes

    @classmethod
    def of(cls, described: Mapping[str, Any]) -> Node:
        """A node from what ``ray.nodes()`` says about it."""
        cpus, gpus, memory = (int(described["Resources"].get(name, 0)) for name in ("CPU", "GPU", "memory"))
        return cls(described["NodeID"], described["NodeManagerHostname"] or described["NodeName"], cpus, gpus, memory)


@dataclass(frozen=True)
class RaySession:
    """A connection to Ray."""

    address: str
    local: bool  # Ray was started for this session, on this machine alone

    @property
    def nodes(self) -> tuple[Node, ...]:
        """The machines that are alive and have cores."""
        found = [Node.of(one) for one in ray_package().nodes() if one["Alive"]]
        return tuple(node for node in found if node.cpus)

    def on_each_node(self, function: Callable[..., Any], *arguments: Any) -> list[tuple[Node, Any]]:
        """Call a function once on every node. It must be importable or a closure of plain values.

        Raises:
            UserError: a node does not answer.
        """
        ray, nodes = ray_package(), self.nodes
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        task = ray.remote(function)
        # Without a core of its own the question does not wait for the work that fills a node.
        asked = [
            task.options(num_cpus=0, scheduling_strategy=NodeAffinitySchedulingStrategy(node.id, soft=False)).remote(
                *arguments
            )
            for node in nodes
        ]
        try:
            return list(zip(nodes, ray.get(asked, timeout=_CHECKING), strict=True))
        except (ray.exceptions.GetTimeoutError, ray.exceptions.RaySystemError) as error:
            what = f"A node of the Ray cluster does not answer: {_first_line(error)}"
            raise UserError(what, "See which nodes are alive with: ray status.") from None

    def check(self, *folders: Path, inputs: Sequence[Path] = ()) -> None:
        """Check that every node has this version of redraft and sees these folders, which exist here.

        Args:
            folders: that can be written: a file written here must be readable there.
            inputs: files and folders that are only read: their names and sizes must be the same there.
        Raises:
            UserError: names the node that differs.
        """
        seen = {str(path.resolve()): _listing(path) for path in inputs}
        with _marked(folders) as marks:
            answers = self.on_each_node(_look, marks, seen)
        for node, (version, unseen) in answers:
            if version != __version__:
                what = f"Node '{node.name}' of the Ray cluster has redraft {version}; this is {__version__}."
                raise UserError(what, "Install the same version on all nodes.")
            if unseen:
                raise UserError(
                    f"'{unseen[0]}' is not the same on node '{node.name}' of the Ray cluster.",
                    "Choose a place on a file system that all nodes share at the same path, such as NFS.",
                )


@contextmanager
def connect(address: str | None = None, cpus: int | None = None) -> Iterator[RaySession]:
    """Connect this process to Ray for the length of the block.

    If the process is connected already, that connection is used, and left open. Ray prints some of its warnings to
    stdout; within the block they go to stderr, as everything else that is printed there does.

    Args:
        address: None or ``"local"`` starts Ray on this machine and ends it after the block; ``"auto"`` joins the
            cluster of the variable RAY_ADDRESS, or the one that runs on this machine; ``HOST:PORT`` joins a cluster.
            This machine must be one of its nodes.
        cpus: cores of a Ray that is started here; None: all of them.
    Raises:
        UserError: Ray is not installed, or nothing answers at the address.
    """
    ray = ray_package()
    wanted = address or LOCAL
    check_address(wanted)
    if ray.is_initialized():
        yield RaySession(wanted, False)
        return
    local = wanted == LOCAL
    if not local:
        _check_answer(os.environ.get("RAY_ADDRESS", "") if wanted == AUTO else wanted)
    options: dict[str, Any] = {"num_cpus": cpus, "include_dashboard": False} if local else {}
    if not local:
        options["runtime_env"] = {"env_vars": {name: os.environ[name] for name in _ENVIRONMENT if name in os.environ}}
    for name, value in _DEFAULTS.items():
        os.environ.setdefault(name, value)
    try:
        # Workers print through the functions that they call: what they write themselves would end up on stdout.
        ray.init(address=wanted, log_to_driver=False, logging_level="ERROR", **options)
    except (ConnectionError, TimeoutError, ValueError, RuntimeError) as error:
        what = f"Can't {'start Ray here' if local else f'join the Ray cluster at {wanted!r}'}: {_first_line(error)}"
        raise UserError(what, "" if local else _HOW_TO_JOIN) from None
    with redirect_stdout(sys.stderr):
        try:
            yield RaySession(wanted, local)
        finally:
            ray.shutdown()


def ray_package() -> ModuleType:
    """The package ``ray``.

    Raises:
        UserError: it is not installed.
    """
    try:
        import ray
    except ImportError as error:
        raise UserError(f"--ray needs the package '{error.name}'.", "Install it: pip install 'redraft[ray]'.") from None
    found: ModuleType = ray
    return found


def check_address(address: str) -> None:
    """Check the form of an address.

    Raises:
        UserError: it is neither ``local`` nor ``auto`` nor ``HOST:PORT``.
    """
    if address in (LOCAL, AUTO):
        return
    host, colon, port = address.rpartition(":")
    if address.startswith("ray://"):
        what = "An address ray:// is one of Ray Client, with which this machine is outside of the cluster."
        raise UserError(what, "Run the command on a node of the cluster, with --ray auto.")
    if not (host and colon and port.isdigit() and int(port) < 1 << 16):
        raise UserError(f"'{address}' is not the address of a Ray cluster.", "Give auto or HOST:PORT, or none at all.")


def _check_answer(address: str) -> None:
    """Does something listen at HOST:PORT? Ray itself tries for a minute."""
    host, _, port = address.rpartition(":")
    if not host:
        return
    try:
        socket.create_connection((host, int(port)), _PATIENCE).close()
    except (OSError, ValueError) as error:
        what = f"Nothing answers at the address '{address}' of a Ray cluster: {error}."
        raise UserError(what, "Start one with `ray start --head`, or give --ray without an address.") from None


@contextmanager
def _marked(folders: Sequence[Path]) -> Iterator[dict[str, str]]:
    """Hidden files in the folders, by path, with the text that each holds."""
    marks = {folder.resolve() / f".seen-{secrets.token_hex(8)}": secrets.token_hex(8) for folder in folders}
    try:
        for path, text in marks.items():
            write_atomically(path, text)
        yield {str(path): text for path, text in marks.items()}
    finally:
        for path in marks:
            with suppress(OSError):
                path.unlink()


def _look(marks: dict[str, str], seen: dict[str, list[tuple[str, int]]]) -> tuple[str, list[str]]:
    """On a node: its version of redraft, and the paths that are not the same here."""
    from redraft import __version__ as version

    unseen = [str(Path(path).parent) for path, text in marks.items() if _text(Path(path)) != text]
    return version, unseen + [path for path, listing in seen.items() if _listing(Path(path)) != listing]


def _text(path: Path) -> str | None:
    try:
        return path.read_text()
    except OSError:
        return None


def _listing(path: Path) -> list[tuple[str, int]]:
    """Names and sizes of the files of a folder, or of a file; empty if there is nothing."""
    try:
        files = [one for one in path.iterdir() if one.is_file()] if path.is_dir() else [path]
        return sorted((one.name, one.stat().st_size) for one in files)
    except OSError:
        return []


def _first_line(error: BaseException) -> str:
    text = str(error).strip().splitlines()
    return text[0].rstrip(".") + "." if text else f"{type(error).__name__}."
