"""An exported run loads in transformers, says what it is, and never replaces what it should not."""

import json

import cv2
import jax
import numpy as np
import pytest

from cxrjax import export, exported, methods, model_card, trained
from cxrjax.input import crops
from cxrjax.interop import families, fitting, torch_resnet
from cxrjax.text import tokenizer
from tests import runs


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "spcl"
    runs.write(folder, runs.config())
    results = folder / "evals" / "phantom_probe" / "6" / "results.json"
    results.parent.mkdir(parents=True)
    interval = {"value": 0.8123, "low": 0.7, "high": 0.9, "n": 321}
    results.write_text(json.dumps({"entry": {"set": "phantom_smoke"}, "metrics": {"auroc/mean": interval}}))
    return folder


@pytest.mark.parametrize(("key", "word"), [("pool", "attention"), ("pool", "without_cls"), ("positions", "rope")])
def test_what_no_vit_of_hugging_face_has_is_refused(tmp_path, key, word):
    runs.write(tmp_path / "run", runs.config("simclr", **{f"model__{key}": word}))
    with pytest.raises(
        ValueError, match=f"The encoder has model.{key}='{word}', which no ViT of Hugging Face has.*cxrjax.embed"
    ):
        export.export(tmp_path / "run", tmp_path / "model")


def test_a_dinov2_of_no_squares_leaves_for_timm_alone(tmp_path):
    runs.write(tmp_path / "run", runs.config("dinov2", model__image_px=(48, 32), model__layer_scale=1.0))
    with pytest.raises(ValueError, match="DINOv2 of pictures of 48 x 32 px.*take --form timm"):
        export.export(tmp_path / "run", tmp_path / "model")
    assert export.export(tmp_path / "run", tmp_path / "model", form="timm").difference < 2e-5
    assert json.loads((tmp_path / "model" / "config.json").read_text())["pretrained_cfg"]["input_size"] == [3, 48, 32]


def test_gates_are_not_left_out_unasked(tmp_path):
    """With or without PyTorch to compare with: the trunk alone is another encoder."""
    for strip in (True, False):
        runs.write(tmp_path / f"{strip}", runs.config("mlvicx", strip_gates=strip))
        export.encoder_weights(trained.load(tmp_path / "True"))
    with pytest.raises(ValueError, match="encodes through the gates .* --config.strip_gates=True"):
        export.encoder_weights(trained.load(tmp_path / "False"))


@pytest.fixture
def without_torch(monkeypatch):
    monkeypatch.setattr(export, "can_compare", lambda: False)


def test_features_are_those_of_the_method(workdir, tmp_path, capsys):
    transformers, torch = pytest.importorskip("transformers"), pytest.importorskip("torch")
    assert export.main(["--checkpoint", str(workdir), "--output", str(tmp_path / "model")]) == 0
    assert "Largest difference between our features and those of transformers" in capsys.readouterr().out
    assert "differ by at most" in (tmp_path / "model" / "README.md").read_text()

    images = np.random.default_rng(3).integers(0, 256, (2, 32, 32, 1), dtype=np.uint8)
    params = runs.write(tmp_path / "same", runs.config())
    ours = jax.jit(methods.make(runs.config()).encode)(params, {}, images)
    model = transformers.ViTModel.from_pretrained(tmp_path / "model", add_pooling_layer=False).eval()
    x = torch.from_numpy(np.repeat((images / 255 - 0.4978) / 0.2449, 3, axis=-1).transpose(0, 3, 1, 2)).float()
    with torch.inference_mode():
        theirs = model(x).last_hidden_state.numpy()
    np.testing.assert_allclose(ours["pooled"], theirs[:, 0], atol=2e-5)
    np.testing.assert_allclose(ours["patches"], theirs[:, 1:].reshape(2, 8, 8, -1), atol=2e-5)


