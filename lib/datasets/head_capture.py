"""A subject folder as training data: frames, cameras, splits, decoded images."""

from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float, UInt8
from pydantic import Field
from torch import Tensor

from lib.config import Config
from lib.datasets.batches import HeadBatch
from lib.datasets.images import read_image, resize
from lib.datasets.layout import CaptureFolder, FrameParams
from lib.errors import InputError
from lib.geometry.camera import Camera
from lib.geometry.head_pose import HeadPose

LOWRES_SIZE = 256  # pixels of the `_lowres` files


class HeadCaptureConfig(Config):
    """Which pictures of which subject."""

    dataroot: Path = Field(description="subject folder")
    camera_ids: tuple[str, ...] = Field((), description="cameras used, as in the file names")
    original_resolution: int = Field(2048, gt=0, description="pixels: size of the full images, to which camera files refer")
    resolution: int = Field(512, gt=0, description="pixels: size of the images handed out")
    num_sample_view: int = Field(8, gt=0, description="random views of one frame per mesh-head step")
    held_out_cameras: tuple[str, ...] = Field((), description="cameras of camera_ids never trained on (evaluation split novel_view)")
    held_out_sequences: tuple[str, ...] = Field((), description="sequences of frames.json never trained on (split novel_sequence)")
    cache_gb: float = Field(2.0, ge=0, description="GB of decoded images kept in memory, per loading process")


@dataclass(frozen=True)
class Picture:
    """One frame seen by one camera."""

    frame: str
    camera: str


