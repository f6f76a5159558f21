"""FaceVerse version 2 (faceverse_simple_v2.npy): 150 identity coefficients (standard deviations) and 52 expressions in [0,1].

Its y axis points down and its z axis into the head; both are turned here. Canonical: its own unit about the centroid of the mean.
"""

from pathlib import Path

import numpy as np

from lib.errors import InputError
from lib.face_models.arrays import array, linear_model, triples
from lib.face_models.contract import FaceModel
from lib.face_models.ict import SHAPE_SPREAD
from lib.face_models.pickles import read_pickle

IDENTITIES, EXPRESSIONS = 150, 52
_TURN = np.array([1.0, -1.0, -1.0])


def read_faceverse(path: Path) -> FaceModel:
    """The file as it is downloaded; read without running what it may contain. Raises InputError for anything else."""
    content = read_pickle(path)
    mean = triples(path, content, "meanshape")
    turned = {"meanshape": mean * _TURN}
    for key, width in (("idBase", IDENTITIES), ("exBase", EXPRESSIONS)):
        basis = array(path, content, key, width)
        if basis.size % (3 * width):
            raise InputError(f"{path}: '{key}': expected three rows for each vertex, found shape {basis.shape}")
        turned[key] = basis.reshape(-1, 3, width) * _TURN[:, None]
    return linear_model(path, "faceverse", content | turned, IDENTITIES, EXPRESSIONS, first_row=0, expression_spread=SHAPE_SPREAD, bounded=True)
