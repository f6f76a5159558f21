"""The multilayer perceptron of Gaussian Head Avatar: one skip connection, an input in two parts."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lib.errors import InputError
from lib.networks.precision import Precision, products

NEGATIVE_SLOPE = 0.01


class MLP(nn.Module):
    """Linear layers of the widths `dims`, leaky ReLU between them, none after the last.

    The layer with index len(dims) // 2 receives [hidden, input]; for 3 or 4 widths that is the output layer.

    precision: of products; `high` is for CUDA. `rounded`: with it, activations may be bfloat16, which is too rough for places.
    """

    precision: Precision = "highest"

    def __init__(self, dims: Sequence[int], rounded: bool = False) -> None:
        super().__init__()
        self.rounded = rounded
        self.dims = tuple(dims)
        self.skip = len(dims) // 2
        self.layers = nn.ModuleList(
            nn.Linear(width + (dims[0] if index == self.skip else 0), following)
            for index, (width, following) in enumerate(zip(dims[:-1], dims[1:], strict=True))
        )

    def forward(
        self, local: Float[Tensor, "... N P"], code: Float[Tensor, "... K"] | None = None, columns: int | None = None
    ) -> Float[Tensor, "... N O"]:
        """The MLP of [local, code], where every point of a batch element shares one code; P + K = dims[0].

        `local` may lack batch dimensions that `code` has. Equal to concatenating, without writing the code N times.
        `columns`: only so many of the first outputs.
        """
        half = self.rounded and self.precision == "high" and local.is_cuda
        with products(self.precision), torch.autocast("cuda", torch.bfloat16, enabled=half):
            if code is None:
                return self._outputs(local, None, columns)
            if len(code) > 1 or code.dim() > 2 or local.dim() > 3:
                return self._outputs(local, code, columns)
            return self._outputs(local.flatten(0, -2), code[0], columns)[None]

    def _outputs(self, local: Float[Tensor, "... N P"], code: Float[Tensor, "... K"] | None, columns: int | None) -> Float[Tensor, "... N O"]:
        hidden = local
        for index, layer in enumerate(self.layers):
            assert isinstance(layer, nn.Linear)
            weight, bias, last = layer.weight, layer.bias, index == len(self.layers) - 1
            if last and columns is not None:
                weight, bias = weight[:columns], bias[:columns]
            if index == self.skip:
                own, weight = weight.split([weight.shape[1] - self.dims[0], self.dims[0]], dim=1)
                part = _input_part(weight, bias, local, code)
                hidden = torch.addmm(part, hidden, own.T) if part.dim() == 2 else part + nn.functional.linear(hidden, own)
            elif index == 0:
                hidden = _input_part(weight, bias, local, code)
            else:
                hidden = nn.functional.linear(hidden, weight, bias)
            if not last:
                hidden = nn.functional.leaky_relu(hidden, NEGATIVE_SLOPE, inplace=True)
        return hidden


def _input_part(
    weight: Float[Tensor, "O D"], bias: Float[Tensor, "O"], local: Float[Tensor, "... N P"], code: Float[Tensor, "... K"] | None
) -> Tensor:
    if code is None:
        return nn.functional.linear(local, weight, bias)
    by_point, by_code = weight.split([local.shape[-1], weight.shape[1] - local.shape[-1]], dim=1)
    shared = nn.functional.linear(code, by_code, bias)
    if shared.dim() == 1:  # one code: what it gives is a bias
        return nn.functional.linear(local, by_point, shared)
    return nn.functional.linear(local, by_point) + shared[..., None, :]


def resolve_widths(
    given: Sequence[int], default_hidden: Sequence[int], inputs: Sequence[tuple[int, str]], last: int, key: str
) -> tuple[int, ...]:
    """The widths of an MLP from a configuration list, or derived when the list is empty.

    `inputs` are the concatenated parts with what each is, for the message. Raises InputError when the first or last
    width does not fit.
    """
    first = sum(width for width, _ in inputs)
    arithmetic = " + ".join(what for _, what in inputs)
    if not given:
        return (first, *default_hidden, last)
    advice = "correct it, or leave the list out to have it derived"
    if len(given) < 3 or min(given) < 1:
        raise InputError(f"{key}: expected at least 3 positive widths (input, hidden, output), found {list(given)}; {advice}")
    if given[0] != first:
        raise InputError(f"{key}[0] is {given[0]}, but its input has {first} columns = {arithmetic}; {advice}")
    if given[-1] != last:
        raise InputError(f"{key}[-1] is {given[-1]}, but {last} outputs are needed; {advice}")
    return tuple(given)


def mean_squared_norm(output: Float[Tensor, "*B N O"]) -> Float[Tensor, ""]:
    """Mean over points of the squared length of an output: the magnitude penalty of deformations."""
    return output.square().sum(dim=-1).mean() if output.numel() else torch.zeros((), device=output.device)
