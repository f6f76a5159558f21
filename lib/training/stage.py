"""What the training loop asks of a stage. Stages call `backward` in `step`; the loop knows no loss."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lib.config import Config
from lib.datasets.batches import HeadBatch
from lib.errors import NumericalError
from lib.networks.precision import Precision, products
from lib.training.distributed import Exchange, Pass
from lib.training.watch import NumberWatch


@dataclass(frozen=True)
class StepReport:
    """Losses of one step: their weighted total and the named, unweighted terms (scalars, detached; of all processes together)."""

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
    the prefix of its files; `config` the resolved configuration that the checkpoint keeps; `remarks` are lines about the
    data, printed before the first step; `exchange` is with the other processes of a run, if the trainer gave one; `precision` is that of
    the networks; `earlier` is what CaptureRecord keeps of the checkpoints it goes back to; `watch` is there where steps whose numbers are not
    finite are skipped instead of ending the run.
    """

    name: str
    config: Config
    modules: nn.ModuleDict
    optimizers: dict[str, torch.optim.Optimizer]
    remarks: tuple[str, ...] = ()
    earlier: tuple[str, ...] = ()
    exchange: Exchange = Exchange()
    precision: Precision = "highest"
    watch: NumberWatch | None = None

    @abstractmethod
    def step(self, batch: HeadBatch, step: int) -> StepReport:
        """One optimization step on a batch that is on the device; randomness depends on the seed and `batch.samples` alone.

        A batch is the share of one process: every term must be a mean over items, so that the mean over shares is the term of the whole batch.
        """

    @staticmethod
    def passes(batch: HeadBatch, accumulate: int) -> Iterator[HeadBatch]:
        """The parts in which a batch is made, one after the other: `accumulate` of them.

        On a CPU, which gains nothing from larger ones, single items: then no number depends on how many processes share a batch.
        """
        return batch.parts(len(batch.frame) if batch.expression.device.type == "cpu" else accumulate)

    def descend(self, passes: Iterable[dict[str, Tensor]], weights: dict[str, float]) -> StepReport:
        """One step of every optimizer down the weighted sum of the terms, averaged over passes (made one after the other) and processes.

        Raises NumericalError naming the terms or the gradient that are not finite, before any weight changes; with a watch, only where
        that happens again and again.
        """
        parameters = [parameter for parameter in self.modules.parameters() if parameter.requires_grad]
        made: list[Pass] = []
        for terms in passes:
            for parameter in parameters:
                parameter.grad = None
            total = torch.stack([weights[name] * term for name, term in terms.items() if weights[name] > 0]).sum()
            # In this thread: the kernels of the rasterizer are started from Python, which is slower from autograd's own.
            with products(self.precision), torch.autograd.set_multithreading_enabled(False):
                total.backward()
            made.append(Pass([parameter.grad for parameter in parameters], torch.stack([total, *terms.values()]).detach()))
        mean = self.exchange.mean(parameters, made)
        report = StepReport(mean[0], dict(zip(terms, mean[1:], strict=True)))
        # The same numbers in every process: all go on, or none.
        largest = torch.nn.utils.get_total_norm([parameter.grad for parameter in parameters if parameter.grad is not None], norm_type=torch.inf)
        if self.watch is not None:
            counted = {"total": report.total, **{name: term for name, term in report.terms.items() if weights[name] > 0}, "largest gradient": largest}
            numbers = torch.stack(list(counted.values()))
            self.watch.note(tuple(counted), numbers)
            for optimizer in self.optimizers.values():
                optimizer.found_inf = (~torch.isfinite(numbers).all()).float()  # with which a fused optimizer changes nothing
        elif not bool(torch.isfinite(report.total + largest)):
            if bool(torch.isfinite(report.total)):
                gradients = {name: parameter.grad for name, parameter in self.modules.named_parameters() if parameter.grad is not None}
                raise NumericalError(f"the gradient of {_not_finite(gradients)} is not finite")
            counted = ", ".join(f"{name} = {float(term):.4g}" for name, term in report.terms.items() if weights[name] > 0)
            raise NumericalError(f"the loss is not finite ({counted})")
        for optimizer in self.optimizers.values():
            optimizer.step()
        return report

    def broken_weights(self) -> str:
        """Names of the first weights that are not finite, or an empty string."""
        return _not_finite(self.modules.state_dict())

    @abstractmethod
    def compare(self, batch: HeadBatch) -> Comparison:
        """Renders a batch of single views without gradient, for previews and held-out psnr."""


def _not_finite(tensors: dict[str, Tensor]) -> str:
    names = [name for name, tensor in tensors.items() if not bool(torch.isfinite(tensor).all())]
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
