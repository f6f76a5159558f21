"""A damaged file ends in an error that names it, or in what was there before; never in a traceback, a hang, much memory or silence.

What silence means: where a checksum covers a file (npz and checkpoints: CRC-32 of zip entries, PNG: of chunks, packed .mat: Adler-32, bundles:
SHA-256) every changed byte must give an error or the value that was there. Where none does (npy, JPEG, PLY, text, pickles, mp4), a flipped bit can
make another legal number or picture, which nobody can tell; then the value must be one that the reader promises: finite, of the type and shape of
its annotations (checked while the tests run). The same holds for files that a program wrote wrong, with checksums that are right.

Every trial is named by its file and number, for ever: `python -m tests.faults.test_damaged_files "camera" 17` repeats one and shows the traceback.
"""

import dataclasses
import hashlib
import math
import sys
import tempfile
import warnings
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lib.errors import InputError, NumericalError
from lib.training.checkpoint import is_plain
from tests.faults.mutations import BYTES, Damage
from tests.faults.readers import targets
from tests.faults.target import Target, quiet
from tests.faults.watchdog import MOST_BYTES, watched

SHORT, LONG = 7, 200  # trials per file
# Trials that found what was wrong once: always repeated.
PAST = {
    "config demo_meshhead": (1, 6, 10, 25, 28, 50, 68), "config demo_gaussianhead": (0, 22, 41), "config demo_reenactment": (2, 5, 46),
    "camera": (18,), "camera in a capture": (19,), "params": (10, 13, 56), "params as driver": (23,), "params of a tracked subject": (0, 10),
    "landmarks": (17,), "detections to take over": (32,), "frames": (0, 3), "camera path": (15,), "picture a.png": (6,), "picture grey.png": (10,),
    "mesh-head checkpoint": (2, 9, 50), "gaussian-head checkpoint": (2,), "checkpoint to resume": (9, 12, 20, 24),
    "published gaussianhead": (2, 4, 8),
    "published supres": (4,), "published delta_poses": (38,), "FLAME": (30,), "FLAME's landmarks": (2, 16, 163), "FaceVerse": (11, 29),
    "BFM plain": (1,), "BFM npz": (0, 1, 6, 9, 10, 11), "VHAP tracker": (3, 52), "rows npz": (7,), "rows npy": (0,), "benchmark tracking": (12,),
    "benchmark cameras": (5, 112), "INSTA": (20,), "raw video": (11,), "video of one camera": (8, 10, 13), "raw calibration": (74,),
    "affine colours": (4,), "cheung colours": (13,), "VHAP landmarks": (0, 3, 9, 14, 21), "tetrahedral grid": (6,), "metrics": (32, 33, 34),
}


def test_damaged_files(tmp_path, monkeypatch, ledger, long):
    problems = []
    for target in targets(tmp_path, monkeypatch):
        whole = target.path.read_bytes()
        with quiet():
            expected = digest(target.read())
        for number in sorted({*range(LONG if long else SHORT), *PAST.get(target.name, ())}):
            damage, data = damaged(target, number, whole)
            verdict = judge(target, damage, data, expected)
            ledger.enter(f"{damage.family}: {target.format}", verdict.clear, verdict.intact)
            problems += [f"{target.name}, trial {number} ({damage.family}: {damage.name}): {verdict.problem}"] if verdict.problem else []
        target.path.write_bytes(whole)
    assert not problems, f"{len(problems)} problems:\n" + "\n".join(problems[:40])


def damaged(target: Target, number: int, whole: bytes) -> tuple[Damage, bytes]:
    """What is done in a trial, and the bytes that come of it. All kinds of damage take turns, from a place that depends on the file."""
    start = zlib.crc32(target.name.encode())
    damage = target.damages[(start + 7 * number) % len(target.damages)] if len(target.damages) % 7 else (
        target.damages[(start + number) % len(target.damages)])
    return damage, damage.apply(whole, np.random.default_rng([start, number]))


@dataclass(frozen=True)
class Verdict:
    """`clear`: an error that names the file, or a right value; `intact`: nothing changed silently."""

    problem: str = ""
    clear: bool = True
    intact: bool = True


def judge(target: Target, damage: Damage, data: bytes, expected: str) -> Verdict:
    """Reads the damaged file under guard."""
    target.path.write_bytes(data)
    with quiet(), warnings.catch_warnings():
        for unreadable in (RuntimeWarning, np.exceptions.ComplexWarning):  # numpy's: a number was lost
            warnings.simplefilter("error", unreadable)
        outcome = watched(target.read)
    if outcome.grown > MOST_BYTES:
        return Verdict(f"took {outcome.grown >> 20} MB", clear=False)
    if outcome.error is not None:
        said = f"{type(outcome.error).__name__}: {str(outcome.error)[:300]}"
        if not isinstance(outcome.error, InputError | NumericalError):
            return Verdict(said, clear=False)
        named = target.path.name in str(outcome.error) or str(target.path.parent) in str(outcome.error)
        return Verdict() if named else Verdict(f"the message does not name the file: {said}", clear=False)
    if digest(outcome.value) == expected:
        return Verdict()
    if target.checked and damage.name in UNDER_CHECKSUM:
        return Verdict("changed silently under a checksum", intact=False)
    strange = next(not_finite(outcome.value), None)
    return Verdict() if strange is None else Verdict(f"{strange} is not finite", intact=False)


UNDER_CHECKSUM = {damage.name for damage in BYTES} | {"zip directory", "entry twice", "a gigabyte of zeros", "IHDR"}


def digest(value: Any) -> str:
    """The same for equal values: of tensors, arrays, modules, dataclasses, settings, and plain values in any nesting."""
    found = hashlib.sha256()
    for path, leaf in leaves(value, "value"):
        found.update(path.encode())
        found.update(leaf.dtype.str.encode() + str(leaf.shape).encode() + leaf.tobytes() if isinstance(leaf, np.ndarray) else repr(leaf).encode())
    return found.hexdigest()


def not_finite(value: Any) -> Any:
    """Places of floating-point numbers that are NaN or infinite."""
    for path, leaf in leaves(value, "value"):
        is_float = isinstance(leaf, float) or (isinstance(leaf, np.ndarray) and leaf.dtype.kind in "fc")
        if is_float and not np.isfinite(leaf).all():
            yield path


def leaves(value: Any, path: str) -> Any:
    if isinstance(value, torch.nn.Module):
        value = value.state_dict()
    if isinstance(value, torch.Tensor) and not is_plain(value):
        yield path, math.nan  # its numbers are not there
    elif isinstance(value, torch.Tensor):
        yield path, value.detach().float().numpy() if value.dtype == torch.bfloat16 else value.detach().numpy()
    elif dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            yield from leaves(getattr(value, field.name), f"{path}.{field.name}")
    elif hasattr(value, "model_dump"):
        yield from leaves(value.model_dump(), path)
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from leaves(item, f"{path}[{key!r}]")
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            yield from leaves(item, f"{path}[{index}]")
    elif not callable(value):
        yield path, value


def main(name: str, number: int) -> None:
    """Repeats one trial; the file stays where it is printed."""
    root = Path(tempfile.mkdtemp())
    with pytest.MonkeyPatch.context() as patch:
        target = next(one for one in targets(root, patch) if one.name == name)
        damage, data = damaged(target, number, target.path.read_bytes())
        target.path.write_bytes(data)
        print(f"{target.path}: {damage.family}: {damage.name}, {len(data)} bytes", flush=True)
        print(str(target.read())[:2000])


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
