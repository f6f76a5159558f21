"""Through the scripts: a damaged file ends the run with exit code 2 and one message that names it; nothing is left that looks like a result."""

import importlib
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from lib.training.runtime import run
from tests import published_tracking as tracked
from tests.faults.declared import alias_bomb, huge_in_npz, huge_npy, jpeg_size
from tests.faults.model_readers import Avatar, write_avatar
from tests.faults.mutations import one_bit, piece_lost
from tests.faults.readers import write_small_subject
from tests.faults.target import CAMERAS, FRAMES, SIZE
from tests.tiny import gaussian_dict, mesh_dict

SUBJECT_FILES = {"camera": f"cameras/{FRAMES[0]}/camera_{CAMERAS[0]}.npz", "params": f"params/{FRAMES[1]}/params.npz",
                 "vertices": f"params/{FRAMES[1]}/vertices.npy", "picture": f"images/{FRAMES[1]}/image_{CAMERAS[1]}.jpg", "frames": "frames.json"}
Damaging = Callable[[bytes, np.random.Generator], bytes]


@dataclass(frozen=True)
class World:
    """A subject, an avatar of it, and a video."""

    root: Path
    subject: Path
    avatar: Avatar
    video: Path

    def config(self, script: str) -> dict[str, Any]:
        values = (mesh_dict if script == "train_meshhead" else gaussian_dict)(self.subject, self.root)
        values["dataset"] |= {"camera_ids": list(CAMERAS), "original_resolution": SIZE, "resolution": SIZE, "held_out_cameras": [],
                              "held_out_sequences": []}
        if script == "train_gaussianhead":
            values["load_meshhead_checkpoint"] = str(self.avatar.mesh)
        if script == "train_meshhead":
            values["meshheadmodule"]["model_bbox"] = [[-2.0, 2.0]] * 3
        if script == "reenactment":
            values = {"load_gaussianhead_checkpoint": str(self.avatar.head), "device": "cpu",
                      "recorder": {"name": "a", "result_path": str(self.root / "r")},
                      "dataset": {"dataroot": str(self.subject), "param_files": "params/*/params.npz", "resolution": SIZE,
                                  "original_resolution": SIZE, "camera_path": str(self.subject / SUBJECT_FILES["camera"])}}
        return values


@pytest.fixture
def world(tmp_path):
    tracked.write_video(tmp_path / "a.mp4", 5)
    return World(tmp_path, write_small_subject(tmp_path / "me"), write_avatar(tmp_path), tmp_path / "a.mp4")


def number_changed(data: bytes, rng: np.random.Generator) -> bytes:
    """One bit of a number in an npz."""
    place = data.rindex(b"NUMPY") + 130
    return data[:place] + bytes([data[place] ^ 16]) + data[place + 1:]


CASES: list[tuple[str, str, Damaging]] = [
    ("train_meshhead", "config", alias_bomb), ("train_gaussianhead", "mesh head", one_bit), ("reenactment", "gaussian head", one_bit),
    ("preprocess.video", "video", piece_lost), ("preprocess.check_subject", "vertices", huge_npy), ("train_meshhead", "vertices", huge_npy),
    ("train_meshhead", "camera", huge_in_npz), ("train_meshhead", "picture", piece_lost), ("train_meshhead", "picture", jpeg_size),
    ("train_meshhead", "frames", piece_lost), ("train_gaussianhead", "params", number_changed), ("reenactment", "params", huge_in_npz),
    ("reenactment", "camera", number_changed), ("reenactment", "config", piece_lost), ("train_gaussianhead", "mesh head", piece_lost),
    ("preprocess.video", "video", lambda data, rng: data[:200]),
]
FEW = 5  # without --long


def pytest_generate_tests(metafunc):
    if "damaging" in metafunc.fixturenames:
        metafunc.parametrize(("script", "what", "damaging"), CASES if metafunc.config.getoption("--long") else CASES[:FEW])


def test_a_run_on_a_damaged_file_ends_with_2_and_its_name(world, monkeypatch, capsys, ledger, request, script, what, damaging):
    config = world.root / "config.yaml"
    config.write_text(yaml.safe_dump(world.config(script)))
    path = {"config": config, "mesh head": world.avatar.mesh, "gaussian head": world.avatar.head, "video": world.video} | {
        name: world.subject / file for name, file in SUBJECT_FILES.items()}
    before = {file: file.read_bytes() for file in world.root.rglob("*") if file.is_file() and file != path[what]}
    path[what].write_bytes(damaging(path[what].read_bytes(), np.random.default_rng(1)))
    arguments = ["--config", str(config)] if not script.startswith("preprocess") else (
        [str(world.video), "--output", str(world.root / "new")] if what == "video" else [str(world.subject)])
    monkeypatch.chdir(world.root)
    monkeypatch.setattr(sys, "argv", [script, *arguments])
    with pytest.raises(SystemExit) as ended:
        run(importlib.import_module(script).main)
    told = capsys.readouterr()
    clear = ended.value.code == 2 and path[what].name in told.out + told.err and "Traceback" not in told.err
    intact = all(file.read_bytes() == content for file, content in before.items()) and not (world.root / "new").exists() and not (
        world.root / "r" / "a" / "reenactment.mp4").exists()
    ledger.enter("a script meets a damaged file", clear, intact)
    assert clear and intact, f"exit code {ended.value.code}: {told.err[-500:]}"
