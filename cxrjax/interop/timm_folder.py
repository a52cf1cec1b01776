"""An encoder as a folder that timm loads: model.safetensors under timm's names, config.json with pretrained_cfg.

    timm.create_model(architecture, checkpoint_path="model.safetensors", num_classes=…, **model_args)
    timm.create_model("local-dir:FOLDER", pretrained=True)

Arrays are renamed from what is written for Hugging Face; `torch_timm` reads them back.

| Hugging Face, on disk                             | timm                                                             |
|---------------------------------------------------|------------------------------------------------------------------|
| attention.attention.{query,key,value} (d, d)      | attn.qkv (3 d, d)                                                |
| embeddings.position_embeddings (1, 1+n, d)        | pos_embed, the same; with registers (1, n, d), and the position  |
|                                                   | of [CLS] is added to cls_token                                   |
| embeddings.register_tokens (1, r, d)              | reg_token                                                        |
| layer_scale1.lambda1                              | ls1.gamma                                                        |
| resnet: embedder.…, encoder.stages.<s>.layers.<i> | as torchvision: conv1, bn1, layer<s+1>.<i>.{conv,bn,downsample…} |

timm has no model of a size that we call `test` or `mini`, so width, depth and heads stand in model_args.
"""

import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from safetensors.numpy import save

from cxrjax.interop import huggingface, torch_vit
from cxrjax.sizes import Px, said, sides

EPS = 1e-6
"""Of the LayerNorms in timm's ViTs."""
SIZES = {192: "tiny", 384: "small", 768: "base", 1024: "large"}
"""Width of a ViT -> its name in timm."""
RESNETS = {
    ("basic", (2, 2, 2, 2)): "resnet18",
    ("basic", (3, 4, 6, 3)): "resnet34",
    ("bottleneck", (3, 4, 6, 3)): "resnet50",
}
_BLOCK_PARTS = {
    "norm1": ("layernorm_before", "norm1"),
    "attn.proj": ("attention.output.dense",),
    "norm2": ("layernorm_after", "norm2"),
    "mlp.fc1": ("intermediate.dense", "mlp.fc1"),
    "mlp.fc2": ("output.dense", "mlp.fc2"),
}
"""timm's name of a part of a block -> those of ViTModel and Dinov2Model."""
_RESNET_BLOCK = re.compile(r"encoder\.stages\.(\d+)\.layers\.(\d+)\.(?:layer\.(\d+)|shortcut)\.(\w+)\.(.+)")


class Head(NamedTuple):
    """kernel: d c, bias: c, names: of the c answers."""

    kernel: np.ndarray
    bias: np.ndarray
    names: Sequence[str]


def write(
    folder: Path,
    weights: Mapping[str, np.ndarray],
    config: Mapping[str, Any],
    *,
    pool: str,
    mean: float,
    std: float,
    sees: str = "image",
    head: Head | None = None,
) -> None:
    """Writes the folder.

    weights, config: of the encoder, as `torch_vit`, `torch_dinov2` or `torch_resnet` give them for Hugging Face.
    pool: of config.model, of a ViT: "cls" or "mean". mean, std: on every channel. sees: a word of `crops.fit_as`.
    Raises ValueError where timm has no such model, or no such preprocessing.
    """
    described = describe(config, pool)
    arrays = _resnet(weights) if config["model_type"] == "resnet" else _vit(weights, config)
    names = list(head.names) if head else []
    if head:
        layer = described["pretrained_cfg"]["classifier"]
        arrays[f"{layer}.weight"], arrays[f"{layer}.bias"] = np.transpose(head.kernel), head.bias
    described["num_classes"] = described["pretrained_cfg"]["num_classes"] = len(names)
    described |= {"label_names": names} if names else {}
    channels = config["num_channels"]
    described["pretrained_cfg"] |= {"mean": [mean] * channels, "std": [std] * channels}
    described["pretrained_cfg"] |= _fit(sees, config["image_size"])
    folder.mkdir(parents=True, exist_ok=True)
    (folder / huggingface.CONFIG).write_text(json.dumps(described, indent=2) + "\n")
    arrays = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    (folder / huggingface.WEIGHTS).write_bytes(save(arrays, metadata={"format": "pt"}))


