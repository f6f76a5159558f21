"""Every format, built as its system writes it: what was put in comes out, and a point of the head falls on the same pixel."""

import json
import math
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from lib.datasets.tracked import insta, metrical, vhap
from lib.datasets.tracked.driver import read_driver
from lib.datasets.tracked.files import ReadOptions
from lib.datasets.tracked.record import TrackedFrame
from lib.datasets.tracked.sources import READERS, read_tracking, recognise
from lib.errors import InputError
from tests.published_tracking import (
    CAMERAS,
    OPENGL,
    SIZE,
    Performance,
    imavatar_world,
    matrix,
    write_benchmark,
    write_flame_subject,
    write_flashavatar,
    write_frames,
    write_imavatar,
    write_insta,
    write_union,
    write_vhap_export,
    write_vhap_tracker,
)

POINT = np.array([0.03, -0.05, 0.02])


@dataclass(frozen=True)
class Case:
    """A builder, the format it must be recognised as, what its pictures show and what it holds."""

    build: Callable[[Path, Performance], Path]
    format: str
    pixel: Callable[[Performance, int, str], np.ndarray] | None  # of POINT, by the published equations; the root joint is at the origin
    holds: tuple[str, ...]
    expressions: int = 100


def through(lens: np.ndarray, point: np.ndarray) -> np.ndarray:
    return (lens @ (point / point[2]))[:2]


def seen(view: np.ndarray, lens: np.ndarray, point: np.ndarray) -> np.ndarray:
    return through(lens, view[:3, :3] @ point + view[:3, 3])


def head(show: Performance, t: int, scale: float = 1.0) -> np.ndarray:
    return scale * matrix(show.rotation[t]) @ POINT + show.translation[t]


def imavatar_pixel(show: Performance, t: int, camera: str) -> np.ndarray:
    """fx·X/Z + cx with the negative fx, as the format's own renderers do."""
    x, y, z = imavatar_world(show) @ np.append(4.0 * matrix(show.rotation[t]) @ POINT, 1.0)
    return np.array([-show.lens[0, 0] * x / z + show.lens[0, 2], show.lens[1, 1] * y / z + show.lens[1, 2]])


def moving_pixel(show: Performance, t: int, camera: str) -> np.ndarray:
    return seen(show.moving[t], show.lens, POINT)


ALL = ("identity", "rotation", "translation", "neck", "jaw", "eyes")
CASES = {
    "vhap": Case(write_vhap_export, vhap.EXPORT, lambda show, t, camera: seen(show.views[camera], show.lens, head(show, t)), ALL),
    "tracker": Case(write_vhap_tracker, vhap.TRACKER, None, ALL),
    "benchmark": Case(write_benchmark, "NeRSemble benchmark", lambda show, t, camera: seen(show.views[camera], show.lens, head(show, t, 1.5)), ALL),
    "imavatar": Case(write_imavatar, "IMavatar (PointAvatar, MonoGaussianAvatar)", imavatar_pixel, ("rotation", "neck", "jaw", "eyes"), 50),
    "imavatar_old": Case(lambda folder, show: write_imavatar(folder, show, 512.0), "IMavatar (PointAvatar, MonoGaussianAvatar)", imavatar_pixel,
                         ("rotation", "neck", "jaw", "eyes"), 50),
    "metrical": Case(lambda folder, show: write_frames(folder / "checkpoint", show).parent, metrical.FORMAT, moving_pixel,
                     ("identity", "jaw", "eyes", "eyelids")),
    "flashavatar": Case(write_flashavatar, metrical.FORMAT, moving_pixel, ("identity", "jaw", "eyes", "eyelids")),
    "hypergaussians": Case(lambda folder, show: write_flashavatar(folder, show, ".png", 0), metrical.FORMAT, moving_pixel,
                           ("identity", "jaw", "eyes", "eyelids")),
    "insta": Case(write_insta, insta.FORMAT, moving_pixel, ("jaw", "eyes")),
    "subject": Case(write_flame_subject, "subject folder (Gaussian Head Avatar)",
                    lambda show, t, camera: seen(show.views[camera], show.lens, head(show, t, 1.25)), ("rotation", "translation", "jaw", "eyes"), 50),
}
PICTURED = [name for name, case in CASES.items() if case.pixel]


@pytest.fixture
def show() -> Performance:
    return Performance()


