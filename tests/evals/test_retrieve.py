"""Retrieval by hand, against a plain loop, at chance, and on the phantom's studies; and the judges of a ConVIRT run."""

import json
import math

import numpy as np
import pandas
import pytest

from cxrjax import evaluate
from cxrjax.evals import encoders, retrieve, run
from cxrjax.evals.base import FeatureTable
from cxrjax.input import converted_sets
from cxrjax.input import source as sources
from tests import runs


def table(features, patients=None):
    count = len(features)
    patients = np.array([f"p{i}" for i in range(count)]) if patients is None else np.array(patients)
    ids = np.array([f"i{i}" for i in range(count)])
    return FeatureTable(np.asarray(features, np.float32), np.zeros((count, 1), np.int8), patients, ids)


def unit(x):
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)


def noise(count, d=8, seed=0):
    return unit(np.random.default_rng(seed).normal(size=(count, d)))


def values(result):
    return {name: found.value for name, found in result.metrics.items()}


def test_pairs_that_lie_together_are_always_found_and_chance_is_stated():
    vectors = noise(30)
    result = retrieve.retrieve(table(vectors), vectors, np.arange(30), at=(1, 5), resamples=20)
    assert set(values(result).values()) == {1.0} and len(result.metrics) == 4
    chance = result.details["chance"]
    assert chance["image_to_text_recall@1"] == pytest.approx(1 / 30)
    assert chance["text_to_image_recall@5"] == pytest.approx(5 / 30)
    assert any("recall@5 0.1667" in note for note in result.notes)
    assert (result.predictions["rank/text_to_image"] == 1).all()


def test_noise_is_at_chance():
    """Reports of equal words among them, so that chance is not k / n, and differs between the directions."""
    report, off, drawn = np.arange(300) % 240, [], None
    for seed in range(20):
        drawn = retrieve.retrieve(
            table(noise(300, seed=seed)), noise(240, seed=seed + 50), report, at=(20,), resamples=9
        )
        off.append([found.value - drawn.details["chance"][name] for name, found in drawn.metrics.items()])
    # Three deviations of such a mean; k / n is 0.024 off one way, and the other way's chance 0.023.
    assert np.all(np.abs(np.mean(off, axis=0)) < 0.015)
    assert drawn.details["chance"]["text_to_image_recall@20"] > drawn.details["chance"]["image_to_text_recall@20"]


def test_a_collapsed_space_finds_nothing():
    same = np.tile(noise(1), (50, 1))
    result = retrieve.retrieve(table(same), same, np.arange(50), at=(1, 5), resamples=9)
    assert values(result) == pytest.approx(result.details["chance"], rel=1e-6)
    assert result.details["chance"]["image_to_text_recall@5"] == pytest.approx(0.1)


def test_chance_of_reports_by_hand():
    """Places 2 and 1: in half of the orders the single one comes first, and one of three studies is found at 1, else
    two; at 2 the pair first takes both places, the single one first leaves one: all three are found."""
    copies = np.array([2, 1])
    assert retrieve._found_by_chance(copies, 1) == pytest.approx(0.5, abs=0.02)
    assert retrieve._found_by_chance(copies, 2) == pytest.approx((2 / 3 + 1) / 2, abs=0.02)
    assert retrieve._any_right(np.array([2, 1]), np.array([1, 2]), 2) == pytest.approx([1, 2 / 3])


