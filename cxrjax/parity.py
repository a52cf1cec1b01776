"""Whether a folder that was written gives the features of the encoder that it was written from, and by how much not."""

import importlib
import importlib.util
import json
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from cxrjax import trained
from cxrjax.config import ConfigDict
from cxrjax.interop import classifier, huggingface, torch_timm


class Parity(NamedTuple):
    """Largest difference between our features and logits and PyTorch's, and what was compared."""

    difference: float
    largest: float  # largest feature or logit, for scale
    pictures: int
    through: str = "transformers"  # what computed theirs


def can_compare() -> bool:
    """Whether torch and transformers are installed."""
    return all(importlib.util.find_spec(name) for name in ("torch", "transformers"))


def compare(model: trained.Trained, folder: str | Path) -> Parity:
    """Features of the method's `encode` against those of the loaded folder, through its own processor's scale.

    The pictures are computed: noise, two ramps, discs and black, of the size that the folder's processor gives.
    """
    config = json.loads((Path(folder) / huggingface.CONFIG).read_text())
    through, theirs = "transformers", _their_features
    if torch_timm.is_named(config):
        through, theirs = ("timm", _timm_features) if timm_works() else ("cxrjax, which read it again", _read_back)
    images = _pictures(config["image_size"] if "image_size" in config else config["pretrained_cfg"]["input_size"][-1])
    with jax.default_matmul_precision("highest"):
        ours = jax.jit(model.method.encode)(model.params, model.state, images[..., None])
        found = theirs(folder, images, model.config.model)
    differences = [np.abs(ours[name] - array).max() for name, array in found.items()]
    largest = max(np.abs(array).max() for array in found.values())
    return Parity(float(np.max(differences)), float(largest), len(images), through)


def timm_works() -> bool:
    """Whether timm can be imported; beside a torchvision that was built for another torch it cannot."""
    try:
        importlib.import_module("timm")
    except (ImportError, RuntimeError):
        return False
    return True


def _timm_features(folder: str | Path, images: np.ndarray, architecture: ConfigDict) -> dict[str, np.ndarray]:
    """As `_their_features`, of a folder for timm."""
    import torch

    timm: Any = importlib.import_module("timm")  # which no extra of ours installs
    model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    cfg = model.pretrained_cfg
    scaled = (images[:, None] / 255 - cfg["mean"][0]) / cfg["std"][0]
    with torch.inference_mode():
        out = model.forward_features(torch.from_numpy(scaled).float().repeat(1, cfg["input_size"][0], 1, 1))
        found = {"pooled": model.forward_head(out, pre_logits=True).numpy()}
        if model.num_classes:
            found["logits"] = model.forward_head(out).numpy()
    if out.ndim == 4:
        return found | {"patches": out.permute(0, 2, 3, 1).numpy()}
    patches = out[:, model.num_prefix_tokens :].numpy()
    side = int(patches.shape[1] ** 0.5)
    return found | {"patches": patches.reshape(len(images), side, side, -1)}


def _read_back(folder: str | Path, images: np.ndarray, architecture: ConfigDict) -> dict[str, np.ndarray]:
    """As `_their_features`, by our own reader, which knows no head and not which vector stands for the picture."""
    again = trained.load(folder)
    found = jax.jit(again.method.encode)(again.params, again.state, images[..., None])
    chosen = ["patches"] if architecture.get("pool", "cls") == "mean" else ["pooled", "patches"]
    return {name: np.asarray(found[name]) for name in chosen}


def _their_features(folder: str | Path, images: np.ndarray, architecture: ConfigDict) -> dict[str, np.ndarray]:
    """ "pooled" b d, "patches" b p q d and of a head "logits" b c of grey pictures b h w, as users of PyTorch have it.

    architecture: config.model, whose `pool` says which vector of a ViT stands for the picture.
    """
    import torch
    import transformers
    from PIL import Image

    processor = transformers.AutoImageProcessor.from_pretrained(folder)
    config = json.loads((Path(folder) / huggingface.CONFIG).read_text())
    with torch.inference_mode():
        # The pictures have the encoder's size: what a processor does to larger ones would change them.
        as_they_are = {"do_resize": False, "do_center_crop": False}
        inputs = processor([Image.fromarray(image) for image in images], return_tensors="pt", **as_they_are)
        found = {}
        if classifier.is_attached(config):
            whole = transformers.AutoModelForImageClassification.from_pretrained(folder).eval()
            found["logits"] = whole(**inputs).logits.numpy()
        if config["model_type"] == "resnet":
            out = transformers.ResNetModel.from_pretrained(folder).eval()(**inputs)
            maps = out.last_hidden_state.permute(0, 2, 3, 1).numpy()
            return found | {"pooled": out.pooler_output.flatten(1).numpy(), "patches": maps}
        if config["model_type"] == "vit":
            model = transformers.ViTModel.from_pretrained(folder, add_pooling_layer=False)
        else:
            model = transformers.AutoModel.from_pretrained(folder)
        tokens = model.eval()(**inputs).last_hidden_state.numpy()
    registers = config.get("num_register_tokens", 0)
    tokens = np.concatenate([tokens[:, :1], tokens[:, 1 + registers :]], axis=1)
    side = config["image_size"] // config["patch_size"]
    pooled = tokens[:, 0] if architecture.pool == "cls" else tokens[:, 1:].mean(axis=1)
    return found | {"pooled": pooled, "patches": tokens[:, 1:].reshape(len(images), side, side, -1)}


def _pictures(px: int) -> np.ndarray:
    """uint8 b h w."""
    ramp = np.linspace(0, 255, px)
    row, column = np.mgrid[:px, :px]
    discs = 128 + 60 * np.sin(row / px * 7) * np.cos(column / px * 9)
    noise = np.random.default_rng(0).integers(0, 256, (px, px))
    pictures = [noise, np.broadcast_to(ramp, (px, px)), np.broadcast_to(ramp[:, None], (px, px)), discs, 0 * noise]
    return np.stack(pictures).astype(np.uint8)
