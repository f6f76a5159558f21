"""What benchmarks/watched_run.py concludes from what it saw."""

import os

import pytest

from benchmarks.watched_run import Turn, compared, growth, sample


def test_steps_are_told_apart_by_whether_a_viewer_was_ready():
    moments = [(step, 0.001 * step * (1.0 if step <= 60 else 1.2)) for step in range(0, 121, 10)]
    found = compared(moments, [Turn(0.055, 0.0719, 1.0)])
    assert found["step_ms"] == {"alone": pytest.approx(1.0), "with_viewer": pytest.approx(1.2)}
    assert found["counted"] == {"alone": 4, "with_viewer": 5}
    assert found["slower"] == pytest.approx(0.2) and not found["passed"]
    assert "slower" not in compared(moments, [])


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
