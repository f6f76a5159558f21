"""How good mattes without learned weights are, and how long they take: `python -m benchmarks.matting`, one JSON object.

Demo heads before procedural walls (matting_scenes.py), with noise, blur, a cast per camera, another exposure than that of the empty scene, a soft
shadow and JPEG. Per preset and background the mean IoU with the exact matte: `soft` is sum(min)/sum(max) of the two alphas, `hard` that of the
regions above 0.5; `least` is the worst hard one. `similar` are walls in the colour of the skin or the hair, reported by themselves; `estimated` is
without the empty scene, from five frames of one camera. Mattes count as they are stored, with 8 bits; JPEG of the mattes is left out.
Milliseconds are of one thread, without files.
"""

import argparse
import json
import platform
import time
from collections.abc import Iterable
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.matting_scenes import BACKGROUNDS, SIMILAR, Photograph, photograph, shoot
from lib.datasets.images import write_image
from preprocess.matting_classical import matte
from preprocess.matting_plate import NoEstimate, estimate_background
from preprocess.matting_sheet import Looked, draw_sheet

LOOKS = ("demo", "curly", "bob", "slick")
ESTIMATED_FROM = 5  # frames


def compare(alpha: NDArray[np.float32], truth: NDArray[np.float32]) -> tuple[float, float]:
    """Soft and hard IoU."""
    found, real = alpha > 0.5, truth > 0.5
    return float(np.minimum(alpha, truth).sum() / np.maximum(alpha, truth).sum()), float((found & real).sum() / (found | real).sum())


def matte_of(taken: Photograph, empty: NDArray[np.uint8]) -> tuple[NDArray[np.float32], float]:
    """Alpha as it is stored, and milliseconds."""
    picture, background = taken.picture.astype(np.float32) / 255.0, empty.astype(np.float32) / 255.0
    began = time.perf_counter()
    alpha = matte(picture, background)
    taken_ms = 1e3 * (time.perf_counter() - began)
    return np.round(alpha * 255.0) / np.float32(255.0), taken_ms


def summary(scores: Iterable[tuple[float, float]]) -> dict[str, float]:
    """Means, and the worst."""
    values = np.array(list(scores))
    return {"soft": round(float(values[:, 0].mean()), 4), "hard": round(float(values[:, 1].mean()), 4), "least": round(float(values[:, 1].min()), 4)}


def measure(size: int, looks: tuple[str, ...], rows: tuple[int, ...], frames: tuple[int, ...], sheet: Path | None) -> dict[str, object]:
    """All presets before all backgrounds at one size; draws one camera of each where `sheet` says."""
    scores: dict[tuple[str, str], list[tuple[float, float]]] = {}
    times, looked = [], []
    for look in looks:
        for frame in frames:
            for shot in shoot(look, size, frame, rows):
                for number, background in enumerate(BACKGROUNDS + SIMILAR):
                    taken = photograph(shot, background, frame)
                    alpha, milliseconds = matte_of(taken, taken.empty)
                    scores.setdefault((look, background), []).append(compare(alpha, taken.mask))
                    times.append(milliseconds)
                    if frame == frames[0] and shot.row == rows[number % len(rows)]:
                        looked.append(Looked(f"{look}, {background}, soft IoU {scores[look, background][-1][0]:.3f}",
                                             torch.from_numpy(taken.picture).permute(2, 0, 1), torch.from_numpy(alpha * 255.0).byte()))
    if sheet is not None:
        write_image(sheet, draw_sheet(looked))
    table = {look: {background: summary(scores[look, background]) for background in BACKGROUNDS + SIMILAR} for look in looks}
    return {
        "all": summary(score for (_, background), listed in scores.items() if background in BACKGROUNDS for score in listed),
        "similar": summary(score for (_, background), listed in scores.items() if background in SIMILAR for score in listed),
        "table": table, "milliseconds": round(float(np.median(times)), 1),
    }


def measure_estimated(size: int, looks: tuple[str, ...], row: int) -> dict[str, object]:
    """Without the empty scene."""
    table: dict[str, dict[str, object]] = {}
    for look in looks:
        shots = [shoot(look, size, frame, (row,))[0] for frame in range(ESTIMATED_FROM)]
        for background in BACKGROUNDS:
            takes = [photograph(shot, background, frame) for frame, shot in enumerate(shots)]
            try:
                empty = estimate_background([taken.picture for taken in takes])
            except NoEstimate as error:
                table.setdefault(look, {})[background] = f"refused: {error}"
            else:
                table.setdefault(look, {})[background] = summary(compare(matte_of(taken, empty)[0], taken.mask) for taken in takes)
    return table


def main(arguments: list[str] | None = None) -> None:
    """Prints one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[256, 512], help="pixels (default: %(default)s)")
    parser.add_argument("--timed", type=int, default=2048, help="pixels of one picture that is only timed (default: %(default)s)")
    parser.add_argument("--sheets", type=Path, metavar="FOLDER", help="draws the mattes there, one picture per size")
    parser.add_argument("--small", action="store_true", help="one preset, camera and frame at 96 pixels")
    options = parser.parse_args(arguments)
    looks, rows, frames, sizes, timed = LOOKS, (1, 8, 14), (1, 3), options.sizes, options.timed
    if options.small:
        looks, rows, frames, sizes, timed = ("demo",), (8,), (1,), [96], 192
    cv2.setNumThreads(1)
    big = shoot(looks[0], timed, frames[0], (8,))[0]
    taken = photograph(big, "blotches", frames[0])
    result = {
        "processor": platform.processor() or platform.machine(), "opencv": cv2.__version__,
        "presets": looks, "cameras": len(rows), "frames": len(frames),
        "sizes": {str(size): measure(size, looks, rows, frames, options.sheets and options.sheets / f"mattes_{size}.png") for size in sizes},
        "estimated": {str(sizes[0]): measure_estimated(sizes[0], looks, 8)},
        f"milliseconds_{timed}": round(min(matte_of(taken, taken.empty)[1] for _ in range(3)), 1),
    }
    print(json.dumps(result, indent=1), flush=True)


if __name__ == "__main__":
    main()
