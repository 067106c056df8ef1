r"""Lossless decoding with drafters: equal texts, tokens a pass, speed at several batch sizes, and a roofline.

    python -m benchmarks.drafting --model multiply-autoregressive --drafter runs/drafter --converted multiply-masked \
        --data multiplication:4x4 --input question --target rationale+answer --tokens 96
    python -m benchmarks.drafting --model AR --drafter DRAFTER --data e2e.jsonl --input mr --target text --tokens 64

Methods run the same prompts in turn. ``--drafter`` names a model of family ``drafter`` for the autoregressive
``--model``, ``--converted`` a masked model that was converted from it. Texts that are not those of the autoregressive
model, token for token, are an error (at near-ties, rounding may decide: ``--allow`` sets the share that may differ).

1. At each batch size: tokens a pass (all networks counted), accepted drafts, seconds of this process's CPU (a measure
   that a busy machine spoils less; with one thread), and the drafter's share of the time of all passes.
2. Speed against plain cached autoregressive decoding, at each batch size: ratios of medians with 95 % intervals.
3. Along the target's texts: how often a draft is right if those before it were, what a tree of candidates would accept
   in place of a chain, and the roofline of a GPU (--gpu: bytes/s, FLOP/s of bfloat16).

``--tiny`` runs few rows and calls. Prints a line of JSON for each result.
"""

from __future__ import annotations

import argparse
import heapq
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

import redraft
from redraft.data.columns import Columns
from redraft.data.examples import load
from redraft.data.tokenising import tokenise
from redraft.evaluation.decoding import DecodingConfig
from redraft.evaluation.timing import ratio_interval, time_in_turns
from redraft.generation.prompts import Prompt
from redraft.generation.start import networks
from redraft.model import Model
from redraft.types import DraftBlocks, DraftQuery, Forward, Network

NODES, WAYS = (15, 31, 63), 4  # sizes of trees, and candidates of a position


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="the autoregressive model")
    parser.add_argument("--drafter", help="a model of family drafter, trained for it")
    parser.add_argument("--converted", help="a masked model, converted from it")
    parser.add_argument("--data", required=True)
    parser.add_argument("--data-root")
    parser.add_argument("--input")
    parser.add_argument("--target")
    parser.add_argument("--split", default="test", choices=("train", "validation", "test"))
    parser.add_argument("--rows", type=int, default=100)
    parser.add_argument("--tokens", type=int, default=64, help="most new tokens of a text")
    parser.add_argument("--calls", type=int, default=8)
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--drafts", type=int, nargs="+", default=[3, 7, 15], help="numbers of drafts to try")
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--allow", type=float, default=0.0, help="share of texts that may differ")
    parser.add_argument("--gpu", type=float, nargs=2, default=[3.35e12, 9.9e14], help="default: H100 SXM")
    parser.add_argument("--tiny", action="store_true")
    args = parser.parse_args()
    if args.tiny:
        args.rows, args.calls, args.batch = min(args.rows, 8), min(args.calls, 3), args.batch[:1]
    Bench(args).run()


@dataclass
class Watched:
    """A network that sums the seconds of its passes, those that draft apart."""

    network: Any
    drafts: bool = False  # all of its passes draft
    seconds: dict[bool, float] = field(default_factory=lambda: {True: 0.0, False: 0.0})

    def __call__(self, request: Forward, store: Any = None) -> torch.Tensor:
        clock = time.perf_counter if torch.cuda.is_available() else time.process_time
        begin = clock()
        logits: torch.Tensor = self.network(request, store)
        if logits.device.type == "cuda":
            torch.cuda.synchronize()
        self.seconds[self.drafts or request.find(DraftQuery) is not None] += clock() - begin
        return logits

    def store(self, slots: int, positions: int) -> Any:
        return self.network.store(slots, positions)


