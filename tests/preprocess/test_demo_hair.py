"""Hair, eyebrows, presets and sensor of the synthetic subject."""

import dataclasses
import functools
import json
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import roma
import torch

from lib.datasets.layout import CaptureFolder
from lib.errors import InputError
from lib.geometry.head_pose import HeadPose
from lib.render.mesh.reference import face_layers, visible_faces
from preprocess import demo_subject
from preprocess.demo_hair import HAIR_COLORS, card_names
from preprocess.demo_head import ASSETS, IDENTITIES, DemoHead, Picture
from preprocess.demo_performance import GESTURES, SCALE_M
from preprocess.demo_presets import PRESETS
from preprocess.demo_sensor import Sensor
from preprocess.demo_subject import CAMERA_IDS, HELD_OUT_CAMERA, rig

SKINS = sorted(path.name.removesuffix("_face.jpg") for path in (ASSETS / "textures").glob("*_face.jpg"))
IRISES = sorted(path.stem for path in (ASSETS / "textures").glob("iris_*.png"))
SIZE = 48


@functools.cache
def head(hair: str | None = None, eyebrows: str | None = None) -> DemoHead:
    return DemoHead("neutral", "mh_young_lightskinned_male", "iris_brown", 2 * SIZE, hair=hair, eyebrows=eyebrows)


def draw(subject: DemoHead, gesture: str | None = None, camera: int = 8, size: int = SIZE) -> Picture:
    cameras = rig(size)
    vertices = HeadPose(torch.zeros(6), torch.tensor([SCALE_M])).to_world(subject.vertices(subject.coefficients(GESTURES.get(gesture, {}))))
    return subject.draw(vertices, demo_subject.pick(cameras, torch.tensor([camera])))


def drawn(subject: DemoHead) -> torch.Tensor:
    return subject.vertices(torch.zeros(subject.expression_count))


@pytest.mark.parametrize("name", [*card_names("hair"), *card_names("eyebrows")])
def test_cards_follow_a_rigid_motion_of_the_skin(name):
    subject = head(*((name, None) if name in card_names("hair") else (None, name)))
    cards, skin = subject.cards[0], subject.neutral
    rotation = roma.rotvec_to_rotmat(torch.tensor([0.3, -0.8, 0.4]))
    moved = cards.vertices(skin @ rotation.T + torch.tensor([0.2, -1.0, 3.0]))
    assert torch.allclose(moved, cards.vertices(skin) @ rotation.T + torch.tensor([0.2, -1.0, 3.0]), atol=1e-5)


@pytest.mark.parametrize("identity", IDENTITIES)
@pytest.mark.parametrize("hair", card_names("hair"))
def test_hair_sits_on_the_scalp_of_every_identity(identity, hair):
    subject = DemoHead(identity, "lps", "iris_brown", 16, hair=hair)
    vertices = drawn(subject)
    skin, cards = vertices[:len(subject.neutral)], vertices[len(subject.neutral):]
    assert cards[:, 1].max() > skin[:, 1].max() - 0.05  # covers the crown
    assert cards[:, 1].mean() > skin[subject.landmark_rows[8], 1] + 0.5  # well above the chin
    assert torch.cdist(cards[::7], skin[:11248]).amin(dim=1).median() < 0.25  # mostly within a couple of centimetres of the skin


def test_eyebrows_follow_the_brow_and_not_the_jaw():
    subject = head(eyebrows="eyebrow009")
    rows = slice(len(subject.neutral), None)
    rest = drawn(subject)[rows]
    lifted = subject.vertices(subject.coefficients(GESTURES["wide"]))[rows]
    assert (lifted - rest)[:, 1].mean() > 0.03
    assert (subject.vertices(subject.coefficients(GESTURES["jaw_left"]))[rows] - rest).abs().max() < 0.02


def test_hair_changes_no_landmark_and_no_skin_vertex():
    bare, haired = head(), head("bob02", "eyebrow001")
    expression = bare.coefficients(GESTURES["smile"])
    assert torch.equal(haired.vertices(expression)[:len(bare.neutral)], bare.vertices(expression))
    assert torch.equal(haired.landmark_rows, bare.landmark_rows)


@pytest.mark.parametrize("hair", card_names("hair"))
def test_hair_grows_the_mask_and_leaves_the_rest_alone(hair):
    bare, haired = draw(head(), camera=4), draw(head(hair), camera=4)
    assert (haired.mask >= bare.mask).all() and (haired.mask - bare.mask).sum() > 10
    neck = slice(int(0.85 * SIZE), None)
    assert torch.equal(haired.image[..., neck, :], bare.image[..., neck, :])
    assert (haired.image - bare.image).abs().amax(dim=1).gt(0.02).float().mean() > 0.05


