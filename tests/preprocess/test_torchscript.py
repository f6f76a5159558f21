"""Programs with weights: those that reach beyond tensors are refused before they can run; those that compute are not."""

import re
import zipfile
from pathlib import Path

import pytest
import torch
from torch import Tensor

from lib.errors import InputError
from lib.files import sha256
from preprocess.matting import open_matting
from preprocess.torchscript import NAMESPACES, REFUSED, check_program


class AtLoading(torch.nn.Module):
    """Writes a file when it is loaded, without being called."""

    def __init__(self, place: str) -> None:
        super().__init__()
        self.place = place

    @torch.jit.export
    def __getstate__(self) -> tuple[bool, str]:
        return self.training, self.place

    @torch.jit.export
    def __setstate__(self, state: tuple[bool, str]) -> None:
        self.training = state[0]
        self.place = state[1]
        torch.save("import os", self.place)

    def forward(self, x: Tensor) -> Tensor:
        return x


class AtCalling(torch.nn.Module):
    """Writes a file when it is called."""

    def __init__(self, place: str) -> None:
        super().__init__()
        self.place = place

    def forward(self, x: Tensor) -> Tensor:
        torch.save(x, self.place)
        return x


class Maps(torch.nn.Module):
    """Makes a file part of its memory."""

    def __init__(self, place: str) -> None:
        super().__init__()
        self.place = place

    def forward(self, x: Tensor) -> Tensor:
        return torch.from_file(self.place, shared=True, size=4)


class Computes(torch.nn.Module):
    """What matting networks consist of, with the texts that torch's own layers hold."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3, padding=1), torch.nn.BatchNorm2d(4), torch.nn.Hardswish(), torch.nn.GRU(8, 8))

    def forward(self, x: Tensor, mode: str = "thresholding") -> Tensor:
        x = torch.nn.functional.interpolate(self.layers[1](self.layers[0](x)), scale_factor=0.5, mode="bilinear", align_corners=False)
        if mode not in ["thresholding", 'a "quoted" \\ # torch.save text']:
            raise ValueError(f"torch.save is only a text here: {mode}")
        return torch.cat([x[:, :1].clamp(0, 1), torch.einsum("bchw->bwhc", x)[..., :1].permute(0, 3, 2, 1)], dim=1)


def saved(model: torch.nn.Module, path: Path) -> Path:
    torch.jit.script(model).save(str(path))
    return path


@pytest.mark.parametrize("kind", [AtLoading, AtCalling, Maps])
def test_programs_that_reach_files_are_refused_before_they_run(tmp_path, kind):
    victim = tmp_path / "victim"
    path = saved(kind(str(victim)), tmp_path / "evil.pth")
    for name in ("robust_video_matting", "background_matting_v2"):
        with pytest.raises(InputError, match=r"evil\.pth: refused: its program uses 'torch\.(save|from_file)'"):
            open_matting(name, path, "cpu", True)
    assert not victim.exists()
    if kind is not Maps:  # a control: loaded and called without a look, they do
        torch.jit.load(str(path))(torch.ones(4))
        assert victim.exists()


def test_programs_that_compute_are_not(tmp_path):
    path = saved(Computes(), tmp_path / "good.pth")
    assert check_program(path) == sha256(path)
    assert torch.jit.load(str(path))(torch.ones(1, 3, 8, 8)).shape == (1, 2, 4, 4)


def rewritten(path: Path, change) -> Path:
    """The same archive with another program."""
    other = path.with_name("other.pth")
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(other, "w") as new:
        for entry in old.infolist():
            data = old.read(entry)
            new.writestr(entry.filename, change(data.decode()).encode() if entry.filename.endswith(".py") else data)
    return other


HIDDEN = (
    'torch .save(x, "v")', 'torch. save(x, "v")', 'torch.\\\n    save(x, "v")', 't = torch\n    t.save(x, "v")', 'getattr(torch, "save")(x, "v")',
    'ops.aten.save(x, "v")', 'ops.image.write_file("v", x)', 'ops.torchvision.read_file("v")', 'ops.prim.rpc_sync("a", "b")',
    'ops.c10d.send([x], 0)', 'o = ops', "y = '\"'; torch.save(x, 'v'); z = '\"'", "# \"\n    torch.save(x, \"v\") # \"", 'y = """"""',
    'y = """ " """; torch.save(x, "v"); z = """ " """', '_ = torch.from_file("v")', '(torch).save(x, "v")',
)


@pytest.mark.parametrize("line", HIDDEN)
def test_names_cannot_be_hidden(tmp_path, line):
    path = saved(AtCalling("v"), tmp_path / "evil.pth")
    program = rewritten(path, lambda code: re.sub(r"torch\.save\(x, .*\)", lambda _: line, code))
    with pytest.raises(InputError, match="refused"):
        check_program(program)


@pytest.mark.parametrize("change", ["empty", "text", "no program", "cut"])
def test_what_is_no_program_is_told(tmp_path, change):
    path = saved(Computes(), tmp_path / "a.pth")
    if change == "no program":
        torch.save({"weight": torch.ones(3)}, path)
    else:
        path.write_bytes({"empty": b"", "text": b"not the file", "cut": path.read_bytes()[:-200]}[change])
    with pytest.raises(InputError, match=r"a\.pth: (cannot be read as a TorchScript file|holds no program)"):
        check_program(path)


def test_operations_of_torch_that_name_files_are_known():
    """A newer torch may have more of them: then they belong into REFUSED."""
    names = {"filename", "file", "path", "file_name", "filepath", "uri", "url", "fname"}
    schemas = [schema for schema in torch._C._jit_get_all_schemas() if schema.name.startswith(tuple(f"{space}::" for space in NAMESPACES))]
    found = {schema.name for schema in schemas for argument in schema.arguments if argument.name in names and "str" in str(argument.type)}
    assert found == {"aten::save", "aten::from_file"} and {name.partition("::")[2] for name in found} <= REFUSED
