"""From tokens to a few vectors and back: a text autoencoder that works window by window."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from redraft.models.parts.attention import Sight
from redraft.models.parts.denoiser import plain_block
from redraft.models.parts.norms import RMSNorm
from redraft.models.parts.positions import rotary_table


class Autoencoder(nn.Module):
    """Every ``ratio`` tokens become one vector of width Z, and all tokens of a window come back from its vectors.

    Encoder: embeddings, transformer blocks over a window, the states of ``ratio`` neighbours side by side through a
    linear map, each vector normalised to mean 0 and variance 1. Decoder: the same backwards, ending in the embedding's
    transpose. A vector stands for tokens of its own, where a perceiver's queries (Jaegle et al. 2021, arXiv:2103.03206;
    LD4LG, arXiv:2212.09462) first have to learn which: so texts of every length have vectors in proportion, and long
    ones cost no more memory than their windows. Positions that a text doesn't have hold padding, and vectors that it
    doesn't have are zero, in training as in use.
    """

    rotary: Tensor

    def __init__(self, c: Any) -> None:
        super().__init__()
        self.ratio, self.window, self.width = c.ratio, c.window, c.width
        dim, heads = c.auto_dim, max(1, c.auto_dim // 32)
        hidden = -(-dim * 8 // 3 // 32) * 32
        self.embedding = nn.Embedding(c.vocab_size, dim)
        self.encoder = nn.ModuleList(plain_block(c, dim, heads, hidden, layer) for layer in range(c.auto_layers))
        self.encoder_norm, self.decoder_norm = RMSNorm(dim, c.norm_eps), RMSNorm(dim, c.norm_eps)
        self.down = nn.Linear(c.ratio * dim, c.width)
        self.up = nn.Linear(c.width, c.ratio * dim)
        self.decoder = nn.ModuleList(plain_block(c, dim, heads, hidden, layer) for layer in range(c.auto_layers))
        table = rotary_table(c.window, dim // heads, c.rope_theta)
        self.register_buffer("rotary", table, persistent=False)

    def initialise(self) -> None:
        """Maps that keep the size of what passes through. To be called after the whole network's own initialisation."""
        nn.init.normal_(self.embedding.weight, std=self.embedding.embedding_dim**-0.5)
        nn.init.orthogonal_(self.down.weight)
        nn.init.orthogonal_(self.up.weight)

    def encode(self, tokens: Tensor) -> Tensor:
        """[U, w] ids of windows -> [U, w / ratio, Z]."""
        x = self._through(self.encoder, F.embedding(tokens, self.embedding.weight))
        x = self.encoder_norm(x).view(len(x), -1, self.down.in_features)
        return F.layer_norm(self.down(x), (self.width,))

    def decode(self, vectors: Tensor) -> Tensor:
        """[U, w / ratio, Z] -> [U, w, D] states, of which ``logits`` makes predictions."""
        x = self.up(vectors).to(self.up.weight.dtype)  # under autocast too: what blocks add to is float32
        x = x.view(len(vectors), -1, self.embedding.embedding_dim)
        return self.decoder_norm(self._through(self.decoder, x))

    def logits(self, states: Tensor) -> Tensor:
        """[N, D] -> [N, V]."""
        return F.linear(states, self.embedding.weight)

    def _through(self, blocks: nn.ModuleList, x: Tensor) -> Tensor:
        sight = Sight(self.rotary[None, : x.shape[1]], None, False, None, None)
        for block in blocks:
            x = block(x, sight, None)
        return x
