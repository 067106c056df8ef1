"""Laws of continuous diffusion: gaussian noise, its bound, its samplers, and the two families that use them."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import redraft
from redraft import likelihood
from redraft.caches.exact import Exact
from redraft.canvas import completion, make_canvas
from redraft.data.tokenizer import Tokenizer
from redraft.errors import UserError
from redraft.generation.loop import Loop, Method
from redraft.model import Model
from redraft.noise import gaussian
from redraft.noise.gaussian import Gaussian
from redraft.objectives.shared import vectors as vectors
from redraft.objectives.shared.autoencoder import Autoencoder
from redraft.presets import preset
from redraft.registry import find, names
from redraft.types import SEALED, Batch, Forward, Spec, VectorQuery
from tests import tiny

A, B, C = tiny.VOCABULARY.letters
EOS, SEP = tiny.VOCABULARY.eos_id, tiny.VOCABULARY.sep_id
FAMILIES = ["latent", "embedding"]
SAMPLERS = [
    pytest.param(find("samplers", name)(steps=5, **options), id="-".join([name, *map(str, options.values())]))
    for name, options in [("ddim", {}), ("ddim", {"eta": 1.0}), ("dpm_solver", {}), ("dpm_solver", {"order": 1})]
]
each_family = pytest.mark.parametrize("family", FAMILIES)
each_sampler = pytest.mark.parametrize("sampler", SAMPLERS)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def model(family: str, paired: bool = True, **fields: Any) -> Model:
    """A tiny untrained model with large weights, in float64, so that rounding doesn't depend on the batch."""
    tokenizer = Tokenizer.bytes()
    made = Model.fresh({"name": family, **fields}, tokenizer, preset("toy", tokenizer.vocab_size), paired, seed=1)
    for name, parameter in made.network.named_parameters():
        if parameter.ndim == 2 and "autoencoder" not in name:
            parameter.data.mul_(5)
    made.network.double().requires_grad_(False)
    return made


# ---- the process


