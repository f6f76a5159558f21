"""A subject folder of the published shape, made from the demo head: 16 cameras, 2048² JPEGs, 64 coefficients, 35,709 vertices."""

from pathlib import Path

import cv2
import numpy as np

from lib.losses.perceptual import NETWORKS
from tests.tiny import SIZE, Tiny

FULL, LOWRES = 2048, 256
EXPRESSIONS, VERTICES, IDENTITY = 64, 35709, 80
PADDING = 157  # columns left and right that a NeRSemble crop fills with zeros


def write_published_subject(made: Tiny, target: Path, frames: tuple[str, ...], size: int = FULL) -> Path:
    """Frames of the tiny subject, enlarged; `frames` names those that are taken, spread ten apart as in the field's folders."""
    for number, frame in enumerate(frames):
        name = f"{10 * number:04d}"
        for path in (made.subject / "images" / frame).iterdir():
            if "_lowres_" in path.name:
                continue
            pixels = cv2.imread(str(path))
            if path.name.startswith("visible"):
                pixels[:, :PADDING * SIZE // FULL + 1] = pixels[:, -(PADDING * SIZE // FULL + 1):] = 0
            kind, camera = path.stem.split("_")
            for suffix, side in (("", size), ("_lowres", LOWRES)):
                folder = target / "images" / name
                folder.mkdir(parents=True, exist_ok=True)
                cv2.imwrite(str(folder / f"{kind}{suffix}_{camera}.jpg"), cv2.resize(pixels, (side, side), interpolation=cv2.INTER_CUBIC))
        for path in (made.subject / "cameras" / frame).iterdir():
            camera = dict(np.load(path))
            camera["intrinsic"] = camera["intrinsic"] * np.array([[size / SIZE], [size / SIZE], [1.0]])
            (target / "cameras" / name).mkdir(parents=True, exist_ok=True)
            np.savez(target / "cameras" / name / path.name, **camera)
        source, folder = made.subject / "params" / frame, target / "params" / name
        folder.mkdir(parents=True)
        params = dict(np.load(source / "params.npz"))
        expression = np.zeros((1, EXPRESSIONS), dtype=np.float32)
        expression[:, :params["exp_coeff"].shape[1]] = params["exp_coeff"]
        np.savez(folder / "params.npz", id_coeff=np.zeros((1, IDENTITY)), exp_coeff=expression, scale=params["scale"], pose=params["pose"])
        np.save(folder / "lmk_3d.npy", np.load(source / "lmk_3d.npy"))
        vertices = np.load(source / "vertices.npy")
        np.save(folder / "vertices.npy", vertices[np.linspace(0, len(vertices) - 1, VERTICES).astype(int)])
    return target


def write_random_lpips(folder: Path) -> None:
    """Weight files with torchvision's and lpips' names and shapes, random by a fixed seed."""
    import torch

    from lib.losses.perceptual import Lpips

    torch.manual_seed(0)
    state = Lpips("vgg").state_dict()
    folder.mkdir(parents=True)
    backbone = NETWORKS["vgg"]
    torch.save({name: value for name, value in state.items() if name.startswith("features.")}, folder / backbone.features.name)
    torch.save({name: value.abs() for name, value in state.items() if name.startswith("lin")}, folder / backbone.heads.name)
