"""Backends `gluon` and `triton`: the semantics of `reference` in kernels, float32, any channel count, any batch.

Projection, lists of tiles and blending take nine launches forward and two backward. The host waits once, for the number of pairs of
tiles and Gaussians, while the device already draws into the room that the last such call needed; with `options.capacity` it never
waits, and the call can be recorded in a CUDA graph. Runs on the CPU under Triton's interpreter (TRITON_INTERPRET=1), slowly, for tests.
"""

import functools
import importlib
import importlib.util
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from lib.errors import InputError
from lib.gaussians.cloud import GaussianCloud
from lib.geometry.camera import Camera
from lib.render.gaussian.contract import DEFAULT, PAIRS_MAX, FeatureImage, RasterOptions, room_for
from lib.render.gaussian.tiles import Picture, Rows, project_cloud, project_cloud_backward, sum_pairs, tile_members

BLOCK_MAX = 64  # channels of one program; more take several, which blend the same alphas
_rooms: dict[tuple, int] = {}  # what calls of the same sizes needed; says nothing about results
Drawn = tuple[Tensor, Tensor, tuple[Tensor, ...]]  # image, alpha, and what the backward pass needs


@dataclass(frozen=True)
class Blending:
    """The blending kernels of a backend and the shapes they are best at."""

    kernels: str
    tile: tuple[int, int]
    chunk: int
    forward_warps: int
    backward_warps: int

    def load(self) -> ModuleType:
        """The module of kernels."""
        return importlib.import_module(self.kernels)


GLUON = Blending("lib.render.gaussian.gluon_kernels", (8, 4), 16, 1, 1)
TRITON = Blending("lib.render.gaussian.triton_kernels", (8, 8), 16, 2, 4)


def triton_obstacle(cloud: GaussianCloud) -> str | None:
    """Why Triton cannot draw the cloud here, or None."""
    wrong = {value.dtype for value in (cloud.means, cloud.quats_wxyz, cloud.scales, cloud.opacities, cloud.features)} - {torch.float32}
    if wrong:
        return f"it computes in float32, not {', '.join(sorted(str(dtype).removeprefix('torch.') for dtype in wrong))}"
    interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    if cloud.means.device.type != "cuda" and not interpreted:
        return f"it needs CUDA tensors, not {cloud.means.device.type}"
    return _missing(interpreted)


def gluon_obstacle(cloud: GaussianCloud) -> str | None:
    """Why Gluon cannot draw the cloud here, or None."""
    reason = triton_obstacle(cloud)
    if reason is None and not cloud.means.is_cuda:
        return "it cannot be interpreted"
    return reason or _without_gluon(cloud.means.device)


@functools.cache
def _missing(interpreted: bool) -> str | None:
    if importlib.util.find_spec("triton") is None:
        return "the package triton is not installed"
    if not interpreted and not (os.environ.get("CC") or any(shutil.which(name) for name in ("cc", "gcc", "clang"))):
        return "triton needs a C compiler: cc, gcc or clang on the PATH, or the variable CC"
    return None


@functools.cache
def _without_gluon(device: torch.device) -> str | None:
    try:
        GLUON.load()
    except ImportError as error:
        return f"this version of triton has no Gluon, which began with 3.6 ({error})"
    if torch.version.hip is not None or torch.cuda.get_device_capability(device) < (8, 0):
        return "it needs an NVIDIA GPU of compute capability 8.0 or more"
    return None


def rasterize_gluon(cloud: GaussianCloud, camera: Camera, background: Float[Tensor, "C"], options: RasterOptions = DEFAULT) -> FeatureImage:
    """See interface.rasterize."""
    return _rasterize("gluon", gluon_obstacle(cloud), GLUON, cloud, camera, background, options)


def rasterize_triton(cloud: GaussianCloud, camera: Camera, background: Float[Tensor, "C"], options: RasterOptions = DEFAULT) -> FeatureImage:
    """See interface.rasterize."""
    return _rasterize("triton", triton_obstacle(cloud), TRITON, cloud, camera, background, options)


def _rasterize(
    name: str, reason: str | None, blending: Blending, cloud: GaussianCloud, camera: Camera, background: Float[Tensor, "C"],
    options: RasterOptions,
) -> FeatureImage:
    if reason is not None:
        raise InputError(f"rasterizer backend '{name}' cannot draw this: {reason}")
    channels, images = cloud.features.shape[-1], len(camera.intrinsics)
    if channels * camera.width * camera.height >= 2**31 or images * cloud.means.shape[1] >= 2**28:
        raise InputError(f"rasterizer backend '{name}' cannot draw {images} x {cloud.means.shape[1]} Gaussians with {channels} channels at "
                         f"{camera.width} x {camera.height} pixels at once: draw fewer images, channels or pixels per call")
    if options.capacity is not None and options.capacity.pairs > PAIRS_MAX:
        raise InputError(f"rasterizer backend '{name}' cannot have room for {options.capacity.pairs} pairs, only for {PAIRS_MAX}")
    picture = Picture(images, camera.width, camera.height, options.clip, blending.tile)
    leaves = (cloud.means, cloud.quats_wxyz, cloud.scales, cloud.opacities, cloud.features, camera.world_to_camera, background)
    save = torch.is_grad_enabled() and any(leaf.requires_grad for leaf in leaves)
    with torch.cuda.device_of(cloud.means):
        image, alpha, radii = Draw.apply(*leaves, camera.intrinsics, picture, blending, options, save)
    return FeatureImage(image, alpha, radii)


