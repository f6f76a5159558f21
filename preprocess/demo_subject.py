"""Renders synthetic multi-camera captures of demo heads as subject folders (README, 'subject folder').

Sixteen cameras around the front half, several named sequences of smooth expressions and head motion, exact mattes.
The same options on the same CPU write the same bytes. `<subject>/driver/` holds parameters of a longer,
denser performance without any image, to drive an avatar with. Several subjects from one command:
`python -m preprocess.demo_subject demo curly bob` writes demo_dataset/demo, demo_dataset/curly and demo_dataset/bob.
"""

import argparse
import dataclasses
import json
import multiprocessing
import shutil
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from lib.datasets.arrays import write_array, write_arrays
from lib.datasets.images import write_pixels
from lib.datasets.layout import LOWRES_SIZE, CaptureFolder
from lib.errors import InputError
from lib.face_models.ict import FACE_ROWS
from lib.files import RunLock, replace_folder, write_whole
from lib.geometry.camera import Camera, look_at
from lib.training.runtime import choose_device, run
from preprocess.demo_hair import HAIR_COLORS, card_names
from preprocess.demo_head import IDENTITIES, WALL, DemoHead
from preprocess.demo_performance import SEQUENCES, Moment, Performance
from preprocess.demo_presets import PRESETS, Look
from preprocess.demo_sensor import Sensor

# The serials of the NeRSemble rig, so that configurations written for it fit.
CAMERA_IDS = ("220700191", "221501007", *(str(222200036 + k) for k in range(14)))
HELD_OUT_CAMERA, HELD_OUT_SEQUENCE = "222200042", "SEN-01-talk"
AZIMUTHS_DEG = tuple(np.linspace(-80.0, 80.0, len(CAMERA_IDS)))
ELEVATIONS_DEG = (2.0, 20.0, -12.0, 8.0)  # in turn along the rig
DISTANCE_M, LOOK_AT_M = 1.1, (0.0, -0.004, 0.0)
FOCAL_PER_PIXEL, FOCAL_WITH_HAIR = 3.4, 3.1  # of the image size: hair stands about a centimetre above the skull
# Every third camera has its principal point off the centre by these fractions of the image size.
OFF_CENTRE = (0.035, -0.025)
# Cameras drawn together: few enough that 2048² fits into about 4 GB.
CAMERAS_AT_ONCE, PIXELS_AT_ONCE = 4, 4 * 512**2
FRAME_PERIOD_S, DRIVER_PERIOD_S = 0.6, 0.04  # the capture is sparse, so that its frames differ
PERFECT = Sensor()


def rig_poses() -> Float[Tensor, "16 3 4"]:
    """World->camera of the 16 cameras: centre = at + d·(cos e sin a, sin e, cos e cos a), y up."""
    azimuth = torch.deg2rad(torch.tensor(AZIMUTHS_DEG, dtype=torch.float64))
    elevation = torch.deg2rad(torch.tensor([ELEVATIONS_DEG[k % len(ELEVATIONS_DEG)] for k in range(len(CAMERA_IDS))], dtype=torch.float64))
    at = torch.tensor(LOOK_AT_M, dtype=torch.float64).expand(len(CAMERA_IDS), 3)
    direction = torch.stack([elevation.cos() * azimuth.sin(), elevation.sin(), elevation.cos() * azimuth.cos()], dim=1)
    return look_at(at + DISTANCE_M * direction, at).float()


