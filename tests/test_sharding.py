"""A train state in parts: the steps of one device on every mesh, checkpoints that move, judges that see no parts."""

import functools

import jax
import numpy as np
import optax
import pytest

from cxrjax import checkpoint, parallel
from cxrjax.evals.encoders import from_method
from cxrjax.step import make_step
from tests.methods import test_every_method as every

vocabulary = every.vocabulary
STEPS = 5
# The variances of MLVICX have a steep slope and a hinge. Under Adam, which makes a full step of a rounding in a small
# gradient, half a unit in the last place of the start grows to 7e-5 in five steps on one device, too.
OPTIMIZER_OF = {"mlvicx": optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(2e-3, momentum=0.9))}
MESHES = ((8, 1), (4, 2), (2, 4), (1, 8))  # data, fsdp
METHODS = ("spcl", "mae", "dino", "mlvicx", "sista", "frontal_lateral")
QUICK = (("spcl", (2, 4)), ("mae", (1, 8)))


@pytest.fixture(autouse=True)
def quick_to_compile():
    """Here slow tests, too, spend their time on compiling."""
    jax.config.update("jax_disable_most_optimizations", True)


def mesh_of(data, fsdp):
    return parallel.make_mesh({"data": data, "fsdp": fsdp})


@functools.cache
def made(name, vocabulary):
    method = every.make(name, vocabulary)
    return method, every.batch_of(method)


@functools.cache
def trained(name, vocabulary, data, fsdp):
    """The train state after five steps of the start on a mesh, and the scalars of each step."""
    (method, batch), mesh = made(name, vocabulary), mesh_of(data, fsdp)
    optimizer = OPTIMIZER_OF.get(name, every.OPTIMIZER)

    def start():
        found = every.start_of(method, batch)
        return found._replace(opt_state=optimizer.init(found.params))

    abstract = parallel.abstract(jax.eval_shape(start), mesh)
    layout = jax.tree.map(lambda leaf: leaf.sharding, abstract)
    step = jax.jit(
        make_step(method, optimizer, jax.random.key(0), mesh=mesh),
        in_shardings=(layout, parallel.batch_sharding(mesh)),
        out_shardings=(layout, parallel.replicated(mesh)),
    )
    state = jax.jit(start, out_shardings=layout)()
    shards, scalars = parallel.to_global(batch, mesh), []
    for _ in range(STEPS):
        state, found = step(state, shards)
        scalars.append(jax.device_get(found))
    return state, scalars


def assert_close(found, expected, atol):
    for (keys, a), b in zip(jax.tree.leaves_with_path(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=atol, err_msg=jax.tree_util.keystr(keys))


CASES = [
    pytest.param(name, mesh, marks=() if (name, mesh) in QUICK else pytest.mark.slow)
    for name in METHODS
    for mesh in MESHES
]


@pytest.mark.parametrize(("name", "mesh"), CASES)
def test_five_steps_are_those_of_one_device(name, mesh, vocabulary):
    one, expected = trained(name, vocabulary, 1, 1)
    state, scalars = trained(name, vocabulary, *mesh)
    for number, (found, wanted) in enumerate(zip(scalars, expected, strict=True)):
        assert found.keys() == wanted.keys(), number
        assert_close(found, wanted, 1e-5)
    for part in ("params", "state"):
        found, wanted = (jax.device_get(getattr(each, part)) for each in (state, one))
        assert_close(found, wanted, 1e-5)


def test_each_device_keeps_its_part(vocabulary):
    """Of the start of DINO, whose teacher is as large as what it trains: parameters, two moments, teacher."""
    method, batch = made("dino", vocabulary)
    start = jax.eval_shape(lambda: every.start_of(method, batch))

    def bytes_per_device(fsdp):
        placed = parallel.abstract(start, mesh_of(8 // fsdp, fsdp))
        leaves = jax.tree.leaves(placed)
        return sum(np.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in leaves)

    whole = bytes_per_device(1)
    small = sum(4 * leaf.size for leaf in jax.tree.leaves(start) if leaf.size < parallel.SMALL)
    assert whole > 10 * small
    for fsdp in (2, 4, 8):
        assert bytes_per_device(fsdp) <= small + (whole - small) / fsdp


def test_checkpoints_move_between_all_layouts(vocabulary, tmp_path):
    """Each mesh restores what another saved, down to one device, and the last is the first bit by bit."""
    method, batch = made("spcl", vocabulary)
    start = jax.jit(lambda: every.start_of(method, batch))()
    state = expected = jax.device_get(start)
    for number, sizes in enumerate(((1, 1), *MESHES, (1, 2), (1, 1)), 1):
        abstract = parallel.abstract(expected, mesh_of(*sizes))
        with checkpoint.open(tmp_path, keep_latest=9) as saved:
            if number > 1:
                state = saved.restore(number - 1, abstract)
            state = jax.device_put(state, jax.tree.map(lambda leaf: leaf.sharding, abstract))
            saved.save(number, state, {"step": number})
    for a, b in zip(jax.tree.leaves(jax.device_get(state)), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(a, b)


def test_judges_see_no_parts(vocabulary):
    """Each device encodes its pictures with whole parameters: nothing is exchanged while sets are read."""
    method, batch = made("spcl", vocabulary)
    mesh, start = mesh_of(2, 4), jax.jit(lambda: every.start_of(method, batch))()
    params = jax.device_put(start.params, parallel.shardings(start.params, mesh))
    assert not all(leaf.is_fully_replicated for leaf in jax.tree.leaves(params))
    images = parallel.to_global(batch["image"][:, 0], mesh)
    encoder = from_method(method, params, start.state, name="parts", mesh=mesh)
    whole = from_method(method, start.params, start.state, name="whole", mesh=mesh)
    features = [np.asarray(each.encode(images)["pooled"]) for each in (encoder, whole)]
    np.testing.assert_array_equal(*features)
    assert encoder.digest == whole.digest
