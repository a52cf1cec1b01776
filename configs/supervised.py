"""Supervised training from scratch (or from --config.init_from): the reference for every pre-trained encoder.

    python -m cxrjax.main --config=configs/supervised.py                      phantoms, small ViT at 64 px: minutes
    python -m cxrjax.main --config=configs/supervised.py:chestxray14          ViT-B/16 at 224 px, 14 findings
    python -m cxrjax.main --config=configs/supervised.py:chestxray14,resnet   ResNet-50 at 224 px
    python -m cxrjax.main --config=configs/supervised.py:smoke                seconds; shrinks what it is combined with

Words: `chestxray14` (batch 1024, 100 epochs), `resnet` (ResNet-18 without chestxray14), `five_sets` (the small public
sets of configs/sets, for a CPU), `smoke`. Other sets: --config.data.sets=a,b with --config.labels=x,y of theirs; the
run is judged on the first, and its best step kept by that set's validation patients.
The recipes are our choice: DeiT's optimizer (Touvron et al. 2021) with fewer epochs, and AdamW for ResNets.
Cost per picture, ViT-B/16 at 224 px: 17.5 G multiply–accumulates forward.
"""

from cxrjax import config as shared
from cxrjax import protocols, recipes
from cxrjax.datasets import chestxray14
from cxrjax.input.augment import Augment
from cxrjax.phantom import findings

WORDS = ("chestxray14", "resnet", "five_sets", "smoke")
CHESTXRAY14 = ",".join(chestxray14.FINDINGS)
FIVE_SETS = "Normal,No Finding,Pneumonia,Bacterial pneumonia,Viral pneumonia,Tuberculosis,COVID-19"


def get_config(arg: str = ""):
    words = shared.words(arg, WORDS)
    config = shared.pretrain()
    config.method = "supervised"
    config.model = recipes.vit()
    config.model.drop_path = 0.0  # of a ViT
    config.encoder = "learned"  # or frozen: a linear head alone; drifting: frozen but for BatchNorm's statistics
    config.task = "multilabel"  # or multiclass
    config.labels = ",".join(findings.FINDINGS)
    config.policy = "U-Ignore"  # or U-Zeros, U-Ones, MGCA: unmentioned is absent; "": unmentioned is not known
    config.loss = {"weights": (), "smoothing": 0.0}  # one weight per label, of its presence or class
    config.views = {"scale": (0.5, 1.0), "ratio": (3 / 4, 4 / 3), "flip": 0.0, "rotation_degrees": 10.0}
    config.augment = Augment()._asdict()
    config.standardise = recipes.standardise()

    config.batch_size = 128
    config.duration.total_steps = 600
    config.optim.lr = 1e-3
    config.optim.warmup_steps = 60
    judges(config, every_steps=300, knn_every_steps=150)

    if "resnet" in words:
        config.model = {**config.model, **recipes.resnet("resnet18", 64)}
    if "chestxray14" in words:
        recipe(config, "resnet" in words)
    if "five_sets" in words:
        recipes.five_sets(config)
        config.checkpoint.best_metric = ""  # no judge of the five looks at the head
        config.labels = FIVE_SETS
        config.policy = ""
    if "smoke" in words:
        recipes.smoke(config)
    return config


def judges(config, every_steps, knn_every_steps):
    """Of the answers, by which the best step is kept, and of the features, as every other method is judged."""
    protocols.classify(config, {"kind": "multilabel"}, every_steps)
    protocols.probes(config, every_steps, knn_every_steps)


def recipe(config, resnet):
    recipes.chestxray14(config)
    judges(config, every_steps=5000, knn_every_steps=1000)
    config.labels = CHESTXRAY14
    config.batch_size = 1024
    config.duration.update({"total_steps": None, "total_epochs": 100.0})
    config.optim.update({"lr": None, "base_lr": 2.5e-4, "betas": (0.9, 0.999)})
    config.optim.update({"warmup_steps": None, "warmup_epochs": 5.0})
    config.model.update({"image_px": 224, "dtype": "bfloat16"})
    config.model.update({"variant": "resnet50"} if resnet else {"variant": "B", "patch_px": 16, "drop_path": 0.1})
