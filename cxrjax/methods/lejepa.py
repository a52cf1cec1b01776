"""LeJEPA: self-supervision without a teacher. Balestriero, LeCun, 2025, arXiv 2511.08544.

    z_v = h(f(x_v)),  v = 1 … V, of which the first V_g are large crops      every view alike; z is not normalised
    z̄ = 1/V_g Σ_{v ≤ V_g} z_v                                               the gradient flows through it
    inv = mean over v, pictures, d of (z̄ − z_v)²
    EP(s) = b Σ_j ω_j e^(−t_j²/2) [(1/b Σ_n cos t_j s_n − e^(−t_j²/2))² + (1/b Σ_n sin t_j s_n)²]
    SIGReg = mean over v, k of EP of the b numbers z_v·a_k                    a_k: random unit vectors, new every step
    loss = (1 − λ) inv + λ SIGReg

symbol   here                        meaning                                          default; with chestxray14
λ        loss.lambd                  weight of SIGReg                                 0.02; 0.05
a_k      loss.slices                 how many directions                              256; 1024
t ω      loss.t_max, knots           points on [0, t_max], trapezoid weights, doubled 3, 17
V_g V    local_views.count           large crops, all crops                           2, 4; 2, 8
h        projector.hidden, out       Linear–BatchNorm–ReLU twice, then Linear         512, 64; 2048, 512
z̄       loss.centre                 of the large crops (the paper), or of "all"      global

No teacher, predictor, queue or stop-gradient. Each view is a sample of its own for EP, over all devices' b pictures;
`loss.per_view=False` makes all views one sample, as stable-pretraining does. The BatchNorms of h are over all views.

**λ belongs to a batch.** EP has the factor b: of a perfect Gaussian its mean is 1.0525 for any b (the loss does not
fall below that times λ), while a collapse costs 0.402 b. At half the batch the same λ pulls half as hard against inv.
`loss.rows` = the batch that a λ was chosen for keeps its strength in another. λ of additive forms (`loss.form`: inv + λ
SIGReg, an early version of the paper and stable-pretraining) are others again.

The equations, λ, t, ω, h, crops and AdamW are the released code's and its README's; the paper's own text was not
readable to us. Its minimal script has "all" for z̄, λ 0.02, 256 directions, 16 dimensions of z and four crops of one
size. It puts a linear layer to 512 under h, which is left out here, and ends at half of its highest learning rate,
where the README has a thousandth. The commands of its ablations have a teacher and hide 30 % of the patches as well;
the plain form is here. Its products z·a are in half precision; here in float32. Our choice: no flips, no negatives
(`augment.solarise`), one grey channel, 512 dimensions. No result on radiographs is published.
"""

import jax
import jax.numpy as jnp

from cxrjax import monitors, rng
from cxrjax.losses import gaussian
from cxrjax.losses.redundancy import deviation
from cxrjax.methods import settings
from cxrjax.methods.base import Aux, Config, Method, Parts, joined, keep_state, total
from cxrjax.methods.trunk import encode_by, multi_crop, pooled_crops, projected
from cxrjax.models import backbone, heads


def make(config: Config) -> Method:
    """config: model, projector, loss, views, local_views, augment, standardise; see configs/lejepa.py for every key."""
    settings.one_of(config, "loss.centre", ("global", "all"))
    settings.one_of(config, "loss.form", ("convex", "additive"))
    settings.counts(config, "loss.slices", "projector.hidden", "projector.out", "local_views.px")
    settings.counts(config, "loss.knots", least=2)
    settings.counts(config, "local_views.count", least=0)
    settings.positive(config, "loss.t_max", "loss.rows")
    settings.shares(config, "loss.lambd")
    encoder, lambd = backbone.make(config.model), config.loss.lambd
    crops, hidden = multi_crop(config, encoder), config.projector.hidden
    projector = heads.MLP((hidden, hidden, config.projector.out), dtype=jnp.dtype(config.model.dtype))
    network = projected(encoder, projector)
    test = {"t_max": config.loss.t_max, "count": config.loss.knots}

    def prepare(batch, key):
        # A key for each picture, all the same: what is prepared is cut into slices of the batch.
        draw = jnp.broadcast_to(rng.fold(key, "slices"), (len(batch["image"]),))
        return {"crops": crops.prepare(batch, key), "draw": draw}

    def embed(params, state, prepared):
        y, stats = pooled_crops(encoder, params["encoder"], state["batch_stats"]["encoder"], prepared["crops"])
        return {"y": y}, stats  # b v d

    def loss_of(params, state, features, prepared, step):
        z, stats = network.project(params, state["batch_stats"], features["y"])  # b v d
        a = gaussian.directions(prepared["draw"][0], config.projector.out, config.loss.slices)
        options = {"rows": config.loss.rows, "per_view": config.loss.per_view}
        sigreg, largest = gaussian.sigreg(z, a, **test, **options)
        inv = gaussian.to_centre(z, z.shape[1] if config.loss.centre == "all" else 2)
        kept = 1 - lambd if config.loss.form == "convex" else 1.0
        terms = {"inv": kept * inv, "sigreg": lambd * sigreg}
        watched = monitors.embedding(z[:, 0], z[:, 1]) | {
            "sigreg_above_floor": jax.lax.stop_gradient(sigreg) - gaussian.floor(**test),
            "largest_projection": largest,
            "embedding_std": deviation(z[:, 0]).mean(),
        }
        return total(terms), Aux({"batch_stats": stats}, terms, watched)

    def init(key, batch):
        params, stats = network.init(key)
        return params, {"batch_stats": stats}

    encode, parts = encode_by(encoder, config.standardise), Parts(prepare, embed, loss_of)
    functions = crops.views, init, joined(parts), keep_state, encode
    return Method(*functions, config.model.image_px, parts=parts, look=crops.look)
