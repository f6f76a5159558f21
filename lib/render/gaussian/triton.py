"""The semantics of `reference` with blending in Triton kernels: projection and lists of tiles in torch, float32, any channel count.

Deterministic: gradients of every (tile, Gaussian) pair are written apart and summed in a fixed order. Memory of the backward pass
is 4 (C + 8) bytes per pair. Runs on CUDA, and on the CPU under Triton's interpreter (TRITON_INTERPRET=1), slowly, for tests.
"""

import functools
import importlib.util
import math
import os
import shutil
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from lib.errors import InputError
from lib.gaussians.cloud import GaussianCloud
from lib.geometry.camera import Camera
from lib.render.gaussian.contract import DEFAULT, FeatureImage, RasterOptions, one_per_camera
from lib.render.gaussian.projection import ALPHA_MIN, Projected, project, tile_pairs

SIDE = 8  # pixels; smaller tiles blend fewer pairs that contribute nothing, larger ones have fewer lists to sort
CHUNK = 16  # Gaussians blended at once
FORWARD_WARPS, BACKWARD_WARPS = 2, 4
BLOCK_MAX = 64  # channels of one program; more take several, which blend the same alphas
PRECISION = "ieee"  # float32 products; tf32x3 on tensor cores takes about as many instructions, plain tf32 costs three digits
SLACK = 0.01  # of the squared distance at which a Gaussian ends: what rounding may add before a tile is left out


@dataclass(frozen=True)
class TileLists:
    """Which Gaussians each tile blends, front to back. `slots` is where a pair stands when pairs are ordered by Gaussian."""

    gaussians: Int[Tensor, "P"]
    slots: Int[Tensor, "P"]
    starts: Int[Tensor, "E"]  # per tile, and the end
    chunk_starts: Int[Tensor, "E"]  # per tile, and the end
    drawn: Int[Tensor, "K"]  # Gaussians that have pairs, in the order of the slots
    lengths: Int[Tensor, "K"]  # how many pairs each of them has
    tiles_x: int
    tiles_y: int
    batch: int
    width: int
    height: int


def obstacle(cloud: GaussianCloud) -> str | None:
    """Why this backend cannot draw the cloud here, or None."""
    wrong = {value.dtype for value in (cloud.means, cloud.quats_wxyz, cloud.scales, cloud.opacities, cloud.features)} - {torch.float32}
    if wrong:
        return f"it computes in float32, not {', '.join(sorted(str(dtype).removeprefix('torch.') for dtype in wrong))}"
    interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    if cloud.means.device.type != "cuda" and not interpreted:
        return f"it needs CUDA tensors, not {cloud.means.device.type}"
    return _missing(interpreted)


@functools.cache
def _missing(interpreted: bool) -> str | None:
    if importlib.util.find_spec("triton") is None:
        return "the package triton is not installed"
    if not interpreted and not (os.environ.get("CC") or any(shutil.which(name) for name in ("cc", "gcc", "clang"))):
        return "triton needs a C compiler: cc, gcc or clang on the PATH, or the variable CC"
    return None


def rasterize(cloud: GaussianCloud, camera: Camera, background: Float[Tensor, "C"], options: RasterOptions = DEFAULT) -> FeatureImage:
    """See interface.rasterize."""
    reason = obstacle(cloud)
    if reason is not None:
        raise InputError(f"rasterizer backend 'triton' cannot draw this: {reason}")
    cloud = one_per_camera(cloud, camera)
    projected = project(cloud, camera, options.clip)
    lists = tile_lists(projected, len(cloud.means), camera.width, camera.height)
    zero = torch.zeros_like(projected.log_opacities)
    geometry = torch.stack([*projected.means.unbind(dim=1), *projected.conics.unbind(dim=1), projected.log_opacities, zero, zero], dim=1)
    features = cloud.features.flatten(0, 1).contiguous()
    save = torch.is_grad_enabled() and (geometry.requires_grad or features.requires_grad)
    image, alpha = Blend.apply(geometry, features, lists, save)
    features = image + (1.0 - alpha) * background[:, None, None]
    return FeatureImage(features.to(options.dtype or features.dtype), alpha, projected.radii.reshape(len(cloud.means), -1))


