"""H.264 video files."""

from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any

import av
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from lib.errors import InputError
from lib.files import make_folder, remove

CONTAINERS = "mov,mp4,matroska,webm,avi,mpegts,mpeg,mpegvideo,asf,flv,ogg,h264,hevc,mjpeg,mxf,gif,yuv4mpegpipe"  # that may be read
LUMA = (0.2126, 0.7152, 0.0722)  # of R, G, B: ITU-R BT.709
LUMA_BLACK, LUMA_RANGE, CHROMA_ZERO, CHROMA_RANGE = 16.0, 219.0, 128.0, 224.0  # 8 bits, limited range
BT709, LIMITED = 1, 1  # codes of ITU-T H.273 (primaries, transfer and matrix alike), and FFmpeg's of the range


def to_yuv420(image: Float[Tensor, "3 H W"]) -> UInt8[Tensor, "R w"]:
    """RGB in [0,1] to the planes of a video, one below the other: H rows of Y, H/4 of U, H/4 of V. On any device, without waiting for it.

    BT.709, limited range, chroma sited left, as decoders of H.264 expect. Odd sizes lose their last row or column (4:2:0 needs even ones).
    """
    _, height, width = image.shape
    red, green, blue = image[:, :height // 2 * 2, :width // 2 * 2].clamp(0.0, 1.0)
    luma = (LUMA[0] * red).add_(green, alpha=LUMA[1]).add_(blue, alpha=LUMA[2])
    planes = [luma * LUMA_RANGE + LUMA_BLACK]
    for color, share in ((blue, LUMA[2]), (red, LUMA[0])):
        difference = _at_left_of_squares(color - luma)
        planes.append(difference.mul_(CHROMA_RANGE / (2.0 * (1.0 - share))).add_(CHROMA_ZERO))
    return torch.cat([plane.flatten() for plane in planes]).add_(0.5).byte().view(-1, luma.shape[1])


def _at_left_of_squares(plane: Float[Tensor, "H W"]) -> Float[Tensor, "h w"]:
    """Half the size: means of two rows, and of three columns with weights 1, 2, 1 around the left one of every two."""
    rows = torch.nn.functional.pad((plane[0::2] + plane[1::2])[None], (1, 0), mode="replicate")[0]
    return (rows[:, 0:-1:2] + rows[:, 2::2]).add_(rows[:, 1::2], alpha=2.0).mul_(0.125)


def open_video(path: Path) -> Any:
    """av.open, but of files that hold their pictures: some formats are lists of other files and addresses, whatever their name ends in.

    Raises what av.open raises.
    """
    return av.open(str(path), options={"format_whitelist": CONTAINERS, "protocol_whitelist": "file"})


class VideoWriter:
    """Context manager that writes pictures of one size; the file appears under its name only when it is complete."""

    def __init__(self, path: Path, frames_per_second: int | Fraction, crf: int, preset: str) -> None:
        """`crf`, `preset`: quality, and how long x264 may look for ways to say the same with fewer bytes."""
        self.path, self.rate, self.options = path, frames_per_second, {"crf": str(crf), "preset": preset}

    def __enter__(self) -> "VideoWriter":
        make_folder(self.path.parent)
        self._partial = self.path.with_name(self.path.name + ".partial")
        remove(self._partial)  # in a folder from somebody else it may be a link that leads anywhere
        self._container = av.open(str(self._partial), "w", format="mp4")
        self._stream = self._container.add_stream("libx264", rate=self.rate, options=self.options)
        context = self._stream.codec_context
        # As many threads as x264 finds useful, each on a picture of its own: PyAV's own choice, threads that share every picture, waits for the
        # slowest of them at every picture and makes larger files.
        context.pix_fmt, context.thread_count, context.thread_type = "yuv420p", 0, "FRAME"
        context.colorspace = context.color_primaries = context.color_trc = BT709
        context.color_range = LIMITED
        self._size: tuple[int, int] | None = None
        return self

    def add(self, planes: UInt8[Tensor, "R W"]) -> None:
        """Appends a picture, as `to_yuv420` gives it, on the CPU. Raises InputError when the file cannot be written."""
        rows, width = planes.shape
        if self._size is None:
            self._size = (width, rows * 2 // 3)
            self._stream.width, self._stream.height = self._size
        frame = av.VideoFrame.from_ndarray(planes.numpy(), format="yuv420p")
        try:
            self._container.mux(self._stream.encode(frame))
        except OSError as problem:
            raise self._refusal(problem) from problem

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            if kind is None and self._size is not None:
                self._container.mux(self._stream.encode())
            self._container.close()
            if kind is None:
                self._partial.replace(self.path)
        except OSError as problem:
            if kind is None:
                raise self._refusal(problem) from problem
        finally:
            remove(self._partial)

    def _refusal(self, problem: OSError) -> InputError:
        return InputError(f"{self.path}: the video cannot be written ({problem})")
