"""Names that files and configurations hold lead nowhere outside their folder; videos open no other files; links are not written through."""

import contextlib
import dataclasses
import http.server
import json
import shutil
import threading
import zipfile
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from lib.datasets.head_capture import HeadCapture, HeadCaptureConfig
from lib.datasets.tracked.files import FolderFiles, ReadOptions
from lib.datasets.tracked.sources import read_tracking
from lib.datasets.video import VideoWriter, open_video
from lib.errors import InputError
from lib.evaluation.submission import SubmissionConfig, pack
from lib.files import RunLock, name_fault, write_whole
from lib.losses.perceptual import NETWORKS
from lib.training.recorder import RecorderConfig
from preprocess import lpips_weights
from preprocess.export_gaussian_avatars import export
from preprocess.raw_layouts import open_raw
from preprocess.raw_videos import decode, read_video
from tests.published_tracking import Performance, write_vhap_export
from tests.tiny import CAMERAS, copy_subject, dataset_dict
from tests.tiny_capture import grey_video, tiny_raw

OUTSIDE = ("../x", "..", "/etc/x", "a/b", "a\\b", "..\\x", "a\nb", "a\0b", "a\x1b[2J", "", ".hidden")


@pytest.mark.parametrize("name", OUTSIDE)
def test_names_of_runs_cameras_and_sequences_are_one_part_of_a_path(name):
    assert name_fault(name)
    with pytest.raises(ValueError, match="name"):
        RecorderConfig(name=name)
    for key in ("camera_ids", "held_out_cameras"):
        with pytest.raises(ValueError, match=key):
            HeadCaptureConfig(dataroot=Path("x"), **{key: [name]})
    usual = {"folder": "out", "participant": "388", "expected": ["388/A"], "cameras": ["1"], "dataroot": "d", "calibration": "c"}
    SubmissionConfig(**usual)
    for change in ({"cameras": [name]}, {"expected": ["388/A", f"388/{name}"]}):
        with pytest.raises(ValueError, match="cameras|expected"):
            SubmissionConfig(**usual | change)


@pytest.mark.parametrize("name", ["031", "EMO-1-shout+laugh", "run 2", "Größe", "cam_0.b", "a..b"])
def test_usual_names_are_names(name):
    assert name_fault(name) is None
    assert RecorderConfig(name=name).run_folder == Path("checkpoints") / name


@pytest.mark.parametrize("name", ["../x", "/etc/x", "a\nb", "a\0b", "../../../../x"])
def test_frames_json_names_no_path(made, tmp_path, name):
    """Frames are folders; an entry that is none is not looked for."""
    copy = copy_subject(made.subject, tmp_path / "subject", cameras=CAMERAS[:3])
    rows = json.loads((copy / "frames.json").read_text())["frames"]
    (copy / "frames.json").write_text(json.dumps({"frames": [*rows, {"frame": name, "sequence": name, "time": 0.0}]}))
    capture = HeadCapture(HeadCaptureConfig(**dataset_dict(copy, camera_ids=list(CAMERAS[:3]))))
    assert name not in capture.frames
    (copy / "frames.json").write_text(json.dumps({"frames": [{"frame": name, "sequence": "s", "time": 0.0}]}))
    with pytest.raises(InputError, match="no entry for frame"):
        HeadCapture(HeadCaptureConfig(**dataset_dict(copy, camera_ids=list(CAMERAS[:3]))))


def test_links_out_of_a_subject_are_allowed(made, tmp_path):
    """People keep pictures on other disks."""
    copy = copy_subject(made.subject, tmp_path / "subject", cameras=CAMERAS[:3])
    shutil.move(copy / "images", tmp_path / "elsewhere")
    (copy / "images").symlink_to(tmp_path / "elsewhere")
    capture = HeadCapture(HeadCaptureConfig(**dataset_dict(copy, camera_ids=list(CAMERAS[:3]))))
    assert len(capture.item(capture.frames[0], list(CAMERAS[:1])).pixels) == 1


