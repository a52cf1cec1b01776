"""S-PCL: partitions, pairing, absence of what the paper leaves out, learning."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cxrjax import methods
from cxrjax.methods import spcl
from tests import runs
from tests.methods.conftest import smooth_pictures

SCHEMES = ("random", "block", "checkerboard")


@pytest.mark.parametrize(
    ("n", "keep", "split", "expected"),
    [
        (196, 1.0, 0.5, (98, 98)),
        (196, 0.5, 0.5, (49, 49)),
        (196, 0.25, 0.5, (24, 24)),
        (196, 0.2, 0.5, (19, 19)),
        (196, 0.1, 0.5, (9, 9)),
        (49, 1.0, 0.5, (24, 24)),
        (100, 0.2, 0.5, (10, 10)),
        (100, 0.29, 0.4, (12, 17)),
        (196, 1.0, 0.4, (78, 118)),
        (196, 1.0, 0.25, (49, 147)),
    ],
)
def test_partition_sizes(n, keep, split, expected):
    assert spcl.partition_sizes(n, keep, split) == expected


def test_impossible_partitions_are_explained():
    with pytest.raises(ValueError, match=r"parts of 0 and 0 of 16 tokens; both need at least one"):
        spcl.partition_sizes(16, 0.1, 0.5)
    with pytest.raises(ValueError, match=r"keep_ratio must be in \(0, 1\]"):
        spcl.partition_sizes(16, 1.2, 0.5)


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("seed", range(3))
def test_complete_and_disjoint(scheme, seed):
    a, b = spcl.partition(jax.random.key(seed), 50, (14, 14), 98, 98, scheme)
    assert a.dtype == b.dtype == jnp.int32
    np.testing.assert_array_equal(np.sort(np.concatenate([a, b], axis=1), axis=1), np.tile(np.arange(196), (50, 1)))
    a, b = spcl.partition(jax.random.key(seed), 50, (14, 14), 19, 30, scheme)
    assert a.shape == (50, 19) and b.shape == (50, 30)
    assert all(len(np.union1d(*row)) == 49 for row in zip(np.asarray(a), np.asarray(b), strict=True))


def test_random_partition_is_uniform():
    """Inclusion ½, covariance of two positions −1/(4·195); pictures, steps and keys differ, equal keys agree."""
    draw = jax.jit(lambda key: spcl.partition(key, 20_000, (14, 14), 98, 98)[0])
    a = np.asarray(draw(jax.random.key(0)))
    member = np.zeros((20_000, 196), bool)
    np.put_along_axis(member, a, True, axis=1)
    assert np.abs(member.mean(axis=0) - 0.5).max() < 0.015
    covariance = np.cov(member[:, :20].T.astype(float))
    assert covariance[~np.eye(20, dtype=bool)].mean() == pytest.approx(98 * 97 / (196 * 195) - 0.25, abs=5e-4)
    assert len(np.unique(np.sort(a[:1000], axis=1), axis=0)) == 1000
    np.testing.assert_array_equal(a, draw(jax.random.key(0)))
    assert (a != np.asarray(draw(jax.random.key(1)))).any()


def test_block_is_two_sides_of_a_line_and_checkerboard_two_colours():
    a, b = spcl.partition(jax.random.key(0), 8, (14, 14), 98, 98, "block")
    for one, other in zip(np.asarray(a), np.asarray(b), strict=True):
        gap = np.subtract(*(np.stack(np.divmod(ids, 14)).mean(axis=1) for ids in (one, other)))
        assert np.hypot(*gap) > 5  # random halves have centres less than 2 apart
    a, _ = spcl.partition(jax.random.key(0), 2, (14, 14), 98, 98, "checkerboard")
    rows, columns = np.divmod(np.asarray(a), 14)
    assert np.all((rows + columns) % 2 == 0)


def test_unknown_words_are_explained(batch):
    with pytest.raises(ValueError, match="scheme must be one of random, block, checkerboard, got 'organ'"):
        spcl.partition(jax.random.key(0), 1, (2, 2), 2, 2, "organ")
    config = runs.config("spcl")
    config.model.pool = "mean"
    with pytest.raises(ValueError, match="needs model.pool='cls'"):
        methods.make(config)


def variant(**changes):
    """Of the paper's reading: whole pictures, and every token in one of the two parts."""
    config = runs.config("spcl", partition__keep_ratio=1.0, views__transform="none")
    config.update_from_flattened_dict(changes)
    return methods.make(config)


