"""The one descent: what counts, what stops a run, and that nothing broken reaches a weight."""

import pytest
import torch

from lib.errors import NumericalError
from tests.training.test_checkpoint import NumbersStage


def test_a_step_goes_down_the_weighted_sum():
    stage = NumbersStage()
    weight = stage.modules["layer"].weight
    report = stage.descend([{"a": weight.square().sum(), "b": weight.abs().sum()}], {"a": 2.0, "b": 0.5})
    assert report.total == pytest.approx(float(2.0 * report.terms["a"] + 0.5 * report.terms["b"]), rel=1e-6)
    assert not report.total.requires_grad and not any(term.requires_grad for term in report.terms.values())
    assert stage.descend([{"a": weight.square().sum()}], {"a": 1.0}).total < report.terms["a"]


def test_a_term_without_weight_cannot_stop_a_run():
    stage = NumbersStage()
    weight = stage.modules["layer"].weight
    stage.descend([{"on": weight.square().sum(), "off": weight.sum() * torch.inf}], {"on": 1.0, "off": 0.0})
    assert stage.broken_weights() == ""


@pytest.mark.parametrize(("loss", "said"), [
    (lambda weight: weight.sum() * torch.nan, r"the loss is not finite \(a = nan\)"),
    (lambda weight: weight.sum() / 0.0, r"the loss is not finite \(a = -?inf\)"),
    (lambda weight: (weight * 0.0).sum().sqrt(), r"the gradient of layer\.weight is not finite"),
])
def test_what_is_not_finite_is_named_and_changes_nothing(loss, said):
    stage = NumbersStage()
    before = {name: tensor.clone() for name, tensor in stage.modules.state_dict().items()}
    with pytest.raises(NumericalError, match=said):
        stage.descend([{"a": loss(stage.modules["layer"].weight)}], {"a": 1.0})
    assert all(torch.equal(tensor, before[name]) for name, tensor in stage.modules.state_dict().items())


def test_broken_weights_are_named():
    stage = NumbersStage()
    with torch.no_grad():
        stage.modules["layer"].bias[0] = torch.inf
    assert stage.broken_weights() == "layer.bias"
