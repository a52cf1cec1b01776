"""SimCLR: a simple framework for contrastive learning. Chen, Kornblith, Norouzi, Hinton, ICML 2020, arXiv 2002.05709.

    x̃_i, x̃_j = t(x), t'(x),  t, t' ~ T                                  two random views of every picture
    h = f(x̃),  z = g(h) = W₂ σ(W₁ h)                                    §2.1  encoder, projector; σ is ReLU
    ℓ(i, j) = −log [exp(sim(z_i, z_j)/τ) / Σ_{k≠i} exp(sim(z_i, z_k)/τ)]   eq. 1  sim is the cosine
    loss = 1/(2M) Σ_k [ℓ(2k−1, 2k) + ℓ(2k, 2k−1)]                       algorithm 1  M pictures over all devices

symbol  here            meaning                              default
τ       temperature     temperature                          0.1, the best of table 5
g       projector       layers, hidden width, output width   2, d (the encoder's), 128; v2 (2006.10029) has 3 layers
M       batch_size      pictures; every anchor has 2M − 2 negatives

The paper states loss, projector, views, τ, statistics over all devices, LARS of 0.3 · M/256, decay 1e-6, 10 epochs of
warm-up. As in the authors' code and not in the equation of g, every linear layer of the projector has no bias and a
BatchNorm, the last one with a scale alone (`projector.norm = "none"` leaves these out). Both views go through the
network together, so that a BatchNorm sees 2M pictures, as there.

Released code and paper differ in the scale: the code adds the two directions where algorithm 1 takes the mean over 2M
anchors (`loss.sum_of_views`). `loss.groups` takes negatives from one device's rows only, as some code does. Our choice:
the initialisation (theirs: N(0, 0.01²)), grey jitter without hue and saturation, PyTorch's BatchNorm.
"""

import jax.numpy as jnp
from einops import rearrange

from cxrjax import monitors, rng
from cxrjax.losses import contrastive
from cxrjax.methods import settings
from cxrjax.methods.base import Aux, Config, Method, Parts, joined, keep_state
from cxrjax.methods.trunk import encode_by, pictures, projected
from cxrjax.models import backbone, heads


def make(config: Config) -> Method:
    """config: model, projector, loss, views, augment, standardise; see configs/simclr.py for every key."""
    settings.one_of(config, "projector.norm", heads.NORMS)
    settings.counts(config, "projector.layers", "projector.hidden", "projector.out")
    settings.positive(config, "loss.temperature")
    settings.slices(config, "loss.groups", "loss.chunks")
    encoder, pairs = backbone.make(config.model), pictures(config)
    network = projected(encoder, projection_head(config.projector, encoder.width, jnp.dtype(config.model.dtype)))

    def prepare(batch, key):
        images = pairs.prepare(key, batch["image"])  # b v h w 1
        return {"images": images, "paths": encoder.paths(rng.fold(key, "drop_path"), *images.shape[:2])}

    def embed(params, state, prepared):
        images, stats = rearrange(prepared["images"], "b v h w c -> (b v) h w c"), state["batch_stats"]["encoder"]
        y, stats = encoder.apply(params["encoder"], stats, images, train=True, paths=prepared["paths"])
        return {"y": rearrange(y["pooled"], "(b v) d -> b v d", v=2)}, stats

    def loss_of(params, state, features, prepared, step):
        y = rearrange(features["y"], "b v d -> (b v) d")
        z, stats = network.project(params, state["batch_stats"], y)  # (b v) d
        u, v = (rearrange(z, "(b v) d -> b v d", v=2)[:, i] for i in range(2))  # b d
        options = {name: config.loss[name] for name in ("temperature", "groups", "chunks")}
        value = contrastive.nt_xent(u, v, **options)
        if config.loss.sum_of_views:
            value = 2 * value
        return value, Aux({"batch_stats": stats}, {"contrast": value}, monitors.embedding(u, v))

    def init(key, batch):
        params, stats = network.init(key)
        return params, {"batch_stats": stats}

    encode, parts = encode_by(encoder, config.standardise), Parts(prepare, embed, loss_of)
    functions = pairs.views, init, joined(parts), keep_state, encode
    return Method(*functions, config.model.image_px, parts=parts, look=pairs.look)


def projection_head(config: Config, width: int, dtype: jnp.dtype) -> heads.MLP:
    """g of the docstring, for an encoder of this width; config: layers, hidden (None: width), out, norm."""
    sizes = (*[config.hidden or width] * (config.layers - 1), config.out)
    # A layer without BatchNorm keeps its bias; before one it would do nothing.
    plain = config.norm == "none"
    return heads.MLP(sizes, config.norm, not plain, last_affine="scale", bias=plain, last_bias=plain, dtype=dtype)
