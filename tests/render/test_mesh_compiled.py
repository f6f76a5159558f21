"""The kernels of meshes compiled for sm_90 without a GPU: what each needs of registers and shared memory."""

import pytest

from tests.render.triton_process import compiles, installed

REGISTERS = {"hit": 104, "shade": 80, "shade_backward": 168, "soften": 88, "soften_backward": 144}  # a little above what Triton 3.7 needs


@installed
@compiles
@pytest.mark.parametrize("name", REGISTERS)
def test_kernels_fit_without_a_gpu(name, tmp_path, monkeypatch):
    from tests.render.compiled import built, mesh_variants

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    variants = {variant.name: variant for variant in mesh_variants()}
    assert set(variants) == set(REGISTERS)
    needs = built(variants[name], 90)
    print(needs)
    assert needs.registers <= REGISTERS[name]
    assert needs.stack == 0
    assert needs.shared <= 4096
