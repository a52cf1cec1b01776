"""Retrieval: a checkpoint that was trained with reports finds the report of a picture, and the picture of a report.

    python -m cxrjax.main --config=configs/eval_retrieve.py --config.checkpoint=runs/…    phantom studies
    python -m cxrjax.main --config=configs/eval_retrieve.py:mimic_cxr --config.checkpoint=runs/…    of MIMIC-CXR
    python -m cxrjax.main --config=configs/eval_retrieve.py:mimic_5x200 --config.checkpoint=runs/…    and by class
    python -m cxrjax.main --config=configs/eval_retrieve.py:smoke --config.checkpoint=runs/…    seconds

Recall@1, 5, 10 both ways over the studies of a split, reports of equal words being one answer; chance is stated beside
it. `mimic_5x200` draws 200 studies for each of five findings in which it is the only one of the five, and adds the
precision of the class among the k nearest, as GLoRIA judges it. Where the test part has too few of a class, lower
--config.evals.mimic_cxr_5x200.per_class, or set its split to train, which is fair only to what was not trained there.
Every number comes with its 95 % interval over resampled patients as queries, and with the paired difference to the same
networks before training. Cost: one pass over the split's first frontal pictures and reports.
"""

from cxrjax import config as shared
from cxrjax import recipes
from cxrjax.datasets import chexpert

WORDS = ("phantom", "mimic_cxr", "mimic_5x200", "smoke")
COMPETITION = ",".join(chexpert.COMPETITION)


def get_config(arg: str = ""):
    words = shared.words(arg, WORDS)
    config = shared.evaluation(references="random")
    if "mimic_cxr" in words:
        config.evals.mimic_cxr_retrieve = _entry("mimic_cxr")
    if "mimic_5x200" in words:
        config.evals.mimic_cxr_5x200 = {**_entry("mimic_cxr"), "classes": COMPETITION, "per_class": 200}
    if "phantom" in words or not config.evals:
        config.evals.phantom_retrieve = _entry("phantom")
    if "smoke" in words:
        recipes.smoke_evals(config)
    return config


def _entry(name: str) -> dict:
    return {"judge": "retrieve", "set": name, "split": "test", "at": (1, 5, 10), "projections": "PA,AP"}
