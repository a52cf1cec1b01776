"""SPCXR / SS-CXR, arXiv 2211.12944: radiographs with blocks of noise or of other radiographs, restored (GMML).

    python -m cxrjax.main --config=configs/spcxr.py                            phantoms, small ViT: minutes on a CPU
    python -m cxrjax.main --config=configs/spcxr.py:chestxray14                ViT-S/16 at 224 px, batch 256, 800 epochs
    python -m cxrjax.main --config=configs/spcxr.py:chestxray14,short          the same in 100 epochs
    python -m cxrjax.main --config=configs/spcxr.py:chestxray14,gmml_faithful  with every choice of GMML's release
    python -m cxrjax.main --config=configs/spcxr.py:chestxray14,sit            with SiT's contrastive term and settings
    python -m cxrjax.main --config=configs/spcxr.py:smoke                      seconds; shrinks what it is combined with

Words: `chestxray14` (recipe for large sets; change the sets with --config.data.sets=a,b), `five_sets` (the small public
sets of configs/sets, for a CPU), `short`, `gmml_faithful` (donors and means within one of four GPUs, donors that may be
the picture itself, crops from 5 %, ImageNet's grey mean and deviation, decay of positions and [CLS]), `sit` (zeros
instead of noise, ρ = 0.5, contrast with a momentum copy, the same decay), `smoke`.
The paper's own settings are not public. Optimizer, schedules, epochs, ρ and blocks are those of GMML's release; the
set, the crops, judging by the mean of the patches (no loss teaches [CLS]) and the one channel are ours.
The paper reports, fine-tuned: 98.25 % mean accuracy of the classes of COVIDx CXR-3 (89.25 % for a ViT-S without
pre-training), and a Dice of 0.9561 for Montgomery's lungs under UNETR (0.9453 pre-trained on ImageNet, 0.9227 not).
Cost per picture, ViT-S/16 at 224 px, two views, multiply–accumulates forward: 9.3 G.
"""

from cxrjax import config as shared
from cxrjax import recipes
from cxrjax.input.augment import Augment

WORDS = ("chestxray14", "five_sets", "short", "gmml_faithful", "sit", "smoke")


def get_config(arg: str = ""):
    words = shared.words(arg, WORDS)
    config = shared.pretrain()
    config.method = "spcxr"
    config.model = recipes.vit() | {
        "positions": "learned",
        "pool": "mean",  # what is judged: no loss teaches [CLS]
        "drop_path": 0.1,
        "initialisation": "xavier",  # or normal: deviation 0.02, as released, which starts narrow encoders too small
    }
    config.recons_blocks = "spread"  # 6, 8, 10, 12 of 12 blocks; or last, or numbers from 1
    config.decoder = {"channels": 1}  # 3 as the released code, whose pictures are grey in colours
    config.corruption = {
        "kinds": "noise",  # any of noise,zeros,image, beside donors
        "share": 0.75,
        "donor_share": 0.3,
        "align": 1,  # px; the patch size hides whole patches
        "sampler": "released",  # or uniform: the upper and left borders as often as the rest
        "self_donor": False,
        "groups": 1,  # donors from within this many slices of the batch
    }
    config.loss = {
        "weight": 1.0,  # beside the contrast; SiT takes 5 on small sets
        "groups": 1,  # mean of the losses of this many slices of the batch
    }
    config.contrast = {
        "weight": 0.0,  # 1 adds SiT's term
        "hidden": 4096,
        "out": 256,
        "temperature": 0.2,
        "chunks": 1,  # the logits of a large batch in so many parts, one after the other; the value is the same
        "momentum": 0.996,  # to 1 over the run
    }
    config.views = {"scale": (0.2, 1.0), "ratio": (3 / 4, 4 / 3), "flip": 0.5, "rotation_degrees": 0.0}
    config.augment = Augment(jitter=0.3, brightness=0.1, contrast=0.1, blur=0.1)._asdict()
    config.standardise = recipes.standardise()

    config.batch_size = 128
    config.duration.total_steps = 600
    config.optim.update({"lr": 1e-3, "lr_end": 1e-6, "warmup_steps": 60, "warmup_includes_peak": True})
    config.optim.update({"betas": (0.9, 0.999), "wd": 0.04, "wd_end": 0.4, "clip_per_tensor": 3.0})
    recipes.phantom_probe(config)

    if "chestxray14" in words:
        recipe(config)
    if "five_sets" in words:
        recipes.five_sets(config)
    if "short" in words:
        config.duration.update({"total_steps": None, "total_epochs": 100.0})
    if "gmml_faithful" in words:
        config.model.initialisation = "normal"
        config.corruption.update({"self_donor": True, "groups": 4})
        config.loss.groups = 4
        config.views.scale = (0.05, 1.0)
        config.standardise.update({"mean": 0.449, "std": 0.226})
        config.optim.wd_mults = recipes.MATRICES
    if "sit" in words:
        config.corruption.update({"kinds": "zeros", "share": 0.5})
        config.recons_blocks = "last"
        config.contrast.weight = 1.0
        config.optim.update({"wd_end": 0.1, "wd_mults": recipes.MATRICES})
    if "smoke" in words:
        recipes.smoke(config)
        config.contrast.update({"hidden": 64, "out": 32})
        config.corruption.groups = config.loss.groups = 1
    return config


def recipe(config):
    recipes.chestxray14(config)
    config.model.update({"variant": "S", "image_px": 224, "patch_px": 16, "dtype": "bfloat16"})
    config.model.initialisation = "normal"
    config.batch_size = 256
    config.duration.update({"total_steps": None, "total_epochs": 800.0})
    config.optim.update({"lr": None, "base_lr": 5e-4, "warmup_steps": None, "warmup_epochs": 10.0})
