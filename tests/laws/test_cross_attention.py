"""Laws of the encoder-decoder: the prompt is encoded once, by itself, and every way of asking gives the same answer."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import redraft
from redraft import models, registry
from redraft.caches.exact import Exact
from redraft.data.tokenizer import Tokenizer
from redraft.errors import UserError
from redraft.metrics.flops import Flops
from redraft.model import Model
from redraft.models._lean_cross import LeanCross
from redraft.models.cross_attention import Config, CrossAttention
from redraft.models.parts.positions import rotate
from redraft.objectives.masked import Masked
from redraft.presets import names, shape
from redraft.train.throughput import Arithmetic
from redraft.types import Attend, Batch, Clean, Forward

SIGHTS = [Attend("full"), Attend("causal"), Attend("block", 3)]
PROMPTS = [4, 6]


def network(**changes: object) -> CrossAttention:
    torch.manual_seed(0)
    base = {"vocab_size": 40, "dim": 24, "encoder_layers": 2, "layers": 2, "heads": 2, "max_length": 32}
    made = CrossAttention(Config(**{**base, **changes})).double().eval().requires_grad_(False)  # type: ignore[arg-type]
    for parameter in made.parameters():
        parameter.add_(torch.randn_like(parameter) * 0.3)
    return made


def tokens(rows: int = 2, width: int = 12) -> torch.Tensor:
    return torch.randint(5, 40, (rows, width), generator=torch.Generator().manual_seed(0))


def ask(x: torch.Tensor, attend: Attend, prompts: list[int], lengths: list[int], shift: int = 0) -> Forward:
    columns, prompt = torch.arange(x.shape[1]), torch.tensor(prompts)
    pos = torch.where(columns < torch.tensor(lengths)[:, None], columns, -1)
    want = torch.where(pos >= prompt[:, None] - 1 + shift, pos, -1)
    return Forward(x=x, pos=pos, want=want, attend=attend, prompt=prompt, slot=torch.arange(len(x)))


def other(x: torch.Tensor, *at: int) -> torch.Tensor:
    """Another token at some columns."""
    changed = x.clone()
    for column in at:
        changed[:, column] = (x[:, column] + 3) % 35 + 5
    return changed


@pytest.mark.parametrize("attend", SIGHTS, ids=lambda a: a.kind)
def test_who_sees_whom(attend: Attend) -> None:
    """An answer sees the whole prompt and its own stages; the separator, where the decoder begins, no answer."""
    net, x, prompt = network(), tokens(1, 10), 4
    whole = ask(x, attend, [prompt], [10])
    base = net(whole)  # of positions 3 .. 9
    for column in range(10):
        moved = (net(replace(whole, x=other(x, column))) - base).abs().amax(1) > 1e-9
        stage = attend.stage(torch.arange(10)[None], torch.tensor([prompt]))[0]
        assert moved.tolist() == [bool(stage[column] <= stage[position]) for position in range(3, 10)]


@pytest.mark.parametrize("attend", SIGHTS, ids=lambda a: a.kind)
@pytest.mark.parametrize("more", [{}, {"kv_heads": 1, "qk_norm": True, "tied": False}], ids=["plain", "grouped"])
def test_a_ragged_batch_equals_its_rows(attend: Attend, more: dict[str, object]) -> None:
    net, x = network(**more), tokens(3)
    prompts, lengths = [4, 6, 1], [12, 9, 5]  # a prompt that is nothing but its separator, too
    together = net(ask(x, attend, prompts, lengths))
    alone = [
        net(ask(x[i : i + 1, :length], attend, [prompt], [length]))
        for i, (prompt, length) in enumerate(zip(prompts, lengths, strict=True))
    ]
    torch.testing.assert_close(together, torch.cat(alone), rtol=1e-9, atol=1e-9)


def test_it_is_the_encoder_decoder_of_the_paper() -> None:
    """One layer each, one row, by hand: encode, then self-attention, cross-attention, MLP (Vaswani et al. 2017)."""
    net = network(encoder_layers=1, layers=1, heads=1, max_length=16)
    x, prompt, length = tokens(1, 8), 4, 8

    def heads(y: torch.Tensor, places: range) -> torch.Tensor:
        return rotate(y[None, :, None], net.rotary[list(places)][None])[0, :, 0]

    def attention(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        return (query @ key.T / 24**0.5).softmax(-1) @ value

    def itself(block: torch.nn.Module, y: torch.Tensor) -> torch.Tensor:
        query, key, value = block.attention.qkv(block.attention_norm(y)).chunk(3, -1)
        places = range(len(y))
        return y + block.attention.out(attention(heads(query, places), heads(key, places), value))

    encoder, decoder = net.encoder[0], net.blocks[0]
    source = net.embedding.weight[x[0, : prompt - 1]]
    source = itself(encoder, source)
    source = net.encoder_norm(source + encoder.mlp(encoder.mlp_norm(source)))
    answer = itself(decoder, net.embedding.weight[x[0, prompt - 1 :]])
    query = heads(decoder.cross.query(decoder.cross_norm(answer)), range(length - prompt + 1))
    key, value = decoder.cross.key_value(source).chunk(2, -1)
    answer = answer + decoder.cross.out(attention(query, heads(key, range(prompt - 1)), value))
    answer = answer + decoder.mlp(decoder.mlp_norm(answer))
    expected = F.linear(net.norm(answer), net.embedding.weight)
    # All positions of the decoder in one stage: the separator's request of its own aside, as a full one has it.
    whole = ask(x, Attend("full"), [prompt], [length])
    whole.mask = torch.ones(1, length, length, dtype=torch.bool)
    torch.testing.assert_close(net(whole), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("shift", [0, 1])
@pytest.mark.parametrize("attend", SIGHTS, ids=lambda a: a.kind)
def test_exact_reuse_equals_recomputing(attend: Attend, shift: int) -> None:
    """Rows that grow, change, and change seats; one of them loses its prompt's keys and is encoded anew."""
    net = network(shift=shift)
    store, policy = net.store(2, 16), Exact()
    x = tokens(2, 14)
    story = [([8, 9], [0, 1]), ([10, 10], [0, 1]), ([14, 13], [0, 1]), ([9, 12], [0, 1]), ([14, 14], [1, 0])]
    encoded = []
    for turn, (lengths, seats) in enumerate(story):
        whole = ask(x, attend, PROMPTS, lengths, shift)
        whole.want = torch.where(whole.want >= torch.tensor(PROMPTS)[:, None] + min(turn, 1), whole.want, -1)
        whole.slot = torch.tensor(seats)
        narrow = policy.narrow(whole, store.tokens[seats], shift)
        encoded.append(int(((narrow.pos >= 0) & (narrow.pos < whole.prompt[:, None] - 1)).sum()))  # type: ignore[index]
        torch.testing.assert_close(net(narrow, store), net(whole), rtol=1e-9, atol=1e-9)
        store.record(narrow)
        x = x.clone()
        x[:, 6 + turn] = 5 + turn
        if turn == 2:
            x[1, 2] = 39  # another prompt in the second row alone
    assert encoded == [8, 0, 0, 5, 8]


