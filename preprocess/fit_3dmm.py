"""Fits a face model to the 2D landmarks of a subject folder: expression, head pose, 3D landmarks and vertices of every frame.

    python -m preprocess.fit_3dmm SUBJECT                         the shipped ICT head model
    python -m preprocess.fit_3dmm SUBJECT --model flame           from assets/face_models/ (bfm, flame, faceverse)
    python -m preprocess.fit_3dmm SUBJECT --silhouettes           also draws the outline of the face to that of the mattes
    python -m preprocess.fit_3dmm SUBJECT offset=0 kernel=2       keys of the priors (FitConfig); --config FILE reads them from YAML

Reads cameras/ and landmarks/, writes params/<frame>/{params.npz,lmk_3d.npy,vertices.npy} of all frames, or of none: params/fit.json says
whether the last run was complete. All frames are fitted together, from no start of yours, in a world of any unit and rotation.
How well it went: results/fit/<subject>/report.json, overlays.png, errors.png.
"""

import argparse
import io
import json
import os
import time
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from lib.config import read_config
from lib.config.reader import Arguments
from lib.datasets.images import read_image, write_image
from lib.datasets.layout import CaptureFolder
from lib.errors import InputError
from lib.face_models.library import MODELS, read_model
from lib.files import remove, write_whole
from lib.training.runtime import is_terminal, run
from preprocess.fit_config import FitConfig
from preprocess.fit_head import HeadFit, fit_head
from preprocess.fit_observations import read_observations
from preprocess.fit_outline import read_mattes
from preprocess.fit_report import as_json, make_report, print_report
from preprocess.fit_sheet import draw_curve, draw_overlays

NO_NEIGHBOURS = 1e6  # seconds between frames of different sequences, and between all where frames.json does not tell times


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("subject", type=Path, help="subject folder with cameras/ and landmarks/")
    parser.add_argument("words", nargs="*", metavar="key=value", help=f"priors: {', '.join(FitConfig.model_fields)}")
    parser.add_argument("--config", type=Path, default=Path(os.devnull), metavar="FILE", help="YAML file with such keys")
    parser.add_argument("--model", default="ict", choices=sorted(MODELS), help="face model (default: %(default)s)")
    parser.add_argument("--model-file", type=Path, help="its file, where that is not the usual one in assets/face_models/")
    parser.add_argument("--silhouettes", action="store_true", help="second pass that uses the mattes of some frames")
    parser.add_argument("--results", type=Path, default=Path("results") / "fit",
                        help="report and pictures go to <results>/<subject> (default: %(default)s)")
    options = parser.parse_intermixed_args()
    config = read_config(Arguments(options.config, tuple(options.words)), FitConfig)
    fit_subject(options.subject, options.model, options.model_file, config, options.silhouettes,
                options.results / options.subject.resolve().name)


def fit_subject(root: Path, model_name: str, model_file: Path | None, config: FitConfig, silhouettes: bool, results: Path) -> HeadFit:
    """Reads, fits, writes, reports. Raises InputError for whatever is missing or makes no sense; nothing is then written."""
    folder = CaptureFolder(root)
    frames = folder.frames()
    cameras = camera_names(folder, frames)
    model = read_model(model_name, model_file)
    seen = read_observations(folder, frames, cameras, original_size(folder, frames))
    print(f"{root}: {len(frames)} frames x {len(cameras)} cameras, landmarks found in {int((seen.scores > 0).any(dim=2).sum())} pictures; "
          f"{model_name}: {model.identity_count} identity and {model.expression_count} expression coefficients")
    began = time.perf_counter()
    mattes = (lambda chosen: read_mattes(folder, [frames[f] for f in chosen], cameras)) if silhouettes else None
    fit = fit_head(model, seen, frame_times(folder, frames), config, mattes)
    print(f"fitted in {time.perf_counter() - began:.1f} s")
    made_with = {"model": model_name, "frames": str(len(frames)), "cameras": ", ".join(cameras), "silhouettes": str(silhouettes),
                 "config": config.model_dump_json()}
    write_params(folder, frames, fit, made_with)
    report = make_report(fit, seen, frames, cameras, config)
    print_report(report, fit)
    write_whole(results / "report.json", json.dumps(as_json(report, fit, config, made_with), indent=1))
    write_image(results / "overlays.png", draw_overlays(folder, fit, seen, report, frames, cameras))
    write_image(results / "errors.png", draw_curve(report))
    print(f"wrote {root / 'params'}; look at {results / 'overlays.png'}")
    return fit


