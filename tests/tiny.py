"""A subject of 64 pixels and a run of a few steps: what the tests of datasets, stages and scripts share."""

import functools
import importlib
import json
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import yaml

from preprocess.demo_head import DemoHead
from preprocess.demo_subject import CAMERA_IDS, HELD_OUT_CAMERA, HELD_OUT_SEQUENCE, write_driver, write_subject

SIZE = 64
FRAMES = 7
DRIVER_FRAMES = 6
CAMERAS = ("222200036", "222200039", HELD_OUT_CAMERA, "222200043", "222200046")
EXPRESSIONS = 55
FEATURES = 32
# One sdf, three offsets, the features; one colour list per branch.
MESH_WIDTHS: dict[str, Any] = {
    "geo_mlp": [27, 32, 32, 4 + FEATURES],
    "exp_color_mlp": [FEATURES + EXPRESSIONS, 16, 32],
    "pose_color_mlp": [FEATURES + 54, 16, 32],
    "exp_deform_mlp": [27 + EXPRESSIONS, 16, 16, 3],
    "pose_deform_mlp": [27 + 54, 16, 16, 3],
}


@dataclass(frozen=True)
class Tiny:
    """Folders made once per test session. Tests that change files take a copy."""

    subject: Path
    driver: Path


def tiny(factory: pytest.TempPathFactory) -> Tiny:
    """The tiny subject and its driver, rendered at the first call of a session."""
    return _made(factory.getbasetemp() / "tiny_subject")


@functools.cache
def tiny_head() -> DemoHead:
    """The head of the tiny subject."""
    return DemoHead("neutral", "lps", "iris_brown", texture_size=2 * SIZE)


@functools.cache
def _made(root: Path) -> Tiny:
    made = Tiny(root / "demo", root / "demo_driver")
    records = write_subject(tiny_head(), made.subject, SIZE, FRAMES, seed=0)
    write_driver(tiny_head(), made.driver, DRIVER_FRAMES, seed=0)
    (made.subject / "frames.json").write_text(json.dumps({"frames": records}))
    return made


def copy_subject(source: Path, target: Path, cameras: tuple[str, ...] = CAMERAS, lowres: bool = False) -> Path:
    """A private copy with the files of the named cameras only, so that it costs little."""
    for path in source.rglob("*"):
        if not path.is_file() or ("_lowres_" in path.name and not lowres):
            continue
        if path.parent.parent.name in ("images", "cameras") and not path.stem.endswith(cameras):
            continue
        if path.relative_to(source).parts[0] in ("background", "expressionless"):
            continue
        copy = target / path.relative_to(source)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, copy)
    return target


def dataset_dict(subject: Path, **changes: Any) -> dict[str, Any]:
    """Section `dataset`: five cameras, one of them and one sequence held out."""
    return {
        "dataroot": str(subject), "camera_ids": list(CAMERAS), "original_resolution": SIZE, "resolution": SIZE, "num_sample_view": 2,
        "held_out_cameras": [HELD_OUT_CAMERA], "held_out_sequences": [HELD_OUT_SEQUENCE],
    } | changes


def _recorder(runs: Path, name: str) -> dict[str, Any]:
    return {
        "name": name, "logdir": str(runs / "log"), "checkpoint_path": str(runs / "checkpoints"), "result_path": str(runs / "results"),
        "save_freq": 1000, "show_freq": 10,
    }


def mesh_dict(subject: Path, runs: Path, steps: int = 2, name: str = "tiny") -> dict[str, Any]:
    """A whole stage-1 configuration."""
    return {
        "lr_net": 1e-3, "lr_lmk": 1e-4,
        "dataset": dataset_dict(subject),
        "meshheadmodule": MESH_WIDTHS | {
            "model_bbox": [[-1.45, 1.45], [-2.1, 1.6], [-1.45, 1.25]], "dist_threshold_far": 0.25, "grid_cells": 10,
        },
        "trainer": {"steps": steps, "device": "cpu", "validate_every": 1000, "validate_count": 2},
        "recorder": _recorder(runs, name),
    }


def gaussian_dict(subject: Path, runs: Path, steps: int = 2, name: str = "tiny", mesh: str = "tiny", augment: bool = True) -> dict[str, Any]:
    """A whole stage-2 configuration that starts from the mesh head of the run `mesh`."""
    return {
        "load_meshhead_checkpoint": str(runs / "checkpoints" / mesh / "meshhead_latest"),
        "lr_net": 1e-3, "lr_pose": 1e-5, "optimize_pose": True,
        "dataset": dataset_dict(subject),
        "gaussianheadmodule": {
            "num_add_mouth_points": 20, "dist_threshold_far": 0.25, "attributes_scale": 0.2,
            "exp_attributes_mlp": [FEATURES + EXPRESSIONS, 16, 8], "pose_attributes_mlp": [FEATURES + 54, 16, 8],
        },
        "supresmodule": {"network_capacity": 4},
        "loss": {"augment": augment, "lpips": 0.0},
        "trainer": {"steps": steps, "device": "cpu", "validate_every": 1000, "validate_count": 2},
        "recorder": _recorder(runs, name),
    }


def reenactment_dict(made: Tiny, runs: Path, avatar: str = "tiny", name: str = "tiny") -> dict[str, Any]:
    """A whole stage-3 configuration that drives the avatar of the run `avatar`."""
    return {
        "load_gaussianhead_checkpoint": str(runs / "checkpoints" / avatar / "gaussianhead_latest"),
        "dataset": {
            "dataroot": str(made.driver), "param_files": "params/*/params.npz", "original_resolution": SIZE, "resolution": SIZE,
            "camera_path": str(made.subject / "cameras" / "0000" / f"camera_{HELD_OUT_CAMERA}.npz"), "smoothing": 0.0,
        },
        "video": {"sheet_columns": 2, "sheet_rows": 2},
        "device": "cpu",
        "recorder": _recorder(runs, name),
    }


def run_script(script: str, values: dict[str, Any], folder: Path, *overrides: str) -> None:
    """`python <script>.py --config FILE [key=value ...]` in this process; errors come out as exceptions."""
    path = folder / f"{script}_{values['recorder']['name']}.yaml"
    path.write_text(yaml.safe_dump(values))
    with mock.patch.object(sys, "argv", [f"{script}.py", "--config", str(path), *overrides]):
        importlib.import_module(script).main()


__all__ = [
    "CAMERAS", "CAMERA_IDS", "EXPRESSIONS", "FEATURES", "HELD_OUT_CAMERA", "HELD_OUT_SEQUENCE", "SIZE", "Tiny",
    "copy_subject", "dataset_dict", "gaussian_dict", "mesh_dict", "reenactment_dict", "run_script", "tiny", "tiny_head",
]
