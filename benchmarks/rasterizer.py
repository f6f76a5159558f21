"""Measures the rasterizers: first whether they draw the same, then how fast, in alternating rounds in one process.

    python -m benchmarks.rasterizer [--output FILE] [--rounds N] [--seconds S] [--scenes NAME ...] [--backends NAME ...] [--small]

JSON goes to stdout (or FILE, which is also written after every scene), progress and a table to stderr. Without a GPU, scenes are tiny and
only show that everything runs; what does say something there is the comparison of the reference with tiles grouped by list length
against padded to the longest list. What is measured and how: docs/rasterizer.md, timing.py, candidates.py, scenes.py.
"""

import argparse
import dataclasses
import functools
import importlib.metadata
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks import first_call, timing
from benchmarks.candidates import CANDIDATES, SEEDS, Candidate, compare, judge, truth
from benchmarks.scenes import SCENES, Drawing, Scene, make_drawing
from benchmarks.timing import MODES
from lib.gaussians.cloud import GaussianCloud
from lib.geometry.camera import Camera, look_at
from lib.render.gaussian import reference

SMALL = 16  # times smaller
IN_A_ROW = 8  # calls
PARITY_REDUCTION = 4  # the reference in float64 draws pictures of 128² instead of 512²
ALL_MODES = {"head-150k", "head-150k-opaque", "head-50k", "large-100k"}  # other scenes compare only the default of each backend
DEFAULTS = {"gluon", "triton", "gsplat", "inria", "reference"}
RECORDED = {  # ms, forward and forward + backward, on another day: one H200, torch 2.11, 512², 32 channels, one image
    "inria": {"head-150k": (1.25, 7.71), "head-150k-opaque": (0.93, 4.10), "head-50k": (0.84, 6.00), "large-100k": (1.25, 13.4)},
    "gsplat": {"head-150k": (0.85, 4.09), "head-150k-opaque": (0.65, 2.75), "head-50k": (0.55, 2.47), "large-100k": (0.77, 3.58)},
}
STARTED = time.perf_counter()


def say(line: str) -> None:
    """Progress."""
    print(f"[{time.perf_counter() - STARTED:6.1f} s] {line}", file=sys.stderr, flush=True)


def attempt(what: str, action: Callable[[], object]) -> object:
    """What `action` gives, or {"error": why not}: one failure must not cost the other measurements."""
    try:
        return action()
    except Exception as error:  # noqa: BLE001 (compilers and drivers raise what they like; it is reported)
        say(f"{what} failed: {type(error).__name__}: {str(error)[:300]}")
        return {"error": f"{type(error).__name__}: {str(error)[:1000]}"}


def succeeded(value: object) -> bool:
    """Whether it is a result, not an error of `attempt`."""
    return value is not None and not (isinstance(value, dict) and "error" in value)


def reference_grouping(count: int, size: int, rounds: int) -> dict:
    """The reference on the CPU, forward and backward: an ellipsoidal shell with 32 channels and a dense cluster, as eyes and teeth have."""
    random, channels = torch.Generator().manual_seed(0), 32
    direction = torch.nn.functional.normalize(torch.randn(1, count, 3, generator=random), dim=-1)
    means, cluster = direction * torch.tensor([0.075, 0.12, 0.09]), 3 * count // 17
    means[:, :cluster] = torch.tensor([0.0, -0.03, 0.085]) + 0.01 * torch.randn(1, cluster, 3, generator=random)
    quats = torch.nn.functional.normalize(torch.randn(1, count, 4, generator=random), dim=-1)
    leaves = [means, quats, torch.full((1, count, 3), 0.0015), torch.full((1, count), 0.3), torch.rand(1, count, channels, generator=random)]
    intrinsics = torch.tensor([[[3.4 * size, 0.0, size / 2], [0.0, 3.4 * size, size / 2], [0.0, 0.0, 1.0]]])
    camera = Camera(look_at(torch.tensor([[0.0, 0.0, 1.1]]), torch.zeros(1, 3)), intrinsics, size, size)
    cloud, grouped_ratio = GaussianCloud(*(leaf.requires_grad_() for leaf in leaves)), reference.GROUP_RATIO

    def seconds(ratio: float) -> float:
        reference.GROUP_RATIO = ratio
        start = time.perf_counter()
        reference.rasterize(cloud, camera, torch.ones(channels)).features.square().mean().backward()
        return time.perf_counter() - start

    try:
        times = [(seconds(grouped_ratio), seconds(0.0)) for _ in range(rounds + 1)][1:]  # the first warms up
    finally:
        reference.GROUP_RATIO = grouped_ratio
    return {
        "gaussians": count, "channels": channels, "size": size, "rounds": rounds,
        "grouped_ms": round(1e3 * statistics.median(a for a, _ in times), 2), "padded_ms": round(1e3 * statistics.median(b for _, b in times), 2),
        "padded_over_grouped": round(statistics.median(b / a for a, b in times), 2),
    }


