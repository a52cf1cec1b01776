"""Features of our ViT and of transformers' ViTModel are the same numbers, in both directions and through files."""

import json

import jax
import numpy as np
import pytest

from cxrjax import sizes
from cxrjax.interop import huggingface, torch_vit
from cxrjax.models import posemb, transformer, vit

MEAN, STD = 0.4978, 0.2449
THEIR_MEAN, THEIR_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
TOLERANCE = 2e-5


def our_encoder(variant="test", positions="sincos", channels=1, image_px=32, patch_px=8):
    """Model and noise on every leaf, so that no zero bias, unit scale or unused row hides a mistake."""
    model = vit.ViT(variant, patch_px, image_px, channels, positions)
    shapes = jax.eval_shape(model.init, jax.random.key(0), np.zeros((1, image_px, image_px, channels)))["params"]
    rng = np.random.default_rng(0)

    def noise(path, leaf):
        return np.float32(path[-1].key == "scale") + 0.1 * rng.standard_normal(leaf.shape, np.float32)

    return model, jax.tree.map_with_path(noise, shapes)


def exported(model, params, channels=3):
    grid = model.image_px // model.patch_px
    table = posemb.sincos_2d((grid, grid), model.size.width) if model.positions == "sincos" else None
    return torch_vit.to_huggingface(
        params,
        heads=model.size.heads,
        patch_px=model.patch_px,
        image_px=model.image_px,
        position_table=table,
        channels=channels,
    )


def pictures(px=32, channels=1, count=3):
    return np.random.default_rng(1).integers(0, 256, (count, *sizes.sides(px), channels), dtype=np.uint8)


def our_features(model, params, images, mean=MEAN, std=STD):
    out = jax.jit(model.apply)({"params": params}, (images / np.float32(255) - mean) / std)
    return np.concatenate([out["cls"][:, None], out["patches"]], axis=1)


def their_features(folder, images, mean, std, **options):
    """last_hidden_state of the folder's model; one-channel pictures are replicated if it takes three."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    model = transformers.ViTModel.from_pretrained(folder, add_pooling_layer=False).eval()
    channels = model.config.num_channels
    x = (np.broadcast_to(images, (*images.shape[:3], channels)) / np.float32(255) - np.asarray(mean)) / np.asarray(std)
    with torch.inference_mode():
        return model(torch.from_numpy(x.transpose(0, 3, 1, 2)).float(), **options).last_hidden_state.numpy()


@pytest.fixture(scope="module")
def their_folder(tmp_path_factory):
    """Writes a random transformers ViT of 32 px pictures and returns its folder; one per set of options."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")

    def build(kind=transformers.ViTModel, channels=3, **options):
        torch.manual_seed(0)
        size = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 256}
        config = transformers.ViTConfig(
            **{**size, "image_size": 32, "patch_size": 8, "num_channels": channels, "layer_norm_eps": 1e-6, **options}
        )
        model = kind(config)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
        folder = tmp_path_factory.mktemp("theirs")
        model.save_pretrained(folder)
        normalisation = {"image_mean": THEIR_MEAN[:channels], "image_std": THEIR_STD[:channels]}
        (folder / "preprocessor_config.json").write_text(json.dumps(normalisation))
        return folder

    return build


@pytest.mark.parametrize(
    ("variant", "positions", "own_channels", "channels", "px", "patch_px"),
    [
        ("test", "sincos", 1, 3, 32, 8),
        ("test", "sincos", 1, 1, 32, 8),
        ("test", "learned", 1, 3, 32, 8),
        ("test", "learned", 3, 3, 32, 8),
        ("Ti", "sincos", 1, 3, 64, 16),
        ("Ti", "learned", 1, 1, 64, 16),
    ],
)
def test_exported_model_gives_our_features(tmp_path, variant, positions, own_channels, channels, px, patch_px):
    model, params = our_encoder(variant, positions, own_channels, px, patch_px)
    huggingface.write(tmp_path, *exported(model, params, channels), MEAN, STD)
    images = pictures(px, own_channels)
    ours, theirs = our_features(model, params, images), their_features(tmp_path, images, MEAN, STD)
    assert np.abs(ours).max() > 0.5
    assert json.loads((tmp_path / "config.json").read_text())["layer_norm_eps"] == transformer.LAYER_NORM_EPS
    np.testing.assert_allclose(ours, theirs, atol=TOLERANCE)


@pytest.mark.parametrize(("their_channels", "our_channels"), [(3, 1), (3, 3), (1, 1)])
def test_imported_model_gives_their_features(their_folder, their_channels, our_channels):
    folder = their_folder(channels=their_channels)
    model = vit.ViT("test", 8, 32, our_channels, "learned")
    params = torch_vit.from_huggingface(folder, image_px=32, mean=MEAN, std=STD, channels=our_channels)
    images = pictures(channels=our_channels)
    theirs = their_features(folder, images, THEIR_MEAN[:their_channels], THEIR_STD[:their_channels])
    np.testing.assert_allclose(our_features(model, params, images), theirs, atol=TOLERANCE)


def test_encoder_of_a_classifier_without_attention_biases_is_found(their_folder):
    transformers = pytest.importorskip("transformers")
    folder = their_folder(transformers.ViTForImageClassification, qkv_bias=False)
    params = torch_vit.from_huggingface(folder, image_px=32, mean=MEAN, std=STD)
    ours = our_features(vit.ViT("test", 8, 32, 1, "learned"), params, pictures())
    np.testing.assert_allclose(ours, their_features(folder, pictures(), THEIR_MEAN, THEIR_STD), atol=TOLERANCE)