def value_and_gradient(method, params, state, batch, key=0):
    def objective(params):
        return method.loss(params, state, batch, jax.random.key(key), 0)

    return jax.jit(jax.value_and_grad(objective, has_aux=True))(params)


def test_options_that_must_not_change_the_numbers(batch):
    """Embedding all patches and the full last block cost more and give the same loss and gradient."""
    method = variant()
    params, state = jax.jit(method.init)(jax.random.key(0), batch)
    (loss, _), gradient = value_and_gradient(method, params, state, batch)
    (other, _), same = value_and_gradient(
        variant(**{"partition.embed": "all", "cls_shortcut": False, "model.remat": "none", "model.unroll": True}),
        params,
        state,
        batch,
    )
    assert float(other) == pytest.approx(float(loss), rel=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), gradient, same)


@pytest.mark.parametrize(
    "changes",
    [
        {"partition.split_ratio": 0.25},
        {"partition.keep_ratio": 0.2, "partition.scheme": "block"},
        {"head.kind": "linear", "model.pool": "mean", "cls_shortcut": False},
        {"head.kind": "mlp", "loss.form": "nt_xent"},
        {"loss.similarity": "cosine", "loss.temperature": 0.14, "loss.mask_same_patient": True},
        {"standardise.mode": "per_image", "model.dtype": "bfloat16"},
    ],
)
def test_every_option_trains(batch, changes):
    method = variant(**changes)
    params, state = jax.jit(method.init)(jax.random.key(0), batch)
    (loss, aux), gradient = value_and_gradient(method, params, state, batch)
    assert 0 < float(loss) < 20
    assert float(sum(aux.terms.values())) == pytest.approx(float(loss))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))
    zero = [jax.tree_util.keystr(k) for k, g in jax.tree_util.tree_leaves_with_path(gradient) if not np.any(g)]
    assert not zero


def test_nt_xent_has_groups_as_well(batch):
    """Negatives of one slice alone: a smaller sum in the denominator."""
    values = []
    for groups in (1, 2):
        method = methods.make(runs.config("spcl", loss__form="nt_xent", loss__groups=groups))
        params, state = jax.jit(method.init)(jax.random.key(0), batch)
        values.append(float(jax.jit(method.loss)(params, state, batch, jax.random.key(1), 0)[0]))
    assert values[1] < values[0] - 0.3


def test_same_patient_pairs_leave_the_denominator(batch):
    alike = {**batch, "patient": np.zeros(16, np.int32)}
    method = variant(**{"loss.mask_same_patient": True})
    params, state = jax.jit(method.init)(jax.random.key(0), batch)
    assert float(value_and_gradient(method, params, state, alike)[0][0]) == pytest.approx(0, abs=1e-6)
    assert float(value_and_gradient(method, params, state, batch)[0][0]) > 1


def test_nothing_that_the_paper_leaves_out(batch):
    """One encoder, no decoder, mask token, momentum copy or queue; one picture per example, deterministic."""
    method = variant()
    params, state = jax.eval_shape(method.init, jax.random.key(0), batch)
    assert set(params) == {"encoder"} and state == {}
    assert set(params["encoder"]) == {"patch_embed", "cls", "blocks", "norm"}


