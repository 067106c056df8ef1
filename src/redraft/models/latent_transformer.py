"""A transformer that takes noise off the vectors of a text autoencoder, with the autoencoder itself."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from redraft.errors import UserError
from redraft.models import transformer
from redraft.models.parts.autoencoder import Autoencoder
from redraft.models.parts.denoiser import Denoiser
from redraft.models.parts.store import KeyValueStore
from redraft.types import Forward

_TOGETHER = 32  # windows that are encoded at a time where no gradient is kept
_FILL = 0  # what stands behind a text's end in its last window


@dataclass(frozen=True)
class Config(transformer.Config):
    """Shape of a ``LatentTransformer``: that of its denoiser, and of the autoencoder beside it."""

    width: int = 64  # Z, at most dim
    ratio: int = 4  # tokens a vector
    window: int = 16  # tokens that the autoencoder sees together
    auto_dim: int = 80
    auto_layers: int = 1  # of the encoder, and of the decoder

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.width <= self.dim:
            raise UserError(f"model: vectors of width {self.width} do not fit a network of width {self.dim}.")
        if self.ratio < 1 or self.window % self.ratio:
            raise UserError(f"model: window = {self.window} is not a multiple of ratio = {self.ratio}.")
        if self.auto_dim < 2 or self.auto_dim % (2 * max(1, self.auto_dim // 32)):
            raise UserError(f"model: auto_dim = {self.auto_dim} must be a multiple of 32, or even and below.")


class LatentTransformer(Denoiser):
    """Latent diffusion (LD4LG, Lovelace et al. 2022, arXiv:2212.09462): K = L / ratio vectors for a text of L tokens.

    The vectors stand behind the tokens of the prompt, which is isolated; their prediction is v, [N, Z].
    """

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.write = nn.Linear(config.dim, config.width)
        self.autoencoder = Autoencoder(config)
        self.initialise()
        self.autoencoder.initialise()

    def forward(self, ask: Forward, store: KeyValueStore | None = None) -> Tensor:
        if ask.vectors is None:
            return F.linear(self.states(ask, store), self.embedding.weight)
        if ask.vectors.kind == "encode":
            return self._encode(ask)
        if ask.vectors.kind == "decode":
            return self._decode(ask)
        return self._predict(ask, store)

    def _predict(self, ask: Forward, store: KeyValueStore | None) -> Tensor:
        """v [N, Z]. Where lengths are wanted too, their logits stand in the first columns of wider rows."""
        states, start = self.states(ask, store), _start(ask)
        number = (ask.want - start[:, None] < 0)[ask.want >= 0]
        if not bool(number.any()):
            out: Tensor = self.write(states)
            return out
        place = number.nonzero()[:, 0].to(self.device)
        lengths = F.linear(states[place], self.embedding.weight[: self.config.max_length + 1])
        wide = max(self.config.width, lengths.shape[1])
        whole = F.pad(self.write(states), (0, wide - self.config.width))
        return whole.index_copy(0, place, F.pad(lengths, (0, wide - lengths.shape[1]), value=-torch.inf).to(whole))

    def _encode(self, ask: Forward) -> Tensor:
        """The vectors [N, Z] wanted, of the tokens from the prompt's end on."""
        c, start = self.config, _start(ask)
        offset = ask.pos - start[:, None]
        count = (offset.amax(1) + 1).clamp(min=0)  # tokens of each row
        windows = max(1, -(-int(count.max()) // c.window))
        ids = torch.full((len(ask.x), windows * c.window + 1), _FILL)
        ids.scatter_(1, torch.where(offset < 0, windows * c.window, offset), ask.x)
        ids = ids[:, :-1].reshape(-1, c.window)
        used = (torch.arange(windows) * c.window < count[:, None]).flatten().nonzero()[:, 0]
        if not len(used):
            return self.write.weight.new_zeros(0, c.width)
        parts = used.split(len(used) if torch.is_grad_enabled() and self._learns else _TOGETHER)
        found = torch.cat([self.autoencoder.encode(ids[part].to(self.device)) for part in parts])
        row, column = (ask.want >= 0).nonzero(as_tuple=True)
        vector = ask.want[row, column] - start[row]
        each = c.window // c.ratio
        at = torch.searchsorted(used, row * windows + vector // each)
        return found[at.to(self.device), (vector % each).to(self.device)]

    def _decode(self, ask: Forward) -> Tensor:
        """Logits [N, V] of the wanted text positions."""
        c, start, given = self.config, _start(ask), ask.vectors
        assert given is not None and given.z is not None and given.noisy is not None
        row, column = (ask.want >= 0).nonzero(as_tuple=True)
        token = ask.want[row, column] - start[row]
        vector = torch.where(given.noisy, ask.pos - start[:, None], -1)
        each = c.window // c.ratio
        if not len(token):
            return self.write.weight.new_zeros(0, c.vocab_size)
        windows = max(int(token.max()) // c.window, int(vector.max()) // each) + 1
        rest = windows * each
        z = given.z.to(device=self.device, dtype=self.write.weight.dtype)
        place = torch.where(vector < 0, rest, vector)[..., None].to(self.device).expand_as(z)
        rows = z.new_zeros(len(z), rest + 1, c.width).scatter(1, place, z)[:, :rest]
        used, which = (row * windows + token // c.window).unique(return_inverse=True)
        states = self.autoencoder.decode(rows.reshape(-1, each, c.width)[used.to(self.device)])
        return self.autoencoder.logits(states[which.to(self.device), (token % c.window).to(self.device)])

    @property
    def _learns(self) -> bool:
        return self.autoencoder.down.weight.requires_grad


def _start(ask: Forward) -> Tensor:
    """[R] where the answers begin."""
    return torch.zeros(len(ask.pos), dtype=torch.int64) if ask.prompt is None else ask.prompt
