"""What a check finds: one frozen record each, told to people as a line and to programs as JSON."""

import dataclasses
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from jaxtyping import Float
from torch import Tensor

from lib.datasets.head_capture import Picture
from lib.files import write_whole

LISTED = 10  # findings of one kind that are printed; the rest is counted and stands in the report


@dataclass(frozen=True)
class Number:
    """One measured value, with its unit in the name."""

    name: str
    value: float


@dataclass(frozen=True)
class Finding:
    """Something that is wrong, or (`is_problem` false) that somebody should look at. `kind` is a word for programs."""

    kind: str
    message: str
    files: tuple[str, ...] = ()
    frames: tuple[str, ...] = ()
    cameras: tuple[str, ...] = ()
    numbers: tuple[Number, ...] = ()
    is_problem: bool = True


@dataclass(frozen=True)
class Mark:
    """What the sheet says about one picture, and where its landmarks would lie otherwise: parts of the picture's size."""

    picture: Picture
    label: str
    landmarks: Float[Tensor, "L 2"] | None = None


def numbers(**values: float) -> tuple[Number, ...]:
    """Named values, rounded to what means something."""
    return tuple(Number(name, float(f"{value:.4g}")) for name, value in values.items())


def told(findings: Iterable[Finding]) -> list[str]:
    """The messages, kind by kind: the first few of each, and how many there are."""
    by_kind: dict[str, list[str]] = {}
    for finding in findings:
        by_kind.setdefault(finding.kind, []).append(finding.message)
    lines = []
    for kind, messages in by_kind.items():
        lines += messages[:LISTED] + ([f"... {len(messages)} of the kind {kind} in all"] if len(messages) > LISTED else [])
    return lines


def write_report(path: Path, subject: Path, findings: Iterable[Finding], measured: Iterable[Number] = ()) -> None:
    """JSON: {"subject", "problems": count, "findings": [{"kind", "message", ...}], "measured": {name: value}}."""
    rows = [dataclasses.asdict(finding) | {"numbers": {number.name: number.value for number in finding.numbers}} for finding in findings]
    content = {
        "subject": str(subject), "problems": sum(row["is_problem"] for row in rows), "findings": rows,
        "measured": {number.name: number.value for number in measured},
    }
    write_whole(path, json.dumps(content, indent=1) + "\n")
