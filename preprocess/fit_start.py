"""Where a fit starts, from nothing but detections and cameras: robust triangulation and closed-form similarities; PnP where one camera sees."""

import itertools
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lib.datasets.layout import JAW_ROWS
from preprocess.fit_observations import Observations, pull

INNER = slice(JAW_ROWS.stop, None)  # landmarks that are the same point of the head from everywhere
TRIED_PAIRS = 40  # of cameras that detect, per frame and landmark: with 20 % outliers all of them are spoilt once in 10^17 times
LEAST_SINE = 0.05  # of the angle between two rays (3 degrees): below, depth is noise
INLIER_PX, PNP_PX = 8.0, 16.0  # pixels at 512²; the second includes what a person differs from the mean face
LEAST_LANDMARKS = 10  # of 49, for the place of a head
ROBUST_STEPS = 15
FRAMES_AT_ONCE = 32


@dataclass(frozen=True)
class Start:
    """World = scale · rotation @ canonical + translation; frames that are not `known` have no usable detection."""

    scale: float
    scale_is_seen: bool  # False: no two cameras see the head, so that its size is a choice
    rotation: Float[Tensor, "F 3 3"]
    translation: Float[Tensor, "F 3"]
    known: Bool[Tensor, "F"]


def find_start(seen: Observations, landmarks: Float[Tensor, "66 3"], one_view_scale: float) -> Start:
    """`landmarks`: the mean face, canonical. `one_view_scale` (world units per canonical unit) is used where no two cameras see the head."""
    points, trust = triangulate(seen)
    face, points, trust = landmarks[INNER], points[:, INNER], trust[:, INNER]
    solid = (trust > 0).sum(dim=1) >= LEAST_LANDMARKS
    scale, seen_scale = one_view_scale, bool(solid.any())
    rotation = torch.eye(3, dtype=torch.float64).repeat(len(points), 1, 1)
    translation = torch.zeros(len(points), 3, dtype=torch.float64)
    if seen_scale:
        scale = float(robust_similarity(face, points[solid], trust[solid])[0].median())
        _, rotation[solid], translation[solid] = robust_similarity(face, points[solid], trust[solid], scale)
    known = solid.clone()
    for frame in (~solid).nonzero()[:, 0].tolist():
        pose = one_view_pose(seen, frame, scale * face)
        if pose is not None:
            rotation[frame], translation[frame], known[frame] = *pose, True
    return Start(scale, seen_scale, rotation, translation, known)


def triangulate(seen: Observations) -> tuple[Float[Tensor, "F 66 3"], Float[Tensor, "F 66"]]:
    """Points of the world, and the summed scores of the detections that agree on them (0: none do).

    The best of the intersections of many pairs of rays, judged by all cameras, then refined by Gauss-Newton with Geman-McClure weights.
    """
    pairs = _pairs((seen.scores > 0).any(dim=-1))
    parts = [slice(f, f + FRAMES_AT_ONCE) for f in range(0, len(seen.scores), FRAMES_AT_ONCE)]
    points, trust = (torch.cat(found) for found in zip(*(_triangulate(seen.frames(part), pairs[part]) for part in parts), strict=True))
    return points, trust


def _pairs(detects: Bool[Tensor, "F C"]) -> Int[Tensor, "F P 2"]:
    """Cameras to intersect the rays of, in every frame some of those that detect something; a camera with itself where there are too few."""
    rows = []
    for frame in detects:
        pairs = list(itertools.combinations(frame.nonzero()[:, 0].tolist(), 2))
        chosen = np.random.default_rng(0).permutation(len(pairs))[:TRIED_PAIRS]
        rows.append([pairs[k] for k in chosen] + [(0, 0)] * (TRIED_PAIRS - len(chosen)))
    return torch.tensor(rows)[:, :max(1, max(sum(a != b for a, b in row) for row in rows))]


def _triangulate(seen: Observations, pairs: Int[Tensor, "F P 2"]) -> tuple[Float[Tensor, "F L 3"], Float[Tensor, "F L"]]:
    rays, (first, second) = _rays(seen), pairs.unbind(dim=-1)

    def of(values: Tensor, cameras: Tensor) -> Tensor:
        return values[torch.arange(len(values))[:, None], cameras]

    a, b = of(rays, first), of(rays, second)  # (F, pairs, L, 3)
    between = (of(seen.centers, first) - of(seen.centers, second))[..., None, :]
    cosine = (a * b).sum(dim=-1)
    squared_sine = (1.0 - cosine.square()).clamp(min=1e-12)
    along_a, along_b = (a * between).sum(dim=-1), (b * between).sum(dim=-1)
    reach_a, reach_b = (cosine * along_b - along_a) / squared_sine, (along_b - cosine * along_a) / squared_sine
    middle = (of(seen.centers, first)[:, :, None] + reach_a[..., None] * a + of(seen.centers, second)[:, :, None] + reach_b[..., None] * b) / 2.0
    usable = (squared_sine > LEAST_SINE**2) & (reach_a > 0) & (reach_b > 0) & (of(seen.scores, first) > 0) & (of(seen.scores, second) > 0)

    _, count, landmarks = usable.shape
    wanted = seen.pixels[:, :, None].expand(-1, -1, count, -1, -1).flatten(2, 3)
    miss = pull(middle.flatten(1, 2), seen.projection, wanted).residuals.square().sum(dim=-1).clamp(max=INLIER_PX**2)
    cost = (miss.unflatten(2, (count, landmarks)) * seen.scores[:, :, None]).sum(dim=1)
    best = torch.where(usable, cost, torch.inf).argmin(dim=1)  # (F, L)
    points = middle.gather(1, best[:, None, :, None].expand(-1, 1, -1, 3))[:, 0]
    for _ in range(ROBUST_STEPS):
        pulled = pull(points, seen.projection, seen.pixels)
        weights = seen.scores * geman_mcclure(pulled.residuals.square().sum(dim=-1), INLIER_PX / 2.0)
        curvature, slope = pulled.normal_equations(weights)
        scale = curvature.diagonal(dim1=-2, dim2=-1).sum(dim=-1)[..., None, None]
        floor = 1e-6 * scale + 1e-12
        points = points - torch.linalg.solve(curvature + floor * torch.eye(3, dtype=points.dtype), slope)
    agree = pull(points, seen.projection, seen.pixels).residuals.square().sum(dim=-1) < INLIER_PX**2
    votes = (agree & (seen.scores > 0)).sum(dim=1)
    return points, torch.where(usable.any(dim=1) & (votes >= 2), (agree * seen.scores).sum(dim=1), 0.0)


