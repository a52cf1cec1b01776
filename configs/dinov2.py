"""DINOv2, TMLR 2024: a ViT learns what a slow copy says of a radiograph's crops, and of their hidden patches.

    python -m cxrjax.main --config=configs/dinov2.py                        phantoms, small ViT: minutes on a CPU
    python -m cxrjax.main --config=configs/dinov2.py:chestxray14            ViT-B/14 at 224 px, batch 1024
    python -m cxrjax.main --config=configs/dinov2.py:chestxray14,chexfound  ViT-L/16 as CheXFound
    python -m cxrjax.main --config=configs/dinov2.py:smoke                  seconds; shrinks what it is combined with

Words: `chestxray14` (the released schedules; change the sets with --config.data.sets=a,b), `chexfound` (beside it: the
settings that CheXFound publishes, with SwiGLU, four registers, heads of their own and L_iBOT three times as heavy; its
number of GPUs, and so its batch, is not published), `high_resolution` (beside it, and with --config.init_from=RUN:
10 000 steps at 518 px in batches of 256 with a tenth of the rate; the paper reduces the rate and does not say to what,
so the tenth and the batch are our choice), `gram` (beside any, and with --config.init_from=RUN: Gram anchoring to that
run's teacher), `released` (the slips of the released code, see cxrjax/methods/dinov2.py), `five_sets` (the small public
sets of configs/sets, for a CPU), `smoke`.
--config.init_from=FOLDER goes on from a Hugging Face DINOv2 or RAD-DINO: model.variant, patch_px and the options of its
ViT must be the folder's; teacher and student both start there, their heads anew.
Watch target_entropy and divergence as for DINO, and koleo_min_distance, which is 0 where two pictures are one.
Cost per picture at 224 px, 8 local crops at 98 px, multiply–accumulates forward: 132.9 G
(ViT-B/14), at patches of 16 px and crops of 96 px 100.1 G (ViT-B/16) and 29.3 G (ViT-S/16).
"""

from ml_collections import config_dict

from cxrjax import config as shared
from cxrjax import recipes
from cxrjax.input.augment import Augment

WORDS = ("chestxray14", "chexfound", "high_resolution", "gram", "released", "five_sets", "smoke")


