"""Backend `triton`: the semantics of `reference` in kernels where every face visits the pixels of its box; float32.

Three launches forward and two backward, and nothing waits for the host: the reference lists all pairs of faces and pixels, this
one only looks at them. Runs on CUDA, and on the CPU under Triton's interpreter (TRITON_INTERPRET=1), slowly, for tests.
"""

import os

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from lib.errors import InputError
from lib.geometry.camera import Camera
from lib.geometry.trimesh import face_normals
from lib.kernels import must_be_repeatable, triton_missing
from lib.render.gaussian.launch import on_device
from lib.render.mesh.contract import MeshImage

# Faces of a program and cells of their boxes looked at at once; small faces fill a few pixels, but the soft mask reaches 2.6 of 256 further.
HARD_FACES, HARD_CELLS = 32, 4
SOFT_FACES, SOFT_CELLS = 4, 16
PIXELS = 128
WARPS = 1
NOTHING = torch.iinfo(torch.int64).max
GRID_MAX = 65535  # of a launch in its second direction: images
EXACTLY = {"enable_fp_fusion": False}  # coverage as in the reference, which rounds every product


def obstacle(vertices: Float[Tensor, "B N 3"], attributes: Float[Tensor, "B N C"]) -> str | None:
    """Why the kernels cannot draw these here, or None."""
    for tensor in (vertices, attributes):
        if tensor.dtype is not torch.float32:
            return f"it computes in float32, not {str(tensor.dtype).removeprefix('torch.')}"
    interpreted = not vertices.is_cuda and os.environ.get("TRITON_INTERPRET") == "1"
    if not vertices.is_cuda and not interpreted:
        return f"it needs CUDA tensors, not {vertices.device.type}"
    if must_be_repeatable():
        return "its gradients are atomic sums, which torch.use_deterministic_algorithms forbids"
    return triton_missing(interpreted)


def render_mesh(
    vertices: Float[Tensor, "B N 3"], faces: Int[Tensor, "F 3"], attributes: Float[Tensor, "B N C"], camera: Camera
) -> MeshImage:
    """See interface.render_mesh."""
    reason = obstacle(vertices, attributes)
    if reason is not None:
        raise InputError(f"mesh rasterizer backend 'triton' cannot draw this: {reason}")
    if len(vertices) > GRID_MAX:
        raise InputError(f"mesh rasterizer backend 'triton' cannot draw {len(vertices)} images at once: draw at most {GRID_MAX} per call")
    in_camera = camera.to_camera(vertices)
    normals = face_normals(in_camera, faces)
    with on_device(vertices):
        attributes_image, depth, mask, face = Draw.apply(
            camera.to_pixels(in_camera), in_camera[..., 2], attributes, faces, normals[..., 2] <= 0, camera.height, camera.width)
    # A row of zeros behind those of all faces, for pixels without any.
    unit = torch.nn.functional.normalize(normals, dim=-1).flatten(0, 1)
    first = len(faces) * torch.arange(len(vertices), device=face.device)[:, None, None]
    row = torch.where(face >= 0, face + first, len(unit))
    picked = torch.nn.functional.pad(unit, (0, 0, 0, 1)).index_select(0, row.flatten()).unflatten(0, row.shape).permute(0, 3, 1, 2)
    x, rest = picked.split([1, 2], dim=1)
    return MeshImage(attributes_image, mask, depth, torch.cat([x, -rest], dim=1))


class Draw(torch.autograd.Function):
    """Interpolated attributes, depth, soft mask, and the nearest face of every pixel or -1."""

    @staticmethod
    def forward(
        ctx: FunctionCtx, pixels: Float[Tensor, "B N 2"], depth: Float[Tensor, "B N"], attributes: Float[Tensor, "B N C"],
        faces: Int[Tensor, "F 3"], keep: Bool[Tensor, "B F"], height: int, width: int,
    ) -> tuple[Float[Tensor, "B C H W"], Float[Tensor, "B 1 H W"], Float[Tensor, "B 1 H W"], Int[Tensor, "B H W"]]:
        """Three launches; `keep`: faces of the hard pass."""
        from lib.render.mesh.box_kernels import hit, shade, soften

        pixels, depth, attributes, faces = (tensor.contiguous() for tensor in (pixels, depth, attributes, faces))
        (batch, points, channels), count = attributes.shape, len(faces)
        nearest = faces.new_full((batch, height, width), NOTHING)
        face = faces.new_empty(batch, height, width, dtype=torch.int32)
        image, depth_image = depth.new_empty(batch, channels, height, width), depth.new_empty(batch, 1, height, width)
        log_outside = depth.new_zeros(batch, 1, height, width)
        sizes = {"num_warps": WARPS, **EXACTLY}
        if batch * count:
            hit[-(-count // HARD_FACES), batch](
                pixels, depth, faces, keep.contiguous().view(torch.uint8), nearest, points, count, width, height,
                FACES=HARD_FACES, CELLS=HARD_CELLS, **sizes)
        if batch * height * width:
            shade[-(-height * width // PIXELS), batch](
                nearest, pixels, depth, attributes, faces, face, image, depth_image, points, channels, width, height, BLOCK=PIXELS, **sizes)
        if batch * count:
            soften[-(-count // SOFT_FACES), batch](
                pixels, depth, faces, face, log_outside, points, count, width, height, FACES=SOFT_FACES, CELLS=SOFT_CELLS, **sizes)
        mask = torch.where((face >= 0)[:, None], 1.0, -torch.expm1(log_outside))
        ctx.save_for_backward(pixels, depth, attributes, faces, face, mask)
        ctx.mark_non_differentiable(face)
        return image, depth_image, mask, face

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, d_image: Tensor, d_depth_image: Tensor, d_mask: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        """Two launches; sums in any order."""
        from lib.render.mesh.box_kernels import shade_backward, soften_backward

        pixels, depth, attributes, faces, face, mask = ctx.saved_tensors
        batch, points, channels = attributes.shape
        count, (height, width) = len(faces), face.shape[1:]
        d_pixels, d_depth, d_attributes = torch.zeros_like(pixels), torch.zeros_like(depth), torch.zeros_like(attributes)
        sizes = {"num_warps": WARPS, **EXACTLY}
        with on_device(pixels):
            if batch * height * width:
                shade_backward[-(-height * width // PIXELS), batch](
                    face, pixels, depth, attributes, faces, d_image.contiguous(), d_depth_image.contiguous(), d_pixels, d_depth, d_attributes,
                    points, channels, width, height, BLOCK=PIXELS, **sizes)
            if batch * count:
                # Of the logarithm of 1 - mask; zero where the mask is 1, so on all covered pixels.
                d_log = (d_mask * (mask - 1.0)).contiguous()
                soften_backward[-(-count // SOFT_FACES), batch](
                    pixels, depth, faces, d_log, d_pixels, points, count, width, height, FACES=SOFT_FACES, CELLS=SOFT_CELLS, **sizes)
        return d_pixels, d_depth, d_attributes, None, None, None, None
