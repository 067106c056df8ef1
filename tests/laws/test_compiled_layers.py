"""Laws of compiled layers: the numbers of a position, bit by bit, and the package without a compiler."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from redraft.caches.exact import Exact
from redraft.models.cpu import stack
from redraft.models.cpu.layers import TorchStack
from redraft.models.cpu.native import Library, Search, build, library, load
from redraft.models.cpu.native.stack import NativeStack
from redraft.models.cpu.transformer import CpuTransformer
from redraft.models.transformer import Transformer
from redraft.presets import preset
from redraft.settings import Weights
from redraft.types import AttentionPattern, CacheHint, Drawing, Request
from tests.tiny import cached

ROWS, LENGTH = 5, 53  # neither is a multiple of anything that the code is cut into
WEIGHTS: tuple[Weights, ...] = ("float32", "int8")


@pytest.fixture(params=build.FLAGS)
def compiled(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Library:
    """The library of each set of instructions that this processor has."""
    widest = library()
    if widest.found is None:
        pytest.skip(f"Layers were not compiled: {widest.reason}.")
    names = [*build.FLAGS]
    if names.index(request.param) < names.index(widest.found.path.stem.removeprefix("layers-")):
        pytest.skip(f"This processor has no {request.param}.")
    found = load(request.param)
    assert found.found is not None, found.reason
    monkeypatch.setattr(stack, "library", lambda: found)
    return found.found


@pytest.fixture
def threads() -> Iterator[None]:
    """Restore the number of threads."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def network(**changes: object) -> Transformer:
    torch.manual_seed(0)
    shape = {"dim": 96, "heads": 6, "kv_heads": 3, "head_dim": 16, "qk_norm": True, "shift": 1, **changes}
    made = Transformer(preset("toy", 83, **shape)).requires_grad_(False).eval()  # type: ignore[arg-type]
    for parameter in made.parameters():
        parameter.mul_(3) if parameter.ndim == 2 else parameter.add_(torch.randn_like(parameter) * 0.3)
    return made


def request_for(rows: slice = slice(None), begin: int = 0, end: int = LENGTH, kind: str = "causal") -> Request:
    """Positions ``begin`` .. ``end`` of rows of various lengths, all of them targets."""
    tokens = torch.randint(5, 83, (ROWS, LENGTH), generator=torch.Generator().manual_seed(1))
    lengths = torch.tensor([LENGTH, 17, 50, 1, 33])[:, None]
    pos = torch.arange(LENGTH).expand(ROWS, -1)
    pos = torch.where(pos < lengths, pos, -1)[rows, begin:end]
    slots = torch.arange(ROWS)[rows]
    return Request(
        tokens=tokens[rows, begin:end],
        positions=pos,
        targets=torch.where(pos >= 0, pos + 1, -1),
        attention=AttentionPattern(kind),  # type: ignore[arg-type]
        drawing=Drawing(slots),
        cache=CacheHint(kv_slot=slots, visible_below=torch.full_like(slots, begin)),
    )


@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("kind", ["causal", "full"])
def test_a_row_is_the_same_in_every_batch(compiled: Library, weights: Weights, kind: str) -> None:
    form = CpuTransformer(network(), weights)
    assert isinstance(form.stack, NativeStack)
    whole = request_for(kind=kind)
    together = form(whole).split((whole.targets >= 0).sum(1).tolist())
    for row in range(ROWS):
        alone = request_for(slice(row, row + 1), end=len(together[row]), kind=kind)
        assert torch.equal(form(alone), together[row])


@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("shape", [{}, {"window": 9, "distant": (1,)}], ids=["plain", "windowed"])
def test_the_exact_cache_changes_no_bit(compiled: Library, weights: Weights, shape: dict[str, object]) -> None:
    """One position at a time, several, and all of them: prompts, plain decoding, and the verification of drafts."""
    form = CpuTransformer(network(**shape), weights)
    whole = form(request_for(slice(0, 1)))
    for widths in ([1] * LENGTH, [20, 1, 1, 4, 3, 13, 11]):
        store, end = form.store(1, LENGTH), 0
        for width in widths:
            begin, end = end, end + width
            request = request_for(slice(0, 1), begin, end)
            assert torch.equal(cached(form, request, store), whole[begin:end])


def test_a_batch_in_the_cache_equals_its_rows(compiled: Library) -> None:
    form = CpuTransformer(network())
    whole = form(request_for())
    store = form.store(ROWS, LENGTH)
    narrow = Exact().narrow(request_for(), store.tokens, 1)
    assert torch.equal(cached(form, narrow, store), whole)


@pytest.mark.parametrize("weights", WEIGHTS)
def test_the_number_of_threads_changes_no_bit(
    compiled: Library, threads: None, weights: Weights, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("redraft.models.cpu.native.stack._SHARE", 1)  # this network is too small for several threads
    form, request = CpuTransformer(network(), weights), request_for()
    torch.set_num_threads(1)
    expected = form(request)
    for count in (2, 3, 5):
        torch.set_num_threads(count)
        assert torch.equal(form(request), expected)


def test_int8_weights_are_the_rounded_matrices(compiled: Library) -> None:
    """The integers and scales are those of the plain form, which multiplies with W rounded, for several positions."""
    net, request = network(), request_for(slice(0, 1))
    form, plain = CpuTransformer(net, "int8"), CpuTransformer(net, "int8", compiled=False)
    torch.testing.assert_close(form(request), plain(request), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("shape", [{"dim": 100, "head_dim": 16}, {"mlp_dim": 100}, {"head_dim": 10}])
def test_other_shapes_run_in_torch(shape: dict[str, object]) -> None:
    assert isinstance(CpuTransformer(network(**shape)).stack, TorchStack)


def test_without_a_compiler_there_is_a_reason_and_torch(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(build, "target", lambda name: tmp_path / f"{name}.so")
    monkeypatch.setenv("CXX", str(tmp_path / "no-compiler"))
    assert "no-compiler" in build.build() or "no compiled code for" in build.build()
    missing = load("avx2")
    assert missing.found is None and "g++" in missing.reason
    (tmp_path / "avx2.so").write_bytes(b"no library")
    assert "can't be loaded" in load("avx2").reason
    monkeypatch.setattr(stack, "library", lambda: Search(None, "a test"))
    assert isinstance(CpuTransformer(network()).stack, TorchStack)


def test_a_library_from_another_source_is_not_used(compiled: Library, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "fingerprint", lambda: "another")
    assert "another version of its source" in load(compiled.path.stem.removeprefix("layers-")).reason