def test_a_store_holds_what_the_decoder_needs_and_no_more() -> None:
    """One pair of keys and values for each layer of the decoder, whatever the encoder's depth."""
    assert len(network(encoder_layers=5, layers=2).store(1, 8).pairs) == 2


@pytest.mark.parametrize("attend", SIGHTS, ids=lambda a: a.kind)
@pytest.mark.parametrize("shape", [{}, {"kv_heads": 1, "qk_norm": True, "tied": False}, {"shift": 1}], ids=str)
def test_the_lean_form_is_the_same_function(shape: dict[str, object], attend: Attend) -> None:
    net = network(**shape).float()
    lean, x, shift = LeanCross(net), tokens(), net.config.shift
    whole = ask(x, attend, PROMPTS, [12, 10], shift)
    torch.testing.assert_close(lean(whole), net(whole), rtol=1e-3, atol=1e-3)
    own, store, policy = lean.store(2, 16), net.store(2, 16), Exact()
    for end in (11, 12):
        again = ask(other(x, end - 1), attend, PROMPTS, [end, 10], shift)
        again.want = torch.where(again.want >= torch.tensor(PROMPTS)[:, None] + 1, again.want, -1)
        narrow = policy.narrow(again, own.tokens[[0, 1]], shift)
        mine, theirs = lean(narrow, own), net(narrow, store)
        torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-3)
        own.record(narrow)
        store.record(narrow)
    torch.testing.assert_close(theirs, net(again), rtol=1e-3, atol=1e-3)


