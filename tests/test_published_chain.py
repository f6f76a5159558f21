"""The shipped N031 files as a chain, unedited, on a folder of the published shape."""

import json
import shutil
import sys
from importlib import import_module
from pathlib import Path
from unittest import mock

import av
import cv2
import pytest
import torch

from lib.avatars.gaussian_head_avatar import mesh_head
from lib.training.checkpoint import read_checkpoint
from tests.published_subject import EXPRESSIONS, FULL, write_published_subject, write_random_lpips

ROOT = Path(__file__).resolve().parents[1]
CONTROL_LANDMARKS = 424  # 66 + every 100th of 35,709


@pytest.fixture
def workplace(made, tmp_path, monkeypatch) -> Path:
    """A working directory as a user of the published system has it: the three files, two subjects, LPIPS weights (random ones)."""
    shutil.copytree(ROOT / "config", tmp_path / "config")
    write_random_lpips(tmp_path / "assets" / "lpips")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(script: str, *overrides: str) -> None:
    config = {"train_meshhead": "train_meshhead_N031", "train_gaussianhead": "train_gaussianhead_N031", "reenactment": "reenactment_N031"}[script]
    with mock.patch.object(sys, "argv", [f"{script}.py", "--config", f"config/{config}.yaml", *overrides]):
        import_module(script).main()


def run_chain(stage_1: list[str], stage_2: list[str], stage_3: list[str]) -> None:
    run("train_meshhead", *stage_1)
    run("train_gaussianhead", *stage_2)
    run("reenactment", *stage_3)


def check_chain(workplace: Path, steps: int, size: int, frames: int) -> None:
    mesh = read_checkpoint(workplace / "checkpoints/meshhead_NeRSemble031/meshhead_latest", "meshhead", "test")
    head = read_checkpoint(workplace / "checkpoints/gaussianhead_NeRSemble031/gaussianhead_latest", "gaussianhead", "test")
    assert mesh.step == head.step == steps and head.data.frames == ("0000", "0010")
    assert len(mesh.modules["meshhead"]["landmarks_3d_neutral"]) == len(head.modules["gaussianhead"]["landmarks_3d_neutral"]) == CONTROL_LANDMARKS
    assert head.config["gaussianheadmodule"]["exp_coeffs_dim"] == EXPRESSIONS
    assert (workplace / "results/gaussianhead_NeRSemble031/gaussianhead_preview.png").exists()
    folder = workplace / "results/reenactment/N031_to_N036_freeview"
    pictures = [cv2.imread(str(path)) for path in sorted((folder / "frames").iterdir())]
    assert [picture.shape for picture in pictures] == [(size, size, 3)] * frames
    with av.open(str(folder / "reenactment.mp4")) as video:  # the driver beside the avatar
        assert [(frame.width, frame.height) for frame in video.decode(video=0)] == [(2 * size, size)] * frames


def test_the_trio_runs_as_a_chain(made, workplace, monkeypatch, capsys):
    """With a coarser grid, smaller pictures and a shorter start, so that two cores do it in seconds; the gpu test changes nothing."""
    size = 256
    write_published_subject(made, workplace / "mini_demo_dataset/031", ("0000", "0003"), size)
    write_published_subject(made, workplace / "mini_demo_dataset/036", ("0005", "0006"), size)
    monkeypatch.setattr(mesh_head, "SPHERE_STEPS", 40)
    data = f"dataset.original_resolution={size}"
    run_chain(["trainer.steps=1", "meshheadmodule.grid_cells=12", data, "dataset.resolution=128"],
              ["trainer.steps=1", data, f"dataset.resolution={size}"], [data, f"dataset.resolution={size}"])
    check_chain(workplace, 1, size, 2)
    said = capsys.readouterr().out
    for part in ("not contiguous", "nothing is held out", "vgg16.pth is not the published"):
        assert part in said


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_the_trio_runs_as_a_chain_at_full_size(made, workplace, tmp_path):
    """Unedited but for the number of steps."""
    write_published_subject(made, workplace / "mini_demo_dataset/031", ("0000", "0003"))
    write_published_subject(made, workplace / "mini_demo_dataset/036", ("0005", "0006"))
    run_chain(["trainer.steps=25"], ["trainer.steps=25"], [])
    check_chain(workplace, 25, FULL, 2)
    logs = [workplace / f"checkpoints/{stage}_NeRSemble031/{stage}.log" for stage in ("meshhead", "gaussianhead")]
    print(json.dumps({log.stem: [line for line in log.read_text().splitlines() if "a step takes" in line] for log in logs}, indent=1))
