"""Networks against formulas written with torch.cat and torch.nn.functional."""

import itertools
import math

import pytest
import torch
from torch.nn import functional

from lib.avatars.gaussian_head_avatar.mesh_head import MeshHeadConfig
from lib.errors import InputError
from lib.networks.mlp import MLP, mean_squared_norm, resolve_widths
from lib.networks.positional_encoding import encoded_width, positional_encoding
from lib.networks.precision import rough_products
from lib.networks.upsampler import Upsampler, UpsamplerConfig

WIDTHS = [(5, 7, 4), (6, 8, 9, 3), (5, 8, 7, 6, 2), (5, 7, 8, 9, 10, 6, 3)]
PUBLISHED = {
    "geo_mlp": (27, 256, 256, 256, 256, 256, 132), "exp_color_mlp": (192, 256, 256, 32), "pose_color_mlp": (182, 128, 32),
    "exp_deform_mlp": (91, 256, 256, 256, 256, 256, 3), "pose_deform_mlp": (81, 256, 256, 3),
}


def concatenated(mlp, dims, inputs):
    """The published formula: layer len(dims) // 2 receives [hidden, input]."""
    parameters = list(mlp.parameters())
    hidden = inputs
    for index in range(len(dims) - 1):
        if index == len(dims) // 2:
            hidden = torch.cat([hidden, inputs], dim=-1)
        weight, bias = parameters[2 * index], parameters[2 * index + 1]
        assert weight.shape == (dims[index + 1], hidden.shape[-1])
        hidden = hidden @ weight.T + bias
        if index < len(dims) - 2:
            hidden = torch.where(hidden > 0, hidden, 0.01 * hidden)
    return hidden


@pytest.mark.parametrize("dims", WIDTHS)
def test_mlp_is_concatenated_formula(dims):
    torch.manual_seed(0)
    mlp = MLP(dims).double()
    local, code = torch.randn(2, 11, dims[0] - 2, dtype=torch.float64), torch.randn(2, 2, dtype=torch.float64)
    inputs = torch.cat([local, code[:, None].expand(2, 11, 2)], dim=-1)
    torch.testing.assert_close(mlp(local, code), concatenated(mlp, dims, inputs))
    torch.testing.assert_close(mlp(inputs), concatenated(mlp, dims, inputs))


@pytest.mark.parametrize("dims", WIDTHS)
def test_mlp_gradients_are_those_of_formula(dims):
    torch.manual_seed(1)
    mlp = MLP(dims).double()
    local = torch.randn(4, dims[0] - 2, dtype=torch.float64, requires_grad=True)
    code = torch.randn(3, 2, dtype=torch.float64, requires_grad=True)
    output = mlp(local, code)
    inputs = torch.cat([local.expand(3, *local.shape), code[:, None].expand(3, 4, 2)], dim=-1)
    weight = torch.randn(output.shape, dtype=torch.float64)
    ours = torch.autograd.grad((output * weight).sum(), (local, code, *mlp.parameters()))
    oracle = torch.autograd.grad((concatenated(mlp, dims, inputs) * weight).sum(), (local, code, *mlp.parameters()))
    for a, b in zip(ours, oracle, strict=True):
        torch.testing.assert_close(a, b)
        assert b.abs().sum() > 0


def test_mlp_broadcasts_points_over_codes():
    torch.manual_seed(2)
    mlp, points, codes = MLP((5, 8, 9, 3)), torch.randn(6, 3), torch.randn(4, 2)
    output = mlp(points, codes)
    assert output.shape == (4, 6, 3)
    for b in range(4):
        torch.testing.assert_close(output[b], mlp(torch.cat([points, codes[b].expand(6, 2)], dim=1)))


@pytest.mark.parametrize("dims", WIDTHS)
def test_mlp_of_first_columns(dims):
    torch.manual_seed(3)
    mlp, points = MLP(dims), torch.randn(6, dims[0])
    torch.testing.assert_close(mlp(points, columns=1), mlp(points)[:, :1])


def test_rough_products_end_with_the_block():
    before = torch.get_float32_matmul_precision()
    with pytest.raises(KeyError), rough_products():
        assert torch.backends.cuda.matmul.fp32_precision == "tf32"
        raise KeyError
    assert torch.get_float32_matmul_precision() == before


