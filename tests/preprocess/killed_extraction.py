"""python killed_extraction.py RAW OUTPUT STEP: extracts by one process after another, each killed at its STEP-th file, until one is through.

Every other process dies with half a file written, the others between the whole file and its name. Prints how many were killed.
"""

import os
import signal
import sys
from pathlib import Path

from preprocess.nersemble import extract
from tests.tiny_capture import extraction


def die_at(count: int, half: bool) -> None:
    """Arms this process."""
    files = iter(range(1, 1 << 30))
    write = Path.write_bytes

    def write_and_die(path: Path, data: bytes) -> int:
        last = next(files) == count
        written = write(path, data[:len(data) // 2] if last and half else data)
        if last:
            os.kill(os.getpid(), signal.SIGKILL)
        return written

    Path.write_bytes = write_and_die  # type: ignore[method-assign]


def main() -> None:
    """One child after another."""
    raw, output, step = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
    killed = 0
    while not output.exists():
        child = os.fork()
        if child == 0:
            die_at(step, half=killed % 2 == 0)
            extract(extraction(raw, output))
            os._exit(0)
        if os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL:
            killed += 1
        assert killed < 1000
    print(killed)


if __name__ == "__main__":
    main()
