"""LeJEPA, 2025: views of a radiograph kept alike, while every direction of the batch is made a standard Gaussian.

    python -m cxrjax.main --config=configs/lejepa.py                       phantoms, small ViT: minutes on a CPU
    python -m cxrjax.main --config=configs/lejepa.py:chestxray14           ViT-B/16 at 224 px, batch 256, 100 epochs
    python -m cxrjax.main --config=configs/lejepa.py:chestxray14,resnet50  ResNet-50
    python -m cxrjax.main --config=configs/lejepa.py:smoke                 seconds; shrinks whatever it is combined with

Words: `chestxray14` (two crops at 224 px, six at 96, AdamW as the authors' README has them; change the sets with
--config.data.sets=a,b), `resnet50` (beside it, with their weight decay for ResNets), `minimal` (the choices of the
authors' shortest script: λ 0.02, 256 directions, 16 dimensions, the mean of all views), `five_sets` (the small public
sets of configs/sets, for a CPU), `smoke`.
λ belongs to a batch, see cxrjax/methods/lejepa.py: with another batch set --config.loss.rows=256 as well.
Watch sigreg_above_floor, 0 for a perfect Gaussian, and largest_projection, beyond 10 of which no gradient helps.
The paper has nothing on radiographs. Cost per picture, 2 crops at 224 px and 6 at 96 px, multiply–accumulates forward:
54.1 G (ViT-B/16), 14.0 G (ViT-S/16), 12.5 G (ResNet-50).
"""

from ml_collections import config_dict

from cxrjax import config as shared
from cxrjax import recipes
from cxrjax.input.augment import Augment

WORDS = ("chestxray14", "resnet50", "minimal", "five_sets", "smoke")


def get_config(arg: str = ""):
    words = shared.words(arg, WORDS)
    config = shared.pretrain()
    config.method = "lejepa"
    config.model = recipes.vit() | {
        "positions": "learned",  # a fixed table would count the patches of small crops from 0 and not resize
        "drop_path": 0.0,
    }
    config.projector = {"hidden": 512, "out": 64}
    config.loss = {
        "lambd": 0.02,
        "slices": 256,  # random directions
        "t_max": 3.0,
        "knots": 17,
        "rows": config_dict.placeholder(float),  # factor of the statistic; by default the batch
        "centre": "global",  # or all: the mean of all views, not of the large ones
        "form": "convex",  # or additive: inv + λ SIGReg
        "per_view": True,  # False takes all views for one sample
    }
    recipes.radiograph_pair(config)
    config.local_views = {"count": 2, "px": 32, "scale": (0.3, 0.7)}
    config.standardise = recipes.standardise()

    config.batch_size = 128
    config.duration.total_steps = 600
    config.optim.update({"lr": 1e-3, "lr_end_ratio": 1e-3, "warmup_steps": 60, "betas": (0.9, 0.999)})
    config.optim.wd_mults = ((".*", 1.0),)  # biases and norms decay as well
    recipes.phantom_probe(config)

    if "chestxray14" in words:
        recipe(config, "resnet50" in words)
    if "minimal" in words:
        config.projector.out = 16
        config.loss.update({"lambd": 0.02, "slices": 256, "centre": "all"})
    if "five_sets" in words:
        recipes.five_sets(config)
        config.local_views.px = 64
    if "smoke" in words:
        recipes.smoke(config)
        config.projector.update({"hidden": 48, "out": 16})
        config.loss.slices = 32
        config.local_views.update({"count": 2, "px": 16})
    return config


def recipe(config, resnet):
    recipes.chestxray14(config)
    vit = recipes.vit("B", 224, 16) | {"positions": "learned", "drop_path": 0.1}
    config.model = recipes.resnet() if resnet else vit
    config.model.dtype = "bfloat16"
    config.projector.update({"hidden": 2048, "out": 512})
    config.loss.update({"lambd": 0.05, "slices": 1024})
    config.views.scale = (0.3, 1.0)
    config.local_views.update({"count": 6, "px": 96, "scale": (0.05, 0.3)})
    # Theirs but for solarise 0.2, which makes negatives, and the mirror image.
    config.augment = Augment(jitter=0.8, blur=0.5)._asdict()
    config.batch_size = 256
    config.duration.update({"total_steps": None, "total_epochs": 100.0})
    config.optim.update({"lr": 5e-4, "lr_start": 5e-6, "warmup_steps": None, "warmup_epochs": 1.0})
    config.optim.wd = 5e-4 if resnet else 5e-2
