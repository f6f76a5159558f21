"""The parts of the evaluation protocol with a closed form."""

import pytest
import torch

from lib.avatars.gaussian_head_avatar.evaluation import PictureScore, mouth_box, mouth_is_open, shown_pictures, summarize
from lib.datasets.batches import HeadBatch
from lib.datasets.head_capture import Picture
from lib.geometry.camera import Camera
from lib.geometry.head_pose import HeadPose


@pytest.mark.parametrize(("frames", "cameras"), [(32, 15), (128, 1), (3, 15), (1, 2)])
def test_what_is_shown_is_measured_and_seen_from_everywhere(frames, cameras):
    pictures = [Picture(str(frame), str(camera)) for frame in range(frames) for camera in range(cameras)]
    shown = shown_pictures(pictures)
    assert shown <= set(pictures) and len({picture.frame for picture in shown}) == len(shown) == min(8, frames)
    assert len({picture.camera for picture in shown}) == min(8, frames, cameras)


def points(gap: float, width: float = 0.05) -> torch.Tensor:
    """66 landmarks in front of a camera at the origin: mouth rows in a rectangle, inner lips `gap` apart."""
    landmarks = torch.zeros(66, 3)
    landmarks[:, 2] = 1.0
    landmarks[58, 0], landmarks[62, 0] = -width / 2, width / 2
    landmarks[60, 1], landmarks[64, 1] = -gap / 2, gap / 2
    return landmarks


@pytest.mark.parametrize(("gap", "is_open"), [(0.0, False), (0.0099, False), (0.0101, True), (0.03, True)])
def test_a_mouth_is_open_beyond_a_fifth_of_its_width(gap, is_open):
    assert mouth_is_open(points(gap)) is is_open


def batch(landmarks: torch.Tensor, focal: float, center: float = 50.0) -> HeadBatch:
    camera = Camera(torch.eye(3, 4)[None, None], torch.tensor([[focal, 0.0, center], [0.0, focal, center], [0.0, 0.0, 1.0]])[None, None], 100, 100)
    return HeadBatch(frame=("a",), view=("b",), frame_index=torch.zeros(1, dtype=torch.long), camera=camera,
                     pixels=torch.zeros(1, 1, 5, 100, 100, dtype=torch.uint8), expression=torch.zeros(1, 2),
                     head=HeadPose(torch.zeros(1, 6), torch.ones(1, 1)), control_points=landmarks[None])


def test_the_mouth_box_is_enlarged_by_a_quarter_about_its_centre():
    rows, columns = mouth_box(batch(points(gap=0.02), focal=800.0))  # 40 x 16 pixels become 50 x 20
    assert (columns.start, columns.stop, rows.start, rows.stop) == (25, 75, 40, 60)


def test_the_mouth_box_is_cut_at_the_picture_and_none_outside():
    rows, columns = mouth_box(batch(points(gap=0.02), focal=800.0, center=90.0))
    assert (columns.stop, rows.stop) == (100, 100)
    assert mouth_box(batch(points(gap=0.02), focal=800.0, center=300.0)) is None


def test_means_skip_pictures_to_which_a_measure_does_not_apply():
    common = {"frame": "0", "camera": "c", "mask_psnr": 1.0, "ssim": 0.5, "expressionless_psnr": None}
    rows = [PictureScore(psnr=20.0, mouth_psnr=10.0, neutral_mouth_psnr=8.0, **common),
            PictureScore(psnr=30.0, mouth_psnr=None, neutral_mouth_psnr=None, **common)]
    summary = summarize(rows)
    assert summary["psnr"] == 25.0 and summary["mouth_psnr"] == 10.0 and summary["frames"] == 2 and summary["expressionless_psnr"] is None
