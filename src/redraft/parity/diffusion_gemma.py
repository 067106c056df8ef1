"""Parity of DiffusionGemma (transformers), with the random numbers of its generations."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from redraft.canvas import make_canvas
from redraft.generation.loop import Loop, Method
from redraft.model import Model
from redraft.models.parts.self_conditioning import ExpectedEmbedding
from redraft.models.parts.store import KeyValueStore, KeyValueView
from redraft.parity.reference import Check, Reference, Suite
from redraft.registry import find
from redraft.samplers.renoising import Renoising, RenoisingState
from redraft.types import AttentionPattern, Canvas, DraftQuery, Extra, Forward, Output, Request, Spec, Step

_CAUSAL = AttentionPattern("causal")


def checks(reference: Reference) -> Iterator[Check]:
    """Logits of blocks, hidden states of both readings, stored keys and values, and generation."""
    model, values = reference.load(), reference.tensors("logits")
    ids, block = values["input_ids"], values["canvas"]
    yield from _blocks(reference, model, values)
    found, hidden = _layers(model, ids, block), values["decoder_hidden_states"]
    yield reference.close("hidden states of a block", found, hidden)
    yield from _stored(reference, model, values)
    rows = []
    for at, begin in enumerate(values["padded_attention_mask"].argmax(1).tolist()):  # positions count the padding
        rows.append(_logits(model, values["padded_input_ids"][at : at + 1, begin:], block[at : at + 1], begin))
    yield reference.close("logits, padded rows", torch.cat(rows), values["padded_logits"])
    for case in reference.cases():
        yield from _case(reference, model, case, values)


def _request(ids: Tensor, block: Tensor, start: int = 0, *extra: Extra) -> Forward:
    """A block [B, W] after ids [B, L], whose positions begin at ``start``."""
    tokens, begin = torch.cat([ids, block], 1), start + ids.shape[1]
    pos = torch.arange(start, start + tokens.shape[1]).expand_as(tokens)
    draft = DraftQuery(0, torch.full((len(ids),), begin))
    return Forward(tokens, pos, pos[:, ids.shape[1] :], _CAUSAL, extra=(draft, *extra))


def _logits(model: Model, ids: Tensor, block: Tensor, start: int = 0, *extra: Extra) -> Tensor:
    with torch.inference_mode():
        return model.network(_request(ids, block, start, *extra)).view(*block.shape, -1)


def _blocks(reference: Reference, model: Model, values: Mapping[str, Tensor]) -> Iterator[Check]:
    """Logits of a block without and with previous predictions, and with those of one row."""
    ids, block = values["input_ids"], values["canvas"]
    yield reference.close("logits, first pass", _logits(model, ids, block), values["logits_no_self_conditioning"])
    log_p = values["self_conditioning_logits"].log_softmax(-1)
    with torch.inference_mode():
        mean = model.network.expected(log_p.flatten(0, 1)).view(*block.shape, -1)
    vectors = torch.cat([mean.new_zeros(*ids.shape, mean.shape[2]), mean], 1)
    found = _logits(model, ids, block, 0, ExpectedEmbedding(vectors))
    yield reference.close("logits, self-conditioned", found, values["logits_self_conditioning"])
    first = vectors * torch.tensor([1.0, 0.0])[:, None, None]
    found = _logits(model, ids, block, 0, ExpectedEmbedding(first))
    yield reference.close("logits, one row self-conditioned", found, values["logits_self_conditioning_row0_only"])


def _layers(model: Model, ids: Tensor, block: Tensor) -> Tensor:
    """The input of every layer and the output of the last norm at a block, [layers + 1, B, W, D]."""
    network: Any = model.network
    seen: list[Tensor] = []
    begin = ids.shape[1]
    hooks = [one.register_forward_pre_hook(lambda _, given: seen.append(given[0][:, begin:])) for one in network.blocks]
    hooks.append(network.norm.register_forward_hook(lambda _, __, made: seen.append(made.view(*block.shape, -1))))
    _logits(model, ids, block)
    for hook in hooks:
        hook.remove()
    return torch.stack(seen)


def _stored(reference: Reference, model: Model, values: Mapping[str, Tensor]) -> Iterator[Check]:
    """The causal reading, what it leaves in the cache, and a second block after the first as text."""
    ids, block, second = values["input_ids"], values["canvas"], values["canvas2"]
    begin, width = ids.shape[1], block.shape[1]
    store = model.network.store(len(ids), begin + 2 * width)
    hidden = _read(model, store, ids, 0)
    yield reference.close("hidden states of text", hidden, values["encoder_last_hidden_state"])
    keys = values["encoder_keys_layer0"]
    near, far = store.pairs[0], store.pairs[-1]
    yield reference.close("keys, window", near[0, :, :, begin - keys.shape[2] : begin], keys)
    yield reference.close("keys, all text", far[0, :, :, :begin], values["encoder_keys_layer_full"])
    yield reference.close("values, all text", far[1, :, :, :begin], values["encoder_values_layer_full"])
    hidden = _read(model, store, block, begin)
    yield reference.close("hidden states of a block as text", hidden, values["second_canvas_encoder_hidden"])
    request = _request(second[:, :0], second, begin + width)
    with torch.inference_mode():
        found = model.network(request, _view(store, begin + width)).view(*second.shape, -1)
    yield reference.close("logits, second block with cached text", found, values["second_canvas_logits"])


def _view(store: KeyValueStore, below: int) -> KeyValueView:
    rows = len(store.tokens)
    return KeyValueView(store, torch.arange(rows), torch.full((rows,), below))


def _read(model: Model, store: KeyValueStore, ids: Tensor, begin: int) -> Tensor:
    """The last hidden states [B, L, D] of text that is read causally after ``begin`` stored positions."""
    pos = torch.arange(begin, begin + ids.shape[1]).expand_as(ids)
    with torch.inference_mode():
        found: Tensor = model.network.states(Forward(ids, pos, pos + 1, _CAUSAL), _view(store, begin))
    return found.view(*ids.shape, -1)


@dataclass(frozen=True)
class Replayed(Renoising):
    """``Renoising`` with the draws of a reference; it records every pass.

    Fields:
        canvases: for each block, the random canvases of all rows: the first one, and one after each pass.
        drawn: for each block, the ids drawn in each pass.
    """

    canvases: Any = ()
    drawn: Any = ()
    seen: dict[int, list[list[int]]] = field(default_factory=dict)  # by row: canvas, accepted, likeliest of each pass
    at: dict[str, Any] = field(default_factory=dict)

    def plan(self, canvas: Canvas, state: RenoisingState, spec: Spec) -> list[Request]:
        """The request, with the recorded canvas at the first pass over a block."""
        requests = super().plan(canvas, state, spec)
        _, begin, passes = self._current(canvas, state, spec)
        for request in requests:
            for at, row in enumerate(request.rows.tolist()):
                if passes[row] == 0:
                    first = self.canvases[self._block(canvas, begin, row)][0][row]
                    request.tokens[at, begin[row] : begin[row] + self.block] = torch.tensor(first)
        return requests

    def apply(
        self, canvas: Canvas, state: RenoisingState, spec: Spec, requests: list[Request], outputs: list[Output]
    ) -> tuple[RenoisingState, Step]:
        """As ``Renoising``; the pass is recorded."""
        request, rows = requests[0], requests[0].rows.tolist()
        _, begin, passes = self._current(canvas, state, spec)
        self.at["pass"] = [(row, self._block(canvas, begin, row), int(passes[row])) for row in rows]
        likeliest = outputs[0].log_p.argmax(-1).view(len(rows), -1).tolist()
        found = super().apply(canvas, state, spec, requests, outputs)
        for at, row in enumerate(rows):
            given = request.tokens[at, begin[row] : begin[row] + self.block].tolist()
            self.seen.setdefault(row, []).append([*given, *self.at["accepted"][at], *likeliest[at]])
        return found

    def accepted(self, entropy: Tensor) -> Tensor:
        """As ``Renoising`` [R, W]; recorded."""
        found = super().accepted(entropy)
        self.at["accepted"] = found.long().tolist()
        self.at.setdefault("entropies", []).append(entropy)
        return found

    def proposed(self, canvas: Canvas, request: Request, out: Output, spec: Spec) -> tuple[Tensor, Tensor]:
        """The recorded ids of this pass, [R, W] each."""
        drawn = [self.drawn[block][number][row] for row, block, number in self.at["pass"]]
        random = [self.canvases[block][number + 1][row] for row, block, number in self.at["pass"]]
        return torch.tensor(drawn), torch.tensor(random)

    def _block(self, canvas: Canvas, begin: Tensor, row: int) -> int:
        return (int(begin[row]) - int(canvas.prompt[row])) // self.block


@dataclass
class Reading:
    """A network that records, for each row, the text of every pass that reads some before a block."""

    network: Any
    read: dict[int, list[list[int]]] = field(default_factory=dict)
    calls: int = 0

    def __call__(self, request: Forward, store: Any = None) -> Tensor:
        self.calls += 1
        draft = request.find(DraftQuery)
        assert draft is not None and draft.draft_from is not None
        for at, slot in enumerate(store.slots.tolist()):
            text = (request.positions[at] >= 0) & (request.positions[at] < draft.draft_from[at])
            if bool(text.any()):
                self.read.setdefault(slot, []).append(request.tokens[at, text].tolist())
        found: Tensor = self.network(request, store)
        return found

    def store(self, slots: int, positions: int) -> Any:
        """The key-value cache of the network."""
        return self.network.store(slots, positions)

    def expected(self, log_p: Tensor) -> Tensor:
        """Mean embeddings [N, D] of log-probabilities [N, V]."""
        found: Tensor = self.network.expected(log_p)
        return found


def _sampler(case: Mapping[str, Any], block: int) -> Replayed:
    """The sampler of a case, with its recorded draws."""
    settings, blocks = case["settings"], list[list[Any]]()
    for one in case["steps"]:
        if one[0] == settings["max_denoising_steps"]:
            blocks.append([])
        blocks[-1].append(one)
    canvases, begin = [], 0
    for passes in blocks:
        canvases.append(list(case["random_canvases"][begin : begin + len(passes) + 1]))
        begin += len(passes) + 1
    if "decoder_input_ids" in settings:
        canvases[0][0] = settings["decoder_input_ids"]
    return Replayed(
        steps=settings["max_denoising_steps"],
        block=block,
        bound=settings["entropy_bound"],
        t_min=settings["t_min"],
        t_max=settings["t_max"],
        stable=settings["stability_threshold"],
        sure=settings["confidence_threshold"],
        canvases=canvases,
        drawn=[[one[2] for one in passes] for passes in blocks],
    )


def _case(reference: Reference, model: Model, case: Mapping[str, Any], values: Mapping[str, Tensor]) -> Iterator[Check]:
    assert model.spec.family.drafter is not None
    settings, name = case["settings"], case["name"]
    block = model.spec.family.drafter.network.attention.block
    sampler = _sampler(case, block)
    masks = case.get("attention_mask", [[1] * len(prompt) for prompt in case["prompt_ids"]])
    prompts = [ids[mask.index(1) :] for ids, mask in zip(case["prompt_ids"], masks, strict=True)]
    ends = settings["eos_token_id"]
    end = ends[0] if isinstance(ends, list) else ends
    spec, network = model.spec.with_tokens(eos_id=end, stop_ids=()), Reading(model.network)
    count = math.ceil(settings["max_new_tokens"] / block) * block
    rows = [[*prompt, *[None] * count] for prompt in prompts]
    lengths = [len(prompt) for prompt in prompts]
    canvas = make_canvas(rows, lengths, spec, seeds=list(range(len(rows))), temperature=1.0)
    asked: list[Tensor] = []
    loop = Loop({"main": network}, Method(sampler, find("caches", "exact")()), spec)
    loop.on_answer = lambda request, out: asked.append(out.log_p)
    for _ in loop.run(canvas):
        pass
    for row, expected in enumerate(case["output_ids"]):
        expected = expected[len(masks[row]) - len(prompts[row]) :]
        new = canvas.ids[row, lengths[row] : len(rows[row])].tolist()
        new = [*new[: new.index(end) + 1], *[0] * len(new)][: len(new)] if end in new else new
        found = [*prompts[row], *new][: len(expected)]
        yield reference.same(f"generate, {name}", [found], [expected])
        made, passes = int(canvas.nfe[row]), case["decoder_passes_per_row"][row]
        recorded = [[*one[1][row], *one[3][row], *one[4][row]] for one in case["steps"][:passes]]
        yield reference.same(f"ids given to and made by every pass of generate, {name}", sampler.seen[row], recorded)
        read, texts = network.read[row], [prompts[row], *(text[row] for text in case["encoder_inputs"][1:])]
        yield reference.same(f"ids that are read, {name}", [sum(read, [])], [sum(texts[: len(read)], [])])
        yield reference.same(f"forward passes of generate, {name}", [[made]], [[passes]])
        tokens = torch.tensor(sum(token != 0 for token in found[lengths[row] :]) / made)
        expected_rate = torch.tensor(case["tokens_per_forward"][row])
        yield reference.close("tokens of a pass", tokens, expected_rate, 1e-5, 1e-6)
    calls = [network.calls, max(map(len, network.read.values()))]
    yield reference.same(
        f"forward passes of generate, {name}, batch", [calls], [[case["nfe_decoder"], case["nfe_encoder"]]]
    )
    if name == "default_rules":
        yield from _second_pass(reference, sampler, asked[1], values)


def _second_pass(
    reference: Reference, sampler: Replayed, log_p: Tensor, values: Mapping[str, Tensor]
) -> Iterator[Check]:
    """What the second pass over a block predicts at its temperature."""
    heat = sampler.t_min + (sampler.t_max - sampler.t_min) * (sampler.steps - 1) / sampler.steps
    given = torch.tensor(sampler.seen[0][1][: sampler.block])[None]
    yield reference.same("canvas of the second pass", given.tolist(), values["step2_canvas"].tolist())
    found, recorded = (log_p / heat).log_softmax(-1), values["step2_processed_logits"][0].log_softmax(-1)
    yield reference.close("log-probabilities of the second pass", found, recorded)
    yield reference.close("entropies of the second pass", sampler.at["entropies"][1], values["step2_entropy"])


SUITE = Suite(checks)
