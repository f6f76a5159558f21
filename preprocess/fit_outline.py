"""Mattes as a further witness: where the outline of the fitted face should meet the outline of the head in the picture.

A point of the mesh is on its outline where facing and averted triangles meet. What is asked of it is to lie on the edge of the matte, that is
at distance 0 in a signed distance field of it: its residual is the distance along the normal of that edge, so that it may slide along. Points far
from the edge (hair, an ear before the cheek) or on an edge of another direction say nothing.
"""

from dataclasses import dataclass

import cv2
import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lib.datasets.images import read_image, resize
from lib.datasets.layout import CaptureFolder
from lib.errors import InputError
from lib.face_models.contract import FaceModel
from lib.geometry.trimesh import face_normals, vertex_normals
from preprocess.fit_observations import SIZE, pull
from preprocess.fit_start import geman_mcclure

FIELD = 256  # pixels of a distance field
EDGE = 0.5  # of the matte
POINTS = 60  # of an outline in one view, at most
REACH_PX = 10.0  # at 512²: a point further from the edge of the matte is not on it
LEAST_COSINE = 0.8  # between the normals of mesh and matte in the picture
NOISE_PX, KERNEL = 2.0, 2.0  # standard deviation of the edge, and of these how many count a quarter
MARGIN_PX = 8.0  # from the border of the picture, which is no outline


@dataclass(frozen=True)
class Mattes:
    """Distances to the edge of the matte, pixels at 512², positive outside."""

    distances: Float[Tensor, "F C H W"]
    there: Bool[Tensor, "F C"]


@dataclass(frozen=True)
class Outline:
    """Points of the mesh that should lie on the edge of a matte, for some frames; P is cameras times points."""

    frames: Int[Tensor, "B"]  # rows of the observations
    vertices: Int[Tensor, "B P"]  # rows of the mesh
    trust: Float[Tensor, "B P"]  # 0 where a view has fewer points
    distances: Float[Tensor, "B C H W"]
    projection: Float[Tensor, "B C 3 4"]

    def equations(self, points: Float[Tensor, "1 P 3"], frame: int) -> tuple[Float[Tensor, "1 P 3 3"], Float[Tensor, "1 P 3"], Float[Tensor, ""]]:
        """Curvature and slope by the world positions of the points of one of the frames, and the robust cost."""
        cameras = len(self.projection[frame])
        parts = points[0].unflatten(0, (cameras, -1))
        pulled = pull(parts, self.projection[frame][:, None], torch.zeros_like(parts[:, None, :, :2]))
        distance, normal = sample(self.distances[frame], pulled.residuals[:, 0])
        along = torch.einsum("cpi,cpix->cpx", normal, pulled.slopes[:, 0]).flatten(0, 1)
        distance, trust = distance.flatten(), self.trust[frame]
        squared = (distance / NOISE_PX).square()
        weight = trust * geman_mcclure(squared, KERNEL) / NOISE_PX**2
        cost = (trust * KERNEL**2 * squared / (KERNEL**2 + squared)).sum()
        return (weight[:, None, None] * along[:, :, None] * along[:, None])[None], ((weight * distance)[:, None] * along)[None], cost


def read_mattes(folder: CaptureFolder, frames: list[str], cameras: list[str]) -> Mattes:
    """Of these frames, of cameras that there are. Raises InputError for a matte that cannot be decoded, and where there is none at all."""
    distances = torch.zeros(len(frames), len(cameras), FIELD, FIELD, dtype=torch.float64)
    there = torch.zeros(len(frames), len(cameras), dtype=torch.bool)
    for f, frame in enumerate(frames):
        files = folder.files(frame)
        for c, camera in enumerate(cameras):
            name = files.image_name(camera, "mask") or files.image_name(camera, "mask", lowres=True)
            if name is not None and files.has_camera(camera):
                matte = resize(read_image(folder.images_path(frame) / name)[:1], FIELD)[0].numpy() / 255.0
                inside = (matte >= EDGE).astype(np.uint8)
                if 0 < inside.mean() < 1:
                    distances[f, c], there[f, c] = distance_field(inside), True
    if not bool(there.any()):
        raise InputError(f"{folder.root / 'images'}: --silhouettes needs mattes, but in {len(frames)} frames no mask_<camera> shows an edge; "
                         "make them first, or fit without them")
    return Mattes(distances, there)


