"""Our ViT to and from the folders of Hugging Face `ViTModel`.

Layouts (D width, P patch, C channels, L layers)

| ours                                   | Hugging Face, names on disk                                          |
|----------------------------------------|----------------------------------------------------------------------|
| patch_embed/kernel (P*P*C, D)          | embeddings.patch_embeddings.projection.weight (D, C, P, P)            |
| cls (D), pos_embed (N, D)              | embeddings.cls_token (1, 1, D), embeddings.position_embeddings        |
| blocks/attention/qkv/kernel (L, D, 3D) | encoder.layer.<i>.attention.attention.{query,key,value}.weight (D, D) |
| other kernels (L, in, out)             | .weight (out, in)                                                     |
| norm scale, bias                       | .weight, .bias                                                        |

transformers 5 renames these in memory but reads and writes the names above. Our [CLS] has no position: theirs is added
to `cls` when read, and row 0 is zero in what is written and read.

Channels and normalisation are those of channels.py; its constant goes into the bias of the patch embedding, so reading
is exact for every grey picture.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from cxrjax import sizes
from cxrjax.interop.arrays import Arrays, channels_of, channels_wanted, check_shapes, flatten
from cxrjax.interop.channels import fold, spread
from cxrjax.interop.huggingface import Pretrained, read
from cxrjax.models import posemb, vit

MODEL_TYPES = ("vit", "vit_mae")
SIZES = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12}
"""The keys of a config.json for width, depth and heads, with what transformers takes where they are left out."""
POSITIONS_DIFFER = 1e-5
"""The least difference of a table of positions from a fixed one that is more than rounding."""
# Parts of our blocks whose parameters map one to one; the fused qkv is split by hand.
BLOCK_PARTS = {
    "norm1": "layernorm_before",
    "attention/out": "attention.output.dense",
    "norm2": "layernorm_after",
    "mlp/fc1": "intermediate.dense",
    "mlp/fc2": "output.dense",
}
QKV = ("attention.attention.query", "attention.attention.key", "attention.attention.value")


def to_huggingface(
    params: Mapping[str, Any],
    *,
    heads: int,
    patch_px: int,
    image_px: sizes.Px,
    position_table: Any = None,
    channels: int = 3,
    eps: float = 1e-6,
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Writes our encoder in the names and layouts of `ViTModel`.

    Args:
      params: the encoder's tree (see the module's table).
      position_table: fixed positions of the patches, n d; only if `params` has no `pos_embed`. CLS gets a zero row.
      channels: of the exported model. One-channel kernels are spread over three channels (module docstring); the
        processor then uses our mean and std on each channel.
      eps: of every LayerNorm.

    Returns:
      Arrays by on-disk name, and the content of `config.json`.

    Raises:
      ValueError: the tree, the patch, the picture size and the heads do not fit together.
    """
    flat = flatten(params)
    _check_tree(flat)
    if extra := sorted({"registers", "cls_pos", "blocks/layer_scale1/scale"} & set(flat)):
        raise ValueError(
            f"Hugging Face's ViTModel has no place for {extra}; a DINOv2 has, which also wants model.layer_scale."
        )
    layers, width, _ = flat["blocks/attention/qkv/kernel"].shape
    own_channels = channels_of(flat["patch_embed/kernel"], patch_px)
    _check_heads(width, heads)
    grid = sizes.grid(image_px, patch_px)
    _check_channels(own_channels, channels)
    kernel = flat["patch_embed/kernel"].reshape(patch_px, patch_px, own_channels, width).transpose(3, 2, 0, 1)
    weights = {
        "embeddings.cls_token": flat["cls"].reshape(1, 1, width),
        "embeddings.position_embeddings": _positions_of(flat, position_table, grid)[None],
        "embeddings.patch_embeddings.projection.weight": spread(kernel) if channels > own_channels else kernel,
        "embeddings.patch_embeddings.projection.bias": flat["patch_embed/bias"],
        "layernorm.weight": flat["norm/scale"],
        "layernorm.bias": flat["norm/bias"],
    }
    for i in range(layers):
        weights |= {f"encoder.layer.{i}.{name}": array for name, array in _layer(flat, i).items()}
    config = {
        "architectures": ["ViTModel"],
        "model_type": "vit",
        "image_size": sizes.plain(image_px),
        "patch_size": patch_px,
        "num_channels": channels,
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "intermediate_size": flat["blocks/mlp/fc1/kernel"].shape[-1],
        "hidden_act": "gelu",
        "layer_norm_eps": eps,
        "qkv_bias": True,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "torch_dtype": "float32",
    }
    # safetensors writes the buffer as it lies in memory, so a transposed view must be copied first.
    return {name: np.ascontiguousarray(array, np.float32) for name, array in weights.items()}, config


