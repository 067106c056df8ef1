"""Laws of the encoder-decoder: the prompt is encoded once and independently; all forms of a request are equivalent."""

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
from redraft.generation.prompts import prompt_ids
from redraft.model import Model
from redraft.models.cpu.cross_attention import CpuCrossAttention
from redraft.models.cross_attention import Config, CrossAttention
from redraft.models.parts.positions import rotate
from redraft.objectives.masked import Masked
from redraft.presets import names, shape
from redraft.types import AttentionPattern, Batch, CacheHint, CleanStream, Drawing, Forward, QueryMask, Request
from tests.tiny import VOCABULARY, cached

PATTERNS = [AttentionPattern("full"), AttentionPattern("causal"), AttentionPattern("block", 3)]
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


def make_request(
    x: torch.Tensor, attend: AttentionPattern, prompts: list[int], lengths: list[int], shift: int = 0
) -> Request:
    columns, prompt = torch.arange(x.shape[1]), torch.tensor(prompts)
    pos = torch.where(columns < torch.tensor(lengths)[:, None], columns, -1)
    targets = torch.where(pos >= prompt[:, None] - 1 + shift, pos, -1)
    return Request(
        tokens=x,
        positions=pos,
        targets=targets,
        attention=attend,
        prompt=prompt,
        drawing=Drawing(torch.arange(len(x))),
        cache=CacheHint(kv_slot=torch.arange(len(x))),
    )


def other(x: torch.Tensor, *at: int) -> torch.Tensor:
    """The same ids with other tokens at some columns."""
    changed = x.clone()
    for column in at:
        changed[:, column] = (x[:, column] + 3) % 35 + 5
    return changed


@pytest.mark.parametrize("attend", PATTERNS, ids=lambda a: a.kind)
def test_which_positions_attend_to_which(attend: AttentionPattern) -> None:
    """An answer attends to the whole prompt and to its own groups; the separator doesn't attend to the answer."""
    net, x, prompt = network(), tokens(1, 10), 4
    whole = make_request(x, attend, [prompt], [10])
    base = net(whole)  # logits of positions 3 .. 9
    for column in range(10):
        moved = (net(replace(whole, tokens=other(x, column))) - base).abs().amax(1) > 1e-9
        stage = attend.group(torch.arange(10)[None], torch.tensor([prompt]))[0]
        assert moved.tolist() == [bool(stage[column] <= stage[position]) for position in range(3, 10)]


@pytest.mark.parametrize("attend", PATTERNS, ids=lambda a: a.kind)
@pytest.mark.parametrize("more", [{}, {"kv_heads": 1, "qk_norm": True, "tied": False}], ids=["plain", "grouped"])
def test_a_ragged_batch_equals_its_rows(attend: AttentionPattern, more: dict[str, object]) -> None:
    net, x = network(**more), tokens(3)
    prompts, lengths = [4, 6, 1], [12, 9, 5]  # including a prompt that consists only of its separator
    together = net(make_request(x, attend, prompts, lengths))
    alone = [
        net(make_request(x[i : i + 1, :length], attend, [prompt], [length]))
        for i, (prompt, length) in enumerate(zip(prompts, lengths, strict=True))
    ]
    torch.testing.assert_close(together, torch.cat(alone), rtol=1e-9, atol=1e-9)


