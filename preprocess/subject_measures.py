"""What a configuration needs to know of a subject, measured: the box of its head, and which camera and sequence to hold out."""

from dataclasses import dataclass
from statistics import median

import torch
from jaxtyping import Float
from torch import Tensor

from lib.datasets.capture_check import face_bounds
from lib.datasets.head_capture import BLOCKS, HeadCapture
from lib.datasets.layout import JAW_ROWS, LANDMARK_COUNT
from lib.geometry.head_pose import HeadPose
from lib.geometry.tetmesh import BoundingBox

# The box reaches beyond the landmarks by these parts of the face's width (jaw end to jaw end): the landmarks are the same points in every 3DMM, while
# its vertices may be a face, a head or a bust. Chosen so that the box of config/demo_meshhead.yaml comes out, and a little more.
SIDES, ABOVE, BELOW, FRONT, BEHIND = 0.6, 0.8, 0.95, 0.25, 1.25
AROUND_VERTICES = 0.1  # the same parts: room around every vertex of the 3DMM
CHIN_ROW, NOSE_TIP_ROW, BROW_ROWS = 8, 30, slice(17, 27)
FRONTAL_DEG = 25.0  # a camera this close to straight ahead of the face is a frontal one
METRES = (0.05, 0.2)  # world units per canonical unit (a decimetre) where the world is in metres


@dataclass(frozen=True)
class Choice:
    """A name, or none, and why."""

    name: str | None
    reason: str


@dataclass(frozen=True)
class Measures:
    """`problems`: one line for each thing that cannot be right."""

    model_bbox: BoundingBox
    face: BoundingBox
    scale: float
    held_out_camera: Choice
    held_out_sequence: Choice
    problems: tuple[str, ...]

    @property
    def is_metric(self) -> bool:
        """Whether the world seems to be in metres."""
        return METRES[0] < self.scale < METRES[1]


def measure(capture: HeadCapture) -> Measures:
    """Measures over all frames."""
    head = HeadPose(torch.stack([capture.params[frame].pose for frame in capture.frames]),
                    torch.stack([capture.params[frame].scale for frame in capture.frames]))
    landmarks = head.to_canonical(torch.stack([capture.control_points[frame][:LANDMARK_COUNT] for frame in capture.frames]))
    bounds = face_bounds(capture, capture.frames)
    low, high = bounds.low.amin(dim=0), bounds.high.amax(dim=0)
    return Measures(
        model_bbox=_head_box(landmarks, low, high), face=_box(low, high), scale=median(float(scale) for scale in head.scale),
        held_out_camera=held_out_camera(capture, head), held_out_sequence=held_out_sequence(capture), problems=tuple(_axes(capture, landmarks)),
    )


def held_out_camera(capture: HeadCapture, head: HeadPose) -> Choice:
    """The most frontal camera that has neighbours on both sides, and that leaves another frontal one to train on."""
    cameras = capture.camera_ids
    if len(cameras) < 3:
        return Choice(None, f"none: {len(cameras)} camera{'s' if len(cameras) > 1 else ''} can spare none")
    centres = torch.stack([capture.camera(frame, cameras).centers() for frame in capture.frames])
    seen = torch.nn.functional.normalize(head.to_canonical(centres).median(dim=0).values, dim=1)  # from the head; its axes: x left, y up, z forward
    azimuth = torch.rad2deg(torch.atan2(seen[:, 0], seen[:, 2])).tolist()
    angle = torch.rad2deg(torch.acos(seen[:, 2].clamp(-1.0, 1.0))).tolist()
    outer = {azimuth.index(min(azimuth)), azimuth.index(max(azimuth))}
    frontal = [index for index in range(len(cameras)) if angle[index] <= FRONTAL_DEG]
    inner = sorted((index for index in range(len(cameras)) if index not in outer), key=lambda index: angle[index])
    chosen = next((index for index in inner if frontal != [index]), inner[0])
    why = f"{angle[chosen]:.0f}° from straight ahead of the face, with cameras on both sides of it"
    if chosen != inner[0]:
        why += f"; {cameras[inner[0]]} is the only one within {FRONTAL_DEG:g}° and is needed for training"
    return Choice(cameras[chosen], why)


def held_out_sequence(capture: HeadCapture) -> Choice:
    """The last sequence of frames.json, else the last of the blocks that stand in for sequences."""
    names = list(dict.fromkeys(capture.sequence_of.values()))
    if capture.folder.frames_path().exists():
        if len(names) > 1:
            return Choice(names[-1], f"the last of {len(names)} sequences in frames.json")
        return Choice(None, f"none: frames.json knows one sequence only, '{names[0]}'")
    blocks = min(BLOCKS, len(capture.frames))
    if blocks < 2:
        return Choice(None, "none: there is one frame only")
    return Choice(f"block_{blocks - 1}", f"the last of {blocks} contiguous parts of the frames, as there is no frames.json")


def _head_box(landmarks: Float[Tensor, "F 66 3"], low: Float[Tensor, "3"], high: Float[Tensor, "3"]) -> BoundingBox:
    jaw = landmarks[:, JAW_ROWS]
    width = float((jaw[:, -1] - jaw[:, 0]).norm(dim=1).median())
    first, last = landmarks.amin(dim=(0, 1)), landmarks.amax(dim=(0, 1))
    below, above = torch.tensor([SIDES, BELOW, BEHIND]), torch.tensor([SIDES, ABOVE, FRONT])
    low = torch.minimum(first - below * width, low - AROUND_VERTICES * width)
    high = torch.maximum(last + above * width, high + AROUND_VERTICES * width)
    return _box(torch.floor(low * 20) / 20, torch.ceil(high * 20) / 20)  # people read these numbers


def _box(low: Float[Tensor, "3"], high: Float[Tensor, "3"]) -> BoundingBox:
    x, y, z = ((round(a, 2), round(b, 2)) for a, b in zip(low.tolist(), high.tolist(), strict=True))
    return x, y, z


def _axes(capture: HeadCapture, landmarks: Float[Tensor, "F 66 3"]) -> list[str]:
    middle = landmarks.median(dim=0).values
    brows, jaw_ends = middle[BROW_ROWS].mean(dim=0), (middle[JAW_ROWS.start] + middle[JAW_ROWS.stop - 1]) / 2.0
    upright, forward = bool(brows[1] > middle[CHIN_ROW, 1]), bool(middle[NOSE_TIP_ROW, 2] > jaw_ends[2])
    if upright and forward:
        return []
    wrong = " and ".join(["the chin is above the brows"] * (not upright) + ["the nose is behind the jaw ends"] * (not forward))
    path = capture.folder.params_path(capture.frames[0])
    return [f"{path}: without head pose, {wrong}; expected canonical axes with y up and the face towards +z. "
            "Does 'pose' (rotation vector, translation) belong to lmk_3d.npy?"]
