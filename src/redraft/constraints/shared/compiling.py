"""From constraints to an automaton over the tokens of a vocabulary."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce

from redraft.constraints.automata import byte_automaton as languages
from redraft.constraints.automata.token_automaton import TokenAutomaton, over_tokens
from redraft.constraints.shared.kind import Kind


@dataclass(frozen=True)
class TokenTexts:
    """What compiling needs to know of a tokenizer: its ``token_bytes``, ``eos_id`` and ``drops_first_space``."""

    token_bytes: Sequence[bytes | None]
    eos_id: int
    drops_first_space: bool


def compiled(kinds: Sequence[Kind], texts: TokenTexts) -> TokenAutomaton:
    """The automaton of texts that satisfy all constraints.

    Raises:
        UserError: no text does, or the automaton is too large.
    """
    found = [automaton for kind in kinds if (automaton := kind.automaton()) is not None]
    language = reduce(languages.intersection, found) if found else languages.anything()
    if texts.drops_first_space:
        language = languages.with_leading_space(language)
    return over_tokens(language, texts.token_bytes, texts.eos_id)
