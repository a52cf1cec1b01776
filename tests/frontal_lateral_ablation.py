"""What each defect of F-L's released code costs: put into the paper's reading, and taken out of the code as it is.

    python tests/frontal_lateral_ablation.py --output runs/f_l.json [--rows "paper,paper with,official"] [--steps 600]

Rows: "paper", "paper with <defect>", "official", "official without <defect>"; --rows takes names or parts of them.

Every row starts from the same parameters as far as they are the same, on the same studies of tests/two_views.py at 32
px: a square that only the frontal picture shows, a bar that only the lateral one does, three studies of ten without a
lateral picture. Judged on studies that all have both. Prints a Markdown table, mean and smallest to largest of the
seeds: how many of the hidden words for the bar's height are guessed (chance: 25 %); how many lateral pictures are
nearest to a report of their height (25 %); AUROC of a linear probe for the square's column on the frontal encoder
(50 %); and prototypes that are the first choice of a report. What is finished is not run again. Not collected by
pytest.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from cxrjax import config as shared
from cxrjax import methods
from tests import runs, two_views

STUDIES, HELD_OUT, BATCH = 512, 128, 32
MEASURES = ("hidden heights", "lateral retrieval", "frontal AUROC", "prototypes")
DEFECTS = tuple(runs.config("frontal_lateral").defects)


def rows() -> dict[str, list[str]]:
    """The defects that are there in each row."""
    put_in = {f"paper with {name}": [name] for name in DEFECTS}
    repaired = {f"official without {name}": [other for other in DEFECTS if other != name] for name in DEFECTS}
    return {"paper": [], **put_in, "official": list(DEFECTS), **repaired}


def method(vocabulary: Path, left: list[str], steps: int, **changes):
    config = runs.config("frontal_lateral", "smoke", **changes)
    config.update_from_flattened_dict(
        {
            "text.tokenizer": str(vocabulary),
            "text.length": 16,
            "text.vocab_size": 32,
            "model.patch_px": 8,
            "model.remat": "none",
            "views.transform": "none",
            "prototypes.count": 16,
            "duration.total_steps": steps,
            "loss.groups": 2 if "last_caption_selects" in left else 1,
        }
    )
    config.masking.entities = " ".join((*two_views.COLUMNS, *two_views.HEIGHTS))
    config.defects = {name: name in left for name in DEFECTS}
    config.update_from_flattened_dict(changes)
    return methods.make(config)


def judged(vocabulary: Path, left: list[str], seeds: list[int], steps: int) -> list[dict]:
    """The measures of each seed; all of them run on one compilation."""
    clean = [name for name in left if name != "shared_masked_text"]
    only_heights = {"masking.entities": " ".join(two_views.HEIGHTS), "masking.entity": 1.0}
    only_heights |= {"masking.beside": 0.0, "masking.without": 0.0}
    trained = method(vocabulary, left, steps)
    trainer = two_views.Trainer(trained, size=BATCH)
    judge = two_views.Trainer(method(vocabulary, clean, steps, **only_heights))
    encode, found = jax.jit(trained.encode), []
    for seed in seeds:
        studies = list(two_views.studies(STUDIES, seed=100 * seed, lacking=0.3))
        held_out = list(two_views.studies(HELD_OUT, seed=100 * seed + 50))
        start = time.monotonic()
        data, test = two_views.batch(trained, studies, seed), two_views.batch(judge.method, held_out, seed)
        params, state = trainer.fit(data, steps, seed)
        test["report"] = np.array([study["height"] for study in held_out], np.int32)
        _, report = judge.measure(params, state, test)
        columns = [np.array([study["column"] for study in part]) for part in (studies, held_out)]
        features = [np.asarray(encode(params, state, part["image"][:, 0])["pooled"]) for part in (data, test)]
        probe = LogisticRegression(max_iter=1000).fit(features[0] / features[0].std(), columns[0])
        scores = probe.predict_proba(features[1] / features[0].std())
        area = roc_auc_score(columns[1], scores, multi_class="ovr")
        values = (report["mlm_accuracy"], report["lateral_top1"], float(area), report["prototypes_used"])
        found.append(dict(zip(MEASURES, values, strict=True)) | {"seconds": round(time.monotonic() - start, 1)})
        print(seed, found[-1], flush=True)
    return found


def line(name: str, found: list[dict]) -> str:
    cells = []
    for measure, form in zip(MEASURES, ("{:.0%}", "{:.0%}", "{:.3f}", "{:.0f}"), strict=True):
        values = [one[measure] for one in found]
        mean, low, high = (form.format(value) for value in (np.mean(values), min(values), max(values)))
        cells.append(f"{mean} ({low} to {high})")
    return f"| {name} | {' | '.join(cells)} |"


def _named(row: str, wanted: Sequence[str]) -> bool:
    """A row's whole name stands for this row alone."""
    return row in wanted or any(part in row for part in wanted if part not in rows())


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--rows", default="", help="names of rows, or parts of several names; by default all")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--steps", type=int, default=600)
    args = parser.parse_args()
    seeds, wanted = [int(seed) for seed in shared.names(args.seeds)], shared.names(args.rows)
    chosen = {name: left for name, left in rows().items() if not wanted or _named(name, wanted)}
    finished = json.loads(args.output.read_text()) if args.output.exists() else {}
    with tempfile.TemporaryDirectory() as folder:
        vocabulary = two_views.vocabulary(folder)
        for name, left in chosen.items():
            done = finished.setdefault(f"{name}, {args.steps} steps", {})
            missing = [seed for seed in seeds if str(seed) not in done]
            if missing:
                print(name, flush=True)
                done |= dict(zip(map(str, missing), judged(vocabulary, left, missing, args.steps), strict=True))
                args.output.parent.mkdir(parents=True, exist_ok=True)
                args.output.write_text(json.dumps(finished, indent=2))
                jax.clear_caches()
    print(f"| row | {' | '.join(MEASURES)} |\n|{'---|' * (1 + len(MEASURES))}")
    for name in chosen:
        done = finished[f"{name}, {args.steps} steps"]
        print(line(name, [done[str(seed)] for seed in seeds]))


if __name__ == "__main__":
    main()
