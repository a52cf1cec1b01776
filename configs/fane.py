"""FaNe, AAAI 2026: radiographs and reports; reports that mean the same are no negatives, and sentences see patches.

    python -m cxrjax.main --config=configs/fane.py                     phantoms, small ViT and BERT: minutes on a CPU
    python -m cxrjax.main --config=configs/fane.py:mimic_cxr           ViT-B/16 and BERT of twelve layers, batch 196
    python -m cxrjax.main --config=configs/fane.py:mimic_cxr,released  with the slips of the authors' code
    python -m cxrjax.main --config=configs/fane.py:smoke               seconds; shrinks whatever it is combined with

Words: `mimic_cxr` (the released numbers, with a schedule that ends with the run: theirs is laid out for 100 epochs of
which 50 are run, so that it ends at 93 % of its highest rate), `released` (see cxrjax/methods/fane.py), `smoke`.
Give a Bio_ClinicalBERT as text.init_from and an ImageNet ViT as init_from to start where the authors do. Their set is
of studies with four sentences and more; here every report counts, and one of a single sentence in no local term.
Watch positives: 1 is a batch in which no two reports mean the same, and a third of the batch is one of normal findings.
"""

from cxrjax import config as shared
from cxrjax import recipes

WORDS = ("mimic_cxr", "released", "smoke")


def get_config(arg: str = ""):
    words = shared.words(arg, WORDS)
    config = shared.pretrain()
    config.method = "fane"
    config.model = recipes.vit()
    config.text = recipes.text()
    config.width = 64  # of pictures, patches, sentences and reports
    config.sentences = {"most": 16, "heads": 8}
    config.similarity = {
        "pool": "mean",  # or cls, max: what stands for a report in the encoder that never learns
        "shuffled": False,
    }
    config.loss = {
        "mp_weight": 1.0,
        "hn_weight": 1.0,
        "t2i_weight": 1.0,
        "spa_weight": 1.0,
        "threshold": 0.95,
        "temperature": 0.07,
        "bias": -10.0,  # what it starts from
        "released_scale": False,
        "count_single": False,
    }
    config.views = {"transform": "mild"}  # or none, crop_flip, pad_crop
    config.standardise = recipes.standardise()

    config.batch_size = 64
    config.duration.total_steps = 240
    recipes.phantom_reports(config)

    if "mimic_cxr" in words:
        recipe(config)
    if "released" in words:
        config.loss.update({"bias": 10.0, "released_scale": True, "count_single": True})
        config.similarity.shuffled = True
    if "smoke" in words:
        recipes.smoke(config)
        config.width = 32
        config.sentences.update({"most": 4, "heads": 2})
    return config


def recipe(config):
    recipes.mimic_cxr(config)
    config.views.transform = "none"
    config.model.update({"variant": "B", "image_px": 224, "patch_px": 16, "positions": "learned", "dtype": "bfloat16"})
    config.width = 128
    recipes.as_mgca(config)
    config.batch_size = 196
    config.optim.update({"lr": 4e-4, "wd": 1e-6})
