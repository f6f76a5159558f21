"""What made a file: commit of the code, versions, device. It stands in every checkpoint and result."""

import functools
import importlib.metadata
import platform
import subprocess
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("torch", "triton", "numpy", "opencv-python-headless", "av")
PATIENCE = 10.0  # seconds that git may take


@dataclass(frozen=True)
class Provenance:
    """`commit`: of this project's git repository, '-dirty' where files differ from it; None where the code is in none."""

    commit: str | None
    device: str
    versions: dict[str, str]

    def differences(self, other: "Provenance") -> list[str]:
        """What another one has otherwise, as 'torch 2.11.0, here 2.13.0'."""
        here, there = (asdict(one) | one.versions for one in (self, other))
        return [f"{name} {there.get(name)}, here {here.get(name)}" for name in sorted(here.keys() | there.keys())
                if name != "versions" and here.get(name) != there.get(name)]


def read_provenance(value: Any) -> Provenance | None:
    """What `asdict` wrote of one; None where it is something else, as in files of older code."""
    try:
        found = Provenance(**value)
        texts = [found.commit or "", found.device, *found.versions, *found.versions.values()]
    except (TypeError, AttributeError):
        return None
    return found if all(isinstance(text, str) for text in texts) else None


@functools.cache
def provenance(device: torch.device) -> Provenance:
    """Of what runs now, computing on `device`."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return Provenance(_commit(), name, {"python": platform.python_version(), "platform": platform.platform()} | _versions())


def _versions() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:  # triton is optional; another build of a package has another name
            continue
    return found


def _commit() -> str | None:
    top = _git("rev-parse", "--show-toplevel")
    if top is None or Path(top) != ROOT:  # installed inside another repository
        return None
    return _git("describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")


def _git(*arguments: str) -> str | None:
    try:
        result = subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, timeout=PATIENCE, check=True)
    except (OSError, subprocess.SubprocessError):  # no git, no repository, one of another owner
        return None
    return result.stdout.strip() or None
