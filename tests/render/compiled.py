"""Every kernel of the rasterizer compiled without a GPU: `python -m tests.render.compiled 80 86 89 90 100 120` prints what each one needs.

`all` prints every variant that the host can launch, not a selection. Numbers depend on Triton's version as well as on the architecture.
"""

import itertools
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile

from lib.render.gaussian import binning_kernels, projection_kernels, tiles
from lib.render.gaussian.tiled import GLUON, TRITON, Blending
from lib.render.mesh import box_kernels, boxed

BOTH = (False, True)
BINARIES = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
KINDS = {  # of arguments; all others are pointers to float32
    "*i64": {"counts", "total", "copy", "keys", "faces", "nearest"}, "*u8": {"keep"},
    "*i32": {"members", "ranges", "stops", "radii", "lasts", "words", "face_image"},
    "i32": {
        "count", "images", "room", "key_room", "stride_b", "stride_c", "stride_y", "stride_x", "tiles_x", "tiles_per_image", "blocks_x",
        "blocks_per_image", "blocks", "width", "height", "channels", "feature_rows", "points",
    },
}
# Integers that need not be multiples of 16.
ODD = {
    "count", "images", "room", "key_room", "tiles_x", "tiles_per_image", "blocks_x", "blocks_per_image", "blocks", "width", "height", "stride_x",
    "feature_rows", "points",
}


@dataclass(frozen=True)
class Variant:
    """A kernel as the host launches it. `planar`: pixels of a row of the image, or of its gradient, follow each other."""

    name: str
    kernel: object
    constants: dict
    warps: int
    options: dict
    planar: bool = True

    def __str__(self) -> str:
        return " ".join([self.name, *(f"{name}={int(value)}" for name, value in self.constants.items() if name not in ("CHUNK", "WARPS"))])


@dataclass(frozen=True)
class Needs:
    """What the assembler says."""

    registers: int
    stack: int  # bytes; these kernels have no arrays, so this is what did not fit into registers
    shared: int

    def __str__(self) -> str:
        return f"{self.registers:4} registers {self.shared:6} bytes shared" + (f" SPILLS {self.stack} bytes" if self.stack else "")


def blending_variants(name: str, blending: Blending, every: bool) -> Iterator[Variant]:
    """Of a backend. All flags for one width of channels, the usual ones for others; `every`: all of all."""
    kernels = blending.load()
    for block in (16, 32, 64):
        shapes = {"TILE_X": blending.tile[0], "TILE_Y": blending.tile[1], "CHUNK": blending.chunk, "BLOCK": block}
        # (SHARED, FULL, LONG): 3, 32 and 64 channels of one cloud per camera, then what is rarer.
        rest = [(False, block > 16, False)]
        rest += [(True, False, True)] if block == 32 or every else [(True, False, False)] if block == 64 else []
        rest += [(True, True, False), (False, block == 16, False), (False, True, True)] if every else []
        for highest, (shared, full, long) in itertools.product(BOTH if name == "gluon" else (False,), rest):  # the other takes no notice
            common = {**shapes, "HIGHEST": highest, "SHARED": shared, "FULL": full, "LONG": long}
            for save in BOTH if every or block == 32 else (True,):
                constants = {**common, "WARPS": blending.forward_warps, "SAVE": save}
                yield Variant(f"{name} forward", kernels.blend_forward, constants, blending.forward_warps, {})
            # alpha in the loss, rows (deterministic), gradients of pixels in planes
            flags = list(itertools.product(BOTH, BOTH, BOTH)) if every else [(True, False, True), (True, True, False)]
            flags += [(False, False, False)] if not every and block == 32 else []
            for alpha, rows, planar in flags:
                constants = {**common, "WARPS": blending.backward_warps, "ALPHA": alpha, "ROWS": rows, "PLANAR": planar}
                yield Variant(f"{name} backward", kernels.blend_backward, constants, blending.backward_warps, {}, planar)


