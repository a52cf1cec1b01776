"""Cross-entropies with unknown answers, against PyTorch's own losses on the known ones."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from cxrjax.losses import classification
from tests.losses.test_contrastive import DTYPES, assert_gradient, rounded

LOGITS = np.asarray([[2.0, -1.0, 0.5], [-0.3, 0.0, 4.0], [1.0, 1.0, -3.0], [0.2, -2.0, 0.7]], np.float32)
CODES = np.asarray([[1, 0, -1], [-2, 0, 1], [1, -1, -2], [-1, -1, -1]], np.int8)
ONE = np.asarray([[1, 0, 0], [0, 0, 1], [1, 1, 0], [0, 0, 0]], np.int8)  # the last two have no single class
WEIGHTS = np.asarray([3.0, 0.5, 2.0], np.float32)


def value_and_gradient(loss, logits=LOGITS, **options):
    value, gradient = jax.value_and_grad(lambda logits: loss(logits, **options))(jnp.asarray(logits))
    assert value.dtype == jnp.float32
    return float(value), gradient


@pytest.mark.parametrize("weights", [None, WEIGHTS])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("dtype", DTYPES)
def test_binary_is_torchs_on_the_known_labels(weights, smoothing, dtype):
    (cast,), (exact,) = rounded(dtype, LOGITS)
    value, gradient = value_and_gradient(
        lambda x, **o: classification.binary(x, CODES, **o), cast, positive_weights=weights, smoothing=smoothing
    )
    logits = torch.tensor(exact, requires_grad=True)
    known = torch.tensor(CODES >= 0)
    target = torch.tensor(CODES == 1).float() * (1 - smoothing) + smoothing / 2
    each = torch.nn.functional.binary_cross_entropy_with_logits(
        logits, target, reduction="none", pos_weight=None if weights is None else torch.tensor(weights)
    )
    expected = each[known].mean()
    expected.backward()
    assert value == pytest.approx(expected.item(), rel=1e-6)
    assert_gradient(gradient, logits.grad, dtype, atol=1e-7)
    assert not gradient[CODES < 0].any()


@pytest.mark.parametrize(("weights", "smoothing"), [(None, 0.0), (WEIGHTS, 0.0), (None, 0.1), (WEIGHTS, 0.1)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_multiclass_is_torchs_on_pictures_of_one_class(weights, smoothing, dtype):
    (cast,), (exact,) = rounded(dtype, LOGITS)
    value, gradient = value_and_gradient(
        lambda x, **o: classification.multiclass(x, ONE, **o), cast, class_weights=weights, smoothing=smoothing
    )
    logits = torch.tensor(exact, requires_grad=True)
    expected = torch.nn.functional.cross_entropy(
        logits[:2],
        torch.tensor([0, 2]),
        weight=None if weights is None else torch.tensor(weights).double(),
        label_smoothing=smoothing,
    )
    expected.backward()
    assert value == pytest.approx(expected.item(), rel=1e-6)
    assert_gradient(gradient, logits.grad, dtype, atol=1e-7)


def test_a_batch_without_answers_teaches_nothing():
    for loss, codes in ((classification.binary, -np.ones((4, 3))), (classification.multiclass, np.zeros((4, 3)))):
        value, gradient = value_and_gradient(lambda x, loss=loss, codes=codes: loss(x, codes))
        assert value == 0 and not np.any(gradient)


def test_large_logits_stay_finite():
    logits, codes = jnp.asarray([[200.0, -200.0]]), jnp.asarray([[0, 1]])
    assert float(classification.binary(logits, codes)) == pytest.approx(200)
    assert float(classification.multiclass(logits.astype(jnp.bfloat16), codes)) == pytest.approx(400)
