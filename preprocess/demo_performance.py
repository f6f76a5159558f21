"""What the demo head performs: named sequences of smooth expressions and head motion, fixed by a seed."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from lib.geometry.head_pose import HeadPose
from preprocess.demo_head import DemoHead

SCALE_M = 0.1  # world metres per canonical unit

# What a gesture is made of; sequences share these and differ in which they use and when.
GESTURES: dict[str, dict[str, float]] = {
    "blink": {"eyeBlink": 1.0},
    "wide": {"eyeWide": 0.9, "browInnerUp": 0.5, "browOuterUp": 0.6},
    "look_left": {"eyeLookOut_L": 0.9, "eyeLookIn_R": 0.9},
    "look_right": {"eyeLookIn_L": 0.9, "eyeLookOut_R": 0.9},
    "look_down": {"eyeLookDown": 0.8},
    "open": {"jawOpen": 1.0},
    "smile": {"mouthSmile": 0.9, "cheekSquint": 0.5},
    "pucker": {"mouthPucker": 0.9},
    "funnel": {"mouthFunnel": 0.8, "jawOpen": 0.25},
    "stretch": {"mouthStretch": 0.6, "mouthLowerDown": 0.7},
    "frown": {"mouthFrown": 0.8, "browDown": 0.8},
    "sneer": {"noseSneer": 0.7, "mouthUpperUp": 0.6},
    "jaw_left": {"jawLeft": 0.7},
    "puff": {"cheekPuff": 0.7},
}


@dataclass(frozen=True)
class Sequence:
    """Which gestures occur, with how much head motion (radians, metres)."""

    name: str
    gestures: tuple[str, ...]
    rotation: float
    translation: float


SEQUENCES = (
    Sequence("EXP-1-head", ("blink", "look_left", "look_right", "smile"), 0.28, 0.012),
    Sequence("EXP-2-eyes", ("blink", "wide", "look_left", "look_right", "look_down", "frown"), 0.06, 0.004),
    Sequence("EXP-5-mouth", ("open", "pucker", "funnel", "stretch", "jaw_left", "puff", "blink"), 0.08, 0.005),
    Sequence("EMO-1-shout+laugh", ("open", "smile", "stretch", "sneer", "wide", "frown"), 0.16, 0.010),
    Sequence("SEN-01-talk", ("open", "pucker", "funnel", "smile", "stretch", "blink", "look_left"), 0.14, 0.006),
)


@dataclass(frozen=True)
class Moment:
    """The head at one instant."""

    expression: Float[Tensor, "E"]
    head: HeadPose


class Performance:
    """A smooth, endless performance of one sequence, fixed by the seed."""

    def __init__(self, head: DemoHead, sequence: Sequence, seed: int) -> None:
        random = np.random.default_rng([seed, *sequence.name.encode()])
        count = len(sequence.gestures)
        self.shapes = torch.stack([head.coefficients(GESTURES[name]) for name in sequence.gestures])
        self.frequency = random.uniform(0.35, 0.8, (2, count))  # Hz
        self.phase = random.uniform(0.0, 2 * np.pi, (2, count))
        self.head_frequency, self.head_phase = random.uniform(0.15, 0.45, 6), random.uniform(0.0, 2 * np.pi, 6)
        self.head_amplitude = np.array([0.5, 1.0, 0.4]) * sequence.rotation, np.full(3, sequence.translation)

    def at(self, time: float) -> Moment:
        """Expression coefficients in about [0,1] and head pose `time` seconds after the start."""
        wave = np.sin(2 * np.pi * self.frequency * time + self.phase)
        activation = np.clip(0.85 * wave[0] + 0.5 * wave[1], 0.0, 1.0)
        smooth = activation * activation * (3.0 - 2.0 * activation)
        expression = (torch.from_numpy(smooth).float() @ self.shapes).clamp(0.0, 1.0)
        motion = np.sin(2 * np.pi * self.head_frequency * time + self.head_phase)
        pose = np.concatenate([motion[:3] * self.head_amplitude[0], motion[3:] * self.head_amplitude[1]])
        return Moment(expression, HeadPose(torch.from_numpy(pose).float(), torch.tensor([SCALE_M])))