def rig(resolution: int, focal_per_pixel: float = FOCAL_PER_PIXEL) -> Camera:
    """The 16 cameras with square pictures."""
    intrinsics = torch.eye(3, dtype=torch.float64).repeat(len(CAMERA_IDS), 1, 1)
    intrinsics[:, 0, 0] = intrinsics[:, 1, 1] = focal_per_pixel * resolution
    intrinsics[:, :2, 2] = resolution / 2
    intrinsics[::3, :2, 2] += torch.tensor(OFF_CENTRE, dtype=torch.float64) * resolution
    return Camera(rig_poses(), intrinsics.float(), resolution, resolution)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("subjects", nargs="*", default=["demo"], help=f"presets: {', '.join(PRESETS)} (default: demo)")
    parser.add_argument("--root", type=Path, default=Path("demo_dataset"), help="each subject is written to <root>/<preset> (default: %(default)s)")
    parser.add_argument("--output", type=Path, help="folder to write a single subject to, instead of <root>/<preset>")
    parser.add_argument("--resolution", type=int, default=256, help="image width and height in pixels (default: %(default)s)")
    parser.add_argument("--frames", type=int, default=50, help=f"frames, spread over {len(SEQUENCES)} sequences (default: %(default)s)")
    parser.add_argument("--driver-frames", type=int, default=75, help="frames of the driving performance (default: %(default)s)")
    look = parser.add_argument_group("look", "each replaces that part of the preset")
    look.add_argument("--identity", help=", ".join(IDENTITIES))
    look.add_argument("--skin", help="name in assets/demo_head/textures without _face.jpg")
    look.add_argument("--iris", help="name in assets/demo_head/textures without .png")
    look.add_argument("--hair", help=f"none, {', '.join(card_names('hair'))}")
    look.add_argument("--eyebrows", help=f"none, {', '.join(card_names('eyebrows'))}; the skin lps has painted ones")
    look.add_argument("--hair-color", help=f"none (as painted), {', '.join(HAIR_COLORS)}")
    sensor = parser.add_argument_group("sensor", "applied to the captured pictures and the empty scene, never to mattes and the expressionless truth")
    sensor.add_argument("--noise", type=float, default=0.0, help="standard deviation in 8-bit levels (default: %(default)s)")
    sensor.add_argument("--blur", type=float, default=0.0, help="standard deviation in pixels (default: %(default)s)")
    sensor.add_argument("--color", type=float, default=0.0, help="standard deviation of each camera's gain per channel (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of expressions, head motion and sensor (default: %(default)s)")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:<n> or auto (default: %(default)s)")
    parser.add_argument("--workers", type=int, default=1, help="processes that share the frames, and the GPUs with --device cuda (default: 1)")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing output folder")
    options = parser.parse_args()
    if options.frames < len(SEQUENCES) or options.resolution < 16 or options.driver_frames < 0 or options.workers < 1:
        raise InputError(f"expected --frames >= {len(SEQUENCES)}, --resolution >= 16, --driver-frames >= 0 and --workers >= 1, found "
                         f"{options.frames}, {options.resolution}, {options.driver_frames} and {options.workers}")
    if min(options.noise, options.blur, options.color) < 0:
        raise InputError(f"expected --noise, --blur and --color >= 0, found {options.noise}, {options.blur} and {options.color}")
    unknown = [name for name in options.subjects if name not in PRESETS]
    if unknown:
        raise InputError(f"'{unknown[0]}': no such preset; expected some of {', '.join(PRESETS)}")
    if options.output is not None and len(options.subjects) > 1:
        raise InputError(f"--output names one folder, but {len(options.subjects)} subjects are asked for; give --root instead")
    # Everything is checked before the first picture: nobody returns to half of the subjects and an error.
    pending = [subject for name in dict.fromkeys(options.subjects) if not (subject := _subject(name, options)).is_complete(options.overwrite)]
    device = choose_device(options.device, option="--device")
    for subject in pending:
        subject.head(device, texture_size=16)
    for subject in pending:
        subject.make(device, options.workers)


def _subject(name: str, options: argparse.Namespace) -> "Subject":
    changes = {field.name: value for field in dataclasses.fields(Look) if (value := getattr(options, field.name)) is not None}
    return Subject(
        output=options.output or options.root / name,
        look=dataclasses.replace(PRESETS[name], **{key: None if value == "none" else value for key, value in changes.items()}),
        resolution=options.resolution, frames=options.frames, driver_frames=options.driver_frames,
        sensor=Sensor(options.noise, options.blur, options.color, options.seed),
    )


