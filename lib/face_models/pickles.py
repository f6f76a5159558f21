"""Reads the pickles that face models come in without running anything they name.

A pickle may call any function it names. Here a name means one of the few below or an error: arrays of numpy, sparse matrices of scipy and
arrays of chumpy (neither need be installed), and what older files add to arrays. Tensors of torch are skipped, not read.
"""

import io
import pickle
import pickletools
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lib.errors import InputError

MOST_VALUES = 1 << 24  # of a sparse matrix, which is made dense: those of FLAME have 25,000, those of SMPL-X 600,000
_OBJECT_ARRAY = np.dtype(object)


class _State:
    """Stands for an object of another package: keeps the attributes that were stored with it."""

    def __init__(self, *arguments: object) -> None:
        self.arguments = arguments

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


def _rebuilt(kind: type, base: object, state: object) -> object:
    """copyreg._reconstructor for the stand-ins above."""
    if not (isinstance(kind, type) and issubclass(kind, _State)):
        raise pickle.UnpicklingError(f"cannot make a {kind!r}")
    return kind()


def _encoded(text: str, encoding: str) -> bytes:
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"unexpected encoding {encoding!r}")
    return text.encode("latin1")


class _ArrayClass:
    """Stands for numpy.ndarray, which pickles name and never call: a call would make an array of any size with whatever is in the memory."""

    def __init__(self, *arguments: object) -> None:
        raise pickle.UnpicklingError("it makes an array otherwise than numpy writes them")


def _empty_array(kind: object, shape: object, letter: object) -> NDArray:
    """numpy's _reconstruct: an array without content, which its state then gives."""
    if kind is not _ArrayClass or shape != (0,):
        raise pickle.UnpicklingError(f"it makes an array otherwise than numpy writes them (shape {shape})")
    return np.ndarray((0,), np.int8)


def _scalar(kind: np.dtype, content: object = None) -> object:
    if kind.hasobject or not isinstance(content, bytes | str) or len(content) != kind.itemsize:
        raise pickle.UnpicklingError(f"it has a number of type {kind} whose bytes are not all there")
    return _SCALAR(kind, content)


_SCALAR = np.float64(0.0).__reduce__()[0]
_KNOWN: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): _ArrayClass, ("numpy", "dtype"): np.dtype, ("collections", "OrderedDict"): OrderedDict, ("_codecs", "encode"): _encoded,
    ("chumpy.ch", "Ch"): _Chumpy, ("chumpy", "Ch"): _Chumpy,
    ("__builtin__", "object"): object, ("builtins", "object"): object,
}
_KNOWN |= {(module, "_reconstruct"): _empty_array for module in ("numpy.core.multiarray", "numpy._core.multiarray")}
_KNOWN |= {(module, "scalar"): _scalar for module in ("numpy.core.multiarray", "numpy._core.multiarray")}
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
        value = _Reader(file, encoding="latin1").load()
        if isinstance(value, np.ndarray) and value.dtype == _OBJECT_ARRAY and value.size == 1:
            value = value.item()
        if isinstance(value, dict):
            return {str(key): _dense(item) for key, item in value.items()}
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error
    # A broken or hostile pickle can make its reader raise nearly anything.
    except Exception as error:
        raise InputError(f"{path}: refused: {error}. Expected a pickled dictionary of arrays; is it the file of the model's own site?") from error
    raise InputError(f"{path}: expected a pickled dictionary of arrays, found a {type(value).__name__}")


def _dense(value: Any) -> Any:
    if isinstance(value, _Chumpy):
        return _dense(value.state.get("x"))
    if isinstance(value, _Csc | _Csr):
        return _sparse(value.state, by_column=isinstance(value, _Csc))
    return value


def _sparse(state: dict[str, Any], by_column: bool) -> NDArray:
    rows, columns = state.get("_shape", state.get("shape"))
    lines = columns if by_column else rows
    if int(rows) * int(columns) > MOST_VALUES:
        raise pickle.UnpicklingError(f"a sparse matrix of {rows} rows and {columns} columns")
    matrix = np.zeros((int(rows), int(columns)), dtype=np.float64)
    counts = np.diff(np.asarray(state["indptr"]))
    line = np.repeat(np.arange(lines), counts)
    where = (state["indices"], line) if by_column else (line, state["indices"])
    np.add.at(matrix, where, state["data"])
    return matrix
