"""A subject folder as training data: splits, sampling, images and cameras that belong together."""

import dataclasses
import shutil
import sys
import threading
from collections import Counter

import cv2
import numpy as np
import pytest
import torch
from torch import Tensor

from lib.config import read_config
from lib.config.reader import Arguments
from lib.datasets.head_capture import HeadCapture, HeadCaptureConfig, Picture, PictureCache
from lib.datasets.sampler import TrainingBatches
from lib.errors import InputError
from lib.tensors import TensorBundle
from tests.tiny import CAMERAS, EXPRESSIONS, HELD_OUT_CAMERA, HELD_OUT_SEQUENCE, SIZE, copy_subject, dataset_dict


@pytest.fixture
def copy(subject, tmp_path):
    return copy_subject(subject, tmp_path / "subject")


def capture_of(folder, **changes) -> HeadCapture:
    return HeadCapture(HeadCaptureConfig(**dataset_dict(folder, **changes)))


def assert_equal(one: TensorBundle, other: TensorBundle) -> None:
    for field in dataclasses.fields(one):
        a, b = getattr(one, field.name), getattr(other, field.name)
        if isinstance(a, TensorBundle):
            assert_equal(a, b)
        elif isinstance(a, Tensor):
            assert torch.equal(a, b), field.name
        else:
            assert a == b, field.name


def test_splits_are_disjoint_and_complete(subject):
    capture = capture_of(subject)
    train = {Picture(frame, camera) for frame in capture.train_frames for camera in capture.train_cameras}
    view, sequence = set(capture.novel_view()), set(capture.novel_sequence())
    assert train and view and sequence
    assert not train & view and not train & sequence and not view & sequence
    assert {picture.camera for picture in view} == {HELD_OUT_CAMERA}
    assert {capture.sequence_of[picture.frame] for picture in sequence} == {HELD_OUT_SEQUENCE}
    # Held-out frames by held-out cameras are in no split: everything else is in exactly one.
    assert len(train) + len(view) + len(sequence) == len(capture.frames) * len(CAMERAS) - len(capture.held_out_frames)


def test_frames_are_sorted_and_all_are_indexed(subject):
    capture = capture_of(subject)
    assert capture.frames == sorted(capture.frames) == [f"{k:04d}" for k in range(len(capture.frames))]
    assert [int(capture.item(frame, [CAMERAS[0]]).frame_index) for frame in capture.frames] == list(range(len(capture.frames)))


@pytest.mark.parametrize("batch_size", [1, 2, 4])
def test_training_never_sees_what_is_held_out(subject, batch_size):
    batches = TrainingBatches(capture_of(subject), batch_size, views=2, seed=3)
    for step in range(batches.steps_of(2)):
        batch = batches[step]
        assert not set(batch.frame) & set(batches.capture.held_out_frames)
        assert HELD_OUT_CAMERA not in " ".join(batch.view).split()


def test_nothing_held_out_is_trained_on_through_examples_or_validation(subject):
    batches = TrainingBatches(capture_of(subject), 1, views=1, seed=0)
    held = {*batches.capture.novel_view(), *batches.capture.novel_sequence()}
    for count in (1, 2, 3, 4, 100):
        assert set(batches.held_out(count)) <= held
        assert len(set(batches.held_out(count))) == len(batches.held_out(count))
        assert not set(batches.training_examples(count)) & held


def test_validation_shows_both_splits(subject):
    batches = TrainingBatches(capture_of(subject), 1, views=1, seed=0)
    shown = batches.held_out(4)
    assert len(shown) == 4
    assert any(picture.camera == HELD_OUT_CAMERA for picture in shown)
    assert any(picture.frame in batches.capture.held_out_frames for picture in shown)


