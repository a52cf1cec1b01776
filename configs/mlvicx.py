"""MLVICX, arXiv 2403.11504: VICReg on a global embedding and on one of all levels of a gated ResNet.

    python -m cxrjax.main --config=configs/mlvicx.py                        phantoms, ResNet-18 at 64 px: for a CPU
    python -m cxrjax.main --config=configs/mlvicx.py:chestxray14            ResNet-18 at 224 px, batch 256, 300 epochs
    python -m cxrjax.main --config=configs/mlvicx.py:chestxray14,release    with the released code's accidents
    python -m cxrjax.main --config=configs/mlvicx.py:chestxray14,resnet50   the same on a ResNet-50, which is ours
    python -m cxrjax.main --config=configs/mlvicx.py:smoke                  seconds; shrinks what it is combined with

Words: `chestxray14` (the released recipe), `release` (level convolutions that never learn, gates dropped after
pre-training, a cosine that does not end), `resnet50`, `five_sets` (the small public sets of configs/sets), `smoke`.
Only the abstract was readable to us: everything in the recipe is the released code's. It says 64 pictures a batch in
one place and 256 in another; 256 is our choice. It starts from ImageNet's weights unless told otherwise; we start at
random. For batches of 1024 and more VICReg's warm-up of 10 epochs is advisable. Outside `chestxray14` the narrow heads
and AdamW are our choices.
The abstract reports gains of more than 3 % over other self-supervised methods; its tables were not readable to us.
Cost per picture, ResNet-18 at 224 px, two views: 3.7 G multiply–accumulates forward, 0.2 G of them the heads.
"""

from cxrjax import config as shared
from cxrjax import recipes

WORDS = ("chestxray14", "five_sets", "release", "resnet50", "smoke")


def get_config(arg: str = ""):
    words = shared.words(arg, WORDS)
    config = shared.pretrain()
    config.method = "mlvicx"
    config.model = recipes.resnet("resnet18", 64)
    config.gates = {"use": True, "reduction": 2}
    config.levels = {
        "use": "1,2,3,4,5",  # of the stem and the four stages
        "features": 128,
        "side": 64,  # positions that every level is resized to
        "grid": 4,  # cells that these are averaged over
        "fused": True,  # both in one constant matrix; exact, and a fraction of the memory
    }
    config.heads = {
        "sizes": (256, 256, 256),
        "levels_sizes": (),  # of the multi-level embedding, where they are others
        "per_level_sizes": (256, 256),
    }
    config.final_bn = True
    config.per_level = False
    config.train_level_proj = True
    config.strip_gates = False
    config.loss = {
        "sim": 25.0,
        "std": 25.0,
        "cov": 1.0,
        "global": 1.0,
        "lambda": 1.0,
        "rebalance": False,
        "groups": 1,  # statistics of this many separate slices of the batch
    }
    recipes.radiograph_pair(config)
    config.standardise = recipes.standardise()

    config.batch_size = 64
    config.duration.total_steps = 300
    config.optim.lr = 1e-3
    config.optim.warmup_steps = 30
    recipes.phantom_probe(config)

    if "chestxray14" in words:
        recipe(config)
    if "five_sets" in words:
        recipes.five_sets(config)
        config.heads.update({"sizes": (1024, 1024, 1024), "per_level_sizes": (512, 512)})
    if "release" in words:
        config.train_level_proj = False
        config.strip_gates = True
        config.optim.cosine_period = "total"
    if "resnet50" in words:
        config.model.variant = "resnet50"
    if "smoke" in words:
        recipes.smoke(config)
        config.levels.update({"features": 8, "side": 8, "grid": 2})
        config.heads.update({"sizes": (24, 24, 24), "per_level_sizes": (24, 24)})
    return config


def recipe(config):
    recipes.chestxray14(config)
    recipes.photograph_pair(config)
    config.model.update({"image_px": 224, "dtype": "bfloat16"})
    config.levels.features = 512
    config.heads.update({"sizes": (4096, 4096, 4096), "per_level_sizes": (512, 512)})
    config.batch_size = 256
    config.duration.update({"total_steps": None, "total_epochs": 300.0})
    config.optim.update({"name": "lars", "lr": None, "base_lr": 0.2, "lr_end_ratio": 1e-3, "lr_in_momentum": False})
    config.optim.update({"warmup_steps": None, "warmup_epochs": 2.0, "wd": 1e-6})
