"""The phantom's radiology reports: findings and impression in varied words, true to the findings."""

from typing import NamedTuple

import numpy as np

from cxrjax.phantom.findings import BOTH, LEFT, Finding

_SIDE = {LEFT: "left", -LEFT: "right", BOTH: "bilateral"}
_GRADE = {
    "Cardiomegaly": ("mild", "moderate", "marked"),
    "Effusion": ("small", "moderate", "large"),
    "Pneumothorax": ("small", "moderate", "large"),
    "Edema": ("mild", "moderate", "severe"),
    "Consolidation": ("patchy", "focal", "dense"),
    "Atelectasis": ("minimal", "linear", "bandlike"),
    "Nodule": ("small", "well defined", "rounded"),
    "Mass": ("lobulated", "lobulated", "large"),
}
_PRESENT = {
    "Cardiomegaly": (
        "The heart is {grade}ly enlarged.",
        "There is {grade} cardiomegaly.",
        "{Grade} enlargement of the cardiac silhouette.",
        "The cardiothoracic ratio is increased, consistent with {grade} cardiomegaly.",
    ),
    "Effusion": (
        "There is a {grade} {side} pleural effusion.",
        "{Grade} {side} pleural effusion with blunting of the costophrenic angle.",
        "Blunting of the {side} costophrenic angle in keeping with a {grade} effusion.",
        "{Grade} volume of pleural fluid on the {side}.",
    ),
    "Pneumothorax": (
        "There is a {grade} {side} pneumothorax.",
        "{Grade} {side} apical pneumothorax with a visible pleural line.",
        "A visceral pleural line is seen on the {side}, consistent with a {grade} pneumothorax.",
        "{Side} pneumothorax, {grade} in size.",
    ),
    "Edema": (
        "There is {grade} pulmonary edema.",
        "Perihilar haziness and vascular indistinctness, consistent with {grade} pulmonary edema.",
        "{Grade} interstitial pulmonary edema in a perihilar distribution.",
        "Pulmonary vascular congestion with {grade} edema.",
    ),
    "Consolidation": (
        "{Grade} consolidation in the {side} {zone} lung zone.",
        "There is {grade} airspace consolidation in the {side} {zone} zone.",
        "{Grade} airspace opacity projects over the {side} {zone} lung, consistent with consolidation.",
        "{Side} {zone} zone consolidation, {grade} in appearance.",
    ),
    "Atelectasis": (
        "{Grade} atelectasis at the {side} base.",
        "There is {grade} {side} basilar atelectasis.",
        "Plate-like opacity at the {side} lung base, most compatible with {grade} atelectasis.",
        "{Side} lower zone {grade} atelectasis with mild volume loss.",
    ),
    "Nodule": (
        "A {grade} nodule of about {millimetres} mm is seen in the {side} {zone} zone.",
        "{Grade} {millimetres} mm nodule in the {side} {zone} lung zone.",
        "There is a {millimetres} mm {grade} pulmonary nodule projecting over the {side} {zone} zone.",
        "Nodular opacity in the {side} {zone} zone measuring approximately {millimetres} mm.",
    ),
    "Mass": (
        "A {grade} mass measuring about {centimetres} cm is present in the {side} {zone} zone.",
        "{Grade} {centimetres} cm mass in the {side} {zone} lung zone.",
        "There is a {centimetres} cm {grade} mass projecting over the {side} {zone} lung.",
        "{Side} {zone} zone mass, approximately {centimetres} cm in diameter.",
    ),
}
_BOTH_SIDES = {
    "Effusion": (
        "There are bilateral pleural effusions, {grade} in size.",
        "Bilateral pleural effusions, {grade}.",
        "Blunting of both costophrenic angles in keeping with {grade} bilateral effusions.",
    )
}
_ABSENT = {
    "Cardiomegaly": (
        "The heart size is normal.",
        "Heart size is within normal limits.",
        "The cardiac silhouette is not enlarged.",
        "No cardiomegaly.",
    ),
    "Effusion": ("No pleural effusion.", "There is no pleural effusion.", "The costophrenic angles are sharp."),
    "Pneumothorax": ("No pneumothorax.", "There is no pneumothorax.", "No evidence of pneumothorax."),
    "Edema": ("No pulmonary edema.", "Pulmonary vasculature is normal.", "There is no evidence of edema."),
    "Consolidation": ("No focal consolidation.", "No airspace consolidation.", "There is no focal consolidation."),
    "Atelectasis": ("No atelectasis.", "Lung volumes are preserved without atelectasis."),
    "Nodule": ("No pulmonary nodule.", "No suspicious nodule is seen."),
    "Mass": ("No mass.", "No pulmonary mass is identified."),
}
_CLEAR = ("The lungs are clear.", "Lungs are clear bilaterally.", "Both lungs are well aerated and clear.")
_PLAIN = (
    "The osseous structures are intact.",
    "No acute bony abnormality.",
    "Mediastinal contours are unremarkable.",
    "The visualized bones are unremarkable.",
    "The trachea is midline.",
)
_NORMAL = (
    "No acute cardiopulmonary abnormality.",
    "Normal chest radiograph.",
    "No acute cardiopulmonary disease.",
    "No radiographic evidence of acute disease.",
)
_SHORT = {
    "Cardiomegaly": ("{Grade} cardiomegaly.", "Cardiomegaly, {grade}."),
    "Effusion": ("{Grade} {side} pleural effusion.", "{Side} pleural effusion."),
    "Pneumothorax": ("{Grade} {side} pneumothorax.", "{Side} pneumothorax."),
    "Edema": ("{Grade} pulmonary edema.", "Pulmonary edema, {grade}."),
    "Consolidation": (
        "{Side} {zone} zone consolidation, concerning for pneumonia.",
        "Findings suggest {side} {zone} zone pneumonia with consolidation.",
    ),
    "Atelectasis": ("{Side} basilar atelectasis.", "{Grade} atelectasis at the {side} base."),
    "Nodule": ("{Side} {zone} zone nodule; CT follow-up is suggested.", "{Millimetres} mm nodule on the {side}."),
    "Mass": (
        "{Side} {zone} zone mass; CT is recommended.",
        "{Centimetres} cm {side} lung mass suspicious for malignancy.",
    ),
}


