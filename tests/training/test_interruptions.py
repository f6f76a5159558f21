"""A run that is stopped or estimated ends with the same bits as one that is left alone (killed, doubled: tests/faults)."""

import os
import shutil
import signal
import threading
from pathlib import Path

import pytest
import torch

from lib.avatars.gaussian_head_avatar.gaussian_stage import GaussianHeadStage, GaussianHeadTrainConfig
from lib.datasets.head_capture import HeadCapture
from lib.datasets.sampler import TrainingBatches
from lib.errors import InputError, Stopped
from lib.files import RunLock
from lib.training.checkpoint import read_checkpoint
from lib.training.rehearsal import rehearse
from tests.tiny import Tiny, copy_subject, gaussian_dict, mesh_dict, run_script

STEPS = 30


@pytest.fixture(scope="module", autouse=True)
def _two_threads():
    """More than one thread, so that a sum in no fixed order would show."""
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def whole(made, tmp_path_factory) -> Path:
    """Trained without any interruption."""
    runs = tmp_path_factory.mktemp("whole")
    run_script("train_meshhead", mesh_dict(made.subject, runs, steps=2), runs)
    run_script("train_gaussianhead", values(made, runs), runs)
    return runs


@pytest.fixture
def runs(whole, tmp_path) -> Path:
    """Only stage 1 is trained."""
    folder = tmp_path / "runs" / "checkpoints" / "tiny"
    folder.mkdir(parents=True)
    shutil.copy(whole / "checkpoints" / "tiny" / "meshhead_latest", folder)
    return tmp_path / "runs"


def values(made: Tiny, runs: Path) -> dict:
    made_values = gaussian_dict(made.subject, runs, steps=STEPS)
    made_values["trainer"] |= {"final_lr_factor": 0.1, "validate_every": 7}
    made_values["recorder"]["save_freq"] = 4
    return made_values


def state(runs: Path) -> dict[str, torch.Tensor]:
    checkpoint = read_checkpoint(runs / "checkpoints" / "tiny" / "gaussianhead_latest", "gaussianhead", "test")
    assert checkpoint.step == STEPS
    tensors = {f"{module}.{name}": tensor for module, named in checkpoint.modules.items() for name, tensor in named.items()}
    for key, optimizer in checkpoint.optimizers.items():
        tensors |= {f"{key}.{row}.{name}": value for row, moments in optimizer["state"].items() for name, value in moments.items()}
    return tensors | {"best": torch.tensor(checkpoint.best_psnr)}


def assert_same(one: Path, other: Path) -> None:
    a, b = state(one), state(other)
    assert a.keys() == b.keys()
    assert [name for name in a if not torch.equal(a[name], b[name])] == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("workers", [0, 1])
def test_a_signal_saves_and_the_same_command_goes_on_to_the_same_bits(made, whole, runs, monkeypatch, number, workers):
    step = GaussianHeadStage.step

    def signalled(self, batch, at):
        if at == 9:
            os.kill(os.getpid(), number)
        return step(self, batch, at)

    with monkeypatch.context() as patch, pytest.raises(Stopped) as stopped:
        patch.setattr(GaussianHeadStage, "step", signalled)
        run_script("train_gaussianhead", values(made, runs), runs, f"trainer.workers={workers}")
    assert stopped.value.exit_code == 128 + number
    assert read_checkpoint(runs / "checkpoints" / "tiny" / "gaussianhead_latest", "gaussianhead", "test").step == 10
    run_script("train_gaussianhead", values(made, runs), runs, f"trainer.workers={workers}")
    assert_same(whole, runs)


def test_a_repeated_sigterm_still_saves(made, runs, monkeypatch):
    """Schedulers repeat it; only a person's second Ctrl-C means at once."""
    step = GaussianHeadStage.step

    def signalled(self, batch, at):
        if at == 5:
            os.kill(os.getpid(), signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGTERM)
        return step(self, batch, at)

    monkeypatch.setattr(GaussianHeadStage, "step", signalled)
    with pytest.raises(Stopped):
        run_script("train_gaussianhead", values(made, runs), runs)
    assert read_checkpoint(runs / "checkpoints" / "tiny" / "gaussianhead_latest", "gaussianhead", "test").step == 6


