"""Features of our ResNet, of torchvision's arrangement and of transformers' ResNetModel are the same numbers."""

import json

import jax
import numpy as np
import pytest

from cxrjax.interop import channels as first_layer
from cxrjax.interop import huggingface, torch_resnet
from cxrjax.models import resnet

MEAN, STD = 0.4978, 0.2449
THEIR_MEAN, THEIR_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
NORMALISATION = {"mean": MEAN, "std": STD}


@pytest.fixture(autouse=True, scope="module")
def bottleneck():
    """A small variant of the other kind of block, with two blocks in one layer."""
    resnet.VARIANTS["tiny_bottleneck"] = resnet.Size((1, 2, 1, 1), 8, bottleneck=True)
    yield
    del resnet.VARIANTS["tiny_bottleneck"]


def our_encoder(variant="resnet_test", channels=1, seed=0):
    """(params, batch_stats) of noise, so that no zero bias or unit scale hides a mistake."""
    module, picture = resnet.ResNet(variant, channels), np.zeros((1, 32, 32, channels), np.float32)
    shapes = jax.eval_shape(lambda: module.init(jax.random.key(0), picture, False))
    rng = np.random.default_rng(seed)

    def noise(path, leaf):
        deviation = (2 / np.prod(leaf.shape[:3])) ** 0.5 if path[-1].key == "kernel" else 0.1
        offset = path[-1].key in ("scale", "var")
        return np.float32(offset + deviation * rng.standard_normal(leaf.shape))

    variables = jax.tree.map_with_path(noise, shapes)
    return variables["params"], variables["batch_stats"]


def pictures(channels=1, px=64, count=3):
    return np.random.default_rng(1).integers(0, 256, (count, px, px, channels), dtype=np.uint8)


def our_features(variant, params, batch_stats, images):
    module = resnet.ResNet(variant, images.shape[-1])
    x = (images / np.float32(255) - MEAN) / STD
    return jax.jit(lambda v, x: module.apply(v, x, False))({"params": params, "batch_stats": batch_stats}, x)


def to_torch(images, channels, mean, std):
    """b c h w of normalised pictures, one channel repeated where there should be more."""
    x = np.broadcast_to(images, (*images.shape[:3], channels)) / np.float32(255)
    x = (x - np.asarray(mean, np.float32)) / np.asarray(std, np.float32)
    return pytest.importorskip("torch").from_numpy(x.transpose(0, 3, 1, 2).copy()).float()


def their_features(folder, images, mean, std):
    """What ResNetModel returns: pooled b d, the last map b p q d, and the one after the stem's max-pool."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    model, report = transformers.ResNetModel.from_pretrained(folder, output_loading_info=True)
    assert not any(report.values()), report
    with torch.inference_mode():
        out = model.eval()(to_torch(images, model.config.num_channels, mean, std), output_hidden_states=True)
    maps = [hidden.numpy().transpose(0, 2, 3, 1) for hidden in (out.last_hidden_state, out.hidden_states[0])]
    return out.pooler_output.flatten(1).numpy(), *maps


def assert_same_features(ours, pooled, patches):
    assert np.abs(pooled).max() > 0.5
    np.testing.assert_allclose(ours["pooled"], pooled, atol=2e-5 * np.abs(pooled).max())
    np.testing.assert_allclose(ours["taps"][-1], patches, atol=2e-5 * np.abs(patches).max())


@pytest.fixture(scope="module")
def their_folder(tmp_path_factory):
    """Writes a random transformers ResNet and returns its folder; one per set of options."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    sizes = {
        "resnet_test": {"layer_type": "basic", "embedding_size": 16, "hidden_sizes": [16, 32, 64, 128]},
        "tiny_bottleneck": {"embedding_size": 8, "hidden_sizes": [32, 64, 128, 256]},
    }

    def build(variant, kind=transformers.ResNetModel, channels=3, mean=THEIR_MEAN, std=THEIR_STD, **options):
        torch.manual_seed(0)
        depths = list(resnet.VARIANTS[variant].blocks)
        model = kind(transformers.ResNetConfig(num_channels=channels, depths=depths, **{**sizes[variant], **options}))
        for name, array in model.state_dict().items():
            if "normalization" in name and not name.endswith("tracked"):
                array.add_(0.1 * torch.randn_like(array))
        folder = tmp_path_factory.mktemp("theirs")
        model.save_pretrained(folder)
        normalisation = {"image_mean": mean[:channels], "image_std": std[:channels]}
        (folder / "preprocessor_config.json").write_text(json.dumps(normalisation))
        return folder

    return build


