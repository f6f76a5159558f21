"""The commands that faults meet, ready to start, and what each leaves when nothing disturbs it."""

import contextlib
import hashlib
import io
import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
import torch
import yaml

from lib.datasets.layout import CaptureFolder
from tests.faults.children import Command, apart, count_changes, files
from tests.tiny import CAMERAS, SIZE, Tiny, copy_subject, gaussian_dict, mesh_dict, reenactment_dict
from tests.tiny_capture import CAMERAS as RAW_CAMERAS
from tests.tiny_capture import SEQUENCES as RAW_SEQUENCES

STEPS = 12
FORMATS = ("ply", "bundle", "obj", "gltf", "published")
EXPORTS = tuple(f"export {name}" for name in FORMATS)
TRAININGS = ("meshhead", "gaussianhead")
# Files that tell when something happened, or how long it took.
OF_THE_MOMENT = (".log", ".lock", "seconds.json", "report.html")
OF_THE_RUN = ("seconds", "frames_per_second", "made_by", "trained_by", "drawn_by", "measured_by")  # keys of JSON files
UNFINISHED = (".partial", ".fitted", ".old")
HERE = Path()


@dataclass(frozen=True)
class Reference:
    """An undisturbed run: what it leaves (path -> digest), how many changes of files it makes, how many bytes it leaves in all and in one file."""

    results: dict[str, str]
    changes: int
    size: int
    largest: int

    def strange(self, content: dict[str, bytes]) -> list[str]:
        """Files that have the name of a result, and are not what the undisturbed run left there, at its end or at an earlier step."""
        states = {digest for file, digest in self.results.items() if is_checkpoint(file)}

        def is_right(file: str, digest: str) -> bool:
            if is_checkpoint(file):
                return digest in states
            if file.endswith("_preview.png"):
                return _is_picture(content[file])
            # In a folder that is to get its name at the end, all is final; a fit says so itself where it is not.
            return digest == self.results.get(file.replace(".partial/", "/")) or (file.endswith("fit.json") and b'"complete": false' in content[file])

        return [file for file, digest in results(content).items() if not is_right(file, digest)]

    def same(self, content: dict[str, bytes]) -> bool:
        """Whether all is as the undisturbed run left it."""
        return results(content) == self.results


