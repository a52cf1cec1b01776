"""Heads of masks and boxes, and MLVICX's gates, leave as torch files that give our masks, boxes and features."""

import re
from pathlib import Path

import jax
import numpy as np
import pytest

from cxrjax import export, exported, parity, trained
from cxrjax.interop import head_files
from tests import runs

DINOV2 = {"layer_scale": 1.0, "positions": "learned", "cls_position": True, "registers": 2}


def settings(method, head, model):
    found = runs.config(method, head__kind=head) if head else runs.config(method)
    found.model.update(model)
    return found


def both(settings, folder, px=32):
    """The exported folder's module, its pixels, the run, and pictures that none of both has seen."""
    runs.write(folder / "run", settings)
    export.export(folder / "run", folder / "model")
    name = head_files.CLASSES[settings.method]
    theirs = getattr(parity.modeling(folder / "model"), name)(folder / "model").eval()
    images = np.random.default_rng(3).integers(0, 256, (2, px, px, 1), dtype=np.uint8)
    return theirs, parity._pixels(folder / "model", images[..., 0]), trained.load(folder / "run"), images


@pytest.mark.slow
@pytest.mark.parametrize(
    ("head", "model"),
    [
        ("unetr", DINOV2),
        ("unetr", {}),
        ("setr_pup", {}),
        ("upernet", {}),
        ("unet", {"variant": "resnet_test"}),
    ],
)
def test_masks_are_those_of_the_method(head, model, tmp_path):
    torch = pytest.importorskip("torch")
    pytest.importorskip("transformers")
    theirs, pixels, run, images = both(settings("segment", head, model), tmp_path)
    ours = jax.jit(run.method.encode)(run.params, run.state, images)["mask_logits"][..., 0]
    with torch.inference_mode():
        found = theirs(pixels).numpy()
    np.testing.assert_allclose(ours, found, atol=1e-4 * max(1, np.abs(found).max()))
    assert found.std() > 0.01


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "score"),
    [({}, "product"), ({"variant": "resnet_test"}, "product"), ({"variant": "resnet_test"}, "object")],
)
def test_boxes_are_those_of_the_method(model, score, tmp_path):
    """Down to what is suppressed."""
    torch = pytest.importorskip("torch")
    pytest.importorskip("transformers")
    config = settings("detect", "", model)
    config.head.score, config.answer.overlap, config.answer.most = score, 0.3, 20
    theirs, pixels, run, images = both(config, tmp_path)
    ours = jax.jit(run.method.encode)(run.params, run.state, images)
    with torch.inference_mode():
        found = theirs(pixels)
    for i, one in enumerate(found):
        known = np.asarray(ours["classes"][i]) >= 0
        assert known.sum() == len(one["labels"]) > 0
        np.testing.assert_array_equal(np.asarray(ours["classes"][i])[known], one["labels"])
        np.testing.assert_allclose(np.asarray(ours["boxes"][i])[known], one["boxes"], atol=1e-4)
        np.testing.assert_allclose(np.asarray(ours["scores"][i])[known], one["scores"], atol=1e-4)
    assert theirs.names == list(run.method.answers.names)
    card = (tmp_path / "model" / "README.md").read_text()
    assert "from modeling import Detector" in card and "Stretch the picture to 32 x 32 px." in card


def test_features_behind_gates_are_those_of_the_method(tmp_path):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    theirs, pixels, run, images = both(runs.config("mlvicx", strip_gates=False), tmp_path)
    ours = jax.jit(run.method.encode)(run.params, run.state, images)
    with torch.inference_mode():
        pooled, patches = (array.numpy() for array in theirs(pixels))
    for one, other in ((ours["pooled"], pooled), (ours["patches"], patches)):
        np.testing.assert_allclose(one, other, atol=1e-4 * max(1, np.abs(other).max()))
    with pytest.raises(ValueError, match="mlvicx"):
        transformers.AutoModel.from_pretrained(tmp_path / "model")
    assert "from modeling import Gated" in (tmp_path / "model" / "README.md").read_text()
    assert "gates of MLVICX" in exported.describe(tmp_path / "model")[0]


def test_code_is_short_and_loads_no_pickle():
    for name in ("segment", "dense", "yolo", "gates"):
        code = Path(head_files.__file__).with_name(f"{name}_modeling.py").read_text()
        assert len(code.splitlines()) <= 95
        assert not re.search(r"torch\.load|pickle|cxrjax", code)
