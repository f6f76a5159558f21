"""Notices steps whose numbers are not finite without waiting for the device, which skips them by itself."""

from collections import deque
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from lib.errors import NumericalError

IN_A_ROW = 5  # skipped steps that end a run
BEHIND = 4  # steps that the host may be ahead of what it knows


@dataclass(frozen=True)
class _Noted:
    step: int
    names: tuple[str, ...]
    values: Float[Tensor, "K"]
    there: torch.cuda.Event | None


class NumberWatch:
    """Of one training. `step` is the number of the step that is noted next; `skipped` counts those that changed nothing."""

    def __init__(self) -> None:
        self.step, self.skipped, self._row = 0, 0, 0
        self._noted: deque[_Noted] = deque()
        self._lines: list[str] = []

    def note(self, names: tuple[str, ...], values: Float[Tensor, "K"]) -> None:
        """Numbers of a step, on its device, all finite unless it is skipped. Looks at those of steps before that have arrived.

        Raises NumericalError when IN_A_ROW steps in a row were skipped.
        """
        there = None
        if values.is_cuda:
            on_host = torch.empty(values.shape, pin_memory=True)
            values, there = on_host.copy_(values, non_blocking=True), torch.cuda.Event()
            there.record()
        self._noted.append(_Noted(self.step, names, values, there))
        while self._noted and (len(self._noted) > BEHIND or self._noted[0].there is None or self._noted[0].there.query()):
            self._look(self._noted.popleft())

    def settle(self) -> None:
        """Waits for all that was noted."""
        while self._noted:
            self._look(self._noted.popleft())

    def lines(self) -> list[str]:
        """What there is to say about skipped steps, once."""
        lines, self._lines = self._lines, []
        return lines

    def _look(self, noted: _Noted) -> None:
        if noted.there is not None:
            noted.there.synchronize()
        broken = [f"{name} = {value:.4g}" for name, value in zip(noted.names, noted.values.tolist(), strict=True) if not abs(value) < float("inf")]
        self._row = self._row + 1 if broken else 0
        if broken:
            self.skipped += 1
            said = f"step {noted.step} changed nothing, as its numbers are not finite ({', '.join(broken)}); {self.skipped} skipped so far"
            self._lines.append(said)
            if self._row == IN_A_ROW:
                raise NumericalError(f"{IN_A_ROW} steps in a row had numbers that are not finite, the last, step {noted.step}, {', '.join(broken)}; "
                                     "none of them changed a weight")
