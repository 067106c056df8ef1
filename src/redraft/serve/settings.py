"""What the operator of a server decides."""

from __future__ import annotations

from dataclasses import dataclass

from redraft.errors import UserError

DTYPES = ("float32", "bfloat16", "float16")


@dataclass(frozen=True)
class Settings:
    """A server's configuration; the options of ``redraft serve`` fill these fields."""

    models: tuple[str, ...]
    host: str = "127.0.0.1"
    port: int = 8000
    api_keys: tuple[str, ...] = ()  # none: everybody who reaches the port may ask
    cors: tuple[str, ...] = ()  # origins of pages that may ask; none by default
    batch: int = 32  # canvas rows in a batch
    queue: int = 256  # texts waiting
    max_tokens: int = 0  # of one answer; 0: what the model's context has room for
    max_texts: int = 64  # answers of one request
    max_body: int = 1 << 20  # bytes of a request
    deadline: float = 300.0  # seconds of a request, waiting included
    patience: float = 30.0  # seconds that a shutdown waits for what is under way
    idle: float = 0.0  # seconds after which an unused model is unloaded; 0: never
    seed: int | None = None  # of the first request that names none; None: a fresh one each
    log_text: bool = False  # prompts and answers in the log
    device: str = "auto"
    dtype: str = "float32"  # of weights; bfloat16 halves memory

    def __post_init__(self) -> None:
        if not self.models:
            raise UserError("there is no model to serve.", "Name one with --model.")
        for name in ("batch", "queue", "max_texts", "max_body"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} = {getattr(self, name)} must be at least 1.")
        for name in ("max_tokens", "patience", "idle"):
            if getattr(self, name) < 0:
                raise UserError(f"{name} = {getattr(self, name)} must be at least 0.")
        if self.dtype not in DTYPES:
            raise UserError(f"dtype '{self.dtype}' is not served.", f"One of {', '.join(DTYPES)}.")
        if self.deadline <= 0:
            raise UserError(f"deadline = {self.deadline} must be above 0.")
        if not 0 <= self.port < 65536:
            raise UserError(f"port = {self.port} is not a port.")
        if any(len(key) < 8 for key in self.api_keys):
            raise UserError("an API key of fewer than 8 characters is no key.")

    @property
    def loopback(self) -> bool:
        """Reached from this machine only?"""
        return self.host in ("127.0.0.1", "localhost", "::1")
