"""How alike the reports of a converted set are, and which threshold tells equal findings from different ones.

    python -m cxrjax.report_similarity SET [--encoder FOLDER | words]

Prints a line for each of several thresholds: the share of random pairs of reports that are at least so similar, and how
often the reports of such a pair have the same labels. The line below them is for all pairs. At the end it suggests the
threshold that 2 % of the pairs exceed. Similarity is that of `cxrjax/report_encoders/similarity.py`.
"""

import argparse
import sys
from collections.abc import Sequence

import numpy as np
import pandas as pd

from cxrjax import recipes
from cxrjax.config import ConfigDict
from cxrjax.datasets import schema
from cxrjax.input import paired
from cxrjax.input.converted_sets import open_set
from cxrjax.input.source import select
from cxrjax.input.studies import studies
from cxrjax.report_encoders import report_encoder, similarity

THRESHOLDS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98, 1 - 1e-5)
PAIRS = 100_000
SHARE = 0.02  # of random pairs above the threshold that is suggested


def calibration(
    found: similarity.Table, labels: dict[tuple[str, str], np.ndarray], pairs: int = PAIRS, seed: int = 0
) -> tuple[pd.DataFrame, float, float]:
    """What each of THRESHOLDS would do, judged on random pairs of different studies.

    labels: key of a study in found.rows → its labels, int8 c.
    Returns a table, the share of all pairs with the same labels present, and the similarity that SHARE of the pairs
    exceed. The table has the columns threshold, above (the share of pairs that are at least so similar) and precision
    (the share of these with the same labels present, NaN where there are none). Raises ValueError for fewer than two
    studies.
    """
    keys = [key for key in found.rows if key in labels]
    if len(keys) < 2:
        raise ValueError(
            f"pairs need at least two studies with reports and labels, and there are {len(keys)}: choose another set "
            "or split"
        )
    rng = np.random.default_rng(seed)
    first = rng.integers(len(keys), size=pairs)
    second = (first + rng.integers(1, len(keys), size=pairs)) % len(keys)
    rows = np.array([found.rows[key] for key in keys])
    present = np.stack([labels[key] for key in keys]) == schema.PRESENT
    likeness = np.empty(pairs, np.float32)
    for part in np.array_split(np.arange(pairs), max(pairs // 10_000, 1)):
        a, b = (found.vectors[rows[side[part]]] for side in (first, second))
        likeness[part] = np.clip(np.sum(a * b, axis=1), -1, 1)
    same = np.all(present[first] == present[second], axis=1)
    lines = [(threshold, likeness >= threshold) for threshold in THRESHOLDS]
    lines = [(t, np.mean(above), same[above].mean() if above.any() else np.nan) for t, above in lines]
    grid = pd.DataFrame(lines, columns=["threshold", "above", "precision"])
    return grid, float(same.mean()), float(np.quantile(likeness, 1 - SHARE))


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns 0, or 2 for a mistake."""
    parser = argparse.ArgumentParser(
        prog="python -m cxrjax.report_similarity", description="How alike the reports of a converted set are."
    )
    parser.add_argument("set", help="a converted set with reports")
    parser.add_argument("--encoder", default="", help="folder of a BERT, or 'words'; by default the set's own encoder")
    parser.add_argument("--split", default="train")
    parser.add_argument(
        "--sections", default="impression,findings", help="sections of a report, in the order in which they are read"
    )
    parser.add_argument("--cleaning", default="none", choices=paired.CLEANING)
    given = parser.parse_args(arguments)
    text = {**recipes.text(), "sections": given.sections, "cleaning": given.cleaning}
    read = ConfigDict(
        {"text": text, "model": recipes.vit(), "data": {"sets": given.set}, "views": {"transform": "none"}}
    )
    try:
        converted_set = open_set(given.set)
        encoder = given.encoder or report_encoder.folder(converted_set)
        found = similarity.load(similarity.made(converted_set, paired.StudyReader(read), encoder, given.split))
        listed = studies(select(converted_set, given.split)).table
        keys = zip(listed["patient_id"], listed["study_id"], strict=True)
        print(report(found, dict(zip(keys, listed["labels"], strict=True))))
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def report(found: similarity.Table, labels: dict[tuple[str, str], np.ndarray]) -> str:
    """`calibration` as the text that the command prints."""
    grid, base, suggested = calibration(found, labels)
    lines = [f"{len(found.rows)} reports, {len(found.vectors)} different texts", "", "threshold    above  same labels"]
    for threshold, above, precision in grid.itertuples(index=False):
        lines.append(f"{threshold:9.3f}  {above:7.2%}  " + (f"{precision:11.1%}" if above else f"{'–':>11}"))
    lines += [f"any pair   {1:7.2%}  {base:11.1%}", ""]
    lines += [f"{SHARE:.0%} of the pairs are above {suggested:.3f}: a threshold to start from (1 to 3 % are usual)"]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
