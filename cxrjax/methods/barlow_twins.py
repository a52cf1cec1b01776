"""Barlow Twins: self-supervised learning via redundancy reduction. Zbontar, Jing, Misra, LeCun, Deny, ICML 2021.

    Z^A = h(f(t(X))),  Z^B = h(f(t′(X)))           one encoder f, two random views t, t′ of every picture of the batch
    Ẑ_j = (Z_j − mean) / √(var + 10⁻⁵)             every dimension over the batch: a BatchNorm without scale and bias
    C = (1/M) (Ẑ^A)ᵀ Ẑ^B                           d d, the cross-correlation of the two views
    loss = Σ_j (1 − C_jj)² + λ Σ_{i≠j} C_ij²                                statistics over all devices' M pictures

symbol   here               meaning                                              default
λ        loss.lambd         weight of the redundancy term                        0.0051
h        projector.sizes    Linear–BatchNorm–ReLU, the last one Linear; no bias  8192, 8192, 8192
M d      batch_size         pictures, dimensions                                 2048, 8192
         loss.scale         factor on the loss                                   1

arXiv 2103.03230. λ, h, BatchNorm over all devices, the views and LARS's settings are those of the paper and of the
authors' code, with ResNet-50. Their first code multiplied the loss by 0.024 (default 1/32); the present one gives
biases and BatchNorm 0.0048 in place of the learning rate 0.2, as the paper says, which that factor did under LARS.
Hue, saturation and the turn to grey do nothing to a radiograph. ViTs, and what configs/barlow_twins.py sets without
`chestxray14`, are our choice. `loss.groups` takes the statistics of slices of the batch, as unsynchronised code does.
"""

from functools import partial

import jax
import jax.numpy as jnp

from cxrjax import monitors
from cxrjax.input import device, views
from cxrjax.input.augment import Augment, augment
from cxrjax.losses import redundancy
from cxrjax.methods.base import Aux, Method
from cxrjax.models import backbone
from cxrjax.models.heads import MLP


def make(config) -> Method:
    """config: model, projector, loss, views, augment, standardise; see configs/barlow_twins.py for every key."""
    encoder = backbone.make(config.model)
    dtype = jnp.dtype(config.model.dtype)
    projector = MLP(tuple(config.projector.sizes), bias=False, last_bias=False, dtype=dtype)
    crop = views.Crop(encoder.image_px, **config.views)
    changes = Augment(**config.augment)

    def loss(params, state, batch, key, step):
        images = device.standardise(augment(key, batch["image"], changes), **config.standardise)  # b v h w 1
        stats, (z_a, z_b) = jax.lax.scan(partial(embed, params), state["batch_stats"], jnp.moveaxis(images, 1, 0))
        terms = redundancy.barlow(z_a, z_b, **config.loss)
        return sum(terms.values()), Aux({"batch_stats": stats}, terms, monitors.embedding(z_a, z_b))

    def embed(params, stats, images):
        """Z of one view, normalised by its own statistics, and running statistics moved on from those of the last."""
        features, encoder_stats = encoder.apply(params["encoder"], stats["encoder"], images, train=True)
        variables = {"params": params["projector"], "batch_stats": stats["projector"]}
        z, updated = projector.apply(variables, features["pooled"], True, mutable=["batch_stats"])
        return {"encoder": encoder_stats, "projector": updated["batch_stats"]}, z

    def init(key, batch):
        key_encoder, key_projector = jax.random.split(key)
        params, stats = encoder.init(key_encoder)
        head = projector.init(key_projector, jnp.zeros((1, encoder.width)), False)
        stats = {"encoder": stats, "projector": head["batch_stats"]}
        return {"encoder": params, "projector": head["params"]}, {"batch_stats": stats}

    def make_views(example, rng):
        return {"image": views.crops(views.decode(example["image"]), rng, crop, crop)}

    def encode(params, state, images):
        images = device.standardise(images, **config.standardise)
        return encoder.apply(params["encoder"], state["batch_stats"]["encoder"], images, train=False)[0]

    return Method(make_views, init, loss, lambda params, state, step: state, encode, encoder.image_px)