def tile_lists(projected: Projected, batch: int, width: int, height: int) -> TileLists:
    """Pairs of tiles and Gaussians whose ellipse of alpha >= 1/255 reaches a pixel of the tile."""
    with torch.no_grad():
        tiles_x, tiles_y = -(-width // SIDE), -(-height // SIDE)
        tiles = batch * tiles_x * tiles_y
        gaussian, tile = tile_pairs(projected, batch, SIDE, tiles_x, tiles_y)
        reached = _reaches(projected, gaussian, tile % tiles_x, tile // tiles_x % tiles_y).nonzero()[:, 0]
        gaussian, tile = gaussian[reached], tile[reached]
        if len(gaussian) >= 2**31:
            raise InputError(f"{len(gaussian)} pairs of Gaussians and tiles: draw fewer images at once")
        drawn, lengths = torch.unique_consecutive(gaussian, return_counts=True)
        # A short key sorts in fewer passes.
        tile, slots = tile.to(torch.int16 if tiles < 2**15 else torch.int32).sort(stable=True)
        starts = torch.searchsorted(tile, torch.arange(tiles + 1, device=tile.device, dtype=tile.dtype), out_int32=True)
        chunks = torch.div(starts.diff() + CHUNK - 1, CHUNK, rounding_mode="floor")
        return TileLists(
            gaussians=gaussian[slots].int(), slots=slots.int(), starts=starts,
            chunk_starts=torch.nn.functional.pad(chunks.cumsum(dim=0, dtype=torch.int32), (1, 0)),
            drawn=drawn, lengths=lengths, tiles_x=tiles_x, tiles_y=tiles_y, batch=batch, width=width, height=height,
        )


def _reaches(projected: Projected, gaussian: Int[Tensor, "P"], column: Int[Tensor, "P"], row: Int[Tensor, "P"]) -> Bool[Tensor, "P"]:
    """Whether the quadratic form, at its least over the pixel centres' rectangle, is within the ellipse of alpha 1/255."""
    a, b, c = projected.conics[gaussian].unbind(dim=1)
    x, y = projected.means[gaussian].unbind(dim=1)
    left, top = column * SIDE + 0.5 - x, row * SIDE + 0.5 - y
    right, bottom = left + (SIDE - 1), top + (SIDE - 1)

    def form(u: Tensor, v: Tensor) -> Tensor:
        return a * u * u + 2.0 * b * u * v + c * v * v

    def on_column(u: Tensor) -> Tensor:
        return form(u, torch.minimum(torch.maximum(-b * u / c, top), bottom))

    def on_row(v: Tensor) -> Tensor:
        return form(torch.minimum(torch.maximum(-b * v / a, left), right), v)

    least = torch.minimum(torch.minimum(on_column(left), on_column(right)), torch.minimum(on_row(top), on_row(bottom)))
    holds_centre = (left <= 0) & (right >= 0) & (top <= 0) & (bottom >= 0)
    reach = 2.0 * (projected.log_opacities[gaussian] - math.log(ALPHA_MIN))
    return holds_centre | (least <= reach + SLACK)


class Blend(torch.autograd.Function):
    """Geometry rows [x, y, a, b, c, log opacity, 0, 0] and features of all Gaussians -> image and alpha without background."""

    @staticmethod
    def forward(
        ctx: FunctionCtx, geometry: Float[Tensor, "M 8"], features: Float[Tensor, "M C"], lists: TileLists, save: bool
    ) -> tuple[Float[Tensor, "B C H W"], Float[Tensor, "B 1 H W"]]:
        """Draws; keeps what the backward pass needs only if `save`."""
        from lib.render.gaussian.triton_kernels import blend_forward

        channels = features.shape[1]
        tiles = len(lists.starts) - 1
        image = geometry.new_empty(lists.batch, channels, lists.height, lists.width)
        alpha = geometry.new_empty(lists.batch, 1, lists.height, lists.width)
        # As many chunks as there can be without asking the device: every tile may have one that is not full.
        checkpoints = geometry.new_empty(len(lists.gaussians) // CHUNK + tiles if save else 0, SIDE * SIDE)
        stops = lists.starts.new_empty(tiles if save else 0)
        block = _channel_block(channels)
        with torch.cuda.device_of(geometry):
            blend_forward[(tiles, -(-channels // block))](
                lists.starts, lists.chunk_starts, lists.gaussians, geometry, features, image, alpha, checkpoints, stops,
                lists.tiles_x, lists.tiles_x * lists.tiles_y, lists.width, lists.height, channels,
                SIDE=SIDE, CHUNK=CHUNK, BLOCK=block, SAVE=save, PRECISION=PRECISION, num_warps=FORWARD_WARPS,
            )
        if save:
            ctx.save_for_backward(geometry, features, checkpoints, stops)
            ctx.lists = lists
        return image, alpha

    @staticmethod
    @once_differentiable
    def backward(
        ctx: FunctionCtx, d_image: Float[Tensor, "B C H W"], d_alpha: Float[Tensor, "B 1 H W"]
    ) -> tuple[Float[Tensor, "M 8"], Float[Tensor, "M C"], None, None]:
        """One row of gradients per pair, summed per Gaussian."""
        from lib.render.gaussian.triton_kernels import blend_backward

        geometry, features, checkpoints, stops = ctx.saved_tensors
        lists, channels, pairs = ctx.lists, features.shape[1], len(ctx.lists.gaussians)
        block = _channel_block(channels)
        blocks = -(-channels // block)
        # Pairs behind the place where their tile stopped are not visited.
        d_geometry, d_features = geometry.new_zeros(blocks, pairs, 8), features.new_zeros(pairs, channels)
        with torch.cuda.device_of(geometry):
            blend_backward[(len(stops), blocks)](
                lists.starts, lists.chunk_starts, stops, lists.gaussians, lists.slots, geometry, features, checkpoints,
                d_image.contiguous(), d_alpha.contiguous(), d_geometry, d_features,
                pairs, lists.tiles_x, lists.tiles_x * lists.tiles_y, lists.width, lists.height, channels,
                SIDE=SIDE, CHUNK=CHUNK, BLOCK=block, PRECISION=PRECISION, num_warps=BACKWARD_WARPS,
            )
        return _per_gaussian(d_geometry.sum(dim=0), lists, geometry), _per_gaussian(d_features, lists, features), None, None


def _channel_block(channels: int) -> int:
    """Channels of one program: a power of two, as Triton's blocks are, and at least 16, as its matrix products want."""
    return min(max(1 << max(channels - 1, 0).bit_length(), 16), BLOCK_MAX)


def _per_gaussian(rows: Float[Tensor, "P D"], lists: TileLists, like: Float[Tensor, "M D"]) -> Float[Tensor, "M D"]:
    """Sums of the rows of each Gaussian, always in the same order."""
    sums = torch.segment_reduce(rows, "sum", lengths=lists.lengths, axis=0, unsafe=True)
    return torch.zeros_like(like).index_copy_(0, lists.drawn, sums)
