"""Do public checkpoints give the numbers that their own code gave? Checks against recorded outputs, model by model.

A folder of references has one folder for each model, with ``checkpoint/`` in the published format and ``goldens/``,
what the reference code computed from it (``tests/numerics/test_parity.py`` runs the same checks).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from redraft.canvas import make_canvas
from redraft.decode import CachePolicy, Loop, Method
from redraft.errors import UserError
from redraft.files import read_json
from redraft.loading import load
from redraft.model import Model
from redraft.models.parts.attention import Attention
from redraft.registry import find
from redraft.samplers import _open
from redraft.samplers._blockwise import Blockwise
from redraft.samplers.ancestral import Ancestral
from redraft.samplers.threshold import Threshold
from redraft.types import SEALED, Attend, Canvas, Forward, Network, Output, Sampler, Spec, Step


@dataclass(frozen=True)
class Check:
    """One comparison with a reference: numbers within a tolerance, or ids that must be the same."""

    model: str
    what: str
    difference: float  # largest, of numbers; share of ids that differ
    tolerance: str  # "1e-4 + 1e-4 |x|", or "equal ids"
    ok: bool
    note: str = ""


@dataclass(frozen=True)
class Reference:
    """A folder of recorded values."""

    folder: Path

    @property
    def model(self) -> str:
        return self.folder.name

    def load(self, mask_id: int | None = None) -> Model:
        return load(self.folder / "checkpoint", "cpu", mask_id=mask_id)

    def tensors(self, name: str) -> dict[str, Tensor]:
        from safetensors.torch import load_file

        found: dict[str, Tensor] = load_file(self.folder / "goldens" / f"{name}.safetensors")
        return found

    def cases(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = read_json(self.folder / "goldens" / "generate.json")["cases"]
        return found

    def close(self, what: str, found: Tensor, wanted: Tensor, rtol: float = 1e-4, atol: float = 1e-4) -> Check:
        gap = (found.double() - wanted.double()).abs()
        ok = bool((gap <= atol + rtol * wanted.double().abs()).all())
        return Check(self.model, what, float(gap.max()), f"{atol:g} + {rtol:g} |x|", ok)

    def same(self, what: str, found: Sequence[Sequence[int]], wanted: Sequence[Sequence[int]], note: str = "") -> Check:
        a, b = torch.tensor(found), torch.tensor(wanted)
        if a.shape != b.shape:
            return Check(self.model, what, 1.0, "equal ids", False, f"shapes {list(a.shape)} and {list(b.shape)}")
        share = float((a != b).double().mean())
        return Check(self.model, what, share, "equal ids", share == 0, note)


def run(root: Path, only: str = "") -> Iterator[Check]:
    """Every check whose reference lies under ``root``.

    Raises:
        UserError: there is none.
    """
    known = [name for name in CHECKS if (root / name).is_dir() and only in ("", name)]
    if not known:
        raise UserError(f"'{root}' holds no reference values.", f"One folder for each model: {', '.join(CHECKS)}.")
    for name in known:
        yield from CHECKS[name](Reference(root / name))


# Asking networks


def logits(network: Network, ids: Tensor, attend: Attend, shift: int, t: Tensor | None = None) -> Tensor:
    """What a network says at every position, [B, L, V], as its own code would give it (not shifted)."""
    pos = torch.arange(ids.shape[1]).expand(ids.shape)
    with torch.inference_mode():
        flat = network(Forward(x=ids, pos=pos, want=pos + shift, attend=attend, t=t))
    return flat.view(*ids.shape, -1)


def answers(model: Model, ids: Tensor, attend: Attend | None = None, t: Tensor | None = None) -> Tensor:
    return logits(model.network, ids, attend or model.spec.attend, model.spec.shift, t)


def padded(model: Model, values: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Logits at the real positions of rows padded on the left: ours as one ragged batch, and the recorded ones."""
    real = values["padded_attention_mask"].bool()
    lengths, width = real.sum(1), real.shape[1]
    ids = torch.zeros_like(values["padded_input_ids"])
    pos = torch.full_like(ids, -1)
    for row, length in enumerate(lengths.tolist()):
        ids[row, :length] = values["padded_input_ids"][row, width - length :]
        pos[row, :length] = torch.arange(length)
    want = torch.where(pos >= 0, pos + model.spec.shift, -1)
    with torch.inference_mode():
        found = model.network(Forward(x=ids, pos=pos, want=want, attend=model.spec.attend))
    return found, values["padded_logits"][real]