def log_snrs(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_the_marginal_has_the_mean_and_variance_of_its_log_snr() -> None:
    clean = torch.tensor([1.5, -0.5, 0.2], dtype=torch.float64).expand(20_000, 3)
    noise = torch.randn(clean.shape, generator=generator(), dtype=torch.float64)
    for g in (-6.0, -1.0, 0.0, 3.0):
        alpha, sigma = (part.item() for part in gaussian.coefficients(log_snrs(g)))
        assert alpha**2 + sigma**2 == pytest.approx(1)
        assert math.log(alpha**2 / sigma**2) == pytest.approx(g)
        z = Gaussian().corrupt(clean, log_snrs(g).expand(20_000), noise)
        torch.testing.assert_close(z.mean(0), alpha * clean[0], rtol=0, atol=4.5 * sigma / 141)
        torch.testing.assert_close(z.var(0), torch.full((3,), sigma**2).double(), rtol=0.05, atol=0)


@pytest.mark.parametrize(("g_s", "g_t"), [(4.0, 1.0), (0.5, -3.0), (8.0, -8.0)])
def test_posterior_composed_with_the_marginal_is_the_earlier_marginal(g_s: float, g_t: float) -> None:
    """q(z_s | x) has mean alpha_s x and variance sigma_s^2; so has the mean of q(z_s | z_t, x) over q(z_t | x)."""
    x = torch.tensor([[0.7, -1.3]], dtype=torch.float64)
    s, t = log_snrs(g_s), log_snrs(g_t)
    alpha_t, sigma_t = gaussian.coefficients(t)
    alpha_s, sigma_s = gaussian.coefficients(s)
    mean, variance = Gaussian().posterior(alpha_t * x, x, s, t)
    moved, _ = Gaussian().posterior(alpha_t * x + sigma_t, x, s, t)
    torch.testing.assert_close(mean, alpha_s * x)
    torch.testing.assert_close((moved - mean).square() + variance, sigma_s.square().expand_as(mean))


def test_v_and_clean_vectors_are_equivalent() -> None:
    clean, noise = torch.randn(2, 9, 4, generator=generator(), dtype=torch.float64)
    g = torch.linspace(-8, 8, 9, dtype=torch.float64)
    z = Gaussian().corrupt(clean, g, noise)
    torch.testing.assert_close(gaussian.clean_of(gaussian.v_of(clean, noise, g), z, g), clean)


def test_keyed_noise_is_normal_and_depends_only_on_its_key() -> None:
    seed, step = torch.arange(50), torch.zeros(50, dtype=torch.int64)
    pos = torch.arange(20).expand(50, -1)
    z = gaussian.keyed_normal(seed, step, pos, 8)
    flat = z.flatten()
    assert abs(float(flat.mean())) < 4.5 / math.sqrt(len(flat))
    assert abs(float(flat.var()) - 1) < 4.5 * math.sqrt(2 / len(flat))
    assert len(flat.unique()) == len(flat)
    some = gaussian.keyed_normal(seed[7:9], step[:2], pos[:2, 3:5], 8)
    torch.testing.assert_close(some, z[7:9, 3:5], rtol=0, atol=0)


# ---- the bound and the samplers, against enumeration


@dataclass
class VectorOracle:
    """The exact p(token | noisy vectors of all positions) for a language of fixed length, with given embeddings."""

    language: tiny.Language
    spec: Spec
    start: int

    @property
    def table(self) -> Tensor:
        assert self.spec.family.continuous is not None
        width = self.spec.family.continuous.width
        rows = torch.randn(self.spec.tokens.vocab_size, width, generator=generator(5), dtype=torch.float64)
        return torch.nn.functional.normalize(rows, dim=-1) * width**0.5

    def expected(self, log_p: Tensor) -> Tensor:
        return log_p.double().exp() @ self.table

    def __call__(self, request: Forward, store: object = None) -> Tensor:
        query = request.find(VectorQuery)
        assert query is not None and self.spec.family.continuous is not None
        if query.kind == "encode":
            return self.table
        assert query.vectors is not None and request.time is not None
        first, last = gaussian.ends(self.spec.family.continuous)
        g = first + (last - first) * request.time.double()
        alpha, _ = gaussian.coefficients(g)
        near = query.vectors.double()[:, self.start :] @ self.table.T * (alpha * (1 + g.exp()[:, None]))[:, :, None]
        says = self.language.table  # [S, M]
        weight = near[:, torch.arange(says.shape[1]), says].sum(-1) + self.language.p.log()  # [R, S]
        p = weight.softmax(-1)
        row, column = (request.targets >= 0).nonzero(as_tuple=True)
        found = torch.zeros(len(row), self.spec.tokens.vocab_size, dtype=torch.float64)
        found.scatter_add_(1, says[:, request.targets[row, column] - self.start].T, p[row])
        return found.clamp(min=1e-30).log()


def oracle(cleanest: float = 8.0, seed: int = 0) -> tuple[tiny.Language, Spec, VectorOracle]:
    language = tiny.Language.of_one_length([A, B, C], 2, seed)
    spec, _ = tiny.family("embedding", paired=False, width=6, cleanest=cleanest)
    return language, spec, VectorOracle(language, spec, 1)


@pytest.mark.parametrize("seed", [0, 1])
def test_the_bound_of_an_oracle_is_the_exact_likelihood(seed: int) -> None:
    """-log P(x) = 1/2 integral of e^g |x - E[x | z_g]|^2 over all g (Kong et al. 2023, arXiv:2302.03792). With such a
    wide range of g, the prior and rounding terms are negligible."""
    language, spec, network = oracle(seed=seed)
    objective = find("families", "embedding")().objective()
    for number, text in enumerate(language.texts):
        found = likelihood.score(network, [tiny.VOCABULARY.bos_id], text, objective, spec, samples=4000, seed=number)
        assert found.is_bound and found.stderr < 0.25
        assert found.nats == pytest.approx(language.nll(text), abs=4.5 * found.stderr + 0.02)


def test_the_rounding_term_bounds_the_likelihood_at_a_low_cleanest_level() -> None:
    """At a log-SNR of 0 tokens are uncertain, and the rounding term must be large enough for a bound."""
    language, spec, network = oracle(cleanest=1.0)
    objective = find("families", "embedding")().objective()
    total = torch.tensor(0.0, dtype=torch.float64)
    for p, text in zip(language.p, language.texts, strict=True):
        found = likelihood.score(network, [tiny.VOCABULARY.bos_id], text, objective, spec, samples=2000, seed=1)
        total += p * found.nats
    assert float(total) > float(-(language.p * language.p.log()).sum()) + 0.1


def drawn(network: VectorOracle, spec: Spec, sampler: Any, count: int = 3000) -> Tensor:
    rows: list[list[int | None]] = [[tiny.VOCABULARY.bos_id, None, None]] * count
    canvas = make_canvas(rows, [1] * count, spec, seeds=list(range(count)), temperature=1.0)
    for _ in Loop({"main": network}, Method(sampler), spec).run(canvas):
        pass
    found = [canvas.ids[:, 1:].tolist().count(text) / count for text in network.language.texts]
    return torch.tensor(found, dtype=torch.float64)


@pytest.mark.parametrize(
    ("name", "options"),
    [("ddim", {"steps": 60}), ("ddim", {"steps": 60, "eta": 1.0}), ("dpm_solver", {"steps": 20})],
    ids=str,
)
def test_many_steps_sample_from_the_joint_distribution(name: str, options: dict[str, Any]) -> None:
    """3,000 samples of nine sequences have a total variation of about 0.02 by chance."""
    language, spec, network = oracle()
    far = 0.5 * (drawn(network, spec, find("samplers", name)(**options)) - language.p).abs().sum()
    one = 0.5 * (drawn(network, spec, find("samplers", name)(steps=1), 1500) - language.p).abs().sum()
    assert float(far) < 0.05 < 0.1 < float(one)


def test_the_second_order_solver_has_less_error() -> None:
    """The share of sequences that differ from those of 400 first-order steps with the same noise."""
    _, spec, network = oracle()
    rows: list[list[int | None]] = [[tiny.VOCABULARY.bos_id, None, None]] * 800

    def texts(name: str, **options: Any) -> Tensor:
        canvas = make_canvas(rows, [1] * 800, spec, seeds=list(range(800)))
        sampler = find("samplers", name)(**options)
        for _ in Loop({"main": network}, Method(sampler), spec).run(canvas):
            pass
        return canvas.ids

    exact = texts("ddim", steps=400)
    first, second = ((texts("dpm_solver", steps=12, order=o) != exact).any(1).double().mean() for o in (1, 2))
    assert float(second) < 0.6 * float(first)
    assert torch.equal(texts("dpm_solver", steps=12, order=1), texts("ddim", steps=12))


# ---- families


ROWS: list[list[int | None]] = [[70, 71, 4, *[None] * 9], [72, 4, *[None] * 7], [73, 74, 75, 76, 77, 4, *[None] * 5]]
PROMPTS = [3, 2, 6]


def run(made: Model, sampler: Any, rows: list[list[int | None]], prompts: list[int], **options: Any) -> Any:
    cache = options.pop("cache", Exact())
    options.setdefault("seeds", list(range(len(rows))))
    canvas = make_canvas(rows, prompts, made.spec, **options)
    steps = list(Loop({"main": made.network}, Method(sampler, cache), made.spec).run(canvas))  # type: ignore[dict-item]
    return canvas, steps


@each_sampler
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_latent_diffusion_satisfies_the_laws_of_samplers(sampler: Any, temperature: float) -> None:
    """Prompts are kept, every position is written once, and an output depends neither on other rows nor on the cache
    nor on slices."""
    made = model("latent")
    canvas, steps = run(made, sampler, ROWS, PROMPTS, temperature=temperature)
    assert not canvas.open.any() and bool((canvas.nfe == sampler.steps + 1).all())
    sealed = torch.cat([step.pos[step.status == SEALED] for step in steps])
    assert len(sealed) == sum(row.count(None) for row in ROWS)
    plain, _ = run(made, sampler, ROWS, PROMPTS, temperature=temperature, cache=None)
    slices, _ = run(made, replace(sampler, slice=2), ROWS, PROMPTS, temperature=0.0)
    assert torch.equal(canvas.ids, plain.ids)
    assert sampler.steps + 2 <= int(slices.nfe.max()) <= sampler.steps + 5  # fewer if a sequence ends before its row
    for number, (row, prompt) in enumerate(zip(ROWS, PROMPTS, strict=True)):
        alone, _ = run(made, sampler, [row], [prompt], seeds=[number], temperature=temperature)
        assert completion(canvas, number, made.spec.tokens.eos_id) == completion(alone, 0, made.spec.tokens.eos_id)
        assert canvas.ids[number, :prompt].tolist() == row[:prompt]
        if temperature == 0:
            assert completion(slices, number, made.spec.tokens.eos_id) == completion(alone, 0, made.spec.tokens.eos_id)


@each_sampler
@pytest.mark.parametrize("cache", names("caches"))
def test_latent_outputs_are_the_same_with_every_cache(sampler: Any, cache: str) -> None:
    """All vectors run in every pass and prompts don't attend to them, so no cache is an approximation."""
    made, policy = model("latent"), find("caches", cache)()
    plain, _ = run(made, sampler, ROWS, PROMPTS, temperature=1.0, cache=None)
    canvas, _ = run(made, sampler, ROWS, PROMPTS, temperature=1.0, cache=policy)
    assert torch.equal(canvas.ids, plain.ids)
    for number, (row, prompt) in enumerate(zip(ROWS, PROMPTS, strict=True)):
        alone, _ = run(made, sampler, [row], [prompt], seeds=[number], temperature=1.0, cache=policy)
        assert completion(canvas, number, made.spec.tokens.eos_id) == completion(alone, 0, made.spec.tokens.eos_id)


@each_family
@pytest.mark.parametrize("paired", [True, False])
def test_a_model_generates_scores_and_is_saved(family: str, paired: bool, tmp_path: Path) -> None:
    made = model(family, paired)
    made.network.float()
    written = made.generate(["ab", "a longer one"], max_new_tokens=10, steps=4)
    assert len(written) == 2 and all(text.nfe >= 1 for text in written)
    found = made.score("ab", "xyz", samples=32)
    assert found.is_bound and found.nats > 0 and found.stderr > 0
    made.save(tmp_path / "kept")
    again = redraft.load(tmp_path / "kept", device="cpu")
    assert again.family == made.family and again.spec == made.spec
    mine, theirs = made.network.state_dict(), again.network.state_dict()
    assert mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)
    settings: dict[str, Any] = {"max_new_tokens": 10, "steps": 4, "temperature": 1.0, "seed": 3}
    assert again.generate("ab", **settings)[0].ids == made.generate("ab", **settings)[0].ids


