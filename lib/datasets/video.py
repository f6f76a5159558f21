"""H.264 video files."""

from pathlib import Path
from types import TracebackType

import av
from jaxtyping import Float
from torch import Tensor

from lib.datasets.images import to_uint8
from lib.errors import InputError
from lib.files import make_folder


class VideoWriter:
    """Context manager that writes pictures of one size; the file appears under its name only when it is complete."""

    def __init__(self, path: Path, frames_per_second: int, crf: int) -> None:
        self.path, self.rate, self.crf = path, frames_per_second, crf

    def __enter__(self) -> "VideoWriter":
        make_folder(self.path.parent)
        self._partial = self.path.with_name(self.path.name + ".partial")
        self._container = av.open(str(self._partial), "w", format="mp4")
        self._stream = self._container.add_stream("libx264", rate=self.rate, options={"crf": str(self.crf), "preset": "medium"})
        self._stream.pix_fmt = "yuv420p"
        self._size: tuple[int, int] | None = None
        return self

    def add(self, image: Float[Tensor, "3 H W"]) -> None:
        """Appends a picture in [0,1]; odd sizes lose their last row or column (4:2:0 needs even ones)."""
        image = image[:, :image.shape[1] // 2 * 2, :image.shape[2] // 2 * 2]
        if self._size is None:
            self._size = (image.shape[2], image.shape[1])
            self._stream.width, self._stream.height = self._size
        pixels = to_uint8(image).permute(1, 2, 0).contiguous().numpy()
        self._container.mux(self._stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            if kind is None and self._size is not None:
                self._container.mux(self._stream.encode())
            self._container.close()
            if kind is None:
                self._partial.replace(self.path)
        except OSError as problem:
            raise InputError(f"{self.path}: the video cannot be written ({problem})") from problem
        finally:
            self._partial.unlink(missing_ok=True)

