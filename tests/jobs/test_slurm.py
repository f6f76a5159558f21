"""The Slurm path, against stand-ins for sbatch, srun, sacct and scancel that run a job as a process of this machine."""

import os
import sys
from pathlib import Path

import pytest

pytest.importorskip("submitit")

from lib.errors import InputError
from lib.files import Held
from lib.jobs import executors
from lib.jobs.coordinator import State, coordinate
from lib.jobs.executors import JobsConfig, choose_executor
from lib.jobs.worker import Command, Task

PROGRAMS = {
    "sbatch": """
if Path('refuse').exists():
    sys.exit('sbatch: error: invalid partition specified: nowhere')
number = len(list(Path().glob('job*.pid'))) + 1
with open('sbatch.txt', 'a') as file:
    file.write(Path(sys.argv[1]).read_text())
job = os.environ | {'SLURM_JOB_ID': str(number), 'SLURM_NTASKS': '1', 'SLURM_PROCID': '0', 'SLURM_LOCALID': '0', 'SLURM_NODEID': '0'}
process = subprocess.Popen(['bash', sys.argv[1]], env=job, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
Path(f'job{number}.pid').write_text(str(process.pid))
print('Submitted batch job', number)
""",
    "srun": """
command = sys.argv[sys.argv.index('--error') + 2:]
Path(f"job{os.environ['SLURM_JOB_ID']}.pid").write_text(str(os.getpid()))
os.execvp(command[0], command)
""",
    "sacct": """
print('JobID|State|NodeList')
for number in sys.argv[sys.argv.index('-j') + 1::2]:
    alive = Path(f"/proc/{Path(f'job{number}.pid').read_text()}").exists()
    print(f"{number}|{'RUNNING' if alive else 'NODE_FAIL'}|here")
""",
    "scancel": """
Path('scancel.txt').write_text(' '.join(sys.argv[1:]))
os.kill(int(Path(f'job{sys.argv[-1]}.pid').read_text()), signal.SIGTERM)
""",
}
STAGE = """
import signal, sys, time
from pathlib import Path
signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
Path('begun').write_text('')
while not Path('finished').exists():
    time.sleep(0.02)
"""


@pytest.fixture
def cluster(tmp_path, monkeypatch) -> Path:
    (tmp_path / "bin").mkdir()
    for name, code in PROGRAMS.items():
        path = tmp_path / "bin" / name
        path.write_text(f"#!{sys.executable}\nimport os, signal, subprocess, sys\nfrom pathlib import Path\n{code}")
        path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(executors, "SLOW_DISK", 0.1)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(folder: Path, stopped=lambda: False, **slurm):
    task = Task("bob", (Command("stage", (sys.executable, "-c", STAGE)),), folder / "run" / "subject.lock", folder / "subject.log")
    config = JobsConfig(executor="slurm", timeout_min=240, retries=1, slurm=slurm)
    (report,) = coordinate([task], choose_executor(config, folder / ".jobs"), 1, config.retries, lambda rows: None, stopped, pause=0.05)
    return report


def test_a_job_is_handed_over_with_what_the_cluster_wants_to_know(cluster):
    (cluster / "finished").write_text("")
    report = run(cluster, partition="gpu", gpus_per_node=1, mem="64GB", additional_parameters=None)
    assert (report.state, report.attempt, report.progress.stage) == (State.DONE, 1, "stage")
    lines = (cluster / "sbatch.txt").read_text().splitlines()
    assert {"#SBATCH --partition=gpu", "#SBATCH --gpus-per-node=1", "#SBATCH --mem=64GB", "#SBATCH --time=240", "#SBATCH --job-name=bob",
            "#SBATCH --signal=USR2@90"} <= set(lines)


def test_stopping_sends_the_signal_at_which_a_stage_saves(cluster):
    report = run(cluster, stopped=(cluster / "begun").exists)
    assert report.state is State.STOPPED and (cluster / "scancel.txt").read_text() == "--signal=TERM 1"
    assert "ended with exit code 143" in (cluster / "subject.log").read_text()


def test_a_job_that_the_first_sbatch_refuses_ends_the_command_and_a_later_one_waits(cluster):
    (cluster / "refuse").write_text("")
    with pytest.raises(InputError, match="invalid partition specified: nowhere") as refused:
        run(cluster)
    assert not isinstance(refused.value, Held)
    (cluster / "refuse").unlink()
    (cluster / "finished").write_text("")
    executor = choose_executor(JobsConfig(executor="slurm", timeout_min=240), cluster / ".jobs")
    task = Task("bob", (), cluster / "run" / "subject.lock", cluster / "subject.log")
    executor.start(task, 1, 0)
    (cluster / "refuse").write_text("")
    with pytest.raises(Held, match="sbatch refused the job"):
        executor.start(task, 1, 0)


def test_what_cannot_be_had_is_refused_by_its_key(cluster, monkeypatch):
    with pytest.raises(InputError, match=r"^jobs\.timeout_min: "):
        choose_executor(JobsConfig(executor="slurm"), cluster)
    with pytest.raises(InputError, match=r"^jobs\.slurm: .*partitoin"):
        choose_executor(JobsConfig(executor="slurm", timeout_min=5, slurm={"partitoin": "gpu"}), cluster)
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(InputError, match=r"^jobs\.executor: .*srun"):
        choose_executor(JobsConfig(executor="slurm", timeout_min=5), cluster)
