"""Landmarks from files and from detectors. Stand-ins take the place of MediaPipe and face-alignment, which CI does not have."""

import json
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from lib.datasets.head_capture import HeadCapture, HeadCaptureConfig, Picture
from lib.datasets.layout import CaptureFolder
from lib.errors import InputError
from preprocess import landmark_detectors, landmarks
from preprocess.landmark_sheet import LARGEST_STEP, take_findings
from preprocess.mediapipe_worker import HALF_TRUSTED, MESH_POINTS, MIRRORED, agreed
from tests.tiny import CAMERAS, SIZE, copy_subject, dataset_dict

USED = CAMERAS[1:3]
PICTURES = 14  # two cameras, seven frames
# Paths in, landmarks out: a ring of points in the middle of the picture. CRASH_AT: how many answers before it dies.
WORKER = """
import json, math, os, sys
ring = [[0.5 + 0.2 * math.cos(k), 0.5 + 0.2 * math.sin(k), 0.75] for k in range(68)]
print(json.dumps({"detector": "NAME"}), flush=True)
for number, line in enumerate(sys.stdin):
    if number == CRASH_AT:
        print("no more paper", file=sys.stderr)
        sys.exit(9)
    with open(LOG, "a") as log:
        log.write(line)
    print(json.dumps({"points": None if "FACELESS" in line else POINTS}), flush=True)
"""


@pytest.fixture
def copy(subject, tmp_path):
    return copy_subject(subject, tmp_path / "subject", cameras=USED)


@pytest.fixture
def call(monkeypatch, tmp_path, capsys):
    """`python -m preprocess.landmarks ...` in this process; returns what it printed."""
    def run(*words: object) -> str:
        monkeypatch.setattr(sys, "argv", ["landmarks", *map(str, words), "--output", str(tmp_path / "sheet.png")])
        capsys.readouterr()
        landmarks.main()
        return capsys.readouterr().out
    return run


@pytest.fixture
def worker(monkeypatch, tmp_path):
    """Makes a stand-in for mediapipe_worker.py; `asked` are the pictures that it was asked for."""
    log = tmp_path / "asked.txt"

    def make(name: str = "stand-in 1", crash_at: int = -1, faceless: str = "no such picture", points: str = "ring") -> list[str]:
        script = tmp_path / "worker.py"
        text = WORKER.replace("NAME", name).replace("CRASH_AT", str(crash_at)).replace("FACELESS", faceless).replace("POINTS", points)
        script.write_text(text.replace("LOG", repr(str(log))))
        monkeypatch.setattr(landmark_detectors, "WORKER", script)
        asked = log.read_text().splitlines() if log.exists() else []
        log.unlink(missing_ok=True)
        return asked
    return make


def refusal(call, *words: object) -> str:
    with pytest.raises(InputError) as error:
        call(*words)
    return str(error.value)


def files(subject: Path) -> dict[str, bytes]:
    return {str(path.relative_to(subject)): path.read_bytes() for path in (subject / "landmarks").rglob("*") if path.is_file()}


def truth(subject: Path) -> dict[Picture, np.ndarray]:
    """Exact landmarks of all pictures, (68,3); the outer mouth corners are the inner ones."""
    capture = HeadCapture(HeadCaptureConfig(**dataset_dict(subject, camera_ids=list(USED), held_out_cameras=[])))
    rows = [*range(48), 58, *range(48, 53), 62, *range(53, 66)]
    result = {}
    for picture in (Picture(frame, camera) for frame in capture.frames for camera in USED):
        points = capture.camera(picture.frame, [picture.camera]).project(capture.control_points[picture.frame][None, :66])[0, rows]
        result[picture] = np.concatenate([points.numpy(), np.ones((68, 1))], axis=1).astype(np.float32)
    return result


def write_published(folder: Path, points: dict[Picture, np.ndarray]) -> Path:
    for picture, array in points.items():
        path = folder / "landmarks" / picture.frame / f"lmk_{picture.camera}.npy"
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, array)
    return folder