@dataclass
class Workshop:
    """Prepared folders, made when they are first asked for; a trial works in a copy."""

    root: Path
    made: Tiny
    raw: Path
    _references: dict[str, Reference] = field(default_factory=dict)

    def command(self, name: str, place: Path) -> Command:
        """The command called `name`, in `place`."""
        words = {
            "meshhead": ("train_meshhead", "--config", "meshhead.yaml"),
            "gaussianhead": ("train_gaussianhead", "--config", "gaussianhead.yaml"),
            "video": ("reenactment", "--config", "reenactment.yaml"),
            "evaluation": ("evaluate", "--config", "gaussianhead.yaml"),
            "extraction": ("preprocess.nersemble", str(self.raw), "--id", "031", "--output", "subject", "--every", "2", "--size", "48",
                           "--workers", "1"),
            "mattes": ("preprocess.remove_background", "subject", "--matter", "classical"),
            "landmarks": ("preprocess.landmarks", "subject", "--from", "given"),
            "3DMM": ("preprocess.fit_3dmm", "subject"),
            "YAML files": ("preprocess.new_subject", str(self.made.subject), "--name", "me", "--force"),
            "demo subject": ("preprocess.demo_subject", "bald", "--output", "demo", "--resolution", "16", "--frames", "5", "--driver-frames", "2"),
            "demo capture": ("preprocess.demo_capture", "bald", "--output", "filmed", "--cameras", *RAW_CAMERAS, "--sequences", RAW_SEQUENCES[0],
                             "--frames", "2", "--frame-step", "1", "--height", "64", "--size", "48"),
            "one camera": ("preprocess.video", str(self._video), "--output", "subject", "--focal", "60", "--size", "48"),
            "check": ("preprocess.check_subject", str(self.made.subject), "--output", "check/landmarks.png"),
            "export GaussianAvatars": ("preprocess.export_gaussian_avatars", str(self.made.subject), "posed", "--without-params"),
            "submission": ("evaluate", "--config", "gaussianhead.yaml"),
        } | {f"export {kind}": ("export", "--config", f"{kind}.yaml") for kind in FORMATS}
        module, *rest = words[name]
        return Command(module, tuple(rest), place)

    def place(self, name: str, folder: Path) -> Command:
        """The command in a new folder with all that it needs."""
        shutil.copytree(self._template(name), folder, copy_function=shutil.copy)
        return self.command(name, folder)

    def reference(self, name: str) -> Reference:
        """What it leaves undisturbed."""
        if name not in self._references:
            folder = self.root / f"reference {name}"
            command = self.place(name, folder)
            before = files(folder)
            ended, changes = apart(count_changes, command)
            assert ended.code == 0, ended.said
            content = files(folder)
            sizes = [len(data) for file, data in content.items() if file not in before]
            self._references[name] = Reference(results(content), changes, sum(sizes), max(sizes))
        return self._references[name]

    def _template(self, name: str) -> Path:
        folder = self.root / f"template {name}"
        if folder.exists():
            return folder
        folder.mkdir()
        if name == "meshhead":
            _write(folder / "meshhead.yaml", _training(mesh_dict(self.made.subject, HERE, STEPS)))
        elif name == "gaussianhead":
            self._take(folder, "meshhead")
            _write(folder / "gaussianhead.yaml", _training(gaussian_dict(self.made.subject, HERE, STEPS)))
        elif name in ("evaluation", "submission"):
            self._take(folder, *TRAININGS)
            values = _training(gaussian_dict(self.made.subject, HERE, STEPS))
            if name == "submission":
                values["evaluation"] = {"submission": {
                    "folder": "sent", "participant": "031", "expected": ["031/a", "031/b"], "cameras": list(RAW_CAMERAS),
                    "dataroot": str(self.made.driver), "param_files": "params/*/params.npz", "width": SIZE, "height": SIZE,
                    "calibration_size": [44, 64],
                    "calibration": str(self.raw / "031" / "calibration" / "camera_params.json"),
                }}
            _write(folder / "gaussianhead.yaml", values)
        elif name == "video":
            self._take(folder, "gaussianhead")
            _write(folder / "reenactment.yaml", reenactment_dict(self.made, HERE))
        elif name in EXPORTS:
            self._take(folder, *TRAININGS)
            kind = name.removeprefix("export ")
            values = {key: value for key, value in reenactment_dict(self.made, HERE).items() if key != "video"}
            values |= {"format": kind, "load_meshhead_checkpoint": "checkpoints/tiny/meshhead_latest"}
            values["dataset"] |= {"param_files": "params/000[01]/params.npz"}
            _write(folder / f"{kind}.yaml", values | ({"frame": "all"} if kind in ("ply", "obj", "gltf") else {}))
        elif name in ("mattes", "landmarks", "3DMM"):
            copy_subject(self.made.subject, folder / "subject", CAMERAS[:3], lowres=True)
            if name == "mattes":
                for mask in folder.rglob("mask_*"):
                    mask.unlink()
            else:
                _detect(self.made.subject, folder / ("given" if name == "landmarks" else "subject"))
            if name == "3DMM":
                shutil.rmtree(folder / "subject" / "params")
        return folder

    @property
    def _video(self) -> Path:
        return self.raw / "031" / "sequences" / RAW_SEQUENCES[0] / "images" / f"cam_{RAW_CAMERAS[0]}.mp4"

    def _take(self, folder: Path, *stages: str) -> None:
        """Checkpoints of undisturbed runs."""
        run = folder / "checkpoints" / "tiny"
        run.mkdir(parents=True)
        for stage in stages:
            self.reference(stage)
            shutil.copy(self.root / f"reference {stage}" / "checkpoints" / "tiny" / f"{stage}_latest", run)


