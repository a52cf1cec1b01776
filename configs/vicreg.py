"""VICReg, ICLR 2022: two views of a radiograph kept alike, the embeddings spread out and uncorrelated.

    python -m cxrjax.main --config=configs/vicreg.py                    phantoms, small ViT at 64 px: minutes on a CPU
    python -m cxrjax.main --config=configs/vicreg.py:chestxray14        the authors' recipe: ResNet-50 at 224 px, LARS
    python -m cxrjax.main --config=configs/vicreg.py:chestxray14,vit    ViT-B/16 with AdamW
    python -m cxrjax.main --config=configs/vicreg.py:smoke              seconds; shrinks whatever it is combined with

Words: `chestxray14` (batch 2048, 1000 epochs), `vit` (beside it: the encoder of the other methods, with the optimizer
that MoCo v3's paper has for ViTs; our choice), `five_sets` (the small public sets of configs/sets), `smoke`. Any ResNet
trains: --config.model.variant=resnet18. Outside `chestxray14` the expander is as narrow as keeps d/(batch − 1) at the
authors' 4, where the weights 25, 25, 1 are in balance, and the optimizer is AdamW: our choices.
The paper reports 73.2 % on ImageNet, linear on frozen features; nothing on radiographs.
Cost per picture, ResNet-50 at 224 px: 2 views of 4.2 G multiply–accumulates forward, 0.15 G of each the expander.
"""

from cxrjax import config as shared
from cxrjax import recipes

WORDS = ("chestxray14", "vit", "five_sets", "smoke")


def get_config(arg: str = ""):
    words = shared.words(arg, WORDS)
    config = shared.pretrain()
    config.method = "vicreg"
    config.model = recipes.vit()
    config.expander = {"sizes": (512, 512, 512)}
    config.loss = {
        "sim": 25.0,
        "std": 25.0,
        "cov": 1.0,
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
        config.expander.sizes = (1024, 1024, 1024)
    if "smoke" in words:
        recipes.smoke(config)
        config.expander.sizes = (48, 48, 48)
    return config


def recipe(config, vit):
    recipes.chestxray14(config)
    recipes.photograph_pair(config)
    config.expander.sizes = (8192, 8192, 8192)
    config.batch_size = 2048
    config.duration.update({"total_steps": None, "total_epochs": 1000.0})
    config.optim.update({"lr": None, "warmup_steps": None})
    if vit:
        recipes.vit_as_moco_v3(config)
    else:
        config.model = recipes.resnet("resnet50", 224) | {"zero_init_residual": True}
        config.optim.update({"name": "lars", "base_lr": 0.2, "lr_end_ratio": 1e-3, "wd": 1e-6, "warmup_epochs": 10.0})
        config.optim.lr_in_momentum = False
    config.model.dtype = "bfloat16"
