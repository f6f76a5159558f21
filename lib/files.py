"""Folders and files whose failures are told to the user; one process at a time in a run's folder."""

import hashlib
import os
import socket
from pathlib import Path
from types import TracebackType

from lib.errors import InputError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]


class Held(InputError):
    """Another process writes what this one wanted to write."""


def make_folder(path: Path) -> Path:
    """Creates a folder and its parents. Raises InputError where a file is in the way or permission is missing."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{path}: this folder cannot be created ({error.strerror}); is a file in the way, or the disk read-only?") from error
    return path


def write_whole(path: Path, data: bytes | str) -> None:
    """Replaces a file at once: who reads it, or is killed while writing it, finds the old content or the new one.

    Raises InputError when it cannot be written; the old content is then still there.
    """
    make_folder(path.parent)
    partial = path.with_name(path.name + ".partial")
    try:
        partial.unlink(missing_ok=True)  # in a folder from somebody else it may be a link that leads anywhere
        partial.write_bytes(data.encode() if isinstance(data, str) else data)
        partial.replace(path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise InputError(f"{path}: cannot be written ({error.strerror}); free space or correct the permissions") from error


def sha256(path: Path) -> str:
    """SHA-256 of a file, 64 hexadecimal digits. Raises InputError where it cannot be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); expected a file that you may read") from error


class RunLock:
    """Context that lets one process at a time write a run. The lock ends with its process, however that ends.

    Raises Held naming the other process. Where a file system has no locks, it says so and goes on. `option` chooses another place.
    """

    def __init__(self, path: Path, option: str = "recorder.name") -> None:
        self.path, self.option = path, option

    def __enter__(self) -> "RunLock":
        make_folder(self.path.parent)
        try:
            # Not through a link: in a folder from somebody else it could lead to any file, which would be emptied.
            flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | getattr(os, "O_NOFOLLOW", 0)
            self._file = os.fdopen(os.open(self.path, flags, 0o666), "a+")
        except OSError as error:
            raise InputError(f"{self.path}: cannot be written ({error.strerror}); correct the permissions or choose another "
                             "recorder.checkpoint_path") from error
        if fcntl is not None:
            try:
                # Of the process, not of the file: forked processes do not hold it on.
                fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except (BlockingIOError, PermissionError) as error:
                self._file.seek(0)
                holder = self._file.read().strip() or "another process"
                self._file.close()
                raise Held(f"{self.path.parent}: {holder} is writing this run ({self.path.name}); wait for it, stop it, "
                           f"or choose another {self.option}") from error
            except OSError as error:
                print(f"{self.path}: no locks here ({error.strerror}); make sure that one process at a time writes this run")
        self._file.seek(0)
        self._file.truncate()
        self._file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        self._file.flush()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._file.close()


def name_fault(name: str) -> str | None:
    """What keeps a name from being one part of a path, below the folder it is joined to and visible there; None where nothing does."""
    if not name:
        return "it is empty"
    if not name.isprintable():
        return "it has control characters"
    if "/" in name or "\\" in name:
        return "it has a slash"
    return "it begins with a dot" if name.startswith(".") else None
