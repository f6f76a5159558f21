"""The one checkpoint format: a full-state file, replaced atomically, loadable without running code."""

import dataclasses
import math
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from pydantic import ValidationError
from torch import nn

from lib.archives import Damaged, load_torch
from lib.config import Config
from lib.datasets.head_capture import CaptureRecord
from lib.errors import InputError
from lib.files import make_folder, remove
from lib.provenance import Provenance, provenance, read_provenance
from lib.training.stage import AbstractStage

FORMAT = 3  # 2 lacked the record of the data, 1 the own pose of the head

Options = TypeVar("Options", bound=Config)


@dataclass(frozen=True)
class Checkpoint:
    """Everything a run needs to go on. `config` is the resolved configuration, `data` what it was trained on (None: not known),
    `seconds` the training time so far, `made_by` the code, versions and device of the process that wrote it (None: not known)."""

    stage: str
    step: int
    best_psnr: float
    seconds: float
    config: dict[str, Any]
    data: CaptureRecord | None
    modules: dict[str, dict[str, torch.Tensor]]
    optimizers: dict[str, Any]
    path: Path
    made_by: Provenance | None = None

    def module(self, name: str) -> dict[str, torch.Tensor]:
        """The tensors of one module. Raises InputError where the checkpoint lacks it."""
        if name not in self.modules:
            raise InputError(f"{self.path}: module '{name}' is missing from the checkpoint, which holds {sorted(self.modules)}")
        return self.modules[name]

    def section(self, name: str) -> dict[str, Any]:
        """One section of the configuration. Raises InputError where the checkpoint lacks it."""
        if not isinstance(self.config.get(name), dict):
            raise InputError(f"{self.path}: the configuration in the checkpoint has no section '{name}'")
        return self.config[name]

    def options(self, name: str, kind: type[Options]) -> Options:
        """One section of the configuration, read. Raises InputError where this code knows no such options."""
        try:
            return kind.model_validate(self.section(name))
        except ValidationError as error:
            first = error.errors()[0]
            known = "" if self.made_by is None or self.made_by.commit is None else f" (commit {self.made_by.commit})"
            raise InputError(f"{self.path}: {'.'.join([name, *map(str, first['loc'])])} in its configuration is not known to this code: "
                             f"{first['msg']}; use the code that made it{known}, or train again") from error

    def restore(self, stage: AbstractStage) -> None:
        """Copies modules and optimizers into a stage of the same shape."""
        for name, module in stage.modules.items():
            load_module(module, self.module(name), f"{self.path}: module '{name}'")
        if self.optimizers.keys() != stage.optimizers.keys():
            raise InputError(f"{self.path}: holds the optimizers {sorted(self.optimizers)}, this configuration needs {sorted(stage.optimizers)}")
        for name, optimizer in stage.optimizers.items():
            try:
                optimizer.load_state_dict(self.optimizers[name])
            except (ValueError, KeyError, TypeError) as error:
                raise InputError(f"{self.path}: the optimizer '{name}' does not fit this configuration ({error})") from error


