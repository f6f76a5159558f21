"""Measures a trained avatar on pictures it was not trained on. Definitions: docs/evaluation.md."""

import contextlib
import dataclasses
import hashlib
import re
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor
from tqdm import tqdm

from lib.avatars.gaussian_head_avatar.avatar import GaussianAvatar, avatar_from, check_resolution
from lib.avatars.gaussian_head_avatar.config import check_held_out, check_same, check_subject, shares_frames
from lib.avatars.gaussian_head_avatar.drawing import BatchRenderer
from lib.avatars.gaussian_head_avatar.gaussian_stage import GaussianHeadTrainConfig
from lib.avatars.gaussian_head_avatar.published import read_gaussian_head
from lib.datasets.driving import DrivingConfig, DrivingSequence
from lib.datasets.head_capture import HeadCapture, Picture
from lib.datasets.images import write_image
from lib.datasets.retarget import TrainedFace
from lib.datasets.sampler import spread
from lib.errors import InputError, NotFiniteError
from lib.evaluation.measures import CrossMeasures, Flicker, TruthMeasures, exact, neutral_psnr
from lib.evaluation.pictures import ShownPicture, worst_page
from lib.evaluation.protocol import PROTOCOL_ID, Protocol, SplitContents, load_networks
from lib.evaluation.report import SplitPages, summary_table, write_report
from lib.evaluation.scores import METRICS, Origin, PictureName, SplitScores, write_scores
from lib.evaluation.submission import SubmissionConfig, pack, write_video
from lib.evaluation.truth import contents, in_order, load_portion, without_expression
from lib.files import RunLock
from lib.geometry.camera import Camera
from lib.metrics.psnr import psnr
from lib.provenance import provenance
from lib.training.checkpoint import Checkpoint
from lib.training.loading import ahead, loading_threads
from lib.training.recorder import image_rows, read_seconds, shrink, write_seconds
from lib.training.runtime import choose_device, is_terminal

SHEET_COLUMNS = 8
MOST_PICTURES, PIXELS = 8, 8 * 512**2  # of a batch on a GPU; on a CPU pictures are measured one by one
SPLITS, WORST = ("novel_view", "novel_sequence", "cross"), "worst_"
WORST_BY = {"cross": "jitter"}  # which measure chooses the page of the worst; elsewhere mask_psnr
REPORT = "report.html"
SUBMISSION = "evaluation.submission"
OF_A_RUN = re.compile(r"gaussianhead_(latest|best|step_[0-9]+)")  # as training calls them

Item = TypeVar("Item")


@dataclass(frozen=True)
class Sitting:
    """What all splits of an evaluation share."""

    avatar: GaussianAvatar
    trained: TrainedFace | None
    renderer: BatchRenderer
    folder: Path
    portion: int  # pictures of a batch
    workers: int
    worst: int


@dataclass(frozen=True)
class SubmissionPlan:
    """What a submission needs: cameras by serial, drivers by sequence."""

    config: SubmissionConfig
    views: dict[str, Camera]
    drivers: dict[str, DrivingSequence]


