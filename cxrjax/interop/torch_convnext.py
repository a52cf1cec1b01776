"""Hugging Face `ConvNextModel` and `DINOv3ConvNextModel`, and ConvNeXts under timm's names, into our ConvNeXt.

Channels and normalisation are those of channels.py. The stem looks over no edge, so that reading is exact for every
grey picture. Classifiers are left out.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from cxrjax.interop.arrays import Arrays, check_shapes, flatten
from cxrjax.interop.channels import fold
from cxrjax.interop.huggingface import Pretrained
from cxrjax.models import convnext

MODEL_TYPES = ("convnext", "dinov3_convnext")
TIMM = "timm_convnext"
"""What is written as model_type of those under timm's names."""


class Names(NamedTuple):
    """Names of a family; {s} is the number of a stage, {i} of a block. reduce: norm and convolution before a stage."""

    stem: tuple[str, str]
    reduce: tuple[str, str]
    block: str
    parts: tuple[str, str, str, str]
    gamma: str
    norm: str
    prefix: str


NAMES = {
    "convnext": Names(
        ("embeddings.layernorm", "embeddings.patch_embeddings"),
        ("encoder.stages.{s}.downsampling_layer.0", "encoder.stages.{s}.downsampling_layer.1"),
        "encoder.stages.{s}.layers.{i}.",
        ("dwconv", "layernorm", "pwconv1", "pwconv2"),
        "layer_scale_parameter",
        "layernorm",
        "convnext.",
    ),
    "dinov3_convnext": Names(
        ("stages.0.downsample_layers.1", "stages.0.downsample_layers.0"),
        ("stages.{s}.downsample_layers.0", "stages.{s}.downsample_layers.1"),
        "stages.{s}.layers.{i}.",
        ("depthwise_conv", "layer_norm", "pointwise_conv1", "pointwise_conv2"),
        "gamma",
        "layer_norm",
        "model.",
    ),
    TIMM: Names(
        ("stem.1", "stem.0"),
        ("stages.{s}.downsample.0", "stages.{s}.downsample.1"),
        "stages.{s}.blocks.{i}.",
        ("conv_dw", "norm", "mlp.fc1", "mlp.fc2"),
        "gamma",
        "head.norm",
        "",
    ),
}
_BESIDE = ("classifier.", "head.fc.")


def options(pretrained: Pretrained) -> dict[str, Any]:
    """The keys of config.model that a folder asks for; raises ValueError for sizes and activations that ours lack."""
    config, kind = pretrained.config, pretrained.config["model_type"]
    names, weights = NAMES[kind], _plain(pretrained)
    if config.get("hidden_act", "gelu") != "gelu":
        raise ValueError(f"The model uses hidden_act={config['hidden_act']!r}; our ConvNeXt computes the GELU only.")
    blocks, widths = [], []
    for s in range(4):
        start, end = names.block.format(s=s, i="#").split("#")
        name = f"{end}{names.parts[0]}.weight"
        found = [one for one in weights if one.startswith(start) and one.endswith(name)]
        blocks.append(len(found))
        widths.append(weights[found[0]].shape[0] if found else 0)
    size = convnext.Size(tuple(blocks), tuple(widths))
    variant = next((name for name, ours in convnext.VARIANTS.items() if ours == size), None)
    if variant is None:
        known = "; ".join(f"{name}: {ours.blocks}, {ours.widths}" for name, ours in convnext.VARIANTS.items())
        raise ValueError(f"The ConvNeXt has blocks and widths {size.blocks}, {size.widths}, as none of ours ({known}).")
    scaled = f"{names.block.format(s=0, i=0)}{names.gamma}" in weights
    eps = config.get("layer_norm_eps", 1e-12 if kind == "convnext" else 1e-6)
    return {
        "variant": variant,
        "eps": eps,
        "inner_eps": eps if kind == "dinov3_convnext" else convnext.LAYER_NORM_EPS,
        "layer_scale": config.get("layer_scale_init_value", 1e-6) if scaled else None,
        "patch_norm": kind == "dinov3_convnext",
    }


def load(wanted: Any, pretrained: Pretrained, model: Mapping[str, Any], mean: float, std: float) -> dict[str, Any]:
    """The encoder's tree, in the structure of `wanted`.

    mean, std: ours, which are folded into the stem. Raises ValueError where an array is absent, of another shape, or
    has no place.
    """
    names, size = NAMES[pretrained.config["model_type"]], convnext.VARIANTS[model["variant"]]
    arrays = Arrays(_plain(pretrained), 0)
    found: dict[str, Any] = {"norm": _norm(arrays, names.norm, size.widths[-1])}
    before = len(pretrained.mean)
    for s, (blocks, width) in enumerate(zip(*size, strict=True)):
        norm, convolution = (name.format(s=s) for name in (names.reduce if s else names.stem))
        side = 2 if s else convnext.STEM_PX
        kernel = arrays.take(f"{convolution}.weight", width, before, side, side)
        bias = arrays.take(f"{convolution}.bias", width)
        if s == 0:
            scales = pretrained.mean, pretrained.std, mean, std
            kernel, constant = fold(kernel, *scales, model.get("channels", 1))
            bias = (bias + constant).astype(np.float32)
        kernel = kernel.transpose(2, 3, 1, 0).reshape(-1, width).astype(np.float32)
        found[f"reduce{s}"] = {"kernel": kernel, "bias": bias}
        found[f"reduce{s}_norm"] = _norm(arrays, norm, before if s else width)
        for i in range(blocks):
            found[f"stage{s}_{i}"] = _block(arrays, names, names.block.format(s=s, i=i), width)
        before = width
    check_shapes(found, flatten(wanted, shapes=True))
    if unused := [name for name in arrays.unused() if not name.startswith(_BESIDE)]:
        raise ValueError(f"The model has {len(unused)} arrays that a ConvNeXt has no place for, such as {unused[:4]}.")
    return found


def _plain(pretrained: Pretrained) -> dict[str, np.ndarray]:
    prefix = NAMES[pretrained.config["model_type"]].prefix
    return {name.removeprefix(prefix): array for name, array in pretrained.weights.items()}


def _block(arrays: Arrays, names: Names, place: str, width: int) -> dict[str, Any]:
    depthwise, norm, one, two = (f"{place}{part}" for part in names.parts)
    found: dict[str, Any] = {
        "depthwise": arrays.take(f"{depthwise}.weight", width, 1, 7, 7).transpose(2, 3, 1, 0),
        "bias": arrays.take(f"{depthwise}.bias", width),
        "norm": _norm(arrays, norm, width),
        "fc1": _linear(arrays, one, width, 4 * width),
        "fc2": _linear(arrays, two, 4 * width, width),
    }
    if f"{place}{names.gamma}" in arrays.weights:
        found["layer_scale"] = {"scale": arrays.take(f"{place}{names.gamma}", width)}
    return found


def _norm(arrays: Arrays, name: str, width: int) -> dict[str, np.ndarray]:
    return {"scale": arrays.take(f"{name}.weight", width), "bias": arrays.take(f"{name}.bias", width)}


def _linear(arrays: Arrays, name: str, inputs: int, outputs: int) -> dict[str, np.ndarray]:
    return {"kernel": arrays.take(f"{name}.weight", outputs, inputs).T, "bias": arrays.take(f"{name}.bias", outputs)}
