"""A driving sequence: parameter files that move an avatar, and the camera that looks at it. No images needed."""

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from jaxtyping import Float
from pydantic import Field, model_validator
from torch import Tensor

from lib.config import Config
from lib.datasets.images import stored_size
from lib.datasets.layout import CaptureFolder, by_number, read_camera_file, read_camera_path_file, read_params_file
from lib.datasets.retarget import TrainedFace, neutral, transfer
from lib.datasets.smoothing import smooth, smooth_poses
from lib.datasets.tracked.driver import DriverTrack, read_driver, track_of
from lib.datasets.tracked.files import BrokenFrameError
from lib.errors import InputError
from lib.geometry.camera import Camera, interpolate, look_at
from lib.geometry.head_pose import HeadPose
from lib.tensors import TensorBundle

# The free-view orbit of the published system: metres, degrees, frames. The front camera has its focal length.
ORBIT_DISTANCE, ORBIT_TARGET, ORBIT_FOCAL_PER_PIXEL = 1.2, (0.0, 0.0, 0.05), 3.5
ORBIT_ELEVATION_DEG, ORBIT_AZIMUTH_DEG, ORBIT_FRAMES_PER_RADIAN = 8.0, 45.0, 20.0

FAR_FROM_THE_EDGE = 0.2  # of the picture: where an optical axis usually is


class DrivingConfig(Config):
    """What drives the avatar and where it is seen from. The published keys freeview, camera_path and pose_code_path choose the
    defaults of camera, head_pose and pose_code; these, where given, go before."""

    dataroot: Path = Field(description="folder under which the patterns below are searched")
    image_files: str | None = Field(None, description="pattern of pictures of the driver, shown beside the result; optional")
    param_files: str | None = Field(None, description="under dataroot: pattern of params.npz files, played in sorted order; or, without *, the name "
                                    "('.': dataroot) of a folder or file that another tracker wrote")
    freeview: bool = Field(False, description="orbiting camera and a head that keeps its place: camera orbit, head_pose zero, pose_code zero")
    camera_path: Path | None = Field(None, description="camera npz, or json of a camera path (from the working directory): camera given")
    pose_code_path: Path | None = Field(None, description="params.npz (from the working directory) whose pose the networks see: pose_code fixed")
    camera: Literal["orbit", "given", "front"] | None = Field(
        None, description="orbit; given by camera_path; or front (at (0,0,1) looking at the origin, when neither is said)")
    head_pose: Literal["driver", "own", "fixed", "zero"] | None = Field(
        None, description="where the head is: as the driver's, as the avatar's in its training, as in head_pose_path, or at the origin")
    pose_code: Literal["head", "driver", "own", "fixed", "zero"] | None = Field(
        None, description="the pose the networks see: that of the head, or one of the others (fixed: as in pose_code_path)")
    head_pose_path: Path | None = Field(None, description="params.npz (from the working directory) for head_pose fixed")
    original_resolution: int = Field(2048, gt=0, description="pixels: size to which camera_path refers")
    resolution: int = Field(512, gt=0, description="pixels: size of the output")
    smoothing: float = Field(0.5, ge=0, lt=1, description="weight of the previous frame in the recursive smoothing of the driver; 0 = none")
    neutralize: Literal["none", "median", "first", "file"] = Field(
        "none", description="replace the driver's neutral face (median of its frames, first frame, or as in neutral_path) by the avatar's")
    neutral_path: Path | None = Field(None, description="a driver's file (from the working directory) of its neutral face: neutralize file")
    avatar_neutral_path: Path | None = Field(
        None, description="params.npz (from the working directory) of the avatar's neutral face; else the median of its training is taken")
    gain: float = Field(1.0, ge=0, description="how strong expressions become, of what the driver does; about the neutral face where there is one")
    nan_frames: Literal["refuse", "skip"] = Field("refuse", description="frames of the driver that hold NaN: an error, or left out and named")
    clamp_to_training: bool = Field(False, description="keep every coefficient within what the avatar's training has seen")

    @model_validator(mode="after")
    def _used(self) -> "DrivingConfig":
        if self.neutral_path is not None and self.neutralize != "file":
            raise ValueError(f"neutral_path is given, but neutralize is {self.neutralize}; write neutralize file, or leave neutral_path out")
        if self.avatar_neutral_path is not None and self.neutralize == "none":
            raise ValueError("avatar_neutral_path is given, but neutralize is none; write neutralize median, first or file, or leave it out")
        if self.head_pose_path is not None and self.head_pose is None:
            raise ValueError("head_pose_path is given, but head_pose is not; write head_pose fixed, or leave head_pose_path out")
        return self

    @property
    def camera_mode(self) -> str:
        """`camera`, or what the published keys mean."""
        return self.camera or ("orbit" if self.freeview else "given" if self.camera_path is not None else "front")

    @property
    def head_pose_mode(self) -> str:
        """`head_pose`, or what the published keys mean."""
        return self.head_pose or ("zero" if self.freeview else "driver")

    @property
    def pose_code_mode(self) -> str:
        """`pose_code`, or what the published keys mean."""
        return self.pose_code or ("fixed" if self.pose_code_path is not None else "zero" if self.freeview else "head")


