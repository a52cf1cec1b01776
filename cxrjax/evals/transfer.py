"""From one set to another: heads that are fitted on each of several parts, and tested on all of them.

A part is a set, or those of its pictures that fit some conditions, such as "chexpert; padchest view=PA; vindr_cxr
age=18-". Labels of several sets are taken under common names (`datasets/findings.py`). Only findings count that every
part has, teaches and can judge, so that all numbers are means over the same ones. For each part the probe's logistic
regression is fitted on its train, with the strength and the thresholds (best balanced accuracy) chosen on its val.

    auroc_own/B            head of B on the test patients of B
    auroc_across/A on B    head of A on them
    drop/A on B            auroc_own/B − auroc_across/A on B, on the same resampled patients
    sensitivity/A on B     at the thresholds of A; specificity as well, of A = B too
    sensitivity_gap/A on B     that of A on its own test patients − that on those of B: what a fixed threshold loses

Without "/…" they are means over the pairs. A patient of B's val or test is never in train or val of A: parts of one set
have its splits in common, and those whom sets share are left out (`input/overlap.py`). Patients of all parts are
resampled together; those of one set are the same patients in each of its parts.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import pandas

from cxrjax.config import names, sets_of
from cxrjax.datasets import findings, schema
from cxrjax.evals import labelled, metrics, opening, probe
from cxrjax.evals.base import MASKED, Encoder, FeatureTable, Result, Targets, Task, bounds
from cxrjax.evals.features import source_digest
from cxrjax.evals.judge import Entry, Judge, Opened
from cxrjax.evals.metrics import Measures
from cxrjax.input import overlap, policies
from cxrjax.input.source import Source

SPLITS = ("train", "val", "test")
CONDITIONS = ("view", "sex", "age")
MEANS = ("auroc_across", "auroc_own", "drop", "sensitivity", "specificity", "sensitivity_gap", "specificity_gap")


class Part(NamedTuple):
    """name: as given, for the metrics; conditions: of CONDITIONS, such as {"view": "PA"}."""

    name: str
    set: str
    conditions: Mapping[str, str]


def parse(text: str) -> list[Part]:
    """Parts of "set view=PA+AP sex=F age=18-64; set; …"; an age may lack an end.

    Raises ValueError for other words, and for fewer than two parts.
    """
    found = []
    for words in (part.split() for part in text.split(";")):
        if not words:
            continue
        given = {key: value for key, _, value in (word.partition("=") for word in words[1:])}
        wrong = [key for key, value in given.items() if key not in CONDITIONS or not value]
        wrong += [f"view={given['view']}"] if set(given.get("view", "PA").split("+")) - set(schema.PROJECTIONS) else []
        low, dash, high = given.get("age", "0-").partition("-")
        wrong += [f"age={given['age']}"] if not (dash and (low + high).isdigit()) else []
        if wrong:
            raise ValueError(
                f"parts: {' '.join(words)!r} has {', '.join(wrong)}; a set is followed by view= "
                f"({', '.join(schema.PROJECTIONS)}, with + between), sex=F or M, or age=LOW-HIGH"
            )
        found.append(Part(" ".join(words), words[0], given))
    if len({part.name for part in found}) < max(2, len(found)):
        raise ValueError(
            f"parts={text!r}: give at least two different parts with ; between, such as 'chexpert; padchest' or "
            "'phantom view=PA; phantom view=AP'"
        )
    return found


def fitting(table: pandas.DataFrame, part: Part) -> np.ndarray:
    """Which rows of a set's index fit the part's conditions: n bool. A picture of which that is not known does not.

    Raises ValueError for a set that does not record one of them, and where no row fits.
    """
    keep = np.ones(len(table), bool)
    for key, wanted in part.conditions.items():
        if key not in table:
            raise ValueError(f"parts: {part.name!r} asks for {key}, which set {part.set!r} does not record")
        if key == "age":
            low, _, high = wanted.partition("-")
            ages = table["age"].to_numpy()
            keep &= (ages >= max(0, int(low or 0))) & (ages <= (int(high) if high else np.inf))
        else:
            keep &= table[key].isin(wanted.split("+")).to_numpy()
    if not keep.any():
        counts = ", ".join(f"{name} {count}" for name, count in table["view"].value_counts().items())
        raise ValueError(
            f"parts: none of the {len(table)} pictures of a split of {part.set!r} is of {part.name!r}; {counts}"
        )
    return keep


class Taught(NamedTuple):
    """Tables and keys of the splits of each part, over the findings that count; notes, and what was decided."""

    tables: dict[str, dict[str, FeatureTable]]
    keys: dict[str, dict[str, Targets]]
    notes: list[str]
    details: dict[str, Any]


def gather(entry: Entry, features_of: Callable[[Source], FeatureTable]) -> tuple[Taught, dict[str, Source]]:
    """The parts of an entry, and the sources that were read: "split of set" -> source, each read once.

    Raises ValueError for parts that have no finding in common, and for what the conditions or the overlap leave empty.
    """
    parts = parse(entry["parts"])
    if entry["set"] != parts[0].set:
        raise ValueError(f"set={entry['set']!r} must be the set of the first of the parts, {parts[0].set!r}")
    if entry["policy"]:
        policies.check(entry["policy"])
    sets = sets_of(entry)
    opened = {name: opening.sources(JUDGE, {**entry, "set": name}) for name in sets}
    notes = [f"{name}, {note}" for name, (_, said) in opened.items() for note in said]
    label_names = {name: sources["test"].converted_set.label_names for name, (sources, _) in opened.items()}
    own = _names(label_names)
    common, left = _common(own, names(entry["findings"]))
    excluded, said = _shared_patients({name: one for name, (one, _) in opened.items()}, entry["data_dir"] or None)
    notes += said
    tables: dict[str, dict[str, FeatureTable]] = {part.name: {} for part in parts}
    for name, (sources, _) in opened.items():
        meant = {finding: own[name][finding] for finding in common}
        for split, source in sources.items():
            table, whole = source.table, features_of(source)
            codes = findings.codes(whole.labels, label_names[name], meant)
            for part in (part for part in parts if part.set == name):
                keep = fitting(table, part)
                if split != "test":
                    keep &= ~np.isin(whole.patient_ids, list(excluded[name]))
                tables[part.name][split] = FeatureTable(*(column[keep] for column in whole._replace(labels=codes)))
    taught = _usable(tables, common, entry["policy"], left)
    meanings = {finding: {name: own[name][finding] for name in sets} for finding in taught.details["findings"]}
    details = {**taught.details, "meant": meanings}
    counted = taught.details["findings"] if len(sets) > 1 else []
    notes += taught.notes + [f"{one}: {findings.NOTES[one]}" for one in counted if one in findings.NOTES]
    inputs = {f"{split} of {name}": one for name, (sources, _) in opened.items() for split, one in sources.items()}
    return taught._replace(notes=notes, details=details), inputs


def _names(label_names: Mapping[str, Sequence[str]]) -> dict[str, dict[str, tuple[str, ...]]]:
    """Set -> finding -> the set's labels; parts of one set have its labels as they are."""
    if len(label_names) == 1:
        return {name: {label: (label,) for label in labels} for name, labels in label_names.items()}
    return {name: findings.own_labels(name, labels) for name, labels in label_names.items()}