def test_it_equals_the_encoder_decoder_of_the_paper() -> None:
    """One layer each and one row, by hand: encoder, self-attention, cross-attention, MLP (Vaswani et al. 2017)."""
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
    # All positions of the decoder are one group, except the separator, as with full attention.
    whole = make_request(x, AttentionPattern("full"), [prompt], [length])
    whole = whole.with_extra(QueryMask(torch.ones(1, length, length, dtype=torch.bool)))
    torch.testing.assert_close(net(whole), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("shift", [0, 1])
@pytest.mark.parametrize("attend", PATTERNS, ids=lambda a: a.kind)
def test_exact_reuse_equals_recomputing(attend: AttentionPattern, shift: int) -> None:
    """Rows grow, change, and change slots; one of them loses the keys of its prompt and is encoded again."""
    net = network(shift=shift)
    store, policy = net.store(2, 16), Exact()
    x = tokens(2, 14)
    story = [([8, 9], [0, 1]), ([10, 10], [0, 1]), ([14, 13], [0, 1]), ([9, 12], [0, 1]), ([14, 14], [1, 0])]
    encoded = []
    for turn, (lengths, slots) in enumerate(story):
        whole = make_request(x, attend, PROMPTS, lengths, shift)
        whole.targets = torch.where(whole.targets >= torch.tensor(PROMPTS)[:, None] + min(turn, 1), whole.targets, -1)
        whole.cache.kv_slot = torch.tensor(slots)
        narrow = policy.narrow(whole, store.tokens[slots], shift)
        encoded.append(int(((narrow.positions >= 0) & (narrow.positions < whole.prompt[:, None] - 1)).sum()))  # type: ignore[index]
        torch.testing.assert_close(cached(net, narrow, store), net(whole), rtol=1e-9, atol=1e-9)
        store.record(narrow)
        x = x.clone()
        x[:, 6 + turn] = 5 + turn
        if turn == 2:
            x[1, 2] = 39  # another prompt, only in the second row
    assert encoded == [8, 0, 0, 5, 8]


def test_the_store_holds_only_keys_of_the_decoder() -> None:
    """One pair of keys and values per layer of the decoder, independent of the depth of the encoder."""
    assert len(network(encoder_layers=5, layers=2).store(1, 8).pairs) == 2


@pytest.mark.parametrize("attend", PATTERNS, ids=lambda a: a.kind)
@pytest.mark.parametrize("shape", [{}, {"kv_heads": 1, "qk_norm": True, "tied": False}, {"shift": 1}], ids=str)
def test_the_cpu_form_is_the_same_function(shape: dict[str, object], attend: AttentionPattern) -> None:
    net = network(**shape).float()
    cpu_form, x, shift = CpuCrossAttention(net), tokens(), net.config.shift
    whole = make_request(x, attend, PROMPTS, [12, 10], shift)
    torch.testing.assert_close(cpu_form(whole), net(whole), rtol=1e-3, atol=1e-3)
    own, store, policy = cpu_form.store(2, 16), net.store(2, 16), Exact()
    for end in (11, 12):
        again = make_request(other(x, end - 1), attend, PROMPTS, [end, 10], shift)
        again.targets = torch.where(again.targets >= torch.tensor(PROMPTS)[:, None] + 1, again.targets, -1)
        narrow = policy.narrow(again, own.tokens[[0, 1]], shift)
        mine, theirs = cached(cpu_form, narrow, own), cached(net, narrow, store)
        torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-3)
        own.record(narrow)
        store.record(narrow)
    torch.testing.assert_close(theirs, net(again), rtol=1e-3, atol=1e-3)


def test_a_query_mask_equals_the_attention_pattern_it_represents() -> None:
    """A request with a ``QueryMask`` (as in WINO) has the same logits as one with the equivalent pattern."""
    net, x = network(), tokens()
    plain = make_request(x, AttentionPattern("block", 3), PROMPTS, [12, 10])
    group, real = plain.group(plain.positions), plain.positions >= 0
    mask = (group[:, None] <= group[:, :, None]) & real[:, None]
    own = QueryMask(mask | ~real[:, :, None], plain.positions)
    shown = replace(plain, attention=AttentionPattern("full")).with_extra(own)
    torch.testing.assert_close(net(shown), net(plain), rtol=1e-9, atol=1e-9)


def test_a_clean_stream_equals_the_tokens_generated_so_far() -> None:
    """Block diffusion in training: a noisy block attends to the clean blocks before it, as in sampling."""
    net, x, prompt = network(), tokens(1, 10), 4
    noisy = other(x, *range(prompt, 10))
    pos = torch.arange(10)[None]
    both = Forward(
        tokens=noisy,
        positions=pos,
        targets=pos[:, 7:],
        attention=AttentionPattern("block", 3),
        prompt=torch.tensor([prompt]),
        extra=(CleanStream(x[:, prompt:], pos[:, prompt:], AttentionPattern("block", 3)),),
    )
    written = torch.cat([x[:, :7], noisy[:, 7:]], 1)
    alone = replace(both, tokens=written, extra=())
    torch.testing.assert_close(net(both), net(alone), rtol=1e-9, atol=1e-9)


def test_only_the_decoder_is_conditioned_on_time() -> None:
    net, x = network(timed=True), tokens()
    early, late = (
        replace(make_request(x, AttentionPattern("full"), PROMPTS, [12, 10]), time=torch.full((2,), t))
        for t in (0.2, 0.9)
    )
    assert not torch.allclose(net(early), net(late))
    with pytest.raises(ValueError, match="no t"):
        net(make_request(x, AttentionPattern("full"), PROMPTS, [12, 10]))


def test_a_target_within_the_prompt_is_rejected() -> None:
    whole = make_request(tokens(), AttentionPattern("full"), PROMPTS, [12, 12])
    whole.targets = whole.positions
    with pytest.raises(ValueError, match="prompt"):
        network()(whole)


@pytest.mark.parametrize("preset", names()[: names().index("1b")])
def test_presets_have_as_many_weights_as_those_of_the_transformer(preset: str) -> None:
    theirs, ours = (models.parameters(shape(preset, 8192, kind)) for kind in ("transformer", "cross_attention"))
    assert ours == pytest.approx(theirs, rel=0.01)


def test_networks_without_presets_are_user_errors() -> None:
    with pytest.raises(UserError, match=r"bert.*cross_attention"):
        shape("toy", 100, "bert")
    with pytest.raises(UserError, match="layer"):
        Config.matching(replace(shape("toy", 100), layers=1))


