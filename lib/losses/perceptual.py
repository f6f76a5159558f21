"""LPIPS (Zhang et al., CVPR 2018), version 0.1 on VGG16, as plain modules with weights from files."""

from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lib.errors import InputError

# Convolution widths of VGG16 with pooling between blocks; the last ReLU of each block is compared.
BLOCKS = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
# Input normalisation of the published metric, for pictures in [-1,1].
SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
BACKBONE_FILE, HEADS_FILE = "vgg16.pth", "lpips_vgg.pth"


class Lpips(nn.Module):
    """Perceptual distance with frozen weights. State-dict keys are torchvision's (`features.<i>`) and lpips' (`lin<k>.model.1.weight`)."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        self.compared: list[int] = []
        width = 3
        for number, block in enumerate(BLOCKS):
            if number:
                layers.append(nn.MaxPool2d(2))
            for out in block:
                layers += [nn.Conv2d(width, out, kernel_size=3, padding=1), nn.ReLU()]
                width = out
            self.compared.append(len(layers) - 1)
        self.features = nn.Sequential(*layers)
        self.heads = nn.ParameterList(torch.zeros(1, block[-1], 1, 1) for block in BLOCKS)
        self.requires_grad_(False)

    def forward(self, image: Float[Tensor, "B 3 H W"], target: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B"]:
        """Distance of pictures in [0,1] (mapped to [-1,1] here), at least 16x16 pixels."""
        shift, scale = (image.new_tensor(values)[:, None, None] for values in (SHIFT, SCALE))
        a, b = ((2.0 * picture - 1.0 - shift) / scale for picture in (image, target))
        distance = image.new_zeros(len(image))
        for index, layer in enumerate(self.features):
            a, b = layer(a), layer(b)
            if index in self.compared:
                head = self.heads[self.compared.index(index)]
                difference = (nn.functional.normalize(a, dim=1, eps=1e-10) - nn.functional.normalize(b, dim=1, eps=1e-10)).square()
                distance = distance + (difference * head).sum(dim=1).mean(dim=(1, 2))
        return distance


def load_lpips(folder: Path, key: str) -> Lpips:
    """Reads both weight files. Raises InputError naming `key` and the files when they are missing or of another network."""
    model = Lpips()
    backbone, heads = (_weights(folder / name, key) for name in (BACKBONE_FILE, HEADS_FILE))
    state = {name: value for name, value in backbone.items() if name.startswith("features.")}
    state |= {f"heads.{k}": heads[f"lin{k}.model.1.weight"] for k in range(len(BLOCKS)) if f"lin{k}.model.1.weight" in heads}
    for name, own in model.state_dict().items():
        if name not in state or state[name].shape != own.shape:
            raise InputError(f"{folder}: expected torchvision's VGG16 in {BACKBONE_FILE} and lpips' VGG heads (v0.1) in {HEADS_FILE}; "
                             f"'{name}' needs shape {tuple(own.shape)}, found {tuple(state[name].shape) if name in state else 'nothing'}")
    model.load_state_dict({name: state[name] for name in model.state_dict()})
    return model


def _weights(path: Path, key: str) -> dict[str, Tensor]:
    if not path.exists():
        raise InputError(f"{key} is larger than 0, but {path} is missing. Put torchvision's vgg16 weights (vgg16-397923af.pth) there as "
                         f"{BACKBONE_FILE} and the lpips package's weights/v0.1/vgg.pth as {HEADS_FILE}, or set {key}=0")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file can raise nearly anything in the unpickler
        raise InputError(f"{path}: not a readable weight file ({type(error).__name__}); copy it again") from error
