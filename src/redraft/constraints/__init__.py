"""Registry of constraints on generated text: one file is one kind. ``build`` compiles constraints for a tokenizer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from redraft.constraints.automata.token_automaton import TokenAutomaton
    from redraft.constraints.shared.canvas_constraint import CanvasConstraint
    from redraft.constraints.shared.kind import Kind
    from redraft.data.tokenizer import Tokenizer


def build(kind: str, value: Any, tokenizer: Tokenizer) -> CanvasConstraint:
    """Compile one constraint: ``build("regex", r"\\d{4}", tokenizer)``, ``build("json_schema", schema, tokenizer)``.

    Args:
        value: a text as on the command line, or another type that the kind accepts (a mapping for ``json_schema``, a
            list for ``keywords``).
    Raises:
        UserError: the kind is unknown, the value is not valid for it, or the constraint can't be compiled.
    """
    return build_all({kind: value}, tokenizer)


def build_all(wanted: Mapping[str, Any], tokenizer: Tokenizer) -> CanvasConstraint:
    """Compile several constraints, all of which must hold. Compiled automata are cached by kinds and tokenizer.

    Raises:
        UserError: as ``build``; or no text satisfies all of them.
    """
    from redraft.constraints.shared.canvas_constraint import CanvasConstraint

    kinds = _kinds(wanted)
    least = max((kind.least for kind in kinds), default=0)
    bounds = [kind.most for kind in kinds if kind.most >= 0]
    automaton = _compiled(tokenizer, tuple(kinds))
    return CanvasConstraint(automaton, tokenizer.eos_id, tokenizer.mask_id, least, min(bounds, default=-1))


def satisfied(wanted: Mapping[str, Any], texts: Sequence[str], tokens: Sequence[int]) -> list[bool]:
    """Which of some texts satisfy all of several constraints.

    Args:
        texts, tokens: the texts, and the number of tokens of each.
    Raises:
        UserError: as ``build``.
    """
    kinds = _kinds(wanted)
    languages = [automaton for kind in kinds if (automaton := kind.automaton()) is not None]
    return [
        all(kind.least <= count and (kind.most < 0 or count <= kind.most) for kind in kinds)
        and all(language.accepts(text.encode()) for language in languages)
        for text, count in zip(texts, tokens, strict=True)
    ]


def _kinds(wanted: Mapping[str, Any]) -> list[Kind]:
    from redraft.registry import find

    return [find("constraints", name).of(value) for name, value in wanted.items()]


@lru_cache(maxsize=64)
def _compiled(tokenizer: Tokenizer, kinds: tuple[Kind, ...]) -> TokenAutomaton:
    from functools import reduce

    from redraft.constraints.automata import byte_automaton as languages
    from redraft.constraints.automata.token_automaton import over_tokens

    found = [automaton for kind in kinds if (automaton := kind.automaton()) is not None]
    language = reduce(languages.intersection, found) if found else languages.anything()
    if tokenizer.drops_first_space:
        language = languages.with_leading_space(language)
    return over_tokens(language, tokenizer.token_bytes, tokenizer.eos_id)
