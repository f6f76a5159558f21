"""Many subjects by one command: what is planned for each, and two of them through everything while a worker is killed."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
import yaml

import train_subjects
from lib.avatars.gaussian_head_avatar.gaussian_stage import GaussianHeadTrainConfig
from lib.avatars.gaussian_head_avatar.mesh_stage import MeshHeadTrainConfig
from lib.avatars.gaussian_head_avatar.reenactment import ReenactmentConfig
from lib.avatars.gaussian_head_avatar.subjects import SubjectsConfig, plan
from lib.config import Config, read_config
from lib.config.reader import Arguments
from lib.errors import InputError
from lib.evaluation.scores import read_result
from lib.files import RunLock
from lib.jobs.executors import ROOT
from lib.jobs.worker import Command
from lib.training.checkpoint import read_checkpoint
from tests.tiny import HELD_OUT_CAMERA, Tiny, copy_subject, gaussian_dict, mesh_dict, reenactment_dict

FEW = ("222200036", HELD_OUT_CAMERA)
MESH_STEPS = 24


@pytest.fixture
def files(made, tmp_path) -> dict[str, Any]:
    """A list of no subjects yet, with the YAML files that it names."""
    written = {"meshhead": mesh_dict(made.subject, tmp_path), "gaussianhead": gaussian_dict(made.subject, tmp_path),
               "reenactment": reenactment_dict(made, tmp_path)}
    for stage, values in written.items():
        (tmp_path / f"{stage}.yaml").write_text(yaml.safe_dump(values))
    return {stage: {"config": [str(tmp_path / f"{stage}.yaml")]} for stage in written} | {
        "logdir": str(tmp_path / "log"), "results": str(tmp_path / "results" / "all"), "jobs": {"workers": 2, "threads": 1}}


def given(command: Command, schema: type[Config]) -> Any:
    """The configuration that a stage reads from its command line."""
    python, _, *words = command.arguments
    configs = [Path(path) for option, path in zip(words[::2], words[1::2], strict=False) if option == "--config"]
    assert python == sys.executable and configs
    return read_config(Arguments(configs[0], tuple(words[2 * len(configs):]), tuple(configs[1:])), schema)


@contextlib.contextmanager
def another_process_holding(lock: Path) -> Iterator[int]:
    """Its number; a lock does not keep out its own process."""
    code = ("import sys; from pathlib import Path; from lib.files import RunLock\n"
            "with RunLock(Path(sys.argv[1])):\n print('held', flush=True); sys.stdin.read()")
    other = subprocess.Popen([sys.executable, "-c", code, str(lock)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert other.stdout is not None and other.stdout.readline() == "held\n"
    try:
        yield other.pid
    finally:
        other.communicate("")


# --- what is planned --------------------------------------------------------------------------------------------------

def test_every_stage_of_a_subject_has_its_data_its_name_and_the_result_of_the_one_before(files, tmp_path):
    files["reenactment"]["overrides"] = ['dataset.dataroot="{subject}/driver"', "video.sheet_rows=1"]
    files["subjects"] = ["data/alice", {"dataroot": "data/b: [x", "name": "031", "overrides": {"gaussianhead": ["trainer.steps=7"]}}]
    alice, other = plan(SubjectsConfig.model_validate(files))
    assert [command.stage for command in alice.task.commands] == ["meshhead", "gaussianhead", "evaluation", "reenactment"]
    assert [Path(command.arguments[1]).name for command in alice.task.commands] == [
        "train_meshhead.py", "train_gaussianhead.py", "evaluate.py", "reenactment.py"]
    for subject, name, root, steps in ((alice, "alice", "data/alice", 2), (other, "031", "data/b: [x", 7)):
        run = tmp_path / "checkpoints" / name
        mesh, head, measured, driven = (given(command, schema) for command, schema in zip(
            subject.task.commands, (MeshHeadTrainConfig, GaussianHeadTrainConfig, GaussianHeadTrainConfig, ReenactmentConfig), strict=True))
        assert {str(one.dataset.dataroot) for one in (mesh, head, measured)} == {root}
        assert {one.recorder.name for one in (mesh, head, measured, driven)} == {name}
        assert {one.recorder.logdir for one in (mesh, head, measured)} == {tmp_path / "log" / name}
        assert head == measured and head.load_meshhead_checkpoint == run / "meshhead_latest" and head.trainer.steps == steps
        assert driven.load_gaussianhead_checkpoint == run / "gaussianhead_latest"
        assert str(driven.dataset.dataroot) == f"{root}/driver" and driven.video.sheet_rows == 1
        assert subject.task.lock == run / "subject.lock" and subject.results == tmp_path / "results" / name


def test_the_list_of_the_documentation_can_be_planned_and_starts_from_nobody_else(tmp_path, monkeypatch):
    """The files that it names were written for one subject, and name that one's checkpoints."""
    text = (ROOT / "docs" / "subjects.md").read_text().partition("```yaml\n")[2].partition("```")[0]
    (tmp_path / "data" / "group_b" / "carol").mkdir(parents=True)
    for name in ("meshhead_NeRSemble031/meshhead", "gaussianhead_NeRSemble031/gaussianhead", "gaussianhead_NeRSemble031/supres"):
        (tmp_path / "checkpoints" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "checkpoints" / f"{name}_latest").touch()
    (tmp_path / "config").symlink_to(ROOT / "config")
    monkeypatch.chdir(tmp_path)
    subjects = plan(SubjectsConfig.model_validate(yaml.safe_load(text)))
    assert [subject.task.name for subject in subjects] == ["alice", "carol", "bob_short"]
    for subject in subjects:
        mesh, head, measured, driven = (given(command, schema) for command, schema in zip(
            subject.task.commands, (MeshHeadTrainConfig, GaussianHeadTrainConfig, GaussianHeadTrainConfig, ReenactmentConfig), strict=True))
        named = [getattr(one, f"load_{part}_checkpoint") for one in (mesh, head) for part in ("meshhead", "gaussianhead", "supres", "delta_poses")]
        assert [path for path in named if path is not None] == [Path("checkpoints") / subject.task.name / "meshhead_latest"]
        assert measured.measurable and driven.dataset.pose_code_mode == "own"
        assert driven.load_gaussianhead_checkpoint == Path("checkpoints") / subject.task.name / "gaussianhead_latest"