def chosen(names: list[str] | None, device: str, small: bool) -> tuple[list[Candidate], dict[str, str]]:
    """Candidates that can draw here, and why the others cannot."""
    cloud, found, obstacles = make_drawing(SCENES[0].reduced(SMALL)).to(device).cloud, [], {}
    for candidate in CANDIDATES:
        if names is not None and not {candidate.name, candidate.backend} & set(names):
            obstacles[candidate.name] = "not asked for"
        elif names is None and candidate.name == "reference" and not small:
            obstacles[candidate.name] = "only what others are compared with: too slow to be timed (--backends reference does)"
        elif (reason := candidate.obstacle(cloud)) is not None:
            obstacles[candidate.name] = reason
        else:
            found.append(candidate)
    return found, obstacles


def parity(scene: Scene, candidates: list[Candidate], device: str, small: bool) -> dict[str, dict]:
    """Every candidate against the float64 reference, on the scene itself if it is small, else on a smaller one of the same kind."""
    drawings = [make_drawing(scene if small else scene.reduced(PARITY_REDUCTION), seed).to(device) for seed in SEEDS[:1 if small else None]]
    exact = functools.cache(lambda row, clip: truth(drawings[row], clip))

    def verdict(candidate: Candidate) -> dict:
        return judge(candidate, [compare(candidate, drawing, exact(row, candidate.clip)) for row, drawing in enumerate(drawings)])

    result = {}
    for candidate in candidates:
        verdict_here = attempt(f"parity of {candidate.name}", functools.partial(verdict, candidate))
        result[candidate.name] = verdict_here if succeeded(verdict_here) else {"passed": False, **verdict_here}
        if not result[candidate.name]["passed"]:
            say(f"{scene.name}: {candidate.name} does not draw what the reference draws: {result[candidate.name].get('beyond', 'error')}")
    return result


def measure_scene(scene: Scene, candidates: list[Candidate], options: argparse.Namespace, device: str) -> dict:
    """All that is measured of a scene. Whose picture is wrong is timed apart, without ratios."""
    cuda, result = device == "cuda", dataclasses.asdict(scene)
    candidates = [one for one in candidates if scene.name in ALL_MODES or one.name in DEFAULTS]
    say(f"{scene.name}: parity of {', '.join(one.name for one in candidates)}")
    result["parity"] = parity(scene, candidates, device, options.small)
    drawing, ours = make_drawing(scene).to(device), candidates[0]
    result["counters"] = attempt("counters", lambda: timing.counters(drawing, ours.backend))
    drawable = [one for one in candidates if "error" not in result["parity"][one.name]]
    for mode in MODES:
        say(f"{scene.name}: {mode}")
        result[mode] = times(drawable, drawing, mode, options, result["parity"], ours.name, cuda)
    with torch.autograd.set_multithreading_enabled(False):  # as training does here
        result["one_thread"] = {mode: times(drawable, drawing, mode, options, result["parity"], ours.name, cuda) for mode in MODES[1:]}
        result["one_thread_in_a_row"] = {
            mode: times(drawable, drawing, mode, options, result["parity"], ours.name, cuda, calls=IN_A_ROW) for mode in MODES[1:]}
    result["in_a_row"] = {mode: times(drawable, drawing, mode, options, result["parity"], ours.name, cuda, calls=IN_A_ROW) for mode in MODES}
    if scene.name == SCENES[0].name and cuda:
        result["cold_l2"] = {mode: times(drawable, drawing, mode, options, result["parity"], ours.name, cuda, cold=True) for mode in MODES}
    if cuda:
        say(f"{scene.name}: host, memory and stages")
        result["host_ms"] = {one.name: attempt("host time", functools.partial(host_times, one, drawing, result["counters"])) for one in drawable}
        result["peak_bytes"] = {one.name: attempt(
            "memory", lambda one=one: timing.peak_memory(timing.make_pass(one, drawing, "forward_backward"))) for one in drawable}
        result["profile"] = {one.name: attempt(
            "profile", lambda one=one: timing.profile(timing.make_pass(one, drawing, "forward_backward")))
            for one in (drawable if scene.name == SCENES[0].name else drawable[:1])}
    if cuda and ours.options is not None and scene.name in ALL_MODES | {"head-50k-b16"} and succeeded(result["counters"]):
        result["graph"] = attempt(
            "CUDA graph", lambda: timing.graph_replay(ours, drawing, result["counters"]["pairs"], options.rounds, options.seconds / 2))
    return result


