"""BenchX's fine-tuning for several findings: ChestX-ray14 or VinDr-CXR at 1, 10 and 100 % of the training set.

    python -m cxrjax.main --config=configs/eval_benchx_finetune.py --config.init_from=runs/…              ChestX-ray14
    python -m cxrjax.main --config=configs/eval_benchx_finetune.py:vindr --config.init_from=runs/…        VinDr-CXR
    python -m cxrjax.main --config=configs/eval_benchx_finetune.py:one_percent --config.init_from=runs/…  or ten_percent
    python -m cxrjax.main --config=configs/eval_benchx_finetune.py:seeds --config.init_from=runs/…        three runs

Zhou et al., NeurIPS 2024 (2410.21969), configs for 1 % of github.com/yangzhou12/BenchX: binary cross-entropy, SGD with
momentum 0.9 at 1e-2, a tenth of that for the encoder, no weight decay, batch 64, 50 steps of warm-up and a cosine over
3,000, gradients cut to norm 1, the step with the best validation AUROC.

Published AUROC of three runs (its table 1), all at 224 px and fine-tuned alike:

                     ChestX-ray14, 1 / 10 / 100 %     VinDr-CXR, 1 / 10 / 100 %
    ConVIRT          77.0  81.5  84.2                 88.1  90.5  90.9
    GLoRIA           74.2  81.0  83.8                 87.5  90.3  91.3
    MGCA, ResNet-50  73.2  79.9  83.5                 84.5  89.1  90.6
    MGCA, ViT        78.2  82.4  84.4                 88.3  91.5  91.8
    MRM              80.1  83.5  85.3                 87.1  89.9  91.2
    REFERS           76.4  81.3  83.7                 87.1  89.4  90.0

Ours: the official splits, since its own lists of pictures are in its repository and are not read here, so lay the
numbers beside these for a rough idea only; steps and warm-up at 10 and 100 %, which are MRM's; crops and turns of
moderate size; and shares of the patients, not of pictures.
"""

from cxrjax import config as shared
from cxrjax import protocols
from cxrjax.datasets.chestxray14 import FINDINGS
from cxrjax.datasets.vindr_cxr import KAGGLE_LABELS

WORDS = ("vindr", "one_percent", "ten_percent", "seeds", "smoke")
STEPS = {0.01: (50, 3_000), 0.1: (500, 30_000), 1.0: (5_000, 200_000)}  # warm-up, all


def get_config(arg: str = ""):
    words = shared.words(arg, WORDS)
    config = protocols.finetune()
    config.data.sets = "vindr_cxr" if "vindr" in words else "chestxray14"
    found = [label for label in KAGGLE_LABELS if label != "No finding"] if "vindr" in words else FINDINGS
    config.labels = ",".join(found)
    config.data.fraction = 0.01 if "one_percent" in words else 0.1 if "ten_percent" in words else 1.0
    config.model.image_px = 224
    config.batch_size = 64
    warmup, config.duration.total_steps = STEPS[config.data.fraction]
    config.optim.update({"name": "sgd", "lr": 1e-2, "wd": 0.0, "warmup_steps": warmup, "grad_clip": 1.0})
    config.optim.lr_mults = (("^head/", 1.0), (".*", 0.1))
    task = {"kind": "multilabel", "labels": config.labels, "name": "labels"}
    protocols.classify(config, task, every_steps=max(config.duration.total_steps // 20, 50))
    if "seeds" in words:
        config.grid = "seed=0,1,2"
    if "smoke" in words:
        protocols.smoke(config)
    return config
