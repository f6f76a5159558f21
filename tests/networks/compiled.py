"""Kernels of the super-resolution network compiled without a GPU: `python -m tests.networks.compiled 80 90` prints what each one needs."""

import sys
from collections.abc import Iterator
from dataclasses import dataclass

from triton.compiler import ASTSource

from lib.networks import norm_kernels, norm_layers
from tests.render.compiled import Needs, assembled

STORED = {"x", "out"}  # of the type of the activations, as is `upstream` but for pictures; all other tensors are float32
INTEGERS = {"pixels", "runs", "width", "height"}
EXAMPLES = (32, 48, 128)  # channels


@dataclass(frozen=True)
class Variant:
    """A kernel as the host launches it."""

    name: str
    stored: str
    warps: int
    constants: dict

    def __str__(self) -> str:
        return f"{self.name} {self.stored} CHANNELS={self.constants['CHANNELS']}"


def variants() -> Iterator[Variant]:
    """Everything that the host launches for the widths above."""
    sums = {"STEPS": norm_layers.SUM_STEPS, "STAGES": norm_layers.SUM_STAGES}
    for stored in ("bf16", "fp32"):
        for channels in EXAMPLES:
            block = min(max(norm_layers.LEAST, 1 << (channels - 1).bit_length()), norm_layers.MAX_BLOCK)
            common = {"CHANNELS": channels, "BLOCK": block}

            def variant(name: str, warps: int, tile: int, stored=stored, common=common, **constants: object) -> Variant:
                rows = max(norm_layers.LEAST, tile // common["BLOCK"])
                return Variant(name, stored, warps, {**common, "ROWS": rows, **constants})

            yield variant("sum_values", norm_layers.SUM_WARPS, norm_layers.SUM_TILE, **sums)
            yield variant("sum_gradients", norm_layers.SUM_WARPS, norm_layers.SUM_TILE, **sums)
            for name in ("apply", "apply_gradients"):
                yield variant(name, norm_layers.APPLY_WARPS, norm_layers.APPLY_TILE)
            yield variant("merge_runs", norm_layers.MERGE_WARPS, 0, BLOCK=norm_layers.MERGE_CHANNELS, ROWS=norm_layers.MERGE_ROWS,
                          RUN=1024, EPS=norm_layers.EPS)
            for name in ("grow", "grow_gradients"):
                yield variant(name, norm_layers.GROW_WARPS, 0, ROWS=norm_layers.GROW_ROWS, COLUMNS=norm_layers.GROW_TILE // block)
            if channels < 128:  # a network that ends with as many begins with 512
                for name in ("show", "show_gradients"):
                    yield variant(name, norm_layers.SHOW_WARPS, norm_layers.SHOW_TILE, OUTPUTS=3)
                yield variant("sum_show_gradients", norm_layers.SHOW_SUM_WARPS, norm_layers.SHOW_SUM_TILE, OUTPUTS=3, PLANES=norm_layers.LEAST,
                              STEPS=norm_layers.SHOW_SUM_STEPS, STAGES=norm_layers.SHOW_SUM_STAGES)


def built(variant: Variant, architecture: int) -> Needs:
    """What a variant needs, compiled for an architecture."""
    kernel, constants, attributes, signature = getattr(norm_kernels, variant.name), dict(variant.constants), {}, {}
    for index, name in enumerate(kernel.arg_names):
        if name in constants:
            signature[name] = "constexpr"
        elif name in INTEGERS:
            signature[name] = "i32"
        else:
            stored = name in STORED or (name == "upstream" and "show" not in variant.name)
            signature[name], attributes[(index,)] = f"*{variant.stored if stored else 'fp32'}", [["tt.divisibility", 16]]
    return assembled(ASTSource(kernel, signature, constants, attributes), architecture, variant.warps, {})


def main() -> None:
    """Prints the table of the architectures that are named."""
    for architecture in [int(word) for word in sys.argv[1:]] or [90]:
        for variant in variants():
            print(f"sm_{architecture} {built(variant, architecture)}  {variant}", flush=True)


if __name__ == "__main__":
    main()
