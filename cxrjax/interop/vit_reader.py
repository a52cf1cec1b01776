"""Reads a Vision Transformer into our tree, whatever its parts are called.

A family gives a table of names, and the keys of config.model that say what its parts compute. Channels and
normalisation are those of channels.py.

| ours (D width, R registers, L layers) | read from                                                                   |
|---------------------------------------|-----------------------------------------------------------------------------|
| patch_embed                           | a convolution D C P P; the bias is 0 where there is none                    |
| cls (D), registers (R, D)             | [CLS] and R other tokens, each with its own position added where it has one |
| pos_embed (N, D)                      | the last rows of the positions, resized as torch does                       |
| blocks/attention/qkv (L, D, 3D)       | one matrix of all three, or three; a bias is 0 where there is none          |
| blocks/mlp/fc1 (L, D, H)              | one matrix; or, of a gated MLP in two, the gate before the other            |
| all other kernels (…, in, out), norms | .weight (out, in), .bias; .weight, .bias                                    |
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from cxrjax import sizes
from cxrjax.interop.arrays import Arrays, channels_wanted, check_shapes, flatten
from cxrjax.interop.channels import fold
from cxrjax.interop.huggingface import Pretrained
from cxrjax.models import posemb, vit


class Names(NamedTuple):
    """Names of a family, those of a layer behind `layer`, in which {} is its number; "" is what a family has not.

    patch, norm, pre_norm: before .weight and .bias. cls, positions, tokens: whole; tokens are those beside [CLS].
    qkv: of one matrix, or of three. mlp: fc1 and fc2, or gate, other and fc2. scales: LayerScale's two.
    prefixes: what stands before all names in models that hold more than the encoder, one of them or none.
    beside: how the names of arrays begin that belong to other parts of a model, and are not read.
    """

    patch: str
    cls: str
    positions: str
    norm: str
    layer: str
    norms: tuple[str, str]
    qkv: tuple[str, ...]
    out: str
    mlp: tuple[str, ...]
    scales: tuple[str, ...] = ()
    tokens: str = ""
    pre_norm: str = ""
    prefixes: tuple[str, ...] = ()
    beside: tuple[str, ...] = ()


def load(
    wanted: Any, pretrained: Pretrained, model: Mapping[str, Any], names: Names, mean: float, std: float
) -> dict[str, Any]:
    """The encoder's tree, in the structure of `wanted`, from a model's arrays.

    wanted: our encoder's tree, arrays or shapes. model: the whole config.model. mean, std: ours, which are folded into
    the patch embedding. Raises ValueError where an array is absent, of another shape, or has no place.
    """
    size, patch_px = vit.VARIANTS[model["variant"]], model["patch_px"]
    shapes = flatten(wanted, shapes=True)
    arrays = Arrays(encoder_arrays(pretrained.weights, names), size.depth)
    channels = channels_wanted(shapes, {"patch_size": patch_px, "num_attention_heads": size.heads}, size.heads)
    found: dict[str, Any] = {
        "patch_embed": _patch_embed(arrays, pretrained, names, size.width, patch_px, (mean, std), channels),
        "blocks": blocks(arrays, names, size.width),
        "norm": norm(arrays, names.norm, size.width),
    }
    cls, tokens = _tokens(arrays, names, size.width)
    if names.positions:
        leading, table = _table(arrays, names, model, size.width, len(tokens), pretrained.px)
        cls, tokens = cls + leading[: len(cls)], tokens + leading[len(cls) :]
        if "pos_embed" in shapes:
            found["pos_embed"] = table
    if len(cls):
        found["cls"] = cls[0]
    if len(tokens):
        found["registers"] = tokens
    if names.pre_norm:
        found["pre_norm"] = norm(arrays, names.pre_norm, size.width)
    if "mask_token" in shapes:
        found["mask_token"] = np.zeros(size.width, np.float32)
    if "cls_pos" in shapes:
        found["cls_pos"] = np.zeros(size.width, np.float32)
    if unused := [name for name in arrays.unused() if not name.startswith(names.beside)]:
        raise ValueError(f"The model has {len(unused)} arrays that our ViT has no place for, such as {unused[:4]}.")
    rest = {name: shape for name, shape in shapes.items() if not name.startswith("pool/")}
    check_shapes(found, rest)
    return found


def ratio(hidden: int, width: int) -> float:
    """The mlp_ratio of a ViT whose MLPs have this hidden width, although it is cut to a whole number of units."""
    found = hidden / width
    return found if int(found * width) == hidden else (hidden + 0.5) / width


def encoder_arrays(weights: Mapping[str, np.ndarray], names: Names) -> dict[str, np.ndarray]:
    """The arrays without the prefix that all of the encoder's names have, where they have one."""
    prefix = next((one for one in names.prefixes if any(name.startswith(one) for name in weights)), "")
    return {name.removeprefix(prefix): array for name, array in weights.items()}


def _patch_embed(
    arrays: Arrays,
    pretrained: Pretrained,
    names: Names,
    width: int,
    patch_px: int,
    scale: tuple[float, float],
    channels: int,
) -> dict[str, np.ndarray]:
    theirs = len(pretrained.mean)
    kernel = arrays.take(f"{names.patch}.weight", width, theirs, patch_px, patch_px)
    kernel, constant = fold(kernel, pretrained.mean, pretrained.std, *scale, channels)
    bias = f"{names.patch}.bias"
    given = arrays.take(bias, width) if bias in arrays.weights else 0
    kernel = kernel.transpose(2, 3, 1, 0).reshape(-1, width)
    return {"kernel": kernel.astype(np.float32), "bias": (given + constant).astype(np.float32)}


