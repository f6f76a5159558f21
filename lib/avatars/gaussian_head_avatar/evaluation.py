"""Measures a trained avatar on pictures it was not trained on. Definitions: docs/evaluation.md."""

import json
import math
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from lib.avatars.gaussian_head_avatar.avatar import GaussianAvatar, avatar_from, check_resolution
from lib.avatars.gaussian_head_avatar.config import check_held_out, check_same, check_subject, shares_frames
from lib.avatars.gaussian_head_avatar.gaussian_stage import GaussianHeadTrainConfig
from lib.avatars.gaussian_head_avatar.published import read_gaussian_head
from lib.datasets.batches import HeadBatch
from lib.datasets.head_capture import HeadCapture, Picture
from lib.datasets.images import write_image
from lib.datasets.layout import LEFT_MOUTH_ROW, LOWER_LIP_ROW, MOUTH_ROWS, RIGHT_MOUTH_ROW, UPPER_LIP_ROW
from lib.datasets.sampler import spread
from lib.errors import InputError
from lib.files import write_whole
from lib.metrics.psnr import psnr
from lib.metrics.ssim import ssim
from lib.training.recorder import image_rows, read_seconds, shrink, write_seconds
from lib.training.runtime import choose_device, is_terminal

OPEN_MOUTH = 0.2  # of the mouth width: a larger inner-lip gap counts as open
MOUTH_MARGIN = 1.25  # the box of the projected mouth landmarks is enlarged by this factor
SHEET_COLUMNS = 8


@dataclass(frozen=True)
class PictureScore:
    """One picture; None where a measure does not apply."""

    frame: str
    camera: str
    psnr: float
    mask_psnr: float | None
    ssim: float
    mouth_psnr: float | None
    neutral_mouth_psnr: float | None
    expressionless_psnr: float | None


def evaluate(config: GaussianHeadTrainConfig) -> Path:
    """Writes metrics.json, pictures.json (per picture) and one comparison picture per split to the result folder.

    Raises InputError when nothing was held out or there is no trained avatar.
    """
    start = time.perf_counter()
    device = choose_device(config.trainer.device, config.gpu_id)
    check_resolution(config.dataset.resolution)
    # After a training the key names what it started from, so its own result goes before.
    own = config.recorder.run_folder / "gaussianhead_latest"
    path = own if own.exists() else config.load_gaussianhead_checkpoint or own
    print(f"evaluating {path}")
    checkpoint = read_gaussian_head(path, "load_gaussianhead_checkpoint", config.gaussianheadmodule, config.supresmodule,
                                    config.load_supres_checkpoint)
    capture = HeadCapture(config.dataset)
    check_same(config.gaussianheadmodule, checkpoint.section("gaussianheadmodule"), "gaussianheadmodule", path)
    check_same(config.supresmodule, checkpoint.section("supresmodule"), "supresmodule", path)
    check_subject(checkpoint, "gaussianhead", capture)
    if not shares_frames(capture, checkpoint):
        raise InputError(f"dataset.dataroot: {config.dataset.dataroot} holds another subject than the one {path} was trained on "
                         "(no frame has the same parameters and landmarks); correct dataset.dataroot or recorder.name")
    check_held_out(capture, checkpoint)
    splits = {"novel_view": capture.novel_view(), "novel_sequence": capture.novel_sequence()}
    if not any(splits.values()):
        raise InputError("dataset.held_out_cameras, dataset.held_out_sequences: nothing is held out, so there is nothing to measure")
    avatar = avatar_from(checkpoint).to(device).eval()
    folder = config.recorder.result_folder
    scores = {name: _score_split(avatar, capture, pictures, folder / f"{name}.png", name, device) for name, pictures in splits.items() if pictures}
    write_seconds(folder, "evaluation", time.perf_counter() - start)
    metrics = {name: summarize(rows) for name, rows in scores.items()} | {"seconds": read_seconds(folder)}
    write_whole(folder / "metrics.json", json.dumps(metrics, indent=1))
    write_whole(folder / "pictures.json", json.dumps({name: [asdict(row) for row in rows] for name, rows in scores.items()}, indent=1))
    return folder