def write_vhap(folder: Path, points: dict[Picture, np.ndarray], name: str = "STAR", prefix: str = "") -> Path:
    (folder / "landmark2d" / name).mkdir(parents=True)
    for camera in USED:
        rows = np.stack([array for picture, array in sorted(points.items(), key=lambda item: item[0].frame) if picture.camera == camera])
        boxes = np.zeros((len(rows), 5))
        np.savez(folder / "landmark2d" / name / f"{prefix}{camera}.npz", face_landmark_2d=rows / [SIZE, SIZE, 1.0], bounding_box=boxes)
    return folder


# --- the 68 points on MediaPipe's mesh ---

def canonical() -> np.ndarray:
    """The 68 points on the canonical face: x to the person's left, y up, z forward; cm."""
    rows = np.loadtxt(Path(__file__).with_name("mediapipe_canonical.csv"), delimiter=",")
    vertices = {int(row[0]): row[1:] for row in rows}
    return np.stack([np.mean([vertices[index] for index in indices], axis=0) for indices in MESH_POINTS])


def test_the_map_is_symmetric_on_the_canonical_face():
    points = canonical()
    assert np.abs(points[list(MIRRORED)] * [-1.0, 1.0, 1.0] - points).max() < 1e-6
    assert [MIRRORED[index] for index in MIRRORED] == list(range(68))


def test_the_map_follows_the_contours_of_the_68_points():
    x, y, z = canonical().T
    assert (np.diff(x[0:17]) > -0.1).all() and x[0] < -7 and y[0:17].argmin() == 8  # jaw: from the right ear over the chin to the left one
    assert (np.diff(x[17:27]) > 0).all() and y[17:27].min() > y[36:48].max()  # brows: above the eyes
    assert (np.diff(y[27:31]) < 0).all() and z[27:36].argmax() == 3 and (np.diff(x[31:36]) > 0).all()  # nose: down to the tip, then across
    for start in (36, 42):  # eyes: corner, upper lid, corner, lower lid, against the clock in the picture
        assert (np.diff(x[start:start + 4]) > 0).all() and x[start + 4] > x[start + 5] and y[start + 1:start + 3].min() > y[start + 4:start + 6].max()
    assert (np.diff(x[48:55]) > 0).all() and (np.diff(x[54:60]) < 0).all() and y[50:53].min() > y[56:59].max()  # outer lips
    assert (np.diff(x[60:65]) > 0).all() and (np.diff(x[64:68]) < 0).all()  # inner lips, inside the outer ones
    assert x[48] <= x[60] and x[54] >= x[64] and y[51] > y[62] > y[66] > y[57]


def test_points_of_both_looks_are_averaged_and_their_distance_is_the_score():
    seen = canonical()[:, :2] / 40.0 + 0.5
    mirrored = np.stack([1.0 - seen[:, 0], seen[:, 1]], axis=1)[list(MIRRORED)]
    same = np.array(agreed(seen, mirrored))
    np.testing.assert_allclose(same, np.concatenate([seen, np.ones((68, 1))], axis=1), atol=1e-9)
    moved = mirrored.copy()
    size = float(np.ptp(seen, axis=0).max())
    moved[MIRRORED[30], 1] += HALF_TRUSTED * size  # the tip of the nose, seen lower in the mirror
    other = np.array(agreed(seen, moved))
    assert other[30, 2] == pytest.approx(0.5, abs=1e-6) and other[30, 1] == pytest.approx(seen[30, 1] + HALF_TRUSTED * size / 2)
    assert np.delete(other, 30, axis=0)[:, 2].min() > 0.999


def test_nothing_is_found_where_the_two_looks_do_not_agree():
    seen = canonical()[:, :2] / 40.0 + 0.5
    mirrored = np.stack([1.0 - seen[:, 0], seen[:, 1]], axis=1)[list(MIRRORED)]
    size = float(np.ptp(seen, axis=0).max())
    assert agreed(seen, mirrored + [0.0, 0.8 * HALF_TRUSTED * size]) is not None
    assert agreed(seen, mirrored + [0.0, HALF_TRUSTED * size]) is None
    assert agreed(None, mirrored) is None and agreed(seen, None) is None


# --- detectors ---

