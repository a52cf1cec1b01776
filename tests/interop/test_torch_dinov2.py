"""Features of our ViT and of transformers' Dinov2Model, with and without registers, are the same numbers, both ways."""

import json
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from cxrjax import initial, methods
from cxrjax.interop import huggingface, torch_dinov2
from cxrjax.models import vit
from tests import runs
from tests.interop.test_torch_vit import MEAN, STD, THEIR_MEAN, THEIR_STD, TOLERANCE, pictures

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
SIZE = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 32, "patch_size": 8}


def theirs(folder, registers, swiglu):
    """Writes a random model of 32 px pictures; returns it."""
    torch.manual_seed(0)
    kind = "Dinov2WithRegisters" if registers else "Dinov2"
    extra = {"num_register_tokens": registers} if registers else {}
    config = getattr(transformers, f"{kind}Config")(**SIZE, use_swiglu_ffn=swiglu, **extra)
    model = getattr(transformers, f"{kind}Model")(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    normalisation = {"image_mean": THEIR_MEAN, "image_std": THEIR_STD}
    (folder / "preprocessor_config.json").write_text(json.dumps(normalisation))
    return model


def their_tokens(model, images, mask=None, mean=THEIR_MEAN, std=THEIR_STD):
    """[CLS] and patches b 1+n d of grey pictures."""
    x = (np.broadcast_to(images, (*images.shape[:3], 3)) / np.float32(255) - np.asarray(mean)) / np.asarray(std)
    options = {} if mask is None else {"bool_masked_pos": torch.from_numpy(mask)}
    with torch.inference_mode():
        out = model(torch.from_numpy(x.transpose(0, 3, 1, 2)).float(), **options).last_hidden_state.numpy()
    registers = getattr(model.config, "num_register_tokens", 0)
    return np.concatenate([out[:, :1], out[:, 1 + registers :]], axis=1)


def our_tokens(model, params, images, mask=None):
    out = jax.jit(model.apply)({"params": params}, (images / np.float32(255) - MEAN) / STD, mask=mask)
    return np.concatenate([out["cls"][:, None], out["patches"]], axis=1)


@pytest.mark.parametrize(("registers", "swiglu"), [(0, False), (3, True)])
def test_features_are_dinov2s(registers, swiglu, tmp_path):
    """Whole, with patches hidden, on finer and coarser grids, and written and read once more."""
    model = theirs(tmp_path / "theirs", registers, swiglu)
    pretrained = huggingface.read(tmp_path / "theirs", torch_dinov2.MODEL_TYPES)
    params = torch_dinov2.from_huggingface(pretrained, image_px=32, mean=MEAN, std=STD)
    ours = vit.ViT("test", 8, 32, **torch_dinov2.options(pretrained.config))
    shapes = jax.eval_shape(ours.init, jax.random.key(0), np.zeros((1, 32, 32, 1)))["params"]
    assert jax.tree.map(np.shape, params) == jax.tree.map(np.shape, shapes)

    mask = np.random.default_rng(0).random((3, 16)) < 0.4
    for px, hidden in ((32, None), (32, mask), (48, None), (16, None)):
        found, expected = our_tokens(ours, params, pictures(px), hidden), their_tokens(model, pictures(px), hidden)
        np.testing.assert_allclose(found, expected, atol=TOLERANCE, err_msg=f"{px} px")

    plain = {name: shape for name, shape in shapes.items() if name not in ("cls_pos", "mask_token")}
    started = torch_dinov2.load_into(plain, pretrained, heads=2, image_px=32, mean=MEAN, std=STD)
    folded = our_tokens(ours.clone(cls_position=False, mask_token=False), started, pictures())
    np.testing.assert_allclose(folded, our_tokens(ours, params, pictures()), atol=TOLERANCE)

    weights, config = torch_dinov2.to_huggingface(params, heads=2, patch_px=8, image_px=32, model={})
    huggingface.write(tmp_path / "ours", weights, config, MEAN, STD)
    again = getattr(transformers, config["architectures"][0]).from_pretrained(tmp_path / "ours").eval()
    written = their_tokens(again, pictures(), mask, (MEAN,) * 3, (STD,) * 3)
    np.testing.assert_allclose(written, our_tokens(ours, params, pictures(), mask), atol=TOLERANCE)


def test_what_is_no_dinov2_is_refused(tmp_path):
    theirs(tmp_path, 0, False)
    pretrained = huggingface.read(tmp_path, torch_dinov2.MODEL_TYPES)
    weights = dict(pretrained.weights)
    del weights["encoder.layer.1.layer_scale2.lambda1"]
    with pytest.raises(ValueError, match="no array 'encoder.layer.1.layer_scale2.lambda1'"):
        torch_dinov2.from_huggingface(pretrained._replace(weights=weights), image_px=32, mean=MEAN, std=STD)
    extra = pretrained._replace(weights={**pretrained.weights, "embeddings.other": np.zeros(3)})
    with pytest.raises(ValueError, match="1 arrays that our ViT has no place for, such as .'embeddings.other'"):
        torch_dinov2.from_huggingface(extra, image_px=32, mean=MEAN, std=STD)
    plain = vit.ViT("test", 8, 32)
    params = jax.jit(plain.init)(jax.random.key(0), np.zeros((1, 32, 32, 1)))["params"]
    with pytest.raises(ValueError, match="no DINOv2: .*layer_scale1.* missing"):
        torch_dinov2.to_huggingface(params, heads=2, patch_px=8, image_px=32, model={})


def test_a_run_starts_from_it(tmp_path):
    """Every leaf of the encoder of a method that has the folder's kind of ViT."""
    theirs(tmp_path, 0, False)
    config = runs.config("dinov2", init_from=str(tmp_path), model__patch_px=8, model__layer_scale=1.0)
    params, state = jax.eval_shape(methods.make(config).init, jax.random.key(0), None)
    found = initial._named_encoders(config, SimpleNamespace(params=params, state=state))["encoder"]
    assert jax.tree.map(np.shape, found) == jax.tree.map(np.shape, params["encoder"])
    config.model.layer_scale = None
    plain, state = jax.eval_shape(methods.make(config).init, jax.random.key(0), None)
    with pytest.raises(ValueError, match="blocks/layer_scale1/scale: ours absent"):
        initial._named_encoders(config, SimpleNamespace(params=plain, state=state))