def test_mlp_of_no_points_is_empty():
    assert MLP((5, 8, 3))(torch.zeros(2, 0, 3), torch.zeros(2, 2)).shape == (2, 0, 3)


@pytest.mark.parametrize(("dims", "skip", "shape"), [
    ((192, 256, 256, 32), 2, (32, 448)), ((182, 128, 32), 1, (32, 310)),
    ((91, 256, 256, 256, 256, 256, 3), 3, (256, 347)), ((27, 256, 256, 256, 256, 256, 132), 3, (256, 283)), ((81, 256, 256, 3), 2, (3, 337)),
])
def test_skip_layer_takes_input_again(dims, skip, shape):
    weights = [p for p in MLP(dims).parameters() if p.dim() == 2]
    assert len(weights) == len(dims) - 1
    assert weights[skip].shape == shape
    for index, weight in enumerate(weights):
        if index != skip:
            assert weight.shape == (dims[index + 1], dims[index])


def test_default_initialisation_is_that_of_linear():
    torch.manual_seed(0)
    for weight in (p.detach() for p in MLP((192, 256, 256, 32)).parameters() if p.dim() == 2):
        bound = 1 / math.sqrt(weight.shape[1])  # uniform in ± 1/√fan-in
        assert float(weight.abs().max()) <= bound
        assert float(weight.std()) == pytest.approx(bound / math.sqrt(3), rel=0.05)


def test_published_widths_are_derived():
    config = MeshHeadConfig().resolved(64)
    assert {key: tuple(getattr(config, key)) for key in PUBLISHED} == PUBLISHED


def test_published_widths_are_accepted():
    config = MeshHeadConfig(**PUBLISHED).resolved(64)
    assert {key: tuple(getattr(config, key)) for key in PUBLISHED} == PUBLISHED


INPUTS = ((27, "27 encoded position"), (59, "59 expression coefficients of the data"))


def test_widths_that_fit_are_kept():
    assert resolve_widths((86, 10, 3), (256,), INPUTS, 3, "exp_deform_mlp") == (86, 10, 3)


def test_absent_widths_are_derived():
    assert resolve_widths((), (256, 128), INPUTS, 3, "exp_deform_mlp") == (86, 256, 128, 3)


def test_wrong_input_width_is_explained_by_arithmetic():
    with pytest.raises(InputError) as error:
        resolve_widths((91, 256, 3), (256,), INPUTS, 3, "meshheadmodule.exp_deform_mlp")
    message = str(error.value)
    parts = ["meshheadmodule.exp_deform_mlp[0]", "is 91", "86", "= 27", "+ 59 expression coefficients"]
    positions = [message.find(part) for part in parts]
    assert -1 not in positions
    assert positions == sorted(positions)


def test_wrong_output_width_names_both_numbers():
    with pytest.raises(InputError, match=r"exp_deform_mlp\[-1\] is 4.* 3 "):
        resolve_widths((86, 256, 4), (256,), INPUTS, 3, "exp_deform_mlp")


@pytest.mark.parametrize("given", [(86,), (86, 3), (86, 0, 3), (86, -5, 3)])
def test_impossible_widths_are_input_error(given):
    with pytest.raises(InputError, match="at least 3 positive widths"):
        resolve_widths(given, (256,), INPUTS, 3, "exp_deform_mlp")


def test_mean_squared_norm_is_mean_over_points():
    output = torch.tensor([[[3.0, 4.0, 0.0], [0.0, 0.0, 1.0]], [[0.0, 0.0, 0.0], [1.0, 1.0, 0.0]]])
    assert mean_squared_norm(output).item() == pytest.approx((25 + 1 + 0 + 2) / 4)
    assert mean_squared_norm(output[:, :0]).item() == 0.0


@pytest.mark.parametrize(("width", "frequencies", "columns"), [(3, 4, 27), (6, 4, 54), (3, 0, 3), (2, 1, 6)])
def test_encoding_order(width, frequencies, columns):
    x = torch.randn(2, 5, width, dtype=torch.float64)
    encoded = positional_encoding(x, frequencies)
    assert encoded.shape == (2, 5, columns)
    assert encoded_width(width, frequencies) == columns
    for b, n, d in itertools.product(range(2), range(5), range(width)):
        value = x[b, n, d].item()
        row = encoded[b, n].tolist()
        assert row[d] == value
        for j in range(frequencies):
            assert row[width * (1 + 2 * j) + d] == pytest.approx(math.sin(2**j * value))
            assert row[width * (2 + 2 * j) + d] == pytest.approx(math.cos(2**j * value))


