"""Disks that are full, read-only or somebody else's, for one process: made in a mount namespace of its own where the system lets everybody have
one, otherwise by what comes nearest."""

import ctypes
import errno
import itertools
import os
import resource
import tempfile
from dataclasses import dataclass
from pathlib import Path

from tests.faults.children import apart, on_changes

LIBC = ctypes.CDLL(None, use_errno=True)
NEW_MOUNTS, NEW_USERS = 0x00020000, 0x10000000
READ_ONLY, REMOUNT, BIND, PRIVATE, RECURSIVE, DETACH = 1, 32, 4096, 1 << 18, 16384, 2
CAPABILITIES_3 = 0x20080522
ROOM_AT_LAST = 1 << 30
FULL = ("No space left on device", "File too large", "are needed, but its disk has")


@dataclass(frozen=True)
class FullDisk:
    """A disk with `room` bytes left; without a namespace, files that cannot grow beyond `file_room`. Mended: there is room."""

    room: int
    file_room: int

    def strike(self, place: Path) -> None:
        """Moves the content of the place to such a disk."""
        if not has_namespaces():
            resource.setrlimit(resource.RLIMIT_FSIZE, (self.file_room, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
            return
        content = {path.relative_to(place): path.read_bytes() for path in place.rglob("*") if path.is_file()}
        enter_namespace()
        _mount("none", place, "tmpfs", 0, f"size={ROOM_AT_LAST}")
        for name, data in content.items():
            (place / name).parent.mkdir(parents=True, exist_ok=True)
            (place / name).write_bytes(data)
        disk = os.statvfs(place)
        self._resize(place, (disk.f_blocks - disk.f_bfree) * disk.f_bsize + self.room)

    def mend(self, place: Path) -> None:
        """Makes room."""
        if not has_namespaces():
            resource.setrlimit(resource.RLIMIT_FSIZE, (resource.getrlimit(resource.RLIMIT_FSIZE)[1],) * 2)
        else:
            self._resize(place, ROOM_AT_LAST)

    @staticmethod
    def _resize(place: Path, size: int) -> None:
        _mount("none", place, "tmpfs", REMOUNT, f"size={size}")


@dataclass(frozen=True)
class ReadOnly:
    """A place on a read-only disk; without a namespace, one that refuses everything alike."""

    def strike(self, place: Path) -> None:
        """Turns it."""
        if has_namespaces():
            enter_namespace()
            _mount(str(place), place, None, BIND)
            _mount(str(place), place, None, BIND | REMOUNT | READ_ONLY)
        else:
            Failing(1, errno.EROFS).strike(place)

    def mend(self, place: Path) -> None:
        """Turns it back."""
        if has_namespaces():
            os.chdir("/")
            _call(LIBC.umount2(os.fsencode(place), DETACH))
        else:
            Failing.mend(place)


@dataclass(frozen=True)
class Denied:
    """Folders that may not be written, for a user who is no administrator."""

    def strike(self, place: Path) -> None:
        """Takes the right."""
        give_up_privileges()
        self._set(place, 0o555)

    def mend(self, place: Path) -> None:
        """Gives it back."""
        self._set(place, 0o755)

    @staticmethod
    def _set(place: Path, mode: int) -> None:
        for folder in (place, *(path for path in place.rglob("*") if path.is_dir())):
            folder.chmod(mode)


@dataclass(frozen=True)
class Failing:
    """A disk that fails for good at the `number`-th change of a file: everything from then on ends with the error `code`."""

    number: int
    code: int

    def strike(self, place: Path) -> None:
        """Lies in wait."""
        seen = itertools.count(1)

        def refuse() -> None:
            if not _mended and next(seen) >= self.number:
                raise OSError(self.code, os.strerror(self.code))

        on_changes(place, refuse)

    @staticmethod
    def mend(place: Path) -> None:
        """No more."""
        _mended.append(place)


_mended: list[Path] = []
_possible: list[bool] = []


def has_namespaces() -> bool:
    """Whether a process may have its own mounts here."""
    return bool(_possible and _possible[0])


def look_for_namespaces() -> None:
    """To be called once before faults are made; children are told by `know`."""
    if not _possible:
        _possible.append(apart(_try))


def know(possible: bool) -> None:
    """What the tests found out."""
    _possible[:] = [possible]


def _try() -> bool:
    try:
        enter_namespace()
        _mount("none", Path(tempfile.gettempdir()), "tmpfs", 0, "size=65536")
    except OSError:
        return False
    return True


def enter_namespace() -> None:
    """Mounts of this process are its own from here on. Raises OSError where that is not permitted."""
    user, group = os.getuid(), os.getgid()
    _call(LIBC.unshare(NEW_USERS | NEW_MOUNTS))
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"0 {user} 1")
    Path("/proc/self/gid_map").write_text(f"0 {group} 1")
    _mount("none", Path("/"), None, PRIVATE | RECURSIVE)


def _mount(source: str, target: Path, kind: str | None, flags: int, options: str | None = None) -> None:
    encoded = [None if text is None else text.encode() for text in (kind, options)]
    _call(LIBC.mount(source.encode(), os.fsencode(target), encoded[0], ctypes.c_ulong(flags), encoded[1]))


def give_up_privileges() -> None:
    """root becomes an owner like any other, whom permissions bind."""
    header = (ctypes.c_uint32 * 2)(CAPABILITIES_3, 0)
    _call(LIBC.capset(header, (ctypes.c_uint32 * 6)()))


def _call(code: int) -> None:
    if code:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
