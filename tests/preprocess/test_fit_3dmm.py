"""Fitting: what is fitted to clean, disturbed, missing and single views; equations against numbers; files whole or as they were."""

import dataclasses
import json
import shutil
import sys

import cv2
import numpy as np
import pytest
import torch

from benchmarks.fit import CONDITIONS, Condition, compare, detect, measure, perform, timed_fit
from lib.datasets.head_capture import HeadCapture, HeadCaptureConfig
from lib.datasets.images import write_image
from lib.datasets.layout import CaptureFolder
from lib.errors import InputError
from lib.face_models.ict import read_ict
from lib.face_models.library import read_model
from lib.face_models.offsets import smooth_offsets
from lib.geometry.camera import Camera
from lib.geometry.head_pose import HeadPose
from preprocess import fit_3dmm
from preprocess.demo_head import DemoHead
from preprocess.demo_subject import rig
from preprocess.fit_config import FitConfig
from preprocess.fit_head import fit_head
from preprocess.fit_observations import SIZE, pull, read_observations, visibility
from preprocess.fit_outline import distance_field, read_mattes, sample
from preprocess.fit_report import landmarks_in_world, make_report
from preprocess.fit_solver import Estimate, Problem
from preprocess.fit_start import similarity, triangulate
from tests.face_models import lookalikes
from tests.tiny import CAMERAS, FRAMES, copy_subject, dataset_dict
from tests.tiny import SIZE as TINY_SIZE

FIVE = (1, 4, 7, 10, 14)


@pytest.fixture(scope="module")
def model():
    return read_ict()


@pytest.fixture(scope="module")
def truth():
    return perform("ict_1", 5)


@pytest.fixture
def subject(made, tmp_path):
    """The tiny subject with perfect detections and without the truth."""
    root = tmp_path / "demo"
    shutil.copytree(made.subject, root, ignore=shutil.ignore_patterns("params", "expressionless", "driver"))
    was, folder = CaptureFolder(made.subject), CaptureFolder(root)
    for frame in was.frames():
        landmarks = was.read_control_points(frame).points[:66].numpy()
        landmarks = np.insert(landmarks, [48, 53], landmarks[48], axis=0)
        for camera in CAMERAS:
            extrinsic, intrinsic = (value.numpy() for value in was.read_camera(frame, camera))
            pixels = (landmarks @ extrinsic[:, :3].T + extrinsic[:, 3]) @ intrinsic.T
            path = folder.detections_path(frame, camera)
            path.parent.mkdir(parents=True, exist_ok=True)
            np.save(path, np.concatenate([pixels[:, :2] / pixels[:, 2:], np.ones((68, 1))], axis=1).astype(np.float32))
    return root


def command(monkeypatch, *words):
    monkeypatch.setattr(sys, "argv", ["fit_3dmm", *map(str, words)])
    fit_3dmm.main()


def test_files_of_two_fits_are_not_trained_on(made, tmp_path):
    subject = copy_subject(made.subject, tmp_path / "subject")
    (subject / "params" / "fit.json").write_text(json.dumps({"complete": True}))
    config = HeadCaptureConfig.model_validate(dataset_dict(subject))
    HeadCapture(config)
    (subject / "params" / "fit.json").write_text(json.dumps({"complete": False}))
    with pytest.raises(InputError, match=rf"{subject}/params/fit\.json: .* frames of two fits are mixed; run python -m preprocess.fit_3dmm"):
        HeadCapture(config)


