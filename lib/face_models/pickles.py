"""Reads the pickles that face models come in without running anything they name.

A pickle may call any function it names. Here a name means one of the few below or an error: arrays of numpy, sparse matrices of scipy and
arrays of chumpy (neither need be installed), and what older files add to arrays. Tensors of torch are skipped, not read. Not even numpy does
what a file says: its types and arrays take the states they are given, so that a file could have numpy read any place of the memory. Stand-ins
keep what was stored, and arrays are made of it here: no larger than their bytes, of numbers and texts.
"""

import io
import math
import pickle
import pickletools
import re
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lib.errors import InputError

_OBJECT_ARRAY = np.dtype(object)
_CODES = re.compile(r"[<>|=]?([?bBhHiIlLqQefd]|b1|i[1248]|u[1248]|f[248]|[SU][1-9][0-9]{0,3}|O8?)")  # of types that arrays may have
_MOST_PARTS = 1 << 18  # of a model, which has hundreds: a second's work
_MOST_CELLS = 1 << 24  # of a sparse matrix, which becomes a dense one: those of FLAME have 25,000, those of SMPL-X 600,000


class StoredType:
    """numpy.dtype."""

    def __init__(self, code: Any = "", *_: object) -> None:
        self.code, self.order, self.is_plain = (code.decode("latin1") if isinstance(code, bytes) else code), "=", True

    def __setstate__(self, state: Any) -> None:
        self.order, self.is_plain = str(state[1]), not any(state[2:5])

    def real(self) -> np.dtype:
        """The type. Raises ValueError for one with parts, and for any that is neither number, text nor object."""
        if not (self.is_plain and isinstance(self.code, str) and _CODES.fullmatch(self.code)) or self.order not in ("<", ">", "=", "|"):
            raise ValueError(f"an array of type {self.code!r}")
        return np.dtype(self.code).newbyteorder(self.order)


class StoredArray:
    """numpy.ndarray: what numpy's _reconstruct makes and fills with its state."""

    def __init__(self, *_: object) -> None:
        self.value: NDArray | None = None

    def __setstate__(self, state: Any) -> None:
        shape, kind, by_column, data = state[-4:]  # old files lack a version in front
        self.value = _array(tuple(shape), kind, bool(by_column), data)


class _State:
    """Stands for an object of another package: keeps the attributes that were stored with it."""

    state: dict[str, Any] = {}

    def __setstate__(self, state: object) -> None:
        self.state = state if isinstance(state, dict) else {}


class _Chumpy(_State):
    """An array of chumpy that is no expression of others."""


class _Csc(_State):
    """scipy.sparse.csc_matrix."""


class _Csr(_State):
    """scipy.sparse.csr_matrix."""


def _skipped(*arguments: object) -> None:
    return None


def _scalar(kind: Any, data: Any) -> Any:
    return _array((), kind, False, data)[()]


def _rebuilt(kind: type, base: object, state: object) -> object:
    """copyreg._reconstructor for the stand-ins above."""
    if not (isinstance(kind, type) and issubclass(kind, _State)):
        raise pickle.UnpicklingError(f"cannot make a {kind!r}")
    return kind()


def _encoded(text: str, encoding: str) -> bytes:
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"unexpected encoding {encoding!r}")
    return text.encode("latin1")


NUMPY: dict[tuple[str, str], Any] = {("numpy", "ndarray"): StoredArray, ("numpy", "dtype"): StoredType, ("_codecs", "encode"): _encoded}
NUMPY |= {(f"numpy.{core}.multiarray", name): stand_in
          for core in ("core", "_core") for name, stand_in in (("_reconstruct", StoredArray), ("scalar", _scalar))}
_KNOWN = NUMPY | {
    ("collections", "OrderedDict"): OrderedDict, ("chumpy.ch", "Ch"): _Chumpy, ("chumpy", "Ch"): _Chumpy,
    ("__builtin__", "object"): object, ("builtins", "object"): object,
}
_KNOWN |= {(module, "_reconstructor"): _rebuilt for module in ("copy_reg", "copyreg")}
_KNOWN |= {(f"scipy.sparse.{module}", f"{kind}_matrix"): stand_in
           for kind, stand_in in (("csc", _Csc), ("csr", _Csr)) for module in (kind, f"_{kind}")}
_KNOWN |= {("torch._utils", "_rebuild_tensor_v2"): _skipped, ("torch.storage", "_load_from_bytes"): _skipped}


