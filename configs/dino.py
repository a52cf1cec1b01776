"""DINO, ICCV 2021: all crops of a radiograph learn what a slow copy of the network says of the two large ones.

    python -m cxrjax.main --config=configs/dino.py              phantoms, small ViT at 64 px: minutes on a CPU
    python -m cxrjax.main --config=configs/dino.py:chestxray14  ViT-S/16 at 224 px, batch 1024, 300 epochs
    python -m cxrjax.main --config=configs/dino.py:smoke        seconds; shrinks whatever it is combined with

Words: `chestxray14` (the authors' recipe; change the sets with --config.data.sets=a,b), `sinkhorn` (beside it:
prototypes balanced over the batch, as SwAV and DINOv2, in place of the centre), `five_sets` (the small public sets of
configs/sets, for a CPU), `smoke`.
The authors recommend a higher momentum for small batches, 0.9995 for 256 pictures, a teacher_temperature of 0.04 where
the loss does not fall, and without local crops a views.scale from 0.14 on.
Watch target_entropy: at log of the prototypes, with a divergence of 0, every picture gets the same answer. Runs of a
few hundred steps on phantoms ended there with a centre, at every temperature from 0.07 to 0.02: what a crop tells of
the others must outweigh the ratio of the temperatures, and the centre lags behind a teacher that moves fast. All but
`chestxray14` therefore has Sinkhorn–Knopp, larger crops without jitter or flips, 0.02 and a higher rate.
Cost per picture, ViT-S/16 at 224 px, 8 local crops at 96 px, multiply–accumulates forward: 24.9 G.
"""

from cxrjax import config as shared
from cxrjax import recipes
from cxrjax.input.augment import PAIR, Augment

WORDS = ("chestxray14", "sinkhorn", "five_sets", "smoke")


def get_config(arg: str = ""):
    words = shared.words(arg, WORDS)
    config = shared.pretrain()
    config.method = "dino"
    config.model = recipes.vit() | {
        "positions": "learned",  # a fixed table would count the patches of small crops from 0 and not resize
        "resize_offset": 0.1,  # of positions on the grid of a small crop, as the authors' code
        "drop_path": 0.1,  # of the student
        "initialisation": "xavier",  # or normal: deviation 0.02, as released, which starts narrow encoders too small
    }
    config.projector = {"layers": 3, "hidden": 512, "out": 128}
    config.prototypes = 1024
    config.freeze_share = 0.01  # of the run: how long the prototypes stay as they start
    config.momentum = 0.99  # of the teacher at step 0, rises to 1; the authors have 0.996
    config.loss = {
        "assignment": "sinkhorn",  # or centre, the paper's
        "centre_momentum": 0.9,
        "iterations": 3,  # of Sinkhorn–Knopp
        "temperature": 0.1,
        "teacher_temperature": 0.02,  # 0.07 in the paper, for long runs
        "teacher_temperature_start": 0.02,
        "warmup_share": 0.1,  # of the run: from the one to the other
    }
    # Flips move the heart to the other side; the authors' photographs bear them, and flip = 0 leaves them out.
    config.views = {"scale": (0.7, 1.0), "ratio": (3 / 4, 4 / 3), "flip": 0.0, "rotation_degrees": 0.0}
    config.local_views = {"count": 2, "px": 32, "scale": (0.3, 0.7)}
    config.augment = PAIR._asdict() | {"jitter": 0.0}
    config.augment_local = Augment(jitter=0.0, blur=0.5, blur_px=96)._asdict()
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
        config.local_views.px = 64
        config.momentum = 0.996
    if "sinkhorn" in words:
        config.loss.assignment = "sinkhorn"
    if "smoke" in words:
        recipes.smoke(config)
        config.projector.update({"hidden": 64, "out": 32})
        config.prototypes = 64
        config.local_views.update({"count": 2, "px": 16})
        config.freeze_share = 0.0
    return config


def recipe(config):
    recipes.chestxray14(config)
    config.model.update({"variant": "S", "image_px": 224, "patch_px": 16, "dtype": "bfloat16"})
    config.model.initialisation = "normal"
    config.projector.update({"hidden": 2048, "out": 256})
    config.prototypes = 65536
    config.freeze_share = 1 / 300
    config.momentum = 0.996
    config.loss.update({"assignment": "centre", "teacher_temperature": 0.07, "teacher_temperature_start": 0.04})
    config.views.update({"scale": (0.4, 1.0), "flip": 0.5})
    config.local_views.update({"count": 8, "px": 96, "scale": (0.05, 0.4)})
    config.augment.jitter = config.augment_local.jitter = 0.8
    config.batch_size = 1024
    config.duration.update({"total_steps": None, "total_epochs": 300.0})
    config.optim.update({"lr": None, "base_lr": 5e-4, "warmup_steps": None, "warmup_epochs": 10.0})
    config.optim.wd_mults = recipes.MATRICES