class HeadCapture:
    """Validated view of a subject folder. Parameters and cameras are read at once, images when asked for.

    Raises InputError for anything missing or malformed, naming the file, the frame and how many more.
    """

    def __init__(self, config: HeadCaptureConfig) -> None:
        self.config = config
        self.folder = CaptureFolder(config.dataroot)
        if not config.camera_ids:
            raise InputError("dataset.camera_ids: no camera is listed; name the <camera> parts of images/<frame>/image_<camera>.jpg")
        unknown = [camera for camera in config.held_out_cameras if camera not in config.camera_ids]
        if unknown:
            raise InputError(f"dataset.held_out_cameras: '{unknown[0]}' is not one of dataset.camera_ids {list(config.camera_ids)}")
        self.frames = self.folder.frames()
        self._check_files()
        self.params: dict[str, FrameParams] = {frame: self.folder.read_params(frame) for frame in self.frames}
        self.control_points = {frame: self.folder.read_control_points(frame) for frame in self.frames}
        self.cameras = {
            Picture(frame, camera): self.folder.read_camera(frame, camera) for frame in self.frames for camera in config.camera_ids
        }
        self._check_widths()
        self.sequence_of = self._sequences()
        self.train_cameras = [camera for camera in config.camera_ids if camera not in config.held_out_cameras]
        self.train_frames = [frame for frame in self.frames if self.sequence_of[frame] not in config.held_out_sequences]
        self.held_out_frames = [frame for frame in self.frames if self.sequence_of[frame] in config.held_out_sequences]
        if not self.train_cameras or not self.train_frames:
            raise InputError("dataset: everything is held out; leave at least one camera and one sequence to train on")
        self._cache: dict[Picture, UInt8[Tensor, "5 H W"]] = {}
        self._cache_bytes = 0

    @property
    def expression_count(self) -> int:
        """Number of expression coefficients E."""
        return len(self.params[self.frames[0]].expression)

    @property
    def control_count(self) -> int:
        """Number of control landmarks L."""
        return len(self.control_points[self.frames[0]])

    def novel_view(self) -> list[Picture]:
        """Training frames seen by held-out cameras."""
        return [Picture(frame, camera) for frame in self.train_frames for camera in self.config.held_out_cameras]

    def novel_sequence(self) -> list[Picture]:
        """Held-out frames seen by training cameras."""
        return [Picture(frame, camera) for frame in self.held_out_frames for camera in self.train_cameras]

    def item(self, frame: str, cameras: list[str]) -> HeadBatch:
        """One frame (no batch dimension) seen by the given cameras."""
        size, original = self.config.resolution, self.config.original_resolution
        pixels = torch.stack([self._pixels(Picture(frame, camera)) for camera in cameras]).float() / 255.0
        extrinsics, intrinsics = zip(*(self.cameras[Picture(frame, camera)] for camera in cameras), strict=True)
        params = self.params[frame]
        return HeadBatch(
            frame=frame,
            view=" ".join(cameras),
            frame_index=torch.tensor(self.frames.index(frame)),
            images=pixels[:, :3], masks=pixels[:, 3:4], visible=pixels[:, 4:5],
            camera=Camera(torch.stack(extrinsics), torch.stack(intrinsics), original, original).resized(size, size),
            expression=params.expression,
            head=HeadPose(params.pose, params.scale),
            control_points=self.control_points[frame],
        )

    def pictures(self, pictures: list[Picture]) -> HeadBatch:
        """A batch of single-view items."""
        return HeadBatch.stack([self.item(picture.frame, [picture.camera]) for picture in pictures])

    def expressionless(self, picture: Picture) -> Float[Tensor, "3 H W"] | None:
        """The truth with expression 0 on white, where the subject is synthetic."""
        path, mask_path = (self.folder.expressionless_path(picture.frame, picture.camera, kind) for kind in ("image", "mask"))
        if not path.exists():
            return None
        size = self.config.resolution
        image, mask = resize(read_image(path), size) / 255.0, resize(read_image(mask_path), size)[:1] / 255.0
        return image * mask + (1.0 - mask)

    def _pixels(self, picture: Picture) -> UInt8[Tensor, "5 H W"]:
        """RGB, mask, visible."""
        cached = self._cache.get(picture)
        if cached is not None:
            return cached
        image = self._decode(picture, "image")
        mask = self._decode(picture, "mask")[:1]
        visible = self._decode(picture, "visible")[:1] if self._source(picture, "visible").exists() else torch.full_like(mask, 255)
        pixels = torch.cat([image, mask, visible])
        if self._cache_bytes + pixels.nbytes <= self.config.cache_gb * 1e9:
            self._cache[picture] = pixels
            self._cache_bytes += pixels.nbytes
        return pixels

    def _decode(self, picture: Picture, kind: str) -> UInt8[Tensor, "3 H W"]:
        path = self._source(picture, kind)
        image = read_image(path)
        size = self.config.original_resolution
        expected = (LOWRES_SIZE, LOWRES_SIZE) if "_lowres_" in path.name else (size, size)
        if tuple(image.shape[1:]) != expected:
            raise InputError(f"{path}: expected {expected[1]}x{expected[0]} pixels, found {image.shape[2]}x{image.shape[1]}; "
                             "full images must have dataset.original_resolution, lowres images 256")
        return resize(image, self.config.resolution)

    def _source(self, picture: Picture, kind: str) -> Path:
        """The lowres file where it is enough and exists, else the full one."""
        low = self.folder.image_path(picture.frame, picture.camera, kind, lowres=True)
        if self.config.resolution <= LOWRES_SIZE and low.exists():
            return low
        return self.folder.image_path(picture.frame, picture.camera, kind)

    def _check_files(self) -> None:
        missing = [
            path
            for frame in self.frames
            for path in (self.folder.params_path(frame), self.folder.landmarks_path(frame), self.folder.vertices_path(frame), *(
                path
                for camera in self.config.camera_ids
                for path in (*(self._source(Picture(frame, camera), kind) for kind in ("image", "mask")), self.folder.camera_path(frame, camera))
            ))
            if not path.exists()
        ]
        if missing:
            hints = {"vertices.npy": "run the 3DMM fitting again with save_vertices: True"}
            hint = hints.get(missing[0].name, "make it, or leave the frame or camera out")
            raise InputError(f"{missing[0]}: file is missing ({len(missing)} missing in all for {len(self.frames)} frames x "
                             f"{len(self.config.camera_ids)} cameras); {hint}")

    def _check_widths(self) -> None:
        first = self.frames[0]
        for frame in self.frames:
            for path, found, expected in (
                (self.folder.params_path(frame), len(self.params[frame].expression), self.expression_count),
                (self.folder.vertices_path(frame), len(self.control_points[frame]), self.control_count),
            ):
                if found != expected:
                    raise InputError(f"{path}: frame {frame} has {found} values where frame {first} has {expected}; "
                                     "all frames must come from one 3DMM")

    def _sequences(self) -> dict[str, str]:
        records = self.folder.records(self.frames)
        if records is None:
            if self.config.held_out_sequences:
                raise InputError(f"{self.folder.frames_path()}: file is missing, so dataset.held_out_sequences cannot be applied; "
                                 "write it (README, 'subject folder') or hold out nothing")
            return dict.fromkeys(self.frames, "")
        known = {record.sequence for record in records}
        unknown = [name for name in self.config.held_out_sequences if name not in known]
        if unknown:
            raise InputError(f"dataset.held_out_sequences: '{unknown[0]}' is not in {self.folder.frames_path()}; found {sorted(known)}")
        return {record.frame: record.sequence for record in records}