@pytest.mark.parametrize("px", [48, 24])
def test_positions_are_resized_as_transformers_does(their_folder, px):
    folder = their_folder()
    params = torch_vit.from_huggingface(folder, image_px=px, mean=MEAN, std=STD)
    images = pictures(px)
    theirs = their_features(folder, images, THEIR_MEAN, THEIR_STD, interpolate_pos_encoding=True)
    ours = our_features(vit.ViT("test", 8, px, 1, "learned"), params, images)
    np.testing.assert_allclose(ours, theirs, atol=TOLERANCE)


def test_exported_processor_prepares_grey_pictures_as_we_do(tmp_path):
    transformers = pytest.importorskip("transformers")
    image_module = pytest.importorskip("PIL.Image")
    model, params = our_encoder()
    huggingface.write(tmp_path, *exported(model, params), MEAN, STD)
    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path)
    image = pictures(40)[0, :, :, 0]
    given = processor(image_module.fromarray(image[4:36, 4:36]), return_tensors="np")["pixel_values"]
    expected = (image[4:36, 4:36] / 255 - MEAN) / STD
    np.testing.assert_allclose(given, np.broadcast_to(expected, (1, 3, 32, 32)), atol=1e-5)
    wide = processor(image_module.fromarray(image[4:36]), return_tensors="np")["pixel_values"]
    np.testing.assert_allclose(wide, given, atol=1e-5)


@pytest.mark.parametrize("positions", ["sincos", "learned"])
def test_export_then_import_is_bit_exact(tmp_path, positions):
    model, params = our_encoder(positions=positions)
    huggingface.write(tmp_path, *exported(model, params), MEAN, STD)
    table = posemb.sincos_2d((4, 4), 64) if positions == "sincos" else None
    back = torch_vit.load_into(params, tmp_path, heads=2, image_px=32, mean=MEAN, std=STD, position_table=table)
    jax.tree.map(np.testing.assert_array_equal, back, params)


def test_fixed_positions_only_load_into_the_same_table(tmp_path):
    learned, params = our_encoder(positions="learned")
    huggingface.write(tmp_path, *exported(learned, params), MEAN, STD)
    _, fixed = our_encoder(positions="sincos")
    with pytest.raises(ValueError, match="positions='learned'"):
        torch_vit.load_into(
            fixed, tmp_path, heads=2, image_px=32, mean=MEAN, std=STD, position_table=posemb.sincos_2d((4, 4), 64)
        )


@pytest.mark.parametrize(
    ("options", "heads", "sentence"),
    [
        ({"patch_px": 16}, 2, "Set patch_px=8 in the config"),
        ({"variant": "Ti"}, 2, r"blocks/attention/out/kernel: ours \(12, 192, 192\), pre-trained \(2, 64, 64\)"),
        ({}, 4, "4 attention heads, the pre-trained model 2"),
    ],
)
def test_what_does_not_fit_is_named(tmp_path, options, heads, sentence):
    model, params = our_encoder(positions="learned")
    huggingface.write(tmp_path, *exported(model, params), MEAN, STD)
    other = vit.ViT(**{"variant": "test", "patch_px": 8, "image_px": 32, "positions": "learned", **options})
    wanted = jax.eval_shape(other.init, jax.random.key(0), np.zeros((1, 32, 32, 1)))["params"]
    with pytest.raises(ValueError, match=sentence):
        torch_vit.load_into(wanted, tmp_path, heads=heads, image_px=32, mean=MEAN, std=STD)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"patch_px": 7}, "64 inputs per patch"),
        ({"image_px": 36}, "36 px cannot be cut into patches of 8 px"),
        ({"image_px": 64}, "16 positions do not fit a grid of 8 x 8"),
        ({"heads": 5}, "heads=5 does not divide"),
        ({"channels": 4}, "cannot be written with channels=4"),
        ({"position_table": None}, "neither is given"),
    ],
)
def test_export_refuses_what_does_not_fit(change, sentence):
    _, params = our_encoder()
    fitting = {"heads": 2, "patch_px": 8, "image_px": 32, "position_table": posemb.sincos_2d((4, 4), 64)}
    with pytest.raises(ValueError, match=sentence):
        torch_vit.to_huggingface(params, **{**fitting, **change})


@pytest.mark.parametrize(
    ("file", "content", "sentence"),
    [
        ("config.json", {"model_type": "dinov2"}, "'dinov2'; expected vit, vit_mae"),
        ("preprocessor_config.json", {"image_mean": [0.5], "image_std": [0.5]}, "normalises 1 channel"),
        ("preprocessor_config.json", {"do_rescale": False}, "expected do_rescale with 1/255"),
        ("preprocessor_config.json", None, "normalisation is unknown"),
        ("model.safetensors", None, r"lacks \['model.safetensors'\]"),
        ("config.json", None, "has no config.json"),
    ],
)
def test_broken_folder_is_explained(tmp_path, file, content, sentence):
    huggingface.write(tmp_path, *exported(*our_encoder()), MEAN, STD)
    (tmp_path / file).unlink() if content is None else (tmp_path / file).write_text(json.dumps(content))
    with pytest.raises(ValueError, match=sentence):
        torch_vit.from_huggingface(tmp_path, image_px=32, mean=MEAN, std=STD)


def test_array_without_a_place_is_refused(tmp_path):
    weights, config = exported(*our_encoder())
    weights["encoder.layer.0.layer_scale1.lambda1"] = np.ones(64, np.float32)
    huggingface.write(tmp_path, weights, config, MEAN, STD)
    with pytest.raises(ValueError, match="no place for, such as .*lambda1"):
        torch_vit.from_huggingface(tmp_path, image_px=32, mean=MEAN, std=STD)
