"""What methods of pictures and reports share behind their losses: two encoders, and one space for both."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from cxrjax import rng
from cxrjax.input import device, paired
from cxrjax.methods.base import Batch, Joint, Params, State, encoder_params
from cxrjax.models import backbone, regions, text_tower


class Towers(NamedTuple):
    """The encoder of a picture and the encoder of its report.

    image, text: with parameters at params["encoder"] and params["text"], and what of the text encoder never learns at
    state["frozen"]["text"]. reader: of studies. scale: options of `device.standardise`.
    """

    image: backbone.Backbone | regions.Regions
    text: text_tower.TextTower
    reader: paired.StudyReader
    scale: Mapping[str, Any]

    def init(self, key: jax.Array) -> tuple[Params, State]:
        """(params, state), to which the method adds its heads."""
        params, stats, frozen = {}, {}, {}
        params["encoder"], stats["encoder"] = self.image.init(rng.fold(key, "encoder"))
        params["text"], frozen["text"] = self.text.init(rng.fold(key, "text"))
        return params, {"batch_stats": stats, "frozen": frozen}

    def prepare(self, batch: Batch, key: jax.Array, images: jax.Array | None = None) -> dict[str, Any]:
        """The batch as `see` and `read` take it. images: grey pictures b v h w 1 in the place of the batch's."""
        images = device.standardise((batch["image"] if images is None else images)[:, 0], **self.scale)  # b h w 1
        return {**batch, "image": images, "paths": self.image.paths(rng.fold(key, "encoder"), len(images))}

    def see(self, params: Params, state: State, prepared: Mapping[str, Any]) -> tuple[dict[str, Any], State]:
        """Features of the pictures in training, and the encoder's running statistics."""
        stats, paths = state["batch_stats"]["encoder"], prepared["paths"]
        return self.image.apply(params["encoder"], stats, prepared["image"], train=True, paths=paths)

    def read(self, params: Params, state: State, ids: jax.Array, text_mask: jax.Array) -> dict[str, jax.Array]:
        """ "tokens" b l d and "pooled" b d of texts, int b l and bool b l."""
        return self.text.apply(params["text"], state["frozen"]["text"], ids, text_mask)

    def features(self, params: Params, state: State, images: jax.Array) -> dict[str, Any]:
        """All features of pictures uint8 b h w 1 in evaluation."""
        stats, images = state["batch_stats"]["encoder"], device.standardise(images, **self.scale)
        return self.image.apply(encoder_params(params, state), stats, images, train=False)[0]

    def encode(self, params: Params, state: State, images: jax.Array) -> dict[str, jax.Array]:
        """As `base.Encode`: before any head."""
        found = self.features(params, state, images)
        return {name: found[name] for name in ("pooled", "patches")}

    def joint(self, image_vectors: Callable, text_vectors: Callable) -> Joint:
        """The space in which both meet.

        image_vectors: (params, state, features) → (b d of the picture, b p q d of its parts).
        text_vectors: (params, state, ids, text_mask, word_index) → (b d of the text, b w d of its words, b w bool).
        All in evaluation, and of unit length.
        """

        def image(params, state, images):
            pooled, patches = image_vectors(params, state, self.features(params, state, images))
            return {"pooled": pooled, "patches": patches}

        def text(params, state, ids, text_mask, word_index):
            pooled, words, word_mask = text_vectors(params, state, ids, text_mask, word_index)
            return {"pooled": pooled, "words": jnp.where(word_mask[..., None], words, 0.0), "word_mask": word_mask}

        return Joint(image, text, self.reader.tokens, self.reader.text)
