"""What the three YAML files of Gaussian Head Avatar share. Section and key names are those of the published system."""

import contextlib
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError

from lib.avatars.gaussian_head_avatar.mesh_head import MeshHeadConfig
from lib.config import Config
from lib.datasets.driving import DrivingConfig
from lib.datasets.head_capture import HeadCapture, HeadCaptureConfig
from lib.errors import InputError
from lib.training.checkpoint import Checkpoint
from lib.training.recorder import RecorderConfig


class DatasetConfig(HeadCaptureConfig, DrivingConfig):
    """Section `dataset`; training reads the capture keys, reenactment the driving keys."""


class AvatarConfig(Config):
    """The published top-level keys, accepted in every stage's file."""

    gpu_id: int = Field(0, ge=0, description="CUDA device used by trainer.device auto; ignored without CUDA and with several processes")
    load_meshhead_checkpoint: Path | None = Field(None, description="stage 2: the stage-1 checkpoint to start from (stage 1: its own, to resume)")
    load_gaussianhead_checkpoint: Path | None = Field(None, description="reenactment: the avatar, also a bundle (stage 2: its own, to resume)")
    load_supres_checkpoint: Path | None = Field(None, description="published file of its own; our gaussianhead checkpoint contains it")
    load_delta_poses_checkpoint: Path | None = Field(None, description="published file of its own; our gaussianhead checkpoint contains it")
    lr_net: float | None = Field(None, gt=0, description="Adam learning rate of networks (stage 2: also of opacity)")
    lr_lmk: float = Field(1e-4, gt=0, description="stage 1: learning rate of the neutral landmarks")
    lr_pose: float = Field(1e-5, gt=0, description="stage 2: learning rate of the per-frame pose offsets")
    batch_size: int = Field(1, gt=0, description="frames per step, of all processes together")
    optimize_pose: bool = Field(False, description="stage 2: learn a pose offset per frame")
    dataset: DatasetConfig
    recorder: RecorderConfig

    def start_from(self, key: str) -> Path | None:
        """A `load_*` checkpoint that is an input: one outside the run's own folder. Inside it, the key means resume.

        Raises InputError when an input is missing, so that a wrong path never trains from scratch silently.
        """
        path: Path | None = getattr(self, key)
        own = self.recorder.run_folder
        if path is None:
            return None
        if path.resolve().parent == own.resolve() and key in ("load_supres_checkpoint", "load_delta_poses_checkpoint"):
            return path if path.exists() else None  # published parts; ours are in one file
        if path.resolve().parent == own.resolve():
            latest = key.removeprefix("load_").removesuffix("_checkpoint") + "_latest"
            if path.name != latest:
                raise InputError(f"{key}: {path} is in this run's own folder, where the key means resume, which always goes on from {latest}. "
                                 f"To start another run from it choose another recorder.name; to resume write {own / latest}")
            return None
        if not path.exists():
            raise InputError(f"{key}: {path}: no such checkpoint. Inside {own} it would be this run's own, made by training; "
                             "anywhere else it is an input and must exist")
        return path


def check_held_out(capture: HeadCapture, checkpoint: Checkpoint) -> None:
    """Raises InputError when something is held out here on which the checkpoint, or one that it goes back to, was trained, whatever its frames were
    called there."""
    if "" in descent(checkpoint) and (capture.config.held_out_cameras or capture.config.held_out_sequences):
        origin = "a published checkpoint does" if checkpoint.data is None else "goes back to a published checkpoint, and those do"
        print(f"{checkpoint.path}: {origin} not say what it was trained on; what you hold out may have been trained on")
    if checkpoint.data is None:
        return
    worthless = "which would make every measure on it worthless"
    for number, (trained, cameras) in enumerate(checkpoint.data.all_trained()):
        what = f"{checkpoint.path} was" if number == 0 else f"a checkpoint that {checkpoint.path} goes back to (its mesh head?) was"
        for frame in capture.held_out_frames:
            name = trained.get(capture.digest(frame))
            if name is not None:
                raise InputError(f"dataset.held_out_sequences: frame {frame} is held out ('{capture.sequence_of[frame]}'), but {what} "
                                 f"trained on it{'' if name in (frame, '') else f' (there called {name})'}, {worthless}")
        if any(capture.digest(frame) in trained for frame in capture.train_frames):
            for camera in capture.config.held_out_cameras:
                if camera in cameras:
                    raise InputError(f"dataset.held_out_cameras: camera {camera} is held out, but {what} trained on its pictures, {worthless}")


def descent(checkpoint: Checkpoint) -> tuple[str, ...]:
    """What a training that starts from the checkpoint goes back to, as CaptureRecord keeps it."""
    return ("",) if checkpoint.data is None else checkpoint.data.descent()


def shares_frames(capture: HeadCapture, checkpoint: Checkpoint) -> bool:
    """Whether the checkpoint has seen any frame of this capture; taken for granted where it does not say (published ones)."""
    return checkpoint.data is None or any(capture.digest(frame) in checkpoint.data.digests for frame in capture.frames)


def check_same(given: Config | None, trained: dict[str, Any], section: str, path: object) -> None:
    """Raises InputError when a key written in `section` of a YAML differs from what the checkpoint was trained with; keys that are newer than
    the checkpoint had their defaults."""
    if given is None:
        return
    with contextlib.suppress(ValidationError):
        trained = type(given).model_validate(trained).model_dump(mode="json")
    values = given.model_dump(mode="json", include=given.model_fields_set)
    for key, value in values.items():
        if value != trained.get(key) and value != []:
            raise InputError(f"{section}.{key} is {value}, but {path} was trained with {trained.get(key)}: write that value")


def check_subject(checkpoint: Checkpoint, module: str, capture: HeadCapture) -> None:
    """Raises InputError when a checkpoint belongs to a subject fitted with another 3DMM."""
    trained = len(checkpoint.module(module).get("landmarks_3d_neutral", ()))
    if trained != capture.control_count:
        raise InputError(f"{checkpoint.path}: was trained with {trained} control landmarks, the data has {capture.control_count}: "
                         "it belongs to a subject fitted with another 3DMM")
    if module == "meshhead":
        width = checkpoint.options("meshheadmodule", MeshHeadConfig).expression_count
    else:
        width = checkpoint.config.get("gaussianheadmodule", {}).get("exp_coeffs_dim", capture.expression_count)
    if width != capture.expression_count:
        raise InputError(f"{checkpoint.path}: was trained with {width} expression coefficients, the data has {capture.expression_count}")