def pixel(frame: TrackedFrame) -> np.ndarray:
    """Of POINT, by the record."""
    params, view = frame.params, frame.view
    assert view is not None
    point = torch.from_numpy(POINT).float() * (1.0 if params.scale is None else params.scale)
    if params.rotation is not None:
        move = 0.0 if params.translation is None else params.translation
        point = torch.from_numpy(matrix(params.rotation.numpy())).float() @ point + move
    return view.project(point[None, None])[0, 0].numpy()


@pytest.mark.parametrize("name", CASES)
def test_what_was_written_is_read(name, tmp_path, show):
    case = CASES[name]
    path = case.build(tmp_path / "data" / "me", show)
    assert recognise(path).reader.name == case.format
    found = read_tracking(path)
    assert found.format == case.format and case.format in found.summary()
    instants = found.instants()
    assert len(instants) == show.frames and found.expression_count == case.expressions
    for t, frame in enumerate(instants):
        assert torch.equal(frame.params.expression, torch.from_numpy(show.expression[t, :case.expressions]))
        for field in case.holds:
            expected, have = getattr(show, field), getattr(frame.params, field)
            expected = expected[:len(have)] if field == "identity" else expected[t]
            assert np.allclose(have, expected, atol=1e-6), field


@pytest.mark.parametrize("name", PICTURED)
def test_a_point_of_the_head_falls_on_the_published_pixel(name, tmp_path, show):
    case = CASES[name]
    found = read_tracking(case.build(tmp_path / "data" / "me", show))
    for frame in found.frames:
        t = found.instants().index(next(one for one in found.instants() if one.timestep == frame.timestep))
        assert case.pixel is not None
        assert np.allclose(pixel(frame), case.pixel(show, t, frame.camera or ""), atol=2e-4)
        assert frame.view is not None and (frame.view.width, frame.view.height) == (SIZE, SIZE)
        assert frame.image is None or frame.image.is_file()
        assert frame.mask is None or (frame.mask.is_file() and frame.mask.name == frame.image.name.replace("image_", "mask_"))


@pytest.mark.parametrize("name", PICTURED)
def test_the_head_pose_puts_the_head_before_the_camera(name, tmp_path, show):
    """Seen from one upright camera: the same as by the record, whether the head or the camera moves."""
    frame = read_tracking(CASES[name].build(tmp_path / "data" / "me", show)).frames[-1]
    pose = frame.head_pose()
    assert pose is not None and frame.view is not None
    world = pose.to_world(torch.from_numpy(POINT).float()[None])
    if frame.params.rotation is None:
        world = world * torch.tensor([1.0, -1.0, -1.0])  # its world is the camera, y up
        assert np.allclose(frame.view.to_pixels(world[None])[0, 0], pixel(frame), atol=1e-3)
    else:
        assert np.allclose(frame.view.project(world[None])[0, 0], pixel(frame), atol=1e-3)


@pytest.mark.parametrize("name", PICTURED)
def test_pictures_need_not_be_there_to_drive(name, tmp_path, show):
    path = CASES[name].build(tmp_path / "data" / "me", show)
    for file in tmp_path.rglob("*"):
        if file.suffix in (".png", ".jpg", ".mp4"):
            file.unlink()
    found = read_tracking(path, ReadOptions(images=False))
    assert len(found.instants()) == show.frames and all(frame.image is None for frame in found.frames)


@pytest.mark.parametrize("name", ["vhap", "imavatar", "flashavatar", "hypergaussians", "insta"])
def test_a_missing_picture_is_named(name, tmp_path, show):
    path = CASES[name].build(tmp_path / "data" / "me", show)
    image = read_tracking(path).frames[2].image
    assert image is not None
    image.unlink()
    assert image.name in refusal(path)


def refusal(path: Path, options: ReadOptions | None = None) -> str:
    with pytest.raises(InputError) as error:
        read_tracking(path, options)
    return str(error.value)


def test_views_of_one_instant_share_its_parameters_and_name_their_cameras(tmp_path, show):
    found = read_tracking(write_vhap_export(tmp_path / "me", show))
    assert found.cameras == CAMERAS and len(found.frames) == show.frames * len(CAMERAS)
    assert found.identity is not None and torch.equal(found.identity, torch.from_numpy(show.identity))
    assert len({id(frame.params) for frame in found.frames}) == show.frames
    assert len({id(frame.params.static_offset) for frame in found.frames}) == 1


