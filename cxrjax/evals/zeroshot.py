"""Zero-shot judge: scores a finding by how much nearer a picture is to sentences that state it than to denials of it.

    score = σ((s₊ − s₋ − θ) / τ)        s₊, s₋: cosine of the picture to the vector of the sentences for and against

The vector of a side is the mean of the unit vectors of its sentences, scaled to unit length (the prompt ensemble of
CLIP, Radford et al., ICML 2021). With θ = 0 the score is CheXzero's softmax over the positive and the negative side
(Tiu et al., Nature Biomedical Engineering 2022). It orders the pictures as the difference s₊ − s₋ does. AUROC and AUPRC
therefore depend on neither τ nor θ.

Cosines to different sentences have different levels, so s₊ > s₋ alone does not mean that a finding is likely. θ is
therefore chosen per label, as the threshold with the highest balanced accuracy on the validation pictures. Accuracies
are measured at θ. Such scores are no probabilities. With `scaled` each finding has the τ and the θ that explain the
validation pictures best (Platt 1999). A task of several classes takes the softmax over the positive sides, without θ,
as GLoRIA does (Huang et al., ICCV 2021).
"""

import itertools
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import scipy.special

from cxrjax.datasets import schema
from cxrjax.evals import attention, certainty, joint, labelled
from cxrjax.evals.base import MASKED, Encoder, FeatureTable, Result, Targets, Task, make_task, targets
from cxrjax.evals.judge import Entry, Judge, Opened
from cxrjax.input.source import Source

_EFFUSION = {
    "positive": (
        "There is a (small|moderate|large) (left|right) pleural effusion.",
        "(Small|Large) bilateral pleural effusions.",
        "Blunting of the (left|right) costophrenic angle.",
    ),
    "negative": ("No pleural effusion.", "There is no pleural effusion.", "The costophrenic angles are sharp."),
}
PROMPTS = {
    "No Finding": {
        "positive": ("No acute cardiopulmonary abnormality.", "Normal chest radiograph.", "The lungs are clear."),
        "negative": (
            "There is (cardiomegaly|pulmonary edema|a pleural effusion|a pneumothorax|a mass).",
            "There is (atelectasis|consolidation).",
        ),
    },
    "Enlarged Cardiomediastinum": {
        "positive": (
            "The cardiomediastinal silhouette is (mildly|moderately|severely) enlarged.",
            "Widened mediastinum.",
        ),
        "negative": ("The cardiomediastinal silhouette is normal.", "Mediastinal contours are unremarkable."),
    },
    "Cardiomegaly": {
        "positive": (
            "There is (mild|moderate|marked) cardiomegaly.",
            "The heart is (mildly|moderately|markedly) enlarged.",
        ),
        "negative": ("The heart size is normal.", "No cardiomegaly.", "The cardiac silhouette is not enlarged."),
    },
    "Lung Opacity": {
        "positive": ("There is a (patchy|focal|hazy) opacity in the (left|right) (upper|lower) lung.",),
        "negative": ("The lungs are clear.", "No focal opacity."),
    },
    "Lung Lesion": {
        "positive": ("There is a (nodule|mass) in the (left|right) (upper|lower) lung.",),
        "negative": ("No pulmonary nodule or mass.", "No suspicious lesion is seen."),
    },
    "Edema": {
        "positive": ("There is (mild|moderate|severe) pulmonary edema.", "Pulmonary vascular congestion with edema."),
        "negative": ("No pulmonary edema.", "There is no evidence of edema.", "Pulmonary vasculature is normal."),
    },
    "Consolidation": {
        "positive": (
            "There is (patchy|focal|dense) airspace consolidation in the (left|right) (upper|middle|lower) zone.",
            "(Left|Right) (upper|middle|lower) zone consolidation.",
        ),
        "negative": ("No focal consolidation.", "There is no focal consolidation.", "No airspace consolidation."),
    },
    "Pneumonia": {
        "positive": (
            "(Left|Right) (upper|lower) lobe pneumonia.",
            "Findings are concerning for (focal|multifocal) pneumonia.",
        ),
        "negative": ("No evidence of pneumonia.", "There is no pneumonia."),
    },
    "Atelectasis": {
        "positive": (
            "There is (minimal|linear|bandlike) (left|right) basilar atelectasis.",
            "Atelectasis at the (left|right) base.",
        ),
        "negative": ("No atelectasis.", "Lung volumes are preserved without atelectasis."),
    },
    "Pneumothorax": {
        "positive": (
            "There is a (small|moderate|large) (left|right) pneumothorax.",
            "(Left|Right) apical pneumothorax.",
        ),
        "negative": ("No pneumothorax.", "There is no pneumothorax.", "No evidence of pneumothorax."),
    },
    "Pleural Effusion": _EFFUSION,
    "Effusion": _EFFUSION,
    "Pleural Other": {
        "positive": ("There is (left|right|bilateral|apical) pleural (thickening|scarring).",),
        "negative": ("No pleural thickening.", "The pleural surfaces are normal."),
    },
    "Fracture": {
        "positive": ("There is (an acute|a healed|a displaced) (left|right) rib fracture.",),
        "negative": ("No fracture.", "The osseous structures are intact.", "No acute bony abnormality."),
    },
    "Support Devices": {
        "positive": (
            "(An endotracheal tube|A nasogastric tube|A chest tube|A pacemaker|A central venous catheter) is in place.",
        ),
        "negative": ("No support devices.", "The tubes have been removed."),
    },
    "Nodule": {
        "positive": ("A (small|rounded) nodule is seen in the (left|right) (upper|middle|lower) zone.",),
        "negative": ("No pulmonary nodule.", "No suspicious nodule is seen."),
    },
    "Mass": {
        "positive": ("A (large|lobulated) mass is present in the (left|right) (upper|middle|lower) zone.",),
        "negative": ("No mass.", "No pulmonary mass is identified."),
    },
}
"""Label -> its prompts, for the labels of CheXpert and the phantom; our words, in the style of GLoRIA's templates."""

