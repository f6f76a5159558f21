"""Head pose against Rodrigues' formula and rotation matrices."""

import math

import pytest
import torch
from scipy.spatial.transform import Rotation

from lib.geometry.head_pose import HeadPose


def rodrigues(vector):
    """R = I + sin θ K + (1 - cos θ) K², K the cross product with the unit axis."""
    angle = float(vector.norm())
    if angle == 0:
        return torch.eye(3, dtype=vector.dtype)
    x, y, z = (vector / angle).tolist()
    k = torch.tensor([[0.0, -z, y], [z, 0.0, -x], [-y, x, 0.0]], dtype=vector.dtype)
    return torch.eye(3, dtype=vector.dtype) + math.sin(angle) * k + (1 - math.cos(angle)) * (k @ k)


def random_poses(count=6):
    torch.manual_seed(0)
    pose = torch.randn(count, 6, dtype=torch.float64)
    pose[0, :3] = 0.0
    pose[1, :3] *= 1e-4
    pose[2, :3] *= 3.0 / pose[2, :3].norm()  # nearly a half turn
    return HeadPose(pose, 0.05 + torch.rand(count, 1, dtype=torch.float64))


def test_to_world_is_rodrigues_scale_translation():
    pose, points = random_poses(), torch.randn(6, 7, 3, dtype=torch.float64)
    world = pose.to_world(points)
    for b in range(6):
        rotation = rodrigues(pose.pose[b, :3])
        for n in range(7):
            expected = rotation @ (pose.scale[b] * points[b, n]) + pose.pose[b, 3:]
            torch.testing.assert_close(world[b, n], expected)


def test_rotation_is_rodrigues():
    pose = random_poses()
    torch.testing.assert_close(pose.rotation(), torch.stack([rodrigues(v) for v in pose.pose[:, :3]]))


def test_to_canonical_inverts_to_world():
    pose, points = random_poses(), torch.randn(6, 9, 3, dtype=torch.float64)
    torch.testing.assert_close(pose.to_canonical(pose.to_world(points)), points)
    torch.testing.assert_close(pose.to_world(pose.to_canonical(points)), points)


def test_rotated_quaternions_are_rotation_products():
    pose = random_poses()
    quats = torch.nn.functional.normalize(torch.randn(6, 5, 4, dtype=torch.float64), dim=-1)
    turned = pose.rotate_quaternions(quats)
    torch.testing.assert_close(turned.norm(dim=-1), torch.ones(6, 5, dtype=torch.float64))
    for b in range(6):
        head = Rotation.from_rotvec(pose.pose[b, :3].numpy()).as_matrix()
        for n in range(5):
            own = Rotation.from_quat(quats[b, n].numpy(), scalar_first=True).as_matrix()
            product = Rotation.from_quat(turned[b, n].numpy(), scalar_first=True).as_matrix()
            torch.testing.assert_close(torch.from_numpy(product), torch.from_numpy(head @ own))


def test_one_pose_without_batch():
    pose = HeadPose(torch.tensor([0.0, 0.0, math.pi / 2, 1.0, 2.0, 3.0]), torch.tensor([2.0]))
    torch.testing.assert_close(pose.to_world(torch.tensor([[1.0, 0.0, 0.0]])), torch.tensor([[1.0, 4.0, 3.0]]))
    turned = pose.rotate_quaternions(torch.tensor([[1.0, 0.0, 0.0, 0.0]]))
    torch.testing.assert_close(turned, torch.tensor([[math.sqrt(0.5), 0.0, 0.0, math.sqrt(0.5)]]))


def test_identity_keeps_scale_only():
    pose = random_poses()
    points = torch.randn(6, 4, 3, dtype=torch.float64)
    torch.testing.assert_close(HeadPose(torch.zeros_like(pose.pose), pose.scale).to_world(points), points * pose.scale[:, None])


@pytest.mark.parametrize("angle", [0.0, 1e-9, 0.7])
def test_gradients_are_finite_and_right(angle):
    vector = torch.tensor([0.6, -0.48, 0.64], dtype=torch.float64) * angle
    pose = torch.cat([vector, torch.tensor([0.1, 0.2, 0.3], dtype=torch.float64)])[None].requires_grad_()
    scale = torch.tensor([[0.1]], dtype=torch.float64, requires_grad=True)
    points = torch.tensor([[[1.0, 2.0, -1.0], [0.5, 0.0, 2.0]]], dtype=torch.float64)
    world = HeadPose(pose, scale).to_world(points)
    weight = torch.tensor([[1.0, -2.0, 0.5], [0.3, 0.7, -1.1]], dtype=torch.float64)
    gradient, = torch.autograd.grad((world * weight).sum(), pose)
    for k in range(6):  # central differences of the Rodrigues formula
        step = torch.zeros(6, dtype=torch.float64)
        step[k] = 1e-5
        values = []
        for sign in (1, -1):
            moved = (pose.detach()[0] + sign * step)
            values.append(((0.1 * points[0] @ rodrigues(moved[:3]).T + moved[3:]) * weight).sum())
        assert float(gradient[0, k]) == pytest.approx(float(values[0] - values[1]) / 2e-5, abs=1e-5)


def test_a_solved_pose_is_the_pose():
    torch.manual_seed(0)
    head = HeadPose(torch.randn(3, 6, dtype=torch.float64), torch.rand(3, 1, dtype=torch.float64))
    points, quats = torch.randn(3, 5, 3, dtype=torch.float64), torch.nn.functional.normalize(torch.randn(3, 5, 4, dtype=torch.float64), dim=-1)
    torch.testing.assert_close(head.solved().to_world(points), head.to_world(points))
    torch.testing.assert_close(head.solved().rotate_quaternions(quats), head.rotate_quaternions(quats))
