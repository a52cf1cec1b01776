"""MGCA's detection: YOLOv3 on a frozen ResNet-50, RSNA Pneumonia or Object-CXR at 1, 10 and 100 % of the training set.

    python -m cxrjax.main --config=configs/eval_mgca_detection.py --config.init_from=runs/…             RSNA, 100 %
    python -m cxrjax.main --config=configs/eval_mgca_detection.py:one_percent --config.init_from=…      or ten_percent
    python -m cxrjax.main --config=configs/eval_mgca_detection.py:object_cxr --config.init_from=runs/…  foreign objects
    python -m cxrjax.main --config=configs/eval_mgca_detection.py:compat --config.init_from=runs/…      with its defects

Wang et al., NeurIPS 2022 (2210.06044), section 4.2 and released code: whole pictures as squares of 224 px, no
augmentation, AdamW (weight decay 1e-6, no schedule), batch 16 at 5e-4, or 8 at 2e-4 (RSNA) and 2.5e-4 (Object-CXR) for
1 %, 50 epochs, the step with the best validation mAP; scores from 0.5, non-maximum suppression from an IoU of 0.5.

By default what is a defect there is put right. `compat` brings back those of the model: BatchNorm of the frozen
encoder moves, every level must find every box, shapes overlap by one cell too much, places of objects are told to be
background too, the score is the objectness alone, and answers overlap by one pixel too much. The other one is in the
metric: pictures without a box or without an answer are not counted; results always name both, map (all pictures) and
map_mgca_compat. Only the latter may be laid beside published numbers, as another run of the same protocol. Patients are
drawn for 1 and 10 %, not pictures, and no picture is in two splits. A step per epoch is judged at 100 %; early stopping
is replaced by keeping the best step.
"""

from cxrjax import config as shared
from cxrjax import protocols

WORDS = ("object_cxr", "one_percent", "ten_percent", "grid", "compat", "smoke")


def get_config(arg: str = ""):
    words = shared.words(arg, WORDS)
    config = protocols.detection()
    config.data.sets = "object_cxr" if "object_cxr" in words else "rsna_pneumonia"
    config.data.projections = ""
    config.model.update({"variant": "resnet50", "image_px": 224})
    config.encoder = "frozen"
    config.head.update({"kind": "yolov3", "width": 512})
    config.boxes.most = 20 if "object_cxr" in words else 10
    config.answer.confidence = 0.5
    config.views.update({"scale": (1.0, 1.0), "flip": 0.0})
    config.standardise.update({"mean": 0.5, "std": 0.5})
    config.batch_size = 16
    config.duration.total_epochs = 50.0
    config.optim.update({"lr": 5e-4, "schedule": "constant", "betas": (0.9, 0.999), "wd": 1e-6})
    protocols.judge_boxes(config, every_steps=400 if "object_cxr" in words else 1000)
    config.evals.detect.bootstrap = 1000

    if "one_percent" in words:
        config.data.fraction = 0.01
        config.batch_size = 8
        config.optim.lr = 2.5e-4 if "object_cxr" in words else 2e-4
        config.evals.detect.every_steps = 20
    if "ten_percent" in words:
        config.data.fraction = 0.1
        config.evals.detect.every_steps = 100
    if "grid" in words:
        config.grid = "seed=0,1,2"
    if "compat" in words:
        config.encoder = "drifting"
        config.head.score = "object"
        config.loss.update({"assign": "best_of_level", "inclusive_iou": True, "object_is_background": True})
        config.answer.inclusive_iou = True
    if "smoke" in words:
        config.data.sets = "phantom"
        protocols.judge_boxes(config, every_steps=6)
        config.head.width = 32
        protocols.smoke(config)
    return config
