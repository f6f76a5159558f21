"""Frames whose 3DMM parameters do not belong to their points or to the other frames; no picture is looked at."""

from statistics import mean

import roma
import torch
from jaxtyping import Float
from torch import Tensor

from lib.datasets.capture_check import pose_jumps
from lib.datasets.head_capture import HeadCapture
from lib.datasets.layout import LANDMARK_COUNT, LOWER_LIP_ROW, MOUTH_ROWS, UPPER_LIP_ROW
from lib.geometry.head_pose import HeadPose
from preprocess.check_detections import INNER_ROWS
from preprocess.check_findings import Finding, numbers
from preprocess.check_landmarks import LandmarkOrder, landmark_order

LARGEST_JUMP = 1.0  # canonical units, half a head
LARGEST_ROTATION_JUMP = 40.0  # degrees
# Expressions move points of the face, but hardly the whole face against its pose.
LARGEST_TILT, LARGEST_OFFSET = 6.0, 0.15  # degrees, canonical units
LARGEST_SHAPE = 0.3  # canonical units, root mean square over the face after the rigid part: more is no expression
LARGEST_SCALE = 1.1  # factor between frames of one person
LARGEST_SLIP = 0.15  # canonical units: a landmark moves that little against the vertex next to it
TELLING_FRAMES = 5  # fewer say nothing about what is usual
FAR = 4.0  # times the largest of the rest: an expression so large is looked at
REWEIGHTINGS = 8


def tracking_findings(capture: HeadCapture) -> list[Finding]:
    """All of this file."""
    return [*order_findings(capture), *slip_findings(capture), *pose_findings(capture), *outlier_findings(capture), *jump_findings(capture)]


def canonical_points(capture: HeadCapture, frames: list[str], poses_of: list[str] | None = None) -> Float[Tensor, "F L 3"]:
    """Control points in canonical units; `poses_of`: with the pose and scale of these frames instead of their own."""
    params = [capture.params[frame] for frame in poses_of or frames]
    head = HeadPose(torch.stack([one.pose for one in params]), torch.stack([one.scale for one in params]))
    return head.to_canonical(torch.stack([capture.control_points[frame] for frame in frames]))


def order_findings(capture: HeadCapture) -> list[Finding]:
    """Rows of lmk_3d.npy that are not those of the 68-point set without its outer mouth corners."""
    landmarks = canonical_points(capture, capture.frames)[:, :LANDMARK_COUNT]
    # An open mouth moves the lower lip to where others have their chin.
    opening = (landmarks[:, UPPER_LIP_ROW] - landmarks[:, LOWER_LIP_ROW]).norm(dim=1)
    order = landmark_order(landmarks[opening <= opening.median()].median(dim=0).values)
    message = _order_message(order)
    if message is None:
        return []
    path = capture.folder.landmarks_path(capture.frames[0])
    return [Finding("landmark_order", f"{path} and those of the other frames: {message} (README: 68-point set without rows 48 and 54)", (str(path),),
                    numbers=numbers(error=order.error / 100.0, expected_error=order.expected_error / 100.0, misplaced_rows=len(order.misplaced)))]


def _order_message(order: LandmarkOrder) -> str | None:
    if order.mirrored:
        return "left and right of the landmarks are exchanged: rows of the right side of the face lie on the left, or the world is mirrored"
    if order.error < order.expected_error:
        a, b = order.removed
        return (f"rows {a} and {b} of the 68-point set seem to be missing instead of 48 and 54, the outer mouth corners: mean distance from a "
                f"typical face {order.error / 100.0:.3f} instead of {order.expected_error / 100.0:.3f} canonical units")
    if len(order.misplaced) >= 2:
        where = ", ".join(f"{row} where {other} belongs" for row, other in order.misplaced[:6])
        return f"{len(order.misplaced)} rows do not lie where the 68-point set has them: row {where}" + (", ..." if len(order.misplaced) > 6 else "")
    return None


def slip_findings(capture: HeadCapture) -> list[Finding]:
    """Frames whose lmk_3d.npy has left the vertices that are next to its landmarks in the other frames."""
    points = canonical_points(capture, capture.frames)
    vertices, landmarks = points[:, LANDMARK_COUNT:], points[:, INNER_ROWS]
    typical = points.median(dim=0).values
    nearest = torch.cdist(typical[INNER_ROWS], typical[LANDMARK_COUNT:]).argmin(dim=1)
    offsets = landmarks - vertices[:, nearest]
    slips = (offsets - offsets.median(dim=0).values).norm(dim=2)
    rigid = slips[:, :MOUTH_ROWS.start - INNER_ROWS.start]  # the vertex next to a lip may be that of the other lip
    off = (slips.median(dim=1).values > LARGEST_SLIP) | ((rigid > LARGEST_SLIP).sum(dim=1) >= 2)
    return [Finding("landmarks_off_vertices",
                    f"{capture.folder.landmarks_path(frame)}: landmarks of frame {frame} lie {float(slips[row].max()):.2f} canonical units from "
                    "where they are on vertices.npy in the other frames; both files of a frame must come from one fit, with the same rows",
                    (str(capture.folder.landmarks_path(frame)),), (frame,), numbers=numbers(largest=float(slips[row].max())))
            for row, frame in enumerate(capture.frames) if off[row]]


