"""Regions of a picture, against closed forms."""

import pytest
import torch

from lib.metrics.regions import face_region, mouth_box, mouth_is_open, mouth_region, weighted_means


def landmarks(gap: float, width: float = 0.05) -> torch.Tensor:
    """66 landmarks in front of a camera at the origin: mouth rows in a rectangle, inner lips `gap` apart."""
    points = torch.zeros(66, 3)
    points[:, 2] = 1.0
    points[58, 0], points[62, 0] = -width / 2, width / 2
    points[60, 1], points[64, 1] = -gap / 2, gap / 2
    return points


def seen(points: torch.Tensor, center: float = 50.0) -> torch.Tensor:
    return points[:, :2] * 800.0 + center


@pytest.mark.parametrize(("gap", "is_open"), [(0.0, False), (0.0099, False), (0.0101, True), (0.03, True)])
def test_a_mouth_is_open_beyond_a_fifth_of_its_width(gap, is_open):
    assert mouth_is_open(landmarks(gap)) is is_open
    assert bool(mouth_region(landmarks(gap), seen(landmarks(gap)), 100, 100).any()) is is_open


def test_the_mouth_box_is_enlarged_by_a_quarter_about_its_centre():
    rows, columns = mouth_box(seen(landmarks(gap=0.02)), 100, 100)  # 40 x 16 pixels become 50 x 20
    assert (columns.start, columns.stop, rows.start, rows.stop) == (25, 75, 40, 60)
    region = mouth_region(landmarks(0.02), seen(landmarks(0.02)), 100, 100)
    assert int(region.sum()) == 50 * 20 and int(region[40:60, 25:75].sum()) == 50 * 20


def test_the_mouth_box_is_cut_at_the_picture_and_none_outside():
    rows, columns = mouth_box(seen(landmarks(gap=0.02), center=90.0), 100, 100)
    assert (columns.stop, rows.stop) == (100, 100)
    assert mouth_box(seen(landmarks(gap=0.02), center=300.0), 100, 100) is None
    assert not mouth_region(landmarks(0.02), seen(landmarks(0.02), 300.0), 100, 100).any()


def test_the_face_is_the_convex_hull_of_the_landmarks():
    """Against the half-planes of a convex polygon; pixels whose centre is within half a pixel of an edge may go either way."""
    angles = torch.linspace(0.0, 2.0 * torch.pi, 67)[:-1]
    points = torch.stack([40.0 + 27.3 * angles.cos(), 33.0 + 18.6 * angles.sin()], dim=1)
    corners = torch.cat([points, points.mean(dim=0, keepdim=True) + 200.0])  # further control points do not count
    region = face_region(corners, 80, 60).bool()
    centres = torch.stack(torch.meshgrid(torch.arange(80) + 0.5, torch.arange(60) + 0.5, indexing="xy"), dim=-1)
    edges, starts = torch.roll(points, -1, dims=0) - points, points
    offset = centres[:, :, None] - starts
    distance = ((edges[:, 0] * offset[..., 1] - edges[:, 1] * offset[..., 0]) / edges.norm(dim=1)).amin(dim=-1)
    assert bool(region[distance > 0.75].all()) and not bool(region[distance < -0.75].any())
    assert 0.95 < region.sum() / (torch.pi * 27.3 * 18.6) < 1.06


def test_a_face_beyond_the_picture_is_cut():
    points = torch.tensor([[-1e9, -1e9], [1e9, -1e9], [1e9, 1e9], [-1e9, 1e9]]).repeat(17, 1)[:66]
    assert bool(face_region(points, 20, 10).all())
    assert not face_region(points * 1e-9 - 50.0, 20, 10).any()


def test_weighted_means_have_closed_form():
    values = torch.tensor([[[1.0, 3.0], [5.0, 7.0]]])
    weights = torch.tensor([[[[1.0, 1.0], [1.0, 1.0]], [[0.0, 0.5], [0.0, 1.0]], [[0.0, 0.0], [0.0, 0.0]]]])
    means = weighted_means(values, weights)[0]
    assert means[:2].tolist() == pytest.approx([4.0, (1.5 + 7.0) / 1.5])
    assert torch.isnan(means[2])
