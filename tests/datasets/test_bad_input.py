"""What a subject folder can be wrong in: one readable InputError that names the file, and nothing else."""

import json
import pickle
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lib.datasets.head_capture import HeadCapture, HeadCaptureConfig, Picture
from lib.datasets.images import look_at, read_image
from lib.datasets.layout import read_params_file
from lib.errors import InputError
from tests.tiny import CAMERAS, SIZE, copy_subject, dataset_dict

CAMERA, FRAME = CAMERAS[1], "0003"
IMAGE, MASK = f"images/{FRAME}/image_{CAMERA}.jpg", f"images/{FRAME}/mask_{CAMERA}.jpg"
NPZ, PARAMS = f"cameras/{FRAME}/camera_{CAMERA}.npz", f"params/{FRAME}/params.npz"
LANDMARKS, VERTICES = f"params/{FRAME}/lmk_3d.npy", f"params/{FRAME}/vertices.npy"


@pytest.fixture
def copy(subject, tmp_path):
    return copy_subject(subject, tmp_path / "subject", cameras=CAMERAS[:3])


def use(folder: Path, **changes) -> None:
    """Opens the subject and reads every picture, as training would."""
    capture = HeadCapture(HeadCaptureConfig(**dataset_dict(folder, camera_ids=list(CAMERAS[:3]), **changes)))
    for frame in capture.frames:
        capture.pictures([Picture(frame, camera) for camera in capture.config.camera_ids])


def refusal(folder: Path, **changes) -> str:
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a warning in front of the message is not readable
        with pytest.raises(InputError) as error:
            use(folder, **changes)
    said = str(error.value)
    assert len(said.splitlines()) == 1
    return said


def rewrite(path: Path, **changes) -> None:
    with np.load(path) as data:
        arrays = dict(data)
    np.savez(path, **(arrays | changes))


def with_value(path: Path, key: str, value: float) -> np.ndarray:
    array = np.array(np.load(path)[key])
    array.reshape(-1)[-1] = value
    return array


def test_the_untouched_copy_is_fine(copy):
    use(copy)


def test_missing_subject(tmp_path):
    said = refusal(tmp_path / "nowhere")
    assert "dataroot" in said and "nowhere" in said


def test_subject_that_is_a_file(tmp_path):
    (tmp_path / "file").write_text("x")
    assert "dataroot" in refusal(tmp_path / "file")


def test_subject_without_frames(tmp_path):
    (tmp_path / "images").mkdir()
    assert str(tmp_path / "images") in refusal(tmp_path)


@pytest.mark.parametrize("name", [IMAGE, MASK, NPZ, PARAMS, LANDMARKS, VERTICES])
def test_missing_file_is_found_at_once(copy, name):
    (copy / name).unlink()
    with pytest.raises(InputError) as error:  # before anything is read, not after an hour of training
        HeadCapture(HeadCaptureConfig(**dataset_dict(copy, camera_ids=list(CAMERAS[:3]))))
    assert str(copy / name) in str(error.value) and "missing" in str(error.value)


def test_missing_files_are_counted(copy):
    for frame in ("0001", "0002", "0005"):
        (copy / "params" / frame / "vertices.npy").unlink()
    said = refusal(copy)
    assert str(copy / "params" / "0001" / "vertices.npy") in said and "3 missing" in said and "save_vertices" in said


@pytest.mark.parametrize(("name", "camera"), [(IMAGE, CAMERA), (MASK, CAMERA), (NPZ, CAMERA), (PARAMS, None), (LANDMARKS, None), (VERTICES, None)])
def test_missing_file_names_frame_camera_and_way_out(copy, name, camera):
    (copy / name).unlink()
    said = refusal(copy)
    assert f"frame {FRAME}" in said and (camera is None or f"camera {camera}" in said)
    assert "1 missing in all for 7 frames x 3 cameras" in said and said.partition("; ")[2]  # what to do


