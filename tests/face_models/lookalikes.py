"""Small random files with the keys, shapes and classes of the published face models."""

import pickle
import sys
import types

import numpy as np
import scipy.io
import scipy.sparse

VERTICES = 80


def random(seed=0):
    return np.random.default_rng(seed)


def triangles(count=VERTICES):
    rows = np.arange(count - 2)
    return np.stack([rows, rows + 1, rows + 2], axis=1)


def write_bfm(path, compress=True, vertices=VERTICES, **changes):
    rng = random()
    content = {
        "meanshape": rng.normal(size=(1, 3 * vertices)), "idBase": rng.normal(size=(3 * vertices, 80)),
        "exBase": rng.normal(size=(3 * vertices, 64)).astype(np.float32), "meantex": rng.normal(size=(1, 3 * vertices)),
        "tri": (triangles(vertices) + 1).astype(np.uint16), "keypoints": (np.arange(68)[None] + 1).astype(np.uint8),
        "skinmask": np.ones((1, vertices)),
        "note": "a text", "parts": np.array([[1, "two"]], dtype=object),
    } | changes
    scipy.io.savemat(path, {key: value for key, value in content.items() if value is not None}, do_compression=compress)
    return content


def write_faceverse(path, **changes):
    rng = random(1)
    content = {
        "meanshape": rng.normal(size=(VERTICES, 3)).astype(np.float32), "idBase": rng.normal(size=(3 * VERTICES, 150)).astype(np.float32),
        "exBase": rng.normal(size=(3 * VERTICES, 52)).astype(np.float32), "tri": triangles(), "keypoints": np.arange(68)[None],
        "exp_name_list": [f"shape{k}" for k in range(52)], "skinmask": np.ones((1, VERTICES)),
    } | changes
    np.save(path, content, allow_pickle=True)
    return content


def flame_arrays():
    rng = random(2)
    weights = rng.uniform(size=(VERTICES, 5))
    regressor = rng.uniform(size=(5, VERTICES)) * (rng.uniform(size=(5, VERTICES)) < 0.2)
    return {
        "v_template": rng.normal(size=(VERTICES, 3)) * 0.1, "shapedirs": rng.normal(size=(VERTICES, 3, 400)) * 0.01,
        "posedirs": rng.normal(size=(VERTICES, 3, 36)) * 0.01, "J_regressor": regressor / regressor.sum(axis=1, keepdims=True),
        "weights": weights / weights.sum(axis=1, keepdims=True), "f": triangles().astype(np.uint32),
        "kintree_table": np.array([[2**32 - 1, 0, 1, 1, 1], [0, 1, 2, 3, 4]]), "bs_style": "lbs",
    }


def write_flame(folder, monkeypatch, protocol=2, **changes):
    """As it is downloaded: arrays of chumpy and a sparse matrix; the embedding of FLAME."""
    arrays = flame_arrays() | changes
    module = types.ModuleType("chumpy.ch")

    class Ch:
        def __init__(self, x):
            self.x = x

    Ch.__module__, Ch.__qualname__, module.Ch = "chumpy.ch", "Ch", Ch
    monkeypatch.setitem(sys.modules, "chumpy", types.ModuleType("chumpy"))
    monkeypatch.setitem(sys.modules, "chumpy.ch", module)
    stored = arrays | {key: Ch(arrays[key]) for key in ("v_template", "shapedirs", "posedirs", "weights")}
    stored["J_regressor"] = scipy.sparse.csc_matrix(arrays["J_regressor"])
    (folder / "generic_model.pkl").write_bytes(pickle.dumps(stored, protocol=protocol))
    for name in ("chumpy", "chumpy.ch"):
        monkeypatch.delitem(sys.modules, name)
    rng = random(3)
    weights = rng.uniform(size=(1, 68, 3))
    embedding = {"full_lmk_faces_idx": np.arange(68)[None] % (VERTICES - 2), "full_lmk_bary_coords": weights / weights.sum(axis=2, keepdims=True)}
    np.save(folder / "landmark_embedding.npy", embedding, allow_pickle=True)
    return arrays, embedding