def _common(own: Mapping[str, Mapping[str, Any]], wanted: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """Findings that all sets have, and why others are left out."""
    every = list(dict.fromkeys(name for mapped in own.values() for name in mapped))
    if unknown := [name for name in wanted if name not in every]:
        raise ValueError(f"findings {unknown} are in none of these sets; there are {', '.join(sorted(every))}")
    left = {}
    for finding in sorted(wanted or every):
        if without := [name for name, mapped in own.items() if finding not in mapped]:
            left[finding] = f"not in {', '.join(without)}"
        elif not wanted and all(_made_of_others(finding, mapped) for mapped in own.values()):
            left[finding] = "other findings together"
    common = [finding for finding in sorted(wanted or every) if finding not in left]
    if not common:
        raise ValueError(f"{' and '.join(own)} have no finding in common: {_listed(left)}")
    return common, left


def _made_of_others(finding: str, mapped: Mapping[str, Sequence[str]]) -> bool:
    """Whether a set has each label of a finding as a finding of its own, such as Mass and Nodule."""
    alone = {labels[0] for name, labels in mapped.items() if name != finding and len(labels) == 1}
    return len(mapped[finding]) > 1 and set(mapped[finding]) <= alone


def _shared_patients(
    sources: Mapping[str, Mapping[str, Source]], data_dir: str | None
) -> tuple[dict[str, set[str]], list[str]]:
    """Set -> patients who are in val or test of another one, and what to tell the user."""
    asked = [(name, of_set[split]) for name, of_set in sources.items() for split in ("train", "val")]
    try:
        found = overlap.exclusions([source for _, source in asked], list(sources), data_dir)
    except ValueError as error:
        raise ValueError(
            f"one of {', '.join(sources)} shares all patients of its train or val with val or test of another one, so "
            f"nothing is left to teach a head or to choose by: {error}"
        ) from error
    excluded: dict[str, set[str]] = {name: set() for name in sources}
    for (name, _), patients in zip(asked, found.patient_ids, strict=True):
        excluded[name] |= patients
    return excluded, list(found.sentences)


def _usable(
    tables: Mapping[str, Mapping[str, FeatureTable]], common: Sequence[str], policy: str, left: Mapping[str, str]
) -> Taught:
    """Keeps the findings that have both values in all splits of all parts."""
    task, left, notes = Task("multilabel", labels=tuple(common), policy=policy), dict(left), []
    kept, keys = {}, {}
    for name, splits in tables.items():
        kept[name], keys[name], said = labelled.usable(splits, task, common)
        notes += [f"{name}, {note}" for note in said]
        for split, key in keys[name].items():
            for finding, column in zip(common, key.values.T, strict=True):
                if not {0, 1} <= set(column.tolist()):
                    left.setdefault(finding, f"without both values in {split} of {name}")
    counted = [finding for finding in common if finding not in left]
    if not counted:
        raise ValueError(f"no finding has both values in every split of {'; '.join(tables)}: {_listed(left)}")
    columns = [list(common).index(finding) for finding in counted]
    keys = {
        name: {
            split: key._replace(names=tuple(counted), values=key.values[:, columns]) for split, key in of_part.items()
        }
        for name, of_part in keys.items()
    }
    notes.append(f"judged on the {len(counted)} findings that every part has: {', '.join(counted)}")
    if left:
        notes.append(f"left out: {_listed(left)}")
    return Taught(kept, keys, notes, {"findings": counted, "left_out": left})


def transfer(taught: Taught, strengths: Sequence[float], resamples: int = 1000, seed: int = 0) -> Result:
    """Fits a head on every part and judges it on every part's test patients; the top of the file has the metrics."""
    rows, details, notes = [], {}, list(taught.notes)
    heads, thresholds = {}, {}
    for name, tables in taught.tables.items():
        keys = taught.keys[name]
        heads[name], details[name], said = probe.fitted(tables, keys, "multilabel", "logistic", strengths)
        thresholds[name] = labelled.score_thresholds(keys["val"], probe.scores(heads[name], tables["val"].features))
        details[name]["thresholds"] = thresholds[name]
        notes += [f"{name}: {note}" for note in said]
    for name, tables in taught.tables.items():
        test, key = tables["test"], taught.keys[name]["test"]
        scores = {head: probe.scores(fitted, test.features) for head, fitted in heads.items()}
        rows.append(_predictions(name, test, key, scores, thresholds))
    predictions = pandas.concat(rows, ignore_index=True)
    measured = measures(predictions)
    values = metrics.named(measured, measured.statistic(np.ones((len(predictions), 1))).T)
    drawn = metrics.bootstrap(measured.statistic, predictions["patient_id"].to_numpy(str), resamples, seed)
    samples = metrics.named(measured, drawn)
    sizes = {name: measured.judged.get(name, len(predictions)) for name in values}
    found = {name: metrics.interval(values[name][0], samples[name], sizes[name]) for name in values}
    notes += metrics.degenerate_notes({name: samples[name] for name in samples if "/" in name}, resamples)
    for judged in taught.tables:
        own, others = found[f"auroc_own/{judged}"], [name for name in taught.tables if name != judged]
        across = [
            f"{found[f'auroc_across/{name} on {judged}'].value:.3f} by that of {name}, a drop of "
            f"{drop.value:+.3f}{bounds(drop.low, drop.high, '+.3f')}"
            for name in others
            for drop in [found[f"drop/{name} on {judged}"]]
        ]
        notes.append(
            f"on {judged}: AUROC {own.value:.3f}{bounds(own.low, own.high)} by its own head; {'; '.join(across)}"
        )
    sizes = {
        name: {
            split: {"pictures": len(table.image_ids), "patients": len(set(table.patient_ids))}
            for split, table in tables.items()
        }
        for name, tables in taught.tables.items()
    }
    about = {"judge": "transfer", "heads": details, "splits": sizes}
    return Result(found, predictions, notes, {**about, **taught.details})


def _predictions(
    part: str,
    test: FeatureTable,
    key: Targets,
    scores: Mapping[str, np.ndarray],
    thresholds: Mapping[str, Mapping[str, float]],
) -> pandas.DataFrame:
    """A row per test picture of a part: truth/<finding>, and by every head score/… and called/<head>/<finding>."""
    set_name = part.split()[0]
    columns: dict[str, Any] = {
        "image_id": [f"{part}: {one}" for one in test.image_ids],
        "patient_id": [f"{overlap.base(set_name)}: {one}" for one in test.patient_ids],
        "part": part,
    }
    columns |= {f"truth/{name}": key.values[:, c] for c, name in enumerate(key.names)}
    for head, of_head in scores.items():
        for c, name in enumerate(key.names):
            columns[f"score/{head}/{name}"] = of_head[:, c]
            columns[f"called/{head}/{name}"] = (of_head[:, c] >= thresholds[head][name]).astype(np.int8)
    return pandas.DataFrame(columns)


def measures(table: pandas.DataFrame) -> Measures:
    """The metrics of a table of predictions of this judge as a function of weights; see the top of the file."""
    parts = list(dict.fromkeys(table["part"]))
    labels = [column.removeprefix("truth/") for column in table if column.startswith("truth/")]
    rows_of = {part: np.flatnonzero(table["part"] == part) for part in parts}
    cells = {(head, part): _cell(table.iloc[rows_of[part]], head, labels) for head in parts for part in parts}
    pairs = [pair for pair in cells if pair[0] != pair[1]]
    sizes = {f"auroc_own/{part}": len(rows_of[part]) for part in parts}
    for metric in ("auroc_across", "drop"):
        sizes |= {f"{metric}/{head} on {part}": len(rows_of[part]) for head, part in pairs}
    for metric in ("sensitivity", "specificity"):
        sizes |= {f"{metric}/{head} on {part}": len(rows_of[part]) for head, part in cells}
        sizes |= {f"{metric}_gap/{head} on {part}": len(rows_of[part]) for head, part in pairs}

    def statistic(weights: np.ndarray) -> np.ndarray:
        found = {pair: cell(weights[rows_of[pair[1]]]) for pair, cell in cells.items()}  # pair -> 3 r
        own = {part: found[part, part] for part in parts}
        lines = [own[part][0] for part in parts]
        lines += [found[pair][0] for pair in pairs]
        lines += [own[pair[1]][0] - found[pair][0] for pair in pairs]
        for place in (1, 2):
            lines += [cell[place] for cell in found.values()]
            lines += [own[pair[0]][place] - found[pair][place] for pair in pairs]
        return np.stack(lines)

    return Measures(list(sizes), statistic, list(MEANS), len(sizes), {}, sizes, [])


def _cell(rows: pandas.DataFrame, head: str, labels: Sequence[str]) -> Callable[[np.ndarray], np.ndarray]:
    """Weights n r of a part's pictures -> 3 r: AUROC, sensitivity and specificity of a head, means over the labels."""
    truth = [rows[f"truth/{name}"].to_numpy() for name in labels]
    ranked = [
        metrics.rank(of_label, rows[f"score/{head}/{name}"].to_numpy())
        for name, of_label in zip(labels, truth, strict=True)
    ]
    called = [rows[f"called/{head}/{name}"].to_numpy() for name in labels]
    right = [np.where(of_label == MASKED, 0, said == of_label) for said, of_label in zip(called, truth, strict=True)]
    shares = [
        metrics.known_means(
            np.stack([np.where(of_label == value, hit, np.nan) for hit, of_label in zip(right, truth, strict=True)])
        )
        for value in (1, 0)
    ]

    def measure(weights: np.ndarray) -> np.ndarray:
        area = np.mean([metrics.ranked_areas(one, weights)[0] for one in ranked], axis=0)
        return np.stack([area, *(share(weights).mean(axis=0) for share in shares)])

    return measure


def _listed(left: Mapping[str, str]) -> str:
    reasons: dict[str, list[str]] = {}
    for finding, why in left.items():
        reasons.setdefault(why, []).append(finding)
    return "; ".join(f"{', '.join(each)} ({why})" for why, each in reasons.items())


def _judge(encoder: Encoder, entry: Entry, opened: Opened) -> Result:
    taught, sources = gather(entry, partial(opened.features, encoder))
    found = transfer(taught, probe.checked("logistic", entry["strengths"]), entry["bootstrap"], opened.seed)
    return found._replace(inputs={name: source_digest(source) for name, source in sources.items()})


def _check(entry: Entry, sources: Mapping[str, Source]) -> None:
    probe.checked("logistic", entry["strengths"])
    gather(entry, labelled.blank)


JUDGE = Judge(
    "transfer",
    judge=_judge,
    check=_check,
    splits=SPLITS,
    keys={
        "parts": "",  # "chexpert; padchest view=PA; vindr_cxr age=18-": sets, with conditions; `set` is the first one's
        "findings": "",  # to judge by, comma-separated; common names, or labels of a single set; "" takes all in common
        "policy": "U-Ignore",  # of uncertain labels, see `policies`; "" leaves out those that are not mentioned, too
        "strengths": probe.STRENGTHS,  # as of the probe
    },
    task_name="findings",
    instead_of_task="its keys parts and findings say what is judged",
    asks=("parts", "findings", "policy"),
)