def test_a_frame_lacking_a_camera(copy):
    for name in (IMAGE, MASK, NPZ):
        (copy / name).unlink()
    said = refusal(copy)
    assert FRAME in said and CAMERA in said and "3 missing in all" in said


def test_broken_links_are_missing_files(copy):
    (copy / IMAGE).unlink()
    (copy / IMAGE).symlink_to(copy / "nowhere.jpg")
    assert "missing" in refusal(copy)


def test_cameras_that_no_file_has(copy):
    with pytest.raises(InputError, match="camera_ids") as error:
        HeadCapture(HeadCaptureConfig(**dataset_dict(copy, camera_ids=["123", "124"], held_out_cameras=[])))
    assert "123, 124" in str(error.value) and all(camera in str(error.value) for camera in CAMERAS[:3])


def test_no_image_at_all(copy):
    for path in copy.glob("images/*/image_*"):
        path.rename(path.with_suffix(".webp"))
    assert "no frame of" in refusal(copy)


def test_camera_listed_twice(copy):
    with pytest.raises(InputError, match=f"'{CAMERA}' is listed 2 times"):
        HeadCapture(HeadCaptureConfig(**dataset_dict(copy, camera_ids=[*CAMERAS[:3], CAMERA])))


def test_held_out_camera_without_images(copy):
    with pytest.raises(InputError, match="held_out_cameras: '123' has no image"):
        HeadCapture(HeadCaptureConfig(**dataset_dict(copy, camera_ids=[*CAMERAS[:3], "123"], held_out_cameras=["123"])))


def test_empty_mask_file(copy):
    (copy / MASK).write_bytes(b"")
    said = refusal(copy)
    assert str(copy / MASK) in said and "empty (0 bytes)" in said


@pytest.mark.parametrize("value", [0, 1])  # 1: a matte in 0 and 1 instead of 0 and 255
def test_black_mask(copy, value):
    cv2.imwrite(str(copy / MASK), np.full((SIZE, SIZE, 3), value, np.uint8))
    said = refusal(copy)
    assert str(copy / MASK) in said and "black" in said


def test_black_pictures_and_black_visible_are_allowed(copy):
    for kind in ("image", "visible"):
        cv2.imwrite(str(copy / "images" / FRAME / f"{kind}_{CAMERA}.jpg"), np.zeros((SIZE, SIZE, 3), np.uint8))
    use(copy)


def test_frames_with_the_same_number(copy):
    shutil.copytree(copy / "images" / "0001", copy / "images" / "1")
    said = refusal(copy)
    assert "'0001'" in said and "'1'" in said


def test_frame_with_two_entries_in_frames_json(copy):
    rows = json.loads((copy / "frames.json").read_text())["frames"]
    (copy / "frames.json").write_text(json.dumps({"frames": [*rows, rows[3]]}))
    said = refusal(copy)
    assert str(copy / "frames.json") in said and f"'{FRAME}' has 2 entries" in said


@pytest.mark.parametrize("bit", [(6, 1), (8, 9)], ids=["encrypted", "compression"])
def test_npz_header_that_claims_what_zip_cannot_do(copy, bit):
    data = bytearray((copy / PARAMS).read_bytes())
    for signature, shift in ((b"PK\x03\x04", 0), (b"PK\x01\x02", 2)):
        place = data.find(signature)
        while place >= 0:
            data[place + bit[0] + shift] |= bit[1]
            place = data.find(signature, place + 4)
    (copy / PARAMS).write_bytes(data)
    assert str(copy / PARAMS) in refusal(copy)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(("name", "key"), [(PARAMS, "pose"), (PARAMS, "exp_coeff"), (PARAMS, "scale"), (NPZ, "extrinsic"), (NPZ, "intrinsic")])
def test_values_that_are_not_finite(copy, name, key, value):
    rewrite(copy / name, **{key: with_value(copy / name, key, value)})
    said = refusal(copy)
    assert str(copy / name) in said and f"'{key}'" in said and "NaN, infinite" in said


