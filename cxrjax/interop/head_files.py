"""Heads beside an exported encoder, for torch: head.json, head.safetensors and modeling.py.

| file                  | of                                        | class     |
|-----------------------|-------------------------------------------|-----------|
| `segment_modeling.py` | UNETR, SETR-PUP, UPerNet, U-Net           | Segmenter |
| `dense_modeling.py`   | a simple pyramid with a dense head        | Detector  |
| `yolo_modeling.py`    | YOLOv3                                    | Detector  |
| `gates_modeling.py`   | the context gates of MLVICX               | Gated     |

modeling.py is one of these, word for word. head.json has every layer as torch.nn builds it: linear ones are 1 × 1
convolutions, so that all work on maps b c h w.
"""

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save

from cxrjax import sizes
from cxrjax.interop import huggingface
from cxrjax.interop.joint import CODE
from cxrjax.models import decoders, detection, segmenters
from cxrjax.models.backbone import Backbone
from cxrjax.models.vit import ViT

SETTINGS, WEIGHTS = "head.json", "head.safetensors"
FILES = (SETTINGS, WEIGHTS)
CLASSES = {"segment": "Segmenter", "detect": "Detector", "mlvicx": "Gated"}
"""Method -> the class of its modeling.py."""
GATED = "mlvicx"
"""model_type of a config.json whose ResNet has gates: transformers loads no trunk without them."""
EPS = 1e-6
"""Of Linen's LayerNorm and GroupNorm."""


def has_gates(config: Any) -> bool:
    """Whether a run is judged through gates, which no class of transformers has."""
    return "gates" in config and config.gates.use and not config.strip_gates


def write(
    folder: Path, config: Any, encoder: Backbone, params: Any, stats: Mapping[str, Any], names: tuple[str, ...]
) -> None:
    """Writes the three files beside an encoder; of MLVICX also marks its config.json.

    config: of a run of a method of CLASSES. params, stats: of the head, or of the gates. names: of classes of boxes.
    """
    method = config.method
    head = {} if method == "mlvicx" else _settings(config, encoder, names)
    described, arrays = layers(params, stats)
    settings = {"method": method, **head, "layers": described}
    (folder / SETTINGS).write_text(json.dumps(settings, indent=2) + "\n")
    (folder / WEIGHTS).write_bytes(save(arrays, metadata={"format": "pt"}))
    source = {"mlvicx": "gates", "detect": head.get("kind")}.get(method, method)
    (folder / CODE).write_text(Path(__file__).with_name(f"{source}_modeling.py").read_text())
    if method == "mlvicx":
        file = folder / huggingface.CONFIG
        file.write_text(json.dumps(json.loads(file.read_text()) | {"model_type": GATED}, indent=2) + "\n")


def layers(params: Any, stats: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Layers by name as (class of torch.nn, its arguments), and their arrays by torch's names.

    params, stats: of Linen modules, whose names in each other are joined by _. What only training needs is left out.
    """
    described, arrays = {}, {}
    for path, leaves in _modules(params):
        if path[-1].startswith("auxiliary") or path[0].startswith("auxiliary"):
            continue
        name, running = "_".join(path), _at(stats, path)
        if "kernel" in leaves:
            described[name], weight = _convolution(leaves["kernel"], "bias" in leaves)
        else:
            weight = leaves["scale"]
            described[name] = _norm(path, len(weight), bool(running))
        found = {"weight": weight, "bias": leaves.get("bias")}
        found |= {"running_mean": running.get("mean"), "running_var": running.get("var")}
        for leaf, array in found.items():
            if array is not None:
                arrays[f"{name}.{leaf}"] = np.ascontiguousarray(array, np.float32)
        if running:
            arrays[f"{name}.num_batches_tracked"] = np.zeros((), np.int64)
    return described, arrays


def _settings(config: Any, encoder: Backbone, names: tuple[str, ...]) -> dict[str, Any]:
    head, module = config.head, encoder.module
    patch_px = getattr(module, "patch_px", 0)
    if config.method == "segment":
        kind = head["kind"] or ("unetr" if patch_px else "unet")
        taps = [int(tap) for tap in segmenters.names(head["taps"])]
        if isinstance(module, ViT) and kind == "unetr":
            taps = taps or list(decoders.unetr_taps(module.size.depth, patch_px))
        return {"kind": kind, "patch_px": patch_px, "taps": taps}
    answer = {name: config.answer[name] for name in ("most", "confidence", "overlap")}
    pixel = [1 / side for side in sizes.sides(config.model.image_px)]
    answer["longer"] = pixel if config.answer.inclusive_iou else [0.0, 0.0]
    shared = {"names": list(names), "patch_px": patch_px, "answer": answer}
    if not patch_px:
        return {"kind": "yolo", **shared, "score": head["score"], "priors": np.asarray(detection.priors()).tolist()}
    of_dense = {"scales": list(head["scales"]), "tower": head["layers"], "base_cells": detection.BASE_CELLS}
    return {"kind": "dense", **shared, **of_dense}


def _convolution(kernel: Any, bias: bool) -> tuple[tuple[str, dict[str, Any]], np.ndarray]:
    kernel = np.asarray(kernel)
    if kernel.ndim == 2:
        kernel = kernel[None, None]
    if kernel.shape[1] == kernel.shape[2] == 2:  # of `decoders.Deconvolution`, d f f c; convolutions have odd sides
        inputs, side, _, outputs = kernel.shape
        options = {"in_channels": inputs, "out_channels": outputs, "kernel_size": side, "stride": side, "bias": bias}
        return ("ConvTranspose2d", options), kernel.transpose(0, 3, 1, 2)
    side, _, inputs, outputs = kernel.shape
    options = {"in_channels": inputs, "out_channels": outputs, "kernel_size": side, "padding": side // 2, "bias": bias}
    return ("Conv2d", options), kernel.transpose(3, 2, 0, 1)


def _norm(path: tuple[str, ...], width: int, batch: bool) -> tuple[str, dict[str, Any]]:
    if batch:
        return "BatchNorm2d", {"num_features": width}
    if path[0] == "places":
        return "GroupNorm", {"num_groups": math.gcd(32, width), "num_channels": width, "eps": EPS}
    return "LayerNorm", {"normalized_shape": width, "eps": EPS}


def _modules(tree: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Mapping[str, Any]]]:
    """The modules with a kernel or a scale of their own, by path."""
    if "kernel" in tree or "scale" in tree:
        yield path, tree
        return
    for name, below in tree.items():
        yield from _modules(below, (*path, name))


def _at(tree: Mapping[str, Any], path: tuple[str, ...]) -> Mapping[str, Any]:
    for name in path:
        tree = tree.get(name, {})
    return tree
