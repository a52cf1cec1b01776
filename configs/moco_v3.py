"""MoCo v3, ICCV 2021: a view of a radiograph found again among the others' by what a slow copy of the network sees.

    python -m cxrjax.main --config=configs/moco_v3.py                      phantoms, small ViT at 64 px: minutes
    python -m cxrjax.main --config=configs/moco_v3.py:chestxray14          the authors': ViT-B/16 at 224 px, AdamW
    python -m cxrjax.main --config=configs/moco_v3.py:chestxray14,resnet   theirs for ResNet-50, LARS
    python -m cxrjax.main --config=configs/moco_v3.py:smoke                seconds; shrinks what it is combined with

Words: `chestxray14` (batch 4096, 300 epochs), `resnet` (ResNet-18 without chestxray14), `five_sets` (the small public
sets of configs/sets, for a CPU), `smoke`. Cost per picture, ViT-B/16 at 224 px: 4 passes of 17.5 G multiply–accumulates
forward, 2 backward. The authors' ViT-S has twelve heads: --config.model.variant=S-12h.
"""

from cxrjax import config as shared
from cxrjax import recipes

WORDS = ("chestxray14", "resnet", "five_sets", "smoke")


def get_config(arg: str = ""):
    words = shared.words(arg, WORDS)
    config = shared.pretrain()
    config.method = "moco_v3"
    config.model = recipes.vit() | {"positions": "sincos_rows", "initialisation": "moco_v3"}  # as the authors' code
    config.projector = {"layers": 3, "hidden": 4096, "out": 256, "last_norm": True}
    config.predictor = {"layers": 2, "hidden": 4096, "last_norm": True}  # with the projector's output
    config.freeze_patch_embed = True  # a fixed random patch projection; ResNets have none
    config.temperature = 0.2
    config.chunks = 1  # the logits of a large batch in so many parts, one after the other; the value is the same
    config.momentum = 0.99  # of the momentum encoder at step 0; rises to 1
    recipes.radiograph_pair(config)
    config.standardise = recipes.standardise()

    config.batch_size = 128
    config.duration.total_steps = 600
    config.optim.lr = 1e-3
    config.optim.warmup_steps = 60
    recipes.phantom_probe(config)

    if "resnet" in words:
        config.model = recipes.resnet("resnet18", 64)
        config.projector.layers = 2
        config.predictor.last_norm = False
        config.temperature = 1.0
        config.views.scale = (0.2, 1.0)
    if "chestxray14" in words:
        recipe(config, "resnet" in words)
    if "five_sets" in words:
        recipes.five_sets(config)
    if "smoke" in words:
        recipes.smoke(config)
        config.projector.update({"hidden": 64, "out": 32})
        config.predictor.update({"hidden": 64})
    return config


def recipe(config, resnet):
    recipes.chestxray14(config)
    recipes.photograph_pair(config)
    config.batch_size = 4096
    config.duration.update({"total_steps": None, "total_epochs": 300.0})
    config.optim.update({"lr": None, "warmup_steps": None})
    if resnet:
        config.model.update({"variant": "resnet50", "image_px": 224})
        config.model.zero_init_residual = True
        config.views.scale = (0.2, 1.0)
        config.optim.update({"name": "lars", "base_lr": 0.3, "wd": 1e-6, "warmup_epochs": 10.0})
        config.optim.lr_in_momentum = False
    else:
        config.model.update({"variant": "B", "image_px": 224, "patch_px": 16})
        config.optim.update({"base_lr": 1.5e-4, "wd": 0.1, "betas": (0.9, 0.999), "warmup_epochs": 40.0})
        config.optim.wd_mults = (("", 1.0),)  # biases and norms as well, as the authors' code
    config.model.dtype = "bfloat16"
