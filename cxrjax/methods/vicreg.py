"""VICReg: Variance-Invariance-Covariance Regularization. Bardes, Ponce, LeCun, ICLR 2022, arXiv 2105.04906.

    Y = f(t(X)),  Y′ = f(t′(X))          one encoder f, two random views t, t′ of every picture of the batch
    Z = h(Y),     Z′ = h(Y′)             expander h, M d
    loss = λ s(Z, Z′) + μ/2 [v(Z) + v(Z′)] + ν [c(Z) + c(Z′)]
    s(Z, Z′) = (1/Md) Σ (Z − Z′)²
    v(Z) = (1/d) Σ_j max(0, 1 − √(Var(Z_j) + 10⁻⁴))
    c(Z) = (1/d) Σ_{i≠j} Cov(Z_i, Z_j)²                                     statistics over all devices' M pictures

symbol   here                  meaning                                     default; with chestxray14
λ μ ν    loss.sim, std, cov    weights                                     25, 25, 1
h        expander.sizes        Linear–BatchNorm–ReLU, the last one Linear  512 each; 8192 each
M d      batch_size, sizes[-1] pictures, dimensions                        128, 512; 2048, 8192

The weights, h, BatchNorm over all devices, the views and LARS's settings are those of the authors' code and ResNet-50;
so are the ½ and the mean over d in s, which the paper's equations lack. 25, 25, 1 are in balance for their M and d: c
cannot fall below d/(M−1) − 1 at unit variance, so a smaller batch wants a smaller d. Hue, saturation and the turn to
grey do nothing to a radiograph. ViTs, and what configs/vicreg.py sets without `chestxray14`, are our choice.
`loss.groups` takes the statistics of slices of the batch, which is what code without a gather over devices does.
"""

import jax.numpy as jnp

from cxrjax import monitors
from cxrjax.losses import redundancy
from cxrjax.methods import settings
from cxrjax.methods.base import Aux, Config, Method, Parts, joined, keep_state, total
from cxrjax.methods.trunk import encode_by, pictures, projected, two_views
from cxrjax.models import backbone, heads


def make(config: Config) -> Method:
    """config: model, expander, loss, views, augment, standardise; see configs/vicreg.py for every key."""
    settings.counts(config, "expander.sizes")
    settings.weights(config, "loss.sim", "loss.std", "loss.cov")
    settings.slices(config, "loss.groups")
    encoder, pairs = backbone.make(config.model), pictures(config)
    expander = heads.MLP(tuple(config.expander.sizes), last_bias=False, dtype=jnp.dtype(config.model.dtype))
    network = projected(encoder, expander)

    def loss_of(params, state, features, prepared, step):
        z, stats = network.project(params, state["batch_stats"], features["y"])
        z_prime, stats = network.project(params, stats, features["y_prime"])
        terms = redundancy.vicreg(z, z_prime, **config.loss)
        watched = monitors.embedding(z, z_prime) | {"embedding_std": redundancy.deviation(z).mean()}
        return total(terms), Aux({"batch_stats": stats}, terms, watched)

    def init(key, batch):
        params, stats = network.init(key)
        return params, {"batch_stats": stats}

    encode, parts = encode_by(encoder, config.standardise), Parts(*two_views(encoder, pairs), loss_of)
    functions = pairs.views, init, joined(parts), keep_state, encode
    return Method(*functions, config.model.image_px, parts=parts, look=pairs.look)
