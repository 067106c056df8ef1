"""Speed of generating sequences, autoregressively and by masked diffusion, compared with ``transformers``."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from redraft.bench import Log, machine, rounds, speedup, threads
from redraft.bench._twin import llama_twin
from redraft.caches.dual import Dual
from redraft.caches.exact import Exact
from redraft.caches.prefix import Prefix
from redraft.canvas import make_canvas
from redraft.errors import UserError
from redraft.generation.loop import CachePolicy, Loop, Method
from redraft.models.cpu.transformer import CpuTransformer, Weights
from redraft.models.transformer import Transformer
from redraft.noise.absorbing import Absorbing
from redraft.noise.schedules.linear import Linear
from redraft.presets import preset
from redraft.runtime import peak_matmul
from redraft.samplers.autoregressive import Autoregressive
from redraft.samplers.confidence import Confidence
from redraft.samplers.wrappers.blockwise import Blockwise
from redraft.types import AttentionPattern, Canvas, FamilyFacts, Forward, NetworkFacts, Spec, TokenIds

VOCABULARY, MASK = 8192, 3
BASELINE = "transformers generate"
AUTOREGRESSIVE: tuple[tuple[str, Weights, bool], ...] = (
    ("autoregressive", "float32", True),
    ("autoregressive, in torch", "float32", False),
    ("autoregressive, int8", "int8", True),
    ("autoregressive, int8, in torch", "int8", False),
)
Generate = Callable[[], list[list[int]]]


@dataclass(frozen=True)
class Decode:
    """Speed of decoding ``batch`` sequences with random weights at temperature 0; no ``steps``: autoregressively only.

    The loss of quality of an approximate cache can't be measured with random weights: see ``redraft evaluate --cache``.

    The baseline is ``generate`` of ``transformers`` with its key-value cache, on a Llama of the same size. The plain
    full-canvas loop uses this Llama with bidirectional attention and projects every position onto the vocabulary at
    every step, like LLaDA's published loop. Candidates *in torch* leave compiled layers aside.
    """

    preset: str = "35m"
    batch: int = 1
    prompt: int = 64
    new_tokens: int = 256
    block: int = 32
    steps: tuple[int, ...] = (256, 32, 16)
    rounds: int = 3
    threads: int = 2
    tied: bool = False

    def __post_init__(self) -> None:
        blocks = self.new_tokens // max(self.block, 1)
        if self.batch < 1:
            raise UserError(f"batch = {self.batch} must be at least 1.")
        if self.block < 1 or self.new_tokens % self.block:
            raise UserError(f"{self.new_tokens} new tokens are no blocks of {self.block}.", "Change one of them.")
        for steps in self.steps:
            if not blocks <= steps <= self.new_tokens:
                what = f"steps = {steps} must be between {blocks}, one for each block, and {self.new_tokens}."
                raise UserError(what, "Give other steps, or another block size.")

    def run(self, log: Log) -> dict[str, Any]:
        """Seconds, tokens per second and the ratio to the baseline of every candidate."""
        with threads(self.threads), torch.inference_mode():
            torch.manual_seed(0)
            causal = self._network(shift=1)
            masked = self._network(shift=0)
            prompt = torch.randint(5, VOCABULARY, (self.batch, self.prompt))
            candidates = self._candidates(causal, masked, prompt)
            outputs = {name: generate() for name, generate in candidates.items()}
            seconds = rounds(candidates, self.rounds, log)
            peak = peak_matmul(torch.device("cpu"), seconds=1.0)
            full = self._full_pass(masked)
        rows = {}
        for name in candidates:
            median = statistics.median(seconds[name])
            rows[name] = {
                "seconds": median,
                "tokens_per_second": self.batch * self.new_tokens / median,
                **speedup(seconds, name, BASELINE),
            }
        return {
            "parameters": sum(p.numel() for p in masked.parameters()),
            "batch": self.batch,
            "prompt": self.prompt,
            "new_tokens": self.new_tokens,
            "baseline": BASELINE,
            "identical": self._identical(outputs),
            "candidates": rows,
            "full_pass": {**full, "peak_gflops_default": peak / 1e9},
            "machine": machine(self.threads),
        }

    def _network(self, shift: int) -> Transformer:
        network = Transformer(preset(self.preset, VOCABULARY, shift=shift, tied=self.tied)).eval().requires_grad_(False)
        for parameter in network.parameters():  # larger random weights, so that the argmax is unambiguous
            if parameter.ndim == 2:
                parameter.mul_(2)
        return network

    def _spec(self, attend: AttentionPattern, shift: int) -> Spec:
        return Spec(
            tokens=TokenIds(
                vocab_size=VOCABULARY, pad_id=0, eos_id=-1, mask_id=MASK, forbidden=() if shift else (MASK,)
            ),
            network=NetworkFacts(attention=attend, shift=shift),
            family=FamilyFacts(schedule=None if shift else Linear(), process=Absorbing()),
        )

    def _candidates(self, causal: Transformer, masked: Transformer, prompt: Tensor) -> dict[str, Generate]:
        twin, plain = llama_twin(causal).eval(), llama_twin(masked).eval()
        plain.config.is_causal = False
        masked_form, masked_bfloat16 = CpuTransformer(masked), CpuTransformer(masked, "bfloat16")
        ar, full = self._spec(AttentionPattern("causal"), 1), self._spec(AttentionPattern("full"), 0)
        blocks = self._spec(AttentionPattern("block", self.block), 0)

        def ours(network: CpuTransformer, spec: Spec, sampler: Any, cache: CachePolicy | None = None) -> Generate:
            sampler.start(self._canvas(prompt, spec), spec)  # a wrong option is found before anything is measured
            return partial(self._generate, network, Method(sampler, cache), spec, prompt)

        def generate() -> list[list[int]]:
            out = twin.generate(
                prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=self.new_tokens, do_sample=False
            )
            ids: list[list[int]] = out[:, self.prompt :].tolist()
            return ids

        found: dict[str, Generate] = {BASELINE: generate} | {
            name: ours(CpuTransformer(causal, weights, compiled), ar, Autoregressive(), Exact())
            for name, weights, compiled in AUTOREGRESSIVE
        }
        for steps in self.steps:
            sampler = Confidence(steps=steps, block=self.block)
            found |= {
                f"plain full-canvas loop, {steps} steps": partial(self._plain_loop, plain, prompt, steps),
                f"masked, no cache, {steps} steps": ours(masked_form, full, sampler),
            }
        for steps in self.steps[1:]:
            sampler = Confidence(steps=steps, block=self.block)
            blockwise = Blockwise(Confidence(steps=steps * self.block // self.new_tokens))
            found |= {
                f"masked, prefix cache, {steps} steps": ours(masked_form, full, sampler, Prefix()),
                f"masked, dual cache, {steps} steps": ours(masked_form, full, sampler, Dual()),
                f"block-causal, exact cache, {steps} steps": ours(masked_form, blocks, blockwise, Exact()),
                f"masked, dual cache, {steps} steps, bfloat16": ours(masked_bfloat16, full, sampler, Dual()),
                f"block-causal, exact cache, {steps} steps, bfloat16": ours(
                    masked_bfloat16, blocks, blockwise, Exact()
                ),
            }
        return found

    def _canvas(self, prompt: Tensor, spec: Spec) -> Canvas:
        """Rows with the prompts [B, P] and free positions after them."""
        rows = [[*ids, *[None] * self.new_tokens] for ids in prompt.tolist()]
        return make_canvas(rows, [self.prompt] * self.batch, spec, seeds=[*range(self.batch)])

    def _generate(self, network: CpuTransformer, method: Method, spec: Spec, prompt: Tensor) -> list[list[int]]:
        canvas = self._canvas(prompt, spec)
        for _ in Loop({"main": network}, method, spec).run(canvas):
            pass
        ids: list[list[int]] = canvas.ids[:, self.prompt :].tolist()
        return ids

    def _plain_loop(self, twin: Any, prompt: Tensor, steps: int) -> list[list[int]]:
        """The plain loop: each step runs the whole canvas and keeps the k most confident predictions of each row."""
        ids = torch.full((self.batch, self.prompt + self.new_tokens), MASK)
        ids[:, : self.prompt] = prompt
        blocks = self.new_tokens // self.block
        everything = torch.ones(1, 1, ids.shape[1], ids.shape[1], dtype=torch.bool)
        for number in range(blocks):
            end = self.prompt + (number + 1) * self.block
            for left in range(steps // blocks, 0, -1):
                masked = ids == MASK
                logits = twin(ids, attention_mask=everything).logits
                logits[..., MASK] = -torch.inf
                confidence, token = logits.softmax(-1).max(-1)
                confidence[~masked] = -torch.inf
                confidence[:, end:] = -torch.inf
                count = -(-int(masked[0, :end].sum()) // left)
                chosen = confidence.topk(count).indices
                ids.scatter_(1, chosen, token.gather(1, chosen))
        generated: list[list[int]] = ids[:, self.prompt :].tolist()
        return generated

    def _identical(self, outputs: dict[str, list[list[int]]]) -> dict[str, bool]:
        """Whether candidates that must generate identical ids do so."""
        same = {"autoregressive": outputs["autoregressive"] == outputs[BASELINE]}
        for steps in self.steps:
            ours, plain = f"masked, no cache, {steps} steps", f"plain full-canvas loop, {steps} steps"
            same[ours] = outputs[ours] == outputs[plain]
        return same

    def _full_pass(self, network: Transformer) -> dict[str, float | None]:
        """Operations of a pass over the whole canvas, and its speed as a share of that of large packed products.

        The peak is measured before and after the pass. The share is None if the pass was faster than the peak.
        """
        length = self.prompt + self.new_tokens
        ids = torch.randint(5, VOCABULARY, (1, length))
        pos = torch.arange(length)[None]
        request = Forward(tokens=ids, positions=pos, targets=pos, attention=AttentionPattern("full"))
        flops = network.forward_cost().of_counts(length, length * length, length)
        found: dict[str, float | None] = {"gflop": flops / 1e9}
        kinds: dict[Weights, torch.dtype] = {"float32": torch.float32, "bfloat16": torch.bfloat16}
        for weights, dtype in kinds.items():
            cpu_form, peak = CpuTransformer(network, weights), packed_peak(dtype)
            seconds = min(rounds({"pass": partial(cpu_form, request)}, 7, lambda _: None)["pass"])
            peak, rate = max(peak, packed_peak(dtype)), flops / seconds
            found |= {
                f"{weights}_milliseconds": 1e3 * seconds,
                f"{weights}_share_of_peak": rate / peak if rate <= peak else None,
                f"{weights}_peak_gflops": peak / 1e9,
            }
        return found


def packed_peak(dtype: torch.dtype, size: int = 1536) -> float:
    """FLOP/s of a large matrix product with a packed matrix, as the peak of this machine."""
    a, b = torch.randn(size, size).to(dtype), torch.randn(size, size).to(dtype)
    packed = torch.ops.mkldnn._reorder_linear_weight(b)
    product = partial(torch.ops.mkldnn._linear_pointwise, a, packed, None, "none", [], "")
    return 2 * size**3 / min(rounds({"product": product}, 20, lambda _: None)["product"])
