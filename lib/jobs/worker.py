"""One attempt at a task: its stages one after the other, each as a process of its own.

Processes and not calls, because then a stage is exactly the command a person would type, in a fresh interpreter; whatever ends it (the kernel
when memory is short, a crash of a driver, a signal) is an exit code here, with the log beside it; and its GPU memory is free before the
next one starts. The worker itself needs no torch.

A stage never outlives its worker (on Linux), and a worker that is told to stop, by SIGTERM or by SIGUSR2 (submitit: time is up, or a
more important job came), tells its stage, which saves. So the same task can always be started again.
"""

import ctypes
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from lib.errors import InputError
from lib.files import Held, RunLock
from lib.jobs.log import begin_stage, last_words

STOPPED = 128 + signal.SIGTERM  # with which a stage ends that saved and was not finished
LOOK = 0.2  # seconds between looks at a stage
PARENT_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG of linux/prctl.h


@dataclass(frozen=True)
class Command:
    """A stage: the arguments of its process, the program first."""

    stage: str
    arguments: tuple[str, ...]


@dataclass(frozen=True)
class Task:
    """What an attempt does. `lock` is held meanwhile, `log` gets the output; `folders`, besides that of `lock`, are where its commands write."""

    name: str
    commands: tuple[Command, ...]
    lock: Path
    log: Path
    folders: tuple[Path, ...] = ()

    def held(self, by_others: bool = False) -> str:
        """Who writes the run, by this task or by hand, as a message; empty where nobody does. Raises InputError where nobody could.

        `by_others`: asked by the holder of `lock`, who would lose it by trying to take it again.
        """
        folders = {self.lock.parent, *self.folders}
        own = self.lock.resolve()
        for path in sorted({path.resolve() for folder in folders for path in folder.glob("*.lock")} | {own}):
            if by_others and path == own:
                continue
            try:
                with RunLock(path):
                    pass
            except Held as held:
                return str(held)
        return ""


@dataclass(frozen=True)
class Outcome:
    """How an attempt ended: the last stage and its exit code (0: all are done; below 0: killed by that signal). None: nothing was
    run, as another process writes the run."""

    code: int | None
    stage: str = ""
    message: str = ""


def attempt_task(task: Task, attempt: int, environment: dict[str, str], coordinator: int | None) -> Outcome:
    """Runs in the worker. `environment` is laid over its own. When process `coordinator` of this machine is gone, it stops; None: it goes on."""
    stop = _StopRequest(coordinator)
    signal.signal(signal.SIGTERM, stop.note)
    signal.signal(signal.SIGUSR2, stop.note)
    if coordinator is not None:
        _ask_for_signal(signal.SIGTERM)  # between the two there is a process of submitit
    try:
        with RunLock(task.lock):
            outcome = Outcome(0)
            if held := task.held(by_others=True):
                return Outcome(None, "", held)
            for command in task.commands:
                while task.held(by_others=True) and not stop:  # somebody came between two stages
                    time.sleep(LOOK)
                outcome = _run(command, task.log, attempt, os.environ | environment, stop)
                if outcome.code != 0:
                    break
            return outcome
    except Held as held:
        return Outcome(None, "", str(held))
    except InputError as error:
        return Outcome(error.exit_code, "", str(error))


class _StopRequest:
    def __init__(self, coordinator: int | None) -> None:
        self._coordinator, self._told = coordinator, False

    def note(self, number: int, frame: FrameType | None) -> None:
        self._told = True

    def __bool__(self) -> bool:
        if not self._told and self._coordinator is not None:
            try:
                os.kill(self._coordinator, 0)
            except (ProcessLookupError, PermissionError):  # gone, or its number belongs to another person's process by now
                self._told = True
        return self._told


def _run(command: Command, log: Path, attempt: int, environment: dict[str, str], stop: _StopRequest) -> Outcome:
    if stop:
        return Outcome(STOPPED, command.stage, "told to stop before it began")
    began, start = time.monotonic(), begin_stage(log, attempt, command.stage, command.arguments)
    with log.open("ab") as output:
        # Of its own session: a signal to the group of the worker would reach it without being noted here.
        process = subprocess.Popen(command.arguments, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, start_new_session=True,
                                   env=environment | {"PYTHONUNBUFFERED": "1"}, preexec_fn=_begin_stage_process)
    told = False
    while process.poll() is None:
        if stop and not told:
            told = True
            process.terminate()
        time.sleep(LOOK)
    code = process.returncode
    message = "" if code == 0 else f"killed by {signal.Signals(-code).name}" if code < 0 else last_words(log, start)
    with log.open("a", encoding="utf-8") as file:
        file.write(f"\n=== {command.stage} ended with exit code {code} after {time.monotonic() - began:.1f} s\n")
    return Outcome(STOPPED if told and code == -signal.SIGTERM else code, command.stage, message)


def _begin_stage_process() -> None:
    """Between fork and exec: signals as a person's shell would give them, but for the one that means the worker."""
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    _ask_for_signal(signal.SIGKILL)


def _ask_for_signal(number: int) -> None:
    """What this process gets when its parent ends."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PARENT_DEATH_SIGNAL, number)
