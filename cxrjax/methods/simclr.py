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
anchors (`loss.sum_of_views`). Code that takes negatives from one device's rows only: `loss.groups`. Our choice: the
initialisation (theirs: N(0, 0.01²)), grey jitter without hue and saturation, PyTorch's BatchNorm.
"""

import jax
import jax.numpy as jnp
from einops import rearrange

from cxrjax import monitors, rng
from cxrjax.input import crops, device
from cxrjax.input.augment import Augment, augment
from cxrjax.losses import contrastive
from cxrjax.methods.base import Aux, Method
from cxrjax.models import backbone, heads


def make(config) -> Method:
    """config: model, projector, loss, views, augment, standardise; see configs/simclr.py for every key."""
    encoder = backbone.make(config.model)
    projector = projection_head(config.projector, encoder.width, jnp.dtype(config.model.dtype))
    crop, settings = crops.Crop(config.model.image_px, **config.views), Augment(**config.augment)

    def loss(params, state, batch, key, step):
        images = augment(rng.fold(key, "augment"), batch["image"], settings)
        images = device.standardise(images, **config.standardise)  # b v h w 1
        z, stats = project(params, state["batch_stats"], rearrange(images, "b v h w c -> (b v) h w c"), key)
        u, v = (rearrange(z, "(b v) d -> b v d", v=2)[:, i] for i in range(2))  # b d
        value = contrastive.nt_xent(u, v, temperature=config.loss.temperature, groups=config.loss.groups)
        if config.loss.sum_of_views:
            value = 2 * value
        return value, Aux({"batch_stats": stats}, {"contrast": value}, monitors.embedding(u, v))

    def project(params, stats, images, key):
        """(b v) h w c → z (b v) d, and the running statistics after all of them."""
        drop = rng.fold(key, "drop_path")
        h, moved = encoder.apply(params["encoder"], stats["encoder"], images, train=True, key=drop)
        z, moved_head = heads.run(projector, params["projector"], stats["projector"], h["pooled"], train=True)
        return z, {"encoder": moved, "projector": moved_head}

    def init(key, batch):
        params, stats = {}, {}
        params["encoder"], stats["encoder"] = encoder.init(rng.fold(key, "encoder"))
        params["projector"], stats["projector"] = heads.start(projector, rng.fold(key, "projector"), encoder.width)
        return params, {"batch_stats": stats}

    def make_views(example, rng):
        return {"image": crops.views(crops.decode(example["image"]), rng, crop, crop)}

    def encode(params, state, images):
        images = device.standardise(images, **config.standardise)
        return encoder.apply(params["encoder"], state["batch_stats"]["encoder"], images, train=False)[0]

    return Method(make_views, init, loss, lambda params, state, step: state, encode, config.model.image_px)


def projection_head(config, width: int, dtype: jax.typing.DTypeLike) -> heads.MLP:
    """g of the docstring, for an encoder of this width; config: layers, hidden (None: width), out, norm.

    Raises ValueError for fewer than one layer.
    """
    if config.layers < 1:
        raise ValueError(f"projector.layers must be at least 1 (2 in the paper, 3 in SimCLR v2), got {config.layers}")
    sizes = (*[config.hidden or width] * (config.layers - 1), config.out)
    # A layer without BatchNorm keeps its bias; before one it would do nothing.
    plain = config.norm == "none"
    return heads.MLP(sizes, config.norm, not plain, last_affine="scale", bias=plain, last_bias=plain, dtype=dtype)
