import pytest
from hypothesis import given
from hypothesis import strategies as st

from moeworks.config.count import count_flops, count_parameters
from moeworks.errors import ConfigError
from moeworks.families import published
from moeworks.plan.devices import device_named
from moeworks.plan.training import plan_training

V3, H800 = published("deepseek-v3"), device_named("h800")


def plan(**changes):
    options = dict(tokens=10**12, seq_len=4096, devices=1024, mfu=0.4)
    return plan_training(V3, H800, **(options | changes))


def test_a_published_day_of_training():
    """arXiv:2505.09343, table 4: 272.8 B tokens a day on 2,048 H800 at 43.73 % (non-causal) MFU."""
    day = plan(tokens=int(272.8e9), devices=2048, mfu=0.4373)
    assert day.seconds == pytest.approx(86_400, rel=0.005)


def test_published_hours_of_deepseek_v3():
    """Technical report, table 1: 2,664 thousand H800 hours for 14.8 T tokens; 2 dollars an hour."""
    run = plan(tokens=int(14.8e12), devices=2048, mfu=0.4373, price_per_hour=2.0)
    assert run.device_seconds / 3600 == pytest.approx(2_664_000, rel=0.005)
    assert run.cost == pytest.approx(5.328e6, rel=0.005)


def test_by_hand():
    run = plan(price_per_hour=3.0, usable=60e9)
    per_token = count_flops(V3, 4096, training=True)
    assert run.flops == 10**12 * per_token
    assert run.device_seconds == pytest.approx(10**12 * per_token / (989.4e12 * 0.4))
    assert run.seconds * 1024 == pytest.approx(run.device_seconds)
    assert run.tokens_per_second * run.seconds == pytest.approx(10**12)
    assert run.cost == pytest.approx(run.device_seconds / 3600 * 3)
    counts = count_parameters(V3)
    assert run.state_bytes == 16 * (counts.total + counts.mtp)
    assert run.devices_for_state == -(-run.state_bytes // 60_000_000_000)
    assert run.tokens_per_active_parameter == pytest.approx(10**12 / counts.active)


def test_what_is_not_known_is_none():
    assert plan().cost is None
    assert plan().devices_for_state is None


@given(st.integers(1, 10**13), st.integers(1, 10**13), st.integers(1, 5000))
def test_time_grows_with_tokens_and_shrinks_with_devices(tokens, more, devices):
    run = plan(tokens=tokens, devices=devices)
    assert plan(tokens=tokens + more, devices=devices).seconds > run.seconds
    assert plan(tokens=tokens, devices=2 * devices).seconds == pytest.approx(run.seconds / 2)
    assert plan(tokens=tokens, devices=2 * devices).device_seconds == pytest.approx(run.device_seconds)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mfu": 0.0}, "mfu = 0.0: must lie above 0"),
        ({"mfu": 1.5}, "mfu = 1.5: must lie above 0 and be at most 1"),
        ({"devices": 0}, "gpus = 0: must be at least 1"),
        ({"price_per_hour": -1.0}, "price = -1.0: must not be negative"),
    ],
)
def test_numbers_out_of_range(changes, message):
    with pytest.raises(ConfigError, match=message):
        plan(**changes)


def test_a_device_without_flops_cannot_be_planned_with():
    with pytest.raises(ConfigError, match="'m4-max': its peak FLOP/s are not known"):
        plan_training(V3, device_named("m4-max"), tokens=1, seq_len=1, devices=1, mfu=0.4)
