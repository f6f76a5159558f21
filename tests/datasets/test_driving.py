"""Driving sequences: smoothing, free view, pose codes, and what is refused."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from lib.datasets.driving import DrivingConfig, DrivingSequence, orbit_camera
from lib.datasets.layout import read_camera_file
from lib.datasets.retarget import TrainedFace
from lib.errors import InputError
from lib.geometry.camera import look_at

FRAMES, WIDTH = 7, 5


def write(folder: Path, index: int, width: int = WIDTH) -> None:
    random = np.random.default_rng(index)
    folder.mkdir(parents=True)
    np.savez(folder / "params.npz", exp_coeff=random.normal(size=(1, width)), pose=random.normal(size=(1, 6)), scale=np.array([0.1 + index]))


@pytest.fixture
def root(tmp_path):
    for index in range(FRAMES):
        write(tmp_path / "params" / f"{index:04d}", index)
    rotation = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))[0]
    rotation *= np.sign(np.linalg.det(rotation))
    np.savez(tmp_path / "camera.npz", extrinsic=np.concatenate([rotation, [[0.0], [0.1], [1.0]]], axis=1),
             intrinsic=np.array([[300.0, 0, 70], [0, 310, 60], [0, 0, 1]]))
    return tmp_path


OWN = torch.arange(6.0)


def sequence(root: Path, **changes) -> DrivingSequence:
    return DrivingSequence(DrivingConfig(**({
        "dataroot": root, "param_files": "params/*/params.npz", "camera_path": root / "camera.npz", "original_resolution": 128, "resolution": 32,
        "smoothing": 0.0,
    } | changes)), OWN)


def raw(root: Path, key: str) -> np.ndarray:
    return np.stack([np.load(root / "params" / f"{index:04d}" / "params.npz")[key][0] for index in range(FRAMES)]).astype(np.float32)


def refusal(root: Path, **changes) -> str:
    with pytest.raises(InputError) as error:
        sequence(root, **changes)
    assert len(str(error.value).splitlines()) == 1
    return str(error.value)


def test_smoothing_zero_is_the_file(root):
    driver = sequence(root, smoothing=0.0)
    assert np.array_equal(driver.expressions.numpy(), raw(root, "exp_coeff"))
    assert np.array_equal(driver.poses.numpy(), raw(root, "pose"))


@pytest.mark.parametrize("smoothing", [0.25, 0.5, 0.9])
def test_smoothing_is_the_recursion(root, smoothing):
    driver = sequence(root, smoothing=smoothing)
    for key, found in (("exp_coeff", driver.expressions), ("pose", driver.poses)):
        values = raw(root, key).astype(np.float64)
        expected = [values[0]]
        for index in range(1, FRAMES):
            expected.append(smoothing * expected[-1] + (1 - smoothing) * values[index])
        assert np.allclose(found.numpy(), expected, atol=1e-6)


def test_smoothing_a_head_that_turns_round_goes_through_no_other_pose(root):
    """Rotation vectors end at half a turn: the next one points the other way."""
    angles = np.deg2rad(150.0 + 10.0 * np.arange(FRAMES))
    for index, angle in enumerate(angles):
        turn = np.array([0.0, angle if angle <= np.pi else angle - 2.0 * np.pi, 0.0])
        np.savez(root / "params" / f"{index:04d}" / "params.npz", exp_coeff=np.ones((1, WIDTH)), pose=np.concatenate([turn, np.zeros(3)])[None],
                 scale=np.ones(1))
    expected = [angles[0]]
    for angle in angles[1:]:
        expected.append(0.5 * expected[-1] + 0.5 * angle)
    found = sequence(root, smoothing=0.5).poses[:, :3]
    assert np.allclose(np.exp(1j * found[:, 1].numpy()), np.exp(1j * np.array(expected)), atol=1e-5)
    assert float(found.norm(dim=1).max()) <= np.pi + 1e-5 and not found[:, ::2].any()
    assert np.array_equal(sequence(root, smoothing=0.0).poses.numpy(), raw(root, "pose"))


def test_a_typical_pose_that_is_not_known_is_said(root):
    config = DrivingConfig(dataroot=root, param_files="params/*/params.npz", head_pose="own", resolution=32)
    assert any("dataset.head_pose own is the origin" in note for note in DrivingSequence(config, torch.zeros(6)).notes)
    assert not any("origin" in note for note in DrivingSequence(config, OWN).notes)


def test_published_smoothing_is_the_default(root):
    assert DrivingConfig(dataroot=root).smoothing == 0.5


def test_every_sequence_is_smoothed_alone(root):
    """The end of one says nothing about the start of the next."""
    rows = [{"frame": f"{index:04d}", "sequence": "A" if index < 3 else "B", "time": 0.04 * index} for index in range(FRAMES)]
    (root / "frames.json").write_text(json.dumps({"frames": rows}))
    driver = sequence(root, smoothing=0.5)
    for key, found in (("exp_coeff", driver.expressions), ("pose", driver.poses)):
        for start, end in ((0, 3), (3, FRAMES)):
            expected = [raw(root, key)[start]]
            for value in raw(root, key)[start + 1:end]:
                expected.append(0.5 * expected[-1] + 0.5 * value)
            assert np.allclose(found[start:end].numpy(), expected, atol=1e-6)


def test_a_frames_json_of_somebody_else_does_not_stop_a_driver(root):
    for text, said in (('{"frames": [{"frame": "0000", "sequence": "A", "time": 0}]}', "no entry for frame 0001"), ("[]", "expected")):
        (root / "frames.json").write_text(text)
        driver = sequence(root, smoothing=0.5)
        assert len(driver) == FRAMES and any(said in note and "count as one sequence" in note for note in driver.notes)


def test_a_head_is_as_large_as_where_it_is_put(root):
    """Files of another capture may have another unit."""
    trained = TrainedFace(-torch.ones(WIDTH), torch.ones(WIDTH), torch.zeros(WIDTH), torch.tensor([0.7]))
    np.savez(root / "place.npz", exp_coeff=np.zeros((1, WIDTH)), pose=np.zeros((1, 6)), scale=np.array([1.25]))
    drivers = np.array([0.1 + index for index in range(FRAMES)], np.float32)
    for mode, expected in (("own", 0.7), ("fixed", 1.25), ("driver", drivers), ("zero", drivers)):
        config = DrivingConfig(dataroot=root, param_files="params/*/params.npz", head_pose=mode, resolution=32,
                               head_pose_path=root / "place.npz" if mode == "fixed" else None)
        assert np.allclose(DrivingSequence(config, OWN, WIDTH, trained).scales[:, 0].numpy(), expected)
    config = DrivingConfig(dataroot=root, param_files="params/*/params.npz", head_pose="own", resolution=32)
    assert np.allclose(DrivingSequence(config, OWN).scales[:, 0].numpy(), drivers)  # nothing tells the avatar's


def test_a_place_that_is_not_used_is_refused(root):
    with pytest.raises(ValueError, match="head_pose fixed"):
        DrivingConfig(dataroot=root, head_pose_path=root / "nowhere.npz")


def test_a_driver_of_two_fits_is_refused(root):
    (root / "params" / "fit.json").write_text('{"complete": false}')
    assert "fit.json" in refusal(root)
    (root / "params" / "fit.json").unlink()
    write(root / "params" / "3", 3)
    assert "'0003'" in refusal(root) and "'3'" in refusal(root)


def test_pictures_beside_are_those_of_their_frames(root, capsys):
    """One frame without a number, another without a picture: as many of both, and yet not the same."""
    for index in range(FRAMES):
        if index != 4:
            (root / "images" / f"{index:04d}").mkdir(parents=True)
            cv2.imwrite(str(root / "images" / f"{index:04d}" / "image_1.jpg"), np.zeros((8, 8, 3), np.uint8))
    np.savez(root / "params" / "0002" / "params.npz", exp_coeff=np.full((1, WIDTH), np.nan), pose=np.zeros((1, 6)), scale=np.ones(1))
    assert sequence(root, image_files="images/*/image_1.jpg", nan_frames="skip").images == []
    assert "none of frame 0004" in capsys.readouterr().out
    (root / "images" / "0004").mkdir()
    cv2.imwrite(str(root / "images" / "0004" / "image_1.jpg"), np.zeros((8, 8, 3), np.uint8))
    found = sequence(root, image_files="images/*/image_1.jpg", nan_frames="skip")
    assert [path.parent.name for path in found.images] == [Path(name).parent.name for name in found.files]


def test_the_size_that_a_camera_refers_to_is_that_of_its_pictures(root):
    camera = root / "cameras" / "0000" / "camera_7.npz"
    camera.parent.mkdir(parents=True)
    camera.write_bytes((root / "camera.npz").read_bytes())
    assert not any("optical axis" in note for note in sequence(root, camera_path=camera).notes)
    assert any("optical axis" in note and "2048" in note for note in sequence(root, camera_path=camera, original_resolution=2048).notes)
    (root / "images" / "0000").mkdir(parents=True)
    cv2.imwrite(str(root / "images" / "0000" / "image_7.png"), np.zeros((128, 128, 3), np.uint8))
    sequence(root, camera_path=camera)
    assert "dataset.original_resolution is 2048" in (said := refusal(root, camera_path=camera, original_resolution=2048)) and "128x128" in said


def test_a_still_driver_is_not_changed_by_smoothing(root):
    for index in range(FRAMES):
        np.savez(root / "params" / f"{index:04d}" / "params.npz", exp_coeff=np.ones((1, WIDTH)), pose=np.ones((1, 6)), scale=np.ones(1))
    assert torch.equal(sequence(root, smoothing=0.5).expressions, torch.ones(FRAMES, WIDTH))


def test_frames_come_in_sorted_order_with_their_scales(root):
    driver = sequence(root)
    frames = [driver[index] for index in range(len(driver))]
    assert [round(float(frame.head.scale), 3) for frame in frames] == [round(0.1 + index, 3) for index in range(FRAMES)]


def test_given_camera_is_used_and_resized(root):
    camera = sequence(root)[3].camera
    extrinsic, intrinsic = read_camera_file(root / "camera.npz")
    assert torch.equal(camera.world_to_camera[0], extrinsic)
    assert torch.allclose(camera.intrinsics[0], intrinsic * torch.tensor([[0.25], [0.25], [1.0]]))
    assert (camera.width, camera.height) == (32, 32)


def test_without_freeview_the_networks_see_the_pose_of_the_head(root):
    driver = sequence(root, smoothing=0.5)
    assert all(torch.equal(driver[index].pose_code, driver[index].head.pose) for index in range(FRAMES))


def test_freeview_keeps_the_head_still_and_the_expression_moving(root):
    driver = sequence(root, freeview=True, camera_path=None)
    for index in range(FRAMES):
        frame = driver[index]
        assert not frame.head.pose.any() and not frame.pose_code.any()
        assert float(frame.head.scale) == pytest.approx(0.1 + index)
    assert np.array_equal(driver.expressions.numpy(), raw(root, "exp_coeff"))


def test_freeview_goes_before_a_given_camera(root):
    driver = sequence(root, freeview=True)
    assert not torch.equal(driver[0].camera.world_to_camera, sequence(root)[0].camera.world_to_camera)


def test_orbit_keeps_its_distance_and_looks_at_the_target():
    target, size = torch.tensor([0.0, 0.0, 0.05]), 64
    for index in range(0, 200, 7):
        camera = orbit_camera(index, size)
        rotation, translation = camera.world_to_camera[0, :, :3], camera.world_to_camera[0, :, 3]
        centre = -rotation.T @ translation
        assert float((centre - target).norm()) == pytest.approx(1.2, abs=1e-5)
        assert camera.project(target.expand(1, 1, 3))[0, 0].tolist() == pytest.approx([size / 2, size / 2], abs=1e-3)
        assert torch.allclose(rotation @ rotation.T, torch.eye(3), atol=1e-5)
        elevation, azimuth = np.deg2rad(8.0) * np.sin(index / 20), np.deg2rad(45.0) * np.cos(index / 20)
        direction = [np.cos(elevation) * np.sin(azimuth), np.sin(elevation), np.cos(elevation) * np.cos(azimuth)]
        assert ((centre - target) / 1.2).tolist() == pytest.approx(direction, abs=1e-5)
        assert float(camera.intrinsics[0, 0, 0]) == float(camera.intrinsics[0, 1, 1]) == 3.5 * size
        above = camera.project((target + torch.tensor([0.0, 0.1, 0.0])).expand(1, 1, 3))[0, 0]
        assert float(above[1]) < size / 2  # upright


def test_pose_code_path_fixes_the_code_while_the_head_moves(root):
    code = root / "params" / "0004" / "params.npz"
    driver, free = sequence(root, pose_code_path=code), sequence(root, pose_code_path=code, freeview=True)
    expected = torch.from_numpy(raw(root, "pose")[4:5])
    for index in range(FRAMES):
        assert torch.equal(driver[index].pose_code, expected) and torch.equal(free[index].pose_code, expected)
        assert np.array_equal(driver[index].head.pose.numpy()[0], raw(root, "pose")[index])
        assert not free[index].head.pose.any()


def test_a_frame_is_a_batch_of_one(root):
    frame = sequence(root)[2]
    assert frame.expression.shape == (1, WIDTH) and frame.pose_code.shape == frame.head.pose.shape == (1, 6)
    assert frame.camera.intrinsics.shape == (1, 3, 3)
    assert sequence(root).expression_count == WIDTH


def test_images_beside_are_never_required(root, capsys):
    for index in range(FRAMES):
        (root / "images" / f"{index:04d}").mkdir(parents=True)
        cv2.imwrite(str(root / "images" / f"{index:04d}" / "image_1.jpg"), np.zeros((8, 8, 3), np.uint8))
    assert len(sequence(root, image_files="images/*/image_1.jpg").images) == FRAMES
    (root / "images" / "0000" / "image_1.jpg").unlink()
    assert sequence(root, image_files="images/*/image_1.jpg").images == []
    said = capsys.readouterr().out
    assert "dataset.image_files" in said and f"{FRAMES - 1} pictures" in said and f"{FRAMES} frames" in said


@pytest.mark.parametrize(("key", "pattern"), [
    ("param_files", "nothing/*/here.npz"), ("param_files", "/absolute/*/params.npz"), ("param_files", "params/**bad/["),
    ("image_files", "/absolute/*/image.jpg"), ("image_files", "images/**bad/["),
])
def test_a_pattern_without_a_match_is_refused(root, key, pattern):
    said = refusal(root, **{key: pattern})
    assert f"dataset.{key}" in said and pattern in said


def test_an_empty_pattern_is_refused(root):
    assert "dataset.param_files" in refusal(root, param_files="")


def test_no_pattern_is_refused(root):
    assert "dataset.param_files" in refusal(root, param_files=None)


def test_missing_folder_is_refused(root):
    assert "dataset.dataroot" in refusal(root, dataroot=root / "nowhere")


def test_without_a_camera_it_looks_from_the_front(root):
    """Published behaviour: at (0,0,1), looking at the origin."""
    camera = sequence(root, camera_path=None)[3].camera
    assert torch.allclose(camera.centers(), torch.tensor([[0.0, 0.0, 1.0]]), atol=1e-6)
    seen = camera.project(torch.tensor([[[0.0, 0.0, 0.0], [0.01, 0.02, 0.0]]]))[0]
    assert torch.allclose(seen[0], torch.tensor([16.0, 16.0]), atol=1e-4)
    assert seen[1, 0] > 16.0 and seen[1, 1] < 16.0  # +x to the right, +y up


POSES = {"driver": lambda root, index: raw(root, "pose")[index], "own": lambda root, index: OWN.numpy(),
         "fixed": lambda root, index: raw(root, "pose")[2], "zero": lambda root, index: np.zeros(6, np.float32)}


@pytest.mark.parametrize("freeview", [False, True])
@pytest.mark.parametrize("head_pose", list(POSES))
@pytest.mark.parametrize("pose_code", ["head", *POSES])
def test_named_poses_go_before_published_keys(root, freeview, head_pose, pose_code):
    file = root / "params" / "0002" / "params.npz"
    driver = sequence(root, freeview=freeview, head_pose=head_pose, pose_code=pose_code, head_pose_path=file, pose_code_path=file)
    for index in range(FRAMES):
        place = POSES[head_pose](root, index)
        code = place if pose_code == "head" else POSES[pose_code](root, index)
        assert np.array_equal(driver[index].head.pose.numpy()[0], place)
        assert np.array_equal(driver[index].pose_code.numpy()[0], code)


@pytest.mark.parametrize(("keys", "modes"), [
    ({}, ("front", "driver", "head")),
    ({"camera_path": "c.npz"}, ("given", "driver", "head")),
    ({"freeview": True}, ("orbit", "zero", "zero")),
    ({"freeview": True, "camera_path": "c.npz", "pose_code_path": "p.npz"}, ("orbit", "zero", "fixed")),
    ({"pose_code_path": "p.npz"}, ("front", "driver", "fixed")),
    ({"freeview": True, "camera": "front", "head_pose": "own", "pose_code": "driver"}, ("front", "own", "driver")),
])
def test_published_keys_choose_the_modes(root, keys, modes):
    config = DrivingConfig(dataroot=root, **keys)
    assert (config.camera_mode, config.head_pose_mode, config.pose_code_mode) == modes


@pytest.mark.parametrize(("changes", "key"), [
    ({"head_pose": "fixed"}, "dataset.head_pose_path"), ({"pose_code": "fixed"}, "dataset.pose_code_path"),
    ({"camera": "given", "camera_path": None}, "dataset.camera_path"),
])
def test_a_choice_that_needs_a_file_says_which_key(root, changes, key):
    assert refusal(root, **changes).startswith(f"{key}: needed")


@pytest.mark.parametrize("changes", [
    {"dataroot": Path("nowhere")}, {"param_files": None}, {"param_files": "nothing/*"}, {"param_files": "/absolute/*"},
    {"head_pose": "fixed"}, {"pose_code": "fixed"}, {"camera": "given", "camera_path": None}, {"clamp_to_training": True},
    {"neutralize": "median"}, {"neutralize": "file"},
])
def test_keys_are_named_in_their_own_section(root, changes):
    """The same complaint, whatever the section is called that the keys stand in."""
    said = refusal(root, **changes)
    with pytest.raises(InputError) as error:
        DrivingSequence(sequence(root).config.model_copy(update=changes), OWN, section="elsewhere")
    assert "dataset." in said and str(error.value) == said.replace("dataset.", "elsewhere.")


def camera_path(root: Path, count: int) -> tuple[Path, torch.Tensor]:
    angles = torch.linspace(-0.6, 0.8, count, dtype=torch.float64)
    centers = torch.stack([angles.sin(), 0.2 * angles, angles.cos()], dim=1)
    extrinsics = look_at(centers, torch.zeros_like(centers))
    rows = [{"extrinsic": extrinsic.tolist(), "intrinsic": [[200.0 + k, 0, 64], [0, 210, 60], [0, 0, 1]]} for k, extrinsic in enumerate(extrinsics)]
    path = root / "path.json"
    path.write_text(json.dumps({"cameras": rows}))
    return path, extrinsics.float()


def test_a_camera_path_with_a_key_per_frame_is_followed_exactly(root):
    path, extrinsics = camera_path(root, FRAMES)
    driver = sequence(root, camera_path=path)
    for index in range(FRAMES):
        assert torch.allclose(driver[index].camera.world_to_camera[0], extrinsics[index], atol=1e-5)
        assert float(driver[index].camera.intrinsics[0, 0, 0]) == pytest.approx((200 + index) / 4)


def test_a_camera_path_is_interpolated_between_its_keys(root):
    path, extrinsics = camera_path(root, 3)
    driver = sequence(root, camera_path=path)
    assert torch.allclose(driver[3].camera.world_to_camera[0], extrinsics[1], atol=1e-5)  # 7 frames, 3 keys
    halfway = driver[1].camera  # a third of the way from the first key to the second
    center = torch.lerp(centers(extrinsics[0]), centers(extrinsics[1]), 1.0 / 3.0)
    assert torch.allclose(halfway.centers()[0], center, atol=1e-5)
    rotation = halfway.world_to_camera[0, :, :3]
    assert torch.allclose(rotation @ rotation.T, torch.eye(3), atol=1e-5)
    apart = [angle(rotation, extrinsics[k, :, :3]) for k in (0, 1)]
    assert apart[0] == pytest.approx(apart[1] / 2, rel=1e-3) and sum(apart) == pytest.approx(angle(*extrinsics[:2, :, :3]), rel=1e-3)


def centers(extrinsic: torch.Tensor) -> torch.Tensor:
    return -extrinsic[:, :3].T @ extrinsic[:, 3]


def angle(one: torch.Tensor, other: torch.Tensor) -> float:
    return float(torch.arccos(((one @ other.T).trace().double() - 1.0) / 2.0))


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"cameras": []}', '{"cameras": [{}]}', '{"cameras": [{"extrinsic": [[1]], "intrinsic": [[1]]}]}'])
def test_a_malformed_camera_path_is_refused(root, text):
    (root / "path.json").write_text(text)
    assert str(root / "path.json") in refusal(root, camera_path=root / "path.json")


@pytest.mark.parametrize("key", ["camera_path", "pose_code_path"])
def test_a_named_file_must_exist(root, key):
    with pytest.raises(InputError, match=r"elsewhere\.npz"):
        driver = sequence(root, **{key: root / "elsewhere.npz"})
        driver[0]


def test_a_named_camera_is_read_at_once(root):
    assert "elsewhere.npz" in refusal(root, camera_path=root / "elsewhere.npz")


def test_widths_must_agree_within_the_sequence(root):
    write(root / "params" / "0099", 99, width=WIDTH + 1)
    said = refusal(root)
    assert str(root / "params" / "0099" / "params.npz") in said and "exp_coeff" in said and str(WIDTH) in said and str(WIDTH + 1) in said


def test_a_bad_file_is_named(root):
    (root / "params" / "0003" / "params.npz").write_bytes(b"")
    assert str(root / "params" / "0003" / "params.npz") in refusal(root)
