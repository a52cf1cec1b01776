"""The attentive probe: loss and gradient against a NumPy loop, and a finding that is in one patch alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from cxrjax.evals import attentive, probe, run, shortcuts
from cxrjax.evals.base import MASKED, Encoder, FeatureTable, Task, digest

MASS = Task("multilabel", labels=("Mass",))


def loop(head, patches, values, share, strength, kind):
    """The loss and its gradient, picture by picture and label by label."""
    total, (b, k, d), labels = 0.0, patches.shape, values.shape[1]
    slopes = attentive.Head(*(np.zeros_like(part) for part in head))
    for i in range(b):
        looks = np.array([scipy.special.softmax(patches[i] @ q / np.sqrt(d)) for q in head.queries])  # c k
        found = np.array([looks[c] @ patches[i] @ head.weights[c] + head.intercept[c] for c in range(labels)])
        for c in range(labels):
            y = values[i, c]
            if kind == "multiclass":
                total -= (y == 1) * np.log(scipy.special.softmax(found)[c]) / b
                slope = (scipy.special.softmax(found)[c] - (y == 1)) / b
            elif y == MASKED:
                continue
            else:
                p = scipy.special.expit(found[c])
                total -= np.log(p if y == 1 else 1 - p) / (b * share[c])
                slope = (p - y) / (b * share[c])
            mean = looks[c] @ patches[i]
            slopes.intercept[c] += slope
            slopes.weights[c] += slope * mean
            for n in range(k):
                lift = head.weights[c] @ (patches[i, n] - mean) * looks[c, n]
                slopes.queries[c] += slope * lift * patches[i, n] / np.sqrt(d)
    total += strength / 2 * ((head.queries**2).sum() + (head.weights**2).sum())
    slopes.queries[:] += strength * head.queries
    slopes.weights[:] += strength * head.weights
    return total, slopes


@pytest.mark.parametrize("kind", ["multilabel", "multiclass"])
def test_loss_and_gradient_are_the_loop(kind):
    rng = np.random.default_rng(0)
    patches = rng.normal(size=(5, 4, 3))
    head = attentive.Head(rng.normal(size=(2, 3)), rng.normal(size=(2, 3)), rng.normal(size=2))
    values = np.array([[1, 0], [0, MASKED], [0, 1], [1, 0], [0, 1]], np.int8)
    values = np.where(values == MASKED, 1, values) if kind == "multiclass" else values
    share = np.array([0.9, 0.7])
    expected, slopes = loop(head, patches, values, share, 0.3, kind)
    arrays = jax.tree.map(jnp.asarray, head)
    found, gradient = jax.value_and_grad(attentive.loss)(arrays, patches, values, share, 0.3, kind)
    assert float(found) == pytest.approx(expected, rel=1e-5)
    jax.tree.map(lambda one, other: np.testing.assert_allclose(one, other, atol=1e-5), gradient, slopes)


def table(split, n=160, k=9, d=8, kind="multilabel"):
    """Pictures of noise; of those with a mass one patch, anywhere, is another. Patches have no common scale."""
    rng = np.random.default_rng([5, *split.encode()])
    present = rng.random(n) < 0.4
    patches = rng.normal(size=(n, k, d))
    patches += rng.normal(0, 1, (n, 1, d))  # what all patches of a picture share hides the mean
    patches[np.flatnonzero(present), rng.integers(0, k, present.sum()), 0] += 6
    patches = patches * np.geomspace(0.1, 10, d) + np.arange(d)
    labels = np.stack([present, ~present], axis=1).astype(np.int8)
    ids = np.array([f"{split}{i}" for i in range(n)])
    return FeatureTable(patches.astype(np.float16), labels, ids, ids)


@pytest.fixture(scope="module")
def tables():
    return {split: table(split) for split in ("train", "val", "test")}


def test_a_finding_of_one_patch_is_found_where_the_mean_hides_it(tables):
    names = ("Mass", "Normal")
    given = {"task": MASS, "label_names": names, "resamples": 50}
    found = attentive.attentive(**tables, **given, strengths=(1.0, 1e-2, 1e-3), scaled=True, cover=0.8)
    means = {split: one._replace(features=one.features.mean(axis=1, dtype=np.float32)) for split, one in tables.items()}
    linear = probe.probe(**means, **given)
    assert found.metrics["auroc"].value > 0.97 and linear.metrics["auroc"].value < 0.85
    assert found.details["strength"] in (1e-2, 1e-3) and found.details["validation"]["explained"] > 0.5
    assert 0.7 < found.metrics["coverage"].value <= 1 and 0.05 < found.details["temperature"] < 20
    assert list(found.predictions["image_id"]) == list(tables["test"].image_ids)


def test_a_strong_penalty_leaves_the_rates_and_a_row_says_nothing_of_another(tables):
    given = dict(task=MASS, label_names=("Mass", "Normal"), resamples=10, steps=60, strengths=(1e3,))
    whole = attentive.attentive(**tables, **given)
    rate = (tables["train"].labels[:, 0] == 1).mean()
    np.testing.assert_allclose(whole.predictions["score/Mass"], rate, atol=0.03)
    unknown = tables["test"].labels.copy()
    unknown[:100, 0] = -1
    fewer = attentive.attentive(**{**tables, "test": tables["test"]._replace(labels=unknown)}, **given)
    assert list(fewer.predictions["image_id"]) == list(tables["test"].image_ids[100:])
    np.testing.assert_allclose(fewer.predictions["score/Mass"], whole.predictions["score/Mass"][100:], rtol=1e-6)


def test_patches_that_are_no_numbers_name_the_picture(tables):
    broken = tables["val"].features.copy()
    broken[3, 2, 1] = np.inf
    with pytest.raises(ValueError, match="patches of the val picture 'val3' are NaN, infinite or above 65,504"):
        attentive.attentive(
            **{**tables, "val": tables["val"]._replace(features=broken)}, task=MASS, label_names=("Mass", "Normal")
        )
    with pytest.raises(ValueError, match="steps >= 1, got 0"):
        attentive.checked((1.0,), 0)


def encoder(**more):
    def encode(images):
        cells = images.reshape(len(images), 4, 4, 4, 4).astype(jnp.float32).transpose(0, 1, 3, 2, 4)
        return {"pooled": cells.mean(axis=(1, 2, 3)), "patches": cells.reshape(len(images), 4, 4, 16)}

    return Encoder(encode, 16, digest("cells"), "cells")._replace(**more)


def test_an_entry_says_the_memory_and_refuses_more(phantom_dir, tmp_path, capsys):
    entry = {"judge": "attentive", "set": "phantom", "data_dir": str(phantom_dir), "limit": 11, "bootstrap": 10}
    entry |= {"task": {"kind": "multilabel", "labels": "Effusion,Nodule,Mass"}, "steps": 3, "strengths": (0.1,)}
    found = run.evaluate(encoder(), entry, tmp_path)
    assert "33 pictures of 4×4 patches of 16 numbers take 1.6e-05 GiB of memory in float16" in capsys.readouterr().out
    assert found.details["steps"] == 3 and found.metrics["auroc"].n <= 11
    with pytest.raises(run.EvaluationError, match="more than patches_gib=1e-06 allows; allow more"):
        run.evaluate(encoder(), {**entry, "patches_gib": 1e-6}, tmp_path)
    for blind in (encoder(encode=lambda images: {"pooled": images.reshape(len(images), -1)}), shortcuts.metadata()):
        with pytest.raises(run.EvaluationError, match=f"'{blind.name}' has no patches, so there is nothing to attend"):
            run.evaluate(blind, entry, tmp_path)
