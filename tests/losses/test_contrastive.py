"""S-PCL's losses: values computed by hand, and plain loops for value and gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cxrjax import parallel
from cxrjax.losses import contrastive

TSP = {"similarity": "tsp", "kappa": 1 / 64}
COSINE = {"similarity": "cosine"}
DTYPES = (jnp.float32, jnp.bfloat16)


def angles(*degrees):
    radians = np.deg2rad(np.asarray(degrees, np.float32))
    return jnp.stack([jnp.cos(radians), jnp.sin(radians)], axis=1)


def loop_info_nce(u, v, temperature, kappa=None, exclude=None):
    """The equation, term by term, in float64 NumPy; kappa None is the cosine."""
    u, v = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (np.float64(u), np.float64(v)))
    total = 0.0
    for i in range(len(u)):
        for one, other in ((u, v), (v, u)):
            logits = []
            for j in range(len(u)):
                if exclude is not None and exclude[i, j] and i != j:
                    continue
                s = one[i] @ other[j]
                a = s if kappa is None else 0.5 * (1 + s) / (1 + kappa * (1 - s))
                logits.append(a / temperature)
                if i == j:
                    positive = a / temperature
            total += np.log(np.sum(np.exp(logits))) - positive
    return total / (2 * len(u))


def loop_nt_xent(u, v, temperature, kappa=None, exclude=None):
    z = np.concatenate([u, v]).astype(np.float64)
    z /= np.linalg.norm(z, axis=1, keepdims=True)
    m, total = len(u), 0.0

    def logit(i, j):
        s = z[i] @ z[j]
        return (s if kappa is None else 0.5 * (1 + s) / (1 + kappa * (1 - s))) / temperature

    for i in range(2 * m):
        positive = (i + m) % (2 * m)
        others = [
            j for j in range(2 * m) if j == positive or (j != i and not (exclude is not None and exclude[i % m, j % m]))
        ]
        total += np.log(np.sum([np.exp(logit(i, j)) for j in others])) - logit(i, positive)
    return total / (2 * m)


def numeric_gradient(f, x, eps=1e-5):
    x = np.float64(x)
    gradient = np.zeros_like(x)
    for index in np.ndindex(*x.shape):
        step = np.zeros_like(x)
        step[index] = eps
        gradient[index] = (f(x + step) - f(x - step)) / (2 * eps)
    return gradient


def rounded(dtype, *arrays):
    """The arrays in `dtype`, and the same numbers in float64: what a loop is to be given."""
    cast = [jnp.asarray(x, dtype) for x in arrays]
    return cast, [np.float64(x.astype(jnp.float32)) for x in cast]


def assert_gradient(found, expected, dtype, atol):
    """A gradient has the dtype of its input: bfloat16 rounds it once, to a relative 2⁻⁸, and nothing before."""
    assert found.dtype == dtype
    rtol = 2**-8 if dtype == jnp.bfloat16 else 0
    np.testing.assert_allclose(found.astype(jnp.float32), expected, rtol=rtol, atol=atol)


@pytest.fixture(scope="module")
def pair():
    key = jax.random.key(0)
    return jax.random.normal(key, (5, 3)), jax.random.normal(jax.random.fold_in(key, 1), (5, 3))


def test_tsp_values():
    np.testing.assert_allclose(contrastive.tsp(jnp.asarray([1.0, 0.0, -1.0]), 1 / 64), [1, 32 / 65, 0], atol=1e-7)
    s = jnp.linspace(-1, 1, 101)
    assert np.all(np.diff(contrastive.tsp(s, 1 / 64)) > 0)
    np.testing.assert_allclose(contrastive.tsp(s, 0.0), 0.5 * (1 + s), atol=1e-7)


@pytest.mark.parametrize("m", [2, 4])
def test_collapse(m):
    """ln M for the symmetric form, ln(2M−1) for NT-Xent, whatever τ and κ."""
    same = jnp.ones((m, 3))
    for options in (TSP, COSINE):
        assert contrastive.info_nce(same, same, temperature=0.07, **options) == pytest.approx(np.log(m), abs=1e-6)
        assert contrastive.nt_xent(same, same, temperature=0.3, **options) == pytest.approx(np.log(2 * m - 1), abs=1e-6)


@pytest.mark.parametrize(
    ("m", "temperature", "options", "expected"),
    [
        (2, 0.07, TSP, 7.07975364e-4),
        (4, 0.07, TSP, 2.12242418e-3),
        (2, 0.07, COSINE, 6.24874756e-7),
        (2, 1.0, COSINE, 0.313261688),
        (4, 1.0, COSINE, 0.743668381),
        (2, 1.0, TSP, 0.471179774),
        (4, 1.0, TSP, 1.03163482),
    ],
)
def test_orthonormal_perfect_pairs(m, temperature, options, expected):
    loss = contrastive.info_nce(jnp.eye(m), jnp.eye(m), temperature=temperature, **options)
    assert float(loss) == pytest.approx(expected, abs=1e-6, rel=1e-3)


def test_orthonormal_nt_xent():
    assert float(contrastive.nt_xent(jnp.eye(4), jnp.eye(4), temperature=0.1)) == pytest.approx(2.72362485e-4, abs=1e-6)


@pytest.mark.parametrize(
    ("u", "v", "temperature", "options", "expected"),
    [
        ((0, 90), (90, 0), 0.07, TSP, 7.25345523),
        ((0, 90), (90, 0), 0.1, COSINE, 10.0000454),
        ((0, 180), (0, 180), 0.07, TSP, 6.24874756e-7),
        ((0, 90), (30, 60), 1.0, COSINE, 0.526788644),
        ((0, 90), (30, 60), 0.1, COSINE, 0.0254006317),
        ((0, 90), (30, 60), 1.0, TSP, 0.604067443),
        ((0, 90), (30, 60), 0.07, TSP, 0.0669802682),
        ((0, 60, 180), (45, 90, 150), 0.1, COSINE, 0.662463203),  # catches a one-sided loss or a wrong axis
        ((0, 60, 180), (45, 90, 150), 0.1, TSP, 0.438037475),
    ],
)
def test_hand_computed(u, v, temperature, options, expected):
    loss = contrastive.info_nce(angles(*u), angles(*v), temperature=temperature, **options)
    assert float(loss) == pytest.approx(expected, abs=1e-6, rel=2e-6)


def test_invariances(pair):
    u, v = pair

    def loss(u, v):
        return contrastive.info_nce(u, v, temperature=0.2, **TSP)

    value = float(loss(u, v))
    order = jnp.asarray([3, 1, 4, 0, 2])
    rotation = jnp.linalg.qr(jax.random.normal(jax.random.key(2), (3, 3)))[0]
    scale = jnp.asarray([0.1, 1, 2, 30, 5])[:, None]
    for other in (loss(v, u), loss(u[order], v[order]), loss(u @ rotation, v @ rotation), loss(u * scale, v)):
        assert float(other) == pytest.approx(value, abs=1e-5)
    gradient = jax.grad(loss)(u, v)
    np.testing.assert_allclose(jnp.sum(gradient * u, axis=1), 0, atol=1e-6)


def test_zero_vector_is_finite(pair):
    u, v = pair
    value, gradient = jax.value_and_grad(lambda u: contrastive.info_nce(u, v, temperature=0.07, **TSP))(u.at[0].set(0))
    assert np.isfinite(value) and np.all(np.isfinite(gradient))


def test_kappa_zero_is_cosine_at_twice_the_temperature(pair):
    """Value and gradient."""
    tsp = jax.value_and_grad(lambda u: contrastive.info_nce(u, pair[1], temperature=0.07, similarity="tsp"))(pair[0])
    cosine = jax.value_and_grad(lambda u: contrastive.info_nce(u, pair[1], temperature=0.14))(pair[0])
    np.testing.assert_allclose(tsp[0], cosine[0], rtol=1e-5)
    np.testing.assert_allclose(tsp[1], cosine[1], atol=1e-5)


@pytest.mark.parametrize(("loss", "loop"), [(contrastive.info_nce, loop_info_nce), (contrastive.nt_xent, loop_nt_xent)])
@pytest.mark.parametrize("kappa", [None, 1 / 64])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_value_and_gradient_are_the_loops(pair, loss, loop, kappa, masked, dtype):
    """Vectors of bfloat16 are compared in float32."""
    cast, (u, v) = rounded(dtype, *pair)
    patient = np.asarray([0, 1, 0, 2, 2])
    exclude = patient[:, None] == patient[None] if masked else None
    options = COSINE if kappa is None else TSP
    value, (to_u, to_v) = jax.value_and_grad(
        lambda u, v: loss(u, v, temperature=0.3, exclude=exclude, **options), argnums=(0, 1)
    )(*cast)
    assert value.dtype == jnp.float32
    assert float(value) == pytest.approx(loop(u, v, 0.3, kappa, exclude), abs=1e-5)
    assert_gradient(to_u, numeric_gradient(lambda x: loop(x, v, 0.3, kappa, exclude), u), dtype, atol=1e-4)
    assert_gradient(to_v, numeric_gradient(lambda x: loop(u, x, 0.3, kappa, exclude), v), dtype, atol=1e-4)


def test_groups_are_separate_batches(pair):
    """Negatives of one slice only; collapsed vectors give ln of the slice, not of the batch."""
    u, v = (jax.random.normal(jax.random.key(i), (8, 3)) for i in (3, 4))
    halves = [contrastive.info_nce(u[i : i + 4], v[i : i + 4], temperature=0.2) for i in (0, 4)]
    grouped = contrastive.info_nce(u, v, temperature=0.2, groups=2)
    assert float(grouped) == pytest.approx(float(sum(halves)) / 2, abs=1e-6)
    assert float(contrastive.info_nce(jnp.ones((8, 3)), jnp.ones((8, 3)), temperature=1, groups=2)) == pytest.approx(
        np.log(4), abs=1e-6
    )


def masked_nt_xent(u, v, patient):
    return contrastive.nt_xent(u, v, temperature=0.2, exclude=patient[:, None] == patient[None])


@pytest.mark.parametrize(
    "loss",
    [
        lambda u, v, patient: contrastive.info_nce(u, v, temperature=0.2),
        lambda u, v, patient: contrastive.ctr(u, v, temperature=0.2),
        masked_nt_xent,
    ],
)
def test_negatives_are_those_of_all_devices(loss):
    """Value and gradient with the batch on 1 and on 8 devices, where one has two rows to itself."""
    key = jax.random.key(0)
    u, v = (np.asarray(jax.random.normal(jax.random.fold_in(key, i), (16, 3))) for i in range(2))
    batch = (u, v, np.arange(16) // 3)
    step = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))
    shards = parallel.to_global(batch, parallel.make_mesh({"data": 8}))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), step(*batch), step(*shards))


def test_unknown_similarity_is_named(pair):
    with pytest.raises(ValueError, match="similarity must be one of cosine, tsp, got 'dot'"):
        contrastive.info_nce(*pair, temperature=1, similarity="dot")


def loop_ctr(q, k, temperature):
    """MoCo v3's algorithm 1, one direction, in float64 NumPy."""
    q, k = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (np.float64(q), np.float64(k)))
    total = 0.0
    for i in range(len(q)):
        logits = [q[i] @ k[j] / temperature for j in range(len(k))]
        total -= logits[i] - np.log(np.sum(np.exp(logits)))
    return 2 * temperature * total / len(q)


