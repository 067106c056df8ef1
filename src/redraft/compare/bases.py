"""What a study knows of the checkpoints that it starts from. Their weights are not read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from redraft.config import to_mapping
from redraft.conversion import convert_family
from redraft.data.tokenizer import Tokenizer
from redraft.errors import UserError
from redraft.families import build_family
from redraft.files import read_json
from redraft.loading import outline, resolve
from redraft.model import Model
from redraft.objectives.conversion import build_conversions, wrapped
from redraft.objectives.conversion.base import Origin

AUTOREGRESSIVE = "autoregressive"


@dataclass(frozen=True)
class Base:
    """The checkpoint that one family of a study starts from, as a model of that family."""

    was: str  # family of the checkpoint
    table: Mapping[str, Any]  # [family] of the models that are trained from it
    curricula: tuple[str, ...]  # curricula that suit its conversion
    parameters: int
    width: int
    longest: int  # tokens of a row of training
    tokenizer: Tokenizer
    origin: Origin  # of objectives of conversion

    @property
    def converted(self) -> bool:
        """Its family changes in training."""
        return bool(self.was != self.table["name"])

    def suits(self, objective: Mapping[str, Any]) -> bool:
        """Can it be converted with this ``[objective]``?"""
        if not self.converted:
            return False
        conversions = build_conversions(objective)
        try:
            for phase in build_family(self.table)[1].phases():
                wrapped(conversions, phase.objective, self.origin)
        except UserError:
            return False
        return True

    @classmethod
    def read(cls, name_or_path: str, family: str, options: Mapping[str, Any]) -> Base:
        """The facts about a checkpoint of ``family``, or about an autoregressive one after conversion to it.

        Args:
            options: fields of the family that the study sets.
        Raises:
            UserError: the checkpoint can't be read, or can't become one of the family.
        """
        model = outline(name_or_path)
        was, origin = model.family_name, Origin.of(model.spec, model.network)
        if was == family:
            file = resolve(name_or_path) / "config.json"
            own = read_json(file).get("family") if file.is_file() else None
            table = own or {"name": was, **to_mapping(model.family)}  # a public checkpoint has no family of its own
            table = {**table, **options}
        else:
            model = _converted(model, name_or_path, family, options)
            table = {"name": family, **to_mapping(model.family)}
        shape, built = model.network.config, build_family(table)[1]
        rest = built.spec(model.tokenizer).network.attention.block - 1  # of an answer's last block
        return cls(
            was=was,
            table=table,
            curricula=built.conversion.curricula if was != family else (),
            parameters=model.network.parameter_count,
            width=shape.dim,
            longest=shape.max_length - max(1, rest, built.spare),
            tokenizer=model.tokenizer,
            origin=origin,
        )


def _converted(model: Model, name_or_path: str, family: str, options: Mapping[str, Any]) -> Model:
    """An autoregressive checkpoint as a model of another family."""
    if model.family_name != AUTOREGRESSIVE:
        raise UserError(
            f"'{name_or_path}' is a model of family '{model.family_name}', not '{family}'.",
            "Name a checkpoint of that family, or an autoregressive one to convert.",
        )
    remedy = f"Name a checkpoint of that family (--from {family}=CHECKPOINT), or leave it out of --families."
    table = {"name": family, **options}
    refused = build_family(table)[1].conversion.refused
    try:
        found = convert_family(model, table)
    except UserError as error:
        refused = error.what.rstrip(".")
    if refused:
        raise UserError(
            f"The autoregressive checkpoint '{name_or_path}' can't be converted to family '{family}': {refused}.",
            remedy,
        )
    return found