def describe(config: Mapping[str, Any], pool: str) -> dict[str, Any]:
    """The content of timm's config.json for an encoder, without classes and normalisation; errors as of `write`."""
    channels, (height, width_px) = config["num_channels"], sides(config["image_size"])
    if config["model_type"] == "resnet":
        architecture = RESNETS.get((config["layer_type"], tuple(config["depths"])))
        if architecture is None or config["embedding_size"] != 64:
            raise ValueError(
                f"timm has no ResNet of {config['layer_type']} blocks {config['depths']} over a stem of "
                f"{config['embedding_size']}; there are {', '.join(RESNETS.values())}. Take --form transformers."
            )
        width, word, arguments, layers = config["hidden_sizes"][-1], "avg", {}, ("conv1", "fc")
    else:
        _check_vit(config)
        width, patch = config["hidden_size"], config["patch_size"]
        word = "token" if pool == "cls" else "avg"
        arguments = {
            "img_size": height if height == width_px else [height, width_px],
            "patch_size": patch,
            "embed_dim": width,
            "depth": config["num_hidden_layers"],
            "num_heads": config["num_attention_heads"],
            "mlp_ratio": config.get("mlp_ratio", config.get("intermediate_size", 0) / width),
            "global_pool": word,
        }
        if pool != "cls":
            arguments["fc_norm"] = False  # the mean is over tokens after the last LayerNorm
        if "layerscale_value" in config:
            arguments["init_values"] = config["layerscale_value"]
        if registers := config.get("num_register_tokens", 0):
            arguments |= {"reg_tokens": registers, "no_embed_class": True}
        architecture, layers = f"vit_{SIZES.get(width, 'base')}_patch16_224", ("patch_embed.proj", "head")
    first, classifier = layers
    return {
        "architecture": architecture,
        "num_classes": 0,
        "num_features": width,
        "global_pool": word,
        "model_args": arguments,
        "pretrained_cfg": {
            "custom_load": False,
            "input_size": [channels, height, width_px],
            "fixed_input_size": config["model_type"] != "resnet",
            "interpolation": "bilinear",
            "num_classes": 0,
            "pool_size": None,
            "first_conv": first,
            "classifier": classifier,
        },
    }


def _check_vit(config: Mapping[str, Any]) -> None:
    wrong = []
    if config["layer_norm_eps"] != EPS:
        wrong.append(f"LayerNorms with an epsilon of {config['layer_norm_eps']}, which are of {EPS} there")
    if config.get("use_swiglu_ffn"):
        wrong.append("SwiGLU, which takes another class there")
    if config["model_type"] not in (*torch_vit.MODEL_TYPES, "dinov2", "dinov2_with_registers"):
        wrong.append(f"the type {config['model_type']!r}")
    if wrong:
        raise ValueError(f"timm's ViT has no place for {'; '.join(wrong)}. Take --form transformers.")


def _vit(weights: Mapping[str, np.ndarray], config: Mapping[str, Any]) -> dict[str, np.ndarray]:
    cls, positions = weights["embeddings.cls_token"], weights["embeddings.position_embeddings"]
    found = {}
    if "embeddings.register_tokens" in weights:
        found["reg_token"] = weights["embeddings.register_tokens"]
        cls, positions = cls + positions[:, :1], positions[:, 1:]
    found |= {"cls_token": cls, "pos_embed": positions}
    for leaf in ("weight", "bias"):
        found[f"patch_embed.proj.{leaf}"] = weights[f"embeddings.patch_embeddings.projection.{leaf}"]
        found[f"norm.{leaf}"] = weights[f"layernorm.{leaf}"]
        for i in range(config["num_hidden_layers"]):
            theirs, ours = f"encoder.layer.{i}.", f"blocks.{i}."
            parts = [weights[f"{theirs}{part}.{leaf}"] for part in torch_vit.QKV]
            found[f"{ours}attn.qkv.{leaf}"] = np.concatenate(parts)
            for part, places in _BLOCK_PARTS.items():
                place = next(one for one in places if f"{theirs}{one}.{leaf}" in weights)
                found[f"{ours}{part}.{leaf}"] = weights[f"{theirs}{place}.{leaf}"]
    for name, array in weights.items():
        if match := re.fullmatch(r"encoder\.layer\.(\d+)\.layer_scale(\d)\.lambda1", name):
            found[f"blocks.{match[1]}.ls{match[2]}.gamma"] = array
    return found


def _resnet(weights: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {_torchvision_name(name): array for name, array in weights.items()}


def _torchvision_name(name: str) -> str:
    """The inverse of `torch_resnet`'s names."""
    if match := _RESNET_BLOCK.fullmatch(name):
        stage, block, number, kind, leaf = match.groups()
        place = f"layer{int(stage) + 1}.{block}"
        if number is None:
            return f"{place}.downsample.{int(kind == 'normalization')}.{leaf}"
        return f"{place}.{'conv' if kind == 'convolution' else 'bn'}{int(number) + 1}.{leaf}"
    kind, leaf = name.removeprefix("embedder.embedder.").split(".")
    return f"{'conv1' if kind == 'convolution' else 'bn1'}.{leaf}"


def _fit(sees: str, px: Px) -> dict[str, Any]:
    """How timm's transform fits pictures: it brings the short side to floor(px / crop_pct), and crops the middle."""
    if sees == "whole":
        return {"crop_pct": 1.0, "crop_mode": "squash"}
    if sees == "padded":
        raise ValueError("The encoder sees pictures padded to a square, which is not written for timm.")
    side = min(sides(px))
    short = int(sees.removeprefix("image") or side)
    if short != side and len(set(sides(px))) == 2:
        raise ValueError(
            f"The encoder sees pictures as {sees!r} at {said(px)} px, which timm's transform does not do; take --form "
            "transformers."
        )
    share = side / short
    if math.floor(side / share) < short:
        share = math.nextafter(share, 0.0)
    return {"crop_pct": share, "crop_mode": "center"}