@pytest.mark.parametrize("name", [LANDMARKS, VERTICES])
def test_points_that_are_not_finite(copy, name):
    points = np.load(copy / name)
    points[7, 1] = np.nan
    np.save(copy / name, points)
    said = refusal(copy)
    assert str(copy / name) in said and "1 of" in said


def test_values_too_large_for_single_precision(copy):
    rewrite(copy / PARAMS, exp_coeff=np.full((1, 55), 1e300))
    assert str(copy / PARAMS) in refusal(copy)


@pytest.mark.parametrize(("name", "key", "shape"), [
    (PARAMS, "pose", (6,)), (PARAMS, "pose", (1, 7)), (PARAMS, "exp_coeff", (55,)), (PARAMS, "exp_coeff", (2, 55)), (PARAMS, "exp_coeff", (1, 0)),
    (PARAMS, "scale", (3,)), (PARAMS, "scale", (0,)), (NPZ, "extrinsic", (4, 4)), (NPZ, "intrinsic", (3, 4)), (NPZ, "intrinsic", (4,)),
])
def test_wrong_shape(copy, name, key, shape):
    rewrite(copy / name, **{key: np.ones(shape, np.float32)})
    said = refusal(copy)
    assert str(copy / name) in said and f"'{key}'" in said


@pytest.mark.parametrize(("name", "shape"), [
    (LANDMARKS, (65, 3)), (LANDMARKS, (66, 2)), (LANDMARKS, (66,)), (VERTICES, (9409, 2)), (VERTICES, (0, 3)),
])
def test_wrong_shape_of_points(copy, name, shape):
    np.save(copy / name, np.ones(shape, np.float32))
    assert str(copy / name) in refusal(copy)


@pytest.mark.parametrize("array", [
    np.array([["a"] * 6]), np.array([[None] * 6], dtype=object), np.ones((1, 6), complex), np.ones((1, 6), bool), np.zeros((1, 6), "datetime64[s]"),
], ids=["strings", "objects", "complex", "bool", "times"])
def test_wrong_dtype(copy, array):
    rewrite(copy / PARAMS, pose=array)
    assert str(copy / PARAMS) in refusal(copy)


@pytest.mark.parametrize(("name", "key"), [(PARAMS, "pose"), (PARAMS, "exp_coeff"), (PARAMS, "scale"), (NPZ, "extrinsic"), (NPZ, "intrinsic")])
def test_missing_key(copy, name, key):
    arrays = dict(np.load(copy / name))
    del arrays[key]
    np.savez(copy / name, **arrays)
    said = refusal(copy)
    assert str(copy / name) in said and f"'{key}'" in said