def test_a_pattern_is_every_folder_that_fits_and_a_stage_left_out_is_not_run(files, tmp_path):
    for name in ("b", "a", ".ipynb_checkpoints"):
        (tmp_path / "data" / name).mkdir(parents=True)
    (tmp_path / "data" / "c.txt").write_text("")
    files |= {"subjects": [str(tmp_path / "data" / "*")], "evaluate": False, "reenactment": None}
    subjects = plan(SubjectsConfig.model_validate(files))
    assert [subject.task.name for subject in subjects] == ["a", "b"]
    assert [command.stage for command in subjects[0].task.commands] == ["meshhead", "gaussianhead"]


@pytest.mark.parametrize(("subjects", "message"), [
    (["x/bob", "y/bob"], r"two are called 'bob'.*`name`"),
    (["nothing/*"], r"nothing/\*: no folder fits"),
    ([{"dataroot": "bob", "overrides": {"meshhead": ["trainer.stepz=1"]}}], r"subject bob, meshhead: .*trainer\.stepz: .* did you mean 'steps'"),
    (["/"], r"subject , meshhead: .*recorder\.name"),
])
def test_a_list_that_is_wrong_is_refused_before_anything_is_started(files, subjects, message, tmp_path):
    with pytest.raises(InputError, match=message):
        plan(SubjectsConfig.model_validate(files | {"subjects": subjects}))


def test_what_cannot_be_measured_is_refused_before_anything_is_started(files, tmp_path):
    files |= {"subjects": ["bob"]}
    files["gaussianhead"]["overrides"] = ["dataset.held_out_cameras=[]", "dataset.held_out_sequences=[]"]
    with pytest.raises(InputError, match=r"subject bob: evaluate: .*holds nothing out.*evaluate: false"):
        plan(SubjectsConfig.model_validate(files))
    assert len(plan(SubjectsConfig.model_validate(files | {"evaluate": False}))) == 1