def _layer(flat: Mapping[str, np.ndarray], i: int) -> dict[str, np.ndarray]:
    """The arrays of block number i by the names below encoder.layer.<i>."""
    weights = {}
    qkv_kernel = np.split(flat["blocks/attention/qkv/kernel"][i], 3, axis=-1)
    qkv_bias = np.split(flat["blocks/attention/qkv/bias"][i], 3, axis=-1)
    for part, kernel, bias in zip(QKV, qkv_kernel, qkv_bias, strict=True):
        weights[f"{part}.weight"] = kernel.T
        weights[f"{part}.bias"] = bias
    for ours, theirs in BLOCK_PARTS.items():
        if f"blocks/{ours}/kernel" in flat:
            weights[f"{theirs}.weight"] = flat[f"blocks/{ours}/kernel"][i].T
        else:
            weights[f"{theirs}.weight"] = flat[f"blocks/{ours}/scale"][i]
        weights[f"{theirs}.bias"] = flat[f"blocks/{ours}/bias"][i]
    return weights


def from_huggingface(
    source: str | Path | Pretrained,
    *,
    image_px: sizes.Px,
    mean: float,
    std: float,
    channels: int = 1,
) -> dict[str, Any]:
    """Reads a Hugging Face `ViTModel` (or the encoder of a ViT classifier or ViT-MAE) into our tree.

    Args:
      source: folder with config.json, model.safetensors and preprocessor_config.json, or what `read` returned.
      image_px: size of the pictures that our encoder will see; positions are resized bicubically to its grid, as
        `interpolate_pos_encoding=True` does.
      mean, std: our normalisation of x = pixel / 255; folded into the patch embedding (module docstring).
      channels: 1 sums the kernels of three channels, for grey pictures; 3 keeps them.

    Returns:
      The encoder's tree of float32 arrays, with `pos_embed` (n d). LayerNorm's epsilon is not a parameter: build
      the encoder with the file's `layer_norm_eps` where features must agree to the last digit.

    Raises:
      ValueError: the file is no plain ViT, or its arrays do not fit its config.
    """
    pretrained = source if isinstance(source, Pretrained) else read(source, MODEL_TYPES)
    config = pretrained.config
    if config.get("hidden_act", "gelu") != "gelu":
        raise ValueError(f"The model uses hidden_act={config['hidden_act']!r}; our ViT computes the exact GELU only.")
    patch_px, width = config["patch_size"], config["hidden_size"]
    arrays = Arrays(_strip(pretrained.weights), config["num_hidden_layers"])
    projection = "embeddings.patch_embeddings.projection."
    kernel = arrays.take(f"{projection}weight", width, config.get("num_channels", 3), patch_px, patch_px)
    kernel, constant = fold(kernel, pretrained.mean, pretrained.std, mean, std, channels)
    kernel = kernel.transpose(2, 3, 1, 0).reshape(-1, width).astype(np.float32)
    bias = (arrays.take(f"{projection}bias", width) + constant).astype(np.float32)
    grid, new_grid = sizes.grid(config["image_size"], patch_px), sizes.grid(image_px, patch_px)
    positions = arrays.take("embeddings.position_embeddings", 1, 1 + grid[0] * grid[1], width)[0]
    cls = arrays.take("embeddings.cls_token", 1, 1, width).reshape(width) + positions[0]
    positions = posemb.resize(positions[1:], grid, new_grid)
    params = {
        "patch_embed": {"kernel": kernel, "bias": bias},
        "cls": cls,
        "pos_embed": np.asarray(positions),
        "blocks": _blocks(arrays, config),
        "norm": {"scale": arrays.take("layernorm.weight", width), "bias": arrays.take("layernorm.bias", width)},
    }
    unused = arrays.unused()
    if unused:
        raise ValueError(f"The model has {len(unused)} arrays that our ViT has no place for, such as {unused[:4]}.")
    return params


def size_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """variant, image_px and patch_px of a Hugging Face config.json.

    Raises ValueError where its width, depth and heads are of no variant of ours, listing them.
    """
    px, patch_px = config.get("image_size", 224), config.get("patch_size", 16)
    return {"variant": variant_of(config), "image_px": px, "patch_px": patch_px}


def variant_of(config: Mapping[str, Any]) -> str:
    """The variant of a Hugging Face config.json; raises ValueError as `size_of` does."""
    size = vit.Size(*(config.get(key, default) for key, default in SIZES.items()))
    variant = next((name for name, ours in vit.VARIANTS.items() if ours == size), None)
    if variant is None:
        known = "; ".join(f"{name}: {ours.width}, {ours.depth}, {ours.heads}" for name, ours in vit.VARIANTS.items())
        raise ValueError(
            f"The ViT has width {size.width}, {size.depth} layers and {size.heads} heads, as none of ours ({known}); "
            "take another."
        )
    return variant


def positions_of(pretrained: Pretrained) -> str:
    """The word of `posemb.KINDS` for a model's positions: a fixed table that they equal, or else "learned"."""
    size = size_of(pretrained.config)
    grid, width = sizes.grid(size["image_px"], size["patch_px"]), vit.VARIANTS[size["variant"]].width
    arrays = Arrays(_strip(pretrained.weights), 0)
    table = arrays.take("embeddings.position_embeddings", 1, 1 + grid[0] * grid[1], width)[0, 1:]
    fixed = (kind for kind in posemb.KINDS if kind != "learned")
    return next((kind for kind in fixed if _is_fixed(table, posemb.fixed(kind, grid, width))), "learned")