class Draw(torch.autograd.Function):
    """Everything, as one node of the graph."""

    @staticmethod
    def forward(
        ctx: FunctionCtx, means: Tensor, quats: Tensor, scales: Tensor, opacities: Tensor, features: Tensor, world_to_camera: Tensor,
        background: Float[Tensor, "C"], intrinsics: Float[Tensor, "B 3 3"], picture: Picture, blending: Blending, options: RasterOptions, save: bool,
    ) -> tuple[Float[Tensor, "B C H W"], Float[Tensor, "B 1 H W"], Int[Tensor, "B N"]]:
        """Draws; keeps what the backward pass needs only if `save`."""
        features, background = features.contiguous(), background.contiguous()
        cloud = GaussianCloud(means, quats, scales, opacities, features)
        camera = Camera(world_to_camera, intrinsics, picture.width, picture.height)
        rows, lengths = project_cloud(cloud, camera, picture)
        ends = lengths.cumsum(dim=0)  # int64: exploded scales can give any number

        def draw(room: int, lengths: Int[Tensor, "T"]) -> Drawn:
            members = tile_members(rows, lengths, ends, picture, room)
            return _blend(rows, ends, members, features, background, picture, blending, options, save)

        if options.capacity is not None:
            options.capacity.needed = ends[-1:]
            image, alpha, kept = draw(options.capacity.pairs, lengths)
        else:
            image, alpha, kept = _in_enough_room(draw, rows, lengths, ends, picture)
        if save:
            ctx.save_for_backward(means, quats, scales, opacities, features, world_to_camera, background, intrinsics, rows.geometry, rows.depths,
                                  rows.radii, ends, *kept)
            ctx.picture, ctx.blending, ctx.options = picture, blending, options
        radii = rows.radii.view(picture.images, -1)
        ctx.mark_non_differentiable(radii)
        ctx.set_materialize_grads(False)
        return image, alpha, radii

    @staticmethod
    @once_differentiable
    def backward(
        ctx: FunctionCtx, d_image: Float[Tensor, "B C H W"] | None, d_alpha: Float[Tensor, "B 1 H W"] | None, _: None
    ) -> tuple[Tensor | None, ...]:
        """Gradients of everything but intrinsics."""
        (means, quats, scales, opacities, features, world_to_camera, background, intrinsics, geometry, depths, radii, ends,
         members, final, checkpoints, stops) = ctx.saved_tensors
        picture, blending, options = ctx.picture, ctx.blending, ctx.options
        rows = Rows(geometry, depths, radii)
        if d_image is None:
            d_image = final.new_zeros(()).expand(picture.images, features.shape[-1], picture.height, picture.width)
        with torch.cuda.device_of(means):
            d_geometry, d_features = _blend_backward(
                rows, ends, members, features, background, final, checkpoints, stops, d_image, d_alpha, picture, blending, options)
            d_background = None
            if ctx.needs_input_grad[6]:
                d_background = torch.einsum("bchw,bhw->c", d_image.to(final.dtype), final)
            d_means = d_quats = d_scales = d_opacities = d_pose = None
            if any(ctx.needs_input_grad[:4]) or ctx.needs_input_grad[5]:
                cloud = GaussianCloud(means, quats, scales, opacities, features)
                camera = Camera(world_to_camera, intrinsics, picture.width, picture.height)
                d_means, d_quats, d_scales, d_opacities, d_pose = project_cloud_backward(cloud, camera, radii, d_geometry, ctx.needs_input_grad[5])
        return d_means, d_quats, d_scales, d_opacities, d_features, d_pose, d_background, None, None, None, None, None


