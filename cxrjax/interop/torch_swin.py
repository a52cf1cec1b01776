"""Our Swin to and from the folders and state dicts of Hugging Face `SwinModel`.

Layouts (D width of a stage, P patch, C channels, L blocks of a stage, A heads, W window)

| ours                                   | Hugging Face, names on disk                                |
|----------------------------------------|------------------------------------------------------------|
| patch_embed/kernel (P*P*C, D)          | embeddings.patch_embeddings.projection.weight (D, C, P, P) |
| patch_norm, norm                       | embeddings.norm, layernorm                                 |
| stage<s>/blocks/… (L, …), of these:    | encoder.layers.<s>.blocks.<i>.…                            |
| norm1, norm2                           | layernorm_before, layernorm_after                          |
| attention/qkv/kernel (D, 3D)           | attention.self.{query,key,value}.weight (D, D)             |
| attention/position_bias ((2W-1)**2, A) | attention.self.relative_position_bias_table                |
| attention/out, mlp/fc1, mlp/fc2        | attention.output.dense, intermediate.dense, output.dense   |
| stage<s>/merge (4D, 2D), merge_norm    | encoder.layers.<s>.downsample.reduction.weight, .norm      |

transformers 5 renames these in memory but reads and writes the names above. Classifiers, masked-image heads and the
position index, which follows from the window, are left out.

Channels and normalisation are those of channels.py; its constant goes into the bias of the patch embedding, so reading
is exact for grey pictures whose sides are multiples of the patch.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from cxrjax.interop.channels import fold, spread
from cxrjax.interop.huggingface import Pretrained, read
from cxrjax.models import swin
from cxrjax.sizes import Px, plain

MODEL_TYPES = ("swin",)
PROJECTION = "embeddings.patch_embeddings.projection"
MODULES = {
    "patch_embed": PROJECTION,
    "patch_norm": "embeddings.norm",
    "norm": "layernorm",
    "merge_norm": "downsample.norm",
    "norm1": "layernorm_before",
    "norm2": "layernorm_after",
    "out": "attention.output.dense",
    "fc1": "intermediate.dense",
    "fc2": "output.dense",
}
LEAVES = {"kernel": "weight", "scale": "weight", "bias": "bias"}
# What a checkpoint may carry beside the encoder; the index of older files is a buffer.
IGNORED = ("classifier.", "decoder.", "embeddings.mask_token")
INDEX = "relative_position_index"


def to_huggingface(
    params: Mapping[str, Any], *, variant: str, image_px: Px, channels: int = 3
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Our encoder in the names of `SwinModel`: arrays by on-disk name, and the content of `config.json`.

    variant: key of swin.VARIANTS. image_px: for the processor; a Swin takes any. channels: of the exported model; a
    one-channel kernel is spread over three, for pictures under our mean and deviation.
    Raises ValueError where the parameters are not those of the variant, or for other channels.
    """
    size = swin.Swin(variant).size
    kernel = params.get("patch_embed", {}).get("kernel", np.zeros((0, 0)))
    own = len(kernel) // size.patch_px**2
    given, wanted = (
        {
            jax.tree_util.keystr(path, simple=True, separator="/"): leaf.shape
            for path, leaf in jax.tree.leaves_with_path(tree)
        }
        for tree in (params, _shapes(variant, max(own, 1)))
    )
    differences = [
        f"{name}: {given.get(name, 'absent')}, {variant} has {wanted.get(name, 'none')}"
        for name in sorted(given | wanted)
        if given.get(name) != wanted.get(name)
    ]
    if differences:
        raise ValueError(
            f"The encoder is no Swin {variant}: {'; '.join(differences[:4])}. Give the encoder's own subtree, for "
            "example params['encoder'], and the variant it was made as."
        )
    if channels not in (own, 3) or own not in (1, channels):
        raise ValueError(
            f"An encoder of {own} channel(s) cannot be written with channels={channels}: one-channel encoders export "
            "with 1 or 3, others with their own number."
        )
    weights = {}
    for path, leaf in jax.tree.leaves_with_path(params):
        keys, array = [key.key for key in path], np.asarray(leaf, np.float32)
        for names, layer in zip(_names(keys, len(array)), array if "blocks" in keys else [array], strict=True):
            for name, part in zip(names, np.split(layer, len(names), axis=-1), strict=True):
                weights[name] = part.T if keys[-1] in ("kernel", "merge") else part
    picture = np.asarray(kernel, np.float32).reshape(size.patch_px, size.patch_px, own, -1).transpose(3, 2, 0, 1)
    weights[f"{PROJECTION}.weight"] = spread(picture) if channels > own else picture
    config = {
        "architectures": ["SwinModel"],
        "model_type": "swin",
        "image_size": plain(image_px),
        "num_channels": channels,
        **_architecture(variant),
        "drop_path_rate": 0.0,
        "torch_dtype": "float32",
    }
    return {name: np.ascontiguousarray(array) for name, array in weights.items()}, config


