"""A trained linear head as Hugging Face's classifiers have one, beside the encoder in the same folder.

| encoder                 | class                             | reads                        | on disk              |
|-------------------------|-----------------------------------|------------------------------|----------------------|
| `vit`                   | ViTForImageClassification         | [CLS]                        | classifier (c, d)    |
| `resnet`                | ResNetForImageClassification      | the mean of the last map     | classifier.1 (c, d)  |
| `dinov2`                | Dinov2ForImageClassification      | [CLS] and the patches' mean  | classifier (c, 2 d)  |
| `dinov2_with_registers` | Dinov2WithRegistersForImageClass… | as before                    | as before            |

One half of a DINOv2's classifier is 0: our heads read either [CLS] or the mean.
The names of the encoder's arrays get the prefix that these classes give them; the classes of the encoder alone
(`ViTModel`, …) take it off again. A ViT whose head reads the mean of the patches has no such class.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

LAYER = {"vit": "classifier", "resnet": "classifier.1", "dinov2": "classifier", "dinov2_with_registers": "classifier"}
PROBLEMS = {"multilabel": "multi_label_classification", "multiclass": "single_label_classification"}
"""Kinds of `base.Answers` as config.json calls them."""
_MODEL, _CLASSIFIER = "Model", "ForImageClassification"


def fits(config: Mapping[str, Any], pool: str) -> bool:
    """Whether Hugging Face has a classifier that reads what our head reads. pool: of config.model, of a ViT."""
    return config["model_type"] in LAYER and (config["model_type"] != "vit" or pool == "cls")


def attach(
    weights: Mapping[str, np.ndarray],
    config: Mapping[str, Any],
    head: Mapping[str, Any],
    names: Sequence[str],
    kind: str,
    pool: str,
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The arrays and the config.json of an encoder with its head, in which `fits` is true.

    weights, config: of the encoder, as its family writes them. head: "kernel" d c and "bias" c. names: of the c
    answers. kind: a key of PROBLEMS. pool: of config.model, of a ViT.
    """
    kind_of_model = config["model_type"]
    kernel = np.asarray(head["kernel"], np.float32).T
    if kind_of_model.startswith("dinov2"):
        halves = (kernel, np.zeros_like(kernel))
        kernel = np.concatenate(halves if pool == "cls" else halves[::-1], axis=1)
    found = {f"{kind_of_model}.{name}": array for name, array in weights.items()}
    layer = LAYER[kind_of_model]
    found[f"{layer}.weight"] = np.ascontiguousarray(kernel)
    found[f"{layer}.bias"] = np.asarray(head["bias"], np.float32)
    (encoder_class,) = config["architectures"]
    described = {
        **config,
        "architectures": [encoder_class.removesuffix(_MODEL) + _CLASSIFIER],
        "id2label": {str(i): name for i, name in enumerate(names)},
        "label2id": {name: i for i, name in enumerate(names)},
        "problem_type": PROBLEMS[kind],
    }
    return found, described


def encoder_class(config: Mapping[str, Any]) -> str:
    """The class of transformers that loads the encoder of a folder without its head."""
    return config["architectures"][0].replace(_CLASSIFIER, _MODEL)


def is_attached(config: Mapping[str, Any]) -> bool:
    """Whether a folder has a head, from the content of its config.json."""
    return config["architectures"][0].endswith(_CLASSIFIER)
