"""Our Swin's shapes, counts and windows; the numbers are compared with transformers in tests/interop."""

from functools import lru_cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cxrjax.models import swin
from cxrjax.models.swin import Swin


@pytest.fixture(scope="module")
def started():
    """(module, params) of swin_test, of noise so that no bias table is near zero."""
    return Swin("swin_test"), noise(Swin("swin_test"))


def noise(module):
    picture, rng = jnp.zeros((1, 32, 32, module.channels)), np.random.default_rng(1)

    def leaf(path, shape):
        deviation = shape.shape[-2] ** -0.5 if path[-1].key in ("kernel", "merge") else 0.3
        return jnp.asarray((path[-1].key == "scale") + deviation * rng.standard_normal(shape.shape), jnp.float32)

    shapes = jax.eval_shape(lambda: module.init(jax.random.key(0), picture))["params"]
    return jax.tree.map_with_path(leaf, shapes)


@lru_cache
def compiled(module):
    return jax.jit(lambda params, images, paths: module.apply({"params": params}, images, paths=paths))


def run(module, params, images, key=None):
    return compiled(module)(params, images, None if key is None else module.paths(key, len(images)))


def pictures(b=2, h=32, w=32, c=1):
    return jnp.asarray(np.random.default_rng(0).standard_normal((b, h, w, c), np.float32))


def test_swin_t_is_the_papers():
    """27.5 M parameters without the classifier, of pictures of three channels; 49 tokens of 768 at 224 px."""
    module, picture = Swin("T", channels=3), jax.ShapeDtypeStruct((2, 224, 224, 3), jnp.float32)
    variables = jax.eval_shape(module.init, jax.random.key(0), picture)
    assert sum(leaf.size for leaf in jax.tree.leaves(variables)) == 27_519_354
    out = jax.eval_shape(module.apply, variables, picture)
    assert out["patches"].shape == (2, 49, 768) and out["pooled"].shape == (2, 768) and module.width == 768
    grey = jax.eval_shape(Swin("T").init, jax.random.key(0), jax.ShapeDtypeStruct((1, 224, 224, 1), jnp.float32))
    assert grey["params"]["patch_embed"]["kernel"].shape == (16, 96)


def test_relative_places_by_hand():
    """Two tokens a side: the row of the table says how far query and key are apart, rows first."""
    assert swin._relative(2, 2).tolist() == [[4, 3, 1, 0], [5, 4, 2, 1], [7, 6, 4, 3], [8, 7, 5, 4]]
    # A shrunken window reads the middle of a larger table: no distance is always its middle.
    assert set(np.diag(swin._relative(2, 7))) == {6 * 13 + 6}
    assert swin._relative(1, 4).tolist() == [[24]]


def test_tokens_that_a_shift_brought_together_are_apart():
    """A 4 × 4 grid, windows of 2 shifted by 1: only the first window holds neighbours alone."""
    apart = swin._apart((4, 4), 2, 1) != 0
    assert not apart[0].any()
    # The last window is made of the four corners.
    assert (apart[3] == ~np.eye(4, dtype=bool)).all()
    # Upper right: columns 3 and 0 are apart, rows are neighbours.
    assert (apart[1] == (np.array([0, 1, 0, 1])[:, None] != np.array([0, 1, 0, 1]))).all()


def test_what_reaches_a_token():
    """Windows of 4 tokens at rest and then shifted by 2 on a grid of 16: the upper left token sees its window alone
    in the first block and, in the second, not the far edge that the shift brings to it."""
    block = swin.Block(2, 4)
    x = jnp.asarray(np.random.default_rng(0).standard_normal((1, 16, 16, 8), np.float32))
    params = jax.jit(lambda: block.init(jax.random.key(0), x, False)["params"])()

    @partial(jax.jit, static_argnums=0)
    def sensitivity(shifted, row, column):
        return jax.grad(lambda x: jnp.sum(block.apply({"params": params}, x, shifted)[0, row, column]))(x)

    def seen(shifted, row, column):
        gradient = sensitivity(shifted, row, column)
        rows, columns = np.nonzero(np.abs(gradient[0]).max(-1) > 1e-9)
        return rows.min(), rows.max(), columns.min(), columns.max()

    assert seen(False, 0, 5) == (0, 3, 4, 7)
    assert seen(True, 0, 5) == (0, 1, 2, 5)
    assert seen(True, 15, 0) == (14, 15, 0, 1)


