"""The four terms of F-L, each against its equation as a plain loop over studies and words: values and gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cxrjax import methods
from cxrjax.input import device
from cxrjax.losses import masked
from cxrjax.losses.views import word_alignment
from cxrjax.methods import frontal_lateral
from cxrjax.models.frontal_lateral import Networks
from tests import runs, two_views
from tests.methods import oracles

RNG = np.random.default_rng(0)
G_F, G_L, G_FL, G_T = RNG.normal(size=(4, 6, 5))
HAS_LATERAL = np.array([1, 0, 1, 1, 0, 1], bool)


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def surprise(logits, i):
    """−log softmax(logits)_i."""
    return np.log(np.exp(logits - logits[i]).sum())


def looped_nce(g, t, counted, temperature):
    """Picture against all reports, report against all pictures, of the counted studies alone."""
    g, t, total = unit(g[counted]), unit(t[counted]), 0.0
    for i in range(len(g)):
        total += surprise(np.array([g[i] @ row for row in t]) / temperature, i) / 2
        total += surprise(np.array([t[i] @ row for row in g]) / temperature, i) / 2
    return total / len(g)


def looped_itc(g_f, g_l, g_fl, g_t, has_lateral, temperature):
    everyone = np.ones(len(g_t), bool)
    halves = [looped_nce(g_f, g_t, everyone, temperature), looped_nce(g_l, g_t, has_lateral, temperature)]
    return 0.5 * sum(halves) + looped_nce(g_fl, g_t, everyone, temperature)


def looped_fla(u_f, u_l, words, has_lateral, temperature):
    """Word i of one picture among the report's words of the other, both ways; means over words, then studies."""
    of_studies = []
    for u, v, counted, there in zip(u_f, u_l, words, has_lateral, strict=True):
        if not (there and counted.any()):
            continue
        u, v = unit(u[counted]), unit(v[counted])
        logits = np.array([[a @ b for b in v] for a in u]) / temperature
        both = [(surprise(logits[i], i) + surprise(logits[:, i], i)) / 2 for i in range(len(u))]
        of_studies.append(np.mean(both))
    return np.mean(of_studies)


def looped_codes(z, epsilon, iterations=3):
    """Sinkhorn–Knopp: prototypes get equal shares of the studies, then every study has the sum 1."""
    q = np.exp(z / epsilon)
    for _ in range(iterations):
        q = q / q.sum(axis=0, keepdims=True)
        q = q / q.sum(axis=1, keepdims=True)
    return q


def looped_proto(scores, codes, has_lateral, temperature, pairs=("FT", "LT", "TF", "TL")):
    """Mean over (who predicts, whose codes) of the cross-entropy, over the studies that have both."""
    of_pairs = []
    for one, other in pairs:
        rows = [i for i in range(len(has_lateral)) if has_lateral[i] or "L" not in one + other]
        losses = []
        for i in rows:
            surprises = [surprise(scores[one][i] / temperature, k) for k in range(scores[one].shape[1])]
            losses.append(sum(q * s for q, s in zip(codes[other][i], surprises, strict=True)))
        of_pairs.append(np.mean(losses))
    return np.mean(of_pairs)


def codes_of(scores, has_lateral, epsilon):
    """By name; those of "L" are balanced over the studies that have one."""
    codes = {name: looped_codes(z, epsilon) for name, z in scores.items()}
    codes["L"] = np.zeros_like(scores["L"])
    codes["L"][has_lateral] = looped_codes(scores["L"][has_lateral], epsilon)
    return codes


def looped_mlm(logits, labels):
    rows = [surprise(logits[i, place], labels[i, place]) for i, place in zip(*np.nonzero(labels), strict=True)]
    return np.mean(rows)


def slopes(function, arrays, step=1e-5):
    """Central differences of a function of float64 arrays."""
    found = []
    for number, array in enumerate(arrays):
        slope = np.zeros_like(array)
        for place in np.ndindex(array.shape):
            sides = []
            for sign in (1, -1):
                moved = [x.copy() for x in arrays]
                moved[number][place] += sign * step
                sides.append(function(*moved))
            slope[place] = (sides[0] - sides[1]) / (2 * step)
        found.append(slope)
    return found


