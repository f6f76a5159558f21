"""No file runs code when it is read: every reader against every way a pickle can be hidden, and against files that only claim much."""

import hashlib
import io
import json
import pickle
import struct
import warnings
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from lib.avatars.gaussian_head_avatar.published import read_gaussian_head, read_mesh_head
from lib.config.reader import Arguments, read_config
from lib.datasets.arrays import parse_arrays
from lib.datasets.images import read_image
from lib.datasets.layout import CaptureFolder, read_params_file
from lib.datasets.tracked.metrical import read_frame
from lib.errors import InputError
from lib.face_models.library import read_model
from lib.face_models.pickles import read_pickle
from lib.losses.perceptual import load_lpips
from lib.training.bundle import DIGITS, LICENSE, MANIFEST, read_bundle
from lib.training.checkpoint import read_checkpoint
from lib.training.recorder import RecorderConfig
from preprocess import landmark_files, matting, raw_layouts
from tests.faults.hostile import PAYLOADS, TORCH, npy, npz, opened_by_torch

Read = Callable[[Path], object]


@pytest.fixture(autouse=True)
def _quiet():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's of pickle protocols
        yield


def _lpips(path: Path) -> object:
    path.rename(path.with_name("vgg16.pth"))
    return load_lpips(path.parent, "loss.lpips")


TORCH_READERS: dict[str, Read] = {
    "checkpoint": lambda path: read_checkpoint(path, "meshhead", "load_meshhead_checkpoint"),
    "published head": lambda path: read_gaussian_head(path, "load_gaussianhead_checkpoint", None, None, None),
    "published mesh": lambda path: read_mesh_head(path, "load_meshhead_checkpoint", None),
    "lpips": _lpips,
    "metrical-tracker": read_frame,
    "matting": lambda path: matting.open_matting("robust_video_matting", path, "cpu", True),
}
ARRAY_READERS: dict[str, Read] = {
    "params": read_params_file,
    "any arrays": lambda path: parse_arrays(path, path.read_bytes()),
    "landmarks": lambda path: landmark_files._checked(path, landmark_files._load(path), (68, 3)),
    "VHAP landmarks": lambda path: landmark_files._load(path, "face_landmark_2d"),
    "colours": raw_layouts._read_affine,
    "BFM": lambda path: read_model("bfm", path),
}
PICKLE_READERS: dict[str, Read] = {
    "FLAME": lambda path: read_model("flame", path), "FaceVerse": lambda path: read_model("faceverse", path), "any pickle": read_pickle}


def touched(mark: Path) -> bool:
    there = mark.exists()
    if there:
        mark.rmdir() if mark.is_dir() else mark.unlink()
    return there


@pytest.mark.parametrize("name", PAYLOADS)
def test_the_payloads_are_hostile(tmp_path, name):
    """To programs that are careless: otherwise the tests below would show nothing."""
    mark = tmp_path / "mark"
    pickle.loads(PAYLOADS[name](mark))  # noqa: S301 (to see that it is hostile)
    assert touched(mark)
    for container in ("zip", "legacy"):
        opened_by_torch(TORCH[container](PAYLOADS[name](mark)))
        assert touched(mark), container


def refuses(read: Read, path: Path, data: bytes, mark: Path) -> None:
    path.write_bytes(data)
    with pytest.raises(InputError) as told:
        read(path)
    assert path.stem in str(told.value) or path.parent.name in str(told.value)
    assert not touched(mark)


@pytest.mark.parametrize("reader", TORCH_READERS)
@pytest.mark.parametrize("container", TORCH)
def test_torch_files_run_nothing(tmp_path, reader, container):
    mark = tmp_path / "mark"
    for payload in PAYLOADS.values():
        refuses(TORCH_READERS[reader], tmp_path / "hostile.pth", TORCH[container](payload(mark)), mark)


@pytest.mark.parametrize("reader", ARRAY_READERS)
def test_arrays_run_nothing(tmp_path, reader):
    mark = tmp_path / "mark"
    for payload in PAYLOADS.values():
        for data in (payload(mark), npy(payload(mark)), npz(payload(mark), "exp_coeff", "pose", "scale", "face_landmark_2d", "meanshape")):
            refuses(ARRAY_READERS[reader], tmp_path / "hostile.npz", data, mark)


@pytest.mark.parametrize("reader", PICKLE_READERS)
def test_pickles_of_face_models_run_nothing(tmp_path, reader):
    mark = tmp_path / "mark"
    for payload in PAYLOADS.values():
        for suffix, data in ((".pkl", payload(mark)), (".npy", npy(payload(mark)))):
            refuses(PICKLE_READERS[reader], tmp_path / f"hostile{suffix}", data, mark)


