"""Training of the mesh head."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from lib.avatars.gaussian_head_avatar.config import AvatarConfig, check_held_out, check_same, check_subject, descent
from lib.avatars.gaussian_head_avatar.handover import mesh_head_from
from lib.avatars.gaussian_head_avatar.mesh_head import DeformedHead, MeshHead, MeshHeadConfig
from lib.avatars.gaussian_head_avatar.published import read_mesh_head, refuse_published
from lib.config import Config
from lib.datasets.batches import HeadBatch, where_seen
from lib.datasets.capture_check import check_capture
from lib.datasets.head_capture import HeadCapture
from lib.evaluation.protocol import EvaluationConfig
from lib.losses.mesh import laplacian_smoothness
from lib.losses.photometric import visible_l1
from lib.losses.silhouette import one_minus_iou
from lib.render.mesh.contract import MeshImage
from lib.render.mesh.interface import render_mesh
from lib.tensors import TensorBundle
from lib.training.optimizer import adam
from lib.training.stage import AbstractStage, Comparison, StepReport
from lib.training.trainer import TrainerConfig

RGB = slice(0, 3)


class MeshLossConfig(Config):
    """Section `loss` of stage 1: weights."""

    rgb: float = Field(0.1, ge=0, description="L1 of masked colour")
    silhouette: float = Field(0.1, ge=0, description="1 - IoU of masks")
    landmarks: float = Field(1.0, ge=0, description="squared distance of deformed landmarks, canonical units")
    deformation: float = Field(0.01, ge=0, description="squared length of the deformation outputs")
    landmark_sdf: float = Field(0.1, ge=0, description="distance of the neutral landmarks from the surface")
    laplacian: float = Field(100.0, ge=0, description="squared uniform Laplacian, world units")


@dataclass(frozen=True)
class MeshLosses(TensorBundle):
    """Unweighted terms; names as in MeshLossConfig."""

    rgb: Float[Tensor, ""]
    silhouette: Float[Tensor, ""]
    landmarks: Float[Tensor, ""]
    deformation: Float[Tensor, ""]
    landmark_sdf: Float[Tensor, ""]
    laplacian: Float[Tensor, ""]


class MeshTrainerConfig(TrainerConfig):
    """Section `trainer` of stage 1."""

    epochs: int = Field(50, gt=0, description="passes over the training frames when steps is not given")


class MeshHeadTrainConfig(AvatarConfig):
    """The YAML file of train_meshhead.py."""

    lr_net: float = Field(1e-3, gt=0, description="Adam learning rate of the networks")
    meshheadmodule: MeshHeadConfig = MeshHeadConfig()
    loss: MeshLossConfig = MeshLossConfig()
    trainer: MeshTrainerConfig = MeshTrainerConfig()
    evaluation: EvaluationConfig | None = Field(None, description="not used: so that one file of what is held out can be laid over all stages")


class MeshHeadStage(AbstractStage):
    """Stage 1: four views of one frame; masked pictures on black."""

    name = "meshhead"

    def __init__(self, config: MeshHeadTrainConfig, capture: HeadCapture, device: torch.device) -> None:
        self.remarks = (*capture.notes, *check_capture(capture, config.meshheadmodule.model_bbox).lines())
        self.weights = config.loss
        self.head, self.earlier = self._start(config, capture, device)
        self.config = config.model_copy(update={"meshheadmodule": self.head.config})
        self.modules = nn.ModuleDict({"meshhead": self.head})
        networks = [parameter for name, parameter in self.head.named_parameters() if name != "landmarks_3d_neutral"]
        self.optimizers = {"adam": adam([
            {"params": networks, "lr": config.lr_net}, {"params": [self.head.landmarks_3d_neutral], "lr": config.lr_lmk},
        ], device)}

    @staticmethod
    def _start(config: MeshHeadTrainConfig, capture: HeadCapture, device: torch.device) -> tuple[MeshHead, tuple[str, ...]]:
        """The head, and what it goes back to."""
        resolved = config.meshheadmodule.resolved(capture.expression_count)
        own = config.recorder.run_folder / "meshhead_latest"
        refuse_published(own)
        given = config.start_from("load_meshhead_checkpoint")
        path = own if own.exists() else given
        if path is not None:
            checkpoint = read_mesh_head(path, "resume" if path == own else "load_meshhead_checkpoint", config.meshheadmodule)
            check_same(config.meshheadmodule, checkpoint.section("meshheadmodule"), "meshheadmodule", path)
            check_subject(checkpoint, "meshhead", capture)
            check_held_out(capture, checkpoint)
            if path == given:  # the trainer says so when it resumes
                print(f"meshhead: starting from the weights of {path}")
            return mesh_head_from(checkpoint).to(device), descent(checkpoint)
        head = MeshHead(resolved, capture.control_count).to(device)
        first = capture.item(capture.train_frames[0], capture.train_cameras[:1]).to(device)
        head.start_landmarks_at(first.control_points, first.head)
        head.start_as_sphere(config.trainer.seed)
        return head, ()

    def step(self, batch: HeadBatch, step: int) -> StepReport:
        """One Adam step."""
        return self.descend((vars(self._losses(part)) for part in self.passes(batch, self.config.trainer.accumulate)), dict(self.weights))

    def compare(self, batch: HeadBatch) -> Comparison:
        """Rendered colour and masked targets, on black."""
        image = self._render(self.head(batch), batch)
        target = (batch.images * batch.masks).flatten(0, 1)
        return Comparison(where_seen(image.attributes, target, batch.pixels.flatten(0, 1)), target)

    def _render(self, deformed: DeformedHead, batch: HeadBatch) -> MeshImage:
        views = batch.pixels.shape[1]
        mesh = deformed.mesh
        image = render_mesh(mesh.vertices_world.repeat_interleave(views, dim=0), mesh.faces,
                            mesh.colors[..., RGB].repeat_interleave(views, dim=0), batch.flat_camera())
        return MeshImage(image.attributes.clamp(0.0, 1.0), image.mask, image.depth, image.normals)

    def _losses(self, batch: HeadBatch) -> MeshLosses:
        deformed = self.head(batch)
        return self._terms(deformed, self._render(deformed, batch), batch)

    def _terms(self, deformed: DeformedHead, image: MeshImage, batch: HeadBatch) -> MeshLosses:
        visible, mask = batch.visible.flatten(0, 1), batch.masks.flatten(0, 1)
        target = batch.images.flatten(0, 1) * mask
        return MeshLosses(
            rgb=visible_l1(image.attributes, target, visible),
            silhouette=one_minus_iou(image.mask * visible, mask * visible),
            landmarks=(deformed.landmarks_canonical - batch.head.to_canonical(batch.control_points)).square().mean(),
            deformation=deformed.deformation_magnitude,
            landmark_sdf=deformed.landmark_sdf.abs().mean(),
            # Summed over the whole batch, as published: what is averaged over its parts is that many times larger.
            laplacian=laplacian_smoothness(deformed.mesh.vertices_world, deformed.mesh.faces) * (self.config.batch_size / len(batch.frame)),
        )
