"""Detects with a run's encoder, frozen or fine-tuned, and judges mean average precision.

    python -m cxrjax.main --config=configs/detect.py --config.init_from=runs/…             phantom findings: minutes
    python -m cxrjax.main --config=configs/detect.py:frozen --config.init_from=runs/…      the head alone learns
    python -m cxrjax.main --config=configs/detect.py:resnet                                YOLOv3 on a ResNet-18
    python -m cxrjax.main --config=configs/detect.py:nih --config.init_from=runs/…         opacities, small NIH set
    python -m cxrjax.main --config=configs/detect.py:rsna --config.init_from=runs/…        RSNA Pneumonia, 10 boxes
    python -m cxrjax.main --config=configs/detect.py:frozen,grid --config.init_from=runs/… 1, 10, 100 % × 3 seeds

The model is the run's; without init_from a small one starts from noise. A ViT gets a simple pyramid and a dense head, a
ResNet the three branches of YOLOv3 (cxrjax/methods/detect.py). Pictures are seen whole, as squares. Judged by
pycocotools (pip install 'cxrjax[eval]') at the IoUs 0.40 … 0.75 of MGCA, over all pictures and in the way of that code
(cxrjax/evals/detect.py). The step that is best on the validation patients is kept. The recipe is our choice; MGCA's
protocol is configs/eval_mgca_detection.py.

`nih` (our choice): only a few of ChestX-ray14's pictures with a finding have boxes, so a picture without a box is no
negative. The run trains on and is judged on two kinds of pictures: those with a box of these labels, and those labelled
"No Finding", in which any box is a false alarm. --config.data.require=boxes takes the first kind alone, and "" takes
every picture; the judge follows.
"""

from cxrjax import config as shared
from cxrjax import protocols
from cxrjax.phantom import findings

WORDS = ("phantom", "nih", "rsna", "frozen", "grid", "resnet", "smoke")


def get_config(arg: str = ""):
    words = shared.words(arg, WORDS)
    config = protocols.detection()
    config.labels = ",".join(findings.FINDINGS)
    config.head.update({"width": 64, "layers": 2, "scales": (4, 2, 1)})
    config.batch_size = 32
    config.duration.total_steps = 600
    config.optim.update({"lr": 1e-3, "betas": (0.9, 0.999), "wd": 1e-4, "warmup_steps": 60, "grad_clip": 1.0})
    protocols.judge_boxes(config, every_steps=200)

    if "resnet" in words:
        config.model.variant = "resnet18"
    if "nih" in words:
        opacities(config, "chestxray14_subset", "Lung Opacity,Pneumonia", "boxes or No Finding")
        config.batch_size = 16
        config.duration.total_steps = 1000
        config.optim.update({"lr": 5e-4, "warmup_steps": 100})
    if "rsna" in words:
        opacities(config, "rsna_pneumonia", "")  # whose readers have looked at every picture
        config.duration.update({"total_steps": None, "total_epochs": 50.0})
        config.optim.update({"lr": 5e-4, "warmup_steps": None, "warmup_epochs": 2.0})
    if "frozen" in words:
        config.encoder = "frozen"
    if "grid" in words:
        config.grid = protocols.SHARES
    if "smoke" in words:
        config.head.update({"width": 32, "layers": 1})
        protocols.smoke(config)
    return config


def opacities(config, converted_set, labels, require=""):
    config.data.sets, config.labels = converted_set, labels
    config.head.update({"width": 256, "layers": 4, "scales": (4, 2, 1, 0.5)})
    protocols.judge_boxes(config, every_steps=500, require=require)
