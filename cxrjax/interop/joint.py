"""The joint space of pictures and reports beside an exported encoder: joint.json, joint.safetensors and modeling.py.

modeling.py is joint_modeling.py of this folder, word for word. Every head is a chain of linear layers with ReLU between
them: a BatchNorm after a layer is folded into it, by its running statistics.

    y = (W x + c - m) γ / √(v + ε) + β  =  (γ / √(v + ε)) W x  +  (c - m) γ / √(v + ε) + β
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save

SETTINGS, WEIGHTS, CODE = "joint.json", "joint.safetensors", "modeling.py"
FILES = (SETTINGS, WEIGHTS, CODE)
EPS = 1e-5
"""Of `models.batchnorm`."""
_OF_REPORTS = {"text": ("text_head",), "words": ("text_head",)}
PLACES: dict[str, dict[str, tuple[str, ...]]] = {
    "convirt": {"image": ("image_head",), "patches": ("image_head",), **_OF_REPORTS},
    "frontal_lateral": {"image": ("image_head",), "patches": ("image_head",), **_OF_REPORTS},
    "gloria": {"image": ("image_head", "global"), "patches": ("image_head", "local")},
    "mgca": {"image": ("image_head",), "patches": ("region_head",), "text": ("text_head",), "words": ("word_head",)},
    "sista": {
        "image": ("image_head", "global"),
        "patches": ("image_head", "local"),
        "text": ("text_head", "global"),
        "words": ("text_head", "local"),
    },
}
"""Method -> where the parameters of each head are; none where the vectors are taken as they are."""


def write(folder: Path, config: Any, params: Mapping[str, Any], stats: Mapping[str, Any]) -> None:
    """Writes the three files. config: of a run of a method of PLACES; stats: its state["batch_stats"]."""
    arrays = {
        f"{stream}.{name}": array
        for stream, place in PLACES[config.method].items()
        for name, array in chain(_at(params, place), _at(stats, place)).items()
    }
    regions = config.get("regions")
    settings = {
        "method": config.method,
        "image_pool": config.model.get("pool", "cls"),
        "patch_px": config.model.get("patch_px", 0),
        "map": regions.get("layer", 3) if regions else 4,
        "text_pool": config.text.pool,
        "length": config.text.length,
        "scale": scale(config, params),
        "bias": float(params.get("bias", 0.0)),
    }
    (folder / SETTINGS).write_text(json.dumps(settings, indent=2) + "\n")
    (folder / WEIGHTS).write_bytes(save(arrays, metadata={"format": "pt"}))
    (folder / CODE).write_text(Path(__file__).with_name("joint_modeling.py").read_text())


def chain(params: Any, stats: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """A head's linear layers by the names of torch's Sequential: 0.weight, 0.bias, 2.weight …

    params: of `heads.MLP`, or one kernel d e; stats: its running statistics, {} without BatchNorm.
    Raises ValueError for a LayerNorm, which is no part of a linear layer.
    """
    if not isinstance(params, Mapping):
        params = {"fc1": {"kernel": params}}
    found = {}
    for i in range(sum(name.startswith("fc") for name in params)):
        linear, norm = params[f"fc{i + 1}"], f"norm{i + 1}"
        kernel = np.asarray(linear["kernel"], np.float64)
        bias = np.asarray(linear.get("bias", np.zeros(kernel.shape[1])), np.float64)
        if norm in stats:
            learned = params.get(norm, {})
            factor = np.asarray(learned.get("scale", 1.0)) / np.sqrt(np.asarray(stats[norm]["var"], np.float64) + EPS)
            kernel = kernel * factor
            bias = (bias - np.asarray(stats[norm]["mean"])) * factor + np.asarray(learned.get("bias", 0.0))
        elif norm in params:
            raise ValueError(f"The head has {norm}, a LayerNorm, which cannot be folded into a linear layer.")
        found[f"{2 * i}.weight"] = np.ascontiguousarray(kernel.T, np.float32)
        found[f"{2 * i}.bias"] = bias.astype(np.float32)
    return found


def scale(config: Any, params: Mapping[str, Any]) -> float:
    """What cosines are multiplied by: the reciprocal of the temperature, learned or not."""
    if "log_scale" in params:
        highest = math.inf if config.loss.form == "sigmoid" else math.log(100.0)
        return math.exp(min(float(params["log_scale"]), highest))
    if "log_temperature" in params:
        return 1 / min(max(math.exp(float(params["log_temperature"])), 0.01), 0.5)
    return float(config.loss.pair_scale) if "pair_scale" in config.loss else 1 / float(config.loss.temperature)


def _at(tree: Mapping[str, Any], place: tuple[str, ...]) -> Any:
    """What is at a place; of a SISTA without token alignment, whose only head serves for both, the global one."""
    for name in place:
        if name == "local" and name not in tree:
            name = "global"
        tree = tree.get(name, {})
    return tree
