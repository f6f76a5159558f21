"""Files that try to run code when they are read: pickles, and what pickles come in."""

import io
import pickle
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

LEGACY_MAGIC, LEGACY_VERSION = 0x1950A86A20F9469CFC6C, 1001  # of what torch.save wrote before it wrote zips


def _call(module: str, name: str, *arguments: str) -> bytes:
    """A pickle of protocol 0 that calls a function with texts."""
    return f"c{module}\n{name}\n(".encode() + b"".join(b"V" + argument.encode("raw_unicode_escape") + b"\n" for argument in arguments) + b"tR."


def _short(text: str) -> bytes:
    return b"\x8c" + bytes([len(text.encode())]) + text.encode()


def _stacked(module: str, name: str, argument: str) -> bytes:
    """The same by protocol 4, whose names may have dots: attributes of attributes."""
    return b"\x80\x04" + _short(module) + _short(name) + b"\x93" + b"X" + len(argument.encode()).to_bytes(4, "little") + argument.encode() + b"\x85R."


class _Reduced:
    def __init__(self, function: Callable, *arguments: object) -> None:
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def _dumped(protocol: int) -> Callable[[Path], bytes]:
    """Path.touch in a dictionary, among what is harmless."""
    return lambda mark: pickle.dumps({"pose": np.zeros(3), "evil": _Reduced(Path.touch, mark), "format": 3}, protocol=protocol)


# name -> pickle that touches the given file when the pickle module reads it. A test makes sure that it does.
PAYLOADS: dict[str, Callable[[Path], bytes]] = {
    "os.system": lambda mark: _call("os", "system", f"touch {mark}"),
    "posix.system": lambda mark: _call("posix", "system", f"touch {mark}"),
    "subprocess": lambda mark: _call("subprocess", "getoutput", f"touch {mark}"),
    "eval": lambda mark: _call("builtins", "eval", f"open({str(mark)!r}, 'w')"),
    "exec of Python 2": lambda mark: _call("__builtin__", "exec", f"open({str(mark)!r}, 'w')"),
    "nested: numpy.f2py.os.system": lambda mark: _stacked("numpy.f2py", "os.system", f"touch {mark}"),
    "nested: torch.serialization.os.mkdir": lambda mark: _stacked("torch.serialization", "os.mkdir", str(mark)),
    "nested: a method of a function": lambda mark: _stacked("torch.serialization", "os.mkdir.__call__", str(mark)),
} | {f"protocol {protocol}": _dumped(protocol) for protocol in range(6)}


def torch_zip(payload: bytes, **more: bytes) -> bytes:
    """As torch.save writes since 1.6; `more` are further files of the archive, by the part of their names before .pkl."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        parts = {"data.pkl": payload, "version": b"3\n", "byteorder": b"little"} | {f"{name}.pkl": data for name, data in more.items()}
        for name, data in parts.items():
            archive.writestr(f"archive/{name}", data)
    return file.getvalue()


def torch_zip_with_several(payload: bytes) -> bytes:
    """The first pickle is harmless."""
    return torch_zip(pickle.dumps({"format": 3}, protocol=2), constants=payload, attributes=payload, code=payload)


def torch_legacy(payload: bytes) -> bytes:
    """As torch.save wrote before 1.6: several pickles in a row."""
    heads = (LEGACY_MAGIC, LEGACY_VERSION, {"protocol_version": LEGACY_VERSION, "little_endian": True})
    return b"".join(pickle.dumps(head, protocol=2) for head in heads) + payload + pickle.dumps([], protocol=2)


def torch_tar(payload: bytes) -> bytes:
    """As torch.save wrote before 0.1.10."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for name, data in (("storages", pickle.dumps(0, protocol=2)), ("tensors", pickle.dumps(0, protocol=2)), ("pickle", payload)):
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    return file.getvalue()


def npy(payload: bytes) -> bytes:
    """An array of objects, which numpy keeps as a pickle."""
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": "|O", "fortran_order": False, "shape": ()})
    return file.getvalue() + payload


def npz(payload: bytes, *names: str) -> bytes:
    """An archive of such arrays."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name in names:
            archive.writestr(f"{name}.npy", npy(payload))
    return file.getvalue()


TORCH: dict[str, Callable[[bytes], bytes]] = {
    "zip": torch_zip, "zip with several pickles": torch_zip_with_several, "legacy": torch_legacy, "tar": torch_tar, "bare pickle": bytes}


def opened_by_torch(data: bytes) -> None:
    """Reads it as a careless program would."""
    torch.load(io.BytesIO(data), weights_only=False)
