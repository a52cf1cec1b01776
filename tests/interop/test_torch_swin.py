"""Features of our Swin and of transformers' SwinModel are the same numbers."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cxrjax.interop import huggingface, torch_swin
from cxrjax.models import swin

MEAN, STD = 0.4978, 0.2449
THEIR_MEAN, THEIR_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
NORMALISATION = {"mean": MEAN, "std": STD}
THEIR = {"their_mean": THEIR_MEAN, "their_std": THEIR_STD}


@pytest.fixture(autouse=True, scope="module")
def small():
    """A Swin with an odd window and two pairs of blocks in one stage."""
    swin.VARIANTS["small"] = swin.Size(16, (2, 4), (2, 4), 3)
    yield
    del swin.VARIANTS["small"]


def our_encoder(variant="small", channels=1, seed=0):
    """Parameters of noise, so that no zero bias or unit scale hides a mistake."""
    rng = np.random.default_rng(seed)

    def noise(path, leaf):
        deviation = leaf.shape[-2] ** -0.5 if path[-1].key in ("kernel", "merge") else 0.3
        return np.float32((path[-1].key == "scale") + deviation * rng.standard_normal(leaf.shape))

    return jax.tree.map_with_path(noise, torch_swin._shapes(variant, channels))


def pictures(h=60, w=60, channels=1, count=2):
    return np.random.default_rng(1).integers(0, 256, (count, h, w, channels), dtype=np.uint8)


def our_features(params, images, variant="small", channels=None):
    module = swin.Swin(variant, channels or images.shape[-1])
    x = (images / np.float32(255) - np.float32(MEAN)) / np.float32(STD)
    return jax.jit(lambda params, x: module.apply({"params": params}, x))(params, x)


def their_features(folder, images, mean=(MEAN,) * 3, std=(STD,) * 3):
    """(patches b n d, pooled b d) of SwinModel."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    model, report = transformers.SwinModel.from_pretrained(folder, output_loading_info=True)
    assert not any(report.values()), report
    x = np.broadcast_to(images, (*images.shape[:3], model.config.num_channels)) / np.float32(255)
    x = (x - np.float32(mean)[: x.shape[-1]]) / np.float32(std)[: x.shape[-1]]
    with torch.inference_mode():
        out = model.eval()(torch.from_numpy(x.transpose(0, 3, 1, 2).copy()))
    return out.last_hidden_state.numpy(), out.pooler_output.numpy()


@pytest.fixture(scope="module")
def theirs(tmp_path_factory):
    """Writes a random SwinModel of the size of "small" into a new folder and returns it."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")

    def build(kind=transformers.SwinModel, channels=3, **options):
        torch.manual_seed(0)
        architecture = torch_swin._architecture("small") | options
        model = kind(transformers.SwinConfig(num_channels=channels, image_size=60, **architecture))
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.2 * torch.randn_like(parameter))
        folder = tmp_path_factory.mktemp("theirs")
        model.save_pretrained(folder)
        normalisation = {"image_mean": THEIR_MEAN[:channels], "image_std": THEIR_STD[:channels]}
        (folder / "preprocessor_config.json").write_text(json.dumps(normalisation))
        return folder

    return build


def assert_same(ours, patches, pooled):
    assert np.abs(patches).max() > 1
    np.testing.assert_allclose(ours["patches"], patches, atol=1e-5)
    np.testing.assert_allclose(ours["pooled"], pooled, atol=1e-5)


@pytest.mark.parametrize(("h", "w", "channels"), [(60, 60, 1), (24, 44, 3)])
def test_exported_folder_gives_our_features(tmp_path, h, w, channels):
    """15 × 15 tokens are 5 × 5 windows, 8 × 8 are padded; of 6 × 11 one side is padded, and 3 × 6 are not shifted."""
    params, images = our_encoder(channels=channels), pictures(h, w, channels)
    huggingface.write(tmp_path, *torch_swin.to_huggingface(params, variant="small", image_px=60), MEAN, STD)
    assert_same(our_features(params, images), *their_features(tmp_path, images))
    back = torch_swin.from_huggingface(tmp_path, "small", **NORMALISATION, channels=channels)
    jax.tree.map(np.testing.assert_array_equal, back, params)


def test_their_folder_gives_their_features_on_grey_pictures(theirs):
    """Three channels under three means and deviations, folded into one; a classifier's head is left aside."""
    transformers = pytest.importorskip("transformers")
    folder, images = theirs(transformers.SwinForImageClassification), pictures()
    params = torch_swin.from_huggingface(folder, "small", **NORMALISATION)
    kept = torch_swin.from_huggingface(folder, "small", **NORMALISATION, channels=3)
    transformers.SwinForImageClassification.from_pretrained(folder).swin.save_pretrained(folder)
    expected = their_features(folder, images, THEIR_MEAN, THEIR_STD)
    assert_same(our_features(params, images), *expected)
    assert_same(our_features(kept, images, channels=3), *expected)