def write(
    network: Network,
    spec: Spec,
    sampler: Sampler,
    prompts: Sequence[Sequence[int]],
    count: int,
    policy: CachePolicy | None = None,
) -> tuple[list[list[int]], int]:
    """Prompts with ``count`` more ids each, none of which ends a text, by our own loop; and the passes it took."""
    spec = replace(spec, eos_id=-1)
    rows = [[*prompt, *[None] * count] for prompt in prompts]
    canvas = make_canvas(rows, [len(p) for p in prompts], spec, seeds=list(range(len(rows))))
    for _ in Loop({"main": network}, Method(sampler, policy), spec).run(canvas):
        pass
    written = [canvas.ids[row, : len(full)].tolist() for row, full in enumerate(rows)]
    return written, int(canvas.nfe.max())


@dataclass(frozen=True)
class Guided:
    """Classifier-free guidance as LLaDA has it: u + (scale + 1)(c - u), u without the prompt's tokens."""

    network: Network
    prompt: int
    mask_id: int
    scale: float

    def __call__(self, ask: Forward, store: Any = None) -> Tensor:
        hidden = ask.x.clone()
        hidden[:, : self.prompt] = self.mask_id
        without = self.network(replace(ask, x=hidden))
        return without + (self.scale + 1) * (self.network(ask) - without)


@dataclass(frozen=True)
class Truncated:
    """A network of which only the ``count`` likeliest tokens are heard, so that confidences are relative to these."""

    network: Any
    count: int

    def __call__(self, ask: Forward, store: Any = None) -> Tensor:
        logits: Tensor = self.network(ask, store)
        least = logits.topk(self.count, -1).values[:, -1:]
        return logits.masked_fill(logits < least, -torch.inf)

    def store(self, seats: int, cells: int) -> Any:
        return self.network.store(seats, cells)


@dataclass(frozen=True)
class Replayed(Ancestral):
    """``Ancestral`` with uniform numbers that a reference drew, ``table`` [turns, B, L]."""

    table: Any = None

    def draws(self, canvas: Canvas, turn: Tensor) -> Tensor:
        recorded: Tensor = self.table[turn.clamp(max=len(self.table) - 1), torch.arange(len(turn))]
        return recorded


@dataclass(frozen=True)
class Paced(Threshold):
    """Fast-dLLM's threshold for Dream: never ahead of an even pace of ``steps`` turns, however sure it is."""

    steps: int = 1

    def apply(
        self, canvas: Canvas, state: None, spec: Spec, asks: list[Forward], outs: list[Output]
    ) -> tuple[None, Step]:
        ask, out = asks[0], outs[0]
        assert ask.rows is not None
        written = (canvas.status[ask.rows] == SEALED).sum(1)
        due = (written + (ask.want >= 0).sum(1)) // self.steps * (canvas.step[ask.rows] + 1).clamp(max=self.steps)
        sure = (out.conf > math.log(self.threshold)) & _open.best(out.conf, due - written)
        return None, _open.write(ask, out, sure | _open.best(out.conf, torch.ones_like(written)))


@dataclass(frozen=True)
class FirstOfBlock:
    """Fast-dLLM's blocks for Dream: the pass that fills the caches writes a block's first position, sure or not; what
    follows goes by ``threshold``, or, if that is 0, by entropy and Dream's schedule over ``steps`` turns a block."""

    block: int
    steps: int
    threshold: float = 0.0
    eps: float = 1e-3

    exact = False
    retracts = False
    width = 1

    def start(self, canvas: Canvas, spec: Spec) -> None: ...

    def plan(self, canvas: Canvas, state: None, spec: Spec) -> list[Forward]:
        return _open.ask_for(canvas, spec, _open.free_in_block(canvas, self.block), self.block)

    def apply(
        self, canvas: Canvas, state: None, spec: Spec, asks: list[Forward], outs: list[Output]
    ) -> tuple[None, Step]:
        ask, out = asks[0], outs[0]
        free = (ask.want >= 0).sum(1)
        if bool((free == self.block).all()):
            return None, _open.write(ask, out, torch.arange(ask.want.shape[1]).expand_as(ask.want) == 0)
        if self.threshold:
            sure = out.conf > math.log(self.threshold)
            return None, _open.write(ask, out, sure | _open.best(out.conf, torch.ones_like(free)))
        turn, stride = (canvas.step[ask.rows] % self.steps).double(), (1 - self.eps) / self.steps
        count = torch.where(turn + 1 >= self.steps, free, (free * stride / (1 - turn * stride)).floor().long())
        p = out.log_p.exp()
        order = _open.rectangle((p * (p + 1e-10).log()).sum(-1), ask, -torch.inf)
        return None, _open.write(ask, out, _open.best(order, count))


