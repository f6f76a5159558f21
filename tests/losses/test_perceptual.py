"""LPIPS with seeded random weights: against a forward written from scratch in float64, laws, and what loading refuses."""

import copy

import pytest
import torch
from torch.nn.functional import conv2d, max_pool2d, relu

from lib.errors import InputError
from lib.losses.perceptual import NETWORKS, Lpips, load_lpips, unit_vectors
from lib.networks.precision import set_precision

# (output, input, kernel) of every convolution by its number in torchvision's `features`, and the channels that lpips compares.
SHAPES = {
    "vgg": {0: (64, 3, 3), 2: (64, 64, 3), 5: (128, 64, 3), 7: (128, 128, 3), 10: (256, 128, 3), 12: (256, 256, 3), 14: (256, 256, 3),
            17: (512, 256, 3), 19: (512, 512, 3), 21: (512, 512, 3), 24: (512, 512, 3), 26: (512, 512, 3), 28: (512, 512, 3)},
    "alex": {0: (64, 3, 11), 3: (192, 64, 5), 6: (384, 192, 3), 8: (256, 384, 3), 10: (256, 256, 3)},
}
COMPARED = {"vgg": (64, 128, 256, 512, 512), "alex": (64, 192, 384, 256, 256)}
SMALLEST = {"vgg": 16, "alex": 31}
FILES = {"vgg": ("vgg16.pth", "lpips_vgg.pth"), "alex": ("alexnet.pth", "lpips_alex.pth")}
BOTH = pytest.mark.parametrize("network", ["vgg", "alex"])


@pytest.fixture(scope="session")
def weights():
    """Seeded random weights of full size under the published names: network -> (backbone, heads)."""
    random = torch.Generator().manual_seed(0)
    made = {}
    for network, layers in SHAPES.items():
        backbone = {"classifier.0.weight": torch.zeros(2, 2)}  # published files hold a classifier too
        for number, (out, into, kernel) in layers.items():
            spread = (2.0 / (into * kernel**2)) ** 0.5
            backbone[f"features.{number}.weight"] = spread * torch.randn(out, into, kernel, kernel, generator=random)
            backbone[f"features.{number}.bias"] = 0.1 * torch.randn(out, generator=random)
        heads = {f"lin{k}.model.1.weight": torch.rand(1, width, 1, 1, generator=random) for k, width in enumerate(COMPARED[network])}
        made[network] = backbone, heads
    return made


@pytest.fixture(scope="session")
def folder(weights, tmp_path_factory):
    path = tmp_path_factory.mktemp("lpips")
    for network, contents in weights.items():
        for name, content in zip(FILES[network], contents, strict=True):
            torch.save(content, path / name)
    return path


@pytest.fixture(scope="session")
def models(folder):
    return {network: load_lpips(folder, "loss.lpips", network) for network in FILES}


