"""Decode: writing one text, autoregressively and by masked diffusion, against ``transformers``."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from redraft.bench import Tell, against, machine, rounds, threads
from redraft.bench._twin import llama_twin
from redraft.caches.dual import Dual
from redraft.caches.exact import Exact
from redraft.caches.prefix import Prefix
from redraft.canvas import make_canvas
from redraft.decode import CachePolicy, Loop, Method
from redraft.models._lean import Lean, Weights
from redraft.models.transformer import Transformer
from redraft.noise.schedules.linear import Linear
from redraft.presets import preset
from redraft.runtime import peak_matmul
from redraft.samplers._blockwise import Blockwise
from redraft.samplers.autoregressive import Autoregressive
from redraft.samplers.confidence import Confidence
from redraft.types import Attend, Forward, Spec

VOCABULARY, MASK = 8192, 3
YARDSTICK = "transformers generate"
Writer = Callable[[], list[int]]


@dataclass(frozen=True)
class Decode:
    """Random weights, batch 1, temperature 0: speed alone. An approximate cache counts only with its price, which such
    weights can't tell: see ``redraft evaluate --cache``.

    The yardstick is ``transformers``' ``generate`` with its key-value cache on a Llama of the same size. The full pass
    of a plain loop is that Llama made bidirectional, every position projected onto the vocabulary at every step, as
    LLaDA's published loop does. ``weights`` are those of ours in the masked passes.
    """

    preset: str = "35m"
    prompt: int = 64
    new_tokens: int = 256
    block: int = 32
    steps: tuple[int, ...] = (256, 32, 16)
    rounds: int = 3
    threads: int = 2
    tied: bool = False

    def run(self, tell: Tell) -> dict[str, Any]:
        """Seconds, tokens a second and ratios to the yardstick of every way of writing the text."""
        with threads(self.threads), torch.inference_mode():
            torch.manual_seed(0)
            causal = self._network(shift=1)
            masked = self._network(shift=0)
            prompt = torch.randint(5, VOCABULARY, (1, self.prompt))
            contenders = self._contenders(causal, masked, prompt)
            texts = {name: write() for name, write in contenders.items()}
            seconds = rounds(contenders, self.rounds, tell)
            peak = peak_matmul(torch.device("cpu"), seconds=1.0)
            full = self._full_pass(masked)
        rows = {}
        for name in contenders:
            median = statistics.median(seconds[name])
            rows[name] = {
                "seconds": median,
                "tokens_per_second": self.new_tokens / median,
                **against(seconds, name, YARDSTICK),
            }
        return {
            "parameters": sum(p.numel() for p in masked.parameters()),
            "prompt": self.prompt,
            "new_tokens": self.new_tokens,
            "yardstick": YARDSTICK,
            "identical": self._identical(texts),
            "contenders": rows,
            "full_pass": {**full, "peak_gflops_default": peak / 1e9},
            "machine": machine(self.threads),
        }

    def _network(self, shift: int) -> Transformer:
        network = Transformer(preset(self.preset, VOCABULARY, shift=shift, tied=self.tied)).eval().requires_grad_(False)
        for parameter in network.parameters():  # random weights with opinions, so that argmax has margins
            if parameter.ndim == 2:
                parameter.mul_(2)
        return network

    def _spec(self, attend: Attend, shift: int) -> Spec:
        return Spec(
            vocab_size=VOCABULARY,
            pad_id=0,
            eos_id=-1,  # nothing ends early
            mask_id=MASK,
            attend=attend,
            isolate_prompt=False,
            length_head=False,
            shift=shift,
            timed=False,
            schedule=None if shift else Linear(),
            forbidden=() if shift else (MASK,),
        )

    def _contenders(self, causal: Transformer, masked: Transformer, prompt: Tensor) -> dict[str, Writer]:
        twin, plain = llama_twin(causal).eval(), llama_twin(masked).eval()
        plain.config.is_causal = False
        lean, half, small = Lean(causal), Lean(masked), Lean(causal, "int8")
        low = Lean(masked, "bfloat16")
        ar, full = self._spec(Attend("causal"), 1), self._spec(Attend("full"), 0)
        blocks = self._spec(Attend("block", self.block), 0)

        def ours(network: Lean, spec: Spec, sampler: Any, cache: CachePolicy | None = None) -> Writer:
            return partial(self._ours, network, Method(sampler, cache), spec, prompt)

        def generate() -> list[int]:
            out = twin.generate(
                prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=self.new_tokens, do_sample=False
            )
            ids: list[int] = out[0, self.prompt :].tolist()
            return ids

        found: dict[str, Writer] = {
            YARDSTICK: generate,
            "autoregressive": ours(lean, ar, Autoregressive(), Exact()),
            "autoregressive, int8": ours(small, ar, Autoregressive(), Exact()),
        }
        for steps in self.steps:
            by = Confidence(steps=steps, block=self.block)
            found |= {
                f"plain full-canvas loop, {steps} steps": partial(self._plain, plain, prompt, steps),
                f"masked, no cache, {steps} steps": ours(half, full, by),
            }
        for steps in self.steps[1:]:
            by = Confidence(steps=steps, block=self.block)
            each = Blockwise(Confidence(steps=steps * self.block // self.new_tokens))
            found |= {
                f"masked, prefix cache, {steps} steps": ours(half, full, by, Prefix()),
                f"masked, dual cache, {steps} steps": ours(half, full, by, Dual()),
                f"block-causal, exact cache, {steps} steps": ours(half, blocks, each, Exact()),
                f"masked, dual cache, {steps} steps, bfloat16": ours(low, full, by, Dual()),
                f"block-causal, exact cache, {steps} steps, bfloat16": ours(low, blocks, each, Exact()),
            }
        return found

    def _ours(self, network: Lean, method: Method, spec: Spec, prompt: Tensor) -> list[int]:
        canvas = make_canvas([[*prompt[0].tolist(), *[None] * self.new_tokens]], [self.prompt], spec, seeds=[0])
        for _ in Loop({"main": network}, method, spec).run(canvas):
            pass
        ids: list[int] = canvas.ids[0, self.prompt :].tolist()
        return ids

    def _plain(self, twin: Any, prompt: Tensor, steps: int) -> list[int]:
        """A textbook loop: one pass over the whole canvas a step, everything predicted, the k most certain kept."""
        ids = torch.full((1, self.prompt + self.new_tokens), MASK)
        ids[:, : self.prompt] = prompt
        blocks = self.new_tokens // self.block
        everything = torch.ones(1, 1, ids.shape[1], ids.shape[1], dtype=torch.bool)
        for number in range(blocks):
            end = self.prompt + (number + 1) * self.block
            for left in range(steps // blocks, 0, -1):
                masked = ids[0] == MASK
                logits = twin(ids, attention_mask=everything).logits[0]
                logits[:, MASK] = -torch.inf
                confidence, token = logits.softmax(-1).max(-1)
                confidence[~masked] = -torch.inf
                confidence[end:] = -torch.inf
                count = -(-int(masked[:end].sum()) // left)
                chosen = confidence.topk(count).indices
                ids[0, chosen] = token[chosen]
        written: list[int] = ids[0, self.prompt :].tolist()
        return written

    def _identical(self, texts: dict[str, list[int]]) -> dict[str, bool]:
        """Where two ways must write the same ids: do they?"""
        same = {"autoregressive": texts["autoregressive"] == texts[YARDSTICK]}
        for steps in self.steps:
            ours, plain = f"masked, no cache, {steps} steps", f"plain full-canvas loop, {steps} steps"
            same[ours] = texts[ours] == texts[plain]
        return same

    def _full_pass(self, network: Transformer) -> dict[str, float]:
        """Arithmetic of one pass over the whole canvas, as a share of what the packed products reach at large sizes."""
        from redraft.train.throughput import Arithmetic

        length = self.prompt + self.new_tokens
        ids = torch.randint(5, VOCABULARY, (1, length))
        pos = torch.arange(length)[None]
        ask = Forward(x=ids, pos=pos, want=pos, attend=Attend("full"))
        cost = Arithmetic.of(network)
        flops = 2 * (cost.body + cost.head) * length + 4 * cost.pairs * length * length
        found = {"gflop": flops / 1e9}
        kinds: dict[Weights, torch.dtype] = {"float32": torch.float32, "bfloat16": torch.bfloat16}
        for weights, dtype in kinds.items():
            lean, peak = Lean(network, weights), packed_peak(dtype)
            seconds = min(rounds({"pass": partial(lean, ask)}, 7, lambda _: None)["pass"])
            found |= {
                f"{weights}_milliseconds": 1e3 * seconds,
                f"{weights}_share_of_peak": flops / seconds / peak,
                f"{weights}_peak_gflops": peak / 1e9,
            }
        return found


def packed_peak(dtype: torch.dtype, size: int = 1536) -> float:
    """FLOP/s of a large product with a packed matrix, the fastest that this machine does."""
    a, b = torch.randn(size, size).to(dtype), torch.randn(size, size).to(dtype)
    packed = torch.ops.mkldnn._reorder_linear_weight(b)
    product = partial(torch.ops.mkldnn._linear_pointwise, a, packed, None, "none", [], "")
    return 2 * size**3 / min(rounds({"product": product}, 20, lambda _: None)["product"])