# without the families that have their own network
BASE = shape("toy", VOCABULARY.vocab_size)
FAMILIES = [
    name
    for name in registry.names("families")
    if not registry.find("families", name).needs_target
    and registry.find("families", name)().network_config(BASE) is BASE
]


def fresh(family: str, paired: bool = True, **fields: object) -> Model:
    tokenizer = Tokenizer.bytes()
    made = Model.fresh(
        {"name": family, **fields}, tokenizer, shape("toy", tokenizer.vocab_size, "cross_attention"), paired, 1
    )
    for parameter in made.network.parameters():
        if parameter.ndim == 2:
            parameter.data.mul_(4)
    return made


@pytest.mark.parametrize("family", FAMILIES)
def test_the_encoder_runs_once_per_sequence(family: str) -> None:
    """By the counts of the loop, each prompt position runs once with a cache, and in every pass without one."""
    model, prompts = fresh(family), ["ab", "hello there", ""]
    settings = {"max_new_tokens": 9, "temperature": 1.0, "seed": 3}
    found, counts = [], []
    for cache in ("exact", "none"):
        run = model.start(prompts, model.settings(**settings, cache=cache))
        for _ in run:
            pass
        found.append([text.ids for text in run.results()])
        counts.append(run.loop.counter)
    prompted = sum(len(prompt_ids(model, prompt)) - 1 for prompt in prompts)
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


def test_guidance_encodes_the_prompt_and_the_empty_prompt_once_each() -> None:
    model = fresh("masked")
    settings = {"max_new_tokens": 8, "steps": 8, "guidance": "classifier_free", "guide": {"scale": 2.0}}
    run = model.start(["hello"], model.settings(**settings))
    for _ in run:
        pass
    assert run.loop.counter.encoded == 2 * (len(prompt_ids(model, "hello")) - 1)
    plain = model.generate(["hello"], max_new_tokens=8, steps=8)[0]
    unguided = model.generate(["hello"], **{**settings, "guide": {"scale": 1.0}})[0]
    assert plain.ids == unguided.ids


def test_plain_text_and_prompts_that_are_not_isolated_are_user_errors() -> None:
    with pytest.raises(UserError, match="plain text"):
        fresh("masked", paired=False)
    with pytest.raises(UserError, match="isolate"):
        fresh("masked", prompt_encoder=False)


def test_a_saved_and_loaded_model_generates_the_same(tmp_path: Path) -> None:
    model = fresh("masked")
    model.save(tmp_path / "m")
    again = redraft.load(tmp_path / "m", device="cpu")
    assert isinstance(again.network, CrossAttention)
    assert again.generate("hello", max_new_tokens=9)[0].ids == model.generate("hello", max_new_tokens=9)[0].ids


def test_the_likelihood_of_an_answer_depends_on_the_prompt() -> None:
    """Cross-attention has an effect: the same answer has another likelihood after another prompt."""
    model = fresh("autoregressive")
    assert model.score("hello", "there").nats != pytest.approx(model.score("wood", "there").nats, abs=1e-3)


@pytest.mark.parametrize("kv_heads", [0, 1])
def test_counted_operations_equal_those_of_torch(kv_heads: int) -> None:
    """For the first pass of a sequence, which encodes the prompt, and for a later one, which doesn't."""
    net, x = network(kv_heads=kv_heads).float(), tokens(1, 10)
    store, prompt, policy = net.store(1, 16), 6, Exact()
    for encoded in (prompt - 1, 0):
        whole = make_request(x, AttentionPattern("full"), [prompt], [10])
        whole.targets = whole.targets.masked_fill(whole.targets < prompt, -1)
        narrow = policy.narrow(whole, store.tokens, 0)
        queries, seen, read = int((narrow.positions >= 0).sum()), 10, int(narrow.cache.visible_below.max())  # type: ignore[union-attr]
        with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH), torch.no_grad():
            cached(net, narrow, store)
        store.record(narrow)
        assert queries + read == seen
        # The count assumes that the encoder's queries attend to all positions that run; here not to the answer.
        counted = net.forward_cost().of_counts(queries, queries * seen, 4, 0, encoded, encoded * seen)
        counted -= 4 * 24 * 2 * encoded * (seen - encoded)
        assert counter.get_total_flops() == counted


def test_counted_operations_of_training_equal_those_of_torch() -> None:
    model = fresh("masked")
    ids = torch.randint(5, 200, (3, 12), generator=torch.Generator().manual_seed(0))
    target = torch.arange(12).expand(3, -1) >= 5
    batch = Batch(ids, target, torch.ones_like(target), torch.full((3,), 5), torch.full((3,), 7))
    prepared = Masked().prepare(batch, model.spec, torch.Generator().manual_seed(0))
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        model.network.train()(prepared.request).sum().backward()
    found = model.network.forward_cost().of_training(prepared)
    # A separator in its own group doesn't attend to the answer, but the product is computed.
    hidden = 12 * model.network.config.layers * model.network.config.dim * 3 * 7
    assert counter.get_total_flops() == found + hidden
