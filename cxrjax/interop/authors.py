"""Files that the released code of methods writes: what is known of the encoder in them beside its arrays.

| method | code on GitHub, and its files that say so                     | the encoder's place                      |
|--------|---------------------------------------------------------------|------------------------------------------|
| MGCA   | HKU-MedAI/MGCA, mgca/models/backbones/encoder.py, vits.py     | img_encoder_q.model                      |
| GMML   | Sara-Ahmed/GMML, main.py, vision_transformer.py               | SiT_model.module.backbone                |
| OCL    | AnonymGiant/OCL, models_mae.py                                | that of MAE                              |
| MLVICX | vangorade/mlvicx, models/mlvicx.py, trainer/mlvicx_trainer.py | online.encoder, or model.encoder.encoder |

GMML's loss sees the patches and not [CLS], so its pool is their mean. Its code resizes positions as DINO's does. MGCA
enlarges the pictures of its ResNet to 299 px. MLVICX numbers the parts of its ResNet. Its gates are not read: the
release leaves them out where it fine-tunes and probes, too.
"""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

RESIZE_OFFSET = 0.1
"""What DINO's code, and GMML's after it, adds to the grid where positions are resized."""
MGCA_RESNET_PX = 299
_GATE = "cbt1.cam.fc.0.weight"
_PARTS = {"0": "conv1", "1": "bn1", **{str(3 + i): f"layer{i}" for i in range(1, 5)}}
"""MLVICX's number of a part of its ResNet -> torchvision's name. Those between have no arrays."""


def renamed(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Arrays under torchvision's names where they are MLVICX's; others as they are."""
    gate = next((name for name in arrays if name.endswith(_GATE)), None)
    if gate is None:
        return dict(arrays)
    place = re.escape(gate.removesuffix(_GATE) + "encoder.")
    numbered = re.compile(rf"^({place})([014-7])\.")
    return {numbered.sub(lambda m: f"{m[1]}{_PARTS[m[2]]}.", name): array for name, array in arrays.items()}


def beside(names: Mapping[str, Any], place: str) -> list[str]:
    """What a file holds beside the encoder at a place: the words in which names part from it."""
    found, path = set(), place.split(".")[:-1]
    for name in names:
        if not name.startswith(place):
            words = name.split(".")
            found.add(next(word for i, word in enumerate(words) if path[i : i + 1] != [word]))
    return sorted(found)


def known(place: str, others: list[str]) -> dict[str, Any]:
    """Keys of config.model that a file decides on by what it is. others: of `beside`."""
    if "head_recons" in others:
        return {"pool": "mean", "resize_offset": RESIZE_OFFSET}
    if "teacher" in place and any(name.startswith(("dino_loss", "student")) for name in others):
        return {"resize_offset": RESIZE_OFFSET}
    return {}
