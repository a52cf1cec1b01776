"""Zero-shot findings: a checkpoint that was trained with reports judges pictures by what sentences say.

    python -m cxrjax.main --config=configs/eval_zeroshot.py --config.checkpoint=runs/…    phantom findings
    python -m cxrjax.main --config=configs/eval_zeroshot.py:chexpert --config.checkpoint=runs/…    CheXpert's test part
    python -m cxrjax.main --config=configs/eval_zeroshot.py:sentences --config.checkpoint=runs/…    does it read "no"?
    python -m cxrjax.main --config=configs/eval_zeroshot.py:smoke --config.checkpoint=runs/…    seconds

A label's score says how much nearer a picture is to sentences that state the finding than to those that deny it. No
label of the training part is read; the threshold that accuracies are at is chosen on the validation pictures. Prompts
are those of cxrjax.evals.zeroshot; an entry's `prompts` adds to them or replaces them, label by label, and a prompt may
hold alternatives: "There is (mild|severe) (left|right) effusion." stands for four sentences.
An entry's `scaled` fits temperature and threshold of each finding on validation pictures, so that scores are chances.
`sentences` asks instead whether the encoder tells statements from denials and left from right, and how far the AUROC
depends on the wording (cxrjax/evals/sentences.py).
Every number comes with its 95 % interval over resampled test patients and the paired difference to the same networks
before training. Cost: one pass over val and test.
"""

from cxrjax import config as shared
from cxrjax import recipes
from cxrjax.datasets import chexpert
from cxrjax.evals import certainty

WORDS = ("phantom", "chexpert", "sentences", "smoke")
COMPETITION = ",".join(chexpert.COMPETITION)


def get_config(arg: str = ""):
    words = shared.words(arg, WORDS)
    config = shared.evaluation(references="random")
    if "chexpert" in words:
        task = {"kind": "multilabel", "labels": COMPETITION, "name": "competition"}
        config.evals.chexpert_zeroshot = {"judge": "zeroshot", "set": "chexpert", "task": task, "projections": "PA,AP"}
        config.evals.chexpert_zeroshot.prompts = {}
    if "phantom" in words or not config.evals:
        config.evals.phantom_zeroshot = {
            "judge": "zeroshot",
            "set": "phantom",
            "task": {"kind": "multilabel"},
            "projections": "PA,AP",
            "prompts": {},
        }
    if "sentences" in words:  # what they say, and not how well they find
        for name, entry in list(config.evals.items()):
            config.evals[name.replace("zeroshot", "sentences")] = {**entry, "judge": "sentences"}
            del config.evals[name]
    else:
        for entry in config.evals.values():  # there so that a flag can change them
            entry.update(certainty.KEYS)
    if "smoke" in words:
        recipes.smoke_evals(config)
    return config
