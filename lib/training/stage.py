"""What the training loop asks of a stage. Stages call `backward` themselves; the loop knows no loss."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lib.config import Config
from lib.datasets.batches import HeadBatch


@dataclass(frozen=True)
class StepReport:
    """Losses of one step: their weighted total and the named, unweighted terms (scalars, detached)."""

    total: Tensor
    terms: dict[str, Tensor]


@dataclass(frozen=True)
class Comparison:
    """Pictures beside their targets, on the background that the stage trains with."""

    images: Float[Tensor, "B 3 H W"]
    targets: Float[Tensor, "B 3 H W"]


class AbstractStage(ABC):
    """One trainable stage of an avatar system.

    `modules` holds everything learned, `optimizers` everything that updates it; both go into the checkpoint. `name` is
    the prefix of its files; `config` the resolved configuration that the checkpoint keeps.
    """

    name: str
    config: Config
    modules: nn.ModuleDict
    optimizers: dict[str, torch.optim.Optimizer]

    @abstractmethod
    def step(self, batch: HeadBatch, step: int) -> StepReport:
        """One optimization step on a batch that is on the device; randomness depends on `step` alone."""

    @abstractmethod
    def compare(self, batch: HeadBatch) -> Comparison:
        """Renders a batch of single views without gradient, for previews and held-out psnr."""
