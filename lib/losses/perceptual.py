"""LPIPS (Zhang et al., CVPR 2018), version 0.1 on VGG16 or AlexNet, as plain modules with weights from files."""

import shlex
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lib.errors import InputError
from lib.files import sha256
from lib.networks.precision import Precision

# Input normalisation of the published metric, for pictures in [-1,1].
SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
# Added to the length of a feature vector before dividing by it, as published.
EPSILON = 1e-10


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

    def forward(self, image: Float[Tensor, "B 3 H W"], target: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B"]:
        """Distance of pictures in [0,1] (mapped to [-1,1] here), at least 16x16 pixels for VGG16, 31x31 for AlexNet. Raises ValueError below."""
        height, width = image.shape[-2:]
        if min(height, width) < self.backbone.least:
            raise ValueError(f"LPIPS on {self.backbone.title} needs pictures of at least {self.backbone.least}x{self.backbone.least} pixels, "
                             f"found {height}x{width}")
        shift, scale = (image.new_tensor(values)[:, None, None] for values in (SHIFT, SCALE))
        a, b = ((2.0 * picture - 1.0 - shift) / scale for picture in (image, target))
        rough = self.precision == "high"
        if rough:  # as bfloat16 convolutions are fastest
            a, b = (picture.contiguous(memory_format=torch.channels_last) for picture in (a, b))
        distance = image.new_zeros(len(image))
        for number, layer in enumerate(self.features):
            with torch.autocast(image.device.type, torch.bfloat16, enabled=rough):
                a, b = layer(a), layer(b)
            if number in self.compared:
                head = self.get_submodule(self.compared[number])
                own, other = (features.to(image.dtype) for features in (a, b))
                distance = distance + head((unit_vectors(own) - unit_vectors(other)).square()).mean(dim=(1, 2, 3))
        return distance


def unit_vectors(features: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
    """Feature vectors (along C) of length 1; zero stays zero."""
    # The norm as one operation: its gradient at a zero vector is 0, that of sqrt(sum of squares) would be NaN.
    return features / (torch.linalg.vector_norm(features, dim=1, keepdim=True) + EPSILON)


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
        weights = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file can raise nearly anything in the unpickler
        raise InputError(f"{path}: not a readable weight file ({type(error).__name__}); move it away and run "
                         f"`{_command(folder, network)}`") from error
    if not isinstance(weights, dict):
        raise InputError(f"{path}: expected a state dict ({file.content}), found a {type(weights).__name__}; move it away and run "
                         f"`{_command(folder, network)}`")
    return weights


def _command(folder: Path, network: Network) -> str:
    return f"python -m preprocess.lpips_weights --folder {shlex.quote(str(folder))} --network {network}"
