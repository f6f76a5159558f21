"""Writes a subject folder picture by picture (README, 'subject folder'): the one writer of every kind of extraction.

All goes into `<subject>.partial`, which takes the name of the subject when nothing is missing any more. Every file appears under its name when it is
whole, and the picture of a frame and camera comes last; so whatever ends the process, the same command goes on with what is missing and ends with
the same bytes.
"""

import io
import json
import shutil
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import TracebackType

import cv2
import numpy as np
from jaxtyping import UInt8
from numpy.typing import NDArray

from lib.datasets.images import JPEG_QUALITY
from lib.datasets.layout import LOWRES_SIZE, CaptureFolder, FrameRecord
from lib.errors import InputError
from lib.files import RunLock, make_folder, write_whole
from lib.geometry.camera import Camera
from preprocess.color_correction import ColorCorrection
from preprocess.square_crop import SquareCrop, shrunk

DISK_MARGIN = 1.1  # pictures differ in how well they compress


@dataclass(frozen=True)
class Lens:
    """How the pictures of one camera become those of the subject. `raw` is the camera of the whole picture, a batch of one."""

    raw: Camera
    crop: SquareCrop
    color: ColorCorrection | None = None

    def files(self, pixels: UInt8[NDArray, "H W 3"]) -> dict[tuple[str, bool], bytes]:
        """JPEGs of one RGB picture by (kind, lowres); the picture itself is the last."""
        square = self.crop.cut(pixels, self.color)
        small = shrunk(square, LOWRES_SIZE)
        return self.visible | {("image", True): jpeg(small), ("image", False): jpeg(square)}

    def background(self, pixels: UInt8[NDArray, "H W 3"]) -> bytes:
        """JPEG of the empty scene, cut alike."""
        return jpeg(self.crop.cut(pixels, self.color))

    @cached_property
    def visible(self) -> dict[tuple[str, bool], bytes]:
        """JPEGs that tell picture from padding: the same for all frames."""
        visible = self.crop.visible(self.raw.width, self.raw.height)
        return {("visible", True): jpeg(shrunk(visible, LOWRES_SIZE)), ("visible", False): jpeg(visible)}

    @cached_property
    def camera(self) -> bytes:
        """The npz of the camera: the same for all frames."""
        cut, data = self.crop.camera(self.raw), io.BytesIO()
        np.savez(data, extrinsic=cut.world_to_camera[0].numpy(), intrinsic=cut.intrinsics[0].numpy())
        return data.getvalue()

    def bytes_of(self, pixels: UInt8[NDArray, "H W 3"]) -> int:
        """How much the disk holds of one picture like this."""
        return sum(map(len, self.files(pixels).values())) + len(self.camera)


