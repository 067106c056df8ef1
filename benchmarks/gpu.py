"""Check and time redraft on one accelerator, in under eight minutes; the last thing it prints is a table of everything.

    python benchmarks/gpu.py                                       # on a machine with CUDA
    python benchmarks/gpu.py --device cpu --tiny --skip server     # the same code at a size for any machine

Every part runs in a process of its own, with a limit of time, so that a failure costs one part. Its rows are printed as
they come, and again in the table. Without an accelerator the program says so and ends.

What is measured: ``laws``, the same logits, texts and losses as on the CPU; ``forward``, a pass in bfloat16;
``latency``, 640 tokens from the shape of an 8B model, autoregressively and by masked diffusion in 4 to 16 steps, at
batch 1, 8 and 32; ``training``, updates of 125M and 1B parameters; ``lora``, adapters on the shape of an 8B model with
the base in bfloat16, int8 and nf4, with peak memory; ``server``, requests a second. Named shapes have random weights.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from redraft import models, runtime
from redraft.bench import machine
from redraft.caches.dual import Dual
from redraft.caches.exact import Exact
from redraft.canvas import make_canvas
from redraft.generation.loop import Loop, Method
from redraft.models.parts.backbone import Backbone
from redraft.noise.absorbing import Absorbing
from redraft.noise.schedules.linear import Linear
from redraft.objectives.autoregressive import Autoregressive as NextToken
from redraft.objectives.masked import Masked
from redraft.presets import preset
from redraft.samplers.autoregressive import Autoregressive
from redraft.samplers.base import Sampler
from redraft.samplers.confidence import Confidence
from redraft.samplers.wrappers.blockwise import Blockwise
from redraft.types import AttentionPattern, Batch, FamilyFacts, Forward, NetworkFacts, Spec, TokenIds

ROOT = Path(__file__).parents[1]
VOCABULARY, MASK, PROMPT = 128_256, 3, 64
SENTENCES = ["I am tired.", "The weather is fine today.", "My brother bought a new car.", "Where is the station?"]


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    part: str
    what: str
    value: str
    note: str = ""


@dataclass(frozen=True)
class Setup:
    """Where and at what size to run."""

    device: str
    tiny: bool

    @property
    def where(self) -> torch.device:
        return torch.device(self.device)

    def size(self, name: str) -> str:
        """The preset of this name, or a small one instead."""
        return "toy" if self.tiny else name

    @property
    def vocabulary(self) -> int:
        return 512 if self.tiny else VOCABULARY

    def network(self, name: str, shift: int, dtype: torch.dtype = torch.bfloat16) -> Backbone:
        """A network of a named shape with random weights, made on the device."""
        config = preset(self.size(name), self.vocabulary, shift=shift)
        network = models.empty({"name": "transformer", **config_values(config)}, "benchmark")
        models.allocate(network, dtype, self.where)
        for weight in network.parameters():
            weight.data.normal_(0, 0.02) if weight.ndim > 1 else weight.data.fill_(1)
        return network.eval()

    def spec(self, attend: AttentionPattern, shift: int) -> Spec:
        """The facts of a model of plain text whose outputs never end by themselves."""
        return Spec(
            TokenIds(self.vocabulary, 0, -1, MASK, forbidden=() if shift else (MASK,)),
            NetworkFacts(attention=attend, shift=shift),
            FamilyFacts(schedule=None if shift else Linear(), process=Absorbing()),
        )

    def seconds(self, call: Callable[[], object], repeats: int = 5) -> float:
        """Median seconds of a call, waiting for the device, after one call to warm up."""
        found = []
        for number in range(repeats + 1):
            runtime.synchronise(self.where)
            begin = time.perf_counter()
            call()
            runtime.synchronise(self.where)
            if number:
                found.append(time.perf_counter() - begin)
        return statistics.median(found)

    def peak(self) -> float:
        """FLOP/s of a large product in bfloat16."""
        return runtime.peak_matmul(self.where, torch.bfloat16, seconds=1.0)

    def memory(self) -> str:
        """Most memory that tensors took on the device so far."""
        if self.where.type != "cuda":
            return "not measured on a CPU"
        return f"{torch.cuda.max_memory_allocated(self.where) / 1e9:.1f} GB at most"


def config_values(config: Any) -> dict[str, Any]:
    """The fields of a network's configuration."""
    return {name: getattr(config, name) for name in config.__dataclass_fields__}


