"""The report of a run: one HTML file that works without a network, on a phone too, and what a terminal shows of it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from jaxtyping import Float
from torch import Tensor

from lib.evaluation.html import MOST_LINES, Line, chart, folded, page, picture, table
from lib.evaluation.protocol import Protocol
from lib.evaluation.scores import SplitScores, Summary
from lib.files import write_whole

# What curves are drawn of, where it was measured; the first few are open, the rest is folded.
CURVES = ("mask_psnr", "mouth_psnr", "lpips_vgg", "jitter", "silhouette_iou", "mask_ssim", "face_psnr", "mask_l1", "mask_flicker", "lpips_alex",
          "area_jitter", "clipped")
OPEN_CURVES = 3
HEAD = ("measure", "mean", "median", "worst", "at frame", "camera")


@dataclass(frozen=True)
class SplitPages:
    """A split's numbers, and pictures of it with a caption each."""

    scores: SplitScores
    pages: tuple[tuple[str, Float[Tensor, "3 _ _"]], ...]


def write_report(path: Path, title: str, protocol: Protocol, splits: Sequence[SplitPages]) -> None:
    """Raises InputError where it cannot be written."""
    parts = [part for split in splits for part in _section(split)]
    write_whole(path, page(title, _note(protocol), *parts, folded("Protocol", table(("key", "value"), _protocol_rows(protocol), 2))))


def summary_table(scores: SplitScores) -> str:
    """For a terminal: means, medians and the worst of every measure."""
    rows = [HEAD, *map(_summary_row, scores.summaries(known=True))]
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEAD))]
    lines = ["  ".join(cell.ljust(width) if column == 0 else cell.rjust(width) for column, (cell, width) in enumerate(zip(row, widths, strict=True)))
             for row in rows]
    return "\n".join([f"{scores.split}: {_size(scores)}", *lines])


def _section(split: SplitPages) -> list[str]:
    scores = split.scores
    charts = [shown for name in CURVES if name in scores.names and (shown := _chart(scores, name))]
    more = [folded("More curves", *charts[OPEN_CURVES:])] if charts[OPEN_CURVES:] else []
    rows = [_summary_row(one) for one in scores.summaries(known=True)]
    return [f"<h2>{scores.split}</h2>", f'<p class="soft">{_size(scores)}</p>', table(HEAD, rows),
            *charts[:OPEN_CURVES], *more, *(picture(image, caption) for caption, image in split.pages)]


def _chart(scores: SplitScores, name: str) -> str:
    """A line per camera; of many cameras the middle, lowest and highest value per frame."""
    frames = list(dict.fromkeys(one.frame for one in scores.pictures))
    sequences = {one.frame: one.sequence for one in scores.pictures}
    by_camera: dict[str, dict[str, float]] = {}
    for one, value in zip(scores.pictures, scores.column(name), strict=True):
        by_camera.setdefault(one.camera, {})[one.frame] = value
    lines = [Line(camera, tuple(values.get(frame, math.nan) for frame in frames)) for camera, values in by_camera.items()]
    if len(lines) > MOST_LINES:
        columns = [sorted(value for line in lines if math.isfinite(value := line.values[row])) for row in range(len(frames))]
        places = {"lowest camera": 0.0, "median camera": 0.5, "highest camera": 1.0}
        lines = [Line(label, tuple(column[round(place * (len(column) - 1))] if column else math.nan for column in columns))
                 for label, place in places.items()]
    starts = [(row, sequences[frame]) for row, frame in enumerate(frames) if sequences[frame] and (
        row == 0 or sequences[frames[row - 1]] != sequences[frame])]
    return chart(name, lines, starts)


def _summary_row(one: Summary) -> tuple[str, ...]:
    numbers = ("–" if value is None else f"{value:.4g}" for value in (one.mean, one.median, one.worst))
    return one.name, *numbers, *((one.at.frame, one.at.camera) if one.at else ("–", "–"))


def _size(scores: SplitScores) -> str:
    cameras = len(dict.fromkeys(one.camera for one in scores.pictures))
    speed = f"; drawn at {scores.frames_per_second:.3g} a second" if scores.frames_per_second else ""
    return f"{len(scores.pictures)} pictures, {cameras} camera{'s' * (cameras > 1)}{speed}"


def _note(protocol: Protocol) -> str:
    networks = ", ".join(protocol.lpips) or "not measured (no weights)"
    return f"Protocol {protocol.id}; pictures of {protocol.resolution}²; LPIPS: {networks}"


def _protocol_rows(protocol: Protocol) -> list[tuple[str, str]]:
    rows = [("id", protocol.id), ("resolution", str(protocol.resolution)), ("conventions", ", ".join(protocol.conventions) or "–")]
    for name, used in protocol.lpips.items():
        rows += [(f"LPIPS {name}: backbone, sha256", used.features_sha256), (f"LPIPS {name}: heads, sha256", used.heads_sha256)]
    for name, split in protocol.splits.items():
        rows += [(f"{name}: {key}", value) for key, value in (
            ("cameras", ", ".join(split.cameras)), ("sequences", ", ".join(split.sequences) or "–"), ("pictures", str(split.pictures)),
            ("digest", split.digest))]
    return rows