class Bench:
    """The methods, and prompts for them."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args, self.main = args, redraft.load(args.model)
        self.prompts: list[Prompt] = self._prompts()
        self.methods: list[tuple[str, Model, DecodingConfig]] = [("autoregressive", self.main, self._config(None))]
        self.drafter: Model | None = None
        if args.drafter:
            self.drafter = redraft.load(args.drafter, target=self.main)
            beside = self._beside(self.drafter)
            self.methods += [(f"drafter, {g} drafts", beside, self._config(g)) for g in args.drafts]
        if args.converted:
            beside = self._beside(redraft.load(args.converted))
            self.methods += [(f"converted, {g} drafts", beside, self._config(g)) for g in args.drafts]

    def _prompts(self) -> list[Prompt]:
        args = self.args
        columns = Columns(input=args.input, target=args.target)
        splits = load(args.data, columns if str(columns) else None, data_root=args.data_root)
        data = tokenise(getattr(splits, args.split)[: args.rows], self.main.tokenizer)
        assert data.prompts is not None, "rows need a prompt"
        return [data.ids[b : b + n].tolist() for b, n in zip(data.starts[:-1], data.prompts, strict=True)]

    def _beside(self, drafter: Model) -> Model:
        """The main model once more, with a drafter. The weights are shared."""
        m = self.main
        return Model(m.network, m.tokenizer, m.family, m.family_name, m.paired, m.defaults).draft_with(drafter)

    def _config(self, drafts: int | None) -> DecodingConfig:
        draws = {"draws": "gumbel"}
        if drafts is None:
            return DecodingConfig.of("autoregressive", draws, temperature=self.args.temperature)
        return DecodingConfig.of("draft_verify", {"block": drafts, **draws}, temperature=self.args.temperature)

    def run(self) -> None:
        """All parts."""
        expected: list[list[int]] = []
        for batch in self.args.batch:
            plain = 0.0
            for name, model, config in self.methods:
                found = self._write(model, config, batch)
                ids, plain = found.pop("ids"), plain or found["cpu_seconds"]
                expected = expected or ids
                differ = float(np.mean([a != b for a, b in zip(ids, expected, strict=True)]))
                faster = plain / found["cpu_seconds"]
                self._print("text", method=name, batch=batch, differ=differ, cpu_times_as_fast=faster, **found)
                assert differ <= self.args.allow, f"{name}: {differ:.1%} of the texts differ"
        if self.drafter is not None:
            self._positions(expected)
        for batch in self.args.batch:
            timed = time_in_turns(
                [(model, config) for _, model, config in self.methods],
                self.prompts,
                batch,
                self.args.calls,
                self.args.tokens,
            )
            for (name, _, _), one in zip(self.methods, timed, strict=True):
                speed, median = ratio_interval(one.seconds, timed[0].seconds), float(np.median(one.seconds))
                self._print("speed", method=name, batch=batch, times_as_fast=speed, seconds=median)

    def _write(self, model: Model, config: DecodingConfig, batch: int) -> dict[str, Any]:
        """Texts, and what they cost."""
        settings = model.settings(max_new_tokens=self.args.tokens, **config.generation())
        ids, passes, tokens, drafted, accepted, spent, cpu = [], 0, 0, 0, 0, [0.0, 0.0], 0.0
        networks(model)  # prepared before the time counts
        for begin in range(0, len(self.prompts), batch):
            began = time.process_time()
            run = model.start(self.prompts[begin : begin + batch], replace(settings, seed=begin))
            watched = {key: Watched(network, key == "drafter") for key, network in run.loop.networks.items()}
            run.loop.networks = watched  # type: ignore[assignment] # networks in all that the loop asks of them
            for _ in run:
                pass
            for found in run.results():
                ids.append(found.ids)
                passes, tokens = passes + found.nfe, tokens + len(found.ids) + (found.finish == "stop")
            cpu += time.process_time() - began
            drafted, accepted = drafted + run.loop.counter.drafted, accepted + run.loop.counter.accepted
            for drafts in (True, False):
                spent[drafts] += sum(network.seconds[drafts] for network in watched.values())
        return {
            "ids": ids,
            "tokens": tokens,
            "tokens_a_pass": tokens / passes,
            "drafted": drafted,
            "accepted": accepted,
            "cpu_seconds": cpu,
            "share_of_time_in_drafter": spent[True] / sum(spent),
            "share_accepted": accepted / drafted if drafted else None,
        }

    # ---- from all positions

    def _positions(self, texts: list[list[int]]) -> None:
        """What drafting with several numbers of drafts, and with trees, accepts along the target's texts."""
        assert self.drafter is not None
        block = self.drafter.family.block
        chains = [self._ranks(list(p), t, block) for p, t in zip(self.prompts[:64], texts, strict=False)]
        begun = [chain[at][0] for chain in chains for at in _walk(chain, lambda ranks, _: _leading(ranks))[1]]
        reached = [[r for r in begun if len(r) > k and not any(r[:k])] for k in range(block - 1)]
        self._print(
            "acceptance",
            first=[round(float(np.mean([r[k] == 0 for r in each])), 3) for k, each in enumerate(reached) if each],
            first_or_second=[
                round(float(np.mean([r[k] < 2 for r in each])), 3) for k, each in enumerate(reached) if each
            ],
        )
        for drafts in sorted({*self.args.drafts, block - 1}):
            self._roofline(drafts, _mean(chains, lambda ranks, _, most=drafts: min(_leading(ranks), most)))
        trees = {n: _mean(chains, lambda ranks, log_p, nodes=n: _in_tree(ranks, log_p, nodes)) for n in NODES}
        self._print("tree", chain=_mean(chains, lambda ranks, _: _leading(ranks)), chain_drafts=block - 1, trees=trees)

    def _ranks(self, prompt: list[int], text: list[int], block: int) -> Chain:
        ids = torch.tensor([[*prompt, *text]])
        anchors = torch.arange(len(prompt), ids.shape[1] - 1)[None]
        if anchors.shape[1] < 1:
            return []
        assert self.drafter is not None
        spec, position = self.drafter.spec, torch.arange(ids.shape[1])[None]
        targets = anchors[:, :, None] + torch.arange(1, block)
        targets = torch.where(targets < ids.shape[1], targets, -1)
        request = Forward(
            tokens=ids,
            positions=position,
            targets=targets.flatten(1),
            attention=spec.network.attention,
            prompt=torch.tensor([len(prompt)]) if spec.network.prompt_encoder else None,
            extra=(DraftBlocks(anchors, block),),
        )
        network: Network = self.drafter.network.eval()
        with torch.no_grad():
            logits = network(request).float()
        logits[:, list(spec.tokens.forbidden)] = -torch.inf
        log_p = logits.log_softmax(-1)
        true = ids[0][targets[targets >= 0]].to(log_p.device)
        rank = (log_p > log_p.gather(1, true[:, None])).sum(1).tolist()
        best = log_p.topk(WAYS, 1).values.tolist()
        found, begin = [], 0
        for count in (targets[0] >= 0).sum(1).tolist():
            found.append((rank[begin : begin + count], best[begin : begin + count]))
            begin += count
        return found

    def _roofline(self, drafts: int, tokens: float) -> None:
        """Times a GPU needs at least, in bfloat16, and the speed that follows at each batch size."""
        assert self.drafter is not None
        bandwidth, peak = self.args.gpu
        head = self.main.network.embedding.weight.numel()
        main = self.main.network.parameter_count
        own = sum(p.numel() for p in self.drafter.network.parameters())

        def seconds(weights: int, positions: int) -> float:
            return max(2 * weights / bandwidth, 2 * weights * positions / peak)

        faster = {}
        for batch in self.args.batch:
            plain = seconds(main, batch)
            cycle = seconds(own + head, batch * (drafts + 1)) + seconds(main, batch * (drafts + 1))
            faster[batch] = tokens * plain / cycle
        share = seconds(own + head, drafts + 1) / (seconds(own + head, drafts + 1) + seconds(main, drafts + 1))
        self._print("roofline", drafts=drafts, tokens_a_cycle=tokens, times_as_fast=faster, drafter_share=share)

    def _print(self, part: str, **values: Any) -> None:
        print(json.dumps({"part": part, **values}), flush=True)


