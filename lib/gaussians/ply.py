"""Gaussians as PLY files, in the layout that viewers of 3D Gaussian splatting read: binary, little endian, float32, one vertex each."""

import math
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from lib.errors import InputError
from lib.files import write_whole
from lib.gaussians.cloud import GaussianCloud
from lib.tensors import TensorBundle

SH_0 = 0.5 / math.sqrt(math.pi)  # the spherical harmonic of degree 0: colour = 0.5 + SH_0 · f_dc
PROPERTIES = ("x", "y", "z", "nx", "ny", "nz", "f_dc_0", "f_dc_1", "f_dc_2", "opacity", "scale_0", "scale_1", "scale_2",
              "rot_0", "rot_1", "rot_2", "rot_3")
UNUSED = ("nx", "ny", "nz")  # zero when written, not needed when read
SMALLEST = 1e-7  # least distance of an opacity from 0 and 1, and least standard deviation: their logits and logarithms must be finite
HEADER_BYTES = 1 << 16  # a header that does not end within them is none
TYPES = {"char": "i1", "uchar": "u1", "short": "<i2", "ushort": "<u2", "int": "<i4", "uint": "<u4", "float": "<f4", "double": "<f8",
         "int8": "i1", "uint8": "u1", "int16": "<i2", "uint16": "<u2", "int32": "<i4", "uint32": "<u4", "float32": "<f4", "float64": "<f8"}


@dataclass(frozen=True)
class Splats(TensorBundle):
    """N Gaussians as they are stored: colours as coefficients f_dc, logits of opacities, natural logarithms of standard deviations,
    quaternions (wxyz)."""

    means: Float[Tensor, "N 3"]
    f_dc: Float[Tensor, "N 3"]
    opacity_logits: Float[Tensor, "N"]
    log_scales: Float[Tensor, "N 3"]
    quats_wxyz: Float[Tensor, "N 4"]

    @classmethod
    def of(cls, cloud: GaussianCloud) -> "Splats":
        """One cloud whose three features are RGB in [0,1]."""
        return cls(
            means=cloud.means[0], f_dc=(cloud.features[0] - 0.5) / SH_0, opacity_logits=cloud.opacities[0].double().logit(SMALLEST).float(),
            log_scales=cloud.scales[0].clamp(min=SMALLEST).log(), quats_wxyz=cloud.quats_wxyz[0],
        )

    def cloud(self) -> GaussianCloud:
        """What a viewer draws: its colours are never negative."""
        return GaussianCloud(
            means=self.means[None], quats_wxyz=torch.nn.functional.normalize(self.quats_wxyz, dim=-1)[None], scales=self.log_scales.exp()[None],
            opacities=self.opacity_logits.sigmoid()[None], features=(0.5 + SH_0 * self.f_dc).clamp(min=0.0)[None],
        )


def write_ply(path: Path, splats: Splats, comments: Sequence[str] = ()) -> None:
    """Writes Gaussians, replacing the file at once; read back they are the same to the bit. Comments become ASCII, as headers must be.

    Raises InputError for values that are NaN or infinite and where the file cannot be written.
    """
    columns = torch.cat([splats.means, torch.zeros_like(splats.means), splats.f_dc, splats.opacity_logits[:, None], splats.log_scales,
                         splats.quats_wxyz], dim=1)
    _check(path, splats)
    lines = ["ply", "format binary_little_endian 1.0", *(f"comment {_ascii(' '.join(comment.split()))}" for comment in comments),
             f"element vertex {len(columns)}", *(f"property float {name}" for name in PROPERTIES), "end_header\n"]
    write_whole(path, "\n".join(lines).encode("ascii") + columns.detach().cpu().numpy().astype("<f4").tobytes())


def _ascii(text: str) -> str:
    """Letters without their accents; what remains as the escape that Python writes."""
    plain = unicodedata.normalize("NFKD", text.replace("©", "(c)"))
    return "".join(letter for letter in plain if not unicodedata.combining(letter)).encode("ascii", "backslashreplace").decode()