def pose_findings(capture: HeadCapture) -> list[Finding]:
    """Frames whose pose is not that of their points, and whose it is."""
    points = canonical_points(capture, capture.frames)
    typical = points.median(dim=0).values
    tilts, offsets = rigid_part(points, typical)
    found = []
    off = ((tilts > LARGEST_TILT) | (offsets > LARGEST_OFFSET)).nonzero()[:, 0].tolist()
    for row in off if len(off) <= len(capture.frames) // 2 else []:  # else the typical face is none
        frame = capture.frames[row]
        tried = canonical_points(capture, [frame] * len(capture.frames), capture.frames)
        other_tilts, other_offsets = rigid_part(tried, typical)
        best = int((other_tilts / LARGEST_TILT + other_offsets / LARGEST_OFFSET).argmin())
        fits = best != row and float(other_tilts[best]) < LARGEST_TILT / 2 and float(other_offsets[best]) < LARGEST_OFFSET / 2
        path = capture.folder.params_path(frame)
        whose = f"it fits with the pose of frame {capture.frames[best]}: is this params.npz of another frame?" if fits else \
            "is 'pose' in other units or of another fit than lmk_3d.npy and vertices.npy?"
        found.append(Finding(
            "pose_mismatch", f"{path}: with the pose of frame {frame} its face stands {float(tilts[row]):.0f} degrees and {float(offsets[row]):.2f} "
            f"canonical units off where it stands in the other frames; {whose}", (str(path),),
            (frame, capture.frames[best]) if fits else (frame,), numbers=numbers(degrees=float(tilts[row]), offset=float(offsets[row]))))
    return found


def outlier_findings(capture: HeadCapture) -> list[Finding]:
    """Frames whose shape, scale or expression is far from what the others have."""
    if len(capture.frames) < TELLING_FRAMES:
        return []
    frames, found = capture.frames, []
    points = canonical_points(capture, frames)
    typical = points.median(dim=0).values
    shapes = (points - typical).square().sum(dim=2).mean(dim=1).sqrt()
    scales = torch.cat([capture.params[frame].scale for frame in frames])
    factors = scales / scales.median()
    expressions = torch.stack([capture.params[frame].expression for frame in frames])
    sizes = (expressions - expressions.median(dim=0).values).norm(dim=1)
    usual = sizes.sort().values[:-max(1, len(frames) // 50)].max()
    for row, frame in enumerate(frames):
        path, factor = str(capture.folder.params_path(frame)), float(factors[row])
        if max(factor, 1.0 / factor) > LARGEST_SCALE:
            found.append(Finding("scale_outlier", f"{path}: 'scale' of frame {frame} is {factor:.2f} times that of the other frames (median "
                                 f"{float(scales.median()):.4g}); one person has one scale: fit this frame again", (path,), (frame,),
                                 numbers=numbers(factor=factor)))
        elif float(shapes[row]) > LARGEST_SHAPE:
            found.append(Finding("shape_outlier", f"{path}: the face of frame {frame} differs from the typical one by {float(shapes[row]):.2f} "
                                 "canonical units (root mean square), more than any expression: fit it again, or remove it", (path,), (frame,),
                                 numbers=numbers(units=float(shapes[row]))))
        if float(sizes[row]) > FAR * float(usual):
            found.append(Finding("expression_outlier", f"look at frame {frame}: its expression is {float(sizes[row] / usual):.1f} times as far from "
                                 "the median as any of the usual ones", (path,), (frame,), numbers=numbers(times=float(sizes[row] / usual)),
                                 is_problem=False))
    return found


def jump_findings(capture: HeadCapture) -> list[Finding]:
    """Neighbouring frames between which the head jumps. No problem by itself: without frames.json a cut between sequences looks the same."""
    jumps = sorted(pose_jumps(capture), key=lambda jump: -jump.distance)
    if not jumps:
        return []
    print(f"head movement between neighbouring frames: {mean(jump.distance for jump in jumps):.2f} canonical units on average, "
          f"largest {jumps[0].distance:.2f} ({jumps[0].before} to {jumps[0].after})")
    return [Finding("pose_jump", f"look at frames {jump.before} and {jump.after}: the head jumps by {jump.distance:.2f} canonical units and turns by "
                    f"{jump.degrees:.0f} degrees", frames=(jump.before, jump.after), is_problem=False,
                    numbers=numbers(distance=jump.distance, degrees=jump.degrees))
            for jump in jumps if jump.distance > LARGEST_JUMP or jump.degrees > LARGEST_ROTATION_JUMP]


def rigid_part(points: Float[Tensor, "F L 3"], typical: Float[Tensor, "L 3"]) -> tuple[Float[Tensor, "F"], Float[Tensor, "F"]]:
    """Degrees by which whole faces are turned against the typical one, and how far their centres are moved; robust to moving mouths."""
    places = typical.expand_as(points)
    weight = torch.ones_like(points[..., :1])
    for _ in range(REWEIGHTINGS):
        weight = weight / weight.sum(dim=1, keepdim=True)
        a, b = places - (weight * places).sum(dim=1, keepdim=True), points - (weight * points).sum(dim=1, keepdim=True)
        rotation = roma.special_procrustes((weight * b).transpose(1, 2) @ a)
        shift = (weight * (points - places @ rotation.transpose(1, 2))).sum(dim=1, keepdim=True)
        weight = 1.0 / ((places @ rotation.transpose(1, 2) + shift - points).norm(dim=2, keepdim=True) + 0.02)
    centre = typical.mean(dim=0)
    moved = (rotation @ centre + shift[:, 0]) - centre
    return torch.rad2deg(roma.rotmat_to_rotvec(rotation).norm(dim=1)), moved.norm(dim=1)
