"""Generation and scoring on the pretend device: the same texts and likelihoods as on the host, few waits."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import pytest
import torch

import redraft
from redraft.errors import UserError
from redraft.registry import names
from tests import pretend_device
from tests.device.counting import METHODS, fresh, per_pass
from tests.device.flows.conftest import FULL, MODELS, Models, texts

SAMPLERS, CACHES = list(names("samplers")), list(names("caches"))


# ---- the same texts

# By default every sampler writes with one model that it suits: the first of these that it names.
SUITED = {
    "autoregressive": "autoregressive-pairs",
    "draft_verify": "hybrid-text",
    "causal_blocks": "hybrid-text",
    "self_speculation": "hybrid-text",
    "posterior": "uniform-pairs",
    "analytic": "sedd-pairs",
    "predictor_corrector": "uniform-text",
    "psi": "uniform-text",
    "renoising": "hybrid-uniform-text",
    "daedal": "masked-text",
    "rho_eos": "masked-text",
    "edit_flow": "edit-pairs",
    "ddim": "latent-pairs",
    "dpm_solver": "embedding-pairs",
    "thought": "thought-text",
}
WRITERS = [(m, s) for m in MODELS for s in (None, *SAMPLERS)] if FULL else [
    *((SUITED.get(s, "masked-pairs"), s) for s in SAMPLERS),
    *((f"{family}-pairs", None) for family in ("block", "expand", "hybrid", "d3pm")),
    ("cross-masked-pairs", None),
]  # fmt: skip


@pytest.mark.parametrize(("model", "sampler"), WRITERS)
def test_a_sampler_writes_the_same(models: Models, model: str, sampler: str | None) -> None:
    warm = {"temperature": 0.8, "top_k": 20, "top_p": 0.9}
    for drawn in ({}, warm) if FULL else (warm,):
        found = models.same(model, lambda m, drawn=drawn: texts(m, sampler=sampler, **drawn))  # type: ignore[misc]
        assert FULL or not isinstance(found, str), found  # what is refused would compare nothing


READERS = [(m, c) for m in MODELS for c in ("none", *CACHES)] if FULL else [
    *(("masked-pairs", cache) for cache in ("none", *CACHES)),
    ("autoregressive-pairs", "exact"),
    ("block-text", "exact"),
    ("cross-masked-pairs", "dual"),
]  # fmt: skip


@pytest.mark.parametrize(("model", "cache"), READERS)
def test_a_cache_writes_the_same(models: Models, model: str, cache: str) -> None:
    models.same(model, lambda m: texts(m, cache=cache))
    if "masked" in model or "hybrid" in model:
        blocks = {"block": 4 if FULL else 2, "steps": 12 if FULL else 6}
        models.same(model, lambda m: texts(m, cache=cache, sampler="confidence", options=blocks))


SETTINGS: dict[str, dict[str, Any]] = {
    "guided": {"guidance": "classifier_free", "guide": {"scale": 2.0}},
    "candidates": {"candidates": 3},
    "searched": {"length": "search"},
    "headed": {"length": "head"},
    "endless": {"ignore_eos": True},
    "beams": {"sampler": "autoregressive", "options": {"beams": 3}},
    "growing": {"start": 3},
    "regex": {"constraint": {"regex": "[a-f]{3,8}"}},
    "schema": {"constraint": {"json_schema": '{"enum": ["ab", "cde"]}'}},
    "keywords": {"constraint": {"keywords": "ab"}},
    "length": {"constraint": {"length": "3-6"}},
    "template": {"constraint": {"template": "x[[3]]y"}},
    "regex-drawn": {"constraint": {"regex": "[a-f]{3,8}"}, "temperature": 1.0},
    "margin": {"sampler": "confidence", "options": {"order": "margin"}},
    "entropy": {"sampler": "confidence", "options": {"order": "entropy"}},
    "position-drawn": {"sampler": "confidence", "options": {"position_temperature": 0.5}},
}
OWN = {"beams": "autoregressive-pairs", "growing": "expand-pairs"}
CHOSEN = [(m, s) for m in MODELS if m.endswith("pairs") for s in SETTINGS] if FULL else [
    (OWN.get(setting, "masked-pairs"), setting) for setting in SETTINGS
]  # fmt: skip


@pytest.mark.parametrize(("model", "setting"), CHOSEN)
def test_a_setting_writes_the_same(models: Models, model: str, setting: str) -> None:
    models.same(model, lambda m: texts(m, **SETTINGS[setting]))


@pytest.mark.parametrize("order", ["exact", "first"] if FULL else ["first"])
def test_a_classifier_guides(models: Models, tmp_path: Path, order: str) -> None:
    data = tmp_path / "labels.jsonl"
    rows = [{"text": t, "label": label} for t, label in (("aaa ab", "a"), ("bbb ba", "b")) for _ in range(4)]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    guide = {"data": str(data), "value": "a", "order": order}
    models.same("masked-pairs", lambda m: texts(m, guidance="classifier", guide=guide))


@pytest.mark.parametrize("model", [m for m in MODELS if m.endswith("pairs")] if FULL else ["masked-pairs"])
def test_holes_are_filled_the_same(models: Models, model: str) -> None:
    models.same(model, lambda m: m.infill("a[[2]]b[[1-3]]c", prompt="x", seed=1).text)
    models.same(model, lambda m: m.infill("a[[?]]", prompt="x", seed=1, constraint={"regex": "[a-f]*"}).text)
    models.same(model, lambda m: m.edit("abc def", "def", prompt="x", seed=1).text)


SCORED = MODELS if FULL else ["masked-pairs", "autoregressive-text", "latent-pairs"]


@pytest.mark.parametrize("model", SCORED)
def test_likelihoods_are_the_same(models: Models, model: str) -> None:
    def rounded(bound: Any) -> tuple[str, str]:
        return f"{bound.nats:.4g}", f"{bound.stderr:.3g}"

    models.same(model, lambda m: rounded(m.score("ab", "cd", samples=16)))
    models.same(model, lambda m: rounded(m.rolling("abcdef" * 20, samples=2)))
    if FULL:
        models.same(model, lambda m: [one.option for one in m.rank("ab", ["cd", "ef"], samples=16)])
    for order in ("margin", "random") if FULL else ("margin",):
        by = functools.partial(_scored_by, order=order)
        models.same(model, lambda m, by=by: rounded(by(m)))  # type: ignore[misc]


def _scored_by(model: Any, order: str) -> Any:
    return model.score("ab", "cd", samples=4, sampler="confidence", options={"order": order})


DRAFTERS = ["masked", "block", "uniform", "sedd", "expand", "embedding", "self-conditioned"] if FULL else ["masked"]


@pytest.mark.parametrize("paired", [True, False] if FULL else [True])
@pytest.mark.parametrize("drafter", DRAFTERS)
def test_one_model_drafts_for_another(models: Models, drafter: str, paired: bool) -> None:
    found = []
    for where in ("cuda", "cpu"):
        model = redraft.load(models.folder(f"autoregressive-{'pairs' if paired else 'text'}"), where, "float32")
        fields = {"self_condition": 0.5} if drafter == "self-conditioned" else {}
        other = fresh("masked" if fields else drafter, paired, **fields)
        other.network.to(where)
        try:
            model.draft_with(other)
            found.append([texts(model, sampler="draft_verify", temperature=t) for t in (0.0, 1.0)])
        except UserError as error:
            found.append(str(error))  # type: ignore[arg-type]
    assert found[0] == found[1]


@pytest.mark.parametrize("kind", ["pairs", "text"] if FULL else ["pairs"])
def test_a_drafter_reads_its_target(models: Models, kind: str) -> None:
    for temperature in (0.0, 1.0):
        models.same(f"drafter-{kind}", functools.partial(texts, temperature=temperature))


def test_logits_and_streams(models: Models) -> None:
    device, host = models.both("masked-text")
    ids = torch.tensor([[10, 11, 12]])
    assert torch.allclose(device.logits(ids).cpu(), host.logits(ids), atol=1e-4)
    assert len(list(device.stream("ab", max_new_tokens=4))) == len(list(host.stream("ab", max_new_tokens=4)))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"] if FULL else ["auto"])
@pytest.mark.parametrize("model", MODELS if FULL else ["masked-pairs", "autoregressive-text", "embedding-pairs"])
def test_half_precision_writes(models: Models, model: str, dtype: Any) -> None:
    loaded = redraft.load(models.folder(model), "cuda", dtype)
    assert loaded.network.dtype == getattr(torch, "bfloat16" if dtype == "auto" else dtype)
    assert len(texts(loaded)) == len(texts(loaded, temperature=1.0)) == 2


# ---- waits


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("method", METHODS)
def test_a_pass_waits_once(method: str, temperature: float, log: pretend_device.Log) -> None:
    """The tokens and confidences of a pass have to reach the host: once, together."""
    for batch in (1, 3):
        assert per_pass(log, method, batch, temperature, tokens=6, positions=64) == 1.0, log.report()


def test_no_distribution_goes_to_the_host(models: Models, log: pretend_device.Log) -> None:
    """[N, V] numbers stay where they are: at 128,000 ids and 650 positions they are 333 MB a pass."""
    device = models.both("masked-text")[0]
    vocabulary = device.spec.tokens.vocab_size
    guilty = {}
    for sampler in SAMPLERS if FULL else ("confidence", "klass", "credit", "position_calibrated", "entropy_bound"):
        log.clear()
        try:
            texts(device, sampler=sampler, max_new_tokens=16, length="fixed")
        except UserError:
            continue
        big = [e for e in log.of("copy") if e.bytes >= 16 * vocabulary * 4]
        if big:
            guilty[sampler] = sorted({(e.site, e.what) for e in big})
    assert not guilty


def test_masks_are_made_on_the_device(models: Models, log: pretend_device.Log) -> None:
    """What goes to the device grows with the positions of ragged rows, not with their square."""
    device = models.both("masked-text")[0]
    sent = []
    for width in (20, 80):
        log.clear()
        device.generate(["a" * width, "b"], max_new_tokens=4, steps=1, length="fixed", cache="none", ignore_eos=True)
        sent.append(sum(e.bytes for e in log.of("copy") if e.what.startswith("to device")))
    assert sent[1] < 4 * sent[0]
