"""Checks every jaxtyping annotation of lib, with beartype, while the tests run."""

import jaxtyping

jaxtyping.install_import_hook("lib", "beartype.beartype")  # before anything imports lib
