"""Files that other files name: they must lie below a root, and be there."""

import contextlib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from lib.errors import InputError, NotFiniteError

NAMED = 3  # frames that were left out and are named, before the rest is counted


@dataclass(frozen=True)
class ReadOptions:
    """How to read what was recognised. `root`: folder that nothing may lie outside of (None: that above the one read, which sets made of
    several sequences need). `images`: every picture must exist; else those that do are named. `image_offset`: number of the picture of
    frame 0, where pictures and frames are counted apart (None: found out). `skip_nan`: frames that hold NaN are left out."""

    root: Path | None = None
    images: bool = True
    image_offset: int | None = None
    skip_nan: bool = False


@dataclass(frozen=True)
class Look:
    """Whether a reader's files are there, and which they are: `what` says what is there, or what was looked for and is missing."""

    found: bool
    what: str


class BrokenFrameError(NotFiniteError):
    """NaN in one frame, which could be left out."""


@dataclass(frozen=True)
class Gaps:
    """Frames that hold NaN: refused, or left out and told."""

    skip: bool
    told: dict[str, None] = field(default_factory=dict)

    @contextlib.contextmanager
    def frame(self) -> Iterator[None]:
        """Around what reads one frame. Raises BrokenFrameError where it holds NaN and is not to be left out."""
        try:
            yield
        except NotFiniteError as error:
            if not self.skip:
                raise BrokenFrameError(str(error)) from error
            self.told[str(error).partition(";")[0]] = None

    def notes(self) -> tuple[str, ...]:
        """What was left out, if anything."""
        named, count = list(self.told)[:NAMED], len(self.told)
        more = f", and {count - NAMED} more" if count > NAMED else ""
        return (f"left out {count} frame{'s' * (count > 1)}: {', '.join(named)}{more}",) if count else ()


@dataclass(frozen=True)
class FolderFiles:
    """Files named relative to `folder`. `notes` collects links that lead out of the root."""

    folder: Path
    options: ReadOptions
    notes: dict[str, None] = field(default_factory=dict)
    _listed: dict[Path, frozenset[str]] = field(default_factory=dict)

    @property
    def root(self) -> Path:
        """What no path may leave."""
        return self.options.root or _normal(self.folder.absolute() / "..")

    def inside(self, name: str, where: str) -> Path:
        """The path of a name such as `../other/images/00000_00.png`. Raises InputError where it leaves the root, by what is written."""
        if not name.isprintable():
            raise InputError(f"{where}: {name!r} has control characters; expected the name of a file")
        path = _normal(self.folder / name.replace("\\", "/"))
        if not _normal(path.absolute()).is_relative_to(_normal(self.root.absolute())):
            raise InputError(f"{where}: '{name}' lies outside of {self.root}; correct the path, or give a root that holds all parts of the set")
        return path

    def picture(self, path: Path, where: str, what: str = "image") -> Path | None:
        """The path, if the file is there; else None, or InputError where pictures are required."""
        if path.name in self._names(path.parent):
            return path
        if self.options.images:
            raise InputError(f"{where}: {what} {path} is missing; copy it there or leave the frame out")
        return None

    def _names(self, folder: Path) -> frozenset[str]:
        """Of files and links to files; a folder is listed once."""
        if folder not in self._listed:
            try:
                with os.scandir(folder) as entries:
                    files = [(entry.name, entry.is_symlink()) for entry in entries if entry.is_file()]
            except OSError:
                files = []
            self._listed[folder] = frozenset(name for name, _ in files)
            link = next((name for name, is_link in files if is_link and self._leaves(folder / name)), None)
            if link is not None or self._leaves(folder):
                self.notes[f"{folder if link is None else folder / link}: is a link to what lies outside of {self.root}"] = None
        return self._listed[folder]

    def _leaves(self, path: Path) -> bool:
        return not path.resolve().is_relative_to(self.root.resolve())


def _normal(path: Path) -> Path:
    """Without `..`, by what is written: links are not followed."""
    return Path(os.path.normpath(path))


def numbered(folder: Path, pattern: str) -> dict[int, Path]:
    """Files whose whole name fits a pattern with one group for the number, by number, in its order."""
    found = {int(match[1]): path for path in folder.iterdir() if (match := re.fullmatch(pattern, path.name))} if folder.is_dir() else {}
    return dict(sorted(found.items()))