def test_a_subject_waits_for_who_writes_its_results(files, tmp_path):
    """Such as an evaluation that somebody started by hand."""
    (subject,) = plan(SubjectsConfig.model_validate(files | {"subjects": ["bob"]}))
    assert subject.task.held() == ""
    for folder in ("checkpoints/bob", "results/bob"):
        with another_process_holding(tmp_path / folder / "some.lock") as number:
            assert f"process {number} " in subject.task.held()


def test_a_second_coordinator_is_refused_by_the_first(files, tmp_path):
    files["subjects"] = ["bob"]
    with (another_process_holding(tmp_path / "log" / ".jobs" / "coordinator.lock") as number,
          pytest.raises(InputError, match=rf"process {number} on .* is writing this run .*logdir")):
        start(files, tmp_path)


# --- and done ---------------------------------------------------------------------------------------------------------

def start(files: dict[str, Any], folder: Path) -> None:
    path = folder / "list.yaml"
    path.write_text(yaml.safe_dump(files))
    with mock.patch.object(sys, "argv", ["train_subjects.py", "--config", str(path)]):
        train_subjects.main()


def kill_worker(run: Path, killed: list[int]) -> None:
    """`kill -9` of the process that takes a subject through its stages, once stage 1 has saved."""
    deadline = time.monotonic() + 120.0
    while not (run / "meshhead_latest").exists():
        if time.monotonic() > deadline:
            return
        time.sleep(0.01)
    killed.append(int(re.findall(r"process (\d+) on", (run / "subject.lock").read_text())[0]))
    os.kill(killed[0], signal.SIGKILL)


def weights(run: Path, stage: str) -> dict[str, torch.Tensor]:
    modules = read_checkpoint(run / f"{stage}_latest", stage, "test").modules
    return {f"{module}.{name}": tensor for module, named in modules.items() for name, tensor in named.items()}


def test_two_subjects_through_everything_while_a_worker_is_killed_and_a_third_is_bad(made: Tiny, files, tmp_path, capsys):
    pytest.importorskip("submitit")
    for name in ("alice", "bob"):
        copy_subject(made.subject, tmp_path / name, FEW)
    for path in copy_subject(made.subject, tmp_path / "eve", FEW).rglob("image_*.jpg"):
        path.unlink()
    files["subjects"] = [{"dataroot": str(tmp_path / name)} for name in ("alice", "bob", "eve")]
    files["reenactment"] = None
    for stage, steps in (("meshhead", MESH_STEPS), ("gaussianhead", 2)):
        files[stage]["overrides"] = [f"dataset.camera_ids=['{FEW[0]}', '{FEW[1]}']", "dataset.num_sample_view=1", f"trainer.steps={steps}",
                                     "recorder.save_freq=4"]
    killed: list[int] = []
    runs = tmp_path / "checkpoints"
    killer = threading.Thread(target=kill_worker, args=(runs / "alice", killed))
    killer.start()
    with pytest.raises(InputError, match=r"(?s)1 of 3 subjects are not done.*eve: meshhead: .*image"):
        start(files, tmp_path)
    killer.join()
    told = capsys.readouterr()
    assert killed and "the worker ended without a word" in told.err
    assert re.search(r"(?m)^alice +evaluation +2 +done", told.out) and re.search(r"(?m)^bob +evaluation +1 +done", told.out)
    assert re.search(r"(?m)^eve +meshhead +1 +refused", told.out)
    log = (tmp_path / "log" / "alice" / "subject.log").read_text()
    assert "=== attempt 2, meshhead" in log and "resumed from" in log.split("=== attempt 2")[1]
    # Both saw the same pictures, and only one was interrupted.
    for stage in ("meshhead", "gaussianhead"):
        one, other = weights(runs / "alice", stage), weights(runs / "bob", stage)
        assert one.keys() == other.keys() and all(torch.equal(tensor, other[name]) for name, tensor in one.items())
    results = [read_result(tmp_path / "results" / name).means["novel_view"] for name in ("alice", "bob")]
    assert results[0]["psnr"] == results[1]["psnr"]
    tables = {ending: (tmp_path / "results" / f"all{ending}").read_text() for ending in (".md", ".csv", ".html")}
    assert "| split | measure | alice | bob | mean |" in tables[".md"] and ",split,measure,alice,bob,mean\n" in tables[".csv"]
    assert ">alice<" in tables[".html"]
    with RunLock(runs / "alice" / "subject.lock"):
        pass