class Report(NamedTuple):
    findings: str
    impression: str

    @property
    def text(self) -> str:
        return f"FINDINGS: {self.findings} IMPRESSION: {self.impression}"


def dictate(findings: list[Finding], rng: np.random.Generator) -> Report:
    """Writes the report: what is there, some of what is not, then an impression."""
    present = [finding.label for finding in findings]
    positive = [_say(finding, _PRESENT, rng) for finding in findings]
    lung_disease = {"Consolidation", "Edema", "Atelectasis", "Nodule", "Mass"} & set(present)
    always = ["Cardiomegaly", "Effusion", "Pneumothorax"]
    sometimes = [label for label in _ABSENT if label not in always and rng.random() < 0.35]
    negative = [_choose(_ABSENT[label], rng) for label in always + sometimes if label not in present]
    rng.shuffle(positive)
    rng.shuffle(negative)
    plain = [_choose(_PLAIN, rng)] if rng.random() < 0.7 else []
    clear = [_choose(_CLEAR, rng)] if not lung_disease and rng.random() < 0.7 else []
    body = clear + positive + negative + plain if rng.random() < 0.75 else positive + plain + clear + negative
    impression = [_say(finding, _SHORT, rng) for finding in findings] or [_choose(_NORMAL, rng)]
    if len(impression) > 1 and rng.random() < 0.5:
        impression = [f"{number}. {sentence}" for number, sentence in enumerate(impression, 1)]
    elif findings and rng.random() < 0.25:
        missing = [label for label in ("Pneumothorax", "Effusion", "Consolidation") if label not in present]
        impression += [_ABSENT[missing[0]][0]] if missing else []
    return Report(" ".join(body), " ".join(impression))


def _choose(sentences, rng: np.random.Generator) -> str:
    return str(sentences[int(rng.integers(len(sentences)))])


def _say(finding: Finding, wording: dict, rng: np.random.Generator) -> str:
    if finding.side == BOTH and finding.label in _BOTH_SIDES and wording is _PRESENT:
        wording = _BOTH_SIDES
    words = {
        "grade": _GRADE[finding.label][finding.grade],
        "side": _SIDE[finding.side],
        "zone": finding.zone,
        "millimetres": f"{10 * finding.size:.0f}",
        "centimetres": f"{finding.size:.1f}",
    }
    words |= {name.capitalize(): word.capitalize() for name, word in words.items()}
    return _choose(wording[finding.label], rng).format(**words)
