"""Registry of constraints on generated text: one file is one kind. ``build`` compiles constraints for a tokenizer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from redraft.constraints.shared.automaton_cache import AutomatonCache
    from redraft.constraints.shared.canvas_constraint import CanvasConstraint
    from redraft.constraints.shared.compiling import TokenTexts
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
    from redraft.constraints.shared.compiling import compiled

    kinds = kinds_of(wanted)
    least = max((kind.least for kind in kinds), default=0)
    bounds = [kind.most for kind in kinds if kind.most >= 0]
    automaton = compiled_automata().find(tokenizer, kinds)
    if automaton is None:
        automaton = compiled(kinds, texts_of(tokenizer))
        compiled_automata().keep(tokenizer, kinds, automaton)
    return CanvasConstraint(automaton, tokenizer.eos_id, tokenizer.mask_id, least, min(bounds, default=-1))


def satisfied(wanted: Mapping[str, Any], texts: Sequence[str], tokens: Sequence[int]) -> list[bool]:
    """Which of some texts satisfy all of several constraints.

    Args:
        texts, tokens: the texts, and the number of tokens of each.
    Raises:
        UserError: as ``build``.
    """
    kinds = kinds_of(wanted)
    languages = [automaton for kind in kinds if (automaton := kind.automaton()) is not None]
    return [
        all(kind.least <= count and (kind.most < 0 or count <= kind.most) for kind in kinds)
        and all(language.accepts(text.encode()) for language in languages)
        for text, count in zip(texts, tokens, strict=True)
    ]


def kinds_of(wanted: Mapping[str, Any]) -> tuple[Kind, ...]:
    """The constraints of a setting, not compiled.

    Raises:
        UserError: a kind is unknown, or a value is not valid for it.
    """
    from redraft.registry import find

    return tuple(find("constraints", name).of(value) for name, value in wanted.items())


def texts_of(tokenizer: Tokenizer) -> TokenTexts:
    """What compiling needs to know of a tokenizer.

    Raises:
        UserError: the bytes of its tokens are not defined.
    """
    from redraft.constraints.shared.compiling import TokenTexts

    return TokenTexts(tokenizer.token_bytes, tokenizer.eos_id, tokenizer.drops_first_space)


@cache
def compiled_automata() -> AutomatonCache:
    """The compiled constraints of this process."""
    from redraft.constraints.shared.automaton_cache import AutomatonCache

    return AutomatonCache()