def distance_field(inside: np.ndarray) -> Float[Tensor, "H W"]:
    """Signed distance of every pixel centre to the edge of a 0/1 picture, in pixels at 512², smoothed by a pixel."""
    signed = cv2.distanceTransform(1 - inside, cv2.DIST_L2, 5) - cv2.distanceTransform(inside, cv2.DIST_L2, 5)
    signed = cv2.GaussianBlur(signed - 0.5 * np.sign(signed), (0, 0), 1.0)
    return torch.from_numpy(signed).double() * (SIZE / len(inside))


def sample(fields: Float[Tensor, "C H W"], pixels: Float[Tensor, "C P 2"]) -> tuple[Float[Tensor, "C P"], Float[Tensor, "C P 2"]]:
    """Bilinear values at pixels of the 512² picture, and unit directions in which they grow."""
    size = fields.shape[-1]
    place = (pixels * (size / SIZE) - 0.5).clamp(0.0, size - 1.001)
    corner = place.floor().long()
    x, y = (place - corner).unbind(dim=-1)
    camera = torch.arange(len(fields))[:, None]
    a, b, c, d = (fields[camera, corner[..., 1] + down, corner[..., 0] + right] for down in (0, 1) for right in (0, 1))
    value = (a * (1 - x) + b * x) * (1 - y) + (c * (1 - x) + d * x) * y
    slope = torch.stack([(b - a) * (1 - y) + (d - c) * y, (c - a) * (1 - x) + (d - b) * x], dim=-1)
    return value, torch.nn.functional.normalize(slope, dim=-1)


def find_outline(
    model: FaceModel, world: Float[Tensor, "B M 3"], frames: Int[Tensor, "B"], mattes: Mattes, projection: Float[Tensor, "B C 3 4"],
    centers: Float[Tensor, "B C 3"], weight: float,
) -> Outline:
    """The outline of a mesh as it stands now. `weight`: what one point counts, as neighbours say the same."""
    triangles = model.triangles if model.skin_triangles is None else model.triangles[model.skin_triangles]
    random = torch.Generator().manual_seed(0)
    cameras, written = centers.shape[1], model.written or len(model.mean)
    rows, trust = torch.zeros(len(world), cameras, POINTS, dtype=torch.long), torch.zeros(len(world), cameras, POINTS, dtype=torch.float64)
    for b, vertices in enumerate(world):
        normals, middles, own = face_normals(vertices, triangles), vertices[triangles].mean(dim=1), vertex_normals(vertices, triangles)
        facing = ((centers[b][:, None] - middles) * normals).sum(dim=-1) > 0
        for c in mattes.there[b].nonzero()[:, 0].tolist():
            seen, averted = (torch.zeros(len(vertices), dtype=torch.bool) for _ in range(2))
            seen[triangles[facing[c]].reshape(-1)] = True
            averted[triangles[~facing[c]].reshape(-1)] = True
            candidates = (seen & averted)[:written].nonzero()[:, 0]
            pulled = pull(vertices[candidates][None], projection[b, c][None, None], vertices.new_zeros(1, 1, len(candidates), 2))
            pixels, slopes = pulled.residuals[0, 0], pulled.slopes[0, 0]
            distance, direction = (value[0] for value in sample(mattes.distances[b, c][None], pixels[None]))
            outward = torch.nn.functional.normalize((slopes @ own[candidates][..., None])[..., 0], dim=-1)
            inside = ((pixels > MARGIN_PX) & (pixels < SIZE - MARGIN_PX)).all(dim=-1)
            kept = candidates[inside & (distance.abs() < REACH_PX) & ((outward * direction).sum(dim=-1) > LEAST_COSINE)]
            kept = kept[torch.randperm(len(kept), generator=random)[:POINTS]]
            rows[b, c, :len(kept)], trust[b, c, :len(kept)] = kept, weight
    return Outline(frames, rows.flatten(1), trust.flatten(1), mattes.distances, projection)