def times(
    candidates: list[Candidate], drawing: Drawing, mode: str, options: argparse.Namespace, verdicts: dict[str, dict], ours: str, cuda: bool,
    cold: bool = False, calls: int = 1,
) -> dict[str, dict]:
    """Of all candidates in alternating rounds; no ratio to or of one whose picture is wrong."""
    passes = {}
    for one in candidates:
        call = attempt(f"{mode} of {one.name}", functools.partial(timing.make_pass, one, drawing, mode))
        if callable(call) and succeeded(attempt(f"{mode} of {one.name}", lambda call=call: [call()])):
            passes[one.name] = call
    if not passes:
        return {}
    result = timing.summary(timing.interleaved(passes, options.rounds, options.seconds, cuda, cold, calls), ours)
    for name, values in result.items():
        if not (verdicts[name]["passed"] and verdicts.get(ours, {}).get("passed")):
            values.pop(f"over_{ours}", None)
            values["not_comparable"] = "parity failed"
    return result


def host_times(candidate: Candidate, drawing: Drawing, counters: dict) -> dict[str, float]:
    """CPU time per call; of ours with a capacity, so that no call waits."""
    capacity = None
    if candidate.options is not None and candidate.backend != "reference" and succeeded(counters):
        capacity = timing.Capacity(2 * counters["pairs"] + 1024)
    return {mode: timing.host_milliseconds(timing.make_pass(candidate, drawing, mode, capacity)) for mode in MODES}


def over_recorded(scenes: dict[str, dict], ours: str) -> dict[str, dict]:
    """Recorded times of others over ours of today: not from the same run, so only a hint."""
    result: dict[str, dict] = {}
    for peer, figures in RECORDED.items():
        for name, recorded in figures.items():
            for mode, milliseconds in zip(MODES, recorded, strict=True):
                if (own := device_ms(scenes, name, ours, mode)) is not None:
                    result.setdefault(peer, {}).setdefault(name, {})[mode] = round(milliseconds / own, 2)
    return result


def at(tree: object, *path: str) -> object:
    """The value at a path of keys, or None."""
    for key in path:
        tree = tree.get(key) if isinstance(tree, dict) else None
    return tree


def device_ms(scenes: dict[str, dict], scene: str, candidate: str, mode: str) -> float | None:
    """Median of the device's time."""
    return at(scenes, scene, mode, candidate, "device_ms", "median")