def options(pretrained: Pretrained) -> dict[str, Any]:
    """The keys of config.model that a folder asks for; raises ValueError where it is none of swin.VARIANTS."""
    known, config = {name: _architecture(name) for name in swin.VARIANTS}, pretrained.config
    default = known["swin_T"]
    asked = {key: config.get(key, value) for key, value in default.items()}
    variant = next((name for name, ours in known.items() if ours == asked), None)
    if variant is None:
        differs = {key: value for key, value in asked.items() if value not in [ours[key] for ours in known.values()]}
        raise ValueError(
            f"The Swin has {differs or asked}, as none of ours: {', '.join(known)}. Windows are of "
            f"{default['window_size']} tokens."
        )
    return {"variant": variant}


def load(wanted: Any, pretrained: Pretrained, model: Mapping[str, Any], mean: float, std: float) -> dict[str, Any]:
    """The encoder's tree; arguments and errors as of `from_huggingface`."""
    return from_huggingface(pretrained, model["variant"], mean=mean, std=std, channels=model.get("channels", 1))


def from_huggingface(
    source: str | Path | Pretrained, variant: str, *, mean: float, std: float, channels: int = 1
) -> dict[str, Any]:
    """Reads a Hugging Face `SwinModel`, or the trunk of a classifier, into our tree of float32 arrays.

    source: folder with config.json, preprocessor_config.json and model.safetensors or pytorch_model.bin, or what
    `huggingface.read` returned. variant: key of swin.VARIANTS. Other arguments as in `from_state_dict`.
    Raises ValueError where the folder is of another architecture, or its arrays do not fit.
    """
    pretrained = source if isinstance(source, Pretrained) else read(source, MODEL_TYPES)
    _check_architecture(pretrained.config, variant)
    their = {"their_mean": pretrained.mean, "their_std": pretrained.std}
    return from_state_dict(pretrained.weights, variant, mean=mean, std=std, channels=channels, **their)