@dataclass(frozen=True)
class Late:
    """A cache policy that also keeps the position before a block, once the block's first position is written."""

    inner: CachePolicy

    exact = False

    def narrow(self, ask: Forward, cells: Any, shift: int) -> Forward:
        assert ask.active is not None
        begun = int(ask.want[0, 0]) > int(ask.active[0, 0])
        return self.inner.narrow(ask, cells, 0 if begun else shift)


# Losses from a given masking


def masked_nll(spec: Spec, output: Tensor, noisy: Tensor, clean: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Through our objective: each row's weighted nats at its masks. ``output`` [B, L, V] as ``logits`` gives it,
    ``weight`` [B] of a masked token -> [B], and tokens of cross-entropy [B, L] (0 where nothing is masked)."""
    from redraft.objectives.masked import Masked
    from redraft.types import Batch

    hidden = noisy == spec.mask_id
    batch = Batch(clean, torch.ones_like(hidden), torch.ones_like(hidden), None, torch.ones(len(clean)))
    prepared = Masked().request(batch, replace(spec, length_head=False), hidden, weight, weight)
    if not torch.equal(prepared.ask.x, noisy):
        raise AssertionError("the recorded noisy text masks what is not the mask")
    row, column = hidden.nonzero(as_tuple=True)
    flat = output[row, column - spec.shift]
    nats = Masked().loss(flat.clone(), prepared).nats
    each = torch.zeros(clean.shape)
    forbidden = torch.tensor([*spec.forbidden, spec.mask_id])
    log_p = flat.float().index_fill(1, forbidden, -torch.inf).log_softmax(-1)
    each[row, column] = -log_p.gather(1, clean[row, column][:, None])[:, 0]
    return nats, each


# One function for each reference


def autoregressive(reference: Reference) -> Iterator[Check]:
    """GPT-2, Llama, Qwen2, Qwen3."""
    model, values = reference.load(), reference.tensors("logits")
    found = answers(model, values["input_ids"])
    yield reference.close("logits", found, values["logits"])
    yield reference.close("logits, ragged batch", *padded(model, values))
    nll = torch.nn.functional.cross_entropy(found[:, :-1].transpose(1, 2), values["input_ids"][:, 1:], reduction="none")
    yield reference.close("next-token cross-entropy", nll, values["token_nll"])
    for case in reference.cases():
        starts = [mask.index(1) for mask in case["attention_mask"]]
        prompts = [ids[start:] for ids, start in zip(case["prompt_ids"], starts, strict=True)]
        new = case["settings"]["max_new_tokens"]
        texts = model.generate(prompts, max_new_tokens=new, ignore_eos=True)
        wanted = [ids[-new:] for ids in case["output_ids"]]
        yield reference.same(f"greedy, {case['name']}", [text.ids for text in texts], wanted)


def llada(reference: Reference) -> Iterator[Check]:
    model, values = reference.load(), reference.tensors("logits")
    yield reference.close("logits", answers(model, values["input_ids"]), values["logits"])
    yield reference.close("logits, ragged batch", *padded(model, values))
    for case in reference.cases():
        yield _llada_case(reference, model, case)
    yield from _llada_likelihood(reference, model)


def _llada_case(reference: Reference, model: Model, case: Mapping[str, Any]) -> Check:
    settings, prompts = case["settings"], case["prompt_ids"]
    if "attention_mask" in case:
        starts = [mask.index(1) for mask in case["attention_mask"]]
        prompts = [ids[start:] for ids, start in zip(prompts, starts, strict=True)]
    count, block = settings["gen_length"], settings["block_length"]
    options: dict[str, Any] = {"block": 0 if block == count else block}
    if "threshold" in settings:
        sampler = find("samplers", "threshold")(threshold=settings["threshold"], **options)
    else:
        sampler = find("samplers", "confidence")(steps=settings["steps"], **options)
    network: Network = model.network
    if settings.get("cfg_scale"):
        network = Guided(network, len(prompts[0]), model.spec.mask_id, settings["cfg_scale"])
    policy = next((find("caches", name)() for name in ("prefix", "dual") if f"{name}_cache" in case["impl"]), None)
    found, _ = write(network, model.spec, sampler, prompts, count, policy)
    wanted = [ids[-count:] for ids in case["output_ids"]]
    return reference.same(f"{case['impl']}, {case['name']}", [ids[-count:] for ids in found], wanted)


def _llada_likelihood(reference: Reference, model: Model) -> Iterator[Check]:
    values, singles = reference.tensors("likelihood"), read_json(reference.folder / "goldens" / "values.json")
    spec, prompt = model.spec, len(values["prompt"])
    clean = torch.cat([values["prompt"], values["answer"]])
    for scale in ("0.0", "1.5"):
        network: Network = model.network
        if float(scale):
            network = Guided(network, prompt, spec.mask_id, float(scale))
        total = []
        for noisy, share in zip(values[f"noisy_cfg{scale}"], values[f"p_mask_cfg{scale}"], strict=True):
            output = logits(network, noisy, spec.attend, spec.shift)
            nats, _ = masked_nll(spec, output, noisy, clean.expand(len(noisy), -1), 1 / share[:, -1])
            total.append(nats.mean())
        wanted = torch.tensor(singles["log_likelihood_mc16_bs8"][f"cfg{scale}"])
        yield reference.close(f"log-likelihood, guidance {scale}", -torch.stack(total).mean(), wanted, atol=0.0)
    noisy = values["fixed_noisy"]
    nats, each = masked_nll(spec, answers(model, noisy), noisy, values["fixed_seq"], 1 / values["fixed_p_mask"][:, -1])
    yield reference.close("cross-entropy of one masking", each, values["fixed_token_ce"])
    yield reference.close("likelihood of one masking", nats.mean(), values["fixed_loss"][0], atol=0.0)
    clean, noisy = values["train_ids"], values["train_noisy"]
    nats, _ = masked_nll(spec, answers(model, noisy), noisy, clean, 1 / values["train_p_mask"][:, 0])
    yield reference.close("loss of pre-training", nats.sum() / clean.numel(), values["train_loss"][0], atol=0.0)
    noisy = values["sft_noisy"]
    answer = clean.shape[1] - values["sft_prompt_lengths"]
    nats, _ = masked_nll(spec, answers(model, noisy), noisy, clean, 1 / values["train_p_mask"][:, 0])
    yield reference.close("loss of fine-tuning", (nats / answer).mean(), values["sft_loss"][0], atol=0.0)


def dream(reference: Reference) -> Iterator[Check]:
    model, values = reference.load(), reference.tensors("logits")
    yield reference.close("logits", answers(model, values["input_ids"]), values["logits"])
    yield reference.close("logits, ragged batch", *padded(model, values))
    draws = reference.tensors("origin_draws")
    for case in reference.cases():
        yield _dream_case(reference, model, case, draws)


# The settings say top_k none, but that leaves the default of transformers' generation: 50 (found by trying).
_DREAM_TOP_K = 50
_DREAM_ORDERS = {"maskgit_plus": "confidence", "topk_margin": "margin", "entropy": "entropy"}


def _dream_case(reference: Reference, model: Model, case: Mapping[str, Any], draws: Mapping[str, Tensor]) -> Check:
    settings, prompts, name = case["settings"], case["prompt_ids"], case["name"]
    if "attention_mask" in case:
        starts = [mask.index(1) for mask in case["attention_mask"]]
        prompts = [ids[start:] for ids, start in zip(prompts, starts, strict=True)]
    count, steps, policy = settings["max_new_tokens"], settings["steps"], None
    sampler: Sampler
    if "block_length" in settings:
        policy = Late(find("caches", "dual" if settings["dual_cache"] else "prefix")())
        block = settings["block_length"]
        sampler = FirstOfBlock(block, steps * block // count, settings.get("threshold", 0.0))
    elif settings["alg"] == "confidence_threshold":
        sampler = Paced(settings["threshold"], steps=steps)
    elif settings["alg"] == "origin":
        sampler = Replayed(steps, settings["eps"], _table(draws, name, len(prompts), len(prompts[0]), count, steps))
    else:
        sampler = find("samplers", "dream")(steps=steps, order=_DREAM_ORDERS[settings["alg"]], eps=settings["eps"])
    heard = Truncated(model.network, _DREAM_TOP_K)
    found, _ = write(heard, model.spec, sampler, prompts, count, policy)
    return reference.same(
        f"{case['impl']}, {name}", [ids[-count:] for ids in found], [i[-count:] for i in case["output_ids"]]
    )


def _table(draws: Mapping[str, Tensor], name: str, rows: int, prompt: int, count: int, steps: int) -> Tensor:
    """Dream's draws, recorded for what was still masked, by turn, row and position; what they reveal follows."""
    eps = 1e-3
    table = torch.ones(steps, rows, prompt + count, dtype=torch.float64)
    free = torch.zeros(rows, prompt + count, dtype=torch.bool)
    free[:, prompt:] = True
    for turn in range(steps):
        table[turn][free] = draws[f"{name}.step{turn:02d}"].double()
        stride = (1 - eps) / steps
        free &= table[turn] >= stride / (1 - turn * stride)
    return table


def adapted(reference: Reference) -> Iterator[Check]:
    """DiffuGPT and DiffuLLaMA."""
    model, values = reference.load(), reference.tensors("logits")
    note = ""
    if reference.model == "diffugpt" and _qkv(model.network.blocks[0]).bias is None:
        _solve_biases(model, values["xt"], values["logits"])
        note = "the recorded file lacks c_attn.bias: solved for from these logits"
    output = answers(model, values["xt"])
    yield replace(reference.close("logits", output, values["logits"]), note=note)
    hidden = values["mask"].bool()
    nats, each = masked_nll(replace(model.spec, forbidden=()), output, values["xt"], values["x0"], 1 / values["t"])
    shifted = torch.nn.functional.cross_entropy(output[:, :-1].transpose(1, 2), values["x0"][:, 1:], reduction="none")
    each = shifted * hidden[:, 1:]
    yield reference.close("cross-entropy at masks", each, values["token_ce_shifted"])
    weighted = (each / values["t"][:, None]).sum() / hidden.sum()
    yield reference.close("loss, weighted", weighted, values["loss_weighted"][0], atol=0.0)
    yield reference.close("loss, unweighted", each.sum() / hidden.sum(), values["loss_unweighted"][0], atol=0.0)
    run = reference.tensors("generate")
    given = run["src_mask"][0].bool()
    prompt = run["input_ids"][0, given].tolist()
    table = run["draws"].double()[:, None]
    sampler = Replayed(len(table) + 1, 0.0, torch.cat([table, torch.zeros_like(table[:1])]))
    found, _ = write(model.network, model.spec, sampler, [prompt], int((~given).sum()))
    yield reference.same("its sampling, draws replayed", [found[0][1:]], run["output_ids"].tolist())


def _qkv(block: nn.Module) -> nn.Linear:
    """The projection of a block to queries, keys and values."""
    attention = block.attention
    assert isinstance(attention, Attention)
    return attention.qkv


def _solve_biases(model: Model, ids: Tensor, wanted: Tensor) -> None:
    """Least squares for query, key and value biases that a file lacks (Gauss-Newton with damping)."""
    from torch.func import functional_call, jacfwd
    from torch.nn.attention import SDPBackend, sdpa_kernel

    network: Any = model.network.double()
    names = [f"blocks.{number}.attention.qkv.bias" for number in range(len(network.blocks))]
    size = _qkv(network.blocks[0]).out_features
    pos = torch.arange(ids.shape[1]).expand(ids.shape)
    ask = Forward(x=ids, pos=pos, want=pos + model.spec.shift, attend=model.spec.attend)
    for block in network.blocks:
        _qkv(block).bias = torch.nn.Parameter(torch.zeros(size, dtype=torch.float64), requires_grad=False)

    def gap(bias: Tensor) -> Tensor:
        state = dict(zip(names, bias.split(size), strict=True))
        return (functional_call(network, state, (ask,)) - wanted.double().view(-1, wanted.shape[-1])).flatten()

    bias, damping = torch.zeros(size * len(names), dtype=torch.float64), 1e-2
    error = gap(bias)
    for _ in range(30):
        with sdpa_kernel(SDPBackend.MATH):  # the fused kernel has no forward derivative
            slope = jacfwd(gap)(bias)
        normal = slope.T @ slope
        step = torch.linalg.solve(normal + damping * torch.eye(len(bias)), slope.T @ error)
        new = gap(bias - step)
        if new.square().sum() < error.square().sum():
            bias, error, damping = bias - step, new, damping / 10
        else:
            damping *= 10
        if error.abs().max() < 2e-5:
            break
    for block, part in zip(network.blocks, bias.split(size), strict=True):
        _qkv(block).bias.data.copy_(part)
    network.float()


def llada_moe(reference: Reference) -> Iterator[Check]:
    model, values = reference.load(mask_id=reference.cases()[0]["settings"]["mask_id"]), reference.tensors("logits")
    yield reference.close("logits", answers(model, values["input_ids"]), values["logits"])
    for case in reference.cases():
        yield _llada_case(reference, model, {"impl": "LLaDA", **case})


def llada2_moe(reference: Reference) -> Iterator[Check]:
    model, values = reference.load(mask_id=reference.cases()[0]["settings"]["mask_id"]), reference.tensors("logits")
    ids = values["input_ids"]
    yield reference.close(
        "logits, block-causal", answers(model, ids, Attend("block", 8)), values["logits_block_causal"]
    )
    yield reference.close("logits, full attention", answers(model, ids, Attend("full")), values["logits_full"])
    for case in reference.cases():
        settings, [prompt], count = case["settings"], case["prompt_ids"], case["settings"]["gen_length"]
        block, steps = settings["block_length"], settings["steps"]
        sampler = Blockwise(find("samplers", "threshold")(threshold=settings["threshold"], least=block // steps))
        spec = replace(model.spec, attend=Attend("block", block))
        room = -(-(len(prompt) + count) // block) * block - len(prompt)  # the last block is filled up
        written, passes = write(model.network, spec, sampler, [prompt], room, find("caches", "exact")())
        found = written[0][len(prompt) :][:count]
        end = settings["eos_id"]
        found = found[: found.index(end) + 1] if end in found else found
        check = reference.same(f"its sampling, {case['name']}", [found], case["output_ids"], f"{passes} passes")
        yield replace(check, ok=check.ok and passes == case["nfe"])


def mdlm(reference: Reference) -> Iterator[Check]:
    model, values = reference.load(), reference.tensors("logits")
    clean, noisy, t = values["x0"], values["xt"], values["t"]
    yield reference.close("logits", answers(model, noisy), values["logits_sigma0"])
    timed = _told_the_time(model.network)
    conditioned = logits(timed, noisy, model.spec.attend, 0, t)
    yield reference.close("logits, told the time", conditioned, values["logits_sigma"])
    raw = _trainer_weights(reference.folder / "checkpoint" / "trainer.ckpt", model)
    yield reference.close("logits, the trainer's raw weights", raw(noisy), values["logits_sigma0_raw_weights"])
    losses = reference.tensors("losses")
    spec = model.spec
    weight = values["dsigma"] / torch.expm1(values["sigma"])
    for name, output in (("subs", answers(model, noisy)), ("subs_timecond", conditioned)):
        _, each = masked_nll(spec, output, noisy, clean, weight)
        found = each * weight[:, None]
        yield reference.close(f"bound, {name}", found, losses[f"{name}.nelbo_tokens"], rtol=2e-4)
    step = reference.tensors("sampler_steps")
    t, dt, at = step["t"][:, 0], step["dt"], step["x"] == spec.mask_id
    for name, most in (("ddpm", 1 - _EPS), ("ddpm_cache", 1.0)):  # theirs are not normalised, and matter at masks alone
        found = _reverse(model, step["x"], 1 - t * most, 1 - (t - dt) * most) * (t * most)[:, None, None]
        yield reference.close(f"one reverse step, {name}", found[at], step[f"{name}.probs"][at], 1e-3, 1e-5)
    run = reference.tensors("sampler_run")
    for name in ("ddpm", "ddpm_cache"):
        yield reference.same(
            f"its sampling, {name}, draws replayed",
            _mdlm_run(model, run[f"{name}.draws"], name),
            run[f"{name}.ids"].tolist(),
        )


_EPS = 1e-3  # of MDLM's log-linear schedule


def _told_the_time(network: Any) -> Any:
    """The same network with the time as a condition."""
    made = type(network)(replace(network.config, noise="linear"))
    made.load_state_dict(network.state_dict())
    return made.eval()


def _trainer_weights(file: Path, model: Model) -> Callable[[Tensor], Tensor]:
    """A network with the weights that a trainer's checkpoint holds (those without averaging)."""
    import copy

    from redraft.convert import _dit

    state = torch.load(file, map_location="cpu", weights_only=True)["state_dict"]
    network = copy.deepcopy(model.network)
    own = dict(network.named_parameters())
    for name, place in _dit.layout(network.config, "backbone.").places.items():
        place.view(own[place.name]).data.copy_(state[name])
    return lambda ids: logits(network, ids, model.spec.attend, 0)


def _reverse(model: Model, x: Tensor, alpha_t: Tensor, alpha_s: Tensor) -> Tensor:
    """q(x_s | x_t) of our process with the model's prediction for the clean text."""
    from redraft.noise.absorbing import Absorbing

    spec = model.spec
    p = answers(model, x).index_fill(2, torch.tensor(spec.forbidden), -torch.inf).softmax(-1)
    return Absorbing().posterior(x, p, alpha_s[:, None].expand(x.shape), alpha_t[:, None].expand(x.shape), spec)


def _mdlm_run(model: Model, draws: Tensor, name: str) -> list[list[int]]:
    """MDLM's own loop over our posterior: all ids are drawn at once, by exponential races with its numbers."""
    steps, width, _ = draws.shape
    x = torch.full((1, width), model.spec.mask_id)
    times = torch.linspace(1, 1e-5, steps + 1)
    stride = (1 - 1e-5) / steps
    for turn in range(steps):
        t = times[turn : turn + 1]
        q = _reverse(model, x, 1 - t * (1 - _EPS), 1 - (t - stride) * (1 - _EPS))
        drawn = (q / (1e-10 - (draws[turn] + 1e-10).log())).argmax(-1)
        x = torch.where(x == model.spec.mask_id, drawn, x)
    final = answers(model, x).index_fill(2, torch.tensor(model.spec.forbidden), -torch.inf).argmax(-1)
    found: list[list[int]] = torch.where(x == model.spec.mask_id, final, x).tolist()
    return found


def sedd(reference: Reference) -> Iterator[Check]:
    """Both graphs, as log-scores that are 0 for the current token."""
    for graph in ("absorb", "uniform"):
        part = Reference(reference.folder / graph)
        model, values = part.load(), part.tensors("model")
        c, sigma = model.network.config, values["sigma"]
        low = torch.full_like(sigma, 1e-3)
        for name, ids, noise in (("log_score", values["xt"], sigma), ("log_score_low_sigma", values["x0"], low)):
            t = -torch.expm1(-noise) / (1 - c.epsilon)
            if c.noise == "geometric":
                t = (noise / c.sigma_min).log() / math.log(c.sigma_max / c.sigma_min)
            found = answers(model, ids, t=t)
            if graph == "absorb":
                size = torch.expm1(noise).log() + math.log(c.vocab_size - 1)
                found = (found - size[:, None, None]).scatter(2, ids[..., None], 0.0)
            yield replace(reference.close(f"{name}, {graph}", found, values[name]), model="sedd")


def bd3lm(reference: Reference) -> Iterator[Check]:
    """Networks; bounds and samplers are checked beside the objectives (``tests/numerics``)."""
    model, values = reference.load(), reference.tensors("model")
    size, clean, noisy = model.spec.attend.block, values["x0"], values["xt"]
    yield reference.close(
        "logits, context and current block", answers(model, values["sample_x"]), values["sample_logits"]
    )
    parts = []
    for begin in range(0, clean.shape[1], size):  # one noisy block at a time, after clean ones
        x = torch.cat([clean[:, :begin], noisy[:, begin : begin + size]], 1)
        parts.append(answers(model, x)[:, begin:])
    output = torch.cat(parts, 1)
    yield reference.close("logits of noised blocks", output, values["logits"])
    log_p = output.index_fill(2, torch.tensor(model.spec.forbidden), -torch.inf).log_softmax(-1)
    at = noisy == model.spec.mask_id
    wanted = values["log_probs"][at]
    allowed = [i for i in range(wanted.shape[1]) if i not in model.spec.forbidden]
    yield reference.close("log-probabilities at masks", log_p[at][:, allowed], wanted[:, allowed])


CHECKS: dict[str, Callable[[Reference], Iterator[Check]]] = {
    "gpt2": autoregressive,
    "llama": autoregressive,
    "qwen2": autoregressive,
    "qwen3": autoregressive,
    "llada": llada,
    "dream": dream,
    "diffugpt": adapted,
    "diffullama": adapted,
    "llada_moe": llada_moe,
    "llada2_moe": llada2_moe,
    "mdlm": mdlm,
    "sedd": sedd,
    "bd3lm": bd3lm,
}