def test_the_mask_is_the_coverage_of_the_picture():
    """Where nothing is covered the wall shows; the image is a blend with the wall in between."""
    picture = draw(head("short01"), camera=2)
    assert torch.allclose(picture.image[(picture.mask == 0).expand(-1, 3, -1, -1)], torch.tensor(demo_subject.WALL))
    partly = picture.mask[(picture.mask > 0.02) & (picture.mask < 0.98)]
    assert len(partly) > 20 and (4 * partly % 1.0).abs().gt(1e-3).any()  # finer steps than the four samples of a pixel: alpha counts
    color = (picture.image - demo_subject.WALL * (1.0 - picture.mask)) / picture.mask.clamp(min=0.2)
    assert color.min() > -0.05


def test_eyebrows_change_the_brow_region_only():
    bare, browed = draw(head(), size=64), draw(head(eyebrows="eyebrow009"), size=64)
    changed = (browed.image - bare.image).abs().amax(dim=1)[0] > 0.004
    assert changed.sum() > 20 and torch.equal(bare.mask, browed.mask)
    world = HeadPose(torch.zeros(6), torch.tensor([SCALE_M])).to_world(head().neutral[head().landmark_rows])
    points = rig(64).project(world.expand(16, -1, -1))[8]
    rows, columns = changed.nonzero().unbind(dim=1)
    assert rows.max() < points[27:36, 1].max() and rows.min() > points[17:27, 1].min() - 6  # above the tip of the nose
    assert columns.min() >= points[17:27, 0].min() - 5 and columns.max() <= points[17:27, 0].max() + 5


def test_hair_is_there_without_expression_and_moves_with_it():
    subject = head("short03")
    moved = subject.vertices(subject.coefficients(GESTURES["wide"]))[len(subject.neutral):] - drawn(subject)[len(subject.neutral):]
    assert 0.005 < moved.norm(dim=1).max() < 0.5


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_draws(name):
    picture = draw(DemoHead(**dataclasses.asdict(PRESETS[name]), texture_size=32), "open", size=16)
    assert torch.isfinite(picture.image).all() and 0.2 < picture.mask.mean() < 0.7


@pytest.mark.parametrize("identity", IDENTITIES)
def test_every_identity_wears_every_skin(identity):
    for number, skin in enumerate(SKINS):
        picture = draw(DemoHead(identity, skin, IRISES[number % len(IRISES)], texture_size=16), size=16)
        assert torch.isfinite(picture.image).all() and 0.2 < picture.mask.mean() < 0.7
    assert len(SKINS) == 12 and len(IRISES) == 9


@pytest.mark.parametrize("color", HAIR_COLORS)
@pytest.mark.parametrize("name", ["short01", "bob02", "eyebrow007"])
def test_tinted_hair_has_its_colour_whatever_the_texture(name, color):
    subject = DemoHead("neutral", "lps", "iris_brown", 256, **{"eyebrows" if "brow" in name else "hair": name}, hair_color=color)
    rgba = subject.cards[0].texture[0]
    average = rgba[:3].sum(dim=(1, 2)) / rgba[3].sum()
    assert torch.allclose(average, torch.tensor(HAIR_COLORS[color]), rtol=0.25)


@pytest.mark.parametrize(("options", "known"), [
    ({"hair": "mohawk"}, "short01"), ({"eyebrows": "eyebrow099"}, "eyebrow012"), ({"hair_color": "green"}, "auburn"),
    ({"identity": "nobody"}, "ict_1"), ({"hair": "eyebrow001"}, "bob02"),
])
def test_unknown_names_are_refused_with_the_known_ones(options, known):
    with pytest.raises(InputError, match=known):
        DemoHead(**{"identity": "neutral", "skin": "lps", "iris": "iris_brown", "texture_size": 16} | options)


def test_face_layers_hold_the_visible_face_and_those_behind():
    """Random triangles: the nearest layer of a pixel is the visible face, and a limit cuts by depth."""
    generator = torch.Generator().manual_seed(0)
    pixels, depth = torch.rand(2, 60, 2, generator=generator) * 24, 1.0 + torch.rand(2, 60, generator=generator)
    faces = torch.arange(60).reshape(20, 3)
    buffer = visible_faces(pixels, depth, faces, 24, 24, perspective=True)
    layers = face_layers(pixels, depth, faces, torch.full((2, 24, 24), torch.inf))
    nearest = torch.full((2 * 24 * 24,), torch.inf).scatter_reduce(0, layers.pixel, layers.depth, "amin")
    assert torch.equal(nearest.isfinite(), buffer.covered.reshape(-1))
    front = layers.depth == nearest[layers.pixel]
    assert torch.equal(buffer.face.reshape(-1)[layers.pixel[front]], layers.face[front])
    assert torch.equal(buffer.barycentrics.reshape(-1, 3)[layers.pixel[front]], layers.barycentrics[front])
    assert len(front) > front.sum()
    cut = face_layers(pixels, depth, faces, torch.full((2, 24, 24), 1.5))
    assert len(cut.pixel) == int((layers.depth < 1.5).sum())


