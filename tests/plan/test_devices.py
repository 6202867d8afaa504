import pytest

from moeworks.errors import ConfigError
from moeworks.plan.devices import DEFAULT_DEVICE, DEVICES, Device, device_named, with_memory


@pytest.mark.parametrize("device", DEVICES.values(), ids=DEVICES)
def test_figures_are_of_a_plausible_size_and_have_a_source(device):
    assert device.memory is not None and 10**10 <= device.memory <= 10**12
    assert device.bandwidth is not None and 5e10 <= device.bandwidth <= 1e13
    assert len(device.source) > 15
    peaks = [device.flops[kind] for kind in ("fp32", "bf16", "fp8") if kind in device.flops]
    assert peaks == sorted(peaks)
    assert all(1e11 < peak < 1e16 for peak in peaks)
    if "bf16" in device.flops and "fp8" in device.flops:
        assert device.flops["fp8"] / device.flops["bf16"] == pytest.approx(2, rel=0.02)
    assert device.link is None or device.link < device.bandwidth


@pytest.mark.parametrize("device", DEVICES.values(), ids=DEVICES)
def test_peaks_are_dense(device):
    """Twice a known dense figure would be the one with sparsity."""
    dense = {"h100": 989.4e12, "a100-80gb": 312e12, "mi300x": 1307.4e12, "rtx-4090": 165.2e12}
    if device.name in dense:
        assert device.flops["bf16"] == dense[device.name]


@pytest.mark.parametrize("name", ["rtx-4090", "RTX 4090", "rtx_4090", "RTX4090", "4090"])
def test_names_in_any_spelling(name):
    assert device_named(name).name == "rtx-4090"


def test_every_name_finds_its_device():
    assert [device_named(name) for name in DEVICES] == list(DEVICES.values())
    assert device_named("A100").name == "a100-80gb"
    assert DEFAULT_DEVICE in DEVICES


def test_unknown_devices():
    with pytest.raises(ConfigError, match=r"gpu = 'h2000': unknown; did you mean 'h200'"):
        device_named("h2000")
    with pytest.raises(ConfigError, match=r"gpu = 'quantum': unknown; known: a100-40gb"):
        device_named("quantum")


def test_arithmetic_that_is_missing_is_done_wider():
    h100, a100, laptop, mac = (device_named(n) for n in ("h100", "a100", "laptop", "m4-max"))
    assert h100.peak("fp8") == ("fp8", 1978.9e12)
    assert a100.peak("fp8") == a100.peak("bf16") == ("bf16", 312e12)
    assert laptop.peak("fp8") == ("fp32", 0.9e12)
    assert mac.peak("bf16") is None


def test_free_values():
    h200 = device_named("h200")
    assert with_memory(h200, 10**9, None).memory == 10**9
    assert with_memory(h200, 10**9, None).bandwidth == h200.bandwidth
    free = with_memory(None, None, 20 * 10**9)
    assert (free.memory, free.parameters, free.bandwidth) == (None, 20 * 10**9, None)
    for both in ((None, None), (1, 1)):
        with pytest.raises(ConfigError, match="gpu_memory"):
            with_memory(None, *both)
    assert Device(name="x").peak("fp8") is None