@pytest.mark.parametrize("changes", [{"model__pool": "mean", "cls_shortcut": False, "model__positions": "learned"}])
def test_other_poolings_and_positions_are_compared_too(tmp_path, changes):
    """Of pictures that are no squares, which the folder says and which comes back."""
    pytest.importorskip("transformers")
    runs.write(tmp_path / "run", runs.config(**changes, model__image_px=(48, 32)))
    assert export.export(tmp_path / "run", tmp_path / "model").difference < 2e-5
    card = (tmp_path / "model" / "README.md").read_text()
    assert "tokens[:, 1:].mean(dim=1)" in card and "# 12 x 8 patches" in card and "covers 48 x 32 px" in card
    again = families.read(tmp_path / "model")
    assert (families.model_of(again)["image_px"], again.sees) == ((48, 32), "image")
    assert exported.describe(tmp_path / "model")[0].count("pictures of 48 x 32 px, fitted as 'image'") == 1


@pytest.mark.parametrize("frozen_layers", [0, 1])
def test_the_text_encoder_comes_along(frozen_layers, tmp_path):
    transformers = pytest.importorskip("transformers")
    runs.write(tmp_path / "run", runs.config("convirt", text__frozen_layers=frozen_layers))
    with pytest.raises(ValueError, match="There is no vocabulary .*; give a BERT vocab.txt"):
        export.export(tmp_path / "run", tmp_path / "model")
    assert not (tmp_path / "model").exists()
    words = tokenizer.train(["Clear lungs. No pleural effusion."] * 2)
    tokenizer.save(words, tmp_path / "run")
    for _ in range(2):
        export.export(tmp_path / "run", tmp_path / "model", overwrite=True)
    assert "BertModel.from_pretrained" in (tmp_path / "model" / "README.md").read_text()
    theirs = transformers.BertModel.from_pretrained(tmp_path / "model" / "text", add_pooling_layer=False)
    learned = trained.load(tmp_path / "run")
    table = {**learned.params["text"], **learned.state["frozen"]["text"]}["embeddings"]["word"]
    np.testing.assert_array_equal(theirs.embeddings.word_embeddings.weight.detach().numpy(), table)
    assert transformers.BertTokenizer.from_pretrained(tmp_path / "model" / "text").tokenize("no lungs")


@pytest.mark.parametrize("name", ["dino", "moco_v3"])  # encodes with its teacher; keeps a part of the encoder frozen
def test_what_is_exported_is_what_encodes(name, tmp_path):
    pytest.importorskip("transformers")
    runs.write(tmp_path / "run", runs.config(name))
    assert export.export(tmp_path / "run", tmp_path / "model").difference < 2e-5


def test_resnets_load_in_one_line(tmp_path, capsys):
    """Running statistics travel with the weights; no array is left to chance by the loader."""
    transformers, torch = pytest.importorskip("transformers"), pytest.importorskip("torch")
    runs.write(tmp_path / "run", runs.config("simclr", model__variant="resnet_test"))
    assert export.main(["--checkpoint", str(tmp_path / "run"), "--output", str(tmp_path / "model")]) == 0
    assert "Load it with ResNetModel.from_pretrained(folder)." in capsys.readouterr().out
    card = (tmp_path / "model" / "README.md").read_text()
    for part in (
        "simclr, resnet_test, phantom_smoke",
        "(ResNet, basic blocks 1-1-1-1, width 128",
        "its first convolution",
    ):
        assert part in card

    run = trained.load(tmp_path / "run")
    images = np.random.default_rng(3).integers(0, 256, (2, 32, 32, 1), dtype=np.uint8)
    ours = jax.jit(run.method.encode)(run.params, run.state, images)
    model, report = transformers.ResNetModel.from_pretrained(tmp_path / "model", output_loading_info=True)
    assert not any(report.values())
    x = torch.from_numpy(np.repeat((images / 255 - 0.4978) / 0.2449, 3, axis=-1).transpose(0, 3, 1, 2)).float()
    with torch.inference_mode():
        theirs = model.eval()(x)
    np.testing.assert_allclose(ours["pooled"], theirs.pooler_output.flatten(1), atol=2e-5)
    np.testing.assert_allclose(ours["patches"], theirs.last_hidden_state.permute(0, 2, 3, 1), atol=2e-5)


def test_a_method_that_enlarges_its_pictures_is_exported_for_the_larger_ones(tmp_path):
    pytest.importorskip("transformers")
    settings = runs.config("gloria", "mimic_cxr,smoke", regions__enlarge_px=48)
    runs.write(tmp_path / "run", settings)
    tokenizer.save(tokenizer.train(["a small heart"], 60), tmp_path / "run")
    assert export.export(tmp_path / "run", tmp_path / "model").difference < 1e-4
    assert json.loads((tmp_path / "model" / "config.json").read_text())["image_size"] == 48
    assert "first brought to 32 px and then enlarged" in (tmp_path / "model" / "README.md").read_text()


