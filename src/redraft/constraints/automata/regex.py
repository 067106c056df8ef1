"""Regular expressions as automata over bytes, with bounds on their size.

The pattern is parsed by Python's own parser (``patterns``), made deterministic over classes of characters
(``glushkov``), and each character becomes its UTF-8 bytes (``utf8``). The library outlines-core is not used: it keeps
the order of alternatives (it drops "ab" from ``a|ab``), needs minutes for ``Das .{5,40} ist gut``, and takes no bound.
"""

from __future__ import annotations

from redraft.constraints.automata.byte_automaton import ByteAutomaton
from redraft.constraints.automata.glushkov import determinise
from redraft.constraints.automata.patterns import Node, UnsupportedPattern, parse, without_anchors
from redraft.constraints.automata.utf8 import over_bytes
from redraft.errors import UserError


def from_regex(pattern: str) -> ByteAutomaton:
    """The language of the texts that a regular expression matches from beginning to end.

    Raises:
        UserError: it is not a regular expression, needs more than a finite automaton (look-around, back-references),
            is too large, or matches no text.
    """
    try:
        return from_node(without_anchors(parse(pattern), None))
    except UnsupportedPattern as error:
        shown = repr(pattern if len(pattern) <= 60 else pattern[:57] + "...")
        raise UserError(f"The regular expression {shown} can't be compiled: {error}.", error.remedy) from None


def from_node(node: Node) -> ByteAutomaton:
    """The language of a pattern without anchors.

    Raises:
        UnsupportedPattern: it is too large.
        UserError: its automaton over bytes is too large, or it matches no text.
    """
    return over_bytes(*determinise(node))
