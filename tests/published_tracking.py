"""Folders of tracked faces as other systems write them, from one random performance. Each builder writes by that system's own conventions."""

import json
import zipfile
from dataclasses import dataclass, field
from pathlib import Path

import av
import cv2
import numpy as np
import roma
import torch

SIZE = 16
CAMERAS = ("222200036", "222200037", "222200046")
OPENGL = np.diag([1.0, -1.0, -1.0, 1.0])


@dataclass
class Performance:
    """`frames` instants of a head in front of cameras: world->camera (4,4) with OpenCV axes, one lens in pixels of SIZE²."""

    frames: int = 4
    seed: int = 0
    expressions: int = 100
    random: np.random.Generator = field(init=False)

    def __post_init__(self) -> None:
        self.random = np.random.default_rng(self.seed)
        self.lens = np.array([[20.0, 0, 8.5], [0, 21.0, 7.25], [0, 0, 1]])
        self.views = {camera: self.near(0.4, (0.0, 0.0, 1.0)) for camera in CAMERAS}
        self.expression = self.rows(self.expressions)
        self.identity = self.random.normal(size=300).astype(np.float32)
        self.offset = self.random.normal(size=(1, 5, 3)).astype(np.float32)
        self.rotation, self.translation, self.neck, self.jaw = (self.rows(3) for _ in range(4))
        self.eyes, self.eyelids = self.rows(6), self.rows(2)

    def rows(self, width: int) -> np.ndarray:
        """A small random row per frame."""
        return (0.2 * self.random.normal(size=(self.frames, width))).astype(np.float32)

    def near(self, angle: float, move: tuple[float, ...]) -> np.ndarray:
        """A random rigid map, OpenCV axes: a head at the origin is in front of the camera."""
        turn = roma.rotvec_to_rotmat(torch.from_numpy(angle * self.random.normal(size=3))).numpy() @ OPENGL[:3, :3]
        return np.block([[turn, np.array(move)[:, None]], [np.zeros((1, 3)), np.ones((1, 1))]])


def picture(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), np.full((SIZE, SIZE, 3), 128, np.uint8))


def matrix(vectors: np.ndarray) -> np.ndarray:
    return roma.rotvec_to_rotmat(torch.from_numpy(np.asarray(vectors, dtype=np.float64))).numpy()


def six(vectors: np.ndarray) -> np.ndarray:
    """Rotations as their first two rows, flattened."""
    return matrix(vectors.reshape(-1, 3))[:, :2].reshape(1, -1).astype(np.float32)


def flame(show: Performance, row: int | slice) -> dict[str, np.ndarray]:
    """Keys and shapes of VHAP."""
    rows = slice(row, row + 1) if isinstance(row, int) else row
    return {"translation": show.translation[rows], "rotation": show.rotation[rows], "neck_pose": show.neck[rows], "jaw_pose": show.jaw[rows],
            "eyes_pose": show.eyes[rows], "shape": show.identity, "expr": show.expression[rows], "static_offset": show.offset}


def write_vhap_export(folder: Path, show: Performance) -> Path:
    """One sequence, not divided."""
    frames = []
    for t in range(show.frames):
        for c, (camera, view) in enumerate(show.views.items()):
            name = f"{t:05d}_{c:02d}.png"
            picture(folder / "images" / name), picture(folder / "fg_masks" / name)
            frames.append({
                "timestep_index": t, "timestep_index_original": t, "timestep_id": f"{t:05d}", "camera_index": c, "camera_id": camera,
                "cx": show.lens[0, 2], "cy": show.lens[1, 2], "fl_x": show.lens[0, 0], "fl_y": show.lens[1, 1], "h": SIZE, "w": SIZE,
                "camera_angle_x": 1.0, "camera_angle_y": 1.0, "transform_matrix": (np.linalg.inv(view) @ OPENGL).tolist(),
                "file_path": f"images/{name}", "fg_mask_path": f"fg_masks/{name}", "flame_param_path": f"flame_param/{t:05d}.npz"})
        (folder / "flame_param").mkdir(exist_ok=True)
        np.savez(folder / "flame_param" / f"{t:05d}.npz", **flame(show, t))
    np.savez(folder / "canonical_flame_param.npz", **flame(show, 0) | {"jaw_pose": np.array([[0.3, 0, 0]])})
    write_transforms(folder / "transforms.json", frames, range(show.frames), range(len(CAMERAS)))
    return folder


def write_transforms(path: Path, frames: list[dict], timesteps: range, cameras: range) -> None:
    shared = {key: frames[0][key] for key in ("cx", "cy", "fl_x", "fl_y", "h", "w", "camera_angle_x", "camera_angle_y")} if frames else {}
    path.write_text(json.dumps({"frames": frames} | shared | {"timestep_indices": list(timesteps), "camera_indices": list(cameras)}))