# ---- the parts: each yields rows


def laws(setup: Setup) -> Iterator[Row]:
    """The same as on the CPU: logits, texts of shipped models, independence of the batch, constraints, losses."""
    import redraft

    say = partial(Row, "laws")
    torch.backends.cuda.matmul.allow_tf32 = False
    for name in ("translate-en-de-masked", "translate-en-de-autoregressive"):
        host = redraft.load(name, "cpu")
        exact, low = (redraft.load(name, setup.device, dtype) for dtype in (torch.float32, torch.bfloat16))
        ids = torch.tensor([host.tokenizer.encode(SENTENCES[2])])
        error = float((host.logits(ids) - exact.logits(ids).cpu().float()).abs().max())
        yield say(f"{name}: greatest difference of a logit, float32", f"{error:.1e}", "should be below 1e-3")
        limits = {"max_new_tokens": 24}
        ours = [one.text for one in host.generate(SENTENCES, **limits)]
        theirs = [one.text for one in exact.generate(SENTENCES, **limits)]
        alone = [exact.generate(text, seed=number, **limits)[0].text for number, text in enumerate(SENTENCES)]
        half = [one.text for one in low.generate(SENTENCES, **limits)]
        yield say(f"{name}: texts as on the CPU, float32", share(ours, theirs))
        yield say(f"{name}: texts alone as in a batch, float32", share(theirs, alone))
        yield say(f"{name}: texts as on the CPU, bfloat16", share(ours, half), "may differ: weights are rounded")
    pattern = exact.generate(SENTENCES, max_new_tokens=12, constraint={"regex": "[A-Z][a-z]{2,8}"})
    valid = sum(one.text[:1].isupper() and one.text.isalpha() for one in pattern)
    yield say("valid under a regular expression", f"{valid} of {len(pattern)}")
    yield from same_losses(setup)


def share(first: list[str], second: list[str]) -> str:
    """How many of two lists of texts are equal."""
    return f"{sum(a == b for a, b in zip(first, second, strict=True))} of {len(first)}"


def same_losses(setup: Setup) -> Iterator[Row]:
    """Ten updates of a small masked model in float32 on the CPU and on the device, from the same weights and noise."""
    found = []
    for device in ("cpu", setup.device):
        torch.manual_seed(0)
        own = Setup(device, tiny=True)
        network = own.network("toy", 0, torch.float32)
        torch.manual_seed(1)
        for weight in network.parameters():
            if weight.ndim > 1:
                weight.data.copy_(0.05 * torch.randn(weight.shape))
        found.append([float(value) for value in updates(own, network, 0, 10, rows=8, length=64, bfloat16=False)])
    worst = max(abs(a - b) / a for a, b in zip(*found, strict=True))
    yield Row("laws", "losses of ten updates: greatest relative difference", f"{worst:.1e}", "should be below 1e-3")


def forward(setup: Setup) -> Iterator[Row]:
    """One pass over 8 x 1,024 positions, every position a target."""
    peak = setup.peak()
    yield Row("forward", "a large product in bfloat16", f"{peak / 1e12:.1f} TFLOP/s", "the peak of what follows")
    rows, length = (2, 32) if setup.tiny else (8, 1024)
    for name in ("125m", "1b"):
        network = setup.network(name, 0)
        ids = torch.randint(5, setup.vocabulary, (rows, length))
        positions = torch.arange(length).expand(rows, -1)
        for attend in (AttentionPattern("full"), AttentionPattern("causal"), AttentionPattern("block", 32)):
            request = Forward(ids, positions, positions, attend)
            with torch.inference_mode():
                seconds = setup.seconds(partial(network, request))
            rate = network.forward_cost().of_request(request) / seconds
            value = f"{1e3 * seconds:.1f} ms, {rows * length / seconds:,.0f} tokens/s"
            yield Row("forward", f"{name}, attention {attend.kind}", value, f"{rate / peak:.0%} of the peak")


