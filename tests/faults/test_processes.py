"""Other processes, and the clock: a second one on the same folder, one that died there, one that dies beside this one, Ctrl-C, time running back."""

import multiprocessing
import os
import random
import signal
import socket
import time
from pathlib import Path
from unittest import mock

import pytest
import torch
import tqdm.std

from lib.avatars.gaussian_head_avatar.viewer.config import ViewerConfig
from lib.avatars.gaussian_head_avatar.viewer.watched import WatchedAvatar
from lib.files import RunLock
from preprocess import demo_subject
from tests.faults.children import CONTEXT, PATIENCE_S, Command, Ended, Victim, apart, execute, files
from tests.faults.test_kills import through
from tests.faults.workshop import EXPORTS, STEPS, TRAININGS, Workshop, checkpoints, leftovers
from tests.tiny import reenactment_dict

LOCKED = {
    **{stage: f"checkpoints/tiny/{stage}.lock" for stage in TRAININGS}, "video": "results/tiny/reenactment.lock",
    **{name: f"results/tiny/export/{name.removeprefix('export ')}.lock" for name in EXPORTS}, "evaluation": "results/tiny/evaluation.lock",
    "extraction": ".subject.lock", "one camera": ".subject.lock",
    "demo subject": ".demo.lock", "demo capture": ".filmed.lock",
}


