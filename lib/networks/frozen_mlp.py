"""An MLP whose weights and points no longer change: for drawing."""

import torch
from jaxtyping import Float
from torch import Tensor

from lib.networks.mlp import MLP, NEGATIVE_SLOPE


class FrozenMLP:
    """The MLP of [local, code] as a function of the code alone: what the points give to the layers that see them is computed once.

    Matrix products take factors of type `dtype` and hidden values are kept in it; the last sum is float32.
    """

    def __init__(self, mlp: MLP, local: Float[Tensor, "*B N P"], dtype: torch.dtype) -> None:
        self.skip, self.last = mlp.skip, len(mlp.layers) - 1
        self.weights: list[Tensor] = []  # of hidden values; none for the first layer
        self.offsets: list[Tensor] = []  # that do not depend on the code: of every point where the layer sees the points
        self.code_weights: dict[int, Tensor] = {}
        for index, layer in enumerate(mlp.layers):
            weight, offset = layer.weight.detach(), layer.bias.detach()
            if index in (0, self.skip):
                own, inputs = weight.split([weight.shape[1] - mlp.dims[0], mlp.dims[0]], dim=1) if index else (None, weight)
                by_point, self.code_weights[index] = inputs.split([local.shape[-1], mlp.dims[0] - local.shape[-1]], dim=1)
                weight, offset = own, torch.nn.functional.linear(local, by_point, offset)
            if index:
                self.weights.append(weight.to(dtype))
            self.offsets.append(offset.float() if index == self.last else offset.to(dtype))

    def __call__(self, code: Float[Tensor, "B K"]) -> Float[Tensor, "B N O"]:
        """Outputs at all points."""
        hidden = self._offset(0, code)
        for index, weight in enumerate(self.weights, start=1):
            hidden = torch.nn.functional.leaky_relu_(hidden, NEGATIVE_SLOPE)
            if index == self.last:
                hidden = torch.nn.functional.linear(hidden, weight).float() + self._offset(index, code)
            elif index == self.skip:
                hidden = torch.nn.functional.linear(hidden, weight).add_(self._offset(index, code))
            else:
                hidden = torch.nn.functional.linear(hidden, weight, self.offsets[index])
        return hidden

    def _offset(self, index: int, code: Float[Tensor, "B K"]) -> Tensor:
        """What a layer adds to the product of hidden values, per point and code."""
        offset = self.offsets[index]
        if index not in self.code_weights:
            return offset
        return offset + torch.nn.functional.linear(code, self.code_weights[index])[..., None, :].to(offset.dtype)