def _in_enough_room(
    draw: Callable[[int, Tensor], Drawn], rows: Rows, lengths: Int[Tensor, "T"], ends: Int[Tensor, "T"], picture: Picture
) -> Drawn:
    """Draws into as much room as the last call of these sizes needed, and again if that was too little."""
    if not ends.is_cuda:
        return draw(int(ends[-1]), lengths)
    if torch.cuda.is_current_stream_capturing():
        raise InputError("a CUDA graph cannot record a drawing whose number of pairs is not known: give RasterOptions.capacity")
    key = (ends.device, len(rows.radii), picture)
    room = _rooms.get(key)
    if room is None:
        total, result = int(ends[-1]), None
    else:
        host = torch.empty(1, dtype=torch.int64, pin_memory=True)
        host.copy_(ends[-1:], non_blocking=True)
        counted = torch.cuda.Event()
        counted.record()
        result = draw(room, lengths)
        counted.synchronize()
        total = int(host)
    enough = room_for(total)
    if room is None or total > room or total < room // 2:
        _rooms[key] = enough
    if result is None or total > room:
        result = draw(_rooms[key], lengths if result is None else torch.diff(ends, prepend=ends.new_zeros(1)).int())
    return result


def _block(channels: int) -> int:
    """Channels of one program: a power of two, and at least 16, as matrix products want."""
    return min(max(1 << max(channels - 1, 0).bit_length(), 16), BLOCK_MAX)


def _arguments(features: Tensor, picture: Picture, blending: Blending, options: RasterOptions) -> tuple[tuple[int, int], tuple, dict]:
    """Grid, sizes and constants of both blending kernels."""
    channels, feature_rows, block = features.shape[-1], features.shape[0] * features.shape[1], _block(features.shape[-1])
    grid = (picture.tiles, max(-(-channels // block), 1))
    sizes = (picture.tiles_x, picture.tiles_x * picture.tiles_y, picture.width, picture.height, channels, max(feature_rows, 1))
    return grid, sizes, {
        "TILE_X": blending.tile[0], "TILE_Y": blending.tile[1], "CHUNK": blending.chunk, "BLOCK": block, "HIGHEST": options.precision == "highest",
        "SHARED": len(features) != picture.images, "FULL": channels % block == 0, "LONG": feature_rows * channels >= 2**31,
    }


def _blend(
    rows: Rows, ends: Int[Tensor, "T"], members: Int[Tensor, "R"], features: Float[Tensor, "B N C"], background: Float[Tensor, "C"], picture: Picture,
    blending: Blending, options: RasterOptions, save: bool,
) -> Drawn:
    """Image, alpha, and what the backward pass needs."""
    grid, sizes, constants = _arguments(features, picture, blending, options)
    room, pixels = len(members), blending.tile[0] * blending.tile[1]
    image = features.new_empty(picture.images, features.shape[-1], picture.height, picture.width, dtype=options.dtype or features.dtype)
    alpha = features.new_empty(picture.images, 1, picture.height, picture.width)
    # As many chunks as there can be: every tile may have one that is not full.
    checkpoints = features.new_empty(room // blending.chunk + picture.tiles, pixels) if save else alpha
    final = features.new_empty(picture.images, picture.height, picture.width) if save else alpha
    stops = members.new_empty(picture.tiles) if save else members
    blending.load().blend_forward[grid](
        ends, members, rows.geometry, features, background, image, alpha, final, checkpoints, stops, room, *image.stride(), *sizes, picture.tiles,
        SAVE=save, WARPS=blending.forward_warps, num_warps=blending.forward_warps, **constants,
    )
    return image, alpha, (members, final, checkpoints, stops)


def _blend_backward(
    rows: Rows, ends: Int[Tensor, "T"], members: Int[Tensor, "R"], features: Float[Tensor, "B N C"], background: Float[Tensor, "C"],
    final: Float[Tensor, "I H W"], checkpoints: Tensor, stops: Int[Tensor, "T"], d_image: Tensor, d_alpha: Tensor | None, picture: Picture,
    blending: Blending, options: RasterOptions,
) -> tuple[Float[Tensor, "M 8"], Float[Tensor, "B N C"]]:
    """Gradients of the rows and of the features."""
    grid, sizes, constants = _arguments(features, picture, blending, options)
    room, count, channels = len(members), len(rows.radii), features.shape[-1]
    if options.deterministic:
        d_geometry, d_features = features.new_empty(grid[1] * room, 8), features.new_empty(room, channels)
    else:
        sums = features.new_zeros(count * 8 + features.numel())
        d_geometry, d_features = sums[:count * 8].view(count, 8), sums[count * 8:].view(features.shape)
    blending.load().blend_backward[grid](
        ends, stops, members, rows.geometry, features, background, final, checkpoints, d_image, final if d_alpha is None else d_alpha.contiguous(),
        d_geometry, d_features, room, *d_image.stride(), *sizes,
        ALPHA=d_alpha is not None, ROWS=options.deterministic, PLANAR=d_image.stride(3) == 1,
        WARPS=blending.backward_warps, num_warps=blending.backward_warps, **constants,
    )
    if options.deterministic:
        d_geometry, d_features = sum_pairs(rows, ends, stops, members, picture, d_geometry, d_features)
        d_features = d_features.view(picture.images, -1, channels)
        d_features = d_features.sum(dim=0, keepdim=True) if constants["SHARED"] else d_features
    return d_geometry, d_features
