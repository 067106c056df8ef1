"""What batching saves: the same texts one by one and in crowds, through the server's engine alone.

    python benchmarks/serve_batching.py --model translate-en-de-masked --model translate-en-de-autoregressive

CPU time of the whole process, so that a busy machine changes it little; all texts are there at the beginning, after a
warm-up. ``network``: the share of it inside the network, the rest being samplers, drawing and bookkeeping. Texts must
be the same with every number of rows.
"""

from __future__ import annotations

import argparse
import queue
import time

from serve_load import prompts

import redraft
from redraft.model import Model
from redraft.serve.engine import Done, Engine, Job, Limits
from redraft.serve.reading import Span


class Timed:
    """A network that says how long it ran."""

    def __init__(self, network: object) -> None:
        self.network, self.seconds = network, 0.0

    def __call__(self, ask: object, store: object = None) -> object:
        begin = time.process_time()
        found = self.network(ask, store)  # type: ignore[operator]
        self.seconds += time.process_time() - begin
        return found

    def store(self, *shape: int) -> object:
        return self.network.store(*shape)  # type: ignore[attr-defined]


def run(engine: Engine, model: Model, asked: list[str], tokens: int, steps: int) -> list[str]:
    heard: queue.SimpleQueue = queue.SimpleQueue()
    own: dict = {} if model.spec.shift else {"steps": steps, "candidates": 1}
    settings = model.settings(max_new_tokens=tokens, seed=1, **own)
    jobs = []
    for prompt in asked:
        head = model.prompt_ids(prompt)
        drafting = model.compose([head], settings)
        jobs.append(Job(drafting, Span(len(head), len(head) + tokens), heard.put, streams=False))
    engine.submit("benchmark", jobs)
    ends = {}
    while len(ends) < len(jobs):
        event = heard.get()
        if not isinstance(event, Done):
            raise SystemExit(f"a text failed: {event}")
        ends[event.job.number] = event.result.text
    return [ends[job.number] for job in jobs]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", action="append", required=True)
    parser.add_argument("--rows", default="1,8,32,64")
    parser.add_argument("--texts", type=int, default=128)
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--steps", type=int, default=8)
    given = parser.parse_args()
    print("| model | rows | CPU ms a text | network | passes | rows a pass | gain | texts as alone |")
    print("|---|---:|---:|---:|---:|---:|---:|---:|")
    for name in given.model:
        model, asked = redraft.load(name, "cpu"), prompts(given.texts)
        first: tuple[float, list[str]] | None = None
        for rows in map(int, given.rows.split(",")):
            engine = Engine(model, Limits(rows=rows, queue=10_000))
            run(engine, model, asked[: min(16, rows)], given.tokens, given.steps)
            timed = engine.networks["main"] = Timed(engine.networks["main"])  # type: ignore[assignment]
            before, begin = dict(engine.counts), time.process_time()
            texts = run(engine, model, asked, given.tokens, given.steps)
            spent = time.process_time() - begin
            engine.close()
            passes, filled = (engine.counts[key] - before.get(key, 0) for key in ("passes", "rows"))
            first = first or (spent, texts)
            same = sum(a == b for a, b in zip(texts, first[1], strict=True))
            print(
                f"| {name} | {rows} | {1000 * spent / len(asked):.1f} | {timed.seconds / spent:.0%} | {passes} | "
                f"{filled / passes:.1f} | {first[0] / spent:.2f} | {same} of {len(texts)} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
