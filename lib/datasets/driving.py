"""A driving sequence: parameter files that move an avatar, and the camera that looks at it. No images needed."""

from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from lib.config import Config
from lib.datasets.layout import read_camera_file, read_params_file
from lib.errors import InputError
from lib.geometry.camera import Camera, look_at
from lib.geometry.head_pose import HeadPose
from lib.tensors import TensorBundle

# The free-view orbit of the published system: metres, degrees, frames.
ORBIT_DISTANCE, ORBIT_TARGET, ORBIT_FOCAL_PER_PIXEL = 1.2, (0.0, 0.0, 0.05), 3.5
ORBIT_ELEVATION_DEG, ORBIT_AZIMUTH_DEG, ORBIT_FRAMES_PER_RADIAN = 8.0, 45.0, 20.0


class DrivingConfig(Config):
    """What drives the avatar and where it is seen from."""

    dataroot: Path = Field(description="folder under which the patterns below are searched")
    image_files: str | None = Field(None, description="pattern of pictures of the driver, shown beside the result; optional")
    param_files: str | None = Field(None, description="pattern of params.npz files under dataroot, played in sorted order")
    camera_path: Path | None = Field(None, description="camera npz (from the working directory) used when freeview is off")
    pose_code_path: Path | None = Field(None, description="params.npz whose pose fixes the pose code the networks see")
    freeview: bool = Field(False, description="orbiting camera and a head that keeps its place, instead of camera_path and the driver's head pose")
    original_resolution: int = Field(2048, gt=0, description="pixels: size to which camera_path refers")
    resolution: int = Field(512, gt=0, description="pixels: size of the output")
    smoothing: float = Field(0.5, ge=0, lt=1, description="weight of the previous frame in the recursive smoothing of the driver; 0 = none")


@dataclass(frozen=True)
class DrivingFrame(TensorBundle):
    """One instant (batch of one): what the networks see (`expression`, `pose_code`), where the head is, the camera."""

    expression: Float[Tensor, "1 E"]
    pose_code: Float[Tensor, "1 6"]
    head: HeadPose
    camera: Camera


class DrivingSequence:
    """Smoothed driving frames in sorted order. Raises InputError for missing, unreadable or inconsistent files."""

    def __init__(self, config: DrivingConfig) -> None:
        self.config = config
        if config.param_files is None:
            raise InputError("dataset.param_files: a pattern of params.npz under dataset.dataroot is needed, e.g. 'params/*/params.npz'")
        if not config.freeview and config.camera_path is None:
            raise InputError("dataset.camera_path: needed when dataset.freeview is false (or set freeview: True)")
        self.files = _matches(config.dataroot, config.param_files, "dataset.param_files")
        params = [read_params_file(path) for path in self.files]
        for path, frame in zip(self.files, params, strict=True):
            if len(frame.expression) != len(params[0].expression):
                raise InputError(f"{path}: 'exp_coeff' has {len(frame.expression)} values, {self.files[0]} has {len(params[0].expression)}")
        self.expressions = _smooth(torch.stack([frame.expression for frame in params]), config.smoothing)
        self.scales = torch.stack([frame.scale for frame in params])
        poses = torch.stack([frame.pose for frame in params])
        self.poses = torch.zeros_like(poses) if config.freeview else _smooth(poses, config.smoothing)
        self.pose_codes = self.poses
        if config.pose_code_path is not None:
            self.pose_codes = read_params_file(config.pose_code_path).pose.expand_as(poses)
        self._given = None if config.freeview or config.camera_path is None else read_camera_file(config.camera_path)
        # Pictures of the driver are only shown beside the result: never required.
        self.images = _glob(config.dataroot, config.image_files, "dataset.image_files") if config.image_files else []
        if config.image_files and len(self.images) != len(self.files):
            print(f"dataset.image_files: '{config.image_files}' matches {len(self.images)} pictures for {len(self.files)} frames; "
                  "the driver is not shown beside the result")
            self.images = []

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
            camera=self._camera(index),
        )

    def _camera(self, index: int) -> Camera:
        size = self.config.resolution
        if self._given is None:
            return orbit_camera(index, size)
        original = self.config.original_resolution
        return Camera(self._given[0][None], self._given[1][None], original, original).resized(size, size)


def orbit_camera(index: int, size: int) -> Camera:
    """The free-view camera of frame `index`: it swings around the face at a constant distance."""
    angle = torch.tensor(index / ORBIT_FRAMES_PER_RADIAN, dtype=torch.float64)
    elevation = torch.deg2rad(ORBIT_ELEVATION_DEG * angle.sin())
    azimuth = torch.deg2rad(ORBIT_AZIMUTH_DEG * angle.cos())
    target = torch.tensor([ORBIT_TARGET], dtype=torch.float64)
    direction = torch.stack([elevation.cos() * azimuth.sin(), elevation.sin(), elevation.cos() * azimuth.cos()])
    focal = ORBIT_FOCAL_PER_PIXEL * size
    intrinsics = torch.tensor([[[focal, 0.0, size / 2], [0.0, focal, size / 2], [0.0, 0.0, 1.0]]])
    return Camera(look_at(target + ORBIT_DISTANCE * direction, target).float(), intrinsics, size, size)


def _smooth(values: Float[Tensor, "T D"], previous: float) -> Float[Tensor, "T D"]:
    """y_i = previous · y_(i-1) + (1 - previous) · x_i, started at the first frame."""
    smooth = [values[0]]
    for value in values[1:]:
        smooth.append(previous * smooth[-1] + (1.0 - previous) * value)
    return torch.stack(smooth)


def _matches(root: Path, pattern: str, key: str) -> list[Path]:
    files = _glob(root, pattern, key)
    if not files:
        raise InputError(f"{key}: nothing under '{root}' matches '{pattern}'")
    return files


def _glob(root: Path, pattern: str, key: str) -> list[Path]:
    if not root.is_dir():
        raise InputError(f"dataset.dataroot: '{root}' is not a folder")
    try:
        return sorted(root.glob(pattern))
    except (ValueError, NotImplementedError) as error:
        raise InputError(f"{key}: '{pattern}' is not a pattern relative to dataset.dataroot ({error}); e.g. 'params/*/params.npz'") from error