def test_worker_finds_all_and_the_reader_of_subjects_understands_it(copy, call, worker, tmp_path):
    worker(faceless="0003/image_" + USED[0])
    out = call(copy, "--python", sys.executable)
    folder = CaptureFolder(copy)
    assert json.loads(folder.detector_path().read_text()) == {"size": SIZE, "detector": "stand-in 1"}
    stored = np.load(folder.detections_path("0002", USED[1]))
    assert stored.shape == (68, 3) and stored.dtype == np.float32
    np.testing.assert_allclose(stored[0], [0.7 * SIZE, 0.5 * SIZE, 0.75], atol=1e-4)
    assert not np.load(folder.detections_path("0003", USED[0])).any() and folder.read_detections("0003", USED[0]) is None
    assert f"{USED[0]}        6 of 7         0.75" in out and f"{USED[1]}        7 of 7         0.75" in out
    assert cv2.imread(str(tmp_path / "sheet.png")).shape[1] == 2 * 384


def test_second_call_does_nothing_and_a_stopped_one_goes_on(copy, call, worker):
    worker(crash_at=5)
    message = refusal(call, copy, "--python", sys.executable)
    assert "exit code 9" in message and "no more paper" in message and str(copy / "images" / "0002" / f"image_{USED[1]}.jpg") in message
    before = files(copy)
    assert len(before) == 6  # five, and detector.json
    worker()
    call(copy, "--python", sys.executable)
    assert len(worker(crash_at=0)) == PICTURES - 5
    assert before.items() <= files(copy).items() and len(files(copy)) == PICTURES + 1
    assert "nothing to do" in call(copy, "--python", sys.executable)


def test_two_detectors_are_not_mixed_unless_all_is_found_again(copy, call, worker):
    worker(crash_at=5)
    refusal(call, copy, "--python", sys.executable)
    worker(name="stand-in 2")
    before = files(copy)
    message = refusal(call, copy, "--python", sys.executable)
    assert "stand-in 1" in message and "stand-in 2" in message and "--overwrite" in message and files(copy) == before
    call(copy, "--python", sys.executable, "--overwrite")
    assert len(worker()) == PICTURES and "stand-in 2" in CaptureFolder(copy).detector_path().read_text()


def test_overwriting_keeps_the_old_ones_where_the_new_detector_does_not_start(copy, call, worker, tmp_path):
    worker()
    call(copy, "--python", sys.executable)
    before = files(copy)
    (tmp_path / "worker.py").write_text("raise ImportError('No module named mediapipe')")
    assert "No module named mediapipe" in refusal(call, copy, "--python", sys.executable, "--overwrite")
    assert "cannot be run" in refusal(call, copy, "--python", tmp_path / "absent", "--overwrite")
    assert files(copy) == before


def test_a_picture_that_cannot_be_used_is_named_and_the_others_are_found(copy, call, worker):
    worker()
    cut = copy / "images" / "0001" / f"image_{USED[0]}.jpg"
    cut.write_bytes(cut.read_bytes()[:-40])
    wide = copy / "images" / "0004" / f"image_{USED[0]}.jpg"
    cv2.imwrite(str(wide), np.zeros((SIZE, SIZE + 8, 3), np.uint8))
    message = refusal(call, copy, "--python", sys.executable)
    assert "2 problems" in message and f"{cut}: the image is cut off" in message and f"{wide}: expected a square picture" in message
    assert len(files(copy)) == PICTURES - 2 + 1


@pytest.mark.parametrize(("points", "expected"), [("ring[1:]", "(67, 3)"), ("[[float('nan')] * 3] * 68", "not finite"), ("3", "()")])
def test_an_answer_that_makes_no_sense_is_refused(copy, call, worker, points, expected):
    worker(points=points)
    assert expected in refusal(call, copy, "--python", sys.executable)
    assert files(copy).keys() <= {"landmarks/detector.json"}


def test_no_face_anywhere_is_told(copy, call, worker):
    worker(points="None")
    assert "no face was found in any picture" in refusal(call, copy, "--python", sys.executable)


