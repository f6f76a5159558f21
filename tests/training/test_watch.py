"""Steps that are skipped instead of ending a run, and Adam on other devices."""

import pytest
import torch

from lib.errors import NumericalError
from lib.training import watch as watch_module
from lib.training.optimizer import adam
from lib.training.watch import IN_A_ROW, NumberWatch
from tests.training.test_checkpoint import NumbersStage


@pytest.fixture
def stage():
    """With the fused optimizer of CUDA, which CPUs also have."""
    stage = NumbersStage()
    stage.optimizers = {"adam": torch.optim.Adam(stage.modules.parameters(), lr=0.1, fused=True)}
    stage.watch = NumberWatch()
    return stage


def values(stage):
    """Weights and the state of the optimizer."""
    state = stage.optimizers["adam"].state_dict()["state"]
    return [value.clone() for value in (*stage.modules.state_dict().values(), *(value for part in state.values() for value in part.values()))]


def descend(stage, factor, **others):
    weight = stage.modules["layer"].weight
    stage.watch.step += 1
    return stage.descend([{"a": (weight * factor).square().sum(), **others}], {"a": 1.0, "off": 0.0})


def test_a_step_that_is_not_finite_changes_nothing_and_is_told(stage):
    descend(stage, 1.0)
    before = values(stage)
    descend(stage, float("inf"))
    assert all(torch.equal(*pair) for pair in zip(before, values(stage), strict=True))
    line, = stage.watch.lines()
    assert line.startswith("step 2 changed nothing") and "a = inf" in line and "largest gradient" in line
    assert stage.watch.skipped == 1
    assert not stage.watch.lines()
    descend(stage, 1.0)
    assert not any(torch.equal(*pair) for pair in zip(before[:1], values(stage)[:1], strict=True))


def test_many_in_a_row_end_the_run_and_others_do_not(stage):
    for _ in range(3):
        for _ in range(IN_A_ROW - 1):
            descend(stage, float("nan"))
        descend(stage, 1.0)
    for _ in range(IN_A_ROW - 1):
        descend(stage, float("nan"))
    with pytest.raises(NumericalError, match=f"{IN_A_ROW} steps in a row .* step {4 * IN_A_ROW}, total = nan"):
        descend(stage, float("nan"))
    assert stage.broken_weights() == ""


def test_a_term_without_weight_skips_nothing(stage):
    before = values(stage)
    descend(stage, 1.0, off=torch.tensor(float("nan")))
    assert stage.watch.skipped == 0
    assert not torch.equal(before[0], values(stage)[0])


def test_what_was_noted_last_is_looked_at_when_the_run_ends(stage):
    watch = stage.watch
    watch._noted.append(watch_module._Noted(7, ("total",), torch.tensor([float("nan")]), None))
    assert not watch.lines()
    watch.settle()
    assert watch.skipped == 1
    assert watch.lines()[0].startswith("step 7 changed nothing")


def test_states_are_loaded_on_other_devices():
    weight = torch.nn.Parameter(torch.ones(3))
    saved = torch.optim.Adam([weight], lr=0.1, fused=True)
    weight.grad = torch.ones(3)
    saved.step()
    state = saved.state_dict()
    loaded = adam([{"params": [weight]}], torch.device("cpu"), lr=0.2)
    loaded.load_state_dict(state)
    assert (loaded.param_groups[0]["fused"], loaded.param_groups[0]["lr"]) == (None, 0.1)
    assert state["param_groups"][0]["fused"] is True
    loaded.step()