def test_a_combined_set_is_read_in_order_with_its_division(tmp_path):
    shows = [Performance(seed=seed) for seed in range(3)]
    union = write_union(tmp_path, shows)
    found = read_tracking(union)
    assert found.sequences == ("me_EMO-0", "me_EMO-1", "me_EMO-2")
    assert [frame.timestep for frame in found.instants()] == list(range(12))
    assert np.array_equal(torch.stack([frame.params.expression for frame in found.instants()]), np.concatenate([show.expression for show in shows]))
    assert {frame.camera for frame in found.split("val")} == {CAMERAS[-1]} and {frame.sequence for frame in found.split("test")} == {"me_EMO-2"}
    assert [len(found.split(name)) for name in ("train", "val", "test")] == [16, 8, 12]
    only = read_tracking(union / "transforms_test.json")
    assert only.sequences == ("me_EMO-2",) and len(only.instants()) == 4


def change(path: Path, edit: Callable[[dict], None]) -> None:
    content = json.loads(path.read_text())
    edit(content)
    path.write_text(json.dumps(content))


@pytest.mark.parametrize("key", ["file_path", "fg_mask_path", "flame_param_path"])
@pytest.mark.parametrize("name", ["../../elsewhere/x.png", "/etc/passwd", "../../../../../../../../etc/passwd", "..\\..\\elsewhere\\x.png"])
def test_paths_may_not_leave_the_root(key, name, tmp_path, show):
    path = write_vhap_export(tmp_path / "root" / "me", show)
    change(path / "transforms.json", lambda content: content["frames"][5].update({key: name}))
    said = refusal(path)
    assert "frame 5" in said and key in said and name in said and "outside" in said
    inner = ReadOptions(root=path)
    union = write_union(tmp_path / "union", [Performance(seed=seed) for seed in range(2)])
    assert "outside" in refusal(union, ReadOptions(root=union)) and "outside" not in str(inner)


def test_links_that_lead_out_are_noted(tmp_path, show):
    path = write_vhap_export(tmp_path / "root" / "me", show)
    assert read_tracking(path).notes == (vhap.MODEL_NOTE,)
    shutil.move(path / "images", tmp_path / "pictures")
    (path / "images").symlink_to(tmp_path / "pictures")
    _, note = read_tracking(path).notes
    assert str(path / "images") in note and "link" in note


def test_focal_length_from_angles_and_size_from_the_picture(tmp_path, show):
    path = write_vhap_export(tmp_path / "me", show)
    drop = ("cx", "cy", "fl_x", "fl_y", "h", "w")

    def edit(content: dict) -> None:
        for part in (content, *content["frames"]):
            for key in drop:
                del part[key]
    change(path / "transforms.json", edit)
    view = read_tracking(path).frames[0].view
    assert view is not None and (view.width, view.height) == (SIZE, SIZE)
    assert view.intrinsics[0, 0].tolist() == pytest.approx([SIZE / 2 / math.tan(0.5), 0.0, SIZE / 2])


def test_a_matrix_that_is_no_rotation_is_refused(tmp_path, show):
    path = write_vhap_export(tmp_path / "me", show)
    change(path / "transforms.json", lambda content: content["frames"][3].update(transform_matrix=np.diag([2.0, 1, 1, 1]).tolist()))
    assert "frame 3" in refusal(path) and "rotation" in refusal(path)
    change(path / "transforms.json", lambda content: content["frames"][3].update(transform_matrix=(OPENGL[:3]).tolist()))
    assert "frame 3: 'transform_matrix': expected shape (4, 4)" in refusal(path)


@pytest.mark.parametrize(("key", "value", "told"), [
    ("expr", np.full((1, 100), np.nan), "NaN"), ("expr", np.zeros((1, 50)), "shape (50,)"), ("jaw_pose", np.zeros((1, 4)), "expected shape"),
    ("eyes_pose", np.zeros((2, 6)), "2 timesteps"), ("shape", np.zeros(100), "identity"),
])
def test_bad_flame_parameters_are_named(key, value, told, tmp_path, show):
    path = write_vhap_export(tmp_path / "me", show)
    file = path / "flame_param" / "00002.npz"
    np.savez(file, **dict(np.load(file)) | {key: value})
    assert str(file) in refusal(path) and told in refusal(path)


