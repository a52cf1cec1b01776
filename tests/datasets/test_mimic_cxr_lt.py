"""MIMIC-CXR-LT: its three tables put together as the config's docstring says, beside MIMIC-CXR-JPG's pictures."""

import ast
import re
import textwrap

import cv2
import numpy as np
import pandas

from cxrjax import config as shared
from cxrjax import prepare
from cxrjax.input import converted_sets, source
from tests import runs

COLUMNS = (
    "subject_id,study_id,dicom_id,path,Atelectasis,Cardiomegaly,Consolidation,Edema,Enlarged Cardiomediastinum,"
    "Fracture,Lung Lesion,Lung Opacity,No Finding,Pleural Effusion,Pleural Other,Pneumonia,Pneumothorax,"
    "Support Devices,Pneumoperitoneum,Pneumomediastinum,Subcutaneous Emphysema,Tortuous Aorta,"
    "Calcification of the Aorta"
).split(",")
"""Of the tables in the authors' repository."""


def test_the_tables_become_one_set_of_nineteen_classes(tmp_path, monkeypatch):
    raw, truth = tmp_path / "jpg", {}
    for part, patients in (("train", range(10, 15)), ("balanced-val", (15, 16)), ("balanced-test", (17,))):
        rows = []
        for patient in patients:
            dicom, label = f"dicom-{patient}", COLUMNS[4 + patient]
            path = f"files/p10/p100000{patient}/s500000{patient}/{dicom}.jpg"
            (raw / path).parent.mkdir(parents=True)
            cv2.imwrite(str(raw / path), np.random.default_rng(patient).integers(0, 256, (40, 32), np.uint8))
            truth[dicom] = (part.removeprefix("balanced-"), label)
            known = [int(name == label) for name in COLUMNS[4:]]
            rows.append([f"100000{patient}", f"500000{patient}", dicom, path, *known])
        table = pandas.DataFrame(rows, columns=COLUMNS)
        table.to_csv(tmp_path / f"mimic-cxr-lt_single-label_{part}.csv", index=False)
    docstring = ast.get_docstring(ast.parse((runs.CONFIGS / "eval_mimic_cxr_lt_finetune.py").read_text()))
    (lines,) = re.findall(r"((?:^    .*(?:read_csv|to_csv|names = ).*\n)+)", docstring, re.MULTILINE)
    monkeypatch.chdir(tmp_path)
    exec(textwrap.dedent(lines), {"pandas": pandas})
    mapping = str(runs.CONFIGS / "sets" / "mimic_cxr_lt.json")
    told = ["--raw", str(raw), "--table", "mimic-cxr-lt.csv", "--mapping", mapping, "--short-side", "32"]
    assert prepare.main(["folder", *told, "--data-dir", str(tmp_path / "data")]) == 0
    converted = converted_sets.open_set("mimic_cxr_lt", tmp_path / "data")
    labels = shared.names(runs.config("eval_mimic_cxr_lt_finetune", "").labels)
    assert set(converted.label_names) == set(labels) and len(labels) == 19
    found = {}
    for split in ("train", "val", "test"):
        table = source.select(converted, split).table
        for image_id, codes in zip(table["image_id"], table["labels"], strict=True):
            (present,) = np.flatnonzero(codes == 1)
            assert (np.delete(codes, present) == 0).all()
            found[image_id] = (split, converted.label_names[present])
    assert found == truth
