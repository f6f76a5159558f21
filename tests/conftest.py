"""Checks every jaxtyping annotation of lib, with beartype, while the tests run."""

import jaxtyping
import torch

jaxtyping.install_import_hook("lib", "beartype.beartype")  # before anything imports lib
torch.set_num_threads(2)