@pytest.mark.parametrize("key", ["rotation", "jaw_pose"])
def test_a_tracker_file_of_unequal_lengths_is_refused(key, tmp_path, show):
    file = write_vhap_tracker(tmp_path / "me", show) / "tracked_flame_params_30.npz"
    np.savez(file, **dict(np.load(file)) | {key: np.zeros((show.frames - 1, 3))})
    assert f"{file}: '{key}' has {show.frames - 1} timesteps" in refusal(tmp_path / "me")


def test_the_last_epoch_of_a_tracker_counts_and_frames_keep_their_names(tmp_path, show):
    found = read_tracking(write_vhap_tracker(tmp_path / "me", show))
    assert found.root.name == "tracked_flame_params_30.npz" and [frame.name for frame in found.frames] == ["00000", "00003", "00006", "00009"]


@pytest.mark.parametrize("damage", ["no calibration", "video cut off"])
def test_a_benchmark_drives_without_what_only_its_pictures_need(tmp_path, show, damage):
    path = write_benchmark(tmp_path / "393", show)
    whole = read_driver(path, None)
    if damage == "no calibration":
        (path / "calibration" / "camera_params.json").unlink()
    else:
        next(path.rglob("images/*.mp4")).write_bytes(b"cut")
    assert refusal(path)
    found = read_driver(path, None)
    assert torch.equal(found.expressions, whole.expressions) and torch.equal(found.poses, whole.poses) and found.names == whole.names


def test_a_benchmark_video_shorter_than_its_tracking_is_refused(tmp_path, show):
    path = write_benchmark(tmp_path / "393", show)
    file = path / "sequences" / "EMO-1-shout+laugh" / "tracking" / "flame2023_tracking_v2.npz"
    assert read_tracking(file).sequences == read_tracking(path).sequences == ("EMO-1-shout+laugh",)
    assert [frame.video_frame for frame in read_tracking(path).frames] == [t for t in range(show.frames) for _ in range(2)]
    np.savez(file, **dict(np.load(file)) | {"frames": np.arange(show.frames) + 1})
    assert f"row {show.frames - 1} belongs to picture {show.frames}" in refusal(path)
    np.savez(file, **dict(np.load(file)) | {"rotation_matrices": np.zeros((show.frames, 3, 3))})
    assert "row 0: 'rotation_matrices': expected a rotation" in refusal(path)


@pytest.mark.parametrize(("key", "value", "told"), [
    ("expression", [math.nan] * 50, "NaN"), ("expression", [0.0] * 49, "shape (49,)"), ("pose", [0.0] * 6, "expected shape (15)"),
    ("world_mat", [[0.0]], "expected shape (3, 4)"), ("expression", ["a"], "expected numbers"), ("expression", None, "expected numbers"),
])
def test_bad_imavatar_frames_are_named(key, value, told, tmp_path, show):
    path = write_imavatar(tmp_path / "me", show)
    change(path / "flame_params.json", lambda content: content["frames"][1].update({key: value}))
    assert "frame 1 ('./image/2')" in refusal(path) and told in refusal(path)


def test_imavatar_with_a_positive_fx_is_refused(tmp_path, show):
    path = write_imavatar(tmp_path / "me", show)
    change(path / "flame_params.json", lambda content: content.update(intrinsics=[1.0, 1.0, 0.5, 0.5]))
    assert "fx below 0" in refusal(path)


def test_videos_of_one_person_are_read_together(tmp_path):
    for name in ("MVI_10", "MVI_2"):
        write_imavatar(tmp_path / "yufeng" / name, Performance())
    found = read_tracking(tmp_path / "yufeng")
    assert found.sequences == ("MVI_2", "MVI_10") and len(found.instants()) == 8


def test_imavatar_frames_come_in_the_order_of_time(tmp_path, show):
    path = write_imavatar(tmp_path / "me", show)
    change(path / "flame_params.json", lambda content: content["frames"].reverse())
    assert [frame.timestep for frame in read_tracking(path).frames] == list(range(show.frames))


def test_parts_that_overlap_are_read(tmp_path, show):
    """INSTA's script takes the validation out of the end of the test part."""
    folder = write_insta(tmp_path / "me", show)
    last = json.loads((folder / "transforms_test.json").read_text())["frames"]
    change(folder / "transforms_val.json", lambda content: content.update(frames=last))
    found = read_tracking(folder)
    assert [frame.split for frame in found.frames].count("val") == 1 and len(found.instants()) == show.frames


