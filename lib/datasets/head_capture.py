"""A subject folder as training data: frames, cameras, splits, decoded images."""

import hashlib
import threading
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, UInt8
from pydantic import Field
from torch import Tensor

from lib.config import Config, Name
from lib.datasets.batches import HeadBatch
from lib.datasets.images import read_image, resize, stored_size
from lib.datasets.inventory import take_inventory
from lib.datasets.layout import LANDMARK_COUNT, LOWRES_SIZE, CaptureFolder, FrameParams
from lib.datasets.retarget import TrainedFace, trained_face
from lib.errors import InputError
from lib.geometry.camera import Camera
from lib.geometry.head_pose import HeadPose

BLOCKS = 10  # without frames.json, that many contiguous parts of the sorted frames stand in for sequences
FOREGROUND = 128  # of 255: from here on a pixel of a matte counts as head


class HeadCaptureConfig(Config):
    """Which pictures of which subject."""

    dataroot: Path = Field(description="subject folder")
    camera_ids: tuple[Name, ...] = Field((), description="cameras used, as in the file names")
    original_resolution: int = Field(2048, gt=0, description="pixels: size of the full images, to which camera files refer")
    resolution: int = Field(512, gt=0, description="pixels: size of the images handed out")
    num_sample_view: int = Field(8, gt=0, description="random views of one frame per mesh-head step")
    held_out_cameras: tuple[Name, ...] = Field((), description="cameras of camera_ids never trained on (evaluation split novel_view)")
    held_out_sequences: tuple[str, ...] = Field(
        (), description="sequences of frames.json never trained on (split novel_sequence); without it block_0 ... block_9, tenths of the frames")
    cache_gb: float = Field(2.0, ge=0, description="GB of decoded images kept in memory, once for all loading threads; 5 bytes per pixel")


@dataclass(frozen=True)
class Picture:
    """One frame seen by one camera."""

    frame: str
    camera: str


SEPARATOR = "/"  # not part of a name


@dataclass(frozen=True)
class CaptureRecord:
    """Which data a run trains on; kept in its checkpoints. `digests` tell frames by parameters and landmarks, whatever they are called."""

    frames: tuple[str, ...]
    digests: tuple[str, ...]
    train_frames: tuple[str, ...]
    train_cameras: tuple[str, ...]
    # Of the training frames, so that they need not be compared; () in checkpoints that are older than these.
    expression_lowest: tuple[float, ...] = field(default=(), compare=False)
    expression_highest: tuple[float, ...] = field(default=(), compare=False)
    expression_median: tuple[float, ...] = field(default=(), compare=False)
    head_scale: tuple[float, ...] = field(default=(), compare=False)
    face_model: tuple[str, ...] = field(default=(), compare=False)  # name and version of the 3DMM, where its parameters tell
    # Of every checkpoint that the run goes back to: cameras and digests that it was trained on, '' where it does not tell.
    earlier: tuple[str, ...] = field(default=(), compare=False)

    def trained_face(self) -> TrainedFace | None:
        """What the training has seen of the face; None in older checkpoints."""
        if not self.head_scale:
            return None
        values = (self.expression_lowest, self.expression_highest, self.expression_median, self.head_scale)
        return TrainedFace(*map(torch.tensor, values), self.face_model)

    def trained(self) -> dict[str, str]:
        """Digest -> name of the frames that are trained on."""
        chosen = set(self.train_frames)
        return {digest: frame for frame, digest in zip(self.frames, self.digests, strict=True) if frame in chosen}

    def descent(self) -> tuple[str, ...]:
        """`earlier` of what starts from a checkpoint with this record."""
        return ("\n".join((SEPARATOR.join(self.train_cameras), SEPARATOR.join(self.trained()))), *self.earlier)

    def all_trained(self) -> list[tuple[dict[str, str], tuple[str, ...]]]:
        """Digest -> name of frames ('' where it is not known), and cameras, of this training and of every earlier one that tells."""
        parts = [one.split("\n") for one in self.earlier if one]
        return [(self.trained(), self.train_cameras),
                *((dict.fromkeys(digests.split(SEPARATOR), ""), tuple(cameras.split(SEPARATOR))) for cameras, digests in parts)]


class PictureCache:
    """Decoded pictures of up to `limit` bytes, for any number of threads. What is there stays: an epoch needs every picture once, so that
    replacing one by another wins nothing."""

    def __init__(self, limit: float) -> None:
        self.limit, self.nbytes = limit, 0
        self._pictures: dict[Picture, UInt8[Tensor, "5 H W"]] = {}
        self._lock = threading.Lock()

    def get(self, picture: Picture) -> UInt8[Tensor, "5 H W"] | None:
        """The pixels, if they are here."""
        return self._pictures.get(picture)

    def keep(self, picture: Picture, pixels: UInt8[Tensor, "5 H W"]) -> UInt8[Tensor, "5 H W"]:
        """Takes the pixels in, if there is room; returns those to use: what another thread brought first, else the given ones."""
        with self._lock:
            if picture not in self._pictures and self.nbytes + pixels.nbytes <= self.limit:
                self._pictures[picture] = pixels
                self.nbytes += pixels.nbytes
            return self._pictures.get(picture, pixels)


