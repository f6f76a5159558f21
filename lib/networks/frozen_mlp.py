"""An MLP whose weights and points no longer change: for drawing."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from lib.kernels import runs_kernels
from lib.networks.mlp import MLP, NEGATIVE_SLOPE

BLOCK, BLOCK_IN, BLOCK_OUT, STAGES = 128, 64, 128, 3  # points, inputs and outputs of a program of the kernel; it pipelines inputs
LEAST = 16  # inputs and outputs that matrix units want


@dataclass(frozen=True)
class FrozenLayer:
    """What a layer makes of hidden values (the first has none), of the points and of the code; the last two only where it sees them."""

    weight: Float[Tensor, "O H"] | None
    points: Float[Tensor, "*B N O"] | None
    code_weight: Float[Tensor, "O K"] | None
    bias: Float[Tensor, "O"]

    def vector(self, code: Float[Tensor, "B K"]) -> Float[Tensor, "*b O"]:
        """What all points get: one vector, or one per code."""
        return self.bias if self.code_weight is None else torch.nn.functional.linear(code, self.code_weight, self.bias)


class FrozenMLP:
    """The MLP of [local, code] as a function of the code alone: what the points give to the layers that see them is computed once.

    Matrix products take factors of type `dtype` and hidden values are kept in it; they are summed in float32, and outputs are float32. In
    float16 on CUDA, with Triton, every layer is one kernel (mlp_kernels.py), else several of torch's.
    """

    def __init__(self, mlp: MLP, local: Float[Tensor, "*B N P"], dtype: torch.dtype) -> None:
        self.layers, self.dtype, last = list[FrozenLayer](), dtype, len(mlp.layers) - 1
        for index, layer in enumerate(mlp.layers):
            weight, points, code_weight = layer.weight.detach(), None, None
            if index in (0, mlp.skip):
                weight, inputs = weight.split([weight.shape[1] - mlp.dims[0], mlp.dims[0]], dim=1)
                by_point, code_weight = inputs.split([local.shape[-1], mlp.dims[0] - local.shape[-1]], dim=1)
                points = torch.nn.functional.linear(local, by_point).to(torch.float32 if index == last else dtype)
            self.layers.append(FrozenLayer(weight.to(dtype).contiguous() if index else None, points, code_weight, layer.bias.detach()))
        hidden = [layer.weight.shape[1] for layer in self.layers[1:]]
        computed = torch.float16 if local.is_cuda else torch.float32
        self._by_kernel = runs_kernels(local) and dtype is computed and all(width % LEAST == 0 for width in hidden)

    def __call__(self, code: Float[Tensor, "B K"]) -> Float[Tensor, "B N O"]:
        """Outputs at all points."""
        vectors = [layer.vector(code) for layer in self.layers]
        return self._kernels(vectors) if self._by_kernel and len(code) == 1 else self._torch(vectors)

    def _torch(self, vectors: list[Tensor]) -> Float[Tensor, "B N O"]:
        first, *others = self.layers
        hidden = first.points + vectors[0][..., None, :].to(self.dtype)
        for layer, vector in zip(others, vectors[1:], strict=True):
            hidden = torch.nn.functional.leaky_relu_(hidden, NEGATIVE_SLOPE)
            hidden = torch.nn.functional.linear(hidden, layer.weight).to(torch.float32 if layer is others[-1] else self.dtype)
            hidden += vector[..., None, :].to(hidden.dtype)
            if layer.points is not None:
                hidden += layer.points
        return hidden

    def _kernels(self, vectors: list[Tensor]) -> Float[Tensor, "B N O"]:
        """For a single code."""
        from lib.networks import mlp_kernels

        first, *others = self.layers
        hidden, rows = first.points, first.points.shape[-2]
        for layer, vector in zip(others, vectors[1:], strict=True):
            outputs, inputs = layer.weight.shape
            last = layer is others[-1]
            out = hidden.new_empty(1, rows, outputs, dtype=torch.float32 if last else self.dtype)
            block_out = min(max(LEAST, 1 << (outputs - 1).bit_length()), BLOCK_OUT)
            if rows:
                mlp_kernels.layer[-(-rows // BLOCK), -(-outputs // block_out)](
                    hidden, vectors[0], layer.weight, vector, out if layer.points is None else layer.points, out, rows, INPUTS=inputs,
                    OUTPUTS=outputs, FIRST=layer is others[0], POINTS=layer.points is not None, LAST=last, SLOPE=NEGATIVE_SLOPE, BLOCK=BLOCK,
                    BLOCK_IN=next(width for width in (BLOCK_IN, 32, LEAST) if inputs % width == 0), BLOCK_OUT=block_out,
                    num_warps=warps_of(block_out), num_stages=STAGES,
                )
            hidden = out
        return hidden


def warps_of(block_out: int) -> int:
    """Of a program of the kernel that makes so many outputs."""
    return 8 if block_out > 64 else 4