def test_what_a_method_keeps_frozen_is_exported_too(tmp_path):
    pytest.importorskip("transformers")
    runs.write(tmp_path / "run", runs.config("moco_v3"))
    assert export.export(tmp_path / "run", tmp_path / "model").difference < 2e-5


def test_running_statistics_are_part_of_the_comparison(tmp_path, monkeypatch):
    """An export that forgot them, as if none had ever been gathered, is refused."""
    pytest.importorskip("transformers")
    runs.write(tmp_path / "run", runs.config("simclr", model__variant="resnet_test"))
    write = torch_resnet.to_huggingface

    def forgetful(params, batch_stats, **options):
        fresh = jax.tree.map_with_path(lambda path, leaf: 0 * leaf + (path[-1].key == "var"), batch_stats)
        return write(params, fresh, **options)

    monkeypatch.setattr(torch_resnet, "to_huggingface", forgetful)
    with pytest.raises(ValueError, match="features differ from ours by up to .* nothing was written"):
        export.export(tmp_path / "run", tmp_path / "model")


def test_tolerance_is_relative_to_large_features_only(workdir, tmp_path, monkeypatch):
    """A ResNet's features have no scale: 1e-3 is rounding beside 100, and a mistake beside 1."""
    monkeypatch.setattr(export, "can_compare", lambda: True)
    monkeypatch.setattr(export, "compare", lambda model, folder: export.Parity(1e-3, 1.0, 5))
    with pytest.raises(ValueError, match="by up to 0.001, more than 0.0001;"):
        export.export(workdir, tmp_path / "model")
    monkeypatch.setattr(export, "compare", lambda model, folder: export.Parity(1e-3, 100.0, 5))
    assert export.export(workdir, tmp_path / "model").difference == 1e-3


