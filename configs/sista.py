"""SISTA, arXiv 2601.08165, reconstructed from its abstract: contrast of radiographs and reports that knows which
reports are alike, and alignment of patches with words.

    python -m cxrjax.main --config=configs/sista.py                      phantoms, small ViT and BERT: minutes on a CPU
    python -m cxrjax.main --config=configs/sista.py:mimic_cxr --config.similarity.encoder=Bio_ClinicalBERT
    python -m cxrjax.main --config=configs/sista.py:mimic_cxr,resnet     ResNet-50 at 299 px instead of ViT-B/16
    python -m cxrjax.main --config=configs/sista.py:smoke                seconds; shrinks whatever it is combined with
    python -m cxrjax.report_similarity SET                               what a threshold means on a set's reports

Words: `mimic_cxr` (encoders, sizes and optimizer of MGCA, which SISTA's authors most likely share), `resnet`, `smoke`.
Give a Bio_ClinicalBERT as text.init_from and an ImageNet ViT or ResNet as init_from to start where MGCA does. Without
similarity.encoder a small BERT is trained on the set's own reports first, in about a minute.
The ablation: --config.loss.mode=info_nce|soft|mask|multi_positive|triage, --config.loss.sta_weight=0|1.
"""

from ml_collections import config_dict

from cxrjax import config as shared
from cxrjax import recipes

WORDS = ("mimic_cxr", "resnet", "smoke")


def get_config(arg: str = ""):
    words = shared.words(arg, WORDS)
    config = shared.pretrain()
    config.method = "sista"
    config.model = recipes.resnet("resnet18", 64) if "resnet" in words else recipes.vit()
    config.regions = recipes.regions()
    config.text = recipes.text()
    config.similarity = {
        "encoder": "",  # folder of a Hugging Face BERT; "" the set's own; words: none (`report_encoders.similarity`)
    }
    config.head = {
        "hidden": 512,
        "out": 128,
        "bn_include_pad": False,  # True in MGCA's code: the BatchNorm of words counts padding
    }
    config.loss = {
        "sia_weight": 1.0,
        "sta_weight": 1.0,
        "intra_modal_weight": 0.0,
        "mode": "soft",  # or mask, multi_positive, triage; info_nce, the baseline
        "target_temperature": 0.1,  # of soft
        "threshold": 0.95,  # similarity from which reports mean the same: mask, multi_positive, triage
        "neutral": 0.9,  # of triage: from here to the threshold a pair is left out
        "temperature": 0.07,
        "learned": False,  # the temperature, from this value and within 0.01 and 0.5
        "direction": "mean",  # or sum, as MGCA
        "groups": 1,  # negatives from this many separate slices of the batch
        "token_temperature": 0.1,
        "sparsity": config_dict.placeholder(float),  # 1 / patches by default; 0.3 to 0.7 keeps few
        "average": "reports",  # or all_reports, words
        "both_ways": False,  # patches attend to words as well
        "mask_equal_words": False,  # words of a report that are spelt alike are no negatives
    }
    config.views = {"transform": "mild"}  # or none, crop_flip, pad_crop
    config.standardise = recipes.standardise()

    config.batch_size = 64
    config.duration.total_steps = 240
    recipes.phantom_reports(config)

    if "mimic_cxr" in words:
        recipe(config)
    if "smoke" in words:
        recipes.smoke(config)
        config.similarity.encoder = "words"
        config.head.update({"hidden": 64, "out": 32})
        config.regions.enlarge_px = 0
        config.loss.groups = 1
    return config


def recipe(config):
    """MGCA's released values."""
    recipes.mimic_cxr(config)
    config.views.transform = "pad_crop"
    if config.model.variant.startswith("resnet"):
        config.model = recipes.resnet()
        config.regions.enlarge_px = 299
    else:
        config.model.update({"variant": "B", "image_px": 224, "patch_px": 16, "positions": "learned"})
    config.model.dtype = "bfloat16"
    config.text.variant = "base6"
    config.head.hidden = 2048
    recipes.as_mgca(config)
