"""Renders a synthetic multi-camera capture of the demo head as a subject folder (README, 'subject folder').

Sixteen cameras around the front half, several named sequences of smooth expressions and head motion, exact mattes.
The same options on the same machine write the same bytes. `<output>/driver/` holds parameters of a longer,
denser performance without any image, to drive an avatar with.
"""

import argparse
import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from lib.datasets.layout import CaptureFolder
from lib.errors import InputError
from lib.geometry.camera import Camera, look_at
from lib.geometry.head_pose import HeadPose
from lib.training.runtime import run
from preprocess.demo_head import FACE_ROWS, IDENTITIES, WALL, DemoHead

# The serials of the NeRSemble rig, so that configurations written for it fit.
CAMERA_IDS = ("220700191", "221501007", *(str(222200036 + k) for k in range(14)))
HELD_OUT_CAMERA, HELD_OUT_SEQUENCE = "222200042", "SEN-01-talk"
AZIMUTHS_DEG = tuple(np.linspace(-80.0, 80.0, len(CAMERA_IDS)))
ELEVATIONS_DEG = (2.0, 20.0, -12.0, 8.0)  # in turn along the rig
DISTANCE_M, LOOK_AT_M, FOCAL_PER_PIXEL = 1.1, (0.0, -0.004, 0.0), 3.4
# Every third camera has its principal point off the centre by these fractions of the image size.
OFF_CENTRE = (0.035, -0.025)
SCALE_M = 0.1  # world metres per canonical unit
LOWRES = 256
JPEG_QUALITY = 95
CAMERAS_AT_ONCE = 4
FRAME_PERIOD_S, DRIVER_PERIOD_S = 0.25, 0.04

# What a gesture is made of; sequences share these and differ in which they use and when.
GESTURES: dict[str, dict[str, float]] = {
    "blink": {"eyeBlink": 1.0},
    "wide": {"eyeWide": 0.9, "browInnerUp": 0.5, "browOuterUp": 0.6},
    "look_left": {"eyeLookOut_L": 0.9, "eyeLookIn_R": 0.9},
    "look_right": {"eyeLookIn_L": 0.9, "eyeLookOut_R": 0.9},
    "look_down": {"eyeLookDown": 0.8},
    "open": {"jawOpen": 0.8},
    "smile": {"mouthSmile": 0.9, "cheekSquint": 0.5},
    "pucker": {"mouthPucker": 0.9},
    "funnel": {"mouthFunnel": 0.8, "jawOpen": 0.25},
    "stretch": {"mouthStretch": 0.6, "mouthLowerDown": 0.7},
    "frown": {"mouthFrown": 0.8, "browDown": 0.8},
    "sneer": {"noseSneer": 0.7, "mouthUpperUp": 0.6},
    "jaw_left": {"jawLeft": 0.7},
    "puff": {"cheekPuff": 0.7},
}


@dataclass(frozen=True)
class Sequence:
    """Which gestures occur, with how much head motion (radians, metres)."""

    name: str
    gestures: tuple[str, ...]
    rotation: float
    translation: float


SEQUENCES = (
    Sequence("EXP-1-head", ("blink", "look_left", "look_right", "smile"), 0.28, 0.012),
    Sequence("EXP-2-eyes", ("blink", "wide", "look_left", "look_right", "look_down", "frown"), 0.06, 0.004),
    Sequence("EXP-5-mouth", ("open", "pucker", "funnel", "stretch", "jaw_left", "puff", "blink"), 0.08, 0.005),
    Sequence("EMO-1-shout+laugh", ("open", "smile", "stretch", "sneer", "wide", "frown"), 0.16, 0.010),
    Sequence("SEN-01-talk", ("open", "pucker", "funnel", "smile", "stretch", "blink", "look_left"), 0.14, 0.006),
)


@dataclass(frozen=True)
class Moment:
    """The head at one instant."""

    expression: Float[Tensor, "E"]
    head: HeadPose


