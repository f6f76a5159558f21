"""An avatar to hand on: a checkpoint's weights, options and record of data in one file, with its licence, a picture and a hash of all.

A zip archive without compression, so that anyone can look inside: avatar.json (options, hashes), LICENSE.txt, thumbnail.png, perhaps
metrics.json, and every tensor as npy. It is read without running code. The last 64 bytes are the SHA-256 of all before them.
"""

import dataclasses
import hashlib
import io
import json
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from lib.datasets.head_capture import CaptureRecord
from lib.datasets.images import encode
from lib.errors import InputError, printable
from lib.files import write_whole
from lib.provenance import read_provenance
from lib.training.checkpoint import FORMAT, Checkpoint

VERSION = 1
MANIFEST, LICENSE, THUMBNAIL, METRICS = "avatar.json", "LICENSE.txt", "thumbnail.png", "metrics.json"
DIGITS = 64  # of a SHA-256
NAME_AT = 30  # bytes before the name of the first entry in a zip archive
WRITTEN_AT = (1980, 1, 1, 0, 0, 0)  # the same avatar gives the same file


@dataclass(frozen=True)
class Leaflet:
    """What people want to know of an avatar: who may use it for what, what it looks like, what it scored (of `portable_metrics`)."""

    license: str
    thumbnail: UInt8[Tensor, "3 H W"]
    metrics: str | None


def write_bundle(path: Path, checkpoint: Checkpoint, sections: tuple[str, ...], leaflet: Leaflet) -> None:
    """Writes all modules of a checkpoint and the named sections of its configuration (others hold paths of the machine it was trained on);
    neither optimizers nor random state. Replaces the file at once.

    Raises InputError where it cannot be written.
    """
    entries = {LICENSE: leaflet.license.encode(), THUMBNAIL: encode(leaflet.thumbnail, ".png")}
    if leaflet.metrics is not None:
        entries[METRICS] = leaflet.metrics.encode()
    for module, state in checkpoint.modules.items():
        entries |= {f"tensors/{module}/{name}.npy": _npy(value) for name, value in state.items()}
    manifest = {
        "bundle": VERSION, "stage": checkpoint.stage, "step": checkpoint.step, "seconds": checkpoint.seconds,
        "protocols": {"bundle": VERSION, "checkpoint": FORMAT, "evaluation": _protocol(leaflet.metrics)},
        "config": {section: checkpoint.config[section] for section in sections if section in checkpoint.config},
        "made_by": None if checkpoint.made_by is None else dataclasses.asdict(checkpoint.made_by),
        "data": None if checkpoint.data is None else dataclasses.asdict(checkpoint.data),
        "sha256": {name: hashlib.sha256(data).hexdigest() for name, data in entries.items()},
    }
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, data in ({MANIFEST: json.dumps(manifest, indent=1).encode()} | entries).items():
            archive.writestr(zipfile.ZipInfo(name, WRITTEN_AT), data)
        archive.comment = b"0" * DIGITS  # the comment of an archive is its end
    whole = file.getvalue()[:-DIGITS]
    write_whole(path, whole + hashlib.sha256(whole).hexdigest().encode())


def portable_metrics(text: str, path: Path) -> str:
    """A metrics.json without what it tells of the machine it was measured on: paths of the avatar and of the whole configuration.

    Raises InputError for a `text` that is none; `path` is where it is from.
    """
    try:
        content = json.loads(text)
        origin = content.get("origin") or {}
        kept = {key: value for key, value in origin.items() if key not in ("avatar", "config")}
        return json.dumps(content | {"origin": kept}, indent=1) if origin else text
    except (ValueError, AttributeError, TypeError, RecursionError) as error:
        raise InputError(f"metrics_file: {path}: not a metrics.json ({error}); name the one that evaluate.py wrote for this avatar") from error


def is_bundle(path: Path) -> bool:
    """Whether a file begins as bundles do."""
    try:
        with path.open("rb") as file:
            beginning = file.read(NAME_AT + len(MANIFEST))
    except OSError:
        return False
    return beginning.startswith(b"PK") and beginning.endswith(MANIFEST.encode())