def test_an_embedding_model_fills_holes_and_satisfies_constraints() -> None:
    made = model("embedding")
    made.network.float()
    filled = made.infill("xy[[3]]z", prompt="ab", steps=2)
    assert filled.ids[:2] == made.tokenizer.encode("xy") and filled.ids[-1:] == made.tokenizer.encode("z")
    text = made.generate("ab", constraint={"regex": "[xy]{2,6}"}, max_new_tokens=8, steps=4)[0].text
    assert 2 <= len(text) <= 6 and set(text) <= {"x", "y"}


@each_family
def test_caches_support_vectors_and_samplers_of_tokens_reject_them(family: str) -> None:
    """With an isolated prompt and all vectors in every pass, a cache can't change the output."""
    from redraft.registry import names

    made = model(family)
    own = {"max_new_tokens": 21, "steps": 3, "length": "fixed"}
    wanted = made.generate(["ab", "a longer one"], cache="none", **own)
    for cache in names("caches"):
        found = made.generate(["ab", "a longer one"], cache=cache, **own)
        assert [text.ids for text in found] == [text.ids for text in wanted], cache
    for sampler in set(names("samplers")) - {"ddim", "dpm_solver"}:
        with pytest.raises(UserError):
            made.generate("ab", sampler=sampler, max_new_tokens=8)


