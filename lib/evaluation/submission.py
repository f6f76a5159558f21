"""What the server of the NeRSemble benchmark takes: a zip of <id>/<SEQ>/cam_<serial>.mp4, of all participants at once.

A run draws the videos of its own participant into a folder. The zip beside that folder is made anew each time, of what is there.
"""

import shutil
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

from jaxtyping import Float
from pydantic import Field, field_validator, model_validator
from torch import Tensor

from lib.config import Config, Name
from lib.datasets.driving import DrivingConfig
from lib.datasets.tracked.benchmark import read_calibration
from lib.datasets.video import VideoWriter, to_yuv420
from lib.errors import InputError
from lib.files import RunLock, name_fault, remove, wait_for
from lib.geometry.camera import Camera

CRF, PRESET = 14, "medium"  # 14: as the benchmark asks
UNDATED = (1980, 1, 1, 0, 0, 0)  # the first day that zips know
NAMED = 3  # missing videos that are named before the rest is counted


class SubmissionConfig(Config):
    """Section `evaluation.submission`. Its driver is one per sequence; no pictures are needed."""

    folder: Path = Field(description="videos go to <folder>/<id>/<SEQ>/cam_<serial>.mp4, and all of them to <folder>.zip")
    participant: str = Field(pattern=r"^[0-9]{3}$", description="id of this avatar's subject, three digits")
    expected: tuple[str, ...] = Field(description="<id>/<SEQ> of all participants; those of this one are drawn")
    cameras: tuple[Name, ...] = Field(min_length=1, description="serials of the cameras that are drawn")
    dataroot: str = Field(description="folder of the drivers; here and below {participant} and {sequence} stand for the names of one")
    param_files: str = Field("sequences/{sequence}/tracking/flame2023_tracking_v2.npz",
                             description="as dataset.param_files of reenactment")
    calibration: str = Field(description="camera_params.json of the participant")
    calibration_size: tuple[int, int] | None = Field(None, description="width and height in pixels that its intrinsics refer to, where it says none")
    width: int = Field(512, gt=0, multiple_of=4, description="pixels of the videos")
    height: int = Field(512, gt=0, multiple_of=4, description="pixels of the videos")
    frames_per_second: float = Field(24.3, gt=0, description="of the videos")

    @field_validator("expected")
    @classmethod
    def _named(cls, expected: tuple[str, ...]) -> tuple[str, ...]:
        wrong = [name for name in expected if len(name.split("/")) != 2 or any(map(name_fault, name.split("/")))]
        if wrong:
            raise ValueError(f"expected <id>/<SEQ>, e.g. 388/GLASSES, found '{wrong[0]}'")
        return expected

    @model_validator(mode="after")
    def _known(self) -> "SubmissionConfig":
        if not self.sequences:
            known = list(dict.fromkeys(name.split("/")[0] for name in self.expected))
            raise ValueError(f"participant '{self.participant}' has no sequence in `expected`; there are {', '.join(known) or 'none'}")
        return self

    @property
    def sequences(self) -> tuple[str, ...]:
        """Of this participant."""
        return tuple(name.split("/")[1] for name in self.expected if name.split("/")[0] == self.participant)

    def names(self) -> list[str]:
        """Of all videos in a complete zip."""
        return [f"{name}/cam_{camera}.mp4" for name in self.expected for camera in self.cameras]

    def views(self) -> dict[str, Camera]:
        """The cameras of the videos. Raises InputError where the calibration lacks one, or does not say of which size it is."""
        path = Path(self._filled(self.calibration, ""))
        return {camera: read_calibration(path, camera, self.calibration_size).resized(self.width, self.height) for camera in self.cameras}

    def driver(self, sequence: str) -> DrivingConfig:
        """What drives the avatar through one sequence: as tracked."""
        return DrivingConfig(dataroot=Path(self._filled(self.dataroot, sequence)), param_files=self._filled(self.param_files, sequence),
                             smoothing=0.0, head_pose="driver")

    def _filled(self, template: str, sequence: str) -> str:
        return template.replace("{participant}", self.participant).replace("{sequence}", sequence)


@dataclass(frozen=True)
class Packed:
    """What a zip holds, and which videos of a complete one it lacks."""

    path: Path
    videos: int
    missing: tuple[str, ...]

    def __str__(self) -> str:
        if not self.missing:
            return f"{self.path}: complete, {self.videos} videos"
        more = "" if len(self.missing) <= NAMED else f" and {len(self.missing) - NAMED} more"
        return f"{self.path}: {self.videos} videos; still missing: {', '.join(self.missing[:NAMED])}{more}"


def write_video(config: SubmissionConfig, sequence: str, camera: str, pictures: Iterator[Float[Tensor, "3 H W"]]) -> Path:
    """One video of this participant, at its place. Raises InputError where it cannot be written."""
    path = config.folder / config.participant / sequence / f"cam_{camera}.mp4"
    rate = Fraction(config.frames_per_second).limit_denominator(1000)
    with VideoWriter(path, rate, CRF, PRESET) as video:
        for picture in pictures:
            video.add(to_yuv420(picture).cpu())
    return path


def pack(config: SubmissionConfig) -> Packed:
    """The zip of all expected videos that are there, equal bytes for equal videos; it replaces the one before at once.

    Who packs it for another participant is waited for. Raises InputError where it cannot be written.
    """
    path = config.folder.with_name(config.folder.name + ".zip")
    with wait_for(RunLock(path.with_name(path.name + ".lock"), "evaluation.submission.folder")):
        return _packed(config, path)


def _packed(config: SubmissionConfig, path: Path) -> Packed:
    partial = path.with_name(path.name + ".partial")
    present = [name for name in config.names() if (config.folder / name).is_file()]
    try:
        partial.unlink(missing_ok=True)  # in a folder from somebody else it may be a link that leads anywhere
        with zipfile.ZipFile(partial, "w", zipfile.ZIP_STORED) as archive:  # videos do not become smaller
            for name in present:
                entry = zipfile.ZipInfo.from_file(config.folder / name, name)
                entry.date_time = UNDATED
                with (config.folder / name).open("rb") as video, archive.open(entry, "w") as copy:
                    shutil.copyfileobj(video, copy)
        partial.replace(path)
    except OSError as error:
        remove(partial)
        raise InputError(f"{path}: cannot be written ({error.strerror}); free space or correct the permissions") from error
    return Packed(path, len(present), tuple(name for name in config.names() if name not in present))
