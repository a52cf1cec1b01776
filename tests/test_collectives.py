"""What eight devices exchange in a training step, read from the compiled program: nothing but what is named here."""

import re
from typing import NamedTuple

import jax
import pytest

from cxrjax import methods, parallel, step
from cxrjax.accelerators import aot
from tests import runs

B, DEVICES = 16, 8
SCALAR = 4  # bytes of a number in float32
PICTURES = B * SCALAR  # bytes of one for each picture


class Allowed(NamedTuple):
    """counts: at most so many exchanges of each kind; a tuple of arrays is one.

    gradients: how often those of all parameters are exchanged, in one piece or in several. passes: of a batch through
    every BatchNorm. other: kind → the bytes of all else, by name.
    """

    counts: dict
    gradients: int
    passes: int
    other: dict


# Monitors are the spread of the features and how many directions they take; deviations are gathered with their means.
ALLOWED = {
    "spcl": Allowed(
        {"all-reduce": 6, "all-gather": 6},
        gradients=1,
        passes=0,
        other={
            "all-gather": {
                "embeddings of a part, for both directions of the loss and for their gradient": 3 * 64 * PICTURES,
                "largest logit of a column, and its share of the loss": 2 * PICTURES,
                "features for a monitor": 64 * PICTURES,
            },
            "all-reduce": {
                "gradient of the gathered embeddings": 64 * PICTURES,
                "softmax over a column: largest logit and sum": 2 * PICTURES,
                "loss and monitors": (3 * 64 + 7) * SCALAR,
            },
        },
    ),
    "mae": Allowed(
        {"all-reduce": 6, "all-gather": 2},  # the blocks of the encoder exchange their gradients one by one
        gradients=1,
        passes=0,
        other={
            "all-gather": {"features for a monitor": 2 * 64 * PICTURES},
            "all-reduce": {"loss and monitors": (3 * 64 + 5) * SCALAR},
        },
    ),
    "sista": Allowed(
        {"all-reduce": 23, "all-gather": 7, "all-to-all": 5},
        gradients=1,
        passes=1,
        other={
            "all-gather": {
                "embeddings of pictures and reports, for logits, their gradient and a monitor": 6 * 32 * PICTURES,
                "which reports are alike": PICTURES,
            },
            "all-reduce": {
                "gradient of the gathered embeddings": 32 * PICTURES,
                "softmax over a column: largest logit and sum": 2 * PICTURES,
                "how many words and patches count": 4 * SCALAR,
                "loss, terms and monitors": 2 * (32 + 6) * SCALAR,
            },
            "all-to-all": {"logits and targets of pairs, rows for columns": 5 * 2 * B * SCALAR},
        },
    ),
    "mlvicx": Allowed(
        {"all-reduce": 79, "all-gather": 7},
        gradients=2,  # each view's; on a CPU they are added afterwards
        passes=2,
        other={
            "all-gather": {"embeddings, for the covariances of their features and a monitor": 7 * 24 * PICTURES},
            "all-reduce": {
                "gradient of the gathered embeddings": 4 * 24 * PICTURES,
                "deviations of the embeddings and their gradient, of two heads and views": 4 * 6 * 24 * SCALAR,
                "loss, terms and monitors": 6 * (24 + 1) * SCALAR,
            },
        },
    ),
}


# Of a table of word pieces the pieces go to all devices, and the gradients of their vectors to the one that has the
# part; what is left of the gradients goes in more pieces.
WORDS = {"sista": ({"all-reduce": 5, "all-gather": 1, "all-to-all": 1}, 48 * PICTURES, 64 * 48 * PICTURES // DEVICES)}


def _cases(*quick):
    """All of ALLOWED; those that are not quick to compile are slow."""
    return [pytest.param(name, marks=() if name in quick else pytest.mark.slow) for name in ALLOWED]


@pytest.mark.parametrize("name", _cases("spcl", "mae", "sista"))
def test_devices_exchange_what_is_named_and_nothing_else(name):
    text, abstract = _compiled(name, parallel.make_mesh({"data": DEVICES}))
    _assert_allowed(text, abstract, ALLOWED[name])


@pytest.mark.parametrize("name", _cases("spcl", "mae"))
def test_parts_are_gathered_once_and_gradients_reduced_once(name):
    """Eight devices that share one train state also gather what lies in parts, once."""
    text, abstract = _compiled(name, parallel.make_mesh({"data": 1, "fsdp": DEVICES}))
    counts, other = dict(ALLOWED[name].counts), {kind: dict(each) for kind, each in ALLOWED[name].other.items()}
    in_parts = [leaf for leaf in jax.tree.leaves((abstract.params, abstract.state)) if _is_in_parts(leaf)]
    learned = [leaf for leaf in jax.tree.leaves(abstract.params) if _is_in_parts(leaf)]
    assert sum(leaf.size for leaf in learned) > 0.9 * sum(leaf.size for leaf in jax.tree.leaves(abstract.params))
    counts["all-gather"] += len(in_parts)
    if name in WORDS:
        more, other["all-gather"]["word pieces"], other["all-to-all"]["gradients of their vectors"] = WORDS[name]
        counts = {kind: count + more.get(kind, 0) for kind, count in counts.items()}
    other["all-gather"]["what lies in parts"] = SCALAR * sum(leaf.size for leaf in in_parts)
    other["all-reduce"]["of each part the norm of its gradient and of its update"] = 2 * SCALAR * len(learned)
    _assert_allowed(text, abstract, ALLOWED[name]._replace(counts=counts, other=other))


def _is_in_parts(leaf):
    return not leaf.sharding.is_fully_replicated


def _compiled(name, mesh):
    """The text of a step that is compiled for a mesh, and its train state."""
    config = runs.config(name)
    method = methods.make(config, total_steps=6)
    program = step.program(config, method, mesh, total_steps=6, examples=B)
    sharding = parallel.batch_sharding(mesh)
    batch = {
        key: jax.ShapeDtypeStruct((B, *x.shape[1:]), x.dtype, sharding=sharding)
        for key, x in methods.blank_batch(method).items()
    }
    return program.step.lower(program.abstract, batch).compile().as_text(), program.abstract


def _assert_allowed(text, abstract, allowed):
    found = aot.collectives(text)
    assert {kind: each.count for kind, each in found.items() if each.count > allowed.counts.get(kind, 0)} == {}

    # Sums of x and x² and their count, which are all that is in float64; those of the gradient are in float32.
    norms = [width for width in _widths(abstract.state) for _ in range(allowed.passes)]
    exchanged = [re.split(r" all-reduce(?:-start)?\(", line)[0] for line in text.splitlines() if " all-reduce" in line]
    sums = sorted(int(size) for shape in exchanged for size in re.findall(r"f64\[(\d+)\]", shape))
    assert sums == sorted(2 * width + 1 for width in norms)

    sizes = {kind: sum(parts.values()) for kind, parts in allowed.other.items()}
    sizes["all-reduce"] += allowed.gradients * SCALAR * sum(leaf.size for leaf in jax.tree.leaves(abstract.params))
    sizes["all-reduce"] += sum(8 * (2 * width + 1) + SCALAR * 2 * width for width in norms)
    assert {kind: each.bytes for kind, each in found.items() if each.bytes > sizes[kind]} == {}


def _widths(state):
    """Of every BatchNorm."""
    leaves, _ = jax.tree.flatten_with_path(state.get("batch_stats", {}))
    return [leaf.size for path, leaf in leaves if path[-1].key == "mean"]