def test_a_mask_of_ones_own_and_shadows() -> None:
    """A request that brings its mask (WINO's shadows) is answered as one whose stages say the same."""
    net, x = network(), tokens()
    plain = ask(x, Attend("block", 3), PROMPTS, [12, 10])
    stage, real = plain.stage(plain.pos), plain.pos >= 0
    mask = (stage[:, None] <= stage[:, :, None]) & real[:, None]
    shown = replace(plain, mask=mask | ~real[:, :, None], attend=Attend("full"), cell=plain.pos)
    torch.testing.assert_close(net(shown), net(plain), rtol=1e-9, atol=1e-9)


def test_a_clean_stream_is_the_text_written_so_far() -> None:
    """Block diffusion in training: noise of a block sees the clean blocks before it, as it does in sampling."""
    net, x, prompt = network(), tokens(1, 10), 4
    noisy = other(x, *range(prompt, 10))
    pos = torch.arange(10)[None]
    both = Forward(
        x=noisy,
        pos=pos,
        want=pos[:, 7:],
        attend=Attend("block", 3),
        prompt=torch.tensor([prompt]),
        clean=Clean(x[:, prompt:], pos[:, prompt:], Attend("block", 3)),
    )
    written = torch.cat([x[:, :7], noisy[:, 7:]], 1)
    alone = replace(both, x=written, clean=None)
    torch.testing.assert_close(net(both), net(alone), rtol=1e-9, atol=1e-9)


def test_time_is_told_to_the_decoder_alone() -> None:
    net, x = network(timed=True), tokens()
    early, late = (replace(ask(x, Attend("full"), PROMPTS, [12, 10]), t=torch.full((2,), t)) for t in (0.2, 0.9))
    assert not torch.allclose(net(early), net(late))
    with pytest.raises(ValueError, match="no t"):
        net(ask(x, Attend("full"), PROMPTS, [12, 10]))


def test_a_prediction_within_the_prompt_is_refused() -> None:
    whole = ask(tokens(), Attend("full"), PROMPTS, [12, 12])
    whole.want = whole.pos
    with pytest.raises(ValueError, match="prompt"):
        network()(whole)


@pytest.mark.parametrize("preset", [name for name in names() if name not in ("1b", "8b")])
def test_presets_have_the_weights_of_their_namesakes(preset: str) -> None:
    theirs, ours = (models.parameters(shape(preset, 8192, kind)) for kind in ("transformer", "cross_attention"))
    assert ours == pytest.approx(theirs, rel=0.01)


def test_networks_without_presets_are_refused_in_words() -> None:
    with pytest.raises(UserError, match=r"bert.*cross_attention"):
        shape("toy", 100, "bert")
    with pytest.raises(UserError, match="layer"):
        Config.matching(replace(shape("toy", 100), layers=1))


# But those that have a network of their own.
FAMILIES = [name for name in registry.names("families") if not hasattr(registry.find("families", name), "shape")]


def fresh(family: str, conditional: bool = True, **fields: object) -> Model:
    tokenizer = Tokenizer.bytes()
    made = Model.fresh(
        {"name": family, **fields}, tokenizer, shape("toy", tokenizer.vocab_size, "cross_attention"), conditional, 1
    )
    for parameter in made.network.parameters():
        if parameter.ndim == 2:
            parameter.data.mul_(4)
    return made


@pytest.mark.parametrize("family", FAMILIES)
def test_the_encoder_runs_once_for_a_text(family: str) -> None:
    """Counted by the loop: of the prompts' positions each runs once with a cache, and at every pass without."""
    model, prompts = fresh(family), ["ab", "hello there", ""]
    settings = {"max_new_tokens": 9, "temperature": 1.0, "seed": 3}
    found, counts = [], []
    for cache in ("exact", "none"):
        drafting = model.draft(prompts, model.settings(**settings, cache=cache))
        for _ in drafting:
            pass
        found.append([text.ids for text in drafting.results()])
        counts.append(drafting.loop.counter)
    prompted = sum(len(model.prompt_ids(prompt)) - 1 for prompt in prompts)
    assert found[0] == found[1]
    assert counts[0].encoded == prompted
    assert counts[1].encoded > prompted or counts[1].passes == 1


