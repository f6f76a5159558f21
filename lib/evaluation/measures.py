"""All measures of a batch of pictures, on its device and without waiting for it. Definitions: docs/evaluation.md."""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from lib.evaluation.conventions import CONVENTIONS, ConventionName
from lib.losses.perceptual import Lpips, Network
from lib.metrics.flicker import flicker, jitter
from lib.metrics.psnr import decibels, psnr
from lib.metrics.regions import weighted_means
from lib.metrics.ssim import MARGIN, ssim_map
from lib.tensors import TensorBundle

REGIONS = ("", "mask_", "face_", "mouth_")  # how measures of a region start; the first is the full frame
SILHOUETTE = 0.05  # further than this from white in any channel: belongs to the head
LEVEL = 0.5 / 255.0  # this close to 0 or 1, a colour is black or white in 8 bits


@dataclass(frozen=True)
class Measures(TensorBundle):
    """Named numbers per picture; NaN where a measure does not apply."""

    names: tuple[str, ...]
    values: Float[Tensor, "B M"]

    def and_(self, name: str, values: Float[Tensor, "B"]) -> "Measures":
        """With one more."""
        return Measures((*self.names, name), torch.cat([self.values, values[:, None]], dim=1))


@dataclass(frozen=True)
class Compared(TensorBundle):
    """Pictures in [0,1] on white, the truth, its matte, and weights of the face and of an open mouth (zero: closed)."""

    image: Float[Tensor, "B 3 H W"]
    target: Float[Tensor, "B 3 H W"]
    mask: Float[Tensor, "B 1 H W"]
    face: Float[Tensor, "B 1 H W"]
    mouth: Float[Tensor, "B 1 H W"]


@contextlib.contextmanager
def exact() -> Iterator[None]:
    """Float32 that is float32: on CUDA, convolutions otherwise round their factors to TF32, which SSIM's variances do not survive."""
    with torch.no_grad(), torch.backends.cudnn.flags(
            enabled=torch.backends.cudnn.enabled, benchmark=torch.backends.cudnn.benchmark, deterministic=False, allow_tf32=False):
        yield


class TruthMeasures:
    """Measures against the truth. `networks` are those of LPIPS that are there."""

    def __init__(self, networks: dict[Network, Lpips], conventions: Sequence[ConventionName]) -> None:
        self.networks, self.conventions = networks, conventions

    def __call__(self, batch: Compared) -> Measures:
        """PSNR (dB), SSIM, L1 and raw LPIPS, for each of REGIONS; then PSNR, SSIM and LPIPS of the conventions."""
        image, target = batch.image, batch.target
        weights = torch.cat([torch.ones_like(batch.mask), batch.mask, batch.face, batch.mouth], dim=1)
        inside = weights[..., MARGIN:-MARGIN, MARGIN:-MARGIN]
        kinds = {
            "psnr": decibels(weighted_means((image - target).square().mean(dim=1), weights)),
            "ssim": weighted_means(ssim_map(image, target), inside),
            "l1": weighted_means((image - target).abs().mean(dim=1), weights),
        } | {f"lpips_{name}": network.regional(image, target, weights) for name, network in self.networks.items()}
        names = tuple(region + kind for region in REGIONS for kind in kinds)
        columns = [torch.stack(list(kinds.values()), dim=2).flatten(1)]
        for name in self.conventions:
            convention = CONVENTIONS[name]
            columns.append(convention.measure(image, target, batch.mask, self.networks.get(convention.network)))
            names += tuple(f"{name}_{kind}" for kind in ("psnr", "ssim", "lpips"))
        return Measures(names, torch.cat(columns, dim=1))


class Flicker:
    """Flicker of pictures that come in batches, in the order of time; the last of a batch is kept for the next."""

    def __init__(self) -> None:
        self._last: Compared | None = None

    def __call__(self, batch: Compared, follows: Sequence[bool]) -> Float[Tensor, "B 2"]:
        """Over the full frame and over the mask (the larger of both mattes); NaN for pictures that do not follow the one before."""
        before = _shifted(batch, self._last)
        self._last = batch.rows(slice(-1, None))
        weights = torch.cat([torch.ones_like(batch.mask), torch.maximum(batch.mask, before.mask)], dim=1)
        values = weighted_means(flicker(batch.image, before.image, batch.target, before.target), weights)
        return torch.where(_column(follows, values), values, torch.nan)


class CrossMeasures:
    """Without a truth, of pictures that come in batches, in the order of time."""

    def __init__(self) -> None:
        self._before: Float[Tensor, "K 3 H W"] | None = None

    def __call__(self, images: Float[Tensor, "B 3 H W"]) -> Measures:
        """Change, jitter, shares of pixels and steadiness of the silhouette; NaN for the first frames, which have none before them."""
        finite = torch.isfinite(images)
        shown = torch.where(finite, images, 0.0)
        known = 0 if self._before is None else len(self._before)
        sequence = shown if self._before is None else torch.cat([self._before, shown])
        padded = torch.cat([sequence[:1].expand(2 - known, *sequence.shape[1:]), sequence])
        self._before = sequence[-2:]
        earlier, previous, now = padded[:-2], padded[1:-1], padded[2:]
        silhouettes = ((1.0 - padded).amax(dim=1) > SILHOUETTE).float()
        areas = silhouettes.mean(dim=(1, 2))
        both, either = (part.mean(dim=(1, 2)) for part in (silhouettes[1:-1] * silhouettes[2:], torch.maximum(silhouettes[1:-1], silhouettes[2:])))
        head = silhouettes[2:, None]
        extreme = ((now <= LEVEL) | (now >= 1.0 - LEVEL)) & finite
        columns = {
            "change": (now - previous).abs().mean(dim=(1, 2, 3)), "jitter": jitter(now, previous, earlier),
            "nonfinite": 1.0 - finite.float().mean(dim=(1, 2, 3)),
            "clipped": (extreme * head).sum(dim=(1, 2, 3)) / (3.0 * head.sum(dim=(1, 2, 3))),
            "silhouette_area": areas[2:], "silhouette_iou": both / either,
            "area_jitter": 0.5 * (areas[2:] - 2.0 * areas[1:-1] + areas[:-2]).abs() / areas[1:-1].where(areas[1:-1] > 0, torch.nan),
        }
        least = {"change": 1, "silhouette_iou": 1, "jitter": 2, "area_jitter": 2}  # frames that must be before
        for name, count in least.items():
            columns[name][:max(0, count - known)] = torch.nan
        return Measures(tuple(columns), torch.stack(list(columns.values()), dim=1))


def neutral_psnr(neutral: Float[Tensor, "B 3 H W"], batch: Compared) -> Float[Tensor, "B"]:
    """PSNR in the mouth of other pictures."""
    return psnr(neutral, batch.target, batch.mouth)


def _shifted(batch: Compared, last: Compared | None) -> Compared:
    """The picture before each; the first of all stands for its own."""
    last = batch.rows(slice(0, 1)) if last is None else last
    return Compared(*(torch.cat([getattr(last, name), getattr(batch, name)[:-1]]) for name in ("image", "target", "mask", "face", "mouth")))


def _column(flags: Sequence[bool], like: Tensor) -> Tensor:
    flags = torch.tensor(flags)
    return (flags.pin_memory() if like.is_cuda else flags).to(like.device, non_blocking=True)[:, None]
