"""Bundles: what goes in comes out to the bit; one changed byte anywhere and nothing comes out."""

import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from lib.datasets.head_capture import CaptureRecord
from lib.errors import InputError
from lib.training.bundle import Leaflet, is_bundle, portable_metrics, read_bundle, write_bundle
from lib.training.checkpoint import Checkpoint

LEAFLET = Leaflet("Mine, all mine.\n", (torch.arange(3 * 8 * 8) % 256).byte().reshape(3, 8, 8), json.dumps({"protocol": {"id": "p-1"}, "psnr": 30.0}))


def a_checkpoint(path: Path, data: bool = True) -> Checkpoint:
    torch.manual_seed(0)
    record = CaptureRecord(("0000", "0010"), ("aa", "bb"), ("0000",), ("1", "2"), (0.0,), (1.0,), (0.1,), (0.1,), ("FLAME", "2020"))
    return Checkpoint(
        stage="gaussianhead", step=7, best_psnr=20.0, seconds=1.5, path=path, data=record if data else None, optimizers={"adam": {"state": {}}},
        config={"gaussianheadmodule": {"exp_color_mlp": [1, 2]}, "dataset": {"dataroot": "/home/somebody"}, "supresmodule": {}},
        modules={"gaussianhead": {"xyz": torch.randn(5, 3), "a.b": torch.arange(4), "none": torch.zeros(0, 2), "number": torch.tensor(2.5)},
                 "supres": {"weight": torch.randn(2, 3, 3, 3).transpose(0, 1)}},
    )


@pytest.fixture
def bundle(tmp_path) -> Path:
    path = tmp_path / "a.avatar"
    write_bundle(path, a_checkpoint(path), ("gaussianheadmodule", "supresmodule", "absent"), LEAFLET)
    return path


def refused(path: Path, *parts: str) -> None:
    with pytest.raises(InputError) as error:
        read_bundle(path, "gaussianhead", "load_x")
    assert str(error.value).startswith(f"load_x: {path}: ") and all(part in str(error.value) for part in parts), str(error.value)


@pytest.mark.parametrize("data", [True, False])
def test_what_comes_out_is_what_went_in(tmp_path, capsys, data):
    path = tmp_path / "a.avatar"
    before = a_checkpoint(path, data)
    write_bundle(path, before, ("gaussianheadmodule", "supresmodule"), LEAFLET)
    after = read_bundle(path, "gaussianhead", "load_x")
    assert (after.stage, after.step, after.seconds, after.optimizers) == ("gaussianhead", 7, 1.5, {})
    assert (after.data and vars(after.data)) == (before.data and vars(before.data))
    assert after.config == {key: before.config[key] for key in ("gaussianheadmodule", "supresmodule")}
    assert after.modules.keys() == before.modules.keys()
    for module, state in before.modules.items():
        assert state.keys() == after.modules[module].keys()
        for name, value in state.items():
            found = after.modules[module][name]
            assert found.dtype == value.dtype and torch.equal(found, value)
    assert "Mine, all mine." in capsys.readouterr().out


def test_anyone_can_look_inside_and_nothing_runs(bundle):
    with zipfile.ZipFile(bundle) as archive:
        assert archive.testzip() is None
        names = archive.namelist()
        manifest = json.loads(archive.read("avatar.json"))
        xyz = np.load(archive.open("tensors/gaussianhead/xyz.npy"), allow_pickle=False)
        assert archive.read("thumbnail.png").startswith(b"\x89PNG") and archive.read("LICENSE.txt").decode() == LEAFLET.license
    assert np.array_equal(xyz, a_checkpoint(bundle).modules["gaussianhead"]["xyz"].numpy())
    assert manifest["protocols"] == {"bundle": 1, "checkpoint": 3, "evaluation": "p-1"}
    assert {name.rsplit(".", 1)[1] for name in names} == {"json", "txt", "png", "npy"}
    assert b"somebody" not in bundle.read_bytes()


