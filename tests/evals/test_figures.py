"""Maps of words over a picture: with a model whose maps are known, and as a command on a run that was never trained."""

import json
from xml.etree import ElementTree

import cv2
import jax.numpy as jnp
import numpy as np
import pytest

from cxrjax import figures as command
from cxrjax import trained
from cxrjax.drawing import style
from cxrjax.evals import figures, patch_figures
from cxrjax.imaging import pixels
from cxrjax.input import converted_sets, crops, record_index
from cxrjax.methods.base import Joint
from cxrjax.text import tokenizer
from tests import runs

PX, GRID = 32, 4
PX_DRAWN = 320  # the 64 px of the small phantom, enlarged
VOCABULARY = tokenizer.Tokenizer((*tokenizer.SPECIAL, "bright", "dark", "##ness", "."))


def known_joint():
    """Patches are (brightness, darkness); "bright" and "dark" are the axes, and a sentence is its first word."""
    axes = {VOCABULARY.vocabulary.index("bright"): 0, VOCABULARY.vocabulary.index("dark"): 1}

    def tokens(text):
        ids, mask, word_index = VOCABULARY.encode(text, 8)
        return {"ids": ids, "text_mask": mask, "word_index": word_index}

    def image(params, state, images):
        patches = images.reshape(1, GRID, PX // GRID, GRID, PX // GRID).mean((2, 4)) / 255
        return {"pooled": jnp.zeros((1, 2)), "patches": jnp.stack([patches, 1 - patches], axis=-1)}

    def text(params, state, ids, mask, word_index):
        vectors = np.zeros((1, 6, 2))
        for piece, number in zip(ids[0], word_index[0], strict=True):
            if int(piece) in axes:
                vectors[0, number, axes[int(piece)]] = 1
        return {"pooled": vectors[:, 0], "words": vectors, "word_mask": np.arange(6)[None] <= word_index.max()}

    return Joint(image, text, tokens, lambda report: report["text"])


@pytest.fixture
def picture():
    """One bright patch, the third of the second row."""
    image = np.zeros((PX, PX), np.uint8)
    image[8:16, 16:24] = 255
    return image


@pytest.fixture
def maps(picture, monkeypatch):
    monkeypatch.setattr(figures.jax, "jit", lambda f: f)  # the known text model reads its numbers on the host
    return figures.look(known_joint(), {}, {}, picture, "bright darkness .", VOCABULARY)


def test_each_word_has_its_own_map(maps):
    bright = np.zeros((GRID, GRID))
    bright[1, 2] = 1
    assert maps.names == ("bright", "darkness", ".", "sentence")
    np.testing.assert_allclose(maps.cosines, [bright, 1 - bright, 0 * bright, bright])


def test_the_record_says_where_the_peak_is(maps):
    mask = np.zeros((PX, PX), bool)
    mask[:16] = True
    marks = figures.Marks((("nodule", (8.0, 16.0, 16.0, 24.0)), ("other", (16.0, 0.0, 32.0, 16.0))), {"mask": mask})
    found = figures.record(maps, marks, PX)
    by_name = {entry["name"]: entry for entry in found["maps"]}
    y, x = by_name["bright"]["peak"]
    assert 8 <= y < 16 and 16 <= x < 24
    assert by_name["bright"]["in_boxes"] == by_name["sentence"]["in_boxes"] == ["nodule"]
    assert by_name["bright"]["in_masks"] == ["mask"] and by_name["bright"]["highest"] == 1
    assert "nodule" not in by_name["darkness"]["in_boxes"]
    assert found["chance"] == {"boxes": (64 + 256) / 1024, "mask": 0.5}
    assert json.loads(json.dumps(found)) == found


def test_the_colours_follow_the_map(picture, maps):
    marks = figures.Marks((), {})
    drawn = figures.sheet(np.full_like(picture, 128), maps, marks)
    side, head, gap = PX * (figures.PANEL_PX // PX), style.line_px(figures.TYPE_PX), style.GAP_PX
    tall, wide = 2 * head + side + gap, side + gap
    assert drawn.shape == (2 * tall + gap, 4 * wide + gap, 3), "picture, sentence and three words in rows of four"
    panels = [drawn[r * tall + gap + head :, c * wide + gap :][:side, :side] for r in (0, 1) for c in range(4)]
    bars = [drawn[r * tall + gap + head + side :, c * wide + gap :][:head, :side] for r in (0, 1) for c in range(2)]
    assert [len(np.unique(bar.reshape(-1, 3), axis=0)) > 50 for bar in bars] == [False, True, True, False]
    step = side // GRID
    for number, peak in ((1, True), (2, True), (3, False)):
        inside = panels[number][step + 3 : step + 9, 2 * step + 3 : 2 * step + 9].mean((0, 1))
        outside = panels[number][3 * step + 20 : 4 * step - 5, 5 : step - 5].mean((0, 1))
        brighter = inside[1] > outside[1]  # viridis is yellow, which is green and red, at its top
        assert brighter == peak
    assert len(np.unique(panels[0].reshape(-1, 3), axis=0)) == 1, "the picture itself has no colours"
    assert (panels[5] == 255).all(), "no panel where there is no word"


def test_boxes_and_masks_move_with_the_picture():
    """40 × 80 px are halved to 20 × 40, and the middle 20 × 20 kept: 10 px go on either side."""
    image, finding = np.zeros((40, 80), np.uint8), np.zeros((40, 80), np.uint8)
    finding[10:20, 40:60] = 255
    encoded = {name: pixels.encode(x, "png") for name, x in (("image", image), ("finding_mask", finding))}
    boxes = {"label": ["nodule", "outside", "edge"], "bbox": [(0.25, 0.5, 0.5, 0.75), (0, 0, 1, 0.2), (0, 0, 1, 0.3)]}
    marks = figures.marks({**encoded, "mask": pixels.encode(image, "png"), "boxes": boxes}, 20)
    assert marks.boxes == (("nodule", (5, 10, 10, 20)), ("edge", (0, 0, 20, pytest.approx(2))))
    ys, xs = np.nonzero(marks.masks["finding_mask"])
    assert (ys.min(), ys.max() + 1, xs.min(), xs.max() + 1) == (5, 10, 10, 20)
    assert set(marks.masks) == {"finding_mask"}, "an empty mask outlines nothing"


@pytest.mark.parametrize(
    ("sees", "box", "pixels_of_mask"),
    [
        ("whole", (5, 10, 10, 15), (5, 10, 10, 15)),  # 40 x 80 px stretched to 20 x 20
        ("padded", (7.5, 10, 10, 15), (7, 10, 10, 15)),  # 10 x 20, under 5 rows of black; a pixel's half is rounded
        ("image30", (2.5, 10, 10, 20), (2, 10, 10, 20)),  # the middle of 30 x 60: 5 rows and 20 columns go
    ],
)
def test_marks_move_as_the_encoder_sees_the_picture(sees, box, pixels_of_mask):
    image, finding = np.zeros((40, 80), np.uint8), np.zeros((40, 80), np.uint8)
    finding[10:20, 40:60] = 255
    encoded = {name: pixels.encode(x, "png") for name, x in (("image", image), ("finding_mask", finding))}
    example = {**encoded, "boxes": {"label": ["nodule"], "bbox": [(0.25, 0.5, 0.5, 0.75)]}}
    marks = figures.marks(example, 20, sees)
    assert marks.boxes == (("nodule", box),)
    ys, xs = np.nonzero(marks.masks["finding_mask"])
    np.testing.assert_allclose((ys.min(), ys.max() + 1, xs.min(), xs.max() + 1), pixels_of_mask, atol=1)


def test_a_box_has_its_name(picture):
    marks = figures.Marks((("nodule", (16.0, 8.0, 24.0, 24.0)),), {})
    bare, framed = (figures.panel(np.full_like(picture, 100), "c", m) for m in (figures.Marks((), {}), marks))
    tag = framed[style.line_px(figures.TYPE_PX) + 160 - 20 :][:18, 80:120]  # above the box, ten times as large
    assert (tag == figures.BOX).all(axis=2).any() and (tag < 60).all(axis=2).any() and not (bare == framed).all()


def test_components_are_those_of_numpy_and_similarity_is_the_cosine():
    rng = np.random.default_rng(0)
    patches = rng.normal(size=(3, 4, 6)).astype(np.float32) * [9, 5, 3, 0.1, 0.1, 0.1]
    found, rows = patch_figures.components(patches), patches.reshape(12, 6)
    values, vectors = np.linalg.eigh(np.cov(rows.T))
    for number in range(3):
        along = (rows - rows.mean(axis=0)) @ vectors[:, -1 - number]
        assert abs(np.corrcoef(along, found[..., number].ravel())[0, 1]) > 0.98
    assert found.min() == 0 and found.max() == 1
    alike = patch_figures.similarity(patches, 2, 1)
    expected = patches[0, 3] @ patches[2, 1] / np.linalg.norm(patches[0, 3]) / np.linalg.norm(patches[2, 1])
    assert alike[2, 1] == pytest.approx(1) and alike[0, 3] == pytest.approx(expected)
    assert patch_figures.components(np.ones((2, 2, 2))).max() == 0, "patches that are all alike have no colour"


@pytest.fixture(scope="module")
def workdir(phantom_dir, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    vocabulary = str(converted_sets.open_set("phantom", phantom_dir).directory)
    runs.write(folder, runs.config("convirt", text__tokenizer=vocabulary, data__sets="phantom"))
    return folder


@pytest.fixture
def run(workdir, phantom_dir, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("CXRJAX_DATA", str(phantom_dir))

    def call(*arguments, sentence="No pleural effusion."):
        given = ["--checkpoint", str(workdir), "--set", "phantom", "--output", str(tmp_path), "--sentence", sentence]
        status = command.main([*given, *arguments])
        return status, capsys.readouterr()

    return call


def test_the_command_writes_a_picture_and_its_numbers(run, tmp_path):
    status, said = run()
    assert status == 0 and "1 pictures" not in said.err
    (path,) = tmp_path.glob("*.png")
    numbers = json.loads(path.with_suffix(".json").read_text())
    assert [entry["name"] for entry in numbers["maps"]] == ["no", "pleural", "effusion", ".", "sentence"]
    assert numbers["boxes"] and 0 < numbers["chance"]["boxes"] < 1, "the default picture has a box"
    assert numbers["grid"] == [8, 8] and numbers["method"] == "convirt" and numbers["image_id"] == path.stem
    cosines = np.array([entry["map"] for entry in numbers["maps"]])
    assert np.abs(cosines).max() <= 1 and np.ptp(cosines[0]) > 0
    assert cv2.imread(str(path)).shape[1] == 4 * (PX_DRAWN + style.GAP_PX) + style.GAP_PX


def test_named_pictures_come_from_any_split(run, tmp_path, phantom_dir):
    converted = converted_sets.open_set("phantom", phantom_dir)
    wanted = [record_index.index(converted, split)["image_id"].iloc[0] for split in ("train", "val")]
    status, said = run("--image-id", *wanted)
    assert status == 0 and said.out.count(".png") == 2
    assert {json.loads(path.read_text())["image_id"] for path in tmp_path.glob("*.json")} == set(wanted)


def test_mistakes_get_a_sentence(run, tmp_path_factory, phantom_dir, monkeypatch, capsys):
    for sentence in ("", "   "):
        status, said = run(sentence=sentence)
        assert status == 2 and "the sentence is empty" in said.err
    status, said = run("--image-id", "phantom-999999")
    assert status == 2 and "no picture 'phantom-999999'" in said.err and "one is '" in said.err
    images_only = tmp_path_factory.mktemp("images_only")
    runs.write(images_only, runs.config("spcl"))
    given = ["--checkpoint", str(images_only), "--set", "phantom", "--output", "x", "--sentence", "nodule"]
    assert command.main(given) == 2
    assert "trained with 'spcl', which reads no reports" in capsys.readouterr().err


def test_without_a_sentence_patches_are_drawn_and_without_a_set_the_curves(run, workdir, tmp_path, capsys):
    given = ["--checkpoint", str(workdir), "--output", str(tmp_path)]
    assert command.main([*given, "--set", "phantom", "--at", "0.1,0.9"]) == 0
    (path,) = tmp_path.glob("*-patches.png")
    assert cv2.imread(str(path)).shape[1] >= 3 * PX_DRAWN
    assert command.main(given) == 2 and "has no record of a step" in capsys.readouterr().err
    (workdir / "metrics.jsonl").write_text(
        '{"step": 2, "train/loss": 2.0, "train/monitor/feature_std": null, "eval/s/t/auroc": 0.5, "time/x": 3.0}\n'
        '{"step": 4, "train/loss": 1.0, "train/monitor/feature_std": 0.1, "eval/s/t/auroc/Mass": 0.5}\n'
    )
    assert command.main(given) == 0
    drawn = ElementTree.fromstring((tmp_path / "curves.svg").read_text())
    names = [text.text for text in drawn.iter("{http://www.w3.org/2000/svg}text") if text.get("font-weight")]
    assert names == ["train/loss", "train/monitor/feature_std", "eval/s/t/auroc"]
    assert command.main([*given, "--at", "0.1,0.9"]) == 2 and "give their --set" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        command.main([*given, "--set", "phantom", "--at", "3"])
    assert "'3' is no place in a picture" in capsys.readouterr().err


def test_patches_are_those_of_what_the_encoder_sees(workdir, phantom_dir, tmp_path, monkeypatch):
    """ "image48" at 32 px: the middle of the picture; and as much of it, twice as large, under the maps."""
    monkeypatch.setenv("CXRJAX_DATA", str(phantom_dir))
    loaded, seen, drawn = trained.load(workdir), [], []
    loaded = loaded._replace(method=loaded.method._replace(sees="image48"))
    monkeypatch.setattr(command.trained, "load", lambda *given: loaded)
    monkeypatch.setattr(command.patch_figures, "looker", lambda *given: lambda picture: (seen.append(picture), None))
    monkeypatch.setattr(command.patch_figures, "sheet", lambda large, *given: drawn.append(large) or large)
    (path,) = command.draw_patches(workdir, "phantom", tmp_path)
    converted = converted_sets.open_set("phantom", phantom_dir)
    (example,) = command._examples(converted, [path.stem.removesuffix("-patches")], "test")
    image = crops.decode(example["image"])
    np.testing.assert_array_equal(seen[0], crops.center_crop(crops.resize_short(image, 48), 32))
    np.testing.assert_array_equal(drawn[0], crops.center_crop(crops.resize_short(image, 96), 64))
