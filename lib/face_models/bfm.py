"""The Basel Face Model of 2009 with expressions of FaceWarehouse, as Deep3DFaceRecon and 3DMM-Fitting-Pytorch write it from the licensed files.

Canonical: its own decimetres about the centroid of the mean; coefficients are standard deviations (80 identity, 64 expression).
"""

from pathlib import Path

from lib.archives import Damaged, arrays_in
from lib.errors import InputError
from lib.face_models.arrays import linear_model
from lib.face_models.contract import FaceModel
from lib.face_models.matfile import read_mat

IDENTITIES, EXPRESSIONS = 80, 64


def read_bfm(path: Path) -> FaceModel:
    """BFM_model_front.mat or BFM09_model_info.mat, or an .npz with the same keys. Raises InputError for anything else."""
    if path.suffix == ".npz":
        try:
            content = arrays_in(path.read_bytes())
        except (OSError, Damaged) as error:
            raise InputError(f"{path}: cannot be read as .npz ({error}); copy it again") from error
    else:
        content = read_mat(path)
    return linear_model(path, "bfm", content, IDENTITIES, EXPRESSIONS, first_row=1, expression_spread=1.0, bounded=False)