@dataclass(frozen=True)
class Subject:
    """One subject folder to be written."""

    output: Path
    look: Look
    resolution: int
    frames: int
    driver_frames: int
    sensor: Sensor

    def request(self) -> dict[str, str]:
        """All that decides the content of the folder; frames.json keeps it."""
        values = dataclasses.asdict(self.look) | dataclasses.asdict(self.sensor)
        values |= {"resolution": self.resolution, "frames": self.frames, "driver_frames": self.driver_frames}
        return {key: str(value) for key, value in sorted(values.items())}

    def is_complete(self, overwrite: bool) -> bool:
        """True where the folder was made with this request already; InputError where it is something else."""
        if overwrite or not self.output.exists():
            return False
        if made_with(self.output) != self.request():
            raise InputError(f"{self.output}: exists, but is not the result of these options; give --overwrite or another --output")
        print(f"{self.output} is complete: nothing to do (--overwrite renders it again)")
        return True

    def head(self, device: torch.device, texture_size: int) -> DemoHead:
        """The head with this look; InputError for unknown names."""
        return DemoHead(**dataclasses.asdict(self.look), texture_size=texture_size, device=device)

    def make(self, device: torch.device, workers: int = 1) -> None:
        """Renders beside the place and moves: an interrupted rendering never looks like a subject, and never harms the old one."""
        partial = self.output.with_name(self.output.name + ".partial")
        with RunLock(self.output.with_name(f".{self.output.name}.lock"), "--output"):
            shutil.rmtree(partial, ignore_errors=True)
            try:
                records = self._render(partial, device, workers)
                replace_folder(partial, self.output)
            finally:
                shutil.rmtree(partial, ignore_errors=True)  # a rendering begins anew
        print(f"wrote {self.output}: {len(records)} frames x {len(CAMERA_IDS)} cameras, {self.resolution}x{self.resolution}; "
              f"{self.driver_frames} driving frames in {self.output / 'driver'}")

    def _render(self, partial: Path, device: torch.device, workers: int) -> list[dict[str, str | float]]:
        """The whole folder; returns the rows of frames.json."""
        if workers == 1:
            records = self._write(partial, device, (0, 1))
        else:
            devices = [torch.device("cuda", k) for k in range(torch.cuda.device_count())] if device.type == "cuda" else [device]
            threads = max(1, torch.get_num_threads() // workers)
            with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), torch.set_num_threads, (threads,)) as processes:
                parts = [processes.submit(self._write, partial, devices[k % len(devices)], (k, workers)) for k in range(workers)]
                try:
                    records = [part.result() for part in parts][0]
                except BrokenProcessPool as error:
                    raise InputError(f"{self.output}: one of {workers} processes ended without saying why; was it killed, for want of memory? Give "
                                     "fewer --workers") from error
        write_driver(self.head(torch.device("cpu"), texture_size=16), partial / "driver", self.driver_frames, self.sensor.seed)
        write_whole(partial / "frames.json", json.dumps({"frames": records, "made_with": self.request()}, indent=1))
        return records

    def _write(self, folder: Path, device: torch.device, share: tuple[int, int]) -> list[dict[str, str | float]]:
        head = self.head(device, texture_size=2 * self.resolution)
        return write_subject(head, folder, self.resolution, self.frames, self.sensor.seed, self.sensor, share)