@pytest.mark.parametrize("workers", [0, 1])
def test_a_picture_that_turns_bad_loses_nothing(made, whole, runs, tmp_path, workers):
    """It is named in one line, without the traceback of a loading process; mended, the run goes on to the same bits."""
    subject = copy_subject(made.subject, tmp_path / "subject", lowres=True)
    made_values = values(made, runs) | {"dataset": values(made, runs)["dataset"] | {"dataroot": str(subject)}}
    config = GaussianHeadTrainConfig.model_validate(made_values)
    batches = TrainingBatches(HeadCapture(config.dataset), 1, 1, config.trainer.seed)
    checked = {(batches[at].frame[0], batches[at].view[0]) for at in range(3)}
    at = next(at for at in range(3, STEPS) if (batches[at].frame[0], batches[at].view[0]) not in checked)
    picture = subject / "images" / batches[at].frame[0] / f"image_lowres_{batches[at].view[0]}.jpg"
    good = picture.read_bytes()
    picture.write_bytes(good[:-50])
    with pytest.raises(InputError, match=rf"^{picture}: the image is cut off"):
        run_script("train_gaussianhead", made_values, runs, f"trainer.workers={workers}")
    first = next(k for k in range(STEPS) if (batches[k].frame[0], batches[k].view[0]) == (batches[at].frame[0], batches[at].view[0]))
    assert read_checkpoint(runs / "checkpoints" / "tiny" / "gaussianhead_latest", "gaussianhead", "test").step == first
    picture.write_bytes(good)
    run_script("train_gaussianhead", made_values, runs, f"trainer.workers={workers}")
    assert_same(whole, runs)


def test_more_steps_than_before_go_on_from_the_last(made, whole, tmp_path, monkeypatch):
    shutil.copytree(whole, tmp_path / "runs")
    step, taken = GaussianHeadStage.step, []

    def counted(self, batch, at):
        taken.append(at)
        return step(self, batch, at)

    monkeypatch.setattr(GaussianHeadStage, "step", counted)
    run_script("train_gaussianhead", values(made, tmp_path / "runs"), tmp_path, f"trainer.steps={STEPS + 2}")
    path = tmp_path / "runs" / "checkpoints" / "tiny" / "gaussianhead_latest"
    assert taken == [STEPS, STEPS + 1] and read_checkpoint(path, "gaussianhead", "test").step == STEPS + 2


def test_a_lock_needs_a_folder_that_can_be_written(tmp_path):
    (tmp_path / "a").write_text("")
    with pytest.raises(InputError, match="cannot be created"), RunLock(tmp_path / "a" / "b.lock"):
        pass


def test_signals_are_left_alone_outside_the_main_thread(made, runs):
    failures: list[BaseException] = []

    def go() -> None:
        try:
            run_script("train_gaussianhead", values(made, runs), runs, "trainer.steps=1")
        except BaseException as error:  # noqa: BLE001 (handed to the test)
            failures.append(error)

    thread = threading.Thread(target=go)
    thread.start()
    thread.join()
    assert failures == []


def test_a_rehearsal_changes_nothing_and_measures_something(made, runs):
    config = GaussianHeadTrainConfig.model_validate(values(made, runs))
    capture = HeadCapture(config.dataset)
    stage, batches = GaussianHeadStage(config, capture, torch.device("cpu")), TrainingBatches(capture, 1, 1, 0)
    for rehearsed in (0, 1):  # fresh optimizers, then used ones
        before = {name: tensor.clone() for name, tensor in stage.modules.state_dict().items()}
        moments = str({key: optimizer.state_dict() for key, optimizer in stage.optimizers.items()})
        cost = rehearse(stage, batches, rehearsed, torch.device("cpu"))
        assert cost.seconds > 0 and (cost.memory is None or cost.memory > 1e7)
        assert all(torch.equal(tensor, before[name]) for name, tensor in stage.modules.state_dict().items())
        assert str({key: optimizer.state_dict() for key, optimizer in stage.optimizers.items()}) == moments
        stage.step(batches[0], 0)


def test_cost_is_told_before_the_first_step(made, whole):
    log = (whole / "checkpoints" / "tiny" / "gaussianhead.log").read_text().splitlines()
    told = next(row for row, line in enumerate(log) if "a step takes" in line and f"{STEPS} steps about" in line and "GB" in line)
    assert told < next(row for row, line in enumerate(log) if "step 7/" in line)