def write_union(root: Path, shows: list[Performance]) -> Path:
    """Sequences beside one another, and the set of all: last camera for validation, last sequence for tests."""
    union, parts, start = root / "UNION_me", {"train": [], "val": [], "test": []}, 0
    for number, show in enumerate(shows):
        name = f"me_EMO-{number}"
        write_vhap_export(root / name, show)
        for frame in json.loads((root / name / "transforms.json").read_text())["frames"]:
            del frame["timestep_id"], frame["timestep_index_original"]
            frame["timestep_index"] += start
            for key in ("file_path", "fg_mask_path", "flame_param_path"):
                frame[key] = f"../{name}/{frame[key]}"
            parts["test" if number == len(shows) - 1 else "val" if frame["camera_index"] == len(CAMERAS) - 1 else "train"].append(frame)
        start += show.frames
    union.mkdir()
    for part, frames in parts.items():
        write_transforms(union / f"transforms_{part}.json", frames, range(start), range(len(CAMERAS)))
    return union


def write_vhap_tracker(folder: Path, show: Performance) -> Path:
    folder.mkdir(parents=True)
    rest = {"timestep_id": np.array([f"{3 * t:05d}" for t in range(show.frames)]), "n_processed_frames": np.array(show.frames),
            "focal_length": np.array([1.5]), "image_size": np.array([SIZE, SIZE])}
    np.savez(folder / "tracked_flame_params_9.npz", **flame(show, slice(None)) | rest | {"expr": np.zeros_like(show.expression)})
    np.savez(folder / "tracked_flame_params_30.npz", **flame(show, slice(None)), **rest)
    return folder


def write_benchmark(folder: Path, show: Performance, scale: float = 1.5) -> Path:
    sequence = folder / "sequences" / "EMO-1-shout+laugh"
    (sequence / "tracking").mkdir(parents=True), (folder / "calibration").mkdir()
    np.savez(sequence / "tracking" / "flame2023_tracking_v2.npz", shape=show.identity[None], expression=show.expression,
             rotation=roma.rotmat_to_euler("XYZ", torch.from_numpy(matrix(show.rotation))).numpy(), rotation_matrices=matrix(show.rotation),
             translation=show.translation, jaw=show.jaw, neck=show.neck, eyes=show.eyes, scale=np.array([[scale]]), frames=np.arange(show.frames))
    (folder / "calibration" / "camera_params.json").write_text(json.dumps({
        "world_2_cam": {camera: view.tolist() for camera, view in show.views.items()},
        "intrinsics": {camera: show.lens.tolist() for camera in show.views}}))
    for camera in CAMERAS[:2]:
        for kind in ("images", "alpha_maps"):
            write_video(sequence / kind / f"cam_{camera}.mp4", show.frames)
    return folder


def write_video(path: Path, pictures: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width = stream.height = SIZE
        stream.pix_fmt = "yuv420p"
        for _ in range(pictures):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.full((SIZE, SIZE, 3), 128, np.uint8))))
        container.mux(stream.encode())


def imavatar_world(show: Performance) -> np.ndarray:
    """world_mat (3,4): no rotation, y up, looking along -z."""
    return np.concatenate([np.eye(3), [[0.1], [0.2], [-4.0]]], axis=1)


def write_imavatar(folder: Path, show: Performance, pixels_of: float = 1.0) -> Path:
    """`pixels_of` 512: old sets, whose intrinsics are pixels."""
    frames = []
    for t in range(show.frames):
        for kind in ("image", "mask", "semantic"):
            picture(folder / kind / f"{t + 1}.png")
        pose = np.concatenate([show.rotation[t], show.neck[t], show.jaw[t], show.eyes[t]])
        frames.append({"file_path": f"./image/{t + 1}", "world_mat": imavatar_world(show).tolist(), "expression": show.expression[t, :50].tolist(),
                       "pose": pose.tolist(), "bbox": [-0.5, -0.5, 0.5, 0.5], "flame_keypoints": [[0.0, 0.0]] * 68})
    lens = np.array([-show.lens[0, 0], show.lens[1, 1], show.lens[0, 2], show.lens[1, 2]]) / SIZE * pixels_of
    (folder / "flame_params.json").write_text(json.dumps({
        "frames": frames, "shape_params": show.identity[:100].tolist(), "intrinsics": lens.tolist()}))
    return folder


