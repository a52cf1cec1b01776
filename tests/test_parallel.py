import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, PartitionSpec

from cxrjax import parallel
from cxrjax.config import ConfigDict


@pytest.mark.parametrize(
    ("axes", "sizes"),
    [
        ({"data": -1}, {"data": 8}),
        ({"data": 1}, {"data": 1}),
        ({"data": 2, "fsdp": -1}, {"data": 2, "fsdp": 4}),
        ({"data": 4}, {"data": 4}),
    ],
)
def test_mesh_sizes(axes, sizes):
    mesh = parallel.make_mesh(axes)
    assert dict(mesh.shape) == sizes
    assert set(mesh.axis_types) == {AxisType.Auto}
    assert parallel.num_devices(mesh) == np.prod(list(sizes.values()))
    assert axes.get("fsdp", 0) != 4  # the caller's own mapping is not written to


@pytest.mark.parametrize("axes", [{"data": 3, "fsdp": -1}, {"data": 16}, {"data": -1, "fsdp": -1}, {"data": 0}])
def test_mesh_that_does_not_fit(axes):
    with pytest.raises(ValueError, match="8 cpu device"):
        parallel.make_mesh(axes)


def test_check_batch():
    mesh = parallel.make_mesh({"data": 4, "fsdp": 2})
    parallel.check_batch(16, mesh)
    with pytest.raises(ValueError, match=r"20 does not divide over 8 device\(s\).*multiple of 8; use 16 or 24"):
        parallel.check_batch(20, mesh)
    with pytest.raises(ValueError, match=r"3 process\(es\).*multiple of 24; use 24"):
        parallel.check_batch(16, mesh, process_count=3)
    with pytest.raises(ValueError, match="multiple of 8"):
        parallel.check_batch(0, mesh)
    parallel.check_batch(3, parallel.make_mesh({"data": 1}))


def test_to_global_spreads_the_batch_over_both_data_axes():
    mesh = parallel.make_mesh({"data": 4, "fsdp": 2})
    host = {"image": np.arange(16 * 3, dtype=np.uint8).reshape(16, 3), "scale": np.float32(2)}
    batch = parallel.to_global(host, mesh)
    assert batch["image"].shape == (16, 3) and batch["image"].dtype == jnp.uint8
    assert {shard.data.shape for shard in batch["image"].addressable_shards} == {(2, 3)}
    assert batch["scale"].sharding.is_fully_replicated
    np.testing.assert_array_equal(batch["image"], host["image"])


def config(sharding="", **mesh):
    """A run's settings of the mesh; a key that is not given is there without a value."""
    return ConfigDict({"sharding": sharding, "mesh": {"data": None, "fsdp": None} | mesh})


@pytest.mark.parametrize(
    ("sharding", "mesh", "sizes"),
    [
        ("", {}, (8, 1)),
        ("fsdp", {}, (1, 8)),
        ("", {"fsdp": 4}, (2, 4)),
        ("fsdp", {"fsdp": 2}, (4, 2)),
        ("fsdp", {"data": 4}, (4, 2)),
        ("fsdp", {"data": 8}, (8, 1)),
        ("fsdp", {"data": -1}, (1, 8)),
        ("", {"fsdp": -1}, (1, 8)),
        ("", {"data": 2}, (2, 1)),
        ("", {"data": 2, "fsdp": 2}, (2, 2)),
    ],
)
def test_one_word_or_one_size_is_enough_for_a_mesh(sharding, mesh, sizes):
    assert dict(parallel.run_mesh(config(sharding, **mesh)).shape) == {"data": sizes[0], "fsdp": sizes[1]}


def test_settings_of_runs_before_there_were_two_keys():
    assert dict(parallel.run_mesh(ConfigDict({"sharding": (), "mesh": {"data": -1}})).shape) == {"data": 8, "fsdp": 1}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sharding": "zero"}, "sharding = 'zero': it is 'fsdp', or empty"),
        ({"model": 2}, "no axis model: give mesh.data, mesh.fsdp or both"),
        ({"fsdp": 3}, "8 cpu device.*cannot be divided by 3; give sizes that divide 8"),
        ({"fsdp": 16}, "8 cpu device.*cannot be divided by 16; give sizes that divide 8"),
        ({"data": 4, "fsdp": 4}, "it needs 16 devices"),
        ({"fsdp": 0}, "sizes are positive"),
    ],
)
def test_mesh_that_cannot_be_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        parallel.run_mesh(config(**settings))


def test_parts_of_parameters_and_moments():
    mesh = parallel.make_mesh({"data": 2, "fsdp": 4})
    shapes = {
        "block/kernel": (3, 64, 96),  # layers, inputs, outputs
        "block/bias": (64, 96),
        "conv/kernel": (3, 3, 1, 1024),
        "words": (1001, 64),
        "odd": (99, 99),
        "small": (8, 8),
        "vector": (8192,),
    }
    params = {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in shapes.items()}
    state = {"params": params, "opt": jax.eval_shape(optax.adam(1e-3).init, params)}
    found = parallel.shardings(state, mesh)
    cut = {name: sharding.spec for name, sharding in found["params"].items() if sharding.spec != PartitionSpec()}
    assert cut == {
        "block/kernel": PartitionSpec(None, "fsdp"),
        "conv/kernel": PartitionSpec(None, None, None, "fsdp"),
        "words": PartitionSpec(None, "fsdp"),
    }
    assert found["opt"][0].mu == found["opt"][0].nu == found["params"]
    assert found["opt"][0].count.is_fully_replicated
    placed = parallel.abstract(params, mesh)["words"]
    assert placed.shape == (1001, 64) and placed.sharding.spec == PartitionSpec(None, "fsdp")
    whole = parallel.shardings(state, parallel.make_mesh({"data": 8, "fsdp": 1}))
    assert all(leaf.is_fully_replicated for leaf in jax.tree.leaves(whole))


def test_parts_that_divide_no_array_are_refused_by_name():
    mesh = parallel.make_mesh({"data": 1, "fsdp": 8})
    tree = {"encoder": {"kernel": jnp.zeros((100, 100)), "other": jnp.zeros((99, 97))}, "head": jnp.zeros((8, 8))}
    with pytest.raises(ValueError, match=r"fsdp=8 divides.*encoder/kernel \(100, 100\): give a mesh.fsdp"):
        parallel.shardings(tree, mesh)
    parallel.shardings({"head": tree["head"]}, mesh)  # nothing is worth cutting


def test_any_process(monkeypatch):
    assert parallel.any_process(True, meet=False) and not parallel.any_process(False)
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(parallel.multihost_utils, "process_allgather", lambda flag: np.array([flag, True]))
    assert parallel.any_process(False) and not parallel.any_process(True, meet=False)
