"""Ark+: one encoder learns the labels of many sets, each by a head of its own. Ma et al., Nature 2025.

    z = g(f(x)),  s = W_k z + c_k                  student on a random crop x of a picture of set k; head of that set
    z̄ = ḡ(f̄(x̄)),  no gradient                     teacher on the whole picture x̄
    L_cls = mean over pictures of the cross-entropy of s with what set k says of the picture
    L_con = mean over pictures and d of (z − z̄)²
    loss = (1 − λ) L_cls + λ L_con,                λ from 0 to λ_K along half a cosine
    θ ← optimizer;  every E steps θ̄ ← m θ̄ + (1 − m) θ,  m from m₀ to 1 along half a cosine       of f and g

symbol  here                  meaning                                               default; with chestxray14
W_k     set_heads             by set: labels, and task multilabel or multiclass     all labels of each set, multilabel
g       projector             layers, out                                           1, 128; 1376
λ_K     loss.consistency                                                            ½
m₀ E    momentum,             as there at the end of each pass of a set;            0.9, 10; 400
        update_every_steps    the steps of a pass are to be given here
k       data.order            cyclic: a pass of a set after that of another;        cyclic with several sets
                              mixed: every batch of all sets

No label of one set is compared with one of another, so that sets which name or decide their findings differently need
no common list. The first version (Ark, MICCAI 2023, 2310.09507) shows the teacher a random crop of its own:
`teacher_view="crop"`. Of both papers only the abstracts and figures were readable to us; all above is the released
code's, in which λ = 5 (m − 0.9), the same for m₀ = 0.9 and negative below. There a picture is squeezed into a square
before it is cut; here it keeps its proportions, and x̄ is the middle square, as encoders are judged. There an uncertain
label is a number from 0.55 to 0.85, drawn once; here a published policy decides (`uncertain`), and what is not known
counts for nothing.

A slip of that code, and a switch, set by configs/ark.py:released:
    target_start="independent"    the teacher starts from other random numbers than the student

Our choice: a ViT or ResNet in place of a Swin, weights of pictures in a mixed batch (alike), and the recipe. A ResNet's
teacher normalises by its batch. The teacher is evaluated, as there, by f̄ alone; its linear probe there reads ḡ.
"""

from collections.abc import Mapping, Sequence
from functools import cache

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from cxrjax import monitors, optim, rng
from cxrjax.config import names
from cxrjax.input import augment, converted_sets, crops, device, policies
from cxrjax.losses import classification
from cxrjax.methods import settings
from cxrjax.methods.base import Aux, Config, Method, Parts, encoder_params, joined, ramp, target_of, total
from cxrjax.models import backbone, heads, linen

TASKS = ("multilabel", "multiclass")


