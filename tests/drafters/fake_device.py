"""A CUDA device that is none: CPU tensors that behave, in Python, as tensors on ``cuda:0`` do.

``with emulated() as device`` tags tensors made on, or moved to, "cuda" and refuses what a real
device refuses: an operation on tensors of both devices (0-dim CPU tensors and CPU indices are
legal), ``numpy()``, and, while a graph is captured, everything that waits for the host. Captured
graphs replay: every operation of the capture runs again, into the same tensors. Triton kernels are
replaced by their references. A replay spoils what later captures of the same memory pool have left,
which may lie where this one works. Not emulated: speed, other memory, numerics, streams, Triton
itself.
"""

from __future__ import annotations

import contextlib
import itertools
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_iter, tree_map_only

NAME = "Emulated device"
CUDA = torch.device("cuda", 0)


class Tagged(Tensor):
    """A tensor that says it is on the device."""

    @property
    def device(self) -> torch.device:
        return CUDA

    @property
    def is_cuda(self) -> bool:
        return True

    @property
    def is_cpu(self) -> bool:
        return False

    def get_device(self) -> int:
        return 0


WAITS = {
    "item", "tolist", "nonzero", "masked_select", "unique", "equal", "allclose", "argwhere",
    "__bool__", "__int__", "__float__", "__index__", "is_nonzero", "unique_consecutive", "bincount",
}  # fmt: skip
CROSSES = {"to", "copy_", "type_as", "cpu", "cuda", "__get__", "__set__", "set_data"}
HOST_ONLY = {"numpy", "__array__"}


def _name(func: Callable[..., Any]) -> str:
    return getattr(func, "__name__", str(func))


def _on_cuda(value: Any) -> bool:
    return isinstance(value, torch.device | str) and str(value).startswith("cuda")


def _tag(value: Any) -> Any:
    def one(t: Tensor) -> Tensor:
        return t if isinstance(t, Tagged) else t.as_subclass(Tagged)

    with torch._C.DisableTorchFunctionSubclass():
        return tree_map_only(Tensor, one, value)


def _untag(value: Tensor) -> Tensor:
    with torch._C.DisableTorchFunctionSubclass():
        return value.as_subclass(Tensor)


def _memory(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


class Graph:
    """Stands for ``torch.cuda.CUDAGraph``: the operations of a capture, run again by ``replay``."""

    def __init__(self, *_: Any, **__: Any) -> None:
        self.calls: list[tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any], Any]] = []
        self.later: list[Graph] = []
        """Captured after this one into the same pool."""

    @torch.no_grad()
    def replay(self) -> None:
        with torch._C.DisableTorchFunctionSubclass(), torch._C.DisableTorchFunction():
            for other in self.later:
                other.spoil()
            for func, args, kwargs, out in self.calls:
                fresh = func(*args, **kwargs)
                for new, old in zip(tree_iter(fresh), tree_iter(out), strict=True):
                    if isinstance(old, Tensor) and new is not old:
                        old.copy_(new)

    def spoil(self) -> None:
        """Overwrite every tensor that was made during the capture."""
        made: set[int] = set()
        given: set[int] = set()
        for _, args, kwargs, out in self.calls:
            given |= {_memory(t) for t in tree_iter((args, kwargs)) if isinstance(t, Tensor)} - made
            for tensor in tree_iter(out):
                if isinstance(tensor, Tensor) and tensor.numel() and _memory(tensor) not in given:
                    made.add(_memory(tensor))
                    tensor.fill_(float("nan") if tensor.is_floating_point() else 2**30)

    def reset(self) -> None:
        self.calls = []

    def pool(self) -> tuple[int, int]:
        return (0, 0)


