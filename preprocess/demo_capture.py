"""Films a demo head as raw NeRSemble has it, to try preprocessing on: videos of every camera, empty scenes, calibrations.

    python -m preprocess.demo_capture [PRESET] --output FOLDER --layout v1-zips|v1-subject|v2

The cameras are those of preprocess.demo_subject with portrait pictures, so that the published crop of 2600 pixels (of 3208) frames the
head in the same way; it stands before another wall for each camera (preprocess/demo_scene.py). FOLDER looks like a download and holds nothing
else. FOLDER_truth beside it is what preprocessing should find, a subject folder without pictures: cameras, params/, exact mattes
(mask_<camera>.jpg), frames.json, and landmarks/: the projected 68 landmarks, x and y in pixels of the cut pictures, score 1 where seen and
0.02 where the skin hides them. It numbers frames as `preprocess.nersemble --every N` does with N = --frame-step.
"""

import argparse
import dataclasses
import json
import shutil
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from lib.datasets.arrays import write_array
from lib.datasets.images import write_image, write_pixels
from lib.datasets.layout import CaptureFolder, by_number
from lib.datasets.video import VideoWriter, to_yuv420
from lib.errors import InputError
from lib.files import RunLock, replace_folder, write_whole
from lib.geometry.camera import Camera
from lib.training.runtime import choose_device, is_terminal, run
from preprocess.color_correction import expanded, to_linear
from preprocess.demo_head import WALL, DemoHead
from preprocess.demo_landmarks import Detector
from preprocess.demo_performance import SEQUENCES, Performance
from preprocess.demo_presets import PRESETS, Look
from preprocess.demo_scene import wall
from preprocess.demo_sensor import Sensor
from preprocess.demo_subject import (
    CAMERA_IDS,
    CAMERAS_AT_ONCE,
    FOCAL_WITH_HAIR,
    PIXELS_AT_ONCE,
    made_with,
    pick,
    rig_poses,
    write_camera,
    write_params,
)
from preprocess.raw_layouts import BACKGROUND, LAYOUTS, RawLayout
from preprocess.square_crop import PUBLISHED_CROP, RAW_HEIGHT, RAW_WIDTH, square_crop

# Shared by all cameras, as in the real rig: pixels of a 2200x3208 picture, the principal point a little off the centre.
PRINCIPAL_POINT = (1106.0, 1600.0)
CHART_TERMS, CHART_COLORS = 11, 140  # polynomial and number of colours that the second edition's calibration is fitted with
PRESET_OF_X264 = "veryfast"


@dataclass(frozen=True)
class Filming:
    """A raw capture to be made. `frames` counts those of every video; each `step`-th of them has its truth."""

    look: Look
    layout: str = "v2"
    person: str = "031"
    cameras: tuple[str, ...] = CAMERA_IDS
    sequences: tuple[str, ...] = tuple(sequence.name for sequence in SEQUENCES)
    frames: int = 6
    step: int = 1
    rate: int = 10  # per second
    height: int = 400
    size: int = 256  # of the cut pictures
    crf: int = 18
    sensor: Sensor = Sensor()
    detector: Detector = Detector()

    @property
    def width(self) -> int:
        """Of the portrait pictures; even, as H.264 wants."""
        return 2 * round(self.height * RAW_WIDTH / RAW_HEIGHT / 2)

    def request(self) -> dict[str, str]:
        """All that decides the content; frames.json of the truth keeps it."""
        return {key: str(value) for key, value in sorted(dataclasses.asdict(self).items())}


