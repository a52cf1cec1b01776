"""The losses of a mask: plain loops of the formulas, the autograd of PyTorch, and values by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from cxrjax.losses import segmentation as losses

KNOWN = np.array([True, False, True])


def case():
    rng = np.random.default_rng(0)
    masks = rng.random((3, 4, 5, 1)) < 0.4
    masks[2] = False  # an empty one
    return rng.normal(scale=2, size=(3, 4, 5, 1)).astype(np.float32), masks


def in_torch(name, logits, masks, gamma=2.0):
    """The formulas of the module's docstring, picture by picture."""
    kept = [(p, torch.tensor(t, dtype=torch.float64)) for p, t, k in zip(logits, masks, KNOWN, strict=True) if k]
    if name == "log_dice":
        p, t = (torch.stack(part) for part in zip(*((torch.sigmoid(s), t) for s, t in kept), strict=True))
        return -torch.log((2 * (p * t).sum() + 1) / (p.sum() + t.sum() + 1))
    found = []
    for s, t in kept:
        p = torch.sigmoid(s)
        if name == "dice":
            found.append(1 - (2 * (p * t).sum() + 1) / (p.sum() + t.sum() + 1))
        else:
            right = torch.where(t > 0, p, 1 - p)
            found.append(((1 - right) ** (gamma if name == "focal" else 0) * -torch.log(right)).mean())
    return torch.stack(found).mean()


@pytest.mark.parametrize("name", ["dice", "log_dice", "cross_entropy", "focal"])
def test_value_and_gradient_are_those_of_the_formula(name):
    logits, masks = case()
    theirs = torch.tensor(logits, dtype=torch.float64, requires_grad=True)
    expected = in_torch(name, theirs, masks)
    expected.backward()
    value, gradient = jax.value_and_grad(lambda s: getattr(losses, name)(s, masks, KNOWN))(logits)
    assert float(value) == pytest.approx(expected.item(), rel=1e-5)
    np.testing.assert_allclose(gradient, theirs.grad, atol=1e-7)
    assert not np.any(gradient[1]), "a picture without a mask teaches nothing"


def test_by_hand():
    masks = np.zeros((1, 2, 2, 1), bool)
    masks[0, 0] = True  # two of four pixels
    half = np.zeros((1, 2, 2, 1), np.float32)  # p = ½ everywhere
    known = np.ones(1, bool)
    assert float(losses.dice(half, masks, known)) == pytest.approx(1 - 3 / 5)
    assert float(losses.log_dice(half, masks, known)) == pytest.approx(-np.log(3 / 5))
    assert float(losses.cross_entropy(half, masks, known)) == pytest.approx(np.log(2))
    assert float(losses.focal(half, masks, known)) == pytest.approx(np.log(2) / 4)
    sure = np.where(masks, 50.0, -50.0).astype(np.float32)
    for name in ("dice", "log_dice", "cross_entropy", "focal"):
        assert float(getattr(losses, name)(sure, masks, known)) == pytest.approx(0, abs=1e-6)


def test_extreme_logits_and_no_mask_at_all_stay_finite():
    logits, masks = case()
    for s, known in ((1e4 * logits, KNOWN), (logits, np.zeros(3, bool))):
        for name in ("dice", "log_dice", "cross_entropy", "focal"):
            value, gradient = jax.value_and_grad(lambda s: getattr(losses, name)(s, masks, known))(jnp.asarray(s))  # noqa: B023
            assert np.isfinite(value) and np.isfinite(gradient).all()
            if not known.any():
                assert float(value) == 0 and not np.any(gradient)
