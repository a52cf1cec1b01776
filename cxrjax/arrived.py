"""An encoder that others trained, from a folder on disk, in the place of a run of ours: judged, embedded, exported.

Its config has the method "arrived", which trains nothing: what it is made of, the scale of its pictures and how they
are fitted (`fit`) come from the folder. A run that is to train it further names the folder as its init_from.
"""

from pathlib import Path
from typing import Any, NoReturn

import jax
import numpy as np

from cxrjax import config as shared
from cxrjax import recipes
from cxrjax.config import ConfigDict
from cxrjax.input import device
from cxrjax.interop import families
from cxrjax.methods.base import Method, Params, State, keep_state
from cxrjax.methods.trunk import encode_by
from cxrjax.models import backbone
from cxrjax.runtime import hosts

NAME = "arrived"


def load(place: str | Path, dtype: str | None = None) -> tuple[ConfigDict, Method, Params, State, str]:
    """The config, the method, its parameters and state, and their digest, of what lies at a place.

    dtype: of the computation, by default float32. Raises ValueError as `families.read` does.
    """
    pretrained = families.read(place)
    config = settings(place, pretrained)
    if (beside := families.unread(pretrained)) and hosts.is_first():
        print(f"{place}: its encoder is read; not used are the arrays of {beside}", flush=True)
    config.model.dtype = dtype or config.model.dtype
    encoder, scale = backbone.make(config.model), config.standardise
    wanted, _ = jax.eval_shape(encoder.init, jax.random.key(0))
    reader = families.family(pretrained).load
    params, statistics = reader(wanted, pretrained, config.model, scale.mean, scale.std)
    learned, state = {"encoder": params}, {"batch_stats": {"encoder": statistics}}
    return config, _method(config, encoder), learned, state, hosts.local_digest((learned, state))


def settings(place: str | Path, pretrained: families.Pretrained) -> ConfigDict:
    """The config of what lies at a place."""
    found = families.model_of(pretrained)
    config = shared.pretrain()
    config.method, config.init_from, config.data.sets = NAME, str(place), ""
    model = (recipes.vit if backbone.kind(found["variant"]) == "ViT" else recipes.resnet)() | found
    # Grey pictures have one mean: theirs where all channels share it, so that an export of ours comes back bit for bit.
    same = len(set(pretrained.mean)) == len(set(pretrained.std)) == 1
    mean, std = (pretrained.mean[0], pretrained.std[0]) if same else (device.MEAN, device.STD)
    config.standardise = recipes.standardise(mean, std)
    if backbone.kind(found["variant"]) == "ResNet" and not same:
        # Its stem looks over the edge, where each channel has its own mean: only three channels are exact there.
        model["channels"] = len(pretrained.mean)
        config.standardise = {"mode": "fixed", "mean": pretrained.mean, "std": pretrained.std}
    config.model, config.fit = model, pretrained.sees
    return config


def name(config: ConfigDict) -> str:
    """What an encoder is called in results: its method, or of one that arrived its folder."""
    return Path(config.init_from).resolve().name if config.method == NAME else config.method


def workdir(place: str | Path) -> Path:
    """Where results go unless they are given a place: not into the folder, which may be a cache."""
    return Path("runs") / Path(place).resolve().name


def _method(config: ConfigDict, encoder: backbone.Backbone) -> Method:
    def init(key: jax.Array, batch: Any) -> tuple[Params, State]:
        params, statistics = encoder.init(key)
        return {"encoder": params}, {"batch_stats": {"encoder": statistics}}

    def views(example: Any, rng: np.random.Generator) -> dict[str, np.ndarray]:
        return {"image": np.zeros((1, encoder.image_px, encoder.image_px, 1), np.uint8)}

    def loss(*arguments: Any) -> NoReturn:
        raise ValueError(
            f"{config.init_from} is an encoder and no run: nothing is known of how to train it. Name it as the "
            "init_from of a config that trains, such as configs/finetune.py"
        )

    encode = encode_by(encoder, config.standardise)
    return Method(views, init, loss, keep_state, encode, config.model.image_px, sees=config.fit)
