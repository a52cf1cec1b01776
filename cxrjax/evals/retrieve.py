"""Retrieval judge: finds the report of a picture among those of a split, and the picture of a report.

Recall@k is the share of queries with a right answer among the k nearest candidates. Every study is a query and a
candidate: by its first frontal picture (PA before AP), and by its report. Reports with the same words, letter case
aside, are one answer: each of them is right for a picture of any of their studies, and each of these pictures is right
for the text. Each still takes a place of its own among the candidates. Where candidates are equally near, the expected
value over their orders counts, so an encoder that gives everything the same vector gains nothing. Chance is a random
order of the pictures, or of the distinct reports. Copies of a report are equally near to any picture, so they stay
together in that order.

Precision@k (GLoRIA, Huang et al., ICCV 2021) looks at the class only: it is the share of the k nearest that are of the
query's class. Its studies are drawn so that exactly one of the given labels is present in each (`draw`), as in CheXpert
5×200.

Intervals resample the patients of the queries. The candidates stay the same, so the intervals hold for a collection of
this size.
"""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas
import scipy.special

from cxrjax.config import names
from cxrjax.datasets.schema import PRESENT, UNCERTAIN
from cxrjax.evals import joint, metrics
from cxrjax.evals.base import Encoder, FeatureTable, Result, digest
from cxrjax.evals.features import source_digest
from cxrjax.evals.judge import Entry, Judge, Opened
from cxrjax.input.source import Source
from cxrjax.input.studies import studies

AT = (1, 5, 10)
DIRECTIONS = ("image_to_text", "text_to_image")
_CHUNK_VALUES = 2**24  # similarities held at once (64 MB)


class Gallery(NamedTuple):
    """s studies with reports.

    pictures: the first frontal of each. words: the m distinct reports. report: s, the number in `words` of each study's
    report. classes: s, the number of the one class that is present in each, or None. notes: what was left out.
    """

    pictures: Source
    words: list[str]
    report: np.ndarray
    classes: np.ndarray | None
    notes: list[str]


def gallery(
    source: Source,
    read: Callable[[Mapping[str, str]], str],
    *,
    classes: Sequence[str] = (),
    per_class: int = 200,
    limit: int = 0,
    seed: int = 0,
) -> Gallery:
    """The studies of a source that have a frontal picture and a report.

    read: report -> what the method reads of it, "" for nothing. classes: labels of which exactly one is present in each
    study; `per_class` studies are drawn for each of them (see `draw`). limit: the most studies where there are no
    classes, the same random ones every time; 0 takes all.
    Raises ValueError if no study is left, or a class has too few.
    """
    whole = studies(source, require_frontal=True, require_report=True)
    notes = [f"{count} studies {lacking} were left out" for lacking, count in whole.left_out.items() if count]
    table = whole.table
    chosen, kinds = np.arange(len(whole)), None
    if classes:
        codes = np.stack(table["labels"].tolist())
        known = list(source.converted_set.label_names)
        identity = (table["patient_id"] + "/" + table["study_id"]).tolist()
        drawn = draw(codes, known, identity, classes, per_class, seed)
        chosen, kinds = np.concatenate(drawn), np.repeat(np.arange(len(drawn)), per_class)
    elif 0 < limit < len(whole):
        notes.append(f"a random {limit:,} of {len(whole):,} studies, as the limit says")
        chosen = np.sort(np.random.default_rng(0).permutation(len(whole))[:limit])
    texts = [read(whole[int(item)]["report"]) for item in chosen]
    said = np.array([bool(text.strip()) for text in texts])
    if not said.all():
        notes.append(f"{(~said).sum()} studies were left out, because the method reads nothing of their reports")
    if not said.any():
        raise ValueError(
            f"the method reads nothing of any report of {whole!r}; see which sections it reads (config.text.sections)"
        )
    chosen, kinds = chosen[said], None if kinds is None else kinds[said]
    distinct, report, words = {}, [], []
    for text in (text for text, kept in zip(texts, said, strict=True) if kept):
        number = distinct.setdefault(" ".join(text.lower().split()), len(words))
        report.append(number)
        if number == len(words):
            words.append(text)
    first = whole.items[np.cumsum(whole.counts.sum(1)) - whole.counts.sum(1)][chosen]
    pictures = Source(source.converted_set, source.split, source.positions[first])
    return Gallery(pictures, words, np.array(report), kinds, notes)


