"""Folders that Hugging Face loaders read: config.json, model.safetensors, preprocessor_config.json."""

import argparse
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from cxrjax import checkpoint
from cxrjax.interop import preprocessing
from cxrjax.sizes import sides

WEIGHTS, CONFIG, PREPROCESSOR = "model.safetensors", "config.json", preprocessing.FILE
PICKLED = "pytorch_model.bin"
PICKLES = (".pth", ".pt", ".bin", ".tar", ".ckpt")
"""Suffixes of files that PyTorch writes."""
PIL_BILINEAR = 2  # antialiased when it shrinks


class Pretrained(NamedTuple):
    """A model as it lies on disk: arrays by name, config, and per-channel mean and std of pixels in [0, 1].

    px, sees: size and fit of the pictures that it wants, see `preprocessing.Preprocessing`. whole: the model that it is
    taken from, with all its arrays, where that is one of two encoders.
    """

    weights: Mapping[str, np.ndarray]
    config: Mapping[str, Any]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    px: int | tuple[int, int] | None = None
    sees: str = "image"
    whole: "Pretrained | None" = None


def is_model(place: str | Path) -> bool:
    """Whether a place is a folder of a model with its config.json, or a file of arrays, and no run of ours."""
    if Path(place).is_file():
        return Path(place).suffix in (".safetensors", *PICKLES)
    return (Path(place) / CONFIG).is_file() and not checkpoint.steps(place)


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
    config = preprocessing.json_of(folder / CONFIG)
    if config.get("model_type") not in model_types:
        raise ValueError(
            f"{folder} holds a model of type {config.get('model_type')!r}; expected {', '.join(model_types)}."
        )
    found = preprocessing.read(folder, config.get("num_channels", 3))
    return Pretrained(weights(folder), config, *found)


def write(
    folder: str | Path,
    weights: Mapping[str, np.ndarray],
    config: Mapping[str, Any],
    mean: float | Sequence[float],
    std: float | Sequence[float],
    sees: str = "image",
) -> None:
    """Writes config.json, model.safetensors and preprocessor_config.json.

    mean, std: one for all channels, or one each. sees: how the processor fits pictures, see `crops.fit_as`; by default
    our evaluation geometry, the short side to the picture's size and then the centre. Where that is no square, pictures
    of another aspect get black edges from the processor, which `crops.fit` would enlarge. Grey is replicated. Raises
    ValueError for "padded", which no processor does.
    """
    if sees == "padded":
        raise ValueError("The encoder sees pictures padded to a square, which the processors written here do not do.")
    folder, channels = Path(folder), config["num_channels"]
    height, width = sides(config["image_size"])
    size, short = {"height": height, "width": width}, min(height, width)
    # The ViT processor stretches pictures; the other one keeps the aspect and crops.
    geometry = {
        "image_processor_type": "BitImageProcessor",
        "size": {"shortest_edge": short if sees == "whole" else int(sees.removeprefix("image") or short)},
        "do_center_crop": True,
        "crop_size": size,
    }
    if sees == "whole":
        geometry = {"image_processor_type": "ViTImageProcessor", "size": size}
    preprocessor = {
        **geometry,
        "do_convert_rgb": channels == 3,
        "do_resize": True,
        "resample": PIL_BILINEAR,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": np.broadcast_to(mean, channels).tolist(),
        "image_std": np.broadcast_to(std, channels).tolist(),
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
    return {name: array for part in _parts(folder, file) for name, array in arrays_of(folder / part).items()}


def arrays_of(file: Path) -> dict[str, np.ndarray]:
    """Arrays of a file by name, those of nested dictionaries by the names of both with a dot between.

    Raises ValueError where it is broken, holds numbers that are none, or takes PyTorch where there is none.
    """
    found = _safetensors(file) if file.suffix == ".safetensors" else _pickle(file)
    numbers = {name: array for name, array in found.items() if array.dtype.kind not in "iub"}
    wrong = [name for name, array in numbers.items() if not np.isfinite(array.astype(np.float32, copy=False)).all()]
    if wrong:
        raise ValueError(f"{file} has NaN or infinite numbers in {len(wrong)} arrays, such as {wrong[:3]}.")
    return found


def _parts(folder: Path, file: str) -> list[str]:
    """The files that the weights are in: those of the index, else the file itself; none if neither is there."""
    if (index := folder / f"{file}.index.json").is_file():
        named = sorted(set(preprocessing.json_of(index)["weight_map"].values()))
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
        # A Namespace holds the flags of a training: many released files have one, and it runs nothing.
        with torch.serialization.safe_globals([argparse.Namespace]):
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
    return {name: tensor.float().numpy() for name, tensor in _tensors(state, torch.Tensor)}


def _tensors(tree: Any, kind: type) -> Iterator[tuple[str, Any]]:
    """The tensors of floating point in nested dictionaries, by the names of all with dots between."""
    for name, value in tree.items() if isinstance(tree, Mapping) else ():
        if isinstance(value, kind):
            if value.is_floating_point():
                yield str(name), value
        else:
            yield from ((f"{name}.{inner}", tensor) for inner, tensor in _tensors(value, kind))