SIDES = ("positive", "negative")
_FLAT = 1e-6  # the least 1/τ


def expand(prompt: str) -> list[str]:
    """ "(mild|severe) edema" -> ["mild edema", "severe edema"]; several groups give every combination."""
    pieces = re.split(r"\(([^()]*\|[^()]*)\)", prompt)
    choices = [piece.split("|") if number % 2 else [piece] for number, piece in enumerate(pieces)]
    return [" ".join("".join(chosen).split()) for chosen in itertools.product(*choices)]


def sentences(prompts: str | Sequence[str]) -> list[str]:
    """All sentences that one prompt, or several, stand for (see `expand`)."""
    return [sentence for prompt in ((prompts,) if isinstance(prompts, str) else prompts) for sentence in expand(prompt)]


def sides(
    task: Task, names: Sequence[str], prompts: Mapping[str, Mapping[str, Any]]
) -> list[tuple[list[str], list[str]]]:
    """The sentences for and against each name of the answer key.

    prompts: label -> {"positive": prompts, "negative": prompts}; they replace those of PROMPTS. A prompt may hold
    alternatives (see `expand`), and a single one may be a string. In a binary task the positive prompts of its positive
    labels speak for it. Against it speak the positive prompts of its negative labels, or where it has none, the
    negative prompts of its positive labels. A multiclass task has no negative sides.
    Raises ValueError for a label without prompts, and for prompts of another form.
    """
    known = {**PROMPTS, **prompts}

    def say(labels, side):
        lacking = [label for label in labels if not known.get(label, {}).get(side)]
        if lacking:
            raise ValueError(
                f"there is no {side} prompt for {', '.join(map(repr, lacking))}; add prompts={{{lacking[0]!r}: "
                "{'positive': ('…',), 'negative': ('No …',)}} to the evaluation, or name other labels in its task; "
                f"there are prompts for {sorted(known)}"
            )
        return [sentence for label in labels for sentence in sentences(known[label][side])]

    for label, given in prompts.items():
        if not isinstance(given, Mapping) or set(given) - set(SIDES):
            raise ValueError(f"prompts of {label!r} are {given!r}; expected {{'positive': …, 'negative': …}}")
    if task.kind == "binary":
        against = say(task.negative, "positive") if task.negative else say(task.positive, "negative")
        return [(say(task.positive, "positive"), against)]
    if task.kind == "multiclass":
        return [(say([name], "positive"), []) for name in names]
    return [(say([name], "positive"), say([name], "negative")) for name in names]


