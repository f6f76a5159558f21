"""2D detections of a subject as an exact or a noisy detector would write them."""

from pathlib import Path

import numpy as np

from lib.datasets.head_capture import HeadCapture, Picture
from lib.datasets.layout import LANDMARK_COUNT
from preprocess.check_subject import whole_folder


def write_detections(folder: Path, size: int | None = None, noise: float = 0.0) -> None:
    """Landmarks in pixels of pictures of `size` (default: as large as they are); `noise`: pixels at 512, standard deviation."""
    capture, random = HeadCapture(whole_folder(folder)), np.random.default_rng(0)
    original = capture.config.original_resolution
    for picture in (Picture(frame, camera) for frame in capture.frames for camera in capture.camera_ids):
        camera = capture.camera(picture.frame, [picture.camera]).resized(size or original, size or original)
        points = camera.project(capture.control_points[picture.frame][None, :LANDMARK_COUNT])[0].numpy()
        points = points + noise * camera.width / 512 * random.standard_normal(points.shape)
        path = capture.folder.detections_path(picture.frame, picture.camera)
        path.parent.mkdir(parents=True, exist_ok=True)
        # The 68-point set, whose outer mouth corners training does not know.
        np.save(path, np.insert(np.concatenate([points, np.ones((LANDMARK_COUNT, 1))], axis=1), [48, 53], 0.5, axis=0))