def test_the_same_avatar_gives_the_same_file(bundle, tmp_path):
    write_bundle(tmp_path / "b.avatar", a_checkpoint(bundle), ("gaussianheadmodule", "supresmodule"), LEAFLET)
    assert (tmp_path / "b.avatar").read_bytes() == bundle.read_bytes()


def test_every_changed_byte_is_noticed(bundle):
    whole = bundle.read_bytes()
    for place in range(0, len(whole), 7):
        changed = bytearray(whole)
        changed[place] ^= 1 << place % 8
        bundle.write_bytes(changed)
        refused(bundle)


def test_every_cut_is_noticed(bundle):
    whole = bundle.read_bytes()
    for length in [*range(0, len(whole), 41), len(whole) - 1]:
        bundle.write_bytes(whole[:length])
        refused(bundle)
    bundle.write_bytes(whole + b"\0")
    refused(bundle)


def test_the_part_that_was_changed_is_named(bundle):
    whole = bundle.read_bytes()
    for name in ("tensors/gaussianhead/xyz.npy", "LICENSE.txt"):
        with zipfile.ZipFile(bundle) as archive:
            content = archive.read(name)
        changed = bytearray(content)
        changed[-1] ^= 1
        bundle.write_bytes(whole.replace(content, bytes(changed)))
        refused(bundle, name)
        bundle.write_bytes(whole)


def repack(path: Path, changes: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> None:
    """As somebody would who changes a bundle with an archiver."""
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()} | changes
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in entries.items():
            archive.writestr(name, content)


def test_what_an_archiver_made_of_it_is_refused(bundle):
    whole = bundle.read_bytes()
    for changes, compression, part in (
        ({"LICENSE.txt": b"Yours."}, zipfile.ZIP_STORED, "'LICENSE.txt' is not what was written"),
        ({"more.txt": b"more"}, zipfile.ZIP_STORED, "'more.txt' is not what was written"),
        ({}, zipfile.ZIP_DEFLATED, "is compressed"),
        ({}, zipfile.ZIP_STORED, "avatar.json or the order of its parts"),
    ):
        bundle.write_bytes(whole)
        repack(bundle, changes, compression)
        refused(bundle, part)


def test_newer_bundles_other_stages_and_other_files_are_told_apart(bundle, tmp_path, monkeypatch):
    assert is_bundle(bundle)
    with pytest.raises(InputError, match="expected a bundle of stage 'meshhead', found one of stage 'gaussianhead'"):
        read_bundle(bundle, "meshhead", "load_x")
    monkeypatch.setattr("lib.training.bundle.VERSION", 2)
    write_bundle(bundle, a_checkpoint(bundle), (), LEAFLET)
    monkeypatch.undo()
    refused(bundle, "version 2, made by newer code")
    torch.save({"a": torch.zeros(3)}, tmp_path / "b")
    (tmp_path / "c").write_bytes(b"PK")
    assert [is_bundle(tmp_path / name) for name in "bcd"] == [False] * 3


def test_an_array_larger_than_its_bytes_is_refused(bundle, monkeypatch):
    text = b"{'descr': '<f4', 'fortran_order': False, 'shape': (99999999999, 3), }".ljust(99) + b"\n"
    header = np.lib.format.magic(1, 0) + len(text).to_bytes(2, "little") + text
    monkeypatch.setattr("lib.training.bundle._npy", lambda value: header)
    write_bundle(bundle, a_checkpoint(bundle), (), LEAFLET)
    refused(bundle, "tensors/gaussianhead/xyz.npy", "do not hold an array of shape (99999999999, 3)")


def test_metrics_must_be_metrics():
    for text in ("psnr 3", "[1]", '{"origin": [1]}'):
        with pytest.raises(InputError, match=r"metrics_file: m\.json: not a metrics\.json"):
            portable_metrics(text, Path("m.json"))