def read_bundle(path: Path, stage: str, key: str) -> Checkpoint:
    """The checkpoint of `stage` in a bundle, without optimizers; `key` is the configuration key that named it.

    Raises InputError for a file that is cut off, altered, made by newer code or of another stage.
    """
    what = f"{key}: {path}"
    entries = _entries(path, what)
    try:
        manifest = json.loads(entries[MANIFEST])
        version, found = manifest["bundle"], manifest["stage"]
        if version > VERSION:
            raise InputError(f"{what}: a bundle of version {version}, made by newer code; this one reads up to {VERSION}: update it")
        if found != stage:
            raise InputError(f"{what}: expected a bundle of stage '{stage}', found one of stage '{found}'")
        print(f"{what}: avatar bundle; {LICENSE} in it: {printable(entries[LICENSE].decode(errors='replace').strip().splitlines()[0])}")
        data = manifest["data"] and CaptureRecord(**{name: tuple(values) for name, values in manifest["data"].items()})
        modules: dict[str, dict[str, Tensor]] = {}
        for name, content in entries.items():
            if name.startswith("tensors/"):
                module, tensor = name.removeprefix("tensors/").removesuffix(".npy").split("/")
                modules.setdefault(module, {})[tensor] = _tensor(content, f"{what}: '{name}'")
        return Checkpoint(stage=stage, step=int(manifest["step"]), best_psnr=float("-inf"), seconds=float(manifest["seconds"]),
                          config=dict(manifest["config"]), data=data, modules=modules, optimizers={}, path=path,
                          made_by=read_provenance(manifest.get("made_by")))
    # Its hashes are right, so it was written like this.
    except (LookupError, TypeError, ValueError, AttributeError, OverflowError, RecursionError) as error:
        raise InputError(f"{what}: its {MANIFEST} is not that of a bundle ({type(error).__name__}: {error}); write the bundle again") from error


def _entries(path: Path, what: str) -> dict[str, bytes]:
    """Every file of the archive, if all is as it was written."""
    try:
        whole = path.read_bytes()
    except OSError as error:
        raise InputError(f"{what}: cannot be read ({error.strerror})") from error
    intact = hashlib.sha256(whole[:-DIGITS]).hexdigest().encode() == whole[-DIGITS:]
    try:
        with zipfile.ZipFile(io.BytesIO(whole)) as archive:
            files = archive.infolist()
            packed = [file.filename for file in files if file.compress_type != zipfile.ZIP_STORED or file.file_size > len(whole)]
            if packed:
                raise InputError(f"{what}: '{packed[0]}' is compressed, which bundles never are: altered, or packed again by another program")
            entries = {file.filename: archive.read(file) for file in files}
        hashes = json.loads(entries[MANIFEST])["sha256"]
        wrong = [name for name in hashes if hashlib.sha256(entries.get(name, b"")).hexdigest() != hashes[name]]
        wrong += sorted(entries.keys() - hashes.keys() - {MANIFEST})
    except (zipfile.BadZipFile, EOFError, OSError, NotImplementedError, RuntimeError, ValueError, KeyError, TypeError, AttributeError,
            RecursionError, zlib.error) as error:
        raise InputError(f"{what}: the bundle is cut off or altered ({len(whole)} bytes; {error}); copy it again") from error
    if wrong:
        raise InputError(f"{what}: the bundle was altered: '{wrong[0]}' is not what was written; copy it again")
    if not intact:
        raise InputError(f"{what}: the bundle was altered: {MANIFEST} or the order of its parts is not what was written; copy it again")
    return entries


def _npy(value: Tensor) -> bytes:
    file = io.BytesIO()
    np.lib.format.write_array(file, value.detach().cpu().contiguous().numpy(), allow_pickle=False)
    return file.getvalue()


def _tensor(content: bytes, what: str) -> Tensor:
    """An array no larger than its bytes."""
    file = io.BytesIO(content)
    if np.lib.format.read_magic(file) != (1, 0):
        raise InputError(f"{what}: expected an npy of version 1.0; write the bundle again")
    shape, fortran, dtype = np.lib.format.read_array_header_1_0(file)
    if fortran or dtype.hasobject or int(np.prod(shape, dtype=object)) * dtype.itemsize != len(content) - file.tell():
        raise InputError(f"{what}: {len(content)} bytes do not hold an array of shape {shape} and type {dtype}; write the bundle again")
    return torch.from_numpy(np.frombuffer(content, dtype, offset=file.tell()).reshape(shape).copy())


def _protocol(metrics: str | None) -> Any:
    """The id of the evaluation's protocol in a metrics.json; None where it has none."""
    protocol = {} if metrics is None else json.loads(metrics).get("protocol")
    return protocol.get("id") if isinstance(protocol, dict) else protocol
