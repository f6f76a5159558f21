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
from collections.abc import Callable
from dataclasses import dataclass, field
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
from lib.render.gaussian.launch import HostWords, Launch, Replays, aligned, on_device
from lib.render.gaussian.tiles import Lists, Rows, Scene, channel_block, scene_of

GRID_MAX = 65535  # of a launch in its second direction: images
SPARE, LEAST_ROOM = 0.02, 1024  # of the number of pairs: more room for the next call; pairs that there always is room for
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
    room: tuple[int, int] = (LEAST_ROOM, LEAST_ROOM)  # for pairs and keys, that the last drawings needed; says nothing about results
    replays: Replays = field(default_factory=Replays)

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


    def start(self, chain: Callable[[], None], numbers: tuple[int, ...], dtype: torch.dtype | None, tensors: tuple[Tensor, ...]) -> None:
        """Starts launches that these numbers, the type of the image and the tensors' addresses decide."""
        if tensors[0].is_cuda:
            self.replays.start((dtype, *numbers, *[tensor.data_ptr() for tensor in tensors]), chain)
        else:
            chain()


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
            rows, lists, image, alpha, *kept = _in_enough_room(inputs, features, background, blender, options.dtype)
        else:
            if options.capacity.pairs > PAIRS_MAX:
                raise InputError(f"Capacity.pairs is {options.capacity.pairs}; expected at most {PAIRS_MAX}")
            options.capacity.needed = torch.empty(2, dtype=torch.int64, device=means.device)
            room = options.capacity.pairs, options.capacity.pairs
            rows, lists, image, alpha, *kept = _drawn(inputs, features, background, blender, options.dtype, room, options.capacity.needed)
        if blender.save:
            ctx.save_for_backward(*inputs, features, background, rows.geometry, rows.depths, rows.radii, lists.members, lists.ranges, *kept)
            ctx.scene, ctx.blender = scene, blender
        radii = rows.radii.view(scene.images, -1)
        ctx.mark_non_differentiable(radii)
        ctx.set_materialize_grads(False)
        return image, alpha, radii

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, d_image: Tensor | None, d_alpha: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
        """Gradients of everything but intrinsics."""
        saved, scene, blender, needs = ctx.saved_tensors, ctx.scene, ctx.blender, ctx.needs_input_grad
        left = saved[-3]
        if d_image is None:
            d_image = left.new_zeros(()).expand(scene.images, blender.channels, scene.height, scene.width)
        if d_image.data_ptr() % 16 or sum((size - 1) * step for size, step in zip(d_image.shape[1:], d_image.stride()[1:], strict=True)) >= 2**31:
            d_image = d_image.clone(memory_format=torch.contiguous_format)
        with on_device(left):
            gradients, d_features = _gradients(saved, d_image, None if d_alpha is None else aligned(d_alpha), scene, blender, needs[4])
            # No product of matrices, which might be rounded.
            d_background = (d_image.to(left.dtype) * left[:, None]).sum(dim=(0, 2, 3)) if needs[6] else None
            d_pose = scene.pose_gradient(gradients[4]) if needs[4] else None
        return *gradients[:4], d_pose, d_features, d_background, None, None, None, None


def _in_enough_room(
    inputs: tuple[Tensor, ...], features: Tensor, background: Tensor, blender: Blender, dtype: torch.dtype | None,
) -> "_Drawing":
    """Draws into as much room as earlier calls of these sizes needed, and again if that was too little."""
    if not features.is_cuda:
        total = torch.empty(2, dtype=torch.int64)
        blender.scene.project(inputs, blender.scene.make_rows(features), blender.scene.make_counts(features), total)
        return _drawn(inputs, features, background, blender, dtype, tuple(total.tolist()), total)
    if torch.cuda.is_current_stream_capturing():
        raise InputError("a CUDA graph cannot record a drawing whose number of pairs is not known: give RasterOptions.capacity")
    if not hasattr(_local, "total"):
        _local.total = HostWords(2)
    while True:
        room = blender.room
        _local.total.clear()
        drawn = _drawn(inputs, features, background, blender, dtype, room, _local.total.tensor)
        pairs, keys = _local.total.wait()
        fits = pairs <= room[0] and keys <= room[1]
        if not fits or room[0] > LEAST_ROOM and 2 * pairs < room[0]:
            blender.room = max(room_for(pairs, SPARE), LEAST_ROOM), max(room_for(keys, SPARE), LEAST_ROOM)
        if fits:
            return drawn


