"""BERT against transformers' BertModel, its pre-norm form against PyTorch's encoder, and what padding must not do."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cxrjax.models import bert

SIZE = {"vocab_size": 50, "width": 32, "depth": 3, "heads": 4, "max_length": 16}
IDS = np.random.default_rng(0).integers(1, 50, (4, 9)).astype(np.int32)
LENGTHS = np.array([9, 5, 1, 3])
MASK = np.arange(9) < LENGTHS[:, None]


def noisy(model, seed=0):
    """Parameters with noise on every leaf, so that no zero bias or unit scale hides a mistake."""
    shapes = jax.eval_shape(model.init, jax.random.key(0), IDS, MASK)["params"]
    rng = np.random.default_rng(seed)
    return jax.tree.map_with_path(
        lambda path, leaf: np.float32(path[-1].key == "scale") + 0.1 * rng.standard_normal(leaf.shape, np.float32),
        shapes,
    )


@functools.cache
def applied(model):
    return jax.jit(lambda params, ids, mask: model.apply({"params": params}, ids, mask)["tokens"])


def theirs(params, ids, mask, hidden_act="gelu"):
    """The same parameters in transformers' BertModel, put in name by name."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    config = transformers.BertConfig(
        vocab_size=50, hidden_size=32, num_hidden_layers=3, num_attention_heads=4, intermediate_size=128,
        max_position_embeddings=16, hidden_act=hidden_act,
    )  # fmt: skip
    model = transformers.BertModel(config, add_pooling_layer=False).eval()

    def put(module, tree):
        with torch.no_grad():
            module.weight.copy_(torch.tensor(np.asarray(tree["kernel"]).T if "kernel" in tree else tree["scale"]))
            module.bias.copy_(torch.tensor(np.asarray(tree["bias"])))

    embeddings = params["embeddings"]
    with torch.no_grad():
        model.embeddings.word_embeddings.weight.copy_(torch.tensor(embeddings["word"]))
        model.embeddings.position_embeddings.weight.copy_(torch.tensor(embeddings["position"]))
        model.embeddings.token_type_embeddings.weight[0].copy_(torch.tensor(embeddings["type"]))
    put(model.embeddings.LayerNorm, embeddings["norm"])
    for i, layer in enumerate(model.encoder.layer):
        block = jax.tree.map(lambda leaf, i=i: leaf[i], params["layers"])
        for part, name in enumerate(("query", "key", "value")):
            columns = slice(32 * part, 32 * (part + 1))
            put(getattr(layer.attention.self, name), {k: v[..., columns] for k, v in block["qkv"].items()})
        put(layer.attention.output.dense, block["out"])
        put(layer.attention.output.LayerNorm, block["norm1"])
        put(layer.intermediate.dense, block["fc1"])
        put(layer.output.dense, block["fc2"])
        put(layer.output.LayerNorm, block["norm2"])
    with torch.inference_mode():
        return model(torch.tensor(ids).long(), torch.tensor(mask)).last_hidden_state.numpy()


def test_post_norm_is_transformers_bert():
    """Padded rows, token types 0. BERT's GELU is the exact one: with the tanh form the outputs must differ."""
    model = bert.Bert(**SIZE)
    params = noisy(model)
    out = applied(model)(params, IDS, MASK)
    np.testing.assert_allclose(out[MASK], theirs(params, IDS, MASK)[MASK], atol=5e-6)
    assert np.abs(out[MASK] - theirs(params, IDS, MASK, "gelu_new")[MASK]).max() > 1e-4


def test_pre_norm_is_pytorchs_encoder():
    torch = pytest.importorskip("torch")
    model = bert.Bert(**SIZE, norm="pre", eps=1e-5, hidden=80)
    params = noisy(model)
    layer = torch.nn.TransformerEncoderLayer(32, 4, 80, 0.0, "gelu", batch_first=True, norm_first=True)
    oracle = torch.nn.TransformerEncoder(layer, 3, torch.nn.LayerNorm(32), enable_nested_tensor=False).eval()
    stacked = params["layers"]
    state = {"norm.weight": params["norm"]["scale"], "norm.bias": params["norm"]["bias"]}
    names = {"qkv": "self_attn.in_proj_", "out": "self_attn.out_proj.", "fc1": "linear1.", "fc2": "linear2."}
    names |= {"norm1": "norm1.", "norm2": "norm2."}
    for i in range(3):
        for ours, name in names.items():
            weight = stacked[ours]["kernel"][i].T if "kernel" in stacked[ours] else stacked[ours]["scale"][i]
            state |= {f"layers.{i}.{name}weight": weight, f"layers.{i}.{name}bias": stacked[ours]["bias"][i]}
    oracle.load_state_dict({name: torch.tensor(np.ascontiguousarray(value)) for name, value in state.items()})
    table = params["embeddings"]
    summed = torch.tensor(table["word"][IDS] + table["position"][: IDS.shape[1]] + table["type"])
    scale, bias = (torch.tensor(table["norm"][name]) for name in ("scale", "bias"))
    with torch.inference_mode():
        x = torch.nn.functional.layer_norm(summed, (32,), scale, bias, 1e-5)
        expected = oracle(x, src_key_padding_mask=torch.tensor(~MASK)).numpy()
    np.testing.assert_allclose(applied(model)(params, IDS, MASK)[MASK], expected[MASK], atol=5e-6)


