"""Blocks of patches: sizes and places by hand, what is disjoint from what, and what the released code misses."""

import numpy as np
import pytest

from cxrjax.input.block_masks import Blocks

RELEASED = Blocks(inclusive=False, independent_aspect=False, context_cut="first", context_most=1.0)
LAST = 1 - 1e-9


@pytest.mark.parametrize(
    ("side", "sizes", "contexts"),
    [
        (14, [(5, 6), (5, 6), (6, 5), (7, 5), (8, 5)], [(13, 13)] * 3),
        (16, [(5, 7), (6, 7), (7, 6), (8, 6), (9, 6)], [(15, 15)] * 3),
        (28, [(9, 12), (11, 12), (12, 11), (14, 11), (15, 10)], [(26, 26), (27, 27), (27, 27)]),
    ],
)
def test_released_sizes(side, sizes, contexts):
    grid = (side, side)
    assert [RELEASED.target_size(u, u, grid) for u in (0, 0.25, 0.5, 0.75, LAST)] == sizes
    assert [RELEASED.context_size(u, grid) for u in (0, 0.5, LAST)] == contexts
    assert RELEASED.capacities((14, 14))[1] >= 40


def drawn(blocks, count=200, side=14):
    """Shares of the draws in which a cell is context and in which it is a target, p q each; and the draws."""
    rng, context, target, draws = np.random.default_rng(0), np.zeros(side**2), np.zeros(side**2), []
    for _ in range(count):
        found = blocks.draw(rng, (side, side))
        ids = found["context"][: found["context_count"]]
        hidden = found["targets"][:, : found["target_count"]]
        assert len(np.unique(ids)) == len(ids) > blocks.min_keep and np.all(np.diff(ids) > 0)
        assert not set(ids) & set(hidden.ravel()) and hidden.shape[0] == blocks.targets
        context[ids] += 1 / count
        target[np.unique(hidden)] += 1 / count
        draws.append(found)
    return context.reshape(side, side), target.reshape(side, side), draws


def test_released_blocks_never_reach_the_last_row_and_column():
    context, target, _ = drawn(RELEASED)
    assert not np.any([context[-1], context[:, -1], target[-1], target[:, -1]])
    assert np.all(target[:-1, :-1] > 0)
    context, target, draws = drawn(Blocks())
    assert np.all(context > 0) and np.all(target > 0)
    assert len({int(found["target_count"]) for found in draws}) > 5


def test_the_cut_takes_cells_at_random_or_from_the_bottom():
    few = Blocks(context_most=0.3)
    context, _, draws = drawn(few)
    assert {len(found["context"]) for found in draws} == {int(0.3 * 196)}
    first, _, _ = drawn(few._replace(context_cut="first"))
    uncut, _, _ = drawn(few._replace(context_most=1.0))
    bottom, kept = slice(11, None), uncut.sum() / 196
    assert first[bottom].mean() < 0.3 * context[bottom].mean()
    np.testing.assert_allclose(context[bottom].mean() / context.mean(), uncut[bottom].mean() / kept, rtol=0.15)


def test_a_crowded_picture_gives_up_its_last_targets():
    """On 4 × 4 patches four blocks of three and more leave fewer than nine: the context then keeps some of theirs."""
    blocks = Blocks(targets=4, target_scale=(0.5, 0.6), context_scale=(1.0, 1.0), min_keep=10, context_most=1.0)
    found = blocks.draw(np.random.default_rng(0), (4, 4))
    assert found["context_count"] == 16
