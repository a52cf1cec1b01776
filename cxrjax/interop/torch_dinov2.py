"""Our ViT to and from the folders of Hugging Face `Dinov2Model` and `Dinov2WithRegistersModel`: RAD-DINO, DINOv2.

| ours (D width, R registers, L layers)   | Hugging Face, names on disk                                                |
|-----------------------------------------|----------------------------------------------------------------------------|
| patch_embed, pos_embed, norm, attention | as in torch_vit.py                                                         |
| cls (D), cls_pos (D)                    | embeddings.cls_token, row 0 of embeddings.position_embeddings              |
| mask_token (D), registers (R, D)        | embeddings.mask_token (1, D), embeddings.register_tokens (1, R, D)         |
| blocks/layer_scale1/scale (L, D)        | encoder.layer.<i>.layer_scale1.lambda1 (D); the second likewise            |
| blocks/mlp/fc1, fc2                     | mlp.fc1, mlp.fc2; with SwiGLU mlp.weights_in, mlp.weights_out              |

Channels and normalisation are those of channels.py.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from cxrjax import sizes
from cxrjax.interop.arrays import Arrays, channels_of, channels_wanted, check_shapes, flatten
from cxrjax.interop.channels import fold, spread
from cxrjax.interop.huggingface import Pretrained, read
from cxrjax.interop.torch_vit import QKV
from cxrjax.models import posemb

MODEL_TYPES = ("dinov2", "dinov2_with_registers")
FFN = {"mlp": ("mlp.fc1", "mlp.fc2"), "swiglu": ("mlp.weights_in", "mlp.weights_out")}


def options(config: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of `vit.ViT` that a folder's config.json asks for, beside variant, patch and picture size."""
    with_registers = config["model_type"] == MODEL_TYPES[1]
    return {
        "positions": "learned",
        "cls_position": True,
        "mask_token": True,
        "layer_scale": config["layerscale_value"],
        "registers": config["num_register_tokens"] if with_registers else 0,
        "ffn": "swiglu" if config["use_swiglu_ffn"] else "mlp",
        "mlp_ratio": float(config["mlp_ratio"]),
        "eps": config["layer_norm_eps"],
        "resize_antialias": with_registers,
    }


def from_huggingface(
    source: str | Path | Pretrained, *, image_px: sizes.Px, mean: float, std: float, channels: int = 1
) -> dict[str, Any]:
    """Reads a DINOv2, with or without registers, into the tree of a ViT with the fields that `options` gives.

    Args:
      source: folder with config.json, model.safetensors and preprocessor_config.json, or what `read` returned.
      image_px: size of the pictures that our encoder will see; positions are resized to its grid as theirs are.
      mean, std: our normalisation of x = pixel / 255; folded into the patch embedding.
      channels: 1 sums the kernels of three channels, for grey pictures; 3 keeps them.

    Raises:
      ValueError: the file is no DINOv2, or its arrays do not fit its config.
    """
    pretrained = source if isinstance(source, Pretrained) else read(source, MODEL_TYPES)
    config, wanted = pretrained.config, options(pretrained.config)
    if config.get("hidden_act", "gelu") != "gelu":
        raise ValueError(f"The model uses hidden_act={config['hidden_act']!r}; our ViT computes the exact GELU only.")
    patch_px, width = config["patch_size"], config["hidden_size"]
    weights = {name.removeprefix("dinov2."): array for name, array in pretrained.weights.items()}
    arrays = Arrays(
        {k.removeprefix("dinov2_with_registers."): v for k, v in weights.items()}, config["num_hidden_layers"]
    )
    projection = "embeddings.patch_embeddings.projection."
    kernel = arrays.take(f"{projection}weight", width, config.get("num_channels", 3), patch_px, patch_px)
    kernel, constant = fold(kernel, pretrained.mean, pretrained.std, mean, std, channels)
    grid, new_grid = sizes.grid(config["image_size"], patch_px), sizes.grid(image_px, patch_px)
    positions = arrays.take("embeddings.position_embeddings", 1, 1 + grid[0] * grid[1], width)[0]
    table = posemb.resize(positions[1:], grid, new_grid, antialias=wanted["resize_antialias"])
    params = {
        "patch_embed": {
            "kernel": kernel.transpose(2, 3, 1, 0).reshape(-1, width).astype(np.float32),
            "bias": (arrays.take(f"{projection}bias", width) + constant).astype(np.float32),
        },
        "cls": arrays.take("embeddings.cls_token", 1, 1, width).reshape(width),
        "cls_pos": positions[0],
        "mask_token": arrays.take("embeddings.mask_token", 1, width)[0],
        "pos_embed": np.asarray(table),
        "blocks": _blocks(arrays, config, wanted["ffn"]),
        "norm": {"scale": arrays.take("layernorm.weight", width), "bias": arrays.take("layernorm.bias", width)},
    }
    if wanted["registers"]:
        params["registers"] = arrays.take("embeddings.register_tokens", 1, wanted["registers"], width)[0]
    if unused := arrays.unused():
        raise ValueError(f"The model has {len(unused)} arrays that our ViT has no place for, such as {unused[:4]}.")
    return params


