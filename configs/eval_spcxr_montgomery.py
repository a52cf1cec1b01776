"""SPCXR's lung segmentation on Montgomery: UNETR on a ViT-S/16, fine-tuned, five folds by patient.

    python -m cxrjax.main --config=configs/eval_spcxr_montgomery.py --config.init_from=runs/…         all five folds
    python -m cxrjax.main --config=configs/eval_spcxr_montgomery.py:fold --config.init_from=runs/…    the first alone

The paper (2211.12944, ICIP 2024) gives Dice only: UNETR from their encoder 0.9561, from the same method on ImageNet
0.9453, from noise 0.9227. It does not state folds, losses or optimizer. All of that is our choice: both lungs as one
mask at 224 px, five folds of the 138 pictures by patient with the next fold to choose the step on, soft Dice +
cross-entropy, AdamW 1e-4 with weight decay 1e-5, batch 8, 200 epochs, mirroring and turns of ±10°, as MONAI's
tutorials of UNETR have it; UNETR as MONAI's (--config.head.taps=3,6,9 for its paper's), with [CLS]
kept in the encoder (--config.model.pool=without_cls leaves it out, as MONAI does). Expect the order of the three alone.
"""

from cxrjax import config as shared
from cxrjax import protocols

WORDS = ("fold", "smoke")


def get_config(arg: str = ""):
    words = shared.words(arg, WORDS)
    config = protocols.segmentation()
    config.data.sets = "montgomery"
    config.model.image_px = 224
    config.head.kind = "unetr"
    config.batch_size = 8
    config.duration.total_epochs = 200.0
    config.optim.update({"lr": 1e-4, "betas": (0.9, 0.999), "wd": 1e-5})
    protocols.judge_masks(config, every_steps=200)
    protocols.folds(config, 5)
    if "fold" not in words:
        config.grid = "data.fold=0,1,2,3,4"
    if "smoke" in words:
        protocols.smoke(config)
    return config
