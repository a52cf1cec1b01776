"""Block corruption, with the figures measured on the released sampler."""

import hashlib
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cxrjax import parallel
from cxrjax.input import corruption
from cxrjax.input.corruption import FILLS, Corruption

PX = 224


def masks(share, align, sampler="released", count=500):
    rng, found = np.random.default_rng(0), np.zeros((count, PX, PX), bool)
    for mask in found:
        for top, left, height, width in corruption.blocks(rng, PX, share, align, sampler):
            mask[top : top + height, left : left + width] = True
    return found


@pytest.mark.parametrize(
    ("align", "share", "mean", "least", "most", "whole", "partly", "centre", "corner"),
    [
        (1, 0.75, 0.638, 0.50, 0.837, 0.36, 0.51, 0.73, 0.71),
        (1, 0.30, 0.314, 0.30, 0.39, 0.13, 0.42, 0.40, 0.38),
        (16, 0.75, 0.638, 0.50, 0.832, 0.64, 0.0, 0.73, 0.39),
        (16, 0.30, 0.314, 0.30, 0.39, 0.32, 0.0, 0.39, 0.14),
    ],
)
def test_released_sampler(align, share, mean, least, most, whole, partly, centre, corner):
    """Share hidden, cells of 16 px, and how rarely the upper left border is hidden."""
    found = masks(share, align)
    shares = found.mean(axis=(1, 2))
    assert least <= shares.min() and shares.max() < most
    assert shares.mean() == pytest.approx(mean, abs=0.01 if share == 0.75 else 0.005)
    cells = found.reshape(-1, 14, 16, 14, 16).mean(axis=(2, 4))
    assert np.mean(cells == 1) == pytest.approx(whole, abs=0.03)
    assert np.mean((cells > 0) & (cells < 1)) == pytest.approx(partly, abs=0.03 if partly else 0)
    chance = found.mean(axis=0)
    assert chance[:8, :8].mean() < (0.05 if align == 1 else 0.25)
    assert chance[104:120, 104:120].mean() == pytest.approx(centre, abs=0.05)
    assert chance[-8:, -8:].mean() == pytest.approx(corner, abs=0.07)


@pytest.mark.parametrize("align", [1, 16])
def test_uniform_sampler_hides_every_place_alike(align):
    """Flipped; the share hidden stays what it was."""
    found = masks(0.75, align, "uniform")
    assert found.mean() == pytest.approx(0.638, abs=0.012)
    chance = found.mean(axis=0).reshape(14, 16, 14, 16).mean(axis=(1, 3))
    np.testing.assert_allclose(chance, found.mean(), atol=0.085)  # four deviations of a share of 500
    # Of the outermost rows and columns, which the released sampler hides in 2 % to 40 % of the draws at align 1.
    edges = [found[:, 0].mean(), found[:, -1].mean(), found[:, :, 0].mean(), found[:, :, -1].mean()]
    np.testing.assert_allclose(edges, found.mean(), atol=0.04)


def test_what_is_drawn_for_squares_stays_what_it_was():
    """Recorded before pictures could be anything else: 20 draws of both samplers."""
    said = hashlib.sha256()
    for sampler, align, seed in itertools.product(("released", "uniform"), (1, 4), range(5)):
        kinds = Corruption(kinds="noise,zeros,image", sampler=sampler, align=align)
        drawn = corruption.draw(kinds, np.random.default_rng(seed), 32)
        said.update(drawn["fill"].tobytes())
        said.update(drawn["source"].astype("<i4").tobytes())
    assert said.hexdigest()[:16] == "822156c72f93f361"


@pytest.mark.parametrize("sampler", ["released", "uniform"])
def test_what_is_no_square_is_hidden_all_over(sampler):
    rng, hidden = np.random.default_rng(0), np.zeros((64, 160))
    for _ in range(300):
        drawn = corruption.draw(Corruption(kinds="image", donor_share=0, sampler=sampler, align=8), rng, (64, 160))
        fill, source = drawn["fill"][..., 0], drawn["source"][..., 0]
        assert fill.shape == source.shape == (64, 160) and source.max() < 64 * 160
        moved = source != np.arange(64 * 160).reshape(64, 160)
        assert (fill[moved] > 0).all() and moved.any()
        hidden += fill > 0
    share = hidden.reshape(2, 32, 4, 40).mean(axis=(1, 3)) / 300
    assert 0.4 < share[1, 1:].min() and share.max() < 0.9  # the released one rarely hides what is up or left
    with pytest.raises(ValueError, match="align 12 must divide the 64 x 160 px of the picture and be below 19"):
        Corruption(align=12).check((64, 160))


