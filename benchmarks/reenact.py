"""Measures reenactment: frames a second drawn and written, latency, and where the time goes; what it was before beside it, in one process.

    python -m benchmarks.reenact [--output FILE] [--gaussians N] [--resolution PX] [--frames N] [--rounds N] [--seconds S] [--preset NAME] [--small]

The avatar has the widths of config/train_gaussianhead_N031.yaml and is not trained: Gaussians on an ellipsoidal shell as large as a head, which
cover it about once, control landmarks on its front, random networks. JSON goes to stdout (or FILE), progress to stderr. `--small` only
shows that everything runs, also without a GPU.
"""

import argparse
import json
import math
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from benchmarks import timing
from lib.avatars.gaussian_head_avatar.avatar import GaussianAvatar
from lib.avatars.gaussian_head_avatar.film import VideoConfig, film
from lib.avatars.gaussian_head_avatar.gaussian_head import GaussianHead, GaussianHeadConfig
from lib.avatars.gaussian_head_avatar.gaussian_stage import GaussianHeadTrainConfig
from lib.avatars.gaussian_head_avatar.renderer import AvatarRenderer
from lib.config import read_config
from lib.config.reader import Arguments
from lib.datasets.driving import DrivingConfig, DrivingFrame, DrivingSequence
from lib.gaussians.cloud import GaussianCloud
from lib.geometry.head_pose import SolvedHeadPose
from lib.metrics.psnr import psnr
from lib.networks.upsampler import SCALE, Upsampler
from lib.render.gaussian.interface import rasterize
from lib.render.replay import Replay

CONFIG = Path(__file__).resolve().parents[1] / "config" / "train_gaussianhead_N031.yaml"
AXES, LANDMARKS, UNIT = (0.75, 1.0, 0.85), 424, 0.1  # canonical units; as many as published; metres per canonical unit
SMALL = {"gaussians": 600, "resolution": 64, "frames": 5, "rounds": 2}
PUBLISHED_MS = 48.3  # a frame
WANTED = {"rendered": 200.0, "coarse": 1000.0, "written": 60.0}  # frames a second


def make_avatar(gaussians: int, seed: int = 0) -> GaussianAvatar:
    """On the CPU; the same for the same seed."""
    torch.manual_seed(seed)
    config = read_config(Arguments(CONFIG, ()), GaussianHeadTrainConfig)
    head = GaussianHead(GaussianHeadConfig.model_validate(config.gaussianheadmodule.model_dump()), gaussians, LANDMARKS)
    with torch.no_grad():
        head.xyz.copy_(_on_shell(gaussians) * (1.0 + 0.02 * torch.randn(gaussians, 1)))
        landmarks = _on_shell(8 * LANDMARKS)
        head.landmarks_3d_neutral.copy_(landmarks[landmarks[:, 2] > 0.4 * AXES[2]][:LANDMARKS])
        head.scales.copy_(0.5 * math.log(4.0 * math.pi * 0.75 / gaussians) + 0.3 * torch.randn(gaussians, 3))
        head.rotation.normal_()
        head.opacity.normal_(0.0, 0.5)
        features = head.config.feature_width
        head.feature.copy_((6.0 * head.xyz @ torch.randn(3, features)).sin() + 0.2 * torch.randn(gaussians, features))  # as on skin: nearly smooth
        for network, gain in ((head.exp_deform, 1.5), (head.pose_deform, 1.5), (head.exp_color, 2.0), (head.pose_color, 2.0)):
            for layer in network.layers:
                layer.weight.mul_(gain)  # so that it moves, and that colours differ
        for network in (head.exp_color, head.pose_color):
            network.layers[-1].bias.fill_(0.5)
    # With skip (a little more work than the published network), so that the picture is one and no noise: encoders care.
    return GaussianAvatar(head, Upsampler(config.supresmodule.model_copy(update={"skip": True}))).eval()


def _on_shell(count: int) -> torch.Tensor:
    return torch.nn.functional.normalize(torch.randn(count, 3), dim=-1) * torch.tensor(AXES)


