"""Many subjects: each through both stages, evaluation and, where wanted, reenactment; then one table of them all (docs/subjects.md)."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from lib.avatars.gaussian_head_avatar.config import AvatarConfig
from lib.avatars.gaussian_head_avatar.gaussian_stage import GaussianHeadTrainConfig
from lib.avatars.gaussian_head_avatar.mesh_stage import MeshHeadTrainConfig
from lib.avatars.gaussian_head_avatar.reenactment import ReenactmentConfig
from lib.config import Config, read_config
from lib.config.reader import Arguments, yaml_value
from lib.errors import InputError, Stopped
from lib.evaluation.comparison import ComparisonRequest, compare, subjects_summary
from lib.files import RunLock
from lib.jobs.board import Board, status_table
from lib.jobs.coordinator import Report, State, coordinate
from lib.jobs.executors import ROOT, JobsConfig, choose_executor
from lib.jobs.worker import Command, Task
from lib.training.recorder import RecorderConfig
from lib.training.runtime import StopSignals

StageName = Literal["meshhead", "gaussianhead", "reenactment"]
SCHEMAS: dict[StageName, type[AvatarConfig]] = {
    "meshhead": MeshHeadTrainConfig, "gaussianhead": GaussianHeadTrainConfig, "reenactment": ReenactmentConfig}
SUBJECT, NAME = "{subject}", "{name}"  # what overrides may contain
TABLE_FORMATS = (".md", ".csv", ".html")


class StageFiles(Config):
    """How a stage is run for every subject."""

    config: tuple[Path, ...] = Field(min_length=1, description="YAML files of the stage, as given to its script with --config")
    overrides: tuple[str, ...] = Field((), description="key=value, for every subject; {subject} is its folder, {name} its name")


class SubjectConfig(Config):
    """One subject, or several that are treated alike. A bare path means `dataroot`."""

    dataroot: Path = Field(description="subject folder; with * or ?, every folder that fits")
    name: str | None = Field(None, description="of the runs (recorder.name); left out: the folder's")
    overrides: dict[StageName, tuple[str, ...]] = Field({}, description="key=value per stage, for it alone, e.g. {meshhead: [trainer.steps=2000]}")

    @model_validator(mode="before")
    @classmethod
    def _bare(cls, value: Any) -> Any:
        return {"dataroot": value} if isinstance(value, str | int | float) else value


class SubjectsConfig(Config):
    """The YAML file of train_subjects.py."""

    subjects: tuple[SubjectConfig, ...] = Field(min_length=1, description="folders, or sections with dataroot, name, overrides")
    meshhead: StageFiles
    gaussianhead: StageFiles
    reenactment: StageFiles | None = Field(None, description="left out: nothing is driven")
    evaluate: bool = Field(True, description="measure every subject on what its stage-2 YAML holds out")
    logdir: Path = Field(Path("log"), description="output of a subject: <logdir>/<name>/subject.log, TensorBoard files beside it")
    results: Path = Field(Path("results/all_subjects"), description="the table of all subjects, with .md, .csv and .html appended")
    jobs: JobsConfig = JobsConfig()


@dataclass(frozen=True)
class Subject:
    """One subject: what is to be done, and where its numbers will be."""

    task: Task
    results: Path


def train_subjects(config: SubjectsConfig) -> str:
    """Takes every subject through its stages; returns what to print.

    Raises InputError when the list or a configuration is wrong, before anything is started, and at the end when not all are done; Stopped after a
    signal, with everything saved.
    """
    subjects = plan(config)
    print(f"{len(subjects)} subjects; what each of them says: {config.logdir}/<name>/subject.log")
    machinery = config.logdir / ".jobs"
    with RunLock(machinery / "coordinator.lock", "logdir"), StopSignals() as signals:
        executor = choose_executor(config.jobs, machinery)
        reports = coordinate([subject.task for subject in subjects], executor, config.jobs.workers, config.jobs.retries, Board(),
                             lambda: signals.received is not None)
    unfinished = [report for report in reports if report.state is not State.DONE]
    told = "\n".join(_conclusion(subjects, reports, config))
    if signals.received is not None and any(report.state is State.STOPPED for report in unfinished):
        print(told)
        raise Stopped(f"stopped: {len(reports) - len(unfinished)} of {len(reports)} subjects are done, the others have saved how far they are; "
                      "the same command again goes on", signals.received)
    if unfinished:
        print(told)
        what = f"{len(unfinished)} of {len(reports)} subjects are not done; mend what is said, then the same command again goes on"
        raise InputError("\n  ".join([what, *(f"{report.task.name}: {report.message} ({report.task.log})" for report in unfinished)]))
    return told


def plan(config: SubjectsConfig) -> tuple[Subject, ...]:
    """Every subject with its commands. Raises InputError for configurations that are wrong and for names given twice."""
    found = [(root, subject) for subject in config.subjects for root in _folders(subject)]
    names = [subject.name or root.resolve().name for root, subject in found]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise InputError(f"subjects: two are called '{twice}', and would write one run; give them a `name` each")
    return tuple(_subject(config, root, name, subject.overrides) for name, (root, subject) in zip(names, found, strict=True))


def _folders(subject: SubjectConfig) -> list[Path]:
    root = subject.dataroot
    if not any(mark in str(root) for mark in "*?"):
        return [root]
    fitting = Path(root.anchor).glob(str(root.relative_to(root.anchor)))
    found = sorted(path for path in fitting if path.is_dir() and not path.name.startswith("."))  # .ipynb_checkpoints and such
    if not found:
        raise InputError(f"subjects: {root}: no folder fits; correct the pattern, or where this is started from")
    return found


def _subject(config: SubjectsConfig, root: Path, name: str, own: dict[StageName, tuple[str, ...]]) -> Subject:
    run = _run_overrides(config, name)
    data = f"dataset.dataroot={yaml_value(str(root))}"

    def arguments(stage: StageName, files: StageFiles, *derived: str) -> tuple[Arguments, RecorderConfig, bool]:
        """What the stage is given, where it then writes, and whether that can be measured."""
        written = [text.replace(SUBJECT, str(root)).replace(NAME, name) for text in (*files.overrides, *own.get(stage, ()))]
        given = Arguments(files.config[0], (*run, *derived, *written), files.config[1:])
        try:
            read = read_config(given, SCHEMAS[stage])
        except InputError as error:
            raise InputError(f"subject {name}, {stage}: {error}") from error
        return given, read.recorder, isinstance(read, GaussianHeadTrainConfig) and read.measurable

    # What the files name there belongs to the subject that they were written for.
    mesh, mesh_run, _ = arguments("meshhead", config.meshhead, data, "load_meshhead_checkpoint=null")
    head, head_run, measurable = arguments(
        "gaussianhead", config.gaussianhead, data, f"load_meshhead_checkpoint={yaml_value(str(mesh_run.run_folder / 'meshhead_latest'))}",
        *(f"load_{part}_checkpoint=null" for part in ("gaussianhead", "supres", "delta_poses")))
    if config.evaluate and not measurable:
        raise InputError(f"subject {name}: evaluate: the YAML of gaussianhead holds nothing out; name cameras or sequences in "
                         "dataset.held_out_cameras or dataset.held_out_sequences of both stages (overrides will do), or write evaluate: false")
    commands = [_command("meshhead", "train_meshhead", mesh), _command("gaussianhead", "train_gaussianhead", head)]
    if config.evaluate:
        commands.append(_command("evaluation", "evaluate", head))
    folders = {mesh_run.run_folder, mesh_run.result_folder, head_run.result_folder}
    if config.reenactment is not None:
        avatar = f"load_gaussianhead_checkpoint={yaml_value(str(head_run.run_folder / 'gaussianhead_latest'))}"
        drive, drive_run, _ = arguments("reenactment", config.reenactment, avatar)
        commands.append(_command("reenactment", "reenactment", drive))
        folders.add(drive_run.result_folder)
    task = Task(name, tuple(commands), head_run.run_folder / "subject.lock", config.logdir / name / "subject.log", tuple(sorted(folders)))
    return Subject(task, head_run.result_folder)


def _run_overrides(config: SubjectsConfig, name: str) -> tuple[str, ...]:
    """Of every stage. A worker sees no other GPU than its own."""
    return (f"recorder.name={yaml_value(name)}", f"recorder.logdir={yaml_value(str(config.logdir / name))}", "gpu_id=0")


def _command(stage: str, script: str, given: Arguments) -> Command:
    files = [part for path in (given.path, *given.further) for part in ("--config", str(path))]
    return Command(stage, (sys.executable, str(ROOT / f"{script}.py"), *files, *given.overrides))


def _conclusion(subjects: Sequence[Subject], reports: Sequence[Report], config: SubjectsConfig) -> list[str]:
    """How every subject ended, and the numbers of those that are done."""
    lines = [status_table(reports), ""]
    measured = [subject.results for subject, report in zip(subjects, reports, strict=True) if report.state is State.DONE and config.evaluate]
    if not measured:
        return lines
    try:
        for ending in TABLE_FORMATS:
            compare(ComparisonRequest(tuple(measured), config.results.with_name(config.results.name + ending), across_subjects=True))
        return [*lines, subjects_summary(measured), f"wrote {config.results}{{{','.join(TABLE_FORMATS)}}}"]
    except InputError as error:  # measured with other resolutions, for one; each subject has its own result all the same
        return [*lines, f"no table of all subjects: {error}"]