def test_without_a_way_all_three_are_named(copy, call):
    message = refusal(call, copy)
    assert f"{PICTURES} of {PICTURES} pictures lack landmarks" in message
    assert "--from FOLDER" in message and "pip install face-alignment" in message and "mediapipe==" in message and "--python" in message
    assert "not installed here" in refusal(call, copy, "--detector", "face_alignment")
    assert "--python" in refusal(call, copy, "--detector", "mediapipe")


def test_face_alignment_is_used_where_it_is_installed(copy, call, monkeypatch, tmp_path):
    package = tmp_path / "site" / "face_alignment"
    (tmp_path / "site" / "face_alignment-9.9.dist-info").mkdir(parents=True)
    (tmp_path / "site" / "face_alignment-9.9.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: face-alignment\nVersion: 9.9\n")
    package.mkdir()
    (package / "__init__.py").write_text(
        "import numpy as np\n"
        "class LandmarksType:\n    TWO_D = 'two'\n"
        "class FaceAlignment:\n"
        "    def __init__(self, kind, device, flip_input):\n        assert kind == 'two' and device == 'cpu'\n"
        "    def get_landmarks_from_image(self, image, return_bboxes, return_landmark_score):\n"
        "        assert image.shape[2] == 3 and image.dtype == np.uint8\n"
        "        small, large = np.full((68, 2), 3.0), np.full((68, 2), 30.0)\n"
        "        return [small, large], [np.full((68, 1), 0.1), np.full((68, 1), 1.2)], [np.array([0, 0, 4, 4, .9]), np.array([0, 0, 40, 40, .8])]\n")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    out = call(copy, "--device", "cpu")
    sys.modules.pop("face_alignment")
    assert "weights" in out and "face-alignment 9.9" in CaptureFolder(copy).detector_path().read_text()
    np.testing.assert_array_equal(np.load(CaptureFolder(copy).detections_path("0000", USED[0])), np.full((68, 3), [30.0, 30.0, 1.0], np.float32))


# --- files that exist ---

def test_published_files_are_taken_over_and_what_is_missing_is_told(copy, call, tmp_path):
    points = truth(copy)
    lacking = points.pop(Picture("0005", USED[1]))
    source = write_published(tmp_path / "source", points)
    assert lacking.any()
    (source / "landmarks" / "detector.json").write_text('{"size": 64, "detector": "somebody"}')
    np.save(source / "landmarks" / "0000" / "lmk_other.npy", points[Picture("0000", USED[0])])
    out = call(copy, "--from", source)
    for picture, array in points.items():
        np.testing.assert_array_equal(np.load(CaptureFolder(copy).detections_path(picture.frame, picture.camera)), array)
    assert f"MISSING for 1 of {PICTURES} pictures: frame 0005 camera {USED[1]}" in out and "lmk_other.npy" in out
    assert json.loads(CaptureFolder(copy).detector_path().read_text()) == {"size": 64, "detector": "somebody"}
    call(copy, "--from", source)  # the same again changes nothing
    damaged = sorted((copy / "landmarks").rglob("lmk_*.npy"))[1]
    damaged.write_bytes(damaged.read_bytes()[:-100])
    assert str(damaged) in refusal(call, copy, "--from", source)
    call(copy, "--from", source, "--overwrite")


def test_vhap_files_become_pixels(copy, call, tmp_path):
    points = truth(copy)
    points[Picture("0001", USED[0])][:] = -SIZE  # -1 of the size: nothing found
    source = write_vhap(tmp_path / "source", points, "face-alignment", prefix="cam_")
    out = call(copy, "--from", source)
    folder = CaptureFolder(copy)
    assert not np.load(folder.detections_path("0001", USED[0])).any()
    np.testing.assert_allclose(np.load(folder.detections_path("0004", USED[1])), points[Picture("0004", USED[1])], atol=1e-4)
    assert json.loads(folder.detector_path().read_text()) == {"size": SIZE, "detector": "VHAP face-alignment"}
    assert f"{USED[0]}        6 of 7" in out


