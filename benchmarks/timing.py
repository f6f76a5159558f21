"""How long drawing takes, where the time goes, and what it needs. On the CPU by the clock alone, so that everything can be tried there."""

import statistics
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import torch

from benchmarks.candidates import Candidate, with_gradients
from benchmarks.scenes import Drawing
from lib.render.gaussian.contract import Capacity
from lib.render.gaussian.projection import project, tile_pairs
from lib.render.gaussian.reference import TILE
from lib.render.gaussian.tiled import GLUON, TRITON, triton_obstacle
from lib.render.gaussian.tiles import scene_of

FLUSH_BYTES = 256 << 20  # more than any L2
WARM_UP, WARM_UP_SECONDS = 20, 1.0
LEAST_ROUNDS = 5
MODES = ("forward", "forward_backward")
STAGES = {  # part of a kernel's name -> stage; the first that fits
    "project_forward": "projection", "project_backward": "projection backward", "throw": "throw", "sort_lists": "sort",
    "merge_runs": "merge",
    "take": "take", "blend_forward": "blend", "blend_backward": "blend backward", "sum_rows": "sums of rows", "scan": "count scan",
    "cumsum": "count scan", "memset": "memsets", "fill": "memsets", "memcpy": "copies",
}
WAITS = {"cudaStreamSynchronize", "cudaEventSynchronize"}

Pass = Callable[[], object]


@dataclass(frozen=True)
class Sample:
    """Milliseconds of one call: on the device, until it is over, and until the call returns."""

    device: float
    wall: float
    host: float


def make_pass(candidate: Candidate, drawing: Drawing, mode: str, capacity: Capacity | None = None) -> Pass:
    """A call that draws without gradients, or draws and takes the gradients of the cloud.

    The upstream gradient has the memory layout that the candidate draws, as what consumes the picture would give it.
    """
    camera, background = drawing.camera, drawing.background
    if mode == "forward":
        def forward() -> object:
            with torch.no_grad():
                return candidate.draw(drawing.cloud, camera, background, capacity)[0]

        return forward
    cloud, leaves = with_gradients(drawing)
    upstream = torch.empty_like(candidate.draw(cloud, camera, background)[0].detach()).copy_(drawing.upstream)  # empty_like keeps strides

    def forward_backward() -> object:
        return torch.autograd.grad(candidate.draw(cloud, camera, background, capacity)[0], leaves, upstream)

    return forward_backward


def synchronize(cuda: bool) -> None:
    """Waits for the device."""
    if cuda:
        torch.cuda.synchronize()


def sample(call: Pass, cuda: bool, flush: torch.Tensor | None, calls: int = 1) -> Sample:
    """One call, or the mean of some in a row, alone on the device."""
    if flush is not None:
        flush.zero_()
    events = [torch.cuda.Event(enable_timing=True) for _ in range(2)] if cuda else []
    synchronize(cuda)
    start = time.perf_counter()
    if cuda:
        events[0].record()
    for _ in range(calls):
        call()
    returned = time.perf_counter()
    if cuda:
        events[1].record()
    synchronize(cuda)
    wall, host = 1e3 * (time.perf_counter() - start) / calls, 1e3 * (returned - start) / calls
    return Sample(events[0].elapsed_time(events[1]) / calls if cuda else wall, wall, host)


def interleaved(
    passes: dict[str, Pass], rounds: int, seconds: float, cuda: bool, cold: bool = False, calls: int = 1
) -> dict[str, list[Sample]]:
    """Rounds A, B, C, A, B, C, ...: all see the same clocks and temperatures. Fewer than `rounds` if they take longer than `seconds`.

    `cold`: L2 is overwritten before every call. `calls`: in a row, so that the host may run ahead of the device, as in training.
    """
    flush = torch.empty(FLUSH_BYTES, dtype=torch.uint8, device="cuda") if cold and cuda else None
    start = time.perf_counter()
    for _ in range(min(WARM_UP, rounds)):
        for call in passes.values():
            sample(call, cuda, flush)
        if time.perf_counter() - start > WARM_UP_SECONDS:
            break
    samples: dict[str, list[Sample]] = {name: [] for name in passes}
    start = time.perf_counter()
    for done in range(rounds):
        if done >= LEAST_ROUNDS and time.perf_counter() - start > seconds:
            break
        for name, call in passes.items():
            samples[name].append(sample(call, cuda, flush, calls))
    return samples


def spread(values: list[float]) -> dict[str, float]:
    """Median and interquartile range."""
    quartiles = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else [values[0]] * 3
    return {"median": round(quartiles[1], 4), "iqr": round(quartiles[2] - quartiles[0], 4)}


def summary(samples: dict[str, list[Sample]], ours: str) -> dict[str, dict]:
    """Per candidate: milliseconds, and the median of the per-round ratios theirs / ours (above 1: ours is faster)."""
    return {
        name: {
            "rounds": len(own), "device_ms": spread([one.device for one in own]), "wall_ms": spread([one.wall for one in own]),
            "until_return_ms": spread([one.host for one in own]),
            **({f"over_{ours}": round(statistics.median(a.device / b.device for a, b in zip(own, samples[ours], strict=True)), 3)}
               if ours in samples else {}),
        } for name, own in samples.items()
    }


