"""The texts of a run that a model writes first: the model that is trained, or the one that it begins as."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from redraft.data.loader import Tokenised
from redraft.errors import UserError
from redraft.model import Model
from redraft.train.conversions import own_texts, starting_model
from redraft.train.own_texts import write, writer, writing_flops
from redraft.train.ranks import Ranks
from redraft.train.recipe import Recipe


@dataclass(frozen=True)
class OwnTextWriter:
    """Writes texts for a run in its folder ``work``, where an earlier start of the same run may have left some.

    ``doing`` is called with what is being done, and the numbers of finished and of all texts.
    """

    recipe: Recipe
    model: Model
    length: int  # tokens of the longest row
    work: Path
    ranks: Ranks
    doing: Callable[[str, int, int], None]

    def written(self, training: Tokenised, validation: Tokenised | None) -> tuple[Tokenised, Tokenised | None, int]:
        """The texts to learn, those to validate on, and the operations for writing them.

        They are those of the data if the run wants no others. A converted model is validated on the data's own.

        Raises:
            UserError: plain text for a model that answers prompts, or streamed data.
        """
        training, flops = self._texts(training, "writing texts")
        if validation is not None and self.model.family.own_texts is not None:
            validation, _ = self._texts(validation, "writing texts for validation")
        return training, validation, flops

    def _texts(self, data: Tokenised, what: str) -> tuple[Tokenised, int]:
        """One process writes them, and all read them."""
        recipe, own = self.recipe, self.model.family.own_texts
        wanted = own or own_texts(recipe)
        if wanted is None:
            return data, 0
        if recipe.data.streaming:
            raise UserError("The texts that a model writes first are held in memory.", "Leave out data.streaming.")
        if data.prompts is None and own is None:
            problem = "The checkpoint writes answers to prompts, and these data are plain text."
            raise UserError(problem, "Use [objective] soft_targets, or data with an input and a target.")
        author = starting_model(recipe) if own is None else writer(self.model)

        def run() -> Tokenised:
            return write(author, data, wanted, self.length, self.work / "own_texts", partial(self.doing, what))

        if self.ranks.world > 1:
            self.ranks.once(lambda: len(run()))
        written = run()
        return written, writing_flops(author, written)
