"""Laws of configurations, cameras, subject folders and drivers, on random cases (the same ones every time; more of them with --long)."""

import difflib
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from lib.avatars.gaussian_head_avatar.gaussian_stage import GaussianHeadTrainConfig
from lib.config import Config, read_config
from lib.config.reader import Arguments, yaml_value
from lib.datasets.head_capture import HeadCapture, HeadCaptureConfig, Picture
from lib.datasets.layout import read_camera_file
from lib.datasets.tracked.driver import read_driver
from lib.datasets.tracked.sources import read_tracking
from lib.errors import InputError
from lib.geometry.camera import Camera
from tests import published_tracking as tracked
from tests.faults.mutations import dump_npz
from tests.faults.readers import random_camera, write_small_subject
from tests.faults.target import CAMERAS, FRAMES, SIZE

faults = settings.get_profile("faults")
NEEDED = "dataset: {}\nrecorder: {name: a}\n"
KEYS = sorted({key for section in (GaussianHeadTrainConfig, *(
    field.annotation for field in GaussianHeadTrainConfig.model_fields.values() if isinstance(field.annotation, type)))
    if issubclass(section, Config) for key in section.model_fields})


class Values(Config):
    """One key of every type."""

    number: float = 0.0
    count: int = 0
    text: str = ""
    flag: bool = False
    names: tuple[str, ...] = ()
    widths: tuple[int, ...] = ()
    maybe: float | None = None
    inner: "Values | None" = None


VALUES = st.fixed_dictionaries({}, optional={
    "number": st.floats(allow_nan=False, allow_infinity=False), "count": st.integers(),
    "text": st.text(st.characters(exclude_categories=["Cs", "Cc"])), "flag": st.booleans(),
    "names": st.lists(st.text("0123456789eE+-._abc: #'\"", max_size=6)),
    "widths": st.lists(st.integers(0, 999)),
    "maybe": st.none() | st.floats(allow_nan=False, allow_infinity=False)})


@pytest.fixture
def config_file(tmp_path):
    return tmp_path / "a.yaml"


def read(path: Path, text: str, *overrides: str, schema: type[Config] = Values) -> Config:
    path.write_text(text, encoding="utf-8")
    return read_config(Arguments(path, overrides), schema)


@faults
@given(values=VALUES, inner=VALUES)
def test_values_survive_a_file_and_the_command_line(config_file, values, inner):
    expected = Values(**values, inner=Values(**inner))
    lines = [f"{key}: {yaml_value(value)}" for key, value in values.items()]
    lines += ["inner:", *(f"  {key}: {yaml_value(value)}" for key, value in inner.items())]
    assert read(config_file, "\n".join(lines)) == (expected if inner else Values(**values))
    overrides = [f"{key}={yaml_value(value)}" for key, value in values.items()] + [f"inner.{key}={yaml_value(value)}" for key, value in inner.items()]
    assert read(config_file, "", *overrides) == (expected if inner else Values(**values))


@faults
@given(sign=st.sampled_from(["", "-", "+"]), digits=st.from_regex(r"(0|[1-9][0-9]{0,8})(\.[0-9]{0,6})?|\.[0-9]{1,6}", fullmatch=True),
       exponent=st.none() | st.tuples(st.sampled_from("eE"), st.sampled_from(["", "-", "+"]), st.integers(0, 30)))
def test_numbers_are_what_python_takes_them_for(config_file, sign, digits, exponent):
    text = sign + digits + ("" if exponent is None else "".join(map(str, exponent)))
    assert read(config_file, f"number: {text}").number == read(config_file, "", f"number={text}").number == float(text)