def test_a_frame_that_is_there_twice_is_refused(tmp_path, show):
    path = write_imavatar(tmp_path / "me", show)
    change(path / "flame_params.json", lambda content: content["frames"].append(content["frames"][1]))
    assert f"frame {show.frames} ('./image/2')" in (said := refusal(path)) and "frame 1 ('./image/2')" in said
    path = write_benchmark(tmp_path / "393", show)
    file = path / "sequences" / "EMO-1-shout+laugh" / "tracking" / "flame2023_tracking_v2.npz"
    np.savez(file, **dict(np.load(file)) | {"frames": np.array([0, 1, 1, 2])[:show.frames]})
    assert "row 2" in refusal(path)


def test_one_scale_is_expected_of_a_benchmark(tmp_path, show):
    path = write_benchmark(tmp_path / "393", show)
    file = path / "sequences" / "EMO-1-shout+laugh" / "tracking" / "flame2023_tracking_v2.npz"
    np.savez(file, **dict(np.load(file)) | {"scale": np.ones((show.frames, 1))})
    assert "'scale': expected one number" in refusal(path)


@pytest.mark.parametrize("numpy_1", [False, True])
def test_frames_of_both_numpys_are_read(numpy_1, tmp_path, show):
    found = read_tracking(write_frames(tmp_path / "out" / "checkpoint", show, numpy_1).parent)
    assert torch.equal(found.frames[3].params.expression, torch.from_numpy(show.expression[3]))


class _Evil:
    def __init__(self, mark: str) -> None:
        self.mark = mark

    def __reduce__(self):
        return Path.touch, (Path(self.mark),)


def test_a_frame_that_would_run_code_is_refused(tmp_path, show):
    path = write_frames(tmp_path / "out" / "checkpoint", show)
    torch.save({"flame": _Evil(str(tmp_path / "executed"))}, path / "00002.frame")
    said = refusal(path.parent)
    assert str(path / "00002.frame") in said and "refused" in said and "run code" in said and not (tmp_path / "executed").exists()


