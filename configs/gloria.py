"""GLoRIA, ICCV 2021: a radiograph's regions and the words of its report, beside picture and report as wholes.

    python -m cxrjax.main --config=configs/gloria.py              phantoms, small ViT and BERT: minutes on a CPU
    python -m cxrjax.main --config=configs/gloria.py:mimic_cxr    the authors' values, ResNet-50, on MIMIC-CXR
    python -m cxrjax.main --config=configs/gloria.py:smoke        seconds; shrinks whatever it is combined with

Words: `mimic_cxr`, `smoke`. The authors train on CheXpert, whose reports were not released then, from ImageNet and
Bio_ClinicalBERT weights: give their folders as init_from and text.init_from. They halve the rate on plateaus; the
cosine is our choice.
Every picture is compared with every word of the batch: loss.chunks bounds the memory, of which a batch of 48 at 97
tokens and 361 regions takes 0.3 GB for each array of comparisons at once.
"""

from cxrjax import config as shared
from cxrjax import recipes

WORDS = ("mimic_cxr", "smoke")


def get_config(arg: str = ""):
    words = shared.words(arg, WORDS)
    config = shared.pretrain()
    config.method = "gloria"
    config.model = recipes.vit()
    config.regions = recipes.regions()
    config.text = recipes.text()
    config.text.pool = "mean"
    config.loss = {
        "global_weight": 1.0,
        "local_weight": 1.0,
        "attention_scale": 4.0,  # the three reciprocal temperatures
        "word_scale": 5.0,
        "pair_scale": 10.0,
        "over_words": True,  # regions choose among words before words choose among regions
        "aggregate": "mean",  # over words; in a sum, as released, longer reports fit all pictures better
        "cls_is_a_word": False,  # True in the released code
        "chunks": 1,  # of the reports, one after another
    }
    config.views = {"transform": "mild"}  # or none, crop_flip, pad_crop
    config.standardise = recipes.standardise()

    config.batch_size = 32
    config.duration.total_steps = 300
    recipes.phantom_reports(config)

    if "mimic_cxr" in words:
        recipe(config)
    if "smoke" in words:
        recipes.smoke(config)
        config.regions.enlarge_px = 0
    return config


def recipe(config):
    recipes.mimic_cxr(config)
    config.views.transform = "pad_crop"
    config.model = recipes.resnet()
    config.model.dtype = "bfloat16"
    config.regions.enlarge_px = 299
    config.text.update({"length": 97, "one_sentence": True, "pool": "mean"})
    config.loss.update({"aggregate": "sum", "cls_is_a_word": True, "chunks": 4})
    config.standardise.update({"mean": 0.5, "std": 0.5})
    config.batch_size = 48
    config.duration.update({"total_steps": None, "total_epochs": 50.0})
    config.optim.update({"lr": 5e-5, "wd": 1e-6, "betas": (0.9, 0.999), "grad_clip": 0.25})
    config.optim.update({"warmup_steps": None, "warmup_epochs": 1.0})