class Performance:
    """A smooth, endless performance of one sequence, fixed by the seed."""

    def __init__(self, head: DemoHead, sequence: Sequence, seed: int) -> None:
        random = np.random.default_rng([seed, *sequence.name.encode()])
        count = len(sequence.gestures)
        self.shapes = torch.stack([head.coefficients(GESTURES[name]) for name in sequence.gestures])
        self.frequency = random.uniform(0.35, 0.8, (2, count))  # Hz
        self.phase = random.uniform(0.0, 2 * np.pi, (2, count))
        self.head_frequency, self.head_phase = random.uniform(0.15, 0.45, 6), random.uniform(0.0, 2 * np.pi, 6)
        self.head_amplitude = np.array([0.5, 1.0, 0.4]) * sequence.rotation, np.full(3, sequence.translation)

    def at(self, time: float) -> Moment:
        """Expression coefficients in about [0,1] and head pose `time` seconds after the start."""
        wave = np.sin(2 * np.pi * self.frequency * time + self.phase)
        activation = np.clip(0.75 * wave[0] + 0.45 * wave[1] - 0.1, 0.0, 1.0)
        smooth = activation * activation * (3.0 - 2.0 * activation)
        expression = (torch.from_numpy(smooth).float() @ self.shapes).clamp(0.0, 1.0)
        motion = np.sin(2 * np.pi * self.head_frequency * time + self.head_phase)
        pose = np.concatenate([motion[:3] * self.head_amplitude[0], motion[3:] * self.head_amplitude[1]])
        return Moment(expression, HeadPose(torch.from_numpy(pose).float(), torch.tensor([SCALE_M])))


