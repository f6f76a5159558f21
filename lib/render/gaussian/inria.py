"""Adapter of INRIA's diff_gaussian_rasterization, where a user has it installed (own licence), for comparisons; `auto` never picks it.

Written against its published interface only: `GaussianRasterizationSettings` with or without `debug` and `antialiasing`, results
(colour, radii) or (colour, radii, inverse depth).

Camera. It takes row-vector matrices, that is, transposed ones: view V (4 x 4) and P V, and draws a mean at the pixel
((ndc + 1) S - 1) / 2 of a picture S wide, with pixel centres at integers. Ours are at half-integers, so that our pixel is
(ndc + 1) S / 2. To be f x/z + c, ndc must be (2 f / S) x/z + (2 c / S - 1): the rows of P are (2 fx / W, 0, 2 cx / W - 1, 0),
(0, 2 fy / H, 2 cy / H - 1, 0) and, for w = z, (0, 0, 1, 0). Any principal point is exact for the means. The Jacobian is taken in
view space with f = S / (2 tanfov) and does not see the principal point, except that x/z is clamped to +-1.3 tanfov: around the
optical axis, not the middle of the picture. With a centred principal point that is where `reference` clamps; else Gaussians whose
centres are outside of the picture may differ in shape, and if it is off by more than 0.15 S, also some inside, which is refused.

Where else its results are not those of `reference`: it always clips, as options.clip does; 1 / w is 1 / (w + 1e-7); the determinant
of a covariance is a difference in float32; radii do not know opacities, so Gaussians fainter than 1/255 have one; a gradient
goes through the clamp of alpha at 0.99; that of depth through a clamped Jacobian has another factor; gradients are atomic sums.
World_to_camera and background get no gradient: refused where they require one.

Channels. Their number is compiled in and unchecked: kernels read as many values per Gaussian and of the background, whatever the
shapes. It is found by a probe once per process and device. Fewer channels are padded; the first padded one is 1 for all Gaussians
over a background of 0 and thereby alpha. With exactly as many, alpha takes a second pass. More are refused.
"""

import functools
import inspect

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lib.errors import InputError
from lib.gaussians.cloud import GaussianCloud
from lib.geometry.camera import Camera
from lib.render.gaussian.contract import DEFAULT, FeatureImage, RasterOptions, one_per_camera
from lib.render.gaussian.installed import empty_image, gradient_obstacle, package_obstacle, refuse_obstacles
from lib.render.gaussian.projection import FRUSTUM_MARGIN

PACKAGE = "diff_gaussian_rasterization"
OPTIONAL_SETTINGS = {"debug", "antialiasing"}
PROBE_CHANNELS = 256  # more than shared memory lets anyone compile (41 to 64 are reported as most)
Z_NEAR, Z_FAR = 0.01, 100.0  # of the third row of P, which its kernels do not read; the usual values


def obstacle(cloud: GaussianCloud) -> str | None:
    """Why this backend cannot draw the cloud here, or None; the number of channels is looked at when drawing."""
    return package_obstacle(cloud, PACKAGE, "https://github.com/graphdeco-inria/diff-gaussian-rasterization")


def rasterize(cloud: GaussianCloud, camera: Camera, background: Float[Tensor, "C"], options: RasterOptions = DEFAULT) -> FeatureImage:
    """See interface.rasterize; one call per image, two where all compiled channels are used. Always clips; waits for the intrinsics."""
    refuse_obstacles(
        "inria", obstacle(cloud),
        "its gradients are atomic sums, not deterministic; leave options.deterministic False, or use triton" if options.deterministic else None,
        gradient_obstacle(world_to_camera=camera.world_to_camera, intrinsics=camera.intrinsics, background=background),
    )
    intrinsics = camera.intrinsics.tolist()
    refuse_obstacles("inria", *(_camera_obstacle(matrix, camera.width, camera.height) for matrix in intrinsics))
    channels = cloud.features.shape[-1]
    if len(background) != channels:  # its kernels would read past the end
        raise InputError(f"rasterizer backend 'inria' expects a background of {channels} channels, as the features have; found {len(background)}")
    if cloud.means.shape[1] == 0:
        return empty_image(camera, background, options)
    compiled = _compiled_channels(cloud.means.device)
    if channels > compiled:
        raise InputError(
            f"rasterizer backend 'inria' cannot draw {channels} channels: the installed {PACKAGE} is compiled for {compiled}; "
            f"use another backend, or rebuild it with NUM_CHANNELS of at least {channels}"
        )
    cloud = one_per_camera(cloud, camera)
    views, projections = _matrices(camera)
    images, alphas, radii = [], [], []
    for b, matrix in enumerate(intrinsics):
        view = {
            "image_height": camera.height, "image_width": camera.width, "tanfovx": camera.width / (2.0 * matrix[0][0]),
            "tanfovy": camera.height / (2.0 * matrix[1][1]), "viewmatrix": views[b], "projmatrix": projections[b], "campos": camera.centers()[b],
        }
        colours = cloud.features[b]
        ones = torch.ones_like(cloud.means[b][:, :1])
        if channels < compiled:
            colours = torch.cat([colours, ones, ones.new_zeros(len(ones), compiled - channels - 1)], dim=1)
        image, radius = _draw(cloud, b, colours, torch.nn.functional.pad(background, (0, compiled - channels)), view)
        alpha = image[channels:channels + 1]
        if channels == compiled:
            alpha = _draw(cloud, b, ones.repeat(1, compiled), torch.zeros_like(background), view)[0][:1]
        images.append(image[:channels])
        alphas.append(alpha)
        radii.append(radius)
    features = torch.stack(images)
    return FeatureImage(features.to(options.dtype or features.dtype), torch.stack(alphas), torch.stack(radii))


