"""A file that is read, and what may be done to it."""

import contextlib
import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.faults.mutations import BYTES, Damage

CAMERAS, FRAMES, SIZE = ("11", "22"), ("0000", "0001", "0002"), 24  # of the small subject


@dataclass(frozen=True)
class Target:
    """A file, and how it is read. `checked`: a checksum covers it, so that changed bytes give an error or the same value."""

    name: str
    format: str
    path: Path
    read: Callable[[], Any]
    damages: tuple[Damage, ...]
    checked: bool = False


def bytes_and(*more: tuple[Damage, ...]) -> tuple[Damage, ...]:
    return BYTES + sum(more, ())


def written(path: Path, data: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield


