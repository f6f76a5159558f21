"""Videos: what is written is what is decoded, colours too; what is not complete does not stay."""

import av
import numpy as np
import pytest
import torch

from lib.datasets.video import VideoWriter, to_yuv420
from lib.errors import InputError


def write(path, images, crf=4, preset="veryfast"):
    with VideoWriter(path, 25, crf, preset) as video:
        for image in images:
            video.add(to_yuv420(image))


def decoded(path):
    with av.open(str(path)) as container:
        return list(container.decode(video=0))


def smooth(height, width, seed=0):
    random = torch.Generator().manual_seed(seed)
    return torch.nn.functional.interpolate(torch.rand(1, 3, 3, 3, generator=random), (height, width), mode="bilinear", align_corners=True)[0]


@pytest.mark.parametrize(("color", "planes"), [  # ITU-R BT.709, 8 bits, limited range
    ((0, 0, 0), (16, 128, 128)), ((1, 1, 1), (235, 128, 128)), ((1, 0, 0), (63, 102, 240)), ((0, 1, 0), (173, 42, 26)), ((0, 0, 1), (32, 240, 118)),
    ((2, 2, -1), (219, 16, 138)),  # as yellow
])
def test_planes_of_colours(color, planes):
    result = to_yuv420(torch.tensor(color, dtype=torch.float32)[:, None, None].expand(3, 4, 8))
    assert result.shape == (6, 8)
    assert [set(part.flatten().tolist()) for part in (result[:4], result[4:5], result[5:])] == [{value} for value in planes]


def test_chroma_is_sited_left():
    """A ramp of colour: the sample of columns 2i and 2i + 1 is the value at column 2i."""
    ramp = torch.linspace(0.2, 0.8, 32).expand(8, 32)
    image = torch.stack([torch.full_like(ramp, 0.5), torch.full_like(ramp, 0.5), ramp])
    blue = to_yuv420(image)[8:10].view(4, 16)
    expected = 128.0 + 224.0 / (2 * (1 - 0.0722)) * (ramp - (0.5 * (1 - 0.0722) + 0.0722 * ramp))[0, 0::2]
    assert float((blue[:, 1:] - expected[1:]).abs().max()) <= 0.51


@pytest.mark.parametrize("seed", range(3))
def test_colours_come_back(tmp_path, seed):
    images = [smooth(64, 96, seed + part) for part in range(3)]
    write(tmp_path / "video.mp4", images)
    frames = decoded(tmp_path / "video.mp4")
    assert len(frames) == 3
    for frame, image in zip(frames, images, strict=True):
        assert (frame.colorspace, frame.color_range) == (1, 1)
        difference = frame.to_ndarray(format="rgb24").astype(float) - 255.0 * image.permute(1, 2, 0).numpy()
        assert np.abs(difference).mean() < 3.0 and np.abs(difference.mean(axis=(0, 1))).max() < 2.0  # the decoder rounds down


def test_tags_are_in_the_file(tmp_path):
    write(tmp_path / "video.mp4", [smooth(32, 32)])
    with av.open(str(tmp_path / "video.mp4")) as container:
        context = container.streams.video[0].codec_context
        assert (context.color_primaries, context.color_trc, context.colorspace, context.color_range) == (1, 1, 1, 1)


def test_odd_sizes_lose_a_row_or_column(tmp_path):
    write(tmp_path / "video.mp4", [smooth(33, 47)] * 2)
    assert [(frame.width, frame.height) for frame in decoded(tmp_path / "video.mp4")] == [(46, 32)] * 2


def test_faster_presets_write_more(tmp_path):
    random = torch.Generator().manual_seed(0)
    images = [torch.nn.functional.avg_pool2d(torch.rand(3, 130, 130, generator=random), 3, stride=1) for _ in range(8)]
    sizes = {}
    for preset in ("ultrafast", "veryslow"):
        write(tmp_path / f"{preset}.mp4", images, crf=16, preset=preset)
        sizes[preset] = (tmp_path / f"{preset}.mp4").stat().st_size
    assert sizes["ultrafast"] > sizes["veryslow"]


def test_an_interrupted_video_leaves_nothing(tmp_path):
    with pytest.raises(KeyboardInterrupt), VideoWriter(tmp_path / "video.mp4", 25, 16, "veryfast") as video:
        video.add(to_yuv420(smooth(32, 32)))
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_told(tmp_path):
    writer = VideoWriter(tmp_path / "video.mp4", 25, 0, "ultrafast")
    with pytest.raises(InputError, match="video.mp4: the video cannot be written"), writer as video:
        video._container.close()
        video._container = av.open("/dev/full", "w", format="mp4")
        video._stream = video._container.add_stream("libx264", rate=25, options={"crf": "0", "preset": "ultrafast"})
        for _ in range(400):
            video.add(to_yuv420(torch.rand(3, 256, 256)))
    assert not (tmp_path / "video.mp4").exists()
