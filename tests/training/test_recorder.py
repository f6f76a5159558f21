"""What stages of one run share."""

import subprocess
import sys

from lib.training.recorder import read_seconds
from tests.faults.children import ROOT

WRITER = """
import sys
from pathlib import Path
from lib.training.recorder import write_seconds
print("ready", flush=True)
input()
for number in range(100):
    write_seconds(Path(sys.argv[1]), f"{sys.argv[2]} {number}", number + 0.5)
"""


def test_stages_that_write_seconds_beside_each_other_lose_none(tmp_path):
    """Each reads, adds and writes."""
    both = [subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path), stage], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            for stage in ("one", "other")]
    for process in both:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
    for process in both:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.close()
    assert [process.wait(60) for process in both] == [0, 0]
    assert read_seconds(tmp_path) == {f"{stage} {number}": number + 0.5 for stage in ("one", "other") for number in range(100)}
    assert [path.name for path in tmp_path.iterdir()] == ["seconds.json"]
