"""MRM's fine-tuning of a ViT-B/16: ChestX-ray14, RSNA Pneumonia or CheXpert at 1, 10 and 100 % of the training set.

    python -m cxrjax.main --config=configs/eval_mrm_finetune.py --config.init_from=runs/…                ChestX-ray14
    python -m cxrjax.main --config=configs/eval_mrm_finetune.py:rsna,one_percent --config.init_from=…    or ten_percent
    python -m cxrjax.main --config=configs/eval_mrm_finetune.py:chexpert --config.init_from=runs/…

Zhou et al., ICLR 2023 (2301.13155), released code: mean of the patches, binary cross-entropy, SGD with momentum 0.9 and
no weight decay, batch 96, a cosine after the warm-up, gradients cut to norm 1, random resized crops and mirroring at
224 px, mean 0.4978 and deviation 0.2449. Warm-up, steps and rate are those of the set and fraction, in RECIPES.

Published AUROC: CheXpert 88.5 at 1 % and 88.7, RSNA 93.3, ChestX-ray14 79.4 at 1 %, from MRM's abstract and table.
Their ChestX-ray14 is a random split of 78,468 / 11,219 / 22,433 by patient and not the official one, as ours is: lay
the numbers of one split beside those of the other for a rough idea only. Their CheXpert holds 5,000 patients out of
training and tests on the official validation set.

Ours: the step with the best validation AUROC; 1 and 10 % are of the patients, each contained in the next.
"""

from cxrjax import config as shared
from cxrjax import protocols
from cxrjax.datasets.chestxray14 import FINDINGS
from cxrjax.datasets.chexpert import COMPETITION

WORDS = ("rsna", "chexpert", "one_percent", "ten_percent", "smoke")
RECIPES = {  # set: (warm-up steps, steps, learning rate) at 1, 10 and 100 %
    "chestxray14": {0.01: (50, 3_000, 3e-2), 0.1: (500, 30_000, 3e-3), 1.0: (5_000, 200_000, 3e-3)},
    "rsna_pneumonia": {0.01: (50, 2_000, 3e-3), 0.1: (200, 10_000, 5e-4), 1.0: (2_000, 50_000, 5e-4)},
    "chexpert": {0.01: (150, 2_000, 3e-3), 0.1: (1_500, 60_000, 5e-4), 1.0: (15_000, 200_000, 5e-4)},
}
LABELS = {"chestxray14": FINDINGS, "rsna_pneumonia": ("Pneumonia",), "chexpert": COMPETITION}


def get_config(arg: str = ""):
    words = shared.words(arg, WORDS)
    name = "rsna_pneumonia" if "rsna" in words else "chexpert" if "chexpert" in words else "chestxray14"
    config = protocols.finetune()
    config.data.sets, config.labels = name, ",".join(LABELS[name])
    config.data.fraction = 0.01 if "one_percent" in words else 0.1 if "ten_percent" in words else 1.0
    config.policy = "MGCA" if name == "chexpert" else ""
    config.model.update({"variant": "B", "patch_px": 16, "image_px": 224, "pool": "mean"})
    config.views.update({"scale": (0.08, 1.0), "flip": 0.5, "rotation_degrees": 0.0})
    config.batch_size = 96
    warmup, steps, rate = RECIPES[name][config.data.fraction]
    config.duration.total_steps = steps
    config.optim.update({"name": "sgd", "lr": rate, "wd": 0.0, "warmup_steps": warmup, "grad_clip": 1.0})
    task = {"kind": "multilabel", "labels": config.labels, "name": "labels"} | (
        {"policy": "MGCA"} if name == "chexpert" else {}
    )
    protocols.classify(config, task, every_steps=max(steps // 20, 50))
    if "smoke" in words:
        protocols.smoke(config)
    return config