def test_a_subject_gets_the_parameters_it_was_made_with(made, subject, tmp_path, monkeypatch, capsys):
    command(monkeypatch, subject, "--results", tmp_path / "results", "least_noise=0.5")
    was, now = CaptureFolder(made.subject), CaptureFolder(subject)
    for frame in was.frames():
        apart = (now.read_control_points(frame).points[:66] - was.read_control_points(frame).points[:66]).norm(dim=1)
        assert float(apart.mean()) < 0.0005  # metres
        params = now.read_params(frame)
        assert len(params.expression) == 55 and params.scale_shape == (1,)
        assert np.load(now.vertices_path(frame)).shape == (9409, 3)
        assert np.load(now.params_path(frame))["id_coeff"].shape[0] == 1
    assert json.loads((subject / "params" / "fit.json").read_text())["complete"] is True
    assert not list(subject.rglob("*.fitted")) and not list(subject.rglob("*.partial"))
    report = json.loads((tmp_path / "results" / "demo" / "report.json").read_text())
    assert report["overall"]["median_px"] < 1.0 and report["outliers"] == {"frames": [], "cameras": [], "frames_without_detections": []}
    assert set(report["cameras"]) == {path.stem.removeprefix("camera_") for path in (subject / "cameras" / was.frames()[0]).iterdir()}
    assert len(report["frames"]) == FRAMES and report["made_with"]["model"] == "ict"
    assert cv2.imread(str(tmp_path / "results" / "demo" / "overlays.png")).std() > 10
    assert "scale 0.1" in capsys.readouterr().out


def test_parameters_place_the_vertices(subject, tmp_path, monkeypatch, model):
    """What is written of a frame belongs together: without an offset, coefficients and pose give vertices and landmarks."""
    command(monkeypatch, subject, "--results", tmp_path / "results", "offset=0")
    folder = CaptureFolder(subject)
    frame = folder.frames()[2]
    params, identity = folder.read_params(frame), torch.from_numpy(np.load(folder.params_path(frame))["id_coeff"][0])
    world = HeadPose(params.pose, params.scale).to_world(model.vertices(identity, params.expression))
    np.testing.assert_allclose(np.load(folder.vertices_path(frame)), world[:9409], atol=1e-5)
    np.testing.assert_allclose(np.load(folder.landmarks_path(frame)), model.landmarks(world), atol=1e-5)


def test_a_failing_disk_leaves_the_old_parameters(made, subject, tmp_path, monkeypatch):
    shutil.copytree(made.subject / "params", subject / "params")
    before = {path: path.read_bytes() for path in (subject / "params").rglob("*.np*")}
    write, calls = fit_3dmm.write_whole, []

    def full(path, data):
        calls.append(path)
        if len(calls) == 8:
            raise InputError(f"{path}: cannot be written")
        write(path, data)

    monkeypatch.setattr(fit_3dmm, "write_whole", full)
    with pytest.raises(InputError, match="cannot be written"):
        command(monkeypatch, subject, "--results", tmp_path / "results")
    assert {path: path.read_bytes() for path in (subject / "params").rglob("*") if path.is_file()} == before


def test_missing_input_is_told(made, subject, tmp_path, monkeypatch):
    with pytest.raises(InputError, match="unknown key; did you mean 'offset'"):
        command(monkeypatch, subject, "offst=1")
    with pytest.raises(InputError, match="landmarks: no frame has 2D landmarks"):
        shutil.copytree(made.subject, tmp_path / "bare")
        command(monkeypatch, tmp_path / "bare")
    frame = CaptureFolder(subject).frames()[0]
    np.save(CaptureFolder(subject).detections_path(frame, CAMERAS[0]), np.full((68, 3), np.nan, np.float32))
    with pytest.raises(InputError, match="NaN"):
        command(monkeypatch, subject)
    shutil.rmtree(subject / "cameras")
    with pytest.raises(InputError, match="cameras: no frame has a camera_"):
        command(monkeypatch, subject)


