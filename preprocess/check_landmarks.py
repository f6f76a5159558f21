"""Are the rows of lmk_3d.npy what training takes them for: the 68-point set without the outer mouth corners, in its order?

Compared with a coarse mean of that set after the best similarity, so that any 3DMM, any units and any person fit. What is told is the set of
rows that fits clearly better, or the rows that lie where others should.
"""

from dataclasses import dataclass
from itertools import combinations

import torch
from jaxtyping import Float
from torch import Tensor

from lib.datasets.layout import JAW_ROWS, OUTER_MOUTH_CORNERS

# Mean of the demo heads (assets/demo_head/README.md), made symmetric: hundredths of canonical units, x to the person's left, y up, z forward.
MEAN_68 = (
    (-70, 37, 16), (-70, 16, 19), (-67, -3, 26), (-63, -22, 32), (-55, -43, 41), (-42, -61, 53),
    (-30, -68, 68), (-15, -72, 83), (0, -75, 85), (15, -72, 83), (30, -68, 68), (42, -61, 53),
    (55, -43, 41), (63, -22, 32), (67, -3, 26), (70, 16, 19), (70, 37, 16), (-57, 51, 59),
    (-49, 59, 70), (-38, 61, 79), (-24, 61, 86), (-12, 58, 89), (12, 58, 89), (24, 61, 86),
    (38, 61, 79), (49, 59, 70), (57, 51, 59), (0, 37, 88), (0, 26, 95), (0, 16, 103),
    (0, 5, 110), (-13, -11, 89), (-6, -11, 95), (0, -12, 96), (6, -11, 95), (13, -11, 89),
    (-44, 33, 65), (-39, 37, 73), (-27, 38, 76), (-18, 32, 73), (-26, 31, 75), (-39, 30, 72),
    (18, 32, 73), (27, 38, 76), (39, 37, 73), (44, 33, 65), (39, 30, 72), (26, 31, 75),
    (-25, -35, 83), (-17, -27, 92), (-7, -24, 98), (0, -24, 99), (7, -24, 98), (17, -27, 92),
    (25, -35, 83), (18, -40, 89), (10, -42, 94), (0, -43, 95), (-10, -42, 94), (-18, -40, 89),
    (-22, -34, 82), (-10, -32, 90), (0, -32, 92), (10, -32, 90), (22, -34, 82), (11, -33, 91),
    (0, -33, 93), (-11, -33, 91),
)
# Hundredths of canonical units of the mean face (about centimetres of a 20 cm head unit): people differ from it by up to 8, neighbours in the
# mouth lie 7 to 10 apart, so rows are only called wrong by what many of them say together.
LEAST_GAIN = 0.75  # the other set's error must be smaller by this factor
FAR, JAW_FAR = 25.0, 40.0  # a row so far from its place ...
NEARER = 0.4  # ... and so much nearer to another's is a wrong row
REWEIGHTINGS = 8


@dataclass(frozen=True)
class LandmarkOrder:
    """What the rows look like. `removed`: which two rows of the 68-point set are missing; `misplaced`: (row, row of the 66 where it lies)."""

    removed: tuple[int, int]
    error: float
    expected_error: float
    mirrored: bool
    misplaced: tuple[tuple[int, int], ...]


def landmark_order(landmarks: Float[Tensor, "66 3"]) -> LandmarkOrder:
    """Judges typical landmarks of a subject; errors in hundredths of canonical units of the mean face."""
    mean = torch.tensor(MEAN_68, dtype=torch.float64)
    found = landmarks.double()
    pairs = list(combinations(range(len(mean)), 2))
    kept = torch.tensor([[row for row in range(len(mean)) if row not in pair] for pair in pairs])
    expected = pairs.index(OUTER_MOUTH_CORNERS)
    distances = _distances(found.expand(len(pairs), -1, -1), mean[kept])
    errors = distances.clamp(max=FAR).mean(dim=1)
    best = int(errors.argmin())
    if float(errors[best]) > LEAST_GAIN * float(errors[expected]):
        best = expected
    reflected = _distances((found * torch.tensor([-1.0, 1.0, 1.0]))[None], mean[kept[best]][None]).clamp(max=FAR).mean()
    places = mean[kept[expected]]
    aligned = _aligned(found[None], places[None])[0]
    apart = torch.cdist(aligned, places)
    own, (nearest, row) = apart.diagonal(), apart.min(dim=1)
    limit = torch.full_like(own, FAR)
    limit[JAW_ROWS] = JAW_FAR
    wrong = ((own > limit) & (nearest < NEARER * own)).nonzero()[:, 0].tolist()
    return LandmarkOrder(pairs[best], float(errors[best]), float(errors[expected]), bool(reflected < LEAST_GAIN * errors[best]),
                         tuple((index, int(row[index])) for index in wrong))


def _distances(found: Float[Tensor, "H N 3"], places: Float[Tensor, "H N 3"]) -> Float[Tensor, "H N"]:
    return (_aligned(found, places) - places).norm(dim=2)


def _aligned(found: Float[Tensor, "H N 3"], places: Float[Tensor, "H N 3"]) -> Float[Tensor, "H N 3"]:
    """`found` after the similarity that brings most of its rows to their places (Umeyama 1991, reweighted by inverse distances)."""
    weight = torch.ones_like(found[..., :1])
    for _ in range(REWEIGHTINGS):
        weight = weight / weight.sum(dim=1, keepdim=True)
        a, b = found - (weight * found).sum(dim=1, keepdim=True), places - (weight * places).sum(dim=1, keepdim=True)
        u, sizes, v = torch.linalg.svd((weight * b).transpose(1, 2) @ a)
        proper = torch.ones_like(sizes)
        proper[:, 2] = torch.sign(torch.linalg.det(u @ v))
        rotation = u @ (proper[:, :, None] * v)
        scale = (sizes * proper).sum(dim=1)[:, None, None] / (weight * a * a).sum(dim=(1, 2), keepdim=True).clamp(min=1e-12)
        aligned = scale * a @ rotation.transpose(1, 2) + (weight * places).sum(dim=1, keepdim=True)
        weight = 1.0 / ((aligned - places).norm(dim=2, keepdim=True) + 2.0)
    return aligned
