"""An encoder that others trained, from a folder on disk, in the place of a run of ours: judged, embedded, exported.

Its config has the method "arrived", which trains nothing: what it is made of, the scale of its pictures and how they
are fitted (`fit`) come from the folder. A run that is to train it further names the folder as its init_from.

Where the folder also has an encoder of texts and its tokenizer, they share a space with the pictures (`space`). The
words of a text are then one, the text as a whole: none of these models learned vectors of words. The patches are
those that see no other patch in the last step (`backbone.Backbone`, alone), under the projection of the whole picture:
MaskCLIP's way to maps (Zhou et al., ECCV 2022), and our choice for all of them.
"""

from pathlib import Path
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
import numpy as np

from cxrjax import config as shared
from cxrjax import recipes, rng, sizes
from cxrjax.config import ConfigDict
from cxrjax.input import device, paired
from cxrjax.interop import families
from cxrjax.losses.pairs import normalise
from cxrjax.methods.base import Joint, Method, Params, State, keep_state
from cxrjax.methods.trunk import encode_by
from cxrjax.models import backbone, text_transformer
from cxrjax.models.transformer import NORMAL
from cxrjax.runtime import hosts
from cxrjax.text.folder_tokenizer import FILE, FolderTokenizer

NAME = "arrived"
READ = {"sections": "impression,findings", "cleaning": "none", "one_sentence": False}
"""Of a report, where the folder's encoder is given one; its length cuts the rest off."""


def load(place: str | Path, dtype: str | None = None) -> tuple[ConfigDict, Method, Params, State, str]:
    """The config, the method, its parameters and state, and their digest, of what lies at a place.

    dtype: of the computation, by default float32. Raises ValueError as `families.read` does.
    """
    pretrained = families.read(place)
    config, space = settings(place, pretrained), families.space(pretrained, place)
    if (beside := families.unread(pretrained, space)) and hosts.is_first():
        lacking = f"; texts are read where there is a {FILE}" if "text_model" in beside else ""
        print(f"{place}: its encoder is read; not used are the arrays of {beside}{lacking}", flush=True)
    config.model.dtype = dtype or config.model.dtype
    encoder, scale = backbone.make(config.model), config.standardise
    wanted, _ = jax.eval_shape(encoder.init, jax.random.key(0))
    reader = families.family(pretrained).load
    params, statistics = reader(wanted, pretrained, config.model, scale.mean, scale.std)
    learned, state = {"encoder": params}, {"batch_stats": {"encoder": statistics}}
    method = _method(config, encoder)
    if space is not None:
        tokenizer = FolderTokenizer(place, config.space.vocab_size, space.pad_id(pretrained))
        of_space = space.load(pretrained)
        learned |= of_space
        method = _with_texts(method, config, encoder, tokenizer, jax.tree.map(np.shape, of_space))
    return config, method, learned, state, hosts.local_digest((learned, state))


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
    if (space := families.space(pretrained, place)) is not None:
        config.space = {**space.text(pretrained), **READ}
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
        return {"image": np.zeros((1, *sizes.sides(encoder.image_px), 1), np.uint8)}

    def loss(*arguments: Any) -> NoReturn:
        raise ValueError(
            f"{config.init_from} is an encoder and no run: nothing is known of how to train it. Name it as the "
            "init_from of a config that trains, such as configs/finetune.py"
        )

    encode = encode_by(encoder, config.standardise)
    return Method(views, init, loss, keep_state, encode, config.model.image_px, sees=config.fit)


def _with_texts(
    method: Method, config: ConfigDict, encoder: backbone.Backbone, tokenizer: FolderTokenizer, shapes: Any
) -> Method:
    """The method with the space that its pictures share with texts; shapes: of the parameters of the space."""
    reader, reports = text_transformer.make(config.space), paired.ReportReader(config.space)

    def init(key: jax.Array, batch: Any) -> tuple[Params, State]:
        params, state = method.init(key, batch)
        drawn = {name: _drawn(rng.fold(key, name), tree) for name, tree in shapes.items() if name != "text"}
        return {**params, **drawn, "text": reader.init(rng.fold(key, "text"))}, state

    def image(params: Params, state: State, images: jax.Array) -> dict[str, jax.Array]:
        images, stats = device.standardise(images, **config.standardise), state["batch_stats"]["encoder"]
        found, _ = encoder.apply(params["encoder"], stats, images, train=False, alone=True)
        head = params["image_head"]
        return {"pooled": _projected(head, found["pooled"]), "patches": _projected(head, found["alone"])}

    def text(
        params: Params, state: State, ids: jax.Array, text_mask: jax.Array, word_index: jax.Array
    ) -> dict[str, jax.Array]:
        pooled = _projected(params["text_head"], reader.apply(params["text"], ids, text_mask))
        there = jnp.any(word_index >= 0, axis=1, keepdims=True)
        return {"pooled": pooled, "words": jnp.where(there, pooled, 0.0)[:, None], "word_mask": there}

    def tokens(said: str) -> dict[str, np.ndarray]:
        ids, mask, word_index = tokenizer.encode(said, config.space.length)
        return {"ids": ids, "text_mask": mask, "word_index": word_index}

    return method._replace(init=init, joint=Joint(image, text, tokens, reports.text))


def _projected(head: Params, x: jax.Array) -> jax.Array:
    """Vectors … d in the shared space, float32 of unit length; without a projection they are there already."""
    if "pooler" in head:
        x = jnp.tanh(x @ head["pooler"]["kernel"] + head["pooler"]["bias"])
    if "projection" in head:
        x = x @ head["projection"]["kernel"] + head["projection"]["bias"]
    return normalise(x)


def _drawn(key: jax.Array, shapes: Any) -> Any:
    """Kernels from N(0, 0.02²), the rest from 0: a head before training, of these shapes."""
    if isinstance(shapes, dict):
        return {name: _drawn(rng.fold(key, name), inner) for name, inner in shapes.items()}
    return NORMAL(key, shapes) if len(shapes) > 1 else jnp.zeros(shapes)
