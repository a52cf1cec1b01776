"""A run's trained head leaves with its encoder, as the classifier that Hugging Face has for it."""

import json

import numpy as np
import pytest

from cxrjax import export, trained
from cxrjax.interop import families
from tests import runs

DINOV2 = {"layer_scale": 1.0, "positions": "learned", "cls_position": True, "registers": 2}


@pytest.mark.parametrize(
    ("task", "model"),
    [
        ("multilabel", {"pool": "cls"}),
        ("multiclass", {"pool": "mean", **DINOV2}),
        ("multiclass", {"variant": "resnet_test"}),
    ],
)
def test_head_answers_in_pytorch_as_here(task, model, tmp_path):
    transformers, torch = pytest.importorskip("transformers"), pytest.importorskip("torch")
    settings = runs.config("supervised", task=task)
    settings.model.update(model)
    runs.write(tmp_path / "run", settings)
    assert export.export(tmp_path / "run", tmp_path / "model").difference < 2e-5

    run = trained.load(tmp_path / "run")
    images = np.random.default_rng(3).integers(0, 256, (2, 32, 32, 1), dtype=np.uint8)
    ours = run.method.encode(run.params, run.state, images)
    whole = transformers.AutoModelForImageClassification.from_pretrained(tmp_path / "model").eval()
    x = torch.from_numpy(np.repeat((images / 255 - 0.4978) / 0.2449, 3, axis=-1).transpose(0, 3, 1, 2)).float()
    with torch.inference_mode():
        np.testing.assert_allclose(ours["logits"], whole(x).logits, atol=2e-5)
    names = run.method.answers.names
    assert [whole.config.id2label[i] for i in range(len(names))] == list(names)
    assert whole.config.label2id == {name: i for i, name in enumerate(names)}
    assert whole.config.problem_type == {"multilabel": "multi", "multiclass": "single"}[task] + "_label_classification"

    card = (tmp_path / "model" / "README.md").read_text()
    assert "pipeline_tag: image-classification" in card
    assert ("logits.sigmoid()" if task == "multilabel" else "logits.softmax(dim=1)") in card
    assert ("tokens[:, 3:].mean(dim=1)" in card) == ("registers" in model)
    again = families.read(tmp_path / "model")
    assert "classifier 2" in families.unread(again) and families.model_of(again)["image_px"] == 32


def test_head_over_the_mean_of_a_plain_vit_stays_behind(tmp_path, monkeypatch):
    """Hugging Face's classifier reads [CLS], so this head in it would give other answers."""
    monkeypatch.setattr(export, "can_compare", lambda: False)
    runs.write(tmp_path / "run", runs.config("supervised", model__pool="mean"))
    export.export(tmp_path / "run", tmp_path / "model")
    assert json.loads((tmp_path / "model" / "config.json").read_text())["architectures"] == ["ViTModel"]
    assert "head, which reads the mean of the patches, is left out" in (tmp_path / "model" / "README.md").read_text()
