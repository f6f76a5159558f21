"""Backends `gluon` and `triton`: the semantics of `reference` in kernels, float32, any channel count, any batch.

Projection, lists of tiles and blending take eight launches forward and three backward. The host waits once, for the number of pairs
of tiles and Gaussians, while the device already draws into the room that the last such call needed; with `options.capacity` it never
waits, and the call can be recorded in a CUDA graph. Runs on the CPU under Triton's interpreter (TRITON_INTERPRET=1), slowly, for tests.
"""

import functools
import importlib
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from types import ModuleType

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from lib.errors import InputError
from lib.gaussians.cloud import GaussianCloud
from lib.geometry.camera import Camera
from lib.kernels import must_be_repeatable, triton_missing
from lib.render.gaussian.contract import DEFAULT, PAIRS_MAX, FeatureImage, RasterOptions, room_for
from lib.render.gaussian.installed import gradient_obstacle, refuse_obstacles
from lib.render.gaussian.launch import HostWords, Launch, Layout, Replays, aligned, on_device
from lib.render.gaussian.tiles import Lists, Rows, Scene, Scratch, channel_block, scene_of

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
    return triton_missing(interpreted)


def gluon_obstacle(cloud: GaussianCloud) -> str | None:
    """Why Gluon cannot draw the cloud here, or None."""
    reason = triton_obstacle(cloud)
    if reason is None and not cloud.means.is_cuda:
        return "it cannot be interpreted"
    return reason or _without_gluon(cloud.means.device)


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
        options.deterministic or must_be_repeatable(), save, means.get_device(),
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


    def start(self, chain: Callable[[], None], decided: tuple, tensors: tuple[Tensor, ...]) -> None:
        """Starts launches that the tensors' addresses decide, and what else is named."""
        if tensors[0].is_cuda:
            self.replays.start((decided, *[tensor.data_ptr() for tensor in tensors]), chain)
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
            drawing = _in_enough_room(inputs, features, background, blender, options.dtype)
        else:
            if options.capacity.pairs > PAIRS_MAX:
                raise InputError(f"Capacity.pairs is {options.capacity.pairs}; expected at most {PAIRS_MAX}")
            options.capacity.needed = torch.empty(2, dtype=torch.int64, device=means.device)
            room = options.capacity.pairs, options.capacity.pairs
            drawing = _drawn(inputs, features, background, blender, options.dtype, room, options.capacity.needed)
        if blender.save:
            ctx.save_for_backward(*inputs, features, background, drawing.radii, drawing.kept)
            ctx.scene, ctx.blender, ctx.layout = scene, blender, drawing.layout
        ctx.mark_non_differentiable(drawing.radii)
        ctx.set_materialize_grads(False)
        return drawing.image, drawing.alpha, drawing.radii

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, d_image: Tensor | None, d_alpha: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
        """Gradients of everything but intrinsics."""
        saved, scene, blender, needs = ctx.saved_tensors, ctx.scene, ctx.blender, ctx.needs_input_grad
        if d_image is None:
            d_image = saved[0].new_zeros(()).expand(scene.images, blender.channels, scene.height, scene.width)
        if d_image.data_ptr() % 16 or sum((size - 1) * step for size, step in zip(d_image.shape[1:], d_image.stride()[1:], strict=True)) >= 2**31:
            d_image = d_image.clone(memory_format=torch.contiguous_format)
        with on_device(d_image):
            d_alpha = None if d_alpha is None else aligned(d_alpha)
            gradients, d_features = _gradients(saved, ctx.layout, d_image, d_alpha, scene, blender, needs[4])
            d_pose = scene.pose_gradient(gradients[4]) if needs[4] else None
            d_background = None
            if needs[6]:  # no product of matrices, which might be rounded
                left = ctx.layout.carve(saved[-1])["left"]
                d_background = (d_image.to(left.dtype) * left[:, None]).sum(dim=(0, 2, 3))
        return *gradients[:4], d_pose, d_features, d_background, None, None, None, None


@dataclass(frozen=True)
class _Drawing:
    """`kept`: all of the layout, for the backward pass."""

    image: Float[Tensor, "I C H W"]
    alpha: Float[Tensor, "I 1 H W"]
    radii: Int[Tensor, "I N"]
    kept: UInt8[Tensor, "S"]
    layout: Layout


def _in_enough_room(
    inputs: tuple[Tensor, ...], features: Tensor, background: Tensor, blender: Blender, dtype: torch.dtype | None,
) -> _Drawing:
    """Draws into as much room as earlier calls of these sizes needed, and again if that was too little."""
    if not features.is_cuda:
        total = blender.scene.listed(inputs)[2]
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


