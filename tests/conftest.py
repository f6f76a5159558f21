"""Checks every jaxtyping annotation of lib, with beartype, while the tests run."""

from pathlib import Path

import jaxtyping
import torch

# Before anything imports lib. Not lib.tensors: jaxtyping decorates methods one by one, where beartype refuses `Self`.
packages = sorted(path.parent.name for path in (Path(__file__).parents[1] / "lib").glob("*/__init__.py"))
jaxtyping.install_import_hook([f"lib.{name}" for name in packages], "beartype.beartype")
torch.set_num_threads(2)
