"""FaNe's modules: what a sentence sees through its gate, and the pool of a report's sentences."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cxrjax.losses import mining
from cxrjax.models.sentences import GatedAttention, SentencePool


def noise(shapes):
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: rng.normal(0, 0.5, leaf.shape).astype(np.float32), shapes)


@pytest.fixture(scope="module")
def pair():
    """Three sentences and five patches of two studies, and noisy parameters of the attention."""
    rng = np.random.default_rng(1)
    e, p = (rng.normal(size=shape).astype(np.float32) for shape in ((2, 3, 8), (2, 5, 8)))
    return e, p, noise(jax.eval_shape(GatedAttention().init, jax.random.key(0), e, p))


def test_attention_is_the_loop(pair):
    """The MLP on the pair of query and key, as it is written, and no softmax over patches."""
    e, p, variables = pair
    w = variables["params"]

    def linear(name, x):
        return x @ w[name]["kernel"] + w[name].get("bias", 0)

    c, gate = jax.jit(GatedAttention().apply)(variables, e, p)
    first = np.concatenate([w["gate_q"]["kernel"], w["gate_k"]["kernel"]])
    for b in range(2):
        q, k, u = linear("q", e[b]), linear("k", p[b]), linear("v", p[b])
        for s in range(3):
            hidden = [np.maximum(np.concatenate([q[s], k[n]]) @ first + w["gate_q"]["bias"], 0) for n in range(5)]
            g = np.array([1 / (1 + np.exp(-linear("gate_out", h)[0])) for h in hidden])
            a = 1 / (1 + np.exp(-(k @ q[s]) * g / np.sqrt(8)))
            y = linear("out", a @ u)
            y = (y - y.mean()) / np.sqrt(y.var() + 1e-5) * w["norm"]["scale"] + w["norm"]["bias"]
            np.testing.assert_allclose(gate[b, s], g, rtol=1e-5)
            np.testing.assert_allclose(c[b, s], y, atol=1e-4)
    assert float(mining.mean_of_pairs(gate, jnp.array([2, 3]))) == pytest.approx(
        float(gate[0, :2].mean() + gate[1].mean()) / 2, rel=1e-5
    )


def test_the_pool_has_no_order_and_no_padding(pair):
    e = pair[0]
    variables = noise(jax.eval_shape(SentencePool(2).init, jax.random.key(0), e, jnp.array([3, 3])))
    run = jax.jit(SentencePool(2).apply)
    found = run(variables, e, jnp.array([3, 2]))
    np.testing.assert_allclose(found[0], run(variables, e[:, ::-1], jnp.array([3, 2]))[0], atol=1e-5)
    padded = e.copy()
    padded[1, 2] = 100
    np.testing.assert_array_equal(found[1], run(variables, padded, jnp.array([3, 2]))[1])
    assert np.abs(found[1] - run(variables, e, jnp.array([3, 3]))[1]).max() > 1e-3
