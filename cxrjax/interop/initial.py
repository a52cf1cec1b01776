"""Starting a run from an encoder that exists already: a Hugging Face folder or a workdir of ours."""

from pathlib import Path
from typing import Any

import jax
import numpy as np

from cxrjax import checkpoint, trained
from cxrjax.interop import huggingface, torch_resnet, torch_vit
from cxrjax.methods.base import encoder_params
from cxrjax.models import posemb, resnet, vit


def initialise(config: Any, train_state: Any, abstract: Any) -> Any:
    """Replaces the encoder in a fresh train state by that of config.init_from; without one nothing changes.

    config.init_from: a Hugging Face folder (has model.safetensors) of a ViT or a ResNet, or a workdir, its checkpoints
    or one step's folder (its latest step; the method may differ, the encoder must fit). Of a run it is the network that
    `Method.encoder` names, which for DINO is the teacher. Copies of the encoder in `state`, such as a momentum encoder,
    are replaced as well, so that they start equal; so are a ResNet's statistics.
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
    """The parameters of the network that a run's method encodes with, and the running statistics beside them."""
    learned = trained.load(folder)
    found = learned.method.encoder(learned.params, learned.state), _statistics(learned.state)
    shapes = {path: np.shape(leaf) for tree in found for path, leaf in _leaves(tree)}
    expected = {path: leaf.shape for tree in (wanted, statistics) for path, leaf in _leaves(tree)}
    wrong = [
        f"{path}: {shapes.get(path, 'missing')}, expected {shape}"
        for path, shape in expected.items()
        if shapes.get(path) != shape
    ]
    if wrong:
        raise ValueError(
            f"init_from={folder!r} holds another encoder: of {len(expected)} arrays {len(wrong)} do not fit "
            f"({'; '.join(wrong[:3])}{' …' if wrong[3:] else ''}). Set model as in its config.json: "
            f"{dict(learned.config.model)}"
        )
    return found


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
