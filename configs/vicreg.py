"""VICReg, arXiv 2105.04906: two views kept alike, spread out and uncorrelated.

    python -m cxrjax.main --config=configs/vicreg.py                phantoms, small ViT at 64 px: minutes on a CPU
    python -m cxrjax.main --config=configs/vicreg.py:chestxray14    ResNet-50 at 224 px, batch 2048, 1000 epochs
    python -m cxrjax.main --config=configs/vicreg.py:smoke          seconds; shrinks whatever it is combined with
    python -m cxrjax.main --config=configs/vicreg.py --config.model.variant=resnet18    any ViT or ResNet by its name

Words: `chestxray14` (the authors' recipe on a large set; change the sets with --config.data.sets=a,b), `five_sets` (the
small public sets of configs/sets), `smoke`.
In the recipe everything is the authors' code for ImageNet but the pictures' one channel. A ViT wants
--config.optim.name=adamw and a learning rate of its own. The other words crop 30 % and more, do not mirror (the heart
lies on one side), use AdamW, and choose the expander's width so that d/(batch − 1) is the authors' 4: our choices.
The paper reports 73.2 % on ImageNet, linear on frozen features; nothing on radiographs.
Cost per picture, ResNet-50 at 224 px in one channel, multiply–accumulates forward: 8.4 G, of which the expander 0.3 G.
"""

from cxrjax import config as shared
from cxrjax import recipes
from cxrjax.input import augment

WORDS = ("chestxray14", "five_sets", "smoke")


def get_config(arg: str = ""):
    words = shared.words(arg, WORDS)
    config = shared.pretrain()
    config.method = "vicreg"
    config.model = recipes.vit() | {"zero_init_residual": True}
    config.expander = {"sizes": (512, 512, 512)}
    config.loss = {
        "sim": 25.0,
        "std": 25.0,
        "cov": 1.0,
        "groups": 1,  # statistics of this many separate slices of the batch
    }
    config.views = {"scale": (0.3, 1.0), "flip": 0.0, "rotation_degrees": 0.0}
    config.augment = augment.PAIR._replace(blur=(0.5, 0.5), solarise=0.0)._asdict()
    config.standardise = {"mode": "fixed", "mean": 0.4978, "std": 0.2449}  # or per_image

    config.batch_size = 128
    config.duration.total_steps = 600
    config.optim.lr = 1e-3
    config.optim.warmup_steps = 60
    recipes.phantom_probe(config)

    if "chestxray14" in words:
        recipe(config)
    if "five_sets" in words:
        recipes.five_sets(config)
        config.expander.sizes = (1024, 1024, 1024)
    if "smoke" in words:
        recipes.smoke(config)
        config.expander.sizes = (48, 48, 48)
    return config


def recipe(config):
    recipes.chestxray14(config)
    config.model.update({"variant": "resnet50", "image_px": 224, "patch_px": 16, "dtype": "bfloat16"})
    config.expander.sizes = (8192, 8192, 8192)
    config.views.update({"scale": (0.08, 1.0), "flip": 0.5})
    config.augment = augment.PAIR._asdict()
    config.batch_size = 2048
    config.duration.update({"total_steps": None, "total_epochs": 1000.0})
    config.optim.update({"name": "lars", "lr": None, "base_lr": 0.2, "lr_end_ratio": 1e-3, "lr_in_momentum": False})
    config.optim.update({"warmup_steps": None, "warmup_epochs": 10.0, "wd": 1e-6})
