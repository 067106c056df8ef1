"""Parity of DiffuGPT and DiffuLLaMA (HKUNLP/DiffuLLaMA)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from redraft.model import Model
from redraft.models.parts.attention import Attention
from redraft.parity.outputs import Replayed, generate, masked_nll, model_logits
from redraft.parity.reference import Check, Reference, Suite
from redraft.types import Forward


def checks(reference: Reference) -> Iterator[Check]:
    """Logits, losses and sampling."""
    model, values = reference.load(), reference.tensors("logits")
    note = ""
    if reference.model == "diffugpt" and _qkv(model.network.blocks[0]).bias is None:
        _solve_biases(model, values["xt"], values["logits"])
        note = "the recorded checkpoint lacks c_attn.bias, which is solved from the recorded logits"
    output = model_logits(model, values["xt"])
    yield replace(reference.close("logits", output, values["logits"]), note=note)
    hidden = values["mask"].bool()
    nats, each = masked_nll(model.spec.with_tokens(forbidden=()), output, values["xt"], values["x0"], 1 / values["t"])
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
    found = generate(model.network, model.spec, sampler, [prompt], int((~given).sum())).texts
    yield reference.same("sampling, recorded draws", [found[0][1:]], run["output_ids"].tolist())


def _qkv(block: nn.Module) -> nn.Linear:
    """The projection of a block to queries, keys and values."""
    attention = block.attention
    assert isinstance(attention, Attention)
    return attention.qkv


def _solve_biases(model: Model, ids: Tensor, expected: Tensor) -> None:
    """Solve for the biases of queries, keys and values that the file lacks (damped Gauss-Newton least squares)."""
    from torch.func import functional_call, jacfwd
    from torch.nn.attention import SDPBackend, sdpa_kernel

    network: Any = model.network.double()
    names = [f"blocks.{number}.attention.qkv.bias" for number in range(len(network.blocks))]
    size = _qkv(network.blocks[0]).out_features
    pos = torch.arange(ids.shape[1]).expand(ids.shape)
    request = Forward(
        tokens=ids, positions=pos, targets=pos + model.spec.network.shift, attention=model.spec.network.attention
    )
    for block in network.blocks:
        _qkv(block).bias = torch.nn.Parameter(torch.zeros(size, dtype=torch.float64), requires_grad=False)

    def gap(bias: Tensor) -> Tensor:
        state = dict(zip(names, bias.split(size), strict=True))
        return (functional_call(network, state, (request,)) - expected.double().view(-1, expected.shape[-1])).flatten()

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


SUITE = Suite(checks)