@functools.lru_cache(maxsize=256)
def _layouts(scene: Scene, save: bool, room: tuple[int, int]) -> tuple[Layout, Layout]:
    """What the backward pass needs, or what is dropped, and what is used on the way to the lists.

    left: transmittances; lasts, stops: places in lists where pixels and tiles stopped.
    """
    pixels = (scene.images, scene.height, scene.width) if save else (1,)
    parts = {"left": (pixels, torch.float32), "lasts": (pixels, torch.int32), "stops": ((scene.tiles if save else 1,), torch.int32)}
    return Layout(scene.row_parts() | scene.list_parts(room[0]) | parts), Layout(scene.scratch_parts(room[1]))


def _drawn(
    inputs: tuple[Tensor, ...], features: Float[Tensor, "B N C"], background: Float[Tensor, "C"], blender: Blender, dtype: torch.dtype | None,
    room: tuple[int, int], copy: Int[Tensor, "2"],
) -> _Drawing:
    """Draws what fits into the room; if not all does, NaN."""
    scene = blender.scene
    layout, scratch_layout = _layouts(scene, blender.save, room)
    kept, scratch = layout.allocate(features), scratch_layout.allocate(features)
    radii = features.new_empty(scene.images, scene.count, dtype=torch.int32)
    image = features.new_empty(scene.images, blender.channels, scene.height, scene.width, dtype=dtype)
    alpha = features.new_empty(scene.images, 1, scene.height, scene.width)

    def chain() -> None:
        parts, work = layout.carve(kept), Scratch(**scratch_layout.carve(scratch))
        rows, lists = Rows(parts["geometry"], parts["depths"], radii.view(-1)), Lists(parts["members"], parts["ranges"])
        scene.project(inputs, rows, work, copy)
        scene.fill_lists(rows, work, lists)
        blender.forward(image.dtype)(
            blender.grid,
            (lists.ranges, work.counts, lists.members, rows.geometry, features, background, image, alpha,
             *(parts[name] for name in ("left", "lasts", "stops"))),
            (room[0], *image.stride(), *blender.sizes),
        )

    blender.start(chain, (*room, dtype), (*inputs, features, background, copy, kept, scratch, radii, image, alpha))
    return _Drawing(image, alpha, radii, kept, layout)


def _gradients(
    saved: tuple[Tensor, ...], layout: Layout, d_image: Tensor, d_alpha: Tensor | None, scene: Scene, blender: Blender, pose: bool,
) -> tuple[list[Tensor], Float[Tensor, "B N C"]]:
    """Gradients as `Scene.project_backward` writes them, and of the features."""
    *inputs, features, background, radii, kept = saved
    channels, room = blender.channels, layout.parts["members"][1][0]
    gradients = [features.new_empty(tensor.shape) for tensor in inputs[:4]]
    if pose:
        gradients.append(features.new_empty(scene.images, scene.programs, 12))
    d_geometry = features.new_empty(scene.images * scene.count, 8)
    d_features = features.new_empty(scene.images if blender.rows else scene.clouds, scene.count, channels)
    pairs = d_geometry, d_features
    if blender.rows:
        pairs = features.new_empty(blender.grid[1] * room, 8), features.new_empty(room, channels)

    def chain() -> None:
        parts = layout.carve(kept)
        rows, lists = Rows(parts["geometry"], parts["depths"], radii.view(-1)), Lists(parts["members"], parts["ranges"])
        if not blender.rows:
            d_geometry.zero_()
            d_features.zero_()
        blender.backward(d_image.dtype, d_alpha is not None, d_image.stride(3) == 1)(
            blender.grid,
            (lists.ranges, parts["stops"], lists.members, rows.geometry, features, background, parts["left"], parts["lasts"], d_image,
             parts["left"] if d_alpha is None else d_alpha, *pairs),
            (room, *d_image.stride(), *blender.sizes),
        )
        if blender.rows:
            scene.sum_pairs(rows, lists, parts["stops"], pairs, (d_geometry, d_features.flatten(0, 1)))
        scene.project_backward(tuple(inputs), rows.radii, d_geometry, tuple(gradients))

    alphas = () if d_alpha is None else (d_alpha,)
    decided = room, pose, len(alphas), d_image.dtype, *d_image.stride()
    blender.start(chain, decided, (*saved, d_image, *alphas, *gradients, d_geometry, *pairs, d_features))
    return gradients, d_features.sum(dim=0, keepdim=True) if blender.rows and scene.clouds != scene.images else d_features
