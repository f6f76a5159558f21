"""What finds 68 landmarks in a picture: the package face-alignment in this environment, or a program in an environment of its own."""

import contextlib
import importlib.metadata
import importlib.util
import json
import os
import subprocess
import tempfile
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from lib.datasets.images import read_image
from lib.errors import InputError

POINTS = 68
WORKER = Path(__file__).with_name("mediapipe_worker.py")
INSTALL_MEDIAPIPE = "python3 -m venv mediapipe_env && mediapipe_env/bin/pip install mediapipe==0.10.21"
LAST_WORDS = 12  # lines of a dead worker's stderr that are shown


class UnusablePicture(InputError):
    """A picture that is no square image; the others can go on."""


@dataclass(frozen=True)
class Found:
    """Landmarks of one picture: x, y in pixels, score in [0,1]; all zeros where there is no face. `size`: side of the square picture."""

    points: Float[Tensor, "68 3"]
    size: int


class Detector(Protocol):
    """`name` is that of the method with its version, as detector.json keeps it."""

    name: str

    def find(self, path: Path) -> Found:
        """Landmarks of the picture. Raises UnusablePicture for one that cannot be decoded or is not square."""
        ...


class FaceAlignment:
    """The package face-alignment (FAN, 2D). Its weights download themselves at the first use."""

    def __init__(self, device: torch.device) -> None:
        import face_alignment

        version = importlib.metadata.version("face-alignment")
        self.name = f"face-alignment {version} 2D"
        print(f"{self.name} on {device}: its weights (about 180 MB) are downloaded at the first use, to torch's cache", flush=True)
        kinds = face_alignment.LandmarksType
        try:
            self._network = face_alignment.FaceAlignment(kinds.TWO_D if hasattr(kinds, "TWO_D") else kinds._2D, device=str(device), flip_input=False)
        except OSError as error:  # urllib's errors are OSErrors
            raise InputError(f"face-alignment {version}: its weights cannot be downloaded ({error}); copy them to {torch.hub.get_dir()}/checkpoints "
                             f"from a machine with a network, or use --detector mediapipe ({INSTALL_MEDIAPIPE})") from error

    def find(self, path: Path) -> Found:
        """As Detector. Of several faces the largest."""
        image = read_square(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it warns of every picture without a face
            points, scores, boxes = self._network.get_landmarks_from_image(
                image.permute(1, 2, 0).numpy(), return_bboxes=True, return_landmark_score=True)
        if not points:
            return Found(torch.zeros(POINTS, 3), image.shape[2])
        largest = max(range(len(points)), key=lambda face: float((boxes[face][2] - boxes[face][0]) * (boxes[face][3] - boxes[face][1])))
        score = np.clip(np.asarray(scores[largest]).reshape(POINTS, 1), 0.0, 1.0)
        return Found(torch.from_numpy(np.concatenate([points[largest][:, :2], score], axis=1)).float(), image.shape[2])


class Worker:
    """A program that reads paths of pictures and answers with landmarks (mediapipe_worker.py says how), run by another Python."""

    def __init__(self, python: Path, script: Path, errors: Path) -> None:
        self._python, self._errors = python, errors
        try:
            with errors.open("wb") as stderr:
                # -I: this environment's PYTHONPATH means nothing in the other one.
                self._process = subprocess.Popen([str(python), "-I", str(script)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stderr)
        except OSError as error:
            raise InputError(f"--python: {python} cannot be run ({error.strerror}); expected the python of an environment with mediapipe: "
                             f"{INSTALL_MEDIAPIPE}, then --python mediapipe_env/bin/python") from error
        self.name = str(self._answer("at its start")["detector"])

    def find(self, path: Path) -> Found:
        """As Detector."""
        self._ask(path)
        try:
            size = read_square(path).shape[2]  # while the worker is at it: it does not notice a file that is cut off
        finally:
            points = self._answer(f"at {path}").get("points")
        if points is None:
            return Found(torch.zeros(POINTS, 3), size)
        found = torch.tensor(points, dtype=torch.float32)
        if found.shape != (POINTS, 3) or not bool(found.isfinite().all()):
            raise InputError(f"{self._python}: the worker answered with shape {tuple(found.shape)} or with numbers that are not finite at {path}; "
                             f"expected {POINTS} times x, y, score")
        return Found(found * torch.tensor([size, size, 1.0]), size)

    def close(self) -> None:
        """Ends the program."""
        with contextlib.suppress(OSError):
            self._process.stdin.close()
        self._process.terminate()
        self._process.wait()
        self._process.stdout.close()

    def _ask(self, path: Path) -> None:
        line = os.fsencode(path.resolve())
        if b"\n" in line:
            raise InputError(f"{path}: the worker takes one path a line, and this one has a line break in it; rename the folder")
        with contextlib.suppress(BrokenPipeError):  # it died: the missing answer is told
            self._process.stdin.write(line + b"\n")
            self._process.stdin.flush()

    def _answer(self, when: str) -> dict:
        line = self._process.stdout.readline()
        if not line.endswith(b"\n"):
            code = self._process.wait()
            words = self._errors.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-LAST_WORDS:] or ["none"]
            raise InputError("\n  ".join([f"{self._python}: the landmark worker ended {when} (exit code {code}). Its last words:", *words])
                             + f"\nIs mediapipe installed there? {INSTALL_MEDIAPIPE}")
        try:
            answer = json.loads(line)
            return {"detector": answer["detector"]} if "detector" in answer else {"points": answer["points"]}
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"{self._python}: the landmark worker answered {line[:80]!r} {when}; expected one JSON object a line") from error


def read_square(path: Path) -> UInt8[Tensor, "3 S S"]:
    """RGB. Raises UnusablePicture for a file that cannot be decoded and for a picture that is not square."""
    try:
        image = read_image(path)
    except InputError as error:
        raise UnusablePicture(str(error)) from error
    if image.shape[1] != image.shape[2]:
        raise UnusablePicture(f"{path}: expected a square picture, found {image.shape[2]}x{image.shape[1]}; crop the capture first")
    return image


def has_face_alignment() -> bool:
    """Whether the package can be imported here."""
    return importlib.util.find_spec("face_alignment") is not None


@contextlib.contextmanager
def started(choice: str, device: torch.device, python: Path | None) -> Iterator[Detector]:
    """The detector `face_alignment`, or `mediapipe` run by the given Python. Raises InputError where it cannot be had."""
    if choice == "face_alignment":
        if not has_face_alignment():
            raise InputError("--detector face_alignment: the package is not installed here: pip install face-alignment (needs scipy, "
                             "scikit-image, numba; downloads its weights)")
        yield FaceAlignment(device)
        return
    if python is None:
        raise InputError(f"--detector mediapipe: give --python, the interpreter of an environment with mediapipe. {INSTALL_MEDIAPIPE}, then "
                         "--python mediapipe_env/bin/python")
    with tempfile.TemporaryDirectory() as folder:
        worker = Worker(python, WORKER, Path(folder) / "stderr.txt")
        try:
            yield worker
        finally:
            worker.close()