def save_checkpoint(
    path: Path, stage: AbstractStage, step: int, best_psnr: float, seconds: float, data: CaptureRecord, copies: list[Path]
) -> None:
    """Writes `path`, then hard-links or copies it to `copies`; a crash at any moment leaves the old file or the new one.

    Raises InputError when the disk is full or not writable; the old file is then still there.
    """
    state = {
        "format": FORMAT, "stage": stage.name, "step": step, "best_psnr": best_psnr, "seconds": seconds,
        "config": stage.config.model_dump(mode="json"), "data": dataclasses.asdict(data),
        "modules": {name: module.state_dict() for name, module in stage.modules.items()},
        "optimizers": {name: optimizer.state_dict() for name, optimizer in stage.optimizers.items()},
        "rng": torch.get_rng_state(),
        "made_by": dataclasses.asdict(provenance(next(stage.modules.parameters()).device)),
    }
    make_folder(path.parent)
    partial = path.with_name(path.name + ".partial")
    links = [copy.with_name(copy.name + ".partial") for copy in copies]
    try:
        with partial.open("wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        for copy, link in zip(copies, links, strict=True):
            _link_or_copy(partial, link)
            link.replace(copy)
        partial.replace(path)
    except (OSError, RuntimeError) as error:
        # torch, told of a full disk, complains of its place in the file.
        cause = error.__context__ if isinstance(error.__context__, OSError) else error
        for leftover in (partial, *links):
            remove(leftover)
        raise InputError(f"{path}: the checkpoint of step {step} cannot be written ({cause}); what was there before is "
                         "untouched. Free space or fix permissions and run the same command again") from error


def remove_leftovers(folder: Path, stage: str) -> None:
    """Deletes what a killed process had begun to write."""
    for leftover in folder.glob(f"{stage}_*.partial"):
        remove(leftover)


def _link_or_copy(source: Path, target: Path) -> None:
    target.unlink(missing_ok=True)
    try:
        os.link(source, target)
    except OSError:  # some file systems have no hard links
        shutil.copyfile(source, target)


def read_checkpoint(path: Path, stage: str, key: str) -> Checkpoint:
    """Reads a checkpoint of `stage` to the CPU; `key` is the configuration key that named it.

    Raises InputError when it is missing, damaged, of another format or of another stage.
    """
    return parse_checkpoint(read_file(path, key), path, stage, key)


def read_file(path: Path, key: str) -> Any:
    """What torch saved in a file, on the CPU, without running code. Raises InputError when it is missing or damaged."""
    if not path.exists():
        near = sorted(p.name for p in path.parent.iterdir()) if path.parent.is_dir() else []
        found = f"{path.parent} holds {near}" if near else f"there is no folder {path.parent}"
        raise InputError(f"{key}: {path}: no such checkpoint ({found}); train that stage first or correct the path")
    try:
        return load_torch(path)
    except Damaged as error:
        raise InputError(f"{key}: {path}: not a readable checkpoint ({error}); it is damaged: remove it, then copy it again, or give "
                         "a copy of an older one of its folder (<stage>_step_<n>, <stage>_best) its name") from error
    except Exception as error:  # a damaged file can raise nearly anything in the unpickler
        raise InputError(f"{key}: {path}: not a readable checkpoint ({type(error).__name__}); it is damaged or another kind of file") from error


def is_checkpoint(state: Any) -> bool:
    """Whether the content of a file claims to be a checkpoint of this project, of any format."""
    return isinstance(state, dict) and isinstance(state.get("format"), int)


def parse_checkpoint(state: Any, path: Path, stage: str, key: str) -> Checkpoint:
    """The content of a file as a checkpoint of `stage`. Raises InputError when it is of another format or stage."""
    if is_checkpoint(state) and state["format"] > FORMAT:
        raise InputError(f"{key}: {path}: is of format {state['format']}, made by newer code; this one reads up to {FORMAT}: update it")
    fields = [field.name for field in dataclasses.fields(Checkpoint) if field.name not in ("path", "made_by")]
    if not is_checkpoint(state) or state["format"] != FORMAT or not set(fields) <= state.keys():
        found = f"format {state.get('format')} with keys {sorted(map(str, state))}" if isinstance(state, dict) else type(state).__name__
        raise InputError(f"{key}: {path}: expected a checkpoint of format {FORMAT}, found {found}")
    types = {"stage": str, "step": int, "best_psnr": float, "seconds": float, "config": dict, "data": dict, "modules": dict, "optimizers": dict}
    wrong = [f"{name} is a {type(state[name]).__name__}" for name, expected in types.items() if not isinstance(state[name], expected)]
    wrong += [f"its module '{name}' is a {type(module).__name__}" for name, module in state["modules"].items() if not isinstance(module, dict)
              ] if not wrong else []
    if wrong:
        raise InputError(f"{key}: {path}: damaged checkpoint: {wrong[0]}")
    if state["stage"] != stage:
        raise InputError(f"{key}: {path}: expected a checkpoint of stage '{stage}', found one of stage '{state['stage']}'")
    try:
        data = CaptureRecord(**{name: tuple(values) for name, values in state["data"].items()})
        wrong = [value for values in vars(data).values() for value in values
                 if not isinstance(value, str) and not (isinstance(value, float) and math.isfinite(value))]
        if wrong:
            raise TypeError(f"found a {type(wrong[0]).__name__}")
    except TypeError as error:
        raise InputError(f"{key}: {path}: damaged checkpoint: its record of the data is not readable ({error})") from error
    return Checkpoint(path=path, **{name: state[name] for name in fields if name != "data"}, data=data, made_by=read_provenance(state.get("made_by")))


def is_plain(value: Any) -> bool:
    """Whether it is a tensor of real numbers that are all there: files can hold views that claim any size, and tensors without content."""
    return (isinstance(value, torch.Tensor) and value.layout == torch.strided and value.device.type == "cpu" and not value.is_complex()
            and not value.is_quantized and value.numel() * value.element_size() <= value.untyped_storage().nbytes())


def load_module(module: nn.Module, state: dict[str, torch.Tensor], what: str) -> None:
    """load_state_dict whose error names the first tensor that does not fit, or is not finite."""
    own = module.state_dict()
    for name, value in state.items():
        if not is_plain(value) or (name in own and value.is_floating_point() != own[name].is_floating_point()):
            raise InputError(f"{what}: '{name}': expected a tensor of numbers of the type it was trained with; the file is damaged")
        if not bool(torch.isfinite(value).all()):
            raise InputError(f"{what}: '{name}' holds NaN or infinity; is the file damaged? Take an older checkpoint")
    for name in sorted(own.keys() | state.keys()):
        have = tuple(state[name].shape) if name in state else None
        want = tuple(own[name].shape) if name in own else None
        if have != want:
            raise InputError(f"{what}: '{name}': this configuration needs shape {want}, the checkpoint has {have}; "
                             "widths and data must be those it was trained with")
    module.load_state_dict(state)
