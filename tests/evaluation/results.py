"""Small results, as evaluate.py would have measured them."""

import math

from lib.evaluation.protocol import PROTOCOL_ID, Backbone, Protocol, SplitContents
from lib.evaluation.scores import PictureName, SplitScores

VIEWS = SplitContents(pictures=4, cameras=("c1", "c2"), sequences=("EXP-2-eyes",), digest="aa")
PROTOCOL = Protocol(id=PROTOCOL_ID, resolution=64, conventions=(), splits={"novel_view": VIEWS},
                    lpips={"vgg": Backbone(features_sha256="f", heads_sha256="h")})


def scores(shift: float = 0.0, split: str = "novel_view") -> SplitScores:
    """Two frames seen by two cameras; the mouth is open in two pictures, `silent` applies nowhere."""
    pictures = tuple(PictureName(frame, camera, "EXP-2-eyes") for camera in ("c1", "c2") for frame in ("0000", "0010"))
    return SplitScores(split, pictures, ("psnr", "mask_psnr", "lpips_vgg", "mouth_psnr", "silent"), (
        (30.0 + shift, 25.0, 0.20, math.nan, math.nan), (20.0 + shift, 24.0, 0.10, 18.0, math.nan),
        (28.0 + shift, 22.0, 0.40, 12.0, math.nan), (26.0 + shift, 27.0, 0.30, math.nan, math.nan)), 12.5)