def made_with(folder: Path) -> dict[str, str] | None:
    """The options a finished demo subject was made with; None for any other folder."""
    try:
        return json.loads((folder / "frames.json").read_text(encoding="utf-8"))["made_with"]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def write_subject(
    head: DemoHead, output: Path, resolution: int, frames: int, seed: int, sensor: Sensor = PERFECT, share: tuple[int, int] = (0, 1)
) -> list[dict[str, str | float]]:
    """Renders all frames and cameras, or of `share` (k, n) frames k, k + n, ... alone; returns the rows of frames.json, of all frames."""
    folder, cameras = CaptureFolder(output), rig(resolution, FOCAL_WITH_HAIR if head.cards else FOCAL_PER_PIXEL)
    at_once = min(CAMERAS_AT_ONCE, max(1, PIXELS_AT_ONCE // resolution**2))
    records: list[dict[str, str | float]] = []
    moments = []
    for number, part in enumerate(np.array_split(np.arange(frames), len(SEQUENCES))):
        performance = Performance(head, SEQUENCES[number], seed)
        for position, index in enumerate(part):
            time = float(position * FRAME_PERIOD_S)
            records.append({"frame": f"{index:04d}", "sequence": SEQUENCES[number].name, "time": time})
            moments.append(performance.at(time))
    empty = np.full((resolution, resolution, 3), WALL, dtype=np.float32)
    for row, camera in enumerate(CAMERA_IDS if share[0] == 0 else ()):
        _write_image(folder.background_path(camera), sensor.capture(empty, row, shot=frames))
    shots = list(enumerate(zip(records, moments, strict=True)))[share[0]::share[1]]
    for shot, (record, moment) in tqdm(shots, desc=f"rendering {output.stem}", unit="frame", disable=share[0] > 0):
        frame = str(record["frame"])
        vertices = write_params(head, output / "params" / frame, moment)
        neutral = moment.head.to(head.device).to_world(head.vertices(torch.zeros_like(moment.expression)))
        for rows in torch.arange(len(CAMERA_IDS)).split(at_once):
            picture = head.draw(vertices, pick(cameras, rows))
            for k, row in enumerate(rows.tolist()):
                camera = CAMERA_IDS[row]
                write_camera(folder.camera_path(frame, camera), cameras, row)
                for kind, pixels in (("image", picture.image[k]), ("mask", picture.mask[k]), ("visible", torch.ones(1, resolution, resolution))):
                    full = pixels.permute(1, 2, 0).expand(-1, -1, 3).cpu().numpy()
                    if kind == "image":
                        full = sensor.capture(full, row, shot)
                    _write_image(folder.image_path(frame, camera, kind), full)
                    small = full if resolution == LOWRES_SIZE else cv2.resize(full, (LOWRES_SIZE, LOWRES_SIZE), interpolation=cv2.INTER_AREA)
                    _write_image(folder.image_path(frame, camera, kind, lowres=True), small)
            # The yardstick of evaluation: the truth without expression, where something is held out.
            held = [row for row in rows.tolist() if record["sequence"] == HELD_OUT_SEQUENCE or CAMERA_IDS[row] == HELD_OUT_CAMERA]
            if held:
                without = head.draw(neutral, pick(cameras, torch.tensor(held)))
                for k, row in enumerate(held):
                    for kind, pixels in (("image", without.image[k]), ("mask", without.mask[k])):
                        path = folder.expressionless_path(frame, CAMERA_IDS[row], kind)
                        _write_image(path, pixels.permute(1, 2, 0).expand(-1, -1, 3).cpu().numpy())
    return records


def write_driver(head: DemoHead, output: Path, frames: int, seed: int) -> None:
    """Parameters of the held-out performance at video rate."""
    sequence = next(sequence for sequence in SEQUENCES if sequence.name == HELD_OUT_SEQUENCE)
    performance = Performance(head, sequence, seed)
    for index in range(frames):
        write_params(head, output / "params" / f"{index:04d}", performance.at(index * DRIVER_PERIOD_S))


def write_params(head: DemoHead, folder: Path, moment: Moment) -> Float[Tensor, "N 3"]:
    """Writes params.npz, lmk_3d.npy and vertices.npy of one moment; returns all posed vertices, hair too, in the world."""
    vertices = moment.head.to(head.device).to_world(head.vertices(moment.expression))
    write_arrays(folder / "params.npz", id_coeff=head.identity_coefficients[None], exp_coeff=moment.expression[None].numpy(),
                 scale=moment.head.scale.numpy(), pose=moment.head.pose[None].numpy())
    write_array(folder / "lmk_3d.npy", vertices[head.landmark_rows].cpu().numpy())
    write_array(folder / "vertices.npy", vertices[FACE_ROWS].cpu().numpy())
    return vertices


def pick(cameras: Camera, rows: Tensor) -> Camera:
    """Some cameras of a batch."""
    return Camera(cameras.world_to_camera[rows], cameras.intrinsics[rows], cameras.width, cameras.height)


def write_camera(path: Path, cameras: Camera, row: int) -> None:
    """The npz of one camera of a batch."""
    write_arrays(path, extrinsic=cameras.world_to_camera[row].numpy(), intrinsic=cameras.intrinsics[row].numpy())


def _write_image(path: Path, rgb: NDArray[np.float32]) -> None:
    """RGB in [0,1] as an 8-bit JPEG."""
    pixels = np.round(np.clip(rgb, 0.0, 1.0) * 255.0).astype(np.uint8)
    write_pixels(path, torch.from_numpy(pixels).permute(2, 0, 1))


if __name__ == "__main__":
    run(main)
