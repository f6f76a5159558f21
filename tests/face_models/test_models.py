"""Models: derivatives against autograd, FLAME against joints moved one after another, offsets against what they promise."""

import numpy as np
import pytest
import torch

from lib.errors import InputError
from lib.face_models.contract import FaceModel
from lib.face_models.ict import FACE_ROWS, read_ict
from lib.face_models.library import read_model
from lib.face_models.offsets import smooth_offsets
from lib.geometry.rotations import left_jacobian
from tests.face_models import lookalikes


@pytest.fixture(scope="module")
def ict():
    return read_ict()


def model_of(name, tmp_path, monkeypatch):
    if name == "flame":
        lookalikes.write_flame(tmp_path, monkeypatch)
        return read_model(name, tmp_path / "generic_model.pkl").double()
    write = {"bfm": lookalikes.write_bfm, "faceverse": lookalikes.write_faceverse}[name]
    path = tmp_path / {"bfm": "a.mat", "faceverse": "a.npy"}[name]
    write(path)
    return read_model(name, path).double()


@pytest.mark.parametrize("name", ["bfm", "faceverse", "flame"])
@pytest.mark.parametrize("own_rows", [False, True])
def test_derivatives_are_those_of_the_vertices(name, own_rows, tmp_path, monkeypatch):
    model = model_of(name, tmp_path, monkeypatch)
    model = model.widened(torch.randn(3, len(model.mean), 3, dtype=torch.float64))
    generator = torch.Generator().manual_seed(0)
    identity = torch.randn(model.identity_count, generator=generator, dtype=torch.float64)
    expression = 0.3 * torch.randn(2, model.expression_count, generator=generator, dtype=torch.float64)
    rows = torch.tensor([[0, 5, 9], [7, 1, 1]]) if own_rows else torch.tensor([0, 5, 9])
    line = model.linearize(identity, expression, rows)
    for frame in range(2):
        picked = rows[frame] if own_rows else rows
        torch.testing.assert_close(line.points[frame], model.vertices(identity, expression[frame])[picked])
        by_identity, by_expression = torch.autograd.functional.jacobian(lambda i, e, p=picked: model.vertices(i, e)[p], (identity, expression[frame]))
        torch.testing.assert_close(line.by_identity[frame], by_identity)
        torch.testing.assert_close(line.by_expression[frame], by_expression)


@pytest.mark.parametrize("name", ["bfm", "flame"])
def test_a_part_is_the_same_model(name, tmp_path, monkeypatch):
    model = model_of(name, tmp_path, monkeypatch)
    part = model.part(model.landmark_corners.unique())
    identity = torch.randn(model.identity_count, dtype=torch.float64)
    expression = 0.3 * torch.randn(2, model.expression_count, dtype=torch.float64)
    whole, small = model.linearize_landmarks(identity, expression), part.linearize_landmarks(identity, expression)
    torch.testing.assert_close(small.points, whole.points)
    torch.testing.assert_close(small.by_expression, whole.by_expression)
    torch.testing.assert_close(whole.points[0], model.landmarks(model.vertices(identity, expression[0])))


@pytest.mark.parametrize("protocol", [2, 4])
def test_flame_is_skinned_by_its_joints(tmp_path, monkeypatch, protocol):
    """Against skinning with homogeneous matrices of all five joints, as published."""
    arrays, embedding = lookalikes.write_flame(tmp_path, monkeypatch, protocol)
    model = read_model("flame", tmp_path / "generic_model.pkl").double()
    assert (model.identity_count, model.expression_count) == (100, 59)
    rng = lookalikes.random(5)
    identity, expression = rng.normal(size=100), np.concatenate([rng.normal(size=50), rng.normal(size=9) * 0.5])
    import roma

    rotations = np.stack([np.eye(3)] * 2 + [roma.rotvec_to_rotmat(torch.tensor(v)).numpy() for v in expression[50:].reshape(3, 3)])
    shaped = arrays["v_template"] + arrays["shapedirs"][..., :100] @ identity + arrays["shapedirs"][..., 300:350] @ expression[:50]
    joints = arrays["J_regressor"] @ shaped
    posed = shaped + arrays["posedirs"] @ (rotations[1:] - np.eye(3)).reshape(-1)
    transforms = []
    for joint, parent in enumerate([-1, 0, 1, 1, 1]):
        local = np.eye(4)
        local[:3, :3], local[:3, 3] = rotations[joint], joints[joint] - (joints[parent] if parent >= 0 else 0)
        transforms.append(local if parent < 0 else transforms[parent] @ local)
    moved = [transform @ np.block([[np.eye(3), -joints[j][:, None]], [np.zeros((1, 3)), 1]]) for j, transform in enumerate(transforms)]
    homogeneous = np.concatenate([posed, np.ones((len(posed), 1))], axis=1)
    expected = np.einsum("vj,jxy,vy->vx", arrays["weights"], np.stack(moved), homogeneous)[:, :3]
    expected = 10.0 * (expected - arrays["v_template"].mean(axis=0))
    vertices = model.vertices(torch.from_numpy(identity), torch.from_numpy(expression))
    np.testing.assert_allclose(vertices, expected, atol=1e-5)
    corners = expected[lookalikes.triangles()[embedding["full_lmk_faces_idx"][0]]]
    landmarks = np.einsum("lcx,lc->lx", corners, embedding["full_lmk_bary_coords"][0])
    np.testing.assert_allclose(model.landmarks(vertices), np.delete(landmarks, [48, 54], axis=0), atol=1e-5)


