"""Raw NeRSemble to a subject folder: the same from every layout, true to the capture, by time across cameras (killed: tests/faults)."""

import dataclasses
import json
import os
import shutil
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from lib.datasets.layout import CaptureFolder
from lib.errors import InputError
from preprocess import frame_writer, nersemble
from preprocess.demo_capture import Filming, film, truth_folder
from preprocess.nersemble import Extraction, extract
from preprocess.square_crop import PUBLISHED_CROP, SquareCrop, square_crop
from tests.preprocess.test_demo_capture import SHORT
from tests.tiny_capture import CAMERAS, FILMING, GREY, SIZE, extraction, grey_video, tiny_raw


@pytest.fixture(scope="session")
def raw(tmp_path_factory):
    return tiny_raw(tmp_path_factory)


@pytest.fixture(scope="session")
def subject(raw, tmp_path_factory):
    folder = tmp_path_factory.mktemp("extracted") / "subject"
    extract(extraction(raw, folder))
    return folder


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def rearranged(raw: Path, root: Path, layout: str) -> Path:
    """The second edition's files where the first one has them, spelled here by hand."""
    person = raw / "031"
    for path in person.rglob("*.*"):
        sequence = path.parent.name if path.parent.name != "images" else path.parents[1].name
        if path.name == "camera_params.json":
            target = root / "camera_params" / "31" / path.name
        elif path.name == "color_calibration.json":
            continue
        elif layout == "v1-zips":
            target = root / f"sequence_{sequence}_part-4" / "31" / sequence / path.name
        else:
            target = root / "31" / sequence / path.name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
    return root


@pytest.mark.parametrize("layout", ["v1-zips", "v1-subject"])
def test_every_layout_gives_the_same_subject(raw, subject, tmp_path, capsys, layout):
    extract(extraction(rearranged(raw, tmp_path / "raw", layout), tmp_path / "subject"))
    assert f"layout {layout}, participant 31," in capsys.readouterr().out
    one, other = content(subject), content(tmp_path / "subject")
    index = json.loads(other.pop("frames.json"))
    assert index["made_with"].pop("id") == "31" and index["frames"] == json.loads(one["frames.json"])["frames"]
    assert other == {name: data for name, data in one.items() if name != "frames.json"}


def test_cameras_frames_and_times_are_those_of_the_truth(raw, subject):
    made, truth = CaptureFolder(subject), CaptureFolder(truth_folder(raw))
    assert made.frames() == truth.frames()
    assert made.records(made.frames()) == truth.records(truth.frames())
    for frame in made.frames():
        assert made.files(frame).pictured_cameras() == set(CAMERAS)
        for camera in CAMERAS:
            for one, other in zip(made.read_camera(frame, camera), truth.read_camera(frame, camera), strict=True):
                assert torch.allclose(one, other, rtol=1e-6, atol=1e-5)


def test_the_head_is_where_the_truth_says_and_outside_is_the_background(raw, subject):
    made, truth = CaptureFolder(subject), CaptureFolder(truth_folder(raw))
    for frame in made.frames():
        for camera in CAMERAS:
            image, scene = (cv2.imread(str(path)).astype(float) for path in (made.image_path(frame, camera), made.background_path(camera)))
            matte = cv2.imread(str(truth.image_path(frame, camera, "mask")))[..., 0]
            far, inside = cv2.dilate(matte, np.ones((3, 3))) < 8, matte > 250
            assert np.abs(image - scene)[far].mean() < 4.0 < 20.0 < np.abs(image - scene)[inside].mean()