@pytest.mark.parametrize("name", ["../../x.png", "/etc/x.png", "a/../../../x", "..\\..\\x", "C:/../../../x", "a\0b.png", "a\nb.png"])
@pytest.mark.parametrize("key", ["file_path", "flame_param_path", "fg_mask_path", "exp_path"])
def test_transforms_name_nothing_outside(tmp_path, name, key):
    folder = tmp_path / "set"
    folder.mkdir()
    row = {"file_path": "images/0.png", "transform_matrix": np.eye(4).tolist(), "timestep_index": 0}
    row |= {"exp_path": "flame/exp/0.txt"} if key == "exp_path" else {"flame_param_path": "flame_param/0.npz"}
    (folder / "transforms.json").write_text(json.dumps({"w": 8, "h": 8, "camera_angle_x": 1.0, "frames": [row | {key: name}]}))
    with pytest.raises(InputError, match=r"lies outside of|control characters") as told:
        read_tracking(folder)
    assert key in str(told.value)


def test_a_root_can_be_wider_but_not_left(tmp_path):
    files = FolderFiles(tmp_path / "a" / "b" / "c", ReadOptions(root=tmp_path))
    assert files.inside("../../../d.png", "here") == tmp_path / "d.png"
    with pytest.raises(InputError, match="here: '../../../../d.png' lies outside"):
        files.inside("../../../../d.png", "here")


def test_an_export_is_written_by_number_whatever_frames_are_called(tmp_path):
    """Names of frames, cameras and sequences of a hostile set are text in it, not places."""
    source = write_vhap_export(tmp_path / "sets" / "one", Performance())
    for path in source.glob("transforms*.json"):
        content = json.loads(path.read_text())
        for row in content["frames"]:
            row |= {"timestep_id": "../../../escaped", "camera_id": f"../../escaped{row['camera_index']}", "sequence": "/escaped"}
        path.write_text(json.dumps(content))
    before = set(tmp_path.rglob("*"))
    export(source, tmp_path / "out" / "set", params=False)
    assert set(tmp_path.rglob("*")) - before <= {tmp_path / "out", *(tmp_path / "out").rglob("*")}
    assert not list(tmp_path.rglob("*escaped*"))


@pytest.mark.parametrize("name", ["../../x", "/x", "a\nb", ""])
def test_a_calibration_names_no_path(tmp_path, tmp_path_factory, name):
    raw = tmp_path / "raw"
    shutil.copytree(tiny_raw(tmp_path_factory), raw)
    path = raw / "031" / "calibration" / "camera_params.json"
    content = json.loads(path.read_text())
    content["world_2_cam"][name] = next(iter(content["world_2_cam"].values()))
    path.write_text(json.dumps(content))
    with pytest.raises(InputError, match="expected serials of cameras"):
        open_raw(raw, "031").cameras(())


# --- what is written --------------------------------------------------------------------------------------------------

def test_nothing_is_written_through_a_link(tmp_path):
    """A folder from somebody else may hold links with the names of what is written into it."""
    victim, folder = tmp_path / "victim", tmp_path / "folder"
    victim.write_text("mine")
    folder.mkdir()
    for name in ("lmk_1.npy", "lmk_1.npy.partial"):
        (folder / name).symlink_to(victim)
    write_whole(folder / "lmk_1.npy", b"new")
    assert victim.read_text() == "mine"
    assert not (folder / "lmk_1.npy").is_symlink() and (folder / "lmk_1.npy").read_bytes() == b"new"
    (folder / ".meshhead.lock").symlink_to(victim)
    with pytest.raises(InputError, match="cannot be written"), RunLock(folder / ".meshhead.lock"):
        pass
    assert victim.read_text() == "mine"


