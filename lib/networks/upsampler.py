"""The x4 super-resolution network of Gaussian Head Avatar (published name: Upsampler)."""

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from lib.config import Config
from lib.networks.norm_layers import norm_relu, norm_relu_grow, norm_relu_show
from lib.networks.precision import Precision

SCALE = 4


class UpsamplerConfig(Config):
    """Section `supresmodule`."""

    input_dim: int = Field(32, gt=0, description="feature channels in")
    output_dim: int = Field(3, gt=0, description="image channels out")
    network_capacity: int = Field(64, gt=0, description="width c of the last level; the first has 4c")
    skip: bool = Field(False, description=(
        "add what the network makes, -1 to 1, to the first channels upsampled (published: the network alone): starts as these, keeps colours"))


class Upsampler(nn.Module):
    """Feature image (h, w) -> RGB in [0,1] at (4h, 4w).

    Two 3x3 convolutions to 4c channels, then twice bilinear x2 and two convolutions, halving to 2c and c; instance
    norm and ReLU after each; a 1x1 convolution and a sigmoid. Instance norm lets no colour through that is not relative to its picture:
    with `skip` the picture is 2 sigmoid - 1 added to the first channels, bilinearly upsampled; at first exactly these. In [0,1] when
    evaluated; while training what lies outside still has a gradient.

    precision: `highest` computes in the type of the weights; `high` stores activations and multiplies in bfloat16, channels-last, with
    what stands between convolutions fused (norm_layers.py): as exact as eager bfloat16 autocast, or more. Weights and their gradients
    keep their type, pictures are float32. May be set at any time; checkpoints know nothing of it.
    """

    def __init__(self, config: UpsamplerConfig, precision: Precision = "highest") -> None:
        super().__init__()
        self.precision, self.skip = precision, config.skip
        c = config.network_capacity
        self.entry = _double_convolution(config.input_dim, 4 * c, 4 * c)
        self.up1 = _double_convolution(4 * c, 2 * c, 2 * c)
        self.up2 = _double_convolution(2 * c, c, c)
        self.exit = nn.Conv2d(c, config.output_dim, kernel_size=1)
        self.grow = nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True)
        if config.skip:
            nn.init.zeros_(self.exit.weight)
            nn.init.zeros_(self.exit.bias)

    def forward(self, features: Float[Tensor, "B C h w"]) -> Float[Tensor, "B O H W"]:
        """`O` channels in [0,1], four times larger."""
        image = self._fused(features, torch.bfloat16) if self.precision == "high" else self._plain(features)
        if not self.skip:
            return image
        smooth = features[:, :image.shape[1]].to(image.dtype)
        image = nn.functional.interpolate(smooth, scale_factor=SCALE, mode="bilinear", align_corners=False) + (2.0 * image - 1.0)
        return image if self.training else image.clamp(0.0, 1.0)

    def _plain(self, features: Float[Tensor, "B C h w"]) -> Float[Tensor, "B O H W"]:
        hidden = self.entry(features)
        hidden = self.up1(self.grow(hidden))
        hidden = self.up2(self.grow(hidden))
        return self.exit(hidden).sigmoid()

    def _fused(self, features: Float[Tensor, "B C h w"], dtype: torch.dtype) -> Float[Tensor, "B O H W"]:
        """The same with activations of a type. Each is let go before the next but one is made."""
        hidden = features.to(dtype=dtype, memory_format=torch.channels_last)
        for level in (self.entry, self.up1, self.up2):
            hidden = _convolved(level[0], hidden)
            hidden = norm_relu(hidden)
            hidden = _convolved(level[3], hidden)
            if level is not self.up2:
                hidden = norm_relu_grow(hidden)
        return norm_relu_show(hidden, self.exit.weight.flatten(1), self.exit.bias)


def _convolved(layer: nn.Conv2d, x: Float[Tensor, "B C h w"]) -> Float[Tensor, "B D h w"]:
    """In the type of x, channels-last."""
    return nn.functional.conv2d(x, layer.weight.to(dtype=x.dtype, memory_format=torch.channels_last), padding=1)


def _double_convolution(width: int, middle: int, out: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(width, middle, kernel_size=3, padding=1, bias=False), nn.InstanceNorm2d(middle), nn.ReLU(inplace=True),
        nn.Conv2d(middle, out, kernel_size=3, padding=1, bias=False), nn.InstanceNorm2d(out), nn.ReLU(inplace=True),
    )