def test_share_zero_hides_nothing():
    drawn = corruption.draw(Corruption(share=0, donor_share=0), np.random.default_rng(0), 32)
    assert not drawn["fill"].any()


@pytest.mark.parametrize(
    ("kinds", "donor_share", "expected"),
    [
        ("noise", 0.3, {1: 1 / 2, 4: 1 / 2}),
        ("noise,zeros", 0.3, {1: 1 / 3, 2: 1 / 3, 4: 1 / 3}),
        ("", 0.3, {4: 1.0}),
        ("zeros", 0, {2: 1.0}),
    ],
)
def test_share_of_pictures_by_kind(kinds, donor_share, expected):
    """One kind per picture, donors among them as one of all; donors hide 30 %, the others 50–75 %."""
    rng, setting = np.random.default_rng(0), Corruption(kinds, donor_share=donor_share)
    drawn = [corruption.draw(setting, rng, 32)["fill"] for _ in range(1200)]
    kind = np.asarray([fill.max() for fill in drawn])
    assert all(set(np.unique(fill)) <= {0, k} for fill, k in zip(drawn, kind, strict=True))
    for fill, share in expected.items():
        assert np.mean(kind == fill) == pytest.approx(share, abs=0.045)
        hidden = np.mean([(f > 0).mean() for f, k in zip(drawn, kind, strict=True) if k == fill])
        assert hidden == pytest.approx(0.31 if fill == FILLS["donor"] else 0.635, abs=0.02)


def batch(setting, b=16, px=64, seed=0):
    """Random pictures b v h w 3 and what is drawn for them, b v …."""
    rng = np.random.default_rng(seed)
    drawn = [[corruption.draw(setting, rng, px) for _ in range(2)] for _ in range(b)]
    stacked = {name: np.asarray([[view[name] for view in row] for row in drawn]) for name in drawn[0][0]}
    return rng.normal(size=(b, 2, px, px, 3)).astype(np.float32), stacked


def test_equal_draws_agree_and_views_differ():
    _, one = batch(Corruption())
    _, same = batch(Corruption())
    np.testing.assert_array_equal(one["fill"], same["fill"])
    assert (one["fill"][:, 0] != one["fill"][:, 1]).any(axis=(1, 2, 3)).all()
    assert one["fill"].shape == (16, 2, 64, 64, 1) and one["fill"].dtype == np.uint8


def test_fills():
    """Untouched bit for bit outside, N(0, 1) noise, exact zeros, another picture's pixels at the same place."""
    setting = Corruption("noise,zeros")
    images, drawn = batch(setting, b=32)
    filled = np.asarray(corruption.apply(setting, jax.random.key(0), images * 3 + 1, drawn))
    clean, fill = images * 3 + 1, np.broadcast_to(drawn["fill"], images.shape)
    np.testing.assert_array_equal(filled[fill == 0], clean[fill == 0])
    noise = filled[fill == FILLS["noise"]]
    assert noise.mean() == pytest.approx(0, abs=0.02) and noise.std() == pytest.approx(1, abs=0.02)
    assert len(np.unique(noise)) > 0.9 * noise.size  # drawn per pixel, channel, view and picture
    assert not filled[fill == FILLS["zeros"]].any() and (fill == FILLS["zeros"]).any()
    seen = set()
    for b, v in zip(*np.nonzero((drawn["fill"] == FILLS["donor"]).any(axis=(2, 3, 4))), strict=True):
        there = fill[b, v] > 0
        givers = [j for j in range(32) if np.array_equal(filled[b, v][there], clean[j, v][there])]
        assert len(givers) == 1 and givers[0] != b
        seen.add(givers[0])
    assert len(seen) > 8


