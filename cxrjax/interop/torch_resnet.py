"""Our ResNet to and from torchvision's state_dict and the folders of Hugging Face `ResNetModel`.

| ours                          | torchvision                       | Hugging Face                                     |
|-------------------------------|-----------------------------------|--------------------------------------------------|
| conv1, bn1                    | conv1, bn1                        | embedder.embedder.{convolution, normalization}   |
| layer<s>/<i>/{conv, bn}<j>    | layer<s>.<i>.{conv, bn}<j>        | encoder.stages.<s-1>.layers.<i>.layer.<j-1>.{…}  |
| layer<s>/<i>/downsample/{0,1} | layer<s>.<i>.downsample.{0,1}     | encoder.stages.<s-1>.layers.<i>.shortcut.{…}     |
| kernel (h, w, in, out)        | weight (out, in, h, w)            | as torchvision                                   |
| scale, bias, mean, var        | weight, bias, running_{mean, var} | as torchvision                                   |

Ours strides in the 3 × 3 convolution of a bottleneck: torchvision's, and Hugging Face's downsample_in_bottleneck=False.
Classifiers are left out in both directions.

Channels and normalisation are those of channels.py. What is written expects our mean and deviation on each of three
channels and computes exactly our features. What is read from a model of other means differs by channels.py's constant
inside a picture, which the running mean of bn1 takes up, but not where the first convolution looks over the edge: both
sides pad with zeros, which are other greys there and here. So the outer two rows and columns of the stem are not those
of the pre-trained model, unless its means all equal ours.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from cxrjax.interop.channels import fold, spread
from cxrjax.interop.huggingface import Pretrained, read
from cxrjax.models import resnet
from cxrjax.sizes import Px, plain

MODEL_TYPES = ("resnet",)
# Mean and deviation of ImageNet, which torchvision's weights were trained with.
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
LEAVES = {"kernel": "weight", "scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}
COUNTER = "num_batches_tracked"  # PyTorch's; read by nothing while momentum is a number
# What a checkpoint may carry beside the trunk.
IGNORED = ("fc.", "classifier.")

_BLOCK = re.compile(r"layer(\d)\.(\d+)\.(conv|bn|downsample\.)(\d)\.(.*)")


def to_torchvision(params: Mapping[str, Any], batch_stats: Mapping[str, Any], channels: int = 3) -> dict[str, Any]:
    """Arrays by the names of a torchvision ResNet, for `load_state_dict` after `model.fc = torch.nn.Identity()`.

    params, batch_stats: of `resnet.ResNet`, params["encoder"] and state["batch_stats"]["encoder"] of a method.
    channels: of the model; a one-channel kernel is spread over three, for pictures under our mean and deviation.
    Raises ValueError where the trees are no ResNet's, or an encoder of several channels should get another number.
    """
    flat = {".".join(path): np.asarray(leaf) for path, leaf in _leaves(params) + _leaves(batch_stats)}
    if "conv1.kernel" not in flat or "bn1.mean" not in flat:
        raise ValueError(
            f"These are not the parameters and running statistics of a ResNet; there are {sorted(flat)[:8]}. Give the "
            "encoder's own subtrees, for example params['encoder'] and state['batch_stats']['encoder']."
        )
    own = flat["conv1.kernel"].shape[2]
    if channels not in (own, 3) or own not in (1, channels):
        raise ValueError(
            f"An encoder of {own} channel(s) cannot be written with channels={channels}: one-channel encoders export "
            "with 1 or 3, others with their own number."
        )
    weights = {}
    for name, array in flat.items():
        module, _, leaf = name.rpartition(".")
        array = array.transpose(3, 2, 0, 1) if leaf == "kernel" else array
        weights[f"{module}.{LEAVES[leaf]}"] = np.ascontiguousarray(array, np.float32)
        if leaf == "mean":
            weights[f"{module}.{COUNTER}"] = np.zeros((), np.int64)
    if channels > own:
        weights["conv1.weight"] = spread(weights["conv1.weight"])
    return weights


def from_torchvision(
    state_dict: Mapping[str, Any],
    variant: str,
    *,
    mean: float,
    std: float,
    channels: int = 1,
    their_mean: Sequence[float] = IMAGENET_MEAN,
    their_std: Sequence[float] = IMAGENET_STD,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Reads a torchvision ResNet into our (params, batch_stats), float32.

    state_dict: arrays or CPU tensors by name. variant: key of resnet.VARIANTS. mean, std: our normalisation of
    x = pixel / 255; their_mean, their_std: that of the weights, per channel.
    channels: 1 sums the kernels of the first convolution over its three channels, for grey pictures; 3 keeps them, for
    repeated ones. Edges: see the module's docstring.
    Raises ValueError, naming the array, where the state_dict is not that variant's.
    """
    return _read(state_dict, variant, channels, lambda name: name, (their_mean, their_std, mean, std))


