"""The table of findings: every label that it names is one of its set's, and the strongest of several labels counts."""

import json
from pathlib import Path

import numpy as np
import pytest

from cxrjax.datasets import (
    brax,
    candid_ptx,
    chestxray14,
    chexpert,
    chexpert_plus,
    covidx,
    findings,
    mimic_cxr,
    nih_google,
    rsna_pneumonia,
    tbx11k,
    tuberculosis,
)
from cxrjax.datasets.schema import ABSENT, NOT_MENTIONED, PRESENT, UNCERTAIN
from cxrjax.phantom.findings import LABELS as PHANTOM
from tests.datasets.test_vindr_cxr import PHYSIONET

MAPPINGS = Path(__file__).parents[2] / "configs" / "sets"
KNOWN = {
    "brax": brax.LABELS,
    "candid_ptx": candid_ptx.LABELS,
    "chestxray14": chestxray14.LABELS,
    "chexpert": chexpert.LABELS,
    "chexpert_plus": chexpert_plus.LABELS,
    "covidx": [label for classes in covidx.CLASSES.values() for label in classes.values()],
    "mimic_cxr": mimic_cxr.LABELS,
    "montgomery": tuberculosis.LABELS,
    "nih_google": (*nih_google.FOUR, *nih_google.ALL),
    "phantom": PHANTOM,
    "rsna_pneumonia": rsna_pneumonia.LABELS,
    "shenzhen": tuberculosis.LABELS,
    "tbx11k": tbx11k.LABELS,
    "vindr_cxr": PHYSIONET,
    **{
        path.stem: json.loads(path.read_text())["label_names"]
        for path in MAPPINGS.glob("*.json")
        if "label_names" in path.read_text()
    },
}


@pytest.mark.parametrize("name", KNOWN)
def test_every_label_of_the_table_is_one_of_the_sets(name):
    assert name in findings.SETS and set(findings.published(name)) <= set(KNOWN[name])


def test_notes_are_of_findings_that_there_are():
    assert set(findings.NOTES) <= set(findings.names(findings.SETS))


def test_what_a_set_calls_a_finding():
    own = findings.own_labels("chestxray14/256", chestxray14.LABELS)
    assert own["Pleural Effusion"] == ("Effusion",) and own["Lung Lesion"] == ("Mass", "Nodule")
    assert "Lung Opacity" not in own
    assert findings.own_labels("vindr_cxr", ["Nodule/Mass", "Rib fracture"]) == {
        "Fracture": ("Rib fracture",),
        "Lung Lesion": ("Nodule/Mass",),
    }
    assert findings.own_labels("clinic", ["pleural_effusion", "Effusion"]) == {
        "Pleural Effusion": ("pleural_effusion",)
    }


def test_a_label_that_another_set_calls_a_finding_is_pointed_out():
    said = " ".join(findings.sentences({"clinic": ["Effusion", "Pleural_Thickening", "Scoliosis"]}))
    assert "clinic has besides, under no common name: Effusion, Scoliosis." in said
    assert "'Effusion' is what chestxray14 calls Pleural Effusion: rename the label" in said
    assert "'Scoliosis' is" not in said


def test_of_several_labels_the_strongest_counts():
    every = (ABSENT, NOT_MENTIONED, UNCERTAIN, PRESENT)
    pairs = np.array([(a, b) for a in every for b in every], np.int8)
    found = findings.codes(pairs, ["Mass", "Nodule"], {"Lung Lesion": ("Mass", "Nodule"), "Mass": ("Mass",)})
    expected = [every[max(every.index(a), every.index(b))] for a, b in pairs]
    assert found[:, 0].tolist() == expected and found[:, 1].tolist() == pairs[:, 0].tolist()
    assert found.dtype == np.int8


def test_what_has_no_common_name_is_said():
    said = findings.sentences({"chexpert": chexpert.LABELS, "chestxray14": chestxray14.LABELS, "clinic": ["Mass", "X"]})
    assert "Pleural Effusion = chexpert Pleural Effusion; chestxray14 Effusion; not in clinic." in said
    assert any(
        line.startswith("Pneumonia = chexpert Pneumonia; chestxray14 Pneumonia; not in clinic. A d") for line in said
    )
    assert "chexpert has besides, under no common name: Pleural Other." in said
    assert "clinic is not in the reviewed table: its labels were taken by their spelling." in said
    with pytest.raises(ValueError, match="'clinic' is neither converted nor in the table of findings, which has ches"):
        findings.published("clinic")