def test_views_are_one_untouched_picture(phantom_dir):
    from cxrjax.input import converted_sets, crops, source

    example = source.select(converted_sets.open_set("phantom", phantom_dir), "train")[0]
    method = variant()
    first, second = (method.views(example, np.random.default_rng(seed)) for seed in (0, 1))
    np.testing.assert_array_equal(first["image"], second["image"])
    np.testing.assert_array_equal(first["image"][0, :, :, 0], crops.fit(crops.decode(example["image"]), 32))
    assert first["image"].shape == (1, 32, 32, 1) and first["image"].dtype == np.uint8
    # Patient 1 of one set is not patient 1 of another.
    elsewhere = method.views({**example, "set": "elsewhere"}, np.random.default_rng(0))
    assert first["patient"] == second["patient"] != elsewhere["patient"]


def train(method, pictures, steps, keys=jax.random.key):
    """Parameters, losses, last report of `steps` Adam steps on one batch; step i draws its partition from keys(i)."""
    batch = {"image": pictures, "patient": np.arange(len(pictures), dtype=np.int32)}
    params, state = jax.jit(method.init)(jax.random.key(0), batch)
    optimizer = optax.adam(2e-3)

    @jax.jit
    def step(params, opt_state, key):
        (loss, aux), gradient = jax.value_and_grad(
            lambda params: method.loss(params, state, batch, key, 0), has_aux=True
        )(params)
        updates, opt_state = optimizer.update(gradient, opt_state)
        return optax.apply_updates(params, updates), opt_state, loss, aux.monitors

    opt_state, losses = optimizer.init(params), []
    for i in range(steps):
        params, opt_state, loss, report = step(params, opt_state, keys(i))
        losses.append(float(loss))
    return params, losses, report


@pytest.mark.slow
def test_overfits_64_pictures():
    """One partition of 64 pictures, from about ln 64 to < 0.1 with every pair found."""
    _, losses, report = train(variant(), smooth_pictures(64, 32), 200, keys=lambda i: jax.random.key(0))
    assert losses[0] > 2.5
    assert losses[-1] < 0.1 and float(report["retrieval_top1"]) == 1


@pytest.mark.slow
def test_transfers_to_unseen_pictures_and_partitions():
    """Fresh partitions every step; retrieval on held-out pictures of equal mean and contrast is far above 1/64."""
    method = variant()
    params, losses, _ = train(method, smooth_pictures(64, 32), 200)
    assert np.mean(losses[-10:]) < 0.5 * np.log(64)
    held_out = {"image": smooth_pictures(64, 32, seed=1), "patient": np.arange(64, dtype=np.int32)}
    _, aux = jax.jit(method.loss)(params, {}, held_out, jax.random.key(9), 0)
    assert float(aux.monitors["retrieval_top1"]) > 0.2


@pytest.mark.slow
def test_cannot_learn_from_wrong_pairs(monkeypatch):
    """Control: with the second part taken from a random other picture, the loss stays at ln 64."""
    honest = spcl.contrastive.info_nce

    def mismatched(u, v, **options):
        seed = jax.lax.bitcast_convert_type(u[0, 0], jnp.int32)
        return honest(u, v[jax.random.permutation(jax.random.key(seed), len(v))], **options)

    monkeypatch.setattr(spcl.contrastive, "info_nce", mismatched)
    _, losses, _ = train(variant(), smooth_pictures(64, 32), 100)
    assert np.mean(losses[-30:]) > 0.97 * np.log(64)


def test_what_is_seen_of_a_picture_is_its_two_parts():
    method = methods.make(runs.config("spcl"))
    batch = {"image": np.zeros((3, 1, 32, 32, 1), np.uint8), "patient": np.arange(3, dtype=np.int32)}
    _, *parts = method.look({}, {}, batch, jax.random.key(0))
    seen = [~np.asarray(part.hidden) for part in parts]
    assert [part.sum(axis=(1, 2)).tolist() for part in seen] == [[8] * 3] * 2 and not (seen[0] & seen[1]).any()
    assert "part A: 8 of 64 patches" in parts[0].label
