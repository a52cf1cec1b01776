"""Distillation: encoders that are there teach a small one. After AM-RADIO: Ranzinger et al., CVPR 2024, 2312.06709.

    y, y_pq = f(x)                                 student: the picture's vector, and those of its patches
    t^i, t^i_pq = f_i(x)                           frozen teacher i on the same view x, in its own size and scale;
                                                   then each feature of t^i, t^i_pq has mean 0, deviation 1 in the batch
    D(ŷ, t) = α (1 − cos(ŷ, t)) + β ℓ(ŷ − t),      ℓ: mean over d of ½ δ² for |δ| < 1, else |δ| − ½
    loss = Σ_i [ D(g_i(y), t^i) + mean over p q of D(h_i(y_pq), t^i_pq) ]                       mean over pictures

symbol  here                  meaning                                                    default
f_i     teachers.init_from    runs or Hugging Face folders, by commas: RAD-DINO, an      none: one must be given
                              ensemble, a large encoder of ours
g h     head.hidden           Linear → LayerNorm → GELU → Linear to the teacher's width  256; 1536 with chestxray14
α β     loss.pooled, patches  weights of the cosine and of smooth L1                     1, 0; 0.9, 0.1

Loss, α, β, one pair of heads per teacher and their sum are the paper's. No picture needs a label. Both see one and the
same crop and changes of grey values ("consistent teaching", Beyer et al., CVPR 2022, 2106.05237), which is drawn at the
largest size among student and teachers and resized for the others. Where grids of patches differ, the teacher's is
resized to the student's (bilinear, means where it shrinks); the paper resizes the student's. Pooled is what the
teacher's own config pools. These, the heads' width and the recipe are our choice.

The paper compares a teacher's vectors as they are: `loss.standardised=False`. Vectors of radiographs have most in
common: on phantoms those of a SimCLR have a cosine of 0.98 with their mean. And of two teachers the one of
larger numbers has the larger ℓ. Both end with standardised features, as of 2410.01680, here over the batch.

Teachers stay as they are read, BatchNorm statistics included. They are part of the state and so of every checkpoint;
the student alone encodes and is exported. A run of MLVICX teaches without its gates.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp

from cxrjax import monitors, rng, sizes
from cxrjax.input import augment, crops, device
from cxrjax.losses import distill
from cxrjax.methods import settings
from cxrjax.methods.base import Aux, Config, Method, Parts, joined, keep_state, total
from cxrjax.methods.trunk import encode_by
from cxrjax.models import backbone, heads

KINDS = ("pooled", "patches")
WEIGHTS = tuple(f"{kind}_{name}" for kind in KINDS for name in ("cosine", "smooth_l1"))


def make(config: Config) -> Method:
    """config: model, teachers, head, loss, views, augment, standardise; see configs/distill.py for every key."""
    settings.counts(config, "head.hidden")
    settings.weights(config, *(f"loss.{name.replace('_', '.', 1)}" for name in WEIGHTS))
    if not config.teachers.networks:
        raise ValueError(
            "there is nobody to learn from: give --config.teachers.init_from=FOLDER, runs or Hugging Face folders of "
            "ViTs or ResNets, several by commas"
        )
    encoder, changes = backbone.make(config.model), augment.Augment(**config.augment)
    augment.check(changes, 1)
    teachers = {name: backbone.make(network.model) for name, network in config.teachers.networks.items()}
    scales = {name: network.standardise for name, network in config.teachers.networks.items()}
    shape = {"norm": "layer", "activation": "gelu", "dtype": jnp.dtype(config.model.dtype)}
    head = {name: heads.MLP((config.head.hidden, teacher.width), **shape) for name, teacher in teachers.items()}
    networks = {"model": encoder, **teachers}
    crop = crops.Crop(largest({name: network.image_px for name, network in networks.items()}), **config.views)

    def prepare(batch, key):
        grey = augment.augment(rng.fold(key, "augment"), batch["image"], changes)[:, 0]  # b h w 1
        images = {
            name: device.standardise(resized(grey, *sizes.sides(teachers[name].image_px)), **scales[name])
            for name in teachers
        }
        own = device.standardise(resized(grey, *sizes.sides(encoder.image_px)), **config.standardise)
        return {"image": own, "teachers": images, "paths": encoder.paths(rng.fold(key, "drop_path"), len(grey))}

    def embed(params, state, prepared):
        stats = state["batch_stats"]["encoder"]
        y, stats = encoder.apply(params["encoder"], stats, prepared["image"], train=True, paths=prepared["paths"])
        targets = {}
        for name, teacher in teachers.items():
            frozen = state["frozen"]["teachers"][name]
            t, _ = teacher.apply(frozen["params"], frozen["stats"], prepared["teachers"][name], train=False)
            targets[name] = {"pooled": t["pooled"], "patches": resized(t["patches"], *y["patches"].shape[1:3])}
        return {"student": y, "targets": targets}, stats

    def loss_of(params, state, features, prepared, step):
        student = features["student"]
        sums, watched = dict.fromkeys(WEIGHTS, 0.0), monitors.embedding(student["pooled"])
        for name, targets in features["targets"].items():
            for kind in KINDS:
                predicted, _ = heads.run(head[name], params["heads"][name][kind], {}, student[kind], train=True)
                target = distill.standardised(targets[kind]) if config.loss.standardised else targets[kind]
                cosine, smooth_l1 = distill.features(predicted, target)
                sums[f"{kind}_cosine"] += config.loss[kind].cosine * cosine
                sums[f"{kind}_smooth_l1"] += config.loss[kind].smooth_l1 * smooth_l1
                watched[f"{kind}_cosine_to_teacher_{name}"] = 1 - jax.lax.stop_gradient(cosine)
            watched[f"teacher_{name}_std"] = monitors.feature_std(targets["pooled"])
        terms = {name: jnp.asarray(value, jnp.float32) for name, value in sums.items()}
        return total(terms), Aux(state, terms, watched)

    def init(key, batch):
        params, stats = encoder.init(rng.fold(key, "encoder"))
        started, frozen = {}, {}
        for name, teacher in teachers.items():
            keys = {kind: rng.fold(key, f"{kind}_{name}") for kind in KINDS}
            started[name] = {kind: heads.start(head[name], keys[kind], encoder.width)[0] for kind in KINDS}
            read, of_it = teacher.init(rng.fold(key, f"teacher_{name}"))  # in whose place the folder's come
            frozen[name] = {"params": read, "stats": of_it}
        state = {"batch_stats": {"encoder": stats}, "frozen": {"teachers": frozen}}
        return {"encoder": params, "heads": started}, state

    def make_views(example, rng):
        return {"image": crops.views(crops.decode(example["image"]), rng, crop)}

    parts = Parts(prepare, embed, loss_of)
    functions = make_views, init, joined(parts), keep_state, encode_by(encoder, config.standardise)
    return Method(*functions, config.model.image_px, couples_batch=config.loss.standardised, parts=parts)


def largest(image_px: Mapping[str, sizes.Px]) -> sizes.Px:
    """The largest of several sizes, by the name that each is of. Raises ValueError where their aspects differ."""
    found = {name: sizes.sides(px) for name, px in image_px.items()}
    most = max(found.values())
    if any(height * most[1] != width * most[0] for height, width in found.values()):
        every = ", ".join(f"{sizes.said(px)} ({name})" for name, px in found.items())
        raise ValueError(
            f"model and teachers see one crop at their own sizes, which must have one aspect, got {every}; give "
            "teachers.image_px in the aspect of model.image_px"
        )
    return most


def resized(x: jax.Array, rows: int, columns: int | None = None) -> jax.Array:
    """b h w c → b rows columns c, bilinear, with means over what falls together; as it is where it has that size."""
    shape = (len(x), rows, columns or rows, x.shape[-1])
    return x if x.shape == shape else jax.image.resize(x.astype(jnp.float32), shape, "bilinear")
