"""What a finished text must satisfy: one file a kind; ``build`` compiles one, or several at once, for a tokenizer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from redraft.constraints._constrained import Constrained
    from redraft.constraints._kind import Kind
    from redraft.constraints._tokens import TokenAutomaton
    from redraft.data.tokenizer import Tokenizer


def build(kind: str, value: Any, tokenizer: Tokenizer) -> Constrained:
    """Compile one constraint: ``build("regex", r"\\d{4}", tokenizer)``, ``build("json_schema", schema, tokenizer)``.

    Args:
        value: text as on the command line, or what the kind takes besides (a mapping for ``json_schema``, a list for
            ``keywords``).
    Raises:
        UserError: unknown kind (with the nearest known one), or a value that it can't use.
    """
    return build_all({kind: value}, tokenizer)


def build_all(wanted: Mapping[str, Any], tokenizer: Tokenizer) -> Constrained:
    """Compile several constraints, all of which must hold; compiled automata are kept per kinds and tokenizer.

    Raises:
        UserError: as ``build``; or no text satisfies all of them.
    """
    from redraft.constraints._constrained import Constrained

    kinds = _kinds(wanted)
    least = max((kind.least for kind in kinds), default=0)
    bounds = [kind.most for kind in kinds if kind.most >= 0]
    automaton = _compiled(tokenizer, tuple(kinds))
    return Constrained(automaton, tokenizer.eos_id, tokenizer.mask_id, least, min(bounds, default=-1))


def satisfied(wanted: Mapping[str, Any], texts: Sequence[str], tokens: Sequence[int]) -> list[bool]:
    """Which texts, of so many ``tokens`` each, satisfy all of several constraints, whoever wrote them.

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

    from redraft.constraints import _bytes as languages
    from redraft.constraints._tokens import over_tokens

    found = [automaton for kind in kinds if (automaton := kind.automaton()) is not None]
    language = reduce(languages.both, found) if found else languages.anything()
    if tokenizer.drops_first_space:
        language = languages.spaced(language)
    return over_tokens(language, tokenizer.token_bytes, tokenizer.eos_id)