def pictures(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(2, *shape, generator=torch.Generator().manual_seed(seed))


def vgg_features(x, w):
    def step(x, *numbers):
        for number in numbers:
            x = relu(conv2d(x, w[f"features.{number}.weight"], w[f"features.{number}.bias"], padding=1))
        return x
    first = step(x, 0, 2)
    second = step(max_pool2d(first, 2), 5, 7)
    third = step(max_pool2d(second, 2), 10, 12, 14)
    fourth = step(max_pool2d(third, 2), 17, 19, 21)
    return first, second, third, fourth, step(max_pool2d(fourth, 2), 24, 26, 28)


def alex_features(x, w):
    first = relu(conv2d(x, w["features.0.weight"], w["features.0.bias"], stride=4, padding=2))
    second = relu(conv2d(max_pool2d(first, 3, 2), w["features.3.weight"], w["features.3.bias"], padding=2))
    third = relu(conv2d(max_pool2d(second, 3, 2), w["features.6.weight"], w["features.6.bias"], padding=1))
    fourth = relu(conv2d(third, w["features.8.weight"], w["features.8.bias"], padding=1))
    return first, second, third, fourth, relu(conv2d(fourth, w["features.10.weight"], w["features.10.bias"], padding=1))


def written_out(network, weights, image, target):
    """The published formula in float64, without a module."""
    backbone, heads = ({name: value.double() for name, value in part.items()} for part in weights[network])
    features = {"vgg": vgg_features, "alex": alex_features}[network]
    mean, spread = torch.tensor([[-0.030, -0.088, -0.188], [0.458, 0.448, 0.450]], dtype=torch.float64)
    stacks = []
    for picture in (image.double(), target.double()):
        normalised = ((picture * 2 - 1).permute(0, 2, 3, 1) - mean) / spread
        stacks.append([f / ((f * f).sum(1, keepdim=True).sqrt() + 1e-10) for f in features(normalised.permute(0, 3, 1, 2), backbone)])
    per_layer = [torch.einsum("bchw,c->bhw", (a - b) ** 2, heads[f"lin{k}.model.1.weight"][0, :, 0, 0]).flatten(1).mean(1)
                 for k, (a, b) in enumerate(zip(*stacks, strict=True))]
    return sum(per_layer)


@BOTH
def test_it_is_the_published_formula(network, models, weights):
    image, target = pictures(2, 3, 48, 64)
    oracle = written_out(network, weights, image, target)
    torch.testing.assert_close(models[network](image, target).double(), oracle, rtol=1e-5, atol=0)
    exact = Lpips(network).double()
    exact.load_state_dict(models[network].state_dict())
    torch.testing.assert_close(exact(image.double(), target.double()), oracle, rtol=1e-12, atol=0)


@BOTH
def test_gradient_is_that_of_the_formula(network, models, weights):
    image, target = (picture[None].double() for picture in pictures(3, 32, 40))
    image.requires_grad_()
    exact = Lpips(network).double()
    exact.load_state_dict(models[network].state_dict())
    (ours,) = torch.autograd.grad(exact(image, target).sum(), image)
    (oracle,) = torch.autograd.grad(written_out(network, weights, image, target).sum(), image)
    torch.testing.assert_close(ours, oracle, rtol=1e-8, atol=1e-12 * float(oracle.abs().max()))
    assert ours.abs().max() > 0


@BOTH
def test_state_dict_has_the_published_names(network, models, weights):
    published = {name for part in weights[network] for name in part if not name.startswith("classifier.")}
    assert set(models[network].state_dict()) == published


@BOTH
def test_equal_pictures_have_no_distance_others_have_one_and_order_does_not_matter(network, models):
    image, target = pictures(2, 3, 33, 40, seed=1)
    model = models[network]
    assert torch.equal(model(image, image), torch.zeros(2))
    assert (model(image, target) > 0).all()
    torch.testing.assert_close(model(image, target), model(target, image), rtol=1e-6, atol=0)


@BOTH
def test_a_batch_is_its_pictures_one_by_one(network, models):
    image, target = pictures(2, 3, 40, 33, seed=2)
    one_by_one = torch.cat([models[network](image[k:k + 1], target[k:k + 1]) for k in range(2)])
    torch.testing.assert_close(models[network](image, target), one_by_one, rtol=1e-5, atol=0)


@BOTH
def test_under_equal_weights_the_regional_distance_is_the_distance(network, models):
    image, target = pictures(3, 48, 64), pictures(3, 48, 64, seed=1)
    found = models[network].regional(image, target, torch.full((2, 2, 48, 64), 0.5))
    torch.testing.assert_close(found, models[network](image, target)[:, None].expand(2, 2))
    assert torch.isnan(models[network].regional(image, target, torch.zeros(2, 1, 48, 64))).all()


def test_a_region_is_the_mean_of_every_layer_under_its_weight(models, weights):
    """VGG16 at 64²: layers of 64, 32, 16, 8 and 4 pixels; the region is a whole number of pixels of each."""
    image, target, region = pictures(3, 64, 64), pictures(3, 64, 64, seed=1), torch.zeros(2, 1, 64, 64)
    region[..., 16:48, 32:64] = 1.0
    backbone, heads = weights["vgg"]
    mean, spread = torch.tensor([[-0.030, -0.088, -0.188], [0.458, 0.448, 0.450]])[..., None, None]
    features = [vgg_features((2.0 * picture - 1.0 - mean) / spread, backbone) for picture in (image, target)]
    expected = torch.zeros(2)
    for k, (a, b) in enumerate(zip(*features, strict=True)):
        distance = (heads[f"lin{k}.model.1.weight"] * (unit_vectors(a) - unit_vectors(b)).square()).sum(dim=1)
        step = 64 // distance.shape[-1]
        expected += distance[:, 16 // step:48 // step, 32 // step:].mean(dim=(1, 2))
    torch.testing.assert_close(models["vgg"].regional(image, target, region)[:, 0], expected)


@BOTH
def test_gradient_reaches_the_picture_not_the_weights(network, models):
    image, target = (picture[None] for picture in pictures(3, 32, 32))
    image.requires_grad_()
    models[network](image, target).sum().backward()
    assert image.grad is not None and image.grad.abs().sum() > 0
    assert not any(parameter.requires_grad for parameter in models[network].parameters())


def high(model: Lpips) -> Lpips:
    """The same weights, bfloat16 convolutions."""
    rough = copy.deepcopy(model)
    set_precision(rough, "high")
    return rough


def distance_and_gradients(model, image, target):
    leaves = [picture.clone().requires_grad_() for picture in (image, target)]
    distance = model(*leaves)
    return distance.detach(), *torch.autograd.grad(distance.sum(), leaves)


@BOTH
def test_high_precision_is_near_the_highest(network, models):
    """Weights and every layer's output are rounded, by 2^-9 at most. If all errors had the same sign, 13 layers would be off by
    13 x 2 x 2^-9 = 5%: that bounds the distance. Gradients err more, as a ReLU may open on one side alone."""
    image, target = pictures(2, 3, 64, 80)
    exact, rough = (distance_and_gradients(model, image, target) for model in (models[network], high(models[network])))
    assert rough[0].dtype == torch.float32
    torch.testing.assert_close(rough[0], exact[0], rtol=0.05, atol=0)
    for ours, right in zip(rough[1:], exact[1:], strict=True):
        assert torch.cosine_similarity(ours.flatten(1), right.flatten(1)).min() > 0.95
        assert float((ours - right).norm()) < 0.3 * float(right.norm())


@BOTH
def test_high_precision_keeps_the_laws(network, models):
    image, target = pictures(2, 3, 33, 40, seed=1)
    model = high(models[network])
    assert torch.equal(model(image, image), torch.zeros(2))
    assert (model(image, target) > 0).all()
    torch.testing.assert_close(torch.cat([model(image[k:k + 1], target[k:k + 1]) for k in range(2)]), model(image, target), rtol=1e-2, atol=0)
    seen = high(models[network])
    with torch.inference_mode():
        assert torch.equal(seen(image, target), model(image, target))
    assert distance_and_gradients(seen, image, target)[1].any()


def test_high_precision_follows_the_weights(models):
    image, target = pictures(1, 3, 32, 32)
    model = high(models["alex"])
    model(image, target)
    with torch.no_grad():
        model.features[0].weight.mul_(-1.0)
    changed = model(image, target)
    assert torch.equal(changed, high(model)(image, target))
    model.load_state_dict(models["alex"].state_dict(), assign=True)
    assert torch.equal(model(image, target), high(models["alex"])(image, target))
    assert not torch.equal(model(image, target), changed)


def test_normalisation_at_zero_has_a_finite_gradient():
    features = torch.zeros(1, 3, 2, 2)
    features[..., 0] = torch.tensor([3.0, 0.0, 4.0])[None, :, None]
    features.requires_grad_()
    unit = unit_vectors(features)
    assert torch.equal(unit[..., 1], torch.zeros(1, 3, 2))
    torch.testing.assert_close(unit[0, :, 0, 0], torch.tensor([0.6, 0.0, 0.8]))
    unit.square().sum().backward()
    assert features.grad is not None and features.grad.isfinite().all()
    assert torch.equal(features.grad[..., 1], torch.zeros(1, 3, 2))


@BOTH
def test_where_all_features_are_zero_the_gradient_is_finite(network, models):
    """Positive first weights without bias: a black picture leaves nothing after the first ReLU, nor then after any other."""
    model = Lpips(network)
    model.load_state_dict({name: value.abs() if name.endswith("weight") else torch.zeros_like(value)
                           for name, value in models[network].state_dict().items()})
    black, white = torch.zeros(1, 3, 32, 32), torch.ones(1, 3, 32, 32)
    for image, target in ((black, white), (white, black), (black, black)):
        image = image.clone().requires_grad_()
        distance = model(image, target)
        (gradient,) = torch.autograd.grad(distance.sum(), image)
        assert distance.isfinite().all() and gradient.isfinite().all()
        assert bool(distance > 0) == (image.detach().max() != target.max())


@BOTH
def test_the_smallest_picture_is_what_the_layers_can_take(network, models, weights):
    side = SMALLEST[network]
    image, target = pictures(1, 3, side, side)
    torch.testing.assert_close(models[network](image, target).double(), written_out(network, weights, image, target), rtol=1e-5, atol=0)
    with pytest.raises(RuntimeError):  # the layers themselves cannot take less
        written_out(network, weights, image[..., 1:, :], target[..., 1:, :])
    with pytest.raises(ValueError, match=f"at least {side}x{side} pixels, found {side - 1}x{side}"):
        models[network](image[..., 1:, :], target[..., 1:, :])


def test_published_addresses_carry_the_start_of_their_hash():
    """torchvision names its files by the first eight digits."""
    for backbone in NETWORKS.values():
        assert backbone.features.url.endswith(f"-{backbone.features.sha256[:8]}.pth")
        for file in (backbone.features, backbone.heads):
            assert len(bytes.fromhex(file.sha256)) == 32 and file.url.startswith("https://")


@BOTH
def test_loading_says_that_weights_are_not_the_published_ones(network, folder, capsys):
    load_lpips(folder, "loss.lpips", network)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    for line, name in zip(lines, FILES[network], strict=True):
        assert line.startswith(f"{folder / name} is not the published file (sha256 ")


def test_loading_draws_no_random_numbers(folder):
    """Whether LPIPS is on must not change the initial weights of what is trained."""
    torch.manual_seed(3)
    load_lpips(folder, "loss.lpips", "alex")
    drawn = torch.rand(4)
    torch.manual_seed(3)
    assert torch.equal(drawn, torch.rand(4))


@pytest.mark.parametrize("zipped", [True, False])  # the published backbones date from before zipped files
def test_half_precision_and_old_files_are_accepted(zipped, weights, tmp_path):
    for name, content in zip(FILES["alex"], weights["alex"], strict=True):
        torch.save({key: value.half() for key, value in content.items()}, tmp_path / name, _use_new_zipfile_serialization=zipped)
    assert {value.dtype for value in load_lpips(tmp_path, "loss.lpips", "alex").state_dict().values()} == {torch.float32}


@BOTH
@pytest.mark.parametrize("absent", [0, 1])
def test_a_missing_file_names_key_path_and_command(network, absent, folder, tmp_path):
    place = tmp_path / "my weights"
    place.mkdir()
    (place / FILES[network][1 - absent]).symlink_to(folder / FILES[network][1 - absent])
    with pytest.raises(InputError) as error:
        load_lpips(place, "loss.lpips", network)
    message = str(error.value)
    assert message.startswith(f"loss.lpips is larger than 0, but {place / FILES[network][absent]} is missing")
    assert f"python -m preprocess.lpips_weights --folder '{place}' --network {network}" in message
    assert "loss.lpips=0" in message


@BOTH
@pytest.mark.parametrize("damaged", [0, 1])
@pytest.mark.parametrize("content", [b"", b"not a weight file", "half"])
def test_a_damaged_file_is_named(network, damaged, content, folder, tmp_path):
    (tmp_path / FILES[network][1 - damaged]).symlink_to(folder / FILES[network][1 - damaged])
    name = FILES[network][damaged]
    whole = (folder / name).read_bytes()
    (tmp_path / name).write_bytes(whole[:len(whole) // 2] if content == "half" else content)
    with pytest.raises(InputError, match=rf"{name}: not a readable weight file .*preprocess\.lpips_weights"):
        load_lpips(tmp_path, "loss.lpips", network)


@pytest.mark.parametrize(("wrong", "says"), [
    (0, r"vgg16\.pth: expected VGG16, .*'features\.0\.weight' has shape \(64, 3, 3, 3\), found \(64, 3, 11, 11\)"),
    (1, r"lpips_vgg\.pth: expected linear heads for VGG16 .*'lin1\.model\.1\.weight' has shape \(1, 128, 1, 1\), found \(1, 192, 1, 1\)"),
])
def test_weights_of_another_network_are_named(wrong, says, folder, tmp_path):
    for index, name in enumerate(FILES["vgg"]):
        (tmp_path / name).symlink_to(folder / FILES["alex" if index == wrong else "vgg"][index])
    with pytest.raises(InputError, match=says):
        load_lpips(tmp_path, "loss.lpips")


@pytest.mark.parametrize(("content", "says"), [
    ({}, r"'lin0\.model\.1\.weight' has shape \(1, 64, 1, 1\), found nothing"),
    ({"lin0.model.1.weight": 1.0}, "found nothing"),
    ({"lin0.model.1.weight": torch.zeros(1, 64)}, r"found \(1, 64\)"),
    (torch.zeros(3), "expected a state dict .*, found a Tensor"),
])
def test_heads_that_do_not_fit_are_explained(content, says, folder, tmp_path):
    (tmp_path / "alexnet.pth").symlink_to(folder / "alexnet.pth")
    torch.save(content, tmp_path / "lpips_alex.pth")
    with pytest.raises(InputError, match=rf"lpips_alex\.pth: .*{says}"):
        load_lpips(tmp_path, "loss.lpips", "alex")
