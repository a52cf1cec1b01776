"""F-L, IEEE TMI 2026: frontal and lateral radiograph and report; masked words, word alignment, contrast, prototypes.

    python -m cxrjax.main --config=configs/frontal_lateral.py            phantoms, small networks at 64 px: minutes
    python -m cxrjax.main --config=configs/frontal_lateral.py:mimic_cxr  ViT-B/16, Swin-T and BERT at 224 px
        --config.init_from=VIT --config.lateral.init_from=SWIN --config.text.init_from=BERT   Hugging Face folders
    python -m cxrjax.main --config=configs/frontal_lateral.py:official   every defect of the released code
    python -m cxrjax.main --config=configs/frontal_lateral.py:smoke      seconds; shrinks whatever it is combined with

Words: `mimic_cxr`, `official`, `smoke`. Default is what abstract and figure describe. `official` switches on all of
config.defects, so that --config.defects.NAME=False repairs one of them, and has the code's negatives of one device of
three. Defects that are no switch: its lateral weights have seen CheXpert and ChestX-ray14 (D10), it does not start as
published (D11), and its losses cannot be left out one by one (D14), which here config.loss.weights do. Its warm-up
starts at a tenth of the peak and moves once an epoch; ours starts at 0 and moves at every step.
"""

from ml_collections import config_dict

from cxrjax import config as shared
from cxrjax import recipes
from cxrjax.text.entities import ENTITIES

WORDS = ("mimic_cxr", "official", "smoke")


def get_config(arg: str = ""):
    words = shared.words(arg, WORDS)
    config = shared.pretrain()
    config.method = "frontal_lateral"
    config.model = recipes.vit()
    config.lateral = {
        "variant": "swin_test",
        "init_from": "",  # folder of a Hugging Face Swin
        "train": config_dict.placeholder(bool),  # unset: only without init_from; a random Swin that stays is of no use
        "standardise": recipes.standardise(0.5, 0.5),  # as CXR-CLIP's
    }
    config.text = recipes.text()
    config.width = 128  # of the space in which pictures and words meet
    config.decoder = {
        "heads": 4,
        "mlm_depth": 2,
        "view_depth": 1,
        # What the queries hear replaces them; reading in every layer is what the figure may mean.
        "reading": {"residual": False, "cross_in_every_layer": False},
    }
    config.selection = {"keep_ratio": 0.8, "gather_ratio": 0.7}
    config.masking = {
        "entities": " ".join(ENTITIES.split()),
        "entity": 0.75,  # how often a word of the list is hidden,
        "beside": 0.65,  # another word of a report that has one,
        "without": 0.7,  # and a word of a report that has none
    }
    config.prototypes = {
        "count": 64,  # the paper's 500 want batches of hundreds
        "epsilon": 0.07,
        "freeze_share": 0.02,  # of the run: how long they stay as they start
    }
    config.loss = {
        "temperature": 0.1,
        "word_temperature": 0.07,
        "prototype_temperature": 0.1,
        "groups": 1,  # negatives, and the last caption of last_caption_selects, from this many slices of the batch
        "chunks": 1,  # the logits of a large batch in so many parts, one after the other; the value is the same
        "weights": {"itc": 1.0, "mlm": 1.0, "fla": 1.0, "proto": 1.0},
    }
    config.defects = dict.fromkeys(DEFECTS, "official" in words)
    config.views = {"transform": "mild"}  # or none, crop_flip, pad_crop
    config.standardise = recipes.standardise()

    config.batch_size = 64
    config.duration.total_steps = 300
    config.optim.betas = (0.9, 0.999)
    recipes.phantom_reports(config)
    config.data.projections = ""  # laterals too

    if "mimic_cxr" in words:
        recipe(config)
    if "official" in words:
        config.loss.groups = 3 if config.batch_size % 3 == 0 else 1
        config.prototypes.freeze_share = 0.0
        config.model.dtype = config.text.dtype = "float32"
    if "smoke" in words:
        recipes.smoke(config)
        config.lateral.variant = "swin_test"
        config.width = 32
        config.decoder.update({"heads": 2, "mlm_depth": 1, "view_depth": 1})
        config.prototypes.update({"count": 8, "freeze_share": 0.0})
        config.loss.groups = 1
    return config


DEFECTS = (
    "shared_masked_text",  # D1: the report is read with its words hidden in every loss, not in the masked one alone
    "lateral_token_softmax",  # D2: the adapter ends in a softmax over tokens, whose mean, g_L, is 1/n for any picture
    "last_caption_selects",  # D3: the last report of the device chooses the key patches of all its studies
    "missing_laterals_stay",  # D4: a lateral picture that there is not is one constant token, in every loss
    "aggregate_more",  # D5: the kept tokens are drawn together into more than they are: counted as if of two ViTs
    "raw_prototypes",  # D6: vectors meet prototypes at their own length, and codes overflow at scores above 88.7 ε
    "one_way_prototypes",  # D7: the reports' codes are learned by the pictures, and none by the reports
    "padding_counts",  # D8: padding asks, is attended to in the decoders and is in the mean of the report
    "no_standardisation",  # D9: grey values enter in [0, 1]
    "lateral_stochastic_depth",  # D13: the Swin drops paths (0.1), frozen or not
    "piece_masking",  # pieces are hidden one by one, and a finding counts where it is one piece
    "unequal_scales",  # frontal tokens are selected and drawn together at lengths far above the lateral ones
)


def recipe(config):
    """What the released launcher and code have."""
    recipes.mimic_cxr(config)
    config.views.transform = "pad_crop"
    config.data.projections = ""
    config.model.update({"variant": "B", "image_px": 224, "patch_px": 16, "positions": "learned", "dtype": "bfloat16"})
    config.lateral.variant = "T"
    config.text.length = 128
    config.text.cleaning = "none"
    config.width = 512
    config.decoder.update({"heads": 8, "mlm_depth": 4, "view_depth": 2})
    config.prototypes.count = 500
    config.batch_size = 96
    config.duration.update({"total_steps": None, "total_epochs": 50.0})
    config.optim.update({"lr": 1e-5, "wd": 0.05, "warmup_steps": None, "warmup_epochs": 5.0})
    config.optim.lr_mults = (("^mlm_head/", 5.0), ("bias$", 2.0), ("^mlm_decoder/", 5.0), (".*", 1.0))
    config.optim.wd_mults = (("bias$", 0.0), (".*", 1.0))
