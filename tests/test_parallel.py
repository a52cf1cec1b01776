import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, PartitionSpec

from cxrjax import parallel


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


def test_shardings_of_parameters_and_optimizer_state():
    mesh = parallel.make_mesh({"data": 2, "fsdp": 4})
    params = {"encoder": {"fc": {"kernel": jnp.zeros((8, 12)), "bias": jnp.zeros(12)}}}
    rules = [("fc/kernel", (None, "fsdp"))]
    state = {"params": params, "opt": optax.adam(1e-3).init(params)}
    found = parallel.shardings(jax.eval_shape(lambda: state), mesh, rules)
    assert found["params"]["encoder"]["fc"]["kernel"].spec == PartitionSpec(None, "fsdp")
    assert found["opt"][0].mu["encoder"]["fc"]["kernel"].spec == PartitionSpec(None, "fsdp")
    assert found["opt"][0].nu["encoder"]["fc"]["bias"].spec == PartitionSpec()
    assert found["opt"][0].count.is_fully_replicated
    placed = parallel.abstract(params, mesh, rules)["encoder"]["fc"]["kernel"]
    assert placed.shape == (8, 12) and placed.sharding.spec == PartitionSpec(None, "fsdp")


def test_first_rule_wins_and_a_tuple_splits_one_axis_over_two():
    mesh = parallel.make_mesh({"data": 2, "fsdp": 4})
    rules = [("^a$", ()), (".", (("data", "fsdp"),))]
    found = parallel.shardings({"a": jnp.zeros(8), "b": jnp.zeros(8)}, mesh, rules)
    assert found["a"].spec == PartitionSpec()
    assert found["b"].shard_shape((8,)) == (1,)


@pytest.mark.parametrize(
    ("partition", "message"),
    [(("fsdp",), "6 cannot be divided into 4"), (("model",), r"names \['model'\]"), ((None, None), "more axes")],
)
def test_partition_that_does_not_fit_names_the_leaf(partition, message):
    mesh = parallel.make_mesh({"data": 2, "fsdp": 4})
    with pytest.raises(ValueError, match=f"encoder/bias .*{message}"):
        parallel.shardings({"encoder": {"bias": jnp.zeros(6)}}, mesh, [("bias", partition)])


def test_any_process(monkeypatch):
    assert parallel.any_process(True, meet=False) and not parallel.any_process(False)
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(parallel.multihost_utils, "process_allgather", lambda flag: np.array([flag, True]))
    assert parallel.any_process(False) and not parallel.any_process(True, meet=False)