def test_image_kind_copies_one_rectangle_after_the_other(monkeypatch):
    """The released order: later rectangles may take what earlier ones have put in place."""
    rectangles = [(2, 3, 5, 7), (4, 1, 6, 6), (10, 10, 3, 4), (0, 0, 9, 9)]
    monkeypatch.setattr(corruption, "blocks", lambda *_: rectangles)
    setting = Corruption("image", donor_share=0)
    drawn = {k: v[None, None] for k, v in corruption.draw(setting, np.random.default_rng(3), 16).items()}
    picture = np.random.default_rng(1).normal(size=(16, 16, 2)).astype(np.float32)
    rng = np.random.default_rng(3)
    rng.integers(1)  # the kind
    expected = picture.copy()
    for top, left, height, width in rectangles:
        i, j = rng.integers(16 - height), rng.integers(16 - width)
        expected[top : top + height, left : left + width] = expected[i : i + height, j : j + width].copy()
    found = corruption.apply(setting, jax.random.key(0), jnp.asarray(picture[None, None]), drawn)[0, 0]
    np.testing.assert_array_equal(found, expected)


def test_aligned_copies_come_from_aligned_places():
    drawn = corruption.draw(Corruption("image", donor_share=0, align=8), np.random.default_rng(0), 64)
    rows, columns = np.divmod(drawn["source"][:, :, 0], 64)
    assert not ((rows - np.arange(64)[:, None]) % 8).any() and not ((columns - np.arange(64)) % 8).any()
    assert drawn["source"].dtype == np.int32 and (rows != np.arange(64)[:, None]).any()


def test_donors_are_uniform_over_the_others():
    ids = np.asarray(jax.vmap(lambda k: corruption.donors(k, 8, 2))(jax.random.split(jax.random.key(0), 3000)))
    counts = np.stack([np.bincount(ids[:, i, v], minlength=8) / 3000 for i in range(8) for v in range(2)])
    np.testing.assert_array_equal(np.diag(counts[::2]), 0)
    np.testing.assert_allclose(counts[::2] + np.eye(8) / 7, 1 / 7, atol=0.035)
    assert (ids[:, :, 0] != ids[:, :, 1]).mean() == pytest.approx(6 / 7, abs=0.02)
    released = np.asarray(corruption.donors(jax.random.key(1), 8, 4000, self_donor=True))
    assert np.mean(released == np.arange(8)[:, None]) == pytest.approx(1 / 8, abs=0.01)
    assert int(corruption.donors(jax.random.key(0), 1, 1)[0, 0]) == 0


def test_groups_keep_donors_in_their_slice():
    setting = Corruption("", groups=4)
    images, drawn = batch(setting)
    images[:] = np.arange(16).reshape(-1, 1, 1, 1, 1)
    filled = np.asarray(corruption.apply(setting, jax.random.key(0), images, drawn))
    assert (filled // 4 == images // 4).all()
    for rows in filled.reshape(4, 4, -1):
        assert len(np.unique(rows)) == 4
    with pytest.raises(ValueError, match="batch of 16 cannot be cut into 3 groups"):
        corruption.apply(setting._replace(groups=3), jax.random.key(0), images, drawn)


@pytest.mark.parametrize("setting", [Corruption(), Corruption("zeros,image", groups=4, self_donor=True)])
def test_one_device_is_eight(setting):
    images, drawn = batch(setting)
    fill = jax.jit(lambda images, drawn: corruption.apply(setting, jax.random.key(7), images, drawn))
    spread = parallel.to_global({"images": images, **drawn}, parallel.make_mesh({"data": 8}))
    np.testing.assert_array_equal(fill(images, drawn), fill(spread.pop("images"), spread))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kinds": "noise,donor"}, "kinds 'noise,donor' must be different ones of"),
        ({"kinds": "noise,noise"}, "must be different"),
        ({"kinds": "", "donor_share": 0}, "nothing is left to corrupt with"),
        ({"share": 1.0}, r"must be in \[0, 1\), got 1.0"),
        ({"align": 16}, "align 16 must divide the 32 px of the picture and be below 9"),
        ({"sampler": "fair"}, "'released' or 'uniform', got 'fair'"),
    ],
)
def test_impossible_settings_are_explained(changes, message):
    with pytest.raises(ValueError, match=message):
        Corruption(**changes).check(32)
