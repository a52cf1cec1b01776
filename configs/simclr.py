"""SimCLR, ICML 2020: two views of a radiograph told from all others.

    python -m cxrjax.main --config=configs/simclr.py                    phantoms, small ViT at 64 px: minutes on a CPU
    python -m cxrjax.main --config=configs/simclr.py:chestxray14        the authors' recipe: ResNet-50 at 224 px, LARS
    python -m cxrjax.main --config=configs/simclr.py:chestxray14,vit    ViT-B/16 with AdamW
    python -m cxrjax.main --config=configs/simclr.py:smoke              seconds; shrinks whatever it is combined with

Words: `chestxray14` (batch 4096, 1000 epochs), `vit` (beside it: the encoder of the other methods, with the optimizer
that MoCo v3's paper has for ViTs; our choice), `five_sets` (the small public sets of configs/sets, for a CPU), `smoke`.
Any ResNet trains: --config.model.variant=resnet18. Cost per picture, ResNet-50 at 224 px: 2 views of 4.1 G
multiply–accumulates forward.
"""

from ml_collections import config_dict

from cxrjax import config as shared
from cxrjax import recipes
from cxrjax.input.augment import Augment

WORDS = ("chestxray14", "vit", "five_sets", "smoke")


def get_config(arg: str = ""):
    words = shared.words(arg, WORDS)
    config = shared.pretrain()
    config.method = "simclr"
    config.model = recipes.vit()
    config.projector = {
        "layers": 2,  # 3 in SimCLR v2
        "hidden": config_dict.placeholder(int),  # by default the encoder's width
        "out": 128,
        "norm": "batch",  # or layer, none: the paper's equation
    }
    config.loss = {
        "temperature": 0.1,
        "groups": 1,  # negatives from this many separate slices of the batch
        "chunks": 1,  # the logits of a large batch in so many parts, one after the other; the value is the same
        "sum_of_views": False,  # the released code's scale, twice the paper's
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
    if "smoke" in words:
        recipes.smoke(config)
        config.projector.update({"hidden": 64, "out": 32})
    return config


def recipe(config, vit):
    recipes.chestxray14(config)
    recipes.photograph_pair(config, Augment(jitter=0.8, brightness=0.8, contrast=0.8, blur=0.5))
    config.batch_size = 4096
    config.duration.update({"total_steps": None, "total_epochs": 1000.0})
    config.optim.update({"lr": None, "warmup_steps": None})
    if vit:
        recipes.vit_as_moco_v3(config)
    else:
        config.model = recipes.resnet("resnet50", 224) | {"zero_init_residual": True}
        config.optim.update({"name": "lars", "base_lr": 0.3, "wd": 1e-6, "warmup_epochs": 10.0})
    config.model.dtype = "bfloat16"