def from_state_dict(
    state_dict: Mapping[str, Any],
    variant: str,
    *,
    mean: float,
    std: float,
    their_mean: Sequence[float],
    their_std: Sequence[float],
    channels: int = 1,
) -> dict[str, Any]:
    """Reads the arrays of a `SwinModel`, also out of a larger model's, into our tree of float32 arrays.

    state_dict: arrays or CPU tensors by name. Where all of the encoder's names begin with the same words, such as
    "swin." or "image_encoder.image_encoder.", arrays under other names are left aside. variant: key of swin.VARIANTS.
    mean, std: our normalisation of x = pixel / 255; their_mean, their_std: that of the weights, per channel.
    channels: 1 sums the kernels of three channels, for grey pictures; 3 keeps them, for repeated ones.
    Raises ValueError, naming the array, where the arrays are not that variant's.
    """
    weights, used = _strip(state_dict), set()

    def take(name, shape):
        if name not in weights:
            raise ValueError(f"Swin {variant} has an array {name!r}, which is not among the {len(weights)} given.")
        array = np.asarray(weights[name], np.float32)
        if array.shape != shape:
            raise ValueError(f"{name} has the shape {array.shape}; Swin {variant} needs {shape}.")
        used.add(name)
        return array

    def leaf(path, wanted):
        keys = [key.key for key in path]
        stacked = "blocks" in keys
        *rows, columns = wanted.shape[1:] if stacked else wanted.shape
        if keys[0] == "patch_embed":
            return kernel if keys[-1] == "kernel" else (take(f"{PROJECTION}.bias", (columns,)) + constant).astype("f4")
        layers = []
        for names in _names(keys, wanted.shape[0]):
            shape = (*rows, columns // len(names))
            turned = keys[-1] in ("kernel", "merge")
            parts = [take(name, shape[::-1]).T if turned else take(name, shape) for name in names]
            layers.append(np.concatenate(parts, axis=-1))
        return np.stack(layers) if stacked else layers[0]

    size, first = swin.Swin(variant).size, f"{PROJECTION}.weight"
    given = np.shape(weights.get(first, ()))[1:2]  # of channels, which we may sum
    theirs = take(first, (size.width, *given, size.patch_px, size.patch_px))
    kernel, constant = fold(theirs, their_mean, their_std, mean, std, channels)
    kernel = kernel.transpose(2, 3, 1, 0).reshape(-1, size.width).astype(np.float32)
    found = jax.tree.map_with_path(leaf, _shapes(variant, channels))
    unused = sorted(n for n in weights if n not in used and not n.startswith(IGNORED) and INDEX not in n)
    if unused:
        raise ValueError(f"Swin {variant} has no place for {len(unused)} of the arrays, such as {unused[:4]}.")
    return found


def _names(keys: Sequence[str], layers: int) -> list[list[str]]:
    """Their names of our leaf: of each block of a stage, or of the one there is; three for the fused qkv."""
    *modules, leaf = keys
    if modules and modules[0].startswith("stage"):
        stage = f"encoder.layers.{modules.pop(0).removeprefix('stage')}."
    else:
        stage, layers = "", 1
    if "blocks" not in modules:
        return [
            [
                f"{stage}downsample.reduction.weight"
                if leaf == "merge"
                else f"{stage}{MODULES[modules[-1]]}.{LEAVES[leaf]}"
            ]
        ]
    if leaf == "position_bias":
        ends = ["attention.self.relative_position_bias_table"]
    elif modules[-1] == "qkv":
        ends = [f"attention.self.{part}.{LEAVES[leaf]}" for part in ("query", "key", "value")]
    else:
        ends = [f"{MODULES[modules[-1]]}.{LEAVES[leaf]}"]
    return [[f"{stage}blocks.{number}.{end}" for end in ends] for number in range(layers)]


def _strip(state_dict: Mapping[str, Any]) -> dict[str, Any]:
    """Takes the words before the encoder's names away, and what does not begin with them."""
    first = f"{PROJECTION}.weight"
    prefix = next((name.removesuffix(first) for name in state_dict if name.endswith(first)), "")
    return {name.removeprefix(prefix): array for name, array in state_dict.items() if name.startswith(prefix)}


def _shapes(variant: str, channels: int) -> dict[str, Any]:
    module, picture = swin.Swin(variant, channels), np.zeros((1, 32, 32, channels), np.float32)
    return dict(jax.eval_shape(lambda: module.init(jax.random.key(0), picture))["params"])


def _architecture(variant: str) -> dict[str, Any]:
    """The keys of a Hugging Face config that decide on what is computed."""
    size = swin.Swin(variant).size
    return {
        "patch_size": size.patch_px,
        "embed_dim": size.width,
        "depths": list(size.depths),
        "num_heads": list(size.heads),
        "window_size": size.window,
        "mlp_ratio": 4.0,
        "qkv_bias": True,
        "hidden_act": "gelu",
        "use_absolute_embeddings": False,
        "layer_norm_eps": swin.LAYER_NORM_EPS,
    }


def _check_architecture(config: Mapping[str, Any], variant: str) -> None:
    # A config.json leaves out what is the default, which T has throughout.
    default = _architecture("swin_T")
    differences = [
        f"{key}: ours {value}, pre-trained {config.get(key, default[key])}"
        for key, value in _architecture(variant).items()
        if config.get(key, default[key]) != value
    ]
    if differences:
        raise ValueError(
            f"The pre-trained Swin is no {variant}: {'; '.join(differences)}. There are {', '.join(swin.VARIANTS)}."
        )
