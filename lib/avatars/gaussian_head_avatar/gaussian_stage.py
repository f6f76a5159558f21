"""Training of the Gaussian head with super-resolution and pose offsets."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from jaxtyping import Float, UInt8
from pydantic import Field
from torch import Tensor, nn

from lib.avatars.gaussian_head_avatar.augmentation import random_zoom
from lib.avatars.gaussian_head_avatar.avatar import RGB, GaussianAvatar, avatar_from, check_resolution
from lib.avatars.gaussian_head_avatar.config import AvatarConfig, check_held_out, check_same, check_subject, descent, shares_frames
from lib.avatars.gaussian_head_avatar.control import Control
from lib.avatars.gaussian_head_avatar.gaussian_head import GaussianHeadConfig
from lib.avatars.gaussian_head_avatar.handover import hand_over, mesh_head_from
from lib.avatars.gaussian_head_avatar.mesh_head import MeshHeadConfig
from lib.avatars.gaussian_head_avatar.published import read_gaussian_head, read_mesh_head, refuse_published
from lib.config import Config
from lib.datasets.batches import HeadBatch, on_white, visible, where_seen
from lib.datasets.capture_check import check_capture
from lib.datasets.head_capture import HeadCapture
from lib.errors import InputError
from lib.evaluation.protocol import EvaluationConfig
from lib.geometry.head_pose import HeadPose
from lib.losses.gaussians import oversize, transparency
from lib.losses.perceptual import load_lpips
from lib.losses.photometric import visible_l1
from lib.networks.precision import PrecisionChoice, chosen_precision, products, set_precision
from lib.networks.upsampler import SCALE, Upsampler, UpsamplerConfig
from lib.tensors import TensorBundle, keyed_generator
from lib.training.checkpoint import Checkpoint
from lib.training.compiled import Compiled, Graphed, changing
from lib.training.optimizer import adam
from lib.training.stage import AbstractStage, Comparison, StepReport
from lib.training.trainer import TrainerConfig
from lib.training.watch import NumberWatch

ROW_MARGIN, MOST_STEPS_KEPT = 0.01, 32  # squared canonical units around the zones of who moves what; steps for which their rows are kept
ROW_SPARE = 0.02  # of the rows: some thousandths come and go, and the GPU's memory for one number of them does not hold the next


class GaussianLossConfig(Config):
    """Section `loss` of stage 2: weights, and how targets are made."""

    fine: float = Field(1.0, ge=0, description="L1 of the super-resolved picture")
    coarse: float = Field(1.0, ge=0, description="L1 of the first three channels at a quarter of the resolution")
    lpips: float = Field(0.1, ge=0, description="LPIPS (VGG) of a random crop of the super-resolved picture; needs weights, 0 = off")
    opacity: float = Field(0.0, ge=0, description="mean transparency (1 - opacity) of the Gaussians: against see-through side views (published: 0)")
    scale: float = Field(0.0, ge=0, description="mean squared excess of the longest axis over scale_limit: against needles and blobs (published: 0)")
    scale_limit: float = Field(0.03, gt=0, description="canonical units: axes longer than this are penalised by loss.scale")
    lpips_crop: int = Field(512, ge=16, description="pixels: side of that crop (the whole picture where it is smaller)")
    lpips_weights: Path = Field(Path("assets/lpips"), description="folder with vgg16.pth and lpips_vgg.pth")
    coarse_target: Literal["nearest", "area"] = Field("nearest", description="a quarter of the target: every 4th pixel (published) or the mean")
    augment: bool = Field(True, description="super-resolve a randomly zoomed feature image (published)")


class GaussianOptimizerConfig(Config):
    """Section `optimizer`: Adam, with learning rates as fractions of lr_net (published values)."""

    betas: tuple[float, float] = Field((0.9, 0.999), description="decay of Adam's running means (of all but the pose offsets)")
    xyz: float = Field(0.1, ge=0, description="positions")
    feature: float = Field(0.1, ge=0, description="features")
    scales: float = Field(0.3, ge=0, description="log-scales")
    rotation: float = Field(0.1, ge=0, description="quaternions")
    opacity: float = Field(1.0, ge=0, description="opacity logits")
    supres: float = Field(1.0, ge=0, description="super-resolution network")


class GaussianTrainerConfig(TrainerConfig):
    """Section `trainer` of stage 2."""

    epochs: int = Field(1000, gt=0, description="passes over the training frames when steps is not given")
    precision: PrecisionChoice = Field(
        "auto", description="highest: float32; high: on CUDA, factors of matrix products of 11 bits (TF32), super-resolution and LPIPS in bfloat16, "
        "and single steps that go wrong are skipped; auto: high on CUDA, highest on a CPU")
    compile: bool = Field(
        True, description="with precision high on CUDA: torch.compile for the head and the losses (a minute before the first step), "
        "CUDA graphs for super-resolution and LPIPS")


class GaussianHeadTrainConfig(AvatarConfig):
    """The YAML file of train_gaussianhead.py."""

    lr_net: float = Field(1e-4, gt=0, description="Adam learning rate of the networks; section optimizer has the others")
    meshheadmodule: MeshHeadConfig | None = Field(None, description="optional: must equal the stage-1 configuration, which the checkpoint holds")
    gaussianheadmodule: GaussianHeadConfig = GaussianHeadConfig()
    supresmodule: UpsamplerConfig = UpsamplerConfig()
    loss: GaussianLossConfig = GaussianLossConfig()
    optimizer: GaussianOptimizerConfig = GaussianOptimizerConfig()
    trainer: GaussianTrainerConfig = GaussianTrainerConfig()
    evaluation: EvaluationConfig = EvaluationConfig()

    @property
    def measurable(self) -> bool:
        """Whether evaluate.py has anything to do."""
        asked = self.evaluation.cross, self.evaluation.submission
        return bool(self.dataset.held_out_cameras or self.dataset.held_out_sequences) or asked != (None, None)


@dataclass(frozen=True)
class GaussianLosses(TensorBundle):
    """Unweighted terms; names as in GaussianLossConfig."""

    fine: Float[Tensor, ""]
    coarse: Float[Tensor, ""]
    lpips: Float[Tensor, ""]
    opacity: Float[Tensor, ""]
    scale: Float[Tensor, ""]


class PoseOffsets(nn.Module):
    """A learnable correction of every frame's head pose: rotation vector (radians) and translation (world units)."""

    def __init__(self, frames: int) -> None:
        super().__init__()
        self.delta = nn.Parameter(torch.zeros(frames, 6))

    def correct(self, batch: HeadBatch) -> HeadPose:
        """The corrected poses of a batch."""
        return HeadPose(batch.head.pose + self.delta[batch.frame_index], batch.head.scale)