def published_upsampler(weights, x):
    """[3x3 zero-padded convolution, instance norm, ReLU] twice; (bilinear x2, twice that) twice; 1x1 convolution; sigmoid."""
    for level in range(3):
        if level > 0:
            x = functional.interpolate(x, scale_factor=2, mode="bilinear", align_corners=True)
        for weight in weights[2 * level:2 * level + 2]:
            x = functional.conv2d(x, weight, padding=1)
            mean, variance = x.mean(dim=(2, 3), keepdim=True), x.var(dim=(2, 3), keepdim=True, unbiased=False)
            x = functional.relu((x - mean) / (variance + 1e-5).sqrt())
    return 1 / (1 + (-functional.conv2d(x, weights[6], weights[7])).exp())


@pytest.mark.parametrize("training", [True, False])
def test_upsampler_is_published_formula(training):
    torch.manual_seed(0)
    network = Upsampler(UpsamplerConfig(input_dim=5, output_dim=3, network_capacity=4)).double().train(training)
    x = torch.randn(2, 5, 6, 9, dtype=torch.float64)
    output = network(x)
    torch.testing.assert_close(output, published_upsampler([p.detach() for p in network.parameters()], x))
    assert output.shape == (2, 3, 24, 36)
    assert output.min() >= 0
    assert output.max() <= 1


def test_upsampler_layers():
    c = 32
    network = Upsampler(UpsamplerConfig(network_capacity=c))
    assert [tuple(p.shape) for p in network.parameters()] == [
        (4 * c, 32, 3, 3), (4 * c, 4 * c, 3, 3), (2 * c, 4 * c, 3, 3), (2 * c, 2 * c, 3, 3), (c, 2 * c, 3, 3), (c, c, 3, 3), (3, c, 1, 1), (3,),
    ]
    assert not list(network.buffers())  # no running statistics


def test_upsampler_default_capacity_is_published():
    assert UpsamplerConfig().network_capacity == 64
    assert (UpsamplerConfig().input_dim, UpsamplerConfig().output_dim) == (32, 3)


@pytest.mark.parametrize("precision", ["highest", "high"])
def test_with_skip_it_starts_as_the_first_channels_upsampled(precision):
    torch.manual_seed(0)
    features = torch.rand(2, 32, 9, 7)
    network = Upsampler(UpsamplerConfig(network_capacity=8, skip=True), precision)
    wanted = torch.nn.functional.interpolate(features[:, :3], scale_factor=4, mode="bilinear", align_corners=False)
    assert torch.allclose(network(features), wanted, atol=1e-6)


def test_with_skip_a_color_is_kept_whatever_the_rest_of_the_picture():
    """Which instance norm alone cannot: the same dark red in a white picture and in a dark one."""
    torch.manual_seed(0)
    network = Upsampler(UpsamplerConfig(network_capacity=8, skip=True))
    for around in (1.0, 0.1):
        features = torch.full((1, 32, 16, 16), around)
        features[:, :3, 4:12, 4:12] = torch.tensor([0.5, 0.2, 0.1])[None, :, None, None]
        assert torch.allclose(network(features)[0, :, 32, 32], torch.tensor([0.5, 0.2, 0.1]), atol=1e-6)


def test_with_skip_pictures_are_in_range_when_evaluated_and_learn_beyond_it_while_training():
    torch.manual_seed(0)
    network = Upsampler(UpsamplerConfig(network_capacity=8, skip=True))
    torch.nn.init.constant_(network.exit.bias, 3.0)
    features = torch.rand(1, 32, 8, 8)
    image = network(features)
    assert image.max() > 1.0
    (image - 0.5).abs().mean().backward()
    assert bool((network.exit.bias.grad > 0).all())
    image = network.eval()(features).detach()
    assert float(image.min()) >= 0.0 and float(image.max()) <= 1.0
