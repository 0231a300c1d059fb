"""Replaying the same launches: what a step's device work costs a host that launches it once.

A captured function reads static inputs and leaves static outputs: the host fills ``Inputs``, sends
them in one copy, and replays. Off CUDA a replay is the same call again, so that buffers, padding
and indices are those of a graph and can be tested anywhere.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import cache
from typing import Generic, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
import torch

from drafters.kernels.dispatch import backend

T = TypeVar("T")
Arrays = dict[str, npt.NDArray[np.int64]]
"""Arrays on the host by name."""
WARM_UPS = 2
_log = logging.getLogger(__name__)


def captured_sizes(last: int) -> tuple[int, ...]:
    """1, 2, 3, 4, 6, 8, 12, .. up to the first that is not below ``last``: a pass is padded to the
    next one, by a third at most."""
    sizes = [1, 2]
    while sizes[-1] < last:
        sizes.append(sizes[-2] * 2 if len(sizes) % 2 else sizes[-1] * 3 // 2)
    return tuple(sizes)


def powers_of_two(last: int) -> tuple[int, ...]:
    """1, 2, 4, .. up to the first that is not below ``last``."""
    return tuple(2**i for i in range(max(last - 1, 0).bit_length() + 1))


def next_size(sizes: tuple[int, ...], wanted: int) -> int:
    """The smallest of ascending ``sizes`` that holds ``wanted``; 0 where none does."""
    return next((size for size in sizes if size >= wanted), 0)


class Inputs:
    """Integer arrays that a captured function reads: host side, device side, one copy between.

    ``host`` and ``at`` hold [shape] int64 views by name; other types go through ``.view``.
    """

    def __init__(self, shapes: dict[str, tuple[int, ...]], device: torch.device) -> None:
        counts = {name: int(np.prod(shape)) for name, shape in shapes.items()}
        # Even offsets keep every view on 16 bytes, which compiled kernels ask about.
        ends = np.cumsum([count + count % 2 for count in counts.values()])
        self._staging = torch.zeros(
            int(ends[-1]), dtype=torch.long, pin_memory=device.type == "cuda"
        )
        self._sent = torch.zeros(int(ends[-1]), dtype=torch.long, device=device)
        self.host: Arrays = {}
        self.at: dict[str, torch.Tensor] = {}
        for (name, shape), start in zip(shapes.items(), [0, *ends.tolist()], strict=False):
            part = slice(start, start + counts[name])
            self.host[name] = self._staging.numpy()[part].reshape(shape)
            self.at[name] = self._sent[part].view(shape)

    def send(self) -> None:
        """Copy what was written; the host must not write again before it has waited for it."""
        self._sent.copy_(self._staging, non_blocking=True)


class Pool(NamedTuple):
    """What graphs share that run one after the other."""

    handle: tuple[int, int]
    """Of their memory."""
    side: torch.cuda.Stream
    """Where they warm up: libraries keep a workspace for every stream that they have seen."""


class Replay(Generic[T]):
    """``call`` captured once and launched again; its result is overwritten by the next launch."""

    def __init__(self, call: Callable[[], T], pool: Pool | None) -> None:
        """``call`` runs a few times, on what its inputs hold, before it is captured into ``pool``;
        without one (off CUDA) it is called again each time."""
        # A captured call is kept: the graph reads the very tensors that it refers to.
        self._graph, self._call = None, call
        if pool is not None:
            self._graph, self.result = _capture(call, pool)
        else:
            self.result = call()

    def __call__(self) -> T:
        if self._graph is not None:
            self._graph.replay()
        else:
            self.result = self._call()
        return self.result


def _capture(call: Callable[[], T], pool: Pool) -> tuple[torch.cuda.CUDAGraph, T]:
    """The graph of ``call`` and its result; kernels are compiled and workspaces made before."""
    side = pool.side
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(WARM_UPS):
            call()
    torch.cuda.current_stream().wait_stream(side)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, pool=pool.handle):
        result = call()
    return graph, result


def memory_pool(device: torch.device) -> Pool | None:
    """A pool for graphs that run one after the other; None off CUDA.

    What one of them leaves lies where another may work: it must be read before the next one runs.
    """
    if device.type != "cuda":
        return None
    return Pool(torch.cuda.graph_pool_handle(), torch.cuda.Stream())


def wanted(asked: bool | None, device: str) -> bool:
    """Whether to capture graphs on ``device``: where it is CUDA and kernels run in Triton (plain
    torch looks at values on the host), unless told otherwise."""
    cuda = device.startswith("cuda")
    if cuda and asked is not False and backend("cuda") != "triton":
        say_once("steps run eagerly: captured graphs need Triton, which is not installed")
        return False
    if asked and not cuda:
        say_once(f"--graphs needs a CUDA device; steps on {device} run eagerly")
    return cuda and asked is not False


@cache
def say_once(text: str) -> None:
    """A line in the log, the first time."""
    _log.warning(text)
