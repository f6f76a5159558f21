"""What stands behind the demo head in raw captures: another wall for each camera, with gradients, stripes and things."""

import cv2
import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray

STRIPES = (3.0, 9.0)  # how many across a picture
THINGS = 9
SPOTS = 4.0  # standard deviation of the plaster in 8-bit levels


def wall(seed: int, camera: int, width: int, height: int) -> Float[NDArray, "H W 3"]:
    """RGB in [0,1]; the same scene at every size."""
    random = np.random.default_rng([seed, camera, 77])
    y, x = np.mgrid[:height, :width].astype(np.float32)
    x, y = (x + 0.5) / height, (y + 0.5) / height  # in picture heights
    base, change = random.uniform(0.3, 0.75, 3), random.uniform(-0.35, 0.35, (2, 3))
    image = base + x[..., None] * change[0] + y[..., None] * change[1]
    angle, count = random.uniform(0.0, np.pi), random.uniform(*STRIPES)
    wave = np.sin(2 * np.pi * count * (np.cos(angle) * x + np.sin(angle) * y))
    image += 0.07 * np.tanh(6.0 * wave)[..., None] * random.uniform(0.3, 1.0, 3)
    plaster = cv2.resize(random.standard_normal((64, 44, 1)).astype(np.float32), (width, height), interpolation=cv2.INTER_CUBIC)
    image = (image + SPOTS / 255.0 * plaster[..., None]).astype(np.float32)
    for _ in range(THINGS):
        _draw_thing(image, random)
    return np.clip(image, 0.02, 0.98)


def _draw_thing(image: Float[NDArray, "H W 3"], random: np.random.Generator) -> None:
    """A box or a ball of one colour, some of them near to skin or hair."""
    height, width = image.shape[:2]
    center = random.uniform(0.0, 1.0, 2) * (width, height)
    extent = random.uniform(0.03, 0.16, 2) * height
    color = random.choice([random.uniform(0.1, 0.9, 3), (0.72, 0.54, 0.45), (0.18, 0.13, 0.10)], p=[0.6, 0.2, 0.2])
    shift, angle = 4, float(random.uniform(0.0, 180.0))  # OpenCV draws in 16ths of a pixel
    if random.uniform() < 0.5:
        corners = cv2.boxPoints(((float(center[0]), float(center[1])), (float(extent[0]), float(extent[1])), angle))
        cv2.fillConvexPoly(image, np.rint(corners * 2**shift).astype(np.int32), color.tolist(), cv2.LINE_AA, shift)
    else:
        at, axes = np.rint(center * 2**shift).astype(int).tolist(), np.rint(extent / 2 * 2**shift).astype(int).tolist()
        cv2.ellipse(image, at, axes, angle, 0.0, 360.0, color.tolist(), -1, cv2.LINE_AA, shift)
