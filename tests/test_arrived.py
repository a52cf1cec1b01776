"""An encoder that others trained takes the place of a run: judged, embedded, exported again, by the same words."""

import json

import cv2
import jax
import numpy as np
import pandas
import pytest

import cxrjax
from cxrjax import config as shared
from cxrjax import embed, evaluate, export, lineage, trained
from cxrjax.interop import huggingface, preprocessing
from tests import runs

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
SIZE = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 32, "patch_size": 8}
RAD_DINO = {
    "image_processor_type": "BitImageProcessor",
    "do_resize": True,
    "size": {"shortest_edge": 32},
    "do_center_crop": True,
    "crop_size": {"height": 32, "width": 32},
    "image_mean": [0.5307] * 3,
    "image_std": [0.2583] * 3,
}
"""The processor of RAD-DINO, of smaller pictures."""
CROP = {"do_center_crop": True, "crop_size": {"height": 224, "width": 224}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A DINOv2 of the shape of RAD-DINO's folder, with random weights."""
    place = tmp_path_factory.mktemp("hub") / "rad-dino"
    torch.manual_seed(0)
    model = transformers.Dinov2Model(transformers.Dinov2Config(**SIZE)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(place)
    (place / "preprocessor_config.json").write_text(json.dumps(RAD_DINO))
    return place


@pytest.fixture(scope="module")
def encoder(folder):
    return cxrjax.load(folder)


def test_vectors_and_patches_are_those_of_the_source(folder, encoder):
    """Of a picture that is not square, through the processor of the folder; its pixels are those of the size it wants,
    so that no filter is compared."""
    picture = np.random.default_rng(0).integers(0, 256, (32, 48), dtype=np.uint8)
    model = transformers.AutoModel.from_pretrained(folder).eval()
    inputs = transformers.AutoImageProcessor.from_pretrained(folder)(
        np.repeat(picture[..., None], 3, -1), return_tensors="pt"
    )
    with torch.inference_mode():
        theirs = model(**inputs).last_hidden_state.numpy()
    np.testing.assert_allclose(encoder.embed(picture), theirs[:, 0], atol=1e-4)
    np.testing.assert_allclose(encoder.embed(picture, patches=True), theirs[:, 1:].reshape(1, 4, 4, 64), atol=1e-4)
    assert repr(encoder) == f"<cxrjax.Encoder: test from {folder}, sees 32 px>"


def test_a_folder_of_pictures_is_embedded(folder, encoder, tmp_path):
    picture = np.random.default_rng(0).integers(0, 256, (40, 48), dtype=np.uint8)
    cv2.imwrite(str(tmp_path / "a.png"), picture)
    embed.embed(folder, [tmp_path / "a.png"], tmp_path / "found.parquet")
    found = pandas.read_parquet(tmp_path / "found.parquet")
    np.testing.assert_allclose(found["embedding"][0], encoder.embed(picture)[0], atol=1e-5)


def test_what_is_exported_again_comes_back_bit_for_bit(folder, encoder, tmp_path):
    parity = export.export(folder, tmp_path / "again")
    assert parity.difference < 1e-4
    again = trained.load(tmp_path / "again")
    jax.tree.map(np.testing.assert_array_equal, again.params, encoder.trained.params)
    assert again.config.standardise == encoder.trained.config.standardise
    card = (tmp_path / "again" / "README.md").read_text()
    assert "read and written again by cxrjax" in card and "rad-dino; what it was trained on is not known" in card


def test_it_is_judged_beside_its_untrained_self_and_pixels(folder, tmp_path, capsys, monkeypatch):
    """Results lie under its name; what was judged and how it sees pictures is kept beside them."""
    monkeypatch.chdir(tmp_path)
    config = runs.config("eval_probe", checkpoint=str(folder))
    asked = []

    def judge(encoder, entry, workdir, seed, trained_with):
        asked.append((encoder.name, workdir, encoder.sees, trained_with and list(shared.names(trained_with.data.sets))))
        raise RuntimeError("asked")

    monkeypatch.setattr(evaluate, "evaluate", judge)
    with pytest.raises(RuntimeError, match="asked"):
        evaluate.run(config)
    assert [(name, str(place), sees, sets) for name, place, sees, sets in asked] == [
        ("rad-dino", "runs/rad-dino", "image", [])
    ]
    kept = shared.read(tmp_path / "runs/rad-dino/config.json")
    assert (kept.method, kept.fit, kept.init_from) == ("arrived", "image", str(folder))
    assert lineage.unknown(lineage.whole(kept, tmp_path, 0)) == [str(folder)]
    (tmp_path / "runs/rad-dino/config.json").write_text("{}")
    with pytest.raises(ValueError, match="of another encoder than .*rad-dino: give the results another --workdir"):
        evaluate.run(config)


def test_it_cannot_be_trained_as_if_it_were_a_method(encoder):
    with pytest.raises(ValueError, match="is an encoder and no run: .* init_from of a config that trains"):
        encoder.trained.method.loss({}, {}, {}, None, 0)


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({}, (None, "image")),
        ({**CROP, "size": {"shortest_edge": 224}}, (224, "image")),
        ({**CROP, "size": {"shortest_edge": 256}}, (224, "image256")),
        ({**CROP, "size": 224, "crop_size": 224}, (224, "image")),
        ({"size": {"height": 384, "width": 384}}, (384, "whole")),
        ({"size": 224}, (224, "whole")),
        ({"size": {"height": 448, "width": 384}}, ((448, 384), "whole")),
        ({**CROP, "size": {"shortest_edge": 384}, "crop_size": {"height": 448, "width": 384}}, ((448, 384), "image")),
        ({**CROP, "size": 512, "crop_size": {"height": 448, "width": 384}}, ((448, 384), "image512")),
        ({"size": {"shortest_edge": 224}, "crop_pct": 0.875}, (224, "image256")),
        ({"size": {"shortest_edge": 384}, "crop_pct": 1.0}, (384, "whole")),
        ({"size": {"longest_edge": 512}, "do_pad": True}, (512, "padded")),
        ({"size": {"height": 384, "width": 384}, "do_resize": False}, (None, "image")),
    ],
)
def test_the_processor_says_how_pictures_are_fitted(keys, expected, tmp_path):
    (tmp_path / preprocessing.FILE).write_text(json.dumps({"image_mean": [0.5] * 3, "image_std": [0.5] * 3, **keys}))
    found = preprocessing.read(tmp_path, 3)
    assert (found.px, found.sees) == expected