def get_config(arg: str = ""):
    words = shared.words(arg, WORDS)
    config = shared.pretrain()
    config.method = "dinov2"
    config.model = recipes.vit() | {
        "positions": "learned",
        "resize_offset": 0.1,  # of positions on the grid of a small crop, as the released code
        "cls_position": True,
        "layer_scale": config_dict.placeholder(float),  # what its factors start from; None is without
        "registers": 0,
        "ffn": "mlp",  # or swiglu
        "drop_path": 0.1,  # of the student
        "drop_path_shape": "uniform",
        "drop_path_subset": False,
        "initialisation": "xavier",  # or dinov2: deviation 0.02, as released, which starts narrow encoders too small
    }
    config.head = {"hidden": 512, "out": 128, "prototypes": 1024, "learn_length": False}
    config.ibot_head = {"separate": False, "out": 128, "prototypes": 1024}
    config.masking = {
        "crops": 1,  # of the two large ones
        "ratio": (0.1, 0.5),  # of the patches of a crop
        "aspect": 0.3,
        "least": 4,  # patches of a rectangle
        "most": 0,  # half of the grid
    }
    config.momentum = 0.99  # of the teacher at step 0, rises to 1
    config.loss = {
        "dino_weight": 1.0,
        "ibot_weight": 1.0,
        "koleo_weight": 0.1,
        "gram_weight": 0.0,  # of Gram anchoring
        "gram_refresh_steps": config_dict.placeholder(int),  # of what it anchors to; by default that stays
        "assignment": "sinkhorn",  # or centre
        "centre_momentum": 0.9,
        "iterations": 3,  # of Sinkhorn–Knopp
        "temperature": 0.1,
        "teacher_temperature": 0.02,  # 0.07 in the paper, for long runs
        "start_temperature": 0.02,
        "warmup_share": 0.06,  # of the run: from the one to the other
        "koleo_groups": 1,
        "koleo_itself": False,
        "ibot_average": "all",  # or masked: over crops that have a mask
    }
    config.views = {"scale": (0.7, 1.0), "ratio": (3 / 4, 4 / 3), "flip": 0.0, "rotation_degrees": 0.0}
    config.local_views = {"count": 2, "px": 32, "scale": (0.3, 0.7)}
    config.augment = Augment(blur=(1.0, 0.1))._asdict()
    config.augment_local = Augment(blur=0.5)._asdict()
    config.standardise = recipes.standardise()

    config.batch_size = 128
    config.duration.total_steps = 600
    config.optim.update({"lr": 1e-3, "lr_end": 1e-6, "warmup_steps": 60, "warmup_includes_peak": True})
    config.optim.update({"betas": (0.9, 0.999), "wd": 0.04, "wd_end": 0.2, "clip_per_part": 3.0})
    config.optim.wd_mults = recipes.MATRICES
    config.optim.update({"held": ("prototypes/",), "held_share": 0.01})
    recipes.phantom_probe(config)

    if "chestxray14" in words:
        recipe(config)
    if "chexfound" in words:
        chexfound(config)
    if "high_resolution" in words:
        config.model.image_px = 518 // config.model.patch_px * config.model.patch_px
        config.batch_size = 256
        config.duration.update({"total_steps": 10_000, "total_epochs": None})
        config.optim.update({"sqrt_lr": 2e-5, "warmup_steps": 1600})
    if "gram" in words:
        config.loss.update({"gram_weight": 2.0, "gram_refresh_steps": 10_000})
    if "released" in words:
        config.augment.blur = (0.0, 0.9)
        config.loss.koleo_itself = config.head.learn_length = config.model.drop_path_subset = True
    if "five_sets" in words:
        recipes.five_sets(config)
        config.local_views.px = 64
        config.momentum = 0.996
    if "smoke" in words:
        recipes.smoke(config)
        config.head.update({"hidden": 64, "out": 32, "prototypes": 64})
        config.ibot_head.update({"out": 32, "prototypes": 64})
        config.local_views.update({"count": 2, "px": 16})
        config.optim.held_share = 0.0
    return config


def recipe(config):
    recipes.chestxray14(config)
    config.model.update({"variant": "B", "image_px": 224, "patch_px": 14, "dtype": "bfloat16", "layer_scale": 1e-5})
    config.model.update({"initialisation": "dinov2", "drop_path": 0.2})
    config.head.update({"hidden": 2048, "out": 256, "prototypes": 65536})
    config.ibot_head.update({"out": 256, "prototypes": 65536})
    config.momentum = 0.994
    config.loss.update({"teacher_temperature": 0.07, "start_temperature": 0.04})
    config.views.scale = (0.32, 1.0)
    config.local_views.update({"count": 8, "px": 98, "scale": (0.05, 0.32)})
    config.augment.jitter = config.augment_local.jitter = 0.8
    config.batch_size = 1024
    config.duration.total_steps = 250_000  # as CheXFound; the released recipe has 625 000, for 142 million pictures
    config.optim.update({"lr": None, "sqrt_lr": 2e-4, "warmup_steps": 40_000, "held_share": 0.002})
    config.optim.lr_mults = (("patch_embed", 0.2), ("", 1.0))


def chexfound(config):
    config.model.update({"variant": "L", "patch_px": 16, "ffn": "swiglu", "registers": 4, "drop_path": 0.4})
    config.model.drop_path_subset = True
    config.head.update({"out": 384, "prototypes": 131_072, "learn_length": True})
    config.ibot_head.update({"separate": True, "out": 256, "prototypes": 131_072})
    config.loss.ibot_weight = 3.0
    config.local_views.px = 96
    config.augment.blur = (0.0, 0.9)
    config.optim.warmup_steps = 25_000
    config.optim.held_share = 0.01
