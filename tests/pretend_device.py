"""A pretend CUDA device: run code written for a GPU on a machine without one, and see where it would break or wait.

A tensor "on the GPU" is a ``Pretend``: to Python, to the dispatcher, to autograd and to autocast it is a tensor on
``cuda:0``; its numbers lie in an ordinary tensor on the CPU, which computes. So ``--device cuda`` runs end to end, and

* what a real GPU refuses is refused, with CUDA's own words: operations that mix a device tensor with a host tensor
  (host scalars of no dimension, and host indices of a device tensor, are allowed exactly where CUDA allows them),
  ``.numpy()`` of a device tensor, a host generator, integer matrix products, operators without a CUDA kernel;
* what a real GPU makes the host wait for is written down, with the line of the code that asked for it: ``.item()``,
  ``.cpu()``, ``.tolist()``, ``bool(tensor)``, ``nonzero`` and boolean indexing, copies that block, ``synchronize``;
* so is what passes between host and device (bytes, pinned or not, waiting or not), how many operators are launched,
  which masks attention was given and which fused kernels could take them, and which operators are not deterministic.

In a program::

    from tests import pretend_device
    with pretend_device.pretend() as log:         # torch.cuda.is_available() is True inside
        model = redraft.load("...", device="cuda")
        with log.span("decode"):                  # spans may nest; events carry the innermost one
            model.generate("Once")
    print(log.report())

From the shell, any module or script, unchanged::

    python -m tests.pretend_device --top 20 -m redraft generate --model base-masked --prompt Once --device cuda

What it can't tell: time, memory, numerics of CUDA kernels, kernels that need a certain GPU, and anything within
``torch.compile`` or FlexAttention's kernels (both run uncompiled here, by their definition). Its random numbers on the
device are those of the host's generator. One device, no streams: a copy that doesn't wait has always arrived, so a
host buffer that is written to too early isn't noticed. Code that makes device memory without torch's operators (loading
safetensors straight to "cuda") fails here. What was plugged in once leaves torch's C++ believing in an accelerator: run
it in a process of its own.

Needs a build of torch without CUDA (it takes the empty seat) on Linux; tried with 2.13.0+cpu. Nothing outside torch is
needed; with PyYAML installed, operators that have no CUDA kernel are found too.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import functools
import runpy
import sys
import time
import types
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch.utils._mode_utils import no_dispatch
from torch.utils._pytree import tree_map

aten = torch.ops.aten
DEVICE = torch.device("cuda", 0)
NAME = "Pretend H200"
_TORCH = str(Path(torch.__file__).parent)
_HERE = __file__


class DeviceMismatch(RuntimeError):
    """What CUDA would have refused."""


# ---- what is written down


@dataclass(frozen=True)
class Event:
    """Something that a real device would have noticed."""

    kind: str  # wait | copy | refused | attention | varies | unmoved
    what: str  # the operator, or how it was asked for
    site: str  # file:line of the innermost frame that is neither torch's nor ours
    span: str  # of ``Log.span``, the innermost one
    bytes: int = 0
    detail: str = ""


@dataclass
class Log:
    """What happened since the device was plugged in. ``wait`` events are those in which the host waits for the device.

    A blocking copy to the device is one of them: ``Tensor.to`` without ``non_blocking`` synchronises the stream.
    """

    roots: tuple[str, ...] = ()  # parts of paths that sites are looked for in first; empty: any but torch's
    events: list[Event] = field(default_factory=list)
    spans: list[str] = field(default_factory=list)
    launches: Counter[tuple[str, str]] = field(default_factory=Counter)  # (span, operator)
    quiet: int = 0  # >0: operators within one that counts as a whole
    float64: bool = True  # False: the device has no float64, as Apple's

    @contextlib.contextmanager
    def span(self, name: str) -> Iterator[None]:
        """What happens inside carries this name."""
        self.spans.append(name)
        try:
            yield
        finally:
            self.spans.pop()

    @contextlib.contextmanager
    def whole(self, name: str) -> Iterator[None]:
        """What happens inside is one operator of this name."""
        self.launch(name)
        self.quiet += 1
        try:
            yield
        finally:
            self.quiet -= 1

    def launch(self, name: str) -> None:
        if not self.quiet:
            self.launches[self.spans[-1] if self.spans else "", name] += 1

    def clear(self) -> None:
        self.events.clear()
        self.launches.clear()

    def of(self, kind: str, span: str | None = None) -> list[Event]:
        return [e for e in self.events if e.kind == kind and (span is None or e.span == span)]

    def waits(self, span: str | None = None) -> Counter[tuple[str, str]]:
        """(site, what) -> how often the host waited there."""
        return Counter((e.site, e.what) for e in self.of("wait", span))

    def copied(self, span: str | None = None) -> dict[tuple[str, str], tuple[int, int]]:
        """(site, direction) -> copies and bytes."""
        found: dict[tuple[str, str], tuple[int, int]] = {}
        for e in self.of("copy", span):
            count, size = found.get((e.site, e.what), (0, 0))
            found[e.site, e.what] = count + 1, size + e.bytes
        return found

    def launched(self, span: str | None = None) -> int:
        """Operators run on the device; views are none. Each is one kernel or a few."""
        return sum(n for (where, _), n in self.launches.items() if span is None or where == span)

    def report(self, top: int = 15, span: str | None = None) -> str:
        """A page of text."""
        lines = [f"pretend device: {self.launched(span)} operators launched"]
        refused = Counter((e.site, e.detail) for e in self.of("refused", span))
        for (site, why), n in refused.most_common(top):
            lines.append(f"  REFUSED {n:6d} x {site}  {why}")
        waits = self.waits(span)
        lines.append(f"the host waits {sum(waits.values())} times")
        lines += [f"  {n:8d} x {site}  {what}" for (site, what), n in waits.most_common(top)]
        copies = sorted(self.copied(span).items(), key=lambda item: -item[1][1])
        lines.append(
            f"copied {sum(size for _, (_, size) in copies):,} bytes in {sum(n for _, (n, _) in copies)} copies"
        )
        lines += [f"  {size:12,} B {n:7d} x {site}  {what}" for (site, what), (n, size) in copies[:top]]
        attention = Counter((e.detail, e.site) for e in self.of("attention", span))
        if attention:
            lines.append(f"attention of {len({detail for detail, _ in attention})} shapes")
            lines += [f"  {n:8d} x {detail}  {site}" for (detail, site), n in attention.most_common(top)]
        for kind, title in (("varies", "not deterministic on CUDA"), ("unmoved", "no CUDA kernel is known")):
            some = Counter((e.what, e.site) for e in self.of(kind, span))
            if some:
                lines.append(title)
                lines += [f"  {n:8d} x {what}  {site}" for (what, site), n in some.most_common(top)]
        return "\n".join(lines)

    def tell(self, kind: str, what: str, size: int = 0, detail: str = "") -> None:
        self.events.append(Event(kind, what, self.site(), self.spans[-1] if self.spans else "", size, detail))

    def site(self) -> str:
        """Who asked. Work of autograd's own threads has no frame of anybody's."""
        first = ""
        frame: types.FrameType | None = sys._getframe(2)
        while frame is not None:
            name = frame.f_code.co_filename
            if name != _HERE and not name.startswith((_TORCH, "<")) and "/torch/" not in name:
                here = f"{_short(name)}:{frame.f_lineno}"
                if not self.roots or any(root in name for root in self.roots):
                    return here
                first = first or here
            frame = frame.f_back
        return first or "<autograd>"


@functools.cache
def _short(path: str) -> str:
    """The last parts of a path, from ``src`` or ``site-packages`` on."""
    for mark in ("/site-packages/", "/src/"):
        if mark in path:
            return path.rpartition(mark)[2]
    return "/".join(Path(path).parts[-2:])


LOG = Log()  # of the device that is plugged in; there is one


# ---- the tensor


class Pretend(torch.Tensor):
    """A tensor on ``cuda:0`` whose numbers are those of ``_real``, on the host."""

    _real: torch.Tensor

    @staticmethod
    def __new__(cls, real: torch.Tensor, requires_grad: bool = False) -> Pretend:
        if real.dtype == torch.float64 and not LOG.float64:
            LOG.tell("refused", "float64", detail="the device has no float64")
            raise TypeError("Cannot convert a device tensor to float64 dtype, which the device doesn't support.")
        made = torch.Tensor._make_wrapper_subclass(
            cls,
            real.size(),
            strides=real.stride(),
            storage_offset=real.storage_offset(),
            dtype=real.dtype,
            layout=real.layout,
            device=DEVICE,
            requires_grad=requires_grad,
        )
        made._real = real
        return made

    def __init__(self, real: torch.Tensor, requires_grad: bool = False) -> None:
        pass

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        return _run(func, args, kwargs or {})

    # nn.Module.to then swaps the parameter's insides: the object stays the same one, as it does on CUDA
    def __tensor_flatten__(self) -> tuple[list[str], None]:
        return ["_real"], None

    @staticmethod
    def __tensor_unflatten__(inner: dict[str, torch.Tensor], meta: None, size: Any, stride: Any) -> Pretend:
        return Pretend(inner["_real"])

    # What torch's C++ does behind the dispatcher's back, or with memory of its own.

    def numpy(self, *, force: bool = False) -> Any:
        if force:
            return self.detach().cpu().numpy()
        LOG.tell("refused", "numpy", detail="can't convert cuda:0 device type tensor to numpy")
        raise TypeError(
            "can't convert cuda:0 device type tensor to numpy. "
            "Use Tensor.cpu() to copy the tensor to host memory first."
        )

    def __array__(self, *args: Any, **kwargs: Any) -> Any:
        return self.numpy()

    def tolist(self) -> Any:
        return _to_host(self, "tolist").tolist()

    def data_ptr(self) -> int:
        return self._real.data_ptr()

    def untyped_storage(self) -> Any:
        return self._real.untyped_storage()

    def pin_memory(self, device: Any = None) -> torch.Tensor:
        LOG.tell("refused", "pin_memory", detail="only dense CPU tensors can be pinned")
        raise RuntimeError(f"cannot pin '{self.type()}' only dense CPU tensors can be pinned")

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        if id(self) not in memo:
            with torch.no_grad():
                new = Pretend(self._real.clone())
            new.requires_grad_(self.requires_grad)
            if getattr(self, "_is_param", False):
                new._is_param = True
            memo[id(self)] = new
        return memo[id(self)]

    def __reduce_ex__(self, protocol: Any) -> Any:
        return _again, (self.detach().cpu(), self.requires_grad, getattr(self, "_is_param", False))

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        return f"Pretend({self._real!r}, device='{DEVICE}')"

    @property
    def data(self) -> torch.Tensor:
        return self.detach()

    @data.setter
    def data(self, new: torch.Tensor) -> None:
        if isinstance(new, Pretend):
            torch.Tensor.data.__set__(self, new)  # type: ignore[attr-defined]
            self._real = new._real
        else:  # back to the host, as module.to("cpu") does it
            _swap(self, torch.nn.Parameter(new.detach(), requires_grad=self.requires_grad))


def _again(real: torch.Tensor, requires_grad: bool, parameter: bool) -> torch.Tensor:
    made = Pretend(real).requires_grad_(requires_grad)
    if parameter:
        made._is_param = True
    return made


def _inner(x: Any) -> Any:
    return x._real if isinstance(x, Pretend) else x


def _wrap(x: Any) -> Any:
    return Pretend(x) if isinstance(x, torch.Tensor) and not isinstance(x, Pretend) else x


# ---- operators

_ANY_INDEX = {  # self on the device, indices anywhere
    aten.index.Tensor,
    aten._unsafe_index.Tensor,
    aten.index_put.default,
    aten.index_put_.default,
    aten._index_put_impl_.default,
    aten._unsafe_index_put.default,
}
_WITH_VALUE = _ANY_INDEX - {aten.index.Tensor, aten._unsafe_index.Tensor}
_COPIES = {aten.copy_.default, aten._to_copy.default}
# Pointwise operators take host scalars of no dimension; these do too.
_HOST_SCALARS = {
    "fill_",
    "masked_fill",
    "masked_fill_",
    "index_fill",
    "index_fill_",
    "where",
    "_fused_adamw_",
    "_fused_adam_",
    "_local_scalar_dense",
}
# Their results' shapes depend on numbers: the host has to see these first.
_WAITS = {
    "nonzero": "nonzero",
    "masked_select": "masked_select",
    "_unique2": "unique",
    "_unique": "unique",
    "unique_dim": "unique",
    "unique_consecutive": "unique_consecutive",
    "bincount": "bincount",
    "histc": "histc",
    "equal": "equal",
    "_local_scalar_dense": "item",
    "is_nonzero": "bool",
}
# Sums by atomic additions, whose order differs from run to run (torch.use_deterministic_algorithms has the whole list).
_VARIES = {
    "index_add",
    "index_add_",
    "scatter_add",
    "scatter_add_",
    "scatter_reduce",
    "scatter_reduce_",
    "_embedding_bag_dense_backward",
    "_embedding_bag_per_sample_weights_backward",
    "embedding_dense_backward",
    "cumsum",
    "bincount",
}
_PRODUCTS = {"mm", "bmm", "addmm", "baddbmm", "addbmm", "addmv", "dot", "vdot", "mv"}


@dataclass(frozen=True)
class _Kind:
    """What is to be known of an operator before it runs, read off its schema once."""

    name: str
    view: bool  # gives another look at the same memory: nothing is launched
    inplace_view: bool
    written: tuple[tuple[int, str], ...]  # arguments that come back as results: position and name
    host_scalars: bool
    kernel: bool  # CUDA has one, by native_functions.yaml
    composite: bool  # made of others, to which it comes down on every device


@functools.cache
def _kind(func: Any) -> _Kind:
    schema, name = func._schema, func._schema.name.partition("::")[2]
    written: list[tuple[int, str]] = []
    for result in schema.returns:
        if result.alias_info is not None and result.alias_info.is_write:
            for at, argument in enumerate(schema.arguments):
                info = argument.alias_info
                if info is not None and info.is_write and info.before_set == result.alias_info.before_set:
                    written.append((at, argument.name))
                    break
    view = name == "_unsafe_view" or any(r.alias_info is not None and not r.alias_info.is_write for r in schema.returns)
    scalars = torch.Tag.pointwise in func.tags or name in _HOST_SCALARS or name.startswith("_foreach")
    composite = func.has_kernel_for_dispatch_key(torch._C.DispatchKey.CompositeImplicitAutograd)
    resizes = torch.Tag.inplace_view in func.tags
    return _Kind(name, view, resizes, tuple(written), scalars, _has_kernel(func), composite)


@functools.cache
def _yaml() -> dict[str, tuple[set[str], bool]]:
    """Operator -> (keys it has kernels for, does it inherit those of another)."""
    path = Path(_TORCH).parent / "torchgen/packaged/ATen/native/native_functions.yaml"
    found: dict[str, tuple[set[str], bool]] = {}
    try:
        import yaml  # type: ignore[import-untyped]

        listed = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (ImportError, OSError):
        return found
    for entry in listed:
        keys = {key.strip() for keys in entry.get("dispatch", {}) for key in keys.split(",")}
        found[entry["func"].partition("(")[0]] = keys, "structured_delegate" in entry
    return found


def _has_kernel(func: Any) -> bool:
    name = func._schema.name.partition("::")[2]
    full = name if func._overloadname == "default" else f"{name}.{func._overloadname}"
    if not func._schema.name.startswith("aten::"):
        return not func._schema.name.startswith(("mkldnn::", "onednn::", "quantized::"))
    if not _yaml() or full not in _yaml():  # generated variants are as good as what they are generated from
        return True
    keys, inherits = _yaml()[full]
    general = {"CompositeExplicitAutograd", "CompositeImplicitAutograd", "CompositeExplicitAutogradNonFunctional"}
    return inherits or not keys or bool(keys & (general | {"CUDA"}))


def _run(func: Any, args: Any, kwargs: Any) -> Any:
    """One operator, some of whose tensors are on the device."""
    kind = _kind(func)
    if kind.composite:  # inference mode leaves the taking apart to us
        return func.decompose(*args, **kwargs)
    if func in _COPIES:
        return _copy(func, args, kwargs)
    mine: list[torch.Tensor] = []
    hosts: list[torch.Tensor] = []
    _collect(args, mine, hosts)
    _collect(kwargs, mine, hosts)
    _check(func, kind, args, kwargs, mine, hosts)
    _note(func, kind, args, kwargs, mine)
    real_kwargs = tree_map(_inner, kwargs)
    if isinstance(kwargs.get("device"), torch.device):
        if kwargs["device"].type == "cpu":  # a factory that takes after a device tensor, but on the host
            return func(*tree_map(_inner, args), **real_kwargs)
        real_kwargs["device"] = torch.device("cpu")
    if real_kwargs.get("pin_memory"):
        real_kwargs["pin_memory"] = False
    out = func(*tree_map(_inner, args), **real_kwargs)
    if kind.inplace_view:  # the wrapper's own shape has to follow
        with no_dispatch():
            func(*args, **kwargs)
    if kind.written:
        back = [args[at] if at < len(args) else kwargs[name] for at, name in kind.written]
        return back[0] if len(back) == 1 else tuple(back)
    if func is aten.lift_fresh.default:
        return args[0]
    if kind.view and mine[0].is_inference() != torch.is_inference_mode_enabled():  # a view is as what it shows
        with torch.inference_mode(mine[0].is_inference()):
            return tree_map(_wrap, out)
    return tree_map(_wrap, out)


def _collect(values: Any, mine: list[torch.Tensor], hosts: list[torch.Tensor]) -> None:
    if isinstance(values, torch.Tensor):
        (mine if isinstance(values, Pretend) else hosts).append(values)
    elif isinstance(values, list | tuple):
        for value in values:
            _collect(value, mine, hosts)
    elif isinstance(values, dict):
        for value in values.values():
            _collect(value, mine, hosts)


def _refuse(func: Any, why: str, error: type[Exception] = DeviceMismatch) -> None:
    LOG.tell("refused", str(func), detail=why.splitlines()[0])
    raise error(why)


def _check(func: Any, kind: _Kind, args: Any, kwargs: Any, mine: list[Any], hosts: list[Any]) -> None:
    """Raise what CUDA would."""
    generator = kwargs.get("generator")
    if generator is not None and generator.device.type == "cpu":
        _refuse(func, "Expected a 'cuda' device type for generator but found 'cpu'", RuntimeError)
    if func in _ANY_INDEX:
        if not isinstance(args[0], Pretend):
            _refuse(func, "indices should be either on cpu or on the same device as the indexed tensor (cpu)")
        if func in _WITH_VALUE and not isinstance(args[2], Pretend) and args[2].dim():
            _refuse(func, "Expected all tensors to be on the same device, but got values is on cpu, self on cuda:0")
        return
    for other in hosts:
        if other.dim() == 0 and kind.host_scalars:
            continue
        shape, own = tuple(other.shape), tuple(mine[0].shape) if mine else ()
        _refuse(
            func,
            "Expected all tensors to be on the same device, but found at least two devices, cuda:0 and cpu! "
            f"({func}: {own} on cuda:0, {shape} on cpu)",
        )
    if kind.name in _PRODUCTS and mine and not (mine[0].is_floating_point() or mine[0].is_complex()):
        _refuse(
            func,
            f"\"{kind.name}_cuda\" not implemented for '{str(mine[0].dtype).removeprefix('torch.')}'",
            NotImplementedError,
        )


def _note(func: Any, kind: _Kind, args: Any, kwargs: Any, mine: list[Any]) -> None:
    """Write down what an operator costs beside its arithmetic."""
    if kind.name in _WAITS:
        # CUDA's bincount looks at the greatest number even where minlength is given.
        LOG.tell("wait", _WAITS[kind.name], detail=str(func))
        if kind.name == "_local_scalar_dense":
            LOG.tell("copy", "to host, waits", args[0].element_size())
            return
    elif func in _ANY_INDEX:
        _note_indices(func, args)
    elif kind.name == "repeat_interleave" and kwargs.get("output_size") is None:
        LOG.tell("wait", "repeat_interleave")
    if LOG.quiet or kind.view or func in (aten.lift_fresh.default, aten.detach.default):
        return
    LOG.launch(kind.name)
    if kind.name in _VARIES and not (kind.name == "cumsum" and not args[0].is_floating_point()):
        LOG.tell("varies", kind.name)
    if not kind.kernel:
        LOG.tell("unmoved", str(func))


def _note_indices(func: Any, args: Any) -> None:
    for index in args[1]:
        if index is None:
            continue
        if not isinstance(index, Pretend):
            LOG.tell("copy", "to device, waits (host index)", index.numel() * index.element_size())
            LOG.tell("wait", "index from the host")
        elif index.dtype in (torch.bool, torch.uint8):
            fills = func in _WITH_VALUE and args[2].numel() == 1 and not (len(args) > 3 and args[3])
            if not fills:  # one value under a mask is masked_fill
                LOG.tell("wait", "boolean index")


def _copy(func: Any, args: Any, kwargs: Any) -> Any:
    """``copy_`` and ``_to_copy``: the only ways between host and device."""
    if func is aten.copy_.default:
        to, source = args[0], args[1]
        patient = not (args[2] if len(args) > 2 else kwargs.get("non_blocking", False))
        _account(to, source, patient)
        _inner(to).copy_(_inner(source))
        return to
    source = args[0]
    where = kwargs.get("device")
    kwargs = {**kwargs}
    patient = not kwargs.get("non_blocking", False)
    away = where is not None and torch.device(where).type == "cpu"
    if where is not None:
        kwargs["device"] = torch.device("cpu")
    kwargs["non_blocking"] = False
    real = func(_inner(source), **kwargs)
    if real is _inner(source):  # never: _to_copy always copies
        real = real.clone()
    if away:
        if not patient:
            real._pinned = True  # type: ignore[attr-defined]  # torch allocates pinned memory for such a copy
        _account(real, source, patient)
        return real
    _account(source, source, patient)
    return Pretend(real)


def _account(to: torch.Tensor, source: torch.Tensor, patient: bool) -> None:
    size = source.numel() * source.element_size()
    here, there = isinstance(source, Pretend), isinstance(to, Pretend)
    if here and there:
        LOG.launch("copy_")
    elif here:
        pinned = getattr(to, "_pinned", False)
        waits = patient or not pinned  # to pageable memory the call returns when all is there
        LOG.tell("copy", f"to host, {'waits' if waits else 'pinned'}", size)
        if waits:
            LOG.tell("wait", "to host")
    elif there:
        pinned = getattr(source, "_pinned", False)
        if patient:
            LOG.tell("copy", f"to device, waits{' though pinned' if pinned else ''}", size)
            LOG.tell("wait", "to device, blocking")
        else:
            LOG.tell("copy", f"to device, {'pinned' if pinned else 'staged (not pinned)'}", size)


def _to_host(x: Pretend, what: str) -> torch.Tensor:
    LOG.tell("copy", "to host, waits", x.numel() * x.element_size())
    LOG.tell("wait", what)
    return x._real.detach().clone()


# ---- making tensors on the device


def _factories() -> Iterator[Any]:
    """Operators that make a tensor from no tensor, on a device."""
    for full in torch._C._dispatch_get_all_op_names():
        if not full.startswith("aten::"):
            continue
        name, _, overload = full.removeprefix("aten::").partition(".")
        if name.startswith("_") or "names" in overload or "out" in overload:
            continue
        try:
            func = getattr(getattr(aten, name), overload or "default")
        except AttributeError:
            continue
        arguments = func._schema.arguments
        if any("Tensor" in str(argument.type) for argument in arguments):
            continue
        if any(argument.name == "device" for argument in arguments):
            yield func


def _make(func: Any, *args: Any, **kwargs: Any) -> Any:
    generator = kwargs.get("generator")
    if generator is not None and generator.device.type == "cpu":
        _refuse(func, "Expected a 'cuda' device type for generator but found 'cpu'", RuntimeError)
    kwargs = {**kwargs, "device": torch.device("cpu")}
    kwargs.pop("pin_memory", None)
    if not _kind(func).name.startswith("empty"):
        LOG.launch(_kind(func).name)
    return Pretend(func(*args, **kwargs))


# ---- plugging it in


@dataclass
class _Patches:
    """Attributes set for the time being."""

    undo: list[Callable[[], None]] = field(default_factory=list)

    def set(self, owner: Any, name: str, value: Any) -> None:
        if name in vars(owner) if isinstance(owner, types.ModuleType | type) else hasattr(owner, name):
            before = getattr(owner, name)
            self.undo.append(lambda: setattr(owner, name, before))
        else:
            self.undo.append(lambda: delattr(owner, name))
        setattr(owner, name, value)

    def restore(self) -> None:
        while self.undo:
            self.undo.pop()()


_PLUGGED: list[_Patches] = []
_KEPT: list[Any] = []  # what torch holds on to for good, once per process


def plug_in(roots: tuple[str, ...] = ()) -> Log:
    """Put the device into this process, for all threads. Returns the log, empty."""
    if torch.backends.cuda.is_built():
        raise RuntimeError("this torch knows real CUDA devices: take a build for CPUs to pretend one")
    LOG.roots = roots
    LOG.clear()
    if _PLUGGED:
        return LOG
    if not _KEPT:  # kernels can't be taken out again without leaving holes; unplugged, nobody reaches them
        _guard()
        _accelerator()
        library = torch.library.Library("aten", "IMPL")
        for func in _factories():
            name = func._schema.name.partition("::")[2]
            overload = "" if func._overloadname == "default" else f".{func._overloadname}"
            library.impl(f"{name}{overload}", functools.partial(_make, func), "CUDA")
        # torch.tensor(..., device="cuda") copies while subclasses are not asked
        library.impl("copy_", lambda *args, **kwargs: _copy(aten.copy_.default, args, kwargs), "CUDA")
        _KEPT.append(library)
    patches = _Patches()
    _patch_cuda(patches)
    _patch_torch(patches)
    _PLUGGED.append(patches)
    return LOG


def _guard() -> None:
    """Have torch register the guard for CUDA that it keeps for tests, which switches between devices that aren't there.

    Indexing and autograd's engine ask for one. ``_ensureCUDADeviceGuardSet`` (meant for FakeTensorMode) sets it in
    place of one that knows of no device, and a build for CPUs has none at all: so it is first given one whose every
    method returns 0.
    """
    library = ctypes.CDLL(str(Path(_TORCH) / "lib/libc10.so"))
    known = (ctypes.c_void_p * 2).in_dll(library, "_ZN3c104impl26device_guard_impl_registryE")
    if known[1] is None:  # 0 is CPU, 1 is CUDA (c10::DeviceType)
        nothing = ctypes.CFUNCTYPE(ctypes.c_int)(lambda: 0)
        table = (ctypes.c_void_p * 64)(*[ctypes.cast(nothing, ctypes.c_void_p)] * 64)
        blank = ctypes.c_void_p(ctypes.addressof(table))
        known[1] = ctypes.addressof(blank)
        torch._C._ensureCUDADeviceGuardSet()
        if known[1] == ctypes.addressof(blank):
            known[1] = None
            raise RuntimeError("this version of torch has no pretended device guard")


def _accelerator() -> None:
    """Have torch's C++ take CUDA for there: autograd's engine asks the process's accelerator for its streams.

    ``at::detail::getCUDAHooks()`` is an object whose methods say no. It gets a copy of its table of methods in which
    two answer otherwise: ``hasCUDA`` (1) and ``hasPrimaryContext`` (0: no stream of the caller's is to be kept). Which
    slots these are is found out by trying: a wrong one changes nothing, for nobody calls it.
    """
    library = ctypes.CDLL(str(Path(_TORCH) / "lib/libtorch_cpu.so"))
    get = library._ZN2at6detail12getCUDAHooksEv
    get.restype = ctypes.c_void_p
    hooks = ctypes.cast(get(), ctypes.POINTER(ctypes.c_void_p))
    slots = 64
    table = (ctypes.c_void_p * slots)(*ctypes.cast(hooks[0], ctypes.POINTER(ctypes.c_void_p * slots)).contents)
    answer = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_int)
    yes, no = answer(lambda own, device: 1), answer(lambda own, device: 0)
    _KEPT.extend((table, yes, no))
    hooks[0] = ctypes.addressof(table)

    def there() -> bool:
        found = torch._C._accelerator_getAccelerator()
        return found is not None and found.type == "cuda"

    def streams() -> bool:
        Pretend(torch.ones(1), requires_grad=True).sum().backward()
        return there()

    for says, works in ((yes, there), (no, streams)):
        for slot in range(2, slots):  # the first two destroy the object
            before, table[slot] = table[slot], ctypes.cast(says, ctypes.c_void_p).value
            try:
                if works():
                    break
            except RuntimeError:
                pass
            table[slot] = before
        else:
            raise RuntimeError("this version of torch asks for its accelerator in another way")


def unplug() -> None:
    """Take the device out again; tensors that are still on it can't be used any more."""
    while _PLUGGED:
        _PLUGGED.pop().restore()


@contextlib.contextmanager
def pretend(*roots: str) -> Iterator[Log]:
    """``plug_in`` and ``unplug`` around a piece of work."""
    log = plug_in(roots)
    try:
        yield log
    finally:
        unplug()


class _Event:
    """A moment on the device, which is the host's. It has always passed."""

    def __init__(self, enable_timing: bool = False) -> None:
        self.at = 0.0

    def record(self, stream: Any = None) -> None:
        self.at = time.perf_counter()

    def query(self) -> bool:
        return True

    def elapsed_time(self, end: _Event) -> float:
        """Milliseconds."""
        return 1000 * (end.at - self.at)


def _patch_cuda(patches: _Patches) -> None:
    """``torch.cuda`` as it is where there is one device."""
    cuda = torch.cuda

    def nothing() -> Callable[..., None]:  # each a function of its own: Dynamo keeps a table of them
        return lambda *args, **kwargs: None

    def synchronize(device: Any = None) -> None:
        LOG.tell("wait", "synchronize")

    stream = types.SimpleNamespace(synchronize=lambda: LOG.tell("wait", "synchronize"))
    properties = types.SimpleNamespace(
        name=NAME, major=9, minor=0, total_memory=139 << 30, multi_processor_count=132, gcnArchName="", warp_size=32
    )
    for name, value in {
        "is_available": lambda: True,
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "is_initialized": lambda: True,
        "_lazy_init": nothing(),
        "init": nothing(),
        "_is_in_bad_fork": lambda: False,
        "set_device": nothing(),
        "current_stream": lambda device=None: stream,
        "synchronize": synchronize,
        "Event": _Event,
        "get_device_name": lambda device=None: NAME,
        "get_device_capability": lambda device=None: (9, 0),
        "get_device_properties": lambda device=None: properties,
        "is_bf16_supported": lambda including_emulation=True: True,
        "memory_allocated": lambda device=None: 0,
        "max_memory_allocated": lambda device=None: 0,
        "memory_reserved": lambda device=None: 0,
        "max_memory_reserved": lambda device=None: 0,
        "reset_peak_memory_stats": nothing(),
        "empty_cache": nothing(),
        "mem_get_info": lambda device=None: (139 << 30, 139 << 30),
        "get_rng_state": lambda device="cuda": torch.get_rng_state(),
        "set_rng_state": nothing(),  # the host's generator serves both
        "get_rng_state_all": lambda: [torch.get_rng_state()],
        "set_rng_state_all": nothing(),
        "manual_seed": nothing(),
        "manual_seed_all": nothing(),
    }.items():
        patches.set(cuda, name, value)
    for name, value in {
        "_cuda_getDevice": lambda: 0,
        "_cuda_setDevice": nothing(),
        "_cuda_exchangeDevice": lambda device: 0,
        "_cuda_maybeExchangeDevice": lambda device: 0,
        "_cuda_isCurrentStreamCapturing": lambda: False,
    }.items():
        patches.set(torch._C, name, value)


def _swap(one: torch.Tensor, other: torch.Tensor) -> None:
    """``torch.utils.swap_tensors`` where others may hold on to the memory: ``.data =`` on CUDA doesn't mind either."""
    one.__class__, other.__class__ = other.__class__, one.__class__
    one.__dict__, other.__dict__ = other.__dict__, one.__dict__
    torch._C._swap_tensor_impl(one, other)


def _patch_torch(patches: _Patches) -> None:
    """Host memory that is pinned, attention as one operator, and no compiler."""

    def pin_memory(self: torch.Tensor, device: Any = None) -> torch.Tensor:
        if getattr(self, "_pinned", False):
            return self
        new = self.detach().clone()
        new._pinned = True  # type: ignore[attr-defined]
        return new

    patches.set(torch.Tensor, "pin_memory", pin_memory)
    patches.set(torch.Tensor, "is_pinned", lambda self, device=None: getattr(self, "_pinned", False))

    plain = torch.nn.functional.scaled_dot_product_attention

    @functools.wraps(plain)
    def attention(query: Any, key: Any, value: Any, attn_mask: Any = None, dropout_p: float = 0.0,
                  is_causal: bool = False, scale: Any = None, enable_gqa: bool = False) -> Any:  # fmt: skip
        given = {"attn_mask": attn_mask, "dropout_p": dropout_p, "is_causal": is_causal, "scale": scale}
        given["enable_gqa"] = enable_gqa
        tensors = [t for t in (query, key, value, attn_mask) if t is not None]
        if not any(isinstance(t, Pretend) for t in tensors):
            return plain(query, key, value, **given)
        if not all(isinstance(t, Pretend) for t in tensors):
            _refuse("scaled_dot_product_attention", "Expected query, key, value and attn_mask on the same device")
        LOG.tell("attention", "scaled_dot_product_attention", detail=backends(query, key, attn_mask, is_causal))
        with LOG.whole("scaled_dot_product_attention"):
            return plain(query, key, value, **given)

    patches.set(torch.nn.functional, "scaled_dot_product_attention", attention)
    norm = torch.nn.functional.rms_norm

    @functools.wraps(norm)
    def rms_norm(input: Any, *args: Any, **kwargs: Any) -> Any:  # one kernel on CUDA, several operators here
        if not isinstance(input, Pretend):
            return norm(input, *args, **kwargs)
        with LOG.whole("rms_norm"):
            return norm(input, *args, **kwargs)

    patches.set(torch.nn.functional, "rms_norm", rms_norm)

    def compile_(model: Any = None, **kwargs: Any) -> Any:
        return model if model is not None else (lambda function: function)

    patches.set(torch, "compile", compile_)
    patches.set(torch.utils, "swap_tensors", _swap)
    patches.set(torch.nn.Module, "compile", lambda self, *args, **kwargs: None)

    import torch.nn.attention.flex_attention as flex

    def flexible(query: Any, key: Any, value: Any, score_mod: Any = None, block_mask: Any = None, scale: Any = None,
                 enable_gqa: bool = False, **kwargs: Any) -> Any:  # fmt: skip
        """By the definition: a dense mask. Of score modifications nothing is known here."""
        if score_mod is not None:
            raise NotImplementedError("pretend_device: flex_attention with a score_mod")
        LOG.tell("attention", "flex_attention", detail=f"flex {_described(query, key)}")
        with LOG.whole("flex_attention"):
            mask = None
            if block_mask is not None:
                shape = block_mask.shape[0], 1, query.shape[2], key.shape[2]
                mask = flex.create_mask(block_mask.mask_mod, *shape, device=query.device)
            return plain(query, key, value, attn_mask=mask, scale=scale, enable_gqa=enable_gqa)

    patches.set(flex, "flex_attention", flexible)


def _described(query: torch.Tensor, key: torch.Tensor) -> str:
    return f"{str(query.dtype).removeprefix('torch.')} q{tuple(query.shape)} k{tuple(key.shape)}"


def backends(query: torch.Tensor, key: torch.Tensor, mask: torch.Tensor | None, causal: bool) -> str:
    """Which kernels of scaled_dot_product_attention could take this, in the order in which an H100 or H200 tries them.

    By torch/aten/src/ATen/native/transformers/cuda/sdp_utils.cpp (2.13, cuDNN above 9.15): cuDNN comes first, takes
    half precision and masks, and builds a plan for every new shape, key length included, which takes the host tens of
    milliseconds (TORCH_CUDNN_SDPA_DEPRIORITIZED=1 puts it aside). Flash takes half precision and no mask. The
    memory-efficient kernel takes masks and float32, but before 2.14 no fewer key than query heads. ``math`` takes all,
    writes the scores down, and in half precision works in float32.
    """
    half, width = query.dtype in (torch.float16, torch.bfloat16), query.shape[-1]
    able = []
    if half and width <= 256 and width % 8 == 0:
        able.append("cudnn")
    if half and mask is None and width <= 256:
        able.append("flash")
    if query.shape[1] == key.shape[1]:
        able.append("efficient")
    able.append("math")
    size = "" if mask is None else f" {str(mask.dtype).removeprefix('torch.')} mask{tuple(mask.shape)}"
    return f"{'/'.join(able)}{' causal' if causal else ''}{size} {_described(query, key)}"


# ---- the command


def main(argv: list[str] | None = None) -> None:
    """Run a module or a script with the device plugged in, and report."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--top", type=int, default=15, help="lines of each part of the report")
    parser.add_argument("--root", action="append", default=[], help="part of a path that sites are looked for in")
    parser.add_argument("-m", dest="module", help="module to run; else the first argument is a script")
    parser.add_argument("arguments", nargs=argparse.REMAINDER)
    given = parser.parse_args(argv)
    rest = [argument for argument in given.arguments if argument != "--"]
    log = plug_in(tuple(given.root))
    try:
        if given.module:
            sys.argv = [given.module, *rest]
            runpy.run_module(given.module, run_name="__main__", alter_sys=True)
        else:
            sys.argv = rest
            runpy.run_path(rest[0], run_name="__main__")
    finally:
        sys.stderr.write(f"{log.report(given.top)}\n")


if __name__ == "__main__":
    main()
