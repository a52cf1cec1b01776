"""What methods of pictures and reports share behind their losses: two encoders, and one space for both."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from cxrjax import rng
from cxrjax.drawing.panels import Panel
from cxrjax.input import device, paired
from cxrjax.methods.base import Batch, Joint, Look, Params, State, encoder_params
from cxrjax.models import backbone, regions, text_tower


class Towers(NamedTuple):
    """The encoder of a picture and the encoder of its report.

    image, text: with parameters at params["encoder"] and params["text"], and what of the text encoder never learns at
    state["frozen"]["text"]. reader: of studies. scale: options of `device.standardise`. locked: the picture's encoder
    stays as it starts, BatchNorm statistics and every path too, and is at state["frozen"]["encoder"].
    """

    image: backbone.Backbone | regions.Regions
    text: text_tower.TextTower
    reader: paired.StudyReader
    scale: Mapping[str, Any]
    locked: bool = False

    def init(self, key: jax.Array) -> tuple[Params, State]:
        """(params, state), to which the method adds its heads."""
        params, stats, frozen = {}, {}, {}
        encoder, stats["encoder"] = self.image.init(rng.fold(key, "encoder"))
        params["encoder"] = {} if self.locked else encoder
        frozen |= {"encoder": encoder} if self.locked else {}
        params["text"], frozen["text"] = self.text.init(rng.fold(key, "text"))
        return params, {"batch_stats": stats, "frozen": frozen}

    def prepare(self, batch: Batch, key: jax.Array, images: jax.Array | None = None) -> dict[str, Any]:
        """The batch as `see` and `read` take it. images: grey pictures b v h w 1 in the place of the batch's."""
        images = device.standardise((batch["image"] if images is None else images)[:, 0], **self.scale)  # b h w 1
        return {**batch, "image": images, "paths": self.image.paths(rng.fold(key, "encoder"), len(images))}

    def see(self, params: Params, state: State, prepared: Mapping[str, Any]) -> tuple[dict[str, Any], State]:
        """Features of the pictures in training, and the encoder's running statistics."""
        stats, paths, whole = state["batch_stats"]["encoder"], prepared["paths"], encoder_params(params, state)
        return self.image.apply(whole, stats, prepared["image"], train=not self.locked, paths=paths)

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

    def look(self, joint: Joint, prepare: Callable) -> Look:
        """As `base.Look`: the picture over its report, and where the words are seen whose maps vary most.

        prepare: of the method's `Parts`. A map is of the cosines of a word with every patch, in the space of `joint`.
        """

        def shown(params, state, batch, key):
            seen = prepare(batch, key)["image"][..., 0]
            found = [Panel("picture and report", seen, ids=batch["ids"], spell=self.spell)]
            return found + self.words_seen(joint, params, state, batch, seen)

        return shown

    def spell(self, ids: Any) -> str:
        """The words of tokens l, with blanks between."""
        return self.reader.tokenizer.decode(ids)

    def words_seen(
        self, joint: Joint, params: Params, state: State, batch: Batch, seen: jax.Array, count: int = 3
    ) -> list[Panel]:
        """The `count` words of each report whose cosines with the patches vary most, each over the picture b h w.

        Words of fewer than three letters are passed over, and what is no word.
        """
        ids, index = batch["ids"], batch["word_index"]
        patches = joint.image(params, state, batch["image"][:, 0])["patches"]
        text = joint.text(params, state, ids, batch["text_mask"], index)
        maps = jnp.einsum("bwd,bpqd->bwpq", text["words"], patches)
        telling = jnp.array([piece.isalpha() and len(piece) > 2 for piece in self.reader.tokenizer.vocabulary])
        of_word = index[:, None, :] == jnp.arange(maps.shape[1])[:, None]  # b w l
        named = jnp.any(of_word & jnp.asarray(telling)[ids][:, None, :], axis=2)
        spread = jnp.where(text["word_mask"] & named, maps.max((2, 3)) - maps.min((2, 3)), -1.0)
        _, chosen = jax.lax.top_k(spread, count)  # b count
        panels = []
        for number in range(count):
            word = chosen[:, number]
            heat = jnp.take_along_axis(maps, word[:, None, None, None], axis=1)[:, 0]
            of_it = jnp.where(index == word[:, None], ids, 0)
            label = "where a word is seen: dark is its lowest cosine, yellow its highest"
            panels.append(Panel(label, seen, heat=heat, ids=of_it, spell=self.spell, lines=1))
        return panels