def rig(resolution: int) -> Camera:
    """The 16 cameras: centre = at + d·(cos e sin a, sin e, cos e cos a), y up."""
    azimuth = torch.deg2rad(torch.tensor(AZIMUTHS_DEG, dtype=torch.float64))
    elevation = torch.deg2rad(torch.tensor([ELEVATIONS_DEG[k % len(ELEVATIONS_DEG)] for k in range(len(CAMERA_IDS))], dtype=torch.float64))
    at = torch.tensor(LOOK_AT_M, dtype=torch.float64).expand(len(CAMERA_IDS), 3)
    direction = torch.stack([elevation.cos() * azimuth.sin(), elevation.sin(), elevation.cos() * azimuth.cos()], dim=1)
    intrinsics = torch.eye(3, dtype=torch.float64).repeat(len(CAMERA_IDS), 1, 1)
    intrinsics[:, 0, 0] = intrinsics[:, 1, 1] = FOCAL_PER_PIXEL * resolution
    intrinsics[:, :2, 2] = resolution / 2
    intrinsics[::3, :2, 2] += torch.tensor(OFF_CENTRE, dtype=torch.float64) * resolution
    return Camera(look_at(at + DISTANCE_M * direction, at).float(), intrinsics.float(), resolution, resolution)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("demo_dataset/demo"), help="subject folder to write (default: %(default)s)")
    parser.add_argument("--resolution", type=int, default=256, help="image width and height in pixels (default: %(default)s)")
    parser.add_argument("--frames", type=int, default=40, help=f"frames, spread over {len(SEQUENCES)} sequences (default: %(default)s)")
    parser.add_argument("--driver-frames", type=int, default=75, help="frames of the driving performance (default: %(default)s)")
    parser.add_argument("--identity", default=IDENTITIES[0], help=f"{', '.join(IDENTITIES)} (default: %(default)s)")
    parser.add_argument("--skin", default="lps", help="name in assets/demo_head/textures without _face.jpg (default: %(default)s)")
    parser.add_argument("--iris", default="iris_brown", help="name in assets/demo_head/textures without .png (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of expressions and head motion (default: %(default)s)")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing output folder")
    options = parser.parse_args()
    if options.frames < len(SEQUENCES) or options.resolution < 16 or options.driver_frames < 0:
        raise InputError(f"expected --frames >= {len(SEQUENCES)}, --resolution >= 16 and --driver-frames >= 0, found "
                         f"{options.frames}, {options.resolution} and {options.driver_frames}")
    request = {key: str(value) for key, value in sorted(vars(options).items()) if key not in ("overwrite", "output")}
    if options.output.exists() and not options.overwrite:
        if _made_with(options.output) == request:
            print(f"{options.output} is complete: nothing to do (--overwrite renders it again)")
            return
        raise InputError(f"{options.output}: exists, but is not the result of these options; give --overwrite or another --output")

    head = DemoHead(options.identity, options.skin, options.iris, texture_size=2 * options.resolution)
    # Rendered beside its place: an interrupted rendering never looks like a subject, and never harms the old one.
    partial = options.output.with_name(options.output.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    records = write_subject(head, partial, options.resolution, options.frames, options.seed)
    write_driver(head, partial / "driver", options.driver_frames, options.seed)
    (partial / "frames.json").write_text(json.dumps({"frames": records, "made_with": request}, indent=1))
    if options.output.exists():
        shutil.rmtree(options.output)
    partial.rename(options.output)
    print(f"wrote {options.output}: {len(records)} frames x {len(CAMERA_IDS)} cameras, {options.resolution}x{options.resolution}; "
          f"{options.driver_frames} driving frames in {options.output / 'driver'}")


def _made_with(folder: Path) -> dict[str, str] | None:
    """The options a finished demo subject was made with; None for any other folder."""
    try:
        return json.loads((folder / "frames.json").read_text(encoding="utf-8"))["made_with"]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def write_subject(head: DemoHead, output: Path, resolution: int, frames: int, seed: int) -> list[dict[str, str | float]]:
    """Renders all frames and cameras; returns the rows of frames.json."""
    folder, cameras = CaptureFolder(output), rig(resolution)
    records: list[dict[str, str | float]] = []
    moments = []
    for number, part in enumerate(np.array_split(np.arange(frames), len(SEQUENCES))):
        performance = Performance(head, SEQUENCES[number], seed)
        for position, index in enumerate(part):
            time = float(position * FRAME_PERIOD_S)
            records.append({"frame": f"{index:04d}", "sequence": SEQUENCES[number].name, "time": time})
            moments.append(performance.at(time))
    for camera in CAMERA_IDS:
        _write_image(folder.background_path(camera), np.full((resolution, resolution, 3), WALL, dtype=np.float32))
    for record, moment in tqdm(list(zip(records, moments, strict=True)), desc="rendering frames", unit="frame"):
        frame = str(record["frame"])
        vertices = write_params(head, output / "params" / frame, moment)
        neutral = moment.head.to_world(head.vertices(torch.zeros_like(moment.expression)))
        for rows in torch.arange(len(CAMERA_IDS)).split(CAMERAS_AT_ONCE):
            picture = head.draw(vertices, _pick(cameras, rows))
            for k, row in enumerate(rows.tolist()):
                camera = CAMERA_IDS[row]
                _write_camera(folder.camera_path(frame, camera), cameras, row)
                for kind, pixels in (("image", picture.image[k]), ("mask", picture.mask[k]), ("visible", torch.ones(1, resolution, resolution))):
                    full = pixels.permute(1, 2, 0).expand(-1, -1, 3).numpy()
                    _write_image(folder.image_path(frame, camera, kind), full)
                    small = full if resolution == LOWRES else cv2.resize(full, (LOWRES, LOWRES), interpolation=cv2.INTER_AREA)
                    _write_image(folder.image_path(frame, camera, kind, lowres=True), small)
            # The yardstick of evaluation: the truth without expression, where something is held out.
            held = [row for row in rows.tolist() if record["sequence"] == HELD_OUT_SEQUENCE or CAMERA_IDS[row] == HELD_OUT_CAMERA]
            if held:
                without = head.draw(neutral, _pick(cameras, torch.tensor(held)))
                for k, row in enumerate(held):
                    for kind, pixels in (("image", without.image[k]), ("mask", without.mask[k])):
                        path = folder.expressionless_path(frame, CAMERA_IDS[row], kind)
                        _write_image(path, pixels.permute(1, 2, 0).expand(-1, -1, 3).numpy())
    return records


def write_driver(head: DemoHead, output: Path, frames: int, seed: int) -> None:
    """Parameters of the held-out performance at video rate."""
    sequence = next(sequence for sequence in SEQUENCES if sequence.name == HELD_OUT_SEQUENCE)
    performance = Performance(head, sequence, seed)
    for index in range(frames):
        write_params(head, output / "params" / f"{index:04d}", performance.at(index * DRIVER_PERIOD_S))


def write_params(head: DemoHead, folder: Path, moment: Moment) -> Float[Tensor, "N 3"]:
    """Writes params.npz, lmk_3d.npy and vertices.npy of one moment; returns all posed vertices in the world."""
    vertices = moment.head.to_world(head.vertices(moment.expression))
    folder.mkdir(parents=True, exist_ok=True)
    np.savez(folder / "params.npz", id_coeff=head.identity_coefficients[None], exp_coeff=moment.expression[None].numpy(),
             scale=moment.head.scale.numpy(), pose=moment.head.pose[None].numpy())
    np.save(folder / "lmk_3d.npy", vertices[head.landmark_rows].numpy())
    np.save(folder / "vertices.npy", vertices[FACE_ROWS].numpy())
    return vertices


def _pick(cameras: Camera, rows: Tensor) -> Camera:
    return Camera(cameras.world_to_camera[rows], cameras.intrinsics[rows], cameras.width, cameras.height)


def _write_camera(path: Path, cameras: Camera, row: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, extrinsic=cameras.world_to_camera[row].numpy(), intrinsic=cameras.intrinsics[row].numpy())


def _write_image(path: Path, rgb: NDArray[np.float32]) -> None:
    """RGB in [0,1] as an 8-bit JPEG."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.round(np.clip(rgb, 0.0, 1.0) * 255.0).astype(np.uint8)
    if not cv2.imwrite(str(path), pixels[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY]):
        raise InputError(f"{path}: cannot be written; is the disk full or the folder read-only?")


if __name__ == "__main__":
    run(main)