def _rays(seen: Observations) -> Float[Tensor, "F C L 3"]:
    """Unit directions in the world of all detections."""
    inverse = torch.linalg.pinv(seen.projection[..., :3])
    homogeneous = torch.cat([seen.pixels, torch.ones_like(seen.pixels[..., :1])], dim=-1)
    return torch.nn.functional.normalize(homogeneous @ inverse.transpose(-1, -2), dim=-1)


def geman_mcclure(squared: Tensor, width: float | Tensor) -> Tensor:
    """Weights of squared residuals: 1 at 0, 1/4 at `width`."""
    return (width**2 / (width**2 + squared)).square()


def similarity(
    source: Float[Tensor, "L 3"], target: Float[Tensor, "F L 3"], weights: Float[Tensor, "F L"], scale: float | None = None
) -> tuple[Float[Tensor, "F"], Float[Tensor, "F 3 3"], Float[Tensor, "F 3"]]:
    """scale, rotation, translation with the least weighted squares of scale · rotation @ source + translation - target (Umeyama 1991)."""
    share = (weights / weights.sum(dim=1, keepdim=True).clamp(min=1e-12))[..., None]
    source_mean, target_mean = (share * source).sum(dim=1), (share * target).sum(dim=1)
    a, b = source - source_mean[:, None], target - target_mean[:, None]
    u, stretch, vt = torch.linalg.svd((share * b).transpose(1, 2) @ a)
    flip = torch.ones_like(stretch)
    flip[:, 2] = torch.linalg.det(u @ vt).sign()
    rotation = (u * flip[:, None]) @ vt
    scales = (stretch * flip).sum(dim=1) / (share * a.square()).sum(dim=(1, 2)).clamp(min=1e-12)
    if scale is not None:
        scales = torch.full_like(scales, scale)
    translation = target_mean - scales[:, None] * (rotation @ source_mean[..., None])[..., 0]
    return scales, rotation, translation


def robust_similarity(
    source: Float[Tensor, "L 3"], target: Float[Tensor, "F L 3"], trust: Float[Tensor, "F L"], scale: float | None = None
) -> tuple[Float[Tensor, "F"], Float[Tensor, "F 3 3"], Float[Tensor, "F 3"]]:
    """As `similarity`, with points far from where the others put them weighted down (iteratively, by the median distance)."""
    weights = trust
    for _ in range(ROBUST_STEPS):
        scales, rotation, translation = similarity(source, target, weights, scale)
        placed = scales[:, None, None] * source @ rotation.transpose(1, 2) + translation[:, None]
        squared = (placed - target).square().sum(dim=-1)
        typical = torch.where(trust > 0, squared, torch.nan).nanmedian(dim=1).values.sqrt()
        weights = trust * geman_mcclure(squared, 2.0 * typical[:, None] + 1e-12)
    return scales, rotation, translation


def one_view_pose(seen: Observations, frame: int, face: Float[Tensor, "L 3"]) -> tuple[Float[Tensor, "3 3"], Float[Tensor, "3"]] | None:
    """Rotation and translation in the world by the camera that sees most; EPnP within RANSAC. None where too little is seen."""
    camera = int(seen.scores[frame, :, INNER].sum(dim=1).argmax())
    used = seen.scores[frame, camera, INNER] > 0
    if int(used.sum()) < LEAST_LANDMARKS:
        return None
    turn, intrinsics = seen.camera.world_to_camera[frame, camera, :, :3], seen.camera.intrinsics[frame, camera]
    unit = float(face.std())  # OpenCV has thresholds of its own, which mean nothing in the unit of a foreign world
    found, vector, place, inliers = cv2.solvePnPRansac(
        (face[used] / unit).numpy(), seen.pixels[frame, camera, INNER][used].numpy(), intrinsics.numpy(), None,
        iterationsCount=500, reprojectionError=PNP_PX, confidence=0.9999, flags=cv2.SOLVEPNP_SQPNP)
    if not found or inliers is None or len(inliers) < LEAST_LANDMARKS:
        return None
    rotation = turn.T @ torch.from_numpy(cv2.Rodrigues(vector)[0])
    return rotation, turn.T @ torch.from_numpy(place[:, 0]) * unit + seen.centers[frame, camera]
