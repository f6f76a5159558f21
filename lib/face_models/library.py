"""The face models by name: where their files belong, where they come from and what one may do with them. Nothing is downloaded."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from lib.errors import InputError
from lib.face_models.bfm import read_bfm
from lib.face_models.contract import FaceModel
from lib.face_models.faceverse import read_faceverse
from lib.face_models.flame import read_flame
from lib.face_models.ict import HEAD_FILE, read_ict

FOLDER = HEAD_FILE.parent.parent / "face_models"


@dataclass(frozen=True)
class Source:
    """How to come by a model."""

    read: Callable[[Path], FaceModel]
    files: tuple[str, ...]  # accepted names in assets/face_models/
    origin: str
    licence: str


MODELS: dict[str, Source] = {
    "ict": Source(lambda path: read_ict(), (), "shipped", "MIT"),
    "bfm": Source(read_bfm, ("BFM_model_front.mat", "BFM09_model_info.mat", "BFM_model_front.npz"),
                  "It is made from the Basel Face Model 2009 (faces.dmi.unibas.ch, on request) and the expressions of FaceWarehouse "
                  "by the scripts of Deep3DFaceRecon or 3DMM-Fitting-Pytorch.", "research only, no redistribution"),
    "flame": Source(read_flame, ("flame2023.pkl", "flame2023_Open.pkl", "flame2020.pkl", "generic_model.pkl"),
                    "It comes from flame.is.tue.mpg.de, after registration.", "non-commercial; FLAME 2023 Open: CC BY 4.0"),
    "faceverse": Source(read_faceverse, ("faceverse_simple_v2.npy",), "It comes from github.com/LizhenWangT/FaceVerse (version 2).",
                        "none stated for the model: ask its authors before other than research use"),
}


def read_model(name: str, path: Path | None = None) -> FaceModel:
    """The model of this name from `path`, else from assets/face_models/. Raises InputError telling where a missing file comes from."""
    source = MODELS[name]
    if not source.files:
        if path is not None:
            raise InputError(f"--model-file {path}: the model '{name}' is shipped and needs no file; name another with --model "
                             f"({', '.join(key for key in MODELS if key != name)})")
        return source.read(HEAD_FILE)
    found = path if path is not None else next((FOLDER / file for file in source.files if (FOLDER / file).exists()), None)
    if found is None or not found.is_file():
        raise InputError(f"{found or FOLDER / source.files[0]}: the face model '{name}' is missing. {source.origin} Licence: {source.licence}. "
                         f"Put it into {FOLDER} as {' or '.join(source.files)}, or name it with --model-file; nothing is downloaded")
    return source.read(found)