def _is_fixed(table: np.ndarray, fixed: np.ndarray | None) -> bool:
    return fixed is not None and bool(np.abs(table - fixed).max() <= POSITIONS_DIFFER)


def _blocks(arrays: Arrays, config: Mapping[str, Any]) -> dict[str, Any]:
    """The tree of the blocks, stacked over the layers; the three projections of attention become one."""
    width, mlp_width = config["hidden_size"], config["intermediate_size"]
    qkv_kernel = [arrays.stack(part, "weight", width, width).swapaxes(1, 2) for part in QKV]
    if config.get("qkv_bias", True):
        qkv_bias = [arrays.stack(part, "bias", width) for part in QKV]
    else:
        qkv_bias = [np.zeros((arrays.layers, width), np.float32)] * 3
    return {
        "norm1": arrays.norm("layernorm_before", width),
        "attention": {
            "qkv": {"kernel": np.concatenate(qkv_kernel, -1), "bias": np.concatenate(qkv_bias, -1)},
            "out": arrays.linear("attention.output.dense", width, width),
        },
        "norm2": arrays.norm("layernorm_after", width),
        "mlp": {
            "fc1": arrays.linear("intermediate.dense", width, mlp_width),
            "fc2": arrays.linear("output.dense", mlp_width, width),
        },
    }


def load_into(
    params: Mapping[str, Any],
    folder: str | Path | Pretrained,
    *,
    heads: int,
    image_px: sizes.Px,
    mean: float,
    std: float,
    position_table: Any = None,
) -> dict[str, Any]:
    """Returns a tree of the structure of `params` filled from a Hugging Face folder, to start training from it.

    Args:
      params: our encoder's tree, arrays or shapes; says patch, channels, width, depth and kind of positions.
      heads: of our encoder; shapes do not show them, and another number would compute other features.
      position_table: our fixed positions, when `params` has no `pos_embed`. Then the folder's positions must be that
        same table.

    Raises:
      ValueError: the two encoders differ; every leaf that does is named.
    """
    pretrained = folder if isinstance(folder, Pretrained) else read(folder, MODEL_TYPES)
    wanted = flatten(params, shapes=True)
    channels = channels_wanted(wanted, pretrained.config, heads)
    found = from_huggingface(pretrained, image_px=image_px, mean=mean, std=std, channels=channels)
    if "pos_embed" not in wanted:
        found = _without_positions(found, position_table)
    check_shapes(found, wanted)
    return found


def _positions_of(flat: Mapping[str, np.ndarray], position_table: Any, grid: tuple[int, int]) -> np.ndarray:
    """The table 1+n d to export: the learned or the fixed positions of the patches below a zero row for CLS."""
    if ("pos_embed" in flat) == (position_table is not None):
        raise ValueError(
            "Positions come from params['pos_embed'] when they are learned and from position_table when they are "
            f"fixed; here {'both' if 'pos_embed' in flat else 'neither'} is given."
        )
    patches = flat["pos_embed"] if position_table is None else np.asarray(position_table, np.float32)
    if len(patches) != grid[0] * grid[1]:
        raise ValueError(f"{len(patches)} positions do not fit a grid of {grid[0]} x {grid[1]} patches.")
    return np.concatenate([np.zeros_like(patches[:1]), patches])


def _without_positions(found: dict[str, Any], position_table: Any) -> dict[str, Any]:
    """Takes `pos_embed` out of a tree for an encoder whose fixed table (n d) says the same."""
    if position_table is None:
        raise ValueError("Our encoder has fixed positions; give its table (n d) as position_table.")
    positions = found.pop("pos_embed")
    if np.shape(position_table) != positions.shape:
        raise ValueError(f"position_table has the shape {np.shape(position_table)}; expected {positions.shape}.")
    difference = np.abs(np.asarray(position_table) - positions).max()
    if difference > POSITIONS_DIFFER:
        raise ValueError(
            f"The pre-trained model's positions differ from our fixed table (by up to {difference:.3g}). "
            "Set positions='learned' in the config, so that they are loaded too."
        )
    return found


def _strip(weights: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Takes the `vit.` prefix of classifiers and ViT-MAE away."""
    return {name.removeprefix("vit."): array for name, array in weights.items()}


def _check_tree(flat: Mapping[str, np.ndarray]) -> None:
    missing = sorted({"patch_embed/kernel", "cls", "norm/scale", "blocks/attention/qkv/kernel"} - set(flat))
    if missing:
        raise ValueError(
            f"This is not the tree of a ViT encoder: {missing} missing; it has {sorted(flat)[:8]}. "
            "Give the encoder's own subtree, for example params['encoder']."
        )


def _check_channels(own: int, channels: int) -> None:
    if channels not in (own, 3) or own not in (1, channels):
        raise ValueError(
            f"An encoder of {own} channel(s) cannot be written with channels={channels}: "
            f"one-channel encoders export with 1 or 3, others with their own number."
        )


def _check_heads(width: int, heads: int) -> None:
    if heads < 1 or width % heads:
        raise ValueError(f"heads={heads} does not divide the encoder's width {width}.")