class _Evil:
    """Unpickling it makes a folder."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return Path.mkdir, (self.mark,)


def replace_by_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def keep(share: float) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(path.read_bytes()[:int(path.stat().st_size * share)])


DAMAGES: dict[str, Callable[[Path], object]] = {
    "empty": lambda path: path.write_bytes(b""),
    "text": lambda path: path.write_text("this is not the file you are looking for\n" * 30),
    "random": lambda path: path.write_bytes(np.random.default_rng(0).bytes(4000)),
    "zeros": lambda path: path.write_bytes(bytes(4000)),
    "first half": keep(1 / 2),
    "without its last third": keep(2 / 3),
    "folder": replace_by_folder,
    "pickle": lambda path: path.write_bytes(pickle.dumps({"pose": 1})),
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", [IMAGE, MASK, NPZ, PARAMS, LANDMARKS, VERTICES])
def test_damaged_file(copy, name, damage):
    DAMAGES[damage](copy / name)
    assert str(copy / name) in refusal(copy)


@pytest.mark.parametrize("trailer", [b"SEFT\x01\x02", b"\0" * 5000 + b"video " * 2000, b"\xff\xd8\xff\xe0" * 3], ids=["few", "many", "another"])
@pytest.mark.parametrize("options", [(), (cv2.IMWRITE_JPEG_PROGRESSIVE, 1), (cv2.IMWRITE_JPEG_RST_INTERVAL, 2)], ids=["", "progressive", "restarts"])
def test_a_jpeg_may_have_more_behind_it_but_must_not_lack_its_end(copy, trailer, options):
    """As phones append it."""
    path = copy / IMAGE
    assert cv2.imwrite(str(path), cv2.imread(str(path)), options)
    whole, wanted = path.read_bytes(), read_image(path)
    path.write_bytes(whole + trailer)
    assert torch.equal(read_image(path), wanted) and look_at(path).bytes == len(whole) + len(trailer)
    for part in (whole[:-2], whole[:len(whole) // 2], whole[:300]):
        path.write_bytes(part + trailer)
        for read in (read_image, look_at):
            with pytest.raises(InputError, match="cut off"):
                read(path)


def test_truncated_png(copy):
    path = (copy / IMAGE).with_suffix(".png")
    assert cv2.imwrite(str(path), cv2.imread(str(copy / IMAGE)))
    (copy / IMAGE).unlink()
    path.write_bytes(path.read_bytes()[:path.stat().st_size * 2 // 3])
    assert str(path) in refusal(copy)


@pytest.mark.parametrize("name", [PARAMS, NPZ])
def test_npz_that_is_another_kind_of_archive(copy, name):
    shutil.make_archive(str(copy / "archive"), "zip", copy / "params" / "0000")
    (copy / "archive.zip").replace(copy / name)
    assert str(copy / name) in refusal(copy)


def test_npy_under_the_name_of_an_npz(copy):
    with (copy / PARAMS).open("wb") as file:
        np.save(file, np.ones((1, 6)))
    said = refusal(copy)
    assert str(copy / PARAMS) in said and "exp_coeff" in said


def test_a_pickle_is_never_executed(copy, tmp_path):
    mark = tmp_path / "executed"
    rewrite(copy / PARAMS, pose=np.array([[_Evil(mark)] * 6], dtype=object))
    assert str(copy / PARAMS) in refusal(copy)
    assert not mark.exists()


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True)
@given(position=st.floats(0, 1, exclude_max=True), byte=st.integers(1, 255), compressed=st.booleans())
def test_one_wrong_byte_gives_arrays_or_an_input_error(subject, tmp_path, position, byte, compressed):
    arrays = dict(np.load(subject / PARAMS))
    path = tmp_path / "params.npz"
    (np.savez_compressed if compressed else np.savez)(path, **arrays)
    data = bytearray(path.read_bytes())
    data[int(position * len(data))] ^= byte
    path.write_bytes(data)
    try:
        params = read_params_file(path)
    except InputError as error:
        assert str(path) in str(error)
    else:
        assert params.pose.shape == (6,) and params.scale.shape == (1,)


@pytest.mark.parametrize("shape", [(32, 32), (64, 32), (65, 64)])
@pytest.mark.parametrize("name", [IMAGE, MASK])
def test_wrong_image_size(copy, name, shape):
    cv2.imwrite(str(copy / name), np.zeros((*shape, 3), np.uint8))
    said = refusal(copy)
    assert str(copy / name) in said and f"{shape[1]}x{shape[0]}" in said and f"{SIZE}x{SIZE}" in said


def test_expression_widths_differ(copy):
    rewrite(copy / PARAMS, exp_coeff=np.zeros((1, 50), np.float32))
    said = refusal(copy)
    assert str(copy / PARAMS) in said and FRAME in said and "50" in said and "55" in said


def test_vertex_counts_differ(copy):
    np.save(copy / VERTICES, np.load(copy / VERTICES)[:5000])
    said = refusal(copy)
    assert str(copy / VERTICES) in said and FRAME in said


def test_unknown_held_out_camera(copy):
    assert "listed 2 times" in refusal(copy, held_out_cameras=[CAMERAS[0], CAMERAS[0]])
    said = refusal(copy, held_out_cameras=["999"])
    assert "held_out_cameras" in said and "999" in said and CAMERAS[0] in said


def test_unknown_held_out_sequence(copy):
    said = refusal(copy, held_out_sequences=["SEN-99"])
    assert "held_out_sequences" in said and "SEN-99" in said and "SEN-01-talk" in said


def test_no_cameras(copy):
    with pytest.raises(InputError, match="camera_ids"):
        HeadCapture(HeadCaptureConfig(dataroot=copy))


@pytest.mark.parametrize("text", [
    "", "{", "[]", "null", "3", '{"frames": 3}', '{"frames": [3]}', '{"frames": [{"frame": "0000"}]}', '{"rows": []}', '{"frames": null}',
    '{"frames": [{"frame": "0000", "sequence": "a", "time": "noon"}]}', '{"frames": [{"frame": ["0000"], "sequence": "a", "time": 0}]}',
])
def test_malformed_frames_json(copy, text):
    (copy / "frames.json").write_text(text)
    assert str(copy / "frames.json") in refusal(copy)


def test_binary_frames_json(copy):
    (copy / "frames.json").write_bytes(b"\xff\xfe\x00\x91")
    assert str(copy / "frames.json") in refusal(copy)


def test_frames_json_without_a_frame(copy):
    rows = json.loads((copy / "frames.json").read_text())["frames"]
    (copy / "frames.json").write_text(json.dumps({"frames": [row for row in rows if row["frame"] != FRAME]}))
    said = refusal(copy)
    assert str(copy / "frames.json") in said and FRAME in said and "1 of 7" in said


@pytest.mark.parametrize("block", [np.diag([1.0, 1.0, -1.0]), 2.0 * np.eye(3), np.zeros((3, 3)), np.array([[1.0, 0.5, 0], [0, 1, 0], [0, 0, 1]])],
                         ids=["mirror", "scaled", "zero", "shear"])
def test_extrinsic_that_is_not_a_rotation(copy, block):
    rewrite(copy / NPZ, extrinsic=np.concatenate([block, np.zeros((3, 1))], axis=1))
    said = refusal(copy)
    assert str(copy / NPZ) in said and "'extrinsic'" in said and "rotation" in said


@pytest.mark.parametrize("focal", [0.0, -200.0])
def test_focal_length_that_is_not_positive(copy, focal):
    rewrite(copy / NPZ, intrinsic=np.diag([focal, 200.0, 1.0]))
    assert str(copy / NPZ) in refusal(copy)


@pytest.mark.parametrize("scale", [0.0, -0.1])
def test_scale_that_is_not_positive(copy, scale):
    rewrite(copy / PARAMS, scale=np.array([scale]))
    said = refusal(copy)
    assert str(copy / PARAMS) in said and "'scale'" in said


def test_a_bad_camera_file_is_found_at_once(copy):
    rewrite(copy / NPZ, extrinsic=np.full((3, 4), np.nan))
    with pytest.raises(InputError, match=CAMERA):  # not at the step that happens to draw this picture
        HeadCapture(HeadCaptureConfig(**dataset_dict(copy, camera_ids=list(CAMERAS[:3]))))


def test_every_camera_held_out(copy):
    assert "held out" in refusal(copy, held_out_cameras=list(CAMERAS[:3]))


def test_every_sequence_held_out(copy):
    rows = json.loads((copy / "frames.json").read_text())["frames"]
    assert "held out" in refusal(copy, held_out_sequences=sorted({row["sequence"] for row in rows}))


def test_reading_changes_nothing_on_disk(copy):
    before = {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()}
    use(copy)
    (copy / IMAGE).write_bytes(b"")
    refusal(copy)
    assert {path: path.read_bytes() for path in copy.rglob("*") if path.is_file() and path != copy / IMAGE} == {
        path: data for path, data in before.items() if path != copy / IMAGE}