def camera_names(folder: CaptureFolder, frames: list[str]) -> list[str]:
    """All cameras that some frame has a file for, sorted. Raises InputError where there is none."""
    names = {name.removeprefix("camera_").removesuffix(".npz") for frame in frames for name in folder.files(frame).cameras
             if name.startswith("camera_") and name.endswith(".npz")}
    if not names:
        raise InputError(f"{folder.root / 'cameras'}: no frame has a camera_<camera>.npz; write them first (README, 'subject folder')")
    return sorted(names)


def original_size(folder: CaptureFolder, frames: list[str]) -> int:
    """Side of the full pictures, which the intrinsics are for. Raises InputError where there is no picture, or it is not square."""
    for frame in frames:
        files = folder.files(frame)
        for camera in sorted(files.pictured_cameras()):
            name = files.image_name(camera)
            if name is not None:
                height, width = read_image(folder.images_path(frame) / name).shape[1:]
                if height != width:
                    raise InputError(f"{folder.images_path(frame) / name}: expected a square picture, found {width} x {height}; crop, and shift "
                                     "the principal point of its camera accordingly")
                return height
    raise InputError(f"{folder.root / 'images'}: no frame has an image_<camera>.jpg or .png, so that the size the cameras are for is not known")


def frame_times(folder: CaptureFolder, frames: list[str]) -> Float[Tensor, "F"]:
    """Seconds; sequences follow one another at a great distance, as do all frames of a subject without frames.json."""
    records = folder.records(frames)
    if records is None:
        return NO_NEIGHBOURS * torch.arange(len(frames), dtype=torch.float64)
    sequences = {name: number for number, name in enumerate(dict.fromkeys(record.sequence for record in records))}
    return torch.tensor([NO_NEIGHBOURS * sequences[record.sequence] + record.time for record in records], dtype=torch.float64)


def write_params(folder: CaptureFolder, frames: list[str], fit: HeadFit, made_with: dict[str, str]) -> None:
    """Everything is on the disk beside its place before the first old file is replaced."""
    marker = folder.fit_path()
    for leftover in marker.parent.glob("*/*.fitted*"):  # of a process that was killed, and perhaps of other frames
        leftover.unlink()
    waiting: list[tuple[Path, Path]] = []
    count = fit.identity_count
    try:
        for index, frame in enumerate(tqdm(frames, desc="writing params", unit="frame", mininterval=0.5 if is_terminal() else 15.0)):
            vertices = fit.vertices(index)
            arrays = {
                folder.vertices_path(frame): _npy(vertices[:fit.model.written]),
                folder.landmarks_path(frame): _npy(fit.model.landmarks(vertices)),
                folder.params_path(frame): _npz(id_coeff=fit.identity[None, :count], exp_coeff=fit.expression[None, index],
                                                scale=fit.head.scale[index], pose=fit.head.pose[None, index]),
            }
            for path, data in arrays.items():
                beside = path.with_name(f"{path.name}.fitted")
                write_whole(beside, data)
                waiting.append((beside, path))
        write_whole(marker, json.dumps({"complete": False, "made_with": made_with}, indent=1))
    except BaseException:
        for beside, _ in waiting:
            remove(beside)
        raise
    for beside, path in waiting:
        beside.replace(path)
    write_whole(marker, json.dumps({"complete": True, "made_with": made_with}, indent=1))


def _npy(values: Tensor) -> bytes:
    file = io.BytesIO()
    np.save(file, values.float().numpy())
    return file.getvalue()


def _npz(**values: Tensor) -> bytes:
    file = io.BytesIO()
    np.savez(file, **{name: value.float().numpy() for name, value in values.items()})
    return file.getvalue()


if __name__ == "__main__":
    run(main)