def test_an_adapter_of_a_latent_model_is_trained_in_the_phase_with_adapted_weights(tmp_path: Path) -> None:
    from redraft.train.loop import train
    from redraft.train.recipe import Recipe

    made = model("latent")
    made.network.float()
    made.save(tmp_path / "base")
    small = ["data.length=128", "train.tokens=600", "train.batch_tokens=300", "train.validation_rows=2"]
    small += ["train.validate_every=0", "train.threads=1", "train.ema=0", f"model.from={tmp_path / 'base'}"]
    toy = Recipe.load(toy_folder() / "latent.toml").tables()
    family = {"name": "latent", **vars(made.family)}
    recipe = Recipe.of({**toy, "family": family, "lora": {"rank": 2}}, "adapter", small, str(toy_folder()))
    result = train(recipe, tmp_path / "adapter", device="cpu")
    assert result.steps >= 1 and (tmp_path / "adapter" / "adapter_model.safetensors").exists()
    assert redraft.load(tmp_path / "adapter", "cpu").generate("ab", max_new_tokens=4, steps=2)[0].nfe > 0


def toy_folder() -> Path:
    return Path(__file__).parents[2] / "recipes" / "toy"


def test_unsupported_options_of_a_latent_model_are_rejected() -> None:
    made = model("latent")
    made.network.float()
    with pytest.raises(UserError, match="several tokens"):
        made.infill("xy[[3]]z", prompt="ab", steps=2)
    with pytest.raises(UserError, match="constrained"):
        made.generate("ab", constraint={"regex": "x+"}, max_new_tokens=8)
    with pytest.raises(UserError, match="Gaussian noise"):
        made.generate("ab", sampler="confidence", max_new_tokens=8)
    with pytest.raises(UserError, match="width"):
        model("latent", width=65)
    for name, options in [("ddim", {"eta": 2.0}), ("dpm_solver", {"order": 3}), ("ddim", {"slice": 0})]:
        with pytest.raises(UserError):
            made.generate("ab", sampler=name, options=options, max_new_tokens=8)