def to_huggingface(
    params: Mapping[str, Any], batch_stats: Mapping[str, Any], *, variant: str, image_px: Px, channels: int = 3
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Our encoder in the names of `ResNetModel`: arrays by on-disk name, and the content of `config.json`.

    Arguments as in `to_torchvision`; variant: key of resnet.VARIANTS; image_px: for the processor, ResNets take any.
    Raises ValueError as `to_torchvision`, and where the parameters are not those of the variant.
    """
    weights = {_huggingface_name(k): array for k, array in to_torchvision(params, batch_stats, channels).items()}
    given = {"params": params, "batch_stats": batch_stats}
    wanted = _shapes(variant, params["conv1"]["kernel"].shape[2])
    given, wanted = ({"/".join(path): leaf.shape for path, leaf in _leaves(tree)} for tree in (given, wanted))
    differences = [
        f"{name}: {given.get(name, 'absent')}, {variant} has {wanted.get(name, 'none')}"
        for name in sorted(given | wanted)
        if given.get(name) != wanted.get(name)
    ]
    if differences:
        raise ValueError(f"The encoder is no {variant}: {'; '.join(differences[:4])}. Give the variant it was made as.")
    config = {
        "architectures": ["ResNetModel"],
        "model_type": "resnet",
        "image_size": plain(image_px),
        "num_channels": channels,
        **_architecture(variant),
        "torch_dtype": "float32",
    }
    return weights, config


def from_huggingface(
    source: str | Path | Pretrained, variant: str, *, mean: float, std: float, channels: int = 1
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Reads a Hugging Face `ResNetModel`, or the trunk of a classifier, into our (params, batch_stats), float32.

    source: folder with config.json, model.safetensors and preprocessor_config.json, or what `huggingface.read`
    returned. Other arguments as in `from_torchvision`; their mean and deviation are the processor's.
    Raises ValueError where the folder is of another architecture, saying which variant it is, or its arrays do not fit.
    """
    pretrained = source if isinstance(source, Pretrained) else read(source, MODEL_TYPES)
    _check_architecture(pretrained.config, variant)
    weights = {name.removeprefix("resnet."): array for name, array in pretrained.weights.items()}
    return _read(weights, variant, channels, _huggingface_name, (pretrained.mean, pretrained.std, mean, std))


def _read(
    weights: Mapping[str, Any], variant: str, channels: int, rename: Callable[[str], str], normalisation: tuple
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Fills the trees of a variant from arrays whose names are `rename` of torchvision's."""
    used = set()

    def take(name, shape):
        if name not in weights:
            raise ValueError(f"{variant} has an array {name!r}, which is not among the {len(weights)} given.")
        array = np.asarray(weights[name], np.float32)
        if array.shape != shape:
            raise ValueError(f"{name} has the shape {array.shape}; {variant} needs {shape}.")
        used.add(name)
        return array

    def leaf(path, wanted):
        *modules, kind = (key.key for key in path)
        torchvision_name = ".".join([*modules, LEAVES[kind]])
        name = rename(torchvision_name)
        if kind == "kernel":
            side, _, inputs, outputs = wanted.shape
            if torchvision_name == "conv1.weight":
                return kernel.transpose(2, 3, 1, 0).astype(np.float32)
            return take(name, (outputs, inputs, side, side)).transpose(2, 3, 1, 0)
        array = take(name, wanted.shape)
        # What the first convolution leaves out is a shift of all that bn1 sees.
        return (array - constant).astype(np.float32) if torchvision_name == "bn1.running_mean" else array

    shapes, first = _shapes(variant, channels), rename("conv1.weight")
    given = np.shape(weights.get(first, ()))[1:2]  # of channels, which we may sum
    their_mean, their_std, mean, std = normalisation
    kernel = take(first, (_size(variant).stem, *given, 7, 7))
    kernel, constant = fold(kernel, their_mean, their_std, mean, std, channels)
    found = {part: jax.tree.map_with_path(leaf, tree) for part, tree in shapes.items()}
    unused = sorted(n for n in weights if n not in used and not n.startswith(IGNORED) and not n.endswith(COUNTER))
    if unused:
        raise ValueError(f"{variant} has no place for {len(unused)} of the arrays, such as {unused[:4]}.")
    return found["params"], found["batch_stats"]


def _size(variant: str) -> resnet.Size:
    if variant not in resnet.VARIANTS:
        raise ValueError(f"there is no ResNet {variant!r}; there are {', '.join(resnet.VARIANTS)}")
    return resnet.VARIANTS[variant]


def _shapes(variant: str, channels: int) -> dict[str, Any]:
    _size(variant)
    picture, module = np.zeros((1, 32, 32, channels), np.float32), resnet.ResNet(variant, channels)
    return dict(jax.eval_shape(lambda: module.init(jax.random.key(0), picture, False)))


def _architecture(variant: str) -> dict[str, Any]:
    """The keys of a Hugging Face config that decide on what is computed."""
    size = _size(variant)
    return {
        "layer_type": "bottleneck" if size.bottleneck else "basic",
        "embedding_size": size.stem,
        "hidden_sizes": list(size.widths[1:]),
        "depths": list(size.blocks),
        "hidden_act": "relu",
        "downsample_in_first_stage": False,
        "downsample_in_bottleneck": False,
    }


def variant_of(config: Mapping[str, Any]) -> str:
    """The variant of a Hugging Face config.json; raises ValueError where it is none of ours."""
    fitting = next((name for name in resnet.VARIANTS if not _differences(config, name)), None)
    if fitting is None:
        near = "; ".join(_differences(config, "resnet50").values())
        raise ValueError(f"The ResNet is none of {', '.join(resnet.VARIANTS)} (of resnet50: {near}); take another.")
    return fitting


def _differences(config: Mapping[str, Any], name: str) -> dict[str, str]:
    # A config.json leaves out what is the default, which ResNet-50 has throughout.
    default = _architecture("resnet50")
    return {
        key: f"{key}: ours {value}, pre-trained {config.get(key, default[key])}"
        for key, value in _architecture(name).items()
        if config.get(key, default[key]) != value
    }


def _check_architecture(config: Mapping[str, Any], variant: str) -> None:
    if found := _differences(config, variant):
        fitting = next((name for name in resnet.VARIANTS if not _differences(config, name)), None)
        advice = f"Set variant={fitting!r} in the config" if fitting else "None of our variants fits; take another"
        raise ValueError(f"The pre-trained ResNet is no {variant}: {'; '.join(found.values())}. {advice}.")


def _huggingface_name(name: str) -> str:
    """The on-disk name of a torchvision name."""
    if match := _BLOCK.fullmatch(name):
        stage, block, kind, number, leaf = match.groups()
        place = f"encoder.stages.{int(stage) - 1}.layers.{block}"
        if kind == "downsample.":
            return f"{place}.shortcut.{('convolution', 'normalization')[int(number)]}.{leaf}"
        part = {"conv": "convolution", "bn": "normalization"}[kind]
        return f"{place}.layer.{int(number) - 1}.{part}.{leaf}"
    module, leaf = name.split(".")
    return f"embedder.embedder.{({'conv1': 'convolution', 'bn1': 'normalization'})[module]}.{leaf}"


def _leaves(tree: Mapping[str, Any], prefix: tuple[str, ...] = ()) -> list[tuple[tuple[str, ...], Any]]:
    found = []
    for key, value in tree.items():
        found += _leaves(value, (*prefix, key)) if isinstance(value, Mapping) else [((*prefix, key), value)]
    return found
