"""One trial under guard: an alarm after 30 s, the growth of the resident set, and a limit on the address space behind it."""

import contextlib
import faulthandler
import re
import resource
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

SECONDS = 30.0
MOST_BYTES = 512 << 20  # growth of the resident set in one trial (VmHWM of Linux, set back before each)
ADDRESSES = 6 << 30  # growth of the address space that is allowed at all: what asks for more gets a MemoryError, and the machine lives
STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


class Hang(BaseException):
    """Not an Exception: no reader may take it for a damaged file."""


@dataclass(frozen=True)
class Outcome:
    """`error` is what was raised (None: nothing), `value` what was read, `grown` the bytes of memory at the peak."""

    value: Any
    error: BaseException | None
    grown: int


def watched(do: Callable[[], Any]) -> Outcome:
    """Runs a trial. Memory is counted where Linux tells it; else only hangs and errors are seen."""
    before = _peak() if _reset() else None
    value, error = None, None
    try:
        with _alarm(), _address_limit():
            value = do()
    except (Exception, Hang) as problem:  # noqa: BLE001 (judging them is what this is for)
        error = problem
    return Outcome(value, error, 0 if before is None else _peak() - before)


@contextlib.contextmanager
def _alarm() -> Iterator[None]:
    def ring(number: int, frame: FrameType | None) -> None:
        raise Hang(f"not done after {SECONDS:.0f} s")

    handler = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    faulthandler.dump_traceback_later(3 * SECONDS, exit=True, file=sys.__stderr__)  # where compiled code does not come back to hear the alarm
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)


@contextlib.contextmanager
def _address_limit() -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_AS)
    size = _field("VmSize")
    if size:
        resource.setrlimit(resource.RLIMIT_AS, (size + ADDRESSES, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def _reset() -> bool:
    try:
        CLEAR.write_text("5")
    except OSError:
        return False
    return True


def _peak() -> int:
    return _field("VmHWM")


def _field(name: str) -> int:
    found = re.search(rf"^{name}:\s+(\d+) kB$", STATUS.read_text(), re.MULTILINE) if STATUS.exists() else None
    return int(found[1]) << 10 if found else 0
