import pytest

from cxrjax.runtime import goodput


@pytest.fixture
def clock(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(goodput.time, "monotonic", lambda: now[0])
    return now


def test_every_second_counts_once(clock):
    time_of = goodput.Goodput()
    with time_of.span("judging"):
        clock[0] += 10
        with time_of.span("saving"):
            clock[0] += 5
        clock[0] += 1
    clock[0] += 80
    time_of.add("input", 4)
    found = time_of.seconds()
    assert found == dict.fromkeys(goodput.KINDS, 0) | {"stepping": 76, "judging": 11, "saving": 5, "input": 4}
    assert sum(found.values()) == 96
    assert time_of.waiting() == pytest.approx(4 / 96) and time_of.waiting() == 0
    assert time_of.sentence() == "of 0:01:36: 79 % stepping, 4 % waiting for input, 11 % judging, 5 % saving"


def test_what_was_not_kept_is_lost(clock):
    """The first start ran for 70 s and was killed; its checkpoint is of second 40."""
    time_of = goodput.Goodput()
    time_of.resume({"stepping": 35.0, "compiling": 5.0}, {"stepping": 65.0, "compiling": 5.0})
    clock[0] += 30
    assert time_of.seconds() == dict.fromkeys(goodput.KINDS, 0) | {"stepping": 65, "compiling": 5, "lost": 30}
    assert "30 % lost to restarts" in time_of.sentence()
