"""Numbers of every picture of a split, their mean, median and worst, as JSON and CSV."""

import csv
import dataclasses
import io
import json
import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lib.datasets.arrays import read_json
from lib.errors import InputError
from lib.evaluation.protocol import Protocol
from lib.files import write_whole
from lib.provenance import Provenance

METRICS, PICTURES, TABLE = "metrics.json", "pictures.json", "pictures.csv"
HIGHER_IS_BETTER = ("psnr", "ssim", "iou")  # how names of such measures end; all others are errors
DIGITS = 6


@dataclass(frozen=True)
class PictureName:
    """Which picture of a split."""

    frame: str
    camera: str
    sequence: str


@dataclass(frozen=True)
class Summary:
    """Of one measure, over the pictures to which it applies; None where that is none."""

    name: str
    mean: float | None
    median: float | None
    worst: float | None
    at: PictureName | None


@dataclass(frozen=True)
class SplitScores:
    """`values[k]` are the measures `names` of picture k; NaN where one does not apply. `frames_per_second`: drawn."""

    split: str
    pictures: tuple[PictureName, ...]
    names: tuple[str, ...]
    values: tuple[tuple[float, ...], ...]
    frames_per_second: float | None = None

    def column(self, name: str) -> list[float]:
        """One measure of all pictures."""
        index = self.names.index(name)
        return [row[index] for row in self.values]

    def summary(self, name: str) -> Summary:
        """Mean, median and worst of one measure."""
        known = [(value, picture) for value, picture in zip(self.column(name), self.pictures, strict=True) if not math.isnan(value)]
        if not known:
            return Summary(name, None, None, None, None)
        values = [value for value, _ in known]
        pick: Callable = min if higher_is_better(name) else max
        worst, at = pick(known, key=lambda entry: entry[0])
        return Summary(name, statistics.fmean(values), statistics.median(values), worst, at)

    def summaries(self, known: bool = False) -> tuple[Summary, ...]:
        """Of all measures; with `known`, of those that apply to any picture."""
        return tuple(one for one in map(self.summary, self.names) if one.at is not None or not known)

    def worst(self, name: str, count: int) -> list[int]:
        """Numbers of the pictures of the frames where a measure is worst, the very worst first; of a frame its worst camera."""
        column = self.column(name)
        known = [index for index, value in enumerate(column) if not math.isnan(value)]
        chosen: dict[str, int] = {}
        for index in sorted(known, key=column.__getitem__, reverse=not higher_is_better(name)):
            chosen.setdefault(self.pictures[index].frame, index)
        return list(chosen.values())[:count]


def higher_is_better(name: str) -> bool:
    """Whether a measure is no error."""
    return name.endswith(HIGHER_IS_BETTER)


@dataclass(frozen=True)
class Origin:
    """Where numbers come from: the avatar's file, its steps and what trained it; what measured it; the resolved configuration (with the seed)."""

    avatar: str
    step: int
    trained_by: Provenance | None
    measured_by: Provenance
    config: dict[str, Any]


def write_scores(
    folder: Path, splits: Sequence[SplitScores], protocol: Protocol, seconds: dict[str, float], origin: Origin | None = None
) -> None:
    """metrics.json (means, medians, worst), pictures.json and pictures.csv (every picture).

    The first is written last: where it is, the others are complete. Raises InputError where one cannot be written.
    """
    write_whole(folder / PICTURES, json.dumps({scores.split: _rows(scores) for scores in splits}, indent=1))
    write_whole(folder / TABLE, _table(splits))
    content = {scores.split: _summary(scores) for scores in splits}
    made = {"seconds": seconds, "protocol": protocol.model_dump(mode="json"), "origin": origin and dataclasses.asdict(origin)}
    write_whole(folder / METRICS, json.dumps(content | made, indent=1))


def read_number(value: float | None, digits: int = DIGITS) -> float | None:
    """As it is written: rounded to significant digits; None where there is none (JSON knows no NaN)."""
    return None if value is None or not math.isfinite(value) else float(f"{value:.{digits}g}")


def _rows(scores: SplitScores) -> list[dict]:
    return [{"frame": picture.frame, "camera": picture.camera, "sequence": picture.sequence}
            | {name: read_number(value) for name, value in zip(scores.names, values, strict=True)}
            for picture, values in zip(scores.pictures, scores.values, strict=True)]


def _summary(scores: SplitScores) -> dict:
    summaries = scores.summaries()
    worst = {one.name: {"value": read_number(one.worst), "frame": one.at.frame, "camera": one.at.camera} for one in summaries if one.at}
    return {one.name: read_number(one.mean) for one in summaries} | {
        "frames": len(scores.pictures), "frames_per_second": read_number(scores.frames_per_second, 4),
        "median": {one.name: read_number(one.median) for one in summaries}, "worst": worst,
    }


def _table(splits: Sequence[SplitScores]) -> str:
    names = list(dict.fromkeys(name for scores in splits for name in scores.names))
    file = io.StringIO()
    writer = csv.DictWriter(file, ["split", "frame", "camera", "sequence", *names], lineterminator="\n")
    writer.writeheader()
    writer.writerows({"split": scores.split} | row for scores in splits for row in _rows(scores))
    return file.getvalue()


@dataclass(frozen=True)
class Result:
    """What metrics.json tells of a run: per split the mean of every measure (None: applies nowhere)."""

    folder: Path
    protocol: Protocol
    means: dict[str, dict[str, float | None]]


def read_result(folder: Path) -> Result:
    """Raises InputError where there is no result, or one that does not say by which protocol it was measured."""
    path = folder / METRICS if folder.is_dir() else folder
    try:
        content = read_json(path, "expected a result folder that evaluate.py wrote, e.g. results/<name>")
        stored = content.get("protocol")
        means = {split: _means(content[split]) for split in (stored or {}).get("splits", ())}
    except (LookupError, AttributeError, TypeError, ValueError, OverflowError) as error:
        raise InputError(f"{path}: cannot be read as a result of evaluate.py ({type(error).__name__}: {error}); measure again") from error
    if stored is None:
        raise InputError(f"{path}: does not say by which protocol it was measured (older than protocol ids); run evaluate.py again")
    try:
        return Result(path.parent, Protocol.model_validate(stored), means)
    except ValueError as error:  # of pydantic
        known = stored.get("id", "?") if isinstance(stored, dict) else "?"
        raise InputError(f"{path}: its protocol '{known}' is none that this code knows; run evaluate.py again") from error


def _means(split: dict[str, object]) -> dict[str, float | None]:
    """The numbers of a split. Raises ValueError for one that is not finite, which is never written."""
    means = {name: None if value is None else float(value) for name, value in split.items() if value is None or isinstance(value, int | float)}
    wrong = [name for name, value in means.items() if value is not None and not math.isfinite(value)]
    if wrong:
        raise ValueError(f"'{wrong[0]}' is not finite")
    return means
