"""Grounding: does a map of the encoder lie where readers marked a finding?

The map of a finding holds the cosines of the picture's patches to the words that state it: to the phrase of the report
that a box was drawn for, where the set has it (MS-CXR, PadChest-GR), or else to the prompts of `zeroshot`. An encoder
that was trained without reports has one map for all findings: where its [CLS] attends. Each map stands beside two that
have seen nothing: one that is high in the middle of the lungs, and noise on the same grid.

What is measured is in `map_measures`. A picture counts with the mean over its marked findings, or over its phrases.
Differences to the lungs' middle are paired.
"""

import zlib
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import pandas

from cxrjax import parallel
from cxrjax.evals import joint, map_measures, metrics, zeroshot
from cxrjax.evals.base import Encoder, Result
from cxrjax.evals.features import batches, fetch, share
from cxrjax.evals.judge import Entry, Judge, Opened
from cxrjax.input import boxes, crops, masks
from cxrjax.input.source import Source
from cxrjax.sizes import Px

MAPS = ("words", "sentence", "attention")
FEWEST_PATIENTS = 10
KINDS = ("", "_centre", "_random", "_over_centre")
"""Behind a measure's name: of the encoder's map, of the two that have seen nothing, and the difference to the first."""


class Mark(NamedTuple):
    """What readers marked as one finding in one picture.

    row: of the source. phrase: of the report, "" for none. inside: bool h w.
    """

    row: int
    finding: str
    phrase: str
    inside: np.ndarray


def marks(source: Source, target: str, finding: str, px: Px, sees: str = "image") -> Iterator[Mark]:
    """The marks of a source in its order, moved with the pictures as `crops.fit_as` moves them.

    px, sees: size and fit of the pictures. target: "boxes", whose labels are the findings; or a mask of the set, which
    shows `finding`.
    Raises ValueError for a target that the set does not have, and for a mask of another size than its picture.
    """
    for row in range(len(source)):
        example = source[row]
        if target == masks.BOXES and not boxes.labels(example):
            continue
        image = crops.decode(example["image"])
        regions = _regions(example, target, finding, image.shape)
        for (label, phrase), inside in regions.items():
            _, moved = masks.together(image, inside, partial(crops.fit_as, px=px, how=sees))
            yield Mark(row, label, phrase, moved > 0)


def _regions(
    example: Mapping[str, Any], target: str, finding: str, shape: tuple[int, ...]
) -> dict[tuple[str, str], np.ndarray]:
    """(Finding, phrase) -> its mask, uint8 h w; the boxes of one phrase are one."""
    height, width = shape
    if target != masks.BOXES:
        inside, known = masks.mask(example, target, (height, width))
        return {(finding, ""): inside} if known and inside.any() else {}
    found = boxes.of_example(example, ()).boxes
    about = list(zip(boxes.labels(example), boxes.phrases(example), strict=True))
    return {one: masks.union(found[[other == one for other in about]], (height, width)) for one in dict.fromkeys(about)}


def ground(
    found: Mapping[int, np.ndarray],
    marked: Sequence[Mark],
    patient_ids: np.ndarray,
    image_ids: np.ndarray,
    *,
    lungs: Mapping[int, np.ndarray] | None = None,
    resamples: int = 1000,
    seed: int = 0,
) -> Result:
    """Judges maps by marks.

    found: number of a mark -> its map p q. marked: m. patient_ids, image_ids: n, of the rows of the source. lungs: row
    -> bool h w, where they are known.
    A finding of fewer than FEWEST_PATIENTS patients has no numbers of its own. Maps with NaN and marks of which the
    picture shows nothing, or nothing else, are left out; the notes count them. Raises ValueError if nothing is left.
    """
    rows, broken, empty = [], [], []
    for number, mark in enumerate(marked):
        if not np.isfinite(found[number]).all():
            broken.append(mark)
        elif not mark.inside.any() or mark.inside.all():
            empty.append(mark)
        else:
            rows.append((mark, _values(found[number], mark, str(image_ids[mark.row]), lungs or {})))
    notes = []
    for left, why in ((broken, "has a map of NaN or infinite values"), (empty, "is no part of the fitted picture")):
        if left:
            first = str(image_ids[left[0].row])
            notes.append(f"{len(left):,} of {len(marked):,} marks were left out, {first!r} is the first: it {why}")
    if not rows:
        raise ValueError(f"no mark is left to judge maps by; {'; '.join(notes) or 'no picture has any'}")
    names = [f"{measure}{kind}" for kind in KINDS for measure in map_measures.MEASURES]
    values = np.stack([one for _, one in rows])
    place, findings = np.array([mark.row for mark, _ in rows]), np.array([mark.finding for mark, _ in rows])
    judged = np.unique(place)
    columns = dict(zip(names, _means(values, place, judged).T, strict=True))
    counts = {}
    for finding in np.unique(findings).tolist():
        own = findings == finding
        counts[finding] = int(own.sum())
        patients = len(set(patient_ids[place[own]]))
        if patients < FEWEST_PATIENTS:
            notes.append(f"{finding!r} has no numbers of its own: it is marked in {patients} patients, fewer than ten")
            continue
        of_pictures = _means(values[own], place[own], judged)
        columns |= {f"{name}/{finding}": column for name, column in zip(names, of_pictures.T, strict=True)}
    predictions = pandas.DataFrame({"image_id": image_ids[judged], "patient_id": patient_ids[judged]})
    predictions = predictions.assign(**{f"value/{name}": column for name, column in columns.items()})
    intervals = metrics.mean_intervals(columns, patient_ids[judged], resamples, seed)
    details = {"judge": "ground", "marks": counts, "thresholds": list(map_measures.THRESHOLDS)}
    return Result(intervals, predictions, notes, details)