def jpeg(pixels: UInt8[NDArray, "H W ..."]) -> bytes:
    """An RGB or grey picture as a JPEG of three channels, as all of a subject are."""
    how = cv2.COLOR_RGB2BGR if pixels.ndim == 3 else cv2.COLOR_GRAY2BGR
    encoded, data = cv2.imencode(".jpg", cv2.cvtColor(pixels, how), [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
    if not encoded:
        raise InputError(f"a picture of {pixels.shape[1]}x{pixels.shape[0]} pixels cannot be encoded as a JPEG")
    return data.tobytes()


class SubjectWriter:
    """One subject: which pictures it is to have, and which it has already. Several threads may write different pictures.

    As a context it is the only process that writes this subject.
    """

    def __init__(self, output: Path, made_with: dict[str, str], records: list[FrameRecord], lenses: dict[str, Lens]) -> None:
        self.output, self.lenses, self.records = output, lenses, records
        self.partial = output.with_name(output.name + ".partial")
        self.folder = CaptureFolder(self.partial)
        self._lock = RunLock(output.with_name(f".{output.name}.lock"), "--output")
        rows = [{"frame": record.frame, "sequence": record.sequence, "time": record.time} for record in records]
        self._index = json.dumps({"frames": rows, "made_with": made_with}, indent=1)

    def __enter__(self) -> "SubjectWriter":
        self._lock.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._lock.__exit__(kind, error, trace)

    def is_complete(self) -> bool:
        """True where the subject is there already. Raises InputError, naming the option, where it or what was begun of it is something else."""
        if self.output.exists():
            self._require_same(CaptureFolder(self.output).frames_path(), "exists")
        index = self.folder.frames_path()
        # A process may have been killed before it had said what the folder is to become.
        if self.partial.is_dir() and any(path.name != f"{index.name}.partial" for path in self.partial.iterdir()):
            self._require_same(index, "was begun")
        return self.output.exists()

    def _require_same(self, index: Path, what: str) -> None:
        wanted, folder = json.loads(self._index), index.parent
        try:
            found = json.loads(index.read_text(encoding="utf-8"))
            before, after = dict(found["made_with"]), wanted["made_with"]
        except (OSError, ValueError, KeyError, TypeError):
            before, after = {}, wanted["made_with"]
        if before.keys() != after.keys():
            raise InputError(f"{folder}: {what}, but was not made by this command; choose another --output")
        changed = [key for key in after if before[key] != after[key]]
        if changed:
            raise InputError(f"{folder}: {what} with --{changed[0]} {before[changed[0]]}, now it is {after[changed[0]]}; "
                             "choose another --output, repeat the options, or remove the folder")
        if found.get("frames") != wanted["frames"]:
            raise InputError(f"{folder}: {what} with {len(found.get('frames', []))} frames, now the videos have {len(wanted['frames'])} or others; "
                             "choose another --output or remove the folder")

    def require_space(self, bytes_per_frame: int) -> int:
        """Bytes still to be written, estimated. Raises InputError when the disk has less."""
        needed = int(DISK_MARGIN * bytes_per_frame * len(self.records) * self.missing() / max(1, len(self.records) * len(self.lenses)))
        there = next(place for place in (self.output.resolve(), *self.output.resolve().parents) if place.exists())
        free = shutil.disk_usage(there).free
        if free < needed:
            raise InputError(f"{self.output}: about {gigabytes(needed)} are needed, but its disk has {gigabytes(free)} free; "
                             "give a smaller --size, a larger --every, fewer --sequences, or another --output")
        return needed

    def begin(self) -> None:
        """Makes the folder, with frames.json: from here on it is known what it is to become."""
        make_folder(self.partial)
        _write_missing(self.folder.frames_path(), self._index)

    def pending(self, camera: str, frames: list[str]) -> list[str]:
        """Those of the frames that this camera has no picture of."""
        return [frame for frame in frames if not self.folder.image_path(frame, camera).exists()]

    def missing(self) -> int:
        """Pictures still to be written."""
        frames = [record.frame for record in self.records]
        return sum(len(self.pending(camera, frames)) for camera in self.lenses)

    def write(self, frame: str, camera: str, pixels: UInt8[NDArray, "H W 3"]) -> None:
        """All files of one RGB picture."""
        lens = self.lenses[camera]
        _write_missing(self.folder.camera_path(frame, camera), lens.camera)
        for (kind, lowres), data in lens.files(pixels).items():
            _write_missing(self.folder.image_path(frame, camera, kind, lowres), data)

    def write_background(self, camera: str, pixels: UInt8[NDArray, "H W 3"]) -> None:
        """The empty scene."""
        _write_missing(self.folder.background_path(camera), self.lenses[camera].background(pixels))

    def finish(self) -> None:
        """Gives the folder its name."""
        for leftover in self.partial.rglob("*.partial"):  # of a process that was killed between two files
            leftover.unlink()
        self.partial.rename(self.output)


def _write_missing(path: Path, data: bytes | str) -> None:
    """What is there is whole, and the same: so the shortest runs get on."""
    if not path.exists():
        write_whole(path, data)


def gigabytes(count: int) -> str:
    """For people."""
    return f"{count / 1e9:.3g} GB" if count >= 1e8 else f"{count / 1e6:.3g} MB"
