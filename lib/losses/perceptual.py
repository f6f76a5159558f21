"""LPIPS (Zhang et al., CVPR 2018), version 0.1 on VGG16 or AlexNet, as plain modules with weights from files.

With `high` precision features are bfloat16 and channels-last, and are compared by `unit_distance`. It has a twin in plain torch expressions,
which is its definition and runs wherever its kernels (distance_kernels.py) do not: they want a CUDA device of compute capability 8.0 or more, or
Triton's interpreter (TRITON_INTERPRET=1), and float32 or bfloat16. Passes over memory, of one image of features each: forward read 2; backward
read 2, write 1. Of a picture of 512² the five compared layers of VGG16 hold 64 MB. What is kept for the backward pass is the features.
Its kernels give the same bits for the same input. Nothing waits for the device after the first call, which copies constants and weights.
"""

import functools
import shlex
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from lib.archives import load_torch
from lib.errors import InputError
from lib.files import sha256
from lib.kernels import runs_kernels
from lib.networks.precision import Precision

# Input normalisation of the published metric, for pictures in [-1,1].
SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
# The same for pictures in [0,1], as a product and a sum.
GAIN, OFFSET = tuple(2.0 / scale for scale in SCALE), tuple(-(1.0 + shift) / scale for shift, scale in zip(SHIFT, SCALE, strict=True))
# Added to the length of a feature vector before dividing by it, as published.
EPSILON = 1e-10
# Shape of the programs of `unit_distance`: values, warps, and the most channels that a row of theirs can hold.
TILE, WARPS, MAX_CHANNELS = 2048, 4, 512
LEAST = 16  # channels of a row


@dataclass(frozen=True)
class PublishedFile:
    """A weight file as its authors publish it, and the name it has here."""

    name: str
    content: str
    licence: str
    url: str
    sha256: str


@dataclass(frozen=True)
class Convolution:
    """A square convolution, followed by a ReLU."""

    width: int
    kernel: int = 3
    stride: int = 1
    padding: int = 1


@dataclass(frozen=True)
class Block:
    """Convolutions whose last ReLU is compared; `pool` is the window (pixels) of the stride-2 max pooling before them, 0 for none."""

    convolutions: tuple[Convolution, ...]
    pool: int = 0


@dataclass(frozen=True)
class Backbone:
    """What distinguishes one LPIPS from another. `least` is the side in pixels of the smallest picture of which every block keeps a pixel."""

    title: str
    blocks: tuple[Block, ...]
    least: int
    features: PublishedFile
    heads: PublishedFile


_TORCHVISION = "torchvision, BSD-3-Clause"
_LPIPS = "lpips v0.1, BSD-2-Clause"
_TORCHVISION_FOLDER = "https://download.pytorch.org/models"
_LPIPS_FOLDER = "https://raw.githubusercontent.com/richzhang/PerceptualSimilarity/082bb24f84c091ea94de2867d34c4544f68e0963/lpips/weights/v0.1"

Network = Literal["vgg", "alex"]
NETWORKS: dict[Network, Backbone] = {
    "vgg": Backbone(
        title="VGG16",
        blocks=tuple(Block((Convolution(width),) * count, pool)
                     for width, count, pool in ((64, 2, 0), (128, 2, 2), (256, 3, 2), (512, 3, 2), (512, 3, 2))),
        least=16,
        features=PublishedFile("vgg16.pth", "VGG16, ImageNet", _TORCHVISION, f"{_TORCHVISION_FOLDER}/vgg16-397923af.pth",
                               "397923af8e79cdbb6a7127f12361acd7a2f83e06b05044ddf496e83de57a5bf0"),
        heads=PublishedFile("lpips_vgg.pth", "linear heads for VGG16", _LPIPS, f"{_LPIPS_FOLDER}/vgg.pth",
                            "a78928a0af1e5f0fcb1f3b9e8f8c3a2a5a3de244d830ad5c1feddc79b8432868"),
    ),
    "alex": Backbone(
        title="AlexNet",
        blocks=(Block((Convolution(64, kernel=11, stride=4, padding=2),)), Block((Convolution(192, kernel=5, padding=2),), pool=3),
                Block((Convolution(384),), pool=3), Block((Convolution(256),)), Block((Convolution(256),))),
        least=31,
        features=PublishedFile("alexnet.pth", "AlexNet, ImageNet", _TORCHVISION, f"{_TORCHVISION_FOLDER}/alexnet-owt-7be5be79.pth",
                               "7be5be791159472b1fbf3c69796f7cb30dca7ad8466c2df70058c37116cdee02"),
        heads=PublishedFile("lpips_alex.pth", "linear heads for AlexNet", _LPIPS, f"{_LPIPS_FOLDER}/alex.pth",
                            "df73285e35b22355a2df87cdb6b70b343713b667eddbda73e1977e0c860835c0"),
    ),
}


