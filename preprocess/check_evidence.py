"""What pictures say about geometry without any detector: does a vertex of the face have one colour, whichever camera and frame sees it?

The colour of every vertex is taken from all pictures (their median: the texture). Where a picture, sampled at the projected vertices,
correlates with the texture of the other cameras, its camera and its frame's parameters are right; where it correlates better a few pixels
aside, with another camera's parameters or with another frame's vertices, that is what is wrong. Works for any 3DMM: no triangles, no meaning
of rows are used, only that a row is the same point in all frames.
"""

import dataclasses
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor
from tqdm import tqdm

from lib.datasets.head_capture import FOREGROUND, HeadCapture, Picture
from lib.datasets.layout import LANDMARK_COUNT
from lib.errors import InputError
from lib.geometry.camera import Camera
from lib.geometry.head_pose import HeadPose
from lib.training.runtime import is_terminal

POINTS = 800  # vertices that are looked at
AT_ONCE = 64  # pictures that are sampled together
NEIGHBOURS = 12  # of a vertex, that say where it faces
FACING = 0.35  # cosine: vertices turned further away may be hidden
JAW_ENDS, NOSE = (0, 16), (30, 33)  # landmark rows: from the first to the second a face looks forward


@dataclass(frozen=True)
class Sight:
    """F frames seen by C cameras, decoded at S x S; N points of the face in each frame. Pictures lie on black, 0 to 255: there may be thousands."""

    frames: tuple[str, ...]
    cameras: tuple[str, ...]
    color: UInt8[Tensor, "F C 3 S S"]
    matte: Bool[Tensor, "F C S S"]
    decoded: Bool[Tensor, "F C"]
    points: Float[Tensor, "F N 3"]
    normals: Float[Tensor, "F N 3"]
    world_to_camera: Float[Tensor, "F C 3 4"]
    intrinsics: Float[Tensor, "F C 3 3"]

    @property
    def size(self) -> int:
        """Pixels of a side."""
        return self.color.shape[-1]

    def camera(self, column: int) -> Camera:
        """One of the cameras in all frames."""
        return Camera(self.world_to_camera[:, column], self.intrinsics[:, column], self.size, self.size)

    def of_cameras(self, cameras: list[str]) -> "Sight":
        """Only these cameras, in this order."""
        columns = [self.cameras.index(camera) for camera in cameras]
        return dataclasses.replace(self, cameras=tuple(cameras), **{
            name: getattr(self, name)[:, columns] for name in ("color", "matte", "decoded", "world_to_camera", "intrinsics")})


@dataclass(frozen=True)
class Samples:
    """A picture at the points: colour in [0,1], and whether the point faces the camera there."""

    color: Float[Tensor, "*F N 3"]
    visible: Bool[Tensor, "*F N"]


def see(capture: HeadCapture, frames: list[str], cameras: list[str]) -> tuple[Sight, list[tuple[Picture, str]]]:
    """Decodes all these pictures; and what is wrong with each that cannot be decoded or has no head."""
    size = capture.config.resolution
    color = torch.zeros(len(frames), len(cameras), 3, size, size, dtype=torch.uint8)
    matte = torch.zeros(len(frames), len(cameras), size, size, dtype=torch.bool)
    decoded = torch.zeros(len(frames), len(cameras), dtype=torch.bool)
    problems: list[tuple[Picture, str]] = []
    pictures = [(row, column) for row in range(len(frames)) for column in range(len(cameras))]
    for row, column in tqdm(pictures, desc="pictures", unit="picture", mininterval=0.5 if is_terminal() else 15.0):
        try:
            pixels = capture.item(frames[row], [cameras[column]]).pixels[0]
        except InputError as error:
            problems.append((Picture(frames[row], cameras[column]), str(error)))
        else:
            matte[row, column], decoded[row, column] = pixels[3] >= FOREGROUND, True
            color[row, column] = pixels[:3] * matte[row, column]
    points, normals = face_points(capture, frames)
    seen = [capture.camera(frame, cameras) for frame in frames]
    return Sight(
        tuple(frames), tuple(cameras), color, matte, decoded, points, normals,
        torch.stack([camera.world_to_camera for camera in seen]), torch.stack([camera.intrinsics for camera in seen]),
    ), problems


def face_points(capture: HeadCapture, frames: list[str]) -> tuple[Float[Tensor, "F N 3"], Float[Tensor, "F N 3"]]:
    """The same vertices in several frames and where they face, in the world."""
    stacked = torch.stack([capture.folder.read_vertices(frame, POINTS) for frame in frames])
    params = [capture.params[frame] for frame in frames]
    head = HeadPose(torch.stack([one.pose for one in params]), torch.stack([one.scale for one in params]))
    shape = head.to_canonical(stacked).median(dim=0).values
    return stacked, outward(shape) @ head.rotation().transpose(1, 2)