def tile_variants(every: bool) -> Iterator[Variant]:
    """Of everything before and after blending."""
    fixed = {"BLOCK": tiles.PROJECT_BLOCK, "COLUMNS": tiles.COLUMNS}
    exactly = dict(projection_kernels.EXACTLY)
    shapes = {GLUON.tile, TRITON.tile} if every else {GLUON.tile}
    for (tile_x, tile_y), clip in itertools.product(sorted(shapes), BOTH):
        shape = {"CLIP": clip, "TILE_X": tile_x, "TILE_Y": tile_y}
        for shared in BOTH if every else (clip,):
            yield Variant("project_forward", projection_kernels.project_forward, {"SHARED": shared, **shape, **fixed}, tiles.PROJECT_WARPS, exactly)
        yield Variant("throw", binning_kernels.throw, {**shape, **fixed}, tiles.PROJECT_WARPS, exactly)
        for channels, parts in ((16, 1), (32, 1), (64, 1), (64, 2)) if every else ((16 if clip else 64, 1 + clip),):
            constants = {**shape, "BLOCK": tiles.SUM_BLOCK, "CHANNELS": channels, "PARTS": parts}
            yield Variant("sum_rows", binning_kernels.sum_rows, constants, tiles.SUM_WARPS, exactly)
    for shared, pose in itertools.product(BOTH, BOTH):
        constants = {"SHARED": shared, "POSE": pose, "BLOCK": tiles.BACKWARD_BLOCK}
        yield Variant("project_backward", projection_kernels.project_backward, constants, tiles.BACKWARD_WARPS, exactly)
    yield Variant("scan", binning_kernels.scan, {"BLOCK": tiles.SCAN_BLOCK}, tiles.SCAN_WARPS, {})
    yield Variant("sort_lists", binning_kernels.sort_lists, {"RUN": tiles.RUN}, tiles.SORT_WARPS, {})
    merging = {"RUN": tiles.RUN, "STEPS": tiles.RUN.bit_length(), "BLOCK": tiles.MERGE_BLOCK}
    yield Variant("merge_runs", binning_kernels.merge_runs, merging, tiles.MERGE_WARPS, {})
    for tile_x, tile_y in sorted(shapes):
        taking = {"TILE_X": tile_x, "TILE_Y": tile_y, "BLOCK": tiles.TAKE_BLOCK}
        yield Variant("take", binning_kernels.take, taking, tiles.TAKE_WARPS, {})


def variants(every: bool = False) -> Iterator[Variant]:
    """What the host launches: a selection that has every flag in it, or all."""
    yield from tile_variants(every)
    yield from blending_variants("gluon", GLUON, every)
    yield from blending_variants("triton", TRITON, every)


def mesh_variants() -> Iterator[Variant]:
    """Of the rasterizer of meshes."""
    hard, soft = {"FACES": boxed.HARD_FACES, "CELLS": boxed.HARD_CELLS}, {"FACES": boxed.SOFT_FACES, "CELLS": boxed.SOFT_CELLS}
    block = {"BLOCK": boxed.PIXELS}
    for name, constants in (("hit", hard), ("shade", block), ("shade_backward", block), ("soften", soft), ("soften_backward", soft)):
        yield Variant(name, getattr(box_kernels, name), constants, boxed.WARPS, boxed.EXACTLY)


def built(variant: Variant, architecture: int) -> Needs:
    """What a variant needs, compiled for an architecture."""
    kernel, constants, attributes = variant.kernel, dict(variant.constants), {}
    signature = {}
    for index, name in enumerate(kernel.arg_names):
        if name in constants:
            signature[name] = "constexpr"
            continue
        if name == "stride_x" and variant.planar:  # Triton makes a constant of 1
            signature[name], constants[name] = "constexpr", 1
            continue
        signature[name] = next((kind for kind, names in KINDS.items() if name in names), "*fp32")
        if name not in ODD and not (name == "channels" and not constants.get("FULL", False)):
            attributes[(index,)] = [["tt.divisibility", 16]]
    source = ASTSource
    if variant.name.startswith("gluon"):
        from triton.experimental.gluon._runtime import GluonASTSource as source
    return assembled(source(kernel, signature, constants, attributes), architecture, variant.warps, variant.options)


def assembled(source: ASTSource, architecture: int, warps: int, options: dict) -> Needs:
    """Compiles for an architecture, and takes the program apart."""
    compiled = compile(source, target=GPUTarget("cuda", architecture, 32), options={"num_warps": warps, **options})
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        usage = subprocess.run([BINARIES / "cuobjdump", "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
    return Needs(int(re.search(r"REG:(\d+)", usage)[1]), int(re.search(r"STACK:(\d+)", usage)[1]), compiled.metadata.shared)


def main() -> None:
    """Prints the table of the architectures that are named, with `all` of every variant."""
    every = "all" in sys.argv
    for architecture in [int(word) for word in sys.argv[1:] if word != "all"] or [90]:
        for variant in (*variants(every), *mesh_variants()):
            print(f"sm_{architecture} {built(variant, architecture)}  {variant}", flush=True)


if __name__ == "__main__":
    main()
