"""The checkpoint file: what is saved comes back; what cannot be used is refused; nothing is lost or executed."""

import errno
import os
from pathlib import Path

import pytest
import torch
from torch import nn

from lib.config import Config
from lib.datasets.head_capture import CaptureRecord
from lib.errors import InputError
from lib.training.checkpoint import FORMAT, load_module, read_checkpoint, save_checkpoint
from lib.training.stage import AbstractStage, Comparison, StepReport

DATA = CaptureRecord(("0000", "0010"), ("a", "b"), ("0000",), ("1", "2"))


class NumbersConfig(Config):
    """A stage without data."""

    width: int = 3
    folder: Path = Path("a/b")


class NumbersStage(AbstractStage):
    """A linear layer and its optimizer."""

    name = "numbers"

    def __init__(self, width: int = 3, seed: int = 0) -> None:
        torch.manual_seed(seed)
        self.config = NumbersConfig(width=width)
        self.modules = nn.ModuleDict({"layer": nn.Linear(width, 2)})
        self.optimizers = {"adam": torch.optim.Adam(self.modules.parameters(), lr=0.1)}

    def step(self, batch=None, step: int = 0) -> StepReport:
        total = self.modules["layer"].weight.square().sum()
        self.optimizers["adam"].zero_grad()
        total.backward()
        self.optimizers["adam"].step()
        return StepReport(total.detach(), {})

    def compare(self, batch) -> Comparison:
        raise NotImplementedError


def save(path: Path, stage: AbstractStage, step: int = 5, copies: tuple[Path, ...] = ()) -> None:
    save_checkpoint(path, stage, step, 31.5, 12.25, DATA, list(copies))


def refusal(path: Path, stage: str = "numbers") -> str:
    with pytest.raises(InputError) as error:
        read_checkpoint(path, stage, "load_something")
    said = str(error.value)
    assert said.startswith("load_something: ") and str(path) in said and len(said.splitlines()) == 1
    return said


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "run" / "numbers_latest"
    stage = NumbersStage()
    stage.step()
    save(path, stage)
    return path, stage


def test_round_trip(saved):
    path, stage = saved
    checkpoint = read_checkpoint(path, "numbers", "key")
    assert (checkpoint.stage, checkpoint.step, checkpoint.best_psnr, checkpoint.seconds) == ("numbers", 5, 31.5, 12.25)
    assert checkpoint.data == DATA and checkpoint.path == path
    assert NumbersConfig.model_validate(checkpoint.config) == stage.config
    other = NumbersStage(seed=1)
    assert not torch.equal(other.modules["layer"].weight, stage.modules["layer"].weight)
    checkpoint.restore(other)
    for _ in range(3):  # the optimizer's moments came back too: both go on alike
        assert torch.equal(other.modules["layer"].weight, stage.modules["layer"].weight)
        stage.step()
        other.step()


def test_loads_without_running_code(saved):
    state = torch.load(saved[0], weights_only=True)
    assert {"format", "stage", "step", "config", "data", "modules", "optimizers", "rng"} <= state.keys()


def test_copies_are_whole_files_of_their_own(tmp_path, saved):
    path, stage = saved
    copies = (path.with_name("numbers_best"), path.with_name("numbers_step_0000005"))
    save(path, stage, 5, copies)
    before = [copy.read_bytes() for copy in copies]
    assert all(data == path.read_bytes() for data in before)
    stage.step()
    save(path, stage, 6)
    assert [copy.read_bytes() for copy in copies] == before != [path.read_bytes()] * 2
    assert [read_checkpoint(copy, "numbers", "key").step for copy in copies] == [5, 5]


def test_copies_do_not_need_hard_links(monkeypatch, saved):
    def no_links(*_, **__):
        raise OSError(errno.EPERM, "Operation not permitted")  # as on exFAT and many network file systems

    path, stage = saved
    monkeypatch.setattr(os, "link", no_links)
    save(path, stage, 7, (path.with_name("numbers_best"),))
    assert read_checkpoint(path.with_name("numbers_best"), "numbers", "key").step == 7


def test_missing_names_the_neighbours(saved):
    said = refusal(saved[0].with_name("numbers_lastest"))
    assert "numbers_latest" in said


def test_missing_folder(tmp_path):
    assert "no folder" in refusal(tmp_path / "nowhere" / "numbers_latest")


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9, 0.99])
def test_truncated(saved, share):
    path = saved[0]
    path.write_bytes(path.read_bytes()[:int(share * path.stat().st_size)])
    refusal(path)


@pytest.mark.parametrize("data", [b"", b"\x80\x04N.", bytes(1000), b"hello world" * 100, bytes(range(256)) * 8],
                         ids=["empty", "none", "zeros", "text", "bytes"])
def test_another_kind_of_file(saved, data):
    saved[0].write_bytes(data)
    refusal(saved[0])


def test_a_folder(tmp_path):
    (tmp_path / "numbers_latest").mkdir()
    refusal(tmp_path / "numbers_latest")