def assert_same(ours, loop, arrays):
    """Value and gradients by all arrays, of one function in JAX and one in NumPy."""
    inputs = [jnp.asarray(x, jnp.float32) for x in arrays]
    value, gradients = jax.value_and_grad(ours, argnums=tuple(range(len(arrays))))(*inputs)
    assert float(value) == pytest.approx(loop(*arrays), rel=1e-5)
    for found, slope in zip(gradients, slopes(loop, arrays), strict=True):
        np.testing.assert_allclose(found, slope, atol=2e-5)


def test_contrast():
    """A half of each picture's and a whole of both together: a bracket elsewhere is another number."""
    assert_same(
        lambda *g: frontal_lateral.contrast(*g, HAS_LATERAL, temperature=0.5),
        lambda *g: looped_itc(*g, HAS_LATERAL, 0.5),
        [G_F, G_L, G_FL, G_T],
    )


def test_contrast_in_groups_is_the_mean_of_its_studies():
    """Negatives of three studies at a time; a mean over those that have what is contrasted."""
    vectors = [jnp.asarray(x, jnp.float32) for x in (G_F, G_L, G_FL, G_T)]
    found = frontal_lateral.contrast(*vectors, HAS_LATERAL, temperature=0.5, groups=2)
    halves = [[x[rows] for x in (G_F, G_L, G_FL, G_T, HAS_LATERAL)] for rows in (slice(3), slice(3, 6))]

    def mean(g, weights):
        losses = [looped_nce(half[g], half[3], half[4] if g == 1 else half[4] | True, 0.5) for half in halves]
        return np.average(losses, weights=weights)

    assert float(found) == pytest.approx((mean(0, [3, 3]) + mean(1, [2, 2])) / 2 + mean(2, [3, 3]), rel=1e-5)


def test_word_alignment():
    words = np.array([[1, 1, 1], [1, 1, 0], [0, 0, 0], [1, 0, 0], [1, 1, 1], [1, 1, 0]], bool)
    assert_same(
        lambda u, v: word_alignment(u, v, words, temperature=0.5, studies=HAS_LATERAL),
        lambda u, v: looped_fla(u, v, words, HAS_LATERAL, 0.5),
        list(RNG.normal(size=(2, 6, 3, 4))),
    )


@pytest.mark.parametrize("one_way", [False, True])
def test_swapped_prediction(one_way):
    """Codes are targets: the loop's stay as they are while the scores move."""
    arrays = list(RNG.uniform(-1, 1, size=(3, 6, 4)))
    codes = codes_of(dict(zip("FLT", arrays, strict=True)), HAS_LATERAL, 0.3)
    pairs = ("FT", "LT") if one_way else ("FT", "LT", "TF", "TL")

    def ours(*z):
        scores, options = dict(zip("FLT", z, strict=True)), {"epsilon": 0.3, "temperature": 0.2}
        return frontal_lateral.swapped(scores, HAS_LATERAL, one_way=one_way, **options)[0]

    def loop(*z):
        return looped_proto(dict(zip("FLT", z, strict=True)), codes, HAS_LATERAL, 0.2, pairs)

    assert_same(ours, loop, arrays)


def test_masked_words():
    labels = np.array([[0, 3, 0], [0, 0, 0], [1, 0, 4]])
    assert_same(
        lambda z: masked.masked_tokens(z, jnp.asarray(labels)),
        lambda z: looped_mlm(z, labels),
        [RNG.normal(size=(3, 3, 5))],
    )