def peak_memory(call: Pass) -> int:
    """Bytes above what is allocated before the call: pictures, gradients and everything between."""
    call()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def host_milliseconds(call: Pass, calls: int = 20) -> float:
    """CPU time per call, back to back, without waiting in between (unless the call itself waits)."""
    call()
    torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(calls):
        call()
    elapsed = time.perf_counter() - start
    torch.cuda.synchronize()
    return round(1e3 * elapsed / calls, 4)


def counters(drawing: Drawing, backend: str) -> dict[str, float]:
    """What decides how much work there is: Gaussians that are seen, pairs of tiles and Gaussians, lengths of lists."""
    camera, batch = drawing.camera, len(drawing.camera.intrinsics)
    if backend in ("gluon", "triton") and triton_obstacle(drawing.cloud) is None:
        tile = (GLUON if backend == "gluon" else TRITON).tile
        cloud = drawing.cloud
        scene = scene_of(*cloud.means.shape[:2], batch, camera.width, camera.height, False, tile)
        inputs = (cloud.means, cloud.quats_wxyz, cloud.scales, cloud.opacities, camera.world_to_camera, camera.intrinsics)
        rows, lists, _ = scene.listed(inputs, *scene.listed(inputs)[2].tolist())
        lengths, visible = lists.ranges[:, 1], int((rows.radii > 0).sum())
    else:
        tile, clouds = (TILE, TILE), [drawing.cloud] if len(drawing.cloud.means) == batch else None
        cloud = clouds[0] if clouds else type(drawing.cloud)(*(value.expand(batch, *value.shape[1:]) for value in vars(drawing.cloud).values()))
        projected, tiles_x, tiles_y = project(cloud, camera), -(-camera.width // TILE), -(-camera.height // TILE)
        _, members = tile_pairs(projected, batch, TILE, tiles_x, tiles_y)
        lengths, visible = torch.bincount(members, minlength=batch * tiles_x * tiles_y), int((projected.radii > 0).sum())
    pairs, full = int(lengths.sum(dtype=torch.int64)), int((lengths > 0).sum())
    return {
        "tile": f"{tile[0]}x{tile[1]}", "visible": visible, "pairs": pairs, "pairs_per_visible": round(pairs / max(visible, 1), 2),
        "mean_list": round(pairs / max(full, 1), 1), "longest_list": int(lengths.max()),
    }


def stage_of(kernel: str) -> str:
    """The stage that a kernel belongs to, by its name."""
    lowered = kernel.lower()
    return next((stage for part, stage in STAGES.items() if part in lowered), "other")


def profile(call: Pass, calls: int = 5) -> dict:
    """Microseconds per stage, kernels, and waits of the host for the device, per call."""
    call()
    torch.cuda.synchronize()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]) as profiler:
        for _ in range(calls):
            call()
        torch.cuda.synchronize()
    on_device = torch.autograd.DeviceType.CUDA
    return digest([(str(event.name), event.device_type == on_device, event.time_range.elapsed_us()) for event in profiler.events()], calls)


def digest(events: list[tuple[str, bool, float]], calls: int) -> dict:
    """`events`: (name, whether on the device, microseconds)."""
    stages: Counter[str] = Counter()
    others: Counter[str] = Counter()
    launched = 0
    for name, on_device, microseconds in events:
        if on_device:
            stages[stage_of(name)] += microseconds / calls
            launched += 1
            if stage_of(name) == "other":
                others[name[:80]] += microseconds / calls
    waits = sum(name in WAITS for name, on_device, _ in events if not on_device)
    return {
        "stages_us": {name: round(value, 2) for name, value in stages.most_common()}, "kernels": launched / calls, "host_waits": waits / calls,
        "device_us": round(sum(stages.values()), 2), "largest_others_us": {name: round(value, 2) for name, value in others.most_common(4)},
    }


def graph_replay(candidate: Candidate, drawing: Drawing, pairs: int, rounds: int, seconds: float) -> dict:
    """Recorded once in a CUDA graph, then replayed: what remains when the host does next to nothing."""
    result = {"capacity": int(1.25 * pairs) + 1024}
    for mode in MODES:
        capacity = Capacity(result["capacity"])
        call = make_pass(candidate, drawing, mode, capacity)
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                expected = call()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            recorded = call()
        samples = interleaved({"graph": graph.replay}, rounds, seconds, cuda=True)["graph"]
        pictures = zip(*((values,) if isinstance(values, torch.Tensor) else values for values in (recorded, expected)), strict=True)
        result[mode] = {
            "device_ms": spread([one.device for one in samples]), "wall_ms": spread([one.wall for one in samples]),
            "fitted": not capacity.overflowed(),
            "relative_difference": max(float((a - b).norm() / b.norm().clamp(min=1e-30)) for a, b in pictures),
        }
    return result
