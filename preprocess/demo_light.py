"""The light of the demo studio: it travels with the room, so a turning head changes its shading."""

import torch
from jaxtyping import Float
from torch import Tensor

# (direction towards the light, colour); ambient light depends on how far a surface faces up.
LIGHTS = (((-0.55, 0.45, 0.70), (0.62, 0.59, 0.55)), ((0.80, 0.10, 0.45), (0.24, 0.26, 0.30)), ((0.0, 0.2, -1.0), (0.20, 0.20, 0.22)))
SKY, GROUND = (0.46, 0.46, 0.48), (0.26, 0.25, 0.25)


def light_at(normal: Float[Tensor, "K 3"]) -> Float[Tensor, "K 3"]:
    """Light that arrives at a diffuse surface with these unit normals."""
    height = 0.5 + 0.5 * normal[:, 1:2]
    light = height * normal.new_tensor(SKY) + (1.0 - height) * normal.new_tensor(GROUND)
    for direction, strength in LIGHTS:
        towards = torch.nn.functional.normalize(normal.new_tensor(direction), dim=0)
        light = light + (normal @ towards).clamp(min=0.0)[:, None] * normal.new_tensor(strength)
    return light
