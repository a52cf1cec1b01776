"""The networks of F-L as functions of their parameters. The symbols are those of methods/frontal_lateral.py.

X_F, X_L   tokens of the two pictures, b n d and b m d      g_F, g_L, g_T, g_FL   one vector each, b d
T          tokens of the report, b l d                      S                     key patches, b k d
"""

import math
from collections.abc import Mapping
from fractions import Fraction
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from einops import rearrange

from cxrjax import rng, sizes
from cxrjax.models import backbone, linen, selection, swin, text_tower
from cxrjax.models.cross_decoder import CrossDecoder, WordHead
from cxrjax.models.prototypes import Prototypes


class Networks:
    """All networks that config.model, lateral, text, width, decoder, selection and prototypes describe.

    Every method is a pure function of the parameters, under the names that `init` gives them. config.defects switches
    the defects of the released code on; see configs/frontal_lateral.py.
    Raises ValueError for a lateral encoder that would stay random.
    """

    def __init__(self, config: Any):
        self.config, self.wrong = config, config.defects
        dtype, drop_path = jnp.dtype(config.model.dtype), 0.1 if self.wrong.lateral_stochastic_depth else 0.0
        decoder = partial(CrossDecoder, heads=config.decoder.heads, **config.decoder.reading, dtype=dtype)
        self.frontal, self.text = backbone.make(config.model), text_tower.make(config.text)
        self.lateral = swin.Swin(config.lateral.variant, drop_path=drop_path, dtype=dtype, remat=config.model.remat)
        if self.lateral.size and config.width % config.decoder.heads:  # `size` refuses an unknown variant
            raise ValueError(f"decoder.heads = {config.decoder.heads} do not divide width = {config.width}")
        self.lateral_learns = is_learned(config.lateral)
        self.adapter = selection.Adapter(config.width, self.wrong.lateral_token_softmax, dtype)
        self.mlm_decoder, self.view_decoder = decoder(config.decoder.mlm_depth), decoder(config.decoder.view_depth)
        self.mlm_head = WordHead(config.text.vocab_size, dtype)
        self.prototypes = Prototypes(config.prototypes.count)
        self.dtype = dtype

    def init(self, key: jax.Array) -> tuple[dict[str, Any], dict[str, Any]]:
        """(params, state) of the whole method."""
        width, token = self.config.width, jnp.zeros((1, 1, self.config.width))

        def normal(name, rows, columns):
            return rows**-0.5 * jax.random.normal(rng.fold(key, name), (rows, columns))

        params, frozen, picture = {}, {}, jnp.zeros((1, *sizes.sides(self.config.model.image_px), 1))
        params["encoder"], stats = self.frontal.init(rng.fold(key, "encoder"))
        params["text"], frozen["text"] = self.text.init(rng.fold(key, "text"))
        owner = params if self.lateral_learns else frozen
        owner["lateral"] = linen.init(self.lateral, rng.fold(key, "lateral"), picture)
        params["image_head"] = normal("image_head", self.frontal.width, width)
        params["text_head"] = normal("text_head", self.text.width, width)
        if not self.wrong.missing_laterals_stay:
            params["absent"] = 0.02 * normal("absent", 1, width)[0]
        params["projector"] = {"kernel": normal("projector", 2 * width, width), "bias": jnp.zeros(width)}
        inputs = {"adapter": [jnp.zeros((1, 1, self.lateral.width))], "mlm_decoder": [token, token]}
        inputs |= {"view_decoder": [token, token], "mlm_head": [token], "prototypes": [token[0]]}
        for name, given in inputs.items():
            params[name] = linen.init(getattr(self, name), rng.fold(key, name), *given)
        state = {"batch_stats": {"encoder": stats}, "frozen": frozen}
        paths = self.paths(key, 1)
        x_f, _, x_l, _ = jax.eval_shape(self.embed_pictures, params, state, picture, picture, paths)
        gather = self.gather(x_f.shape[1], x_l.shape[1])
        params["selection"] = linen.init(gather, rng.fold(key, "selection"), token, jnp.ones((1, 1), bool))
        return params, state

    def paths(self, key: jax.Array, b: int) -> dict[str, jax.Array | None]:
        """What both encoders of pictures drop of b studies."""
        encoders = {"encoder": self.frontal, "lateral": self.lateral}
        return {name: encoder.paths(rng.fold(key, name), b) for name, encoder in encoders.items()}

    def embed_pictures(
        self, params: Any, state: Any, frontal: jax.Array, lateral: jax.Array, paths: Mapping[str, jax.Array | None]
    ) -> tuple[jax.Array, jax.Array, jax.Array, Any]:
        """X_F, g_F and X_L of standardised pictures b h w 1 in training, and the frontal encoder's statistics.

        paths: see the method of this name.
        """
        stats = state["batch_stats"]["encoder"]
        out, stats = self.frontal.apply(params["encoder"], stats, frontal, train=True, paths=paths["encoder"])
        patches = rearrange(out["patches"], "b p q d -> b (p q) d")
        known = params["lateral"] if self.lateral_learns else state["frozen"]["lateral"]
        found = linen.apply(self.lateral, known, lateral, paths=paths["lateral"])["patches"]
        x_f, g_f = (x @ params["image_head"] for x in (patches, out["pooled"]))
        return x_f, g_f, linen.apply(self.adapter, params["adapter"], found), stats

    def embed_report(self, params: Any, state: Any, ids: jax.Array, mask: jax.Array) -> tuple[jax.Array, jax.Array]:
        """T and g_T. ids: int b l. mask: bool b l, False is padding."""
        out = self.text.apply(params["text"], state["frozen"]["text"], ids, mask)
        return out["tokens"] @ params["text_head"], out["pooled"] @ params["text_head"]

    def embed_both_reports(
        self, params: Any, state: Any, ids: jax.Array, hidden: jax.Array, mask: jax.Array
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """T and g_T of the report, and T of the one with words hidden. ids, hidden: int b l."""
        if self.wrong.shared_masked_text:
            t, g_t = self.embed_report(params, state, hidden, mask)
            return t, g_t, t
        both = rearrange(jnp.stack([ids, hidden], axis=1), "b s l -> (b s) l")
        t, g_t = self.embed_report(params, state, both, jnp.repeat(mask, 2, axis=0))
        return t[::2], g_t[::2], t[1::2]

    def join_views(self, params: Any, g_f: jax.Array, g_l: jax.Array, has_lateral: jax.Array) -> jax.Array:
        """g_FL = P [g_F; g_L] + b, a learned vector in the place of g_L where has_lateral (b bool) is False."""
        g_l = jnp.where(has_lateral[:, None], g_l, params.get("absent", 0.0))
        return jnp.concatenate([g_f, g_l], axis=1) @ params["projector"]["kernel"] + params["projector"]["bias"]

    def key_patches(
        self,
        params: Any,
        x_f: jax.Array,
        x_l: jax.Array,
        has_lateral: jax.Array,
        t: jax.Array,
        counted: jax.Array,
    ) -> jax.Array:
        """S. has_lateral: b bool. counted: b l bool, the tokens of T that speak for the report."""
        if self.wrong.last_caption_selects:
            t, counted = (of_last(x, self.config.loss.groups) for x in (t, counted))
        gather = partial(linen.apply, self.gather(x_f.shape[1], x_l.shape[1]), params["selection"])
        tokens, there = selection.together(x_f, x_l, has_lateral, equal_scales=not self.wrong.unequal_scales)
        return selection.select(gather, tokens, there, t, counted, self.config.selection.keep_ratio)

    def gather(self, n: int, m: int) -> selection.Gather:
        """The module that draws together what is kept of n frontal and m lateral tokens."""
        ratios = self.config.selection.keep_ratio, self.config.selection.gather_ratio
        _, count = selection.sizes(n + m, *ratios)
        if self.wrong.aggregate_more:  # the code counts the tokens of two ViTs, and rounds once
            count = int(2 * n * math.prod(Fraction(str(ratio)) for ratio in ratios))
        return selection.Gather(count, self.dtype)

    def guess_words(self, params: Any, t: jax.Array, s: jax.Array, lengths: jax.Array) -> jax.Array:
        """Logits b l v of the hidden words of T, read in S. lengths: int b, the tokens of each report."""
        heard = linen.apply(self.mlm_decoder, params["mlm_decoder"], t, s, lengths)
        return linen.apply(self.mlm_head, params["mlm_head"], heard)

    def read_view(self, params: Any, t: jax.Array, x: jax.Array, lengths: jax.Array) -> jax.Array:
        """U_F or U_L: what the words T read in X_F or X_L, b l d. lengths: int b, the words of each report."""
        return linen.apply(self.view_decoder, params["view_decoder"], t, x, lengths)

    def scores(self, params: Any, vectors: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        """C ḡ by name, b k each, of vectors b d and the prototypes with these parameters."""
        z = {name: linen.apply(self.prototypes, params, g) for name, g in vectors.items()}
        return {name: z[name] * length(g) for name, g in vectors.items()} if self.wrong.raw_prototypes else z


def is_learned(lateral: Any) -> bool:
    """Whether the lateral encoder is trained: as `train` says, by default where it has no weights to start from.

    Raises ValueError where it would stay as it was drawn.
    """
    train = not lateral.init_from if lateral.train is None else lateral.train
    if not train and not lateral.init_from:
        raise ValueError(
            "lateral.train=False without lateral.init_from would keep a random Swin for the whole run: give the folder "
            "of a Hugging Face Swin as lateral.init_from, or train it with lateral.train=True"
        )
    return train


def length(x: jax.Array) -> jax.Array:
    """b d → b 1; its gradient is finite at 0 too, the vector of a report without words."""
    return jnp.sqrt(jnp.sum(x**2, axis=-1, keepdims=True) + 1e-12)


def of_last(x: jax.Array, groups: int) -> jax.Array:
    """b … → b …, every row replaced by the last of its group of consecutive rows."""
    return jnp.repeat(rearrange(x, "(g b) ... -> g b ...", g=groups)[:, -1], len(x) // groups, axis=0)
