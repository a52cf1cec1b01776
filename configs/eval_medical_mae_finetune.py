"""medical_mae's fine-tuning of a ViT on ChestX-ray14 with the official test set.

    python -m cxrjax.main --config=configs/eval_medical_mae_finetune.py --config.init_from=runs/…
    python -m cxrjax.main --config=configs/eval_medical_mae_finetune.py:seeds --config.init_from=runs/…      three runs

Xiao et al., WACV 2023 (github.com/lambert-x/medical_mae): 75 epochs, batch 1024, AdamW with base rate 2.5e-4 and end
1e-5, layer decay 0.55, weight decay 0.05, drop-path 0.2, 5 epochs of warm-up, no mixup, cutmix or erasing.

Published mean AUROC over 14 findings (its README): ViT-S/16 82.3 (MAE on 0.3 M radiographs), 78.6 (MAE on ImageNet),
79.6 (supervised on ImageNet); ViT-B/16 83.0 (MAE on 0.5 M radiographs); DenseNet-121 82.2 (supervised on ImageNet),
80.6 (MoCo v2) and 81.2 (MAE on radiographs). They pre-train on CheXpert and this set's training part.

Ours: crops, turns and changes of brightness and contrast of moderate size in the place of RandAugment (magnitude 6);
the mean of the patches after the last LayerNorm; the step with the best validation AUROC.
"""

from cxrjax import config as shared
from cxrjax import protocols
from cxrjax.datasets.chestxray14 import FINDINGS

WORDS = ("seeds", "smoke")


def get_config(arg: str = ""):
    words = shared.words(arg, WORDS)
    config = protocols.finetune()
    config.data.sets, config.labels = "chestxray14", ",".join(FINDINGS)
    config.model.update({"drop_path": 0.2, "pool": "mean", "image_px": 224})
    config.views.update({"scale": (0.5, 1.0), "flip": 0.5, "rotation_degrees": 10.0})
    config.augment.update({"jitter": 0.5, "brightness": 0.3, "contrast": 0.3})
    config.batch_size = 1024
    config.duration.total_epochs = 75.0
    config.optim.update({"base_lr": 2.5e-4, "lr_end": 1e-5, "betas": (0.9, 0.999), "wd": 0.05, "warmup_epochs": 5.0})
    config.optim.layer_decay = 0.55
    protocols.classify(config, {"kind": "multilabel", "labels": config.labels}, every_steps=500)
    if "seeds" in words:
        config.grid = "seed=0,1,2"
    if "smoke" in words:
        protocols.smoke(config)
    return config
