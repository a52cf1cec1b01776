"""Ark+, Nature 2025: one encoder learns the labels of many sets, each set by a head of its own, beside a slow teacher.

    python -m cxrjax.main --config=configs/ark.py                        phantoms, one head, small ViT: minutes on a CPU
    python -m cxrjax.main --config=configs/ark.py --config.data.sets=a,b your sets, a head for all labels of each
    python -m cxrjax.main --config=configs/ark.py:chestxray14            ViT-B/16 at 224 px, batch 256, 100 epochs
    python -m cxrjax.main --config=configs/ark.py:chestxray14,ark6       the paper's six sets, one after the other
    python -m cxrjax.main --config=configs/ark.py:smoke                  seconds; shrinks whatever it is combined with

Words: `chestxray14` (our recipe), `ark6` (beside it: MIMIC-CXR, CheXpert, ChestX-ray14, RSNA Pneumonia, VinDr-CXR and
Shenzhen, in the cycle of the paper), `resnet` (beside it: a ResNet-50 under the optimizer of the released code, SGD at
0.3 for 200 epochs in batches of 200; its Swin starts from ImageNet), `released` (the slip of that code, see
cxrjax/methods/ark.py), `five_sets` (the small public sets of configs/sets, for a CPU), `smoke`.
Labels are those of the converted sets, so VinDr-CXR has its findings as well, where the paper has six diagnoses. Set
update_every_steps to the steps of a pass through a set, and data.order=mixed to take every batch from all sets.
Watch cross_entropy_<set>, and consistency_weight, which rises from 0 to a half.
Cost per picture, ViT-B/16 at 224 px, multiply–accumulates forward: 35.0 G, half of it the teacher's.
"""

from cxrjax import config as shared
from cxrjax import recipes
from cxrjax.datasets import rsna_pneumonia
from cxrjax.input.augment import Augment
from cxrjax.phantom import findings

WORDS = ("chestxray14", "ark6", "resnet", "released", "five_sets", "smoke")
SIX = "mimic_cxr,chexpert,chestxray14,rsna_pneumonia,vindr_cxr,shenzhen"


def get_config(arg: str = ""):
    words = shared.words(arg, WORDS)
    config = shared.pretrain()
    config.method = "ark"
    config.model = recipes.vit()
    config.model.drop_path = 0.0  # of a ViT
    config.set_heads = {}  # {set: {"labels": "a,b", "task": "multilabel"}}; by default all labels of each set
    config.uncertain = "U-Ones"  # of uncertain labels: U-Ignore, U-Zeros, MGCA; "": unmentioned is not known either
    config.projector = {"layers": 1, "out": 128}
    config.loss = {"consistency": 0.5}  # what its weight rises to
    config.momentum = 0.9  # of the teacher at first
    config.update_every_steps = 10  # of the teacher
    config.teacher_view = "whole"  # or crop
    config.target_start = "copy"  # or independent
    config.views = {"scale": (0.5, 1.0), "ratio": (3 / 4, 4 / 3), "flip": 0.0, "rotation_degrees": 10.0}
    config.augment = Augment(jitter=0.3, brightness=0.2, contrast=0.2)._asdict()
    config.standardise = recipes.standardise()

    config.batch_size = 128
    config.duration.total_steps = 600
    config.optim.update({"lr": 1e-3, "warmup_steps": 60})
    recipes.phantom_probe(config)

    if "chestxray14" in words:
        recipe(config, "resnet" in words)
    if "ark6" in words:
        config.data.update({"sets": SIX, "order": "cyclic"})
        one_of = {"labels": ",".join(rsna_pneumonia.CLASSES), "task": "multiclass"}
        with config.unlocked():
            config.set_heads.rsna_pneumonia = one_of
    if "released" in words:
        config.target_start = "independent"
    if "five_sets" in words:
        recipes.five_sets(config)
        config.data.order = "cyclic"
    if "smoke" in words:
        recipes.smoke(config)
        config.projector.out = 32
        config.update_every_steps = 1
        one, other = findings.FINDINGS[:4], findings.FINDINGS[4:]
        config.set_heads = {  # of the second only the shapes are ever used
            "phantom_smoke": {"labels": ",".join(one), "task": "multilabel"},
            "phantom": {"labels": ",".join(other), "task": "multilabel"},
        }
    return config


def recipe(config, resnet):
    recipes.chestxray14(config)
    config.model.update({"image_px": 224, "dtype": "bfloat16"})
    config.projector.out = 1376
    config.update_every_steps = 400
    config.views.scale = (0.08, 1.0)
    config.duration.update({"total_steps": None, "total_epochs": 200.0 if resnet else 100.0})
    if resnet:
        config.model = recipes.resnet()
        config.model.dtype = "bfloat16"
        config.batch_size = 200
        config.optim.update({"name": "sgd", "lr": 0.3, "lr_end": 1e-5, "wd": 0.0})
        config.optim.update({"warmup_steps": None, "warmup_epochs": 20.0, "lr_start": 1e-6})
    else:
        config.model.update({"variant": "B", "patch_px": 16, "drop_path": 0.1})
        config.batch_size = 256
        config.optim.update({"lr": None, "base_lr": 2.5e-4, "betas": (0.9, 0.999)})
        config.optim.update({"warmup_steps": None, "warmup_epochs": 5.0})
