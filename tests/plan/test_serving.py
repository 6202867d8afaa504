import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moeworks.errors import ConfigError
from moeworks.families import published
from moeworks.plan.devices import device_named, with_memory
from moeworks.plan.routing import expected_devices
from moeworks.plan.serving import ServingRequest, plan_serving

V3 = published("deepseek-v3")
H200 = device_named("h200")


def split_of(plan, name):
    return next(split for split in plan.splits if split.split == name)


def test_the_example_of_the_readme():
    plan = plan_serving(V3, H200, ServingRequest(dtype="fp8", context=32_768, batch=64))
    assert plan.weight_bytes == pytest.approx(671e9, rel=0.005)
    assert plan.cache_bytes == 64 * 32_768 * 70_272
    assert (plan.devices_needed, split_of(plan, "expert").needed) == (7, 8)
    assert split_of(plan, "tensor").problem.startswith("never fits: of 128 devices each would hold 154.8 GB")
    assert plan.experts_touched == pytest.approx(256 * (1 - (1 - 8 / 256) ** 64))
    speed = split_of(plan, "even").decode
    assert speed.step_seconds == pytest.approx(plan.step_bytes.total / 7 / 4.8e12)
    assert speed.bound == "experts"


def test_devices_that_hold_parameters():
    device = with_memory(None, None, 20 * 10**9)
    plan = plan_serving(V3, device, ServingRequest())
    assert plan.devices_needed == 34
    assert [split.split for split in plan.splits] == ["even"]
    assert plan.splits[0].decode is None
    assert plan.splits[0].load is None
    fast = plan_serving(V3, with_memory(H200, None, 20 * 10**9), ServingRequest())
    assert fast.splits[0].decode is not None


@settings(max_examples=8)
@given(st.sampled_from(["h100", "b200", "rtx-4090"]), st.integers(1, 64), st.integers(1, 30_000))
def test_what_is_needed_fits_and_one_device_less_does_not(name, batch, context):
    plan = plan_serving(V3, device_named(name), ServingRequest(dtype="fp8", batch=batch, context=context))
    for split in plan.splits:
        if split.needed is None:
            assert split.problem is not None
            continue
        assert split.load.total <= plan.usable_bytes
        assert split.most_sequences >= batch
        fewer = ServingRequest(dtype="fp8", batch=batch, context=context, devices=split.needed - 1)
        again = split_of(plan_serving(V3, device_named(name), fewer), split.split)
        assert again.problem.startswith(f"does not fit, needs at least {split.needed:,} devices")


def test_asked_for_devices_are_used():
    plan = plan_serving(V3, H200, ServingRequest(dtype="fp8", devices=64))
    assert {split.devices for split in plan.splits} == {64}
    assert plan.traffic_devices.places == 64
    assert plan.traffic_nodes.places == 8
    assert plan.traffic_nodes.per_token == pytest.approx(expected_devices(V3.router, 8))
    assert plan.traffic_nodes.per_token_unlimited == pytest.approx(5.295, abs=0.001)
    one_node = plan_serving(V3, H200, ServingRequest(dtype="fp8", devices=64, devices_per_node=64))
    assert one_node.traffic_nodes is None


def test_numbers_that_do_not_divide_the_heads():
    plan = plan_serving(published("mixtral-8x7b"), H200, ServingRequest(devices=3))
    assert split_of(plan, "tensor").problem == "3 devices do not divide the 32 query heads"
    assert split_of(plan, "tensor").decode is None
    assert split_of(plan, "even").problem is None


def test_one_device_sends_nothing():
    plan = plan_serving(published("olmoe-1b-7b"), H200, ServingRequest())
    assert plan.traffic_devices is None and plan.exchange_seconds is None


def test_exchange_time_is_bytes_over_links():
    plan = plan_serving(V3, H200, ServingRequest(dtype="fp8", devices=16, batch=32, devices_per_node=16))
    per_token = plan.traffic_devices.bytes_per_token
    assert plan.exchange_seconds == pytest.approx(32 * per_token / (16 * 450e9))
    assert plan_serving(V3, H200, ServingRequest(dtype="fp8", devices=16)).exchange_seconds is None
    assert plan_serving(V3, device_named("l40s"), ServingRequest(dtype="fp8")).exchange_seconds is None


def test_fp8_sends_one_byte_there_and_two_back():
    narrow = plan_serving(V3, H200, ServingRequest(dtype="fp8", devices=32)).traffic_devices
    wide = plan_serving(V3, H200, ServingRequest(dtype="bf16", devices=32)).traffic_devices
    assert wide.bytes_per_token == pytest.approx(narrow.bytes_per_token * 4 / 3)


def test_a_dense_model_has_no_experts():
    plan = plan_serving(published("llama-3-8b"), H200, ServingRequest())
    assert plan.experts_touched is None
    assert [split.split for split in plan.splits] == ["even", "tensor"]
    assert plan.traffic_devices is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"context": 0}, "context = 0: must lie between 1 and"),
        ({"context": 10**12}, "context = 1000000000000: must lie between"),
        ({"batch": 0}, "batch = 0: must lie between"),
        ({"batch": 10**9}, "batch = 1000000000: must lie between"),
        ({"devices": 0}, "gpus = 0: must lie between"),
        ({"devices_per_node": 0}, "gpus_per_node = 0: must be at least 1"),
        ({"memory_fraction": 0.0}, "memory_fraction = 0.0: must lie above 0"),
        ({"memory_fraction": 1.1}, "memory_fraction = 1.1: must lie above 0 and be at most 1"),
        ({"prefill_tokens": 0}, "prefill_tokens = 0: must be at least 1"),
        ({"dtype": "fp7"}, "dtype = 'fp7': unknown; did you mean 'fp8'"),
        ({"kv_dtype": "int4"}, "kv_dtype = 'int4': unknown"),
    ],
)
def test_requests_out_of_range(changes, message):
    with pytest.raises(ConfigError, match=message):
        plan_serving(V3, H200, ServingRequest(**changes))
