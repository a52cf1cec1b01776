"""S-PCL, arXiv 2603.07113: contrast of two disjoint random halves of a radiograph's patch tokens.

    python -m cxrjax.main --config=configs/spcl.py                       phantoms, small ViT at 64 px: minutes on a CPU
    python -m cxrjax.main --config=configs/spcl.py:chestxray14           ViT-B/16 at 224 px, batch 2048, 200 epochs
    python -m cxrjax.main --config=configs/spcl.py:chestxray14,lowflop   the same on 20 % of the tokens
    python -m cxrjax.main --config=configs/spcl.py:smoke                 seconds; shrinks whatever it is combined with

Words: `chestxray14` (recipe for large sets; change the sets with --config.data.sets=a,b), `five_sets` (the small public
sets of configs/sets, for a CPU), `lowflop` (ρ = 0.2),
`ocl_faithful` (what OCL's launcher does: ρ = 0.1, negatives of one device of 1 800, crop and flip, decay of [CLS] as
well), `smoke`.
The paper's own hyper-parameters are not public: the recipe follows OCL and medical_mae where these agree. On small
pictures the default keeps a quarter of the tokens of one mild crop: from whole ones a small ViT learns to know pictures
by their noise and exposure, and is the worse for it (probe on phantoms, 300 steps: 0.55, untrained 0.70, so 0.72).
Cost per picture, ViT-B/16 at 224 px, multiply–accumulates forward: 16.0 G (ρ = 1), 3.2 G (ρ = 0.2);
1.2 G and 0.2 G more without the exact shortcut `cls_shortcut`.
"""

from cxrjax import config as shared
from cxrjax import recipes

WORDS = ("chestxray14", "five_sets", "lowflop", "ocl_faithful", "smoke")


def get_config(arg: str = ""):
    words = shared.words(arg, WORDS)
    config = shared.pretrain()
    config.method = "spcl"
    config.model = recipes.vit()
    config.partition = {
        "keep_ratio": 0.25,  # ρ, share of the tokens that are kept, half of them for either part
        "split_ratio": 0.5,
        "scheme": "random",  # or block, checkerboard
        "embed": "kept",  # or all: embed every patch, then drop
    }
    config.cls_shortcut = True  # last block for the [CLS] query only; exact, needs model.pool = cls
    config.head = {"kind": "none", "hidden": 2048, "out": 256}  # or linear, mlp
    config.loss = {
        "form": "symmetric",  # or nt_xent
        "similarity": "tsp",  # or cosine, whose matching temperature is 0.14
        "kappa": 1 / 64,
        "temperature": 0.07,
        "groups": 1,  # negatives from this many separate slices of the batch
        "chunks": 1,  # the logits of a large batch in so many parts, one after the other; the value is the same
        "mask_same_patient": False,
    }
    config.views = {"transform": "mild"}  # or none, crop_flip
    config.standardise = recipes.standardise()

    config.batch_size = 128
    config.duration.total_steps = 600
    config.optim.lr = 1e-3
    config.optim.warmup_steps = 60
    recipes.phantom_probe(config)

    if "chestxray14" in words:
        recipe(config)
    if "five_sets" in words:
        recipes.five_sets(config)
    if "lowflop" in words:
        config.partition.keep_ratio = 0.2
    if "ocl_faithful" in words:
        config.partition.keep_ratio = 0.1
        config.partition.embed = "all"
        config.views.transform = "crop_flip"
        config.cls_shortcut = False
        config.optim.wd_mults = recipes.MATRICES
        if "chestxray14" in words:
            config.batch_size = 7200
            config.loss.groups = 4
            config.optim.base_lr = 5e-5
    if "smoke" in words:
        recipes.smoke(config)
        config.loss.groups = 1
    return config


def recipe(config):
    recipes.chestxray14(config)
    config.partition.keep_ratio = 1.0
    config.views.transform = "none"
    config.model.update({"variant": "B", "image_px": 224, "patch_px": 16, "dtype": "bfloat16"})
    config.batch_size = 2048
    config.duration.update({"total_steps": None, "total_epochs": 200.0})
    config.optim.update({"lr": None, "base_lr": 1.5e-4, "warmup_steps": None, "warmup_epochs": 10.0})
