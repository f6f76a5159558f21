"""Folders and files whose failures are told to the user; one process at a time in a run's folder."""

import contextlib
import hashlib
import os
import shutil
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

from lib.errors import InputError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]


PAUSE = 0.2  # seconds between looks at a lock


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
        remove(partial)
        raise InputError(f"{path}: cannot be written ({error.strerror}); free space or correct the permissions") from error


def remove(path: Path) -> None:
    """Removes a file that nobody needs, if it is there and can be removed: a read-only disk refuses even what is not there."""
    with contextlib.suppress(OSError):
        path.unlink()


def replace_folder(new: Path, place: Path) -> None:
    """Gives a folder its name, in place of an older one, which is gone only when the new one is there: never half of either has the name.

    Raises InputError where that is not permitted.
    """
    old = place.with_name(place.name + ".old")
    shutil.rmtree(old, ignore_errors=True)
    try:
        if place.exists():
            place.rename(old)
        new.rename(place)
    except OSError as error:
        raise InputError(f"{place}: cannot be replaced by {new} ({error.strerror}); correct the permissions") from error
    shutil.rmtree(old, ignore_errors=True)


def sha256(path: Path) -> str:
    """SHA-256 of a file, 64 hexadecimal digits. Raises InputError where it cannot be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); expected a file that you may read") from error


_WITHOUT_LOCKS: set[Path] = set()  # that was said of


class RunLock:
    """Context that lets one process at a time write a run. The lock ends with its process, however that ends; its file goes at a regular end.

    Raises Held naming the other process. Where a file system has no locks, it says so and goes on. `option` chooses another place.
    """

    def __init__(self, path: Path, option: str = "recorder.name") -> None:
        self.path, self.option = path, option

    def __enter__(self) -> "RunLock":
        make_folder(self.path.parent)
        try:
            while not self._take():
                self._file.close()
            self._file.seek(0)
            self._file.truncate()
            self._file.write(f"process {os.getpid()} on {socket.gethostname()}\n".encode())
        except OSError as error:
            raise InputError(f"{self.path}: cannot be written ({error.strerror}); free space, correct the permissions or choose another "
                             f"{self.option}") from error
        return self

    def _take(self) -> bool:
        """Opens and locks the file; False where the process before has just removed it, so that somebody else may lock another of that name."""
        # Not through a link: in a folder from somebody else it could lead to any file, which would be emptied.
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | getattr(os, "O_NOFOLLOW", 0)
        self._file = os.fdopen(os.open(self.path, flags, 0o666), "a+b", buffering=0)
        if fcntl is not None:
            try:
                # Of the process, not of the file: forked processes do not hold it on.
                fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except (BlockingIOError, PermissionError) as error:
                self._file.seek(0)
                holder = self._file.read().decode(errors="replace").strip() or "another process"
                self._file.close()
                raise Held(f"{self.path.parent}: {holder} is writing this run ({self.path.name}); wait for it, stop it, "
                           f"or choose another {self.option}") from error
            except OSError as error:
                if self.path not in _WITHOUT_LOCKS:
                    print(f"{self.path}: no locks here ({error.strerror}); make sure that one process at a time writes this run")
                _WITHOUT_LOCKS.add(self.path)
        try:
            return os.path.samestat(self.path.stat(), os.fstat(self._file.fileno()))
        except FileNotFoundError:
            return False

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if fcntl is not None:
            remove(self.path)  # while it is locked: whoever waits for it sees that it is gone
        self._file.close()


@contextlib.contextmanager
def wait_for(lock: RunLock) -> Iterator[None]:
    """Holds it as soon as no other process does. Raises InputError as it does."""
    told = False
    with contextlib.ExitStack() as held:
        while True:
            try:
                held.enter_context(lock)
                break
            except Held as error:
                if not told:
                    print(f"waiting: {str(error).partition(';')[0]}", flush=True)
                told = True
                time.sleep(PAUSE)
        yield


def name_fault(name: str) -> str | None:
    """What keeps a name from being one part of a path, below the folder it is joined to and visible there; None where nothing does."""
    if not name:
        return "it is empty"
    if not name.isprintable():
        return "it has control characters"
    if "/" in name or "\\" in name:
        return "it has a slash"
    return "it begins with a dot" if name.startswith(".") else None
