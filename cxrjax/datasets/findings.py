"""What findings are called in each set, so that a model that is taught by one can be asked about another.

A common name stands for the labels of a set on its right; where there are several, any of them is it. A finding without
a row in a set has no label there that means it. Names that look alike do not always mean the same: `NOTES` say where.

The labels are those of the sets' own lists. Which PadChest labels are fractures or support devices, and which MeSH
terms of IU X-ray mean a finding, was decided here. torchxrayvision (Cohen et al. 2022) counts every interstitial and
alveolar pattern of PadChest as Infiltration too; here only its infiltrates are.
"""

from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType

import numpy as np

from cxrjax.datasets.schema import ABSENT, NOT_MENTIONED, PRESENT, UNCERTAIN

OR = "|"
_SAME = ("Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Pneumonia", "Pneumothorax")

_NIH = {name: name for name in (*_SAME, "Emphysema", "Fibrosis", "Hernia", "Infiltration", "Mass", "Nodule")} | {
    "Lung Lesion": "Mass|Nodule",
    "No Finding": "No Finding",
    "Pleural Effusion": "Effusion",
    "Pleural Thickening": "Pleural_Thickening",
}
_CHEXPERT = {
    name: name
    for name in (
        *(*_SAME, "Enlarged Cardiomediastinum", "Fracture", "Lung Lesion", "Lung Opacity", "No Finding"),
        *("Pleural Effusion", "Support Devices"),
    )
}
_TUBERCULOSIS = {"No Finding": "Normal", "Tuberculosis": "Tuberculosis"}

SETS: Mapping[str, Mapping[str, str]] = MappingProxyType(
    {
        "chestxray14": _NIH,
        "chestxray14_subset": _NIH,
        "nih_google": _NIH
        | {"Fracture": "Fracture", "Lung Lesion": "Nodule or mass|Mass|Nodule", "Lung Opacity": "Airspace opacity"},
        "chexpert": _CHEXPERT,
        "chexpert_plus": _CHEXPERT,
        "mimic_cxr": _CHEXPERT,
        "brax": _CHEXPERT,
        "vindr_cxr": {
            "Atelectasis": "Atelectasis",
            "Cardiomegaly": "Cardiomegaly",
            "Consolidation": "Consolidation",
            "Edema": "Edema",
            "Emphysema": "Emphysema",
            "Fibrosis": "Pulmonary fibrosis",
            "Fracture": "Rib fracture|Clavicle fracture",
            "Infiltration": "Infiltration",
            "Lung Lesion": "Nodule/Mass",
            "Lung Opacity": "Lung Opacity",
            "No Finding": "No finding",
            "Pleural Effusion": "Pleural effusion",
            "Pleural Thickening": "Pleural thickening",
            "Pneumonia": "Pneumonia",
            "Pneumothorax": "Pneumothorax",
            "Tuberculosis": "Tuberculosis",
        },
        "vindr_pcxr": {
            "No Finding": "No finding",
            "Pneumonia": "Pneumonia|Broncho-pneumonia|Brocho-pneumonia|Pleuro-pneumonia",
            "Tuberculosis": "Tuberculosis",
        },
        "padchest": {
            "Atelectasis": "atelectasis|laminar atelectasis|lobar atelectasis|segmental atelectasis|total atelectasis|"
            "round atelectasis|atelectasis basal",
            "Cardiomegaly": "cardiomegaly",
            "Consolidation": "consolidation|air bronchogram",
            "Edema": "pulmonary edema",
            "Emphysema": "emphysema",
            "Fibrosis": "pulmonary fibrosis",
            "Fracture": "fracture|rib fracture|vertebral fracture|clavicle fracture|humeral fracture",
            "Hernia": "hiatal hernia",
            "Infiltration": "infiltrates",
            "Lung Lesion": "nodule|multiple nodules|mass|pulmonary mass",
            "Mass": "mass|pulmonary mass",
            "No Finding": "normal",
            "Nodule": "nodule|multiple nodules",
            "Pleural Effusion": "pleural effusion|loculated pleural effusion|loculated fissural effusion|"
            "hydropneumothorax",
            "Pleural Thickening": "pleural thickening|apical pleural thickening|calcified pleural thickening",
            "Pneumonia": "pneumonia|atypical pneumonia",
            "Pneumothorax": "pneumothorax|hydropneumothorax",
            "Support Devices": "pacemaker|dual chamber device|single chamber device|electrical device|catheter|"
            "central venous catheter|central venous catheter via jugular vein|"
            "central venous catheter via subclavian vein|reservoir central venous catheter|NSG tube|endotracheal tube|"
            "tracheostomy tube|chest drain tube|artificial heart valve|ventriculoperitoneal drain tube",
            "Tuberculosis": "tuberculosis",
        },
        "iu_xray": {
            "Atelectasis": "Pulmonary Atelectasis",
            "Cardiomegaly": "Cardiomegaly",
            "Consolidation": "Consolidation",
            "Edema": "Pulmonary Edema",
            "Emphysema": "Emphysema|Pulmonary Emphysema",
            "Fibrosis": "Pulmonary Fibrosis",
            "Fracture": "Fractures, Bone",
            "Hernia": "Hernia, Hiatal",
            "Infiltration": "Infiltrate",
            "Lung Lesion": "Nodule|Mass",
            "Lung Opacity": "Opacity|Airspace Disease|Infiltrate|Consolidation",
            "Mass": "Mass",
            "No Finding": "No Finding",
            "Nodule": "Nodule",
            "Pleural Effusion": "Pleural Effusion",
            "Pneumonia": "Pneumonia",
            "Pneumothorax": "Pneumothorax",
            "Support Devices": "Catheters, Indwelling|Implanted Medical Device|Tube, Inserted",
        },
        "rsna_pneumonia": {"Lung Opacity": "Lung Opacity", "No Finding": "Normal", "Pneumonia": "Pneumonia"},
        "siim_acr": {"Pneumothorax": "Pneumothorax"},
        "candid_ptx": {"Fracture": "Acute rib fracture", "Pneumothorax": "Pneumothorax"},
        "jsrt": {"Nodule": "Nodule"},
        "covidx": {"COVID-19": "COVID-19", "No Finding": "Normal"},
        "covid_chestxray": {"COVID-19": "COVID-19", "No Finding": "No Finding"},
        "hannover_covid": {"COVID-19": "COVID-19"},
        "pediatric_pneumonia": {"No Finding": "Normal", "Pneumonia": "Bacterial pneumonia|Viral pneumonia"},
        "montgomery": _TUBERCULOSIS,
        "shenzhen": _TUBERCULOSIS,
        "tb_lung_masks": _TUBERCULOSIS,
        "tbx11k": {"No Finding": "Healthy", "Tuberculosis": "Tuberculosis"},
        "phantom": {name: name for name in (*_SAME, "Mass", "Nodule", "No Finding") if name != "Pneumonia"}
        | {"Lung Lesion": "Mass|Nodule", "Pleural Effusion": "Effusion"},
    }
)
"""Set -> common name -> the set's own labels, with OR between them."""