@pytest.mark.parametrize("container", [npy, *TORCH.values()])
def test_bundles_run_nothing(tmp_path, container):
    mark, path, harmless = tmp_path / "mark", tmp_path / "hostile.avatar", io.BytesIO()
    np.save(harmless, np.zeros((3, 1), np.float32))
    path.write_bytes(bundle({"tensors/gaussianhead/xyz.npy": harmless.getvalue(), "data.pkl": next(iter(PAYLOADS.values()))(mark)}))
    assert read_bundle(path, "gaussianhead", "load_gaussianhead_checkpoint").modules["gaussianhead"]["xyz"].shape == (3, 1)  # a control
    for payload in PAYLOADS.values():
        path.write_bytes(bundle({"tensors/gaussianhead/xyz.npy": container(payload(mark))}))
        for read in (lambda: read_bundle(path, "gaussianhead", "key"), lambda: read_gaussian_head(path, "key", None, None, None)):
            with pytest.raises(InputError, match=r"xyz\.npy|is not that of a bundle"):
                read()
        assert not touched(mark)


def bundle(parts: dict[str, bytes], **changes: object) -> bytes:
    """A bundle whose hashes are right; `changes` are of its manifest."""
    parts = {LICENSE: b"mine"} | parts
    manifest = {"bundle": 1, "stage": "gaussianhead", "step": 0, "seconds": 0.0, "config": {}, "data": None,
                "sha256": {name: hashlib.sha256(data).hexdigest() for name, data in parts.items()}} | changes
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, data in ({MANIFEST: json.dumps(manifest).encode()} | parts).items():
            archive.writestr(name, data)
        archive.comment = b"0" * DIGITS
    whole = file.getvalue()[:-DIGITS]
    return whole + hashlib.sha256(whole).hexdigest().encode()


@pytest.mark.parametrize("data", [[1], {"frames": 3}, "x", {"frames": [], "digests": [], "train_frames": [], "train_cameras": [], "more": []}])
def test_a_bundle_that_says_nonsense_of_its_data(tmp_path, data, capsys):
    path = tmp_path / "a.avatar"
    path.write_bytes(bundle({LICENSE: b"\x1b[2Jmine"}, data=data))
    with pytest.raises(InputError, match="is not that of a bundle"):
        read_bundle(path, "gaussianhead", "load_gaussianhead_checkpoint")
    assert "\x1b" not in capsys.readouterr().out


# --- numpy's own types and arrays, told by a file what they are -------------------------------------------------------

class _Told:
    def __init__(self, *reduced: object) -> None:
        self.reduced = reduced

    def __reduce__(self):
        return self.reduced


def _array(dtype: object, data: object, shape: tuple[int, ...] = (1,)) -> _Told:
    return _Told(np._core.multiarray._reconstruct, (np.ndarray, (0,), b"b"), (1, shape, dtype, False, data))


def _type(code: str, *state: object) -> _Told:
    return _Told(np.dtype, (code, False, True), state)


POINTER = b"\x11" * 8
LIES: dict[str, object] = {
    # numpy takes each of the first five and then reads memory that is not the array's: a crash, or what somebody put there.
    "a part beyond the end": _array(_type("V8", 3, "|", None, ("a",), {"a": (np.dtype("f8"), 10**9)}, 8, 1, 0), POINTER),
    "bytes as objects": _array(_type("O8", 3, "|", None, None, None, -1, -1, 0), POINTER),
    "bytes as parts that are objects": _array(_type("V8", 3, "|", None, ("a",), {"a": (np.dtype("O"), 0)}, 8, 1, 0), POINTER),
    "a scalar of objects": _Told(np._core.multiarray.scalar, (
        _type("V8", 3, "|", None, ("a",), {"a": (np.dtype("O"), 0)}, 8, 1, 0), POINTER)),
    "rows within a number": _array(_type("V8", 3, "|", (np.dtype("f8"), (10**9,)), None, None, 8, 1, 0), POINTER),
    "a negative shape": _array(np.dtype("f8"), bytes(64), (-1, -8)),
    "a shape that overflows": _array(np.dtype("f8"), bytes(8), (2**62, 4)),
    "more than its bytes": _array(np.dtype("f8"), bytes(8), (2,)),
    "numbers for objects": _array(np.dtype("O"), 3),
    "no content": _Told(np.ndarray, ((2**40,), "u1")),
    "a matrix of terabytes": None,
}


