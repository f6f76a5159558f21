"""Kernels compiled for sm_90 without a GPU: what each needs of registers and shared memory stays within what it is known to run well with."""

import multiprocessing
from concurrent.futures import ProcessPoolExecutor

import pytest

from tests.render.triton_process import compiles, installed

# Name, then channels of a program and whether precision is `highest`, where they matter: registers, and bytes that do not fit into them.
# A little above what Triton 3.6 and 3.7 need.
LIMITS = {
    ("project_forward",): (136, 0), ("project_backward",): (136, 0), ("throw",): (176, 0), ("sum_rows",): (136, 0), ("scan",): (128, 0),
    ("sort_lists",): (64, 0), ("merge_runs",): (40, 0), ("take",): (64, 0),
    ("gluon forward", 16, False): (120, 0), ("gluon forward", 16, True): (152, 0), ("gluon forward", 32, False): (168, 0),
    ("gluon forward", 32, True): (176, 0), ("gluon forward", 64, False): (224, 0), ("gluon forward", 64, True): (252, 0),
    ("gluon backward", 16, False): (168, 0), ("gluon backward", 16, True): (232, 0), ("gluon backward", 32, False): (176, 0),
    ("gluon backward", 32, True): (240, 0), ("gluon backward", 64, False): (255, 0), ("gluon backward", 64, True): (255, 0),
    ("triton forward", 16, False): (80, 0), ("triton forward", 32, False): (80, 8), ("triton forward", 64, False): (96, 8),
    ("triton backward", 16, False): (176, 0), ("triton backward", 32, False): (192, 0), ("triton backward", 64, False): (255, 8),
}
# Of single variants, named by what the host chooses.
SPILLS = {"gluon backward BLOCK=64 HIGHEST=1 SHARED=1 FULL=0 LONG=0 ALPHA=1 ROWS=1 PLANAR=0": 24}
SHARED = 48 * 1024  # bytes: the least that any GPU since sm_80 offers one program without being asked for more


def limit_of(variant):
    blending = "HIGHEST" in variant.constants
    registers, stack = LIMITS[(variant.name, variant.constants["BLOCK"], variant.constants["HIGHEST"]) if blending else (variant.name,)]
    return registers, SPILLS.get(" ".join(word for word in str(variant).split(" ") if not word.startswith("TILE_")), stack)


def need_of(number):
    """Of a variant, by its place."""
    from tests.render.compiled import built, variants

    return built(list(variants())[number], 90)


@installed
@compiles
def test_kernels_fit_without_a_gpu(tmp_path, monkeypatch):
    from tests.render.compiled import variants

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    chosen = list(variants())
    with ProcessPoolExecutor(2, multiprocessing.get_context("spawn")) as processes:  # not threads: Triton parses, which Python 3.11 cannot in several
        needs = {str(variant): (variant, need) for variant, need in zip(chosen, processes.map(need_of, range(len(chosen))), strict=True)}
    print(*(f"{need}  {name}" for name, (_, need) in needs.items()), sep="\n")
    beyond = [f"{need}  {name}: expected at most {limit_of(variant)}" for name, (variant, need) in needs.items()
              if need.registers > limit_of(variant)[0] or need.stack > limit_of(variant)[1] or need.shared > SHARED]
    assert beyond == []


@installed
@compiles
def test_spills_are_those_of_selected_variants():
    from tests.render.compiled import variants

    names = {" ".join(word for word in str(variant).split(" ") if not word.startswith("TILE_")) for variant in variants()}
    assert names >= set(SPILLS)


@installed
@compiles
def test_all_kernels_are_compiled():
    from lib.render.gaussian import binning_kernels, projection_kernels
    from tests.render.compiled import KINDS, variants

    chosen = list(variants())
    launched = {"project_forward", "project_backward"} | {"scan", "throw", "sort_lists", "merge_runs", "take", "sum_rows"}
    assert {variant.name for variant in chosen if " " not in variant.name} == launched
    for variant in chosen:
        if " " not in variant.name:
            module = projection_kernels if variant.name.startswith("project") else binning_kernels
            assert variant.kernel is getattr(module, variant.name)
        # Constants are the last parameters, as a Launch wants, and integers stand behind all tensors.
        names = variant.kernel.arg_names
        assert set(names[len(names) - len(variant.constants):]) == set(variant.constants), variant.name
        numbers = [name in KINDS["i32"] for name in names[:len(names) - len(variant.constants)]]
        assert numbers == sorted(numbers), variant.name


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