def draw(
    labels: np.ndarray,
    label_names: Sequence[str],
    ids: Sequence[str],
    classes: Sequence[str],
    per_class: int = 200,
    seed: int = 0,
) -> list[np.ndarray]:
    """Draws studies for each class: it is present in them, the other classes are not, and no class is uncertain.

    labels: s c int8; label_names: c; ids: s. Labels that are no class do not matter (`chexpert.five_by_200` is
    stricter). The draw depends on seed and ids only. Returns the numbers of `per_class` studies for each class.
    Raises ValueError for an unknown class, or one with too few studies.
    """
    _check_classes(classes, label_names)
    codes = labels[:, [list(label_names).index(name) for name in classes]]
    alone = ((codes == PRESENT).sum(axis=1) == 1) & ~(codes == UNCERTAIN).any(axis=1)
    few, drawn = [], []
    for column, name in enumerate(classes):
        found = np.flatnonzero(alone & (codes[:, column] == PRESENT))
        if len(found) < per_class:
            few.append(f"{name} {len(found)}")
        order = sorted(found, key=lambda study: hashlib.sha256(f"retrieve|{seed}|{ids[int(study)]}".encode()).digest())
        drawn.append(np.array(order[:per_class], int))
    if few:
        raise ValueError(
            f"per_class asks for {per_class} studies per class in which it alone of {', '.join(classes)} is present; "
            f"there are too few of: {', '.join(few)}; lower per_class, or draw from a larger split"
        )
    return drawn


def retrieve(
    pictures: FeatureTable,
    texts: np.ndarray,
    report: np.ndarray,
    *,
    at: Sequence[int] = AT,
    classes: np.ndarray | None = None,
    class_names: Sequence[str] = (),
    resamples: int = 1000,
    seed: int = 0,
) -> Result:
    """Judges s studies in both directions.

    pictures: features s d, unit vectors of the shared space. texts: m d, the unit vectors of the distinct reports.
    report: s, the row of `texts` of each study's report. at: the k. classes: s, the class of each study, for
    precision@k as well; class_names: the names of the classes.
    Metrics are "<direction>_recall@k" and "<direction>_precision@k", the latter also per class. Their values by chance
    are in details["chance"] and in a note.
    Raises ValueError for features that are NaN or infinite, and for a k below 1.
    """
    at = checked(at)
    count, notes = len(report), []
    if at[-1] >= count:
        large = ", ".join(str(k) for k in at if k >= count)
        notes.append(f"k = {large} left out: among {count} candidates the k nearest are all of them")
        at = tuple(k for k in at if k < count)
        if not at:
            raise ValueError(f"every k is at least the number of candidates, {count}; give more studies or a smaller k")
    images = joint.checked(pictures, "judged").features
    columns, rows, chance = {}, {}, {}
    copies = np.bincount(report)
    right = copies[report]
    for direction in DIRECTIONS:
        if direction == "image_to_text":
            parts = _ranks(images, texts[report], report, at, classes)
        else:
            parts = _ranks(texts[report], images, report, at, classes)
        hits, precision, rank = (np.concatenate(part) for part in zip(*parts, strict=True))
        rows[f"rank/{direction}"] = rank
        for number, k in enumerate(at):
            columns[f"{direction}_recall@{k}"] = rows[f"hit/{direction}@{k}"] = hits[:, number]
            if direction == "image_to_text":
                chance[f"{direction}_recall@{k}"] = _found_by_chance(copies, k)
            else:
                chance[f"{direction}_recall@{k}"] = float(_any_right(right, count - right, k).mean())
            if classes is not None:
                columns[f"{direction}_precision@{k}"] = rows[f"precision/{direction}@{k}"] = precision[:, number]
                chance[f"{direction}_precision@{k}"] = float((np.bincount(classes)[classes] / count).mean())
                for kind, name in enumerate(class_names):
                    one = np.where(classes == kind, precision[:, number], np.nan)
                    columns[f"{direction}_precision@{k}/{name}"] = one
    found = metrics.mean_intervals(columns, pictures.patient_ids, resamples, seed)
    notes += [
        "chance: " + ", ".join(f"{name} {value:.4f}" for name, value in chance.items()),
        f"intervals resample the patients of the queries; the {count:,} candidates stay the same",
    ]
    twins = int((right > 1).sum())
    if twins:
        notes.append(
            f"{twins:,} of {count:,} reports have the same words as another one; each of these counts as right"
        )
    table = pandas.DataFrame(
        {"image_id": pictures.image_ids.astype(str), "patient_id": pictures.patient_ids.astype(str)}
    )
    table = table.assign(report=report, **rows)
    details: dict[str, Any] = {"judge": "retrieve", "chance": chance, "studies": count, "distinct_reports": len(texts)}
    details["patients"] = len(set(pictures.patient_ids))
    if classes is not None:
        details["classes"] = dict(zip(class_names, np.bincount(classes).tolist(), strict=True))
    return Result(found, table, notes, details)


def checked(at: Sequence[int]) -> tuple[int, ...]:
    """The k in ascending order, each once. Raises ValueError where there is none, or one is below 1."""
    found = tuple(sorted({int(k) for k in at}))
    if not found or found[0] < 1:
        raise ValueError(f"recall@k needs k >= 1, got {list(found)}")
    return found


