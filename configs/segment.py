"""Segments with a run's encoder, frozen or fine-tuned, and judges Dice and IoU.

    python -m cxrjax.main --config=configs/segment.py --config.init_from=runs/…             lungs of phantoms: minutes
    python -m cxrjax.main --config=configs/segment.py:frozen --config.init_from=runs/…      the head alone learns
    python -m cxrjax.main --config=configs/segment.py:tb --config.init_from=runs/…          lungs, small set, 559 masks
    python -m cxrjax.main --config=configs/segment.py:tb,folds,grid --config.init_from=…    five folds by patient
    python -m cxrjax.main --config=configs/segment.py --config.target=finding_mask          what the set has masks of

The model is the run's; without init_from a small one starts from noise. Heads, --config.head.kind: unetr (default),
setr_pup and upernet on a ViT, unet on a ResNet. Results name both conventions for empty masks, "present" and "all"
(cxrjax/evals/segment.py), and the gain over the mean of the training masks. The step that is best on the validation
patients is kept. The recipe is our choice; published protocols are in configs/eval_*.py.
"""

from cxrjax import config as shared
from cxrjax import protocols

WORDS = ("phantom", "tb", "frozen", "folds", "grid", "resnet", "smoke")


def get_config(arg: str = ""):
    words = shared.words(arg, WORDS)
    config = protocols.segmentation()
    config.batch_size = 32
    config.duration.total_steps = 400
    config.optim.update({"lr": 1e-3, "betas": (0.9, 0.999), "wd": 1e-4, "warmup_steps": 40, "grad_clip": 1.0})
    protocols.judge_masks(config, every_steps=100)

    if "resnet" in words:
        config.model.variant = "resnet18"
    if "tb" in words:
        config.data.sets = "tb_lung_masks"
        config.duration.total_steps = 800
        config.batch_size = 16
        config.optim.update({"lr": 5e-4, "warmup_steps": 80})
        protocols.judge_masks(config, every_steps=100)
    if "frozen" in words:
        config.encoder = "frozen"
    if "folds" in words:
        protocols.folds(config, 5)
    if "grid" in words:
        config.grid = "data.fold=0,1,2,3,4" if "folds" in words else protocols.SHARES
    if "smoke" in words:
        protocols.smoke(config)
    return config
