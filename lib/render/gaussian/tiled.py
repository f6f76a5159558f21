"""Backends `gluon` and `triton`: the semantics of `reference` in kernels, float32, any channel count, any batch.

Projection, lists of tiles and blending take eight launches forward and three backward. The host waits once, for the number of pairs
of tiles and Gaussians, while the device already draws into the room that the last such call needed; with `options.capacity` it never
waits, and the call can be recorded in a CUDA graph. Runs on the CPU under Triton's interpreter (TRITON_INTERPRET=1), slowly, for tests.
"""

import functools
import importlib
import importlib.util
import os
import shutil
import threading
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
from lib.render.gaussian.installed import gradient_obstacle, refuse_obstacles
from lib.render.gaussian.launch import HostWords, Launch, aligned, on_device
from lib.render.gaussian.tiles import Rows, Scene, channel_block, scene_of

GRID_MAX = 65535  # of a launch in its second direction: images
SPARE = 0.02  # of the number of pairs: more room for the next call
_local = threading.local()  # of every thread: where the device writes the number of pairs


@dataclass(frozen=True, eq=False)
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
TRITON = Blending("lib.render.gaussian.triton_kernels", (8, 4), 16, 4, 4)


def triton_obstacle(cloud: GaussianCloud) -> str | None:
    """Why Triton cannot draw the cloud here, or None."""
    tensors = (cloud.means, cloud.quats_wxyz, cloud.scales, cloud.opacities, cloud.features)
    wrong = {str(tensor.dtype).removeprefix("torch.") for tensor in tensors if tensor.dtype is not torch.float32}
    if wrong:
        return f"it computes in float32, not {', '.join(sorted(wrong))}"
    interpreted = not cloud.means.is_cuda and os.environ.get("TRITON_INTERPRET") == "1"
    if not cloud.means.is_cuda and not interpreted:
        return f"it needs CUDA tensors, not {cloud.means.device.type}"
    return triton_missing(interpreted)


def gluon_obstacle(cloud: GaussianCloud) -> str | None:
    """Why Gluon cannot draw the cloud here, or None."""
    reason = triton_obstacle(cloud)
    if reason is None and not cloud.means.is_cuda:
        return "it cannot be interpreted"
    return reason or _without_gluon(cloud.means.device)


@functools.cache
def triton_missing(interpreted: bool) -> str | None:
    """What kernels need and is not here, or None."""
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
    refuse_obstacles(name, reason)
    means, features = cloud.means, cloud.features
    clouds, count, channels = features.shape
    _check_inputs(name, cloud, camera, background)
    leaves = (means, cloud.quats_wxyz, cloud.scales, cloud.opacities, camera.world_to_camera, features, background)
    save = torch.is_grad_enabled() and any(leaf.requires_grad for leaf in leaves)
    blender = blender_of(
        blending, clouds, count, camera.intrinsics.shape[0], channels, camera.width, camera.height, options.clip, options.precision == "highest",
        options.deterministic, save, means.get_device(),
    )
    scene = blender.scene
    if channels * camera.width * camera.height >= 2**31 or scene.images * count > 2**24 or scene.images > GRID_MAX:
        raise InputError(f"rasterizer backend '{name}' cannot draw {scene.images} x {count} Gaussians with {channels} channels at "
                         f"{camera.width} x {camera.height} pixels at once: draw fewer images, channels or pixels per call")
    with on_device(means):
        image, alpha, radii = Draw.apply(*leaves, camera.intrinsics, scene, blender, options)
    return FeatureImage(image, alpha, radii)


def _check_inputs(name: str, cloud: GaussianCloud, camera: Camera, background: Float[Tensor, "C"]) -> None:
    """Kernels get addresses: a tensor of another kind would be read as what it is not."""
    (clouds, count, channels), images, device = cloud.features.shape, camera.intrinsics.shape[0], cloud.means.get_device()
    for what, tensor, shape in (
        ("means", cloud.means, (clouds, count, 3)), ("quats_wxyz", cloud.quats_wxyz, (clouds, count, 4)),
        ("scales", cloud.scales, (clouds, count, 3)), ("opacities", cloud.opacities, (clouds, count)),
        ("features", cloud.features, (clouds, count, channels)),
        ("background", background, (channels,)), ("world_to_camera", camera.world_to_camera, (images, 3, 4)),
        ("intrinsics", camera.intrinsics, (images, 3, 3)),
    ):
        if tensor.shape != shape or tensor.dtype is not torch.float32 or tensor.get_device() != device:
            raise InputError(f"rasterizer backend '{name}' cannot draw this: {what} is {tuple(tensor.shape)} {tensor.dtype} on {tensor.device}; "
                             f"expected {shape} torch.float32 on {cloud.means.device}")
    refuse_obstacles(name, gradient_obstacle(intrinsics=camera.intrinsics))