class HeadCapture:
    """Validated view of a subject folder. Parameters and cameras are read at once, images when asked for.

    `camera_ids` are the listed cameras that exist; `notes` say in one line each what was left out or derived.
    Raises InputError for anything missing or malformed, naming the file, the frame and how many more.
    """

    def __init__(self, config: HeadCaptureConfig) -> None:
        self.config = config
        self.folder = CaptureFolder(config.dataroot)
        self._inventory = take_inventory(self.folder, config.camera_ids, config.resolution)
        self.frames = list(self._inventory.files)
        self.camera_ids = list(self._inventory.camera_ids)
        self._check_held_out_cameras()
        self._inventory.require_complete()
        self.folder.require_whole_fit()

        self.params: dict[str, FrameParams] = {frame: self.folder.read_params(frame) for frame in self.frames}
        control = {frame: self.folder.read_control_points(frame) for frame in self.frames}
        self.control_points = {frame: read.points for frame, read in control.items()}
        self.cameras = {
            Picture(frame, camera): self.folder.read_camera(frame, camera) for frame in self.frames for camera in self.camera_ids
        }
        self._check_widths()
        self._check_sizes()
        self.sequence_of, sequence_notes = self._sequences()

        self.train_cameras = [camera for camera in self.camera_ids if camera not in config.held_out_cameras]
        self.train_frames = [frame for frame in self.frames if self.sequence_of[frame] not in config.held_out_sequences]
        self.held_out_frames = [frame for frame in self.frames if self.sequence_of[frame] in config.held_out_sequences]
        if not self.train_cameras or not self.train_frames:
            raise InputError("dataset: everything is held out; leave at least one camera and one sequence to train on")

        dropped = sum(read.stored_landmarks != LANDMARK_COUNT for read in control.values())
        wrapped = sum(params.scale_shape != (1,) for params in self.params.values())
        self.notes: tuple[str, ...] = (
            *self._inventory.notes(config.original_resolution),
            *([f"68 landmarks: rows 48 and 54 (outer mouth corners) are dropped, in {dropped} of {len(self.frames)} frames"] if dropped else []),
            *([f"scale of shape (1,1) is read as (1,), in {wrapped} of {len(self.frames)} frames"] if wrapped else []),
            *sequence_notes,
        )
        self.cache = PictureCache(config.cache_gb * 1e9)

    @property
    def expression_count(self) -> int:
        """Number of expression coefficients E."""
        return len(self.params[self.frames[0]].expression)

    @property
    def control_count(self) -> int:
        """Number of control landmarks L."""
        return len(self.control_points[self.frames[0]])

    def record(self) -> CaptureRecord:
        """What a checkpoint keeps of this capture."""
        digests = (self.digest(frame) for frame in self.frames)
        params = [self.params[frame] for frame in self.train_frames]
        face = trained_face(torch.stack([one.expression for one in params]), torch.stack([one.scale for one in params]))
        return CaptureRecord(
            tuple(self.frames), tuple(digests), tuple(self.train_frames), tuple(self.train_cameras),
            *(tuple(values.tolist()) for values in (face.lowest, face.highest, face.median, face.scale)), params[0].model)

    def digest(self, frame: str) -> str:
        """16 hexadecimal digits of a frame's parameters and control points: another person's are others under the same expression."""
        params = self.params[frame]
        values = torch.cat([params.expression, params.pose, params.scale, self.control_points[frame].flatten()])
        return hashlib.sha256(values.numpy().tobytes()).hexdigest()[:16]

    def novel_view(self) -> list[Picture]:
        """Training frames seen by held-out cameras."""
        return [Picture(frame, camera) for frame in self.train_frames for camera in self.config.held_out_cameras]

    def novel_sequence(self) -> list[Picture]:
        """Held-out frames seen by training cameras."""
        return [Picture(frame, camera) for frame in self.held_out_frames for camera in self.train_cameras]

    def item(self, frame: str, cameras: list[str]) -> HeadBatch:
        """One frame (no batch dimension) seen by the given cameras."""
        pixels = np.stack([self._pixels(Picture(frame, camera)).numpy() for camera in cameras])
        params = self.params[frame]
        return HeadBatch(
            frame=frame,
            view=" ".join(cameras),
            frame_index=torch.tensor(self.frames.index(frame)),
            pixels=torch.from_numpy(pixels),
            camera=self.camera(frame, cameras),
            expression=params.expression,
            head=HeadPose(params.pose, params.scale),
            control_points=self.control_points[frame],
        )

    def pictures(self, pictures: list[Picture]) -> HeadBatch:
        """A batch of single-view items."""
        return HeadBatch.stack([self.item(picture.frame, [picture.camera]) for picture in pictures])

    def camera(self, frame: str, cameras: list[str]) -> Camera:
        """The given cameras at one frame, for pictures of `resolution`."""
        size, original = self.config.resolution, self.config.original_resolution
        extrinsics, intrinsics = zip(*(self.cameras[Picture(frame, camera)] for camera in cameras), strict=True)
        return Camera(torch.stack(extrinsics), torch.stack(intrinsics), original, original).resized(size, size)

    def matte(self, picture: Picture) -> UInt8[Tensor, "H W"]:
        """The mask alone, 0 to 255."""
        return self._decode(picture, "mask")[0]

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
        cached = self.cache.get(picture)
        if cached is not None:
            return cached
        image, mask = (self._decode(picture, kind).numpy() for kind in ("image", "mask"))
        has_visible = self._inventory.has(picture.frame, picture.camera, "visible")
        visible = self._decode(picture, "visible").numpy() if has_visible else np.full_like(mask, 255)
        # By numpy, in this thread: torch would start a team of threads for each thread that loads.
        return self.cache.keep(picture, torch.from_numpy(np.concatenate([image, mask, visible])))

    def _decode(self, picture: Picture, kind: str) -> UInt8[Tensor, "C H W"]:
        """RGB of an image; channel 0 of a mask or of visible."""
        path = self._inventory.source(picture.frame, picture.camera, kind)
        image = read_image(path)
        self._expect_size(path, *reversed(image.shape[1:]))
        if kind == "mask" and (largest := int(image[0].numpy().max())) < FOREGROUND:
            # A picture without a head would teach that there is none.
            raise InputError(f"{path}: the matte is black (largest value {largest}); expected 255 on the head and 0 elsewhere: "
                             "matte this picture again, or leave this frame or camera out")
        return resize(image if kind == "image" else image[:1], self.config.resolution)

    def _expect_size(self, path: Path, width: int, height: int) -> None:
        size = LOWRES_SIZE if "_lowres_" in path.name else self.config.original_resolution
        if (width, height) != (size, size):
            raise InputError(f"{path}: expected {size}x{size} pixels, found {width}x{height}; "
                             "full images must have dataset.original_resolution, lowres images 256")

    def _check_sizes(self) -> None:
        """Intrinsics are of full pictures: where lowres ones are decoded, nothing else looks at those."""
        for camera in self.camera_ids:
            path = self._inventory.full(self.frames[0], camera)
            if path is not None and any(size := stored_size(path)):
                self._expect_size(path, *size)

    def _check_held_out_cameras(self) -> None:
        for camera in self.config.held_out_cameras:
            if (times := self.config.held_out_cameras.count(camera)) > 1:
                raise InputError(f"dataset.held_out_cameras: '{camera}' is listed {times} times; list it once")
            if camera not in self.config.camera_ids:
                raise InputError(f"dataset.held_out_cameras: '{camera}' is not one of dataset.camera_ids {list(self.config.camera_ids)}")
            if camera not in self.camera_ids:
                raise InputError(f"dataset.held_out_cameras: '{camera}' has no image in any frame of {self.folder.root}; "
                                 f"hold out one of {self.camera_ids}")

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

    def _sequences(self) -> tuple[dict[str, str], list[str]]:
        """The sequence of every frame, and a note where it had to be made up."""
        held_out, path = self.config.held_out_sequences, self.folder.frames_path()
        records = self.folder.records(self.frames)
        if records is not None:
            sequence_of = {record.frame: record.sequence for record in records}
            self._check_held_out_sequences(sequence_of, f"in {path}")
            return sequence_of, []
        parts = np.array_split(np.arange(len(self.frames)), min(BLOCKS, len(self.frames)))
        blocks = {self.frames[index]: f"block_{number}" for number, part in enumerate(parts) for index in part}
        self._check_held_out_sequences(blocks, f"one of the blocks that stand in for sequences, as there is no {path}")
        span = f"{len(parts)} contiguous blocks of the sorted frames, block_0 to block_{len(parts) - 1}"
        if not held_out:
            return dict.fromkeys(self.frames, ""), [f"no frames.json: dataset.held_out_sequences may name {span}"]
        held = sum(block in held_out for block in blocks.values())
        return blocks, [f"no frames.json: sequences are {span}; {held} of {len(self.frames)} frames are held out"]

    def _check_held_out_sequences(self, sequence_of: dict[str, str], where: str) -> None:
        unknown = [name for name in self.config.held_out_sequences if name not in sequence_of.values()]
        if unknown:
            known = list(dict.fromkeys(sequence_of.values()))
            raise InputError(f"dataset.held_out_sequences: '{unknown[0]}' is not {where}; found {known}")
