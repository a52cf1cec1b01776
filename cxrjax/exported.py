"""What a folder of an encoder holds, found out by loading it as its users do, without running any code that it brings.

Lines of `python -m cxrjax.export --check FOLDER`.
"""

import json
from pathlib import Path

import numpy as np

from cxrjax import parity, sizes
from cxrjax.interop import classifier, families, head_files, huggingface, joint, onnx_file, preprocessing, torch_timm


def describe(folder: str | Path) -> list[str]:
    """Sentences on a folder for transformers or timm.

    Raises ValueError where it is none, is damaged, wants to run code of its own, or gives numbers that are none.
    """
    folder = Path(folder)
    if not (folder / huggingface.CONFIG).is_file():
        raise ValueError(f"{folder} has no {huggingface.CONFIG}; expected a folder that cxrjax.export wrote.")
    config = preprocessing.json_of(folder / huggingface.CONFIG)
    if "auto_map" in config:
        raise ValueError(
            f"{folder} asks for code of its own (auto_map in {huggingface.CONFIG}), which is not run here."
        )
    if not (folder / huggingface.WEIGHTS).is_file():
        raise ValueError(f"{folder} has no {huggingface.WEIGHTS}; expected weights without pickle.")
    if config.get("model_type") == head_files.GATED:
        return ["A ResNet with the gates of MLVICX.", *beside(folder), _loaded(folder)]
    pretrained = families.read(folder)
    model, kind = families.model_of(pretrained), families.family(pretrained).kind
    of_timm = torch_timm.is_named(config)
    count = sum(array.size for array in pretrained.weights.values())
    said = [
        f"A {kind} ({model['variant']}) for {'timm' if of_timm else 'transformers'}, {count:,} numbers, pictures of "
        f"{sizes.said(model['image_px'])} px, fitted as {pretrained.sees!r}, mean {pretrained.mean}, deviation "
        f"{pretrained.std}."
    ]
    if names := _labels(config):
        said.append(f"A head of {len(names)} answers: {', '.join(names)}.")
    if (folder / "text").is_dir():
        said.append("A text encoder in text/.")
    if (folder / joint.SETTINGS).is_file():
        settings = json.loads((folder / joint.SETTINGS).read_text())
        said.append(
            f"The space of both ({settings['method']}) in {joint.CODE}, logits are {settings['scale']:.4g} cosines."
        )
    return [*said, *beside(folder), _loaded(folder)]


def beside(folder: str | Path) -> list[str]:
    """What a folder has beside its encoder in files of ours, for its card."""
    folder, said = Path(folder), []
    if (folder / head_files.SETTINGS).is_file():
        name = head_files.CLASSES[json.loads((folder / head_files.SETTINGS).read_text())["method"]]
        gives = {"Segmenter": "Masks", "Detector": "Boxes", "Gated": "Features"}[name]
        said.append(
            f"{gives} come from `modeling.py`, plain torch, with `head.safetensors`: `from modeling import {name}; "
            f'model = {name}(".").eval()`. Its docstring shows how.'
        )
    if (folder / onnx_file.FILE).is_file():
        height, width = parity.size(folder)
        said.append(
            f"`{onnx_file.FILE}` is the same for ONNX: `pixel_values` float32 b c {height} {width} as the processor "
            "gives them, b free, to `pooled`, `patches` and of a trained head `logits`."
        )
    return said


def _labels(config: dict) -> list[str]:
    if torch_timm.is_named(config):
        return list(config.get("label_names", ()))
    return list(config["id2label"].values()) if classifier.is_attached(config) else []


def _loaded(folder: Path) -> str:
    """Loads the folder and runs it on computed pictures."""
    if not parity.can_compare():
        return "Not loaded: torch and transformers are not installed."
    found, through = parity.features(folder, parity.pictures(parity.size(folder)), "cls")
    if wrong := [name for name, array in found.items() if not np.isfinite(array).all()]:
        raise ValueError(f"{folder} gives numbers that are none, in {', '.join(wrong)}.")
    shapes = ", ".join(f"{name} {' x '.join(map(str, array.shape[1:]))}" for name, array in found.items())
    return f"It loads without a network, through {through}, and gives {shapes} for a picture."
