"""Supervised training on the labels of the sets: what self-supervision is compared with, and how runs are fine-tuned.

    s = W f(x) + c                                        encoder and linear head on one random view of every picture
    multilabel:  loss = −mean over known labels of [w_l t_l log σ(s_l) + (1 − t_l) log(1 − σ(s_l))]
    multiclass:  loss = −Σ_x w_x Σ_l t_l log softmax(s)_l / Σ_x w_x,  w_x = w of its class; x has one of the classes

symbol  here            meaning                                                      default
t       labels, policy  1 present, 0 absent; with smoothing ε, 1 − ε plus an even    ε = 0
        loss.smoothing  share of ε (multiclass), or 1 − ε/2 and ε/2 (multilabel)
w       loss.weights    of the present labels, or of the classes                     1

Labels are named in the config, since every set has its own: what a set does not label is not known there and counts for
nothing. What an uncertain or unmentioned label counts as is a published policy (cxrjax/input/policies.py); with policy
"" it is not known either. config.encoder says whether f learns with the head (`base.trunk`), model.pool whether f(x) is
[CLS] or the mean over the patches. CheXNet (Rajpurkar et al., 1711.05225) is the multilabel form, on DenseNet-121 and
with weights that balance both answers. All else, stochastic depth as model.drop_path among it, is our choice.
"""

from collections.abc import Sequence
from functools import cache

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from cxrjax import monitors, rng
from cxrjax.config import names
from cxrjax.input import converted_sets, device, policies
from cxrjax.losses import classification
from cxrjax.methods import settings
from cxrjax.methods.base import Answers, Aux, Config, Method, Parts, joined, keep_state
from cxrjax.methods.trunk import pictures, trunk
from cxrjax.models import linen

KINDS = ("multilabel", "multiclass")


def make(config: Config) -> Method:
    """config: model, encoder, task, labels, policy, loss, views, augment, standardise; see configs/supervised.py."""
    encoder, labels = trunk(config), names(config.labels)
    check(config, labels)
    head = nn.Dense(len(labels), kernel_init=nn.initializers.normal(0.01))
    weights = jnp.asarray(config.loss.weights or np.ones(len(labels)), jnp.float32)
    single = pictures(config, 1)

    def prepare(batch, key):
        images = single.prepare(key, batch["image"])[:, 0]  # b h w 1
        paths = encoder.backbone.paths(rng.fold(key, "drop_path"), len(images))
        return {"images": images, "paths": paths, "labels": batch["labels"]}

    def embed(params, state, prepared):
        y, moved = encoder.apply(params, state, prepared["images"], train=True, paths=prepared["paths"])
        return {"pooled": y["pooled"]}, moved

    def loss_of(params, state, features, prepared, step):
        labels, smoothing = prepared["labels"], config.loss.smoothing
        logits = linen.apply(head, params["head"], features["pooled"])
        if config.task == "multilabel":
            value = classification.binary(logits, labels, positive_weights=weights, smoothing=smoothing)
        else:
            value = classification.multiclass(logits, labels, class_weights=weights, smoothing=smoothing)
        watched = monitors.embedding(features["pooled"]) | {"known_labels": jnp.mean(labels >= 0)}
        return value, Aux(state, {"cross_entropy": value}, watched)

    def weight(prepared):
        """What the loss divides by."""
        if config.task == "multilabel":
            return classification.known_answers(prepared["labels"])
        return classification.known_classes(prepared["labels"], weights)

    def init(key, batch):
        params, state = encoder.init(rng.fold(key, "encoder"))
        params["head"] = linen.init(head, rng.fold(key, "head"), jnp.zeros((1, encoder.backbone.width)))
        return params, state

    @cache
    def label_names():
        """By set, of all that are trained on; opened when the first picture comes, so that encoding needs no set."""
        opened = [converted_sets.open_set(name) for name in names(config.data.sets)]
        return of_sets({converted.name: converted.label_names for converted in opened}, labels)

    def make_views(example, rng):
        # A picture of no set has no labels: `blank_batch` makes one.
        known = label_names()[example["set"]] if example["set"] else ()
        codes = example["labels"] if example["set"] else np.zeros(0, np.int8)
        return {**single.views(example, rng), "labels": policies.answers(codes, known, labels, config.policy)}

    def encode(params, state, images):
        images = device.standardise(images, **config.standardise)
        y, _ = encoder.apply(params, state, images, train=False)
        return y | {"logits": linen.apply(head, params["head"], y["pooled"])}

    answer = Answers(labels, config.task)
    parts = Parts(prepare, embed, loss_of, weight, keeps_statistics=config.encoder == "frozen")
    functions = make_views, init, joined(parts), keep_state, encode
    options = {"couples_batch": False, "parts": parts, "encoder": encoder.params}
    return Method(*functions, config.model.image_px, answers=answer, look=single.look, **options)


def of_sets(label_names: dict[str, Sequence[str]], wanted: Sequence[str]) -> dict[str, Sequence[str]]:
    """label_names by set, once checked: every wanted label is in a set, and every set has one. Raises ValueError."""
    nowhere = [name for name in wanted if not any(name in known for known in label_names.values())]
    useless = [name for name, known in label_names.items() if not set(wanted) & set(known)]
    if nowhere or useless:
        lists = "; ".join(f"{name}: {', '.join(known)}" for name, known in label_names.items())
        said = f"labels {nowhere} are in none of the sets" if nowhere else f"sets {useless} have none of the labels"
        raise ValueError(f"{said} that the config names ({', '.join(wanted)}). The sets' labels are {lists}")
    return label_names


def check(config: Config, labels: Sequence[str]) -> None:
    """Raises ValueError for a task, labels, policy or weights that say nothing or contradict each other."""
    settings.one_of(config, "task", KINDS)
    settings.shares(config, "loss.smoothing")
    settings.weights(config, "loss.weights")
    fewest = 1 if config.task == "multilabel" else 2
    if len(labels) < fewest or len(set(labels)) < len(labels):
        raise ValueError(
            f"labels = {config.labels!r} names {len(labels)} labels; a {config.task} task needs at least {fewest}, "
            "each once, separated by commas and named as in the sets"
        )
    if config.policy:
        policies.check(config.policy)
    if len(config.loss.weights) not in (0, len(labels)):
        raise ValueError(f"loss.weights has {len(config.loss.weights)} numbers for {len(labels)} labels; () is all 1")
