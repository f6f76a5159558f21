"""Several processes train what one does, and end together; several passes make the step of one."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lib.avatars.gaussian_head_avatar.gaussian_stage import GaussianHeadStage, GaussianHeadTrainConfig
from lib.avatars.gaussian_head_avatar.mesh_stage import MeshHeadStage, MeshHeadTrainConfig
from lib.datasets.head_capture import HeadCapture
from lib.datasets.sampler import TrainingBatches
from lib.errors import InputError, Stopped
from lib.losses.perceptual import Lpips
from lib.training import runtime
from lib.training.checkpoint import read_checkpoint
from lib.training.distributed import pairwise_sum
from lib.training.runtime import choose_device
from tests.tiny import Tiny, gaussian_dict, mesh_dict, run_script

ROOT = Path(__file__).resolve().parents[2]
STEPS, BATCH = 20, 4
TOLERANCE = 1e-6  # relative; found: equal to the bit


def values(made: Tiny, runs: Path, stage: str, steps: int = STEPS, batch: int = BATCH) -> dict:
    made_values = {"meshhead": mesh_dict, "gaussianhead": gaussian_dict}[stage](made.subject, runs, steps)
    made_values["batch_size"] = batch
    made_values["trainer"] |= {"final_lr_factor": 0.1}
    made_values["recorder"] |= {"show_freq": 1}
    return made_values


@pytest.fixture(scope="module")
def whole(made, tmp_path_factory) -> Path:
    """Both stages, by one process."""
    runs = tmp_path_factory.mktemp("whole")
    for stage in ("meshhead", "gaussianhead"):
        run_script(f"train_{stage}", values(made, runs, stage), runs)
    return runs


def start(runs: Path, stages: dict[str, dict], trouble: dict | None = None, torchrun: bool = False) -> list[subprocess.CompletedProcess]:
    """Two processes; with torchrun its own result, else theirs, as soon as both have ended."""
    plan, script = runs / "plan.json", ROOT / "tests" / "training" / "several.py"
    rows = []
    for stage, config in stages.items():
        (runs / f"{stage}.yaml").write_text(yaml.safe_dump(config))
        rows.append({"script": f"train_{stage}", "config": str(runs / f"{stage}.yaml"), "overrides": []})
    plan.write_text(json.dumps({"runs": rows} | ({"trouble": trouble} if trouble else {})))
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    if torchrun:
        command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--master_port", str(free_port()), str(script), str(plan)]
        return [subprocess.run(command, env=environment, cwd=runs, capture_output=True, text=True, timeout=120)]
    port, processes = str(free_port()), []
    for rank in ("0", "1"):
        place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        processes.append(subprocess.Popen([sys.executable, str(script), str(plan)], env=environment | place, cwd=runs, stdout=subprocess.PIPE,
                                          stderr=subprocess.PIPE, text=True))
    return [subprocess.CompletedProcess(process.args, process.returncode, *said)
            for process, said in [(process, process.communicate(timeout=120)) for process in processes]]


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def tensors(runs: Path, stage: str) -> dict[str, torch.Tensor]:
    """Weights, and what the optimizers remember."""
    checkpoint = read_checkpoint(runs / "checkpoints" / "tiny" / f"{stage}_latest", stage, "test")
    assert checkpoint.step == STEPS
    found = {f"{module}.{name}": tensor for module, named in checkpoint.modules.items() for name, tensor in named.items()}
    for key, optimizer in checkpoint.optimizers.items():
        found |= {f"{key}.{row}.{name}": value for row, moments in optimizer["state"].items() for name, value in moments.items()}
    return found


def losses(runs: Path, stage: str) -> dict[str, list[float]]:
    events = EventAccumulator(str(runs / "log"))
    events.Reload()
    return {tag: [event.value for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]
            if tag.startswith(stage) and "wait" not in tag}


def assert_same_training(one: Path, other: Path, stage: str) -> None:
    ours, theirs = tensors(one, stage), tensors(other, stage)
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        difference = (tensor.double() - theirs[name].double()).norm()
        assert difference <= TOLERANCE * tensor.double().norm(), name


def test_two_processes_train_what_one_does(made, whole, tmp_path):
    result, = start(tmp_path, {stage: values(made, tmp_path, stage) for stage in ("meshhead", "gaussianhead")}, torchrun=True)
    assert result.returncode == 0, result.stderr[-3000:]
    assert result.stdout.count("step 20/20") == 2  # only one of them speaks
    for stage in ("meshhead", "gaussianhead"):
        assert_same_training(whole, tmp_path, stage)
        one, two = losses(whole, stage), losses(tmp_path, stage)
        assert one.keys() == two.keys() and len(one[f"{stage}/total"]) == STEPS
        for name, numbers in one.items():
            assert two[name] == pytest.approx(numbers, rel=TOLERANCE, abs=1e-12), name


def test_a_run_goes_on_with_other_numbers_of_processes(made, whole, tmp_path, monkeypatch):
    """One process is stopped, two go on until one of them is, one finishes: as if nothing had been."""
    folder = tmp_path / "checkpoints" / "tiny"
    folder.mkdir(parents=True)
    shutil.copy(whole / "checkpoints" / "tiny" / "meshhead_latest", folder)
    step, made_values = GaussianHeadStage.step, values(made, tmp_path, "gaussianhead")

    def signalled(self, batch, at):
        if at == 6:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(self, batch, at)

    with monkeypatch.context() as patch, pytest.raises(Stopped):
        patch.setattr(GaussianHeadStage, "step", signalled)
        run_script("train_gaussianhead", made_values, tmp_path)
    results = start(tmp_path, {"gaussianhead": made_values}, {"step": 12, "kind": "stopped"})
    assert [result.returncode for result in results] == [143, 143], results[0].stderr
    assert "stopped at step 13 of 20, which is saved" in results[0].stderr and results[1].stderr == ""
    assert read_checkpoint(folder / "gaussianhead_latest", "gaussianhead", "test").step == 13
    run_script("train_gaussianhead", made_values, tmp_path)
    assert_same_training(whole, tmp_path, "gaussianhead")


@pytest.mark.parametrize(("kind", "codes", "said"), [
    ("input", [2, 2], "error: this picture cannot be used"),
    ("nan", [3, 3], "error: meshhead: step 4, frames"),
    ("killed", [1, -signal.SIGKILL], "error: another process of this run ended without saying why"),
])
def test_trouble_of_one_process_ends_all_with_one_message(made, tmp_path, kind, codes, said):
    results = start(tmp_path, {"meshhead": values(made, tmp_path, "meshhead", batch=2)}, {"step": 3, "kind": kind})
    assert [result.returncode for result in results] == codes
    messages = "".join(result.stderr for result in results)
    assert messages.count("error: ") == 1 and said in messages and "Traceback" not in messages
    kept = tmp_path / "checkpoints" / "tiny" / "meshhead_latest"
    if kind == "nan":
        assert not kept.exists()
    else:  # nothing is lost
        assert read_checkpoint(kept, "meshhead", "test").step == 3


def small_stages(made: Tiny, runs: Path, weights: Path):
    capture = HeadCapture(MeshHeadTrainConfig.model_validate(values(made, runs, "meshhead")).dataset)
    for stage, Config, Stage, views in (("meshhead", MeshHeadTrainConfig, MeshHeadStage, 2),
                                        ("gaussianhead", GaussianHeadTrainConfig, GaussianHeadStage, 1)):
        made_values = values(made, runs, stage)
        if stage == "gaussianhead":
            made_values["loss"] = {"lpips": 0.1, "lpips_crop": 32, "lpips_weights": str(weights), "opacity": 0.1, "scale": 0.1, "scale_limit": 1e-3}
        yield Stage(Config.model_validate(made_values), capture, torch.device("cpu")), TrainingBatches(capture, BATCH, views, seed=0)


def test_passes_make_the_step_of_the_whole_batch(made, whole, tmp_path):
    """The gradient and every term are means over items, whatever is chosen at random for them."""
    torch.manual_seed(0)
    state = {name: value.abs() for name, value in Lpips("vgg").state_dict().items()}
    for file, prefix in (("vgg16.pth", "features."), ("lpips_vgg.pth", "lin")):
        torch.save({name: value for name, value in state.items() if name.startswith(prefix)}, tmp_path / file)
    for stage, batches in small_stages(made, whole, tmp_path):
        before = {name: value.clone() for name, value in stage.modules.state_dict().items()}
        results = {}
        for count in (1, 2, 4):
            stage.modules.load_state_dict(before)
            weights = {name: getattr(stage.config.loss, name) for name in vars(stage._losses(batches[0]))}
            report = stage.descend((vars(stage._losses(part)) for part in batches[0].parts(count)), weights)
            results[count] = report, torch.cat([parameter.grad.flatten() for parameter in stage.modules.parameters()])
        for count in (2, 4):
            for name, term in results[1][0].terms.items():
                assert float(results[count][0].terms[name]) == pytest.approx(float(term), rel=1e-5), name
            assert float((results[count][1] - results[1][1]).norm()) <= 1e-4 * float(results[1][1].norm())


def test_a_sample_is_chosen_alike_whoever_trains_on_it(made):
    capture = HeadCapture(MeshHeadTrainConfig.model_validate(values(made, Path("none"), "meshhead")).dataset)
    whole = TrainingBatches(capture, 4, 2, seed=3)
    for processes in (1, 2, 4):
        parts = [whole.share(process, processes, 1) for process in range(processes)]
        shares = [part[5] for part in parts]
        assert [part.pixels_shape for part in parts] == [share.pixels.shape for share in shares]
        assert sum((share.frame for share in shares), ()) == whole[5].frame == tuple(whole.shown(5)[0])
        assert sum((share.view for share in shares), ()) == whole[5].view == tuple(whole.shown(5)[1])
        assert sum((share.samples for share in shares), ()) == (20, 21, 22, 23)
    assert whole.share(1, 2, 1).steps_of(7) == whole.steps_of(7)


@pytest.mark.parametrize(("batch", "processes", "passes", "fitting"), [
    (1, 2, 1, "batch_size=2"), (3, 2, 1, "batch_size=2 or 4"), (6, 2, 2, "batch_size=4 or 8"), (1, 1, 3, "batch_size=3"),
])
def test_a_batch_that_cannot_be_shared_is_refused(made, batch, processes, passes, fitting):
    capture = HeadCapture(MeshHeadTrainConfig.model_validate(values(made, Path("none"), "meshhead")).dataset)
    with pytest.raises(InputError, match=f"batch_size is {batch}.* write {fitting}$"):
        TrainingBatches(capture, batch, 1, seed=0).share(0, processes, passes)


def test_sums_of_sums_are_the_sum():
    numbers = list(torch.randn(8, 1000, generator=torch.Generator().manual_seed(0)))
    total = pairwise_sum(numbers)
    for size in (1, 2, 4, 8):
        assert torch.equal(pairwise_sum([pairwise_sum(numbers[first:first + size]) for first in range(0, 8, size)]), total)
    for count in (1, 3, 5, 7):
        assert torch.allclose(pairwise_sum(numbers[:count]), torch.stack(numbers[:count]).sum(dim=0), atol=1e-5)


@pytest.mark.parametrize(("name", "local", "said"), [
    ("auto", 2, "machine with 2 CUDA devices.*--nproc_per_node=2"), ("cuda:1", 0, "'cuda:1', but each of the 4 processes"),
])
def test_processes_need_devices_of_their_own(monkeypatch, name, local, said):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(runtime, "count", lambda: 4)
    monkeypatch.setattr(runtime, "local_rank", lambda: local)
    with pytest.raises(InputError, match=said):
        choose_device(name)


@pytest.mark.parametrize("name", ["auto", "cpu", "cuda:0"])
def test_float32_is_float32_wherever_it_is_computed(monkeypatch, name):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=True):
        choose_device(name)
        assert not torch.backends.cudnn.allow_tf32 and not torch.backends.cuda.matmul.allow_tf32


@pytest.mark.parametrize(("name", "gpu_id", "expected"), [("auto", 1, [1]), ("cuda:1", 0, [1]), ("cuda", 0, [0]), ("cpu", 1, [])])
def test_the_chosen_device_is_the_current_one(monkeypatch, name, gpu_id, expected):
    """CUDA graphs and events are of the current device, whatever device their tensors are on."""
    current: list[int] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", current.append)
    choose_device(name, gpu_id)
    assert current == expected


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available() or torch.cuda.device_count() < 2, reason="fewer than two CUDA devices")
def test_two_gpus_train_what_one_does(made, tmp_path):
    """Sums are taken in any order on a GPU, and Adam makes a step of full length of any gradient: losses of a few steps agree, not bits."""
    runs = {count: tmp_path / str(count) for count in (1, 2)}
    for count, folder in runs.items():
        folder.mkdir()
        stages = {stage: values(made, folder, stage, steps=5) for stage in ("meshhead", "gaussianhead")}
        for config in stages.values():
            config["trainer"] |= {"device": "auto"}
        if count == 1:
            for stage, config in stages.items():
                run_script(f"train_{stage}", config, folder)
        else:
            result, = start(folder, stages, torchrun=True)
            assert result.returncode == 0, result.stderr[-3000:]
    for stage in ("meshhead", "gaussianhead"):
        one, two = (losses(folder, stage)[f"{stage}/total"] for folder in runs.values())
        assert two == pytest.approx(one, rel=2e-2) and two[0] == pytest.approx(one[0], rel=1e-3)