@dataclass(frozen=True)
class _Start:
    """Where training begins: an avatar, the mesh head it came from, pose offsets if it brings some, and what it goes back to."""

    avatar: GaussianAvatar
    mesh_head: MeshHeadConfig
    pose_offsets: Float[Tensor, "F 6"] | None
    earlier: tuple[str, ...]


class GaussianHeadStage(AbstractStage):
    """Stage 2: one view per frame, on white. Starts from a stage-1 checkpoint, or goes on from its own."""

    name = "gaussianhead"

    def __init__(self, config: GaussianHeadTrainConfig, capture: HeadCapture, device: torch.device) -> None:
        check_resolution(config.dataset.resolution)
        _check_start(config)  # before what may have to be downloaded for it
        self.lpips = load_lpips(config.loss.lpips_weights, "loss.lpips").to(device) if config.loss.lpips > 0 else None
        start = self._start(config, capture, device)
        self.remarks = (*capture.notes, *check_capture(capture, start.mesh_head.model_bbox).lines())
        self.avatar, self.earlier = start.avatar, start.earlier
        self.config = config.model_copy(update={"gaussianheadmodule": self.avatar.head.config, "meshheadmodule": start.mesh_head})
        self.avatar.to(device)
        self.pose_offsets = PoseOffsets(len(capture.frames))
        if start.pose_offsets is not None:
            self.pose_offsets.delta.data.copy_(start.pose_offsets)
        self.pose_offsets.to(device)
        self.modules = nn.ModuleDict({"gaussianhead": self.avatar.head, "supres": self.avatar.upsampler, "delta_poses": self.pose_offsets})
        head = self.avatar.head
        rates = dict(config.optimizer)
        betas = rates.pop("betas")
        groups = [{"params": list(self.avatar.upsampler.parameters()), "lr": config.lr_net * rates.pop("supres")}]
        groups += [{"params": [getattr(head, name)], "lr": config.lr_net * rate} for name, rate in rates.items()]
        groups.append({"params": [parameter for name, parameter in head.named_parameters() if name not in rates], "lr": config.lr_net})
        self.optimizers = {"adam": adam(groups, device, betas=betas)}
        if config.optimize_pose:
            self.optimizers["pose"] = adam([{"params": list(self.pose_offsets.parameters())}], device, lr=config.lr_pose)
        self.precision = chosen_precision(config.trainer.precision, device)
        for networks in (self.avatar, *([] if self.lpips is None else [self.lpips])):
            set_precision(networks, self.precision)
        if self.precision == "high" and device.type == "cuda":
            self.watch = NumberWatch()
            self._steps_kept = 0
            self._kept: Control | None = None
            # Pictures keep their size: the fastest convolutions are worth looking for, unless others may be found next time.
            torch.backends.cudnn.benchmark = not config.trainer.deterministic

        compiles = config.trainer.compile and self.precision == "high" and device.type == "cuda"
        self._cloud = Compiled(self.avatar.head.cloud, "head", compiles)
        self._coarse_loss, self._fine_loss = (Compiled(_loss, "loss", compiles) for _ in range(2))
        # Passes that are added up must keep their gradients.
        self._upsample = Graphed(self.avatar.upsampler, compiles and config.trainer.accumulate == 1)
        self._lpips = None if self.lpips is None else Graphed(self.lpips, compiles)

    @staticmethod
    def _start(config: GaussianHeadTrainConfig, capture: HeadCapture, device: torch.device) -> "_Start":
        own = config.recorder.run_folder / "gaussianhead_latest"
        refuse_published(own)
        given, supres, poses = (config.start_from(f"load_{name}_checkpoint") for name in ("gaussianhead", "supres", "delta_poses"))
        path = own if own.exists() else given
        if path is not None:
            key = "resume" if path == own else "load_gaussianhead_checkpoint"
            checkpoint = read_gaussian_head(path, key, config.gaussianheadmodule, config.supresmodule, supres, poses, config.meshheadmodule)
            check_same(config.gaussianheadmodule, checkpoint.section("gaussianheadmodule"), "gaussianheadmodule", path)
            check_same(config.supresmodule, checkpoint.section("supresmodule"), "supresmodule", path)
            check_same(config.meshheadmodule, checkpoint.section("meshheadmodule"), "meshheadmodule", path)
            check_subject(checkpoint, "gaussianhead", capture)
            check_held_out(capture, checkpoint)
            avatar = avatar_from(checkpoint)
            if path == given:  # the trainer says so when it resumes
                print(f"gaussianhead: starting from the weights of {path}")
                avatar.head.own_pose.copy_(_typical_pose(capture))
            return _Start(avatar, checkpoint.options("meshheadmodule", MeshHeadConfig), _offsets_for(checkpoint, capture, told=path == given),
                          descent(checkpoint))
        assert config.load_meshhead_checkpoint is not None  # _check_start
        checkpoint = read_mesh_head(config.load_meshhead_checkpoint, "load_meshhead_checkpoint", config.meshheadmodule)
        check_same(config.meshheadmodule, checkpoint.section("meshheadmodule"), "meshheadmodule", checkpoint.path)
        check_subject(checkpoint, "meshhead", capture)
        check_held_out(capture, checkpoint)
        print(f"gaussianhead: starting from the mesh head of {checkpoint.path}" + (
            "" if shares_frames(capture, checkpoint) else f", which was trained on ANOTHER subject than {config.dataset.dataroot}: is that meant?"))
        mesh_head = mesh_head_from(checkpoint).to(device)  # a CPU needs a minute for what follows
        resolved = config.gaussianheadmodule.resolved(mesh_head.config, capture.expression_count)
        if config.supresmodule.input_dim != resolved.color_channels:
            raise InputError(f"supresmodule.input_dim is {config.supresmodule.input_dim}, but the head renders {resolved.color_channels} channels "
                             "(exp_color_mlp[-1])")
        head = hand_over(mesh_head, resolved, config.trainer.seed)
        head.own_pose.copy_(_typical_pose(capture))
        return _Start(GaussianAvatar(head, Upsampler(config.supresmodule)), mesh_head.config, None, descent(checkpoint))

    def step(self, batch: HeadBatch, step: int) -> StepReport:
        """One Adam step."""
        weights = {field.name: getattr(self.config.loss, field.name) for field in dataclasses.fields(GaussianLosses)}
        return self.descend((vars(self._losses(part)) for part in self.passes(batch, self.config.trainer.accumulate)), weights)

    def compare(self, batch: HeadBatch) -> Comparison:
        """Super-resolved pictures and targets, on white; poses as tracked."""
        image = self.avatar(batch.expression, batch.head.pose, batch.head, batch.flat_camera()).image
        target = batch.on_white().flatten(0, 1)
        return Comparison(where_seen(image, target, batch.pixels.flatten(0, 1)), target)

    def _losses(self, batch: HeadBatch) -> GaussianLosses:
        head, avatar = self.pose_offsets.correct(batch), self.avatar
        weights = self._control()
        with products(self.precision):
            cloud = self._cloud(weights, batch.expression, head.pose, head)
        coarse, pixels = avatar.features(cloud, batch.flat_camera()), batch.pixels.flatten(0, 1)
        reduced = pixels[:, :, ::SCALE, ::SCALE] if self.config.loss.coarse_target == "nearest" else pixels
        coarse_loss = self._coarse_loss(coarse.features[:, RGB], reduced)
        # Of each sample, whatever batch or process it comes to.
        features, random = coarse.features, [keyed_generator(self.config.trainer.seed, 3, sample) for sample in batch.samples]
        if self.config.loss.augment:
            zoom = random_zoom(features.shape[-1], random)
            features, pixels = zoom.apply(features, 1), zoom.apply(pixels, SCALE)
        fine = self._upsample(features)
        return GaussianLosses(
            fine=self._fine_loss(fine, pixels), coarse=coarse_loss, lpips=self._perceptual(fine, pixels, random),
            opacity=transparency(cloud), scale=oversize(cloud, head.scale, self.config.loss.scale_limit),
        )

    def _control(self) -> Control:
        """Who moves which Gaussian. Where the host is not to wait, rows are found with a margin and kept as long as no Gaussian can cross it."""
        if self.watch is None:
            return self.avatar.head.control()
        if self._steps_kept == 0:
            with torch.no_grad():
                self._kept = self.avatar.head.control(margin=ROW_MARGIN).roomy(ROW_SPARE, self._kept)
            changing(self._kept.expression_rows), changing(self._kept.pose_rows)
            # A step of Adam is at most some learning rates long; near the border of a zone the square changes by twice the distance as much.
            fastest = 4.0 * self.config.lr_net * self.config.optimizer.xyz * 2.0 * self.avatar.head.config.dist_threshold_far**0.5
            self._steps_kept = max(1, min(MOST_STEPS_KEPT, int(ROW_MARGIN / max(fastest, 1e-12))))
        self._steps_kept -= 1
        return self.avatar.head.control(kept=self._kept)

    def _perceptual(self, image: Float[Tensor, "B 3 H W"], pixels: UInt8[Tensor, "B 5 H W"], random: list[torch.Generator]) -> Float[Tensor, ""]:
        """Mean LPIPS of a random crop of each picture and of the same of its target."""
        if self._lpips is None:
            return image.new_zeros(())
        crop = min(self.config.loss.lpips_crop, image.shape[-1])
        corners = [torch.randint(image.shape[-1] - crop + 1, (2,), generator=generator).tolist() for generator in random]
        windows = [(slice(row, row + 1), ..., slice(top, top + crop), slice(left, left + crop)) for row, (top, left) in enumerate(corners)]
        image, pixels = (torch.cat([pictures[window] for window in windows]) for pictures in (image, pixels))
        return self._lpips(image * visible(pixels), on_white(pixels) * visible(pixels)).mean()


