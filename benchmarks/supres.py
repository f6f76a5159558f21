"""Measures the super-resolution network: eager float32, eager bfloat16 (autocast, channels-last), torch.compile of that, and ours.

    python -m benchmarks.supres [--output FILE] [--size N] [--capacity C] [--batches N ...] [--rounds N] [--seconds S] [--compile]
                                [--tune-convolutions] [--sweep [KERNEL ...]]

JSON goes to stdout (or FILE), progress to stderr. Times are medians of alternating rounds in one process (timing.py): forward without
gradients, and forward and backward to the features and all weights. `kernels` says where the time on the device goes, `peak_bytes` what is
needed above the weights, features and the picture's gradient. `relative_l2` compares with eager float32, whose convolutions run without TF32
for it. `--sweep` instead tries shapes of our programs, kernel by kernel. Without a GPU, sizes are tiny and only show that everything runs.
"""

import argparse
import itertools
import json
import sys
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from benchmarks import timing
from benchmarks.rasterizer import attempt, say, succeeded, versions
from lib.networks import norm_layers
from lib.networks.upsampler import SCALE, Upsampler, UpsamplerConfig

OURS, GRAPH = "fused", "fused_graph"
CHANNELS = 32  # of the features
TINY = 8  # features without a GPU
SWEEP = {  # name of the constants in norm_layers -> their kernels, and values: tile, warps, and where there are any steps and stages, or rows
    "SUM": (("sum_values", "sum_gradients"), ("TILE", "WARPS", "STEPS", "STAGES"), (
        (4096, 8, 16, 2), (4096, 8, 16, 1), (4096, 8, 16, 3), (4096, 8, 16, 4), (4096, 8, 8, 2), (4096, 8, 32, 2), (2048, 4, 32, 2), (2048, 4, 32, 3),
        (2048, 4, 32, 4), (4096, 4, 16, 2), (4096, 4, 16, 3), (8192, 8, 8, 2), (8192, 8, 8, 3))),
    "APPLY": (("apply", "apply_gradients"), ("TILE", "WARPS"), (
        (4096, 4), (2048, 4), (1024, 4), (8192, 4), (4096, 8), (8192, 8), (2048, 2), (1024, 1))),
    "GROW": (("grow", "grow_gradients"), ("TILE", "WARPS", "ROWS"), (
        (1024, 4, 16), (1024, 4, 4), (1024, 4, 8), (1024, 4, 32), (2048, 4, 16), (2048, 8, 16), (2048, 8, 8), (4096, 16, 16), (512, 2, 16))),
    "SHOW": (("show", "show_gradients"), ("TILE", "WARPS"), (
        (4096, 4), (2048, 4), (1024, 4), (8192, 4), (4096, 8), (8192, 8), (2048, 2))),
    "SHOW_SUM": (("sum_show_gradients",), ("TILE", "WARPS", "STEPS", "STAGES"), (
        (4096, 8, 16, 1), (4096, 8, 16, 2), (4096, 8, 16, 3), (4096, 4, 16, 1), (4096, 4, 16, 2), (2048, 4, 32, 1), (2048, 4, 32, 2), (8192, 8, 8, 1),
        (8192, 4, 8, 1))),
}


def candidates(network: Upsampler, compiled: bool) -> dict[str, Callable[[Tensor], Tensor]]:
    """Ways to compute the same picture with the same weights."""
    def eager(features: Tensor) -> Tensor:
        network.precision = "highest"
        return network(features)

    def autocast(features: Tensor) -> Tensor:
        network.precision = "highest"
        with torch.autocast(features.device.type, torch.bfloat16):
            return network(features.contiguous(memory_format=torch.channels_last)).float()

    def fused(features: Tensor) -> Tensor:
        network.precision = "high"
        return network(features)

    ways = {OURS: fused, "eager_float32": eager, "eager_bfloat16": autocast}
    return {**ways, "compiled_bfloat16": torch.compile(autocast)} if compiled else ways