def _ranks(
    queries: np.ndarray, candidates: np.ndarray, report: np.ndarray, at: Sequence[int], classes: np.ndarray | None
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Yields hits b k, precisions b k and the rank b of the first right answer, for one part of the queries at a time.

    All three are expected values over the orders of ties. queries, candidates: s d, one row per study.
    """
    rows = max(1, _CHUNK_VALUES // len(candidates))
    k = np.array(at)
    for start in range(0, len(queries), rows):
        part = slice(start, start + rows)
        # Equal vectors must be equally near to the last bit. Matrix products of different shapes do not give that.
        near = np.round(queries[part].astype(np.float64) @ candidates.T.astype(np.float64), 6)
        right = report[part, None] == report[None]
        best = np.where(right, near, -np.inf).max(axis=1, keepdims=True)
        above = (near > best).sum(axis=1)
        tied = near == best
        wrong, good = (tied & ~right).sum(axis=1), (tied & right).sum(axis=1)
        hits = _any_right(good[:, None], wrong[:, None], k - above[:, None])
        precision = np.zeros((len(near), 0 if classes is None else len(at)))
        if classes is not None:
            precision = _precision(near, classes[part, None] == classes[None], at)
        yield hits, precision, 1 + above + wrong / (good + 1)


def _found_by_chance(copies: np.ndarray, k: int, orders: int = 1000) -> float:
    """Share of studies whose report is among the first k candidates when the distinct reports are in a random order.

    copies: m, how many candidates have each report; they stay together. The mean over random orders, which are the same
    at every call.
    """
    generator, found = np.random.default_rng(0), 0
    for _ in range(orders):
        order = generator.permutation(copies)
        found += order[np.cumsum(order) - order < k].sum()
    return float(found / orders / copies.sum())


def _any_right(good: np.ndarray, wrong: np.ndarray, places: np.ndarray | int) -> np.ndarray:
    """Chance that at least one of `good` candidates is among `places` drawn without replacement from good + wrong."""
    places = np.minimum(np.maximum(places, 0), good + wrong)
    return np.where(places > wrong, 1.0, 1 - np.exp(_log_choose(wrong, places) - _log_choose(good + wrong, places)))


def _log_choose(n: np.ndarray, k: np.ndarray) -> np.ndarray:
    k = np.minimum(k, n)
    return scipy.special.gammaln(n + 1) - scipy.special.gammaln(k + 1) - scipy.special.gammaln(n - k + 1)


def _precision(near: np.ndarray, alike: np.ndarray, at: Sequence[int]) -> np.ndarray:
    """Share b k of the k nearest that are alike. alike: b s. Candidates that tie for the last places share them."""
    found = []
    ordered = -np.sort(-near, axis=1)
    for k in at:
        last = ordered[:, k - 1 : k]
        above, tied = near > last, near == last
        left = k - above.sum(axis=1)
        found.append(((above & alike).sum(axis=1) + left * (tied & alike).sum(axis=1) / tied.sum(axis=1)) / k)
    return np.stack(found, axis=1)


def _check_classes(classes: Sequence[str], label_names: Sequence[str]) -> None:
    if len(classes) < 2 or not set(classes) <= set(label_names):
        raise ValueError(f"classes must be two or more labels of {list(label_names)}; got {list(classes)}")


def _judge(encoder: Encoder, entry: Entry, opened: Opened) -> Result:
    ((split, source),) = opened.sources.items()
    classes = names(entry["classes"])
    options = {"classes": classes, "per_class": entry["per_class"], "limit": entry["limit"], "seed": opened.seed}
    found = gallery(source, joint.of(encoder).words, **options)
    result = retrieve(
        opened.features(joint.pictures(encoder), found.pictures),
        joint.texts(encoder, found.words, entry["batch_size"]),
        found.report,
        at=entry["at"],
        classes=found.classes,
        class_names=classes,
        resamples=entry["bootstrap"],
        seed=opened.seed,
    )
    notes = list(found.notes)
    if split == "train":
        notes.append("the studies are of the train split: an encoder that was trained on this set has seen them")
    inputs = {split: source_digest(found.pictures), "reports": digest(found.words, found.report)}
    return result._replace(notes=notes + result.notes, inputs=inputs)


def _check(entry: Entry, sources: Mapping[str, Source]) -> None:
    checked(entry["at"])
    if classes := names(entry["classes"]):
        ((_, source),) = sources.items()
        _check_classes(classes, source.converted_set.label_names)


JUDGE = Judge(
    "retrieve",
    judge=_judge,
    check=_check,
    splits=(),
    keys={
        "split": "test",  # whose studies are judged
        "at": AT,  # the k of recall@k
        "classes": (),  # labels of which exactly one is present in each study, for precision@k; () takes all studies
        "per_class": 200,  # studies of each of the classes
    },
    task_name="reports",
    instead_of_task="its key 'classes' names the labels for precision@k",
    limits_pictures=False,
    asks=("split", "at", "classes", "per_class"),
)