def test_videos_and_archives_are_not_written_through_a_link(tmp_path):
    victim, folder = tmp_path / "victim", tmp_path / "folder"
    victim.write_text("mine")
    (folder / "sent" / "388" / "A").mkdir(parents=True)
    paths = [folder / "a.mp4", folder / "sent.zip"]
    for path in paths:
        path.with_name(path.name + ".partial").symlink_to(victim)
    with VideoWriter(paths[0], 25, 20, "ultrafast") as video:
        video.add(torch.zeros(48, 32, dtype=torch.uint8))
    (folder / "sent" / "388" / "A" / "cam_1.mp4").write_bytes(paths[0].read_bytes())
    pack(SubmissionConfig(folder=folder / "sent", participant="388", expected=["388/A"], cameras=["1"], dataroot="d", calibration="c"))
    assert victim.read_text() == "mine" and not any(path.is_symlink() for path in paths)
    assert zipfile.ZipFile(paths[1]).namelist() == ["388/A/cam_1.mp4"]


# --- videos -----------------------------------------------------------------------------------------------------------

PLAYLIST = "#EXTM3U\n#EXT-X-VERSION:3\n#EXT-X-TARGETDURATION:1\n#EXT-X-MEDIA-SEQUENCE:0\n#EXTINF:1.0,\n{}\n#EXT-X-ENDLIST\n"
LISTS = {
    "concat": "ffconcat version 1.0\nfile private/private.mp4\n",
    "playlist": PLAYLIST.format("private/private.mp4"),
    "playlist of an address": PLAYLIST.format("http://127.0.0.1:9/private.mp4"),
    "session": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 45454 RTP/AVP 96\na=rtpmap:96 H264/90000\n",
}


@pytest.mark.parametrize("kind", LISTS)
def test_a_video_opens_no_other_file(tmp_path, kind):
    grey_video(tmp_path / "private" / "private.mp4", [0, 1, 2])
    (tmp_path / "cam_1.mp4").write_text(LISTS[kind])
    with pytest.raises(InputError, match=r"cam_1\.mp4: cannot be opened as a video"):
        read_video(tmp_path / "cam_1.mp4")
    if kind == "concat":  # a control: FFmpeg alone opens it
        with av.open(str(tmp_path / "cam_1.mp4")) as container:
            assert container.format.name == "concat"


@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".mkv", ".webm", ".avi", ".mts", ".mpg", ".m4v", ".flv"])
def test_videos_that_hold_their_pictures_are_read(tmp_path, suffix):
    with av.open(str(tmp_path / f"a{suffix}"), "w") as container:
        stream = container.add_stream({".webm": "libvpx", ".mpg": "mpeg2video", ".avi": "mpeg4"}.get(suffix, "libx264"), rate=25)
        stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"
        for index in range(30):
            frame = av.VideoFrame.from_ndarray(np.full((32, 32, 3), 90, np.uint8), format="rgb24")
            frame.pts = index
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    with open_video(tmp_path / f"a{suffix}") as container:
        assert container.streams.video[0].codec_context.width == 32
    if suffix in (".mp4", ".mov", ".mkv", ".webm", ".m4v"):
        video = read_video(tmp_path / f"a{suffix}")
        assert len(list(decode(video, frozenset(video.stamps), 1))) == 30


# --- downloads --------------------------------------------------------------------------------------------------------

def test_downloads_are_over_https_and_known_by_their_hash():
    for backbone in NETWORKS.values():
        for file in (backbone.features, backbone.heads):
            assert file.url.startswith("https://") and len(bytes.fromhex(file.sha256)) == 32 and name_fault(file.name) is None


def test_a_download_that_is_another_file_is_thrown_away(tmp_path):
    """Also where the server sends people elsewhere; the name of the file is ours, not the server's."""
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(302 if self.path == "/a" else 200)
            self.send_header("Location", "/b")
            self.send_header("Content-Disposition", 'attachment; filename="../../evil"')
            self.send_header("Content-Length", "4")
            self.end_headers()
            self.wfile.write(b"evil")

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with contextlib.closing(server.socket):
        file = dataclasses.replace(NETWORKS["vgg"].heads, url=f"http://127.0.0.1:{server.server_port}/a")
        with pytest.raises(InputError, match="answered with another file"):
            lpips_weights.download(file, tmp_path / "weights" / file.name)
        server.shutdown()
    assert not list((tmp_path / "weights").iterdir())
