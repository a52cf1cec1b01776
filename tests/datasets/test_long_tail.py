"""MIMIC-CXR-LT and CXR-LT: their tables put together as configs say, beside MIMIC-CXR-JPG's pictures."""

import ast
import re
import textwrap

import cv2
import numpy as np
import pandas
import pytest

from cxrjax import config as shared
from cxrjax import prepare
from cxrjax.input import converted_sets, source
from tests import runs

LT = (
    "Atelectasis,Cardiomegaly,Consolidation,Edema,Enlarged Cardiomediastinum,Fracture,Lung Lesion,Lung Opacity,"
    "No Finding,Pleural Effusion,Pleural Other,Pneumonia,Pneumothorax,Support Devices,Pneumoperitoneum,"
    "Pneumomediastinum,Subcutaneous Emphysema,Tortuous Aorta,Calcification of the Aorta"
).split(",")
"""In the order of the tables in the authors' repository."""
MIMIC_CXR_LT = {f"mimic-cxr-lt_single-label_{part}": part for part in ("train", "balanced-val", "balanced-test")}
CXR_LT = {"train_labeled": "train", "development_labeled_task1": "val", "test_labeled_task1": "test"}


def patients(part):
    return {"train": range(10, 15), "val": (15, 16), "test": (17,)}[part.removeprefix("balanced-")]


def write(folder, name, part, label_names, path_column, labels_of):
    """A table of the release and its pictures; returns picture -> (split, labels)."""
    rows, truth = [], {}
    for patient in patients(part):
        dicom, present = f"0a-{patient}", labels_of(patient)
        path = f"files/p10/p100000{patient}/s500000{patient}/{dicom}.jpg"
        (folder / "jpg" / path).parent.mkdir(parents=True)
        picture = np.random.default_rng(patient).integers(0, 256, (40, 32), np.uint8)
        cv2.imwrite(str(folder / "jpg" / path), picture)
        truth[dicom] = (part.removeprefix("balanced-"), present)
        about = {"subject_id": f"100000{patient}", "study_id": f"500000{patient}", "dicom_id": dicom, path_column: path}
        rows.append(about | {label: int(label in present) for label in label_names})
    pandas.DataFrame(rows).to_csv(folder / f"{name}.csv", index=False)
    return truth


def converted(folder, config, table, mapping, monkeypatch):
    """Runs the lines of Python in the config's docstring and the command below them; returns the set."""
    docstring = ast.get_docstring(ast.parse((runs.CONFIGS / f"{config}.py").read_text()))
    (lines,) = re.findall(r"((?:^    (?:names|tables?|pandas)\b.*\n)+)", docstring, re.MULTILINE)
    monkeypatch.chdir(folder)
    exec(textwrap.dedent(lines), {"pandas": pandas})
    assert f"--raw DIR --table {table} --mapping configs/sets/{mapping}.json" in docstring
    told = ["--raw", "jpg", "--table", table, "--mapping", str(runs.CONFIGS / "sets" / f"{mapping}.json")]
    assert prepare.main(["folder", *told, "--short-side", "32", "--data-dir", "data"]) == 0
    return converted_sets.open_set(mapping, folder / "data")


def found(opened):
    """Picture -> (split, labels that are present)."""
    there = {}
    for split in ("train", "val", "test"):
        table = source.select(opened, split).table
        for image_id, codes in zip(table["image_id"], table["labels"], strict=True):
            assert set(codes.tolist()) <= {0, 1}
            there[image_id] = (split, [opened.label_names[place] for place in np.flatnonzero(codes)])
    return there


def test_mimic_cxr_lt_has_one_of_nineteen_classes(tmp_path, monkeypatch):
    truth = {}
    for name, part in MIMIC_CXR_LT.items():
        truth |= write(tmp_path, name, part, LT, "path", lambda patient: [LT[patient]])
    opened = converted(tmp_path, "eval_mimic_cxr_lt_finetune", "mimic-cxr-lt.csv", "mimic_cxr_lt", monkeypatch)
    labels = shared.names(runs.config("eval_mimic_cxr_lt_finetune", "").labels)
    assert set(opened.label_names) == set(labels) == set(LT) and len(labels) == 19
    assert found(opened) == truth


def test_cxr_lt_has_several_of_forty_findings(tmp_path, monkeypatch):
    entry = runs.config("eval_cxr_lt_2024", "").evals.cxr_lt_2024
    labels = sorted(shared.names(entry.task.labels))
    truth = {}
    for name, part in CXR_LT.items():
        truth |= write(tmp_path, name, part, labels, "fpath", lambda patient: labels[patient : patient + 3])
    opened = converted(tmp_path, "eval_cxr_lt_2024", "cxr-lt-2024.csv", "cxr_lt_2024", monkeypatch)
    assert sorted(opened.label_names) == labels and len(labels) == 40 == len(set(labels))
    assert found(opened) == truth
    assert set(source.select(opened, "train").table["patient_id"]) == {f"100000{one}" for one in patients("train")}


@pytest.mark.parametrize("word", ["", "attentive"])
def test_cxr_lt_is_judged_on_its_labels(word):
    ((_, entry),) = runs.config("eval_cxr_lt_2024", word).evals.items()
    assert entry.judge == (word or "probe") and ("long_tail" in entry) == (not word)
