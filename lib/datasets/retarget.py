"""From the expressions of a driver to those of an avatar: both are apart from their own neutral face, and an avatar knows only what it was shown."""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from lib.tensors import TensorBundle


@dataclass(frozen=True)
class TrainedFace(TensorBundle):
    """What the training has seen: per coefficient the lowest, highest and median value; `scale`: world units per canonical unit; `model`: name
    and version of the 3DMM, or ()."""

    lowest: Float[Tensor, "E"]
    highest: Float[Tensor, "E"]
    median: Float[Tensor, "E"]
    scale: Float[Tensor, "1"]
    model: tuple[str, ...] = ()

    def clamp(self, expressions: Float[Tensor, "T E"]) -> Float[Tensor, "T E"]:
        """Coefficients within what was seen."""
        return expressions.clamp(self.lowest, self.highest)


def trained_face(expressions: Float[Tensor, "F E"], scales: Float[Tensor, "F 1"]) -> TrainedFace:
    """Of the frames of a training."""
    return TrainedFace(expressions.amin(dim=0), expressions.amax(dim=0), neutral(expressions), scales.median(dim=0).values)


def neutral(expressions: Float[Tensor, "F E"]) -> Float[Tensor, "E"]:
    """The usual face of a sequence: the median of every coefficient. People talk and smile, but mostly are about to."""
    return expressions.median(dim=0).values


def transfer(
    expressions: Float[Tensor, "T E"], driver_neutral: Float[Tensor, "E"] | None, avatar_neutral: Float[Tensor, "E"] | None, gain: float
) -> Float[Tensor, "T E"]:
    """avatar neutral + gain · (expression - driver neutral); None stands for zero. Gain 1 without neutral faces changes no bit."""
    apart = expressions if driver_neutral is None else expressions - driver_neutral
    apart = apart if gain == 1.0 else gain * apart
    return apart if avatar_neutral is None else avatar_neutral + apart
