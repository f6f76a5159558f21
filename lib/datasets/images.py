"""Image files <-> tensors: complete decoding or an error, and resampling."""

import contextlib
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import cv2
import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from lib.errors import InputError
from lib.files import write_whole

JPEG_QUALITY = 95
MOST_PIXELS = 1 << 28  # of one picture: more is a mistake, or meant to fill the memory
# No picture can be larger: deflate (PNG) packs 1032 bytes into one, and a JPEG spends a bit on every 8x8 pixels at least.
PIXELS_PER_BYTE = {b"\x89P": 1032 * 8, b"\xff\xd8": 512}
BEGINNING = 4096  # bytes of a file in which its size is told as a rule
HEADER = 1 << 17  # bytes at the beginning of a file in which its size is told, with usual previews and profiles before it
TAIL = 4096  # bytes at the end of a file in which its end marker lies, zeros that some writers append included
_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]", re.DOTALL)  # among the pixels of a JPEG: what is neither FF itself nor a restart
# The last bytes of a complete file. OpenCV fills the missing part of a cut JPEG with grey and says nothing.
_ENDINGS = {b"\xff\xd8": b"\xff\xd9", b"\x89P": b"IEND\xaeB`\x82"}


@dataclass(frozen=True)
class Stored:
    """A picture on disk: bytes of the file, width and height as its header tells them (0: it does not)."""

    bytes: int
    width: int
    height: int


def look_at(path: Path) -> Stored:
    """A JPEG or PNG that begins and ends as a whole one does; nothing is decoded. Raises InputError as `read_image`."""
    with _told(path):
        with path.open("rb") as file:
            head = _head(file)
            size = file.seek(0, 2)
            file.seek(max(0, size - TAIL))
            tail = file.read()
        # Longer padding than that, and what phones append, are rare, so that only then the whole file is read.
        whole = tail.rstrip(b"\0").endswith(_ENDINGS.get(head[:2], b"?"))
        _expect_whole(path, head[:2], tail if whole else path.read_bytes(), size)
    return Stored(size, *_declared_size(head))


def _head(file: BinaryIO) -> bytes:
    """As much of the beginning as tells the size, at most HEADER bytes."""
    head = file.read(BEGINNING)
    return head if any(_declared_size(head)) else head + file.read(HEADER - BEGINNING)


def read_image(path: Path) -> UInt8[Tensor, "3 H W"]:
    """RGB, 8 bit. Raises InputError for a missing, foreign or truncated file."""
    with _told(path):
        data = path.read_bytes()
    _expect_whole(path, data[:2], data, len(data))
    _expect_possible(path, data)
    try:
        pixels = cv2.imdecode(np.frombuffer(data, dtype=np.uint8), cv2.IMREAD_COLOR)
    except cv2.error:
        pixels = None
    if pixels is None:
        raise InputError(f"{path}: cannot be decoded; write the image again")
    planes = np.empty((3, *pixels.shape[:2]), dtype=np.uint8)
    cv2.split(pixels, [planes[2], planes[1], planes[0]])  # from BGR; a tenth of what permuting takes
    return torch.from_numpy(planes)


@contextlib.contextmanager
def _told(path: Path) -> Iterator[None]:
    """Errors of the file system as InputError."""
    try:
        yield
    except FileNotFoundError as error:
        raise InputError(f"{path}: image is missing (a .png of the same name is accepted too)") from error
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error


def _expect_whole(path: Path, start: bytes, tail: bytes, size: int) -> None:
    if not size:
        raise InputError(f"{path}: the file is empty (0 bytes); write the image again")
    ending = _ENDINGS.get(start)
    if ending is None:
        raise InputError(f"{path}: expected a JPEG or PNG, found {size} bytes that are neither; write the image again")
    if not tail.rstrip(b"\0").endswith(ending) and not _ends_within(tail):
        raise InputError(f"{path}: the image is cut off ({size} bytes, no end marker); copy or extract it again")


