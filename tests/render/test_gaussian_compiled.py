"""Kernels compiled for sm_90 without a GPU: what each needs of registers and shared memory stays within what it is known to run well with."""

import pytest

from tests.render.triton_process import compiles, installed

# Name, then channels of a program and whether precision is `highest`, where they matter: registers, and bytes that do not fit into them.
# A little above what Triton 3.6 and 3.7 need.
LIMITS = {
    ("project_forward",): (64, 0), ("project_backward",): (136, 0), ("throw",): (80, 0), ("sum_rows",): (136, 0), ("sort_short",): (80, 0),
    ("sort_long",): (255, 104),
    ("gluon forward", 16, False): (120, 0), ("gluon forward", 16, True): (136, 0), ("gluon forward", 32, False): (160, 0),
    ("gluon forward", 32, True): (176, 0), ("gluon forward", 64, False): (224, 0), ("gluon forward", 64, True): (252, 0),
    ("gluon backward", 16, False): (168, 0), ("gluon backward", 16, True): (208, 0), ("gluon backward", 32, False): (176, 0),
    ("gluon backward", 32, True): (240, 0), ("gluon backward", 64, False): (255, 0), ("gluon backward", 64, True): (255, 8),
    ("triton forward", 16, False): (176, 0), ("triton forward", 32, False): (255, 24), ("triton forward", 64, False): (255, 0),
    ("triton backward", 16, False): (200, 0), ("triton backward", 32, False): (255, 112), ("triton backward", 64, False): (255, 120),
}
SHARED = 48 * 1024  # bytes: the least that any GPU since sm_80 offers one program without being asked for more


def limit_of(variant):
    blending = "HIGHEST" in variant.constants
    return LIMITS[(variant.name, variant.constants["BLOCK"], variant.constants["HIGHEST"]) if blending else (variant.name,)]


@installed
@compiles
def test_kernels_fit_without_a_gpu(tmp_path, monkeypatch):
    from tests.render.compiled import built, variants

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    needs = {str(variant): (variant, built(variant, 90)) for variant in variants()}
    print(*(f"{need}  {name}" for name, (_, need) in needs.items()), sep="\n")
    beyond = [f"{need}  {name}: expected at most {limit_of(variant)}" for name, (variant, need) in needs.items()
              if need.registers > limit_of(variant)[0] or need.stack > limit_of(variant)[1] or need.shared > SHARED]
    assert beyond == []


@pytest.mark.parametrize("name", ["gluon", "triton"])
@installed
@compiles
def test_variants_have_every_flag_on_and_off(name):
    from tests.render.compiled import variants

    for part in ("forward", "backward"):
        chosen = [variant.constants for variant in variants() if variant.name == f"{name} {part}"]
        flags = {flag for constants in chosen for flag, value in constants.items() if isinstance(value, bool)}
        for flag in flags - ({"HIGHEST"} if name == "triton" else set()):
            assert {constants[flag] for constants in chosen} == {False, True}, flag
