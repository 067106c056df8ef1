r"""Cost of decoding with trained models: approximate caches, the fewest forward passes, drafting and verification.

    python -m benchmarks.decoding caches --model translate-en-de-masked --data mt/tatoeba.en-de --data-root DATA
    python -m benchmarks.decoding caches --model base-masked --data lm/novels --judge base-autoregressive ...
    python -m benchmarks.decoding fewest --model translate-en-de-masked --rival translate-en-de-autoregressive ...
    python -m benchmarks.decoding draft --model runs/hybrid --data lm/novels --data-root DATA
    python -m benchmarks.decoding draft --model multiply-autoregressive --drafter multiply-masked \
        --data multiplication:4x4

Quality is measured on test rows, with 95 % intervals; differences are paired. Latencies are medians of calls in which
all settings run the same prompts in turn; ratios have bootstrap intervals over calls. Prints a table, then JSON.
"""

from __future__ import annotations

import argparse
import json
import math
from dataclasses import replace
from typing import Any

import numpy as np

import redraft
from redraft.data.examples import load
from redraft.evaluation import stats
from redraft.evaluation.decoding import DecodingConfig
from redraft.evaluation.items import Item, make_items
from redraft.evaluation.texts import GenerationRun, generate_texts
from redraft.evaluation.timing import TimedCalls, ratio_interval, time_in_turns
from redraft.model import Model
from redraft.tasks import infer_task

POLICIES: list[tuple[str, dict[str, Any]]] = [
    ("none", {}),
    ("exact", {}),
    ("prefix", {}),
    ("dual", {}),
    ("delayed", {"refresh": 4}),
    ("delayed", {"refresh": 8}),
    ("drift", {"drift": 0.02}),
    ("drift", {"drift": 0.1}),
    ("drift", {"drift": 0.5}),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("caches", "fewest", "draft"))
    parser.add_argument("--model", required=True)
    parser.add_argument("--rival", help="part fewest: the autoregressive model to compare with")
    parser.add_argument("--drafter", help="part draft: the diffusion model that drafts, if the model is not a hybrid")
    parser.add_argument("--judge", help="part caches, plain text: the model whose likelihood is the quality")
    parser.add_argument("--data", required=True)
    parser.add_argument("--data-root")
    parser.add_argument("--rows", type=int, default=300)
    parser.add_argument("--calls", type=int, default=8)
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8, 32])
    args = parser.parse_args()
    bench = Bench(args)
    found = {"caches": bench.caches, "fewest": bench.fewest, "draft": bench.draft}[args.part]()
    print(json.dumps({"part": args.part, "model": args.model, "rows": len(bench.asked), "found": found}))


