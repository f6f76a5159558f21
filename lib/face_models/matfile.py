"""Numeric arrays of MATLAB files up to version 7 ("Level 5 MAT-File"), which BFM comes in. Written so that scipy is not needed for one file.

Format: MathWorks, "MAT-File Format", chapter 1. A file is a header of 128 bytes and a list of elements, each a type, a size and data that is
padded to 8 bytes; small data lies within the tag. A matrix is an element of elements: flags, dimensions, name, real part.
"""

import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lib.archives import MOST_UNPACKED
from lib.errors import InputError

_HEADER = 128
_MATRIX, _COMPRESSED = 14, 15
_STORED = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}
_NUMERIC_CLASSES = range(6, 16)  # double, single, and integers of 8 to 64 bits


def read_mat(path: Path) -> dict[str, NDArray]:
    """Arrays by name; cells, structures, texts and sparse matrices are left out. Raises InputError for another or a broken file."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error
    if data[:8] == b"\x89HDF\r\n\x1a\n" or b"MATLAB 7.3" in data[:_HEADER]:
        raise InputError(f"{path}: a MATLAB file of version 7.3 (HDF5); save it as version 7 (save -v7) or as .npz with the same names")
    order = {b"IM": "<", b"MI": ">"}.get(data[126:128])
    if order is None:
        raise InputError(f"{path}: expected a MATLAB file of version 5 to 7, found something else")
    try:
        return dict(_matrices(memoryview(data)[_HEADER:], order))
    except (struct.error, zlib.error, ValueError, KeyError, IndexError) as error:
        raise InputError(f"{path}: this MATLAB file is damaged or cut off ({error}); copy it again") from error


def _elements(data: memoryview, order: str) -> Iterator[tuple[int, memoryview]]:
    place = 0
    while place + 8 <= len(data):
        kind, size = struct.unpack_from(f"{order}II", data, place)
        if kind >> 16:  # size and type in one word, data in the other
            kind, size, start, end = kind & 0xFFFF, kind >> 16, place + 4, place + 8
        else:
            start = place + 8
            end = start + size if kind == _COMPRESSED else start + (size + 7) // 8 * 8
        if start + size > len(data):
            raise ValueError(f"an element of {size} bytes, of which {len(data) - start} are there")
        yield kind, data[start:start + size]
        place = end


def _unpacked(content: memoryview, order: str) -> bytes:
    """One compressed element, which tells its size first: a gigabyte of zeros fits into one megabyte."""
    size = 8 + struct.unpack(f"{order}II", zlib.decompressobj().decompress(content, 8))[1]
    if size > MOST_UNPACKED:
        raise ValueError(f"an element that claims to unpack to {size} bytes")
    unpacker = zlib.decompressobj()
    data = unpacker.decompress(content, size + 8)
    if not unpacker.eof:  # then the checksum was not reached either
        raise ValueError("a compressed element that is cut off, or longer than it says")
    return data


def _matrices(data: memoryview, order: str) -> Iterator[tuple[str, NDArray]]:
    for kind, content in _elements(data, order):
        if kind == _COMPRESSED:
            yield from _matrices(memoryview(_unpacked(content, order)), order)
        elif kind == _MATRIX:
            parts = _elements(content, order)
            flags = np.frombuffer(next(parts)[1], dtype=f"{order}u4")[0]
            if flags & 0xFF not in _NUMERIC_CLASSES:
                continue
            shape = tuple(np.frombuffer(next(parts)[1], dtype=f"{order}i4").tolist())
            name = bytes(next(parts)[1]).decode("ascii")
            stored, values = next(parts)
            yield name, np.frombuffer(values, dtype=order + _STORED[stored]).reshape(shape, order="F")
