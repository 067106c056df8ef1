"""Counted floating-point operations of a network, from its shape and what it was asked to run.

One multiply-add is two operations. Matrix products are counted; norms, rotations, softmax and activations are not (a
few per cent), as is usual (Kaplan et al. 2020, arXiv:2001.08361, appendix; Hoffmann et al. 2022, arXiv:2203.15556).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


class Shape(Protocol):
    """What the count needs to know of a network (every ``Config`` of ``models/`` has it).

    Some have more to say: ``encoder_layers`` (an encoder reads the prompt), ``gated = False`` (MLPs of two matrices,
    not three), ``transform = True`` (a product of D x D before the vocabulary), ``condition_dim`` (width of the vector
    that tells the time), ``edits`` and ``guess``.
    """

    @property
    def vocab_size(self) -> int: ...
    @property
    def dim(self) -> int: ...
    @property
    def layers(self) -> int: ...
    @property
    def heads(self) -> int: ...
    @property
    def key_heads(self) -> int: ...
    @property
    def hidden(self) -> int: ...
    @property
    def timed(self) -> bool: ...


@dataclass(frozen=True)
class Flops:
    """Operations of forward passes through one network shape.

    Per position run: 2 (2 D^2 + 2 D Dkv + 3 D M) a layer (query and output, key and value, SwiGLU; 2 D M for an
    MLP that isn't gated). Per pair of a query and a key it attends to: 4 D a layer (scores and mixture). Per wanted
    position: 2 D V (the vocabulary), and 2 D^2 where BERT's transform comes first. With time conditioning, per row and
    pass: 2 (6 D C layers + 2 D C), C the width of the condition.

    Layers with a window (``Transformer``) are counted as if they saw everything: an upper bound.

    With an encoder, positions of the prompt pass through its layers, and through 2 (2 D Dkv) of each layer of the
    decoder for their keys and values there; the others pass through the decoder, whose layers have 2 (2 D^2) more for
    looking across.
    """

    shape: Shape

    def forward(
        self, queries: int, pairs: int, wanted: int, timed_rows: int = 0, encoded: int = 0, encoded_pairs: int = 0
    ) -> float:
        """Operations of forward passes that ran ``queries`` positions, attended to ``pairs`` and predicted ``wanted``.

        Args:
            queries: positions run through the network; padding does not count.
            pairs: sum over these positions of the keys they are compared with.
            wanted: positions projected on the vocabulary.
            timed_rows: rows times passes, where the network is conditioned on time.
            encoded, encoded_pairs: of the queries and pairs, those of positions that an encoder reads, if there is one
                (``decode.Counter``).
        """
        c = self.shape
        key_dim = c.dim // c.heads * c.key_heads
        matrices = 3 if getattr(c, "gated", True) else 2
        linear = 2 * (2 * c.dim * c.dim + 2 * c.dim * key_dim + matrices * c.dim * c.hidden)
        if encoder_layers := getattr(c, "encoder_layers", 0):
            encoder = encoder_layers * (linear * encoded + 4 * c.dim * encoded_pairs)
            across = c.layers * 4 * c.dim * (key_dim * encoded + c.dim * (queries - encoded))
            return encoder + across + self._stack(queries - encoded, pairs - encoded_pairs, wanted, timed_rows, linear)
        return self._stack(queries, pairs, wanted, timed_rows, linear)

    def _stack(self, queries: int, pairs: int, wanted: int, timed_rows: int, linear: int) -> float:
        c = self.shape
        condition = getattr(c, "condition_dim", c.dim)
        timed = 2 * c.dim * condition * (6 * c.layers + 2) * timed_rows if c.timed else 0
        told = 2 * c.dim * c.dim * queries if getattr(c, "guess", False) else 0  # what was predicted before
        outputs = c.vocab_size * (2 if getattr(c, "edits", False) else 1)  # rates of insertion and of substitution
        outputs += c.dim if getattr(c, "transform", False) else 0
        return float(c.layers * (linear * queries + 4 * c.dim * pairs) + 2 * c.dim * outputs * wanted + timed + told)