def test_vhap_rows_are_those_of_the_sequence_whose_folder_it_is(copy, call, tmp_path):
    points = truth(copy)
    records = CaptureFolder(copy).records(CaptureFolder(copy).frames())
    name = records[-1].sequence
    own = [record.frame for record in records if record.sequence == name]
    source = write_vhap(tmp_path / name, {picture: array for picture, array in points.items() if picture.frame in own})
    out = call(copy, "--from", source)
    assert f"sequence {name}" in out and f"MISSING for {PICTURES - 2 * len(own)} of" in out
    np.testing.assert_allclose(np.load(CaptureFolder(copy).detections_path(own[0], USED[0])), points[Picture(own[0], USED[0])], atol=1e-4)


def test_auto_takes_landmark2d_of_the_subject(copy, call):
    write_vhap(copy, truth(copy))
    assert "VHAP STAR" in call(copy)


def broken(points: dict[Picture, np.ndarray], kind: str) -> tuple[dict[Picture, np.ndarray], str]:
    picture = Picture("0002", USED[0])
    array = points[picture].copy()
    if kind == "nan":
        array[7, 1] = np.nan
        expected = "1 of 204 values are NaN"
    elif kind == "shape":
        array, expected = array[:51], "expected shape (68, 3), found (51, 3)"
    elif kind == "text":
        array, expected = array.astype(str), "expected numbers"
    else:
        array, expected = array * 32.0, "far outside a picture of 64 pixels"
    return points | {picture: array}, expected


@pytest.mark.parametrize("kind", ["nan", "shape", "text", "far"])
def test_a_broken_file_is_named_and_nothing_is_written(copy, call, tmp_path, kind):
    points, expected = broken(truth(copy), kind)
    source = write_published(tmp_path / "source", points)
    (source / "landmarks" / "detector.json").write_text('{"size": 64, "detector": "somebody"}')
    message = refusal(call, copy, "--from", source)
    assert expected in message and f"0002/lmk_{USED[0]}.npy" in message and not (copy / "landmarks").exists()


def test_vhap_rows_of_another_number_are_refused(copy, call, tmp_path):
    points = {picture: array for picture, array in truth(copy).items() if picture.frame != "0006"}
    message = refusal(call, copy, "--from", write_vhap(tmp_path / "source", points))
    assert "expected shape (7, 68, 3) (the subject has 7 frames), found (6, 68, 3)" in message and not (copy / "landmarks").exists()


def test_landmarks_of_other_pictures_do_not_lie_on_the_heads(copy, call, tmp_path):
    points = {picture: array * np.float32([0.2, 0.2, 1.0]) for picture, array in truth(copy).items()}  # found before cropping, as it were
    message = refusal(call, copy, "--from", write_vhap(tmp_path / "source", points))
    assert "fall on the mattes" in message and not (copy / "landmarks").exists()


def test_landmarks_that_are_there_are_not_replaced_silently(copy, call, worker, tmp_path):
    worker()
    call(copy, "--python", sys.executable)
    before = files(copy)
    source = write_published(tmp_path / "source", truth(copy))
    assert "--overwrite replaces them" in refusal(call, copy, "--from", source) and files(copy) == before
    call(copy, "--from", source, "--overwrite")
    assert files(copy) != before


def test_a_folder_without_landmarks_or_of_others_is_refused(copy, call, tmp_path):
    assert "found neither" in refusal(call, copy, "--from", tmp_path)
    points = {Picture(picture.frame, "other"): array for picture, array in truth(copy).items()}
    assert "none of its files belongs" in refusal(call, copy, "--from", write_published(tmp_path / "source", points))


# --- report ---

def test_a_jump_is_flagged_and_calm_frames_are_not(copy):
    points = truth(copy)
    folder = CaptureFolder(copy)
    pictures = list(points)
    write_published(copy, points)
    assert take_findings(folder, pictures).jumps == ()
    # 0000 and 0001 are of one sequence
    assert len({record.sequence for record in folder.records(folder.frames())[:2]}) == 1
    picture = Picture("0001", USED[0])
    extent = float(np.ptp(points[picture][:, :2], axis=0).max())
    write_published(copy, {picture: points[picture] + np.float32([(LARGEST_STEP + 0.2) * extent, 0.0, 0.0])})
    found = take_findings(folder, pictures).jumps
    assert [(jump.camera, jump.before, jump.after) for jump in found] == [(USED[0], "0000", "0001")]
    assert "look at jumps" in "\n".join(take_findings(folder, pictures).lines())