def test_visible_maps_tell_picture_from_padding(subject):
    made = CaptureFolder(subject)
    scale = FILMING.height / 3208 * SIZE / round(2600 * FILMING.height / 3208)
    for camera in CAMERAS:
        visible = cv2.imread(str(made.image_path("0000", camera, "visible")))[..., 0]
        image = cv2.imread(str(made.image_path("0000", camera)))
        assert visible.shape == (SIZE, SIZE) and set(np.unique(visible[:, [0, 1, SIZE // 2, -2, -1]])) == {0, 255}
        assert (visible > 127).mean() == pytest.approx(2200 * scale / SIZE, abs=1.5 / SIZE)
        assert image[:, 0].max() < 20 and image[visible == 255].mean() > 60  # JPEG rings at the edge
        assert cv2.imread(str(made.image_path("0000", camera, "visible", lowres=True))).shape == (256, 256, 3)
        assert cv2.imread(str(made.image_path("0000", camera, lowres=True))).shape == (256, 256, 3)


def test_the_published_crop_pads_157_and_a_half_columns():
    crop = square_crop(PUBLISHED_CROP, 2048, 2200, 3208)
    assert crop == SquareCrop(-200, 304, 2600, 2048)
    visible = crop.visible(2200, 3208).astype(float) / 255.0
    assert visible[1000].sum() == pytest.approx(2048 - 2 * 157.54, abs=0.5)
    assert visible[1000, 156] == 0 and visible[1000, 158] == 1 and visible[1000, 1889] == 1 and visible[1000, 1891] == 0


@pytest.mark.parametrize(("layout", "kind"), [("v1-zips", "affine"), ("v2", "cheung")])
def test_color_correction_takes_the_casts_away(tmp_path, layout, kind):
    pictures = {}
    for cast in (0.0, 0.15):
        filming = demo_like(layout, cast)
        film(filming, tmp_path / f"raw{cast}")
        for color in ("none", kind):
            folder = tmp_path / f"{cast}{color}"
            extract(extraction(tmp_path / f"raw{cast}", folder, color=color, every=1))
            made = CaptureFolder(folder)
            pictures[cast, color] = np.stack([cv2.imread(str(path)).astype(float) for camera in CAMERAS
                                              for path in (made.image_path("0000", camera), made.background_path(camera))])
    truth = pictures[0.0, "none"]
    lit = truth.max(axis=3) < 200  # what a camera clips no calibration brings back
    error = {key: np.abs(picture - truth)[lit].mean() for key, picture in pictures.items()}
    assert error[0.15, "none"] > 8.0
    assert error[0.15, kind] < 0.2 * error[0.15, "none"] and error[0.0, kind] < 1.0
    assert pictures[0.15, kind][:, :, 0].max() < 20  # the padding stays black


def demo_like(layout: str, cast: float) -> Filming:
    return dataclasses.replace(SHORT, layout=layout, sensor=dataclasses.replace(SHORT.sensor, color=cast))


def test_the_same_command_again_does_nothing_and_another_is_refused_by_option(raw, tmp_path, capsys):
    extract(extraction(raw, tmp_path / "subject"))
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    extract(extraction(raw, tmp_path / "subject"))
    assert "nothing to do" in capsys.readouterr().out
    for name, value in (("every", 1), ("size", 40), ("crop", (0, 0, 2200)), ("cameras", CAMERAS[:1]), ("sequences", ("EXP-*",)),
                        ("color", "cheung")):
        with pytest.raises(InputError, match=rf"subject: exists with --{name} "):
            extract(extraction(raw, tmp_path / "subject", **{name: value}))
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_what_was_begun_with_other_options_is_refused_too(raw, tmp_path, monkeypatch):
    monkeypatch.setattr(frame_writer.SubjectWriter, "finish", lambda writer: None)
    extract(extraction(raw, tmp_path / "subject"))
    with pytest.raises(InputError, match=r"subject\.partial: was begun with --every 2, now it is 1"):
        extract(extraction(raw, tmp_path / "subject", every=1))


def test_a_foreign_folder_stays_as_it_is(raw, tmp_path):
    (tmp_path / "subject").mkdir()
    (tmp_path / "subject" / "thesis.tex").write_text("years of work")
    with pytest.raises(InputError, match=r"subject: exists, but was not made by this command"):
        extract(extraction(raw, tmp_path / "subject"))
    assert (tmp_path / "subject" / "thesis.tex").read_text() == "years of work"


def test_too_small_a_disk_is_refused_with_both_numbers_before_anything_is_written(raw, tmp_path, monkeypatch):
    monkeypatch.setattr(frame_writer.shutil, "disk_usage", lambda place: shutil._ntuple_diskusage(10**9, 10**9 - 5000, 5000))
    with pytest.raises(InputError, match=r"about 0\.1\d+ MB are needed, but its disk has 0\.005 MB free"):
        extract(extraction(raw, tmp_path / "subject"))
    assert list(tmp_path.iterdir()) == []


def test_a_wrong_root_says_what_was_looked_for_and_found(raw, tmp_path):
    with pytest.raises(InputError) as error:
        extract(extraction(raw, tmp_path / "s", person="036"))
    text = str(error.value)
    for line in ("v1-zips: camera_params/036/camera_params.json not found; sequence_*_part-*/036/*/cam_*.mp4: 0 found",
                 "v1-subject: camera_params/036/camera_params.json not found; 036/*/cam_*.mp4: 0 found",
                 "v2: 036/calibration/camera_params.json not found; 036/sequences/*/images/cam_*.mp4: 0 found",
                 "It holds 031/", "participants here: 031"):
        assert line in text
    with pytest.raises(InputError, match=r"A folder above it has the calibration \(v2\)"):
        extract(extraction(raw / "031", tmp_path / "s"))
    with pytest.raises(InputError, match="not a folder"):
        extract(extraction(raw / "nowhere", tmp_path / "s"))


def test_unknown_sequences_and_cameras_are_refused_with_those_there(raw, tmp_path):
    with pytest.raises(InputError, match=r"--sequences: 'SEN-\*'.*EMO-1-shout\+laugh, EXP-2-eyes"):
        extract(extraction(raw, tmp_path / "s", sequences=("SEN-*",)))
    with pytest.raises(InputError, match=f"--cameras: .*'7'; it has {', '.join(CAMERAS)}"):
        extract(extraction(raw, tmp_path / "s", cameras=("7",)))
    with pytest.raises(InputError, match="--color affine: the layout v2 comes with 'cheung'"):
        extract(extraction(raw, tmp_path / "s", color="affine"))
    with pytest.raises(InputError, match="--crop"):
        extract(extraction(raw, tmp_path / "s", crop=(3000, 0, 100)))


# Videos of one grey a frame: which moment a picture shows can be read off.

GREY_CAMERAS, MOMENTS = ("1", "2", "3"), list(range(12))


def grey_raw(root: Path, moments: dict[tuple[str, str], list[int]], rate: int = 25) -> Path:
    """A second-edition capture; `moments` by sequence and camera."""
    calibration = root / "031" / "calibration" / "camera_params.json"
    calibration.parent.mkdir(parents=True)
    intrinsics = [[8000.0, 0.0, 1100.0], [0.0, 8000.0, 1604.0], [0.0, 0.0, 1.0]]
    cameras = sorted({camera for _, camera in moments})
    calibration.write_text(json.dumps({"world_2_cam": {camera: np.eye(4).tolist() for camera in cameras}, "intrinsics": intrinsics}))
    for (sequence, camera), numbers in moments.items():
        grey_video(root / "031" / "sequences" / sequence / "images" / f"cam_{camera}.mp4", numbers, rate)
    return root


def shown(subject: Path) -> dict[str, list[tuple[str, int, int]]]:
    """By camera: sequence, moment by frames.json, moment by the picture."""
    folder = CaptureFolder(subject)
    rows: dict[str, list[tuple[str, int, int]]] = {}
    for record in folder.records(folder.frames()):
        for camera in sorted(folder.files(record.frame).pictured_cameras()):
            level = cv2.imread(str(folder.image_path(record.frame, camera)))[SIZE // 2, SIZE // 2].mean()
            rows.setdefault(camera, []).append((record.sequence, round(record.time * 25), round((level - 20) / GREY)))
    return rows


@pytest.mark.parametrize("every", [1, 2, 3])
def test_a_camera_that_drops_frames_or_ends_early_shifts_no_other(tmp_path, capsys, every):
    gaps = {("A", "1"): MOMENTS, ("A", "2"): [0, 1, 2, 4, 5, 6, 8, 9, 10, 11], ("A", "3"): MOMENTS[:10]}
    whole = {("B", camera): MOMENTS for camera in GREY_CAMERAS}
    extract(extraction(grey_raw(tmp_path / "raw", gaps | whole), tmp_path / "subject", every=every))
    both = [moment for moment in MOMENTS[::every] if moment not in (3, 7, 10, 11)]
    expected = [("A", moment, moment) for moment in both] + [("B", moment, moment) for moment in MOMENTS[::every]]
    assert shown(tmp_path / "subject") == dict.fromkeys(GREY_CAMERAS, expected)
    said = capsys.readouterr().out
    lost = len(MOMENTS[::every]) - len(both)
    assert (f"A: {lost} of {len(MOMENTS[::every])} frames left out" in said) == (lost > 0) and "B:" not in said


def test_a_late_start_shifts_nothing(tmp_path):
    extract(extraction(grey_raw(tmp_path / "raw", {("A", "1"): MOMENTS, ("A", "2"): MOMENTS[4:]}), tmp_path / "subject", every=1))
    assert shown(tmp_path / "subject") == dict.fromkeys(("1", "2"), [("A", moment, moment) for moment in MOMENTS[4:]])


def test_a_sequence_without_one_video_is_left_out_and_said(tmp_path, capsys):
    moments = {("A", "1"): MOMENTS, ("A", "2"): MOMENTS, ("B", "1"): MOMENTS}
    raw_root = grey_raw(tmp_path / "raw", moments)
    extract(extraction(raw_root, tmp_path / "subject", every=6))
    assert {row[0] for row in shown(tmp_path / "subject")["1"]} == {"A"}
    assert "B: left out, as there is no video of 2" in capsys.readouterr().out
    extract(extraction(raw_root, tmp_path / "one", every=6, cameras=("1",)))
    assert {row[0] for row in shown(tmp_path / "one")["1"]} == {"A", "B"}
    with pytest.raises(InputError, match="no frame that all of these cameras have"):
        extract(extraction(raw_root, tmp_path / "none", sequences=("B",)))


def test_the_published_sequences_are_the_default(tmp_path):
    names = ["EXP-1-head", "EXP-7-tongue-1", "GLASSES", "FREE", "HAIR", "SEN-10-x", "SEN-2-y"]
    raw_root = grey_raw(tmp_path / "raw", {(name, "1"): [0] for name in names})
    extract(extraction(raw_root, tmp_path / "subject"))
    assert [row[0] for row in shown(tmp_path / "subject")["1"]] == ["EXP-1-head", "HAIR", "SEN-2-y", "SEN-10-x"]
    extract(extraction(raw_root, tmp_path / "named", sequences=("*tongue*", "FREE")))
    assert [row[0] for row in shown(tmp_path / "named")["1"]] == ["EXP-7-tongue-1", "FREE"]


def test_other_frame_rates_are_refused_by_file(tmp_path):
    raw_root = grey_raw(tmp_path / "raw", {("A", "1"): MOMENTS, ("A", "2"): MOMENTS, ("A", "3"): MOMENTS})
    grey_video(raw_root / "031" / "sequences" / "A" / "images" / "cam_3.mp4", MOMENTS, rate=30)
    with pytest.raises(InputError, match=r"cam_3\.mp4: 30\.00 frames per second, while the other cameras have 25\.00"):
        extract(extraction(raw_root, tmp_path / "subject"))


@pytest.mark.parametrize("keep", [0, 40, 0.5])
def test_a_broken_video_is_refused_by_name(tmp_path, keep):
    raw_root = grey_raw(tmp_path / "raw", {("A", "1"): MOMENTS, ("A", "2"): MOMENTS})
    path = raw_root / "031" / "sequences" / "A" / "images" / "cam_2.mp4"
    data = path.read_bytes()
    path.write_bytes(data[:int(len(data) * keep) if keep == 0.5 else keep])
    with pytest.raises(InputError, match=r"cam_2\.mp4"):
        extract(extraction(raw_root, tmp_path / "subject"))
    assert not (tmp_path / "subject").exists()


@pytest.mark.parametrize(("text", "said"), [("{", "not a complete JSON file"), ('{"world_2_cam": {}, "intrinsics": []}', "empty"),
                                            ('{"world_2_cam": {"1": [[1, 2], [3, 4]]}, "intrinsics": [[1]]}', "camera '1': expected a finite 4x4"),
                                            ('{"world_2_cam": {"1": [[2,0,0,0],[0,1,0,0],[0,0,1,0],[0,0,0,1]]}, '
                                             '"intrinsics": [[1,0,0],[0,1,0],[0,0,1]]}', "not a rotation")])
def test_a_broken_calibration_is_refused_by_name(tmp_path, text, said):
    raw_root = grey_raw(tmp_path / "raw", {("A", "1"): [0]})
    path = raw_root / "031" / "calibration" / "camera_params.json"
    path.write_text(text)
    with pytest.raises(InputError, match=rf"camera_params\.json.*{said}"):
        extract(extraction(raw_root, tmp_path / "subject"))


def test_command_line_reads_what_the_help_promises(raw, tmp_path, monkeypatch):
    taken: list[Extraction] = []
    monkeypatch.setattr(nersemble, "extract", taken.append)
    words = ["nersemble", str(raw), "--id", "31", "--output", "out"]
    monkeypatch.setattr(sys, "argv", [*words, "--sequences", "EXP-*", "EMO-*", "--crop", "-10", "0", "9"])
    nersemble.main()
    assert taken == [Extraction(raw, "31", Path("out"), ("EXP-*", "EMO-*"), crop=(-10, 0, 9), workers=os.cpu_count())]
    assert taken[0].every == 3 and taken[0].size == 2048
    monkeypatch.setattr(sys, "argv", [*words, "--every", "0"])
    with pytest.raises(InputError, match="--every"):
        nersemble.main()
