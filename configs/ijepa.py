"""I-JEPA, CVPR 2023: a ViT sees part of a radiograph and predicts what its slow copy makes of blocks of the rest.

    python -m cxrjax.main --config=configs/ijepa.py                        phantoms, small ViT: minutes on a CPU
    python -m cxrjax.main --config=configs/ijepa.py:chestxray14            ViT-B/16 at 224 px, batch 2048, 300 epochs
    python -m cxrjax.main --config=configs/ijepa.py:chestxray14,released   with the masks of the authors' code
    python -m cxrjax.main --config=configs/ijepa.py:smoke                  seconds; shrinks whatever it is combined with

Words: `chestxray14` (what the authors publish for ViT-H, with a predictor of six blocks; change the sets with
--config.data.sets=a,b), `released` (the masks of their code, which leave out the last row and column and take contexts
away from the bottom of the picture, see cxrjax/methods/ijepa.py), `five_sets` (the small public sets of configs/sets,
for a CPU), `smoke`.
RadJEPA (2601.15891) trains ViT-B/14 so on about 840 000 radiographs; its epochs, batch, rate and masks are not public.
Watch target_std and feature_std, which fall to 0 where all pictures get one answer.
Cost per picture at 224 px, multiply–accumulates forward: 32.3 G (ViT-B/16), 13.1 G
(ViT-S/16), of which 98 places for the context and 42 for each block are counted as full.
"""

from cxrjax import config as shared
from cxrjax import recipes

WORDS = ("chestxray14", "released", "five_sets", "smoke")


def get_config(arg: str = ""):
    words = shared.words(arg, WORDS)
    config = shared.pretrain()
    config.method = "ijepa"
    config.model = recipes.vit() | {
        "pool": "without_cls",  # the encoder has none
        "initialisation": "xavier",  # or i_jepa: deviation 0.02, as released, which starts narrow encoders too small
    }
    config.predictor = {"width": 64, "depth": 2, "heads": 4}
    config.masking = {
        "targets": 4,  # blocks of a picture
        "target_scale": (0.15, 0.2),  # share of the patches of each
        "aspect": (0.75, 1.5),  # height / width
        "context_scale": (0.85, 1.0),
        "min_keep": 10,  # patches that a context has more than
        "context_most": 0.5,  # share of the patches that a context has at most
        "inclusive": True,  # False leaves out the last row and column
        "independent_aspect": True,
        "context_cut": "random",  # or first: all contexts of a batch cut to the smallest, from the bottom
    }
    config.initialisation = {"rescale": False}  # the last matrices of block l over √(2l)
    config.momentum = 0.996  # of the targets at step 0, rises to 1
    config.loss = {"kind": "smooth_l1"}  # or l2
    config.views = {"scale": (0.3, 1.0), "ratio": (3 / 4, 4 / 3), "flip": 0.0, "rotation_degrees": 0.0}
    config.standardise = recipes.standardise()

    config.batch_size = 128
    config.duration.total_steps = 600
    config.optim.update({"lr": 1e-3, "lr_start": 2e-4, "lr_end": 1e-6, "warmup_steps": 60, "betas": (0.9, 0.999)})
    config.optim.update({"wd": 0.04, "wd_end": 0.4, "wd_mults": recipes.MATRICES})
    recipes.phantom_probe(config)

    if "chestxray14" in words:
        recipe(config)
    if "released" in words:
        config.masking.update({"inclusive": False, "independent_aspect": False, "context_cut": "first"})
    if "five_sets" in words:
        recipes.five_sets(config)
    if "smoke" in words:
        recipes.smoke(config)
        config.predictor.update({"width": 32, "depth": 1, "heads": 2})
    return config


def recipe(config):
    recipes.chestxray14(config)
    config.model.update({"variant": "B", "image_px": 224, "patch_px": 16, "dtype": "bfloat16"})
    config.model.initialisation = "i_jepa"
    config.predictor = {"width": 384, "depth": 6, "heads": 12}
    config.batch_size = 2048
    config.duration.update({"total_steps": None, "total_epochs": 300.0})
    config.optim.update({"warmup_steps": None, "warmup_epochs": 40.0})
