"""CheXpert's five findings on the 500 patients that radiologists labelled: a linear probe on frozen features.

    python -m cxrjax.prepare chexpert --raw DIR --test radiologist
    python -m cxrjax.main --config=configs/eval_chexpert_five.py --config.checkpoint=runs/…
    python -m cxrjax.main --config=configs/eval_chexpert_five.py:one_percent --config.checkpoint=…    or ten_percent

Irvin et al., AAAI 2019: atelectasis, cardiomegaly, consolidation, edema and pleural effusion, mean AUROC. Strengths are
chosen on the official validation patients, who are radiologists' too; uncertain labels of train count as in MGCA. Peers
that were fine-tuned, from the model cards of chest-xray-bench (huggingface.co, mamounyosef): RAD-DINO at 768 px 0.9027,
a blend of models 0.9130.

Ours: frontal pictures one by one, where the competition takes the largest answer of a study's pictures; a head on
frozen features, so that numbers of fine-tuning are a roof and no peers.
"""

from cxrjax import config as shared
from cxrjax import recipes
from cxrjax.datasets.chexpert import COMPETITION
from cxrjax.evals import certainty

WORDS = ("one_percent", "ten_percent", "smoke")


def get_config(arg: str = ""):
    words = shared.words(arg, WORDS)
    config = shared.evaluation(references="random,pixels")
    config.evals.chexpert_five = {
        "judge": "probe",
        "set": "chexpert",
        "task": {"kind": "multilabel", "labels": ",".join(COMPETITION), "policy": "MGCA", "name": "five"},
        "projections": "PA,AP,UNKNOWN",  # of the test, frontals are not told apart; no lateral is UNKNOWN
        "fraction": 0.01 if "one_percent" in words else 0.1 if "ten_percent" in words else 1.0,
        **certainty.KEYS,
    }
    if "smoke" in words:
        entry = config.evals.chexpert_five
        entry.set, entry.projections = "phantom", "PA,AP"
        entry.task.labels = "Atelectasis,Cardiomegaly,Consolidation,Edema,Effusion"
        recipes.smoke_evals(config)
    return config
