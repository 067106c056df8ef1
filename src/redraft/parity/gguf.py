"""Parity of GGUF files: tensors with those of the package ``gguf``, logits and token ids with transformers."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import Tensor

from redraft.convert.shared import gguf
from redraft.gguf_file import GgufFile, open_gguf
from redraft.loading import load
from redraft.model import Model
from redraft.parity.outputs import model_logits
from redraft.parity.reference import Check, Recorded, Reference, Suite

_SLICES = {"blk.0.attn_k.weight": None, "blk.0.ffn_down.weight[:4]": (0, 4), "token_embd.weight[5:9]": (5, 9)}


def block_checks(reference: Reference) -> Iterator[Check]:
    """Every type of block: where its tensor lies, its bytes and its numbers."""
    file, values = open_gguf(reference.folder / "checkpoint" / "blocks.gguf"), reference.tensors("values")
    for name in values:
        recorded = reference.values("values", name)
        yield reference.same(f"bytes, {name}", [_digest(file.raw(name))], [_hexadecimal(recorded["sha256_raw"])])
        yield reference.same(f"shape, {name}", [file.stored[name].shape], [recorded["shape"]])
        yield from _tensor(reference, name, file.read(name), recorded["sha256_float32"])
        yield reference.close(f"numbers, {name}", file.read(name), values[name], 1e-6, 0.0)


def model_checks(reference: Reference) -> Iterator[Check]:
    """Every tensor, the logits and the token ids of every file."""
    values = reference.tensors("goldens")
    for name, recorded in reference.values("goldens", "files").items():
        path, kind = reference.folder / "checkpoint" / name, Path(name).stem.removeprefix("model-")
        file, model = open_gguf(path), load(path, "cpu")
        for one in recorded["tensors"]:
            yield reference.same(f"shape, {kind}", [file.stored[one["gguf"]].shape], [one["shape"]])
            yield from _tensor(reference, kind, file.read(one["gguf"]), one["sha256_float32"])
        yield from _slices(reference, values, name, file)
        yield reference.close(f"logits, {kind}", model_logits(model, values["input_ids"]), values[f"{name}/logits"])
        yield from _ids(reference, kind, model, reference.values("goldens", "tokenizer"))


def _slices(reference: Reference, values: Recorded, name: str, file: GgufFile) -> Iterator[Check]:
    """Recorded parts of tensors, in the file's order of rows and in that of Hugging Face."""
    for key, rows in _SLICES.items():
        whole = file.read(key.partition("[")[0]).float()
        found = whole if rows is None else whole[slice(*rows)]
        yield reference.close("numbers", found, values[f"{name}/{key}"], 1e-6, 0.0)
    key = f"{name}/blk.0.attn_k.weight/hf_layout"
    if key in values:
        found = gguf.read(file.path)[1].get("model.layers.0.self_attn.k_proj.weight")
        yield reference.close("numbers, order of Hugging Face", found.float(), values[key], 1e-6, 0.0)


def _ids(reference: Reference, kind: str, model: Model, recorded: dict[str, Any]) -> Iterator[Check]:
    """Token ids of texts in which special tokens are recognised, with bos and without."""
    begin = model.tokenizer.encode_opening("")
    for one in recorded["texts"]:
        found = model.tokenizer.encode_marked(one["text"])
        yield reference.same(f"token ids, {kind}", [found], [one["ids_without_special"]])
        yield reference.same(f"token ids, {kind}", [[*begin, *found]], [one["ids"]])


def _tensor(reference: Reference, kind: str, found: Tensor, digest: str) -> Iterator[Check]:
    """The SHA-256 of a tensor [...] as float32."""
    yield reference.same(f"tensors, {kind}", [_digest(found.float().numpy())], [_hexadecimal(digest)])


def _digest(array: Any) -> list[int]:
    return list(hashlib.sha256(array.tobytes()).digest())


def _hexadecimal(digest: str) -> list[int]:
    return list(bytes.fromhex(digest))


BLOCKS = Suite(block_checks)
SUITE = Suite(model_checks, {"tokenizer.*": "the tokenizer that the metadata were made from"})
