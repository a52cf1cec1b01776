"""ConVIRT, arXiv 2010.00747; with `clip` CLIP's loss, with `siglip` SigLIP's: contrast of a radiograph and its report.

    python -m cxrjax.main --config=configs/convirt.py                    phantoms, small ViT and BERT: minutes on a CPU
    python -m cxrjax.main --config=configs/convirt.py:mimic_cxr          ResNet-50 at 224 px on a converted MIMIC-CXR
    python -m cxrjax.main --config=configs/convirt.py:clip,mimic_cxr --config.text.init_from=Bio_ClinicalBERT
    python -m cxrjax.main --config=configs/convirt.py:siglip,mimic_cxr,lit --config.init_from=DIR   on a frozen encoder
    python -m cxrjax.main --config=configs/convirt.py:smoke              seconds; shrinks whatever it is combined with

Words: `mimic_cxr`, `clip`, `siglip`, `arrived` (the picture's encoder is that of init_from, a run of any method or a
Hugging Face folder such as RAD-DINO, and the vocabulary that of text.init_from), `lit` (the same, and the picture's
encoder stays as it is), `smoke`. data.report_copies=N keeps N of the studies whose reports have the same words.
text.init_from takes a Hugging Face folder of a BERT of the same size; without one the text encoder starts from noise.
On phantoms it reads whole reports and takes the mean over tokens.
The paper trains on MIMIC-CXR at batch 32, Adam at 1e-4, for 200 epochs with a plateau rule; the cosine is our choice.
Its pictures are cut, mirrored, turned, jittered and blurred (`crop_turn_flip`, `augment`); its shifts and scalings of a
few per cent are in our crop.
"""

from cxrjax import config as shared
from cxrjax import recipes
from cxrjax.input.augment import Augment

WORDS = ("mimic_cxr", "clip", "siglip", "arrived", "lit", "smoke")


def get_config(arg: str = ""):
    words = shared.words(arg, WORDS)
    config = shared.pretrain()
    config.method = "convirt"
    config.model = recipes.vit()
    config.encoder = "learned"  # or frozen: of the picture; text.frozen_layers freezes layers of the text
    config.text = recipes.text()
    config.head = {"layers": 2, "hidden": 512, "out": 512}
    config.loss = {
        "form": "info_nce",  # or sigmoid
        "temperature": 0.1,
        "learned": False,  # the temperature, from this value
        "share": 0.75,  # of the direction picture → text
        "groups": 1,  # negatives from this many separate slices of the batch
        "chunks": 1,  # the logits of a large batch in so many parts, one after the other; the value is the same
    }
    config.views = {"transform": "mild"}  # or none, crop_flip, crop_turn_flip, pad_crop
    config.augment = Augment()._asdict()
    config.standardise = recipes.standardise()

    config.batch_size = 128
    config.duration.total_steps = 300
    recipes.phantom_reports(config)

    if "clip" in words or "siglip" in words:
        config.head.update({"layers": 1, "out": 512})
        config.loss.update({"temperature": 0.07, "learned": True, "share": 0.5})
    if "siglip" in words:
        config.loss.form = "sigmoid"
    if "mimic_cxr" in words:
        recipe(config, "clip" in words or "siglip" in words)
    if "arrived" in words or "lit" in words:
        config.model = recipes.of_run()
        config.text.vocab_size = None
    if "lit" in words:
        config.encoder = "frozen"
    if "smoke" in words:
        recipes.smoke(config)
        config.head.update({"hidden": 64, "out": 32})
    return config


def recipe(config, of_clip):
    recipes.mimic_cxr(config)
    config.model = recipes.resnet()
    config.model.dtype = "bfloat16"
    if not of_clip:
        config.text.update({"one_sentence": True, "pool": "max", "frozen_layers": 6})
        config.views.transform = "crop_turn_flip"
        config.augment = Augment(jitter=1.0, blur=1.0, blur_sigma=(0.1, 3.0))._asdict()
    config.batch_size = 32
    config.duration.update({"total_steps": None, "total_epochs": 200.0})
    config.optim.update({"lr": 1e-4, "wd": 1e-6, "betas": (0.9, 0.999), "warmup_steps": None, "warmup_epochs": 1.0})
