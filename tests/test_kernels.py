"""When kernels must not be used."""

import pytest
import torch

from lib.kernels import must_be_repeatable
from lib.render.mesh import boxed


@pytest.fixture
def _strict():
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def test_torch_says_whether_sums_must_be_repeatable(_strict):
    assert must_be_repeatable()
    torch.use_deterministic_algorithms(True, warn_only=True)  # as training on a CPU does: the kernels' interpreter is not meant
    assert not must_be_repeatable()
    torch.use_deterministic_algorithms(False)
    assert not must_be_repeatable()


def test_meshes_are_then_drawn_by_the_reference(_strict, monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert "atomic sums" in boxed.obstacle(torch.zeros(1, 3, 3), torch.zeros(1, 3, 1))
