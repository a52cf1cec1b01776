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

from cxrjax import monitors
from cxrjax.losses import redundancy
from cxrjax.methods import settings
from cxrjax.methods.base import Aux, Config, Method, Parts, joined, keep_state, total
from cxrjax.methods.trunk import encode_by, pictures, projected, two_views
from cxrjax.models import backbone, heads


def make(config: Config) -> Method:
    """config: model, projector, loss, views, augment, standardise; see configs/barlow_twins.py for every key."""
    settings.counts(config, "projector.sizes")
    settings.positive(config, "loss.scale")
    settings.weights(config, "loss.lambd")
    settings.slices(config, "loss.groups")
    encoder, pairs, dtype = backbone.make(config.model), pictures(config), jnp.dtype(config.model.dtype)
    projector = heads.MLP(tuple(config.projector.sizes), bias=False, last_bias=False, dtype=dtype)
    network = projected(encoder, projector)

    def loss_of(params, state, features, prepared, step):
        z_a, stats = network.project(params, state["batch_stats"], features["y"])
        z_b, stats = network.project(params, stats, features["y_prime"])
        terms = redundancy.barlow(z_a, z_b, **config.loss)
        return total(terms), Aux({"batch_stats": stats}, terms, monitors.embedding(z_a, z_b))

    def init(key, batch):
        params, stats = network.init(key)
        return params, {"batch_stats": stats}

    encode, parts = encode_by(encoder, config.standardise), Parts(*two_views(encoder, pairs), loss_of)
    functions = pairs.views, init, joined(parts), keep_state, encode
    return Method(*functions, config.model.image_px, parts=parts, look=pairs.look)