def acceptance(result: dict, ours: str) -> list[dict]:
    """What was promised against what was measured; `passed` is None where it was not. Times of small scenes say nothing."""
    scenes, first = result["scenes"], result.get("first_call")
    rows: list[tuple[str, float | None, str, float | None]] = []

    def faster(text: str, scene: str, mode: str, least: float) -> None:
        rows.append((f"{text}: gsplat / ours", at(scenes, scene, mode, "gsplat", f"over_{ours}"), ">=", least))
        if mode == "forward_backward":
            rows.append((f"{text}, autograd in the calling thread: gsplat / ours",
                         at(scenes, scene, "one_thread", mode, "gsplat", f"over_{ours}"), ">=", least))
            rows.append((f"{text}, the same, calls in a row: gsplat / ours",
                         at(scenes, scene, "one_thread_in_a_row", mode, "gsplat", f"over_{ours}"), ">=", least))

    for text, scene in (("head 150k, opacity 0.3", "head-150k"), ("head 150k, opacity 0.9", "head-150k-opaque")):
        faster(f"{text}, forward+backward", scene, "forward_backward", 6.0)
        faster(f"{text}, forward", scene, "forward", 3.0)
    for text, scene, least in (("head 150k, opacity 0.3", "head-150k", 12.0), ("head 150k, opacity 0.9", "head-150k-opaque", 6.0)):
        rows.append((f"{text}, forward+backward: INRIA's recorded / ours", at(result, "recorded", "over_ours", "inria", scene, "forward_backward"),
                     ">=", least))
    faster("head 50k, forward+backward", "head-50k", "forward_backward", 6.0)
    faster("large 100k, forward+backward", "large-100k", "forward_backward", 2.0)
    one = device_ms(scenes, "head-50k", ours, "forward_backward")
    for text, scene in (("own clouds", "head-50k-b16"), ("one cloud", "head-50k-b16-shared")):
        many, images = device_ms(scenes, scene, ours, "forward_backward"), at(scenes, scene, "images")
        rows.append((f"head 50k, 16 images ({text}), per image / alone", many / images / one if many and one else None, "<=", 0.6))
    faster("3 channels, forward", "head-150k-c3", "forward", 1.0)
    faster("64 channels, forward+backward", "head-150k-c64", "forward_backward", 3.0)
    own, theirs = (at(scenes, "head-150k", "peak_bytes", name) for name in (ours, "gsplat"))
    rows.append(("head 150k, peak memory: ours / gsplat", own / theirs if isinstance(own, int) and isinstance(theirs, int) else None, "<=", 1.0))
    for name in sorted(ALL_MODES):
        for mode in MODES:
            replayed, called = (at(scenes, name, *path, "device_ms", "median") for path in (("graph", mode), (mode, "gsplat")))
            rows.append((f"{name}, {mode}: gsplat called / ours replayed from a CUDA graph", called / replayed if called and replayed else None,
                         "reported", None))
    rows += [
        accuracy("'high': worst relative L2", scenes, ours, "relative_l2", 1e-3),
        accuracy("'highest': worst relative L2", scenes, f"{ours}-highest", "relative_l2", 1e-5),
        accuracy("'high': worst mean signed / rms error", scenes, ours, "signed_over_rms", 0.1),
        ("first picture, empty cache, s", at(first, "empty_cache", "picture_s"), "<=", 20.0),
        ("first picture, warm cache, s", at(first, "warm_cache", "picture_s"), "<=", 1.0),
    ]
    if result["small"]:
        rows = [(text, value if "relative L2" in text or "signed" in text else None, sense, limit) for text, value, sense, limit in rows]
    return [
        {"what": text, "value": None if value is None else float(f"{value:.4g}"), "sense": sense, "limit": limit,
         "passed": holds(value, sense, limit)} for text, value, sense, limit in rows
    ]


def accuracy(text: str, scenes: dict[str, dict], candidate: str, key: str, limit: float) -> tuple[str, float | None, str, float]:
    """Largest magnitude over scenes and quantities of the medians over seeds, and where."""
    found = [(abs(value), f" ({scene}, {name})") for scene, values in scenes.items()
             for name, value in (at(values, "parity", candidate, key) or {}).items()]
    value, place = max(found, default=(None, ""))
    return text + place, value, "<=", limit


def holds(value: float | None, sense: str, limit: float | None) -> bool | None:
    """Whether the value keeps the limit; None if there is no value, or no limit."""
    if value is None or limit is None:
        return None
    return value >= limit if sense == ">=" else value <= limit


def table(result: dict, ours: str) -> str:
    """For people."""
    lines = ["", f"{result['device']}, torch {result['torch']}; ms on the device, median (iqr); ratio: theirs / {ours}, median of the rounds"]
    for name, scene in result["scenes"].items():
        if "error" in scene:
            lines += ["", f"{name}: {scene['error']}"]
            continue
        lines += ["", f"{name}: {scene['counters']}"]
        for one, verdict in scene["parity"].items():
            cells = [f"  {one:20s} {'same' if verdict['passed'] else 'WRONG':5s}"]
            for mode in MODES:
                values = scene[mode].get(one)
                cells.append("-" if values is None else f"{mode} {values['device_ms']['median']:9.3f} ({values['device_ms']['iqr']:.3f})"
                             f" x{values.get(f'over_{ours}', float('nan')):.2f}")
            cells += [f"{scene['peak_bytes'][one] / 2**20:.0f} MiB"] if isinstance(at(scene, "peak_bytes", one), int) else []
            lines.append("  ".join(cells))
        one_thread = {one: at(scene, "one_thread", "forward_backward", one) for one in scene["parity"]}
        lines.append("  autograd in the calling thread: " + ", ".join(
            f"{one} {values['device_ms']['median']}" + (f" x{values[f'over_{ours}']}" if f"over_{ours}" in values else "")
            for one, values in one_thread.items() if values))
        in_a_row = {one: at(scene, "in_a_row", "forward_backward", one) for one in scene["parity"]}
        lines.append("  in a row: " + ", ".join(
            f"{one} {at(scene, 'in_a_row', 'forward', one, 'device_ms', 'median')} / {values['device_ms']['median']}" + (
                f" x{at(scene, 'in_a_row', 'forward', one, f'over_{ours}')} / x{values[f'over_{ours}']}" if f"over_{ours}" in values else "")
            for one, values in in_a_row.items() if values))
        if (stages := at(scene, "profile", ours, "stages_us")) is not None:
            lines.append(f"  {ours}: us {stages}, kernels {scene['profile'][ours]['kernels']}, waits {scene['profile'][ours]['host_waits']}")
        if succeeded(at(scene, "graph", "forward")):
            lines.append("  graph: " + ", ".join(f"{mode} {scene['graph'][mode]['device_ms']['median']:.3f} ms" for mode in MODES))
    lines += ["", f"recorded / {ours}: {result['recorded']['over_ours']}", f"first call: {result.get('first_call')}", ""]
    marks = {True: "pass", False: "FAIL", None: "-"}
    for row in result["acceptance"]:
        limit = "" if row["limit"] is None else f" {row['limit']:g}"
        value = "not measured" if row["value"] is None else row["value"]
        lines.append(f"{marks[row['passed']]:5s} {row['what']:76s} {value} ({row['sense']}{limit})")
    return "\n".join(lines)


