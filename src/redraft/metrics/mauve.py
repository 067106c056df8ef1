"""MAUVE: how close the distribution of generated texts is to that of human texts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from redraft.errors import UserError
from redraft.generation.first_pass import parts
from redraft.metrics import Array
from redraft.metrics.shared.judge import Judged
from redraft.types import Forward

_VARIANCE = 0.9  # kept by the principal components
_SCALE = 5.0  # c
_RESTARTS, _ITERATIONS = 5, 500  # of k-means
_MIXTURES = np.linspace(1e-6, 1 - 1e-6, 25)  # w


@dataclass(frozen=True)
class Mauve(Judged):
    """MAUVE (Pillutla et al. 2021, arXiv:2102.01454), from 0 (disjoint) to 1 (equal distributions).

    Texts are embedded by the judge's last hidden state at the last token, scaled to norm 1, reduced to the principal
    components that keep 90 % of the variance, and clustered together with the references. With the shares P and Q of
    references and texts in the clusters, MAUVE is the area under the curve of

        (exp(-5 KL(Q | R)), exp(-5 KL(P | R))),   R = w P + (1 - w) Q,   0 < w < 1

    Values can be compared only for the same judge, the same number of texts and the same seed; thousands of texts of
    one length are usual. The cluster of each row is its statistic, so that intervals are those of fixed clusters.

    Fields:
        clusters: 0 for a tenth of the number of texts.
        seed: of k-means.
    """

    clusters: int = 0
    seed: int = 0

    name = "mauve"
    least = 100  # with fewer texts, the clusters hold too few of them

    @property
    def label(self) -> str:  # type: ignore[override]
        return f"MAUVE under {self.judge}"

    def statistics(self, hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> Array:
        """The clusters of each row's text and of its first reference, [rows, 2k] of zeros and ones.

        Raises:
            UserError: fewer than ``least`` texts.
        """
        if len(hypotheses) < self.least:
            raise UserError(
                f"MAUVE of {len(hypotheses)} texts says nothing: it needs {self.least}, and thousands are usual.",
                "Evaluate more rows.",
            )
        count = len(hypotheses)
        features = self.features([*hypotheses, *(known[0] for known in references)])
        clusters = self.clusters or max(2, round(count / 10))
        labels = cluster(features, clusters, self.seed)
        found = np.zeros((count, 2 * clusters))
        found[np.arange(count), labels[:count]] = 1
        found[np.arange(count), clusters + labels[count:]] = 1
        return found

    def combine(self, total: Array) -> Array:
        texts, references = np.split(total, 2, axis=-1)
        return area(*(part / part.sum(-1, keepdims=True) for part in (references, texts)))

    def features(self, texts: Sequence[str]) -> Array:
        """The judge's last hidden state at the last token of each text, cut to the judge's context -> [texts, D]."""
        model = self.model
        limit = model.network.config.max_length - 1
        rows = [(model.tokenizer.encode(text) or [model.tokenizer.eos_id])[:limit] for text in texts]
        order = sorted(range(len(rows)), key=lambda index: len(rows[index]))
        shortest_first = [rows[index] for index in order]
        states = [self._states(shortest_first[part.start : part.stop]) for part in parts(shortest_first)]
        found: Array = np.concatenate(states)[np.argsort(order)]
        return found

    def _states(self, rows: Sequence[Sequence[int]]) -> Array:
        """The last hidden states of rows of ids -> [rows, D] float32."""
        model, width = self.model, max(map(len, rows))
        tokens = torch.full((len(rows), width), model.tokenizer.pad_id)
        positions = torch.full((len(rows), width), -1)
        for number, ids in enumerate(rows):
            tokens[number, : len(ids)] = torch.tensor(ids)
            positions[number, : len(ids)] = torch.arange(len(ids))
        shift = model.network.config.shift
        last = torch.tensor([[len(ids) - 1 + shift] for ids in rows])
        with torch.inference_mode():
            states = model.network.states(Forward(tokens, positions, last, model.spec.network.attention))
        return states.float().cpu().numpy()


def cluster(features: Array, clusters: int, seed: int) -> Array:
    """Clusters of rows [N, D] -> [N]: norm 1, principal components, k-means.

    Raises:
        UserError: fewer rows than clusters.
    """
    from sklearn.cluster import KMeans
    from sklearn.decomposition import PCA

    if len(features) < clusters:
        raise UserError(f"{len(features)} texts can't form {clusters} clusters.", "Lower clusters.")
    scaled = features / np.linalg.norm(features, axis=1, keepdims=True).clip(1e-12)
    spread = np.ptp(scaled, axis=0).max() > 0
    reduced = PCA(_VARIANCE, svd_solver="full").fit_transform(scaled) if spread else scaled
    fitted = KMeans(clusters, n_init=_RESTARTS, max_iter=_ITERATIONS, random_state=seed).fit(reduced)
    labels: Array = fitted.labels_
    return labels


def area(p: Array, q: Array) -> Array:
    """The area under the divergence curve of distributions p and q, [..., k] each -> [...].

    The trapezoids are summed over one axis and over the other, and averaged. Where the curve is vertical, its points
    are taken from top to bottom.
    """
    w = _MIXTURES[:, None]
    mixed = w * p[..., None, :] + (1 - w) * q[..., None, :]  # [..., 25, k]
    x = np.exp(-_SCALE * _divergence(q[..., None, :], mixed))
    y = np.exp(-_SCALE * _divergence(p[..., None, :], mixed))
    zero, one = np.zeros((*x.shape[:-1], 1)), np.ones((*x.shape[:-1], 1))
    x, y = np.concatenate([one, x, zero], -1), np.concatenate([zero, y, one], -1)
    return (_trapezoids(x, y) + _trapezoids(y, x)) / 2


def _divergence(p: Array, r: Array) -> Array:
    """KL(p | r) over the last dimension; r is positive where p is."""
    ratio = np.divide(p, r, out=np.ones(np.broadcast_shapes(p.shape, r.shape)), where=(p > 0) & (r > 0))
    return (p * np.log(ratio)).sum(-1)


def _trapezoids(x: Array, y: Array) -> Array:
    order = np.lexsort((-y, x), axis=-1)
    x, y = np.take_along_axis(x, order, -1), np.take_along_axis(y, order, -1)
    return np.trapezoid(y, x, axis=-1)