def test_reports_of_equal_words_by_hand():
    """Studies a b c d; a and b have one report, which is right for both. Cosines of pictures (rows) to the reports:

        a: (ab) 0.9  c 0.5  d 0.1      picture → report: (ab) first: right
        b: (ab) 0.2  c 0.8  d 0.1      c before the two places of (ab): rank 2
        c: (ab) 0.7  c 0.6  d 0.1      both places of (ab) before c: rank 3, wrong at 2
        d: (ab) 0.3  c 0.4  d 0.5      right
    Report → picture: (ab) finds a first, for a's query and for b's; c finds b, then c; d finds d.
    """
    cosines = np.array([[0.9, 0.5, 0.1], [0.2, 0.8, 0.1], [0.7, 0.6, 0.1], [0.3, 0.4, 0.5]])
    # Pictures of any length will do here: the products with the axes are these cosines.
    result = retrieve.retrieve(table(cosines), np.eye(3, dtype=np.float32), np.array([0, 0, 1, 2]), at=(1, 2, 3))
    assert result.predictions["rank/image_to_text"].tolist() == [1, 2, 3, 1]
    assert result.predictions["rank/text_to_image"].tolist() == [1, 1, 2, 1]
    assert values(result) == pytest.approx(
        {
            "image_to_text_recall@1": 0.5,
            "image_to_text_recall@2": 0.75,
            "image_to_text_recall@3": 1,
            "text_to_image_recall@1": 0.75,
            "text_to_image_recall@2": 1,
            "text_to_image_recall@3": 1,
        }
    )
    # For a and b two of four candidates are right, for c and d one: 1 − (1/2 · 1/3), and 2/4.
    assert result.details["chance"]["text_to_image_recall@2"] == pytest.approx((2 * (1 - 1 / 6) + 2 * 0.5) / 4)
    assert any("2 of 4 reports have the same words as another one" in note for note in result.notes)


def test_ties_count_by_their_expected_place():
    """Two of three candidates are equally near, the right one among them: half of a hit at 1."""
    cosines = np.array([[0.5, 0.5, 0.1], [0, 1, 0], [0, 0, 1]])
    result = retrieve.retrieve(table(cosines), np.eye(3, dtype=np.float32), np.arange(3), at=(1, 2), resamples=5)
    assert result.predictions["hit/image_to_text@1"].tolist() == pytest.approx([0.5, 1, 1])
    assert result.predictions["rank/image_to_text"].tolist() == [1.5, 1, 1]
    assert retrieve._any_right(2, 3, 2) == pytest.approx(1 - math.comb(3, 2) / math.comb(5, 2))
    assert retrieve._any_right(1, 0, 0) == pytest.approx(0) and retrieve._any_right(1, 4, -2) == pytest.approx(0)


def test_against_a_loop_and_in_parts(monkeypatch):
    images, texts = noise(23, 3), noise(15, 3, seed=1)
    report, classes = np.arange(23) % 15, np.arange(23) % 2
    monkeypatch.setattr(retrieve, "_CHUNK_VALUES", 23 * 5)
    options = {"classes": classes, "class_names": ("Mass", "Edema"), "resamples": 5, "at": (1, 4)}
    found = values(retrieve.retrieve(table(images), texts, report, **options))
    hits, alike = {}, {}
    for query in range(23):
        for direction, near in (
            ("image_to_text", [images[query] @ texts[report[j]] for j in range(23)]),
            ("text_to_image", [texts[report[query]] @ images[j] for j in range(23)]),
        ):
            # Equal reports tie at 0 difference; their order makes no difference to whether one of them is there.
            order = sorted(range(23), key=lambda j, near=near: -round(float(near[j]), 6))
            for k in (1, 4):
                hits.setdefault((direction, k), []).append(report[query] in report[order[:k]])
                alike.setdefault((direction, k), []).append(np.mean(classes[order[:k]] == classes[query]))
    for (direction, k), column in hits.items():
        assert found[f"{direction}_recall@{k}"] == pytest.approx(np.mean(column))
    column = np.array(alike["text_to_image", 4])
    assert found["text_to_image_precision@4"] == pytest.approx(column.mean())
    assert found["text_to_image_precision@4/Edema"] == pytest.approx(column[classes == 1].mean())


def test_precision_shares_the_last_places():
    near = np.array([[0.9, 0.5, 0.5, 0.5, 0.1]])
    alike = np.array([[True, True, False, False, True]])
    found = retrieve._precision(near, alike, (1, 2, 4, 5))
    np.testing.assert_allclose(found, [[1, (1 + 1 / 3) / 2, 0.5, 3 / 5]])


