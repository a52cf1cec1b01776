"""Targets are named by device and count; what cannot be had is refused with what can."""

import pytest

from cxrjax.accelerators import hardware


def test_targets():
    found = hardware.parse("h100:8")
    assert (found.device.name, found.count, found.topology) == ("h100", 8, "1x1x8")
    assert found.link_bytes_per_s == found.device.link_bytes_per_s
    machines = hardware.parse("a100-40:16")
    assert (machines.device.name, machines.topology) == ("a100-40", "1x2x8")
    assert machines.link_bytes_per_s == machines.device.network_bytes_per_s < machines.device.link_bytes_per_s
    assert hardware.parse("v5e-64").topology == "v5e:8x8"
    assert hardware.parse("l4").count == 1 and hardware.parse("a100-80").device.name == "a100-80"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("b100", "known are h100, h200, a100-80, .*Did you mean 'h100'"),
        ("h100:0", "whole number from 1"),
        ("h100:-1", "whole number from 1"),
        ("h100:12", "whole machines of as many"),
        ("v5e:3", "slices of v5e have 1, 4, 8"),
    ],
)
def test_what_cannot_be_had_is_refused(text, said):
    with pytest.raises(ValueError, match=said):
        hardware.parse(text)


@pytest.mark.parametrize("device", hardware.devices().values(), ids=hardware.devices())
def test_every_device_has_its_figures_and_their_source(device):
    assert 10e9 < device.memory_bytes < 200e9 and 1e14 < device.bf16_flops < 1e15
    assert device.network_bytes_per_s <= device.link_bytes_per_s and len(device.source) > 20
    if device.platform == "tpu":
        sides = {int(chips): shape for chips, shape in device.topologies.items()}
        for chips, shape in sides.items():
            product = 1
            for side in shape.split("x"):
                product *= int(side)
            assert product == chips
    else:
        text = hardware.gpu_target_config(device)
        assert f"device_memory_size: {device.memory_bytes}" in text and text.count("{") == text.count("}")