@each_family
@pytest.mark.parametrize("cache", ["exact", "none"])
def test_requests_of_different_generations_can_share_a_forward_pass(family: str, cache: str) -> None:
    """Two generations of different lengths, run step by step with joint forward passes, have the same outputs."""
    from redraft.generation.loop import Call
    from redraft.serve import batching

    made = model(family)
    settings = made.settings(max_new_tokens=12, steps=3, cache=cache, length="fixed")
    drafts = [made.start([prompt], settings) for prompt in ("ab", "a longer prompt")]
    alone = [made.generate([prompt], **vars(settings))[0].ids for prompt in ("ab", "a longer prompt")]
    store = made.network.store(2, 64) if cache == "exact" else None
    for slot, draft in enumerate(drafts):
        draft.canvas.kv_slot += slot
        draft.loop.capacity = (2, 64)
        draft.loop.stores = {} if store is None else {("main", 0): store}
    turns: list[Any] = [draft.steps() for draft in drafts]
    with torch.inference_mode():
        waiting: dict[int, Any] = {index: next(turn) for index, turn in enumerate(turns)}
        while waiting:
            calls = {index: found for index, found in waiting.items() if isinstance(found, Call)}
            answers: dict[int, Any] = dict.fromkeys(waiting)
            if calls:
                order = list(calls)
                for group in batching.groups([calls[index] for index in order], slack=1000):
                    together = [calls[order[i]] for i in group]
                    merged = batching.merge(together)
                    logits = made.network(merged.request, merged.store)
                    parts = batching.split(logits, together)
                    answers |= {order[i]: part for i, part in zip(group, parts, strict=True)}
            waiting = {i: found for i in waiting if (found := _sent(turns[i], answers[i])) is not None}
    assert [draft.results()[0].ids for draft in drafts] == alone


def _sent(turn: Any, answer: Any) -> Any:
    try:
        return turn.send(answer)
    except StopIteration:
        return None


def test_networks_of_another_family_are_rejected() -> None:
    from redraft.conversion import convert_family

    for family, other in [("latent", "masked"), ("embedding", "latent"), ("embedding", "masked")]:
        with pytest.raises(UserError, match="not for family"):
            convert_family(model(family), {"name": other})
    tokenizer = Tokenizer.bytes()
    masked = Model.fresh({"name": "masked"}, tokenizer, preset("toy", tokenizer.vocab_size), True)
    with pytest.raises(UserError, match="not for family"):
        convert_family(masked, {"name": "embedding"})


# ---- objectives


def batch(width: int = 0, paired: bool = True) -> Batch:
    rows = [([70, 71, 4], [72, 73, 74, 75, 76, 1]), ([72, 4], [80, 1]), ([73, 74, 4], [81, 82, 83, 84, 1])]
    made = tiny.pairs(rows, width)
    return made if paired else replace(made, prompt=None)


@each_family
@pytest.mark.parametrize("weight", ["uniform", "bound"])
@pytest.mark.parametrize("paired", [True, False])
def test_losses_are_finite_have_gradients_and_ignore_padding(family: str, weight: str, paired: bool) -> None:
    made = model(family, paired)
    made.network.float().requires_grad_(True)
    objective = replace(made.family.objective(), weight=weight, self_condition=0.5)
    for seed in range(4):
        found = []
        for width in (0, 14):
            nets = {"main": made.network}
            prepared, _ = likelihood.prepare_batch(objective, batch(width, paired), made.spec, generator(seed), nets)
            found.append(objective.loss(made.network(prepared.request), prepared))
        torch.testing.assert_close(found[0].loss, found[1].loss, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(found[0].nats, found[1].nats, rtol=1e-4, atol=1e-3)
        assert found[0].tokens == 13 and bool(found[0].loss.isfinite()) and found[0].is_bound == (weight == "bound")
        found[0].loss.backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in made.network.read.parameters())