class Device(TorchFunctionMode):
    """The mode that tags and checks; ``waits`` counts synchronisations by source line."""

    def __init__(self) -> None:
        super().__init__()
        self.waits: Counter[str] = Counter()
        self.capturing: Graph | None = None
        self.lenient = 0

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = dict(kwargs or {})
        name = _name(func)
        tensors = [t for t in tree_iter((args, kwargs)) if isinstance(t, Tensor)]
        tagged = [t for t in tensors if isinstance(t, Tagged)]
        with torch._C.DisableTorchFunctionSubclass():
            if name == "pin_memory":
                return args[0]
            if name in ("to", "cuda", "cpu") and tensors:
                return self._move(func, name, args, kwargs)
            kwargs.pop("pin_memory", None)
            wanted = kwargs.get("device")
            if _on_cuda(wanted):
                kwargs["device"] = "cpu"
                if not tagged:
                    self._upload(name, args)
            if tagged and not self.lenient:
                self._check(func, name, args, tensors)
            out = func(*args, **kwargs)
        if name in HOST_ONLY or (wanted is not None and not _on_cuda(wanted)):
            return out
        if name == "type_as" and tensors:
            tagged = [tensors[1]] if isinstance(tensors[1], Tagged) else []
        if tagged or _on_cuda(wanted):
            first = args[0] if args else None
            if not (isinstance(first, Tensor) and out is first):
                out = _tag(out)
            if self.capturing is not None and name not in ("__get__", "size", "dim", "stride"):
                self.capturing.calls.append((func, args, kwargs, out))
        return out

    def _upload(self, name: str, args: tuple[Any, ...]) -> None:
        if name in ("tensor", "as_tensor"):
            self._wait(name)

    def _move(
        self, func: Callable[..., Any], name: str, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """``to``, ``cpu``, ``cuda`` of the first argument."""
        self_, rest = args[0], list(args[1:])
        here = isinstance(self_, Tagged)
        goes: bool | None = {"cpu": False, "cuda": True}.get(name)
        if name == "to":
            for place, value in [*enumerate(rest), *kwargs.items()]:
                if isinstance(value, Tensor):
                    goes = isinstance(value, Tagged)
                elif place in (0, "device") and isinstance(value, torch.device | str | int):
                    goes = _on_cuda(value) or (isinstance(value, int) and place == 0)
                    if isinstance(place, int):
                        rest[place] = "cpu"
                    else:
                        kwargs[place] = "cpu"
            out = func(self_, *rest, **kwargs)
        else:
            out = self_
        if goes is None or goes == here:
            moved = _tag(out) if here and out is not self_ else out
        else:
            if here or not kwargs.get("non_blocking"):
                self._wait("to host" if here else "to device")
            out = out.clone()
            moved = _tag(out) if goes else _untag(out)
        if self.capturing is not None and here and goes is not False and moved is not self_:
            self.capturing.calls.append((func, (self_, *rest), kwargs, moved))
        return moved

    def _check(
        self, func: Callable[..., Any], name: str, args: tuple[Any, ...], tensors: list[Tensor]
    ) -> None:
        if name in HOST_ONLY:
            raise TypeError("can't convert cuda:0 device type tensor to numpy; use Tensor.cpu()")
        if name in WAITS or (name == "repeat_interleave" and len(tensors) > 1):
            self._wait(name)
        if name in ("__getitem__", "__setitem__", "index_put_", "index_put"):
            self._check_index(name, args)
            return
        if name in CROSSES or (name.startswith("_") and not name.startswith("__")):
            return
        plain = [t for t in tensors if not isinstance(t, Tagged)]
        if any(t.dim() for t in plain):
            shapes = [
                (("cuda" if isinstance(t, Tagged) else "cpu"), list(t.shape)) for t in tensors
            ]
            raise RuntimeError(f"{name}: tensors on cuda:0 and cpu: {shapes}")

    def _check_index(self, name: str, args: tuple[Any, ...]) -> None:
        indexed, index = args[0], args[1]
        where = [t for t in tree_iter(index) if isinstance(t, Tensor)]
        if not isinstance(indexed, Tagged) and any(
            isinstance(t, Tagged) and t.dim() for t in where
        ):
            raise RuntimeError(f"{name}: a CPU tensor indexed by one on cuda:0")
        if any(t.dtype == torch.bool for t in where):
            self._wait(f"{name} by a mask")
        if any(not isinstance(t, Tagged) and t.dim() for t in where) or any(
            isinstance(i, list) for i in (index if isinstance(index, tuple) else (index,))
        ):
            self._wait(f"{name} by a host index")
        if any(isinstance(t, Tagged) and t.dim() == 0 and t.dtype != torch.bool for t in where):
            self._wait(f"{name} by a device scalar")
        if name == "__setitem__" and where and isinstance(args[2], Tensor):
            value = args[2]
            if isinstance(value, Tagged) != isinstance(indexed, Tagged) and value.dim():
                raise RuntimeError(f"{name}: values and destination on different devices")

    def _wait(self, what: str) -> None:
        if self.capturing is not None:
            raise RuntimeError(f"operation not permitted when stream is capturing: {what}")
        frame = sys._getframe(1)
        while frame is not None:
            file = frame.f_code.co_filename
            if "/drafters/" in file and "fake_device" not in file:
                self.waits[f"{file.rsplit('/drafters/', 1)[1]}:{frame.f_lineno} {what}"] += 1
                return
            frame = frame.f_back  # type: ignore[assignment]


class Event:
    """Stands for ``torch.cuda.Event``."""

    def __init__(self, *_: Any, **__: Any) -> None:
        self.at = 0.0

    def record(self, *_: Any) -> None:
        self.at = time.perf_counter()

    def elapsed_time(self, other: Event) -> float:
        return 1e3 * (other.at - self.at)

    def synchronize(self) -> None: ...

    def wait(self, *_: Any) -> None: ...

    def query(self) -> bool:
        return True


class Stream:
    """Stands for ``torch.cuda.Stream``."""

    def __init__(self, *_: Any, **__: Any) -> None: ...

    def wait_stream(self, *_: Any) -> None: ...

    def wait_event(self, *_: Any) -> None: ...

    def record_event(self, *_: Any) -> Event:
        return Event()

    def synchronize(self) -> None: ...


def _cuda_mocks(device: Device) -> dict[str, Any]:
    pools: dict[Any, list[Graph]] = {}
    handles = itertools.count()

    @contextlib.contextmanager
    def graph(made: Graph, *_: Any, pool: Any = None, **__: Any) -> Iterator[None]:
        if device.capturing is not None:
            raise RuntimeError("a capture is under way")
        earlier = pools.setdefault(pool, []) if pool is not None else []
        for other in earlier:
            other.later.append(made)
        earlier.append(made)
        device.capturing = made
        try:
            yield
        finally:
            device.capturing = None

    def synchronize(*_: Any) -> None:
        if device.capturing is not None:
            raise RuntimeError("synchronize while capturing")

    @contextlib.contextmanager
    def stream(*_: Any) -> Iterator[None]:
        yield

    properties = SimpleNamespace(
        name=NAME, total_memory=80 << 30, multi_processor_count=132, major=9, minor=0
    )
    return {
        "is_available": lambda: True, "device_count": lambda: 1, "current_device": lambda: 0,
        "synchronize": synchronize, "empty_cache": lambda: None, "init": lambda: None,
        "set_device": lambda *_: None, "is_initialized": lambda: True, "ipc_collect": lambda: None,
        "get_device_name": lambda *_: NAME, "get_device_properties": lambda *_: properties,
        "get_device_capability": lambda *_: (9, 0), "is_bf16_supported": lambda *_: True,
        "mem_get_info": lambda *_: (70 << 30, 80 << 30), "memory_allocated": lambda *_: 0,
        "max_memory_allocated": lambda *_: 0, "reset_peak_memory_stats": lambda *_: None,
        "memory_reserved": lambda *_: 0, "manual_seed_all": lambda *_: None,
        "manual_seed": lambda *_: None, "_is_in_bad_fork": lambda: False,
        "is_current_stream_capturing": lambda: device.capturing is not None,
        "Event": Event, "Stream": Stream, "stream": stream, "current_stream": lambda *_: Stream(),
        "default_stream": lambda *_: Stream(), "CUDAGraph": Graph, "graph": graph,
        "graph_pool_handle": lambda: (0, next(handles)),
    }  # fmt: skip


@contextlib.contextmanager
def emulated() -> Iterator[Device]:
    """A device for the code inside; see the module."""
    from drafters import kernels, provenance
    from drafters.kernels import dispatch

    device, autocast, save = Device(), torch.autocast, torch.save
    backward, overwrite = (
        Tensor.backward,
        torch.__future__.get_overwrite_module_params_on_conversion(),
    )

    def on_cpu(kind: str, *args: Any, **kwargs: Any) -> Any:
        return autocast("cpu", *args, **kwargs)

    def leniently(work: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            device.lenient += 1
            try:
                return work(*args, **kwargs)
            finally:
                device.lenient -= 1

        return run

    def kernel(operation: str, tensor: Tensor) -> Callable[..., Any]:
        """The reference; a capture records it as one launch, whatever it reads on the host."""
        work = dispatch._load(operation, "reference")

        def launch(*args: Any) -> Any:
            tensors = [x for x in tree_iter(args) if isinstance(x, Tensor)]
            if isinstance(tensor, Tagged) and not all(isinstance(x, Tagged) for x in tensors):
                raise RuntimeError(f"{operation}: a kernel got a tensor on cpu")
            graph, device.capturing = device.capturing, None
            try:
                out = leniently(work)(*args)
            finally:
                device.capturing = graph
            if graph is not None:
                graph.calls.append((work, args, {}, out))
            return out

        return launch

    def save_plain(value: Any, *args: Any, **kwargs: Any) -> None:
        save(tree_map_only(Tensor, lambda t: _untag(t.detach()), value), *args, **kwargs)

    with contextlib.ExitStack() as stack:
        for name, value in _cuda_mocks(device).items():
            stack.enter_context(mock.patch.object(torch.cuda, name, value))
        for owner, name, value in (
            (torch, "autocast", on_cpu), (torch, "save", save_plain),
            (kernels, "implementation", kernel),
            (provenance, "driver_version", lambda device: "emulated"),
            (Tensor, "backward", leniently(backward)),
            (torch.optim.AdamW, "step", leniently(torch.optim.AdamW.step)),
            (torch.nn.utils, "clip_grad_norm_", leniently(torch.nn.utils.clip_grad_norm_)),
        ):  # fmt: skip
            stack.enter_context(mock.patch.object(owner, name, value))
        torch.__future__.set_overwrite_module_params_on_conversion(True)
        stack.callback(torch.__future__.set_overwrite_module_params_on_conversion, overwrite)
        stack.enter_context(device)
        yield device