def _blocks(arrays: Arrays, config: Mapping[str, Any], ffn: str) -> dict[str, Any]:
    width = config["hidden_size"]
    qkv = [arrays.linear(part, width, width) for part in QKV]
    one, two = FFN[ffn]
    hidden = arrays.width_of(f"encoder.layer.0.{one}.weight")
    halves = 2 if ffn == "swiglu" else 1
    scales = {f"layer_scale{i}": {"scale": arrays.stack(f"layer_scale{i}", "lambda1", width)} for i in (1, 2)}
    return {
        "norm1": arrays.norm("norm1", width),
        "attention": {
            "qkv": {name: np.concatenate([part[name] for part in qkv], -1) for name in ("kernel", "bias")},
            "out": arrays.linear("attention.output.dense", width, width),
        },
        "norm2": arrays.norm("norm2", width),
        "mlp": {"fc1": arrays.linear(one, width, hidden), "fc2": arrays.linear(two, hidden // halves, width)},
        **scales,
    }


def load_into(
    params: Mapping[str, Any], pretrained: Pretrained, *, heads: int, image_px: sizes.Px, mean: float, std: float
) -> dict[str, Any]:
    """Returns a tree of the structure of `params` filled from a folder, to start training from it.

    params: our encoder's tree, arrays or shapes. Where it has no position of [CLS], theirs is added to `cls`; where it
    has no mask token, theirs is left out. Raises ValueError where the encoders differ, naming every leaf that does.
    """
    wanted = flatten(params, shapes=True)
    channels = channels_wanted(wanted, pretrained.config, heads)
    found = from_huggingface(pretrained, image_px=image_px, mean=mean, std=std, channels=channels)
    if "cls_pos" not in wanted:
        found["cls"] = found["cls"] + found.pop("cls_pos")
    if "mask_token" not in wanted:
        del found["mask_token"]
    check_shapes(found, wanted)
    return found


def to_huggingface(
    params: Mapping[str, Any],
    *,
    heads: int,
    patch_px: int,
    image_px: sizes.Px,
    channels: int = 3,
    model: Mapping[str, Any],
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Writes an encoder with LayerScale and learned positions in the names and layouts of `Dinov2Model`.

    Args:
      params: the encoder's tree (see the module's table); what of [CLS]'s position and the mask token it does not have
        is written as zeros.
      channels: of the exported model; one-channel kernels are spread over three.
      model: `mlp_ratio`, `eps` and `resize_antialias` of the encoder, where they are not the defaults.

    Returns:
      Arrays by on-disk name, and the content of `config.json`.

    Raises:
      ValueError: the encoder has no LayerScale or no learned positions, which these models have.
    """
    flat = flatten(params)
    if missing := sorted({"blocks/layer_scale1/scale", "pos_embed"} - set(flat)):
        raise ValueError(f"This is no DINOv2: {missing} missing; set model.layer_scale and model.positions='learned'.")
    layers, width, _ = flat["blocks/attention/qkv/kernel"].shape
    own, grid = channels_of(flat["patch_embed/kernel"], patch_px), sizes.grid(image_px, patch_px)
    kernel = flat["patch_embed/kernel"].reshape(patch_px, patch_px, own, width).transpose(3, 2, 0, 1)
    zeros, swiglu = (
        np.zeros(width, np.float32),
        flat["blocks/mlp/fc1/kernel"].shape[2] != flat["blocks/mlp/fc2/kernel"].shape[1],
    )
    weights = {
        "embeddings.cls_token": flat["cls"].reshape(1, 1, width),
        "embeddings.mask_token": flat.get("mask_token", zeros)[None],
        "embeddings.position_embeddings": np.concatenate([flat.get("cls_pos", zeros)[None], flat["pos_embed"]])[None],
        "embeddings.patch_embeddings.projection.weight": spread(kernel) if channels > own else kernel,
        "embeddings.patch_embeddings.projection.bias": flat["patch_embed/bias"],
        "layernorm.weight": flat["norm/scale"],
        "layernorm.bias": flat["norm/bias"],
    }
    if "registers" in flat:
        weights["embeddings.register_tokens"] = flat["registers"][None]
    one, two = FFN["swiglu" if swiglu else "mlp"]
    linears = {"attention/out": "attention.output.dense", "mlp/fc1": one, "mlp/fc2": two}
    for i in range(layers):
        layer = f"encoder.layer.{i}."
        for part, start in zip(QKV, range(0, 3 * width, width), strict=True):
            columns = slice(start, start + width)
            weights[f"{layer}{part}.weight"] = flat["blocks/attention/qkv/kernel"][i][:, columns].T
            weights[f"{layer}{part}.bias"] = flat["blocks/attention/qkv/bias"][i][columns]
        for ours, theirs in linears.items():
            weights[f"{layer}{theirs}.weight"] = flat[f"blocks/{ours}/kernel"][i].T
            weights[f"{layer}{theirs}.bias"] = flat[f"blocks/{ours}/bias"][i]
        for number in (1, 2):
            weights[f"{layer}norm{number}.weight"] = flat[f"blocks/norm{number}/scale"][i]
            weights[f"{layer}norm{number}.bias"] = flat[f"blocks/norm{number}/bias"][i]
            weights[f"{layer}layer_scale{number}.lambda1"] = flat[f"blocks/layer_scale{number}/scale"][i]
    registers = "registers" in flat
    config = {
        "architectures": ["Dinov2WithRegistersModel" if registers else "Dinov2Model"],
        "model_type": MODEL_TYPES[registers],
        "image_size": sizes.plain((grid[0] * patch_px, grid[1] * patch_px)),
        "patch_size": patch_px,
        "num_channels": channels,
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "mlp_ratio": int(model.get("mlp_ratio", 4)),
        "use_swiglu_ffn": swiglu,
        "hidden_act": "gelu",
        "layerscale_value": 1.0,
        "layer_norm_eps": model.get("eps", 1e-6),
        "qkv_bias": True,
        "torch_dtype": "float32",
    }
    if registers:
        config["num_register_tokens"] = len(flat["registers"])
    return {name: np.ascontiguousarray(array, np.float32) for name, array in weights.items()}, config