Chain = list[
    tuple[list[int], list[list[float]]]
]  # behind each token: ranks of those that follow, log p of the likeliest


def _walk(chain: Chain, accepted: Callable[..., int]) -> tuple[int, list[int]]:
    """Tokens generated, and the anchors of the cycles, if a cycle accepts so many drafts and adds a token."""
    at, anchors = 0, []
    while at < len(chain):
        anchors.append(at)
        at += accepted(*chain[at]) + 1
    return at, anchors


def _mean(chains: list[Chain], accepted: Callable[..., int]) -> float:
    """Tokens of a cycle."""
    found = [_walk(chain, accepted) for chain in chains]
    return sum(tokens for tokens, _ in found) / sum(len(anchors) for _, anchors in found)


def _leading(ranks: list[int]) -> int:
    """Number of leading tokens that are the likeliest."""
    return next((k for k, rank in enumerate(ranks) if rank), len(ranks))


def _in_tree(ranks: list[int], log_p: list[list[float]], nodes: int) -> int:
    """Leading tokens of the true text that are in the tree of the ``nodes`` likeliest candidates (best first)."""
    heap = [(-log_p[0][way], (way,)) for way in range(WAYS)]
    heapq.heapify(heap)
    found = 0
    for _ in range(nodes):
        if not heap:
            break
        cost, path = heapq.heappop(heap)
        if path == tuple(ranks[: len(path)]):
            found = max(found, len(path))
        if len(path) < len(log_p):
            for way in range(WAYS):
                heapq.heappush(heap, (cost - log_p[len(path)][way], (*path, way)))
    return found


if __name__ == "__main__":
    main()
