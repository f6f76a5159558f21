"""Drawing of fixed shapes, recorded once in a CUDA graph and replayed: the host then starts one thing instead of hundreds."""

from collections.abc import Callable

import torch
from torch import Tensor

from lib.kernels import triton_missing
from lib.render.gaussian.contract import Capacity

INPUTS_IN_FLIGHT = 4  # sets of inputs that the host may write before the device has read the first
WARM_UP = 2  # calls before recording: they compile kernels and choose algorithms


def can_record(device: torch.device) -> bool:
    """Whether drawings of float32 Gaussians on this device can be recorded: kernels draw them there, not the reference."""
    return device.type == "cuda" and triton_missing(False) is None


class Replay:
    """Calls `draw`, a function of CUDA tensors of fixed shapes, by replaying what it once did; inputs come from the host.

    Results are overwritten by the next call; where there was too little room they are NaN, and `capacity.needed`, on the device, tells.
    """

    def __init__(self, draw: Callable[..., Tensor], capacity: Capacity, device: torch.device) -> None:
        """`draw` must draw Gaussians with this capacity, and with nothing else that asks the device."""
        self._draw, self._device, self.capacity = draw, device, capacity
        self._inputs: tuple[Tensor, ...] = ()
        self._graph: torch.cuda.CUDAGraph | None = None

    def __call__(self, *inputs: Tensor) -> Tensor:
        """Starts drawing; does not wait for it. `inputs`: float32 on the CPU, of the same shapes every time."""
        with torch.cuda.device(self._device):
            if not self._inputs:
                self._make_inputs(inputs)
            self._send(inputs)
            if self._graph is None or self._recorded_for != self.capacity.pairs:
                self._record()
            self._graph.replay()
        self.capacity.needed = self._needed  # an eager drawing with the same capacity may have put another there
        return self._result

    def _make_inputs(self, inputs: tuple[Tensor, ...]) -> None:
        """One place on the device for all inputs, so that one copy brings them."""
        sizes = [-(-value.numel() // 4) * 4 for value in inputs]  # aligned to 16 bytes, as kernels want
        self._flat = torch.zeros(sum(sizes), device=self._device)
        self._inputs = tuple(part[:value.numel()].view(value.shape) for part, value in zip(self._flat.split(sizes), inputs, strict=True))
        self._staged = torch.zeros(INPUTS_IN_FLIGHT, len(self._flat), pin_memory=True)
        self._places = [row.split(sizes) for row in self._staged]
        self._read = [torch.cuda.Event() for _ in range(INPUTS_IN_FLIGHT)]
        self._turn = 0

    def _send(self, inputs: tuple[Tensor, ...]) -> None:
        row, self._turn = self._turn, (self._turn + 1) % INPUTS_IN_FLIGHT
        self._read[row].synchronize()
        for place, value in zip(self._places[row], inputs, strict=True):
            place[:value.numel()] = value.flatten()
        self._flat.copy_(self._staged[row], non_blocking=True)
        self._read[row].record()

    def _record(self) -> None:
        torch.cuda.synchronize()  # an earlier graph may still be drawing in the memory that it gives back
        self._graph = None
        stream, search = torch.cuda.Stream(), torch.backends.cudnn.benchmark
        stream.wait_stream(torch.cuda.current_stream())
        torch.backends.cudnn.benchmark = True  # shapes stay: it is worth looking for the fastest convolutions
        try:
            with torch.cuda.stream(stream):
                for _ in range(WARM_UP):
                    self._draw(*self._inputs)
            torch.cuda.current_stream().wait_stream(stream)
            self._graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self._graph, capture_error_mode="thread_local"):
                self._result = self._draw(*self._inputs)
        finally:
            torch.backends.cudnn.benchmark = search
        self._needed, self._recorded_for = self.capacity.needed, self.capacity.pairs
