"""The decoder beside PyTorch's own attention; its switches, padding, and the released sizes."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cxrjax.models.cross_decoder import CrossDecoder, WordHead

WIDTH, HEADS = 16, 4
RNG = np.random.default_rng(0)
QUERIES = RNG.normal(size=(3, 5, WIDTH)).astype(np.float32)
CONTEXT = RNG.normal(size=(3, 7, WIDTH)).astype(np.float32)


def noisy(module, *inputs):
    """Parameters of noise, LayerNorms and biases too, so that none can be left out unseen."""
    shapes = jax.eval_shape(module.init, jax.random.key(0), *inputs)["params"]
    rng = np.random.default_rng(1)
    return jax.tree.map_with_path(
        lambda path, leaf: np.float32((path[-1].key == "scale") + 0.3 * rng.standard_normal(leaf.shape)), shapes
    )


@partial(jax.jit, static_argnums=0)
def run(module, params, *inputs):
    return module.apply({"params": params}, *inputs)


@pytest.fixture(scope="module", params=[False, True], ids=["once", "every layer"])
def switched(request):
    return request.param


def torch_decoder(params, queries, context, depth, residual, cross_in_every_layer, lengths):
    torch = pytest.importorskip("torch")
    functional = torch.nn.functional

    def tensor(x):
        return torch.tensor(np.asarray(x))

    def norm(x, p):
        return functional.layer_norm(x, (WIDTH,), tensor(p["scale"]), tensor(p["bias"]), 1e-5)

    def attention(x, y, p, ignored=None):
        module = torch.nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)
        module.in_proj_weight.data, module.in_proj_bias.data = tensor(p["qkv"]["kernel"].T), tensor(p["qkv"]["bias"])
        module.out_proj.weight.data, module.out_proj.bias.data = tensor(p["out"]["kernel"].T), tensor(p["out"]["bias"])
        return module(x, y, y, key_padding_mask=ignored)[0]

    def read(x, p):
        heard = attention(norm(x, p["norm_queries"]), norm(tensor(context), p["norm_context"]), p["attention"])
        return x + heard if residual else heard

    ignored = None if lengths is None else tensor(np.arange(queries.shape[1]) >= np.asarray(lengths)[:, None])
    x = tensor(queries)
    if not cross_in_every_layer:
        x = read(x, params["read"])
    for i in range(depth):
        p = jax.tree.map(lambda leaf, i=i: leaf[i], params["blocks"])
        if cross_in_every_layer:
            x = read(x, p["read"])
        y = norm(x, p["norm1"])
        x = x + attention(y, y, p["attention"], ignored)
        y = norm(x, p["norm2"]) @ tensor(p["fc1"]["kernel"]) + tensor(p["fc1"]["bias"])
        x = x + y * torch.sigmoid(1.702 * y) @ tensor(p["fc2"]["kernel"]) + tensor(p["fc2"]["bias"])
    return norm(x, params["norm"]).detach().numpy()


@pytest.mark.parametrize(("residual", "lengths"), [(False, None), (True, [5, 2, 1])])
def test_is_pytorch(switched, residual, lengths):
    module = CrossDecoder(2, HEADS, residual=residual, cross_in_every_layer=switched)
    params = noisy(module, QUERIES, CONTEXT)
    found = run(module, params, QUERIES, CONTEXT, None if lengths is None else jnp.asarray(lengths))
    expected = torch_decoder(params, QUERIES, CONTEXT, 2, residual, switched, lengths)
    for row, length in enumerate(lengths or [5] * 3):
        np.testing.assert_allclose(found[row, :length], expected[row, :length], atol=2e-5)


def test_padding_changes_nothing_and_an_empty_row_is_finite():
    module = CrossDecoder(1, HEADS)
    params = noisy(module, QUERIES, CONTEXT)
    lengths = jnp.asarray([3, 3, 0])

    @jax.jit
    def run(queries):
        def total(queries):
            out = module.apply({"params": params}, queries, CONTEXT, lengths)
            return jnp.sum(out[:2, :3] ** 3) + jnp.sum(out[2] ** 3), out

        return jax.grad(total, has_aux=True)(queries)

    other = np.where(np.arange(5)[:, None] < 3, QUERIES, 9 * QUERIES[:, ::-1])
    (gradient, out), (_, same) = run(QUERIES), run(other)
    np.testing.assert_allclose(same[:2, :3], out[:2, :3], atol=2e-6)
    assert np.isfinite(gradient).all() and np.any(gradient[:, :3]) and not np.any(gradient[:2, 3:])


@pytest.mark.parametrize("residual", [False, True])
def test_without_a_residual_equal_pictures_silence_the_text(switched, residual):
    module = CrossDecoder(1, HEADS, residual=residual, cross_in_every_layer=switched)
    params = noisy(module, QUERIES, CONTEXT)
    equal = np.broadcast_to(CONTEXT[:1, :1], CONTEXT.shape)
    spread = np.ptp(run(module, params, QUERIES, equal).reshape(-1, WIDTH), axis=0).max()
    assert spread > 0.1 if residual else spread < 1e-5


def test_the_head_of_no_opinion_and_half_precision():
    """Logits are float32 whatever they were computed in."""
    head = WordHead(50, jnp.bfloat16)
    params = noisy(head, QUERIES)
    assert head.apply({"params": params}, QUERIES).dtype == jnp.float32
    zeros = {**params, "words": jax.tree.map(np.zeros_like, params["words"])}
    logits = head.apply({"params": zeros}, QUERIES)
    assert float(-jax.nn.log_softmax(logits)[0, 0, 0]) == pytest.approx(np.log(50), rel=1e-6)
    decoder = CrossDecoder(1, HEADS, dtype=jnp.bfloat16)
    params = noisy(decoder, QUERIES, CONTEXT)
    found, exact = (run(module, params, QUERIES, CONTEXT) for module in (decoder, CrossDecoder(1, HEADS)))
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, exact, atol=0.15)


def test_released_sizes_and_initial_deviations():
    """The deviations of the layers as released, √(1/512), √(1/1024) and √(1/(1024 N))."""
    token = jnp.zeros((1, 1, 512))

    def count(module, *inputs):
        return sum(leaf.size for leaf in jax.tree.leaves(jax.eval_shape(module.init, jax.random.key(0), *inputs)))

    assert count(CrossDecoder(4), token, token) == 13_663_232
    assert count(CrossDecoder(2), token, token) == 7_358_464
    assert count(WordHead(28_996), token) == 15_138_628
    params = jax.jit(CrossDecoder(2, remat="none").init)(jax.random.key(0), token[..., :64], token[..., :64])["params"]
    found = {name: float(np.std(params["blocks"][name]["kernel"])) for name in ("fc1", "fc2")} | {
        name: float(np.std(params["blocks"]["attention"][name]["kernel"])) for name in ("qkv", "out")
    }
    assert found == pytest.approx({"fc1": 128**-0.5, "fc2": 256**-0.5, "qkv": 64**-0.5, "out": 256**-0.5}, rel=0.05)
