"""Several runs in one table: `python evaluate.py --compare results/a results/b [--across-subjects] [--output FILE]`."""

import argparse
import csv
import io
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lib.errors import InputError
from lib.evaluation.html import page, table
from lib.evaluation.protocol import check_protocols
from lib.evaluation.scores import Result, higher_is_better, read_result
from lib.files import write_whole

OPTION = "--compare"
NOT_MEASURED = ("frames",)  # equal in all, as the pictures are
UNRANKED = ("neutral_mouth_psnr", "expressionless_psnr", "change", "silhouette_area")  # yardsticks, and what describes a video: none is best
SUMMARY = ("psnr", "ssim", "mask_psnr", "lpips_vgg", "mouth_psnr", "jitter", "silhouette_iou", "nonfinite")  # of subjects, for a terminal


@dataclass(frozen=True)
class ComparisonRequest:
    """Result folders, and a file for the table: .md, .csv or .html. Across subjects the pictures differ: nothing is best, and there is a mean."""

    folders: tuple[Path, ...]
    output: Path | None
    across_subjects: bool = False

    @property
    def note(self) -> str:
        """What a reader of the table must know besides the protocol."""
        return "means over pictures; other pictures in every column" if self.across_subjects else "means over pictures; * = best"


def comparison_request(arguments: Sequence[str]) -> ComparisonRequest | None:
    """What a command line with --compare asks for; None where it has none."""
    if not any(argument.split("=")[0] == OPTION for argument in arguments):
        return None
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(OPTION, nargs="+", type=Path, required=True, metavar="FOLDER", help="result folders, with a metrics.json each")
    parser.add_argument("--output", type=Path, metavar="FILE", help="also write the table: .md, .csv or .html")
    parser.add_argument("--across-subjects", action="store_true", help="runs of different subjects, measured alike: a column each, and their mean")
    given = parser.parse_args(arguments)
    return ComparisonRequest(tuple(given.compare), given.output, given.across_subjects)


def compare(request: ComparisonRequest) -> str:
    """The table as Markdown, also written to `output`; the best of every row has a star.

    Raises InputError for results of different protocols or pictures, naming what differs, and for a file of another type.
    """
    writers = {".md": _markdown, ".csv": _csv, ".html": _html}
    if request.output is not None and request.output.suffix not in writers:
        raise InputError(f"--output: {request.output}: expected a name that ends in {', '.join(writers)}")
    if len(set(request.folders)) < 2 and not request.across_subjects:
        raise InputError(f"{OPTION}: expected at least two different result folders, found {len(set(request.folders))}")
    results = [read_result(folder) for folder in dict.fromkeys(request.folders)]
    check_protocols({str(result.folder): result.protocol for result in results}, same_pictures=not request.across_subjects)
    rows, note = (_across if request.across_subjects else _rows)(results), f"Protocol {results[0].protocol.id}; {request.note}"
    if request.output is not None:
        write_whole(request.output, writers[request.output.suffix](rows, results[0].protocol.id, note))
    return _markdown(rows, results[0].protocol.id, note) + ("" if request.output is None else f"\nwrote {request.output}")


def subjects_summary(folders: Sequence[Path]) -> str:
    """A few measures for a terminal: per split a row per subject, and their mean. Raises InputError where they were not measured alike."""
    results = [read_result(folder) for folder in folders]
    check_protocols({str(result.folder): result.protocol for result in results}, same_pictures=False)
    lines: list[str] = []
    for split in _splits(results):
        names = [name for name in SUMMARY if any(name in result.means.get(split, {}) for result in results)]
        values = [[result.means.get(split, {}).get(name) for name in names] for result in results]
        rows = [(split, *names), *((name, *map(_cell, row)) for name, row in zip(_short_names([one.folder for one in results]), values, strict=True)),
                ("mean", *(_cell(_mean(column)) for column in zip(*values, strict=True)))]
        widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
        lines += ["  ".join(cell.rjust(width) if column else cell.ljust(width) for column, (cell, width) in enumerate(zip(row, widths, strict=True)))
                  for row in rows] + [""]
    return "\n".join(lines)


def _splits(results: list[Result]) -> list[str]:
    return list(dict.fromkeys(split for result in results for split in result.protocol.splits))


def _across(results: list[Result]) -> list[list[str]]:
    """A head line, then a row per split and measure that any subject has; every subject has a column, and their mean has one."""
    rows = [["split", "measure", *_short_names([result.folder for result in results]), "mean"]]
    for split in _splits(results):
        for name in dict.fromkeys(name for result in results for name in result.means.get(split, {})):
            values = [result.means.get(split, {}).get(name) for result in results]
            if any(value is not None for value in values):
                rows.append([split, name, *map(_cell, values), _cell(_mean(values))])
    return rows


def _mean(values: Sequence[float | int | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known else None


def _cell(value: float | int | None) -> str:
    return "–" if value is None else f"{value:.5g}"


def _rows(results: list[Result]) -> list[list[str]]:
    """A head line, then a row per split and measure that any run has; every run has a column."""
    rows = [["split", "measure", *_short_names([result.folder for result in results])]]
    for split in results[0].protocol.splits:
        names = dict.fromkeys(name for result in results for name in result.means[split] if name not in NOT_MEASURED)
        for name in names:
            values = [result.means[split].get(name) for result in results]
            known = [value for value in values if value is not None]
            if known:
                faster_or_better = name == "frames_per_second" or higher_is_better(name)
                best = (max if faster_or_better else min)(known)
                star = len(set(known)) > 1 and name not in UNRANKED
                rows.append([split, name, *(_cell(value) + "*" * (star and value == best) for value in values)])
    return rows


def _short_names(folders: list[Path]) -> list[str]:
    """The last parts of the paths, as many as tell them apart."""
    parts = [folder.resolve().parts for folder in folders]
    depth = next(depth for depth in range(1, max(map(len, parts)) + 1) if len({part[-depth:] for part in parts}) == len(set(parts)))
    return ["/".join(part[-depth:]) for part in parts]


def _markdown(rows: list[list[str]], protocol: str, note: str) -> str:
    head, *body = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([note, "", head, "|---" * 2 + "|---:" * (len(rows[0]) - 2) + "|", *body])


def _csv(rows: list[list[str]], protocol: str, note: str) -> str:
    file = io.StringIO()
    csv.writer(file, lineterminator="\n").writerows([["protocol", *rows[0]], *([protocol, *(cell.rstrip("*") for cell in row)] for row in rows[1:])])
    return file.getvalue()


def _html(rows: list[list[str]], protocol: str, note: str) -> str:
    return page("Comparison", note, table(rows[0], rows[1:], text_columns=2))