def _tokens(arrays: Arrays, names: Names, width: int) -> tuple[np.ndarray, np.ndarray]:
    """[CLS] as 1 d or 0 d, and the other tokens r d, without their positions."""
    cls = arrays.numbers(names.cls).reshape(-1, width) if names.cls else np.zeros((0, width), np.float32)
    there = names.tokens and names.tokens in arrays.weights
    others = arrays.numbers(names.tokens).reshape(-1, width) if there else np.zeros((0, width), np.float32)
    return cls, others


def _table(
    arrays: Arrays,
    names: Names,
    model: Mapping[str, Any],
    width: int,
    registers: int,
    px: sizes.Px | None,
) -> tuple[np.ndarray, np.ndarray]:
    """The positions of [CLS] and the other tokens, 0 where they have none, and of the patches on our grid, n d.

    px: size of the pictures that the encoder was made for, which tells the grid of a table that is no square.
    """
    rows = arrays.numbers(names.positions).reshape(-1, width)
    has_cls, patch_px = bool(names.cls), model["patch_px"]
    # Either [CLS] has a position, or no token beside the patches, or all of them.
    first, theirs = next(
        ((i, grid) for i in (has_cls, 0, has_cls + registers) if (grid := _grid(len(rows) - i, px, patch_px))),
        (0, None),
    )
    if theirs is None:
        raise ValueError(
            f"{names.positions} has {len(rows)} rows, which with or without [CLS] are no square grid, nor that of "
            f"pictures of {'a size that is told' if px is None else f'{sizes.said(px)} px'}."
        )
    leading = np.zeros((has_cls + registers, width), np.float32)
    leading[:first] = rows[:first]
    ours = sizes.grid(model["image_px"], patch_px)
    options = {"offset": model.get("resize_offset", 0.0), "antialias": model.get("resize_antialias", False)}
    return leading, np.asarray(posemb.resize(jnp.asarray(rows[first:]), theirs, ours, **options))


def _grid(count: int, px: sizes.Px | None, patch_px: int) -> tuple[int, int] | None:
    """The grid of so many patches: that of pictures of px, else a square, else None."""
    height, width = sizes.sides(px) if px else (0, 0)
    if (height // patch_px) * (width // patch_px) == count:
        return height // patch_px, width // patch_px
    side = math.isqrt(count)
    return (side, side) if side**2 == count else None


def norm(arrays: Arrays, name: str, width: int) -> dict[str, np.ndarray]:
    return {"scale": arrays.take(f"{name}.weight", width), "bias": arrays.take(f"{name}.bias", width)}


def blocks(arrays: Arrays, names: Names, width: int) -> dict[str, Any]:
    """The tree of all blocks, on a leading layer axis."""
    layers = [_block(arrays, names, names.layer.format(i), width) for i in range(arrays.layers)]
    return _stacked(layers)


def _block(arrays: Arrays, names: Names, place: str, width: int) -> dict[str, Any]:
    qkv = [linear(arrays, f"{place}{name}", width) for name in names.qkv]
    *first, second = (linear(arrays, f"{place}{name}", None) for name in names.mlp)
    found = {
        "norm1": norm(arrays, f"{place}{names.norms[0]}", width),
        "attention": {"qkv": _beside(qkv), "out": linear(arrays, f"{place}{names.out}", width)},
        "norm2": norm(arrays, f"{place}{names.norms[1]}", width),
        "mlp": {"fc1": _beside(first), "fc2": second},
    }
    for i, name in enumerate(names.scales, 1):
        if f"{place}{name}" in arrays.weights:
            found[f"layer_scale{i}"] = {"scale": arrays.take(f"{place}{name}", width)}
    return found


def linear(arrays: Arrays, name: str, inputs: int | None) -> dict[str, np.ndarray]:
    """A kernel in out and its bias, 0 where there is none. inputs: as many there must be."""
    weight = arrays.numbers(f"{name}.weight")
    if weight.ndim != 2 or inputs not in (None, weight.shape[1]):
        raise ValueError(f"{name}.weight has the shape {weight.shape}; expected outputs x {inputs or 'inputs'}.")
    bias = f"{name}.bias"
    outputs = weight.shape[0]
    return {
        "kernel": weight.T,
        "bias": arrays.take(bias, outputs) if bias in arrays.weights else np.zeros(outputs, np.float32),
    }


def _beside(parts: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    return {name: np.concatenate([part[name] for part in parts], axis=-1) for name in ("kernel", "bias")}


def _stacked(trees: list[dict[str, Any]]) -> dict[str, Any]:
    """Trees of one structure as one, each leaf with a new first axis. Raises ValueError where shapes differ."""
    found = {}
    for key, value in trees[0].items():
        each = [tree[key] for tree in trees]
        if isinstance(value, Mapping):
            found[key] = _stacked(each)
        elif len({array.shape for array in each}) > 1:
            raise ValueError(f"The layers differ in {key}: shapes {[array.shape for array in each]}; ours are alike.")
        else:
            found[key] = np.stack(each)
    return found
