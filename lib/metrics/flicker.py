"""How much a sequence of pictures trembles."""

from jaxtyping import Float
from torch import Tensor


def flicker(
    image: Float[Tensor, "B 3 H W"], previous: Float[Tensor, "B 3 H W"], target: Float[Tensor, "B 3 H W"], previous_target: Float[Tensor, "B 3 H W"],
) -> Float[Tensor, "B H W"]:
    """Difference between the change of a picture since the frame before and that of the truth: absolute, mean over channels, pixel by pixel."""
    return ((image - previous) - (target - previous_target)).abs().mean(dim=1)


def jitter(image: Float[Tensor, "B 3 H W"], previous: Float[Tensor, "B 3 H W"], earlier: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B"]:
    """Without a truth: mean absolute second difference of three frames, halved; what changes evenly has none, a frame that stands out by d has d."""
    return 0.5 * (image - 2.0 * previous + earlier).abs().mean(dim=(1, 2, 3))