def test_an_index_names_files_of_its_folder_only(theirs):
    folder = theirs()
    index = folder / "model.safetensors.index.json"
    for name in ("../../outside", "/etc/passwd", "part/one.safetensors"):
        index.write_text(json.dumps({"weight_map": {"a": "model.safetensors", "b": name}}))
        with pytest.raises(ValueError, match=f"index.json names .'{name}'., which are not files of its folder"):
            torch_swin.from_huggingface(folder, "small", **NORMALISATION)


def test_pickled_weights_are_read_as_arrays_only(theirs):
    torch = pytest.importorskip("torch")
    folder = theirs()
    expected = torch_swin.from_huggingface(folder, "small", **NORMALISATION)
    weights = huggingface.read(folder, ("swin",)).weights
    (folder / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"lacks \['model.safetensors'\]"):
        torch_swin.from_huggingface(folder, "small", **NORMALISATION)
    tensors = {name: torch.from_numpy(array) for name, array in weights.items()}
    # Files written before transformers 5 carry the index of the windows too.
    tensors["encoder.layers.0.blocks.0.attention.self.relative_position_index"] = torch.zeros(9, 9, dtype=torch.int64)
    torch.save(tensors, folder / "pytorch_model.bin")
    jax.tree.map(np.testing.assert_array_equal, torch_swin.from_huggingface(folder, "small", **NORMALISATION), expected)
    torch.save({"code": pytest.importorskip}, folder / "pytorch_model.bin")
    with pytest.raises(ValueError, match="wants to run _pytest.*is not let.*; download") as refused:
        torch_swin.from_huggingface(folder, "small", **NORMALISATION)
    assert "weights_only" not in str(refused.value)


def test_an_encoder_within_a_larger_model_is_found():
    params = our_encoder(channels=3)
    weights, _ = torch_swin.to_huggingface(params, variant="small", image_px=60)
    larger = {f"image_encoder.image_encoder.{name}": array for name, array in weights.items()}
    larger["text_encoder.layernorm.weight"] = np.ones(3)
    same = {"their_mean": (MEAN,) * 3, "their_std": (STD,) * 3}
    back = torch_swin.from_state_dict(larger, "small", **NORMALISATION, **same, channels=3)
    jax.tree.map(np.testing.assert_array_equal, back, params)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda w: w.pop("encoder.layers.1.blocks.3.output.dense.bias"), "blocks.3.output.dense.bias', which is not"),
        (lambda w: w.pop("embeddings.patch_embeddings.projection.weight"), "projection.weight', which is not among"),
        (lambda w: w.update({"layernorm.bias": np.ones(3)}), r"layernorm.bias has the shape \(3,\); .* \(32,\)"),
        (lambda w: w.update({"encoder.layers.2.x": np.ones(3)}), r"no place for 1 of the arrays.*layers.2.x"),
    ],
)
def test_arrays_that_do_not_fit_are_named(change, sentence):
    weights, _ = torch_swin.to_huggingface(our_encoder(), variant="small", image_px=60)
    change(weights)
    with pytest.raises(ValueError, match=sentence):
        torch_swin.from_state_dict(weights, "small", **NORMALISATION, **THEIR)


def test_other_architectures_are_named(theirs, tmp_path):
    with pytest.raises(ValueError, match=r"no T: embed_dim: ours 96, pre-trained 16; .*There are .*T, small"):
        torch_swin.from_huggingface(theirs(), "T", **NORMALISATION)
    with pytest.raises(ValueError, match="use_absolute_embeddings: ours False, pre-trained True"):
        torch_swin.from_huggingface(theirs(use_absolute_embeddings=True), "small", **NORMALISATION)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "swinv2"}))
    with pytest.raises(ValueError, match="type 'swinv2'; expected swin"):
        torch_swin.from_huggingface(tmp_path, "small", **NORMALISATION)


def test_export_refuses_what_does_not_fit():
    params = our_encoder()
    with pytest.raises(ValueError, match="cannot be written with channels=4"):
        torch_swin.to_huggingface(params, variant="small", image_px=60, channels=4)
    with pytest.raises(ValueError, match="no Swin swin_test: .*Give the encoder's own subtree"):
        torch_swin.to_huggingface(params, variant="swin_test", image_px=60)
    with pytest.raises(ValueError, match="Give the encoder's own subtree"):
        torch_swin.to_huggingface({"encoder": params}, variant="small", image_px=60)


def test_half_precision_weights_are_read(theirs):
    """float16 files are common; bfloat16 ones are NumPy arrays too, through ml_dtypes."""
    weights, _ = torch_swin.to_huggingface(our_encoder(channels=3), variant="small", image_px=60)
    halves = {name: np.asarray(array, jnp.bfloat16) for name, array in weights.items()}
    params = torch_swin.from_state_dict(halves, "small", **NORMALISATION, **THEIR)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {np.dtype(np.float32)}