@pytest.mark.parametrize("state", [3, [1, 2], {"weight": torch.zeros(2)}, {"format": FORMAT - 1}, {"format": FORMAT},
                                   {"format": FORMAT, "stage": "numbers"}],
                         ids=["number", "list", "bare state dict", "older format", "format only", "half"])
def test_another_content(saved, state):
    torch.save(state, saved[0])
    assert "format" in refusal(saved[0])


def test_another_stage(saved):
    said = refusal(saved[0], stage="letters")
    assert "'letters'" in said and "'numbers'" in said


def test_wrong_widths_name_file_module_and_tensor(saved):
    path = saved[0]
    wider = NumbersStage(width=4)
    before = wider.modules["layer"].weight.detach().clone()
    with pytest.raises(InputError) as error:
        read_checkpoint(path, "numbers", "key").restore(wider)
    for part in (str(path), "'layer'", "'weight'", "(2, 4)", "(2, 3)"):
        assert part in str(error.value)
    assert torch.equal(wider.modules["layer"].weight, before)


@pytest.mark.parametrize("change", [lambda state: state.pop("bias"), lambda state: state.update(extra=torch.zeros(1))], ids=["absent", "extra"])
def test_tensors_that_one_side_lacks(change):
    layer = nn.Linear(3, 2)
    state = dict(layer.state_dict())
    change(state)
    with pytest.raises(InputError, match="here: '(bias|extra)'"):
        load_module(layer, state, "here")


def test_a_module_that_the_checkpoint_lacks(saved):
    stage = NumbersStage()
    stage.modules["second"] = nn.Linear(1, 1)
    with pytest.raises(InputError, match="module 'second'"):
        read_checkpoint(saved[0], "numbers", "key").restore(stage)


def test_an_optimizer_that_the_checkpoint_lacks(saved):
    stage = NumbersStage()
    stage.optimizers["second"] = torch.optim.Adam(stage.modules.parameters())
    with pytest.raises(InputError, match="second"):
        read_checkpoint(saved[0], "numbers", "key").restore(stage)


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), RuntimeError("unexpected pos 64 vs 0")],
                         ids=["disk full", "torch"])
def test_a_failure_while_writing_keeps_the_old_file(monkeypatch, saved, error):
    path, stage = saved
    best = path.with_name("numbers_best")
    save(path, stage, 5, (best,))
    before = {file: file.read_bytes() for file in path.parent.iterdir()}

    def fail(state, file):
        file.write(b"half a file")
        raise error

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(InputError) as raised:
        save(path, stage, 6, (best,))
    assert str(path) in str(raised.value) and "step 6" in str(raised.value)
    assert {file: file.read_bytes() for file in path.parent.iterdir()} == before


def test_a_checkpoint_of_newer_code_says_so(tmp_path):
    torch.save({"format": FORMAT + 1}, tmp_path / "numbers_latest")
    assert f"is of format {FORMAT + 1}, made by newer code" in refusal(tmp_path / "numbers_latest")


def test_a_disk_that_is_really_full_keeps_the_old_file(saved):
    """A limit of the file size stands in for the disk: writes fail as there, in the middle of the file."""
    resource = pytest.importorskip("resource")
    path, stage = saved
    before = {file: file.read_bytes() for file in path.parent.iterdir()}
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1024, hard))
    try:
        with pytest.raises(InputError, match=r"cannot be written .* what was there before is untouched"):
            save(path, stage, 6, (path.with_name("numbers_best"),))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert {file: file.read_bytes() for file in path.parent.iterdir()} == before


def test_a_failure_while_renaming_keeps_the_old_file(monkeypatch, saved):
    path, stage = saved
    before = path.read_bytes()

    def fail(self, target):
        raise OSError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(InputError):
        save(path, stage, 6, (path.with_name("numbers_best"),))
    assert path.read_bytes() == before
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "run").write_text("a file")
    with pytest.raises(InputError, match="cannot be created"):
        save(tmp_path / "run" / "numbers_latest", NumbersStage())
    assert (tmp_path / "run").read_text() == "a file"


class _Evil:
    def __init__(self, mark: str) -> None:
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (self.mark,)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_malicious_pickle_is_not_executed(tmp_path, zipped):
    mark, path = tmp_path / "executed", tmp_path / "numbers_latest"
    torch.save({"format": FORMAT, "stage": "numbers", "config": _Evil(str(mark))}, path, _use_new_zipfile_serialization=zipped)
    refusal(path)
    assert not mark.exists()
    torch.load(path, weights_only=False)
    assert mark.exists()  # the file was indeed malicious


@pytest.mark.parametrize("key", ["config", "data", "modules", "optimizers", "made_by"])
def test_lists_that_hold_each_other_without_end_are_refused(saved, key):
    """300 bytes that are 10^12 parts for whatever walks through them."""
    path, _ = saved
    state, nested = torch.load(path, weights_only=True), [1.0]
    for _ in range(40):
        nested = [nested, nested]
    state[key] = {"x": nested} if key != "data" else state[key] | {"frames": nested}
    torch.save(state, path)
    assert "more than 1048576 parts" in refusal(path)
