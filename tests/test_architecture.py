"""The placement rules of the project, checked."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
LAYERS = [
    "errors", "files", "archives", "provenance", "kernels", "tensors", "config", "geometry", "face_models", "networks", "gaussians", "datasets",
    "render", "losses", "metrics", "training", "jobs", "evaluation", "avatars",
]
FORBIDDEN_NAMES = {"utils", "util", "common", "misc", "helpers", "helper"}
FILES = sorted((ROOT / "lib").rglob("*.py"))


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path: Path) -> set[str]:
    """Absolute names of everything a file imports, also inside functions; `from a import b` gives a and a.b."""
    found: set[str] = set()
    package = path.relative_to(ROOT).parts[:-1]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[:len(package) - node.level + 1]) + "." if node.level else ""
            module = (base + (node.module or "")).rstrip(".")
            found |= {module} | {f"{module}.{alias.name}" for alias in node.names}
    return found


def layer_of(name: str) -> str | None:
    parts = name.split(".")
    return parts[1] if parts[0] == "lib" and len(parts) > 1 else None


def test_the_reader_of_imports_sees_them():
    assert "lib.errors.InputError" in imports(ROOT / "lib" / "training" / "trainer.py")


def test_every_part_of_lib_has_a_place_in_the_order():
    present = {path.stem if path.is_file() else path.name for path in (ROOT / "lib").iterdir()
               if path.suffix == ".py" or (path.is_dir() and any(path.rglob("*.py")))}
    assert present - {"__init__"} <= set(LAYERS)


def test_imports_point_down():
    wrong = []
    for path in FILES:
        own = layer_of(module_name(path))
        for name in imports(path):
            other = layer_of(name)
            if own is not None and other in LAYERS and LAYERS.index(other) > LAYERS.index(own):
                wrong.append(f"{path.relative_to(ROOT)} imports {name}")
    assert wrong == []


def test_avatar_systems_do_not_know_each_other():
    systems = {path.name for path in (ROOT / "lib" / "avatars").iterdir() if path.is_dir() and any(path.glob("*.py"))}
    assert systems
    wrong = []
    for system in systems:
        for path in (ROOT / "lib" / "avatars" / system).rglob("*.py"):
            wrong += [f"{path.relative_to(ROOT)} imports {name}" for name in imports(path) for other in systems - {system}
                      if name.startswith(f"lib.avatars.{other}")]
    assert wrong == []


def test_lib_knows_neither_preprocess_nor_tests_nor_scripts():
    scripts = {path.stem for path in ROOT.glob("*.py")}
    wrong = [f"{path.relative_to(ROOT)} imports {name}" for path in FILES for name in imports(path)
             if name.split(".")[0] in {"preprocess", "tests", "benchmarks"} | scripts]
    assert wrong == []


def test_no_drawer_for_everything():
    code = [path for folder in ("lib", "preprocess") for path in (ROOT / folder).rglob("*") if "__pycache__" not in path.parts]
    assert [str(path.relative_to(ROOT)) for path in code if path.stem in FORBIDDEN_NAMES] == []


def test_only_the_public_error_type_is_caught_blindly_at_the_edge():
    bare = [f"{path.relative_to(ROOT)}:{node.lineno}" for path in FILES for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.ExceptHandler) and node.type is None]
    assert bare == []


@pytest.mark.parametrize("name", ["train_meshhead", "train_gaussianhead", "reenactment", "evaluate", "viewer", "export", "train_subjects"])
def test_scripts_are_thin(name):
    tree = ast.parse((ROOT / f"{name}.py").read_text())
    main = next(node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "main")
    assert not any(isinstance(node, ast.If | ast.For | ast.While | ast.Try) for node in ast.walk(main))
    assert not any(imported.split(".")[0] in {"torch", "numpy", "cv2"} for imported in imports(ROOT / f"{name}.py"))


def is_kernel_file(name: str) -> bool:
    """A file of kernels may import its package at the top, as decorators need it: the backend imports that file inside functions."""
    return name.endswith("_kernels")


IMPORT_ALL = """
import importlib, sys, torch
def touched(*_):
    raise AssertionError("CUDA was touched at import")
torch.cuda._lazy_init = torch.cuda.init = torch.cuda.is_available = torch.cuda.device_count = touched
for name in sys.argv[1:]:
    importlib.import_module(name)
optional = {"torchvision", "lpips", "torch_fidelity", "gsplat", "viser", "submitit", "pytorch3d", "kaolin"} & set(sys.modules)
assert not optional, f"optional packages imported at module level: {optional}"
kernels = [name for name in sys.modules if name.startswith("lib.") and name.endswith("_kernels")]
assert not kernels, f"files of kernels imported at module level: {kernels}"
"""


def test_everything_imports_without_touching_cuda_or_optional_packages():
    names = [name for path in FILES if not is_kernel_file(name := module_name(path))]
    result = subprocess.run([sys.executable, "-c", IMPORT_ALL, *names], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr[-2000:]


def test_only_files_of_kernels_import_triton():
    # Not by sys.modules as above: where Triton is installed, torch itself may import it.
    assert [str(path.relative_to(ROOT)) for path in FILES
            if not is_kernel_file(module_name(path)) and "triton" in {name.split(".")[0] for name in imports(path)}] == []
