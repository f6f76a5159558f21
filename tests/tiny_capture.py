"""Raw captures small enough to make in a test: the demo head filmed at 64 pixels, and videos of one grey a frame."""

import functools
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from preprocess.demo_capture import Filming, film
from preprocess.demo_presets import PRESETS
from preprocess.demo_subject import CAMERA_IDS
from preprocess.nersemble import Extraction

CAMERAS = (CAMERA_IDS[5], CAMERA_IDS[9])
SEQUENCES = ("EXP-2-eyes", "EMO-1-shout+laugh")
FRAMES, STEP, SIZE = 4, 2, 48
FILMING = Filming(PRESETS["bald"], cameras=CAMERAS, sequences=SEQUENCES, frames=FRAMES, step=STEP, height=64, size=SIZE, crf=6)
GREY = 12  # levels from frame to frame


def tiny_raw(factory: pytest.TempPathFactory) -> Path:
    """FILMING in the second edition's layout, made once per session; its truth lies beside it. Tests that change files take a copy."""
    return _made(factory.getbasetemp() / "tiny_raw")


@functools.cache
def _made(root: Path) -> Path:
    film(FILMING, root / "v2")
    return root / "v2"


def extraction(raw: Path, output: Path, **changes: object) -> Extraction:
    """Of FILMING, with the frame numbers of its truth."""
    return Extraction(**({"raw": raw, "person": "031", "output": output, "every": STEP, "size": SIZE} | changes))


def grey_video(path: Path, moments: list[int], rate: int = 25, width: int = 22, height: int = 32, unit: int = 512) -> None:
    """H.264 whose frame of moment k is grey of level GREY·k + 20 and stands at k / rate seconds."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=rate, options={"crf": "1"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.codec_context.time_base = Fraction(1, rate * unit)
        for moment in moments:
            frame = av.VideoFrame.from_ndarray(np.full((height, width, 3), GREY * moment + 20, dtype=np.uint8), format="rgb24")
            frame.pts = moment * unit
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
