"""MAE, CVPR 2022: most patches of a radiograph are left out, and restored from the few that a ViT sees.

    python -m cxrjax.main --config=configs/mae.py                          phantoms, small ViT: minutes on a CPU
    python -m cxrjax.main --config=configs/mae.py:chestxray14              the authors' recipe: ViT-B/16, 75 % hidden
    python -m cxrjax.main --config=configs/mae.py:chestxray14,medical_mae  theirs for radiographs: ViT-S/16, 90 % hidden
    python -m cxrjax.main --config=configs/mae.py:smoke                    seconds; shrinks whatever it is combined with

Words: `chestxray14` (batch 4096, 800 epochs; change the sets with --config.data.sets=a,b), `medical_mae` (Xiao et al.,
WACV 2023: 90 % hidden, crops of 50–100 %, plain pixels, a decoder of two blocks, batch 2048; they train on CheXpert and
ChestX-ray14), `five_sets` (the small public sets of configs/sets, for a CPU), `smoke`.
Their ViT-B has a decoder of eight blocks: --config.model.variant=B --config.decoder.depth=8.
Cost per picture at 224 px, multiply–accumulates forward: 9.6 G (ViT-B/16, 75 %, eight blocks), 1.8 G (ViT-S/16, 90 %,
two blocks).
"""

from cxrjax import config as shared
from cxrjax import recipes

WORDS = ("chestxray14", "medical_mae", "five_sets", "smoke")


def get_config(arg: str = ""):
    words = shared.words(arg, WORDS)
    config = shared.pretrain()
    config.method = "mae"
    config.model = recipes.vit() | {"pool": "mean"}  # what is judged: no loss teaches [CLS]
    config.decoder = {"width": 128, "depth": 2, "heads": 4}
    config.masking = {
        "ratio": 0.75,
        "embed": "kept",  # or all: embed every patch, then drop, as the authors' code
    }
    config.loss = {"normalise": True}  # each patch by its own mean and deviation
    # Flips move the heart to the other side; the authors' photographs bear them, and flip = 0 leaves them out.
    config.views = {"scale": (0.2, 1.0), "ratio": (3 / 4, 4 / 3), "flip": 0.5, "rotation_degrees": 0.0}
    config.standardise = recipes.standardise()

    config.batch_size = 128
    config.duration.total_steps = 600
    config.optim.update({"lr": 1e-3, "warmup_steps": 60, "wd": 0.05, "betas": (0.9, 0.95)})
    recipes.phantom_probe(config)

    if "chestxray14" in words:
        recipe(config)
    if "medical_mae" in words:
        config.masking.ratio = 0.9
        config.views.scale = (0.5, 1.0)
        config.loss.normalise = False
        config.decoder.depth = 2
        if "chestxray14" in words:
            config.model.variant = "S"
            config.batch_size = 2048
    if "five_sets" in words:
        recipes.five_sets(config)
    if "smoke" in words:
        recipes.smoke(config)
        config.decoder.update({"width": 32, "depth": 1, "heads": 2})
    return config


def recipe(config):
    recipes.chestxray14(config)
    config.model.update({"variant": "B", "image_px": 224, "patch_px": 16, "dtype": "bfloat16"})
    config.decoder = {"width": 512, "depth": 8, "heads": 16}
    config.batch_size = 4096
    config.duration.update({"total_steps": None, "total_epochs": 800.0})
    config.optim.update({"lr": None, "base_lr": 1.5e-4, "warmup_steps": None, "warmup_epochs": 40.0})
    config.optim.wd_mults = recipes.MATRICES
