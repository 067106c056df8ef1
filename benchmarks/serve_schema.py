"""JSON Schemas over HTTP: every answer must be JSON that is valid for its schema.

    python benchmarks/serve_schema.py --model base-masked --model base-autoregressive --requests 300 --clients 8

The schemas are random (seeded): objects with required and optional properties, up to three levels deep, arrays,
enumerations, bounded numbers, strings with lengths, patterns and formats, unions. OpenAI's client sends the requests to
a server in its own process, and another implementation (jsonschema_rs) validates each answer. An answer that is cut off
at ``max_tokens`` counts as wrong; a rejected request counts as refused, with the reason.
"""

from __future__ import annotations

import argparse
import asyncio
import collections
import json
import random
import time
from pathlib import Path

import jsonschema_rs
import numpy as np
import openai
from serve_load import start

WORDS = ["name", "age", "city", "tags", "price", "colour", "ready", "size", "items", "note", "kind", "email", "when"]


def scalar(draw: random.Random) -> dict:
    low = draw.randrange(-50, 50)
    return draw.choice(
        [
            {"type": "string", "maxLength": draw.randrange(1, 12)},
            {"type": "string", "minLength": 2, "maxLength": 6},
            {"type": "string", "pattern": draw.choice(["^[A-Z]{2,4}$", "^[a-z]+-[0-9]{2}$", "^(yes|no)$"])},
            {"type": "string", "format": draw.choice(["date", "ipv4", "uuid", "time"])},
            {"type": "integer", "minimum": low, "maximum": low + draw.randrange(200)},
            {"type": "integer", "minimum": 0, "exclusiveMaximum": 1000},
            {"type": "number", "minimum": 0, "maximum": draw.choice([1, 10, 99.5])},
            {"type": "boolean"},
            {"type": "null"},
            {"enum": draw.sample(["red", "green", 1, 2.5, None, True, 'a "quoted" one'], 3)},
            {"const": draw.choice(["fixed", 7, [1, 2]])},
        ]
    )


def schema(draw: random.Random, depth: int = 0) -> dict:
    kind = "object" if depth == 0 else draw.choice(["scalar", "scalar", "scalar", "object", "array", "any"])
    if depth >= 3 or kind == "scalar":
        return scalar(draw)
    if kind == "any":
        return {"anyOf": [scalar(draw), {"type": "null"}]}
    if kind == "array":
        least = draw.randrange(3)
        items = {"items": schema(draw, depth + 1)}
        return {"type": "array", **items, "minItems": least, "maxItems": least + draw.randrange(1, 3)}
    names = draw.sample(WORDS, draw.randrange(1, 4))
    required = draw.sample(names, draw.randrange(len(names) + 1))
    properties = {name: schema(draw, depth + 1) for name in names}
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}


async def ask(client: openai.AsyncOpenAI, model: str, number: int, most: int) -> tuple[str, float]:
    """The outcome of one request and its seconds."""
    made = schema(random.Random(number))
    wanted = {"type": "json_schema", "json_schema": {"name": "made", "schema": made}}
    begin = time.monotonic()
    try:
        answer = await client.chat.completions.create(
            model=model,
            messages=[{"role": "user", "content": f"Describe thing {number}."}],
            max_tokens=most,
            temperature=1.0,
            seed=number,
            response_format=wanted,  # type: ignore[arg-type]
        )
    except openai.BadRequestError as error:
        return f"refused: {error.body['message'][:90]}", time.monotonic() - begin  # type: ignore[index, call-overload]
    except openai.APIError as error:
        return f"failed: {error}", time.monotonic() - begin
    seconds, [choice] = time.monotonic() - begin, answer.choices
    try:
        jsonschema_rs.validator_for(made, validate_formats=True).validate(json.loads(choice.message.content or ""))
    except (ValueError, jsonschema_rs.ValidationError) as error:
        return f"wrong ({choice.finish_reason}): {json.dumps(made)} {choice.message.content!r}: {error}", seconds
    return "valid", seconds


async def run(address: str, model: str, requests: int, clients: int, most: int) -> list[tuple[str, float]]:
    client, gate = openai.AsyncOpenAI(base_url=f"{address}/v1", api_key="none", timeout=600), asyncio.Semaphore(clients)

    async def one(number: int) -> tuple[str, float]:
        async with gate:
            return await ask(client, model, number, most)

    return await asyncio.gather(*(one(number) for number in range(requests)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", action="append", required=True)
    parser.add_argument("--requests", type=int, default=300)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--max-tokens", type=int, default=160)
    given = parser.parse_args()
    print("| model | requests | valid | refused | wrong or failed | p50 / p95 | requests/s |")
    print("|---|---:|---:|---:|---:|---|---:|")
    for model in given.model:
        server, address = start(model, 32)
        begin = time.monotonic()
        try:
            found = asyncio.run(run(address, Path(model).name, given.requests, given.clients, given.max_tokens))
        finally:
            server.terminate()
        wall = time.monotonic() - begin
        server.wait(60)
        kinds = collections.Counter(what.split(":")[0].split(" ")[0] for what, _ in found)
        p50, p95 = np.percentile([seconds for _, seconds in found], [50, 95])
        lost = kinds["wrong"] + kinds["failed"]
        print(
            f"| {model} | {len(found)} | {kinds['valid']} | {kinds['refused']} | {lost} | {p50:.2f} / {p95:.2f} s | "
            f"{len(found) / wall:.1f} |",
            flush=True,
        )
        for what, count in collections.Counter(what for what, _ in found if what != "valid").most_common(8):
            print(f"    {count} x {what}")


if __name__ == "__main__":
    main()
