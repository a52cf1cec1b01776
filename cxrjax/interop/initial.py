"""Starting a run from an encoder that exists already: a Hugging Face folder or a workdir of ours."""

from pathlib import Path
from typing import Any

import jax
import numpy as np

from cxrjax import checkpoint
from cxrjax.interop import huggingface, torch_resnet, torch_vit
from cxrjax.methods.base import encoder_params
from cxrjax.models import posemb, resnet, vit


def initialise(config: Any, train_state: Any, abstract: Any) -> Any:
    """Replaces the encoder in a fresh train state by that of config.init_from; without one nothing changes.

    config.init_from: a Hugging Face folder (has model.safetensors) of a ViT or a ResNet, or a workdir, its checkpoints
    or one step's folder (its latest step; the method may differ, the encoder must fit). Copies of the encoder in
    `state`, such as a momentum encoder, are replaced as well, so that they start equal; so are a ResNet's statistics.
    abstract: the train state's shapes and shardings. Raises ValueError where the encoders do not fit.
    """
    folder = config.get("init_from")
    if not folder:
        return train_state
    wanted = encoder_params(abstract.params, abstract.state)
    if (Path(folder) / huggingface.CONFIG).is_file() and not checkpoint.steps(folder):
        encoder, statistics = _from_huggingface(config, folder, wanted)
    else:
        encoder, statistics = _from_run(folder, wanted, _statistics(abstract.state))
    by_path = dict(_leaves(encoder) + _leaves(statistics))

    def replace(keys, leaf, target):
        _, found, below = _path(keys).rpartition("encoder/")
        if not found or below not in by_path:
            return leaf
        value = np.asarray(by_path[below])
        return jax.make_array_from_callback(leaf.shape, target.sharding, lambda index: value[index].astype(leaf.dtype))

    def filled(tree, targets):
        return jax.tree.map_with_path(replace, tree, targets)

    return train_state._replace(
        params=filled(train_state.params, abstract.params), state=filled(train_state.state, abstract.state)
    )


def _from_run(folder: str, wanted: Any, statistics: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """The encoder's parameters and running statistics in a run, whose method may keep some parameters frozen."""
    stored = checkpoint.names(folder)
    frozen = {name for name in wanted if any(f"{path}/".startswith(f"state/frozen/encoder/{name}/") for path in stored)}
    state = {"frozen": {name: wanted[name] for name in frozen}, "batch_stats": statistics}
    request = {
        "params": {"encoder": {name: tree for name, tree in wanted.items() if name not in frozen}},
        # A checkpoint need not know the names of what is empty.
        "state": {part: {"encoder": tree} for part, tree in state.items() if tree},
    }
    found = checkpoint.load_params(folder, "latest", {part: tree for part, tree in request.items() if tree})
    state = found.get("state", {})
    return encoder_params(found["params"], state), _statistics(state)


def _statistics(state: Any) -> Any:
    return state.get("batch_stats", {}).get("encoder", {})


def _from_huggingface(config: Any, folder: str, wanted: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """The encoder's parameters, and the running statistics that a ResNet has beside them."""
    if config.standardise.mode != "fixed":
        raise ValueError(
            f"init_from={folder!r} needs standardise.mode='fixed', got {config.standardise.mode!r}: only a fixed mean "
            "and deviation can be folded into the first layer."
        )
    model, mean, std = config.model, config.standardise.mean, config.standardise.std
    if model.variant in resnet.VARIANTS:
        return torch_resnet.from_huggingface(folder, model.variant, mean=mean, std=std, channels=model.channels)
    size, grid = vit.VARIANTS[model.variant], model.image_px // model.patch_px
    encoder = torch_vit.load_into(
        wanted,
        folder,
        heads=size.heads,
        image_px=model.image_px,
        mean=mean,
        std=std,
        position_table=posemb.sincos_2d((grid, grid), size.width) if model.positions == "sincos" else None,
    )
    return encoder, {}


def _leaves(tree: Any) -> list[tuple[str, Any]]:
    return [(_path(keys), leaf) for keys, leaf in jax.tree.leaves_with_path(tree)]


def _path(keys: Any) -> str:
    return jax.tree_util.keystr(keys, simple=True, separator="/")
