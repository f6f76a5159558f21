"""Video files -> RGB pictures with their times. A picture that cannot be decoded completely is an error, never a grey one."""

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.video.reformatter import VideoReformatter
from jaxtyping import UInt8
from numpy.typing import NDArray

from lib.datasets.video import open_video
from lib.errors import InputError


@dataclass(frozen=True)
class Video:
    """What a file holds, from its packets alone. `stamps` are sorted, in units of `unit` seconds; `lost` counts frames promised and not there."""

    path: Path
    stamps: tuple[int, ...]
    unit: Fraction
    lost: int
    width: int
    height: int

    def seconds(self, stamp: int) -> float:
        """When a frame was taken."""
        return float(stamp * self.unit)


def read_video(path: Path) -> Video:
    """Lists the frames of a video without decoding them. Raises InputError for what is no video, and for one without times."""
    try:
        with open_video(path) as container:
            if not container.streams.video:
                raise InputError(f"{path}: the file holds no video")
            stream = container.streams.video[0]
            packets = [packet for packet in container.demux(stream) if packet.size > 0]
            stamps = [packet.pts for packet in packets if not packet.is_discard]
            unit, size = Fraction(stream.time_base or 0), (stream.codec_context.width, stream.codec_context.height)
            lost = max(0, stream.frames - len(packets))
    # Beyond FFmpeg's own: a stream without codec has no size, a name in the file may be no text.
    except (OSError, av.error.FFmpegError, AttributeError, ValueError, MemoryError) as error:
        raise InputError(f"{path}: cannot be opened as a video ({getattr(error, 'strerror', None) or error}); is it cut off? "
                         "Copy or download it again") from error
    if not stamps or None in stamps or not unit or len(set(stamps)) < len(stamps):
        raise InputError(f"{path}: expected a video whose frames have times of their own, found {len(stamps)} frames, {len(set(stamps))} different "
                         "times; copy, download or encode it again")
    return Video(path, tuple(sorted(stamps)), unit, lost, *size)


def decode(video: Video, wanted: frozenset[int], threads: int) -> Iterator[tuple[int, UInt8[NDArray, "H W 3"]]]:
    """RGB of the frames with these stamps, in order, upright. BT.601 unless the file says otherwise. `threads`: of the decoder.

    Raises InputError where one of them is damaged.
    """
    converter, missing = VideoReformatter(), set(wanted)
    try:
        with open_video(video.path) as container:
            stream = container.streams.video[0]
            stream.codec_context.thread_count, stream.thread_type = threads, "AUTO"
            for frame in container.decode(stream):
                if frame.pts in missing:
                    if frame.is_corrupt:
                        raise InputError(f"{video.path}: the frame at {video.seconds(frame.pts):.3f} s is damaged; {_WAY_OUT}")
                    missing.discard(frame.pts)
                    pixels = converter.reformat(frame, format="rgb24").to_ndarray()
                    yield frame.pts, np.ascontiguousarray(np.rot90(pixels, round(frame.rotation / 90.0))) if frame.rotation else pixels
                    if not missing:
                        return
    except (OSError, av.error.FFmpegError, ValueError, MemoryError) as error:
        raise InputError(f"{video.path}: cannot be decoded from {video.seconds(min(missing, default=0)):.3f} s on "
                         f"({getattr(error, 'strerror', None) or error}); {_WAY_OUT}") from error
    if missing:
        raise InputError(f"{video.path}: {len(missing)} frames cannot be decoded, the first at {video.seconds(min(missing)):.3f} s; {_WAY_OUT}")


_WAY_OUT = "download it again, or leave this camera or sequence out"