class Bench:
    """One model on the test rows of one set."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args, self.model = args, redraft.load(args.model)
        if args.drafter:
            self.model.draft_with(redraft.load(args.drafter))
        self.new = self.model.settings().max_new_tokens
        examples = load(args.data, data_root=args.data_root).test
        self.metric = infer_task(examples).task.metrics()[0]
        self.asked: list[Item] = make_items(examples, self.model.tokenizer, args.rows, self.model.paired, self.new)
        self.prompts = [item.prompt for item in self.asked]

    def caches(self) -> list[dict[str, Any]]:
        """Quality, operations and latency of each cache policy against no cache, with and without blocks."""
        found = []
        for sampler, options, block in self._samplers():
            trials = [
                DecodingConfig.of(sampler, options, cache=cache, cache_options=own)
                for cache, own in POLICIES
                if block or cache in _BLOCKLESS
            ]
            wrote = [self._write(self.model, trial) for trial in trials]
            scores = [self._score(one.texts) for one in wrote]
            times = {batch: self._race([(self.model, trial) for trial in trials], batch) for batch in self.args.batch}
            judged = [self._judged(one.texts) for one in wrote] if self.args.judge else [None] * len(trials)
            for number, trial in enumerate(trials):
                row = {
                    "setting": trial.id,
                    "quality": self._around(scores[number]),
                    "against_none": self._difference(scores[number], scores[0]),
                    "judged": judged[number],
                    "equal_texts": self._equal(wrote[0], wrote[number]),
                    "passes": sum(wrote[number].nfe) / len(self.asked),
                    "queries": wrote[number].work["queries"] / wrote[0].work["queries"],
                    "speedup": {b: ratio_interval(t[number].seconds, t[0].seconds) for b, t in times.items()},
                }
                found.append(row)
                print(json.dumps(row), flush=True)
        return found

    def _samplers(self) -> list[tuple[str, dict[str, Any], bool]]:
        if self.model.paired:
            return [
                ("confidence", {"steps": 8}, False),
                ("confidence", {"steps": 8, "block": 4}, True),
                ("factor", {"factor": 2.0}, False),
            ]
        return [
            ("confidence", {"steps": 32, "order": "margin"}, False),
            ("confidence", {"steps": 32, "order": "margin", "block": 16}, True),
        ]

    def fewest(self) -> list[dict[str, Any]]:
        """The fewest passes whose quality is inside the interval of the best, and latency there against the rival."""
        trials = [
            DecodingConfig.of("confidence", {"steps": n}, candidates=c)
            for c in (1, 4)
            for n in (1, 2, 3, 4, 6, 8, 12, 16)
        ]
        scores = [self._score(self._write(self.model, trial).texts) for trial in trials]
        values = [self._around(score) for score in scores]
        best = max(range(len(trials)), key=lambda i: values[i][0])
        inside = [i for i in range(len(trials)) if values[i][0] >= values[best][1]]
        few = min(inside, key=lambda i: (dict(trials[i].options)["steps"], trials[i].candidates))
        rival = redraft.load(self.args.rival)
        greedy = DecodingConfig.of("autoregressive", {})
        found = []
        theirs = self._score(self._write(rival, greedy).texts)
        for batch in self.args.batch:
            ours = self._race([(self.model, trials[few]), (self.model, trials[best]), (rival, greedy)], batch)
            found.append(
                {
                    "batch": batch,
                    "fewest": trials[few].id,
                    "quality": values[few],
                    "best": trials[best].id,
                    "best_quality": values[best],
                    "rival_quality": self._around(theirs),
                    "ms": [1000 * float(np.median(one.seconds)) for one in ours],
                    "faster_than_rival": ratio_interval(ours[0].seconds, ours[2].seconds),
                }
            )
            print(json.dumps(found[-1]), flush=True)
        return [{"settings": [(t.id, v) for t, v in zip(trials, values, strict=True)]}, *found]

    def draft(self) -> list[dict[str, Any]]:
        """Drafts of several sizes, of a hybrid or another model, against one token in each forward pass."""
        found = []
        for temperature in (0.0, 1.0):
            plain = DecodingConfig.of("autoregressive", {"draws": "gumbel"})
            trials = [plain, *(DecodingConfig.of("draft_verify", {"block": block}) for block in (4, 8, 16, 32))]
            self.temperature = temperature
            wrote = [self._write(self.model, trial) for trial in trials]
            times = {batch: self._race([(self.model, trial) for trial in trials], batch) for batch in self.args.batch}
            for number, trial in enumerate(trials):
                row = {
                    "setting": trial.id,
                    "temperature": temperature,
                    "equal_texts": self._equal(wrote[0], wrote[number]),
                    "tokens_per_pass": sum(wrote[number].tokens) / sum(wrote[number].nfe),
                    "speedup": {b: ratio_interval(t[number].seconds, t[0].seconds) for b, t in times.items()},
                }
                found.append(row)
                print(json.dumps(row), flush=True)
        return found

    temperature: float | None = None

    def _write(self, model: Model, trial: DecodingConfig) -> GenerationRun:
        return generate_texts(model, self.prompts, self._warm(trial), self.new, 32)

    def _race(self, runners: list[tuple[Model, DecodingConfig]], batch: int) -> list[TimedCalls]:
        warm = [(model, self._warm(trial)) for model, trial in runners]
        return time_in_turns(warm, self.prompts, batch, self.args.calls, self.new)

    def _warm(self, config: DecodingConfig) -> DecodingConfig:
        """The configuration at the temperature of this part; by default 0 for pairs, and 1 for plain text."""
        temperature = self.temperature
        if temperature is None:
            temperature = 0.0 if self.model.paired else 1.0
        return replace(config, temperature=temperature, top_p=1.0)

    @staticmethod
    def _equal(ours: GenerationRun, theirs: GenerationRun) -> float:
        """Share of texts that are the same."""
        return float(np.mean([a == b for a, b in zip(ours.texts, theirs.texts, strict=True)]))

    def _score(self, texts: list[str]) -> np.ndarray:
        return self.metric.score(texts, [item.references for item in self.asked]).stats

    def _around(self, score: np.ndarray) -> list[float]:
        around = stats.interval(score[None], self.metric.combine)
        return [around.value, around.low, around.high]

    def _difference(self, ours: np.ndarray, theirs: np.ndarray) -> list[float]:
        if np.array_equal(ours, theirs):
            return [0.0, 0.0, 0.0]
        found = stats.compare(ours[None], theirs[None], self.metric.combine, 0.5).difference
        return [found.value, found.low, found.high]

    def _judged(self, texts: list[str]) -> list[float]:
        """Bits per byte under another model, given the prompt: mean and standard error over texts."""
        judge = redraft.load(self.args.judge)
        bits = []
        for prompt, text in list(zip(self.prompts, texts, strict=True))[:100]:
            if text:
                bits.append(judge.score(prompt, text).nats / math.log(2) / len(text.encode()))
        return [float(np.mean(bits)), float(np.std(bits) / math.sqrt(len(bits)))]


_BLOCKLESS = ("none", "exact", "delayed", "drift")  # prefix and dual need a block to work on

if __name__ == "__main__":
    main()
