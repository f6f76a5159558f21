"""What separates a person from the background: one interface, three ways behind it.

- `background_matting_v2`: the TorchScript file of Lin et al. (CVPR 2021), which wants the empty scene.
- `robust_video_matting`: the TorchScript file of Lin et al. (WACV 2022), recurrent, without the empty scene.
- `classical`: no weights (matting_classical.py).

A TorchScript file is a program with its weights. One that names files or the network is refused (torchscript.py), but it can take any memory
and time, and nothing tells whether its mattes are good. No hashes of these files are published: the SHA-256 is printed. Take it from its authors.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from lib.errors import InputError
from lib.training.runtime import choose_device
from preprocess import matting_classical
from preprocess.torchscript import check_program

WEIGHTS_FOLDER = Path("assets/matting")
COARSE_SIZE = 512  # pixels of the longer side at which both networks look at the whole picture
MULTIPLE = 4  # of which BackgroundMattingV2 wants height and width to be


class Matter(Protocol):
    """Finds the person in consecutive pictures of one camera. A new one is begun for every camera and sequence."""

    def __call__(self, pictures: Float[Tensor, "B 3 H W"], background: Float[Tensor, "3 H W"] | None) -> Float[Tensor, "B 1 H W"]:
        """Alpha in [0,1] of RGB pictures in [0,1], in order of time, on the CPU; `background` is the empty scene. InputError where it cannot."""
        ...


@dataclass(frozen=True)
class Matting:
    """A way of matting, ready to begin. `remembers`: what it makes of a picture depends on those before; `single`: it uses all cores by itself."""

    name: str
    needs_background: bool
    remembers: bool
    single: bool
    begin: Callable[[], Matter]


@dataclass(frozen=True)
class Weights:
    """Names under which the authors publish their TorchScript files, in order of preference, and where they are."""

    names: tuple[str, ...]
    source: str


WEIGHTS = {
    "background_matting_v2": Weights(
        tuple(f"torchscript_{network}_fp32.pth" for network in ("resnet101", "resnet50", "mobilenetv2")),
        "https://github.com/PeterL1n/BackgroundMattingV2, 'Download': folder TorchScript (MIT)"),
    "robust_video_matting": Weights(
        tuple(f"rvm_{network}_fp32.torchscript" for network in ("resnet50", "mobilenetv3")),
        "https://github.com/PeterL1n/RobustVideoMatting/releases/tag/v1.0.0 (GPL-3.0)"),
}
NAMES = (*WEIGHTS, "classical")


def open_matting(name: str, weights: Path | None, device: str, has_backgrounds: bool) -> Matting:
    """The named way; `auto` is the best one whose weights are in assets/matting, else `classical`. InputError for absent or foreign weights."""
    if name == "auto":
        if weights is not None:
            raise InputError(f"--weights {weights}: say with --matter whose weights these are: {' or '.join(WEIGHTS)}")
        usable = [known for known in WEIGHTS if _found(known) is not None and (has_backgrounds or known != "background_matting_v2")]
        name = usable[0] if usable else "classical"
        if not usable:
            lacking = f"no weights of {' or '.join(WEIGHTS)} in {WEIGHTS_FOLDER}/" if _found("background_matting_v2") is None else \
                "no background/image_<camera>.jpg, without which background_matting_v2 cannot be used, and no weights of robust_video_matting"
            print(f"{lacking}: matting without any (classical), good enough to train")
    if name == "classical":
        if weights is not None:
            raise InputError(f"--weights {weights}: --matter classical has no weights; leave one of the two out")
        return Matting(name, needs_background=True, remembers=False, single=False, begin=lambda: ClassicalMatter())
    path = weights or _found(name)
    if path is None or not path.is_file():
        places = f"looked for {path}" if path is not None else f"looked in {WEIGHTS_FOLDER}/ for {', '.join(WEIGHTS[name].names)}"
        raise InputError(f"--matter {name}: its weights are not here: {places}. They come from {WEIGHTS[name].source}; put a file there, name it "
                         "with --weights, or take --matter classical, which needs none")
    chosen = choose_device(device, option="--device")
    model = _load(path, name, chosen)
    if name == "background_matting_v2":
        return Matting(name, needs_background=True, remembers=False, single=True, begin=lambda: BackgroundMattingV2(model, chosen, path))
    return Matting(name, needs_background=False, remembers=True, single=True, begin=lambda: RobustVideoMatting(model, chosen, path))


def _found(name: str) -> Path | None:
    return next((WEIGHTS_FOLDER / file for file in WEIGHTS[name].names if (WEIGHTS_FOLDER / file).is_file()), None)


def _load(path: Path, name: str, device: torch.device) -> torch.jit.ScriptModule:
    digest = check_program(path)
    print(f"{path}: sha256 {digest} (none is published to compare it with); a program, from {WEIGHTS[name].source}", flush=True)
    try:
        model = torch.jit.load(str(path), map_location=device).eval()
    except (RuntimeError, ValueError, OSError) as error:
        raise InputError(f"{path}: cannot be read as a TorchScript file ({str(error).strip().splitlines()[0]}); expected one of "
                         f"{', '.join(WEIGHTS[name].names)} from {WEIGHTS[name].source}. Files with weights alone do not do") from error
    if (name == "background_matting_v2") != hasattr(model, "backbone_scale"):
        raise InputError(f"{path}: a TorchScript file, but not one of {name}; take the file from {WEIGHTS[name].source}")
    return model


class ClassicalMatter:
    """Background subtraction, GrabCut and a solved edge."""

    def __call__(self, pictures: Float[Tensor, "B 3 H W"], background: Float[Tensor, "3 H W"] | None) -> Float[Tensor, "B 1 H W"]:
        """Wants a background. See Matter."""
        if background is None:
            raise InputError("classical matting wants a picture of the empty scene, or an estimate of it")
        empty = _pixels(background)
        return torch.stack([torch.from_numpy(matting_classical.matte(_pixels(picture), empty))[None] for picture in pictures])


class BackgroundMattingV2:
    """(src, bgr) -> (pha, fgr, ...): coarse at a quarter of HD or less, then refined where its own error estimate is above a threshold."""

    def __init__(self, model: torch.jit.ScriptModule, device: torch.device, path: Path) -> None:
        self.model, self.device, self.path = model, device, path

    @torch.inference_mode()
    def __call__(self, pictures: Float[Tensor, "B 3 H W"], background: Float[Tensor, "3 H W"] | None) -> Float[Tensor, "B 1 H W"]:
        """Wants a background. See Matter."""
        if background is None:
            raise InputError("background_matting_v2 wants a picture of the empty scene, or an estimate of it")
        height, width = pictures.shape[-2:]
        # The network refuses more than a half.
        self.model.backbone_scale = min(0.5, COARSE_SIZE / max(height, width))
        self.model.refine_mode = "thresholding"
        beside, below = -width % MULTIPLE, -height % MULTIPLE
        source, empty = (torch.nn.functional.pad(image, (0, beside, 0, below), mode="replicate").to(self.device, _precision(self.model))
                         for image in (pictures, background[None].expand_as(pictures)))
        alpha = _called(self.path, lambda: self.model(source, empty)[0])
        return _checked(alpha, (len(pictures), 1, height + below, width + beside), self.path)[..., :height, :width]


class RobustVideoMatting:
    """(src, r1, r2, r3, r4, downsample_ratio) -> (fgr, pha, r1, r2, r3, r4); the four states are its memory of the pictures before."""

    def __init__(self, model: torch.jit.ScriptModule, device: torch.device, path: Path) -> None:
        self.model, self.device, self.path = model, device, path
        self.state: list[Tensor | None] = [None] * 4

    @torch.inference_mode()
    def __call__(self, pictures: Float[Tensor, "B 3 H W"], background: Float[Tensor, "3 H W"] | None) -> Float[Tensor, "B 1 H W"]:
        """Does not look at the background. See Matter."""
        height, width = pictures.shape[-2:]
        ratio, alphas = min(1.0, COARSE_SIZE / max(height, width)), []
        for picture in pictures.to(self.device, _precision(self.model)):
            _, alpha, *self.state = _called(self.path, lambda picture=picture: self.model(picture[None], *self.state, ratio))
            alphas.append(_checked(alpha, (1, 1, height, width), self.path))
        return torch.cat(alphas)


def _precision(model: torch.jit.ScriptModule) -> torch.dtype:
    return next((parameter.dtype for parameter in model.parameters() if parameter.is_floating_point()), torch.float32)


def _called(path: Path, call: Callable[[], Tensor]) -> Tensor:
    """TorchScript has one type of error for everything; out of memory is told apart."""
    try:
        return call()
    except torch.OutOfMemoryError as error:
        raise InputError(f"{path}: the device has too little memory for this size of picture; take --device cpu or --matter classical") from error
    except RuntimeError as error:
        lines = str(error).strip().splitlines()
        reason = lines[-1] if lines else "no reason given"
        raise InputError(f"{path}: the network failed ({reason}); is it the file of --matter, in fp32 on a CPU?") from error


def _checked(alpha: Tensor, shape: tuple[int, ...], path: Path) -> Float[Tensor, "B 1 H W"]:
    if not isinstance(alpha, Tensor) or tuple(alpha.shape) != shape:
        raise InputError(f"{path}: expected an alpha of shape {shape}, found {tuple(getattr(alpha, 'shape', ()))}; is it the file of --matter?")
    alpha = alpha.float().cpu()
    if not alpha.isfinite().all():
        raise InputError(f"{path}: the network gave NaN or infinity for this picture; take the fp32 file, or --matter classical")
    return alpha.clamp(0.0, 1.0)


def _pixels(image: Float[Tensor, "3 H W"]) -> matting_classical.Image:
    return np.ascontiguousarray(image.permute(1, 2, 0).numpy())