def test_how_often_words_are_hidden():
    """A listed word, a word beside one, a word of a report without any: each has a rate of its own."""
    named = np.array([[0, 1, 0, 1], [0, 0, 0, 0], [1, 1, 1, 1]], bool)
    expected = np.zeros(named.shape)
    for i, row in enumerate(named):
        for place, listed in enumerate(row):
            expected[i, place] = 0.75 if listed else 0.65 if any(row) else 0.7
    rates = frontal_lateral.hiding_rates(jnp.asarray(named), entity=0.75, beside=0.65, without=0.7)
    np.testing.assert_allclose(rates, expected)


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    folder = two_views.vocabulary(tmp_path_factory.mktemp("vocabulary"))
    changes = {"text__tokenizer": str(folder), "text__length": 16, "text__vocab_size": 32, "model__patch_px": 8}
    changes |= {"views__transform": "none", "model__remat": "none", "duration__total_steps": 10}
    # Each term with a weight of its own, and a third of the words hidden or none, so that no two could be confused.
    changes |= {f"loss__weights__{name}": weight for name, weight in WEIGHTS.items()}
    changes |= {"masking__entities": "square bar", "masking__entity": 1.0, "masking__beside": 0.0}
    return runs.config("frontal_lateral", **changes, masking__without=0.0)


WEIGHTS = {"mlm": 0.5, "fla": 2.0, "itc": 3.0, "proto": 0.25}


def test_the_loss_is_the_four_loops(config):
    """From what the networks give: which vectors meet, which studies and words count, and which words are hidden."""
    method, net = methods.make(config), Networks(config)
    batch = two_views.batch(method, list(two_views.studies(8, lacking=0.3)))
    params, state = map(oracles.noise, jax.eval_shape(method.init, jax.random.key(0), None))
    params["view_decoder"]["read"]["attention"]["qkv"]["kernel"] *= 5
    ids, mask, word_index, there = (batch[name] for name in ("ids", "text_mask", "word_index", "has_lateral"))
    listed = np.isin(ids, [number_of(method, word) for word in ("square", "bar")])
    hidden = np.where(listed, number_of(method, "[MASK]"), ids)

    @jax.jit
    def outputs(params):
        scales = (config.standardise, config.lateral.standardise)
        pictures = [device.standardise(batch["image"][:, v], **scales[v]) for v in range(2)]
        x_f, g_f, x_l, _ = net.embed_pictures(params, state, *pictures, net.paths(jax.random.key(0), len(pictures[0])))
        x_l = jnp.where(there[:, None, None], x_l, 0)
        (t, g_t), (t_hidden, _) = (net.embed_report(params, state, jnp.asarray(read), mask) for read in (ids, hidden))
        s = net.key_patches(params, x_f, x_l, there, t, mask)
        u_f, u_l = (net.read_view(params, t[:, 1:], x, (word_index[:, 1:] >= 0).sum(axis=1)) for x in (x_f, x_l))
        logits = net.guess_words(params, t_hidden, s, mask.sum(axis=1))
        return g_f, x_l.mean(axis=1), g_t, u_f, u_l, logits

    g_f, g_l, g_t, u_f, u_l, logits = (np.asarray(x, np.float64) for x in outputs(params))
    beside = np.where(there[:, None], g_l, params["absent"])
    g_fl = np.concatenate([g_f, beside], axis=1) @ params["projector"]["kernel"] + params["projector"]["bias"]
    directions = unit(params["prototypes"]["direction"].T)
    scores = {name: unit(g) @ directions.T for name, g in {"F": g_f, "L": g_l + 1e-30, "T": g_t}.items()}
    expected = {
        "itc": looped_itc(g_f, g_l, g_fl, g_t, there, 0.1),
        "mlm": looped_mlm(logits, np.where(listed, ids, 0)),
        "fla": looped_fla(u_f, u_l, word_index[:, 1:] >= 0, there, 0.07),
        "proto": looped_proto(scores, codes_of(scores, there, 0.07), there, 0.1),
    }
    _, aux = jax.jit(method.loss)(params, state, batch, jax.random.key(0), 5)
    found = {name: float(value) / WEIGHTS[name] for name, value in aux.terms.items()}
    assert found == pytest.approx(expected, rel=1e-4)


def number_of(method, word):
    return method.views.tokenizer.vocabulary.index(word)