def _camera_obstacle(matrix: list[list[float]], width: int, height: int) -> str | None:
    (fx, skew, cx), (other, fy, cy), bottom = matrix
    if skew or other or bottom != [0.0, 0.0, 1.0]:
        return f"it draws pinhole cameras without skew; found intrinsics {matrix}; undistort the pictures"
    # Inside of the picture |x/z| must be within 1.3 tanfov = 1.3 S / (2 f).
    if abs(cx - 0.5 * width) > 0.5 * FRUSTUM_MARGIN * width or abs(cy - 0.5 * height) > 0.5 * FRUSTUM_MARGIN * height:
        return (
            f"the principal point ({cx:g}, {cy:g}) is off the middle of {width}x{height} px by more than {0.5 * FRUSTUM_MARGIN:g} of the size, and "
            "it would draw Gaussians of the far side in a wrong shape; crop from a larger picture, or use another backend"
        )
    return None


def _matrices(camera: Camera) -> tuple[Float[Tensor, "B 4 4"], Float[Tensor, "B 4 4"]]:
    """V and P V, transposed. Without matrix products, which may be set to tf32."""
    x, y, z = camera.world_to_camera.detach().unbind(dim=1)
    one = torch.zeros_like(z)
    one[:, 3] = 1.0
    fx, fy, cx, cy = (camera.intrinsics.detach()[:, i, j, None] for i, j in ((0, 0), (1, 1), (0, 2), (1, 2)))
    column = 2.0 * fx / camera.width * x + (2.0 * cx / camera.width - 1.0) * z
    line = 2.0 * fy / camera.height * y + (2.0 * cy / camera.height - 1.0) * z
    depth = Z_FAR / (Z_FAR - Z_NEAR) * (z - Z_NEAR * one)
    return torch.stack([x, y, z, one], dim=-1), torch.stack([column, line, depth, z], dim=-1)


def _draw(
    cloud: GaussianCloud, row: int, colours: Float[Tensor, "N K"], background: Float[Tensor, "K"], view: dict
) -> tuple[Float[Tensor, "D H W"], Int[Tensor, "N"]]:
    """One call for one cloud of the batch: as many channels as compiled, whatever K is. What it gives besides colour and radii is left."""
    from diff_gaussian_rasterization import GaussianRasterizationSettings, GaussianRasterizer

    values = {
        **view, "bg": background.contiguous(), "scale_modifier": 1.0, "sh_degree": 0, "prefiltered": False, "debug": False, "antialiasing": False,
    }
    fields = inspect.signature(GaussianRasterizationSettings).parameters
    strange = [name for name, field in fields.items() if name not in values and field.default is inspect.Parameter.empty]
    missing = [name for name in values if name not in fields and name not in OPTIONAL_SETTINGS]
    if strange or missing:
        raise InputError(_another_form(f"settings with {', '.join(strange) or 'nothing'} more and without {', '.join(missing) or 'nothing'}"))
    means = cloud.means[row].contiguous()
    with torch.cuda.device_of(means):
        result = GaussianRasterizer(GaussianRasterizationSettings(**{name: value for name, value in values.items() if name in fields}))(
            means3D=means, means2D=torch.zeros_like(means), opacities=cloud.opacities[row][:, None].contiguous(), colors_precomp=colours.contiguous(),
            scales=cloud.scales[row].contiguous(), rotations=cloud.quats_wxyz[row].contiguous(),
        )
    if len(result) not in (2, 3) or result[1].shape != means.shape[:1] or result[1].is_floating_point():
        found = ", ".join(f"{str(value.dtype).removeprefix('torch.')} {list(value.shape)}" for value in result)
        raise InputError(_another_form(f"a result of {found}"))
    return result[0], result[1].int()


def _another_form(found: str) -> str:
    return (
        f"rasterizer backend 'inria': the installed {PACKAGE} has another form than those published; expected the settings and the results "
        f"(colour, radii[, inverse depth]) of graphdeco-inria's, found {found}; install that one, or use another backend"
    )


@functools.cache
def _compiled_channels(device: torch.device) -> int:
    """NUM_CHANNELS of the build: it allocates the picture by it, and reads no further in rows that are wider."""
    one = torch.ones(1, 1, 3, device=device)
    quat = torch.tensor([[[1.0, 0.0, 0.0, 0.0]]], device=device)
    cloud = GaussianCloud(one, quat, 0.1 * one, one[..., 0], torch.zeros(1, 1, PROBE_CHANNELS, device=device))
    size = 16
    intrinsics = torch.tensor([[[8.0, 0.0, 8.0], [0.0, 8.0, 8.0], [0.0, 0.0, 1.0]]], device=device)
    views, projections = _matrices(Camera(torch.eye(3, 4, device=device)[None], intrinsics, size, size))
    view = {
        "image_height": size, "image_width": size, "tanfovx": 1.0, "tanfovy": 1.0, "viewmatrix": views[0], "projmatrix": projections[0],
        "campos": torch.zeros(3, device=device),
    }
    with torch.no_grad():
        return len(_draw(cloud, 0, cloud.features[0], torch.zeros(PROBE_CHANNELS, device=device), view)[0])