def test_pictures_that_are_not_square_are_told(subject, monkeypatch):
    for path in (subject / "images").rglob("image_*.jpg"):
        cv2.imwrite(str(path), np.zeros((TINY_SIZE, TINY_SIZE // 2, 3), np.uint8))
    with pytest.raises(InputError, match="expected a square picture, found 32 x 64"):
        command(monkeypatch, subject)


def test_landmarks_of_smaller_pictures_count_in_their_size(subject):
    folder = CaptureFolder(subject)
    frames = folder.frames()
    (subject / "landmarks" / "detector.json").write_text(json.dumps({"size": TINY_SIZE, "detector": "a"}))
    seen = read_observations(folder, frames, list(CAMERAS), TINY_SIZE)
    (subject / "landmarks" / "detector.json").write_text(json.dumps({"size": 2 * TINY_SIZE, "detector": "a"}))
    halved = read_observations(folder, frames, list(CAMERAS), TINY_SIZE)
    torch.testing.assert_close(halved.pixels, seen.pixels / 2.0)
    torch.testing.assert_close(halved.camera.intrinsics, seen.camera.intrinsics)
    assert float(seen.camera.intrinsics[0, 0, 0, 0]) > 3.0 * SIZE and bool((seen.scores == 1.0).all())


def test_noise_and_outliers_are_seen_through(model, truth):
    condition = dataclasses.replace(CONDITIONS["noisy"], cameras=FIVE)
    detected = detect(truth, condition, seed=3)
    figures = compare(*timed_fit(model, detected.seen, FitConfig()), truth, detected)
    assert figures["px_to_truth"]["median"] < 1.5
    assert figures["aligned"]["rotation_deg"]["median"] < 1.0 and figures["aligned"]["translation_percent"]["median"] < 1.0


def test_one_camera_gives_the_pose_at_a_chosen_scale(model, truth):
    detected = detect(truth, Condition(0.5, 0.1, (7,)), seed=0)
    fit, seconds = timed_fit(model, detected.seen, FitConfig(one_view_scale=0.2))
    assert not fit.scale_is_seen and float(fit.head.scale[0]) == pytest.approx(0.2, rel=1e-3)
    figures = compare(fit, seconds, truth, detected)
    assert figures["px_to_truth"]["median"] < 1.5 and figures["aligned"]["rotation_deg"]["median"] < 3.0
    # Twice as large, it is twice as far.
    camera = detected.seen.centers[0, 0]
    far = (fit.head.pose[:, 3:] - camera).norm(dim=1) / (truth.head.pose[:, 3:] - camera).norm(dim=1)
    assert float(far.mean()) == pytest.approx(2.0, rel=0.1)


def test_frames_seen_by_one_or_by_no_camera(model, truth):
    detected = detect(truth, Condition(0.5, 0.0, FIVE), seed=0)
    scores = detected.seen.scores.clone()
    scores[1, :2], scores[1, 3:], scores[3] = 0.0, 0.0, 0.0
    seen = dataclasses.replace(detected.seen, scores=scores)
    times = torch.tensor([0.0, 1.0, 2.0, 2.4, 3.0], dtype=torch.float64)
    fit = fit_head(model, seen, times, FitConfig())
    assert fit.seen.tolist() == [True, True, True, False, True]
    apart = (landmarks_in_world(fit) - truth.landmarks).norm(dim=-1).mean(dim=1)
    assert float(apart[[0, 2, 4]].max()) < 0.001 and float(apart[1]) < 0.01
    torch.testing.assert_close(fit.head.pose[3], fit.head.pose[2])  # the nearest in time
    report = make_report(fit, seen, list("abcde"), [str(k) for k in FIVE], FitConfig())
    assert report.unseen == ["d"] and report.frames["d"].detections == 0


def test_nothing_usable_is_told(model, truth):
    detected = detect(truth, Condition(0.0, 1.0, (3, 9)), seed=0)
    with pytest.raises(InputError, match="no frame has enough landmarks"):
        fit_head(model, detected.seen, torch.arange(5.0).double(), FitConfig())


def test_a_camera_that_is_off_stands_out(model, truth):
    detected = detect(truth, Condition(0.3, 0.0, FIVE), seed=0)
    pixels = detected.seen.pixels.clone()
    pixels[:, 2, :, 0] += 25.0
    seen = dataclasses.replace(detected.seen, pixels=pixels)
    fit, _ = timed_fit(model, seen, FitConfig())
    report = make_report(fit, seen, list("abcde"), [str(k) for k in FIVE], FitConfig())
    assert report.outlying_cameras() == [str(FIVE[2])] and report.shifts[str(FIVE[2])][0] > 15.0  # the others feel some of it


def test_close_frames_are_tied(model, truth):
    """A head that holds still trembles less when frames are known to follow one another."""
    still = dataclasses.replace(truth, landmarks=truth.landmarks[:1].expand(3, -1, -1))
    config = FitConfig(offset=0.0, rotation_rate=0.02, translation_rate=0.02, expression_rate=0.02)
    seen = detect(still, Condition(2.0, 0.0, (4, 10)), seed=0).seen
    shake = []
    for period in (1e6, 0.005):
        fit = fit_head(model, seen, period * torch.arange(3, dtype=torch.float64), config)
        shake.append(float(fit.head.pose.std(dim=0).norm()))
    assert shake[1] < 0.3 * shake[0]


def test_offsets_of_a_person_are_in_vertices_and_landmarks(model):
    """Lee Perry-Smith is not in the model: with the offset his landmarks are met, without they are not."""
    person = perform("lee_perry_smith", 5)
    detected = detect(person, Condition(0.0, 0.0, FIVE), seed=0)
    without, with_offset = (compare(*timed_fit(model, detected.seen, FitConfig(offset=offset)), person, detected)["px_to_truth"]["median"]
                            for offset in (0.0, 0.03))
    assert with_offset < 0.3 < without


def test_flame_is_fitted_with_its_joints(tmp_path, monkeypatch, model, truth):
    """A head of FLAME's kind, landmarks where ours are, seen in a pose with its jaw open."""
    template = lookalikes.flame_arrays()["v_template"]
    template[:66] = model.landmarks(model.mean).numpy() / 10.0
    template[66:] = template[:66].mean(axis=0) + 0.02 * lookalikes.random(7).normal(size=(lookalikes.VERTICES - 66, 3))
    lookalikes.write_flame(tmp_path, monkeypatch, v_template=template, shapedirs=0.1 * lookalikes.flame_arrays()["shapedirs"])
    flame = read_model("flame", tmp_path / "generic_model.pkl")
    flame = dataclasses.replace(flame, landmark_corners=torch.arange(66)[:, None].repeat(1, 3))
    jaw = lookalikes.random(8).normal(size=(3, 3)) * 0.15
    shapes = 0.5 * torch.randn(3, 50, generator=torch.Generator().manual_seed(0))
    expression = torch.cat([shapes, torch.from_numpy(jaw).float(), torch.zeros(3, 6)], dim=1)
    head = HeadPose(truth.head.pose[:3], truth.head.scale[:3])
    identity = 0.5 * torch.randn(100, generator=torch.Generator().manual_seed(1))
    landmarks = head.to_world(torch.stack([flame.landmarks(flame.vertices(identity, e)) for e in expression]).double())
    detected = detect(dataclasses.replace(truth, landmarks=landmarks), Condition(0.0, 0.1, FIVE), seed=0)
    fit, _ = timed_fit(flame, detected.seen, FitConfig())
    assert fit.expression.shape == (3, 59)
    apart = pull(landmarks_in_world(fit), detected.seen.projection, detected.pixels).residuals.norm(dim=-1)
    assert float(apart.median()) < 0.5


@pytest.fixture(scope="module")
def matted(tmp_path_factory):
    """Two frames of Lee Perry-Smith without hair, with mattes, in five cameras."""
    person = perform("lee_perry_smith", 5)
    head, cameras = DemoHead("lee_perry_smith", "lps", "iris_brown", texture_size=16), rig(128)
    root = tmp_path_factory.mktemp("matted")
    folder = CaptureFolder(root)
    for frame in (0, 3):
        vertices = HeadPose(person.head.pose[frame], person.head.scale[frame]).to_world(head.vertices(person.expression[frame].float()).double())
        for c in FIVE:
            camera = Camera(cameras.world_to_camera[[c]], cameras.intrinsics[[c]], 128, 128)
            matte = head.draw(vertices.float(), camera).mask[0]
            write_image(folder.image_path(f"{frame:04d}", str(c), "mask"), matte.expand(3, -1, -1))
            path = folder.camera_path(f"{frame:04d}", str(c))
            path.parent.mkdir(parents=True, exist_ok=True)
            np.savez(path, extrinsic=cameras.world_to_camera[c].numpy(), intrinsic=cameras.intrinsics[c].numpy())
    chosen = [0, 3]
    return folder, dataclasses.replace(person, expression=person.expression[chosen], vertices=person.vertices[chosen],
                                       landmarks=person.landmarks[chosen], head=HeadPose(person.head.pose[chosen], person.head.scale[chosen]))


def test_outlines_bring_the_face_nearer_to_the_person(matted, model):
    folder, person = matted
    detected = detect(person, Condition(0.5, 0.0, FIVE), seed=0)
    names = [str(c) for c in FIVE]
    times = 1e6 * torch.arange(2, dtype=torch.float64)
    error = []
    for mattes in (None, lambda chosen: read_mattes(folder, [folder.frames()[f] for f in chosen], names)):
        fit = fit_head(model, detected.seen, times, FitConfig(outline_points=15), mattes)
        far = (torch.stack([fit.vertices(f)[:9409] for f in range(2)]) - person.vertices).norm(dim=-1)
        error.append((float(far.mean()), float(far.flatten().quantile(0.95))))
    (mean, high), (mean_outlined, high_outlined) = error
    assert mean_outlined < mean and high_outlined < high


def test_without_mattes_silhouettes_are_refused(matted):
    folder, _ = matted
    with pytest.raises(InputError, match="--silhouettes needs mattes"):
        read_mattes(folder, folder.frames(), ["another"])


def test_outlines_are_of_cameras_that_there_are(made, subject, tmp_path):
    """Also of those that detect nothing: from the side an outline says most."""
    folder = CaptureFolder(subject)
    frames, blind, gone = folder.frames(), CAMERAS[1], CAMERAS[2]
    folder.detections_path(frames[0], blind).unlink()
    folder.detections_path(frames[0], gone).unlink()
    folder.camera_path(frames[0], gone).unlink()
    seen = read_observations(folder, frames, list(CAMERAS), TINY_SIZE)
    wanted = CaptureFolder(made.subject).read_camera(frames[0], blind)[0]
    assert torch.equal(seen.camera.world_to_camera[0, 1].float(), wanted.float()) and not bool(seen.scores[0, 1:3].any())
    there = read_mattes(folder, frames, list(CAMERAS)).there
    assert there[0, 1] and not there[0, 2] and int((~there).sum()) == 1


def test_distance_to_a_straight_edge():
    inside = np.zeros((256, 256), np.uint8)
    inside[:, :100] = 1
    field = distance_field(inside)[None]
    pixels = torch.tensor([[[190.0, 256.0], [200.0, 256.0], [215.0, 100.0]]], dtype=torch.float64)  # the edge is at 200 of 512
    distance, normal = sample(field, pixels)
    torch.testing.assert_close(distance[0], torch.tensor([-10.0, 0.0, 15.0], dtype=torch.float64), atol=0.1, rtol=0)
    torch.testing.assert_close(normal[0], torch.tensor([[1.0, 0.0]] * 3, dtype=torch.float64), atol=1e-6, rtol=0)


@pytest.mark.parametrize("detecting", [2, 3, 5])
def test_few_cameras_of_a_large_rig_are_enough(truth, detecting):
    """Others each frame, by chance."""
    detected = detect(truth, Condition(0.0, 0.0, tuple(range(16))), seed=1)
    scores, random = detected.seen.scores.clone(), np.random.default_rng(0)
    for frame in scores:
        frame[random.permutation(16)[detecting:]] = 0.0
    points, trust = triangulate(dataclasses.replace(detected.seen, scores=scores))
    assert bool((trust >= 2).all()) and float((points - truth.landmarks).norm(dim=-1).max()) < 1e-6


def test_a_detector_that_is_never_sure_is_taken_as_one_that_is(subject, tmp_path, monkeypatch):
    """Peaks of heat maps that nobody calibrated."""
    for path in subject.rglob("lmk_*.npy"):
        points = np.load(path)
        points[:, 2] = 0.3
        np.save(path, points)
    command(monkeypatch, subject, "--results", tmp_path / "results", "least_noise=0.5")
    report = json.loads((tmp_path / "results" / "demo" / "report.json").read_text())
    assert report["overall"]["detections"] > 0 and report["overall"]["median_px"] < 1.0
    assert cv2.imread(str(tmp_path / "results" / "demo" / "overlays.png")).std() > 10


@pytest.mark.parametrize("outliers", [0.0, 0.3])
def test_triangulation_finds_the_points(truth, outliers):
    detected = detect(truth, Condition(0.0, outliers, tuple(range(0, 16, 2))), seed=1)
    points, trust = triangulate(detected.seen)
    assert bool((trust >= 2).float().mean() > 0.99)
    assert float((points - truth.landmarks).norm(dim=-1)[trust >= 2].quantile(0.99)) < (1e-9 if outliers == 0 else 2e-3)


def test_similarity_is_recovered_and_mirrors_are_not_made():
    generator = torch.Generator().manual_seed(0)
    source = torch.randn(20, 3, generator=generator, dtype=torch.float64)
    rotation = torch.linalg.qr(torch.randn(4, 3, 3, generator=generator, dtype=torch.float64))[0]
    rotation = rotation * torch.linalg.det(rotation)[:, None, None]
    target = 3.0 * source @ rotation.transpose(1, 2) + torch.tensor([1.0, -2.0, 5.0], dtype=torch.float64)
    scales, found, translation = similarity(source, target, torch.rand(4, 20, generator=generator, dtype=torch.float64))
    torch.testing.assert_close(scales, torch.full((4,), 3.0, dtype=torch.float64))
    torch.testing.assert_close(found, rotation)
    mirror = torch.tensor([-1.0, 1.0, 1.0], dtype=torch.float64)
    mirrored = similarity(source, source[None] * mirror, torch.ones(1, 20, dtype=torch.float64))
    assert float(torch.linalg.det(mirrored[1])[0]) == pytest.approx(1.0)


def test_only_frames_that_follow_soon_are_tied(model, truth):
    """Not those of sequences that take turns (backwards in time), and not two of one moment."""
    face = model.part(model.landmark_corners.unique()).double()
    seen = detect(truth, Condition(2.0, 0.2, FIVE), seed=0).seen.in_world(0.1, torch.zeros(3, dtype=torch.float64))
    gaps = torch.tensor([0.04, 1e6, -1e6, 0.0], dtype=torch.float64)
    ties = Problem(face, seen, gaps, FitConfig(smooth_gap=0.3), scale_is_seen=True).ties
    assert (ties[1] > 0).all() and (ties[[0, 2, 3, 4, 5]] == 0).all()


def test_slopes_are_those_of_the_cost(model, truth):
    wide = model.widened(smooth_offsets(model, 0.03, 0.3)[:4])
    face = wide.part(wide.landmark_corners.unique()).double()
    detected = detect(truth, Condition(2.0, 0.2, FIVE), seed=0)
    seen = detected.seen.in_world(0.1, torch.zeros(3, dtype=torch.float64))
    config = FitConfig(smooth_gap=1.0, rotation_rate=0.05, expression_rate=0.3)
    problem = Problem(face, seen, torch.full((4,), 0.5, dtype=torch.float64), config, scale_is_seen=True)
    generator = torch.Generator().manual_seed(0)
    head = truth.head
    estimate = Estimate(
        0.1 * torch.randn(face.identity_count, generator=generator, dtype=torch.float64), torch.tensor(1.1, dtype=torch.float64),
        truth.expression + 0.2 * torch.randn(5, 55, generator=generator, dtype=torch.float64),
        head.rotation()[:1].expand(5, -1, -1), 10.0 * head.pose[:, 3:])
    trust = problem.trust(estimate)
    equations = problem.equations(estimate, trust, noise=2.0, width=3.0)
    for part in range(6):
        shared, frames = torch.zeros(face.identity_count + 1, dtype=torch.float64), torch.zeros(5, 61, dtype=torch.float64)
        direction = torch.randn(400, generator=generator, dtype=torch.float64)
        for target in [(shared[:-1],), (shared[-1:],), (frames[:, :55],), (frames[:, 55:58],), (frames[:, 58:],), (shared, frames)][part]:
            target.copy_(direction[:target.numel()].reshape(target.shape))
        step = 1e-6
        costs = [problem.cost(estimate.moved(sign * step * shared, sign * step * frames), trust, 2.0, 3.0) for sign in (1, -1)]
        slope = 2.0 * ((equations.shared_slope * shared).sum() + (equations.frames_slope * frames).sum())
        assert (costs[0] - costs[1]) / (2 * step) == pytest.approx(float(slope), rel=1e-4)


def test_a_step_solves_the_whole_system(model, truth):
    """Frames eliminated and put back give what one large matrix gives."""
    face = model.part(model.landmark_corners.unique()).double()
    seen = detect(truth, Condition(1.0, 0.0, FIVE), seed=0).seen.in_world(0.1, torch.zeros(3, dtype=torch.float64))
    problem = Problem(face, seen, torch.full((4,), torch.inf, dtype=torch.float64), FitConfig(), scale_is_seen=True)
    estimate = Estimate(torch.zeros(face.identity_count, dtype=torch.float64), torch.ones((), dtype=torch.float64), truth.expression,
                        truth.head.rotation(), 10.0 * truth.head.pose[:, 3:])
    equations = problem.equations(estimate, problem.trust(estimate), 1.0, 3.0)
    shared, own = len(equations.shared), equations.frames.shape[1]
    whole = torch.zeros(shared + 5 * own, shared + 5 * own, dtype=torch.float64)
    whole[:shared, :shared] = equations.shared
    for frame in range(5):
        rows = slice(shared + frame * own, shared + (frame + 1) * own)
        whole[:shared, rows], whole[rows, :shared], whole[rows, rows] = equations.mixed[frame], equations.mixed[frame].T, equations.frames[frame]
    whole = whole + 0.1 * torch.diag(whole.diagonal() + 1e-9)
    expected = -torch.linalg.solve(whole, torch.cat([equations.shared_slope, equations.frames_slope.flatten()]))
    step = torch.cat([part.flatten() for part in equations.step(0.1)])
    torch.testing.assert_close(step, expected, rtol=1e-6, atol=1e-9)


def test_slopes_of_projection_are_those_of_autograd(truth):
    seen = detect(truth, Condition(0.0, 0.0, (2,)), seed=0)
    points = truth.landmarks[:1, :2]
    jacobian = torch.autograd.functional.jacobian(lambda p: pull(p, seen.seen.projection[:1], seen.pixels[:1, :, :2]).residuals, points)
    pulled = pull(points, seen.seen.projection[:1], seen.pixels[:1, :, :2])
    assert float(pulled.residuals.abs().max()) < 1e-9
    for point in range(2):
        torch.testing.assert_close(pulled.slopes[0, 0, point], jacobian[0, 0, point, :, 0, point])


@pytest.mark.parametrize("yaw, jaw, nose, far_eye", [(0.0, 1.0, 1.0, 1.0), (60.0, 0.0, 1.0, 0.0), (-90.0, 0.0, 0.25, 1.0), (180.0, 0.0, 0.0, 0.0)])
def test_visibility(model, yaw, jaw, nose, far_eye):
    """The camera goes to the left of the head (+x) with the angle; the right eye is then on the far side."""
    face = model.landmarks(model.mean).double()
    angle = torch.deg2rad(torch.tensor(yaw, dtype=torch.float64))
    center = 10.0 * torch.stack([angle.sin(), torch.zeros_like(angle), angle.cos()])
    weight = visibility(face, torch.eye(3, dtype=torch.float64)[None], torch.zeros(1, 3, dtype=torch.float64), center[None, None], (20.0, 45.0),
                        (60.0, 100.0))[0, 0]
    assert bool((weight[:17] == jaw).all()) and float(weight[30]) == pytest.approx(nose, abs=0.05)
    right_eye = int(torch.arange(66)[36:48][face[36:48, 0].argmin()])
    assert float(weight[right_eye]) == pytest.approx(far_eye, abs=0.05)


def test_benchmark_in_small():
    figures = measure(["ict_1"], frames=3, similarities=1)
    assert figures["similarities"]["recovered"] == 1
    assert figures["ict_1"]["clean"]["px_to_truth"]["median"] < 0.5 and figures["ict_1"]["noisy"]["px_to_truth"]["median"] < 1.0
    assert figures["ict_1"]["noisy"]["aligned"]["rotation_deg"]["median"] < 0.5
