"""What a number stands for: the written protocol (docs/evaluation.md) under its id, and everything two results must share to be compared."""

import itertools
from pathlib import Path

import torch
from pydantic import Field

from lib.config import Config
from lib.datasets.driving import DrivingConfig
from lib.errors import InputError
from lib.evaluation.conventions import CONVENTIONS, ConventionName
from lib.evaluation.submission import SubmissionConfig
from lib.files import sha256
from lib.losses.perceptual import NETWORKS, Lpips, Network, load_lpips

PROTOCOL_ID = "gha-eval-3"  # 2: the same but in the padding, where the truth was white; 1: psnr, mask_psnr, ssim and mouth_psnr of 2
MOST_SHOWN = 200  # rows of a page: a JPEG ends at 65,500 pixels
LPIPS_KEY = "evaluation.lpips"


class EvaluationConfig(Config):
    """Section `evaluation`: read by evaluate.py alone; what is measured besides the fixed part of the protocol."""

    lpips: tuple[Network, ...] = Field(("vgg", "alex"), description="LPIPS networks, with the weights of loss.lpips_weights; skipped where absent")
    conventions: tuple[ConventionName, ...] = Field((), description="also measure as published code does: " + ", ".join(CONVENTIONS))
    worst: int = Field(6, gt=0, le=MOST_SHOWN, description="pictures on the page of the worst")
    cross: DrivingConfig | None = Field(None, description="split cross: a driver without a truth, by the keys of reenactment's section dataset")
    submission: SubmissionConfig | None = Field(None, description="write videos for a benchmark's server (config/benchmarks)")


class Backbone(Config):
    """Which weights an LPIPS number comes from."""

    features_sha256: str
    heads_sha256: str


class SplitContents(Config):
    """Which pictures a split has. `digest` tells them by their parameters, landmarks and cameras, not by names."""

    pictures: int
    cameras: tuple[str, ...]
    sequences: tuple[str, ...]
    digest: str


class Protocol(Config):
    """Stored in metrics.json; results with another are not compared."""

    id: str
    resolution: int
    conventions: tuple[str, ...]
    lpips: dict[str, Backbone]
    splits: dict[str, SplitContents]

    def differences(self, other: "Protocol", same_pictures: bool = True) -> list[str]:
        """What forbids to compare, one line each, most important first. A network that only one of them has does not.

        Without `same_pictures` the splits may differ, as those of several subjects do.
        """
        if self.id != other.id:
            return [f"protocol {self.id} and {other.id}"]
        found = [] if self.resolution == other.resolution else [f"pictures of {self.resolution} and {other.resolution} pixels"]
        if same_pictures and self.splits.keys() != other.splits.keys():
            found.append(f"splits {_listed(self.splits)} and {_listed(other.splits)}")
        for name in self.splits.keys() & other.splits.keys() if same_pictures else ():
            mine, theirs = self.splits[name], other.splits[name]
            parts = [(key, getattr(mine, key), getattr(theirs, key)) for key in ("cameras", "sequences", "pictures")]
            different = [f"{name}: {key} {_listed(one)} and {_listed(two)}" for key, one, two in parts if _in_any_order(one) != _in_any_order(two)]
            same_names = "pictures with other parameters or cameras under the same names (another subject, or tracked anew)"
            found += different or ([f"{name}: {same_names}"] if mine.digest != theirs.digest else [])
        found += [f"LPIPS ({name}): other weights" for name in self.lpips.keys() & other.lpips.keys() if self.lpips[name] != other.lpips[name]]
        return found


def _in_any_order(value: object) -> object:
    return sorted(value) if isinstance(value, tuple) else value


def _listed(value: object) -> str:
    return ", ".join(map(str, value)) or "none" if isinstance(value, tuple | dict) else str(value)


def load_networks(config: EvaluationConfig, folder: Path, device: torch.device, smallest: int) -> tuple[dict[Network, Lpips], dict[str, Backbone]]:
    """The LPIPS networks whose weights are there, and which those are; says which are skipped.

    `smallest`: side of the pictures in pixels. Raises InputError for weights that are there and cannot be used, and for a convention without its own.
    """
    networks, used = {}, {}
    for name in dict.fromkeys(config.lpips):
        files = [folder / file.name for file in (NETWORKS[name].features, NETWORKS[name].heads)]
        missing = next((path for path in files if not path.exists()), None)
        if missing is not None or smallest < NETWORKS[name].least:
            reason = f"{missing} is missing (`python -m preprocess.lpips_weights --network {name}` says where it comes from)" if missing else (
                f"pictures are smaller than {NETWORKS[name].least} pixels")
            print(f"LPIPS ({name}) is skipped: {reason}")
            continue
        networks[name] = load_lpips(folder, LPIPS_KEY, name).to(device).eval()
        used[name] = Backbone(features_sha256=sha256(files[0]), heads_sha256=sha256(files[1]))
    for name in config.conventions:
        if CONVENTIONS[name].network not in networks:
            print(f"evaluation.conventions: {name}: its LPIPS is skipped, as LPIPS ({CONVENTIONS[name].network}) is")
    return networks, used


def check_protocols(named: dict[str, Protocol], same_pictures: bool = True) -> None:
    """Raises InputError naming what differs, where results are not of one protocol and, with `same_pictures`, the same pictures."""
    for first, other in itertools.combinations(named, 2):  # also of two that the first one says nothing about, such as of a network's weights
        different = named[first].differences(named[other], same_pictures)
        if different:
            raise InputError("\n  ".join([f"{first} and {other} cannot be compared, as they differ in", *different,
                                          "measure both with the same `dataset` keys, pictures and code (`python evaluate.py --config ...`)"]))