@pytest.mark.parametrize("norm", bert.NORMS)
def test_padding_changes_nothing_and_stays_finite(norm):
    """Neither what stands in the padding nor how much of it there is; a row of nothing else has a finite gradient."""
    model = bert.Bert(**SIZE, norm=norm)
    params = noisy(model)
    before = applied(model)(params, IDS, MASK)
    other = np.where(MASK, IDS, 7)
    np.testing.assert_array_equal(applied(model)(params, other, MASK)[MASK], before[MASK])
    longer, mask = (np.pad(x, ((0, 0), (0, 7))) for x in (IDS, MASK))
    np.testing.assert_allclose(applied(model)(params, longer, mask)[:, :9][MASK], before[MASK], atol=1e-6)

    def loss(params):
        out = model.apply({"params": params}, IDS, np.zeros_like(MASK))
        return jnp.sum(out["tokens"] ** 3) + jnp.sum(out["cls"])

    value, gradient = jax.jit(jax.value_and_grad(loss))(params)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((value, gradient)))


def test_the_gradient_knows_no_padding():
    """Rows of a longer batch give each parameter the gradient that they give it alone."""
    model = bert.Bert(**SIZE, remat="full")
    params = noisy(model)

    def gradient(ids, mask):
        def loss(params):
            return jnp.sum(jnp.where(mask[..., None], model.apply({"params": params}, ids, mask)["tokens"], 0) ** 3)

        return jax.jit(jax.grad(loss))(params)

    alone, padded = gradient(IDS[1:2, :5], MASK[1:2, :5]), gradient(IDS[1:2], MASK[1:2])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), alone, padded)


@pytest.mark.parametrize("frozen", [1, 3])
def test_frozen_layers_are_a_stack_of_their_own(frozen):
    whole = bert.Bert(**SIZE)
    split = whole.clone(frozen_layers=frozen)
    params = noisy(whole)
    halves = {"lower": slice(None, frozen), "layers": slice(frozen, None)}
    cut = {name: jax.tree.map(lambda leaf, part=part: leaf[part], params["layers"]) for name, part in halves.items()}
    cut = {name: tree for name, tree in cut.items() if len(tree["norm1"]["bias"])}
    moved = {"embeddings": params["embeddings"], **cut}
    assert jax.tree.map(np.shape, moved) == jax.tree.map(np.shape, noisy(split))
    np.testing.assert_allclose(applied(split)(moved, IDS, MASK), applied(whole)(params, IDS, MASK), atol=1e-6)


def test_half_precision_stays_near():
    model = bert.Bert(**SIZE, dtype=jnp.bfloat16)
    params = noisy(model)
    out = applied(model)(params, IDS, MASK)
    assert out.dtype == jnp.float32
    reference = applied(bert.Bert(**SIZE))(params, IDS, MASK)
    assert 1e-4 < np.abs(out - reference)[MASK].mean() < 0.03 * np.abs(reference[MASK]).mean()


def test_parameters_of_bert_base_cased():
    """107,719,680 without the pooler; of its two types, ours keeps one."""
    model = bert.Bert(28_996, *bert.VARIANTS["base"])
    shapes = jax.eval_shape(model.init, jax.random.key(0), IDS, MASK)
    assert sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes)) == 107_719_680 - 768


def test_starts_as_bert_does():
    params = jax.jit(bert.Bert(**SIZE | {"width": 64}).init)(jax.random.key(0), IDS, MASK)["params"]
    for table in (params["embeddings"]["word"], params["layers"]["qkv"]["kernel"], params["layers"]["fc2"]["kernel"]):
        assert float(table.std()) == pytest.approx(0.02, rel=0.05)
    assert not np.any(params["layers"]["fc1"]["bias"])
    first, second = params["layers"]["fc1"]["kernel"][:2]
    assert np.abs(first - second).max() > 0.01


def test_fields_that_do_not_fit():
    for wrong, message in (
        ({"norm": "sandwich"}, "'post' or 'pre', got 'sandwich'"),
        ({"heads": 5}, "5 heads do not divide a width of 32"),
        ({"frozen_layers": 4}, "frozen_layers is 4; of 3 layers 0 to 3"),
        ({"max_length": 8}, "9 tokens do not fit 8 positions"),
    ):
        with pytest.raises(ValueError, match=message):
            jax.eval_shape(bert.Bert(**SIZE | wrong).init, jax.random.key(0), IDS, MASK)


@pytest.mark.parametrize("dtype", [np.float32, jnp.bfloat16])
def test_words_are_the_sums_of_their_pieces(dtype):
    """Against a loop: [CLS], [SEP] and padding are in no word, the fourth word is cut off, a report may have none."""
    index = np.array([[-1, 0, 0, 1, 2, 2, 2, 3, -1], [-1, 0, -1] + 6 * [-1], 9 * [-1]], np.int32)
    tokens = np.random.default_rng(1).normal(size=(3, 9, 5)).astype(dtype)
    expected, present = np.zeros((3, 3, 5), np.float32), np.zeros((3, 3), bool)
    for b in range(3):
        for place in range(9):
            if 0 <= index[b, place] < 3:
                expected[b, index[b, place]] += np.float32(tokens[b, place])
                present[b, index[b, place]] = True
    summed, mask = jax.jit(bert.words, static_argnums=2)(tokens, index, 3)
    np.testing.assert_allclose(np.float32(summed), expected, rtol=1e-6 if dtype == np.float32 else 2**-8)
    np.testing.assert_array_equal(mask, present)
    gradient = jax.grad(lambda t: bert.words(t, index, 3)[0].astype(jnp.float32).sum())(tokens)
    np.testing.assert_array_equal(np.float32(gradient[..., 0]), (index >= 0) & (index < 3))
