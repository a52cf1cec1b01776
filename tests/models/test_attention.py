"""Attention is softmax(q kᵀ / √d) v in every form, padded to even counts or not. Each platform gets its own form."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cxrjax import parallel
from cxrjax.models import attention

HEADS, WIDTH = 2, 16
COUNTS = [(99, 99), (1, 99), (37, 37), (12, 12), (12, 7), (7, 12)]


def tokens(count, seed):
    return jnp.asarray(np.random.default_rng(seed).standard_normal((3, count, WIDTH)), jnp.float32)


def in_numpy(q, k, v, lengths):
    out = np.zeros_like(q)
    for example in range(len(q)):
        keys = k.shape[1] if lengths is None else lengths[example]
        for head in range(HEADS):
            own = slice(head * WIDTH // HEADS, (head + 1) * WIDTH // HEADS)
            for query in range(q.shape[1]):
                logits = k[example, :keys, own] @ q[example, query, own] / np.sqrt(WIDTH // HEADS)
                weights = np.exp(logits - logits.max())
                out[example, query, own] = weights / weights.sum() @ v[example, :keys, own]
    return out


@pytest.mark.parametrize("some", [False, True])
@pytest.mark.parametrize(("m", "n"), COUNTS)
def test_every_form_is_the_equation_and_has_its_gradient(m, n, some):
    given = tokens(m, 0), tokens(n, 1), tokens(n, 2)
    lengths = jnp.array([n, 1, n // 2 + 1]) if some else None
    expected = in_numpy(*map(np.asarray, given), None if lengths is None else np.asarray(lengths))
    direction = tokens(m, 3)

    def along(form):
        def value(q, k, v):
            out = form(q, k, v)
            return (out * direction).sum(), out

        (_, out), gradient = jax.value_and_grad(value, argnums=(0, 1, 2), has_aux=True)(*given)
        return out, *gradient

    plain = along(lambda q, k, v: attention.attend(q, k, v, HEADS, lengths))
    # The fused form on XLA's kernel: what is added to odd counts must change nothing.
    padded = along(lambda q, k, v: attention._fused(q, k, v, lengths, HEADS, implementation="xla"))
    np.testing.assert_allclose(plain[0], expected, atol=2e-6)
    for ours, theirs in zip(padded, plain, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-6)


def test_a_causal_query_sees_the_keys_up_to_its_own():
    given = tokens(7, 0), tokens(7, 1), tokens(7, 2)
    q, k, v = map(np.asarray, given)
    rows = [in_numpy(q[:, i : i + 1], k[:, : i + 1], v[:, : i + 1], None) for i in range(7)]
    fused = attention._fused(*given, None, HEADS, causal=True, implementation="xla")
    for found in (attention.attend(*given, HEADS, causal=True), fused):
        np.testing.assert_allclose(found, np.concatenate(rows, axis=1), atol=2e-6)


def test_what_is_masked_gets_no_weight_and_no_gradient():
    q, k, v = tokens(5, 0), tokens(9, 1), tokens(9, 2)
    lengths = jnp.array([4, 9, 1])

    def total(k, v):
        return (attention._fused(q, k, v, lengths, HEADS, implementation="xla") ** 2).sum()

    of_k, of_v = jax.grad(total, argnums=(0, 1))(k, v)
    assert not of_k[0, 4:].any() and not of_v[0, 4:].any() and of_v[0, :4].all()
    assert not of_v[2, 1:].any() and of_v[1].all()


def test_a_program_names_the_fused_kernel_only_where_it_is_lowered_for_cuda(monkeypatch):
    """The choice is made by the platform of the lowering, whatever backend the process has."""
    monkeypatch.setattr(attention, "_is_fused", lambda *_: True)
    monkeypatch.setattr(attention, "_fused", lambda q, k, v, lengths, heads, causal: jnp.sin(q))
    given = [jax.ShapeDtypeStruct((2, 6, 16), jnp.bfloat16)] * 3
    traced = jax.jit(lambda q, k, v: attention.attend(q, k, v, HEADS)).trace(*given)
    for platform, there in (("cpu", False), ("cuda", True), ("tpu", False), ("rocm", False)):
        text = traced.lower(lowering_platforms=(platform,)).as_text()
        assert ("sine" in text) == there, platform
        assert ("exponential" in text) != there, platform


def test_the_fused_kernel_is_not_offered_where_it_does_not_run(monkeypatch):
    assert not attention._is_fused(64, jnp.bfloat16)  # no cuDNN here
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert parallel.oldest_gpu() is None  # these are CPU devices

    class Gpu:
        def __init__(self, compute_capability):
            self.compute_capability = compute_capability

    monkeypatch.setattr(attention, "_fused", lambda q, *_, **__: q)
    for capabilities, offered in (
        (["9.0"], True),
        (["8.9", "7.5"], False),
        (["gfx90a"], True),
        (["12.0", "8.0"], True),
    ):
        monkeypatch.setattr(jax, "local_devices", lambda names=capabilities: [Gpu(name) for name in names])
        assert attention._is_fused(64, jnp.bfloat16) == offered, capabilities


def test_float32_is_never_fused(monkeypatch):
    monkeypatch.setattr(attention, "_is_fused", lambda *_: pytest.fail("float32 asked for the fused kernel"))
    attention.attend(tokens(4, 0), tokens(4, 1), tokens(4, 2), HEADS)
