"""The status table on a terminal and in a log."""

import io
import os
import re
from pathlib import Path

from lib.jobs import board
from lib.jobs.board import Board, status_table
from lib.jobs.coordinator import Report, State
from lib.jobs.log import Progress
from lib.jobs.worker import Task


def report(name: str, state: State, step: int = 0, attempt: int = 1, message: str = "", stage: str = "meshhead") -> Report:
    return Report(Task(name, (), Path("x.lock"), Path("x.log")), state, attempt, Progress(attempt, stage, step, 800 if stage else 0), 3725.0, message)


def screen(text: str) -> list[str]:
    """What a terminal shows of it."""
    lines, row = [""], 0
    for part in re.split(r"(\x1b\[\d*[AJ]|\n)", text):
        if part == "\n":
            row += 1
            lines += [""] * (row + 1 - len(lines))
        elif part.endswith("A") and part.startswith("\x1b"):
            row -= int(part[2:-1])
        elif part == "\x1b[J":
            lines = [*lines[:row], ""]
        else:
            lines[row] += part
    return lines


def test_a_terminal_shows_the_newest_table_and_nothing_of_the_others():
    file = io.StringIO()
    show = Board(file, in_place=True)
    rows = [report("alice", State.RUNNING, 10), report("bob", State.WAITING, attempt=0)]
    show(rows)
    show([report("alice", State.RUNNING, 800), report("bob", State.REFUSED, message="meshhead: dataset.dataroot: long " + "x" * 300)])
    show([report("alice", State.DONE), report("bob", State.FAILED, attempt=3)])
    assert screen(file.getvalue()) == [*status_table([report("alice", State.DONE), report("bob", State.FAILED, attempt=3)]).splitlines(), ""]


def test_no_line_is_wider_and_no_table_higher_than_the_terminal(monkeypatch):
    monkeypatch.setattr(board.shutil, "get_terminal_size", lambda: os.terminal_size((60, 10)))
    file = io.StringIO()
    show = Board(file, in_place=True)
    for step in range(3):
        states = [State.DONE] * 30 + [State.RUNNING] * 4 + [State.WAITING] * 16
        show([report(f"subject_{k}", state, step, message="y" * 200) for k, state in enumerate(states)])
    shown = screen(file.getvalue())
    assert max(map(len, shown)) < 60 and len(shown) <= 10
    assert [f"subject_{k}" in "\n".join(shown) for k in (30, 33, 0)] == [True, True, False]
    assert shown[-2] == "and 43 more: 30 done, 13 waiting"


def test_a_log_gets_a_line_per_change_and_none_for_a_step():
    file = io.StringIO()
    show = Board(file, in_place=False)
    show([report("alice", State.RUNNING, 1), report("bob", State.WAITING, attempt=0, stage="")])
    show([report("alice", State.RUNNING, 2), report("bob", State.WAITING, attempt=0, stage="")])
    show([report("alice", State.WAITING, 2, message="meshhead: killed by SIGKILL"), report("bob", State.RUNNING)])
    show([report("alice", State.RUNNING, 2, attempt=2, message="meshhead: killed by SIGKILL"), report("bob", State.RUNNING)])
    lines = file.getvalue().splitlines()
    assert lines == [
        "alice  meshhead  1/800  1  running  1:02:05",
        "bob  waiting  1:02:05",
        "alice  meshhead  2/800  1  waiting  1:02:05  meshhead: killed by SIGKILL",
        "bob  meshhead  0/800  1  running  1:02:05",
        "alice  meshhead  2/800  2  running  1:02:05  the attempt before: meshhead: killed by SIGKILL",
    ]


def test_what_is_done_shows_no_message_of_an_earlier_attempt():
    assert "killed" not in status_table([report("alice", State.DONE, message="killed")])
    assert "no picture" in status_table([report("alice", State.REFUSED, message="no\npicture")])