def summarize(rows: list[PictureScore]) -> dict[str, float | int | None]:
    """Means over the pictures to which a measure applies; `frames` counts pictures."""
    summary: dict[str, float | int | None] = {}
    for name in ("psnr", "mask_psnr", "ssim", "mouth_psnr", "neutral_mouth_psnr", "expressionless_psnr"):
        values = [value for row in rows if (value := getattr(row, name)) is not None]
        summary[name] = round(sum(values) / len(values), 4) if values else None
    return summary | {"frames": len(rows)}


def mouth_is_open(control_points: Float[Tensor, "L 3"]) -> bool:
    """Whether the gap between the inner lips exceeds 20 % of the distance of the inner mouth corners."""
    gap = (control_points[UPPER_LIP_ROW] - control_points[LOWER_LIP_ROW]).norm()
    return bool(gap > OPEN_MOUTH * (control_points[LEFT_MOUTH_ROW] - control_points[RIGHT_MOUTH_ROW]).norm())


def mouth_box(batch: HeadBatch) -> tuple[slice, slice] | None:
    """Rows and columns of the enlarged mouth box of a single picture, or None when it lies outside."""
    points = batch.flat_camera().project(batch.control_points)[0, MOUTH_ROWS]
    low, high = points.amin(dim=0), points.amax(dim=0)
    centre, half = (low + high) / 2.0, MOUTH_MARGIN * (high - low) / 2.0
    height, width = batch.pixels.shape[-2:]
    left, top = (max(0, math.floor(value)) for value in (centre - half).tolist())
    right, bottom = (min(size, math.ceil(value)) for value, size in zip((centre + half).tolist(), (width, height), strict=True))
    return (slice(top, bottom), slice(left, right)) if right > left and bottom > top else None


def shown_pictures(pictures: list[Picture]) -> set[Picture]:
    """Some frames, each from another camera (at equal distances in the list all might be from one)."""
    frames = spread(list(dict.fromkeys(picture.frame for picture in pictures)), SHEET_COLUMNS)
    cameras = list(dict.fromkeys(picture.camera for picture in pictures))
    return {Picture(frame, cameras[(2 * k + 1) * len(cameras) // (2 * len(frames))]) for k, frame in enumerate(frames)}


def _score_split(
    avatar: GaussianAvatar, capture: HeadCapture, pictures: list[Picture], sheet: Path, name: str, device: torch.device
) -> list[PictureScore]:
    rows, shown = [], []
    chosen = shown_pictures(pictures)
    for picture in tqdm(pictures, desc=name, unit="picture", mininterval=0.5 if is_terminal() else 15.0):
        batch = capture.pictures([picture]).to(device)
        with torch.no_grad():
            image = avatar(batch.expression, batch.head.pose, batch.head, batch.flat_camera()).image
            neutral = avatar(torch.zeros_like(batch.expression), batch.head.pose, batch.head, batch.flat_camera()).image
        target, mask = batch.on_white().flatten(0, 1), batch.masks.flatten(0, 1)
        if not torch.isfinite(image).all():
            raise InputError(f"frame {picture.frame}, camera {picture.camera}: the avatar renders NaN; is the checkpoint damaged?")
        truth = capture.expressionless(picture)
        box = mouth_box(batch) if mouth_is_open(batch.control_points[0]) else None
        rows.append(PictureScore(
            frame=picture.frame, camera=picture.camera,
            psnr=float(psnr(image, target)),
            mask_psnr=float(psnr(image, target, mask)) if bool(mask.any()) else None,
            ssim=float(ssim(image, target)),
            mouth_psnr=None if box is None else float(psnr(image[:, :, *box], target[:, :, *box])),
            neutral_mouth_psnr=None if box is None else float(psnr(neutral[:, :, *box], target[:, :, *box])),
            expressionless_psnr=None if truth is None else float(psnr(truth.to(device)[None], target)),
        ))
        if picture in chosen:
            shown.append(list(shrink(torch.cat([target, image, neutral])).cpu()))
    # Rows: target, avatar, the same avatar without expression.
    write_image(sheet, image_rows([torch.stack(list(row)) for row in zip(*shown, strict=True)]))
    return rows