def latency(setup: Setup) -> Iterator[Row]:
    """The 8B shape: seconds to write new tokens after a prompt, per batch; all texts have the full length."""
    new, block = (32, 8) if setup.tiny else (640, 32)
    full, blocks = AttentionPattern("full"), AttentionPattern("block", block)
    network: Backbone = setup.network("8b", 0)
    ways: list[tuple[str, Sampler, Any, AttentionPattern, int]] = [
        ("autoregressive, exact cache", Autoregressive(), Exact(), AttentionPattern("causal"), 1)
    ]
    for steps in (4, 8, 16):
        ways.append((f"masked, {steps} steps, no cache", Confidence(steps=steps), None, full, 0))
    ways.append(("masked, one step a block, dual cache", Confidence(steps=new // block, block=block), Dual(), full, 0))
    for steps in (1, 4):
        sampler = Blockwise(Confidence(steps=steps))
        ways.append((f"block, {steps} steps for {block} tokens, exact cache", sampler, Exact(), blocks, 0))
    for batch in (1, 8, 32):
        baseline = 0.0
        for name, sampler, cache, attend, shift in ways:
            network.config = replace_shift(network.config, shift)
            seconds = setup.seconds(
                partial(write, setup, network, sampler, cache, setup.spec(attend, shift), batch, new), repeats=1
            )
            baseline = baseline or seconds
            value = f"{seconds:.2f} s, {batch * new / seconds:,.0f} tokens/s"
            yield Row("latency", f"8b, {new} tokens, batch {batch}: {name}", value, f"{baseline / seconds:.1f}x")
    yield Row("latency", "memory", setup.memory())


def replace_shift(config: Any, shift: int) -> Any:
    """A configuration with another shift: the same weights read as another kind of model."""
    return type(config)(**{**config_values(config), "shift": shift})


def write(setup: Setup, network: Backbone, sampler: Sampler, cache: Any, spec: Spec, batch: int, new: int) -> None:
    """Fill ``new`` positions after a prompt in each of ``batch`` rows."""
    generator = torch.Generator().manual_seed(0)
    prompts = torch.randint(5, setup.vocabulary, (batch, PROMPT), generator=generator).tolist()
    rows = [[*prompt, *[None] * new] for prompt in prompts]
    canvas = make_canvas(rows, [PROMPT] * batch, spec, seeds=list(range(batch)))
    for _ in Loop({"main": network}, Method(sampler, cache), spec).run(canvas):
        pass


def training(setup: Setup) -> Iterator[Row]:
    """Updates in bfloat16: forward, backward, clipping and AdamW."""
    peak = setup.peak()
    rows, length = (2, 32) if setup.tiny else (16, 1024)
    for name in ("125m", "1b"):
        for shift, objective in ((1, "autoregressive"), (0, "masked")):
            network = setup.network(name, shift, torch.float32)
            losses = updates(setup, network, shift, 7, rows, length, bfloat16=True)
            seconds = seconds_each(setup, losses, warm_up=2)
            flops = 3 * network.forward_cost().of_request(sample_request(setup, rows, length, shift))
            value = f"{rows * length / seconds:,.0f} tokens/s"
            yield Row("training", f"{name}, {objective}", value, f"{flops / seconds / peak:.0%} of the peak")
            del network, losses
    yield Row("training", "memory", setup.memory())


def seconds_each(setup: Setup, losses: Iterator[torch.Tensor], warm_up: int) -> float:
    """Mean seconds of an update, after the first ``warm_up`` of them."""
    for _ in range(warm_up):
        next(losses)
    runtime.synchronise(setup.where)
    begin = time.perf_counter()
    count = sum(1 for _ in losses)
    runtime.synchronise(setup.where)
    return (time.perf_counter() - begin) / count


def sample_request(setup: Setup, rows: int, length: int, shift: int) -> Forward:
    """A request in which every position is a target: what an update's operations are counted from."""
    ids, positions = torch.zeros(rows, length, dtype=torch.int64), torch.arange(length).expand(rows, -1)
    return Forward(ids, positions, positions + shift, AttentionPattern("causal" if shift else "full"))


def updates(
    setup: Setup, network: Backbone, shift: int, count: int, rows: int, length: int, bfloat16: bool
) -> Iterator[torch.Tensor]:
    """Train on random tokens; yields the loss of each update, which stays on the device."""
    from redraft.objectives.shared import vocabulary
    from redraft.train import optim

    torch.manual_seed(0)
    ids = torch.randint(5, setup.vocabulary, (rows, length + 1))
    target = torch.ones_like(ids, dtype=torch.bool)
    target[:, 0] = False
    batch = Batch(ids, target, torch.ones_like(target), None, torch.full((rows,), length))
    spec = setup.spec(AttentionPattern("causal" if shift else "full"), shift)
    objective: Any = NextToken() if shift else Masked()
    if all(weight.requires_grad is False for weight in network.parameters()):
        network.requires_grad_(True)
    network.train()
    optimizer = optim.adamw(network, 1e-4, (0.9, 0.98), 0.1)
    noise = torch.Generator().manual_seed(0)
    for _ in range(count):
        prepared = objective.prepare(batch, spec, noise).to(setup.where)
        loss = vocabulary.backward(network, objective, prepared, 1.0, bfloat16)
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0, foreach=True)
        optim.step(optimizer, 1e-4)
        yield loss


def lora(setup: Setup) -> Iterator[Row]:
    """Adapters of rank 16 on the 8B shape, the base frozen in one type after the other."""
    from redraft.convert.shared import llama
    from redraft.lora import Lora
    from redraft.models.parts.frozen import freeze
    from redraft.models.parts.lora import attach

    rows, length = (2, 32) if setup.tiny else (4, 1024)
    for packing in ("", "int8", "nf4"):
        if setup.where.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(setup.where)
        network = setup.network("8b", 1)
        attach(network, Lora(rank=16), llama.layout(network.config).places)
        freeze(network, packing)
        losses = updates(setup, network, 1, 4, rows, length, bfloat16=True)
        seconds = seconds_each(setup, losses, warm_up=1)
        value = f"{rows * length / seconds:,.0f} tokens/s"
        yield Row("lora", f"8b, base in {packing or 'bfloat16'}", value, setup.memory())
        del network, losses


def server(setup: Setup) -> Iterator[Row]:
    """Requests a second of the shipped translation model, by ``serve_load.py`` (every answer is compared)."""
    command = [sys.executable, str(ROOT / "benchmarks" / "serve_load.py"), "--clients", "8,32", "--seconds", "10"]
    command += ["--device", setup.device, "--prompts", "16"]
    output = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
    for found in (line.strip("| ").split(" | ") for line in output.splitlines() if line[:3] in ("| 8", "| 3")):
        yield Row(
            "server",
            f"{found[0]} clients",
            f"{found[1]} requests/s, {found[2]} tokens/s",
            f"lost, cut, other: {found[5]}",
        )


PARTS: dict[str, tuple[Callable[[Setup], Iterator[Row]], int]] = {  # with the seconds that each may take
    "laws": (laws, 60),
    "forward": (forward, 45),
    "training": (training, 75),
    "latency": (latency, 150),
    "lora": (lora, 75),
    "server": (server, 60),
}


def run_part(name: str, setup: Setup) -> list[Row]:
    """Run one part in its own process; print its rows as they come."""
    limit, begin = PARTS[name][1] * (5 if setup.device == "cpu" else 1), time.monotonic()
    command = [sys.executable, "-u", __file__, "--part", name, "--device", setup.device, *(["--tiny"] * setup.tiny)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    rows = []
    try:
        output, _ = process.communicate(timeout=limit)
        ended = f"ended with exit code {process.returncode}" if process.returncode else ""
    except subprocess.TimeoutExpired:
        process.kill()
        output, _ = process.communicate()
        ended = f"stopped after {limit} s"
    rows = [Row(**json.loads(line)) for line in output.splitlines() if line.startswith("{")]
    rows.append(Row(name, "time", f"{time.monotonic() - begin:.0f} s", ended))
    print("\n".join(line(row) for row in rows), flush=True)
    return rows


def line(row: Row) -> str:
    """A row of a Markdown table."""
    return f"| {row.part} | {row.what} | {row.value} | {row.note} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true", help="Small shapes, to try the program itself.")
    parser.add_argument("--skip", action="append", default=[], choices=list(PARTS), help="A part to leave out.")
    parser.add_argument("--part", choices=list(PARTS), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.device == "cuda" and not torch.cuda.is_available():
        print("skipped: this machine has no CUDA device. To try the program itself: --device cpu --tiny")
        return
    setup = Setup(given.device, given.tiny)
    if given.part:
        for row in PARTS[given.part][0](setup):
            print(json.dumps(asdict(row)), flush=True)
        return
    rows = [row for name in PARTS if name not in given.skip for row in run_part(name, setup)]
    name = torch.cuda.get_device_name() if given.device == "cuda" else given.device
    print(f"\n{name}, {machine(torch.get_num_threads())}\n")
    print("| part | what | value | note |\n|---|---|---|---|")
    print("\n".join(line(row) for row in rows))


if __name__ == "__main__":
    main()
