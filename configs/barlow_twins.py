"""Barlow Twins, ICML 2021: the cross-correlation of two views of radiographs made the identity matrix.

    python -m cxrjax.main --config=configs/barlow_twins.py                    phantoms, small ViT: minutes on a CPU
    python -m cxrjax.main --config=configs/barlow_twins.py:chestxray14        the authors' recipe: ResNet-50, LARS
    python -m cxrjax.main --config=configs/barlow_twins.py:chestxray14,vit    ViT-B/16 with AdamW
    python -m cxrjax.main --config=configs/barlow_twins.py:smoke              seconds; shrinks what it is combined with

Words: `chestxray14` (batch 2048, 1000 epochs; biases and BatchNorm learn at 0.024 of the rate), `vit` (beside it: the
encoder of the other methods, with the optimizer that MoCo v3's paper has for ViTs; our choice), `five_sets` (the small
public sets of configs/sets), `smoke`. Any ResNet trains: --config.model.variant=resnet18. Outside `chestxray14` the
narrow projector and AdamW are our choices.
The paper reports 73.2 % on ImageNet, linear on frozen features; nothing on radiographs.
Cost per picture, ResNet-50 at 224 px: 2 views of 4.2 G multiply–accumulates forward, 0.15 G of each the projector.
"""

from cxrjax import config as shared
from cxrjax import recipes

WORDS = ("chestxray14", "vit", "five_sets", "smoke")


def get_config(arg: str = ""):
    words = shared.words(arg, WORDS)
    config = shared.pretrain()
    config.method = "barlow_twins"
    config.model = recipes.vit()
    config.projector = {"sizes": (512, 512, 512)}
    config.loss = {
        "lambd": 0.0051,
        "scale": 1.0,  # 0.024 in the published runs, without slower biases
        "groups": 1,  # statistics of this many separate slices of the batch
    }
    recipes.radiograph_pair(config)
    config.standardise = recipes.standardise()

    config.batch_size = 128
    config.duration.total_steps = 600
    config.optim.lr = 1e-3
    config.optim.warmup_steps = 60
    recipes.phantom_probe(config)

    if "chestxray14" in words:
        recipe(config, "vit" in words)
    if "five_sets" in words:
        recipes.five_sets(config)
        config.projector.sizes = (1024, 1024, 1024)
    if "smoke" in words:
        recipes.smoke(config)
        config.projector.sizes = (48, 48, 48)
    return config


def recipe(config, vit):
    recipes.chestxray14(config)
    recipes.photograph_pair(config)
    config.projector.sizes = (8192, 8192, 8192)
    config.batch_size = 2048
    config.duration.update({"total_steps": None, "total_epochs": 1000.0})
    config.optim.update({"lr": None, "warmup_steps": None})
    if vit:
        recipes.vit_as_moco_v3(config)
    else:
        config.model = recipes.resnet("resnet50", 224) | {"zero_init_residual": True}
        config.optim.update({"name": "lars", "base_lr": 0.2, "lr_end_ratio": 1e-3, "wd": 1e-6, "warmup_epochs": 10.0})
        config.optim.lr_in_momentum = False
        config.optim.lr_mults = (("(^|/)(bias|scale)$", 0.024), (".*", 1.0))
    config.model.dtype = "bfloat16"
