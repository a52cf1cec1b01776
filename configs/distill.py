"""Distillation: a small ViT or ResNet learns the features of encoders that are there, from pictures without labels.

    python -m cxrjax.main --config=configs/distill.py --config.teachers.init_from=runs/spcl        phantoms: minutes
    python -m cxrjax.main --config=configs/distill.py:chestxray14 --config.teachers.init_from=rad-dino,runs/mae
    python -m cxrjax.main --config=configs/distill.py:chestxray14,resnet --config.teachers.init_from=rad-dino
    python -m cxrjax.main --config=configs/distill.py:smoke                                        seconds

Words: `chestxray14` (ViT-S/16 at 224 px, batch 256, 100 epochs), `resnet` (a ResNet-50 there, else a ResNet-18),
`five_sets` (the small public sets of configs/sets, for a CPU), `smoke` (its teacher is noise unless one is given).
teachers.init_from names runs of any method and local folders of Hugging Face ViTs, DINOv2s and ResNets, by commas. A
teacher sees pictures at its own size; teachers.image_px makes all see another one, with resized positions: at 224 px
RAD-DINO has 256 patches in place of 1369. Watch pooled_cosine_to_teacher_0 and teacher_0_std: what a teacher does not
tell apart no student learns.
Cost per picture with a ViT-B/14 such as RAD-DINO as teacher, multiply–accumulates forward: 156.2 G at its 518 px and
28.0 G at 224 px for a ViT-S/16; 155.5 G and 27.3 G for a ResNet-50.
"""

from cxrjax import config as shared
from cxrjax import recipes, sizes
from cxrjax.input.augment import Augment

WORDS = ("chestxray14", "resnet", "five_sets", "smoke")


def get_config(arg: str = ""):
    words = shared.words(arg, WORDS)
    config = shared.pretrain()
    config.method = "distill"
    config.model = recipes.vit()
    config.model.drop_path = 0.0  # of a ViT
    config.teachers = {
        "init_from": "",  # runs or Hugging Face folders, by commas
        "image_px": sizes.setting(),  # that all teachers see; by default each what it was trained on
        "networks": {},  # what each is, by number: read from init_from
    }
    config.head = {"hidden": 256}
    config.loss = {
        "pooled": {"cosine": 1.0, "smooth_l1": 0.0},
        "patches": {"cosine": 0.9, "smooth_l1": 0.1},
        "standardised": True,  # features of teachers over the batch; the paper compares them as they are
    }
    config.views = {"scale": (0.5, 1.0), "ratio": (3 / 4, 4 / 3), "flip": 0.0, "rotation_degrees": 0.0}
    config.augment = Augment(jitter=0.8, brightness=0.2, contrast=0.2)._asdict()
    config.standardise = recipes.standardise()

    config.batch_size = 128
    config.duration.total_steps = 600
    config.optim.update({"lr": 1e-3, "warmup_steps": 60, "betas": (0.9, 0.999)})
    recipes.phantom_probe(config)

    if "resnet" in words:
        config.model = {**config.model, **recipes.resnet("resnet18", 64)}
    if "chestxray14" in words:
        recipe(config, "resnet" in words)
    if "five_sets" in words:
        recipes.five_sets(config)
    if "smoke" in words:
        recipes.smoke(config)
        config.head.hidden = 64
        teacher = {"model": recipes.vit("test", 32, 8), "standardise": recipes.standardise()}
        config.teachers.networks = {"0": teacher}
    return config


def recipe(config, resnet):
    """Our choice."""
    recipes.chestxray14(config)
    config.model.update({"image_px": 224, "dtype": "bfloat16"})
    config.model.update({"variant": "resnet50"} if resnet else {"variant": "S", "patch_px": 16})
    config.head.hidden = 1536
    config.batch_size = 256
    config.duration.update({"total_steps": None, "total_epochs": 100.0})
    config.optim.update({"warmup_steps": None, "warmup_epochs": 5.0})
