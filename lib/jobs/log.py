"""The log of a task: one file with the output of all its stages and attempts, from which is read how far it is."""

import re
import shlex
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from lib.files import make_folder

BEGIN = re.compile(r"^=== attempt (\d+), (\S+), ")
# What the scripts show anyway: progress bars (` 40/800 [`) and the lines of the trainer (`step 200/800`).
STEP = re.compile(r"(?:\| *|\bstep )(\d+)/(\d+)\b")
LONGEST = 2**16  # bytes of an unfinished line that are kept


@dataclass(frozen=True)
class Progress:
    """The stage that a task began last, and how far that is (0 of 0: not known yet)."""

    attempt: int = 0
    stage: str = ""
    step: int = 0
    steps: int = 0


def begin_stage(log: Path, attempt: int, stage: str, arguments: Sequence[str]) -> int:
    """Writes the line that a stage's output follows; returns where (bytes) that output begins."""
    make_folder(log.parent)
    with log.open("a", encoding="utf-8") as file:
        file.write(f"\n=== attempt {attempt}, {stage}, {time.strftime('%Y-%m-%d %H:%M:%S')}: {shlex.join(arguments)}\n")
        return file.tell()


def last_words(log: Path, start: int) -> str:
    """Why a stage ended, from its output: the error it told the user, else its last line."""
    with log.open("rb") as file:
        file.seek(start)
        lines = re.split(r"[\r\n]+", file.read().decode("utf-8", "replace").strip())
    told = next((row for row in range(len(lines) - 1, -1, -1) if lines[row].startswith("error: ")), None)
    return lines[-1] if told is None else "\n".join(lines[told:]).removeprefix("error: ")


class LogReader:
    """Reads what is new in a log that others write."""

    def __init__(self, path: Path) -> None:
        self.path, self.progress = path, Progress()
        self._rest = b""
        self._offset = path.stat().st_size if path.exists() else 0  # what is there is of earlier runs

    def read(self) -> Progress:
        """How far the task is now."""
        try:
            with self.path.open("rb") as file:
                file.seek(self._offset)
                new = file.read()
        except FileNotFoundError:
            return self.progress
        self._offset += len(new)
        *lines, rest = re.split(rb"[\r\n]", self._rest + new)
        self._rest = rest[-LONGEST:]
        for line in (*lines, rest):  # a progress bar ends where the next one begins
            self._note(line.decode("utf-8", "replace"))
        return self.progress

    def _note(self, line: str) -> None:
        begun = BEGIN.match(line)
        if begun:
            self.progress = Progress(int(begun[1]), begun[2])
            return
        found = STEP.findall(line)
        if found:
            step, steps = map(int, found[-1])
            self.progress = replace(self.progress, step=step, steps=steps)
