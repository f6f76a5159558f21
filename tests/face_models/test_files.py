"""Models from the files people have; files that are something else; pickles that would run code."""

import pickle

import numpy as np
import pytest
import torch

from lib.errors import InputError
from lib.face_models.library import FOLDER, MODELS, read_model
from lib.face_models.matfile import read_mat
from lib.face_models.pickles import read_pickle
from tests.face_models import lookalikes

KEPT = np.delete(np.arange(68), [48, 54])


@pytest.mark.parametrize("compress", [True, False])
def test_bfm_from_a_matlab_file(tmp_path, compress):
    content = lookalikes.write_bfm(tmp_path / "BFM_model_front.mat", compress)
    model = read_model("bfm", tmp_path / "BFM_model_front.mat")
    assert (model.identity_count, model.expression_count) == (80, 64)
    identity, expression = torch.randn(80), torch.randn(64)
    expected = (content["meanshape"][0] + content["idBase"] @ identity.numpy() + content["exBase"] @ expression.numpy()).reshape(-1, 3)
    expected -= content["meanshape"].reshape(-1, 3).mean(axis=0)
    vertices = model.vertices(identity, expression)
    np.testing.assert_allclose(vertices, expected, atol=1e-4)
    np.testing.assert_array_equal(model.landmarks(vertices), vertices[KEPT])
    np.testing.assert_array_equal(model.triangles, lookalikes.triangles())


def test_bfm_from_a_conversion(tmp_path):
    content = lookalikes.write_bfm(tmp_path / "BFM_model_front.mat")
    np.savez(tmp_path / "a.npz", **{key: content[key] for key in ("meanshape", "idBase", "exBase", "tri", "keypoints")})
    for name in ("mean", "identity", "expression"):
        torch.testing.assert_close(getattr(read_model("bfm", tmp_path / "a.npz"), name),
                                   getattr(read_model("bfm", tmp_path / "BFM_model_front.mat"), name))


def test_matlab_arrays_are_those_of_scipy(tmp_path):
    content = lookalikes.write_bfm(tmp_path / "a.mat", small=np.array([[7]], np.uint8), big=np.arange(24.0).reshape(2, 3, 4))
    read = read_mat(tmp_path / "a.mat")
    assert set(read) == {key for key in content if key not in ("note", "parts")}
    for key, value in read.items():
        np.testing.assert_array_equal(value, content[key])


@pytest.mark.parametrize("cut", [100, 140, 5000, -10])
def test_a_cut_matlab_file_is_told(tmp_path, cut):
    lookalikes.write_bfm(tmp_path / "a.mat", compress=False)
    (tmp_path / "b.mat").write_bytes((tmp_path / "a.mat").read_bytes()[:cut])
    with pytest.raises(InputError, match=r"b\.mat"):
        read_model("bfm", tmp_path / "b.mat")


def test_faceverse_is_turned_upright(tmp_path):
    content = lookalikes.write_faceverse(tmp_path / "f.npy")
    model = read_model("faceverse", tmp_path / "f.npy")
    assert (model.identity_count, model.expression_count) == (150, 52) and bool(model.bounded.all())
    identity, expression = torch.randn(150), torch.rand(52)
    expected = content["meanshape"] + (content["idBase"] @ identity.numpy() + content["exBase"] @ expression.numpy()).reshape(-1, 3)
    expected = (expected - content["meanshape"].mean(axis=0)) * [1, -1, -1]
    np.testing.assert_allclose(model.vertices(identity, expression), expected, atol=1e-4)


def test_faceverse_with_66_landmarks(tmp_path):
    lookalikes.write_faceverse(tmp_path / "f.npy", keypoints=KEPT)
    np.testing.assert_array_equal(read_model("faceverse", tmp_path / "f.npy").landmark_corners[:, 0], KEPT)


@pytest.mark.parametrize("changes, message", [
    ({"idBase": None}, "'idBase' is missing"), ({"exBase": np.ones((3 * lookalikes.VERTICES, 10))}, "'exBase': expected at least 64 columns"),
    ({"keypoints": np.arange(67)[None] + 1}, "expected 68"), ({"tri": lookalikes.triangles()}, "'tri': expected rows 1 to 80, found 0"),
    ({"meanshape": np.full((1, 3 * lookalikes.VERTICES), np.nan)}, "'meanshape': expected finite"),
])
def test_another_version_is_told(tmp_path, changes, message):
    lookalikes.write_bfm(tmp_path / "a.mat", **changes)
    with pytest.raises(InputError, match=message):
        read_model("bfm", tmp_path / "a.mat")


@pytest.mark.parametrize("name", sorted(set(MODELS) - {"ict"}))
def test_a_missing_file_is_told_with_its_origin(name):
    if any((FOLDER / file).exists() for file in MODELS[name].files):
        pytest.skip("this machine has the model")
    with pytest.raises(InputError, match="is missing.*Licence.*Put it into .*face_models") as told:
        read_model(name)
    assert MODELS[name].origin in str(told.value)


class Evil:
    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("protocol", [0, 2, 4])
@pytest.mark.parametrize("how", ["plain", "inside", "npy"])
def test_a_pickle_that_runs_code_is_refused_before_it_does(tmp_path, protocol, how):
    import os

    victim = tmp_path / "victim"
    evil = Evil(os.system, f"touch {victim}") if protocol else Evil(exec, f"open({str(victim)!r}, 'w')")
    if how == "npy":
        np.save(tmp_path / "a.pkl.npy", {"meanshape": evil}, allow_pickle=True)
        path = tmp_path / "a.pkl.npy"
    else:
        path = tmp_path / "a.pkl"
        path.write_bytes(pickle.dumps({"f": np.array([evil, 1], dtype=object)} if how == "inside" else evil, protocol=protocol))
    with pytest.raises(InputError, match="refused"):
        read_pickle(path)
    assert not victim.exists()


@pytest.mark.parametrize("data", [b"", b"\x80\x04", b"hello", b"\x93NUMPY\x01\x00", b"cos\nsystem\n(S'x'\ntR.", b"cnumpy\nload\n(S'x'\ntR."])
def test_what_is_no_pickle_of_arrays_is_told(tmp_path, data):
    (tmp_path / "a.pkl").write_bytes(data)
    with pytest.raises(InputError, match=r"a\.pkl"):
        read_pickle(tmp_path / "a.pkl")


def test_tensors_in_an_embedding_are_skipped(tmp_path):
    np.save(tmp_path / "a.npy", {"x": np.arange(3), "y": torch.arange(4)}, allow_pickle=True)
    content = read_pickle(tmp_path / "a.npy")
    np.testing.assert_array_equal(content["x"], np.arange(3))
    assert content["y"] is None


@pytest.mark.parametrize("how", ["plain", "inside", "within itself"])
def test_lists_that_hold_each_other_without_end_are_refused(tmp_path, how):
    nested = [1.0]
    for _ in range(40):
        nested = [nested, nested]
    held = np.empty(1, dtype=object)
    held[0] = nested
    endless = []
    endless.append(endless)
    (tmp_path / "a.pkl").write_bytes(pickle.dumps({"f": {"plain": nested, "inside": held, "within itself": endless}[how]}, protocol=2))
    with pytest.raises(InputError, match=r"a\.pkl: refused"):
        read_pickle(tmp_path / "a.pkl")
