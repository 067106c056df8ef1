"""Cost of constraints: compile time and milliseconds of each forward pass, for a shipped and a large vocabulary.

    python benchmarks/constraint_cost.py

The network returns precomputed logits, so that only sampling and bookkeeping are measured; the time of the same run
without a constraint is subtracted. Times are CPU seconds of this process on one thread, so that other processes don't
count. The large vocabulary is that of a shipped checkpoint, extended by pairs of its tokens. Prints one JSON object for
each case.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from redraft.canvas import make_canvas
from redraft.constraints.automata.token_automaton import over_tokens
from redraft.constraints.shared.canvas_constraint import CanvasConstraint
from redraft.data.tokenizer import Tokenizer
from redraft.generation.loop import Loop, Method
from redraft.noise.absorbing import Absorbing
from redraft.noise.schedules.linear import Linear
from redraft.registry import find
from redraft.samplers.autoregressive import Autoregressive
from redraft.samplers.confidence import Confidence
from redraft.types import AttentionPattern, FamilyFacts, Forward, NetworkFacts, Spec, TokenIds

ZOO = Path(__file__).parents[1] / "zoo" / "translate-en-de-masked"
SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 40},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "tags": {"type": "array", "items": {"enum": ["new", "old", "sold"]}, "maxItems": 5},
    },
    "required": ["name", "age"],
}
CASES = [("regex", r"\d{4}-\d\d-\d\d"), ("regex", ".{0,200}"), ("json_schema", SCHEMA), ("keywords", "Haus,Baum,Katze")]


def main() -> None:
    torch.set_num_threads(1)
    tokenizer = Tokenizer.load(ZOO)
    small = list(tokenizer.token_bytes)
    words = [text for text in small if text and text.isalpha()]
    pairs = (a + b for a in words for b in words)
    large = [*small, *(next(pairs) for _ in range(150_000 - len(small)))]
    for texts in (small, large):
        for kind, value in CASES:
            begun = time.process_time()
            automaton = find("constraints", kind).of(value).automaton()
            between = time.process_time()
            tokens = over_tokens(automaton, texts, tokenizer.eos_id)
            done = time.process_time()
            shape = {"states": automaton.states, "classes": len(tokens.moves), "edges": len(tokens.source)}
            result: dict[str, Any] = {"vocabulary": len(texts), "kind": kind, "value": str(value)[:30]} | shape
            result |= {"automaton_s": round(between - begun, 3), "tokens_s": round(done - between, 3)}
            constraint = CanvasConstraint(tokens, tokenizer.eos_id, tokenizer.mask_id)
            for name, sampler, rows in (
                ("ar", Autoregressive(), 1),
                ("ar", Autoregressive(), 32),
                ("masked", Confidence(steps=16), 1),
                ("masked", Confidence(steps=16), 32),
            ):
                if rows == 32 and len(texts) > 10_000:
                    continue  # logits would need a gigabyte
                bare = per_pass(sampler, None, len(texts), rows)
                bound = per_pass(sampler, constraint, len(texts), rows)
                result[f"{name}_{rows}_ms"] = round(1000 * (bound - bare), 2)
                result[f"{name}_{rows}_bare_ms"] = round(1000 * bare, 2)
            print(json.dumps(result), flush=True)


def per_pass(sampler: Any, constraint: CanvasConstraint | None, vocabulary: int, rows: int, room: int = 64) -> float:
    """CPU seconds of one forward pass over ``room`` positions, the best of three runs."""
    causal = isinstance(sampler, Autoregressive)
    attend, schedule = AttentionPattern("causal" if causal else "full"), None if causal else Linear()
    spec = Spec(
        TokenIds(vocabulary, 0, 1, 3, forbidden=(0, 2, 3, 4)),
        NetworkFacts(attend, shift=int(causal)),
        FamilyFacts(schedule, None if causal else Absorbing()),
    )
    logits = torch.randn(rows * (1 if causal else room), vocabulary, generator=torch.Generator().manual_seed(0))
    logits[:, 1] = -100.0  # texts of maximum length

    def network(request: Forward, store: object = None) -> Tensor:
        return logits[: int((request.targets >= 0).sum())].clone()

    best = float("inf")
    for _ in range(3):
        canvas = make_canvas([[2, *[None] * room]] * rows, [1] * rows, spec, seeds=range(rows))
        begun = time.process_time()
        passes = sum(1 for _ in Loop({"main": network}, Method(sampler, constraint=constraint), spec).run(canvas))
        best = min(best, (time.process_time() - begun) / passes)
    return best


if __name__ == "__main__":
    main()
