"""Opens a set as an entry wants it: the pictures of each split that its judge looks at."""

import numpy as np

from cxrjax.config import names
from cxrjax.evals.judge import Entry, Judge
from cxrjax.input.converted_sets import open_set
from cxrjax.input.source import Source, required, select


def sources(judge: Judge, entry: Entry, box_labels: tuple[str, ...] = ()) -> tuple[dict[str, Source], list[str]]:
    """The pictures of each split that the judge looks at, and a note where they are not all of them.

    entry: completed. box_labels: of the boxes that the entry may require; () all.
    """
    converted = open_set(entry["set"], entry["data_dir"] or None)
    found, notes, filters = {}, [], {"projections": names(entry["projections"]) or None}
    filters |= {key: entry[key] for key in ("folds", "fold")}
    needed = required(entry["require"], box_labels)
    for split in judge.splits or (entry["split"],):
        share = {key: entry[key] for key in ("fraction", "fraction_seed")} if split == "train" else {}
        found[split] = select(converted, split, **filters, **needed, **share)
        if needed:
            every = len(select(converted, split, **filters, **share))
            notes.append(f"{split}: {len(found[split]):,} of {every:,} pictures have {entry['require']}, as required")
        if judge.limits_pictures and 0 < entry["limit"] < len(found[split]):
            notes.append(f"{split}: a random {entry['limit']:,} of {len(found[split]):,} pictures, as the limit says")
            found[split] = _some(found[split], entry["limit"])
    return found, notes


def _some(chosen: Source, count: int) -> Source:
    drawn = np.random.default_rng(0).permutation(len(chosen))[:count]
    return Source(chosen.converted_set, chosen.split, chosen.positions[np.sort(drawn)])