def evaluate(config: GaussianHeadTrainConfig) -> str:
    """Writes metrics.json, pictures.{json,csv}, report.html and two pictures per split to the result folder; returns what to print.

    Raises InputError when there is nothing to measure or no trained avatar.
    """
    start = time.perf_counter()
    device = choose_device(config.trainer.device, config.gpu_id)
    check_resolution(config.dataset.resolution)
    checkpoint, capture = _opened(config)
    splits = {name: in_order(capture, pictures) for name, pictures in (
        ("novel_view", capture.novel_view()), ("novel_sequence", capture.novel_sequence())) if pictures}
    if not config.measurable:
        raise InputError("dataset.held_out_cameras, dataset.held_out_sequences: nothing is held out, so there is nothing to measure; "
                         "hold something out, or name a driver without a truth in evaluation.cross")
    avatar, size = avatar_from(checkpoint).to(device).eval(), config.dataset.resolution
    networks, backbones = load_networks(config.evaluation, config.loss.lpips_weights, device, size)
    measure = TruthMeasures(networks, config.evaluation.conventions)
    portion = max(1, min(MOST_PICTURES, PIXELS // size**2)) if device.type == "cuda" else 1
    sitting = Sitting(avatar, None if checkpoint.data is None else checkpoint.data.trained_face(), BatchRenderer(avatar, size, size),
                      config.recorder.result_folder, portion, loading_threads(config.trainer.workers, device, 1), config.evaluation.worst)
    # What they need is read before anything of an earlier evaluation goes.
    cross, submission = config.evaluation.cross, config.evaluation.submission
    driver = None if cross is None else _driver(sitting, cross.model_copy(update={"resolution": size}), "evaluation.cross")
    plan = None if submission is None else SubmissionPlan(submission, submission.views(), {
        sequence: _driver(sitting, submission.driver(sequence), SUBMISSION) for sequence in submission.sequences})
    with exact(), RunLock(sitting.folder / "evaluation.lock"):
        if splits or driver is not None:  # where metrics.json is, all is of one evaluation
            for name in (METRICS, *(f"{page}{split}.png" for split in SPLITS for page in ("", WORST))):
                (sitting.folder / name).unlink(missing_ok=True)
        measured = [_against_truth(sitting, name, capture, pictures, measure) for name, pictures in splits.items()]
        held = {name: contents(capture, pictures) for name, pictures in splits.items()}
        if driver is not None:
            measured.append(_without_truth(sitting, driver))
            held["cross"] = _contents_of_driver(driver)
        origin = Origin(str(checkpoint.path), checkpoint.step, checkpoint.made_by, provenance(device), config.model_dump(mode="json"))
        written = _written(config, sitting, measured, held, backbones, origin, time.perf_counter() - start) if measured else []
        packed = [] if plan is None else [_submit(sitting, plan)]
    return "\n".join((*written, *packed))


def _written(config: GaussianHeadTrainConfig, sitting: Sitting, measured: list[SplitPages], held: dict[str, SplitContents], backbones: dict,
             origin: Origin, seconds: float) -> list[str]:
    """Writes the numbers and the report; returns what to print."""
    protocol = Protocol(id=PROTOCOL_ID, resolution=config.dataset.resolution, conventions=config.evaluation.conventions, lpips=backbones, splits=held)
    folder = sitting.folder
    write_report(folder / REPORT, f"Evaluation of {config.recorder.name}", protocol, measured)
    write_seconds(folder, "evaluation", seconds)
    write_scores(folder, [split.scores for split in measured], protocol, read_seconds(folder), origin)
    count = sum(len(split.scores.pictures) for split in measured)
    return [*(summary_table(split.scores) + "\n" for split in measured),
            f"protocol {PROTOCOL_ID}: {count} pictures in {seconds:.1f} s; wrote {folder}/{REPORT}, metrics.json, pictures.json, pictures.csv, "
            "and per split a comparison picture and worst_<split>.png"]


def _opened(config: GaussianHeadTrainConfig) -> tuple[Checkpoint, HeadCapture]:
    """The avatar of this run, and its subject. Raises InputError where they do not belong together or the avatar has seen what is held out."""
    own, given = config.recorder.run_folder / "gaussianhead_latest", config.load_gaussianhead_checkpoint
    path = given or own
    if own.exists() and given is not None and not (given.resolve().parent == own.resolve().parent and OF_A_RUN.fullmatch(given.name)):
        print(f"load_gaussianhead_checkpoint: {given} is what the training of {own} started from, and is not measured; for that choose another "
              "recorder.name")
        path = own
    print(f"evaluating {path}")
    checkpoint = read_gaussian_head(path, "load_gaussianhead_checkpoint", config.gaussianheadmodule, config.supresmodule,
                                    config.load_supres_checkpoint)
    capture = HeadCapture(config.dataset.model_copy(update={"cache_gb": 0.0}))  # every picture is needed once
    check_same(config.gaussianheadmodule, checkpoint.section("gaussianheadmodule"), "gaussianheadmodule", path)
    check_same(config.supresmodule, checkpoint.section("supresmodule"), "supresmodule", path)
    check_subject(checkpoint, "gaussianhead", capture)
    if not shares_frames(capture, checkpoint):
        raise InputError(f"dataset.dataroot: {config.dataset.dataroot} holds another subject than the one {path} was trained on "
                         "(no frame has the same parameters and landmarks); correct dataset.dataroot or recorder.name")
    check_held_out(capture, checkpoint)
    trained, measured = checkpoint.config.get("dataset", {}).get("resolution"), config.dataset.resolution
    if trained not in (None, measured):
        print(f"evaluation: trained at {trained}x{trained}, measured at {measured}x{measured} (dataset.resolution): such numbers are not those "
              "of the trained size")
    return checkpoint, capture


def _against_truth(sitting: Sitting, name: str, capture: HeadCapture, pictures: list[Picture], measure: TruthMeasures) -> SplitPages:
    """A split that has a truth."""
    draw, device, flicker = sitting.renderer, sitting.renderer.device, Flicker()
    parts = [(pictures[first:first + sitting.portion], pictures[first - 1] if first else None)
             for first in range(0, len(pictures), sitting.portion)]
    values, names = [], ()
    with contextlib.closing(ahead(lambda part: load_portion(capture, *part), parts, sitting.workers)) as loaded:
        for portion in _progress(loaded, name, len(parts)):
            drawn = draw(portion.frames)
            for picture, finite in zip(portion.pictures, drawn.finite, strict=True):
                if not finite:
                    raise InputError(f"frame {picture.frame}, camera {picture.camera}: the avatar renders NaN; is the checkpoint damaged?")
            truth, neutral, opened = portion.truth.to(device), drawn.images.clone(), portion.open_mouths()
            if opened:  # elsewhere the measure does not apply
                for row, image in zip(opened, draw([without_expression(portion.frames[row]) for row in opened]).images, strict=True):
                    neutral[row] = image
            batch = truth.compared(drawn.images)
            plain = torch.full_like(batch.image, torch.nan) if truth.expressionless is None else truth.expressionless
            trembling = flicker(batch, portion.follows)
            measures = measure(batch).and_("neutral_mouth_psnr", neutral_psnr(neutral, batch)).and_("expressionless_psnr", psnr(plain, batch.target))
            measures = measures.and_("flicker", trembling[:, 0]).and_("mask_flicker", trembling[:, 1])
            names = measures.names
            values.append(measures.values)
    scores = _scores(name, [PictureName(one.frame, one.camera, capture.sequence_of[one.frame]) for one in pictures], names, values, draw)

    def shown(picture: Picture) -> Tensor:
        """Target, avatar, the same avatar without expression."""
        portion = load_portion(capture, [picture], None)
        (frame,) = portion.frames
        return torch.cat([portion.truth.compared(portion.truth.pixels[:, :3].float()).target,
                          draw([frame, without_expression(frame)]).images.cpu()])

    def compared(index: int) -> ShownPicture:
        target, image, _ = shown(pictures[index])
        return ShownPicture(target, image, _caption(scores, index))

    sheet = image_rows([torch.stack(list(row)) for row in zip(*(shrink(shown(picture)) for picture in in_order(capture, shown_pictures(pictures))),
                                                              strict=True)])
    page = worst_page([compared(index) for index in scores.worst(_worst_by(name), sitting.worst)], ("target", "avatar", "error"))
    return _pages(sitting, scores, [("Target, avatar, the same avatar without expression", sheet)], page)


def _without_truth(sitting: Sitting, driver: DrivingSequence) -> SplitPages:
    """The split `cross`."""
    draw, measure, values, names = sitting.renderer, CrossMeasures(), [], ()
    parts = [range(first, min(first + sitting.portion, len(driver))) for first in range(0, len(driver), sitting.portion)]
    for part in _progress(parts, "cross", len(parts)):
        measures = measure(draw([driver[index] for index in part]).images)
        names = measures.names
        values.append(measures.values)
    pictures = [PictureName(_frame_name(path, index), driver.config.camera_mode, "") for index, path in enumerate(driver.files)]
    scores = _scores("cross", pictures, names, values, draw)

    def compared(index: int) -> ShownPicture:
        before, now = draw([driver[max(0, index - 1)], driver[index]]).images.cpu()
        return ShownPicture(before, now, _caption(scores, index))

    frames = [driver[index] for index in spread(list(range(len(driver))), SHEET_COLUMNS)]
    rows = [shrink(torch.cat([draw([change(frame)]).images.cpu() for frame in frames])) for change in (lambda frame: frame, without_expression)]
    chosen = scores.worst(_worst_by("cross"), sitting.worst) or scores.worst("nonfinite", sitting.worst)
    page = worst_page([compared(index) for index in chosen], ("frame before", "frame", "change"))
    return _pages(sitting, scores, [("Avatar, and without expression", image_rows(rows).nan_to_num(0.0))], page)


def _pages(sitting: Sitting, scores: SplitScores, sheets: list[tuple[str, Tensor]], worst: Tensor) -> SplitPages:
    write_image(sitting.folder / f"{scores.split}.png", sheets[0][1])
    write_image(sitting.folder / f"{WORST}{scores.split}.png", worst)
    return SplitPages(scores, (*sheets, (f"The worst by {_worst_by(scores.split)}", worst)))


def _driver(sitting: Sitting, config: DrivingConfig, section: str) -> DrivingSequence:
    """That of a section of the YAML. Raises InputError."""
    head = sitting.avatar.head
    try:
        driver = DrivingSequence(config, head.own_pose.cpu(), head.config.exp_coeffs_dim, sitting.trained, section)
    except InputError as error:
        if section == SUBMISSION and isinstance(error.__cause__, NotFiniteError):
            raise error.__cause__ from error  # a benchmark wants every frame: no key leaves one out
        raise
    for note in driver.notes:
        print(f"driver: {note}")
    return driver


def _contents_of_driver(driver: DrivingSequence) -> SplitContents:
    frames = [driver[index] for index in range(len(driver))]
    data = b"".join(part.contiguous().numpy().tobytes() for frame in frames for part in (
        frame.expression, frame.pose_code, frame.head.pose, frame.head.scale, frame.camera.world_to_camera, frame.camera.intrinsics))
    return SplitContents(pictures=len(driver), cameras=(driver.config.camera_mode,), sequences=(), digest=hashlib.sha256(data).hexdigest()[:16])


def _submit(sitting: Sitting, plan: SubmissionPlan) -> str:
    """Draws this participant's videos, sequence after sequence, and packs all that are there."""
    config = plan.config
    draw = BatchRenderer(sitting.avatar, config.width, config.height)
    for sequence, driver in plan.drivers.items():
        for camera, view in plan.views.items():
            pictures = _progress(_seen(draw, driver, view), f"{sequence}, {camera}", len(driver))
            write_video(config, sequence, camera, pictures)
    return str(pack(config))


def _seen(draw: BatchRenderer, driver: DrivingSequence, view: Camera) -> Iterator[Tensor]:
    """Picture after picture by one camera. Raises InputError for one that is not finite."""
    for index in range(len(driver)):
        drawn = draw([dataclasses.replace(driver[index], camera=view)])
        if not drawn.finite[0]:
            raise InputError(f"{driver.files[index]}: the avatar renders NaN under this expression; is the checkpoint damaged, or the driver of "
                             "another 3DMM?")
        yield drawn.images[0]


def shown_pictures(pictures: list[Picture]) -> set[Picture]:
    """Some frames, each from another camera (at equal distances in the list all might be from one)."""
    frames = spread(list(dict.fromkeys(picture.frame for picture in pictures)), SHEET_COLUMNS)
    cameras = list(dict.fromkeys(picture.camera for picture in pictures))
    return {Picture(frame, cameras[(2 * k + 1) * len(cameras) // (2 * len(frames))]) for k, frame in enumerate(frames)}


def _scores(name: str, pictures: list[PictureName], names: tuple[str, ...], values: list[Tensor], draw: BatchRenderer) -> SplitScores:
    rows = torch.cat(values).cpu().tolist()  # all numbers of a split are waited for once
    return SplitScores(name, tuple(pictures), names, tuple(map(tuple, rows)), draw.frames_per_second)


def _caption(scores: SplitScores, index: int) -> str:
    picture, values = scores.pictures[index], dict(zip(scores.names, scores.values[index], strict=True))
    said = [f"{name} {values[name]:.4g}" for name in ("mask_psnr", "mask_ssim", "lpips_vgg", "jitter", "silhouette_iou") if name in values]
    return ", ".join([f"frame {picture.frame}", f"camera {picture.camera}", *([picture.sequence] if picture.sequence else []), *said])


def _worst_by(split: str) -> str:
    return WORST_BY.get(split, "mask_psnr")


def _frame_name(path: object, index: int) -> str:
    """params/<frame>/params.npz is called by its folder; what other trackers wrote, by its number."""
    return Path(str(path)).parent.name if Path(str(path)).name == "params.npz" else f"{index:05d}"


def _progress(items: Iterable[Item], name: str, count: int) -> Iterator[Item]:
    return iter(tqdm(items, desc=name, total=count, unit="batch", mininterval=0.5 if is_terminal() else 15.0))
