"""Heads of one part on another: every cell against scikit-learn, planted shifts, and patients whom sets share."""

import numpy as np
import pandas
import pytest
import sklearn.metrics

from cxrjax import config as shared
from cxrjax import dry_run
from cxrjax.datasets import in_memory, schema
from cxrjax.evals import probe, run, transfer
from cxrjax.evals.base import Encoder, FeatureTable, Targets
from cxrjax.input import converted_sets
from cxrjax.reporting import collect, compare, page, results_page, sections

NAMES = ("Edema", "Mass")


def part(name, sign=1.0, shift=0.0, n=240):
    """Two pictures a patient; the first two features tell the findings (turned round by sign -1), moved by shift."""
    tables, keys = {}, {}
    for number, split in enumerate(transfer.SPLITS):
        rng = np.random.default_rng([number, *name.encode()])
        labels = (rng.random((n, 2)) < 0.4).astype(np.int8)
        features = rng.normal(size=(n, 4)) + shift
        features[:, :2] += sign * 1.5 * labels
        ids = np.array([f"{name}-{split}-{k}" for k in range(n)])
        patients = np.array([f"{split}{k // 2}" for k in range(n)])
        labels[:6, 1] = -1
        tables[split] = FeatureTable(features.astype(np.float32), labels, patients, ids)
        keys[split] = Targets(NAMES, labels, np.ones(n, bool), [])
    return tables, keys


def taught(**parts):
    tables, keys = ({name: one[side] for name, one in parts.items()} for side in (0, 1))
    return transfer.Taught(tables, keys, [], {"findings": list(NAMES)})


@pytest.fixture(scope="module")
def moved():
    """Part b differs from a in a finding's sign, part c in nothing but the level of all features."""
    given = taught(a=part("a"), b=part("b", sign=-1.0), c=part("c", shift=0.8))
    return given, transfer.transfer(given, (0.01,), resamples=60)


def test_every_cell_is_scikit_learns(moved):
    given, found = moved
    for name in given.tables:
        head, _, _ = probe.fitted(given.tables[name], given.keys[name], "multilabel", "logistic", (0.01,))
        levels = found.details["heads"][name]["thresholds"]
        for judged, tables in given.tables.items():
            truth, scores = tables["test"].labels, probe.scores(head, tables["test"].features)
            areas, hits, refused = [], [], []
            for c, finding in enumerate(NAMES):
                known = truth[:, c] >= 0
                areas.append(sklearn.metrics.roc_auc_score(truth[known, c], scores[known, c]))
                called = scores[known, c] >= levels[finding]
                table = sklearn.metrics.confusion_matrix(truth[known, c], called)
                hits.append(table[1, 1] / table[1].sum())
                refused.append(table[0, 0] / table[0].sum())
            cell = judged if name == judged else f"{name} on {judged}"
            area = "auroc_own" if name == judged else "auroc_across"
            assert found.metrics[f"{area}/{cell}"].value == pytest.approx(np.mean(areas))
            assert found.metrics[f"sensitivity/{name} on {judged}"].value == pytest.approx(np.mean(hits))
            assert found.metrics[f"specificity/{name} on {judged}"].value == pytest.approx(np.mean(refused))
            assert found.metrics[f"{area}/{cell}"].n == len(truth)


def test_drops_and_gaps_are_differences_and_means_are_over_pairs(moved):
    found = moved[1].metrics
    for name in "abc":
        for judged in set("abc") - {name}:
            pair = f"{name} on {judged}"
            drop = found[f"auroc_own/{judged}"].value - found[f"auroc_across/{pair}"].value
            assert found[f"drop/{pair}"].value == pytest.approx(drop)
            for what in ("sensitivity", "specificity"):
                gap = found[f"{what}/{name} on {name}"].value - found[f"{what}/{pair}"].value
                assert found[f"{what}_gap/{pair}"].value == pytest.approx(gap)
    pairs = [one.value for name, one in found.items() if name.startswith("drop/")]
    assert len(pairs) == 6 and found["drop"].value == pytest.approx(np.mean(pairs))


def test_a_planted_difference_is_found_and_a_shift_of_level_is_seen_at_the_threshold_alone(moved):
    found = moved[1].metrics
    assert found["drop/a on b"].low > 0.5 and found["auroc_across/a on b"].high < 0.35
    assert abs(found["drop/a on c"].value) < 0.03
    assert found["specificity_gap/a on c"].low > 0.15 and found["sensitivity_gap/a on c"].high < 0
    assert any(note.startswith("on c: AUROC 0.") and "by that of a, a drop of" in note for note in moved[1].notes)


