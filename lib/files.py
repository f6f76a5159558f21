"""Folders and files whose failures are told to the user."""

import hashlib
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


def name_fault(name: str) -> str | None:
    """What keeps a name from being one part of a path, below the folder it is joined to and visible there; None where nothing does."""
    if not name:
        return "it is empty"
    if not name.isprintable():
        return "it has control characters"
    if "/" in name or "\\" in name:
        return "it has a slash"
    return "it begins with a dot" if name.startswith(".") else None
