"""Stage 3: an avatar driven by a sequence, to frames, a video and a contact sheet."""

import time
from pathlib import Path

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor
from tqdm import tqdm

from lib.avatars.gaussian_head_avatar.avatar import avatar_from, check_resolution
from lib.avatars.gaussian_head_avatar.config import AvatarConfig, check_same
from lib.avatars.gaussian_head_avatar.gaussian_head import GaussianHeadConfig
from lib.avatars.gaussian_head_avatar.published import read_gaussian_head
from lib.config import Config
from lib.datasets.driving import DrivingFrame, DrivingSequence
from lib.datasets.images import read_image, resize, write_image
from lib.datasets.sampler import spread
from lib.datasets.video import VideoWriter
from lib.errors import InputError
from lib.networks.upsampler import UpsamplerConfig
from lib.training.recorder import image_rows, write_seconds
from lib.training.runtime import choose_device, is_terminal


class VideoConfig(Config):
    """Section `video` of reenactment."""

    frames_per_second: int = Field(25, gt=0, description="of the mp4")
    crf: int = Field(16, ge=0, le=51, description="H.264 quality: 0 lossless, 23 ordinary, 51 worst")
    sheet_columns: int = Field(6, gt=0, description="columns of the contact sheet")
    sheet_rows: int = Field(3, gt=0, description="rows of the contact sheet")


class ReenactmentConfig(AvatarConfig):
    """The YAML file of reenactment.py."""

    gaussianheadmodule: GaussianHeadConfig | None = Field(None, description="optional: must equal the configuration the checkpoint holds")
    supresmodule: UpsamplerConfig | None = Field(None, description="optional: must equal the configuration the checkpoint holds")
    video: VideoConfig = VideoConfig()
    device: str = Field("auto", description="auto, cpu, cuda or cuda:<n>")


def reenact(config: ReenactmentConfig) -> Path:
    """Writes <result_path>/<name>/{frames/<number>.png, reenactment.mp4, contact_sheet.png}; returns that folder.

    Raises InputError when the driver's expression width is not the avatar's, or anything it needs is missing.
    """
    start = time.perf_counter()
    check_resolution(config.dataset.resolution)
    if config.load_gaussianhead_checkpoint is None:
        raise InputError("load_gaussianhead_checkpoint: name the avatar, e.g. checkpoints/<name>/gaussianhead_latest")
    # Of load_delta_poses_checkpoint nothing is needed: offsets belong to frames of the training.
    checkpoint = read_gaussian_head(config.load_gaussianhead_checkpoint, "load_gaussianhead_checkpoint", config.gaussianheadmodule,
                                    config.supresmodule, config.load_supres_checkpoint)
    check_same(config.gaussianheadmodule, checkpoint.section("gaussianheadmodule"), "gaussianheadmodule", checkpoint.path)
    check_same(config.supresmodule, checkpoint.section("supresmodule"), "supresmodule", checkpoint.path)
    device = choose_device(config.device, config.gpu_id)
    avatar = avatar_from(checkpoint).to(device).eval()
    driver = DrivingSequence(config.dataset, avatar.head.own_pose.cpu())
    if driver.expression_count != avatar.head.config.exp_coeffs_dim:
        raise InputError(f"{driver.files[0]}: the driver has {driver.expression_count} expression coefficients, the avatar was trained with "
                         f"{avatar.head.config.exp_coeffs_dim}; drive it with parameters of the same 3DMM")
    folder = config.recorder.result_folder
    print(f"reenactment: {len(driver)} frames of {config.dataset.resolution}x{config.dataset.resolution}, smoothing {config.dataset.smoothing}, "
          f"camera {config.dataset.camera_mode}, head pose {config.dataset.head_pose_mode}, pose code {config.dataset.pose_code_mode}, on {device}")
    for old in (folder / "frames").glob("[0-9]*.png"):  # of an earlier, perhaps longer driver
        old.unlink()
    shown = set(spread(list(range(len(driver))), config.video.sheet_columns * config.video.sheet_rows))
    sheet: list[Float[Tensor, "3 H W"]] = []
    with torch.no_grad(), VideoWriter(folder / "reenactment.mp4", config.video.frames_per_second, config.video.crf) as video:
        for index in tqdm(range(len(driver)), desc="reenactment", unit="frame", mininterval=0.5 if is_terminal() else 15.0):
            frame: DrivingFrame = driver[index].to(device)
            picture = avatar(frame.expression, frame.pose_code, frame.head, frame.camera).image[0].cpu()
            if not torch.isfinite(picture).all():
                raise InputError(f"{driver.files[index]}: the avatar renders NaN for this frame; is the checkpoint damaged?")
            write_image(folder / "frames" / f"{index:05d}.png", picture)
            if driver.images:
                beside = resize(read_image(driver.images[index]), config.dataset.resolution).float() / 255.0
                picture = torch.cat([beside, picture], dim=-1)
            video.add(picture)
            if index in shown:
                sheet.append(picture)
    columns = min(config.video.sheet_columns, len(sheet))
    rows = [torch.stack(sheet[start:start + columns]) for start in range(0, len(sheet) - columns + 1, columns)]
    write_image(folder / "contact_sheet.png", image_rows(rows))
    write_seconds(folder, "reenactment", time.perf_counter() - start)
    return folder
