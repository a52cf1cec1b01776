"""What an encoder comes from: the runs and models that it started from, and the pictures that each of them has seen.

<workdir>/lineage.json is written when a run begins, since what it starts from may train on, or be gone, later. An
exported folder has the same file with the exported run as its last entry. Each entry is one training, the oldest first:

    {"part": "encoder", "kind": "run", "method": "spcl", "steps": 600, "sets": ["phantom"], "split": "train", …}
    {"part": "text", "kind": "hugging_face", "place": "…/Bio_ClinicalBERT"}      what it has seen is not known here
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cxrjax import arrived, checkpoint, trained
from cxrjax.config import ConfigDict, digest, names
from cxrjax.input import paired
from cxrjax.interop import huggingface

FILE = "lineage.json"
Entry = dict[str, Any]


def of(config: ConfigDict) -> list[Entry]:
    """What a run with these settings starts from; empty where that is noise."""
    found = _encoder(config.init_from) if config.init_from else []
    for folder in names(config.teachers.init_from) if "teachers" in config else ():
        found += [{**entry, "part": "teacher"} for entry in _encoder(folder)]
    for part in ("text", "lateral"):
        folder = config[part].init_from if part in config else ""
        if folder == paired.OF_REPORTS:
            found.append({"part": part, "kind": "own_reports", "sets": list(names(config.data.sets))[:1]})
        elif folder:
            found.append({"part": part, "kind": "hugging_face", "place": str(folder)})
    return found


def whole(config: ConfigDict, workdir: Path, step: int) -> list[Entry]:
    """The lineage of a run at a step: what it started from, as it was noted then, and the run itself.

    Of an encoder that others trained it is what its folder says.
    """
    if config.method == arrived.NAME:
        return _encoder(config.init_from)
    kept = workdir / FILE
    started = json.loads(kept.read_text()) if kept.is_file() else of(config)
    data = config.data
    run = {"part": "encoder", "kind": "run", "place": str(workdir), "method": config.method, "steps": step}
    run |= {"sets": list(names(data.sets)), "split": data.split, "projections": data.projections or "all"}
    run |= {"fraction": data.fraction, "batch_size": config.batch_size, "settings": digest(config)}
    return [*started, run | _pictures(workdir)]


def sentences(entries: Sequence[Entry]) -> list[str]:
    """One sentence of plain text for each entry."""
    return [_sentence(entry) for entry in entries]


def sets(entries: Sequence[Entry]) -> list[str]:
    """The sets that are known to have been trained on, once each."""
    return list(dict.fromkeys(name for entry in entries for name in entry.get("sets", ())))


def unknown(entries: Sequence[Entry]) -> list[str]:
    """The places of those whose pictures or texts are not known."""
    return [str(entry["place"]) for entry in entries if "sets" not in entry]


def _encoder(folder: str) -> list[Entry]:
    if huggingface.is_model(folder):
        exported = Path(folder) / FILE
        if exported.is_file():
            return json.loads(exported.read_text())
        return [{"part": "encoder", "kind": "hugging_face", "place": str(folder)}]
    try:
        found, workdir, config = trained.settings(folder)
    except checkpoint.CheckpointNotFound:
        return [{"part": "encoder", "kind": "gone", "place": str(folder)}]
    return whole(config, workdir, int(found.name))


def _pictures(workdir: Path) -> Entry:
    """How many a run trained on, where it noted that."""
    try:
        noted = json.loads((workdir / "pictures.json").read_text())
        return {"pictures": sum(one["pictures"] for one in noted.values())}
    except (OSError, ValueError, KeyError):
        return {}


def _sentence(entry: Entry) -> str:
    part = {"encoder": "", "text": "Text encoder: ", "lateral": "Lateral encoder: ", "teacher": "Teacher: "}[
        entry["part"]
    ]
    if entry["kind"] == "run":
        count = f"{entry['pictures']:,} pictures of " if "pictures" in entry else ""
        return (
            f"{part}{entry['method']}, {entry['steps']:,} steps of {entry['batch_size']:,} on {count}"
            f"{', '.join(entry['sets'])} ({entry['split']} split, {entry['projections']}, "
            f"{100 * entry['fraction']:g} %)."
        )
    if entry["kind"] == "own_reports":
        return f"{part}a BERT trained on the reports of {', '.join(entry['sets'])}."
    what = {"hugging_face": "a Hugging Face model", "gone": "a run that was no longer there"}[entry["kind"]]
    return f"{part}{what} at {entry['place']}; what it was trained on is not known here."