def test_candidates_and_beams_share_an_encoded_prompt() -> None:
    for family, more in (("masked", {"candidates": 4}), ("autoregressive", {"options": {"beams": 3}})):
        texts = [
            [text.ids for text in fresh(family).generate(["hello", "a"], max_new_tokens=8, cache=cache, **more)]
            for cache in ("exact", "none")
        ]
        assert texts[0] == texts[1]


def test_guidance_encodes_the_prompt_and_its_absence_once_each() -> None:
    model = fresh("masked")
    settings = {"max_new_tokens": 8, "steps": 8, "guidance": "classifier_free", "guide": {"scale": 2.0}}
    drafting = model.draft(["hello"], model.settings(**settings))
    for _ in drafting:
        pass
    assert drafting.loop.counter.encoded == 2 * (len(model.prompt_ids("hello")) - 1)
    plain = model.generate(["hello"], max_new_tokens=8, steps=8)[0]
    unguided = model.generate(["hello"], **{**settings, "guide": {"scale": 1.0}})[0]
    assert plain.ids == unguided.ids


def test_plain_text_and_open_prompts_are_refused_in_words() -> None:
    with pytest.raises(UserError, match="plain text"):
        fresh("masked", conditional=False)
    with pytest.raises(UserError, match="isolate"):
        fresh("masked", isolate_prompt=False)


def test_saved_and_loaded_it_writes_the_same(tmp_path: Path) -> None:
    model = fresh("masked")
    model.save(tmp_path / "m")
    again = redraft.load(tmp_path / "m", device="cpu")
    assert isinstance(again.network, CrossAttention)
    assert again.generate("hello", max_new_tokens=9)[0].ids == model.generate("hello", max_new_tokens=9)[0].ids


def test_an_answer_without_its_prompt_is_another() -> None:
    """Cross-attention is there: the same answer is less or more likely after another prompt."""
    model = fresh("autoregressive")
    assert model.score("hello", "there").nats != pytest.approx(model.score("wood", "there").nats, abs=1e-3)


@pytest.mark.parametrize("kv_heads", [0, 1])
def test_counted_operations_are_those_of_torch(kv_heads: int) -> None:
    """Of a text's first pass, which encodes, and of a later one, which does not."""
    net, x = network(kv_heads=kv_heads).float(), tokens(1, 10)
    store, prompt, policy = net.store(1, 16), 6, Exact()
    for encoded in (prompt - 1, 0):
        whole = ask(x, Attend("full"), [prompt], [10])
        whole.want = whole.want.masked_fill(whole.want < prompt, -1)
        narrow = policy.narrow(whole, store.tokens, 0)
        queries, seen, read = int((narrow.pos >= 0).sum()), 10, int(narrow.read.max())  # type: ignore[union-attr]
        with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH), torch.no_grad():
            net(narrow, store)
        store.record(narrow)
        assert queries + read == seen
        # The encoder's queries are taken to see all that runs, as in a transformer: here not the answer.
        counted = Flops(net.config).forward(queries, queries * seen, 4, 0, encoded, encoded * seen)
        counted -= 4 * 24 * 2 * encoded * (seen - encoded)
        assert counter.get_total_flops() == counted


def test_operations_of_training_are_those_of_torch() -> None:
    model = fresh("masked")
    ids = torch.randint(5, 200, (3, 12), generator=torch.Generator().manual_seed(0))
    target = torch.arange(12).expand(3, -1) >= 5
    batch = Batch(ids, target, torch.ones_like(target), torch.full((3,), 5), torch.full((3,), 7))
    prepared = Masked().prepare(batch, model.spec, torch.Generator().manual_seed(0))
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        model.network.train()(prepared.ask).sum().backward()
    found = Arithmetic.of(model.network).training(prepared)
    # A separator of its own stage does not look at the answer, but the product is made.
    hidden = 12 * model.network.config.layers * model.network.config.dim * 3 * 7
    assert counter.get_total_flops() == found + hidden