@dataclass(frozen=True)
class DrivingFrame(TensorBundle):
    """One instant (batch of one): what the networks see (`expression`, `pose_code`), where the head is, the camera."""

    expression: Float[Tensor, "1 E"]
    pose_code: Float[Tensor, "1 6"]
    head: HeadPose
    camera: Camera


class DrivingSequence:
    """Smoothed driving frames in sorted order, for an avatar with this `own_pose`, `expression_count` and `trained` face (None: not known).

    `files` names the source of every frame, `notes` say what another tracker's files are. Raises InputError for missing, unreadable or
    inconsistent files, for a driver that has not the avatar's coefficients, and for what the driver or the avatar does not know; it names
    the keys of `config` in the `section` of the YAML that they come from.
    """

    def __init__(self, config: DrivingConfig, own_pose: Float[Tensor, "6"], expression_count: int | None = None, trained: TrainedFace | None = None,
                 section: str = "dataset") -> None:
        self.config, self._trained, self._section = config, trained, section
        try:
            track = self._read_track(expression_count)
        except BrokenFrameError as error:
            raise InputError(f"{error}; {section}.nan_frames skip leaves such frames out") from error
        self.files, self.notes = track.names, track.notes
        self._lengths = [len(list(frames)) for _, frames in itertools.groupby(track.sequences)]
        if expression_count not in (None, track.expressions.shape[1]):
            raise InputError(f"{self.files[0]}: the driver has {track.expressions.shape[1]} expression coefficients ({track.holds}), the avatar was "
                             f"trained with {expression_count}; drive it with parameters of the same 3DMM")
        if trained is not None and trained.model and track.model not in (None, trained.model[0]):
            raise InputError(f"{self.files[0]}: the driver has coefficients of {track.model} ({track.holds}), the avatar was trained with as many of "
                             f"{' '.join(trained.model)}, which mean something else; drive it with parameters of the same 3DMM")
        self.expressions = self._retargeted(track)
        self.head_pose_mode = config.head_pose_mode
        if not track.own_world and config.head_pose is None and not config.freeview:
            self.head_pose_mode = "own"
            why = "these files do not tell where the head is" if track.poses is None else (
                "these files tell where the head is in another world than that of the avatar and its cameras")
            self.notes += (f"{why}: {self._section}.head_pose is own",)
        if "own" in (self.head_pose_mode, config.pose_code_mode) and not bool(own_pose.any()):
            self.notes += (f"the checkpoint does not know a typical pose of its training, so {self._section}.head_pose own is the origin",)
        self.scales = self._scales(track)
        choices = {"driver": lambda: self._smoothed(self._poses_of(track), smooth_poses), "own": lambda: own_pose, "zero": lambda: torch.zeros(6)}
        place = choices | {"fixed": lambda: self._pose_in(config.head_pose_path, "head_pose_path", "head_pose")}
        self.poses = place[self.head_pose_mode]().expand(len(self), 6)
        code = choices | {
            "head": lambda: self.poses, "fixed": lambda: self._pose_in(config.pose_code_path, "pose_code_path", "pose_code"),
        }
        self.pose_codes = code[config.pose_code_mode]().expand(len(self), 6)
        self._cameras = self._read_cameras()
        # Pictures of the driver are only shown beside the result: never required.
        self.images = self._images_beside(config.image_files, track) if config.image_files else []

    def __len__(self) -> int:
        return len(self.files)

    @property
    def expression_count(self) -> int:
        """Number of expression coefficients E."""
        return self.expressions.shape[1]

    def __getitem__(self, index: int) -> DrivingFrame:
        rows = slice(index, index + 1)
        return DrivingFrame(
            expression=self.expressions[rows],
            pose_code=self.pose_codes[rows],
            head=HeadPose(self.poses[rows], self.scales[rows]),
            camera=self._cameras(index),
        )

    def _read_track(self, expression_count: int | None) -> DriverTrack:
        """The driver: params.npz files, or what another tracker wrote."""
        section, root, pattern, skip = self._section, self.config.dataroot, self.config.param_files, self.config.nan_frames == "skip"
        if pattern is None:
            raise InputError(f"{section}.param_files: a pattern of params.npz under {section}.dataroot is needed, e.g. 'params/*/params.npz', or the "
                             "name of what another tracker wrote there ('.': dataroot itself)")
        is_name = bool(pattern) and not set(pattern) & set("*?[") and not Path(pattern).is_absolute()
        if is_name and (root / pattern).exists():
            return read_driver(root / pattern, expression_count, skip)
        files = self._glob(pattern, "param_files")
        if not files:
            raise InputError(f"{section}.param_files: nothing under '{root}' matches '{pattern}'")
        return track_of(files, skip)

    def _glob(self, pattern: str, key: str) -> list[Path]:
        root = self.config.dataroot
        if not root.is_dir():
            raise InputError(f"{self._section}.dataroot: '{root}' is not a folder")
        try:
            return sorted(root.glob(pattern), key=lambda path: by_number(str(path.relative_to(root))))
        except (ValueError, NotImplementedError) as error:
            raise InputError(f"{self._section}.{key}: '{pattern}' is not a pattern relative to {self._section}.dataroot ({error}); "
                             "e.g. 'params/*/params.npz'") from error

    def _images_beside(self, pattern: str, track: DriverTrack) -> list[Path]:
        """The picture of every frame: that in a folder of its name, or, where names tell nothing, as many in order. Empty if one is missing."""
        images = self._glob(pattern, "image_files")
        frames = [Path(name).parent.name for name in track.names] if track.kept is not None else []
        named, lost = {path.parent.name: path for path in images}, ""
        if len(named) == len(images) and not named.keys().isdisjoint(frames):
            lost = next((f", none of frame {frame}" for frame in frames if frame not in named), "")
            images = [named[frame] for frame in frames if frame in named]
        elif track.kept is not None and len(images) == len(frames) + track.left_out:
            images = [images[number] for number in track.kept]
        if len(images) == len(self.files):
            return images
        print(f"{self._section}.image_files: '{pattern}' matches {len(images)} pictures for {len(self.files)} frames{lost}; "
              "the driver is not shown beside the result")
        return []

    def _poses_of(self, track: DriverTrack) -> Float[Tensor, "T 6"]:
        if track.poses is None:
            raise InputError(f"{track.names[0]}: these files do not tell where the head is; write {self._section}.head_pose own, fixed or zero")
        return track.poses

    def _pose_in(self, path: Path | None, key: str, chooser: str) -> Float[Tensor, "6"]:
        if path is None:
            raise InputError(f"{self._section}.{key}: needed for {self._section}.{chooser} fixed; name a params.npz")
        return read_params_file(path).pose

    def _smoothed(self, values: Float[Tensor, "T D"], how: Callable[[Tensor, float], Tensor]) -> Float[Tensor, "T D"]:
        """Every sequence alone: the end of one says nothing about the start of the next."""
        return torch.cat([how(part, self.config.smoothing) for part in values.split(self._lengths)])

    def _retargeted(self, track: DriverTrack) -> Float[Tensor, "T E"]:
        """The driver's expressions as the avatar's: smoothed, about the avatar's neutral face, within its training."""
        config, trained, values = self.config, self._trained, track.expressions
        driver = avatar = None
        if config.neutralize != "none":
            faces = {"median": lambda: neutral(values), "first": lambda: values[0], "file": lambda: self._face(config.neutral_path, values.shape[1])}
            driver = faces[config.neutralize]()
            if config.avatar_neutral_path is None and trained is None:
                raise InputError(f"{self._section}.avatar_neutral_path: needed for {self._section}.neutralize, as this checkpoint (older, or "
                                 "published) has no record of its expressions; name the params.npz of a neutral frame of the avatar's subject")
            avatar = trained.median if config.avatar_neutral_path is None else self._face(config.avatar_neutral_path, values.shape[1])
        values = transfer(self._smoothed(values, smooth), driver, avatar, config.gain)
        if not config.clamp_to_training:
            return values
        if trained is None:
            raise InputError(f"{self._section}.clamp_to_training: this checkpoint (older, or published) has no record of its expressions; one of "
                             "this project gets it when its training goes on for a step (the same command with more trainer.steps); else leave the "
                             "key out")
        return trained.clamp(values)

    def _face(self, path: Path | None, width: int) -> Float[Tensor, "E"]:
        """The neutral face in a file: the median where it holds several."""
        if path is None:
            raise InputError(f"{self._section}.neutral_path: needed for {self._section}.neutralize file; name a file of the driver's neutral face")
        values = read_driver(path, width).expressions
        if values.shape[1] != width:
            raise InputError(f"{path}: has {values.shape[1]} expression coefficients, the driver has {width}; name a file of the same 3DMM")
        return neutral(values)

    def _scales(self, track: DriverTrack) -> Float[Tensor, "T 1"]:
        """World units per canonical unit: of the place where the head is, or of params.npz: other trackers only know how large their model is."""
        if self.head_pose_mode == "fixed" and self.config.head_pose_path is not None:
            return read_params_file(self.config.head_pose_path).scale.expand(len(self), 1)
        if self.head_pose_mode == "own" and self._trained is not None:
            return self._trained.scale.expand(len(self), 1)
        if track.own_world and track.scales is not None:
            return track.scales
        if self._trained is not None:
            units = track.units_per_metre if self.head_pose_mode == "driver" else 1.0
            return (units * self._trained.scale).expand(len(self), 1)
        if self.head_pose_mode == "driver" and track.scales is not None:
            self.notes += ("the checkpoint (older, or published) does not tell how large the avatar is: as large as the driver's model",)
            return track.scales
        raise InputError(f"{self.files[0]}: does not tell how large the avatar is, nor does its checkpoint (older, or published); write "
                         f"{self._section}.head_pose fixed and name a params.npz of the avatar's subject in {self._section}.head_pose_path")

    def _read_cameras(self) -> Callable[[int], Camera]:
        """The camera of every frame."""
        size, original, mode = self.config.resolution, self.config.original_resolution, self.config.camera_mode
        if mode == "orbit":
            return lambda index: orbit_camera(index, size)
        if mode == "front":
            return lambda index: front_camera(size)
        path = self.config.camera_path
        if path is None:
            raise InputError(f"{self._section}.camera_path: needed for {self._section}.camera given; name a camera npz or a json with a camera path")
        if path.suffix == ".json":
            keys = read_camera_path_file(path)
            return lambda index: interpolate(Camera(*keys, original, original), index / max(1, len(self) - 1)).resized(size, size)
        extrinsic, intrinsic = read_camera_file(path)
        self._check_size(path, intrinsic)
        return lambda index: Camera(extrinsic[None], intrinsic[None], original, original).resized(size, size)


    def _check_size(self, path: Path, intrinsic: Float[Tensor, "3 3"]) -> None:
        """Raises InputError where the picture of a camera of a subject folder has another size than `original_resolution`; a note where there is
        none, and the optical axis is far from the middle of such a picture."""
        size = self.config.original_resolution
        if path.parent.parent.name == "cameras":
            image = CaptureFolder(path.parents[2]).image_path(path.parent.name, path.stem.removeprefix("camera_"))
            for picture in (image, image.with_suffix(".png")):
                found = stored_size(picture)
                if any(found):
                    if found != (size, size):
                        raise InputError(f"{self._section}.original_resolution is {size}, but {picture}, to which {self._section}.camera_path "
                                         f"refers, has {found[0]}x{found[1]} pixels; write that size")
                    return
        x, y = intrinsic[:2, 2].tolist()
        if not all(FAR_FROM_THE_EDGE * size <= place <= (1.0 - FAR_FROM_THE_EDGE) * size for place in (x, y)):
            self.notes += (f"{path}: its optical axis meets the picture at ({x:.0f}, {y:.0f}): is {self._section}.original_resolution {size} the "
                           "size of this camera's pictures?",)