def make(config: Config) -> Method:
    """config: model, set_heads, uncertain, projector, momentum, loss, views, augment, standardise: configs/ark.py."""
    settings.one_of(config, "teacher_view", ("whole", "crop"))
    settings.one_of(config, "target_start", ("copy", "independent"))
    settings.counts(config, "projector.layers", "projector.out", "update_every_steps")
    settings.shares(config, "momentum", "loss.consistency")
    labels = {name: names(config.set_heads[name].labels) for name in sorted(config.set_heads)}
    check(config, labels)
    student = backbone.make(config.model)
    teacher = backbone.make({**config.model, "drop_path": 0.0})
    projector = heads.MLP(config.projector.layers * (config.projector.out,), "none", dtype=student.module.dtype)
    layers = {name: nn.Dense(len(each), kernel_init=nn.initializers.normal(0.01)) for name, each in labels.items()}
    changes, crop = augment.Augment(**config.augment), crops.Crop(config.model.image_px, **config.views)
    augment.check(changes, 1)
    momentum, weight = ramp(config, config.momentum), ramp(config, 0.0, config.loss.consistency)

    def prepare(batch, key):
        changed = augment.augment(rng.fold(key, "augment"), batch["image"][:, :1], changes)[:, 0]
        own, whole = (device.standardise(x, **config.standardise) for x in (changed, batch["image"][:, 1]))
        paths = student.paths(rng.fold(key, "drop_path"), len(own))
        return {"student": own, "teacher": whole, "paths": paths, "labels": batch["labels"]}

    def embed(params, state, prepared):
        stats = state["batch_stats"]["encoder"]
        y, moved = student.apply(params["encoder"], stats, prepared["student"], train=True, paths=prepared["paths"])
        target, _ = teacher.apply(state["target"]["encoder"], stats, prepared["teacher"], train=True)
        return {"student": y["pooled"], "teacher": target["pooled"]}, moved

    def loss_of(params, state, features, prepared, step):
        z, _ = heads.run(projector, params["projector"], {}, features["student"], train=True)
        target, _ = heads.run(projector, state["target"]["projector"], {}, features["teacher"], train=True)
        target, share = jax.lax.stop_gradient(target), weight(step)
        watched = monitors.embedding(z, target) | {"momentum": momentum(step), "consistency_weight": share}
        answered, pictures, start = jnp.zeros(()), jnp.zeros(()), 0
        for name, each in labels.items():
            known = prepared["labels"][:, start : start + len(each)]
            logits, start = linen.apply(layers[name], params["heads"][name], z), start + len(each)
            if config.set_heads[name].task == "multilabel":
                value, count = classification.binary(logits, known), jnp.sum(jnp.any(known >= 0, axis=1))
            else:
                value, count = classification.multiclass(logits, known), jnp.sum(jnp.sum(known == 1, axis=1) == 1)
            answered, pictures = answered + count * value, pictures + count
            watched[f"cross_entropy_{name}"] = jax.lax.stop_gradient(value)
        terms = {
            "cross_entropy": (1 - share) * answered / jnp.maximum(pictures, 1),
            "consistency": share * jnp.mean((z - target) ** 2),
        }
        return total(terms), Aux(state, terms, watched)

    def both(key):
        params, stats = student.init(rng.fold(key, "encoder"))
        started, _ = heads.start(projector, rng.fold(key, "projector"), student.width)
        return {"encoder": params, "projector": started}, stats

    def init(key, batch):
        params, stats = both(key)
        target = jax.tree.map(jnp.copy, params) if config.target_start == "copy" else both(rng.fold(key, "target"))[0]
        blank = jnp.zeros((1, config.projector.out))
        params["heads"] = {name: linen.init(layer, rng.fold(key, name), blank) for name, layer in layers.items()}
        return params, {"batch_stats": {"encoder": stats}, "target": target}

    @cache
    def label_names():
        """By set; opened when the first picture comes, so that encoding needs no set."""
        opened = [converted_sets.open_set(name) for name in names(config.data.sets)]
        return of_sets({each.name: each.label_names for each in opened}, labels)

    def make_views(example, rng):
        image, px, known = crops.decode(example["image"]), config.model.image_px, []
        for name, wanted in labels.items():
            if name == example["set"]:
                known.append(policies.answers(example["labels"], label_names()[name], wanted, config.uncertain))
            else:
                known.append(np.full(len(wanted), -1, np.int8))
        if config.teacher_view == "crop":
            seen = crops.views(image, rng, crop, crop)
        else:
            seen = np.concatenate([crops.views(image, rng, crop), crops.fit(image, px)[None, ..., None]])
        return {"image": seen, "labels": np.concatenate(known)}

    def after(params, state, step):
        moved = optim.ema(state["target"], target_of(params, state), momentum(step))
        now = (step + 1) % config.update_every_steps == 0
        return {**state, "target": jax.tree.map(lambda new, old: jnp.where(now, new, old), moved, state["target"])}

    def encode(params, state, images):
        images, stats = device.standardise(images, **config.standardise), state["batch_stats"]["encoder"]
        return teacher.apply(encoder_params(state["target"], state), stats, images, train=False)[0]

    def learned(params, state):
        return encoder_params(state["target"], state)

    parts = Parts(prepare, embed, loss_of)
    functions = make_views, init, joined(parts), after, encode
    return Method(*functions, config.model.image_px, parts=parts, encoder=learned)


def of_sets(label_names: dict[str, Sequence[str]], labels: Mapping[str, Sequence[str]]) -> dict[str, Sequence[str]]:
    """label_names by set, once checked: every set has a head, and knows each label of it. Raises ValueError."""
    for name, known in label_names.items():
        wrong = sorted(set(labels.get(name, ())) - set(known))
        if name not in labels or wrong:
            said = f"names {wrong}, which it has not" if wrong else "is missing"
            raise ValueError(f"set_heads.{name} {said}; the labels of this set are {', '.join(known)}")
    return label_names


def check(config: Config, labels: Mapping[str, Sequence[str]]) -> None:
    """Raises ValueError for no heads, for an unknown task or policy, and for labels that are too few or twice there."""
    if not labels:
        raise ValueError(
            "there are no heads: the command makes one for each of data.sets; in Python start from "
            "initial.of_run(config), or set config.set_heads = {set: {'labels': 'a,b', 'task': 'multilabel'}}"
        )
    for name, each in labels.items():
        settings.one_of(config, f"set_heads.{name}.task", TASKS)
        task = config.set_heads[name].task
        fewest = 1 if task == "multilabel" else 2
        if len(each) < fewest or len(set(each)) < len(each):
            raise ValueError(
                f"set_heads.{name}.labels = {config.set_heads[name].labels!r}: a {task} head needs at least {fewest}, "
                f"each once, separated by commas"
            )
    if config.uncertain:
        policies.check(config.uncertain)
