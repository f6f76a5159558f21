"""Finds 68 landmarks in pictures with MediaPipe; runs in an environment of its own, which need not hold this project.

    python3 -m venv mediapipe_env && mediapipe_env/bin/pip install mediapipe==0.10.21

Versions from 0.10.5 to 0.10.21 bring their models in the wheel (Apache-2.0); later ones leave `mediapipe.solutions` out and want a download.
Protocol: the first line on stdout is {"detector": name and version}; then, for every path of a picture that comes as a line on stdin, one
line {"points": 68 times [x, y, score], or null}, x and y as parts of width and height. Whatever libraries print goes to stderr.

Every picture is looked at twice, the second time mirrored. Points are the mean of both, their score is how well both agree: MediaPipe
itself tells no confidence of single points. Where the two do not agree, nothing was found: from the side MediaPipe turns faces to the front.
"""

import json
import os
import sys
from typing import Any

import numpy as np
from numpy.typing import NDArray

# The points of the 68-point (iBUG) set on MediaPipe's face mesh. "Right" is the person's right: left in the picture.
# Derived from the contours of mediapipe.solutions.face_mesh_connections (FACEMESH_FACE_OVAL, ..._EYEBROW, ..._EYE, ..._LIPS): corners and
# centre lines are the ends and middles of these contours; points between them are those at the same share of the way along the contour of
# the canonical face mesh (lids: a third and two thirds; inner lips: quarters). Two numbers: the point halfway between the two.
# Approximations: the jaw line (0-16) follows the face oval of the mesh, which is a line on the skin, where iBUG's follows the visible
# outline (from the side the two part); the brows (17-26) are the upper edge of the mesh's; the wings of the nose (31, 35) lie beside the mesh's.
# Measured on 120 renderings (512², three demo heads, cameras within 40° of the front), median distance from the 3D landmarks of the model:
# eyes 3.1 px, lips 3.4, nose 3.5, jaw 8, brows 13 (the model's lie on the ridge above the painted brow).
RIGHT_JAW = ((127,), (234,), (93,), (132,), (172,), (150,), (149,), (148,))
RIGHT_BROW = ((70,), (63,), (105,), (66,), (107,))
BRIDGE = ((168,), (6, 197), (195,), (4,))
RIGHT_NOSTRIL = ((98,), (97,))
RIGHT_EYE = ((33,), (160,), (158,), (133,), (153,), (144,))  # outer corner, upper lid, inner corner, lower lid
RIGHT_UPPER_LIP, RIGHT_LOWER_LIP = ((61,), (40,), (37,)), ((84,), (91,))
RIGHT_INNER_LIP, RIGHT_INNER_LOWER_LIP = ((78,), (81,)), ((178,),)
LEFT_JAW = ((377,), (378,), (379,), (397,), (361,), (323,), (454,), (356,))
LEFT_BROW = ((336,), (296,), (334,), (293,), (300,))
LEFT_NOSTRIL = ((326,), (327,))
LEFT_EYE = ((362,), (385,), (387,), (263,), (373,), (380,))  # inner corner, upper lid, outer corner, lower lid
LEFT_UPPER_LIP, LEFT_LOWER_LIP = ((267,), (270,), (291,)), ((321,), (314,))
LEFT_INNER_LIP, LEFT_INNER_LOWER_LIP = ((311,), (308,)), ((402,),)
MESH_POINTS: tuple[tuple[int, ...], ...] = (
    *RIGHT_JAW, (152,), *LEFT_JAW,  # 0-16
    *RIGHT_BROW, *LEFT_BROW,  # 17-26
    *BRIDGE, *RIGHT_NOSTRIL, (2,), *LEFT_NOSTRIL,  # 27-35
    *RIGHT_EYE, *LEFT_EYE,  # 36-47
    *RIGHT_UPPER_LIP, (0,), *LEFT_UPPER_LIP, *LEFT_LOWER_LIP, (17,), *RIGHT_LOWER_LIP,  # 48-59
    *RIGHT_INNER_LIP, (13,), *LEFT_INNER_LIP, *LEFT_INNER_LOWER_LIP, (14,), *RIGHT_INNER_LOWER_LIP,  # 60-67
)
# Which point of the 68 is which in a mirrored face.
MIRRORED = (
    *range(16, -1, -1), *range(26, 16, -1), 27, 28, 29, 30, 35, 34, 33, 32, 31, 45, 44, 43, 42, 47, 46, 39, 38, 37, 36, 41, 40,
    54, 53, 52, 51, 50, 49, 48, 59, 58, 57, 56, 55, 64, 63, 62, 61, 60, 67, 66, 65,
)
LEAST_CONFIDENCE = 0.2  # of the face detector: at its usual 0.5 it misses faces seen from the side
# Parts of the face's size. Points that both looks place this far apart have score 0.5.
HALF_TRUSTED = 0.03
LEAST_SCORE = 0.55  # mean of all points: pictures of 512 pixels of demo heads with more had errors of 4 to 10 pixels, those with less of up to 21


def main() -> None:
    """Answers until stdin ends."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8", buffering=1)
    os.dup2(2, 1)
    import cv2
    import mediapipe

    mesh = mediapipe.solutions.face_mesh.FaceMesh(
        static_image_mode=True, max_num_faces=1, refine_landmarks=True, min_detection_confidence=LEAST_CONFIDENCE)
    print(json.dumps({"detector": f"mediapipe {mediapipe.__version__} face mesh"}), file=answers)
    for line in sys.stdin.buffer:
        picture = cv2.imread(os.fsdecode(line.removesuffix(b"\n")))
        points = None
        if picture is not None:  # else: who asked sees it too, and says why
            pixels = cv2.cvtColor(picture, cv2.COLOR_BGR2RGB)
            points = agreed(find(mesh, pixels), find(mesh, pixels[:, ::-1].copy()))
        print(json.dumps({"points": points}), file=answers)


def find(mesh: Any, pixels: NDArray[np.uint8]) -> NDArray[np.float64] | None:
    """Points (68,2) as parts of width and height, or None."""
    faces = mesh.process(pixels).multi_face_landmarks
    if not faces:
        return None
    points = np.array([(point.x, point.y) for point in faces[0].landmark])
    return np.stack([points[list(rows)].mean(axis=0) for rows in MESH_POINTS])


def agreed(seen: NDArray[np.float64] | None, mirrored: NDArray[np.float64] | None) -> list[list[float]] | None:
    """68 times [x, y, score] of what was found in a picture and in its mirror image, (68,2) each; None where they do not agree."""
    if seen is None or mirrored is None:
        return None
    mirrored = np.stack([1.0 - mirrored[:, 0], mirrored[:, 1]], axis=1)[list(MIRRORED)]
    points = (seen + mirrored) / 2.0
    apart = np.linalg.norm(seen - mirrored, axis=1) / max(float(np.ptp(points, axis=0).max()), 1e-6)
    scores = 1.0 / (1.0 + (apart / HALF_TRUSTED) ** 2)
    return np.concatenate([points, scores[:, None]], axis=1).tolist() if scores.mean() >= LEAST_SCORE else None


if __name__ == "__main__":
    main()
