"""MGCA, NeurIPS 2022: picture and report aligned as wholes, token by token, and by prototypes.

    python -m cxrjax.main --config=configs/mgca.py                       phantoms, small ViT and BERT: minutes on a CPU
    python -m cxrjax.main --config=configs/mgca.py:mimic_cxr             the authors' values, ViT-B/16, on MIMIC-CXR
    python -m cxrjax.main --config=configs/mgca.py:mimic_cxr,resnet50    with ResNet-50, pictures enlarged to 299 px
    python -m cxrjax.main --config=configs/mgca.py:mimic_cxr,official    negatives and padding as in the released code
    python -m cxrjax.main --config=configs/mgca.py:smoke                 seconds; shrinks whatever it is combined with

Words: `mimic_cxr`, `resnet50`, `official`, `smoke`. The authors start from DeiT-B or ImageNet weights and the lower six
layers of Bio_ClinicalBERT: give their folders as init_from and text.init_from. They stop early by the validation loss;
here the run goes to its end.
"""

from cxrjax import config as shared
from cxrjax import recipes

WORDS = ("mimic_cxr", "resnet50", "official", "smoke")


def get_config(arg: str = ""):
    words = shared.words(arg, WORDS)
    config = shared.pretrain()
    config.method = "mgca"
    config.model = recipes.vit()
    config.regions = recipes.regions()
    config.text = recipes.text()
    config.text.pool = "mean"  # the authors' [CLS] needs a BERT that was trained
    config.head = {"hidden": 512, "out": 128}
    config.prototypes = {
        "count": 128,
        "epsilon": 0.05,
        "iterations": 3,
        "freeze_share": 0.02,  # of the run: how long they stay as they start
    }
    config.loss = {
        "ita_weight": 1.0,
        "cta_weight": 1.0,
        "cpa_weight": 1.0,
        "temperature": 0.07,
        "local_temperature": 0.1,
        "prototype_temperature": 0.2,
        "weights": "cls",  # of tokens: attention of [CLS], or uniform
        "groups": 1,  # negatives from this many separate slices of the batch
        "chunks": 1,  # the logits of a large batch in so many parts, one after the other; the value is the same
        "padding_counts": False,  # padded words as negatives and in the statistics of their head
        "shifted_attention": False,  # a word's weight is the attention of [CLS] to the tokens one further
        "raw_seen_words": False,  # what a region sees of the words keeps its length
    }
    config.views = {"transform": "mild"}  # or none, crop_flip, pad_crop
    config.standardise = recipes.standardise()

    config.batch_size = 64
    config.duration.total_steps = 300
    recipes.phantom_reports(config)

    if "mimic_cxr" in words:
        recipe(config)
    if "resnet50" in words:
        config.model = recipes.resnet() | {"dtype": config.model.dtype}
        config.regions.enlarge_px = 299
    if "official" in words:
        config.loss.update({"groups": 2, "padding_counts": True, "raw_seen_words": "resnet50" not in words})
        config.loss.shifted_attention = True
    if "smoke" in words:
        recipes.smoke(config)
        config.head.update({"hidden": 64, "out": 32})
        config.prototypes.update({"count": 32, "freeze_share": 0.0})
        config.regions.enlarge_px = 0
    return config


def recipe(config):
    recipes.mimic_cxr(config)
    config.views.transform = "pad_crop"
    config.model.update({"variant": "B", "image_px": 224, "patch_px": 16, "positions": "learned", "dtype": "bfloat16"})
    config.text.update({"variant": "base6", "pool": "cls"})
    config.head.update({"hidden": 2048, "out": 128})
    config.prototypes.update({"count": 500, "freeze_share": 1 / 50})
    recipes.as_mgca(config)