def test_a_drop_is_paired_so_its_interval_is_narrower_than_those_of_its_sides():
    found = transfer.transfer(taught(a=part("a"), b=part("b")), (0.01,), resamples=200).metrics
    widths = {
        name: found[name].high - found[name].low for name in ("drop/b on a", "auroc_own/a", "auroc_across/b on a")
    }
    assert widths["drop/b on a"] < 0.5 * min(widths["auroc_own/a"], widths["auroc_across/b on a"])


def test_reports_compare_encoders_by_the_same_measures(moved):
    table = moved[1].predictions
    worse = table.copy()
    worse["score/a/Mass"] = 0.5
    found = compare.compare("", {"good": [table], "bad": [worse]}, "bad", resamples=60)
    assert found.metrics["good"]["drop/a on b"] == moved[1].metrics["drop/a on b"]._replace(n=len(table))
    assert found.differences["good"]["auroc_own/a"].low > 0
    assert found.differences["good"]["auroc_own/b"].value == 0


def test_words_of_parts():
    first, second = transfer.parse("chexpert;  padchest view=PA+AP  age=18-64;")
    assert first == ("chexpert", "chexpert", {}) and second.name == "padchest view=PA+AP age=18-64"
    for text, words in (
        ("a", "at least two different parts"),
        ("a; a", "at least two different parts"),
        ("a; b size=3", "'b size=3' has size; a set is followed by view="),
        ("a; b age=18", "has age=18"),
        ("a; b view=AP+PX", r"has view=AP\+PX"),
        ("a; b sex=", "has sex"),
    ):
        with pytest.raises(ValueError, match=words):
            transfer.parse(text)


def test_conditions_keep_what_is_known_to_fit():
    table = pandas.DataFrame(
        {"view": ["PA", "AP", "PA", "UNKNOWN"], "age": [17, 18, 64, -1], "sex": ["F", "M", "", "F"]}
    )

    def kept(words):
        return np.flatnonzero(transfer.fitting(table, transfer.parse(f"x; s {words}")[1])).tolist()

    assert kept("view=PA") == [0, 2] and kept("view=PA+AP") == [0, 1, 2]
    assert kept("age=-17") == [0] and kept("age=18-") == [1, 2] and kept("age=18-63") == [1]
    assert kept("sex=F age=0-99") == [0]
    with pytest.raises(ValueError, match="none of the 4 pictures of a split of 's' is of 's view=LATERAL'; PA 2"):
        kept("view=LATERAL")
    with pytest.raises(ValueError, match="asks for sex, which set 's' does not record"):
        transfer.fitting(table[["view", "age"]], transfer.parse("x; s sex=F")[1])


LABELS = {"chexpert": ("Pleural Effusion", "Support Devices"), "chestxray14": ("Effusion", "Hernia")}
ENTRY = {"judge": "transfer", "set": "chexpert", "parts": "chexpert; chestxray14", "bootstrap": 50, "strengths": (0.1,)}


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    """Two sets whose bright corners are an effusion, each with another name for it; a test picture is in both."""
    data_dir = tmp_path_factory.mktemp("sets")
    numbers = {
        (name, split): next(k for k in range(150) if schema.assign_split(name, f"{k:06d}") == split)
        for name, split in (("chexpert", "test"), ("chestxray14", "train"))
    }
    shared = None
    for number, (name, labels) in enumerate(LABELS.items()):
        rng = np.random.default_rng(number)
        present = rng.random((150, 2)) < 0.5
        images = rng.integers(0, 120, (150, 32, 32)).astype(np.uint8)
        images[present[:, 0], :16, :16] += 100
        if shared is not None:
            images[numbers[name, "train"]] = shared
        else:
            shared = images[numbers[name, "test"]]
        columns = {label: present[:, c].astype(int) for c, label in enumerate(labels)}
        in_memory.make_set(name, images, labels=columns, short_side=32, data_dir=data_dir)
    return data_dir