def make_pass(way: Callable[[Tensor], Tensor], features: Tensor, weights: list[Tensor], upstream: Tensor, mode: str) -> timing.Pass:
    """A call without gradients, or one that takes all of them."""
    def forward() -> Tensor:
        with torch.no_grad():
            return way(features)

    def forward_backward() -> tuple[Tensor, ...]:
        picture = way(features)
        return picture.detach(), *torch.autograd.grad(picture, [features, *weights], upstream)

    return forward if mode == "forward" else forward_backward


def recorded(call: timing.Pass) -> timing.Pass:
    """The call as a CUDA graph."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph.replay


def kernels(call: timing.Pass, calls: int = 3) -> list[dict]:
    """What runs on the device in one call: name, how often, microseconds in total; longest first."""
    call()
    torch.cuda.synchronize()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]) as profiler:
        for _ in range(calls):
            call()
        torch.cuda.synchronize()
    times, launched = Counter(), Counter()
    for event in profiler.events():
        if event.device_type == torch.autograd.DeviceType.CUDA:
            times[str(event.name)] += event.time_range.elapsed_us() / calls
            launched[str(event.name)] += 1
    return [{"name": name[:120], "launches": launched[name] / calls, "us": round(value, 1)} for name, value in times.most_common()]


def relative_l2(passes: dict[str, timing.Pass], network: Upsampler) -> dict[str, dict[str, float]]:
    """Of the picture and the gradients of the features and all weights, against those of eager float32."""
    names = ["picture", "features", *(name for name, _ in network.named_parameters())]
    allowed, torch.backends.cudnn.allow_tf32 = torch.backends.cudnn.allow_tf32, False
    try:
        exact = passes["eager_float32"]()
    finally:
        torch.backends.cudnn.allow_tf32 = allowed

    def differences(values: tuple[Tensor, ...]) -> dict[str, float]:
        return {name: float(f"{float((ours.float() - right).norm() / right.norm()):.2g}")
                for name, ours, right in zip(names, values, exact, strict=True)}

    return {name: differences(call()) for name, call in passes.items() if name in (OURS, "eager_bfloat16")}


def measure(batch: int, options: argparse.Namespace, device: str) -> dict:
    """All candidates at one batch size."""
    cuda, size = device == "cuda", options.size
    random = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    network = Upsampler(UpsamplerConfig(input_dim=CHANNELS, network_capacity=options.capacity)).to(device)
    features = torch.rand(batch, CHANNELS, size, size, generator=random).to(device).requires_grad_()
    upstream = torch.randn(batch, 3, SCALE * size, SCALE * size, generator=random).to(device)
    ways, result = candidates(network, options.compile), {}
    for mode in timing.MODES:
        say(f"batch {batch}: {mode}")
        passes = {name: make_pass(way, features, list(network.parameters()), upstream, mode) for name, way in ways.items()}
        passes = {name: call for name, call in passes.items() if succeeded(attempt(f"{mode} of {name}", lambda call=call: [call()]))}
        if mode != "forward" and {OURS, "eager_float32"} <= set(passes):
            result["relative_l2"] = relative_l2(passes, network)
        details: dict[str, dict] = {}
        if cuda:
            details["peak_bytes"] = {name: timing.peak_memory(call) for name, call in passes.items()}
            details["kernels"] = {name: attempt(f"profile of {name}", lambda call=call: kernels(call)) for name, call in passes.items()}
            torch.cuda.empty_cache()
            graph = attempt(f"graph of {mode}", lambda passes=passes: recorded(passes[OURS]))
            passes |= {GRAPH: graph} if callable(graph) else {}
        result[mode] = {"times": timing.summary(timing.interleaved(passes, options.rounds, options.seconds, cuda), OURS), **details}
        passes.clear()
        if cuda:
            torch.cuda.empty_cache()
    return result


def sweep(names: list[str], options: argparse.Namespace) -> dict[str, list[dict]]:
    """Microseconds of the kernels of every group of constants, of one forward and backward; the first line is what norm_layers has."""
    network = Upsampler(UpsamplerConfig(input_dim=CHANNELS, network_capacity=options.capacity), "high").cuda()
    features = torch.rand(options.batches[0], CHANNELS, options.size, options.size, device="cuda", requires_grad=True)
    upstream = torch.randn(options.batches[0], 3, SCALE * options.size, SCALE * options.size, device="cuda")
    call = make_pass(network, features, list(network.parameters()), upstream, "forward_backward")
    result = defaultdict(list)
    for name in names:
        members, constants, rows = SWEEP[name]
        keys = [f"{name}_{constant}" for constant in constants]
        own = tuple(getattr(norm_layers, key) for key in keys)
        for values in dict.fromkeys((own, *rows)):
            for key, value in zip(keys, values, strict=True):
                setattr(norm_layers, key, value)
            table = attempt(f"{name} {values}", lambda: kernels(call))
            times = {row["name"]: row["us"] for row in table if row["name"] in members} if isinstance(table, list) else table
            result[name].append({**dict(zip(constants, values, strict=True)), "us": times})
            say(f"{name} {dict(zip(constants, values, strict=True))}: {times}")
        for key, value in zip(keys, own, strict=True):
            setattr(norm_layers, key, value)
    return dict(result)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.supres", description=__doc__.partition("\n")[0])
    parser.add_argument("--output", type=Path, help="file for the JSON instead of stdout")
    parser.add_argument("--size", type=int, default=512, help="of the feature image; the picture is four times larger (%(default)s)")
    parser.add_argument("--capacity", type=int, default=32, help="channels of the last level (%(default)s)")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 4], metavar="N", help="images at once (1 4)")
    parser.add_argument("--rounds", type=int, default=50, help="alternating rounds at most (%(default)s)")
    parser.add_argument("--seconds", type=float, default=5.0, help="of rounds per pass at most (%(default)s); at least 5 rounds are done")
    parser.add_argument("--compile", action="store_true", help="also torch.compile (minutes)")
    parser.add_argument("--tune-convolutions", action="store_true", help="let cuDNN try its algorithms (torch.backends.cudnn.benchmark)")
    parser.add_argument("--sweep", nargs="*", choices=sorted(SWEEP), metavar="KERNEL", help="try shapes of programs: " + " ".join(sorted(SWEEP)))
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    """Runs the measurements that were asked for."""
    options, cuda = parse(arguments), torch.cuda.is_available()
    if not cuda:
        options.size, options.capacity, options.rounds = min(options.size, TINY), min(options.capacity, TINY), min(options.rounds, 2)
    torch.backends.cudnn.benchmark = options.tune_convolutions
    result = {
        "device": torch.cuda.get_device_name() if cuda else "cpu", "torch": torch.__version__, "versions": versions(),
        "size": options.size, "picture": SCALE * options.size, "capacity": options.capacity, "tuned_convolutions": options.tune_convolutions,
        "tf32_convolutions": torch.backends.cudnn.allow_tf32,
    }
    if options.sweep is not None and cuda:
        result["sweep"] = sweep(options.sweep or list(SWEEP), options)
    elif options.sweep is None:
        result["batches"] = {batch: measure(batch, options, "cuda" if cuda else "cpu") for batch in options.batches}
        for (batch, values), mode in itertools.product(result["batches"].items(), timing.MODES):
            cells = [f"{name} {one['device_ms']['median']:.3f}" + (
                f" ms, {values[mode]['peak_bytes'][name] / 2**30:.2f} GiB" if name in values[mode].get("peak_bytes", {}) else " ms")
                for name, one in values[mode]["times"].items()]
            say(f"batch {batch}, {mode}: " + "; ".join(cells))
            for row in values[mode].get("kernels", {}).get(OURS, [])[:24]:
                say(f"    {row['us']:9.1f} us  {row['launches']:5.1f}  {row['name']}")
    text = json.dumps(result, indent=1)
    if options.output is None:
        print(text)
    else:
        options.output.write_text(text + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
