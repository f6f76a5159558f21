"""What a run leaves behind: log file, TensorBoard, pictures, its folder of checkpoints."""

import contextlib
import json
import logging
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from lib.config import Config, Name, write_config
from lib.datasets.images import write_image
from lib.errors import InputError
from lib.files import RunLock, make_folder, wait_for, write_whole

RUN_MARK = ".run-"  # before the run's name, in names of TensorBoard's files
PREVIEW_SIZE = 512  # pixels: larger pictures are shrunk on sheets and in previews


class RecorderConfig(Config):
    """Section `recorder`."""

    name: Name = Field(description="name of the run, also of its folders")
    logdir: Path = Field(Path("log"), description="TensorBoard files")
    checkpoint_path: Path = Field(Path("checkpoints"), description="checkpoints and log files go to <checkpoint_path>/<name>/")
    result_path: Path = Field(Path("results"), description="pictures, videos and metrics go to <result_path>/<name>/")
    save_freq: int = Field(1, gt=0, description="steps between checkpoints")
    show_freq: int = Field(1, gt=0, description="steps between log lines")
    keep_last: int = Field(2, ge=0, description="how many checkpoints besides latest and best are kept")

    @property
    def run_folder(self) -> Path:
        """Checkpoints of this run."""
        return self.checkpoint_path / self.name

    @property
    def result_folder(self) -> Path:
        """Pictures and metrics of this run."""
        return self.result_path / self.name


class Recorder:
    """Writes scalars, pictures and log lines of one stage of one run."""

    def __init__(self, config: RecorderConfig, stage: str) -> None:
        self.config, self.stage = config, stage
        self._log = logging.getLogger(f"{stage}.{config.name}")
        self._log.handlers.clear()
        self._log.propagate = False
        self._log.setLevel(logging.INFO)
        self._writer: SummaryWriter | None = None

    def open(self, resolved: Config) -> None:
        """Creates the folders, saves the resolved configuration, starts the log."""
        for folder in (self.config.run_folder, self.config.logdir, self.config.result_folder):
            make_folder(folder)
        write_config(resolved, self.config.run_folder / f"{self.stage}_config.yaml")
        try:
            handlers = (_LogFile(self.config.run_folder / f"{self.stage}.log"), logging.StreamHandler(sys.stdout))
        except OSError as error:
            raise InputError(f"{error.filename}: cannot be written ({error.strerror}); correct recorder.checkpoint_path, or the permissions "
                             "there") from error
        with self._told():
            self._writer = SummaryWriter(str(self.config.logdir), filename_suffix=f"{RUN_MARK}{self.config.name}.{self.stage}")
        for handler in handlers:
            handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", datefmt="%H:%M:%S"))
            self._log.addHandler(handler)
        others = {path.name.partition(RUN_MARK)[2].rpartition(".")[0] for path in self.config.logdir.glob(f"events.out.*{RUN_MARK}*")}
        others.discard(self.config.name)
        if others:
            self.line(f"recorder.logdir: {self.config.logdir} also has files of {', '.join(sorted(others))}, which TensorBoard shows as one run with "
                      "this; name one for each run")

    def line(self, text: str) -> None:
        """One line to the log file and the terminal."""
        self._log.info(text)

    def scalars(self, values: dict[str, float], step: int) -> None:
        """Named numbers of one step."""
        if self._writer is not None:
            with self._told():
                for name, value in values.items():
                    self._writer.add_scalar(f"{self.stage}/{name}", value, step)

    def picture(self, name: str, image: Float[Tensor, "3 H W"], step: int) -> None:
        """A picture to TensorBoard, and as <result>/<stage>_<name>.png where the newest replaces the last."""
        if self._writer is not None:
            with self._told():
                self._writer.add_image(f"{self.stage}/{name}", image.clamp(0.0, 1.0), step)
        write_image(self.config.result_folder / f"{self.stage}_{name}.png", image)

    def close(self) -> None:
        """Flushes everything. Raises InputError where that is not possible."""
        for handler in list(self._log.handlers):
            self._log.removeHandler(handler)
            with contextlib.suppress(OSError):  # told when the line was written
                handler.close()
        if self._writer is not None:
            with self._told():
                self._writer.close()

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        """Errors of TensorBoard's files as InputError."""
        try:
            yield
        except OSError as error:
            raise InputError(f"{self.config.logdir}: TensorBoard's file cannot be written ({error.strerror}); free space, or correct "
                             "recorder.logdir or the permissions there") from error


class _LogFile(logging.FileHandler):
    """A log whose failure ends the run, as that of any other of its files; logging alone would print tracebacks and go on."""

    def handleError(self, record: logging.LogRecord) -> None:
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            super().handleError(record)
            return
        raise InputError(f"{self.baseFilename}: cannot be written ({error.strerror}); free space or correct the permissions") from error


def image_rows(rows: list[Float[Tensor, "B 3 H W"]]) -> Float[Tensor, "3 h w"]:
    """A table of pictures: one row per entry, one column per batch element."""
    return torch.cat([torch.cat(list(row), dim=-1) for row in rows], dim=-2)


def shrink(images: Float[Tensor, "B 3 H W"], size: int = PREVIEW_SIZE) -> Float[Tensor, "B 3 h w"]:
    """Area averaging to at most `size` pixels high."""
    height, width = images.shape[-2:]
    return images if height <= size else torch.nn.functional.interpolate(images, (size, round(size * width / height)), mode="area")


def write_seconds(result_folder: Path, stage: str, seconds: float) -> None:
    """Notes how long a stage took in <result>/seconds.json, which all stages of a run share."""
    with wait_for(RunLock(result_folder / "seconds.lock", "recorder.result_path")):
        write_whole(result_folder / "seconds.json", json.dumps(read_seconds(result_folder) | {stage: round(seconds, 1)}, indent=1))


def read_seconds(result_folder: Path) -> dict[str, float]:
    """Seconds per stage noted so far."""
    path = result_folder / "seconds.json"
    try:
        seconds = json.loads(path.read_text())
    except (OSError, ValueError):  # absent, or edited by hand: nothing depends on it
        return {}
    return seconds if isinstance(seconds, dict) else {}
