"""Kernels of the super-resolution network compiled for sm_90 without a GPU: registers, and bytes that do not fit into them."""

from tests.render.triton_process import compiles, installed

# Registers and bytes, a little above what Triton 3.6 and 3.7 need.
LIMITS = {
    "sum_values": (176, 0), "sum_gradients": (176, 0), "merge_runs": (80, 0), "apply": (64, 0), "apply_gradients": (128, 16), "grow": (128, 0),
    "grow_gradients": (136, 0), "show": (64, 0), "show_gradients": (136, 0), "sum_show_gradients": (248, 0),
}
SHARED = 96 * 1024  # bytes: what every GPU since sm_80 offers one program


@installed
@compiles
def test_kernels_fit_without_a_gpu(tmp_path, monkeypatch):
    from tests.networks.compiled import built, variants

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    needs = [(variant, built(variant, 90)) for variant in variants()]
    print(*(f"{need}  {variant}" for variant, need in needs), sep="\n")
    assert {variant.name for variant, _ in needs} == set(LIMITS)
    beyond = [f"{need}  {variant}: expected at most {LIMITS[variant.name]}" for variant, need in needs
              if need.registers > LIMITS[variant.name][0] or need.stack > LIMITS[variant.name][1] or need.shared > SHARED]
    assert beyond == []
