"""What benchmarks/watched_run.py concludes from what it saw."""

import os
import subprocess
import sys

import pytest

from benchmarks.watched_run import Sample, Turn, after_warm_up, compared, growth, sample, take_turns
from lib.errors import InputError


def test_a_viewer_is_compared_with_the_turns_around_it():
    """A machine that gets slower all the time slows no turn against its neighbours; a viewer that costs a tenth shows as that."""
    turns = [Turn(float(turn), turn + 1.0, turn % 2 == 1) for turn in range(9)]
    now, moments = 0.0, [(0, 0.0)]
    while now < 9.0:
        now += 0.02 * (1.0 + now / 9.0) * (1.1 if int(now) % 2 else 1.0)
        moments.append((moments[-1][0] + 2, now))
    found = compared(moments, turns)
    assert found["slower"]["median"] == pytest.approx(0.1, abs=0.01) and not found["passed"] and found["turns"] == 4
    assert found["step_ms"]["running"] > found["step_ms"]["halted"] > 10.0
    assert compared(moments, turns[:2]) == {} and compared(moments, []) == {}


def test_what_counts_is_between_the_first_checkpoint_and_the_last_step():
    samples = [Sample(float(second), 1, 1, 1, 0) for second in range(20)]
    assert after_warm_up(samples, 6, 15.5) == samples[6:16]
    assert after_warm_up(samples, 1, 100.0) == samples[4:]
    assert after_warm_up(samples[:3], 3, 100.0) == []


def test_a_viewer_is_halted_and_runs_in_turn(tmp_path):
    """A stand-in that counts: while it is halted it does not."""
    log = tmp_path / "counted"
    viewer = (f"import time; print('viewer: open http://', flush=True)\n"
              f"while True: open({str(log)!r}, 'a').write(f'{{time.time()}}\\n'); time.sleep(0.005)")
    training = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1.5)"])
    turns: list[Turn] = []
    take_turns([sys.executable, "-c", viewer], 0.2, training, turns)
    counted = [float(line) for line in log.read_text().splitlines()]
    assert [turn.ran for turn in turns] == [bool(turn % 2) for turn in range(len(turns))] and len(turns) >= 4
    for turn in turns[:-1]:
        while_it_lasted = sum(turn.began + 0.05 < moment < turn.ended for moment in counted)
        assert (while_it_lasted > 0) == turn.ran
    with pytest.raises(InputError, match="before it was ready"):
        take_turns([sys.executable, "-c", ""], 0.2, training, turns)


def test_growth_is_that_of_the_least_of_quarters():
    assert growth([50, 100, *[100] * 8]) == pytest.approx(1.0)
    assert growth([*[100] * 9, 110]) == 0.0
    assert growth([*[100] * 8, 110, 110]) == pytest.approx(0.1)
    assert growth([0] * 10) == 0.0 and growth([7]) == 0.0


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="counted in /proc")  # noqa: PTH112
def test_a_sample_is_of_that_process():
    own = sample(os.getpid(), "")
    with open("/proc/self/status"):  # noqa: PTH123
        assert sample(os.getpid(), "").files == own.files + 1
    assert own.bytes > 1 << 20 and own.threads >= 1 and own.device_mib == 0
    with pytest.raises(OSError):
        sample(2**22 + 1, "")
