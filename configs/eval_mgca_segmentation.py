"""MGCA's segmentation: U-Net on a frozen ResNet-50, or SETR-PUP on a frozen ViT; pneumothorax (SIIM) or RSNA's boxes.

    python -m cxrjax.main --config=configs/eval_mgca_segmentation.py --config.init_from=runs/…              SIIM
    python -m cxrjax.main --config=configs/eval_mgca_segmentation.py:vit --config.init_from=runs/…          of a ViT
    python -m cxrjax.main --config=configs/eval_mgca_segmentation.py:rsna,grid --config.init_from=runs/…    1, 10, 100 %
    python -m cxrjax.main --config=configs/eval_mgca_segmentation.py:compat --config.init_from=runs/…       its defect

Wang et al., NeurIPS 2022 (2210.06044), released code: 224 px, scaled by ±10 % and turned by ±10° half of the time;
10 × focal (γ = 2) − log Dice of the batch; AdamW 5e-4, weight decay 0.05, no schedule, batch 8 (SIIM) or 16 (RSNA), at
most 50 epochs, tested where the validation loss is lowest. RSNA's mask is the union of its boxes.

Published Dice at 1 / 10 / 100 %, as the table of G2D (Liu et al., NeurIPS 2024, 2312.01522) has them. Theirs is
"dice_all": a picture without a lesion counts 1 if no lesion is found, else 0. They take the mean over the means of
batches, which the details of our results give as well.

              SIIM                  RSNA
    random     9.0  28.6  54.3       6.9  10.6  18.5
    ImageNet  10.2  35.5  63.5      34.8  39.9  64.0
    ConVIRT   25.0  43.2  59.9      55.0  67.4  67.5
    MGCA      49.7  59.3  64.2      63.0  68.3  69.8

By default the code's defects are put right: splits by picture and patient and not by row of the table, masks and
pictures resized together, Dice a mean over pictures. `compat` lets BatchNorm of the frozen encoder move, as theirs
does. Ours: every picture is trained on, where their SIIM has all with a pneumothorax and as many others at random, and
the step is kept that has the best validation Dice.
"""

from cxrjax import config as shared
from cxrjax import protocols

WORDS = ("vit", "rsna", "grid", "compat", "smoke")


def get_config(arg: str = ""):
    words = shared.words(arg, WORDS)
    config = protocols.segmentation()
    config.encoder = "drifting" if "compat" in words else "frozen"
    config.head.update({"kind": "setr_pup" if "vit" in words else "unet", "features": 0})
    config.model.update({"variant": "B" if "vit" in words else "resnet50", "image_px": 224})
    if "vit" in words:
        config.model.patch_px = 16
    config.loss.update({"dice": 0.0, "cross_entropy": 0.0, "focal": 10.0, "log_dice": 1.0})
    config.views.update({"scale": (0.81, 1.0), "ratio": (1.0, 1.0), "flip": 0.0, "rotation_degrees": 10.0})
    config.duration.total_epochs = 50.0
    config.optim.update({"lr": 5e-4, "schedule": "constant", "betas": (0.9, 0.999), "wd": 0.05})
    if "rsna" in words:
        config.data.sets, config.target, config.batch_size = "rsna_pneumonia", "boxes", 16
    else:
        config.data.sets, config.target, config.batch_size = "siim_acr", "mask", 8
    protocols.judge_masks(config, every_steps=1000, metric="dice_all")
    config.data.projections = ""
    if "grid" in words:
        config.grid = protocols.SHARES
    if "smoke" in words:
        protocols.smoke(config)
    return config
