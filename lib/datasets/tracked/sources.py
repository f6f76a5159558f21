"""The one entrance: which tracker wrote a folder or file, and what it says."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from lib.datasets.tracked import benchmark, imavatar, insta, metrical, rows, subject, vhap
from lib.datasets.tracked.files import Look, ReadOptions
from lib.datasets.tracked.record import TrackedSequence
from lib.errors import InputError


@dataclass(frozen=True)
class Reader:
    """One format."""

    name: str
    look: Callable[[Path], Look]
    read: Callable[[Path, ReadOptions], TrackedSequence]


@dataclass(frozen=True)
class Recognition:
    """The reader that fits, and the files it was known by."""

    reader: Reader
    why: str


READERS = (  # the first that fits is taken: expression rows last, which any npz might be
    Reader(subject.FORMAT, subject.look, subject.read),
    Reader(vhap.EXPORT, vhap.look_export, vhap.read_export),
    Reader(insta.FORMAT, insta.look, insta.read),
    Reader(benchmark.FORMAT, benchmark.look, benchmark.read),
    Reader(vhap.TRACKER, vhap.look_tracker, vhap.read_tracker),
    Reader(imavatar.FORMAT, imavatar.look, imavatar.read),
    Reader(metrical.FORMAT, metrical.look, metrical.read),
    Reader(rows.FORMAT, rows.look, rows.read),
)


def recognise(path: Path) -> Recognition:
    """Which format a folder or file is of. Raises InputError that says of every format what is missing."""
    if not path.exists():
        raise InputError(f"{path}: no such folder or file; correct the path")
    missing = []
    for reader in READERS:
        look = reader.look(path)
        if look.found:
            return Recognition(reader, look.what)
        missing.append(f"{reader.name}: {look.what}")
    raise InputError("\n  ".join([f"{path}: is of no format of tracked faces that is known here. Looked for", *missing]))


def read_tracking(path: Path, options: ReadOptions | None = None) -> TrackedSequence:
    """Reads any of them. Raises InputError naming file and frame for what is missing, NaN, of a wrong width or of another length."""
    return recognise(path).reader.read(path, options or ReadOptions())