@pytest.mark.parametrize(
    ("variant", "own_channels", "channels"),
    [
        ("resnet_test", 1, 3),
        ("resnet_test", 1, 1),
        ("resnet_test", 3, 3),
        ("tiny_bottleneck", 1, 3),
        ("resnet18", 1, 3),
    ],
)
def test_exported_folder_gives_our_features(tmp_path, variant, own_channels, channels):
    encoder = our_encoder(variant, own_channels)
    exported = torch_resnet.to_huggingface(*encoder, variant=variant, image_px=64, channels=channels)
    huggingface.write(tmp_path, *exported, MEAN, STD)
    images = pictures(own_channels)
    pooled, patches, _ = their_features(tmp_path, images, MEAN, STD)
    assert_same_features(our_features(variant, *encoder, images), pooled, patches)


@pytest.mark.parametrize("variant", ["resnet_test", "tiny_bottleneck"])
def test_torchvision_arrangement_gives_our_features_and_comes_back(variant):
    torch = pytest.importorskip("torch")
    from tests.torch_resnet import ResNet

    encoder, images = our_encoder(variant), pictures()
    model = ResNet(*resnet.VARIANTS[variant])
    written = torch_resnet.to_torchvision(*encoder)
    model.load_state_dict({name: torch.from_numpy(array) for name, array in written.items()}, strict=True)
    with torch.inference_mode():
        patches = model.eval()(to_torch(images, 3, MEAN, STD))[-1].numpy().transpose(0, 2, 3, 1)
    assert_same_features(our_features(variant, *encoder, images), patches.mean((1, 2)), patches)
    state_dict = {**model.state_dict(), "fc.weight": torch.zeros(1000, 3), "fc.bias": torch.zeros(1000)}
    back = torch_resnet.from_torchvision(
        state_dict, variant, **NORMALISATION, their_mean=[MEAN] * 3, their_std=[STD] * 3
    )
    jax.tree.map(np.testing.assert_array_equal, back, encoder)


@pytest.mark.parametrize("variant", ["resnet_test", "tiny_bottleneck"])
def test_export_then_import_is_bit_exact(tmp_path, variant):
    encoder = our_encoder(variant)
    huggingface.write(tmp_path, *torch_resnet.to_huggingface(*encoder, variant=variant, image_px=32), MEAN, STD)
    back = torch_resnet.from_huggingface(tmp_path, variant, **NORMALISATION)
    jax.tree.map(np.testing.assert_array_equal, back, encoder)


@pytest.mark.parametrize(("their_channels", "our_channels"), [(3, 1), (3, 3), (1, 1)])
def test_imported_model_gives_their_features_where_means_agree(their_folder, their_channels, our_channels):
    """Deviations may differ by channel; a classifier's head is left out."""
    transformers = pytest.importorskip("transformers")
    kind = transformers.ResNetForImageClassification if their_channels == 3 else transformers.ResNetModel
    folder = their_folder("tiny_bottleneck", kind, their_channels, mean=(MEAN,) * 3)
    encoder = torch_resnet.from_huggingface(folder, "tiny_bottleneck", **NORMALISATION, channels=our_channels)
    images = pictures(our_channels)
    their_mean, their_std = (MEAN,) * their_channels, THEIR_STD[:their_channels]
    if kind is not transformers.ResNetModel:
        kind.from_pretrained(folder).resnet.save_pretrained(folder)
    pooled, patches, _ = their_features(folder, images, their_mean, their_std)
    assert_same_features(our_features("tiny_bottleneck", *encoder, images), pooled, patches)


def test_other_means_differ_at_the_edge_of_the_stem_only(their_folder):
    """Constant pictures too, whose whole response is what bn1's running mean takes up."""
    folder = their_folder("resnet_test")
    encoder = torch_resnet.from_huggingface(folder, "resnet_test", **NORMALISATION)
    images = np.concatenate([pictures(), np.full((1, 64, 64, 1), 200, np.uint8)])
    stem = np.asarray(our_features("resnet_test", *encoder, images)["taps"][0])
    windows = np.pad(stem, [(0, 0), (1, 0), (1, 0), (0, 0)])
    ours = np.max([windows[:, i : i + 31 : 2, j : j + 31 : 2] for i in range(3) for j in range(3)], axis=0)
    _, _, theirs = their_features(folder, images, THEIR_MEAN, THEIR_STD)
    np.testing.assert_allclose(ours[:, 2:-1, 2:-1], theirs[:, 2:-1, 2:-1], atol=2e-5)
    assert np.abs(ours - theirs)[:, 0].max() > 1e-3


