"""Videos of a benchmark: where they go, what they show, and what a zip lacks."""

import json
import subprocess
import sys
import zipfile

import av
import pytest
import torch
from pydantic import ValidationError

from lib.errors import InputError
from lib.evaluation.submission import SubmissionConfig, pack, write_video


def config(tmp_path, **changes) -> SubmissionConfig:
    return SubmissionConfig(**({
        "folder": tmp_path / "sent" / "mono", "participant": "393", "expected": ["393/FREE", "393/EMO-1-shout+laugh", "404/FREE"],
        "cameras": ["222200037", "222200046"], "dataroot": f"{tmp_path}/{{participant}}", "param_files": "sequences/{sequence}/tracking/a.npz",
        "calibration": f"{tmp_path}/{{participant}}/calibration/camera_params.json", "width": 48, "height": 32} | changes))


def grey(level: float) -> torch.Tensor:
    return torch.full((3, 32, 48), level)


def test_a_zip_holds_the_videos_of_all_participants_and_says_what_it_lacks(tmp_path):
    mine = config(tmp_path)
    assert mine.sequences == ("FREE", "EMO-1-shout+laugh")
    write_video(mine, "FREE", "222200037", (grey(level) for level in (0.1, 0.5, 0.9)))
    first = pack(mine)
    assert first.path == tmp_path / "sent" / "mono.zip" and first.videos == 1 and len(first.missing) == 5
    assert "1 videos; still missing: 393/FREE/cam_222200046.mp4" in str(first) and "2 more" in str(first)
    other = config(tmp_path, participant="404")
    for submission in (mine, other):
        for sequence in submission.sequences:
            for camera in submission.cameras:
                write_video(submission, sequence, camera, iter([grey(0.5)]))
    (tmp_path / "sent" / "mono" / "notes.txt").write_text("not sent")
    last = pack(other)
    assert last.missing == () and "complete, 6 videos" in str(last)
    with zipfile.ZipFile(last.path) as archive:
        assert archive.namelist() == mine.names() and archive.testzip() is None
        assert archive.namelist()[0] == "393/FREE/cam_222200037.mp4"
    assert not list(tmp_path.rglob("*.partial"))


def test_videos_have_size_rate_and_every_picture(tmp_path):
    levels = [0.0, 0.25, 0.5, 0.75, 1.0]
    path = write_video(config(tmp_path), "FREE", "222200037", (grey(level) for level in levels))
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert (stream.width, stream.height, float(stream.average_rate)) == (48, 32, 24.3)
        frames = [frame.to_ndarray(format="rgb24").mean() / 255.0 for frame in container.decode(stream)]
    assert frames == pytest.approx(levels, abs=0.02)
    assert b"crf=14.0" in path.read_bytes()  # x264 writes its settings into the stream


def test_who_packs_for_another_participant_is_waited_for(tmp_path, capsys):
    """Both have one zip."""
    given = config(tmp_path)
    code = ("import sys, time; from pathlib import Path; from lib.files import RunLock\n"
            "with RunLock(Path(sys.argv[1])):\n print('held', flush=True); time.sleep(1.0)\n Path(sys.argv[2]).touch()")
    lock, ended = given.folder.with_name(given.folder.name + ".zip.lock"), tmp_path / "ended"
    other = subprocess.Popen([sys.executable, "-c", code, str(lock), str(ended)], stdout=subprocess.PIPE, text=True)
    assert other.stdout is not None and other.stdout.readline() == "held\n"
    assert pack(given).path.exists() and ended.exists() and not lock.exists()
    assert f"waiting: {tmp_path / 'sent'}: process {other.pid} " in capsys.readouterr().out
    other.communicate()


def test_the_driver_is_named_by_participant_and_sequence(tmp_path):
    driver = config(tmp_path).driver("EMO-1-shout+laugh")
    assert driver.dataroot == tmp_path / "393" and driver.param_files == "sequences/EMO-1-shout+laugh/tracking/a.npz" and driver.smoothing == 0.0


def calibrated(tmp_path, **said) -> SubmissionConfig:
    submission = config(tmp_path, calibration_size=(96, 64))
    path = tmp_path / "393" / "calibration" / "camera_params.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"world_2_cam": {camera: torch.eye(4).tolist() for camera in submission.cameras},
                                "intrinsics": [[200.0, 0.0, 50.0], [0.0, 200.0, 30.0], [0.0, 0.0, 1.0]]} | said))
    return submission


def test_cameras_are_those_of_the_calibration_at_the_size_of_the_videos(tmp_path):
    for said, factor in (({}, 0.5), ({"width": 192, "height": 128}, 0.25)):
        camera = calibrated(tmp_path, **said).views()["222200046"]
        assert (camera.width, camera.height) == (48, 32)
        assert camera.intrinsics[0, 0].tolist() == [200.0 * factor, 0.0, 50.0 * factor]


def test_a_calibration_without_size_or_camera_is_refused(tmp_path):
    submission = calibrated(tmp_path).model_copy(update={"calibration_size": None})
    with pytest.raises(InputError, match=r"camera_params\.json: .*calibration_size"):
        submission.views()
    with pytest.raises(InputError, match=r"camera '9' is missing"):
        calibrated(tmp_path).model_copy(update={"cameras": ("9",)}).views()


@pytest.mark.parametrize(("changes", "says"), [
    ({"participant": "388"}, "there are 393, 404"), ({"expected": ["FREE"]}, "expected <id>/<SEQ>"),
    ({"expected": ["393/.."]}, "expected <id>/<SEQ>"), ({"participant": "39"}, "pattern"), ({"width": 50}, "multiple of 4"),
])
def test_a_wrong_section_is_explained(tmp_path, changes, says):
    with pytest.raises(ValidationError, match=says):
        config(tmp_path, **changes)


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "sent").write_text("a file")
    with pytest.raises(InputError, match="sent"):
        pack(config(tmp_path))