def _check_start(config: GaussianHeadTrainConfig) -> None:
    """Raises InputError where no checkpoint is named, or there, to start from."""
    supres, poses = (config.start_from(f"load_{name}_checkpoint") for name in ("supres", "delta_poses"))
    if (config.recorder.run_folder / "gaussianhead_latest").exists() or config.start_from("load_gaussianhead_checkpoint") is not None:
        return
    if supres is not None or poses is not None:
        raise InputError(f"load_{'supres' if supres is not None else 'delta_poses'}_checkpoint: given without load_gaussianhead_checkpoint; "
                         "name all published files of that head, or none")
    if config.load_meshhead_checkpoint is None:
        raise InputError("load_meshhead_checkpoint: stage 2 starts from a stage-1 checkpoint; name it, e.g. checkpoints/<name>/meshhead_latest")
    if not config.load_meshhead_checkpoint.exists():
        read_mesh_head(config.load_meshhead_checkpoint, "load_meshhead_checkpoint", config.meshheadmodule)  # says so


def _loss(image: Float[Tensor, "B 3 H W"], pixels: UInt8[Tensor, "B 5 H W"]) -> Float[Tensor, ""]:
    """L1 over what is visible; the target as large as the picture or SCALE times larger."""
    target, seen = on_white(pixels), visible(pixels)
    if pixels.shape[-1] > image.shape[-1]:
        target, seen = nn.functional.avg_pool2d(target, SCALE), nn.functional.avg_pool2d(seen, SCALE)
    return visible_l1(image, target, seen)


