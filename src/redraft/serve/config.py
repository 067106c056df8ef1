"""Configuration of a server, and of how many processes it has."""

from __future__ import annotations

from dataclasses import dataclass

from redraft.errors import UserError
from redraft.options import REQUIRED, check, setting
from redraft.settings import DEVICE_HELP, DTYPE_HELP, Dtype

_SHORTEST_KEY = 8  # characters


@dataclass(frozen=True)
class ServerConfig:
    """Configuration of a server. The options of ``redraft serve`` are made from these fields."""

    models: tuple[str, ...] = setting(
        REQUIRED,
        "A model folder, a shipped checkpoint, or owner/name on the hub; NAME= sets the name in requests.",
        metavar="[NAME=]MODEL",
        flag="--model",
        nonempty=True,
        reach=("cli",),
    )
    host: str = setting(
        "127.0.0.1", "Address to listen on. 0.0.0.0 admits other machines; set API keys then.", reach=("cli",)
    )
    port: int = setting(8000, "Port to listen on; 0 takes any free port.", least=0, most=65_535, reach=("cli",))
    api_keys: tuple[str, ...] = setting(
        (), "API keys of which requests must send one. Without keys, every request is answered.", reach=()
    )
    cors: tuple[str, ...] = setting(
        (),
        "Origins of other web pages that may send requests, such as https://example.org.",
        metavar="ORIGIN",
        reach=("cli",),
    )
    batch: int = setting(
        32, "Canvas rows in a batch. The key-value cache grows with it.", least=1, unit="rows", reach=("cli",)
    )
    queue: int = setting(
        256,
        "Sequences that may wait; further requests are refused with status 429.",
        least=1,
        unit="sequences",
        reach=("cli",),
    )
    client_share: float = setting(
        0.5,
        "Share of the queue that one client may fill, so that others find room.",
        above=0,
        most=1,
        reach=("cli",),
    )
    connections: int = setting(
        1000, "Open connections; further ones are closed at once.", least=1, unit="connections", reach=("cli",)
    )
    receive_timeout: float = setting(
        15.0, "Seconds in which the head of a request must arrive, and then its body.", above=0, unit="seconds",
        reach=("cli",),
    )  # fmt: skip
    compilers: int = setting(
        2, "Processes that compile constraints. They are started when needed.", least=1, most=64, unit="processes",
        reach=("cli",),
    )  # fmt: skip
    compile_timeout: float = setting(
        30.0, "Seconds that the compilation of a constraint may take.", above=0, unit="seconds", reach=("cli",)
    )
    stuck_after: float = setting(
        60.0, "Seconds of one step after which /healthz reports that a model is stuck.", above=0, unit="seconds",
        reach=("cli",),
    )  # fmt: skip
    max_tokens: int = setting(
        0,
        "Maximum number of new tokens per answer; 0 allows as many as the model's context has room for.",
        least=0,
        unit="tokens",
        reach=("cli",),
    )
    max_answers: int = setting(64, "Maximum number of answers per request.", least=1, unit="answers", reach=("cli",))
    max_body: int = setting(1 << 20, "Maximum size of a request in bytes.", least=1, unit="bytes", reach=("cli",))
    deadline: float = setting(
        300.0, "Seconds after which a request is given up, including its time in the queue.", above=0, unit="seconds",
        reach=("cli",),
    )  # fmt: skip
    shutdown_timeout: float = setting(
        30.0, "Seconds that a shutdown takes at most; unfinished requests have most of them.", least=0, unit="seconds",
        reach=("cli",),
    )  # fmt: skip
    unload_after: float = setting(
        0.0, "Minutes after which an idle model is unloaded; 0 keeps it loaded.", least=0, unit="minutes",
        reach=("cli",),
    )  # fmt: skip
    log_text: bool = setting(False, "Write prompts and answers to the log.", reach=("cli",))
    seed: int | None = setting(
        None,
        "Seed of the first request that sends none; each further one gets the next. Unset: a random seed each.",
        least=0,
        reach=("cli",),
    )
    device: str = setting("auto", DEVICE_HELP, reach=("cli",))
    dtype: Dtype = setting("auto", f"{DTYPE_HELP} 16 bits halve the memory.", reach=("cli",))

    def __post_init__(self) -> None:
        check(self)
        if any(len(key.strip()) < _SHORTEST_KEY for key in self.api_keys):
            raise UserError(f"An API key needs at least {_SHORTEST_KEY} characters.", "Choose a longer one.")
        if any(key.split() != [key] for key in self.api_keys):
            raise UserError("An API key contains a space or a line break.", "Choose one without.")

    @property
    def loopback(self) -> bool:
        """Whether only this machine can reach the server."""
        return self.host in ("127.0.0.1", "localhost", "::1")


@dataclass(frozen=True)
class Replication:
    """How many processes serve."""

    replicas: int | None = setting(
        None, "With --ray-serve: processes that hold the models. Unset: 1.", least=1, reach=("cli",)
    )
    autoscale: str = setting(
        "",
        "With --ray-serve: between MIN and MAX processes, by the requests under way; one is added when each has more "
        "than --batch of them.",
        metavar="MIN:MAX",
        reach=("cli",),
    )

    def __post_init__(self) -> None:
        check(self)
        if self.replicas is not None and self.autoscale:
            raise UserError("--replicas and --autoscale exclude each other.", "Give one of them.")
        low, high = self.bounds
        if not 1 <= low <= high:
            raise UserError(f"--autoscale {self.autoscale} is not MIN:MAX with 1 <= MIN <= MAX.", "For example 1:4.")

    @property
    def bounds(self) -> tuple[int, int]:
        """Smallest and largest number of replicas; zeros if they can't be read."""
        if not self.autoscale:
            return self.replicas or 1, self.replicas or 1
        low, _, high = self.autoscale.partition(":")
        return (int(low), int(high)) if low.isdecimal() and high.isdecimal() else (0, 0)
