"""The embedded set: simulated chest X-ray studies with exact masks, boxes and reports, for tests and first runs.

Nothing measured on it says anything about patients. Study `i` of a seed is the same wherever it is rendered.
"""

import json
import os
import sys
import types
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import tensorflow_datasets as tfds

from cxrjax.datasets import beside, schema, writer
from cxrjax.datasets.manifest import Row
from cxrjax.phantom.findings import LABELS
from cxrjax.phantom.study import FEWEST_STUDIES, records, split_of

NAME = "phantom"
# Sets that are built when they are first asked for, and the settings they get.
BUILT_ON_DEMAND = {
    "phantom": {"studies": 2000, "short_side": 256},
    "phantom_smoke": {"studies": 60, "short_side": 64},
}
DESCRIPTION = "Simulated chest radiographs for tests and demonstrations; results on them have no clinical meaning."
FEW_STUDIES = 60  # a few seconds of rendering: starting processes for them costs more than it brings


def build(
    data_dir: str | os.PathLike | None = None,
    *,
    name: str = NAME,
    studies: int = BUILT_ON_DEMAND[NAME]["studies"],
    short_side: int = BUILT_ON_DEMAND[NAME]["short_side"],
    seed: int = 0,
    progress: bool = True,
) -> Path:
    """Builds a phantom set below the data folder unless it is there, and returns its directory.

    data_dir: the data folder, by default `schema.data_dir()`; studies: each has a frontal and a lateral picture;
    short_side: pixels; progress: shows a bar. The set appears whole or not at all; a build that was interrupted is
    begun anew, and of two builds at a time the second waits for the first.
    Raises ValueError where a phantom with other settings is there already, or `studies` are too few for three splits;
    writer.OutputError where the folder cannot be written.
    """
    if studies < FEWEST_STUDIES:
        raise ValueError(f"A phantom needs at least {FEWEST_STUDIES} studies to fill its three splits; got {studies}.")
    folder = schema.data_dir(data_dir)
    settings = {"studies": studies, "short_side": short_side, "seed": seed}
    directory = folder / name / writer.VERSION
    if _is_there(directory, settings):
        return directory
    writer.unfinished_directory(folder, name)
    with writer.alone(folder / f".{name}.lock"):
        if not _is_there(directory, settings):
            _write(folder, name, settings, progress)
    return directory


def _is_there(directory: Path, settings: dict) -> bool:
    if not (directory / "dataset_info.json").exists():
        return False
    metadata = tfds.builder_from_directory(str(directory)).info.metadata or {}
    there = {name: metadata.get(name) for name in settings}
    if there != settings:
        raise ValueError(
            f"{directory} holds a phantom built with {json.dumps(there)}, but {json.dumps(settings)} was asked for. "
            "Give another data_dir, or delete that folder to build it anew."
        )
    return True


def _write(folder: Path, name: str, settings: dict, progress: bool) -> None:
    studies, short_side, seed = settings["studies"], settings["short_side"], settings["seed"]
    of_split = {split: [] for split in schema.SPLITS}
    for index in range(studies):
        of_split[split_of(seed, index)].append(index)
    rows: list[Row] = []
    with writer.progress_bar(studies, f"{name}: rendering", "study", progress) as bar:

        def examples(split: str, indices: list[int]) -> Iterator[tuple[str, dict]]:
            work = partial(records, seed, short_side=short_side)
            for study in _in_order(work, indices):
                for record in study:
                    ids = (record["image_id"], record["patient_id"], record["study_id"])
                    rows.append(Row(Path(), *ids, split, text=record["report"]["text"]))
                    boxes = [{**box, "bbox": tfds.features.BBox(**box["bbox"])} for box in record["boxes"]]
                    yield record["image_id"], {**record, "boxes": boxes}
                bar.update()

        writer.write(
            folder,
            name,
            features=schema.features(
                LABELS, image_format="jpeg", mask=True, boxes=True, report=True, finding_mask=True
            ),
            examples={split: partial(examples, split, indices) for split, indices in of_split.items()},
            metadata={
                "label_names": list(LABELS),
                "description_of_source": "line integrals through a simulated 3-D chest",
                **settings,
            },
            description=DESCRIPTION,
            finish=partial(beside.write, name=name, rows=rows),
        )
    writer.tidy(folder, name)


def _in_order(work, indices: list[int]) -> Iterator:
    """`work` of every index, in order; in processes where there are enough of them to pay for starting those.

    The processes are spawned, not forked, because JAX may have started its threads. They get an empty main module, so
    that a caller's script is not run again in each of them.
    """
    cores = writer.cores()
    if cores == 1 or len(indices) < FEW_STUDIES:
        yield from map(work, indices)
        return
    with ProcessPoolExecutor(cores, mp_context=get_context("spawn")) as pool:
        main = sys.modules["__main__"]
        sys.modules["__main__"] = types.ModuleType("__main__")
        try:
            results = pool.map(work, indices, chunksize=4)
        finally:
            sys.modules["__main__"] = main
        yield from results
