"""Every kind of file that the project reads, small and random, with the public reader that reads it."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
import yaml

from lib.avatars.gaussian_head_avatar.gaussian_stage import GaussianHeadTrainConfig
from lib.avatars.gaussian_head_avatar.mesh_head import MeshHeadConfig, tetrahedral_grid
from lib.avatars.gaussian_head_avatar.mesh_stage import MeshHeadTrainConfig
from lib.avatars.gaussian_head_avatar.reenactment import ReenactmentConfig
from lib.config import read_config
from lib.config.reader import Arguments
from lib.datasets.driving import DrivingConfig, DrivingSequence
from lib.datasets.head_capture import HeadCapture, HeadCaptureConfig, Picture
from lib.datasets.images import read_image
from lib.datasets.layout import CaptureFolder, read_camera_file, read_camera_path_file, read_params_file
from lib.datasets.tracked.benchmark import read_calibration
from lib.datasets.tracked.driver import read_driver
from lib.datasets.tracked.sources import read_tracking
from lib.evaluation.scores import read_result
from lib.gaussians.ply import Splats, read_ply, write_ply
from preprocess.landmark_files import read_existing
from preprocess.raw_layouts import open_raw
from preprocess.raw_videos import decode, read_video
from preprocess.video import open_source
from tests import published_tracking as tracked
from tests.evaluation.results import PROTOCOL
from tests.faults import declared
from tests.faults import mutations as m
from tests.faults.model_readers import checkpoints, face_models, published
from tests.faults.target import CAMERAS, FRAMES, SIZE, Target, bytes_and, written
from tests.tiny import EXPRESSIONS


def targets(root: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Target]:
    """All of them, each in a folder of its own, made when its turn comes."""
    makers = configs, subject, pictures, splats, checkpoints, published, face_models, trackers, videos, preprocessing, results
    for number, make in enumerate(makers):
        folder = root / str(number)
        folder.mkdir()
        yield from make(folder, monkeypatch) if make is face_models else make(folder)


# Configurations ----------------------------------------------------------------------------------------------------


def configs(root: Path) -> Iterator[Target]:
    shipped = Path(__file__).resolve().parent.parent.parent / "config"
    for name, schema in (("demo_meshhead", MeshHeadTrainConfig), ("demo_gaussianhead", GaussianHeadTrainConfig),
                         ("demo_reenactment", ReenactmentConfig)):
        path = written(root / f"{name}.yaml", (shipped / f"{name}.yaml").read_bytes())
        content = yaml.safe_load(path.read_bytes())
        yield Target(f"config {name}", "yaml", path, lambda path=path, schema=schema: read_config(Arguments(path, ()), schema),
                     bytes_and(m.bending(content, m.dump_yaml), declared.YAML))


# Subject folders ---------------------------------------------------------------------------------------------------


def random_camera(rng: np.random.Generator) -> dict[str, np.ndarray]:
    turn = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    turn *= np.sign(np.linalg.det(turn))
    return {"extrinsic": np.concatenate([turn, [[0.0], [0.1], [1.0]]], axis=1).astype(np.float32),
            "intrinsic": np.array([[40.0, 0, 12], [0, 41.0, 12.5], [0, 0, 1]], np.float32)}


def facing_camera(angle: float) -> dict[str, np.ndarray]:
    """At distance 1 from the origin, `angle` to the side."""
    side = np.array([[np.cos(angle), 0, np.sin(angle)], [0, 1, 0], [-np.sin(angle), 0, np.cos(angle)]])
    return random_camera(np.random.default_rng(0)) | {
        "extrinsic": np.concatenate([np.diag([1.0, -1.0, -1.0]) @ side, [[0.0], [0.0], [1.0]]], axis=1).astype(np.float32)}


def write_small_subject(root: Path, seed: int = 0) -> Path:
    """Three frames, two cameras, noise as pictures: what a training accepts."""
    rng = np.random.default_rng(seed)
    for number, frame in enumerate(FRAMES):
        for camera in CAMERAS:
            for kind in ("image", "mask", "visible"):
                small = rng.integers(0, 256, (4, 4, 3), dtype=np.uint8) if kind == "image" else np.full((4, 4, 3), 255, np.uint8)
                if kind == "mask":
                    small[[0, 3]] = small[:, [0, 3]] = 0
                suffix = ".png" if frame == FRAMES[2] and kind == "mask" else ".jpg"
                path = written(root / "images" / frame / f"{kind}_{camera}{suffix}", b"")
                cv2.imwrite(str(path), cv2.resize(small, (SIZE, SIZE), interpolation=cv2.INTER_CUBIC))
            written(root / "cameras" / frame / f"camera_{camera}.npz", m.dump_npz(facing_camera(0.01 * int(camera))))
            written(root / "landmarks" / frame / f"lmk_{camera}.npy", m.dump_npy(rng.uniform(1, 20, (68, 3)).astype(np.float32)))
        written(root / "params" / frame / "params.npz", m.dump_npz({
            "id_coeff": np.zeros((1, 80)), "exp_coeff": rng.normal(size=(1, EXPRESSIONS)).astype(np.float32),
            "pose": 0.01 * rng.normal(size=(1, 6)), "scale": np.array([0.1 + 0.01 * number])}))
        written(root / "params" / frame / "lmk_3d.npy", m.dump_npy(0.05 * rng.normal(size=(66, 3)).astype(np.float32)))
        written(root / "params" / frame / "vertices.npy", m.dump_npy(0.05 * rng.normal(size=(210, 3)).astype(np.float32)))
    rows = [{"frame": frame, "sequence": f"SEQ-{number // 2}", "time": 0.5 * number} for number, frame in enumerate(FRAMES)]
    written(root / "frames.json", json.dumps({"frames": rows}).encode())
    written(root / "landmarks" / "detector.json", b'{"size": 24, "detector": "none"}')
    return root


def subject(root: Path) -> Iterator[Target]:
    folder, frame, camera = CaptureFolder(write_small_subject(root / "me")), FRAMES[1], CAMERAS[1]

    def arrays(path: Path) -> dict[str, np.ndarray]:
        with np.load(path) as data:
            return dict(data)

    def use(value: HeadCapture) -> tuple[Any, ...]:
        return value.pictures([Picture(frame, camera)]), value.record()

    config = HeadCaptureConfig(dataroot=folder.root, camera_ids=CAMERAS, original_resolution=SIZE, resolution=SIZE)
    path = folder.camera_path(frame, camera)
    npz = declared.of_npz(arrays(path))
    yield Target("camera", "npz", path, lambda: read_camera_file(folder.camera_path(frame, camera)), npz, checked=True)
    yield Target("camera in a capture", "npz", path, lambda: use(HeadCapture(config)), npz, checked=True)
    path = folder.params_path(frame)
    npz = declared.of_npz(arrays(path))
    yield Target("params", "npz", path, lambda: read_params_file(folder.params_path(frame)), npz, checked=True)
    driving = DrivingConfig(dataroot=folder.root, param_files="params/*/params.npz")
    yield Target("params as driver", "npz", path, lambda: drive(driving), npz, checked=True)
    yield Target("params of a tracked subject", "npz", path, lambda: read_tracking(folder.root), npz, checked=True)
    for name, path, read in (
        ("landmarks", folder.landmarks_path(frame), lambda: folder.read_control_points(frame)),
        ("vertices", folder.vertices_path(frame), lambda: (folder.read_control_points(frame), folder.read_vertices(frame, 50))),
        ("detections", folder.detections_path(frame, camera), lambda: folder.read_detections(frame, camera)),
        ("detections to take over", folder.detections_path(frame, camera),
         lambda: read_existing(folder.root, folder, [Picture(frame, camera)], SIZE)),
    ):
        yield Target(name, "npy", path, read, declared.of_npy(np.load(path)))
    for name, path, read in (
        ("frames", folder.frames_path(), lambda: folder.records(list(FRAMES))),
        ("detector", folder.detector_path(), lambda: folder.detection_size(SIZE, 20.0)),
    ):
        yield Target(name, "json", path, read, declared.of_json(json.loads(path.read_text())))
    for kind in ("image", "mask"):
        path = folder.image_path(frame, camera, kind)
        yield Target(f"{kind} in a capture", "jpg", path, lambda: use(HeadCapture(config)), bytes_and(declared.JPEG))
    cameras = {"cameras": [{key: value.tolist() for key, value in random_camera(np.random.default_rng(seed)).items()} for seed in range(3)]}
    path = written(root / "path.json", m.dump_json(cameras))
    yield Target("camera path", "json", path, lambda: read_camera_path_file(root / "path.json"), declared.of_json(cameras))


def drive(config: DrivingConfig, count: int | None = None) -> tuple[Any, ...]:
    sequence = DrivingSequence(config, torch.zeros(6), count)
    return tuple(sequence[index] for index in range(len(sequence)))


def pictures(root: Path) -> Iterator[Target]:
    rng = np.random.default_rng(5)
    smooth = cv2.resize(rng.integers(0, 256, (5, 5, 3), dtype=np.uint8), (40, 32), interpolation=cv2.INTER_CUBIC)
    jpeg, png, progressive, grey = (root / name for name in ("a.jpg", "a.png", "progressive.jpg", "grey.png"))
    cv2.imwrite(str(jpeg), smooth), cv2.imwrite(str(png), smooth), cv2.imwrite(str(grey), smooth[..., 0])
    cv2.imwrite(str(progressive), smooth, [cv2.IMWRITE_JPEG_PROGRESSIVE, 1])
    for path in (jpeg, progressive):
        yield Target(f"picture {path.name}", "jpg", path, lambda path=path: read_image(path), bytes_and(declared.JPEG))
    for path in (png, grey):
        yield Target(f"picture {path.name}", "png", path, lambda path=path: read_image(path), bytes_and(declared.PNG), checked=True)


def splats(root: Path) -> Iterator[Target]:
    path, rng = root / "a.ply", torch.Generator().manual_seed(0)
    write_ply(path, Splats(*(torch.randn(*shape, generator=rng) for shape in ((9, 3), (9, 3), (9,), (9, 3), (9, 4)))))
    yield Target("splats", "ply", path, lambda: read_ply(path), bytes_and(declared.PLY))


# Other trackers ----------------------------------------------------------------------------------------------------


def trackers(root: Path) -> Iterator[Target]:
    show = tracked.Performance(frames=2)
    vhap = tracked.write_vhap_export(root / "vhap" / "me", show)
    vhap_npz = tracked.write_vhap_tracker(root / "tracker" / "out", show) / "tracked_flame_params_30.npz"
    bench = tracked.write_benchmark(root / "bench" / "031", show)
    sequence = bench / "sequences" / "EMO-1-shout+laugh"
    avatar = tracked.write_imavatar(root / "imavatar" / "yufeng", show)
    flash = tracked.write_flashavatar(root / "flash", show)
    frame = root / "flash" / "metrical-tracker" / "output" / "me" / "checkpoint" / "00001.frame"
    insta = tracked.write_insta(root / "insta" / "biden", show)
    subject_folder = tracked.write_flame_subject(root / "flame" / "me", show)
    rows = {name: root / f"rows.{name}" for name in ("csv", "npy", "npz")}
    np.savetxt(rows["csv"], show.expression, delimiter=","), np.save(rows["npy"], show.expression)
    np.savez(rows["npz"], expr=show.expression, t=np.arange(2))

    def npz(path: Path) -> tuple[m.Damage, ...]:
        with np.load(path) as data:
            return declared.of_npz(dict(data))

    def of_json(path: Path) -> tuple[m.Damage, ...]:
        return declared.of_json(json.loads(path.read_text()))

    for name, path, folder in (
        ("VHAP flame_param", vhap / "flame_param" / "00001.npz", vhap), ("VHAP tracker", vhap_npz, vhap_npz),
        ("benchmark tracking", sequence / "tracking" / "flame2023_tracking_v2.npz", bench),
        ("FLAME subject", subject_folder / "params/0010/params.npz", subject_folder), ("rows npz", rows["npz"], rows["npz"]),
    ):
        yield Target(name, "npz", path, lambda folder=folder: (read_tracking(folder), read_driver(folder, None)), npz(path), checked=True)
    for name, path, folder in (
        ("VHAP transforms", vhap / "transforms.json", vhap), ("IMavatar", avatar / "flame_params.json", avatar),
        ("INSTA", insta / "transforms_train.json", insta),
        ("benchmark cameras", bench / "calibration" / "camera_params.json", bench),
    ):
        yield Target(name, "json", path, lambda folder=folder: (read_tracking(folder), read_driver(folder, None)), of_json(path))
    calibration = bench / "calibration" / "camera_params.json"
    yield Target("calibration", "json", calibration, lambda: read_calibration(calibration, tracked.CAMERAS[0], (SIZE, SIZE)), of_json(calibration))
    yield Target("metrical-tracker", "checkpoint", frame, lambda: (read_tracking(flash), read_driver(flash, None)),
                 declared.of_torch(torch.load(frame, weights_only=False)), checked=True)
    for name, path, folder in (("INSTA expression", insta / "flame/exp/00001.txt", insta), ("INSTA jaw", insta / "flame/jaw/00000.txt", insta),
                               ("rows csv", rows["csv"], rows["csv"])):
        yield Target(name, "text", path, lambda folder=folder: (read_tracking(folder), read_driver(folder, None)), bytes_and(TEXT))
    yield Target("rows npy", "npy", rows["npy"], lambda: (read_tracking(rows["npy"]), read_driver(rows["npy"], None)),
                 declared.of_npy(show.expression))
    picture = subject_folder / "images" / "0000" / f"image_{tracked.CAMERAS[0]}.jpg"
    yield Target("picture of a tracked subject", "jpg", picture, lambda: read_tracking(subject_folder), bytes_and(declared.JPEG))


WORDS = (b"nan", b"inf", b"1e400", b"0x10", b"1_0", "１".encode(), b"9" * 5000, b"1,2", b"--1", b"", b"\0")
TEXT = (m.Damage("wrong content", "odd number", lambda data, rng: odd_word(data, rng)),) * 3


def odd_word(data: bytes, rng: np.random.Generator) -> bytes:
    separator = b"," if b"," in data else b"\n"
    words = data.split(separator)
    words[rng.integers(len(words))] = WORDS[rng.integers(len(WORDS))]
    return separator.join(words)


# Videos ------------------------------------------------------------------------------------------------------------


def videos(root: Path) -> Iterator[Target]:
    path = root / "a.mp4"
    tracked.write_video(path, 5)

    def all_pictures() -> Any:
        video = read_video(path)
        return [(stamp, torch.from_numpy(pixels.copy())) for stamp, pixels in decode(video, frozenset(video.stamps), threads=1)]

    def one_camera() -> Any:
        source = open_source(path)
        return source.times, [torch.from_numpy(pixels.copy()) for _, pixels in source.read(list(range(len(source.times))))]
    yield Target("raw video", "mp4", path, all_pictures, bytes_and(declared.MP4))
    yield Target("video of one camera", "mp4", path, one_camera, bytes_and(declared.MP4))
    bench = tracked.write_benchmark(root / "031", tracked.Performance(frames=2))
    clip = bench / "sequences" / "EMO-1-shout+laugh" / "images" / f"cam_{tracked.CAMERAS[0]}.mp4"
    yield Target("benchmark video", "mp4", clip, lambda: read_tracking(bench), bytes_and(declared.MP4))


# Preprocessing, results --------------------------------------------------------------------------------------------


def preprocessing(root: Path) -> Iterator[Target]:
    rng = np.random.default_rng(2)
    camera = random_camera(rng)
    content = {"world_2_cam": {name: [*camera["extrinsic"].tolist(), [0, 0, 0, 1]] for name in CAMERAS}, "intrinsics": camera["intrinsic"].tolist()}
    for name in CAMERAS:
        written(root / "v1" / "031" / "SEN-1" / f"cam_{name}.mp4", b"x")
        written(root / "v1" / "color_correction" / "031" / f"{name}.npy", m.dump_npy(np.eye(4)))
        written(root / "v2" / "031" / "sequences" / "SEN-1" / "images" / f"cam_{name}.mp4", b"x")
    matrices = {name: rng.normal(size=(3, 3)).tolist() for name in CAMERAS}
    cheung = written(root / "v2" / "031" / "calibration" / "color_calibration.json", m.dump_json(matrices))
    paths = [written(root / "v1" / "camera_params" / "031" / "camera_params.json", m.dump_json(content)),
             written(root / "v2" / "031" / "calibration" / "camera_params.json", m.dump_json(content))]
    yield Target("raw calibration", "json", paths[0], lambda: open_raw(root / "v1", "031").cameras(()), declared.of_json(content))
    affine = root / "v1" / "color_correction" / "031" / f"{CAMERAS[0]}.npy"
    yield Target("affine colours", "npy", affine, lambda: open_raw(root / "v1", "031").colors("affine", list(CAMERAS)),
                 declared.of_npy(np.eye(4)))
    yield Target("cheung colours", "json", cheung, lambda: open_raw(root / "v2", "031").colors("cheung", list(CAMERAS)),
                 declared.of_json(matrices))
    folder = CaptureFolder(write_small_subject(root / "me"))
    shutil.rmtree(folder.root / "landmarks")
    arrays = {"face_landmark_2d": rng.uniform(0, 1, (3, 68, 3)).astype(np.float32), "bounding_box": np.zeros((3, 5))}
    path = written(root / "vhap" / "landmark2d" / "STAR" / f"{CAMERAS[0]}.npz", m.dump_npz(arrays))
    wanted = [Picture(frame, CAMERAS[0]) for frame in FRAMES]
    yield Target("VHAP landmarks", "npz", path, lambda: read_existing(root / "vhap", folder, wanted, SIZE),
                 declared.of_npz(arrays), checked=True)
    grid = {"tet_verts": rng.normal(size=(9, 3)), "tets": np.array([[0, 1, 2, 3], [4, 5, 6, 7]])}
    file = written(root / "grid.npz", m.dump_npz(grid))
    yield Target("tetrahedral grid", "npz", file, lambda: tetrahedral_grid(MeshHeadConfig(grid_file=file)),
                 declared.of_npz(grid), checked=True)


def results(root: Path) -> Iterator[Target]:
    content = {"protocol": PROTOCOL.model_dump(mode="json"), "novel_view": {"psnr": 30.0, "ssim": 0.9, "silent": None}}
    path = written(root / "metrics.json", m.dump_json(content))
    yield Target("metrics", "json", path, lambda: read_result(root), declared.of_json(content))