def zeroshot(
    val: FeatureTable,
    test: FeatureTable,
    task: Task,
    label_names: Sequence[str],
    *,
    embed: Callable[[Sequence[str]], np.ndarray],
    prompts: Mapping[str, Mapping[str, Any]] | None = None,
    temperature: float = 0.07,
    scaled: bool = False,
    cover: float = 0.0,
    resamples: int = 1000,
    seed: int = 0,
) -> Result:
    """Judges test pictures by prompts, with thresholds chosen on val.

    val, test: their features are unit vectors of the shared space. label_names: the c columns of their labels. embed:
    sentences -> their unit vectors. prompts: see `sides`. temperature: τ, which changes how far the scores spread, not
    their order. scaled: takes a τ and a θ for each finding that explain val best, and of several classes one τ in the
    place of this one. cover: see `certainty.KEYS`.
    Raises ValueError for a patient in both splits, an unknown label, a label without prompts, and features that are NaN
    or infinite.
    """
    _check_temperature(temperature)
    certainty.check(scaled, cover)
    schema.assert_patients_disjoint({"val": val.patient_ids.tolist(), "test": test.patient_ids.tolist()})
    tables, keys, notes = {}, {}, []
    for split, table in (("val", joint.checked(val, "val")), ("test", joint.checked(test, "test"))):
        key = targets(task, table.labels, label_names)
        notes += [f"{split}: {note}" for note in key.notes]
        tables[split] = FeatureTable(*(column[key.keep] for column in table))
        keys[split] = key._replace(values=key.values[key.keep], keep=key.keep[key.keep])
    key, said = keys["test"], sides(task, keys["test"].names, prompts or {})
    if not len(key.values):
        raise ValueError(f"no test picture is left for this {task.kind} task; choose other labels")
    every = list(dict.fromkeys(sentence for part in said for side in part for sentence in side))
    placed = dict(zip(every, embed(every), strict=True))
    positive, negative = (
        [ensemble(np.stack([placed[sentence] for sentence in part[side]])) for part in said if part[side]]
        for side in (0, 1)
    )
    details: dict[str, Any] = {"judge": "zeroshot", "temperature": temperature, "prompts": {}}
    for name, part in zip(key.names, said, strict=True):
        details["prompts"][name] = dict(zip(SIDES, part, strict=True))
    direction = np.stack(positive, axis=1)  # d c
    several = task.kind == "multiclass"
    if not several:
        direction = direction - np.stack(negative, axis=1)
    margin = {split: table.features.astype(np.float64) @ direction for split, table in tables.items()}
    spread = np.full(len(key.names), temperature)
    if not several:
        levels, more = thresholds(keys["val"], margin["val"])
        notes += more
        if scaled:
            levels, spread = _explaining(keys["val"], margin["val"], levels, spread)
            details["temperatures"] = dict(zip(key.names, spread.tolist(), strict=True))
        else:
            details["score_thresholds"] = dict.fromkeys(key.names, 0.5)
        details["thresholds"] = dict(zip(key.names, levels.tolist(), strict=True))

    def scored(split: str) -> np.ndarray:
        if several:
            return scipy.special.softmax(margin[split] / temperature, axis=1)
        return scipy.special.expit((margin[split] - levels) / spread)

    of_all = scaled and several
    return labelled.conclude(
        task.kind, tables, keys, scored, notes, details, resamples, seed, scaled=of_all, cover=cover
    )


def _explaining(
    key: Targets, margin: np.ndarray, levels: np.ndarray, spread: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """θ and τ of each label, c each, that explain its answers best; as given where it has one value only.

    Where larger margins are no likelier, τ is so large that all pictures have about the label's rate.
    """
    levels, spread = levels.copy(), spread.copy()
    for c in range(len(key.names)):
        values = key.values[:, c]
        if set(values.tolist()) >= {0, 1}:
            a, b = certainty.slopes(values, margin[:, c])
            if a < _FLAT:
                a, b = _FLAT, scipy.special.logit((values == 1).sum() / (values != MASKED).sum())
            levels[c], spread[c] = -b / a, 1 / a
    return levels, spread


def ensemble(vectors: np.ndarray) -> np.ndarray:
    """The mean of unit vectors n d, scaled to unit length: d float64."""
    mean = vectors.astype(np.float64).mean(axis=0)
    return mean / max(np.linalg.norm(mean), 1e-12)


def thresholds(key: Targets, margin: np.ndarray) -> tuple[np.ndarray, list[str]]:
    """The best threshold of each label on `key` (see `labelled.best_threshold`), c float64, and notes.

    margin: n c. A label that is present in all pictures or in none keeps the threshold 0 and is named in the notes.
    """
    levels, without = np.zeros(margin.shape[1]), []
    for column, name in enumerate(key.names):
        values, here = key.values[:, column], margin[:, column]
        if not ((values == 1).any() and (values == 0).any()):
            without.append(repr(name))
            continue
        levels[column] = labelled.best_threshold(values, here)
    if not without:
        return levels, []
    return levels, [
        f"{', '.join(without)}: the validation pictures have positives only or negatives only, so the threshold stays "
        "at 0 and accuracies mean little"
    ]


def _check_temperature(temperature: float) -> None:
    if temperature <= 0:
        raise ValueError(f"zero-shot needs temperature > 0, got {temperature}")


def _judge(encoder: Encoder, entry: Entry, opened: Opened) -> Result:
    given = labelled.arguments(joint.pictures(encoder), entry, opened)
    embed = partial(joint.texts, encoder, batch_size=entry["batch_size"])
    found = zeroshot(
        **given, embed=embed, prompts=entry["prompts"], temperature=entry["temperature"], **certainty.given(entry)
    )
    return attention.add(encoder, opened.sources["test"], found, opened.pictures_bytes)


def _check(entry: Entry, sources: Mapping[str, Source]) -> None:
    _check_temperature(entry["temperature"])
    certainty.check(**certainty.given(entry))
    task, known = make_task(entry["task"]), sources["test"].converted_set.label_names
    sides(task, targets(task, labelled.blank(sources["test"]).labels, known).names, entry["prompts"])


JUDGE = Judge(
    "zeroshot",
    judge=_judge,
    check=_check,
    splits=("val", "test"),
    keys={
        "prompts": {},  # label -> {"positive": prompts, "negative": prompts}; they replace those of PROMPTS
        "temperature": 0.07,  # τ: how far the scores spread; it changes neither their order nor the threshold
        **certainty.KEYS,
    },
)
