"""Folders and files whose failures are told to the user."""

import contextlib
import hashlib
import shutil
from pathlib import Path

from lib.errors import InputError


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
