"""Which pictures are shown, in which order they are measured, and what is drawn in batches."""

import dataclasses

import pytest
import torch

from benchmarks.reenact import make_avatar
from lib.avatars.gaussian_head_avatar.drawing import BatchRenderer
from lib.avatars.gaussian_head_avatar.evaluation import shown_pictures
from lib.datasets.head_capture import HeadCapture, HeadCaptureConfig, Picture
from lib.evaluation.measures import TruthMeasures
from lib.evaluation.truth import Truth, contents, follows, in_order, load_portion, without_expression
from tests.tiny import CAMERAS, HELD_OUT_CAMERA, SIZE, dataset_dict


@pytest.fixture(scope="module")
def capture(made) -> HeadCapture:
    return HeadCapture(HeadCaptureConfig(**dataset_dict(made.subject)))


@pytest.mark.parametrize(("frames", "cameras"), [(32, 15), (128, 1), (3, 15), (1, 2)])
def test_what_is_shown_is_measured_and_seen_from_everywhere(frames, cameras):
    pictures = [Picture(str(frame), str(camera)) for frame in range(frames) for camera in range(cameras)]
    shown = shown_pictures(pictures)
    assert shown <= set(pictures) and len({picture.frame for picture in shown}) == len(shown) == min(8, frames)
    assert len({picture.camera for picture in shown}) == min(8, frames, cameras)


def test_pictures_are_measured_in_the_order_of_time_camera_after_camera(capture):
    pictures = in_order(capture, reversed(capture.novel_sequence() + capture.novel_view()))
    assert len(pictures) == len(set(pictures)) == len(capture.novel_sequence()) + len(capture.novel_view())
    places = [(capture.camera_ids.index(one.camera), capture.frames.index(one.frame)) for one in pictures]
    assert places == sorted(places)


def test_a_picture_follows_the_frame_before_of_its_camera_and_sequence(capture):
    for before in capture.frames:
        for frame in capture.frames:
            one, other = Picture(frame, CAMERAS[0]), Picture(before, CAMERAS[0])
            expected = (capture.frames.index(frame) - capture.frames.index(before) == 1
                        and capture.sequence_of[frame] == capture.sequence_of[before])
            assert follows(capture, one, other) is expected
            assert not follows(capture, one, Picture(before, CAMERAS[1])) and not follows(capture, one, None)


def test_a_portion_is_the_same_whatever_its_size(capture):
    pictures = in_order(capture, capture.novel_view())
    whole = load_portion(capture, pictures, None)
    assert whole.truth.pixels.shape == (len(pictures), 5, SIZE, SIZE) and any(whole.follows)
    for row, picture in enumerate(pictures):
        single = load_portion(capture, [picture], pictures[row - 1] if row else None)
        assert torch.equal(single.truth.pixels[0], whole.truth.pixels[row]) and torch.equal(single.truth.regions[0], whole.truth.regions[row])
        assert single.follows == (whole.follows[row],) and torch.equal(single.frames[0].expression, whole.frames[row].expression)
        assert torch.equal(single.frames[0].camera.intrinsics, whole.frames[row].camera.intrinsics)


def test_the_face_lies_on_the_head(capture):
    truth = load_portion(capture, [Picture(capture.frames[0], HELD_OUT_CAMERA)], None).truth
    face, mask = truth.regions[0, 0].bool(), truth.pixels[0, 3] > 127
    assert 0.05 < face.float().mean() < mask.float().mean() and (face & mask).sum() > 0.95 * face.sum()


def test_in_the_padding_nothing_is_wrong():
    """Nobody knows what was there."""
    pixels = torch.full((1, 5, 32, 32), 255, dtype=torch.uint8)
    pixels[0, :3] = torch.randint(0, 256, (3, 32, 32), generator=torch.Generator().manual_seed(0))
    pixels[0, 3:, :, :8] = 0
    drawn = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    drawn[..., 8:] = pixels[:, :3, :, 8:].float() / 255.0
    truth = Truth(pixels, torch.zeros(1, 2, 32, 32, dtype=torch.uint8), None)
    measures = TruthMeasures({}, ())(truth.compared(drawn))
    found = dict(zip(measures.names, measures.values[0].tolist(), strict=True))
    assert (found["psnr"], found["mask_psnr"], found["l1"]) == (100.0, 100.0, 0.0) and found["mask_ssim"] > 1.0 - 1e-6
    drawn[..., 8:] += 0.1
    assert float(TruthMeasures({}, ())(truth.compared(drawn)).values[0, 0]) < 25.0


def test_contents_tell_other_pictures(capture):
    views = contents(capture, capture.novel_view())
    assert views == contents(capture, list(reversed(capture.novel_view()))) and views.cameras == (HELD_OUT_CAMERA,)
    assert views.digest != contents(capture, capture.novel_view()[1:]).digest
    other = HeadCapture(HeadCaptureConfig(**dataset_dict(capture.config.dataroot, held_out_cameras=[CAMERAS[0]])))
    assert contents(other, other.novel_view()).digest != views.digest


def test_a_batch_is_its_pictures_one_by_one(capture):
    avatar = make_avatar(300)
    draw = BatchRenderer(avatar, SIZE, SIZE)
    assert draw.frames_per_second is None
    frames = [dataclasses.replace(frame, expression=torch.full((1, avatar.head.config.exp_coeffs_dim), 0.1))
              for frame in load_portion(capture, in_order(capture, capture.novel_view())[:2], None).frames]
    drawn = draw(frames)
    assert drawn.finite == (True, True) and draw.frames_per_second > 0
    for frame, image in zip(frames, drawn.images, strict=True):
        with torch.no_grad():
            assert torch.equal(avatar(frame.expression, frame.pose_code, frame.head, frame.camera).image[0], image)
    avatar.upsampler.exit.bias.data.fill_(torch.nan)
    assert BatchRenderer(avatar, SIZE, SIZE)(frames[:1]).finite == (False,)
    assert torch.equal(without_expression(frames[0]).expression, torch.zeros_like(frames[0].expression))
