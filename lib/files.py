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


def sha256(path: Path) -> str:
    """SHA-256 of a file, 64 hexadecimal digits. Raises InputError where it cannot be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); expected a file that you may read") from error