@each_family
def test_a_batch_without_targets_has_loss_zero(family: str) -> None:
    made = model(family, paired=False)
    empty = batch(paired=False)
    empty.target = torch.zeros_like(empty.target)
    found = likelihood.bound(made.network.float(), [empty], made.family.objective(), made.spec)
    assert found.nats == 0 and found.tokens == 0


def test_vectors_of_a_row_do_not_depend_on_other_rows() -> None:
    made = model("latent")
    together = made.network(vectors.encoding(batch(), made.spec))
    parts = []
    for row in range(3):
        one = Batch(*(None if part is None else part[row : row + 1] for part in vars(batch()).values()))
        parts.append(made.network(vectors.encoding(one, made.spec)))
    assert [len(part) for part in parts] == [2, 1, 2]
    torch.testing.assert_close(together, torch.cat(parts))
    torch.testing.assert_close(together.mean(-1), torch.zeros(5, dtype=torch.float64), rtol=0, atol=1e-9)


def test_the_autoencoder_learns_to_reconstruct_its_input() -> None:
    """After a few updates on one batch, every token is reconstructed from vectors without noise."""
    made = model("latent", width=32)
    made.network.float().requires_grad_(True)
    optimizer, noise = torch.optim.Adam(made.network.autoencoder.parameters(), 3e-3), generator()
    for _ in range(120):
        objective = Autoencoder()
        prepared, _ = likelihood.prepare_batch(objective, batch(), made.spec, noise, {"main": made.network})
        objective.loss(made.network(prepared.request), prepared).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    clean = objective.prepare(batch(), made.spec, noise)
    clean = replace(clean, log_snr=torch.full_like(clean.log_snr, 20.0))
    request = vectors.add_noise(clean, made.network(vectors.encoding(batch(), made.spec))).request
    assert torch.equal(made.network(request).argmax(-1), clean.target)


def test_each_phase_trains_one_part(tmp_path: Path) -> None:
    """The first of two phases trains only the autoencoder, the second one all other weights; a resumed run gives the
    same result."""
    from redraft.train.loop import train
    from redraft.train.recipe import Recipe

    toy = toy_folder() / "latent.toml"
    small = [
        "tokenizer.kind=bytes",
        "data.length=128",
        "train.tokens=6000",
        "train.batch_tokens=512",
        "train.dtype=float32",  # "auto" is measured, and may differ in the second run
        "train.threads=1",
    ]
    small += ["train.validate_every=1500", "train.keep_best=true", "train.validation_rows=4"]
    small += ["train.save_every_tokens=1000", "train.ema=0"]
    seen: dict[int, dict[str, Tensor]] = {}
    best: list[tuple[float, bool]] = []  # results of validation
    stages: list[tuple[float, str]] = []

    class Stop(Exception):
        pass

    def train_to(out: Path, stop: int = 0) -> None:
        def watch(event: Any) -> None:
            if event.kind == "checkpoint":
                from safetensors.torch import load_file

                seen[event.step] = load_file(Path(event.values["path"]) / "state.safetensors")
            if event.kind == "phase":
                stages.append((event.tokens / 6000, event.values["objective"]))
            if event.kind == "validation":
                best.append((event.tokens / 6000, event.values["best"]))
            if event.kind == "update" and stop and event.step >= stop:
                raise Stop

        train(Recipe.load(toy, [*small, "train.log_every=1"]), out, device="cpu", on_event=watch)

    train_to(tmp_path / "whole")
    assert best[0][0] < 0.4 and not any(
        kept for share, kept in best if share < 0.4
    )  # a half-trained model can't be the best one
    assert any(kept for _, kept in best)
    assert [name for _, name in stages] == ["autoencoder", "latent"] and stages[1][0] >= 0.4
    steps = sorted(seen)
    middle = max(step for step in steps if step <= 0.4 * steps[-1])
    early, later, last = (seen[step] for step in (steps[0], middle, steps[-1]))
    for name in (name for name in last if name.startswith("model.")):
        if name.startswith("model.autoencoder."):
            assert torch.equal(seen[steps[-2]][name], last[name])
        else:
            assert torch.equal(early[name], later[name])
    assert any(not torch.equal(seen[steps[-2]][n], last[n]) for n in last if n.startswith("model.blocks."))
    assert any(not torch.equal(early[n], later[n]) for n in early if n.startswith("model.autoencoder."))
    with pytest.raises(Stop):
        train_to(tmp_path / "again", stop=steps[-1] // 2)
    train_to(tmp_path / "again")
    whole, again = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "again"))
    assert whole == again