def read_ply(path: Path) -> Splats:
    """Reads Gaussians; properties may have any order and scalar type, and further ones (f_rest_*: colours seen from other sides) are left out.

    Raises InputError for a file that is missing, cut off, of another kind, or whose numbers make no Gaussians.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            header = file.read(HEADER_BYTES)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); expected a PLY file of Gaussians") from error
    count, layout, start, alone = _parse_header(path, header)
    wanted, found = count * layout.itemsize, size - start
    if wanted > found or (alone and wanted < found):
        raise InputError(f"{path}: its header promises {count} Gaussians of {layout.itemsize} bytes = {wanted} bytes, but {found} follow; "
                         "the file is cut off or damaged: write it again")
    rows = np.fromfile(path, dtype=layout, count=count, offset=start)
    groups = {name: _columns(rows, *(property for property in PROPERTIES if property.startswith(name))) for name in ("f_dc_", "scale_", "rot_")}
    splats = Splats(_columns(rows, "x", "y", "z"), groups["f_dc_"], _columns(rows, "opacity")[:, 0], groups["scale_"], groups["rot_"])
    _check(path, splats)
    return splats


def _parse_header(path: Path, data: bytes) -> tuple[int, np.dtype, int, bool]:
    """Number of vertices, what a vertex consists of, where the first is, and whether nothing follows the last."""
    text, end, _ = data.partition(b"end_header\n")
    if not data.startswith(b"ply"):
        raise InputError(f"{path}: not a PLY file: it does not begin with 'ply'")
    if not end:
        raise InputError(f"{path}: the header is cut off: no 'end_header' in its first {len(data)} bytes")
    lines = [line.split() for line in text.decode("ascii", errors="replace").splitlines()]
    kind = next((line[1:] for line in lines if line[:1] == ["format"]), ["none"])
    if kind != ["binary_little_endian", "1.0"]:
        raise InputError(f"{path}: expected the format binary_little_endian 1.0, found {' '.join(kind)}; save it as a binary PLY")
    elements = [index for index, line in enumerate(lines) if line[:1] == ["element"]]
    first = lines[elements[0]] if elements else ["element", "none"]
    if len(first) != 3 or first[1] != "vertex" or not first[2].isdecimal():
        raise InputError(f"{path}: expected 'element vertex <count>' before all other elements, found '{' '.join(first)}'; a compressed PLY must be "
                         "saved as an ordinary one")
    properties = [line for line in lines[elements[0] + 1:(elements + [len(lines)])[1]] if line[:1] == ["property"]]
    unknown = next((line for line in properties if len(line) != 3 or line[1] not in TYPES), None)
    if unknown is not None:
        raise InputError(f"{path}: a vertex has '{' '.join(unknown)}'; expected 'property <type> <name>' with a type of {sorted(set(TYPES))}")
    names = [line[2] for line in properties]
    missing = [name for name in PROPERTIES if name not in names and name not in UNUSED]
    if missing:
        raise InputError(f"{path}: a vertex has no '{missing[0]}'; expected the properties {' '.join(PROPERTIES)}, found {' '.join(names) or 'none'}"
                         ": not a PLY of Gaussians")
    if len(set(names)) < len(names):
        raise InputError(f"{path}: a vertex has a property twice: {' '.join(names)}")
    return int(first[2]), np.dtype([(name, TYPES[kind]) for _, kind, name in properties]), len(text) + len(end), len(elements) == 1


def _columns(rows: NDArray, *names: str) -> Float[Tensor, "N K"]:
    with np.errstate(over="ignore", invalid="ignore"):  # a double beyond float32 is infinite, which is told; some NaN warn
        return torch.from_numpy(np.stack([rows[name].astype(np.float32) for name in names], axis=1))


def _check(path: Path, splats: Splats) -> None:
    for name, values in vars(splats).items():
        wrong = (~torch.isfinite(values)).reshape(len(values), -1).any(dim=1)
        if bool(wrong.any()):
            raise InputError(f"{path}: {int(wrong.sum())} of {len(values)} Gaussians have a NaN or infinite value in {name}, first number "
                             f"{int(wrong.nonzero()[0])}; is what they come from damaged?")
    length = splats.quats_wxyz.norm(dim=1)
    if bool((length == 0).any()):
        raise InputError(f"{path}: Gaussian {int((length == 0).nonzero()[0])} has a rotation of length 0; expected a quaternion (wxyz)")