def _offsets_for(checkpoint: Checkpoint, capture: HeadCapture, told: bool) -> Float[Tensor, "F 6"] | None:
    """The pose offsets of a checkpoint, brought to the frames of this capture, and whether some are lost is told; None where it has none."""
    if "delta_poses" not in checkpoint.modules:
        return None
    stored = checkpoint.module("delta_poses").get("delta", torch.zeros(0, 6))
    if checkpoint.data is None:  # published: nothing tells which frame a row belongs to
        if len(stored) != len(capture.frames):
            raise InputError(f"load_delta_poses_checkpoint: offsets of {len(stored)} frames, but dataset.dataroot has {len(capture.frames)}; "
                             "leave the key out to start with none")
        return stored
    of_digest = dict(zip(checkpoint.data.digests, stored, strict=False))
    rows = [of_digest.get(capture.digest(frame)) for frame in capture.frames]
    if told and any(row is None for row in rows):
        print(f"{checkpoint.path}: has pose offsets of {sum(row is not None for row in rows)} of {len(rows)} frames; the others start with none")
    return torch.stack([torch.zeros(6) if row is None else row for row in rows])


def _typical_pose(capture: HeadCapture) -> Float[Tensor, "6"]:
    """The tracked pose of the training frame that is nearest to the mean of all."""
    poses = torch.stack([capture.params[frame].pose for frame in capture.train_frames])
    return poses[(poses - poses.mean(dim=0)).square().sum(dim=1).argmin()]
