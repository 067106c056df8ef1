"""Constrained generation with random regular expressions and JSON schemas, a shipped vocabulary and adversarial logits.

    python -m benchmarks.constrained [--constraints 1000] [--each 10] [--seed 0]

Every constraint is used by ``--each`` pairs of sampler and adversary in turn; half of the models choose their length
beforehand. Texts are checked with Python's ``re`` and with a validator written from the specification (and with
jsonschema-rs if it is installed). An error ("needs at least n tokens") is checked: n positions must suffice, n - 1 must
not. Prints one JSON object, and every failure.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import Counter
from typing import Any

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from redraft.errors import UserError
from tests import constrained

ROOM = 32


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--constraints", type=int, default=1000)
    parser.add_argument("--each", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    found: Counter[str] = Counter()
    slowest: dict[str, Any] = {"seconds": 0.0}
    methods, begun = list(constrained.methods()), time.perf_counter()
    wanted = st.one_of(
        st.tuples(st.just("regex"), constrained.regexes()), st.tuples(st.just("json_schema"), constrained.schemas())
    )

    @seed(args.seed)
    @settings(
        max_examples=args.constraints,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=wanted)
    def every(case: tuple[str, Any]) -> None:
        kind, value = case
        number = found[kind] + found[f"rejected {kind}"]
        before = time.perf_counter()
        try:
            room = room_for({kind: value}, found)
        except UserError as error:
            found[f"rejected {kind}"] += 1
            print(json.dumps({"rejected": [kind, value], "because": str(error)}, ensure_ascii=False))
            return
        for turn in range(args.each):
            name, sampler = methods[(number + turn) % len(methods)]
            mood = constrained.MOODS[(number // 3 + turn) % len(constrained.MOODS)]
            with_head, warm = (number + turn) % 2 == 0, 1.0 if turn % 3 == 0 else 0.0
            [text] = constrained.write({kind: value}, name, sampler, mood, turn, room, with_head, warm, rows=1)
            found["generations"] += 1
            if not constrained.holds(kind, value, text) or not accepted(kind, value, text):
                found["invalid"] += 1
                print(json.dumps({"invalid": text, "of": [kind, value], "sampler": name}, ensure_ascii=False))
        found[kind] += 1
        seconds = time.perf_counter() - before
        if seconds > slowest["seconds"]:
            slowest.update(seconds=round(seconds, 2), kind=kind, value=value)

    every()
    seconds = time.perf_counter() - begun
    print(json.dumps({"benchmark": "constrained", **found, "seconds": round(seconds, 1), "slowest": slowest}))


def room_for(wanted: dict[str, Any], found: Counter[str]) -> int:
    """``ROOM``, or for a constraint that needs more, its minimum, after checking that one position less is an error."""
    least = constrained.least_room(wanted)
    if least is None or least + 1 <= ROOM:
        return ROOM
    try:
        constrained.write(wanted, "first_hitting", dict(constrained.methods())["first_hitting"], "noise", 0, least - 1)
    except UserError:
        found["exact refusals"] += 1
        return least + 1  # a length chosen beforehand includes end-of-text
    raise AssertionError(f"the error says that {least} tokens are needed, but fewer suffice")


def accepted(kind: str, value: Any, text: str) -> bool:
    """Check JSON with a second validator."""
    try:
        import jsonschema_rs
    except ImportError:
        return True
    return kind != "json_schema" or jsonschema_rs.is_valid(value, json.loads(text), validate_formats=True)


if __name__ == "__main__":
    main()