def outward(shape: Float[Tensor, "N 3"]) -> Float[Tensor, "N 3"]:
    """Unit normals of a cloud of points on a shell: of the plane through the neighbours, away from the centre."""
    nearest = torch.cdist(shape, shape).topk(min(NEIGHBOURS, len(shape)), largest=False).indices
    local = shape[nearest] - shape[nearest].mean(dim=1, keepdim=True)
    normals = torch.linalg.eigh(local.transpose(1, 2) @ local).eigenvectors[..., 0]
    return normals * torch.where((normals * (shape - shape.mean(dim=0))).sum(dim=1, keepdim=True) < 0, -1.0, 1.0)


def sample(sight: Sight, column: int, camera: Camera, shifts: Float[Tensor, "D 2"] | None = None) -> Samples:
    """The pictures of one camera at the points as `camera` projects them, moved by each of the shifts (pixels): (D, F, N) or (F, N).

    In pictures that could not be decoded nothing is visible.
    """
    samples = sample_pictures(sight.color[:, column], sight.points, sight.normals, camera, shifts)
    return Samples(samples.color, samples.visible & sight.decoded[:, column, None])


def sample_pictures(
    color: UInt8[Tensor, "F 3 S S"], points: Float[Tensor, "F N 3"], normals: Float[Tensor, "F N 3"], camera: Camera,
    shifts: Float[Tensor, "D 2"] | None = None,
) -> Samples:
    """One picture per row of points."""
    seen = camera.to_camera(points)
    pixels = camera.to_pixels(seen)
    towards = torch.nn.functional.normalize(camera.centers()[:, None] - points, dim=-1)
    visible = ((towards * normals).sum(dim=-1) > FACING) & (seen[..., 2] > 0)
    moved = pixels[:, None] if shifts is None else pixels[:, None] + shifts[:, None]  # (F, D, N, 2)
    grid = moved.clamp(-8.0 * camera.width, 8.0 * camera.width) * (2.0 / camera.width) - 1.0
    parts = [slice(row, row + AT_ONCE) for row in range(0, len(color), AT_ONCE)]
    values = torch.cat([torch.nn.functional.grid_sample(color[part] / 255.0, grid[part], align_corners=False) for part in parts])
    values = values.permute(2, 0, 3, 1)  # (D, F, N, 3)
    return Samples(values[0], visible) if shifts is None else Samples(values, visible.expand(len(values), -1, -1))


def texture(samples: list[Samples]) -> Float[Tensor, "N 3"]:
    """Median colour of every point over pictures that see it; NaN where none does."""
    colors = torch.cat([torch.where(one.visible[..., None], one.color, torch.nan) for one in samples])
    return colors.nanmedian(dim=0).values


def agreement(samples: Samples, truth: Float[Tensor, "N 3"]) -> Float[Tensor, "*F"]:
    """Correlation (-1 to 1) of sampled colours with the texture, over points that both have; 0 where there are too few to tell."""
    weight = (samples.visible & ~truth.isnan().any(dim=-1)).float()[..., None]
    count = weight.sum(dim=-2, keepdim=True).clamp(min=1.0)
    reference = truth.nan_to_num() * weight
    a = (samples.color - (samples.color * weight).sum(dim=-2, keepdim=True) / count) * weight
    b = (reference - reference.sum(dim=-2, keepdim=True) / count) * weight
    both = (a * b).sum(dim=(-2, -1)) / (a.square().sum(dim=(-2, -1)) * b.square().sum(dim=(-2, -1))).clamp(min=1e-12).sqrt()
    return torch.where(count[..., 0, 0] >= POINTS // 20, both, 0.0)


def average(scores: Float[Tensor, "*D F"], sight: Sight, column: int) -> Float[Tensor, "*D"]:
    """Mean over the frames in which the camera's picture could be decoded."""
    decoded = sight.decoded[:, column].float()
    return (scores * decoded).sum(dim=-1) / decoded.sum().clamp(min=1.0)


def frontal(capture: HeadCapture, frame: str, cameras: list[str]) -> list[str]:
    """The cameras, those first that look into the face."""
    landmarks = capture.control_points[frame][:LANDMARK_COUNT]
    forward = torch.nn.functional.normalize(landmarks[list(NOSE)].mean(dim=0) - landmarks[list(JAW_ENDS)].mean(dim=0), dim=0)
    to_camera = torch.nn.functional.normalize(capture.camera(frame, cameras).centers() - landmarks.mean(dim=0), dim=1)
    order: Int[np.ndarray, C] = np.argsort(-(to_camera @ forward).numpy(), kind="stable")
    return [cameras[index] for index in order]