@faults
@given(key=st.sampled_from(KEYS), place=st.integers(0, 30), letter=st.sampled_from("abcxyz_0"), how=st.sampled_from(["lost", "more", "other"]))
def test_a_misspelt_key_is_refused_with_its_nearest_match(config_file, key, place, letter, how):
    place %= len(key)
    wrong = key[:place] + {"lost": "", "more": letter + key[place], "other": letter}[how] + key[place + 1:]
    section = next((name for name, field in GaussianHeadTrainConfig.model_fields.items() if isinstance(field.annotation, type)
                    and issubclass(field.annotation, Config) and key in field.annotation.model_fields), None)
    known = GaussianHeadTrainConfig.model_fields if section is None else GaussianHeadTrainConfig.model_fields[section].annotation.model_fields
    assume(wrong and wrong not in known)
    with pytest.raises(InputError) as error:
        read(config_file, NEEDED, f"{wrong if section is None else f'{section}.{wrong}'}=1", schema=GaussianHeadTrainConfig)
    said = next(line for line in str(error.value).splitlines() if "unknown key" in line)
    near = difflib.get_close_matches(wrong, known, n=1)
    assert wrong in said and (f"did you mean '{near[0]}'" if near else "known here") in said


@faults
@given(text=st.text(max_size=60) | st.text("[]{}:,-&*!|>?%@#'\" \nab<1.e", max_size=40))
def test_any_text_is_a_configuration_or_an_error_that_says_where(config_file, text):
    for lines, overrides in ((text, ()), (f"inner: {text}", ()), ("", (text,)), ("", (f"text={text}",)), ("", (f"inner={text}",))):
        try:
            assert isinstance(read(config_file, lines.encode("utf-8", "ignore").decode(), *overrides), Values)
        except InputError as error:
            assert str(config_file) in str(error) or "command line" in str(error)


# Cameras -----------------------------------------------------------------------------------------------------------


STEPS = st.lists(st.tuples(st.just("resized"), st.integers(1, 300), st.integers(1, 300)) | st.tuples(
    st.just("cropped"), st.integers(-50, 50), st.integers(-50, 50), st.integers(1, 200), st.integers(1, 200)), max_size=5)


@faults
@given(seed=st.integers(0, 2**31), steps=STEPS)
def test_pictures_and_cameras_go_the_same_way(seed, steps):
    rng = np.random.default_rng(seed)
    arrays = random_camera(rng)
    camera = Camera(torch.from_numpy(arrays["extrinsic"])[None].double(), torch.from_numpy(arrays["intrinsic"])[None].double(), 24, 24)
    points = torch.from_numpy(rng.normal(size=(1, 9, 3))) * 0.2
    pixels, moved = camera.project(points), camera
    for name, *numbers in steps:
        if name == "resized":
            pixels = pixels * torch.tensor([numbers[0] / moved.width, numbers[1] / moved.height], dtype=torch.float64)
        else:
            pixels = pixels - torch.tensor(numbers[:2])
        moved = getattr(moved, name)(*numbers)
        assert (moved.width, moved.height) == tuple(numbers[-2:])
    assert torch.allclose(moved.project(points), pixels, rtol=1e-9, atol=1e-6)
    assert torch.equal(moved.world_to_camera, camera.world_to_camera)


@faults
@given(seed=st.integers(0, 2**31), kind=st.sampled_from(["<f4", "<f8", ">f4", ">f8"]))
def test_a_camera_survives_its_file(tmp_path, seed, kind):
    arrays = random_camera(np.random.default_rng(seed))
    (tmp_path / "a.npz").write_bytes(dump_npz({key: value.astype(kind) for key, value in arrays.items()}))
    extrinsic, intrinsic = read_camera_file(tmp_path / "a.npz")
    assert torch.equal(extrinsic, torch.from_numpy(arrays["extrinsic"])) and torch.equal(intrinsic, torch.from_numpy(arrays["intrinsic"]))


# Subject folders ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def subject(tmp_path_factory):
    return write_small_subject(tmp_path_factory.mktemp("properties") / "me")