def main() -> None:
    """Command line."""
    default, names = Filming(PRESETS["demo"]), [sequence.name for sequence in SEQUENCES]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("preset", nargs="?", default="demo", choices=PRESETS, help=f"{', '.join(PRESETS)} (default: demo)")
    parser.add_argument("--output", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--layout", choices=[layout.name for layout in LAYOUTS], default=default.layout, help="(default: %(default)s)")
    parser.add_argument("--id", default=default.person, help="of the participant (default: %(default)s)")
    parser.add_argument("--cameras", nargs="+", choices=CAMERA_IDS, default=CAMERA_IDS, metavar="SERIAL", help="(default: all 16)")
    parser.add_argument("--sequences", nargs="+", choices=names, default=names, metavar="NAME", help=f"of {', '.join(names)} (default: all)")
    parser.add_argument("--frames", type=int, default=default.frames, help="of every video (default: %(default)s)")
    parser.add_argument("--frame-step", type=int, default=default.step, help="each of so many frames has its truth (default: %(default)s)")
    parser.add_argument("--rate", type=int, default=default.rate, help="frames per second; the real rig has 73 (default: %(default)s)")
    parser.add_argument("--height", type=int, default=default.height, help="of the pictures, made even; real ones have 3208 (default: %(default)s)")
    parser.add_argument("--size", type=int, default=default.size, help="of the truth: of the pictures cut out of these (default: %(default)s)")
    parser.add_argument("--crf", type=int, default=default.crf, help="x264's loss, 0 to 51 (default: %(default)s)")
    parser.add_argument("--noise", type=float, default=1.5, help="standard deviation in 8-bit levels (default: %(default)s)")
    parser.add_argument("--blur", type=float, default=0.4, help="standard deviation in pixels (default: %(default)s)")
    parser.add_argument("--color", type=float, default=0.05, help="standard deviation of each camera's gain per channel (default: %(default)s)")
    parser.add_argument("--landmark-noise", type=float, default=0.0, help="standard deviation in pixels of the cut pictures (default: %(default)s)")
    parser.add_argument("--landmark-outliers", type=float, default=0.0, help="share of landmarks that are anywhere (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of expressions, head motion, scene and sensor (default: %(default)s)")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:<n> or auto (default: %(default)s)")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing capture and its truth")
    options = parser.parse_args()
    filming = Filming(
        PRESETS[options.preset], options.layout, options.id, tuple(options.cameras), tuple(options.sequences), options.frames, options.frame_step,
        options.rate, 2 * round(options.height / 2), options.size, options.crf, Sensor(options.noise, options.blur, options.color, options.seed),
        Detector(options.landmark_noise, options.landmark_outliers, options.seed),
    )
    _check(filming)
    truth = truth_folder(options.output)
    if not options.overwrite and (options.output.exists() or truth.exists()):
        if made_with(truth) != filming.request():
            raise InputError(f"{options.output}: it or {truth.name} beside it exists, but is not the result of these options; "
                             "give --overwrite or another --output")
        if options.output.exists():  # the truth has its name first: it is alone where this was interrupted in between
            print(f"{options.output} is complete: nothing to do (--overwrite films it again)")
            return
    device = choose_device(options.device, option="--device")
    frames = film(filming, options.output, device)
    print(f"wrote {options.output}: layout {filming.layout}, participant {filming.person}, {len(filming.sequences)} sequences x "
          f"{len(filming.cameras)} cameras, {filming.frames} frames each, {filming.width}x{filming.height}; "
          f"the truth of {frames} of them at {filming.size}x{filming.size} is {truth}")


def _check(filming: Filming) -> None:
    sensor, detector = filming.sensor, filming.detector
    for option, value, low, high in (
        ("--frames", filming.frames, 1, np.inf), ("--frame-step", filming.step, 1, np.inf), ("--rate", filming.rate, 1, np.inf),
        ("--height", filming.height, 32, np.inf), ("--size", filming.size, 16, np.inf), ("--crf", filming.crf, 0, 51),
        ("--noise", sensor.noise, 0, np.inf), ("--blur", sensor.blur, 0, np.inf), ("--color", sensor.color, 0, 1),
        ("--landmark-noise", detector.noise, 0, np.inf), ("--landmark-outliers", detector.outliers, 0, 1),
    ):
        if not low <= value <= high:
            raise InputError(f"{option}: expected {low:g} to {high:g}, found {value:g}")


