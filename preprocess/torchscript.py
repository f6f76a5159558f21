"""TorchScript files: programs of tensor operations with their weights, which are looked through before they are loaded.

They call no Python, but two operations of torch reach files (`save` writes any, `from_file` maps any), some the network, and a program may run
while it is loaded. The text of the program lies in the archive as torch writes it, so operations are found in it by name. This is no sandbox: a
program can still take any memory and time, and torch itself advises to run none of unknown origin.
"""

import re
import zipfile
import zlib
from pathlib import Path

from lib.errors import InputError
from lib.files import sha256

NAMESPACES = ("aten", "prim", "torchvision")  # of operations; others reach the network, or nobody wrote mattes with them
REFUSED = frozenset({"save", "from_file", "rpc_async", "rpc_sync", "rpc_remote", "PythonOp", "IgnoredPythonOp", "read_file", "write_file"})
_TEXT = re.compile(r'"(?:[^"\\\n]|\\.)*"')  # as torch writes texts
_LONG_TEXT = re.compile('"""')
_OTHER_WRITING = re.compile(r"['\"#\\]|__torch__\.torch\.classes\b")  # what could hide a name, and classes written in C++
_NAME = re.compile(r"(?<![\w.])(?:torch\b(?:\.(?P<torch>\w+))?|ops\b(?:\.(?P<space>\w+)\.(?P<op>\w+))?)")
_MOST_CODE = 1 << 26  # bytes


def check_program(path: Path) -> str:
    """The SHA-256 of a TorchScript file that only computes. Raises InputError for one that names files or the network, or is none."""
    expected = "expected a TorchScript file as torch.jit.save writes it"
    try:
        with zipfile.ZipFile(path) as archive:
            files = [file for file in archive.infolist() if file.filename.endswith(".py")]
            if sum(file.file_size for file in files) > _MOST_CODE:
                raise ValueError("too much code")
            codes = [archive.read(file).decode("utf-8") for file in files]
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, RuntimeError, NotImplementedError, ValueError) as error:
        raise InputError(f"{path}: cannot be read as a TorchScript file ({error}); {expected}") from error
    if not codes:
        raise InputError(f"{path}: holds no program; {expected}. Files with weights alone do not do")
    for code in codes:
        hidden = _LONG_TEXT.search(code) or _OTHER_WRITING.search(code := _TEXT.sub("0", code))
        if hidden is not None:
            raise InputError(f"{path}: refused: its program holds {hidden[0]!r}, which torch does not write there; {expected} from its authors")
        for name in _NAME.finditer(code):
            operation = name["torch"] or name["op"]
            if operation is None or operation in REFUSED or name["space"] not in (None, *NAMESPACES):
                raise InputError(f"{path}: refused: its program uses '{name[0]}', which reaches beyond tensors; {expected} from its authors")
    return sha256(path)
