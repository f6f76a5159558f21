"""What a real camera adds to a rendered picture: blur, a colour cast of its own, noise."""

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Sensor:
    """Strengths of the disturbances; all 0 is a perfect camera. The same seed disturbs alike."""

    noise: float = 0.0  # standard deviation in 8-bit levels
    blur: float = 0.0  # standard deviation of a Gaussian in pixels
    color: float = 0.0  # standard deviation of each camera's gain per channel about 1
    seed: int = 0

    def capture(self, rgb: NDArray[np.float32], camera: int, shot: int) -> NDArray[np.float32]:
        """One picture (H, W, 3) in [0,1] as camera number `camera` records it; noise differs from shot to shot."""
        if self.blur > 0:
            rgb = cv2.GaussianBlur(rgb, (0, 0), self.blur, borderType=cv2.BORDER_REPLICATE)
        if self.color > 0:
            rgb = rgb * self.gains(camera)
        if self.noise > 0:
            random = np.random.default_rng([self.seed, camera, shot])
            rgb = rgb + random.standard_normal(rgb.shape, dtype=np.float32) * np.float32(self.noise / 255.0)
        return rgb

    def gains(self, camera: int) -> NDArray[np.float32]:
        """Red, green and blue gain of one camera, the same in all its pictures."""
        return (1.0 + self.color * np.random.default_rng([self.seed, camera]).standard_normal(3)).clip(0.0).astype(np.float32)
