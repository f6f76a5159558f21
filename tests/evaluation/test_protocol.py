"""Which LPIPS weights a number comes from; and what may change in the section `evaluation` of a run that goes on."""

import pytest
import torch

from lib.errors import InputError
from lib.evaluation.protocol import EvaluationConfig, load_networks
from lib.files import sha256
from lib.losses.perceptual import Lpips
from lib.training.resume import FREE_KEYS

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """AlexNet with random weights; no VGG16."""
    folder = tmp_path_factory.mktemp("weights")
    torch.manual_seed(0)
    state = Lpips("alex").state_dict()
    torch.save({name: value for name, value in state.items() if name.startswith("features")}, folder / "alexnet.pth")
    torch.save({name: value for name, value in state.items() if name.startswith("lin")}, folder / "lpips_alex.pth")
    return folder


def test_weights_that_are_there_are_used_and_told_by_their_hash(weights, capsys):
    networks, used = load_networks(EvaluationConfig(conventions=("ga_metrics",)), weights, CPU, 64)
    assert list(networks) == list(used) == ["alex"]
    assert used["alex"].features_sha256 == sha256(weights / "alexnet.pth") and used["alex"].heads_sha256 == sha256(weights / "lpips_alex.pth")
    torch.manual_seed(0)
    expected = Lpips("alex").state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in networks["alex"].state_dict().items())
    said = capsys.readouterr().out
    assert "LPIPS (vgg) is skipped" in said and str(weights / "vgg16.pth") in said and "--network vgg" in said
    assert "ga_metrics: its LPIPS is skipped" in said and "not the published file" in said


def test_small_pictures_and_unwanted_networks_are_skipped(weights, capsys):
    assert load_networks(EvaluationConfig(lpips=("alex",)), weights, CPU, 30) == ({}, {})
    assert "smaller than 31 pixels" in capsys.readouterr().out
    assert load_networks(EvaluationConfig(lpips=()), weights, CPU, 64) == ({}, {}) and capsys.readouterr().out == ""


def test_a_damaged_file_is_an_error_not_a_missing_one(weights, tmp_path):
    (tmp_path / "alexnet.pth").write_bytes((weights / "alexnet.pth").read_bytes()[:1000])
    (tmp_path / "lpips_alex.pth").symlink_to(weights / "lpips_alex.pth")
    with pytest.raises(InputError, match=r"alexnet\.pth: not a readable weight file"):
        load_networks(EvaluationConfig(lpips=("alex",)), tmp_path, CPU, 64)


def test_how_a_run_is_measured_may_change_while_it_goes_on():
    assert "evaluation".startswith(FREE_KEYS) and all(f"evaluation.{name}".startswith(FREE_KEYS) for name in EvaluationConfig.model_fields)