def write_frames(checkpoint: Path, show: Performance, numpy_1: bool = False) -> Path:
    """metrical-tracker's .frame files: the camera moves, so `near` gives one per frame. `numpy_1`: as written with numpy below 2."""
    checkpoint.mkdir(parents=True)
    show.moving = [show.near(0.3, (0.0, 0.1, 1.0)) for _ in range(show.frames)]
    for t, view in enumerate(show.moving):
        path = checkpoint / f"{t:05d}.frame"
        torch.save({
            "flame": {"exp": show.expression[t:t + 1], "shape": show.identity[None], "tex": np.zeros((1, 140), np.float32),
                      "sh": np.zeros((1, 9, 3), np.float32), "eyes": six(show.eyes[t]), "eyelids": show.eyelids[t:t + 1], "jaw": six(show.jaw[t])},
            "camera": {"R": np.zeros((1, 6), np.float32), "t": np.zeros((1, 3)), "fl": np.zeros((1, 1)), "pp": np.zeros((1, 2))},
            "opencv": {"R": view[None, :3, :3].astype(np.float32), "t": view[None, :3, 3].astype(np.float32), "K": show.lens[None]},
            "img_size": np.array([SIZE, SIZE]), "frame_id": f"{t:05d}", "global_step": np.int64(t)}, path)
        if numpy_1:
            with zipfile.ZipFile(path) as source:
                content = {name: source.read(name) for name in source.namelist()}
            with zipfile.ZipFile(path, "w") as target:
                for name, data in content.items():
                    target.writestr(name, data.replace(b"numpy._core.multiarray", b"numpy.core.multiarray"))
    return checkpoint


def write_flashavatar(root: Path, show: Performance, suffix: str = ".jpg", offset: int = 1) -> Path:
    """dataset/<id> beside metrical-tracker/output/<id>; HyperGaussians: .png, offset 0."""
    write_frames(root / "metrical-tracker" / "output" / "me" / "checkpoint", show)
    for t in range(show.frames):
        for kind in ("imgs", "alpha"):
            picture(root / "dataset" / "me" / kind / f"{t + offset:05d}{suffix}")
        for kind in ("neckhead", "mouth"):
            picture(root / "dataset" / "me" / "parsing" / f"{t + offset:05d}_{kind}.png")
    return root / "dataset" / "me"


def write_insta(folder: Path, show: Performance, jaw: bool = True) -> Path:
    """The last frame is for tests."""
    frames = []
    show.moving = [show.near(0.3, (0.0, 0.1, 1.0)) for _ in range(show.frames)]
    for t, view in enumerate(show.moving):
        picture(folder / "images" / f"{t:05d}.png")
        for name, values in {"exp": show.expression[t], "jaw": six(show.jaw[t])[0], "eyes": six(show.eyes[t])[0]}.items():
            if name == "exp" or jaw:
                (folder / "flame" / name).mkdir(parents=True, exist_ok=True)
                np.savetxt(folder / "flame" / name / f"{t:05d}.txt", values)
        frames.append({"file_path": f"images/{t:05d}.png", "exp_path": f"flame/exp/{t:05d}.txt", "mesh_path": f"meshes/{t:05d}.obj",
                       "depth_path": f"depth/{t:05d}.png", "seg_mask_path": f"seg_mask/{t:05d}.png",
                       "transform_matrix": (np.linalg.inv(view) @ OPENGL).tolist()})
    shared = {"fl_x": show.lens[0, 0], "fl_y": show.lens[1, 1], "cx": show.lens[0, 2], "cy": show.lens[1, 2], "w": SIZE, "h": SIZE}
    for name, part in (("", frames), ("_train", frames[:-1]), ("_val", []), ("_test", frames[-1:])):
        (folder / f"transforms{name}.json").write_text(json.dumps(shared | {"frames": part}))
    return folder


def write_flame_subject(folder: Path, show: Performance, scale: float = 1.25, pictures: bool = True, sequences: int = 2) -> Path:
    """Gaussian Head Avatar's layout, fitted with FLAME: 50 expression coefficients, jaw, eyes; head about the origin."""
    for t in range(show.frames):
        name = f"{10 * t:04d}"
        (folder / "params" / name).mkdir(parents=True)
        np.savez(folder / "params" / name / "params.npz", id_coeff=show.identity[None, :100], scale=np.array([[scale]]),
                 exp_coeff=np.concatenate([show.expression[t, :50], show.jaw[t], show.eyes[t]])[None],
                 pose=np.concatenate([show.rotation[t], show.translation[t]])[None])
        for camera, view in show.views.items() if pictures else ():
            for kind in ("image", "mask"):
                picture(folder / "images" / name / f"{kind}_{camera}.jpg")
            (folder / "cameras" / name).mkdir(parents=True, exist_ok=True)
            np.savez(folder / "cameras" / name / f"camera_{camera}.npz", extrinsic=view[:3], intrinsic=show.lens)
    rows = [{"frame": f"{10 * t:04d}", "sequence": f"SEQ-{t * sequences // show.frames}", "time": 0.04 * t} for t in range(show.frames)]
    (folder / "frames.json").write_text(json.dumps({"frames": rows}))
    return folder
