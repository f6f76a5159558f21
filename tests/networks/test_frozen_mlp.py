"""The frozen MLP is the MLP: in torch, by its kernel under Triton's interpreter, and the kernel compiles."""

import re
import subprocess

import pytest
import torch

from lib.networks import frozen_mlp
from lib.networks.frozen_mlp import FrozenMLP
from lib.networks.mlp import MLP
from tests.render.triton_process import compiles, installed, interpreted, run_interpreted, starts_interpreter

SHAPES = [(5, 7, 4), (6, 8, 9, 3), (5, 8, 7, 6, 2), (5, 7, 8, 9, 10, 6, 3)]
KERNEL_SHAPES = [(20, 16, 4), (20, 32, 48, 33), (20, 128, 64, 3), (20, 16, 16, 16, 8), (20, 32, 64, 32, 16, 16, 3), (20, 32, 16, 160)]
# Of the published networks: inputs, outputs, and what the layer is.
LAYERS = [(256, 256, "plain"), (256, 256, "first"), (256, 256, "points"), (128, 128, "first"), (256, 8, "last"), (256, 32, "last points"),
          (128, 32, "first last points")]

def compare(dims, batch, dtype=torch.float32, codes=3, points=11):
    torch.manual_seed(0)
    mlp, local, code = MLP(dims), torch.randn(*batch, points, dims[0] - 2), torch.randn(codes, 2)
    frozen = FrozenMLP(mlp, local, dtype)
    with torch.no_grad():
        exact = mlp.double()(local.double(), code.double())
    for _ in range(2):  # nothing is used up
        ours = frozen(code)
        assert ours.dtype is torch.float32 and not ours.requires_grad
        assert ours.shape == exact.shape
        torch.testing.assert_close(ours.double(), exact, atol=1e-6 if dtype is torch.float32 else 3e-3, rtol=0.0)


@pytest.mark.parametrize("dims", SHAPES)
@pytest.mark.parametrize("batch", [(), (1,)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_it_is_the_mlp(dims, batch, dtype):
    compare(dims, batch, dtype)


def test_no_points_give_nothing():
    assert FrozenMLP(MLP((5, 8, 3)), torch.zeros(0, 3), torch.float32)(torch.zeros(2, 2)).shape == (2, 0, 3)


@installed
@starts_interpreter
def test_under_the_interpreter():
    run_interpreted(__file__)


@interpreted
@pytest.mark.parametrize("dims", KERNEL_SHAPES)
@pytest.mark.parametrize(("batch", "points"), [((), 130), ((1,), 5), ((), 0)])
def test_the_kernel_is_the_mlp(dims, batch, points, monkeypatch):
    monkeypatch.setattr(FrozenMLP, "_torch", None)
    compare(dims, batch, codes=1, points=points)


@interpreted
def test_other_widths_and_several_codes_do_without_the_kernel(monkeypatch):
    monkeypatch.setattr(FrozenMLP, "_kernels", None)
    compare((20, 24, 3), (), codes=1)
    compare((20, 16, 3), (), codes=2)


@installed
@compiles
@pytest.mark.parametrize("architecture", [80, 90])
@pytest.mark.parametrize(("inputs", "outputs", "kind"), LAYERS)
def test_the_kernel_compiles_without_spills(tmp_path, monkeypatch, inputs, outputs, kind, architecture):
    """And most leave room for two programs on a multiprocessor of sm_90, so that one computes while the other loads."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource, compile

    from lib.networks.mlp_kernels import layer
    from tests.render.compiled import BINARIES

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    last, block = "last" in kind, min(max(frozen_mlp.LEAST, outputs), frozen_mlp.BLOCK_OUT)
    constants = {
        "INPUTS": inputs, "OUTPUTS": outputs, "FIRST": "first" in kind, "POINTS": "points" in kind, "LAST": last, "SLOPE": 0.01,
        "BLOCK": frozen_mlp.BLOCK, "BLOCK_IN": frozen_mlp.BLOCK_IN, "BLOCK_OUT": block,
    }
    types = {"hidden": "*fp16", "weight": "*fp16", "rows": "i32", "code": "*fp32", "bias": "*fp32"}
    signature = {name: "constexpr" if name in constants else types.get(name, "*fp32" if last else "*fp16") for name in layer.arg_names}
    aligned = {(place,): [["tt.divisibility", 16]] for place, name in enumerate(layer.arg_names) if signature[name].startswith("*")}
    built = compile(ASTSource(layer, signature, constants, aligned), target=GPUTarget("cuda", architecture, 32),
                    options={"num_warps": frozen_mlp.warps_of(block), "num_stages": frozen_mlp.STAGES})
    (tmp_path / "cubin").write_bytes(built.asm["cubin"])
    usage = subprocess.run([BINARIES / "cuobjdump", "-res-usage", tmp_path / "cubin"], capture_output=True, text=True, check=True).stdout
    registers, stack = (int(re.search(rf"{name}:(\d+)", usage)[1]) for name in ("REG", "STACK"))
    print(f"sm_{architecture} {inputs} -> {outputs} {kind}: {registers} registers, {built.metadata.shared} bytes shared, {stack} spilled")
    assert stack == 0
    assert built.metadata.shared <= 99 * 1024  # the least that a GPU since sm_80 can give one program
    if architecture == 90:
        assert registers <= (136 if "first" in kind else 128) or block <= 64
