"""Kernels of `unit_distance` compiled for sm_90 without a GPU: registers, and bytes that do not fit into them."""

import pytest

from tests.render.triton_process import compiles, installed

REGISTERS = {"sum_distances": 80, "distance_gradients": 112}  # at most: four programs of 128 threads and more at a time
SHARED = 48 * 1024  # bytes: the least that any GPU since sm_80 offers one program without being asked for more


@installed
@compiles
@pytest.mark.parametrize("stored", ["bf16", "fp32"])
@pytest.mark.parametrize("channels", [3, 64, 100, 128, 192, 256, 384, 512])
@pytest.mark.parametrize("name", REGISTERS)
def test_kernels_fit_without_a_gpu(name, channels, stored, tmp_path, monkeypatch):
    from triton.compiler import ASTSource

    from lib.losses import distance_kernels
    from lib.losses.perceptual import EPSILON, LEAST, TILE, WARPS
    from tests.render.compiled import assembled

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    block = max(LEAST, 1 << (channels - 1).bit_length())
    constants = {"CHANNELS": channels, "BLOCK": block, "ROWS": TILE // block, "EPSILON": EPSILON}
    kernel, signature, attributes = getattr(distance_kernels, name), {}, {}
    for index, argument in enumerate(kernel.arg_names):
        if argument in constants:
            signature[argument] = "constexpr"
        elif argument in ("pixels", "step"):
            signature[argument] = "i32"
        else:
            signature[argument], attributes[(index,)] = f"*{stored if argument in ('a', 'b', 'out') else 'fp32'}", [["tt.divisibility", 16]]
    needs = assembled(ASTSource(kernel, signature, constants, attributes), 90, WARPS, {})
    print(needs, name, stored, channels)
    assert needs.registers <= REGISTERS[name]
    assert needs.stack == 0
    assert needs.shared <= SHARED
