"""BYOL, NeurIPS 2020: one view of a radiograph predicts how a slow copy of the network sees another.

    python -m cxrjax.main --config=configs/byol.py                    phantoms, small ViT at 64 px: minutes on a CPU
    python -m cxrjax.main --config=configs/byol.py:chestxray14        the authors' recipe: ResNet-50 at 224 px, LARS
    python -m cxrjax.main --config=configs/byol.py:chestxray14,vit    ViT-B/16 with AdamW
    python -m cxrjax.main --config=configs/byol.py:smoke              seconds; shrinks whatever it is combined with

Words: `chestxray14` (batch 4096, 1000 epochs), `vit` (beside it: the encoder of the other methods, with the optimizer
that MoCo v3's paper has for ViTs; our choice), `five_sets` (the small public sets of configs/sets, for a CPU), `smoke`.
Any ResNet trains: --config.model.variant=resnet18. The authors' settings for 300 epochs are base_lr 0.3, wd 1e-6,
momentum 0.99. Cost per picture, ResNet-50 at 224 px: 4 passes of 4.1 G multiply–accumulates forward, 2 backward.
"""

from cxrjax import config as shared
from cxrjax import recipes
from cxrjax.input.augment import PAIR

WORDS = ("chestxray14", "vit", "five_sets", "smoke")


def get_config(arg: str = ""):
    words = shared.words(arg, WORDS)
    config = shared.pretrain()
    config.method = "byol"
    config.model = recipes.vit()
    config.projector = {"hidden": 4096, "out": 256}
    config.predictor = {"hidden": 4096, "out": 256}
    config.momentum = 0.99  # of the target at step 0, rises to 1; the authors have 0.996 for 1000 epochs only
    config.target_start = "copy"  # or independent, as the authors' code
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
    if "smoke" in words:
        recipes.smoke(config)
        for head in (config.projector, config.predictor):
            head.update({"hidden": 64, "out": 32})
    return config


def recipe(config, vit):
    recipes.chestxray14(config)
    recipes.photograph_pair(config, PAIR._replace(brightness_kind="offset"))
    config.momentum = 0.996
    config.batch_size = 4096
    config.duration.update({"total_steps": None, "total_epochs": 1000.0})
    config.optim.update({"lr": None, "warmup_steps": None})
    if vit:
        recipes.vit_as_moco_v3(config)
    else:
        config.model = recipes.resnet("resnet50", 224) | {"zero_init_residual": True}
        config.optim.update({"name": "lars", "base_lr": 0.2, "wd": 1.5e-6, "warmup_epochs": 10.0})
        config.optim.lr_in_momentum = False
    config.model.dtype = "bfloat16"
