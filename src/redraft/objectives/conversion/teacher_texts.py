"""Teacher texts: the autoregressive model writes the answers that the converted model learns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from redraft.objectives.base import Objective, OwnTexts
from redraft.objectives.conversion.base import ConversionMethod, Origin
from redraft.options import setting


@dataclass(frozen=True, kw_only=True)
class TeacherTexts(ConversionMethod):
    """Sequence-level distillation (Kim & Rush 2016, arXiv:1606.07947).

    Before training, the model that it starts from writes an answer to every prompt of the data, or continues the
    beginnings of its texts, and the family's loss is that of these. One answer to a prompt, in one wording, is easier
    to predict in parallel than the many of the data (Zhou et al. 2020, arXiv:1911.02727). It pays for a model that
    does the task well already. Validation stays on the texts of the data. What is written is kept beside the
    checkpoints, and an interrupted run continues there.
    """

    texts: int = setting(16384, "Most texts that it writes; training repeats them.", least=1)
    temperature: float = setting(0.0, "Temperature at which it writes them.", least=0)

    rank = 0

    @property
    def own_texts(self) -> OwnTexts:
        return OwnTexts(self.texts, self.temperature)

    def wrap(self, inner: Objective[Any], origin: Origin) -> Objective[Any]:
        return inner