def test_flame_with_the_embeddings_of_ringnet(tmp_path, monkeypatch):
    lookalikes.write_flame(tmp_path, monkeypatch)
    whole = read_model("flame", tmp_path / "generic_model.pkl")
    embedding = np.load(tmp_path / "landmark_embedding.npy", allow_pickle=True).item()
    faces, weights = embedding["full_lmk_faces_idx"][0], embedding["full_lmk_bary_coords"][0]
    (tmp_path / "landmark_embedding.npy").unlink()
    with pytest.raises(InputError, match="landmarks are missing.*RingNet"):
        read_model("flame", tmp_path / "generic_model.pkl")
    import pickle

    (tmp_path / "flame_static_embedding.pkl").write_bytes(pickle.dumps({"lmk_face_idx": faces[17:], "lmk_b_coords": weights[17:]}, protocol=2))
    np.save(tmp_path / "flame_dynamic_embedding.npy", {"lmk_face_idx": np.stack([faces[:17], faces[:17] * 0]),
                                                        "lmk_b_coords": np.stack([weights[:17], weights[:17] * 0])}, allow_pickle=True)
    split = read_model("flame", tmp_path / "generic_model.pkl")
    torch.testing.assert_close(split.landmark_corners, whole.landmark_corners)
    torch.testing.assert_close(split.landmark_weights, whole.landmark_weights)


def test_the_shipped_head_has_known_counts_and_looks_ahead(ict):
    assert ict.expression_count == 55 and ict.written == FACE_ROWS.stop == 9409
    landmarks = ict.landmarks(ict.mean)
    jaw, nose = landmarks[:17], landmarks[30]
    assert nose[2] > jaw[:, 2].max() and landmarks[17:27, 1].min() > jaw[8, 1]  # the nose in front, brows above the chin
    assert ict.skin_triangles is not None and int(ict.triangles[ict.skin_triangles].max()) < 11248


def test_eyes_turn_with_their_coefficients(ict):
    expression = torch.zeros(55)
    expression[ict.expression_names.index("eyeLookUp_L")] = 1.0
    identity = torch.zeros(ict.identity_count)
    moved = (ict.vertices(identity, expression) - ict.vertices(identity, torch.zeros(55))).norm(dim=1)
    assert moved[21451:23021].max() > 0.04 and moved[23021:24591].max() < 1e-6


def test_offsets_carry_landmarks_and_leave_poses(ict):
    modes = smooth_offsets(ict, spread=0.03, radius=0.3)
    at_landmarks = ict.landmarks(modes).double()  # (K, 66, 3)
    face = ict.landmarks(ict.mean).double()
    centred = face - face.mean(dim=0)
    assert at_landmarks.mean(dim=1).abs().max() < 1e-5
    assert torch.linalg.cross(centred.expand_as(at_landmarks), at_landmarks).sum(dim=1).abs().max() < 1e-4
    assert (centred * at_landmarks).sum(dim=(1, 2)).abs().max() < 1e-4
    spread = at_landmarks.square().sum(dim=0).mean().sqrt()  # of a sample with independent standard normal coefficients
    assert 0.02 < float(spread) <= 0.03
    edges = ict.triangles[ict.skin_triangles[::20], :2]
    stretch = (modes[:, edges[:, 0]] - modes[:, edges[:, 1]]).norm(dim=-1).square().sum(dim=0).sqrt()
    length = (ict.mean[edges[:, 0]] - ict.mean[edges[:, 1]]).norm(dim=-1)
    assert float((stretch / length.clamp(min=1e-3)).quantile(0.99)) < 0.5  # smooth between neighbours


@pytest.mark.parametrize("length", [0.0, 1e-6, 0.3, 3.0])
def test_left_jacobian_is_that_of_roma(length):
    import roma

    vector = length * torch.nn.functional.normalize(torch.tensor([0.3, -0.5, 0.8], dtype=torch.float64), dim=0)
    step = 1e-6
    numeric = []
    for axis in torch.eye(3, dtype=torch.float64):
        turned = roma.rotvec_to_rotmat(vector + step * axis) @ roma.rotvec_to_rotmat(vector - step * axis).T
        numeric.append(roma.rotmat_to_rotvec(turned) / (2 * step))
    torch.testing.assert_close(left_jacobian(vector), torch.stack(numeric, dim=1), atol=1e-6, rtol=0)


def test_widening_keeps_the_model(ict):
    wide = ict.widened(torch.ones(2, len(ict.mean), 3))
    assert isinstance(wide, FaceModel) and wide.identity_count == ict.identity_count + 2
    identity = torch.cat([torch.zeros(ict.identity_count), torch.tensor([0.5, 0.0])])
    torch.testing.assert_close(wide.vertices(identity, torch.zeros(55))[:100], ict.mean[:100] + 0.5)
