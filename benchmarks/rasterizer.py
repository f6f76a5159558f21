"""Times the rasterizers: the reference with tiles grouped by list length against padded to the longest list; on CUDA also Triton.

All in one process, in alternating rounds; prints JSON with the median of the per-round ratios. Scene of the first comparison: an
ellipsoidal shell of 17,000 Gaussians, 32 channels, and a dense cluster on it, as eyes and teeth have. Of the second: a head-like shell
of 150,000 Gaussians at 512², drawn as in reenactment (without gradients) and as in training (forward and backward).
"""

import json
import math
import statistics
import time

import torch

from lib.gaussians.cloud import GaussianCloud
from lib.geometry.camera import Camera, look_at
from lib.render.gaussian import reference
from lib.render.gaussian.interface import rasterize

COUNT, CLUSTER, CHANNELS, SIZE, ROUNDS = 17000, 3000, 32, 128, 9
HEAD_COUNT, HEAD_SIZE = 150_000, 512


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
    features = reference.rasterize(GaussianCloud(*leaves), camera, torch.ones(CHANNELS)).features
    features.square().mean().backward()
    return time.perf_counter() - start


def head() -> tuple[list[torch.Tensor], Camera]:
    """Leaf tensors and camera of the head-like shell, seeded, on the GPU."""
    random = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(1, HEAD_COUNT, *shape, generator=random)

    direction = torch.nn.functional.normalize(normal(3), dim=-1)
    leaves = [
        direction * torch.tensor([0.75, 1.0, 0.85]) * (1 + 0.02 * normal(1)), torch.nn.functional.normalize(normal(4), dim=-1),
        (4 * math.pi * 0.75 / HEAD_COUNT) ** 0.5 * (0.3 * normal(3)).exp(), torch.sigmoid(math.log(0.3 / 0.7) + 0.5 * normal()),
        torch.rand(1, HEAD_COUNT, CHANNELS, generator=random),
    ]
    focal, middle = 3.15 * HEAD_SIZE, HEAD_SIZE / 2
    intrinsics = torch.tensor([[[focal, 0.0, middle], [0.0, focal, middle], [0.0, 0.0, 1.0]]])
    camera = Camera(look_at(torch.tensor([[0.0, 0.0, 8.0]]), torch.zeros(1, 3)), intrinsics, HEAD_SIZE, HEAD_SIZE)
    return [leaf.cuda().requires_grad_() for leaf in leaves], camera.to("cuda")


def cuda_milliseconds(backend: str, leaves: list[torch.Tensor], camera: Camera, gradient: torch.Tensor | None) -> float:
    """One pass: forward without gradients, or forward and backward from `gradient`."""
    for leaf in leaves:
        leaf.grad = None
    torch.cuda.synchronize()
    start = time.perf_counter()
    with torch.set_grad_enabled(gradient is not None):
        features = rasterize(GaussianCloud(*leaves), camera, torch.ones(CHANNELS, device="cuda"), backend=backend).features
    if gradient is not None:
        features.backward(gradient)
    torch.cuda.synchronize()
    return 1e3 * (time.perf_counter() - start)


def backends() -> dict[str, object]:
    """The reference against Triton on the GPU."""
    leaves, camera = head()
    gradient = torch.randn(1, CHANNELS, HEAD_SIZE, HEAD_SIZE, generator=torch.Generator().manual_seed(1)).cuda()
    result: dict[str, object] = {"device": torch.cuda.get_device_name(), "gaussians": HEAD_COUNT, "channels": CHANNELS, "size": HEAD_SIZE}
    for name, upstream in (("forward", None), ("forward_backward", gradient)):
        for backend in 3 * ("reference", "triton"):
            cuda_milliseconds(backend, leaves, camera, upstream)
        rounds = [[cuda_milliseconds(backend, leaves, camera, upstream) for backend in ("reference", "triton")] for _ in range(3 * ROUNDS)]
        result[name] = {
            "reference_ms": round(statistics.median(a for a, _ in rounds), 3), "triton_ms": round(statistics.median(b for _, b in rounds), 3),
            "reference_over_triton": round(statistics.median(a / b for a, b in rounds), 2),
        }
    return result


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
        **({"cuda": backends()} if torch.cuda.is_available() else {}),
    }))


if __name__ == "__main__":
    main()
