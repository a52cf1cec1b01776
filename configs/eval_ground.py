"""Grounding: do maps of a checkpoint lie where readers marked a finding?

    python -m cxrjax.main --config=configs/eval_ground.py --config.checkpoint=runs/…    phantom boxes, by words
    python -m cxrjax.main --config=configs/eval_ground.py:ms_cxr --config.checkpoint=runs/…    phrases of MIMIC-CXR
    python -m cxrjax.main --config=configs/eval_ground.py:padchest_gr --config.checkpoint=runs/…    phrases of PadChest
    python -m cxrjax.main --config=configs/eval_ground.py:attention --config.checkpoint=runs/…    where [CLS] attends
    python -m cxrjax.main --config=configs/eval_ground.py:smoke --config.checkpoint=runs/…    seconds

Pointing game, IoU over thresholds, contrast-to-noise ratio and AUROC of pixels, by finding, beside a map that is high
in the middle of the lungs and noise (cxrjax/evals/ground.py). Sets are those of cxrjax.prepare with MS-CXR beside
`mimic_cxr` and PadChest-GR beside `padchest`. Ours: the test part of the set's own split; all boxes of a phrase as one
region; maps stretched from 0 to 1 before thresholds, where BioViL takes cosines as they are. So no published number can
be laid beside these. Every number comes with its 95 % interval over resampled patients, and words with the paired
difference to the same networks before training. Cost: one pass over the marked pictures.
"""

from cxrjax import config as shared
from cxrjax import recipes

WORDS = ("phantom", "ms_cxr", "padchest_gr", "attention", "smoke")
SETS = {"ms_cxr": "mimic_cxr", "padchest_gr": "padchest"}


def get_config(arg: str = ""):
    words = shared.words(arg, WORDS)
    attention = "attention" in words
    config = shared.evaluation(references="" if attention else "random")
    for name in [word for word in words if word in SETS] or ["phantom"]:
        config.evals[f"{name}_ground"] = {
            "judge": "ground",
            "set": SETS.get(name, name),
            "split": "test",
            "maps": "attention" if attention else "words",
            "projections": "PA,AP",
            "prompts": {},
        }
    if "smoke" in words:
        recipes.smoke_evals(config)
    return config
