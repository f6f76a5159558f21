"""Processes that train one model together, started by torchrun: who they are, what they average, and how all of them end.

In every step each process says once, over the network of the hosts, whether it goes on. Only when all do is anything averaged, so that no
process waits for one that will not come: a process that fails says so where the others ask. Nothing else is sent between them while training.
"""

import contextlib
import datetime
import os
import signal
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor, nn

from lib.errors import InputError

WAIT = datetime.timedelta(days=7)  # the others wait while the first process validates and saves; a lost connection ends it at once
LAST_WAIT = datetime.timedelta(minutes=2)  # a process that has failed ends alone when the others are not heard of for that long

_store: dist.Store | None = None


class OtherFailed(Exception):
    """Another process of this run failed. Without a message: it says why itself."""

    def __init__(self, exit_code: int, message: str = "") -> None:
        super().__init__(message)
        self.exit_code = exit_code


def count() -> int:
    """Number of processes that train together; 1 without torchrun."""
    return dist.get_world_size() if _store is not None else 1


def rank() -> int:
    """Number of this process among them."""
    return dist.get_rank() if _store is not None else 0


def is_first() -> bool:
    """Whether this process is the one that prints and writes."""
    return rank() == 0


def local_rank() -> int:
    """Number of this process on its machine, which is that of its GPU."""
    return int(os.environ["LOCAL_RANK"]) if _store is not None else 0