def test_the_processor_of_pictures_may_stand_beside_that_of_texts(tmp_path):
    """As transformers 5 writes it."""
    both = {"processor_class": "CLIPProcessor", "image_processor": RAD_DINO}
    (tmp_path / preprocessing.OF_BOTH).write_text(json.dumps(both))
    found = preprocessing.read(tmp_path, 3)
    assert (found.mean[0], found.std[0], found.px, found.sees) == (0.5307, 0.2583, 32, "image")
    (tmp_path / preprocessing.OF_BOTH).write_text(json.dumps({"processor_class": "CLIPProcessor"}))
    with pytest.raises(ValueError, match="processor_config.json has no image_processor"):
        preprocessing.read(tmp_path, 3)


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"size": {"height": 224, "width": 0}}, "has size .* expected whole pixels, one number or height and width"),
        ({"size": {"height": 224}}, "has size .* expected whole pixels"),
        ({"size": {"shortest_edge": 200}, "crop_size": 224, "do_center_crop": True}, "out of pictures of 200 px"),
        ({"image_std": [0.0] * 3}, "deviations above 0"),
        ({"image_mean": [0.5]}, r"normalises 1 channel\(s\)"),
        ({"image_mean": None}, "has image_mean None and image_std .* expected numbers"),
    ],
)
def test_what_a_processor_does_that_is_not_done_here_is_said(keys, said, tmp_path):
    (tmp_path / preprocessing.FILE).write_text(json.dumps({"image_mean": [0.5] * 3, "image_std": [0.5] * 3, **keys}))
    with pytest.raises(ValueError, match=said):
        preprocessing.read(tmp_path, 3)


def test_one_number_is_that_of_all_channels(tmp_path):
    (tmp_path / preprocessing.FILE).write_text(json.dumps({"image_mean": 0.5, "image_std": [0.25] * 3}))
    assert preprocessing.read(tmp_path, 3)[:2] == ((0.5,) * 3, (0.25,) * 3)


def test_a_written_processor_fits_as_it_was_read(folder, tmp_path):
    weights, config = export.encoder_weights(trained.load(folder))
    for sees in ("image", "image40", "whole"):
        huggingface.write(tmp_path, weights, config, 0.5, 0.25, sees)
        found = preprocessing.read(tmp_path, 3)
        assert (found.px, found.sees) == (32, sees)
    with pytest.raises(ValueError, match="padded to a square"):
        huggingface.write(tmp_path, weights, config, 0.5, 0.25, "padded")
