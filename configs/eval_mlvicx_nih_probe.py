"""MLVICX' linear probe, or fine-tuning, of a ResNet-18 on ChestX-ray14.

    python -m cxrjax.main --config=configs/eval_mlvicx_nih_probe.py --config.init_from=runs/…             linear probe
    python -m cxrjax.main --config=configs/eval_mlvicx_nih_probe.py:finetune --config.init_from=runs/…
    python -m cxrjax.main --config=configs/eval_mlvicx_nih_probe.py:grid --config.init_from=runs/…        1 … 100 %
    python -m cxrjax.main --config=configs/eval_mlvicx_nih_probe.py:compat --config.init_from=runs/…      its defect

Released code of 2403.11504: one linear layer on the pooled features, binary cross-entropy, AdamW without weight decay
at 3e-3 (probe) or 3e-4 (fine-tuning), gradients cut to norm 1, mirroring at 224 px. The paper's tables could not be
had, so no number is expected here.

By default the code's defects are put right: the official split with a tenth of the training patients for validation
(theirs selects on the test list, part of which it trains on), no mirroring of test pictures, and an encoder that stays
as it is. `compat` lets its BatchNorm move, as theirs does. A run's encoder is the plain ResNet of its parameters:
MLVICX' gates, which its pre-training multiplies the maps by, are left out, as in that code. Ours: one cosine over 100
epochs for warm restarts, and the step with the best validation AUROC.
"""

from cxrjax import config as shared
from cxrjax import protocols
from cxrjax.datasets.chestxray14 import FINDINGS

WORDS = ("finetune", "grid", "compat", "smoke")


def get_config(arg: str = ""):
    words = shared.words(arg, WORDS)
    config = protocols.finetune()
    config.data.sets, config.labels = "chestxray14", ",".join(FINDINGS)
    config.encoder = "learned" if "finetune" in words else "drifting" if "compat" in words else "frozen"
    config.model.update({"variant": "resnet18", "image_px": 224})
    config.views.update({"scale": (1.0, 1.0), "ratio": (1.0, 1.0), "flip": 0.5, "rotation_degrees": 0.0})
    config.batch_size = 256
    config.duration.total_epochs = 100.0
    lr = 3e-4 if "finetune" in words else 3e-3
    config.optim.update({"lr": lr, "lr_end": 1e-6, "betas": (0.9, 0.999), "wd": 0.0, "grad_clip": 1.0})
    protocols.classify(config, {"kind": "multilabel", "labels": config.labels}, every_steps=500)
    if "grid" in words:
        config.grid = "data.fraction=0.01,0.1,0.3,1; seed=0,1,2"
    if "smoke" in words:
        protocols.smoke(config)
    return config