def test_damaged_and_foreign_frames_are_refused(tmp_path, show):
    path = write_frames(tmp_path / "out" / "checkpoint", show)
    whole = (path / "00001.frame").read_bytes()
    (path / "00001.frame").write_bytes(whole[:len(whole) // 2])
    assert "00001.frame: not a readable torch file" in refusal(path)
    torch.save({"weights": torch.zeros(2)}, path / "00001.frame")
    assert "00001.frame: expected a checkpoint of metrical-tracker" in refusal(path)
    (path / "00001.frame").write_bytes(whole)
    content = torch.load(path / "00002.frame", weights_only=False)
    content["flame"]["jaw"] = np.zeros((1, 6), np.float32)
    torch.save(content, path / "00002.frame")
    assert "00002.frame: 'jaw'" in refusal(path) and "parallel" in refusal(path)


@pytest.mark.parametrize(("suffix", "usual", "told"), [(".jpg", 1, "n + 1"), (".jpg", 0, "n + 0"), (".png", 0, "n + 0"), (".png", 1, "n + 1")])
def test_the_offset_of_pictures_is_found(suffix, usual, told, tmp_path, show):
    found = read_tracking(write_flashavatar(tmp_path, show, suffix, usual))
    assert any(told in note for note in found.notes)
    assert [int(frame.image.stem) - usual for frame in found.frames] == [0, 1, 2, 3]
    at_tracker = read_tracking(tmp_path / "metrical-tracker" / "output" / "me")
    assert [frame.image for frame in at_tracker.frames] == [frame.image for frame in found.frames]


def test_flashavatars_division_needs_more_than_500_frames(tmp_path, monkeypatch, show):
    monkeypatch.setattr(metrical, "TEST_FRAMES", 3)
    path = write_frames(tmp_path / "out" / "checkpoint", show)
    assert [frame.split for frame in read_tracking(path).frames] == ["train", "test", "test", "test"]
    monkeypatch.setattr(metrical, "TEST_FRAMES", 4)
    found = read_tracking(path)
    assert {frame.split for frame in found.frames} == {None} and "needs more" in found.notes[-1]


@pytest.mark.parametrize("name", ["benchmark", "imavatar", "metrical"])
def test_a_camera_that_is_none_is_refused(name, tmp_path, show):
    path = CASES[name].build(tmp_path / "data" / "me", show)
    bad = (2.0 * np.eye(4)).tolist()
    if name == "benchmark":
        change(path / "calibration" / "camera_params.json", lambda content: content["world_2_cam"].update({CAMERAS[0]: bad}))
    elif name == "imavatar":
        change(path / "flame_params.json", lambda content: content["frames"][2].update(world_mat=bad[:3]))
    else:
        content = torch.load(path / "checkpoint" / "00002.frame", weights_only=False)
        content["opencv"]["K"] = -content["opencv"]["K"]
        torch.save(content, path / "checkpoint" / "00002.frame")
    said = refusal(path)
    if name == "benchmark":
        assert f"camera_params.json: camera '{CAMERAS[0]}'" in said and "not a rotation" in said
    else:
        assert "its camera is none" in said and "2" in said


@pytest.mark.parametrize("scale", [0.0, -1.0])
def test_a_scale_that_is_none_is_refused(scale, tmp_path, show):
    assert "'scale'" in refusal(write_benchmark(tmp_path / "393", show, scale))


@pytest.mark.parametrize("content", [b"", b"no video", None])
def test_a_broken_video_is_named(content, tmp_path, show):
    path = write_benchmark(tmp_path / "393", show)
    video = next(path.rglob("images/*.mp4"))
    video.write_bytes(video.read_bytes()[:60] if content is None else content)
    assert str(video) in refusal(path)


def test_insta_without_a_jaw_says_so(tmp_path, show):
    found = read_tracking(write_insta(tmp_path / "me", show, jaw=False))
    assert found.frames[0].params.jaw is None and "jaw" in found.notes[0]
    assert [frame.split for frame in found.frames] == ["train"] * 3 + ["test"]
    (tmp_path / "me" / "flame" / "exp" / "00001.txt").write_text("0.1 abc")
    assert "00001.txt" in refusal(tmp_path / "me")


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".csv"])
def test_plain_rows(suffix, tmp_path, show):
    path = tmp_path / f"take{suffix}"
    if suffix == ".npy":
        np.save(path, show.expression)
    elif suffix == ".npz":
        np.savez(path, expression=show.expression, other=np.zeros(3))
    else:
        path.write_text("a,b\n" + "\n".join(",".join(repr(float(value)) for value in row) for row in show.expression) + "\n")
    found = read_tracking(path)
    assert found.format == "expression rows" and str(found.model) == "an unknown model"
    assert np.array_equal(torch.stack([frame.params.expression for frame in found.frames]), show.expression)
    assert found.frames[0].head_pose() is None
    if suffix == ".csv":  # as numpy writes a head line
        path.write_text(path.read_text().replace("a,b", "# 0,1"))
        assert len(read_tracking(path).frames) == len(found.frames)


@pytest.mark.parametrize(("text", "told"), [
    ("1,2\n3\n", "line 2 has 1 values"), ("1,,2\n3,4,5\n", "line 1"), ("0.1,0.2,x\n3,4,5\n", "line 1"),
    ("1,2\n3,x\n", "line 2"), ("1,nan\n", "NaN"), ("a,b\n", "empty"), ("", "empty"),
])
def test_bad_rows_are_named(text, told, tmp_path):
    (tmp_path / "take.csv").write_text(text)
    assert str(tmp_path / "take.csv") in refusal(tmp_path / "take.csv") and told in refusal(tmp_path / "take.csv")


def test_an_unknown_folder_hears_what_was_looked_for(tmp_path):
    (tmp_path / "something.txt").write_text("")
    said = refusal(tmp_path)
    for reader in READERS:
        assert reader.name in said
    for file in ("params.npz", "transforms.json", "tracked_flame_params_", "flame_params.json", ".frame", "flame2023_tracking_v2.npz", ".csv"):
        assert file in said
    assert "no such folder" in refusal(tmp_path / "nowhere")


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"frames": 3}', '{"frames": [3]}', '{"frames": [{"flame_param_path": 3}]}'])
def test_malformed_transforms_are_refused(text, tmp_path):
    (tmp_path / "transforms.json").write_text(text)
    assert "transforms.json" in refusal(tmp_path)
