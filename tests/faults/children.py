"""Processes that run the project's commands until a fault meets them.

All are forked from one that has imported everything (a second instead of four), and none shares a thread with the tests.
"""

import contextlib
import importlib
import io
import multiprocessing
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Literal, Protocol
from unittest import mock

ROOT = Path(__file__).resolve().parents[2]
CONTEXT = multiprocessing.get_context("forkserver")
PATIENCE_S = 900.0
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
Then = Literal["go on", "stop", "write half"]
CHANGES = ("os.rename", "os.link", "os.remove", "os.mkdir", "os.rmdir")


@dataclass(frozen=True)
class Command:
    """`python -m <module> <words>` in the folder `place`, which all its relative paths start from."""

    module: str
    words: tuple[str, ...]
    place: Path


@dataclass(frozen=True)
class Ended:
    """How a command ended: its exit code, and all that it said on stderr."""

    code: int
    said: str

    def is_clear(self, *words: str) -> bool:
        """Whether it ended as bad input does, with one message (no traceback) that has one of the words."""
        message = self.said.rpartition("error: ")[2]
        return self.code == 2 and "error: " in self.said and "Traceback" not in self.said and any(word in message for word in words)


class Fault(Protocol):
    """What happens to a folder, and is mended later, in the process that works there."""

    def strike(self, place: Path) -> None: ...

    def mend(self, place: Path) -> None: ...


def start_server() -> None:
    """Imports everything once, in one thread."""
    CONTEXT.set_forkserver_preload(["pytest", "tests.faults.warm"])
    with mock.patch.dict(os.environ, {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}):
        process = CONTEXT.Process(target=os.getpid)
        process.start()
        process.join()


def execute(command: Command) -> Ended:
    """Runs it in this process, as its script does."""
    said, code = io.StringIO(), 0
    os.chdir(command.place)
    main = importlib.import_module(command.module).main
    with (Path(os.devnull).open("w") as nowhere, contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(said),
          mock.patch.object(sys, "argv", [command.module, *command.words])):
        try:
            importlib.import_module("lib.training.runtime").run(main, together="RANK" in os.environ)
        except SystemExit as ended:
            code = int(ended.code or 0)
        except BaseException:  # noqa: BLE001 (what users would see)
            traceback.print_exc()
            code = 1
    return Ended(code, said.getvalue())


def _report(connection: Connection, task: Any, arguments: tuple[Any, ...]) -> None:
    connection.send(task(*arguments))


def apart(task: Any, *arguments: Any) -> Any:
    """What `task` gives in a process of its own. Raises EOFError where that ends before."""
    ours, theirs = CONTEXT.Pipe(duplex=False)
    process = CONTEXT.Process(target=_report, args=(theirs, task, arguments))
    process.start()
    theirs.close()
    try:
        if not ours.poll(PATIENCE_S):
            raise TimeoutError(f"{arguments}: nothing for {PATIENCE_S:.0f} s")
        return ours.recv()
    finally:
        process.join(1.0)
        process.kill()
        process.join()


class Victim:
    """A command in a process that something happens to from outside."""

    def __init__(self, command: Command, event: int | None = None, then: Then = "go on") -> None:
        """`event`: the number of the change to files of its folder, from 1, of which it tells; `then` it goes on, stops there, or waits with
        half of that file written (where the change writes one as most of the project does)."""
        self._ours, theirs = CONTEXT.Pipe(duplex=False)
        self.process = CONTEXT.Process(target=_live, args=(command, event, then, theirs))
        self.process.start()
        theirs.close()

    def wait_for_event(self) -> bool:
        """Whether the event came before the end."""
        try:
            return self._ours.poll(PATIENCE_S) and self._ours.recv() == "event"
        except EOFError:
            return False

    def interrupt(self) -> None:
        """Ctrl-C, to one that stops at its event."""
        pid, deadline = self.process.pid, time.monotonic() + PATIENCE_S
        assert pid is not None
        while Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] != "T" and time.monotonic() < deadline:
            time.sleep(0.001)
        for sent in (signal.SIGINT, signal.SIGCONT):
            os.kill(pid, sent)

    def kill(self, through: tuple[int, ...] = (0,)) -> bool:
        """kill -9; whether it still lived. Else its exit code must be one of `through`."""
        self.process.kill()
        self.process.join()
        assert self.process.exitcode in (*through, -signal.SIGKILL)
        return self.process.exitcode == -signal.SIGKILL

    def end(self) -> int:
        """Its exit code, once it is through."""
        self.process.join(PATIENCE_S)
        assert self.process.exitcode is not None
        return self.process.exitcode


def _live(command: Command, event: int | None, then: Then, told: Connection) -> None:
    left, lock = [event], threading.Lock()

    def tell() -> None:
        with lock:
            left[0] -= 1
            now = left[0] == 0
        if now:
            told.send("event")
            if then == "stop":
                os.kill(os.getpid(), signal.SIGSTOP)
            elif then == "write half":
                Path.write_bytes = write_half  # type: ignore[method-assign]

    write = Path.write_bytes

    def write_half(path: Path, data: bytes) -> int:
        write(path, data[:len(data) // 2])
        os.kill(os.getpid(), signal.SIGSTOP)
        raise AssertionError("it was to be killed")

    if event is not None:
        on_changes(command.place, tell)
    ended = execute(command)
    if ended.code:
        print(ended.said, file=sys.stderr)
    sys.exit(ended.code)


def on_changes(place: Path, call: Callable[[], None]) -> None:
    """Calls it whenever this process is about to open for writing, rename, link or remove something in `place`."""
    inside = f"{place.resolve()}{os.sep}"

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open" and not (isinstance(arguments[0], str) and (arguments[2] or 0) & WRITING):
            return
        if event != "open" and event not in CHANGES:
            return
        relative = event != "open" and arguments[-1] >= 0  # to a folder that is open
        folder = os.readlink(f"/proc/self/fd/{arguments[-1]}") if relative else os.getcwd()  # noqa: PTH109, PTH115 (names come as text)
        if os.path.normpath(os.path.join(folder, os.fsdecode(arguments[0]))).startswith(inside):  # noqa: PTH118
            call()

    sys.addaudithook(hook)


def suffer(command: Command, fault: Fault) -> tuple[Ended, dict[str, bytes], Ended, dict[str, bytes]]:
    """A fault, the command, what files there are then; the fault mended, the same command again, and what there is at last."""
    fault.strike(command.place)
    first = execute(command)
    found = files(command.place)
    fault.mend(command.place)
    return first, found, execute(command), files(command.place)


def count_changes(command: Command) -> tuple[Ended, int]:
    """Runs it; how often it changed files of its folder."""
    seen: list[None] = []
    on_changes(command.place, lambda: seen.append(None))
    return execute(command), len(seen)


def files(place: Path) -> dict[str, bytes]:
    """All files."""
    return {str(path.relative_to(place)): path.read_bytes() for path in sorted(place.rglob("*")) if path.is_file()}