def test_intervals_are_over_patients():
    """Of two patients one is always found and one never: a resample is of them, not of the twenty studies."""
    cosines = np.eye(20)
    cosines[10:] = np.roll(cosines[10:], 1, axis=1)
    texts = np.eye(20, dtype=np.float32)
    result = retrieve.retrieve(table(cosines, ["p"] * 10 + ["q"] * 10), texts, np.arange(20), at=(1,), resamples=100)
    found = result.metrics["image_to_text_recall@1"]
    assert (found.value, found.low, found.high, found.n) == (0.5, 0, 1, 20)


def test_studies_of_one_class_are_drawn():
    labels = np.array(
        [[1, 0, 0], [1, 0, 1], [0, 1, -2], [1, 1, 0], [1, -1, 0], [-2, 1, 1], [1, -2, 0], [0, 0, 1]], np.int8
    )
    ids = [f"s{i}" for i in range(8)]
    arguments = (labels, ("Mass", "Edema", "Other"), ids, ("Mass", "Edema"))
    drawn = [set(found.tolist()) for found in retrieve.draw(*arguments, per_class=2)]
    assert drawn[0] < {0, 1, 6} and drawn[1] == {2, 5} and len(drawn[0]) == 2
    seeds = {tuple(retrieve.draw(*arguments, per_class=2, seed=seed)[0]) for seed in range(20)}
    assert len(seeds) > 1 and set().union(*seeds) == {0, 1, 6}, "never one that may have Edema too"
    # The order of the table does not matter, the ids do.
    turned = retrieve.draw(labels[::-1], arguments[1], ids[::-1], arguments[3], 2)
    assert [{7 - place for place in found} for found in turned] == drawn
    with pytest.raises(ValueError, match="3 studies per class.*too few of: Edema 2; lower per_class"):
        retrieve.draw(*arguments, per_class=3)
    with pytest.raises(ValueError, match=r"two or more labels of \['Mass', 'Edema', 'Other'\]; got \['Hernia'\]"):
        retrieve.draw(*arguments[:3], ("Hernia",))


def test_k_beyond_the_candidates_and_broken_features():
    vectors = noise(4)
    result = retrieve.retrieve(table(vectors), vectors, np.arange(4), resamples=5)
    assert list(result.metrics) == ["image_to_text_recall@1", "text_to_image_recall@1"]
    assert any("k = 5, 10 left out: among 4 candidates" in note for note in result.notes)
    with pytest.raises(ValueError, match="k >= 1"):
        retrieve.retrieve(table(vectors), vectors, np.arange(4), at=(0, 1))
    with pytest.raises(ValueError, match="every k is at least the number of candidates, 4"):
        retrieve.retrieve(table(vectors), vectors, np.arange(4), at=(4,))
    vectors[2] = np.nan
    with pytest.raises(ValueError, match="1 of 4 judged pictures.*'i2'"):
        retrieve.retrieve(table(vectors), noise(4), np.arange(4), at=(1,))


