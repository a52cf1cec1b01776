"""Pictures in memory as a converted set, which runs train on and judges look at like any other."""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from cxrjax.datasets import beside, schema, writer
from cxrjax.datasets.manifest import Row
from cxrjax.imaging import arrays, fingerprint, pixels


def make_set(
    name: str,
    images: Any,
    *,
    patients: Sequence[str] | None = None,
    labels: Mapping[str, Sequence[int]] | None = None,
    projection: str = "PA",
    value_range: arrays.Range | None = None,
    short_side: int = 256,
    data_dir: str | Path | None = None,
) -> Path:
    """Writes pictures as a converted set `name` into the data folder, in place of one of that name; returns its folder.

    images: array b h w, or a list of paths, DICOM datasets and arrays h w; kinds and value_range as of `arrays.grey`.
    patients: whose each picture is; by default each is another patient's. Splits are by patient, 80 / 10 / 10 %.
    labels: of each finding a value per picture: 1 present, 0 absent, -1 uncertain, -2 not mentioned.
    projection: how all were taken: PA, AP, LATERAL or UNKNOWN. short_side: pixels of the stored pictures.
    Raises ValueError naming the picture or list that does not fit.
    """
    given, labels = arrays.separate(images), dict(labels or {})
    patients = [f"{number:06d}" for number in range(len(given))] if patients is None else list(map(str, patients))
    for what, values in {"patients": patients, **{f"labels[{key!r}]": each for key, each in labels.items()}}.items():
        if len(values) != len(given):
            raise ValueError(f"{what} has {len(values)} entries, and there are {len(given)} pictures")
    wrong = {int(value) for each in labels.values() for value in each} - {1, 0, -1, -2}
    if wrong:
        raise ValueError(f"labels are 1, 0, -1 (uncertain) or -2 (not mentioned), but {sorted(wrong)} was given")
    splits = [schema.assign_split(name, patient) for patient in patients]
    ids = [f"{number:06d}" for number in range(len(given))]
    if projection not in schema.PROJECTIONS:
        raise ValueError(f"projection is {projection!r}; it must be one of {', '.join(schema.PROJECTIONS)}")
    rows = [Row(Path(), *row, projection) for row in zip(ids, patients, ids, splits, strict=True)]

    def examples(split: str) -> Iterator[tuple[str, dict[str, Any]]]:
        for number, row in enumerate(rows):
            if row.split == split:
                yield row.image_id, example(number, row)

    def example(number: int, row: Row) -> dict[str, Any]:
        try:
            picture = pixels.resize_short(arrays.grey(given[number], value_range), short_side)
        except ValueError as error:
            raise ValueError(f"picture {number}: {error}") from None
        return {
            "image": pixels.encode(picture, "png"),
            "image_id": row.image_id,
            "patient_id": row.patient_id,
            "study_id": row.study_id,
            "view": row.view,
            "labels": np.array([each[number] for each in labels.values()], np.int8),
            "fingerprint": fingerprint.fingerprint(picture),
        }

    return writer.write(
        schema.data_dir(data_dir),
        name,
        features=schema.features(list(labels), image_format="png"),
        examples={split: partial(examples, split) for split in schema.SPLITS if split in splits},
        metadata={"label_names": list(labels)},
        description="Pictures that were in memory.",
        finish=partial(beside.write, name=name, rows=rows),
    )