def test_nothing_is_written_when_features_differ(workdir, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(export, "can_compare", lambda: True)
    monkeypatch.setattr(export, "compare", lambda model, folder: export.Parity(float("nan"), 1.0, 5))
    assert export.main(["--checkpoint", str(workdir), "--output", str(tmp_path / "model")]) == 2
    assert "differ from ours by up to nan" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_card_tells_what_was_done_and_measured(workdir, tmp_path, without_torch, capsys):
    assert export.main(["--checkpoint", str(workdir), "--output", str(tmp_path / "model")]) == 0
    assert "Parity was not measured" in capsys.readouterr().out
    card = (tmp_path / "model" / "README.md").read_text()
    for part in (
        "arXiv 2603.07113",
        "spcl, 6 steps of 16 on phantom_smoke (train split, PA,AP, 100 %).",
        "seen the pictures of the sets named above and no others: other",
        "The phantoms are computed pictures",
        "| phantom_probe | phantom_smoke | auroc/mean | 0.8123 | 0.7000 to 0.9000 | 321 |",
        "subtract 0.4978, divide by 0.2449",
        "Not measured: torch and transformers were not installed",
        "add_pooling_layer=False",
        '"method": "spcl"',
        "no\nmedical device",
    ):
        assert part in card
    assert "license" not in card.split("---")[1]
    assert (tmp_path / "model" / "model.safetensors").stat().st_mode & 0o044 == 0o044
    assert sorted(file.name for file in (tmp_path / "model").iterdir()) == [
        "README.md",
        "config.json",
        "lineage.json",
        "model.safetensors",
        "preprocessor_config.json",
    ]


def test_card_tells_where_the_run_started(tmp_path, without_torch):
    """Any number of starts, also over an export, and what a start has seen counts as seen."""
    runs.write(tmp_path / "first", runs.config(data__sets="phantom"), step=600)
    second = runs.config(data__sets="clinic", init_from=str(tmp_path / "first"))
    runs.write(tmp_path / "second", second, step=4)
    export.export(tmp_path / "second", tmp_path / "exported")
    third = runs.config(data__sets="other", init_from=str(tmp_path / "exported"))
    runs.write(tmp_path / "third", third, step=5)
    export.export(tmp_path / "third", tmp_path / "model")
    found = json.loads((tmp_path / "model" / "lineage.json").read_text())
    assert [(one["sets"], one["steps"]) for one in found] == [(["phantom"], 600), (["clinic"], 4), (["other"], 5)]
    card = (tmp_path / "model" / "README.md").read_text()
    assert "1. spcl, 600 steps of 16 on phantom (" in card and "3. spcl, 5 steps of 16 on other (" in card
    assert json.dumps(found, indent=2) in card and "The phantoms are computed pictures" in card


def test_card_says_what_is_not_known_of_a_start(tmp_path, without_torch):
    """A start that is gone; and what was noted when the run began counts, not what the start has become since."""
    runs.write(tmp_path / "run", runs.config(data__sets="clinic", init_from=str(tmp_path / "gone")), step=4)
    export.export(tmp_path / "run", tmp_path / "model")
    card = (tmp_path / "model" / "README.md").read_text()
    assert "a run that was no longer there at" in card and "The phantoms" not in card
    assert "It has seen the sets named above and what is not known of" in card and "and no others" not in card
    (tmp_path / "run" / "lineage.json").write_text(
        json.dumps([{"part": "encoder", "kind": "hugging_face", "place": "x"}])
    )
    export.export(tmp_path / "run", tmp_path / "model", overwrite=True)
    assert "a Hugging Face model at x; what it was" in (tmp_path / "model" / "README.md").read_text()


def test_full_folder_is_only_replaced_on_request(workdir, tmp_path, without_torch, capsys):
    (tmp_path / "notes.txt").write_text("mine")
    arguments = ["--checkpoint", str(workdir), "--output", str(tmp_path)]
    assert export.main(arguments) == 2
    assert "not empty; give another --output, or --overwrite" in capsys.readouterr().err
    assert [file.name for file in tmp_path.iterdir()] == ["notes.txt"]
    (tmp_path / export.TEXT).mkdir()  # of an earlier run that read reports
    assert export.main([*arguments, "--overwrite"]) == 0
    assert (tmp_path / "notes.txt").read_text() == "mine" and (tmp_path / "model.safetensors").exists()
    assert not (tmp_path / export.TEXT).exists()


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [({"standardise__mode": "per_image"}, "only 'fixed' can be exported"), ({}, "no step 7 in")],
)
def test_what_cannot_be_exported_is_explained(tmp_path, without_torch, capsys, changes, sentence):
    runs.write(tmp_path / "run", runs.config(**changes))
    arguments = ["--checkpoint", str(tmp_path / "run"), "--output", str(tmp_path / "model")]
    assert export.main(arguments if changes else [*arguments, "--step", "7"]) == 2
    assert sentence in capsys.readouterr().err
    assert not (tmp_path / "model").exists()


def test_run_without_its_config_is_explained(tmp_path, capsys):
    runs.write(tmp_path / "run", runs.config())
    (tmp_path / "run" / "config.json").unlink()
    assert export.main(["--checkpoint", str(tmp_path / "run"), "--output", str(tmp_path / "model")]) == 2
    assert "There is no config.json beside" in capsys.readouterr().err


def test_bfloat16_runs_are_exported_in_float32(tmp_path):
    pytest.importorskip("transformers")
    runs.write(tmp_path / "run", runs.config(model__dtype="bfloat16"))
    assert export.export(tmp_path / "run", tmp_path / "model").difference < 2e-5
    assert '"dtype": "bfloat16"' in (tmp_path / "model" / "README.md").read_text()


def test_names_on_the_card_are_no_html():
    settings = runs.config(data__sets="<script>x|y")
    assert model_card._title(settings, "ViT-S") == r"spcl, ViT-S, &lt;script&gt;x\|y"


@pytest.mark.parametrize("px", [32, (40, 24)])
@pytest.mark.parametrize("sees", ["image", "image40", "whole"])
@pytest.mark.parametrize("shape", [(90, 70), (64, 203), (20, 25), (32, 32), (33, 31)])
def test_lines_of_the_card_give_our_pixels(sees, shape, px):
    grey = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    names = {"grey": grey, "cv2": cv2}
    exec(fitting.lines(sees, px), names)
    np.testing.assert_array_equal(names["grey"], crops.fit_as(grey, px, sees))