def _ends_within(data: bytes) -> bool:
    """Whether a whole JPEG has its end before that of its file, as those of phones that append a video or data of their own."""
    place = 2
    while data[:2] == b"\xff\xd8" and place + 4 <= len(data) and data[place] == 0xFF:
        kind = data[place + 1]
        if kind == 0xD9:
            return True
        place += 1 if kind == 0xFF else 2 + int.from_bytes(data[place + 2:place + 4], "big")
        if kind == 0xDA:  # pixels follow, in which FF is followed by 00 or the number of a restart
            place = next((found.start() for found in _MARKER.finditer(data, place)), len(data))
            if data[place:place + 2] == b"\xff\xd9":
                return True
    return False


def _expect_possible(path: Path, data: bytes) -> None:
    """Raises InputError, before memory is taken, for a picture that is too large, or larger than so few bytes can tell."""
    width, height = _declared_size(data)
    if width * height > min(MOST_PIXELS, PIXELS_PER_BYTE[data[:2]] * len(data)):
        raise InputError(f"{path}: its header says {width}x{height} pixels, which {'is too large' if width * height > MOST_PIXELS else 'do not fit'} "
                         f"into {len(data)} bytes; write the image again")


def stored_size(path: Path) -> tuple[int, int]:
    """Width and height as the header of a JPEG or PNG tells them; (0, 0) where it does not, or cannot be read. Nothing is decoded."""
    try:
        with path.open("rb") as file:
            return _declared_size(_head(file))
    except OSError:
        return 0, 0


def _declared_size(data: bytes) -> tuple[int, int]:
    """Width and height as the header tells them; (0, 0) where it does not."""
    if data.startswith(b"\x89P"):
        return struct.unpack(">II", data[16:24]) if len(data) >= 24 else (0, 0)
    place = 2
    while place + 9 <= len(data) and data[place] == 0xFF:
        kind, length = data[place + 1], int.from_bytes(data[place + 2:place + 4], "big")
        if 0xC0 <= kind <= 0xCF and kind not in (0xC4, 0xC8, 0xCC):  # a frame header; the others are tables
            height, width = struct.unpack(">HH", data[place + 5:place + 9])
            return width, height
        place += 1 if kind == 0xFF else 2 + length
    return 0, 0


def resize(image: UInt8[Tensor, "C H W"], size: int) -> UInt8[Tensor, "C S S"]:
    """Square resampling: area averaging down, bilinear up. The camera's twin is `Camera.resized`."""
    if image.shape[1:] == (size, size):
        return image
    how = cv2.INTER_AREA if size < image.shape[1] else cv2.INTER_LINEAR
    return torch.from_numpy(np.stack([cv2.resize(plane, (size, size), interpolation=how) for plane in image.numpy()]))


def to_uint8(image: Float[Tensor, "3 H W"]) -> UInt8[Tensor, "3 H W"]:
    """[0,1] to 0..255, rounded; on the same device."""
    return (image.detach().clamp(0.0, 1.0) * 255.0).round().byte()


def write_image(path: Path, image: Float[Tensor, "3 H W"]) -> None:
    """Writes an RGB picture in [0,1]; the suffix chooses the format. Raises InputError when it cannot be written."""
    write_pixels(path, to_uint8(image).cpu())


def write_pixels(path: Path, image: UInt8[Tensor, "3 H W"]) -> None:
    """As write_image, from 8 bits on the CPU."""
    try:
        data = encode(image, path.suffix)
    except cv2.error as error:
        raise InputError(f"{path}: cannot be encoded as '{path.suffix}'; expected a name that ends in .png or .jpg") from error
    write_whole(path, data)


def encode(image: UInt8[Tensor, "3 H W"], suffix: str) -> bytes:
    """A picture file of that suffix, RGB, from 8 bits on the CPU. Raises cv2.error for a suffix that is none."""
    pixels = image.permute(1, 2, 0).numpy()[..., ::-1]
    encoded, data = cv2.imencode(suffix, pixels, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY] if suffix == ".jpg" else [])
    if not encoded:
        raise cv2.error(f"not encoded as '{suffix}'")
    return data.tobytes()