def test_sensor_statistics_are_those_asked_for():
    grey = np.full((200, 200, 3), 0.5, dtype=np.float32)
    assert np.array_equal(Sensor().capture(grey, 0, 0), grey)
    noisy = 255.0 * (Sensor(noise=4.0).capture(grey, 3, 7) - grey)
    assert abs(noisy.std() - 4.0) < 0.1 and abs(noisy.mean()) < 0.1
    gains = np.stack([Sensor(color=0.05, seed=seed).gains(camera) for seed in range(20) for camera in range(16)])
    assert abs(gains.mean() - 1.0) < 0.01 and abs(gains.std() - 0.05) < 0.005
    assert np.allclose(Sensor(color=0.05).capture(grey, 2, 0), 0.5 * Sensor(color=0.05).gains(2))
    dot = np.zeros((41, 41, 3), dtype=np.float32)
    dot[20, 20] = 1.0
    blurred = Sensor(blur=2.0).capture(dot, 0, 0)[..., 0]
    spread = np.arange(41) - 20.0
    assert abs(blurred.sum() - 1.0) < 1e-3 and abs((blurred.sum(axis=0) * spread**2).sum() - 4.0) < 0.2


def test_sensor_is_fixed_by_seed_camera_and_shot():
    grey = np.full((8, 8, 3), 0.5, dtype=np.float32)
    first = Sensor(noise=2.0, color=0.1, seed=1)
    assert np.array_equal(first.capture(grey, 3, 7), Sensor(noise=2.0, color=0.1, seed=1).capture(grey, 3, 7))
    for other in (first.capture(grey, 3, 8), first.capture(grey, 4, 7), Sensor(noise=2.0, color=0.1, seed=2).capture(grey, 3, 7)):
        assert not np.array_equal(first.capture(grey, 3, 7), other)


def command(monkeypatch, *options: str) -> None:
    monkeypatch.setattr(sys, "argv", ["demo_subject", "--resolution", "16", "--frames", "5", "--driver-frames", "2", *options])
    demo_subject.main()


def test_a_sensor_touches_the_captured_pictures_only(monkeypatch, tmp_path):
    command(monkeypatch, "--output", str(tmp_path / "clean"))
    command(monkeypatch, "--output", str(tmp_path / "raw"), "--noise", "6", "--blur", "0.7", "--color", "0.05")
    folders = [CaptureFolder(tmp_path / name) for name in ("clean", "raw")]
    for path in (tmp_path / "clean").rglob("*.*"):
        other = tmp_path / "raw" / path.relative_to(tmp_path / "clean")
        captured = path.name.startswith("image_") and "expressionless" not in path.parts
        if path.name != "frames.json":
            assert (path.read_bytes() != other.read_bytes()) == captured, path
    assert all(cv2.imread(str(folder.expressionless_path("0000", HELD_OUT_CAMERA))).shape == (16, 16, 3) for folder in folders)


def test_several_subjects_from_one_command(monkeypatch, tmp_path, capsys):
    command(monkeypatch, "bald", "curly", "--root", str(tmp_path), "--iris", "iris_green")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bald", "curly"]
    made_with = json.loads((tmp_path / "curly" / "frames.json").read_text())["made_with"]
    assert (made_with["hair"], made_with["iris"]) == ("short01", "iris_green")
    assert len(CaptureFolder(tmp_path / "curly").frames()) == 5
    assert len(list((tmp_path / "curly" / "cameras" / "0000").iterdir())) == len(CAMERA_IDS)
    capsys.readouterr()
    command(monkeypatch, "bald", "curly", "--root", str(tmp_path), "--iris", "iris_green")
    assert capsys.readouterr().out.count("nothing to do") == 2


@pytest.mark.parametrize("options", [
    ("demo", "stranger"), ("--noise", "-1"), ("--hair", "mohawk"), ("--hair-color", "green"), ("--eyebrows", "bob02"), ("--device", "cuda:99"),
])
def test_impossible_options_leave_nothing(monkeypatch, tmp_path, options):
    with pytest.raises(InputError):
        command(monkeypatch, "--root", str(tmp_path), *options)
    assert list(tmp_path.iterdir()) == []


def test_one_output_cannot_hold_two_subjects(monkeypatch, tmp_path):
    with pytest.raises(InputError, match="--root"):
        command(monkeypatch, "demo", "bald", "--output", str(tmp_path / "both"))


def test_none_takes_the_hair_of_a_preset_away(monkeypatch, tmp_path):
    command(monkeypatch, "demo", "--output", str(tmp_path / "a"), "--hair", "none")
    command(monkeypatch, "bald", "--output", str(tmp_path / "b"))
    read = [sorted(path.read_bytes() for path in Path(tmp_path / name).rglob("*.jpg")) for name in "ab"]
    assert read[0] == read[1]