def front_camera(size: int) -> Camera:
    """At (0,0,1) metres, looking at the origin."""
    return _looking(torch.tensor([[0.0, 0.0, 1.0]], dtype=torch.float64), torch.zeros(1, 3, dtype=torch.float64), size)


def orbit_camera(index: int, size: int) -> Camera:
    """The free-view camera of frame `index`: it swings around the face at a constant distance."""
    angle = torch.tensor(index / ORBIT_FRAMES_PER_RADIAN, dtype=torch.float64)
    elevation = torch.deg2rad(ORBIT_ELEVATION_DEG * angle.sin())
    azimuth = torch.deg2rad(ORBIT_AZIMUTH_DEG * angle.cos())
    target = torch.tensor([ORBIT_TARGET], dtype=torch.float64)
    direction = torch.stack([elevation.cos() * azimuth.sin(), elevation.sin(), elevation.cos() * azimuth.cos()])
    return _looking(target + ORBIT_DISTANCE * direction, target, size)


def _looking(center: Float[Tensor, "1 3"], target: Float[Tensor, "1 3"], size: int) -> Camera:
    focal = ORBIT_FOCAL_PER_PIXEL * size
    intrinsics = torch.tensor([[[focal, 0.0, size / 2], [0.0, focal, size / 2], [0.0, 0.0, 1.0]]])
    return Camera(look_at(center, target).float(), intrinsics, size, size)