@pytest.mark.parametrize("dtype", DTYPES)
def test_ctr_against_the_loop(pair, dtype):
    """Only queries learn, and only rows are normalised into probabilities (the transposed loss differs)."""
    cast, (q, k) = rounded(dtype, *pair)
    value, (to_q, to_k) = jax.value_and_grad(lambda q, k: contrastive.ctr(q, k, temperature=0.2), argnums=(0, 1))(*cast)
    assert value.dtype == jnp.float32
    assert float(value) == pytest.approx(loop_ctr(q, k, 0.2), abs=1e-5)
    assert_gradient(to_q, numeric_gradient(lambda x: loop_ctr(x, k, 0.2), q), dtype, atol=1e-4)
    assert not np.any(to_k)
    assert abs(float(contrastive.ctr(k, q, temperature=0.2)) - float(value)) > 1e-2


def test_ctr_values():
    """2τ·ln M when collapsed; 2τ·ln(1 + (M−1)e^(−1/τ)) for orthonormal perfect pairs."""
    assert float(contrastive.ctr(jnp.ones((4, 3)), jnp.ones((4, 3)), temperature=0.2)) == pytest.approx(
        0.4 * np.log(4), abs=1e-6
    )
    expected = 2 * np.log(1 + 3 * np.exp(-1))
    assert float(contrastive.ctr(jnp.eye(4), jnp.eye(4), temperature=1.0)) == pytest.approx(expected, abs=1e-6)