def test_torchvision_weights_are_read_under_imagenets_normalisation():
    """Against the sum that the fold stands for, written out at one place inside a picture."""
    torch = pytest.importorskip("torch")
    from tests.torch_resnet import ResNet

    torch.manual_seed(0)
    model, images = ResNet(*resnet.VARIANTS["resnet_test"]), pictures()
    params, stats = torch_resnet.from_torchvision(model.state_dict(), "resnet_test", **NORMALISATION)
    with torch.inference_mode():
        theirs = model.eval()(to_torch(images, 3, THEIR_MEAN, THEIR_STD))[0].numpy()[:, :, 10, 7]
    window = (images[:, 17:24, 11:18] / 255 - MEAN) / STD
    response = np.einsum("bijc,ijcd->bd", window, params["conv1"]["kernel"])
    normalised = (response - stats["bn1"]["mean"]) / np.sqrt(stats["bn1"]["var"] + 1e-5)
    ours = np.maximum(normalised * params["bn1"]["scale"] + params["bn1"]["bias"], 0)
    np.testing.assert_allclose(ours, theirs, atol=2e-5)


@pytest.mark.parametrize(
    ("variant", "options", "sentence"),
    [
        ("resnet18", {}, r"no resnet18: .*Set variant='resnet_test' in the config"),
        ("resnet_test", {"downsample_in_first_stage": True}, "downsample_in_first_stage: ours False, pre-trained True"),
        ("resnet_test", {"hidden_act": "gelu"}, "hidden_act: ours relu, pre-trained gelu. None of our variants fits"),
        ("resnet19", {}, "no ResNet 'resnet19'; there are resnet_test, resnet18"),
    ],
)
def test_other_architectures_are_named(their_folder, variant, options, sentence):
    with pytest.raises(ValueError, match=sentence):
        torch_resnet.from_huggingface(their_folder("resnet_test", **options), variant, **NORMALISATION)


def test_resnet50_is_the_default_of_a_hugging_face_config():
    """Its config.json names none of the defaults, so they must be known."""
    transformers = pytest.importorskip("transformers")
    written, default = torch_resnet._architecture("resnet50"), transformers.ResNetConfig()
    assert written == {key: type(value)(getattr(default, key)) for key, value in written.items()}
    torch_resnet._check_architecture({"model_type": "resnet"}, "resnet50")


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda d: d.pop("layer2.0.conv1.weight"), "has an array 'layer2.0.conv1.weight', which is not among"),
        (lambda d: d.pop("conv1.weight"), "has an array 'conv1.weight', which is not among"),
        (lambda d: d.update({"layer5.0.conv1.weight": np.ones(3)}), "no place for 1 of the arrays, such as .*layer5"),
        (lambda d: d.update({"bn1.weight": np.ones(3)}), r"bn1.weight has the shape \(3,\); resnet_test needs \(16,\)"),
        (lambda d: d.update({"conv1.weight": np.ones((16, 3, 3, 3))}), r"\(16, 3, 3, 3\); resnet_test needs .*7, 7"),
        (lambda d: d.update({"conv1.weight": np.ones((16, 1, 7, 7))}), r"takes 1 channel\(s\), but 3 mean"),
        (lambda d: d.update({"conv1.weight": np.ones((16, 2, 7, 7))}), r"takes 2 channel\(s\), but 3 mean"),
    ],
)
def test_arrays_that_do_not_fit_are_named(change, sentence):
    state_dict = torch_resnet.to_torchvision(*our_encoder())
    change(state_dict)
    with pytest.raises(ValueError, match=sentence):
        torch_resnet.from_torchvision(state_dict, "resnet_test", **NORMALISATION)


def test_export_refuses_what_does_not_fit():
    params, stats = our_encoder()
    with pytest.raises(ValueError, match="cannot be written with channels=4"):
        torch_resnet.to_torchvision(params, stats, channels=4)
    with pytest.raises(ValueError, match=r"Give the encoder's own subtrees"):
        torch_resnet.to_torchvision({"encoder": params}, stats)
    with pytest.raises(ValueError, match=r"no resnet18: .*bn1/mean: \(16,\), resnet18 has \(64,\)"):
        torch_resnet.to_huggingface(params, stats, variant="resnet18", image_px=32)
    with pytest.raises(ValueError, match=r"takes 3 channel\(s\) and our encoder 2"):
        first_layer.fold(np.ones((4, 3, 7, 7), np.float32), THEIR_MEAN, THEIR_STD, MEAN, STD, 2)