@dataclass(eq=False)
class Blender:
    """Launches of the blending kernels for one set of sizes."""

    blending: Blending
    scene: Scene
    channels: int
    highest: bool
    rows: bool
    save: bool
    room: tuple[int, int] = (0, 0)  # for pairs and keys, that the last drawings needed; says nothing about results

    @functools.cached_property
    def _constants(self) -> dict[str, int | bool]:
        block = channel_block(self.channels)
        return {
            "TILE_X": self.blending.tile[0], "TILE_Y": self.blending.tile[1], "CHUNK": self.blending.chunk, "BLOCK": block, "HIGHEST": self.highest,
            "SHARED": self.scene.clouds != self.scene.images, "FULL": self.channels > 0 and self.channels % block == 0,
            "LONG": self.scene.clouds * self.scene.count * self.channels >= 2**31,
        }

    @functools.cached_property
    def grid(self) -> tuple[int, int]:
        """Tiles, and blocks of channels."""
        return self.scene.tiles, max(-(-self.channels // self._constants["BLOCK"]), 1)

    @functools.cached_property
    def sizes(self) -> tuple[int, ...]:
        """What both kernels are told."""
        scene = self.scene
        return scene.tiles_x, scene.tiles_per_image, scene.width, scene.height, self.channels, max(scene.clouds * scene.count, 1)

    @functools.cached_property
    def _launches(self) -> dict[tuple, Launch]:
        return {}

    def forward(self, dtype: torch.dtype) -> Launch:
        """Draws an image of this type."""
        if (dtype,) not in self._launches:
            warps = self.blending.forward_warps
            self._launches[dtype,] = Launch(self.blending.load().blend_forward, warps, SAVE=self.save, WARPS=warps, **self._constants)
        return self._launches[dtype,]

    def backward(self, dtype: torch.dtype, alpha: bool, planar: bool) -> Launch:
        """From the gradient of an image of this type, and of alpha or not."""
        if (dtype, alpha, planar) not in self._launches:
            warps = self.blending.backward_warps
            self._launches[dtype, alpha, planar] = Launch(
                self.blending.load().blend_backward, warps, ALPHA=alpha, ROWS=self.rows, PLANAR=planar, WARPS=warps, **self._constants)
        return self._launches[dtype, alpha, planar]


@functools.lru_cache(maxsize=256)
def blender_of(
    blending: Blending, clouds: int, count: int, images: int, channels: int, width: int, height: int, clip: bool, highest: bool, rows: bool,
    save: bool, device: int,
) -> Blender:
    """The same for the same sizes on the same device."""
    return Blender(blending, scene_of(clouds, count, images, width, height, clip, blending.tile), channels, highest, rows, save)


class Draw(torch.autograd.Function):
    """Everything, as one node of the graph."""

    @staticmethod
    def forward(
        ctx: FunctionCtx, means: Tensor, quats: Tensor, scales: Tensor, opacities: Tensor, world_to_camera: Tensor, features: Tensor,
        background: Tensor, intrinsics: Tensor, scene: Scene, blender: Blender, options: RasterOptions,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Draws; keeps what the backward pass needs only if the blender is to."""
        features, background = aligned(features), aligned(background)
        inputs = tuple(map(aligned, (means, quats, scales, opacities, world_to_camera, intrinsics)))
        if options.capacity is None:
            rows, drawn = _in_enough_room(inputs, features, background, scene, blender, options.dtype)
        else:
            if options.capacity.pairs > PAIRS_MAX:
                raise InputError(f"Capacity.pairs is {options.capacity.pairs}; expected at most {PAIRS_MAX}")
            options.capacity.needed = torch.empty(2, dtype=torch.int64, device=means.device)
            rows, counts = scene.project(inputs, options.capacity.needed)
            drawn = _blend(rows, counts, features, background, scene, blender, options.dtype, (options.capacity.pairs, options.capacity.pairs))
        image, alpha, *kept = drawn
        if blender.save:
            ctx.save_for_backward(*inputs, features, background, rows.geometry, rows.depths, rows.radii, *kept)
            ctx.scene, ctx.blender = scene, blender
        radii = rows.radii.view(scene.images, -1)
        ctx.mark_non_differentiable(radii)
        ctx.set_materialize_grads(False)
        return image, alpha, radii

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, d_image: Tensor | None, d_alpha: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
        """Gradients of everything but intrinsics."""
        *inputs, features, background, geometry, depths, radii, members, ranges, left, lasts, stops = ctx.saved_tensors
        scene, blender, inputs = ctx.scene, ctx.blender, tuple(inputs)
        if d_image is None:
            d_image = left.new_zeros(()).expand(scene.images, blender.channels, scene.height, scene.width)
        with on_device(features):
            d_geometry, d_features = _blend_backward(
                Rows(geometry, depths, radii), members, ranges, features, background, left, lasts, stops, d_image, d_alpha, scene, blender)
            needs = ctx.needs_input_grad
            # No product of matrices, which might be rounded.
            d_background = (d_image.to(left.dtype) * left[:, None]).sum(dim=(0, 2, 3)) if needs[6] else None
            d_inputs = scene.project_backward(inputs, radii, d_geometry, needs[4]) if any(needs[:5]) else [None] * 5
        return *d_inputs, d_features, d_background, None, None, None, None


def _in_enough_room(
    inputs: tuple[Tensor, ...], features: Tensor, background: Tensor, scene: Scene, blender: Blender, dtype: torch.dtype | None,
) -> tuple[Rows, tuple[Tensor, ...]]:
    """Draws into as much room as earlier calls of these sizes needed, and again if that was too little. Rows, and the drawing."""
    if not features.is_cuda:
        total = torch.empty(2, dtype=torch.int64)
        rows, counts = scene.project(inputs, total)
        return rows, _blend(rows, counts, features, background, scene, blender, dtype, tuple(total.tolist()))
    if torch.cuda.is_current_stream_capturing():
        raise InputError("a CUDA graph cannot record a drawing whose number of pairs is not known: give RasterOptions.capacity")
    if not hasattr(_local, "total"):
        _local.total = HostWords(2)
    _local.total.clear()
    rows, counts = scene.project(inputs, _local.total.tensor)
    room = blender.room
    drawn = _blend(rows, counts, features, background, scene, blender, dtype, room) if room[0] else ()
    pairs, keys = _local.total.wait()
    needed = room_for(pairs, SPARE), room_for(keys, SPARE)
    fits = pairs <= room[0] and keys <= room[1]
    if not fits or 2 * pairs < room[0]:
        blender.room = needed
    if not fits or not room[0]:
        drawn = _blend(rows, scene.recount(counts) if room[0] else counts, features, background, scene, blender, dtype, needed)
    return rows, drawn


def _blend(
    rows: Rows, counts: Int[Tensor, "K"], features: Float[Tensor, "B N C"], background: Float[Tensor, "C"], scene: Scene, blender: Blender,
    dtype: torch.dtype | None, room: tuple[int, int],
) -> tuple[Tensor, ...]:
    """Image, alpha, and what the backward pass needs."""
    members, ranges = scene.members(rows, counts, *room)
    image = features.new_empty(scene.images, blender.channels, scene.height, scene.width, dtype=dtype)
    alpha = features.new_empty(scene.images, 1, scene.height, scene.width)
    left = lasts = stops = alpha
    if blender.save:
        left, lasts, stops = torch.empty_like(alpha[:, 0]), members.new_empty(alpha[:, 0].shape), members.new_empty(scene.tiles)
    blender.forward(image.dtype)(
        blender.grid, (ranges, counts, members, rows.geometry, features, background, image, alpha, left, lasts, stops),
        (room[0], *image.stride(), *blender.sizes),
    )
    return image, alpha, members, ranges, left, lasts, stops


def _blend_backward(
    rows: Rows, members: Int[Tensor, "R"], ranges: Int[Tensor, "T 2"], features: Float[Tensor, "B N C"], background: Float[Tensor, "C"],
    left: Float[Tensor, "I H W"], lasts: Int[Tensor, "I H W"], stops: Int[Tensor, "T"], d_image: Tensor, d_alpha: Tensor | None,
    scene: Scene, blender: Blender,
) -> tuple[Float[Tensor, "M 8"], Float[Tensor, "B N C"]]:
    """Gradients of the rows and of the features."""
    room, count, channels = members.shape[0], rows.radii.shape[0], blender.channels
    if blender.rows:
        d_geometry, d_features = features.new_empty(blender.grid[1] * room, 8), features.new_empty(room, channels)
    else:
        sums = features.new_zeros(count * 8 + features.numel())
        d_geometry, d_features = sums[:count * 8].view(count, 8), sums[count * 8:].view(features.shape)
    if d_image.data_ptr() % 16 or sum((size - 1) * step for size, step in zip(d_image.shape[1:], d_image.stride()[1:], strict=True)) >= 2**31:
        d_image = d_image.clone(memory_format=torch.contiguous_format)
    blender.backward(d_image.dtype, d_alpha is not None, d_image.stride(3) == 1)(
        blender.grid,
        (ranges, stops, members, rows.geometry, features, background, left, lasts, d_image, left if d_alpha is None else aligned(d_alpha),
         d_geometry, d_features),
        (room, *d_image.stride(), *blender.sizes),
    )
    if blender.rows:
        d_geometry, d_features = scene.sum_pairs(rows, ranges, stops, members, d_geometry, d_features)
        d_features = d_features.view(scene.images, scene.count, channels)
        d_features = d_features.sum(dim=0, keepdim=True) if scene.clouds != scene.images else d_features
    return d_geometry, d_features