def make_driver(folder: Path, frames: int, expressions: int, resolution: int, seed: int = 0) -> DrivingSequence:
    """A face that talks and nods, seen from the front."""
    random = np.random.default_rng(seed)
    speed, phase = random.uniform(0.05, 0.4, expressions), random.uniform(0.0, 6.28, expressions)
    for index in range(frames):
        path = folder / "params" / f"{index:05d}" / "params.npz"
        path.parent.mkdir(parents=True)
        pose = np.array([[0.1 * math.sin(0.1 * index), 0.2 * math.sin(0.07 * index), 0.0, 0.0, 0.0, 0.0]], np.float32)
        np.savez(path, exp_coeff=np.sin(speed * index + phase)[None].astype(np.float32), pose=pose, scale=np.array([UNIT], np.float32))
    return DrivingSequence(DrivingConfig(dataroot=folder, param_files="params/*/params.npz", resolution=resolution, camera="front"), torch.zeros(6))


def main(arguments: list[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--gaussians", type=int, default=103_000)
    parser.add_argument("--resolution", type=int, default=2048, help="pixels; the coarse picture has a quarter of it")
    parser.add_argument("--frames", type=int, default=300, help="of every film; loops of pictures that are not written have at most 60")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=60.0, help="at most, for the rounds")
    parser.add_argument("--preset", default=VideoConfig().preset, help="of H.264")
    parser.add_argument("--small", action="store_true")
    options = parser.parse_args(arguments)
    if options.small:
        vars(options).update(SMALL)
    result = measure(options, torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    text = json.dumps(result, indent=1)
    if options.output is None:
        print(text)
    else:
        options.output.write_text(text)


def say(line: str) -> None:
    """Progress."""
    print(line, file=sys.stderr, flush=True)


@torch.no_grad()
def measure(options: argparse.Namespace, device: torch.device) -> dict:
    """Everything."""
    cuda, size = device.type == "cuda", options.resolution
    avatar = make_avatar(options.gaussians).to(device)
    weights = avatar.head.frozen(torch.float32).weights
    result: dict = {
        "device": torch.cuda.get_device_name() if cuda else "cpu", "torch": torch.__version__, "gaussians": options.gaussians, "resolution": size,
        "expression_rows": len(weights.expression_rows), "pose_rows": len(weights.pose_rows), "small": options.small, "published_ms": PUBLISHED_MS,
    }
    with tempfile.TemporaryDirectory() as folder:
        driver = make_driver(Path(folder) / "driver", options.frames, avatar.head.config.exp_coeffs_dim, size)
        frames = [driver[index] for index in range(min(options.frames, 60))]
        renderers = {
            "rendered": AvatarRenderer(avatar, size, size), "rendered_highest": AvatarRenderer(avatar, size, size, "highest"),
            "coarse": AvatarRenderer(avatar, size, size, coarse_only=True),
        }
        say("drawing")
        loops = {"before": Loop(lambda frame: before(avatar, frame.to(device)), frames)}
        loops |= {name: Loop(lambda frame, renderer=renderer: renderer(frame).image, frames) for name, renderer in renderers.items()}
        samples = timing.interleaved(dict(loops), options.rounds, options.seconds, cuda, calls=len(frames))
        result["drawn"] = timing.summary(samples, "rendered")
        for values in result["drawn"].values():
            values["frames_per_second"] = round(1e3 / max(values["wall_ms"]["median"], 1e-9), 1)
        say("accuracy and latency")
        exact = [before(avatar, frame.to(device)) for frame in frames[:5]]
        result["psnr_against_before"] = {name: round(min(
            float(psnr(renderers[name](frame).image.cpu(), image)) for frame, image in zip(frames, exact, strict=False)), 2)
            for name in ("rendered", "rendered_highest")}
        moved = frames[0].to(device)
        cloud = avatar.head(moved.expression, moved.pose_code, moved.head)
        result["covered"] = round(float(avatar.features(cloud, moved.camera).alpha.mean()), 3)
        result["latency_alone_ms"] = {name: alone(renderers[name], frames) for name in ("rendered", "coarse")}
        if cuda:
            say("stages")
            result["stages_ms"] = stages(renderers["rendered"], frames[0], options)
            result["profile"] = {name: timing.profile(lambda name=name: renderers[name](frames[0])) for name in ("rendered", "coarse")}
        say("writing")
        result["preset"], result["written"] = options.preset, {}
        for kind, name in (("none", "rendered"), ("jpg", "rendered"), ("png", "rendered"), ("none", "coarse")):
            pace = film(renderers[name], driver, VideoConfig(preset=options.preset, frames=kind), Path(folder) / f"{name}_{kind}")
            result["written"][f"{name}, frames {kind}"] = {
                "frames_per_second": round(pace.written_per_second, 1), "rendered_per_second": round(pace.rendered_per_second, 1),
                "latency_ms": {"median": round(1e3 * pace.latency(0.5), 2), "95%": round(1e3 * pace.latency(0.95), 2)},
                "video_bytes_per_frame": (Path(folder) / f"{name}_{kind}" / "reenactment.mp4").stat().st_size // options.frames,
            }
    reached = {
        "rendered": result["drawn"]["rendered"]["frames_per_second"], "coarse": result["drawn"]["coarse"]["frames_per_second"],
        "written": result["written"]["rendered, frames none"]["frames_per_second"],
    }
    result["acceptance"] = [{"what": f"{name}, frames a second", "value": value, "least": WANTED[name],
                             "passed": None if options.small else value >= WANTED[name]} for name, value in reached.items()]
    return result


class Loop:
    """Draws the next frame of some at every call."""

    def __init__(self, draw: Callable[[DrivingFrame], object], frames: list[DrivingFrame]) -> None:
        self.draw, self.frames, self.index = draw, frames, 0

    def __call__(self) -> object:
        """One frame."""
        self.index = (self.index + 1) % len(self.frames)
        return self.draw(self.frames[self.index])


def before(avatar: GaussianAvatar, frame: DrivingFrame) -> torch.Tensor:
    """As every frame was drawn before there was a renderer: float32, kernel by kernel, waited for and looked at on the host."""
    picture = avatar(frame.expression, frame.pose_code, frame.head, frame.camera).image.cpu()
    assert torch.isfinite(picture).all()
    return picture


def alone(renderer: AvatarRenderer, frames: list[DrivingFrame]) -> dict[str, float]:
    """Milliseconds from handing in parameters until 8-bit RGB is on the host, one frame at a time."""
    host = torch.empty(3, renderer.height, renderer.width, dtype=torch.uint8, pin_memory=renderer.device.type == "cuda")
    milliseconds = []
    for frame in frames:
        start = time.perf_counter()
        host.copy_((renderer(frame).image[0].clamp(0.0, 1.0) * 255.0).round().byte())
        milliseconds.append(1e3 * (time.perf_counter() - start))
    ordered = sorted(milliseconds)
    return {"median": round(statistics.median(ordered), 3), "95%": round(ordered[int(0.95 * (len(ordered) - 1))], 3)}


def stages(renderer: AvatarRenderer, frame: DrivingFrame, options: argparse.Namespace) -> dict[str, float]:
    """Medians of milliseconds on the device, every stage recorded in a graph of its own."""
    camera = frame.camera.resized(frame.camera.width // SCALE, frame.camera.height // SCALE).to(renderer.device)
    head = frame.head.solved()
    inputs = (frame.expression, renderer.head.encode(frame.pose_code), head.pose, head.scale, head.matrix, head.quat_matrix)

    def cloud_of(expression: torch.Tensor, pose: torch.Tensor, *solved: torch.Tensor) -> GaussianCloud:
        return renderer.head(expression, pose, SolvedHeadPose(*solved))

    cloud = cloud_of(*(value.to(renderer.device) for value in inputs))
    drawn = renderer.options.capacity.drawn(lambda: rasterize(cloud, camera, renderer.background, options=renderer.options)).features
    parts = {
        "head": lambda *values: cloud_of(*values).means,
        "rasterizer": lambda *_: rasterize(cloud, camera, renderer.background, options=renderer.options).features,
        "super-resolution": lambda *_: renderer.upsampler(drawn),
    }
    passes = {}
    for name, part in parts.items():
        replay = Replay(part, renderer.options.capacity, renderer.device)
        passes[name] = lambda replay=replay: replay(*inputs)
    passes["everything"] = lambda: renderer(frame)
    samples = timing.interleaved(passes, options.rounds, options.seconds / 4, cuda=True, calls=20)
    return {name: round(statistics.median(one.device for one in own), 4) for name, own in samples.items()}


if __name__ == "__main__":
    main()