def versions() -> dict[str, str]:
    """Of the packages that are there."""
    found = {}
    for name in ("torch", "triton", "gsplat", "diff_gaussian_rasterization"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.rasterizer", description=__doc__.partition("\n")[0])
    parser.add_argument("--output", type=Path, help="file for the JSON instead of stdout")
    parser.add_argument("--rounds", type=int, help="alternating rounds at most (100; small: 2)")
    parser.add_argument("--seconds", type=float, default=2.5, help="of rounds per scene and pass at most (%(default)s); at least 5 rounds are done")
    names = [scene.name for scene in SCENES]
    parser.add_argument("--scenes", nargs="+", choices=names, metavar="NAME", help=" ".join(names))
    parser.add_argument("--backends", nargs="+", choices=sorted({one.name for one in CANDIDATES}), metavar="NAME",
                        help=" ".join(one.name for one in CANDIDATES) + "; a backend's name takes all its modes")
    parser.add_argument("--small", action="store_true", help="tiny scenes, to see that everything runs (without a GPU always so)")
    return parser.parse_args(arguments)


def run(options: argparse.Namespace, write: Callable[[dict], None]) -> dict:
    """Everything; `write` gets what there is so far."""
    cuda, full_grouping = torch.cuda.is_available(), not options.small
    device = "cuda" if cuda else "cpu"
    options.small = options.small or not cuda
    options.rounds = options.rounds or (2 if options.small else 100)
    candidates, obstacles = chosen(options.backends, device, options.small)
    if not candidates:
        raise SystemExit(f"nothing to measure: {obstacles}")
    ours = candidates[0].name
    result: dict = {
        "device": torch.cuda.get_device_name() if cuda else "cpu", "torch": torch.__version__, "versions": versions(),
        "threads": torch.get_num_threads(), "small": options.small, "rounds": options.rounds, "ours": ours, "obstacles": obstacles, "scenes": {},
    }
    if not cuda:
        say("reference on the CPU: tiles grouped against padded")
        result["reference_grouping"] = reference_grouping(*((17000, 128, 9) if full_grouping else (1700, 64, 2)))
    for scene in SCENES:
        if options.scenes is None or scene.name in options.scenes:
            scene = scene.reduced(SMALL) if options.small else scene
            result["scenes"][scene.name] = attempt(scene.name, functools.partial(measure_scene, scene, candidates, options, device))
            write(result)
    if candidates[0].backend in ("gluon", "triton"):
        say("first call: two processes")
        result["first_call"] = attempt("first call", lambda: first_call.measure(ours, options.small))
    result["recorded"] = {"ms": RECORDED, "over_ours": {} if options.small else over_recorded(result["scenes"], ours)}
    result["acceptance"] = acceptance(result, ours)
    result["seconds"] = round(time.perf_counter() - STARTED, 1)
    return result


def main(arguments: list[str] | None = None) -> None:
    """Prints or writes one JSON object."""
    options = parse(arguments)

    def write(result: dict) -> None:
        if options.output is not None:
            options.output.write_text(json.dumps(result, indent=1) + "\n")

    result = run(options, write)
    write(result)
    if options.output is None:
        print(json.dumps(result), flush=True)
    print(table(result, result["ours"]), file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