@pytest.mark.parametrize("batch_size", [1, 2, 4, 5])
def test_every_epoch_visits_every_training_frame_once(subject, batch_size):
    batches = TrainingBatches(capture_of(subject), batch_size, views=1, seed=7)
    frames = batches.capture.train_frames
    count = len(frames) * 4  # of samples; every batch size above divides a multiple of it
    stream = [frame for step in range(-(-count // batch_size)) for frame in batches[step].frame][:count]
    epochs = [stream[start:start + len(frames)] for start in range(0, count, len(frames))]
    assert all(sorted(epoch) == frames for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 1  # in a new order
    assert (batches.steps_of(3) - 1) * batch_size < 3 * len(frames) <= batches.steps_of(3) * batch_size


def test_views_of_an_item_are_different_and_all_get_their_turn(subject):
    batches = TrainingBatches(capture_of(subject), 1, views=2, seed=0)
    seen: Counter[str] = Counter()
    for step in range(24):
        views = batches[step].view[0].split()
        assert len(views) == len(set(views)) == 2
        seen.update(views)
    assert set(seen) == set(batches.capture.train_cameras)


def test_more_views_than_cameras_means_all_cameras(subject):
    assert len(TrainingBatches(capture_of(subject), 1, views=50, seed=0)[0].view[0].split()) == len(CAMERAS) - 1


def test_a_batch_is_a_pure_function_of_seed_and_step(subject):
    forward, backward = (TrainingBatches(capture_of(subject), 2, views=2, seed=5) for _ in range(2))
    expected = [forward[step] for step in range(6)]
    torch.manual_seed(99)  # global randomness has no part in it
    for step in reversed(range(6)):
        torch.rand(3)
        assert_equal(backward[step], expected[step])
    other = TrainingBatches(capture_of(subject), 2, views=2, seed=6)
    assert [other[step].view for step in range(6)] != [batch.view for batch in expected]


def test_batch_shapes(subject):
    capture = capture_of(subject)
    batch = TrainingBatches(capture, 3, views=2, seed=0)[0]
    vertices = 9409
    assert batch.images.shape == (3, 2, 3, SIZE, SIZE)
    assert batch.masks.shape == batch.visible.shape == (3, 2, 1, SIZE, SIZE)
    assert batch.camera.world_to_camera.shape == (3, 2, 3, 4) and batch.camera.intrinsics.shape == (3, 2, 3, 3)
    assert batch.expression.shape == (3, EXPRESSIONS) and capture.expression_count == EXPRESSIONS
    assert batch.head.pose.shape == (3, 6) and batch.head.scale.shape == (3, 1)
    assert batch.control_points.shape == (3, 66 + -(-vertices // 100), 3) and capture.control_count == batch.control_points.shape[1]
    assert batch.frame_index.shape == (3,)
    for values in (batch.images, batch.masks, batch.visible):
        assert values.dtype == torch.float32 and float(values.min()) >= 0 and float(values.max()) <= 1
    assert batch.flat_camera().intrinsics.shape == (6, 3, 3)


@pytest.mark.parametrize("resolution", [16, 32, 64, 128, 300])
def test_camera_is_resized_with_the_image(subject, resolution):
    capture = capture_of(subject, resolution=resolution)
    frame, camera = capture.frames[0], "222200043"  # its principal point is off the centre
    batch = capture.pictures([Picture(frame, camera)])
    vertices = torch.from_numpy(np.load(capture.folder.vertices_path(frame)))[None]
    assert batch.images.shape[-2:] == (resolution, resolution) == (batch.camera.height, batch.camera.width)
    pixels = batch.flat_camera().project(vertices)[0]
    assert bool(((pixels > 0) & (pixels < resolution)).all())
    mask = batch.masks[0, 0, 0]
    on_head = mask[pixels[:, 1].long(), pixels[:, 0].long()]
    assert float((on_head > 0.5).float().mean()) > 0.95
    full = capture_of(subject, resolution=SIZE).pictures([Picture(frame, camera)]).flat_camera().project(vertices)[0]
    assert torch.allclose(pixels, full * resolution / SIZE, atol=1e-3)


def test_lowres_files_serve_small_resolutions_and_show_the_same(subject, copy):
    with_lowres, without = capture_of(subject), capture_of(copy)
    one, other = (capture.pictures(capture.novel_view()[:1]) for capture in (with_lowres, without))
    assert float((one.images - other.images).abs().mean()) < 0.02
    assert float((one.masks - other.masks).abs().mean()) < 0.02


def test_full_pictures_of_another_size_are_refused_where_lowres_ones_are_decoded(subject):
    """Intrinsics are in pixels of the full ones: training would have gone on with wrong cameras."""
    with pytest.raises(InputError, match=rf"image_{CAMERAS[0]}.jpg: expected 512x512 pixels, found {SIZE}x{SIZE}; .*dataset.original_resolution"):
        capture_of(subject, original_resolution=512)


@pytest.mark.parametrize("resolution", [SIZE, 300, 37])
def test_pixels_are_those_of_the_files(copy, resolution):
    """By another way: decoded into one array of BGR, resampled there, divided as numpy divides."""
    capture, (frame, camera) = capture_of(copy, resolution=resolution), ("0002", CAMERAS[0])
    cv2.imwrite(str(copy / "images" / frame / f"visible_{camera}.jpg"), np.random.default_rng(0).integers(0, 256, (SIZE, SIZE, 3), np.uint8))
    batch = capture.pictures([Picture(frame, camera)])
    how, expected = cv2.INTER_AREA if resolution < SIZE else cv2.INTER_LINEAR, {}
    for kind in ("image", "mask", "visible"):
        bgr = cv2.resize(cv2.imread(str(copy / "images" / frame / f"{kind}_{camera}.jpg")), (resolution, resolution), interpolation=how)
        expected[kind] = bgr[..., ::-1].transpose(2, 0, 1).astype(np.float32) / np.float32(255.0)
    assert np.array_equal(batch.images[0, 0].numpy(), expected["image"])
    assert np.array_equal(batch.masks[0, 0].numpy(), expected["mask"][:1])  # channel 0, also of a coloured file
    assert np.array_equal(batch.visible[0, 0].numpy(), expected["visible"][:1])
    mask = expected["mask"][:1]
    assert np.array_equal(batch.on_white()[0, 0].numpy(), expected["image"] * mask + (np.float32(1.0) - mask))


def test_bytes_become_the_nearest_floats(subject):
    batch = capture_of(subject, resolution=16).pictures([Picture("0000", CAMERAS[0])])
    every = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 1, 16, 16).expand(1, 1, 5, 16, 16)
    expected = (torch.arange(256, dtype=torch.float64) / 255.0).float().reshape(16, 16)
    assert torch.equal(dataclasses.replace(batch, pixels=every).images[0, 0, 1], expected)


def test_a_batch_travels_as_bytes_and_stays_where_it_is(subject):
    batch = TrainingBatches(capture_of(subject), 2, views=2, seed=0)[0]
    assert batch.pixels.dtype == torch.uint8 and batch.pixels.shape == (2, 2, 5, SIZE, SIZE)
    there = batch.to("cpu")
    for one, other in ((batch, there), (batch.camera, there.camera), (batch.head, there.head)):
        assert all(value is vars(other)[name] for name, value in vars(one).items() if isinstance(value, Tensor))


@pytest.mark.parametrize("room_for", [0, 3, 100])
def test_threads_share_one_cache_within_its_bound(subject, room_for):
    size = 5 * SIZE * SIZE
    capture, read = capture_of(subject, cache_gb=(room_for + 0.5) * size / 1e9), capture_of(subject, cache_gb=0.0)
    pictures = [Picture(frame, camera) for frame in capture.frames[:3] for camera in CAMERAS]
    expected = {picture: read.pictures([picture]).pixels for picture in pictures}
    start, wrong = threading.Barrier(6), []

    def look(first: int) -> None:
        start.wait()
        for picture in 2 * (pictures[first:] + pictures[:first]):  # six threads, some at the same pictures, some at others
            same = torch.equal(capture.pictures([picture]).pixels, expected[picture])
            if not same or capture.cache.nbytes > capture.cache.limit:
                wrong.append(picture)

    threads = [threading.Thread(target=look, args=(2 * (number // 2),)) for number in range(6)]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    sys.setswitchinterval(interval)
    assert wrong == [] and capture.cache.nbytes == min(room_for, len(pictures)) * size


def test_who_comes_second_gets_what_is_there():
    cache, one, other = PictureCache(100.0), torch.zeros(5, 2, 2, dtype=torch.uint8), torch.zeros(5, 2, 2, dtype=torch.uint8)
    assert cache.keep(Picture("a", "b"), one) is one and cache.keep(Picture("a", "b"), other) is one
    assert cache.get(Picture("a", "b")) is one and cache.nbytes == 20


def test_the_cache_changes_nothing(subject):
    kept, read = capture_of(subject), capture_of(subject, cache_gb=0.0)
    for _ in range(2):
        assert_equal(kept.item("0001", list(CAMERAS)), read.item("0001", list(CAMERAS)))


def test_png_is_accepted(copy):
    expected = capture_of(copy).item("0000", [CAMERAS[0]])
    for kind in ("image", "mask"):
        path = copy / "images" / "0000" / f"{kind}_{CAMERAS[0]}.jpg"
        cv2.imwrite(str(path.with_suffix(".png")), cv2.imread(str(path)))
        path.unlink()
    assert_equal(capture_of(copy).item("0000", [CAMERAS[0]]), expected)


def test_absent_visible_means_all_visible(copy):
    camera = CAMERAS[0]
    path = copy / "images" / "0000" / f"visible_{camera}.jpg"
    cv2.imwrite(str(path), np.zeros((SIZE, SIZE, 3), np.uint8))
    assert float(capture_of(copy).item("0000", [camera]).visible.max()) == 0.0
    path.unlink()
    visible = capture_of(copy).item("0000", [camera]).visible
    assert visible.shape == (1, 1, SIZE, SIZE) and float(visible.min()) == 1.0


def test_68_landmarks_lose_the_outer_mouth_corners(copy):
    expected = capture_of(copy).item("0000", [CAMERAS[0]]).control_points
    path = copy / "params" / "0000" / "lmk_3d.npy"
    np.save(path, np.insert(np.load(path), [48, 53], 77.0, axis=0))  # rows 48 and 54 of the result
    assert np.flatnonzero((np.load(path) == 77.0).all(axis=1)).tolist() == [48, 54]
    assert torch.equal(capture_of(copy).item("0000", [CAMERAS[0]]).control_points, expected)


def test_control_points_are_landmarks_then_every_100th_vertex(subject):
    points = capture_of(subject).item("0002", [CAMERAS[0]]).control_points.numpy()
    folder = subject / "params" / "0002"
    assert np.array_equal(points[:66], np.load(folder / "lmk_3d.npy"))
    assert np.array_equal(points[66:], np.load(folder / "vertices.npy")[::100])


def rewrite(path, **changes):
    with np.load(path) as data:
        arrays = dict(data)
    np.savez(path, **(arrays | changes))


def test_scale_of_shape_1_1_is_accepted(copy):
    expected = capture_of(copy).item("0000", [CAMERAS[0]])
    path = copy / "params" / "0000" / "params.npz"
    rewrite(path, scale=np.load(path)["scale"].reshape(1, 1))
    assert_equal(capture_of(copy).item("0000", [CAMERAS[0]]), expected)


def test_identity_coefficients_are_never_read(copy):
    for width in (80, 100, 150):
        rewrite(copy / "params" / "0000" / "params.npz", id_coeff=np.full((1, width), np.nan))
        capture_of(copy)


def test_float64_files_are_accepted(copy):
    expected = capture_of(copy).item("0000", [CAMERAS[0]])
    path = copy / "cameras" / "0000" / f"camera_{CAMERAS[0]}.npz"
    rewrite(path, **{key: value.astype(np.float64) for key, value in np.load(path).items()})
    assert_equal(capture_of(copy).item("0000", [CAMERAS[0]]), expected)


def test_a_complete_subject_needs_no_notes(copy):
    assert capture_of(copy).notes == ()


def note(capture: HeadCapture, start: str) -> str:
    """The one note that starts like this."""
    (line,) = (line for line in capture.notes if line.startswith(start))
    return line


def test_without_frames_json_blocks_stand_in_for_sequences(copy):
    (copy / "frames.json").unlink()
    capture = capture_of(copy, held_out_sequences=[])
    assert capture.train_frames == capture.frames and capture.novel_sequence() == []
    assert set(capture.sequence_of.values()) == {""}
    assert "block_0 to block_6" in note(capture, "no frames.json")
    capture = capture_of(copy, held_out_sequences=["block_1", "block_6"])
    assert capture.held_out_frames == ["0001", "0006"] and len(capture.train_frames) == 5
    assert "2 of 7 frames are held out" in note(capture, "no frames.json")
    with pytest.raises(InputError, match=r"held_out_sequences: 'SEN-01-talk' is not .*frames\.json; found \['block_0', .*'block_6'\]"):
        capture_of(copy)


def test_blocks_are_contiguous_and_nearly_equal(copy):
    (copy / "frames.json").unlink()
    for number in range(7, 23):
        for folder in ("images", "cameras", "params"):
            shutil.copytree(copy / folder / "0000", copy / folder / f"{number:04d}")
    capture = capture_of(copy, held_out_sequences=["block_3"])
    blocks = [capture.sequence_of[frame] for frame in capture.frames]
    assert list(dict.fromkeys(blocks)) == [f"block_{k}" for k in range(10)]
    assert blocks == sorted(blocks) and set(Counter(blocks).values()) == {2, 3}


def test_notes_count_what_was_derived(copy):
    folder = copy / "params"
    for frame in ("0001", "0004"):
        path = folder / frame / "lmk_3d.npy"
        np.save(path, np.insert(np.load(path), [48, 53], 77.0, axis=0))
    rewrite(folder / "0002" / "params.npz", scale=np.full((1, 1), 0.1))
    for kind in ("image", "mask"):
        path = copy / "images" / "0000" / f"{kind}_{CAMERAS[0]}.jpg"
        cv2.imwrite(str(path.with_suffix(".png")), cv2.imread(str(path)))
        path.unlink()
    (copy / "images" / "0000" / f"visible_{CAMERAS[1]}.jpg").unlink()
    capture = capture_of(copy, resolution=32)
    total = 7 * len(CAMERAS)
    assert note(capture, "68 landmarks").endswith("in 2 of 7 frames")
    assert note(capture, "scale of shape (1,1)").endswith("in 1 of 7 frames")
    assert note(capture, "PNG").endswith(f"1 of {total} image files, 1 of {total} mask files")
    assert f"for 1 of {total} pictures" in note(capture, "no visible_*")
    assert f"for {total} of {total} pictures: 32x32" in note(capture, "no image_lowres_*")
    assert len(capture.notes) == 5 and all("\n" not in line for line in capture.notes)


def test_cameras_that_are_not_there_are_left_out(subject):
    capture = capture_of(subject, camera_ids=["nowhere", *CAMERAS])
    assert capture.camera_ids == list(CAMERAS) and "nowhere" not in capture.train_cameras
    assert "left out: nowhere" in note(capture, "1 camera of dataset.camera_ids")
    assert note(capture, "11 cameras of images/").endswith("(11 in all)")
    batch = TrainingBatches(capture, 1, views=50, seed=0)[0]
    assert sorted(batch.view[0].split()) == sorted(set(CAMERAS) - {HELD_OUT_CAMERA})


def test_camera_ids_of_a_yaml_file_need_no_quotes(copy, tmp_path):
    for path in [*copy.rglob(f"*_{CAMERAS[0]}.*")]:
        path.rename(path.with_name(path.name.replace(CAMERAS[0], "0010")))
    (tmp_path / "file.yaml").write_text(f"dataroot: {copy}\noriginal_resolution: {SIZE}\nresolution: {SIZE}\n"
                                        f"camera_ids: [0010, {CAMERAS[1]}, '{CAMERAS[3]}']\nheld_out_cameras: [0010]\n")
    capture = HeadCapture(read_config(Arguments(tmp_path / "file.yaml", ()), HeadCaptureConfig))
    assert capture.camera_ids == ["0010", CAMERAS[1], CAMERAS[3]] and {picture.camera for picture in capture.novel_view()} == {"0010"}


def test_hidden_folders_are_no_frames(copy):
    (copy / "images" / ".ipynb_checkpoints").mkdir()
    assert ".ipynb_checkpoints" not in capture_of(copy).frames


def test_frames_need_not_be_contiguous(copy):
    names = {"0001": "0010", "0002": "0200"}
    for old, new in names.items():
        for folder in ("images", "cameras", "params"):
            (copy / folder / old).rename(copy / folder / new)
    (copy / "frames.json").unlink()
    capture = capture_of(copy, held_out_sequences=[])
    assert capture.frames == sorted(capture.frames) and {"0010", "0200"} <= set(capture.frames)
    assert note(capture, "frames are not contiguous") == "frames are not contiguous (0000, 0003, 0004, ... (7 in all)): sorted by name"
    assert int(capture.item("0200", [CAMERAS[0]]).frame_index) == len(capture.frames) - 1