class Lpips(nn.Module):
    """Perceptual distance with frozen weights. State-dict keys are torchvision's (`features.<i>`) and lpips' (`lin<k>.model.1.weight`).

    precision: with `high` convolutions are in bfloat16, for training; what is reported comes from `highest`.
    """

    precision: Precision = "highest"

    def __init__(self, network: Network = "vgg") -> None:
        super().__init__()
        self.backbone = NETWORKS[network]
        layers: list[nn.Module] = []
        self.compared: dict[int, str] = {}  # number of a ReLU in `features` -> name of its head
        before = 3
        for number, block in enumerate(self.backbone.blocks):
            if block.pool:
                layers.append(nn.MaxPool2d(block.pool, stride=2))
            for convolution in block.convolutions:
                layers += [nn.Conv2d(before, convolution.width, convolution.kernel, convolution.stride, convolution.padding), nn.ReLU()]
                before = convolution.width
            self.compared[len(layers) - 1] = f"lin{number}"
        self.features = nn.Sequential(*layers)
        for name, block in zip(self.compared.values(), self.backbone.blocks, strict=True):
            # The identity stands where the published head has its dropout, so that the keys agree.
            head = nn.Sequential(nn.Identity(), nn.Conv2d(block.convolutions[-1].width, 1, kernel_size=1, bias=False))
            self.add_module(name, nn.Sequential(OrderedDict(model=head)))
        self.requires_grad_(False)
        self._copies = _Copies()

    def forward(self, image: Float[Tensor, "B 3 H W"], target: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B"]:
        """Distance of pictures in [0,1] (mapped to [-1,1] here), at least 16x16 pixels for VGG16, 31x31 for AlexNet. Raises ValueError below."""
        height, width = image.shape[-2:]
        if min(height, width) < self.backbone.least:
            raise ValueError(f"LPIPS on {self.backbone.title} needs pictures of at least {self.backbone.least}x{self.backbone.least} pixels, "
                             f"found {height}x{width}")
        return self._rough(image, target) if self.precision == "high" else self._exact(image, target)

    def regional(
        self, image: Float[Tensor, "B 3 H W"], target: Float[Tensor, "B 3 H W"], weights: Float[Tensor, "B R H W"]
    ) -> Float[Tensor, "B R"]:
        """The distance under each weight: for every compared layer its mean with the weight averaged (by area) to the layer's size; NaN where a
        weight is zero. Equal weights give `forward`. In the type of the pictures, whatever `precision` says."""
        distance = image.new_zeros(weights.shape[:2])
        for part in self._maps(image, target):
            share = nn.functional.adaptive_avg_pool2d(weights, part.shape[-2:])
            distance = distance + (part * share).sum(dim=(2, 3)) / share.sum(dim=(2, 3))
        return distance

    def _exact(self, image: Float[Tensor, "B 3 H W"], target: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B"]:
        distance = image.new_zeros(len(image))
        for part in self._maps(image, target):
            distance = distance + part.mean(dim=(1, 2, 3))
        return distance

    def _maps(self, image: Float[Tensor, "B 3 H W"], target: Float[Tensor, "B 3 H W"]) -> Iterator[Float[Tensor, "B 1 h w"]]:
        """What each compared layer adds to the distance, before it is averaged over its pixels."""
        shift, scale = (_planes(values, image.device, image.dtype) for values in (SHIFT, SCALE))
        a, b = ((2.0 * picture - 1.0 - shift) / scale for picture in (image, target))
        for number, layer in enumerate(self.features):
            a, b = layer(a), layer(b)
            if number in self.compared:
                yield self.get_submodule(self.compared[number])((unit_vectors(a) - unit_vectors(b)).square())

    def _rough(self, image: Float[Tensor, "B 3 H W"], target: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B"]:
        gain, offset = (_planes(values, image.device, torch.float32) for values in (GAIN, OFFSET))
        a, b = (torch.addcmul(offset, picture.float(), gain).to(torch.bfloat16, memory_format=torch.channels_last) for picture in (image, target))
        copies = iter(self._copies.of(list(self.features.parameters())))
        distances = []
        for number, layer in enumerate(self.features):
            if isinstance(layer, nn.Conv2d):
                weight, bias = next(copies), next(copies)
                a, b = (nn.functional.conv2d(features, weight, bias, layer.stride, layer.padding) for features in (a, b))
            else:
                a, b = layer(a), layer(b)
            if number in self.compared:
                (weight,) = self.get_submodule(self.compared[number]).parameters()
                distances.append(unit_distance(a, b, weight.flatten()))
        return torch.stack(distances).sum(dim=0).to(image.dtype)


class _Copies:
    """Weights in bfloat16 and channels-last, as convolutions are fastest; made once for each state of the weights."""

    def __init__(self) -> None:
        self._originals: list[Tensor] = []  # held, so that no other weights can come to lie where these are
        self._marks: list[tuple[int, int]] = []
        self._values: list[Tensor] = []

    def of(self, weights: list[Tensor]) -> list[Tensor]:
        """In the same order."""
        marks = [(weight.data_ptr(), weight._version) for weight in weights]
        if marks != self._marks:
            with torch.inference_mode(False), torch.no_grad():
                self._originals, self._marks = [weight.detach() for weight in weights], marks
                self._values = [weight.to(torch.bfloat16, memory_format=torch.channels_last if weight.ndim == 4 else torch.preserve_format)
                                for weight in self._originals]
        return self._values


@functools.cache
def _planes(values: tuple[float, ...], device: torch.device, dtype: torch.dtype) -> Float[Tensor, "C 1 1"]:
    """A number for each channel. Copying them to a device waits for it, so that is done once."""
    with torch.inference_mode(False):  # whoever asks first, gradients may have to pass later
        return torch.tensor(values, device=device, dtype=dtype)[:, None, None]


def unit_vectors(features: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
    """Feature vectors (along C) of length 1; zero stays zero."""
    # The norm as one operation: its gradient at a zero vector is 0, that of sqrt(sum of squares) would be NaN.
    return features / (torch.linalg.vector_norm(features, dim=1, keepdim=True) + EPSILON)


def unit_distance(a: Float[Tensor, "B C H W"], b: Float[Tensor, "B C H W"], weight: Float[Tensor, "C"]) -> Float[Tensor, "B"]:
    """Squared difference of unit vectors, weighted by channel; mean over pixels, in float32 at least."""
    # The kernels give a gradient to `a` alone.
    constant = not (torch.is_grad_enabled() and (b.requires_grad or weight.requires_grad))
    fits = a.dtype == b.dtype and a.shape == b.shape and 0 < a.shape[1] <= MAX_CHANNELS and a.numel() > 0
    if not (constant and fits and runs_kernels(a, torch.float32, torch.bfloat16)):
        return unit_distance_twin(a, b, weight)
    a, b = (features.contiguous(memory_format=torch.channels_last) for features in (a, b))
    return _UnitDistance.apply(a, b, weight.float().contiguous())


def unit_distance_twin(a: Float[Tensor, "B C H W"], b: Float[Tensor, "B C H W"], weight: Float[Tensor, "C"]) -> Float[Tensor, "B"]:
    """`unit_distance` in torch."""
    a, b = (features.to(torch.promote_types(features.dtype, torch.float32)) for features in (a, b))
    return torch.einsum("bchw,c->bhw", (unit_vectors(a) - unit_vectors(b)).square(), weight.to(a.dtype)).mean(dim=(1, 2))


class _UnitDistance(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor, weight: Tensor) -> Tensor:
        from lib.losses import distance_kernels as kernels

        pixels, shape = _programs(a)
        runs = -(-pixels // shape["ROWS"])
        partials = a.new_empty((len(a), runs), dtype=torch.float32)
        with torch.cuda.device_of(a):
            kernels.sum_distances[runs, len(a)](a, b, weight, partials, pixels, **shape, num_warps=WARPS)
        ctx.save_for_backward(a, b, weight)
        return partials.sum(dim=1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None, None]:
        from lib.losses import distance_kernels as kernels

        a, b, weight = ctx.saved_tensors
        pixels, shape = _programs(a)
        out = torch.empty_like(a)
        with torch.cuda.device_of(a):
            kernels.distance_gradients[-(-pixels // shape["ROWS"]), len(a)](
                a, b, weight, upstream, out, pixels, upstream.stride(0), **shape, num_warps=WARPS)
        return out, None, None


def _programs(features: Tensor) -> tuple[int, dict[str, int | float]]:
    """Pixels of an image, and the constants of the kernels."""
    _, channels, height, width = features.shape
    block = max(LEAST, 1 << (channels - 1).bit_length())
    return height * width, {"CHANNELS": channels, "BLOCK": block, "ROWS": TILE // block, "EPSILON": EPSILON}


def load_lpips(folder: Path, key: str, network: Network = "vgg") -> Lpips:
    """LPIPS with the weights of `folder`, any that fit; says which are not the published ones. Raises InputError naming `key` and the file."""
    backbone = NETWORKS[network]
    files = {"features": backbone.features, "lin": backbone.heads}
    with torch.device("meta"):  # neither draws random numbers nor fills memory for weights that are replaced
        model = Lpips(network)
    weights = {prefix: _read_weights(folder, file, key, network) for prefix, file in files.items()}
    state = {}
    for name, own in model.state_dict().items():
        prefix = "features" if name.startswith("features.") else "lin"
        value = weights[prefix].get(name)
        if not isinstance(value, Tensor) or value.shape != own.shape:
            raise InputError(f"{folder / files[prefix].name}: expected {files[prefix].content} ({files[prefix].licence}), where '{name}' has shape "
                             f"{tuple(own.shape)}, found {tuple(value.shape) if isinstance(value, Tensor) else 'nothing'}; move the file away "
                             f"and run `{_command(folder, network)}`")
        state[name] = value.float()
    model.load_state_dict(state, assign=True)
    for file in files.values():
        found = sha256(folder / file.name)
        if found != file.sha256:
            print(f"{folder / file.name} is not the published file (sha256 {found}, published {file.sha256}): "
                  "its LPIPS numbers compare with no others")
    return model


def _read_weights(folder: Path, file: PublishedFile, key: str, network: Network) -> dict[str, object]:
    path = folder / file.name
    if not path.exists():
        raise InputError(f"{key} is larger than 0, but {path} is missing ({file.content}; {file.licence}). "
                         f"Run `{_command(folder, network)}`, or set {key}=0")
    try:
        weights = load_torch(path)
    except Exception as error:  # a damaged file can raise nearly anything in the unpickler
        raise InputError(f"{path}: not a readable weight file ({type(error).__name__}); move it away and run "
                         f"`{_command(folder, network)}`") from error
    if not isinstance(weights, dict):
        raise InputError(f"{path}: expected a state dict ({file.content}), found a {type(weights).__name__}; move it away and run "
                         f"`{_command(folder, network)}`")
    return weights


def _command(folder: Path, network: Network) -> str:
    return f"python -m preprocess.lpips_weights --folder {shlex.quote(str(folder))} --network {network}"
