"""Several runs in one table: `python evaluate.py --compare results/a results/b [--output FILE]`."""

import argparse
import csv
import io
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


@dataclass(frozen=True)
class ComparisonRequest:
    """Result folders, and a file for the table: .md, .csv or .html."""

    folders: tuple[Path, ...]
    output: Path | None


def comparison_request(arguments: Sequence[str]) -> ComparisonRequest | None:
    """What a command line with --compare asks for; None where it has none."""
    if not any(argument.split("=")[0] == OPTION for argument in arguments):
        return None
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(OPTION, nargs="+", type=Path, required=True, metavar="FOLDER", help="result folders, with a metrics.json each")
    parser.add_argument("--output", type=Path, metavar="FILE", help="also write the table: .md, .csv or .html")
    given = parser.parse_args(arguments)
    return ComparisonRequest(tuple(given.compare), given.output)


def compare(request: ComparisonRequest) -> str:
    """The table as Markdown, also written to `output`; the best of every row has a star.

    Raises InputError for results of different protocols or pictures, naming what differs, and for a file of another type.
    """
    writers = {".md": _markdown, ".csv": _csv, ".html": _html}
    if request.output is not None and request.output.suffix not in writers:
        raise InputError(f"--output: {request.output}: expected a name that ends in {', '.join(writers)}")
    if len(set(request.folders)) < 2:
        raise InputError(f"{OPTION}: expected at least two different result folders, found {len(set(request.folders))}")
    results = [read_result(folder) for folder in dict.fromkeys(request.folders)]
    check_protocols({str(result.folder): result.protocol for result in results})
    rows = _rows(results)
    if request.output is not None:
        write_whole(request.output, writers[request.output.suffix](rows, results[0].protocol.id))
    return _markdown(rows, results[0].protocol.id) + ("" if request.output is None else f"\nwrote {request.output}")


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
                star = len(set(known)) > 1
                rows.append([split, name, *("–" if value is None else f"{value:.5g}{'*' if star and value == best else ''}" for value in values)])
    return rows


def _short_names(folders: list[Path]) -> list[str]:
    """The last parts of the paths, as many as tell them apart."""
    parts = [folder.resolve().parts for folder in folders]
    depth = next(depth for depth in range(1, max(map(len, parts)) + 1) if len({part[-depth:] for part in parts}) == len(set(parts)))
    return ["/".join(part[-depth:]) for part in parts]


def _markdown(rows: list[list[str]], protocol: str) -> str:
    head, *body = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([f"Protocol {protocol}; means over pictures; * = best", "", head, "|---" * 2 + "|---:" * (len(rows[0]) - 2) + "|", *body])


def _csv(rows: list[list[str]], protocol: str) -> str:
    file = io.StringIO()
    csv.writer(file, lineterminator="\n").writerows([["protocol", *rows[0]], *([protocol, *(cell.rstrip("*") for cell in row)] for row in rows[1:])])
    return file.getvalue()


def _html(rows: list[list[str]], protocol: str) -> str:
    return page("Comparison", f"Protocol {protocol}; means over pictures; * = best", table(rows[0], rows[1:], text_columns=2))