def test_gallery_of_the_phantom(phantom_dir):
    """First frontal per study, its own report, equal words once."""
    split = sources.select(converted_sets.open_set("phantom", phantom_dir), "train")
    short = retrieve.gallery(split, lambda report: report["impression"])
    studies = split.table[split.table["view"].isin(["PA", "AP"])].drop_duplicates(["patient_id", "study_id"])
    assert len(short.report) == len(short.pictures) == len(studies)
    assert len(set(short.pictures.table["view"]) - {"PA", "AP"}) == 0
    for place in (0, len(short.report) - 1):
        assert short.words[short.report[place]].lower() == short.pictures[place]["report"]["impression"].lower()
    counted = len({words.lower() for words in short.words})
    assert counted == len(short.words) < len(short.report)
    loud = retrieve.gallery(split, lambda report: "NORMAL." if len(report["text"]) % 2 else "Normal.")
    assert len(loud.words) == 1 and not loud.report.any(), "letter case aside"
    one = retrieve.gallery(split, lambda report: "Normal." if "mass" not in report["text"].lower() else " ", limit=12)
    assert one.words == ["Normal."] and one.classes is None
    assert len(one.report) < 12 and any("reads nothing of their reports" in note for note in one.notes)
    assert any("a random 12 of" in note for note in one.notes)
    chosen = retrieve.gallery(split, lambda report: report["text"], classes=("Effusion", "Nodule"), per_class=2)
    labels = np.stack(chosen.pictures.table["labels"].tolist())
    columns = [list(split.converted_set.label_names).index(name) for name in ("Effusion", "Nodule")]
    assert labels[:, columns].tolist() == [[1, 0]] * 2 + [[0, 1]] * 2 and chosen.classes.tolist() == [0, 0, 1, 1]
    with pytest.raises(ValueError, match="the method reads nothing of any report of Studies"):
        retrieve.gallery(split, lambda report: "")


def test_an_encoder_without_reports_is_refused(phantom_dir, tmp_path):
    entry = {"set": "phantom", "data_dir": str(phantom_dir)}
    for judge, more in (("retrieve", {}), ("zeroshot", {"task": {"kind": "multilabel"}})):
        with pytest.raises(run.EvaluationError, match="'pixels-32' was not trained with reports.*such as convirt"):
            run.evaluate(encoders.pixels(), {**entry, "judge": judge, **more}, tmp_path)
    with pytest.raises(run.EvaluationError, match="takes no task.*'classes'"):
        run.evaluate(encoders.pixels(), {**entry, "judge": "retrieve", "task": {"kind": "multilabel"}}, tmp_path)


@pytest.mark.slow
def test_an_untrained_convirt_is_judged_both_ways(phantom_dir, tmp_path, monkeypatch, capsys):
    """From the configs to the files, beside its own networks before training; nearly at chance."""
    monkeypatch.setenv("CXRJAX_DATA", str(phantom_dir))
    settings = runs.config("convirt", "smoke")
    runs.write(tmp_path / "run", settings)
    config = runs.config("eval_retrieve", "smoke", checkpoint=str(tmp_path / "run"))
    config.evals.update(runs.config("eval_zeroshot", "smoke").evals)
    config.evals.phantom_retrieve.at = (1, 3)
    config.evals.phantom_retrieve.split = "train"
    found = evaluate.run(config)
    assert set(found) == {"phantom_retrieve", "phantom_zeroshot"}
    folder = tmp_path / "run" / "evals"
    for name, result in found.items():
        assert list(result) == ["convirt", "random"]
        report = json.loads((folder / name / "6" / "results.json").read_text())
        assert report["details"]["judge"] == name.split("_")[1] and report["notes"] == result["convirt"].notes
        predictions = pandas.read_parquet(folder / name / "6" / "predictions.parquet")
        assert {"image_id", "patient_id"} <= set(predictions)
        versus = json.loads((folder / name / "6" / "versus-random.json").read_text())
        assert "image_to_text_recall@1" in versus or "auroc" in versus
    recall = found["phantom_retrieve"]["convirt"]
    assert (
        recall.metrics["image_to_text_recall@3"].n
        == recall.details["studies"]
        == len(pandas.read_parquet(folder / "phantom_retrieve" / "6" / "predictions.parquet"))
    )
    assert any("seen them" in note for note in recall.notes)
    said = found["phantom_zeroshot"]["convirt"].details
    assert "There is moderate cardiomegaly." in said["prompts"]["Cardiomegaly"]["positive"]
    assert set(said["splits"]) == {"val", "test"}
    out = capsys.readouterr().out
    assert "convirt minus random: image_to_text_recall@1" in out and "convirt minus random: auroc" in out
    names = run.scalars(config.evals.phantom_retrieve, recall)
    assert "eval/phantom_smoke/reports/retrieve_image_to_text_recall@1" in names
