"""Barlow Twins: self-supervised learning via redundancy reduction. Zbontar, Jing, Misra, LeCun, Deny, ICML 2021.

    Z^A = h(f(t(X))),  Z^B = h(f(t′(X)))           one encoder f, two random views t, t′ of every picture of the batch
    Ẑ_j = (Z_j − mean) / √(var + 10⁻⁵)             every dimension over the batch: a BatchNorm without scale and bias
    C = (1/M) (Ẑ^A)ᵀ Ẑ^B                           d d, the cross-correlation of the two views
    loss = Σ_j (1 − C_jj)² + λ Σ_{i≠j} C_ij²                                statistics over all devices' M pictures

symbol   here               meaning                                              default; with chestxray14
λ        loss.lambd         weight of the redundancy term                        0.0051
h        projector.sizes    Linear–BatchNorm–ReLU, the last one Linear; no bias  512 each; 8192 each
M d      batch_size         pictures, dimensions                                 128, 512; 2048, 8192
         loss.scale         factor on the loss                                   1

arXiv 2103.03230. λ, h, BatchNorm over all devices, the views and LARS's settings are those of the paper and of the
authors' code, with ResNet-50. Their first code multiplied the loss by 0.024 (default 1/32); the present one gives
biases and BatchNorm 0.0048 in place of the learning rate 0.2, as the paper says, which that factor did under LARS.
Hue, saturation and the turn to grey do nothing to a radiograph. ViTs, and what configs/barlow_twins.py sets without
`chestxray14`, are our choice. `loss.groups` takes the statistics of slices of the batch, as unsynchronised code does.
"""

import jax.numpy as jnp

from cxrjax import monitors, rng
from cxrjax.input import crops, device
from cxrjax.input.augment import Augment, augment
from cxrjax.losses import redundancy
from cxrjax.methods.base import Aux, Method
from cxrjax.models import backbone, heads


def make(config) -> Method:
    """config: model, projector, loss, views, augment, standardise; see configs/barlow_twins.py for every key."""
    encoder = backbone.make(config.model)
    dtype = jnp.dtype(config.model.dtype)
    projector = heads.MLP(tuple(config.projector.sizes), bias=False, last_bias=False, dtype=dtype)
    crop, settings = crops.Crop(config.model.image_px, **config.views), Augment(**config.augment)

    def loss(params, state, batch, key, step):
        images = augment(rng.fold(key, "augment"), batch["image"], settings)
        images = device.standardise(images, **config.standardise)  # b v h w 1
        stats = state["batch_stats"]
        z_a, stats = embed(params, stats, images[:, 0], rng.fold(key, "drop_path", 0))
        z_b, stats = embed(params, stats, images[:, 1], rng.fold(key, "drop_path", 1))
        terms = redundancy.barlow(z_a, z_b, **config.loss)
        return sum(terms.values()), Aux({"batch_stats": stats}, terms, monitors.embedding(z_a, z_b))

    def embed(params, stats, images, key):
        """Z of one view, normalised by its own statistics, and running statistics moved on from those of the last."""
        y, moved = encoder.apply(params["encoder"], stats["encoder"], images, train=True, key=key)
        z, moved_head = heads.run(projector, params["projector"], stats["projector"], y["pooled"], train=True)
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