NOTES: Mapping[str, str] = MappingProxyType(
    {
        "Consolidation": "ChestX-ray14 took the word of the report, and the same opacity is called infiltration or "
        "pneumonia in other reports; VinDr-CXR's readers drew what they saw.",
        "Infiltration": "A vague word that CheXpert, MIMIC-CXR and BRAX do not have (there it is Lung Opacity); in "
        "VinDr-CXR and PadChest it is rarer and narrower than in ChestX-ray14.",
        "Pneumonia": "A diagnosis, mined from reports in most sets; in RSNA an opacity that readers took for it, in "
        "VinDr-CXR a reader's impression, in two sets of children the hospital's diagnosis.",
        "Lung Opacity": "In CheXpert's family it covers edema, consolidation, pneumonia, lesion and atelectasis; in "
        "VinDr-CXR it is an opacity that no other label names, in RSNA one that may be pneumonia.",
        "Lung Lesion": "Nodule or mass. CheXpert's family does not tell them apart, nor does VinDr-CXR.",
        "No Finding": "None of the set's own labels, so it depends on how many there are; CheXpert's family allows "
        "support devices. In tuberculosis and COVID-19 sets it is a healthy person.",
        "Fracture": "Of any bone, new or old, in CheXpert's family and PadChest; of ribs and clavicles in VinDr-CXR; "
        "acute ones of ribs in CANDID-PTX.",
        "Hernia": "Hiatal in PadChest and IU X-ray; in ChestX-ray14 the report's word, which is mostly hiatal.",
        "Edema": "Of the lungs.",
        "Enlarged Cardiomediastinum": "In CheXpert's family it covers cardiomegaly.",
        "Support Devices": "PadChest's and IU X-ray's lists of devices were put together here.",
        "Tuberculosis": "VinDr-CXR and PadChest: an impression or a report; the tuberculosis sets: proven cases.",
        "COVID-19": "By a test of the patient, not by what is to be seen.",
    }
)
"""Common name -> where its meaning differs."""


