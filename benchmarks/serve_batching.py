"""Speed of the engine by batch size: the same sequences one at a time and in batches, without HTTP.

    python benchmarks/serve_batching.py --model translate-en-de-masked --model translate-en-de-autoregressive

Measures the CPU time of the process, which depends little on the load of the machine. All sequences are queued at the
beginning, after a warm-up. ``network`` is the share of the time in forward passes; the rest is sampling and
bookkeeping. The texts must not depend on the number of rows.
"""

from __future__ import annotations

import argparse
import queue
import time

from serve_load import prompts

import redraft
from redraft.generation.prompts import prompt_ids
from redraft.generation.start import start_prompts
from redraft.model import Model
from redraft.serve.engine import Engine, EngineLimits
from redraft.serve.incremental_text import Span
from redraft.serve.jobs import Finished, Job


class Timed:
    """A network that measures its CPU time."""

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
    events: queue.SimpleQueue = queue.SimpleQueue()
    own: dict = {} if model.spec.network.shift else {"steps": steps, "candidates": 1}
    settings = model.settings(max_new_tokens=tokens, seed=1, **own)
    jobs = []
    for prompt in asked:
        head = prompt_ids(model, prompt)
        drafting = start_prompts(model, [head], settings)
        jobs.append(Job(drafting, Span(len(head), len(head) + tokens), events.put, streams=False))
    engine.submit("benchmark", jobs)
    ends = {}
    while len(ends) < len(jobs):
        event = events.get()
        if not isinstance(event, Finished):
            raise SystemExit(f"A sequence failed: {event}")
        ends[event.job.id] = event.result.text
    return [ends[job.id] for job in jobs]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", action="append", required=True)
    parser.add_argument("--rows", default="1,8,32,64")
    parser.add_argument("--texts", type=int, default=128)
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--steps", type=int, default=8)
    given = parser.parse_args()
    print("| model | rows | CPU ms per text | network | forward passes | rows per pass | speed-up | same texts |")
    print("|---|---:|---:|---:|---:|---:|---:|---:|")
    for name in given.model:
        model, asked = redraft.load(name, "cpu"), prompts(given.texts)
        first: tuple[float, list[str]] | None = None
        for rows in map(int, given.rows.split(",")):
            engine = Engine(model, EngineLimits(rows=rows, queue=10_000))
            run(engine, model, asked[: min(16, rows)], given.tokens, given.steps)
            timed = engine.networks["main"] = Timed(engine.networks["main"])  # type: ignore[assignment]
            before, begin = dict(engine.counts), time.process_time()
            texts = run(engine, model, asked, given.tokens, given.steps)
            spent = time.process_time() - begin
            engine.close()
            passes, filled = (engine.counts[key] - before.get(key, 0) for key in ("forward_passes", "rows"))
            first = first or (spent, texts)
            same = sum(a == b for a, b in zip(texts, first[1], strict=True))
            print(
                f"| {name} | {rows} | {1000 * spent / len(asked):.1f} | {timed.seconds / spent:.0%} | {passes} | "
                f"{filled / passes:.1f} | {first[0] / spent:.2f} | {same} of {len(texts)} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
