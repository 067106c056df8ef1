"""The base class of cache policies."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from redraft.limits import check_options
from redraft.registry import Registered
from redraft.types import Request


class CachePolicy(Registered, ABC):
    """Decides which positions of a request run; the network reads the others from the key-value store.

    Subclasses are frozen dataclasses whose fields are their options, declared with ``redraft.options.setting``.

    Raises:
        UserError: an option is out of its range.
    """

    exact: ClassVar[bool] = False  # stored keys and values equal those that a new pass would compute
    watched_layer: ClassVar[int | None] = None  # layer whose values it compares between passes (-1: the last)
    tries: ClassVar[Mapping[str, tuple[Any, ...]]] = {}  # values of its options that ``tune`` tries

    def __post_init__(self) -> None:
        check_options(self)

    @abstractmethod
    def narrow(self, request: Request, stored: np.ndarray, shift: int, moved: np.ndarray | None = None) -> Request:
        """The request without the positions that are read from the store, and ``cache.visible_below`` set.

        Args:
            stored: [R, C] token from which each stored position was computed, -1 for none.
            shift: the logits of position p are at p - shift.
            moved: [R] change of the values of ``watched_layer`` (see ``KeyValueStore``); None: not watched.
        """
