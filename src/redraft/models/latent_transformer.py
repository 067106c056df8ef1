"""A transformer that denoises the vectors of a text autoencoder, together with the autoencoder."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from redraft.errors import UserError
from redraft.models import transformer
from redraft.models.parts.autoencoder import Autoencoder
from redraft.models.parts.denoiser import Denoiser
from redraft.models.parts.packed import linear
from redraft.models.parts.store import KeyValueView
from redraft.runtime import upload
from redraft.types import Forward, VectorQuery

_ENCODED_AT_ONCE = 32  # windows per encoder call when no gradient is needed
_FILL = 0  # token after the end of a sequence in its last window


@dataclass(frozen=True)
class Config(transformer.Config):
    """Shape of a ``LatentTransformer``: that of its denoiser and of its autoencoder."""

    width: int = 64  # Z, at most dim
    ratio: int = 4  # tokens per vector
    window: int = 16  # tokens that the autoencoder processes together
    auto_dim: int = 80
    auto_layers: int = 1  # layers of the encoder, and of the decoder

    @property
    def vectors(self) -> tuple[int, int, bool]:
        return self.width, self.ratio, False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.width <= self.dim:
            raise UserError(
                f"model: width = {self.width} must be between 1 and dim = {self.dim}.", "Change one of them."
            )
        if self.ratio < 1 or self.window % self.ratio:
            raise UserError(
                f"model: window = {self.window} is not a multiple of ratio = {self.ratio}.", "Change one of them."
            )
        if self.auto_dim < 2 or self.auto_dim % (2 * max(1, self.auto_dim // 32)):
            raise UserError(
                f"model: auto_dim = {self.auto_dim} can't be split into heads of even width.",
                "Use a multiple of 32, or an even number below 64.",
            )


class LatentTransformer(Denoiser):
    """Latent diffusion (LD4LG, Lovelace et al. 2022, arXiv:2212.09462): K = L / ratio vectors for L tokens.

    The vectors follow the tokens of the prompt, which is isolated; the network predicts their v, [N, Z].
    """

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.write = nn.Linear(config.dim, config.width)
        self.autoencoder = Autoencoder(config)
        self.initialise()
        self.autoencoder.initialise()

    def forward(self, request: Forward, store: KeyValueView | None = None) -> Tensor:
        query = request.find(VectorQuery)
        if query is None:
            return linear(self.states(request, store), self.embedding.weight)
        if query.kind == "encode":
            return self._encode(request)
        if query.kind == "decode":
            return self._decode(request)
        return self._predict(request, store)

    def _predict(self, request: Forward, store: KeyValueView | None) -> Tensor:
        """v [N, Z]. If lengths are requested too, rows are wider and their first columns are the lengths' logits."""
        states, start = self.states(request, store), _start(request)
        is_length = (request.targets - start[:, None] < 0)[request.targets >= 0]
        if not bool(is_length.any()):
            out: Tensor = self.write(states)
            return out
        place = upload(is_length.nonzero()[:, 0], self.device)
        lengths = linear(states[place], self.embedding.weight[: self.config.max_length + 1])
        wide = max(self.config.width, lengths.shape[1])
        whole = F.pad(self.write(states), (0, wide - self.config.width))
        return whole.index_copy(0, place, F.pad(lengths, (0, wide - lengths.shape[1]), value=-torch.inf).to(whole))

    def _encode(self, request: Forward) -> Tensor:
        """The requested vectors [N, Z] of the tokens after the prompt."""
        c, start = self.config, _start(request)
        offset = request.positions - start[:, None]
        count = (offset.amax(1) + 1).clamp(min=0)  # tokens of each row
        windows = max(1, -(-int(count.max()) // c.window))
        ids = torch.full((len(request.tokens), windows * c.window + 1), _FILL)
        ids.scatter_(1, torch.where(offset < 0, windows * c.window, offset), request.tokens)
        ids = ids[:, :-1].reshape(-1, c.window)
        used = (torch.arange(windows) * c.window < count[:, None]).flatten().nonzero()[:, 0]
        if not len(used):
            return self.write.weight.new_zeros(0, c.width)
        parts = used.split(len(used) if torch.is_grad_enabled() and self._trains_autoencoder else _ENCODED_AT_ONCE)
        found = torch.cat([self.autoencoder.encode(upload(ids[part], self.device)) for part in parts])
        row, column = (request.targets >= 0).nonzero(as_tuple=True)
        vector = request.targets[row, column] - start[row]
        per_window = c.window // c.ratio
        at = torch.searchsorted(used, row * windows + vector // per_window)
        return found[tuple(upload(torch.stack([at, vector % per_window]), self.device))]

    def _decode(self, request: Forward) -> Tensor:
        """Logits [N, V] of the target text positions, from vectors."""
        c, start, query = self.config, _start(request), request.find(VectorQuery)
        assert query is not None and query.vectors is not None and query.noisy is not None
        row, column = (request.targets >= 0).nonzero(as_tuple=True)
        token = request.targets[row, column] - start[row]
        vector = torch.where(query.noisy, request.positions - start[:, None], -1)
        per_window = c.window // c.ratio
        if not len(token):
            return self.write.weight.new_zeros(0, c.vocab_size)
        windows = max(int(token.max()) // c.window, int(vector.max()) // per_window) + 1
        rest = windows * per_window
        z = upload(query.vectors, self.device).to(self.write.weight.dtype)
        place = upload(torch.where(vector < 0, rest, vector), self.device)[..., None].expand_as(z)
        rows = z.new_zeros(len(z), rest + 1, c.width).scatter(1, place, z)[:, :rest]
        used, which = (row * windows + token // c.window).unique(return_inverse=True)
        states = self.autoencoder.decode(rows.reshape(-1, per_window, c.width)[upload(used, self.device)])
        at = upload(torch.stack([which, token % c.window]), self.device)
        return self.autoencoder.logits(states[at[0], at[1]])

    @property
    def _trains_autoencoder(self) -> bool:
        return self.autoencoder.down.weight.requires_grad


def _start(request: Forward) -> Tensor:
    """The first position [R] of each row's answer."""
    return torch.zeros(len(request.positions), dtype=torch.int64) if request.prompt is None else request.prompt