def test_two_sets_from_end_to_end(data_dir, tmp_path):
    parts = "chexpert; chestxray14; chexpert view=PA"
    entry = run.check({**ENTRY, "parts": parts, "data_dir": str(data_dir)})
    assert entry["task"]["name"] == "findings"
    read = []

    def encode(images):
        read.append(len(images))
        means = np.asarray(images, np.float32).reshape(len(images), 2, 16, 2, 16).mean(axis=(2, 4))
        return {"pooled": means.reshape(len(images), 4)}

    found = run.evaluate(Encoder(encode, 32, "corners", "corners"), {**entry, "batch_size": 50}, tmp_path)
    sizes = [converted_sets.open_set(name, data_dir).split_sizes for name in LABELS]
    assert sum(read) == sum(-(-size // 50) * 50 for of_set in sizes for size in of_set.values())  # each set once
    assert found.metrics["auroc_own/chexpert"].value == found.metrics["auroc_across"].value == 1
    assert found.metrics["drop/chexpert view=PA on chexpert"].value == 0
    assert found.details["splits"]["chestxray14"]["train"]["pictures"] == sizes[1]["train"] - 1
    assert found.details["splits"]["chexpert"]["test"]["pictures"] == sizes[0]["test"]
    assert found.details["findings"] == ["Pleural Effusion"]
    assert found.details["meant"]["Pleural Effusion"] == {
        "chexpert": ("Pleural Effusion",),
        "chestxray14": ("Effusion",),
    }
    assert any(
        "chestxray14: left out of training" in note and "1 pictures of 1 patients" in note for note in found.notes
    )
    assert any("Hernia (not in chexpert); Support Devices (not in chestxray14)" in note for note in found.notes)
    (question,) = collect.in_folder(tmp_path, "corners").questions
    options = sections.Options(
        resamples=20, seed=0, examples=0, reference="", threshold=0.5, attributes="", data_dir=""
    )
    shown = {part.title: part for part in results_page.section(question, options).parts if isinstance(part, page.Table)}
    areas, drops = (shown[title] for title in ("AUROC from one part to another", "Drops"))
    names = ["chexpert", "chestxray14", "chexpert view=PA"]
    assert list(areas.columns) == ["subject", "head of", *(f"on {name}" for name in names)]
    assert [row[1] for row in areas.rows] == names and [row[2:][k].value for k, row in enumerate(areas.rows)] == [1] * 3
    assert drops.rows[0][2] is None and drops.rows[0][4].interval.value == 0


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"parts": "chestxray14; chexpert"}, "set='chexpert' must be the set of the first of the parts, 'chestxray14'"),
        ({"findings": "Hernia"}, r"chexpert and chestxray14 have no finding in common: Hernia \(not in chexpert\)"),
        ({"findings": "Opacity"}, r"findings \['Opacity'\] are in none of these sets; there are Hernia, Pleural Eff"),
        ({"parts": "chexpert; chexpert age=18-"}, "none of the .* pictures of a split of 'chexpert' is of"),
        ({"policy": "U-Two"}, "U-Two"),
    ],
)
def test_what_cannot_be_laid_side_by_side_is_refused_before_any_picture_is_read(data_dir, changes, words):
    with pytest.raises(ValueError, match=words):
        run.check({**ENTRY, "data_dir": str(data_dir), **changes})


def test_findings_of_one_set_keep_their_names_and_sums_of_others_are_left_out():
    nih = {"Mass": ("Mass",), "Nodule": ("Nodule",), "Lung Lesion": ("Mass", "Nodule")}
    assert transfer._common({"a": nih, "b": nih}, ()) == (
        ["Mass", "Nodule"],
        {"Lung Lesion": "other findings together"},
    )
    assert transfer._common({"a": nih, "b": {"Lung Lesion": ("Lung Lesion",)}}, ())[0] == ["Lung Lesion"]
    assert transfer._common({"a": nih, "b": nih}, ("Lung Lesion",)) == (["Lung Lesion"], {})
    assert transfer._names({"chestxray14": ["Effusion"]}) == {"chestxray14": {"Effusion": ("Effusion",)}}


def test_training_leaves_out_the_patients_of_every_part(data_dir):
    config = shared.pretrain()
    config.data.sets, config.evals = "brax", {"transfer": ENTRY}
    assert shared.judged(config) == ("chestxray14", "chexpert")


def test_what_training_has_seen_of_any_part_is_said(data_dir, monkeypatch):
    monkeypatch.setenv("CXRJAX_DATA", str(data_dir))
    config = shared.pretrain()
    config.data.sets, config.data.split = "chestxray14", "train+test"
    (said,) = run._leaks(config, run.complete({**ENTRY, "parts": "chexpert; chestxray14 view=PA"}))
    assert "trained on test of chestxray14 itself" in said


def test_a_dry_run_names_the_sets_of_all_parts(monkeypatch, tmp_path):
    monkeypatch.setenv("CXRJAX_DATA", str(tmp_path))
    config = shared.evaluation(references="")
    config.evals = {"transfer": ENTRY}
    said = list(dry_run._evaluation(config, tmp_path))
    assert "by         transfer on chexpert (not converted yet), chestxray14 (not converted yet)" in said
