"""A text autoencoder: tokens to a few vectors and back, window by window."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from redraft.models.parts.attention import AttentionContext
from redraft.models.parts.denoiser import plain_block
from redraft.models.parts.norms import RMSNorm
from redraft.models.parts.positions import rotary_table


class Autoencoder(nn.Module):
    """Encodes every ``ratio`` tokens as one vector of width Z, and decodes all tokens of a window from its vectors.

    Encoder: embeddings, transformer blocks over a window, then a linear map of the concatenated states of ``ratio``
    neighbours; each vector is normalised to mean 0 and variance 1. Decoder: the same in reverse, with the transposed
    embedding as output projection. Each vector represents fixed tokens, whereas the queries of a perceiver (Jaegle et
    al. 2021, arXiv:2103.03206; LD4LG, arXiv:2212.09462) first have to learn which tokens they represent. The number of
    vectors is therefore proportional to the length, and memory is limited to a window even for long sequences.
    Positions after the end of a sequence hold padding and vectors after its end are zero, in training and inference.
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
        """Initialise maps that preserve variance. Call it after the initialisation of the whole network."""
        nn.init.normal_(self.embedding.weight, std=self.embedding.embedding_dim**-0.5)
        nn.init.orthogonal_(self.down.weight)
        nn.init.orthogonal_(self.up.weight)

    def encode(self, tokens: Tensor) -> Tensor:
        """Ids of windows [U, w] -> vectors [U, w / ratio, Z]."""
        x = self._run(self.encoder, F.embedding(tokens, self.embedding.weight))
        x = self.encoder_norm(x).view(len(x), -1, self.down.in_features)
        return F.layer_norm(self.down(x), (self.width,))

    def decode(self, vectors: Tensor) -> Tensor:
        """Vectors [U, w / ratio, Z] -> hidden states [U, w, D], the input of ``logits``."""
        x = self.up(vectors).to(self.up.weight.dtype)  # also under autocast: the residual stream is float32
        x = x.view(len(vectors), -1, self.embedding.embedding_dim)
        return self.decoder_norm(self._run(self.decoder, x))

    def logits(self, states: Tensor) -> Tensor:
        """Hidden states [N, D] -> logits [N, V]."""
        return F.linear(states, self.embedding.weight)

    def _run(self, blocks: nn.ModuleList, x: Tensor) -> Tensor:
        context = AttentionContext(self.rotary[None, : x.shape[1]], None, False, None, None)
        for block in blocks:
            x = block(x, context, None)
        return x