def own_labels(set_name: str, label_names: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Common name -> the labels of a set that mean it, in the table's order; findings that it lacks are not there.

    set_name: with or without the size, "chestxray14/256"; of a set that the table does not know, labels count that are
    spelled like a common name but for capitals and underscores. label_names: those that the set was converted with.
    """
    meant = SETS.get(_family(set_name))
    if meant is None:
        spelled = {_plain(name): name for name in label_names}
        return {name: (spelled[_plain(name)],) for name in names(SETS) if _plain(name) in spelled}
    there = {name: tuple(label for label in labels.split(OR) if label in label_names) for name, labels in meant.items()}
    return {name: labels for name, labels in there.items() if labels}


def names(sets: Iterable[str]) -> list[str]:
    """The common names that some of these sets have, in alphabetical order."""
    return sorted(set().union(*(SETS.get(_family(name), {}) for name in sets)))


def codes(labels: np.ndarray, label_names: Sequence[str], own: Mapping[str, Sequence[str]]) -> np.ndarray:
    """A set's labels under common names: int8 n c, in the schema's codes and in the order of `own`.

    labels: n k, of label_names. own: common name -> labels, as `own_labels` gives them. Of several labels the strongest
    counts: present, else uncertain, else not mentioned; absent where all of them are.
    """
    strength = {ABSENT: 0, NOT_MENTIONED: 1, UNCERTAIN: 2, PRESENT: 3}
    weakest_first = np.array(list(strength), np.int8)
    place = np.zeros(labels.shape, np.int8)
    for code, rank in strength.items():
        place[labels == code] = rank
    known = list(label_names)
    columns = [place[:, [known.index(label) for label in each]].max(axis=1) for each in own.values()]
    return weakest_first[np.stack(columns, axis=1)]


def sentences(sets: Mapping[str, Sequence[str]]) -> list[str]:
    """The table of these sets in sentences: a line per finding, then what every set has besides.

    sets: name -> its label names.
    """
    own = {name: own_labels(name, labels) for name, labels in sets.items()}
    said = []
    for finding in sorted(set().union(*own.values())):
        meant = [f"{name} {' or '.join(mapped[finding])}" for name, mapped in own.items() if finding in mapped]
        without = [name for name, mapped in own.items() if finding not in mapped]
        line = f"{finding} = {'; '.join(meant)}" + (f"; not in {', '.join(without)}" if without else "")
        said.append(f"{line}. {NOTES[finding]}" if finding in NOTES else f"{line}.")
    for name, labels in sets.items():
        mapped = {label for each in own[name].values() for label in each}
        left = [label for label in labels if label not in mapped]
        if left:
            said.append(f"{name} has besides, under no common name: {', '.join(left)}.")
        if _family(name) not in SETS:
            said.append(f"{name} is not in the reviewed table: its labels were taken by their spelling.")
            said += [
                f"{label!r} is what {other} calls {finding}: rename the label of {name} where it means that."
                for label in left
                for other, finding in _called(label)
            ]
    return said


def _called(label: str) -> list[tuple[str, str]]:
    """(Set, common name) of the first set of the table that calls a finding, and no other one, by this spelling."""
    found = [
        (name, finding)
        for name, meant in SETS.items()
        for finding, labels in meant.items()
        if _plain(label) == _plain(labels)
    ]
    return found[:1] if len({finding for _, finding in found}) == 1 else []


def published(set_name: str) -> list[str]:
    """The labels of a set that the table knows, for a set that is not converted; raises ValueError for others."""
    if _family(set_name) not in SETS:
        raise ValueError(
            f"{set_name!r} is neither converted nor in the table of findings, which has {', '.join(SETS)}."
        )
    return list(dict.fromkeys(label for labels in SETS[_family(set_name)].values() for label in labels.split(OR)))


def _family(set_name: str) -> str:
    first = set_name.split("/")[0]
    return "phantom" if first.startswith("phantom") else first


def _plain(name: str) -> str:
    return name.replace("_", " ").lower()
