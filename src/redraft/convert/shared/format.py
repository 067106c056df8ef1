"""The base class of checkpoint formats, and the translation of a public configuration to redraft's terms."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from redraft.errors import UserError

if TYPE_CHECKING:
    from redraft.convert.shared.keys import Keys
    from redraft.data.vocabulary import Ids
    from redraft.models.parts.backbone import Backbone
    from redraft.types import Spec
    from redraft.weights import Layout


@dataclass(frozen=True)
class Translation:
    """A public configuration in redraft's terms."""

    network: Mapping[str, Any]  # name and configuration (``models.empty``)
    family: Mapping[str, Any]  # name and options
    layout: Layout
    forbid_mask: bool = False  # the mask is never generated
    mask: int | None = None  # id of the mask, if the format defines it
    delete: int | None = None  # id of the delete token, if the format defines it
    defaults: Mapping[str, Any] = field(default_factory=dict)  # generation settings


class Format:
    """A public checkpoint format."""

    summary: ClassVar[str]
    citation: ClassVar[str]
    writable: ClassVar[bool] = False  # can models be exported to it (``write``)?
    self_conditioned: ClassVar[bool] = False  # can it hold a network that reads its previous prediction?
    # What the published configuration class assumes for keys that a file lacks, where that isn't what ``read`` assumes.
    unstated: ClassVar[Mapping[str, Any]] = {}

    @staticmethod
    def fits(config: Mapping[str, Any], ids: Ids) -> bool:
        """Is a configuration of this format? ``ids``: special tokens that the files of the checkpoint name."""
        raise NotImplementedError

    @staticmethod
    def read(keys: Keys, names: Collection[str], ids: Ids) -> Translation:
        """Translate a configuration. Every key must be read or ignored explicitly.

        Args:
            names: names of the stored tensors.
            ids: special tokens that the files of the checkpoint name.
        Raises:
            UserError: a key is missing, or has a value that redraft's networks don't compute.
        """
        raise NotImplementedError

    @staticmethod
    def write(network: Backbone, spec: Spec) -> tuple[dict[str, Any], Layout]:
        """The configuration and tensor names of this format for a network.

        Raises:
            UserError: the format can't hold this model.
        """
        raise UserError("This format can't be written.", "Use --to redraft.")

    @staticmethod
    def settings(defaults: Mapping[str, Any]) -> dict[str, Any]:
        """What ``generation_config.json`` says of a model's own generation settings; by default nothing."""
        return {}
