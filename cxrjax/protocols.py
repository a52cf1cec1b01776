"""What the configs of trained heads share: the keys of fine-tuning, segmentation and detection, and judges' entries.

    finetune()                       a config of the method `supervised` that starts from a run
    segmentation()                   a config of the method `segment` that starts from a run
    detection()                      a config of the method `detect` that starts from a run
    classify(config, task)           judges the head along training and keeps the step that is best on val
    judge_masks(config)              the same for masks
    judge_boxes(config)              the same for boxes
    probes(config)                   adds what other methods are judged by: a linear probe and k-NN
    folds(config, number)            cross-validation by patient in place of the set's own splits

A config calls one of the first three, sets what is its protocol's, then says how it is judged: on the set and the
projections that it trains on, unless evals says otherwise.
"""

from typing import Any

from cxrjax import config as shared
from cxrjax import recipes, tasks
from cxrjax.config import ConfigDict
from cxrjax.input.augment import Augment
from cxrjax.models import lora

SHARES = "data.fraction=0.01,0.1,1; seed=0,1,2"
"""The grid of label efficiency: three shares of the labels, three times each."""


def finetune() -> ConfigDict:
    config = _head("supervised")
    config.task = "multilabel"  # or multiclass
    config.labels = ""
    config.policy = ""  # of unknown labels: U-Ignore, U-Zeros, U-Ones, MGCA
    config.loss = {"weights": (), "smoothing": 0.0}  # one weight per label, of its presence or class
    config.views = {"scale": (0.5, 1.0), "ratio": (3 / 4, 4 / 3), "flip": 0.0, "rotation_degrees": 10.0}
    return config


def segmentation() -> ConfigDict:
    config = _head("segment")
    config.target = "mask"  # or finding_mask, boxes (their union), mask_heart …: what the set has
    config.head = {
        "kind": "",  # unetr, setr_pup, upernet of a ViT; unet of a ResNet
        "features": 16,
        "widths": "",  # of SETR-PUP's levels: 256,256,256,256 as its authors' code; by default doubled from features
        "taps": "",  # blocks that UNETR reads beside the last: 3,6,9 as in its paper; by default MONAI's 4,7,10 of 12
    }
    config.loss = {"dice": 1.0, "cross_entropy": 1.0, "focal": 0.0, "log_dice": 0.0, "gamma": 2.0}  # weights
    config.views = {"scale": (0.6, 1.0), "ratio": (3 / 4, 4 / 3), "flip": 0.5, "rotation_degrees": 10.0}
    return config


def detection() -> ConfigDict:
    config = _head("detect")
    config.labels = ""  # of boxes; "" takes every box, as one class
    config.head = {
        "kind": "",  # dense on a ViT, yolov3 on a ResNet
        "width": 256,  # channels; MGCA's YOLOv3 has 512 at its coarsest level
        "layers": 4,  # of a dense head's towers
        "scales": (4, 2, 1, 0.5),  # of a dense head's pyramid, times the grid of the patches
        "score": "product",  # of a YOLOv3: object × class; or object, as MGCA's code
    }
    config.loss = {"assign": "best_prior", "inclusive_iou": False, "object_is_background": False}  # of a YOLOv3
    config.boxes = {"most": 10, "min_visible": 0.3}  # per picture; share of a box that a window must show
    config.answer = {
        "most": 100,  # boxes per picture
        "confidence": 0.02,  # least score
        "overlap": 0.5,  # IoU from which on a box is another's double
        "inclusive_iou": False,  # of boxes one pixel longer, as MGCA's code
    }
    config.views = {"scale": (0.6, 1.0), "ratio": (3 / 4, 4 / 3), "flip": 0.5, "rotation_degrees": 0.0}
    return config


def _head(method: str) -> ConfigDict:
    config = shared.pretrain()
    config.method = method
    config.model = recipes.of_run()
    config.encoder = "learned"  # or frozen: the head alone learns; drifting: frozen but for BatchNorm's statistics
    # Above rank 0 a ViT's own parameters stay and adapters of this rank learn: cxrjax/models/lora.py
    config.lora = {"rank": 0, "alpha": 16.0, "kernels": ",".join(lora.KERNELS)}
    config.augment = Augment()._asdict()
    config.standardise = recipes.standardise()  # of the run, where there is one
    return config


def classify(config: ConfigDict, task: dict[str, Any], every_steps: int, metric: str = "auroc") -> None:
    """metric: of the validation pictures, by which the best step is kept."""
    _judged(config, "classify", {"task": {"name": "all", **task}, "every_steps": every_steps}, metric)


def judge_masks(config: ConfigDict, every_steps: int, metric: str = "dice_present") -> None:
    """metric: as in `classify`."""
    _judged(config, "segment", {"task": {"name": config.get_ref("target")}, "every_steps": every_steps}, metric)


def judge_boxes(config: ConfigDict, every_steps: int, require: str = "") -> None:
    """require: what pictures must have, "boxes" or "boxes or <label>", to be trained on and to be judged on."""
    config.data.require = require
    entry = {"task": {"name": "boxes"}, "require": config.data.get_ref("require")}
    _judged(config, "detect", {**entry, "every_steps": every_steps, "bootstrap": 200}, "map")


def _judged(config: ConfigDict, judge: str, entry: dict[str, Any], metric: str) -> None:
    """References, so that the step is chosen by whatever is judged in the end."""
    config.evals = ConfigDict({judge: {"judge": judge, **_as_trained_on(config), **entry}})
    judged = config.evals[judge]
    place = "eval/" + judged.get_ref("set") + "/" + judged.task.get_ref("name")
    config.checkpoint.best_metric = place + f"/{judge}_val_{metric}"


def probes(config: ConfigDict, every_steps: int, knn_every_steps: int) -> None:
    """Adds a linear probe and k-NN of the features, beside what was learned for the labels."""
    task = {"kind": "multilabel"}
    config.evals.probe = {"judge": "probe", "task": task, "every_steps": every_steps, **_as_trained_on(config)}
    config.evals.knn = {**tasks.online_knn("", knn_every_steps), **_as_trained_on(config)}


def _as_trained_on(config: ConfigDict) -> dict[str, Any]:
    """The set and the projections that config.data names when the run begins; of several sets the first."""
    data = config.data
    # Each is derived, not shared: to judge on another set must not be to train on it.
    first = data.get_ref("sets")._apply_op(lambda sets: shared.names(sets)[0])
    return {"set": first, "projections": data.get_ref("projections").identity()}


def folds(config: ConfigDict, number: int) -> None:
    """Fold 0 is the test; --config.data.fold=1 … and the grid's data.fold choose another, for the judges as well."""
    config.data.update({"folds": number, "fold": 0})
    for entry in config.evals.values():
        entry.folds, entry.fold = config.data.get_ref("folds"), config.data.get_ref("fold")


def smoke(config: ConfigDict) -> None:
    """A run of seconds, from a new small encoder and not from a run's."""
    config.model = recipes.resnet() if config.model.variant.startswith("resnet") else recipes.vit()
    config.model.update({"drop_path": 0.0, "pool": "cls"})
    recipes.smoke(config)
