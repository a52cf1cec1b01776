"""Encoders under the names of timm and torchvision: timm's folders, and files of authors.

A timm folder has a config.json with "architecture" and "pretrained_cfg". A file (.safetensors, or .pth that PyTorch
reads with weights_only) has arrays alone, so its preprocessor_config.json must lie beside it. The encoder may be
anywhere in a file: what stands before its names is found, and of several networks the one that its authors judge is
taken, DINO's teacher or MoCo v3's base encoder. What else is known of files of authors stands in authors.py. What the
arrays do not tell is the number of heads: width / 64, as in all of these but those of HEADS.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from cxrjax.interop import authors, huggingface, preprocessing, torch_convnext, torch_resnet, vit_reader
from cxrjax.interop.huggingface import Pretrained
from cxrjax.interop.torch_vit import variant_of
from cxrjax.models import resnet
from cxrjax.sizes import plain, sides

VIT, RESNET = "timm_vit", "torchvision_resnet"
"""What is written as model_type of models that name none."""
FIRST = {
    VIT: "patch_embed.proj.weight",
    RESNET: "layer1.0.conv1.weight",
    torch_convnext.TIMM: "stem.0.weight",
}
"""An array that every model of a type has."""
PREFERRED = ("teacher.", "ema.", "base_encoder.", "img_encoder_q.", "student.")
"""Of several networks in a file the first whose place has such a name is read."""
HEADS = {64: 2, 1152: 16, 1280: 16}
"""Heads of a ViT by its width: ours of tests, and So400m and H of timm, MAE and OCL."""
MOCO_S_HEADS = 12
_NAMES = vit_reader.Names(
    patch="patch_embed.proj",
    cls="cls_token",
    tokens="",
    positions="pos_embed",
    norm="norm",
    pre_norm="",
    layer="blocks.{}.",
    norms=("norm1", "norm2"),
    qkv=("attn.qkv",),
    out="attn.proj",
    mlp=("mlp.fc1", "mlp.fc2"),
    scales=("ls1.gamma", "ls2.gamma"),
    beside=("head", "fc.", "decoder_", "mask_token", "predictor."),
)
_TOKENS = ("reg_token", "register_tokens", "dist_token")


def is_named(config: Mapping[str, Any]) -> bool:
    """Whether a config.json is timm's."""
    return "architecture" in config and "model_type" not in config


def read(place: Path) -> Pretrained:
    """The encoder in a file, or in a timm folder.

    Raises ValueError where it cannot be read, is of no known architecture, or says nothing of its preprocessing.
    """
    if place.is_dir():
        config = preprocessing.json_of(place / huggingface.CONFIG)
        given = huggingface.weights(place)
        scale = _of_config(config.get("pretrained_cfg", config), place / huggingface.CONFIG)
    else:
        given, config = authors.renamed(huggingface.arrays_of(place)), {}
        scale = preprocessing.read(place.parent, 3)
    kind, prefix = _found(given, place)
    arrays = {name.removeprefix(prefix): array for name, array in given.items() if name.startswith(prefix)}
    others = authors.beside(given, prefix)
    described = {"model_type": kind, "place": prefix, "others": others, "architecture": config.get("architecture", "")}
    described["known"] = authors.known(prefix, others)
    return Pretrained(arrays, described, *scale)