@pytest.mark.parametrize("lie", LIES)
@pytest.mark.parametrize("protocol", [2, 4])
def test_an_array_is_no_more_than_its_bytes(tmp_path, lie, protocol):
    from scipy.sparse import csc_matrix

    told = LIES[lie] or csc_matrix((np.ones(1), ([0], [0])), shape=(2**20, 2**20))
    data = pickle.dumps({"v_template": told}, protocol=protocol)
    for suffix, content in ((".pkl", data), (".npy", npy(data))):
        (tmp_path / f"a{suffix}").write_bytes(content)
        with pytest.raises(InputError, match="refused"):
            read_pickle(tmp_path / f"a{suffix}")
    if LIES[lie] is not None:
        (tmp_path / "a.frame").write_bytes(TORCH["zip"](pickle.dumps({"flame": {"exp": told}}, protocol=2)))
        with pytest.raises(InputError, match=r"a\.frame: (refused|not a readable)"):
            read_frame(tmp_path / "a.frame")


# --- files that claim much --------------------------------------------------------------------------------------------

def test_a_file_that_promises_more_than_there_is(tmp_path):
    path = tmp_path / "a.npz"
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": (2**50,)})
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in ("pose", "scale"):
            archive.writestr(f"{name}.npy", header.getvalue())
    honest = path.read_bytes()
    with pytest.raises(InputError, match=r"a\.npz: cannot be read as a numpy file \(.*promises an array of shape"):
        parse_arrays(path, honest)
    data, place = bytearray(honest), 0
    while (place := data.find(b"PK\x01\x02", place)) >= 0:  # what the directory of the archive says of the sizes
        data[place + 24:place + 28] = struct.pack("<I", 0xFFFFFFF0)
        place += 4
    with pytest.raises(InputError, match="claims to unpack to 8589934560 bytes"):
        parse_arrays(path, bytes(data))


def test_a_picture_of_more_pixels_than_memory(tmp_path):
    assert cv2.imwrite(str(tmp_path / "a.png"), np.zeros((8, 8, 3), np.uint8))
    data = bytearray((tmp_path / "a.png").read_bytes())
    data[16:24] = struct.pack(">II", 60000, 60000)
    data[29:33] = struct.pack(">I", zlib.crc32(bytes(data[12:29])))
    (tmp_path / "a.png").write_bytes(data)
    with pytest.raises(InputError, match=r"a\.png: its header says 60000x60000 pixels"):
        read_image(tmp_path / "a.png")


VALUES = (
    "!!python/object/apply:os.system ['touch MARK']", "!!python/object/new:os.system ['touch MARK']", "!!python/module:os",
    "!!python/name:os.system", "!!python/tuple [a, b]", "!evil 1", "{? !!python/object/apply:os.system ['touch MARK'] : 1}", "!!timestamp 2024-13-45",
)


@pytest.mark.parametrize("value", VALUES)
def test_yaml_makes_no_objects(tmp_path, value):
    value, path = value.replace("MARK", str(tmp_path / "mark")), tmp_path / "a.yaml"
    path.write_text(f"name: {value}")
    with pytest.raises(InputError, match="not valid YAML"):
        read_config(Arguments(path, ()), RecorderConfig)
    path.write_text("save_freq: 1")
    with pytest.raises(InputError, match="command line: name: not a YAML value"):
        read_config(Arguments(path, (f"name={value}",)), RecorderConfig)
    assert not (tmp_path / "mark").exists()


def test_yaml_whose_names_name_others_does_not_grow(tmp_path):
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"] + [f"a{k}: &a{k} [{', '.join([f'*a{k - 1}'] * 10)}]" for k in range(1, 12)]
    for name, text in (("billions", "\n".join(lines)), ("itself", "a: &a [*a]"), ("deep", "[" * 5000 + "]" * 5000)):
        (tmp_path / f"{name}.yaml").write_text(text)
        with pytest.raises(InputError, match=f"{name}.yaml: (more than|not valid YAML)"):
            read_config(Arguments(tmp_path / f"{name}.yaml", ()), RecorderConfig)


def test_what_a_file_says_does_not_steer_the_terminal(tmp_path):
    (tmp_path / "images" / "0000\x1b[2J").mkdir(parents=True)
    with pytest.raises(InputError, match=r"0000\\x1b\[2J' has control characters"):
        CaptureFolder(tmp_path).frames()
    assert str(InputError("a\x1b]0;b\x07\nc\r")) == "a\\x1b]0;b\\x07\nc\\r"


def test_what_one_reader_allows_torch_is_not_allowed_to_others(tmp_path):
    path = tmp_path / "a.frame"
    path.write_bytes(TORCH["zip"](pickle.dumps({"flame": np.zeros(3)}, protocol=2)))
    before = set(torch.serialization.get_safe_globals())
    with pytest.raises(InputError, match="expected a checkpoint of metrical-tracker"):  # the array was read
        read_frame(path)
    assert set(torch.serialization.get_safe_globals()) == before
    with pytest.raises(InputError, match="not a readable checkpoint"):
        read_checkpoint(path, "meshhead", "load_meshhead_checkpoint")
