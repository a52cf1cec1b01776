"""What hosts agree on, as one process sees it; test_processes.py has several."""

import jax
import numpy as np
import pytest

from cxrjax.runtime import hosts


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"coordinator": "a:1"}, "--processes and --process is not given"),
        ({"processes": 2, "process": 0}, "--coordinator is not given"),
        (
            {"coordinator": "a:1", "processes": 2, "process": 2},
            "--process=2 of --processes=2: it must be from 0 to 2 - 1",
        ),
        ({"coordinator": "a", "processes": 2, "process": 1}, "an address and a port"),
    ],
)
def test_a_coordinator_needs_to_be_whole(given, sentence):
    with pytest.raises(ValueError, match=sentence):
        hosts.connect(**given)


def test_a_single_host_has_its_own_way():
    votes = hosts.Votes()
    assert votes.cast(True, False) == (True, False)
    hosts.agree({"never called": lambda: 1 / 0}, "")


def test_a_difference_is_named(monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 3)
    monkeypatch.setattr(hosts, "_gathered", lambda text: [text, text, "7"])
    hosts.agree({"step": 7}, "start again")
    with pytest.raises(ValueError, match="differ in step: 8 on the first one, 7 on number 2; start again"):
        hosts.agree({"step": 8}, "start again")


def test_a_disk_that_one_host_does_not_see_is_named(monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(hosts, "_gathered", lambda text: [text, "False"])
    with pytest.raises(ValueError, match=r"/run of the first host is not seen by \[1\]: it must be a disk"):
        hosts.check_shared(lambda: "same", "/run", wait_s=0)


def test_digests_of_arrays_follow_their_values():
    one, other = {"a": np.arange(3.0)}, {"a": jax.numpy.arange(3.0) + 1}
    assert hosts.local_digest(one) == hosts.local_digest(dict(one)) != hosts.local_digest(other)
    assert hosts.whole(one) == one


def test_sharded_parameters_have_a_digest():
    """As one host sees them; on several each host gathers them first."""
    from cxrjax.evals.base import digest

    params = {"w": jax.numpy.arange(8.0)}
    mesh = jax.make_mesh((8,), ("all",), axis_types=(jax.sharding.AxisType.Auto,))
    spread = jax.device_put(params, jax.NamedSharding(mesh, jax.P("all")))
    assert digest(hosts.whole(spread)) == digest(params)