def options(pretrained: Pretrained) -> dict[str, Any]:
    """The keys of config.model of a ViT; raises ValueError for a size that is none of ours."""
    arrays, config = pretrained.weights, pretrained.config
    width, _, patch_px, across = arrays[FIRST[VIT]].shape
    depth = 1 + max(int(name.split(".")[1]) for name in arrays if re.match(r"blocks\.\d+\.", name))
    moco = "base_encoder" in config["place"] and width == 384
    heads = MOCO_S_HEADS if moco else HEADS.get(width, width // 64)
    size = {"hidden_size": width, "num_hidden_layers": depth, "num_attention_heads": heads}
    hidden = arrays["blocks.0.mlp.fc1.weight"].shape[0]
    gated = arrays["blocks.0.mlp.fc2.weight"].shape[1] != hidden
    if patch_px != across:
        raise ValueError(f"The model has patches of {patch_px} x {across} px; ours are squares.")
    if "norm_pre.weight" in arrays or "norm.weight" not in arrays:
        raise ValueError(
            "The model has norm_pre or no norm, as timm's CLIP towers and its models with an average pool: these are "
            "not read under timm's names. Take the folder of Hugging Face, if there is one."
        )
    found = {
        "variant": variant_of(size),
        "patch_px": patch_px,
        "positions": "learned",
        "registers": sum(arrays[name].shape[1] for name in _TOKENS if name in arrays),
        "mlp_ratio": vit_reader.ratio(3 * hidden // 4 if gated else hidden, width),
        "ffn": "swiglu" if gated else "mlp",
        "resize_offset": 0.0,
        **config["known"],
    }
    if "blocks.0.ls1.gamma" in arrays:
        found["layer_scale"] = 1.0
    return found


def image_px(pretrained: Pretrained) -> int:
    """The side of the pictures that a ViT's positions are of, or 224 of others but MGCA's ResNet."""
    arrays = pretrained.weights
    if pretrained.config["model_type"] != VIT:
        return authors.MGCA_RESNET_PX if "img_encoder_q." in pretrained.config["place"] else 224
    rows = arrays["pos_embed"].shape[1] if "pos_embed" in arrays else 0
    return int(rows**0.5) * arrays[FIRST[VIT]].shape[-1]


def load(wanted: Any, pretrained: Pretrained, model: Mapping[str, Any], mean: float, std: float) -> dict[str, Any]:
    """A ViT's tree; arguments and errors as of `vit_reader.load`."""
    tokens = next((name for name in _TOKENS if name in pretrained.weights), "")
    return vit_reader.load(wanted, pretrained, model, _NAMES._replace(tokens=tokens), mean, std)


def variant_of_resnet(pretrained: Pretrained) -> str:
    """The variant of a ResNet; raises ValueError where it is none of ours."""
    names = pretrained.weights
    one, two, three, four = (
        1 + max((int(name.split(".")[1]) for name in names if name.startswith(f"layer{i}.")), default=-1)
        for i in range(1, 5)
    )
    blocks = one, two, three, four
    size = resnet.Size(blocks, names["conv1.weight"].shape[0] if "conv1.weight" in names else 0)
    size = size._replace(bottleneck="layer1.0.conv3.weight" in names)
    found = next((name for name, ours in resnet.VARIANTS.items() if ours == size), None)
    if found is None:
        raise ValueError(
            f"The ResNet has {blocks} blocks and a stem of {size.stem}, with bottleneck={size.bottleneck}, as none of "
            f"ours: {', '.join(resnet.VARIANTS)}."
        )
    return found


def load_resnet(pretrained: Pretrained, model: Mapping[str, Any], mean: float, std: float) -> tuple[Any, Any]:
    """A ResNet's parameters and running statistics; errors as of `torch_resnet.from_torchvision`."""
    scale = {"mean": mean, "std": std, "their_mean": pretrained.mean, "their_std": pretrained.std}
    arrays = {name: array for name, array in pretrained.weights.items() if not name.startswith("predictor.")}
    return torch_resnet.from_torchvision(arrays, model["variant"], channels=model.get("channels", 1), **scale)


def _found(arrays: Mapping[str, np.ndarray], place: Path) -> tuple[str, str]:
    """The type of an encoder, and what stands before the names of its arrays."""
    places = [
        (kind, name.removesuffix(first)) for name in arrays for kind, first in FIRST.items() if name.endswith(first)
    ]
    if not places:
        raise ValueError(
            f"{place} has {len(arrays)} arrays, such as {sorted(arrays)[:3]}: no ViT or ConvNeXt under timm's names "
            f"and no ResNet under torchvision's ({', '.join(FIRST.values())})."
        )
    if len(places) == 1:
        return places[0]
    chosen = next((one for word in PREFERRED for one in places if word in one[1]), None)
    if chosen is None:
        raise ValueError(f"{place} has several encoders, at {[one for _, one in places]}; keep the one to be read.")
    return chosen


def _of_config(found: Mapping[str, Any], path: Path) -> preprocessing.Preprocessing:
    """What timm's pretrained_cfg says of the pictures."""
    if missing := sorted({"mean", "std", "input_size"} - set(found)):
        raise ValueError(f"{path} lacks {missing} of its pretrained_cfg, which say how pictures are scaled.")
    mean, std = (tuple(map(float, found[key])) for key in ("mean", "std"))
    px = plain(found["input_size"][1:])
    if found.get("crop_mode", "center") == "squash":
        return preprocessing.Preprocessing(mean, std, px, "whole")
    side, share = min(sides(px)), found.get("crop_pct", 0.875)
    short = int(side / share)
    if short != side and not isinstance(px, int):
        raise ValueError(
            f"{path} has input_size {found['input_size']} with crop_pct {share}; expected 1.0 of no square."
        )
    return preprocessing.Preprocessing(mean, std, px, "image" if short == side else f"image{short}")
