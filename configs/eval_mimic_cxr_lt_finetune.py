"""Fine-tuning on MIMIC-CXR-LT: one of 19 classes a picture, of which the rarest have few training pictures.

    python -m cxrjax.main --config=configs/eval_mimic_cxr_lt_finetune.py --config.init_from=runs/…
    python -m cxrjax.main --config=configs/eval_mimic_cxr_lt_finetune.py:seeds --config.init_from=runs/…   three runs

Holste et al., DALI 2022 (2208.13365), code and labels in github.com/VITA-Group/LongTailCXR: a ResNet-50 from ImageNet
at 256 px, cross-entropy, Adam at a constant rate of 1e-4, batch 256, at most 60 epochs, mirrored and turned by up to
15 degrees. Judged on a test part in which all classes are equally common.

Published balanced accuracy, each with a loss or sampling of its own (the README of that code):

    softmax 0.169    class-balanced softmax 0.227    RW LDAM-DRW 0.275    decoupled classifier 0.296

The judge gives `balanced_accuracy` with its interval, beside AUROC. `loss.weights` takes a weight for each class, in
the order of `labels`. To convert the set, put three of their tables together,

    names = {"train": "train", "balanced-val": "val", "balanced-test": "test"}
    tables = [pandas.read_csv(f"mimic-cxr-lt_single-label_{a}.csv").assign(split=b) for a, b in names.items()]
    pandas.concat(tables).to_csv("mimic-cxr-lt.csv", index=False)

and name the table and the folder of MIMIC-CXR-JPG that holds `files/`:

    python -m cxrjax.prepare folder --raw DIR --table mimic-cxr-lt.csv --mapping configs/sets/mimic_cxr_lt.json

Ours: the step with the best validation AUROC, where theirs is that with the best balanced accuracy, stopped after 15
epochs without a better one; any encoder; grey pictures, of which 256 px are the middle and not the picture stretched.
"""

from cxrjax import config as shared
from cxrjax import protocols

WORDS = ("seeds", "smoke")
LABELS = (
    "No Finding",
    "Lung Opacity",
    "Cardiomegaly",
    "Atelectasis",
    "Pleural Effusion",
    "Support Devices",
    "Edema",
    "Pneumonia",
    "Pneumothorax",
    "Lung Lesion",
    "Fracture",
    "Enlarged Cardiomediastinum",
    "Consolidation",
    "Pleural Other",
    "Calcification of the Aorta",
    "Tortuous Aorta",
    "Pneumoperitoneum",
    "Subcutaneous Emphysema",
    "Pneumomediastinum",
)
"""In the order of the authors' code."""


def get_config(arg: str = ""):
    words = shared.words(arg, WORDS)
    config = protocols.finetune()
    config.data.sets, config.labels, config.task = "mimic_cxr_lt", ",".join(LABELS), "multiclass"
    config.model.image_px = 256
    config.views.update({"scale": (1.0, 1.0), "ratio": (1.0, 1.0), "flip": 0.5, "rotation_degrees": 15.0})
    config.batch_size = 256
    config.duration.total_epochs = 60.0
    config.optim.update({"lr": 1e-4, "schedule": "constant", "warmup_steps": 0, "betas": (0.9, 0.999), "wd": 0.0})
    task = {"kind": "multiclass", "labels": config.labels, "name": "classes"}
    protocols.classify(config, task, every_steps=500)
    if "seeds" in words:
        config.grid = "seed=0,1,2"
    if "smoke" in words:
        protocols.smoke(config)
    return config