@faults
@given(data=st.data())
def test_without_some_files_a_subject_is_refused_by_name_or_whole(subject, tmp_path_factory, data):
    everything = sorted(path.relative_to(subject) for path in subject.rglob("*") if path.is_file())
    lost = set(data.draw(st.lists(st.sampled_from(everything), max_size=4, unique=True)))
    if data.draw(st.booleans()):  # a camera without any picture is left out
        lost |= {path for path in everything if path.parts[0] == "images" and path.stem.endswith(f"image_{CAMERAS[1]}")}
    copy = tmp_path_factory.mktemp("subject", numbered=True)
    for path in everything:
        (copy / path).parent.mkdir(parents=True, exist_ok=True)
        if path not in lost:
            (copy / path).hardlink_to(subject / path)
    left = {path for path in everything if path not in lost}
    cameras = [camera for camera in CAMERAS if any(path.parts[0] == "images" and path.stem == f"image_{camera}" for path in left)]
    needed = [Path(kind) / frame / name for frame in FRAMES for kind, names in (
        ("params", ["params.npz", "lmk_3d.npy", "vertices.npy"]), ("cameras", [f"camera_{camera}.npz" for camera in cameras]),
        ("images", [f"{kind}_{camera}" for camera in cameras for kind in ("image", "mask")])) for name in names]
    missing = [path for path in needed if not any(str(other).startswith(str(path)) for other in left)]
    try:
        capture = HeadCapture(HeadCaptureConfig(dataroot=copy, camera_ids=CAMERAS, original_resolution=SIZE, resolution=SIZE))
    except InputError as error:
        assert missing and any(str(copy / path) in str(error) for path in missing)
        assert f"{len(missing)} missing in all" in str(error)
    else:
        assert not missing and capture.frames == list(FRAMES) and capture.camera_ids == cameras
        assert len(capture.pictures([Picture(frame, camera) for frame in FRAMES for camera in cameras]).frame) == len(FRAMES) * len(cameras)
    shutil.rmtree(copy)


# Drivers -----------------------------------------------------------------------------------------------------------


def write_rows(folder: Path, show: tracked.Performance, suffix: str) -> Path:
    path = folder / f"rows.{suffix}"
    if suffix == "csv":
        np.savetxt(path, show.expression, delimiter=",", fmt="%.9g")
    elif suffix == "npy":
        np.save(path, show.expression)
    else:
        np.savez(path, expr=show.expression)
    return path


FORMATS = {
    "vhap": tracked.write_vhap_export, "tracker": tracked.write_vhap_tracker, "benchmark": tracked.write_benchmark,
    "imavatar": tracked.write_imavatar,
    "flashavatar": tracked.write_flashavatar, "insta": tracked.write_insta, "subject": tracked.write_flame_subject,
    **{suffix: lambda folder, show, suffix=suffix: write_rows(folder, show, suffix) for suffix in ("csv", "npy", "npz")}}


@pytest.mark.parametrize("name", FORMATS)
@settings(faults, max_examples=max(2, faults.max_examples // 10))
@given(frames=st.integers(1, 4), expressions=st.integers(50, 120), seed=st.integers(0, 999))
def test_a_driver_survives_every_format(tmp_path_factory, name, frames, expressions, seed):
    show = tracked.Performance(frames=frames, expressions=expressions, seed=seed)
    root = tmp_path_factory.mktemp(name)
    (root / "me").mkdir()
    folder = root / "me" if name not in ("tracker", "flashavatar", "benchmark") else root / "other" / "me"
    folder.parent.mkdir(exist_ok=True)
    written = FORMATS[name](folder, show)
    sequence, track = read_tracking(written), read_driver(written, None)
    kept = 50 if name in ("imavatar", "subject") else expressions
    assert len(sequence.instants()) == len(track.names) == frames and sequence.expression_count == kept
    found = torch.stack([frame.params.expression for frame in sequence.instants()])
    assert torch.equal(found, torch.from_numpy(show.expression[:, :kept]))
    assert torch.equal(track.expressions[:, :kept], found) and track.expressions.shape[1] == kept + (9 if name == "subject" else 0)
    wider, params = read_driver(written, kept + 9).expressions, sequence.frames[0].params
    assert wider.shape == (frames, kept + 9 if params.jaw is not None and params.eyes is not None else kept)
    assert all(math.isfinite(value) for value in wider.flatten().tolist())
    shutil.rmtree(root)
