"""The doctor finds a damaged set, a full disk and a missing package, and calls a sound installation sound."""

import numpy as np
import pytest

from cxrjax import doctor
from cxrjax.datasets import in_memory


@pytest.fixture
def data(tmp_path, monkeypatch):
    monkeypatch.setenv("CXRJAX_DATA", str(tmp_path))
    monkeypatch.setattr(doctor, "LOW_BYTES", 0)
    pictures = np.random.default_rng(0).integers(0, 256, (20, 20, 24), dtype=np.uint8)
    return in_memory.make_set("mine", pictures, short_side=20)


def test_a_sound_installation_is_called_sound(data, capsys):
    assert doctor.main(["--fast"]) == 0
    said = capsys.readouterr().out
    assert "mine: train (" in said and "jax " in said and "PNG and JPEG: yes" in said and "!" not in said
    assert "TFLOP/s" not in said and said.endswith("Nothing is wrong.\n")


def test_damage_is_named(data, capsys, monkeypatch):
    for file in data.glob("*train*.array_record*"):
        file.write_bytes(file.read_bytes()[:100])
    monkeypatch.setattr(doctor, "LOW_BYTES", 2**60)
    monkeypatch.setattr(doctor, "NEEDED", ("jax", "not-a-package"))
    assert doctor.main(["--fast"]) == 1
    wrong = [line for line in capsys.readouterr().out.splitlines() if line.startswith("  !")]
    assert any("! mine: " in line for line in wrong), wrong
    assert any("not-a-package is not installed" in line for line in wrong)
    assert any("free; make room, or set CXRJAX_DATA" in line for line in wrong)
    assert len(wrong) == 3


def test_speed_is_measured(monkeypatch):
    from cxrjax.speed import cost

    monkeypatch.setattr(cost, "large_product", lambda mesh, dtype: (lambda: None, 6 * 10**12, 8))
    monkeypatch.setattr(cost, "in_turns", lambda calls, turns: {"product": [3.0, 2.0]})
    lines = list(doctor.devices(measure=True))
    assert "3 TFLOP/s: products of 8 × 8 in float32" in lines[-2] and "bfloat16" in lines[-1]
