"""Calls of tools with generated schemas over HTTP, read by OpenAI's own client: the share that is valid.

    python -m benchmarks.tool_calls [--calls 1000] [--seed 0] [--model smollm2-135m ...]

Every request describes one to four tools with random schemas of their arguments (``tests.constrained``), and asks for
calls: required, of a named tool, or left to the model; one or several; complete or streamed. The default models are
untrained, masked and autoregressive, so that nothing but the constraint makes a call valid; --model adds others. A call
is valid if its name is that of a tool, its arguments are JSON that the tool's schema accepts (by a checker written from
the specification, and by jsonschema-rs if it is installed), and its answer ends with the reason ``tool_calls``. Prints
one JSON object, and every failure.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from redraft.data.tokenizer import Tokenizer
from redraft.model import Model
from redraft.presets import preset
from tests import constrained
from tests.serve.conftest import listening

CONTEXT, ROOM = 4096, 256  # positions, and new tokens of an answer
CASES = 200  # sets of tools that are generated at a time


def untrained(root: Path) -> dict[str, Path]:
    """Models with random weights and a vocabulary of 6,000 tokens."""
    tokenizer, found = Tokenizer.load(constrained.ZOO), {}
    for family in ("masked", "autoregressive"):
        shape = preset("toy", tokenizer.vocab_size, max_length=CONTEXT)
        found[family] = root / family
        Model.fresh({"name": family}, tokenizer, shape, paired=False, seed=1).save(found[family])
    return found


def tool_sets(number: int) -> Iterator[list[dict[str, Any]]]:
    """Sets of one to four tools, for ever."""
    objects = constrained.schemas(1).flatmap(_object)
    while True:
        yield from _generated(st.lists(objects, min_size=1, max_size=4), number)
        number += 1


def _generated(strategy: Any, number: int) -> list[Any]:
    """``CASES`` examples of a strategy, the same for the same number."""
    found: list[Any] = []

    @seed(number)
    @settings(
        max_examples=CASES,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=strategy)
    def collect(case: Any) -> None:
        found.append(case)

    collect()
    return found


def _object(schema: dict[str, Any]) -> Any:
    """Objects with this schema and another one as properties."""
    keys = ["first value", 'a "b"', "c"]
    return st.tuples(constrained.schemas(1), st.lists(st.sampled_from(keys), unique=True)).map(
        lambda more: {
            "type": "object",
            "properties": dict(zip(keys, [schema, more[0], {"type": "boolean"}], strict=True)),
            "required": more[1],
            "additionalProperties": False,
        }
    )


def ask(client: Any, model: str, schemas: list[dict[str, Any]], rng: random.Random) -> tuple[Any, str]:
    """One request; its completion, and how it asked."""
    names = [f"tool-{number}" for number in range(len(schemas))]
    tools = [
        {"type": "function", "function": {"name": name, "parameters": schema}}
        for name, schema in zip(names, schemas, strict=True)
    ]
    kind = rng.choice(["required", "required", "named", "auto"])
    choice = {"type": "function", "function": {"name": rng.choice(names)}} if kind == "named" else kind
    asked = {
        "model": model,
        "messages": [{"role": "user", "content": "Call a tool."}],
        "tools": tools,
        "tool_choice": choice,
        "parallel_tool_calls": rng.random() < 0.5,
        "max_tokens": ROOM,
        "temperature": 1.0,
        "n": 2,
        "seed": rng.randrange(1 << 30),
    }
    if rng.random() < 0.5:
        return client.chat.completions.create(**asked), f"{kind}, complete"
    with client.chat.completions.stream(**asked) as stream:
        for _ in stream:
            pass
        try:
            return stream.get_final_completion(), f"{kind}, streamed"
        except openai.LengthFinishReasonError as error:  # text that was cut off
            return error.completion, f"{kind}, streamed"


def wrong(choice: Any, schemas: list[dict[str, Any]], kind: str) -> str:
    """What is wrong with an answer; empty if it is valid."""
    calls = choice.message.tool_calls or []
    if not calls:
        return "" if kind.startswith("auto") and choice.finish_reason != "tool_calls" else "no call"
    if choice.finish_reason != "tool_calls":
        return f"it ends with {choice.finish_reason}"
    for call in calls:
        try:
            schema = schemas[int(call.function.name.removeprefix("tool-"))]
            value = json.loads(call.function.arguments)
        except (ValueError, IndexError) as error:
            return f"{call.function}: {error}"
        if not constrained.conforms(value, schema) or not _second_opinion(value, schema):
            return f"{call.function.arguments} does not satisfy {json.dumps(schema)}"
    return ""


def _second_opinion(value: Any, schema: dict[str, Any]) -> bool:
    try:
        import jsonschema_rs
    except ImportError:
        return True
    return bool(jsonschema_rs.is_valid(schema, value))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calls", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--model", action="append", default=[])
    args = parser.parse_args()
    rng, begin = random.Random(args.seed), time.perf_counter()
    counts: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as root:
        models = untrained(Path(root)) | {name: Path(name) for name in args.model}
        with listening(models, compile_timeout=300.0) as address:
            client = openai.OpenAI(base_url=f"{address}/v1", api_key="unused", max_retries=0, timeout=600)
            names = [model.id for model in client.models.list()]
            for number, schemas in enumerate(tool_sets(args.seed)):
                if counts["calls"] >= args.calls:
                    break
                try:
                    found, kind = ask(client, names[number % len(names)], schemas, rng)
                except openai.BadRequestError as error:
                    counts["refused"] += 1
                    print(json.dumps({"refused": str(error), "tools": schemas}), flush=True)
                    continue
                for choice in found.choices:
                    failure = wrong(choice, schemas, kind)
                    counts["calls"] += len(choice.message.tool_calls or [])
                    counts[f"answers: {kind}"] += 1
                    counts["wrong"] += bool(failure)
                    if failure:
                        print(json.dumps({"wrong": failure, "kind": kind, "tools": schemas}), flush=True)
    print(json.dumps({**counts, "models": names, "seconds": round(time.perf_counter() - begin)}))


if __name__ == "__main__":
    main()
