"""Launches of Triton and Gluon kernels that cost the host little.

Triton looks at every argument of every launch, which takes longer than the smaller kernels here. A `Launch` lets it do so once for
every set of numbers, and then starts what was compiled with the addresses alone. `Replays` does without launches where the same
addresses come again, as they do in a loop, where the allocator hands out what was freed a step before.
"""

import ctypes
import math
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from jaxtyping import UInt8
from torch import Tensor

HANG = 20.0  # seconds
ALIGNMENT = 256  # bytes: of the parts of an allocation
KEPT = 1024  # sets of numbers per kernel
GRAPHS, GAIN, SEEN = 16, 8, 64  # graphs kept; replays per graph that make others worth recording; keys remembered until they come again


class Launch:
    """A kernel whose parameters are tensors, then integers, then constants; the latter are given here by name.

    Tensors must keep their types and be aligned to 16 bytes (see `aligned`): Triton compiles another kernel for others.
    """

    def __init__(self, kernel: Any, warps: int, options: tuple[tuple[str, Any], ...] = (), **constants: Any) -> None:
        self.kernel, self.constants = kernel, {**constants, "num_warps": warps, **dict(options)}
        self.tail = tuple(constants[name] for name in kernel.arg_names[len(kernel.arg_names) - len(constants):])
        self.bound: dict[tuple, tuple] = {}

    def __call__(self, grid: tuple[int, ...], tensors: tuple[Tensor, ...], integers: tuple[int, ...]) -> None:
        """Starts it on the current stream of the tensors' device, which must be the current one."""
        device = tensors[0].get_device()
        bound = self.bound.get((grid, integers, device))
        if bound is None:
            compiled = self.kernel[grid](*tensors, *integers, **self.constants)
            if compiled is not None:  # the interpreter gives none
                if len(self.bound) >= KEPT:
                    self.bound.clear()
                head = (*grid, 1, 1)[:3]
                handles = compiled.function, compiled.packed_metadata, None, None, None
                self.bound[grid, integers, device] = compiled.run, head, handles, integers + self.tail
            return
        run, head, handles, rest = bound
        run(*head, torch._C._cuda_getCurrentRawStream(device), *handles, *[tensor.data_ptr() for tensor in tensors], *rest)


class Replays:
    """Chains of launches by what they are started with. One that comes again is recorded in a CUDA graph, which then is replayed."""

    def __init__(self) -> None:
        self.graphs: dict[tuple, torch.cuda.CUDAGraph] = {}
        self.seen: set[tuple] = set()
        self.replayed = 0

    def start(self, key: tuple, chain: Callable[[], None]) -> None:
        """On the current stream. `key`: all that decides what is launched, with the addresses; `chain` must only launch.

        Addresses that rarely come again are not worth recording: a graph costs as much as some ten chains.
        """
        if torch.cuda.is_current_stream_capturing():
            chain()
            return
        graph = self.graphs.get(key)
        if graph is None:
            if key not in self.seen or len(self.graphs) >= GRAPHS and self.replayed < GAIN * len(self.graphs):
                if len(self.seen) >= SEEN:
                    self.seen.clear()
                self.seen.add(key)
                chain()
                return
            if len(self.graphs) >= GRAPHS:
                self.graphs.clear()
                self.replayed = 0
            graph = self.graphs[key] = _recorded(chain)
        self.replayed += 1
        graph.replay()


def _recorded(chain: Callable[[], None]) -> torch.cuda.CUDAGraph:
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.stream(torch.cuda.Stream()):
        graph.capture_begin(capture_error_mode="thread_local")
        try:
            chain()
        finally:
            graph.capture_end()
    return graph


Parts = dict[str, tuple[tuple[int, ...], torch.dtype]]  # shapes and types of tensors by name


class Layout:
    """Tensors that share one allocation: the host allocates once, and looks at the parts only where it must."""

    def __init__(self, parts: Parts) -> None:
        self.parts, self.size = {}, 0
        for name, (shape, dtype) in parts.items():
            length = math.prod(shape) * dtype.itemsize
            self.parts[name] = slice(self.size, self.size + length), shape, dtype
            self.size += -(-length // ALIGNMENT) * ALIGNMENT

    def allocate(self, like: Tensor) -> UInt8[Tensor, "S"]:
        """Room for all of them, on the device of a tensor."""
        return like.new_empty(self.size, dtype=torch.uint8)

    def carve(self, storage: UInt8[Tensor, "S"]) -> dict[str, Tensor]:
        """Where they are."""
        return {name: storage[place].view(dtype).view(shape) for name, (place, shape, dtype) in self.parts.items()}


class HostWords:
    """Integers in memory that the device writes and the host reads, without a call of the driver."""

    def __init__(self, count: int) -> None:
        self.tensor = torch.empty(count, dtype=torch.int64, pin_memory=True)
        self._words = (ctypes.c_int64 * count).from_address(self.tensor.data_ptr())
        self._expected = False

    def clear(self) -> None:
        """Before the kernel that writes them is started."""
        if self._expected:  # somebody was interrupted: the old numbers must not come after the clearing
            torch.cuda.synchronize()
        self._expected = True
        for place in range(len(self._words)):
            self._words[place] = -1

    def wait(self) -> tuple[int, ...]:
        """What the kernel has written, which must not be negative. Raises what has gone wrong on the device if it never does."""
        end = time.monotonic() + HANG
        while min(self._words) < 0:
            if time.monotonic() > end:
                torch.cuda.synchronize()
                if min(self._words) < 0:
                    raise RuntimeError("the device is done but has not told how much room a drawing needs: were its kernels not started?")
        self._expected = False
        return tuple(self._words)


def on_device(tensor: Tensor) -> AbstractContextManager[object]:
    """Makes the device of a tensor the current one, if it is not."""
    device = tensor.get_device()
    return nullcontext() if device < 0 or device == torch._C._cuda_getDevice() else torch.cuda.device(device)


def aligned(tensor: Tensor) -> Tensor:
    """The tensor, contiguous and from an address divisible by 16."""
    if not tensor.is_contiguous():
        return tensor.contiguous()
    return tensor if tensor.data_ptr() % 16 == 0 else tensor.clone()
