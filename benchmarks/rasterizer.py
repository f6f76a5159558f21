"""Times the reference rasterizer: tiles grouped by list length against all tiles padded to the longest list.

Both in one process, in alternating rounds; prints JSON with the median of the per-round ratios. Scene: an ellipsoidal shell
of 17,000 Gaussians, 32 channels, and a dense cluster on it, as eyes and teeth have.
"""

import json
import statistics
import time

import torch

from lib.gaussians.cloud import GaussianCloud
from lib.geometry.camera import Camera, look_at
from lib.render.gaussian import reference

COUNT, CLUSTER, CHANNELS, SIZE, ROUNDS = 17000, 3000, 32, 128, 9


def scene() -> tuple[list[torch.Tensor], Camera]:
    """Leaf tensors of the cloud and the camera, seeded."""
    random = torch.Generator().manual_seed(0)
    direction = torch.nn.functional.normalize(torch.randn(1, COUNT, 3, generator=random), dim=-1)
    means = direction * torch.tensor([0.075, 0.12, 0.09])
    means[:, :CLUSTER] = torch.tensor([0.0, -0.03, 0.085]) + 0.01 * torch.randn(1, CLUSTER, 3, generator=random)
    quats = torch.nn.functional.normalize(torch.randn(1, COUNT, 4, generator=random), dim=-1)
    leaves = [means, quats, torch.full((1, COUNT, 3), 0.0015), torch.full((1, COUNT), 0.3), torch.rand(1, COUNT, CHANNELS, generator=random)]
    focal = 3.4 * SIZE
    intrinsics = torch.tensor([[[focal, 0.0, SIZE / 2], [0.0, focal, SIZE / 2], [0.0, 0.0, 1.0]]])
    camera = Camera(look_at(torch.tensor([[0.0, 0.0, 1.1]]), torch.zeros(1, 3)), intrinsics, SIZE, SIZE)
    return [leaf.requires_grad_() for leaf in leaves], camera


def seconds(leaves: list[torch.Tensor], camera: Camera, group_ratio: float) -> float:
    """One forward and backward pass."""
    reference.GROUP_RATIO = group_ratio
    start = time.perf_counter()
    features, _ = reference.rasterize(GaussianCloud(*leaves), camera, torch.ones(CHANNELS))
    features.square().mean().backward()
    return time.perf_counter() - start


def main() -> None:
    """Prints one JSON object."""
    grouped_ratio = reference.GROUP_RATIO
    leaves, camera = scene()
    for ratio in (grouped_ratio, 0.0):
        seconds(leaves, camera, ratio)
    rounds = [(seconds(leaves, camera, grouped_ratio), seconds(leaves, camera, 0.0)) for _ in range(ROUNDS)]
    print(json.dumps({
        "gaussians": COUNT, "channels": CHANNELS, "size": SIZE, "rounds": ROUNDS, "threads": torch.get_num_threads(), "torch": torch.__version__,
        "grouped_ms": round(1e3 * statistics.median(a for a, _ in rounds), 2),
        "padded_ms": round(1e3 * statistics.median(b for _, b in rounds), 2),
        "padded_over_grouped": round(statistics.median(b / a for a, b in rounds), 2),
    }))


if __name__ == "__main__":
    main()