def test_sides_that_no_window_divides(started):
    """46 × 70 px are a grid of 12 × 18, then 6 × 9; 8 px one of 2 × 2, less than a window."""
    module, params = started
    for (h, w), tokens in (((46, 70), 54), ((8, 8), 1)):
        out = run(module, params, pictures(1, h, w))
        assert out["patches"].shape == (1, tokens, 64) and np.isfinite(out["patches"]).all()
        np.testing.assert_allclose(out["pooled"], out["patches"].mean(1), atol=1e-6)


def test_grey_pictures_are_repeated_and_others_refused(started):
    """An encoder of three channels sees in a grey picture what one sees whose first layer adds its channels up."""
    module, params, grey = started[0], noise(Swin("swin_test", channels=3)), pictures()
    kernel = params["patch_embed"]["kernel"]
    added = {**params, "patch_embed": {**params["patch_embed"], "kernel": kernel.reshape(16, 3, -1).sum(1)}}
    found = run(Swin("swin_test", channels=3), params, grey)["pooled"]
    np.testing.assert_allclose(found, run(module, added, grey)["pooled"], atol=1e-5)
    with pytest.raises(ValueError, match="pictures have 3 channels; this Swin takes 1"):
        run(*started, pictures(c=3))
    with pytest.raises(ValueError, match="no Swin 'G'; there are swin_T, swin_S, swin_B"):
        Swin("G").init(jax.random.key(0), grey)


def test_stochastic_depth(started):
    module, params = started
    images, key = pictures(), jax.random.key(3)
    dropped = run(Swin("swin_test", drop_path=0.9), params, images, key)["pooled"]
    assert np.abs(dropped - run(module, params, images)["pooled"]).max() > 0.1
    # As in transformers, the same rate in all blocks, and of the attention alone: without it a block keeps its MLP.
    survive = Swin("swin_test", drop_path=0.9).paths(key, 1000)
    assert Swin("swin_test", drop_path=0.9).paths(key, 3, 2).shape == (3, 2, 4)
    np.testing.assert_allclose((survive == 0).mean(axis=0), 4 * [0.9], atol=0.05)
    np.testing.assert_allclose(survive.mean(axis=0), 1, atol=0.4)
    block, x = swin.Block(2, 4), jnp.asarray(np.random.default_rng(2).standard_normal((1, 8, 8, 32), np.float32))
    one = jax.tree.map(lambda leaf: leaf[0], params["stage0"]["blocks"])
    y = block.apply({"params": one}, x, False, jnp.zeros((1, 1, 1, 1)))
    assert 0.01 < np.abs(y - x).max() and not np.allclose(y, block.apply({"params": one}, x, False), atol=0.01)


def test_recomputing_changes_no_gradient(started):
    x = jnp.asarray(np.random.default_rng(2).standard_normal((1, 8, 8, 32), np.float32))
    params = {"blocks": started[1]["stage0"]["blocks"]}

    def gradient(remat):
        stage = swin.Stage(2, 2, 4, merge=False, remat=remat)
        return jax.jit(jax.grad(lambda p: (stage.apply({"params": p}, x) ** 3).mean()))(params)

    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), gradient("dots"), gradient("none"))


def test_bfloat16_computes_near_float32_and_returns_it(started):
    module, params = started
    half = run(Swin("swin_test", dtype=jnp.bfloat16), params, pictures())["patches"]
    whole = run(module, params, pictures())["patches"]
    assert half.dtype == jnp.float32 and 0 < np.abs(half - whole).max() < 0.1 * np.abs(whole).max()