class _Reader(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        try:
            return _KNOWN[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"it names {module}.{name}, which a face model has no need of") from None


def _check_numbering(file: io.BytesIO) -> None:
    """What a pickle refers to is numbered as it comes; a large number at once would make the reader take memory for all below it."""
    start = file.tell()
    for count, (code, argument, _) in enumerate(pickletools.genops(file)):
        if "PUT" in code.name and int(argument) > count:
            raise pickle.UnpicklingError(f"it calls its part {count} number {argument}")
    file.seek(start)


def read_pickle(path: Path) -> dict[str, Any]:
    """The dictionary in a .pkl, or in a .npy that holds one; arrays of chumpy and scipy as dense numpy arrays.

    Raises InputError for a file that cannot be read, names anything else than arrays, or holds no dictionary.
    """
    try:
        data = path.read_bytes()
        file = io.BytesIO(data)
        if data.startswith(np.lib.format.MAGIC_PREFIX):
            version = np.lib.format.read_magic(file)
            header = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}[version](file)
            if header[2] != _OBJECT_ARRAY:
                raise ValueError(f"an array of {header[2]}")
        _check_numbering(file)
        value = without_stand_ins(_Reader(file, encoding="latin1").load())
        if isinstance(value, np.ndarray) and value.dtype == _OBJECT_ARRAY and value.size == 1:
            value = value.item()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error
    # A broken or hostile pickle can make its reader raise nearly anything.
    except Exception as error:
        raise InputError(f"{path}: refused: {error}. Expected a pickled dictionary of arrays; is it the file of the model's own site?") from error
    if not isinstance(value, dict):
        raise InputError(f"{path}: expected a pickled dictionary of arrays, found a {type(value).__name__}")
    return {str(key): item for key, item in value.items()}


def without_stand_ins(value: Any) -> Any:
    """What was stored, with arrays of numpy where they stood. Raises ValueError or TypeError for a matrix whose parts do not fit together, and
    for what has more parts than any model: forty lists that each hold the next one twice are 300 bytes, and 10^12 parts."""
    return _Unfolding()(value)


class _Unfolding:
    def __init__(self) -> None:
        self._left = _MOST_PARTS

    def __call__(self, value: Any) -> Any:
        self._left -= 1
        if self._left < 0:
            raise ValueError(f"more than {_MOST_PARTS} parts")
        if isinstance(value, StoredArray):
            if value.value is None:
                raise ValueError("an array without its numbers")
            return self._objects(value.value) if value.value.dtype == _OBJECT_ARRAY else value.value
        if isinstance(value, _Chumpy):
            return self(value.state.get("x"))
        if isinstance(value, _Csc | _Csr):
            return _sparse({key: self(item) for key, item in value.state.items()}, by_column=isinstance(value, _Csc))
        if isinstance(value, dict):
            return {key: self(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return type(value)(self(item) for item in value)
        return value

    def _objects(self, array: NDArray) -> NDArray:
        unfolded = np.empty_like(array)
        for place in np.ndindex(array.shape):
            unfolded[place] = self(array[place])
        return unfolded


def _array(shape: tuple[int, ...], kind: Any, by_column: bool, data: Any) -> NDArray:
    if not isinstance(kind, StoredType) or not all(type(size) is int and size >= 0 for size in shape):
        raise ValueError(f"an array of shape {shape}")
    dtype, count = kind.real(), math.prod(shape)
    if dtype == _OBJECT_ARRAY:
        if not isinstance(data, list) or len(data) != count:
            raise ValueError(f"an array of {count} objects without them")
        flat = np.empty(count, dtype=object)
        for index, item in enumerate(data):
            flat[index] = item
        return flat.reshape(shape, order="F" if by_column else "C")
    data = data.encode("latin1") if isinstance(data, str) else data  # files of Python 2
    if not isinstance(data, bytes | bytearray) or len(data) != count * dtype.itemsize:
        raise ValueError(f"an array of shape {shape} and type {dtype} in another number of bytes")
    return np.frombuffer(bytes(data), dtype).reshape(shape, order="F" if by_column else "C").copy() if data else np.zeros(shape, dtype)


def _sparse(state: dict[str, Any], by_column: bool) -> NDArray:
    rows, columns = state.get("_shape", state.get("shape"))
    if int(rows) * int(columns) > _MOST_CELLS:
        raise ValueError(f"a matrix of {rows} x {columns}")
    lines = columns if by_column else rows
    matrix = np.zeros((int(rows), int(columns)), dtype=np.float64)
    counts = np.diff(np.asarray(state["indptr"]))
    line = np.repeat(np.arange(lines), counts)
    where = (state["indices"], line) if by_column else (line, state["indices"])
    np.add.at(matrix, where, state["data"])
    return matrix