def _training(values: dict) -> dict:
    """Saves after every step and keeps all, so that a killed run can be compared wherever it was."""
    values["trainer"] |= {"final_lr_factor": 0.1, "validate_every": 5}
    values["recorder"] |= {"save_freq": 1, "show_freq": 1, "keep_last": STEPS}
    return values


def _write(path: Path, values: dict) -> None:
    path.write_text(yaml.safe_dump(values))


def _detect(subject: Path, target: Path) -> None:
    """Perfect detections of the 3D landmarks."""
    was, now = CaptureFolder(subject), CaptureFolder(target)
    for frame in was.frames():
        landmarks = was.read_control_points(frame).points[:66].numpy()
        landmarks = np.insert(landmarks, [48, 53], landmarks[48], axis=0)
        for camera in CAMERAS[:3]:
            extrinsic, intrinsic = (value.numpy() for value in was.read_camera(frame, camera))
            pixels = (landmarks @ extrinsic[:, :3].T + extrinsic[:, 3]) @ intrinsic.T
            path = now.detections_path(frame, camera)
            path.parent.mkdir(parents=True, exist_ok=True)
            np.save(path, np.concatenate([pixels[:, :2] / pixels[:, 2:], np.ones((68, 1))], axis=1).astype(np.float32))


def results(content: dict[str, bytes]) -> dict[str, str]:
    """Digests of finished files; of checkpoints and numbers, of all but the time they took."""
    return {name: _digest(name, data) for name, data in content.items()
            if not name.endswith((*OF_THE_MOMENT, *UNFINISHED)) and "events.out" not in name}


def checkpoints(content: dict[str, bytes]) -> set[str]:
    """Digests of them all."""
    return {digest for name, digest in results(content).items() if is_checkpoint(name)}


def leftovers(content: dict[str, bytes]) -> list[str]:
    """Files that only somebody who still writes should have. An extraction goes on with what it has, whole files in a folder without its name."""
    return [name for name in content if name.endswith(UNFINISHED) or (
        any(part.endswith(UNFINISHED) for part in Path(name).parts) and not name.startswith("subject.partial/"))]


def _digest(name: str, data: bytes) -> str:
    key = is_checkpoint(name), name.endswith(".json"), hashlib.sha256(data).hexdigest()
    if key not in _DIGESTS:
        _DIGESTS[key] = _digest_anew(name, data)
    return _DIGESTS[key]


_DIGESTS: dict[tuple[bool, bool, str], str] = {}


def _digest_anew(name: str, data: bytes) -> str:
    if is_checkpoint(name):
        state = torch.load(io.BytesIO(data), weights_only=True)
        data = repr((state["step"], state["best_psnr"], _plain(state["modules"]), _plain(state["optimizers"]))).encode()
    elif name.endswith(".json"):
        with contextlib.suppress(ValueError):  # unfinished, or not ours
            data = json.dumps(_timeless(json.loads(data))).encode()
    return hashlib.sha256(data).hexdigest()


def _timeless(content: object) -> object:
    """JSON without what tells of this run of the code alone."""
    if isinstance(content, dict):
        return {key: _timeless(value) for key, value in content.items() if key not in OF_THE_RUN}
    return [_timeless(value) for value in content] if isinstance(content, list) else content


def is_checkpoint(name: str) -> bool:
    """Whether a file of a place is one."""
    return name.startswith("checkpoints/") and not name.endswith(".yaml")


def _is_picture(data: bytes) -> bool:
    return data.endswith(b"IEND\xaeB`\x82") and cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR) is not None


def _plain(state: object) -> object:
    """Without tensors, which become digests of their bytes, and without learning rates, which every step sets anew."""
    if isinstance(state, torch.Tensor):
        return tuple(state.shape), str(state.dtype), hashlib.sha256(state.contiguous().numpy().tobytes()).hexdigest()
    if isinstance(state, dict):
        return {key: _plain(value) for key, value in state.items() if key != "lr"}
    return [_plain(value) for value in state] if isinstance(state, list | tuple) else state
