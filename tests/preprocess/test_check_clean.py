"""No false alarms: good subjects of all looks, as a camera records them, with exact, with noisy and without detections."""

import contextlib
import dataclasses
import shutil
from pathlib import Path

import pytest
import torch

from lib.datasets.layout import CaptureFolder
from preprocess import demo_subject
from preprocess.check_subject import check, whole_folder
from preprocess.demo_head import DemoHead
from preprocess.demo_performance import SEQUENCES, Performance
from preprocess.demo_presets import PRESETS
from preprocess.demo_sensor import Sensor
from tests.preprocess.detections import write_detections
from tests.published_subject import write_published_subject

SIZE, FRAMES, ROWS = 96, 4, (1, 4, 8, 11, 14)
BOX = ((-1.6, 1.6), (-2.4, 2.1), (-2.5, 1.6))
SENSOR = Sensor(noise=2.0, blur=0.5, color=0.03)


def render(preset: str, output: Path) -> None:
    """A few frames of five cameras with the sensor's disturbances; the demo's own writer draws all sixteen."""
    head = DemoHead(**dataclasses.asdict(PRESETS[preset]), texture_size=2 * SIZE)
    cameras = demo_subject.rig(SIZE, demo_subject.FOCAL_WITH_HAIR if head.cards else demo_subject.FOCAL_PER_PIXEL)
    performance, folder, rows = Performance(head, SEQUENCES[0], 0), CaptureFolder(output), torch.tensor(ROWS)
    for shot in range(FRAMES):
        frame = f"{shot:04d}"
        vertices = demo_subject.write_params(head, output / "params" / frame, performance.at(0.6 * shot))
        picture = head.draw(vertices, demo_subject.pick(cameras, rows))
        for k, row in enumerate(ROWS):
            camera = demo_subject.CAMERA_IDS[row]
            demo_subject.write_camera(folder.camera_path(frame, camera), cameras, row)
            demo_subject._write_image(folder.image_path(frame, camera), SENSOR.capture(picture.image[k].permute(1, 2, 0).numpy(), row, shot))
            demo_subject._write_image(folder.image_path(frame, camera, "mask"), picture.mask[k].permute(1, 2, 0).expand(-1, -1, 3).numpy())


@pytest.mark.parametrize("preset", PRESETS)
def test_nothing_is_wrong_with_a_good_subject(tmp_path, preset):
    folder = tmp_path / preset
    render(preset, folder)
    assert check(whole_folder(folder), BOX, False, tmp_path / "sheet.png") == []
    for noise in (0.0, 2.0):
        shutil.rmtree(folder / "landmarks", ignore_errors=True)
        write_detections(folder, noise=noise)
        assert check(whole_folder(folder), BOX, False, tmp_path / "sheet.png") == []


def test_nothing_is_wrong_with_a_published_folder(made, tmp_path):
    with contextlib.chdir(tmp_path):
        folder = write_published_subject(made, tmp_path / "031", ("0000", "0003", "0005"))
        assert check(whole_folder(folder), BOX, False, tmp_path / "sheet.png") == []