_Drawing = tuple[Rows, Lists, Tensor, Tensor, Tensor, Tensor, Tensor]


def _drawn(
    inputs: tuple[Tensor, ...], features: Float[Tensor, "B N C"], background: Float[Tensor, "C"], blender: Blender, dtype: torch.dtype | None,
    room: tuple[int, int], copy: Int[Tensor, "2"],
) -> _Drawing:
    """Rows, lists, image, alpha, and what else the backward pass needs: transmittances and places where pixels and tiles stopped."""
    scene = blender.scene
    rows, counts, lists = scene.make_rows(features), scene.make_counts(features), scene.make_lists(features, *room)
    image = features.new_empty(scene.images, blender.channels, scene.height, scene.width, dtype=dtype)
    alpha = features.new_empty(scene.images, 1, scene.height, scene.width)
    left = lasts = stops = alpha
    if blender.save:
        pixels = scene.images, scene.height, scene.width
        left, lasts = features.new_empty(pixels), features.new_empty(pixels, dtype=torch.int32)
        stops = features.new_empty(scene.tiles, dtype=torch.int32)

    def chain() -> None:
        scene.project(inputs, rows, counts, copy)
        scene.fill_lists(rows, counts, lists)
        blender.forward(image.dtype)(
            blender.grid, (lists.ranges, counts, lists.members, rows.geometry, features, background, image, alpha, left, lasts, stops),
            (room[0], *image.stride(), *blender.sizes),
        )

    blender.start(chain, room, dtype, (
        *inputs, features, background, copy, rows.geometry, rows.depths, rows.radii, counts, lists.members, lists.ranges, lists.keys, lists.words,
        image, alpha, left, lasts, stops))
    return rows, lists, image, alpha, left, lasts, stops


def _gradients(
    saved: tuple[Tensor, ...], d_image: Tensor, d_alpha: Tensor | None, scene: Scene, blender: Blender, pose: bool,
) -> tuple[tuple[Tensor, ...], Float[Tensor, "B N C"]]:
    """Gradients as `Scene.project_backward` writes them, and of the features."""
    *inputs, features, background, geometry, depths, radii, members, ranges, left, lasts, stops = saved
    inputs, rows, channels = tuple(inputs), Rows(geometry, depths, radii), blender.channels
    gradients = scene.make_gradients(inputs, pose)
    d_geometry, d_features = torch.empty_like(geometry), features.new_empty(scene.images if blender.rows else len(features), *features.shape[1:])
    pairs = d_geometry, d_features
    if blender.rows:
        pairs = features.new_empty(blender.grid[1] * len(members), 8), features.new_empty(len(members), channels)

    def chain() -> None:
        if not blender.rows:
            d_geometry.zero_()
            d_features.zero_()
        blender.backward(d_image.dtype, d_alpha is not None, d_image.stride(3) == 1)(
            blender.grid,
            (ranges, stops, members, geometry, features, background, left, lasts, d_image, left if d_alpha is None else d_alpha, *pairs),
            (len(members), *d_image.stride(), *blender.sizes),
        )
        if blender.rows:
            scene.sum_pairs(rows, ranges, stops, members, pairs, (d_geometry, d_features.flatten(0, 1)))
        scene.project_backward(inputs, radii, d_geometry, gradients)

    blender.start(chain, (pose, d_alpha is not None, *d_image.stride()), d_image.dtype, (
        *saved, d_image, *(() if d_alpha is None else (d_alpha,)), *gradients, d_geometry, d_features, *pairs))
    return gradients, d_features.sum(dim=0, keepdim=True) if blender.rows and scene.clouds != scene.images else d_features
