"""Folders that Hugging Face loaders read: config.json, model.safetensors, preprocessor_config.json."""

import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

WEIGHTS, CONFIG, PREPROCESSOR = "model.safetensors", "config.json", "preprocessor_config.json"
PICKLED = "pytorch_model.bin"
PIL_BILINEAR = 2  # antialiased when it shrinks


class Pretrained(NamedTuple):
    """A model as it lies on disk: arrays by name, config, and per-channel mean and std of pixels in [0, 1]."""

    weights: Mapping[str, np.ndarray]
    config: Mapping[str, Any]
    mean: tuple[float, ...]
    std: tuple[float, ...]


def read(folder: str | Path, model_types: Sequence[str]) -> Pretrained:
    """Reads the three files of a model's folder; of the weights see `weights`.

    Raises:
      ValueError: a file is missing, or it is another kind of model or preprocessing.
    """
    folder = Path(folder)
    if not (folder / CONFIG).is_file():
        raise ValueError(
            f"{folder} has no {CONFIG}; expected a local folder as `save_pretrained` or cxrjax.export writes it. "
            "Models on a hub are downloaded first."
        )
    config = json.loads((folder / CONFIG).read_text())
    if config.get("model_type") not in model_types:
        raise ValueError(
            f"{folder} holds a model of type {config.get('model_type')!r}; expected {' or '.join(model_types)}."
        )
    mean, std = _normalisation(folder, config.get("num_channels", 3))
    return Pretrained(weights(folder), config, mean, std)


def write(
    folder: str | Path, weights: Mapping[str, np.ndarray], config: Mapping[str, Any], mean: float, std: float
) -> None:
    """Writes config.json, model.safetensors and preprocessor_config.json, with `mean` and `std` on every channel.

    The processor is our evaluation geometry: short side to the picture's size, then the centre; grey is replicated.
    """
    folder, size, channels = Path(folder), config["image_size"], config["num_channels"]
    preprocessor = {
        # The ViT processor stretches pictures to a square; this one keeps the aspect and crops.
        "image_processor_type": "BitImageProcessor",
        "do_convert_rgb": channels == 3,
        "do_resize": True,
        "size": {"shortest_edge": size},
        "resample": PIL_BILINEAR,
        "do_center_crop": True,
        "crop_size": {"height": size, "width": size},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [mean] * channels,
        "image_std": [std] * channels,
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CONFIG).write_text(json.dumps(dict(config), indent=2) + "\n")
    (folder / PREPROCESSOR).write_text(json.dumps(preprocessor, indent=2) + "\n")
    # `save_file` would leave a file that only its owner may read.
    (folder / WEIGHTS).write_bytes(save(dict(weights), metadata={"format": "pt"}))


def weights(folder: Path) -> dict[str, np.ndarray]:
    """Arrays of a model's folder by name, sharded or whole; model.safetensors before pytorch_model.bin.

    Safetensors are read by NumPy alone. The other file needs PyTorch, which reads its arrays and runs nothing in it.

    Raises:
      ValueError: a file is missing or broken, or takes PyTorch where there is none.
    """
    file = next((name for name in (WEIGHTS, PICKLED) if _parts(folder, name)), None)
    if file is None:
        there = sorted(path.name for path in folder.iterdir())[:10]
        raise ValueError(
            f"{folder} lacks {[WEIGHTS]}: there is neither {WEIGHTS} nor {PICKLED}; it has {there}. Load weights in "
            "other formats with transformers and `save_pretrained` them."
        )
    absent = [name for name in _parts(folder, file) if not (folder / name).is_file()]
    if absent:
        raise ValueError(f"{folder} lacks {absent}, of which its index {file}.index.json speaks.")
    load = _safetensors if file == WEIGHTS else _pickle
    return {name: array for part in _parts(folder, file) for name, array in load(folder / part).items()}


def _parts(folder: Path, file: str) -> list[str]:
    """The files that the weights are in: those of the index, else the file itself; none if neither is there."""
    if (index := folder / f"{file}.index.json").is_file():
        named = sorted(set(json.loads(index.read_text())["weight_map"].values()))
        if outside := [name for name in named if Path(name).name != name]:
            raise ValueError(
                f"{index} names {outside[:3]}, which are not files of its folder; download the model again."
            )
        return named
    return [file] if (folder / file).is_file() else []


def _safetensors(file: Path) -> dict[str, np.ndarray]:
    try:
        return load_file(file)
    except (SafetensorError, KeyError, TypeError) as error:
        raise ValueError(
            f"{file} cannot be read ({error}); download it again, or save the model in float32 if it is in bfloat16."
        ) from None


def _pickle(file: Path) -> dict[str, np.ndarray]:
    try:
        import torch
    except ImportError:
        raise ValueError(
            f"{file} takes torch to be read, which is not installed; install it (pip install torch), or "
            f"`save_pretrained` the model as {WEIGHTS} elsewhere."
        ) from None
    try:
        # weights_only: a file that wants to run code is refused.
        state = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises what the file's contents happen to break
        # Not in torch's words: they advise to let the file run what it wants.
        code = re.search(r"GLOBAL ([\w.]+)", str(error))
        why = (
            f"it wants to run {code[1]}, and is not let" if code else "it holds more than arrays, or is cut or damaged"
        )
        raise ValueError(
            f"{file} cannot be read as plain weights ({why}); download it again, or take the model's {WEIGHTS}."
        ) from None
    arrays = {name: tensor for name, tensor in state.items() if isinstance(tensor, torch.Tensor)}
    return {name: tensor.float().numpy() for name, tensor in arrays.items() if tensor.is_floating_point()}


def _normalisation(folder: Path, channels: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Per-channel mean and std of preprocessor_config.json."""
    path = folder / PREPROCESSOR
    if not path.is_file():
        raise ValueError(
            f"{folder} has no {PREPROCESSOR}, so its normalisation is unknown and cannot be folded. Add one with "
            "the image_mean and image_std that the model was trained with."
        )
    preprocessor = json.loads(path.read_text())
    scale = preprocessor.get("rescale_factor", 1 / 255)
    if not preprocessor.get("do_rescale", True) or not math.isclose(scale, 1 / 255, rel_tol=1e-3):
        raise ValueError(f"{path} scales pixels by {scale}; expected do_rescale with 1/255.")
    if not preprocessor.get("do_normalize", True):
        return (0.0,) * channels, (1.0,) * channels
    mean, std = (tuple(preprocessor.get(key, [0.5] * channels)) for key in ("image_mean", "image_std"))
    if not len(mean) == len(std) == channels:
        raise ValueError(f"{path} normalises {len(mean)} channel(s), but the model takes {channels}.")
    return mean, std
