"""Stage 3: an avatar driven by a sequence, to frames, a video and a contact sheet."""

import dataclasses
import json
import time
from dataclasses import dataclass
from pathlib import Path

from pydantic import Field

from lib.avatars.gaussian_head_avatar.avatar import GaussianAvatar, avatar_from, check_resolution
from lib.avatars.gaussian_head_avatar.config import AvatarConfig, check_same
from lib.avatars.gaussian_head_avatar.film import VideoConfig, film
from lib.avatars.gaussian_head_avatar.gaussian_head import GaussianHeadConfig
from lib.avatars.gaussian_head_avatar.published import read_gaussian_head
from lib.avatars.gaussian_head_avatar.renderer import AvatarRenderer
from lib.datasets.driving import DrivingSequence
from lib.datasets.retarget import TrainedFace
from lib.errors import InputError
from lib.files import RunLock, write_whole
from lib.networks.precision import Precision
from lib.networks.upsampler import UpsamplerConfig
from lib.provenance import Provenance, provenance
from lib.training.checkpoint import Checkpoint
from lib.training.recorder import write_seconds
from lib.training.runtime import choose_device

ORIGIN = "reenactment.json"  # of a film: avatar, driver, configuration, code


class ReenactmentConfig(AvatarConfig):
    """The YAML file of reenactment.py."""

    gaussianheadmodule: GaussianHeadConfig | None = Field(None, description="optional: must equal the configuration the checkpoint holds")
    supresmodule: UpsamplerConfig | None = Field(None, description="optional: must equal the configuration the checkpoint holds")
    super_resolution: bool = Field(True, description="False: the coarse picture alone, at a quarter of dataset.resolution; faster")
    precision: Precision = Field("high", description="on CUDA; high: half-precision networks, for speed; highest: float32, as a CPU always does")
    video: VideoConfig = VideoConfig()
    device: str = Field("auto", description="auto, cpu, cuda or cuda:<n>")

    @property
    def avatar_path(self) -> Path:
        """The checkpoint that is shown. Raises InputError where none is named."""
        if self.load_gaussianhead_checkpoint is None:
            raise InputError("load_gaussianhead_checkpoint: name the avatar, e.g. checkpoints/<name>/gaussianhead_latest")
        return self.load_gaussianhead_checkpoint


@dataclass(frozen=True)
class LoadedAvatar:
    """An avatar on the CPU, what its training has seen of the face (None: not known), after how many steps and by what it was saved."""

    avatar: GaussianAvatar
    trained: TrainedFace | None
    step: int
    made_by: Provenance | None = None


def read_avatar(config: ReenactmentConfig, path: Path | None = None, key: str = "load_gaussianhead_checkpoint") -> Checkpoint:
    """The checkpoint (ours, published or a bundle) that `key` names, by default the one of the configuration.

    Raises InputError where there is none, or it differs from what `config` says of it.
    """
    # Of load_delta_poses_checkpoint nothing is needed: offsets belong to frames of the training.
    checkpoint = read_gaussian_head(path or config.avatar_path, key, config.gaussianheadmodule, config.supresmodule, config.load_supres_checkpoint)
    check_same(config.gaussianheadmodule, checkpoint.section("gaussianheadmodule"), "gaussianheadmodule", checkpoint.path)
    check_same(config.supresmodule, checkpoint.section("supresmodule"), "supresmodule", checkpoint.path)
    return checkpoint


def load_avatar(config: ReenactmentConfig, path: Path, key: str = "load_gaussianhead_checkpoint") -> LoadedAvatar:
    """The avatar in it, on the CPU. Raises InputError as `read_avatar` does."""
    checkpoint = read_avatar(config, path, key)
    trained = None if checkpoint.data is None else checkpoint.data.trained_face()
    return LoadedAvatar(avatar_from(checkpoint).eval(), trained, checkpoint.step, checkpoint.made_by)


def reenact(config: ReenactmentConfig) -> Path:
    """Writes <result_path>/<name>/{frames/<number>.png, reenactment.mp4, contact_sheet.png, reenactment.json}; returns that folder.

    Raises InputError when the driver has not the coefficients of the avatar, or anything it needs is missing.
    """
    start = time.perf_counter()
    check_resolution(config.dataset.resolution)
    device = choose_device(config.device, config.gpu_id, "device")
    loaded = load_avatar(config, config.avatar_path)
    print(f"reenactment: avatar {config.avatar_path}, step {loaded.step}")
    avatar = loaded.avatar.to(device)
    driver = DrivingSequence(config.dataset, avatar.head.own_pose.cpu(), avatar.head.config.exp_coeffs_dim, loaded.trained)
    for note in driver.notes:
        print(f"driver: {note}")
    folder, size = config.recorder.result_folder, config.dataset.resolution
    renderer = AvatarRenderer(avatar, size, size, config.precision, coarse_only=not config.super_resolution)
    print(f"reenactment: {len(driver)} frames of {renderer.width}x{renderer.height}, smoothing {config.dataset.smoothing}, "
          f"camera {config.dataset.camera_mode}, head pose {driver.head_pose_mode}, pose code {config.dataset.pose_code_mode}, on {device}")
    with RunLock(folder / "reenactment.lock"):
        (folder / ORIGIN).unlink(missing_ok=True)  # where it is, all is of one run
        print(f"reenactment: {film(renderer, driver, config.video, folder)}")
        write_seconds(folder, "reenactment", time.perf_counter() - start)
        write_whole(folder / ORIGIN, json.dumps({
            "avatar": str(config.avatar_path), "step": loaded.step,
            "trained_by": loaded.made_by and dataclasses.asdict(loaded.made_by),
            "drawn_by": dataclasses.asdict(provenance(device)),
            "driver": list(map(str, driver.files)), "config": config.model_dump(mode="json")}, indent=1))
    return folder