def truth_folder(output: Path) -> Path:
    """Where the truth of a capture lies."""
    return output.with_name(output.name + "_truth")


def film(filming: Filming, output: Path, device: str | torch.device = "cpu") -> int:
    """Writes the capture and its truth, replacing what was there, and returns the number of frames with truth.

    Both are made beside their place and moved when complete.
    """
    head = DemoHead(**dataclasses.asdict(filming.look), texture_size=filming.height, device=device)
    truth = truth_folder(output)
    partials = [place.with_name(place.name + ".partial") for place in (output, truth)]
    with RunLock(output.with_name(f".{output.name}.lock"), "--output"):
        try:
            for partial in partials:
                shutil.rmtree(partial, ignore_errors=True)
            frames = _Studio(filming, head, *partials).film()
            if output.exists():
                shutil.rmtree(output)  # so that it is never beside the truth of another one
            replace_folder(partials[1], truth)
            replace_folder(partials[0], output)
        finally:
            for partial in partials:
                shutil.rmtree(partial, ignore_errors=True)  # filming begins anew
    return frames


class _Studio:
    """Writes one capture and its truth, frame by frame."""

    def __init__(self, filming: Filming, head: DemoHead, raw: Path, truth: Path) -> None:
        self.filming, self.head, self.raw, self.truth = filming, head, raw, CaptureFolder(truth)
        self.rows = torch.tensor([CAMERA_IDS.index(camera) for camera in filming.cameras])
        self.full = raw_rig(self.rows)
        self.cameras = self.full.resized(filming.width, filming.height)
        self.crop = square_crop(PUBLISHED_CROP, filming.size, filming.width, filming.height)
        self.walls = [wall(filming.sensor.seed, row, filming.width, filming.height) for row in self.rows.tolist()]
        self.layout: RawLayout = next(layout for layout in LAYOUTS if layout.name == filming.layout)

    def film(self) -> int:
        """Everything; returns the number of frames with truth."""
        self._write_studio()
        records: list[dict[str, str | float]] = []
        performed = [sequence for sequence in SEQUENCES if sequence.name in self.filming.sequences]
        bar = tqdm(total=len(performed) * self.filming.frames, desc="filming", unit="frame", mininterval=0.5 if is_terminal() else 15.0)
        for sequence in sorted(performed, key=lambda sequence: by_number(sequence.name)):
            performance = Performance(self.head, sequence, self.filming.sensor.seed)
            with ExitStack() as stack:
                videos = [stack.enter_context(VideoWriter(self._path(self.layout.video, sequence.name, camera), self.filming.rate,
                                                          self.filming.crf, PRESET_OF_X264)) for camera in self.filming.cameras]
                for number in range(self.filming.frames):
                    time = number / self.filming.rate
                    moment = performance.at(time)
                    vertices = moment.head.to(self.head.device).to_world(self.head.vertices(moment.expression))
                    mattes = self._film_frame(vertices, videos, shot=bar.n)
                    if number % self.filming.step == 0:
                        frame = f"{len(records):04d}"
                        write_params(self.head, self.truth.params_path(frame).parent, moment)
                        self._write_truth(frame, vertices, mattes)
                        records.append({"frame": frame, "sequence": sequence.name, "time": round(time, 6)})
                    bar.update()
        bar.close()
        write_whole(self.truth.frames_path(), json.dumps({"frames": records, "made_with": self.filming.request()}, indent=1))
        return len(records)

    def _path(self, pattern: str, sequence: str = "", camera: str = "") -> Path:
        return self.layout.path(pattern, self.raw, self.filming.person, sequence, camera)

    def _film_frame(self, vertices: Float[Tensor, "N 3"], videos: list[VideoWriter], shot: int) -> list[Float[NDArray, "H W"]]:
        """Appends one picture to every video; returns the mattes."""
        mattes, at_once = [], min(CAMERAS_AT_ONCE, max(1, PIXELS_AT_ONCE // (self.cameras.width * self.cameras.height)))
        for part in torch.arange(len(videos)).split(at_once):
            picture = self.head.draw(vertices, pick(self.cameras, part))
            for image, mask, index in zip(picture.image.cpu(), picture.mask.cpu(), part.tolist(), strict=True):
                matte = mask[0].numpy()
                over = image.permute(1, 2, 0).numpy() + (1.0 - matte[..., None]) * (self.walls[index] - WALL)
                seen = self.filming.sensor.capture(over, int(self.rows[index]), shot)
                videos[index].add(to_yuv420(torch.from_numpy(seen).permute(2, 0, 1)))
                mattes.append(matte)
        return mattes

    def _write_truth(self, frame: str, vertices: Float[Tensor, "N 3"], mattes: list[Float[NDArray, "H W"]]) -> None:
        cut, filming = self.crop.camera(self.cameras), self.filming
        landmarks = filming.detector.detect(self.head, vertices[:len(self.head.neutral)].cpu(), cut, shot=int(frame))
        for index, camera in enumerate(filming.cameras):
            write_camera(self.truth.camera_path(frame, camera), cut, index)
            matte = self.crop.cut(np.round(255.0 * mattes[index]).astype(np.uint8))
            write_pixels(self.truth.image_path(frame, camera, "mask"), torch.from_numpy(matte).expand(3, -1, -1))
            path = self.truth.detections_path(frame, camera)
            write_array(path, landmarks[index])

    def _write_studio(self) -> None:
        """What does not change: calibrations, empty scenes, the detector's picture size."""
        filming = self.filming
        poses = {camera: [*pose.tolist(), [0.0, 0.0, 0.0, 1.0]] for camera, pose in zip(filming.cameras, self.full.world_to_camera, strict=True)}
        calibration = {"world_2_cam": poses, "intrinsics": self.full.intrinsics[0].tolist()}
        write_whole(self._path(self.layout.calibration), json.dumps(calibration, indent=1))
        gains = {camera: filming.sensor.gains(row) for camera, row in zip(filming.cameras, self.rows.tolist(), strict=True)}
        if self.layout.color_kind == "cheung":
            write_whole(self._path(self.layout.color), json.dumps({camera: _chart_fit(gain).tolist() for camera, gain in gains.items()}, indent=1))
        for index, camera in enumerate(filming.cameras):
            if self.layout.color_kind == "affine":
                path = self._path(self.layout.color, camera=camera)
                write_array(path, np.diag([*(1.0 / gains[camera]), 1.0]))
            empty = filming.sensor.capture(self.walls[index], int(self.rows[index]), shot=len(filming.sequences) * filming.frames)
            write_image(self._path(self.layout.background, BACKGROUND, camera), torch.from_numpy(empty).permute(2, 0, 1))
        write_whole(self.truth.detector_path(), json.dumps({"size": filming.size, "detector": "projected landmarks of the demo head"}))


def raw_rig(rows: Tensor) -> Camera:
    """Some of the 16 cameras with pictures of 2200x3208; the published crop shows them the head as preprocess.demo_subject does."""
    intrinsics = torch.eye(3).repeat(len(rows), 1, 1)
    intrinsics[:, 0, 0] = intrinsics[:, 1, 1] = FOCAL_WITH_HAIR * PUBLISHED_CROP[2]
    intrinsics[:, :2, 2] = torch.tensor(PRINCIPAL_POINT)
    return Camera(rig_poses()[rows], intrinsics, RAW_WIDTH, RAW_HEIGHT)


def _chart_fit(gains: Float[NDArray, "3"]) -> Float[NDArray, "3 T"]:
    """The polynomial that takes a chart's colours, as a camera with these gains records them, back, in linear light."""
    colors = np.random.default_rng(0).uniform(0.0, 1.0, (CHART_COLORS, 3)) / max(1.0, float(gains.max()))  # none is overexposed
    terms = expanded(to_linear(colors * gains), CHART_TERMS)
    return np.linalg.lstsq(terms, to_linear(colors), rcond=None)[0].T


if __name__ == "__main__":
    run(main)