def local_count() -> int:
    """Number of processes that train together on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", count())) if _store is not None else 1


@contextlib.contextmanager
def joined(together: bool) -> Iterator[None]:
    """Context in which the processes that torchrun started are one run; only the first one's stdout is seen.

    Raises InputError for a script whose processes cannot work `together`.
    """
    global _store
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or "LOCAL_RANK" not in os.environ:
        yield
        return
    if not together:
        if os.environ["RANK"] != "0":
            raise SystemExit(InputError.exit_code)
        raise InputError("this script is one process; start it with python instead of torchrun")
    # Tensors of the host go over gloo, those of a GPU over NCCL.
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() and dist.is_nccl_available() else "gloo"
    store, own, size = next(iter(dist.rendezvous("env://")))
    dist.init_process_group(backend, store=store, rank=own, world_size=size, timeout=WAIT)
    _store = dist.PrefixStore("run", store)
    try:
        with Path(os.devnull).open("w") as nowhere, contextlib.redirect_stdout(sys.stdout if is_first() else nowhere):
            yield
    except Exception as error:
        # A bug: its traceback is shown once.
        first = is_first_to_fail(1)
        leave(1)
        if first:
            raise
        raise SystemExit(1) from error
    finally:
        _store = None
        dist.destroy_process_group()


def is_first_to_fail(exit_code: int) -> bool:
    """Whether it is on this process to say why the run ends: of all that fail, one does."""
    if _store is None:
        return True
    try:
        first = _store.add("failures", 1) == 1
        if first:
            _store.set("exit_code", str(exit_code))
        return first
    except RuntimeError:  # whoever kept the store is gone
        return True


def leave(exit_code: int, *, heard: bool = False) -> int:
    """Ends when all processes do, so that none is ended by torchrun while it saves; returns the exit code of the run.

    `exit_code` above 0 tells the others to end; `heard`: another process told this one.
    """
    if _store is None:
        return exit_code
    if not heard:
        try:
            _agree(failure=exit_code, wait=LAST_WAIT if exit_code else WAIT)
        except OtherFailed as failed:
            exit_code = failed.exit_code
    with contextlib.suppress(OtherFailed):
        _agree(wait=LAST_WAIT)
    # torchrun ends the others as soon as one has ended: all keep the exit code they have in common.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    return exit_code


def wait_for_all() -> None:
    """Waits until every process is here. Raises OtherFailed where one fails instead."""
    if _store is not None:
        _agree()


def agree_on(state: str, what: str) -> None:
    """Raises InputError unless every process says the same `state` of `what`."""
    if _store is None:
        return
    if is_first():
        _store.set("state", state)
    _agree()
    if _store.get("state").decode() != state:
        raise InputError(f"process {rank()} does not have {what} of process 0: start all of them with the same command, in folders that "
                         "all machines share")
    _agree()


@torch.no_grad()
def copy_from_first(tensors: Iterable[Tensor]) -> None:
    """Every process takes over the values of the first one."""
    if _store is None:
        return
    for tensor in tensors:
        values = tensor.contiguous()
        dist.broadcast(values, src=0)
        tensor.copy_(values)


@dataclass(frozen=True)
class Pass:
    """What one pass forth and back made: the gradient of every trained parameter (None where it has none), and numbers to report."""

    gradients: list[Tensor | None]
    values: Float[Tensor, "K"]

    def flat(self, parameters: Sequence[nn.Parameter]) -> Float[Tensor, "D"]:
        """All in one row, with 0 for what is missing."""
        pairs = zip(self.gradients, parameters, strict=True)
        return torch.cat([*((torch.zeros_like(own) if gradient is None else gradient).flatten() for gradient, own in pairs), self.values])


class Exchange:
    """What `processes` tell each other in a step. One process alone exchanges nothing."""

    def __init__(self, processes: int = 1, received: Callable[[], int | None] = lambda: None) -> None:
        """`received`: the number of the signal that this process was sent."""
        self.processes, self._received, self._agreed = processes, received, 0

    @property
    def stop(self) -> int | None:
        """The signal that says when to stop: with several processes the same in all of them after every step."""
        return self._received() if self.processes == 1 else self._agreed or None

    @torch.no_grad()
    def mean(self, parameters: Sequence[nn.Parameter], passes: Sequence[Pass]) -> Float[Tensor, "K"]:
        """Sets the gradients to the mean over the passes of all processes, all of which make as many; returns the mean of the values.

        A single pass of a process alone stays as it is. Elsewhere a gradient that is missing counts as 0, so that an optimizer treats every
        parameter alike in all processes. On a CPU sums are pairwise: 2^n samples give the same bits, whatever 2^m processes share them.
        Raises OtherFailed, before anything changes, when another process does not get here.
        """
        if self.processes == 1 and len(passes) == 1:
            return passes[0].values
        flat = pairwise_sum([one.flat(parameters) for one in passes])
        gathered = [torch.empty_like(flat) for _ in range(self.processes)] if flat.device.type == "cpu" else []
        for parameter in parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        if self.processes > 1:
            self._agreed = _agree(told=self._received() or 0)  # after the last allocation: from here on all get through, or none
            with _lost_processes_are_noticed():
                if gathered:
                    dist.all_gather(gathered, flat)
                    flat = pairwise_sum(gathered)
                else:
                    dist.all_reduce(flat)
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        *means, values = flat.div_(self.processes * len(passes)).split([gradient.numel() for gradient in gradients] + [len(passes[0].values)])
        # In place: the memory of gradients may be that of a recorded graph.
        torch._foreach_copy_(gradients, [mean.view(gradient.shape) for mean, gradient in zip(means, gradients, strict=True)])
        return values


def pairwise_sum(tensors: Sequence[Tensor]) -> Tensor:
    """The sum in the order of a binary tree, whose subtrees of 2^n neighbours are sums in that order themselves."""
    while len(tensors) > 1:
        pairs = [tensors[index] + tensors[index + 1] for index in range(0, len(tensors) - 1, 2)]
        tensors = [*pairs, *tensors[2 * len(pairs):]]
    return tensors[0]


def _agree(failure: int = 0, told: int = 0, wait: datetime.timedelta = WAIT) -> int:
    """Waits until every process is here; returns the largest signal. Raises OtherFailed where another one brings a failure."""
    ballot = torch.tensor([failure, told])
    with _lost_processes_are_noticed():
        work = dist.all_reduce(ballot, dist.ReduceOp.MAX, async_op=True)
        assert work is not None
        work.wait(wait)
    worst, largest = ballot.tolist()
    if worst and not failure:
        raise OtherFailed(worst)
    return largest


@contextlib.contextmanager
def _lost_processes_are_noticed() -> Iterator[None]:
    """A connection that breaks becomes OtherFailed: with the exit code that was left behind, or a message where nobody left one."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        assert _store is not None
        try:
            told = int(_store.get("exit_code")) if _store.check(["exit_code"]) else 0
        except RuntimeError:
            told = 0
        message = "" if told else f"another process of this run ended without saying why; was it killed, for want of memory? ({error})"
        raise OtherFailed(told or 1, message) from error
