"""Zip archives, files of numpy and of torch, read with suspicion: checksums count, and nothing that a header declares is believed unseen."""

import io
import math
import zipfile
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from numpy.typing import NDArray

MOST_UNPACKED = 1 << 28  # bytes beyond its own size that a file may unpack to: a gigabyte of zeros fits into one megabyte
MOST_PARTS = 1 << 20  # of lists and dictionaries within one another: optimizers of large models have thousands
BLOCK = 1 << 20  # bytes
ZIP_START = b"PK\x03\x04"
_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


class Damaged(ValueError):
    """A file is not what it claims to be; the message says in what."""


def arrays_in(data: bytes) -> dict[str, NDArray]:
    """Arrays of an npz by name, of an npy under the name ''. Never unpickles; memory is bounded by the size of the file and MOST_UNPACKED.

    Raises Damaged.
    """
    try:
        if data.startswith(np.lib.format.MAGIC_PREFIX):
            return {"": _array(data)}
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            entries = _entries(archive)
            unpacked = sum(entry.file_size for entry in entries)
            if unpacked > MOST_UNPACKED + len(data):
                raise Damaged(f"it claims to unpack to {unpacked} bytes, more than arrays of this size can")
            # Exactly what is declared: more, if there is more, is not even unpacked. Others too: reading them shows whether their name is right.
            contents = {entry.filename: archive.open(entry).read(entry.file_size) for entry in entries}
            return {name.removesuffix(".npy"): _array(content) for name, content in contents.items() if name.endswith(".npy")}
    except Damaged:
        raise
    except Exception as error:  # a flipped bit can claim encryption, an unknown compression, a header that is no Python: nearly anything is raised
        raise Damaged(str(error) or type(error).__name__) from error


def load_torch(path: Path, allowed: Sequence[type | tuple[Callable, str]] = ()) -> Any:
    """What torch saved, on the CPU, without running code; `allowed`: what else it may make than tensors and plain values.

    Raises Damaged, OSError, and nearly anything that a damaged file can make the unpickler raise.
    """
    _check_zip(path)
    with torch.serialization.safe_globals(list(allowed)):
        value = torch.load(path, map_location="cpu", weights_only=True)
    _check_parts(value)
    return value


def _check_parts(value: Any) -> None:
    """Raises Damaged for lists within lists that are too many when counted wherever they are held: forty that each hold the next one twice are
    300 bytes in a file, and whatever walks through them never ends."""
    left, waiting = MOST_PARTS, [value]
    while waiting:
        held = waiting.pop()
        parts = held.values() if isinstance(held, dict) else held if isinstance(held, list | tuple | set) else ()
        left -= len(parts)
        if left < 0:
            raise Damaged(f"it has more than {MOST_PARTS} parts")
        waiting.extend(parts)


def _check_zip(path: Path) -> None:
    """Reads every entry of a zip archive against its checksum; a file that does not begin as one is left alone.

    torch.load does not look at checksums: it takes a flipped bit for another weight. Raises Damaged, and OSError.
    """
    with path.open("rb") as file:
        if file.read(len(ZIP_START)) != ZIP_START:
            return
        try:
            _check_entries(file)
        except (Damaged, OSError):
            raise
        except Exception as error:  # as above
            raise Damaged(str(error) or type(error).__name__) from error


def _check_entries(file: BinaryIO) -> None:
    with zipfile.ZipFile(file) as archive:
        for entry in _entries(archive):
            if entry.compress_type != zipfile.ZIP_STORED:
                raise Damaged(f"entry '{entry.filename}' is compressed, which those of a checkpoint never are")
            with archive.open(entry) as content:
                while content.read(BLOCK):
                    pass


def _entries(archive: zipfile.ZipFile) -> list[zipfile.ZipInfo]:
    """All entries; two of one name would be read as either, depending on who reads."""
    entries = archive.infolist()
    twice = [name for name, count in Counter(entry.filename for entry in entries).items() if count > 1]
    if twice:
        raise Damaged(f"entry '{twice[0]}' is there more than once")
    return entries


def _array(data: bytes) -> NDArray:
    """An array no larger than the bytes that are there."""
    file = io.BytesIO(data)
    version = np.lib.format.read_magic(file)
    if version not in _HEADERS:
        raise Damaged(f"an npy of version {version[0]}.{version[1]}; expected 1.0 or 2.0, as np.save writes")
    shape, by_column, dtype = _HEADERS[version](file)
    if dtype.hasobject:
        raise Damaged("an array of Python objects; expected numbers")
    count = math.prod(shape)
    if min(shape, default=0) < 0 or count * dtype.itemsize > len(data) - file.tell():
        raise Damaged(f"its header promises an array of shape {shape} and type {dtype}, but {len(data) - file.tell()} bytes follow")
    if count * dtype.itemsize == 0:
        return np.empty(shape, dtype)
    return np.frombuffer(data, dtype, count, file.tell()).reshape(shape, order="F" if by_column else "C").copy()