@pytest.mark.cases(list(LOCKED), ["meshhead", "video", "export obj", "extraction"])
def test_a_second_process_is_refused_and_a_dead_one_is_not_waited_for(workshop: Workshop, ledger, tmp_path, name):
    reference, command = workshop.reference(name), workshop.place(name, tmp_path / "0")
    first = Victim(command, reference.changes * 3 // 4, "stop")
    assert first.wait_for_event()
    second = apart(execute, command)
    clear = second.is_clear(f"process {first.process.pid} on {socket.gethostname()} is writing")
    unharmed = not reference.strange(files(command.place))
    ledger.enter("two processes on one folder", clear, unharmed)
    assert clear and unharmed, second.said
    assert first.kill() and (command.place / LOCKED[name]).exists()  # its lock is stale from here on
    third = apart(execute, command)
    content = files(command.place)
    ledger.enter("lock of a dead process", third.code == 0, reference.same(content))
    assert third.code == 0 and reference.same(content) and leftovers(content) == []
    assert not (command.place / LOCKED[name]).exists()


def test_whoever_waited_for_a_lock_that_is_gone_takes_the_new_one(tmp_path, monkeypatch):
    """Between opening and locking, the process before removes the file: two must not hold locks of two files of one name."""
    path, open_ = tmp_path / "a.lock", Path.open

    def opened(self, *arguments, **options):
        file = open_(self, *arguments, **options)
        monkeypatch.undo()
        path.unlink()
        return file

    monkeypatch.setattr(Path, "open", opened)
    with RunLock(path):
        assert path.read_text().startswith(f"process {os.getpid()} on ")
    assert not path.exists()


@pytest.mark.cases(["meshhead", "gaussianhead", "extraction", "one camera", "video", "export ply", "export GaussianAvatars", "submission", "3DMM",
                    "check", "demo subject", "demo capture"], ["gaussianhead", "extraction", "video"])
def test_ctrl_c_leaves_what_a_kill_leaves(workshop: Workshop, ledger, long, tmp_path, name):
    reference, chance = workshop.reference(name), random.Random(name)
    for number in range(6 if long else 1):
        command = workshop.place(name, tmp_path / str(number))
        victim = Victim(command, chance.randint(2, reference.changes - 1), "stop")  # from the second on it is at work; the last removes the lock
        assert victim.wait_for_event()
        victim.interrupt()
        code, found = victim.end(), files(command.place)
        again, content = apart(execute, command), files(command.place)
        strange = reference.strange(found)
        late = code == 0 and reference.same(found)  # a training in its last step is through
        clear = (code == 130 or late) and again.code in through(name)
        ledger.enter("Ctrl-C", clear, not strange and reference.same(content))
        assert clear and strange == [] and reference.same(content) and leftovers(content) == [], (code, again.said)


def run_as(command: Command, rank: int, port: int) -> Ended:
    """One of two processes of torchrun."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    return execute(command)


def report(command: Command, rank: int, port: int, path: Path) -> None:
    """The exit code and what was said, as a file."""
    ended = run_as(command, rank, port)
    path.write_text(f"{ended.code} {ended.said}")


def test_a_process_of_torchrun_that_is_killed_ends_all_and_loses_nothing(workshop: Workshop, ledger, long, tmp_path):
    alone, chance = workshop.place("meshhead", tmp_path / "alone"), random.Random(0)
    assert apart(execute, Command(alone.module, (*alone.words, "batch_size=2"), alone.place)).code == 0
    whole = files(alone.place)
    for number in range(10 if long else 1):
        together = workshop.place("meshhead", tmp_path / str(number))
        command = Command(together.module, (*together.words, "batch_size=2"), together.place)
        for killed in (True, False):
            port, said = free_port(), tmp_path / f"said {number} {killed}"
            both = [CONTEXT.Process(target=report, args=(command, rank, port, said.with_name(f"{said.name} {rank}"))) for rank in (0, 1)]
            for process in both:
                process.start()
            if killed:
                reached = together.place / "checkpoints" / "tiny" / f"meshhead_step_{chance.randint(1, STEPS // 2):07d}"
                deadline = time.monotonic() + PATIENCE_S
                while not reached.exists() and time.monotonic() < deadline:
                    time.sleep(0.005)
                both[1].kill()
            for process in both:
                process.join(PATIENCE_S)
            code, _, words = said.with_name(f"{said.name} 0").read_text().partition(" ")
            if killed:
                assert both[1].exitcode == -signal.SIGKILL
                clear = code == "1" and "error: another process of this run ended without saying why" in words
                intact = checkpoints(files(together.place)) <= checkpoints(whole)
                ledger.enter("process of torchrun killed", clear, intact)
                assert clear and intact, words
        assert code == "0", words
        assert checkpoints(files(together.place)) == checkpoints(whole)


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def lose_a_worker(command: Command) -> Ended:
    """Runs it with processes forked from this one, which are killed at their first camera."""
    forking = multiprocessing.get_context("fork")
    with (mock.patch.object(demo_subject, "write_camera", lambda *_: os.kill(os.getpid(), signal.SIGKILL)),
          mock.patch.object(demo_subject.multiprocessing, "get_context", lambda kind: forking)):
        return execute(command)


def test_a_worker_process_that_is_killed(workshop: Workshop, ledger, tmp_path):
    command = workshop.place("demo subject", tmp_path / "0")
    ended = apart(lose_a_worker, Command(command.module, (*command.words, "--workers", "2"), command.place))
    content = files(command.place)
    clear = ended.is_clear("one of 2 processes ended without saying why")
    ledger.enter("worker process killed", clear, content == {})
    assert clear and content == {}, ended.said


def run_back(command: Command) -> Ended:
    """Runs it while the clock goes back an hour whenever somebody looks at it."""
    now = [time.time()]

    def earlier() -> float:
        now[0] -= 3600.0
        return now[0]

    with mock.patch.object(time, "time", earlier), mock.patch.object(tqdm.std, "time", earlier):
        return execute(command)


@pytest.mark.cases([*TRAININGS, "video", "evaluation", "extraction"], ["gaussianhead", "extraction"])
def test_a_clock_that_runs_back(workshop: Workshop, ledger, tmp_path, name):
    """Killed once between, so that going on also meets files from the future."""
    reference, command = workshop.reference(name), workshop.place(name, tmp_path / "0")
    victim = Victim(command, reference.changes * 2 // 3, "stop")
    assert victim.wait_for_event() and victim.kill()
    for path in command.place.rglob("*"):
        os.utime(path, (4e9, 4e9))
    ended, content = apart(run_back, command), files(command.place)
    ledger.enter("clock runs back", ended.code == 0, reference.same(content))
    assert ended.code == 0 and reference.same(content) and leftovers(content) == [], ended.said


def test_a_viewer_sees_a_newer_checkpoint_with_an_older_date(workshop: Workshop, ledger, tmp_path):
    folder = workshop.root / "reference gaussianhead" / "checkpoints" / "tiny"
    workshop.reference("gaussianhead")
    shown = tmp_path / "shown"
    shown.write_bytes((folder / "gaussianhead_step_0000003").read_bytes())
    config = ViewerConfig.model_validate(reenactment_dict(workshop.made, tmp_path))
    avatar = WatchedAvatar(config, shown, "test", torch.device("cpu"))
    newer = tmp_path / "newer"
    newer.write_bytes((folder / "gaussianhead_step_0000009").read_bytes())
    os.utime(newer, (1.0, 1.0))
    newer.replace(shown)
    seen = avatar.refresh() and avatar.step == 9 and not avatar.refresh()
    ledger.enter("clock runs back", seen, True)
    assert seen