def _means(values: np.ndarray, rows: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Mean of the values m k of each wanted row (n, ascending), NaN left out: n k, NaN where a row has none."""
    known = np.isfinite(values)
    sums, counts = np.zeros((2, len(wanted), values.shape[1]))
    np.add.at(sums, np.searchsorted(wanted, rows), np.where(known, values, 0))
    np.add.at(counts, np.searchsorted(wanted, rows), known)
    return np.divide(sums, counts, out=np.full_like(sums, np.nan), where=counts > 0)


def _values(found: np.ndarray, mark: Mark, image_id: str, lungs: Mapping[int, np.ndarray]) -> np.ndarray:
    """All measures of a mark, in the order of KINDS."""
    noise = np.random.default_rng(zlib.crc32(f"{image_id}/{mark.finding}/{mark.phrase}".encode())).random(found.shape)
    centre = map_measures.centre_of_lungs(mark.inside.shape, lungs.get(mark.row))
    own, middle, random = (map_measures.measures(one, mark.inside) for one in (found, centre, noise))
    return np.concatenate([own, middle, random, own - middle])


def _vectors(encoder: Encoder, marked: Sequence[Mark], entry: Entry) -> np.ndarray:
    """The direction of each mark's sentences in the shared space, m d."""
    known = {**zeroshot.PROMPTS, **entry["prompts"]}
    lacking = sorted(
        {mark.finding for mark in marked if not mark.phrase and "positive" not in known.get(mark.finding, {})}
    )
    if lacking:
        raise ValueError(
            f"there is no positive prompt for {', '.join(map(repr, lacking))}; add prompts={{{lacking[0]!r}: "
            f"{{'positive': ('…',)}}}} to the evaluation; there are prompts for {sorted(known)}"
        )
    said = [[mark.phrase] if mark.phrase else zeroshot.sentences(known[mark.finding]["positive"]) for mark in marked]
    every = list(dict.fromkeys(sentence for one in said for sentence in one))
    of_words = entry["maps"] == "words"
    placed = dict(zip(every, joint.texts(encoder, every, entry["batch_size"], of_words=of_words), strict=True))
    return np.stack([np.mean([placed[sentence] for sentence in one], axis=0) for one in said])


def _maps(
    encoder: Encoder, source: Source, marked: Sequence[Mark], entry: Entry, limit: float
) -> dict[int, np.ndarray]:
    """Number of a mark -> its map p q."""
    of_row: dict[int, list[int]] = {}
    for number, mark in enumerate(marked):
        of_row.setdefault(mark.row, []).append(number)
    rows = sorted(of_row)
    some = Source(source.converted_set, source.split, source.positions[rows])
    own, size = share(some, entry["batch_size"], encoder.mesh)
    vectors = None if entry["maps"] == "attention" else _vectors(encoder, marked, entry)
    look = encoder.attention if vectors is None else lambda images: joint.of(encoder).image(images)["patches"]
    found, done = {}, 0
    for images in batches(encoder, own, size, limit):
        images = images if encoder.mesh is None else parallel.to_global(images, encoder.mesh)
        seen = None if look is None else look(images)
        if seen is None:
            raise ValueError(
                f"{encoder.name!r} has no map of attention; judge a checkpoint of a Vision Transformer whose [CLS] is "
                "its feature, and name no references"
            )
        for patches in fetch(seen)[: len(rows) - done]:
            for number in of_row[rows[done]]:
                found[number] = patches if vectors is None else patches @ vectors[number]
            done += 1
    return found


def _judge(encoder: Encoder, entry: Entry, opened: Opened) -> Result:
    (source,) = opened.sources.values()
    px, sees = encoder.image_px, encoder.sees
    marked = list(marks(source, entry["target"], entry["finding"], px, sees))
    if not marked:
        raise ValueError(f"no picture of split {source.split!r} of {source.converted_set.name!r} has {entry['target']}")
    lungs = {}
    if "has_mask" in source[0]:  # a mask of the lungs
        rows = sorted({mark.row for mark in marked})
        some = Source(source.converted_set, source.split, source.positions[rows])
        lungs = {rows[mark.row]: mark.inside for mark in marks(some, "mask", "lungs", px, sees)}
    found = _maps(encoder, source, marked, entry, opened.pictures_bytes)
    about = [source.table[name].to_numpy(str) for name in ("patient_id", "image_id")]
    result = ground(found, marked, *about, lungs=lungs, resamples=entry["bootstrap"], seed=opened.seed)
    return result._replace(details={**result.details, "maps": entry["maps"], "target": entry["target"]})


def _check(entry: Entry, sources: Mapping[str, Source]) -> None:
    if entry["maps"] not in MAPS:
        raise ValueError(f"maps={entry['maps']!r} is not known; choose one of {list(MAPS)}")
    if entry["target"] != masks.BOXES and not entry["finding"]:
        raise ValueError(f"target={entry['target']!r} is a mask; say what it shows, such as finding='Pneumothorax'")
    (source,) = sources.values()
    masks.mask(source[0], entry["target"], crops.decode(source[0]["image"]).shape)


JUDGE = Judge(
    "ground",
    judge=_judge,
    check=_check,
    splits=(),
    keys={
        "split": "test",
        "maps": "words",  # mean over the words of a sentence; or sentence, its vector as a whole; or attention
        "target": masks.BOXES,  # or a mask: finding_mask, mask_<name>
        "finding": "",  # what a mask shows
        "prompts": {},  # label -> {"positive": prompts}, for marks without a phrase; they replace those of `zeroshot`
    },
    task_name="maps",
    instead_of_task="it judges maps by what 'target' marks",
    asks=("split", "target", "finding"),
)
