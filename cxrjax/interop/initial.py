"""Starting a run from an encoder that exists already: a Hugging Face ViT folder or a workdir of ours."""

from pathlib import Path
from typing import Any

import jax
import numpy as np

from cxrjax import checkpoint
from cxrjax.interop import huggingface, torch_vit
from cxrjax.models import posemb, vit


def initialise(config: Any, train_state: Any, abstract: Any) -> Any:
    """Replaces the encoder in a fresh train state by that of config.init_from; without one nothing changes.

    config.init_from: a Hugging Face ViT folder (has model.safetensors), or a workdir, its checkpoints or one step's
    folder (its latest step; the method may differ, the encoder must fit). Copies of the encoder in `state`, such as a
    momentum encoder, are replaced as well, so that they start equal.
    abstract: the train state's shapes and shardings. Raises ValueError where the encoders do not fit.
    """
    folder = config.get("init_from")
    if not folder:
        return train_state
    wanted = abstract.params["encoder"]
    if (Path(folder) / huggingface.CONFIG).is_file() and not checkpoint.steps(folder):
        encoder = _from_huggingface(config, folder, wanted)
    else:
        encoder = checkpoint.load_params(folder, "latest", {"params": {"encoder": wanted}})["params"]["encoder"]
    by_path = dict(_leaves(encoder))

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


def _from_huggingface(config: Any, folder: str, wanted: Any) -> dict[str, Any]:
    if config.standardise.mode != "fixed":
        raise ValueError(
            f"init_from={folder!r} needs standardise.mode='fixed', got {config.standardise.mode!r}: only a fixed mean "
            "and deviation can be folded into the patch embedding."
        )
    model, size = config.model, vit.VARIANTS[config.model.variant]
    grid = model.image_px // model.patch_px
    return torch_vit.load_into(
        wanted,
        folder,
        heads=size.heads,
        image_px=model.image_px,
        mean=config.standardise.mean,
        std=config.standardise.std,
        position_table=posemb.sincos_2d((grid, grid), size.width) if model.positions == "sincos" else None,
    )


def _leaves(tree: Any) -> list[tuple[str, Any]]:
    return [(_path(keys), leaf) for keys, leaf in jax.tree.leaves_with_path(tree)]


def _path(keys: Any) -> str:
    return jax.tree_util.keystr(keys, simple=True, separator="/")