def test_nt_xent_groups_are_separate_batches(pair):
    u, v = (jax.random.normal(jax.random.key(i), (8, 3)) for i in (3, 4))
    halves = [contrastive.nt_xent(u[i : i + 4], v[i : i + 4], temperature=0.2) for i in (0, 4)]
    assert float(contrastive.nt_xent(u, v, temperature=0.2, groups=2)) == pytest.approx(
        float(sum(halves)) / 2, abs=1e-6
    )
    with pytest.raises(ValueError, match="exclude and groups > 1 cannot be combined"):
        contrastive.nt_xent(u, v, temperature=0.2, groups=2, exclude=jnp.eye(8, dtype=bool))


@pytest.mark.parametrize("loss", [contrastive.info_nce, contrastive.nt_xent, contrastive.ctr])
def test_a_small_loss_keeps_its_digits(loss):
    """Three pairs at right angles, τ = 0.04: the others' share is some e⁻²⁵, which no difference of two 25s holds."""
    x, tau = jnp.eye(3), 0.04
    others = {contrastive.info_nce: 2, contrastive.nt_xent: 4, contrastive.ctr: 2 * 2 * tau}[loss]
    assert float(loss(x, x, temperature=tau)) == pytest.approx(others * np.exp(-25.0), rel=1e-3)
