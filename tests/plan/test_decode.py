import pytest
from hypothesis import given
from hypothesis import strategies as st

from moeworks.config.count import count_decode_flops, count_parameters
from moeworks.families import BY_PRESET, published
from moeworks.plan.decode import decode_speed, step_bytes, step_bytes_on, touched_fraction
from moeworks.plan.devices import Device, device_named
from moeworks.plan.formats import FORMATS
from moeworks.plan.memory import SPLITS, Workload

MODELS = {name: published(name) for name in BY_PRESET}
NAMES = st.sampled_from(sorted(name for name in MODELS if MODELS[name].moe_layers))


def work(name: str, dtype: str = "bf16", context: int = 1024, batch: int = 1) -> Workload:
    return Workload(
        model=MODELS[name],
        form=FORMATS[dtype],
        context=context,
        batch=batch,
        kv_bytes=2,
        prefill_tokens=4096,
    )


WORK = st.builds(work, NAMES, st.sampled_from(sorted(FORMATS)), st.integers(1, 50_000), st.integers(1, 3000))


@pytest.mark.parametrize("name", ["mixtral-8x7b", "deepseek-v3", "qwen3-30b-a3b", "gpt-oss-20b"])
def test_one_token_reads_the_active_parameters_but_for_the_table(name):
    model = MODELS[name]
    counts, reads = count_parameters(model), step_bytes(work(name))
    assert reads.experts == pytest.approx(2 * counts.active_experts)
    assert reads.experts + reads.other_weights == pytest.approx(
        2 * (counts.active - counts.embedding + model.d_model)
    )


def test_a_tied_table_is_read_as_the_output_projection():
    counts = count_parameters(MODELS["granite-3.0-1b-a400m"])
    reads = step_bytes(work("granite-3.0-1b-a400m"))
    assert reads.experts + reads.other_weights == pytest.approx(2 * counts.active)


def test_large_batches_read_every_expert_once():
    w = work("deepseek-v3", "fp8", batch=5000)
    assert step_bytes(w).experts == pytest.approx(w.weights.experts)
    assert touched_fraction(work("deepseek-v3", batch=4)) * 256 == pytest.approx(30.5, abs=0.05)


def test_both_kinds_of_experts_of_jetmoe():
    w = work("jetmoe-8b", batch=4)
    touched = 1 - (1 - 2 / 8) ** 4
    assert step_bytes(w).experts == pytest.approx(touched * w.weights.experts, rel=1e-4)


@given(WORK, st.integers(1, 300))
def test_even_parts_sum_to_the_whole_and_other_splits_read_more(w, devices):
    whole = step_bytes(w)
    even = step_bytes_on(w, "even", devices)
    assert devices * even.total == pytest.approx(whole.total)
    for split in SPLITS:
        assert step_bytes_on(w, split, devices).total >= even.total * (1 - 1e-9)
        assert step_bytes_on(w, split, 1).total == pytest.approx(whole.total)


@given(WORK, st.integers(1, 300), st.sampled_from(sorted(SPLITS)))
def test_steps_get_longer_and_throughput_grows_with_the_batch(w, more, split):
    device = device_named("h200")
    bigger = Workload(
        model=w.model, form=w.form, context=w.context, batch=w.batch + more, kv_bytes=2, prefill_tokens=4096
    )
    small, big = decode_speed(w, device, split, 1), decode_speed(bigger, device, split, 1)
    assert small is not None and big is not None
    assert big.step_seconds >= small.step_seconds
    assert big.tokens_per_second >= small.tokens_per_second * (1 - 1e-9)
    assert small.tokens_per_second == pytest.approx(w.batch * small.tokens_per_second_per_sequence)


@given(WORK, st.integers(1, 10_000))
def test_steps_get_longer_with_the_context(w, more):
    longer = Workload(
        model=w.model, form=w.form, context=w.context + more, batch=w.batch, kv_bytes=2, prefill_tokens=4096
    )
    device = device_named("mi300x")
    assert (
        decode_speed(longer, device, "even", 8).step_seconds
        >= decode_speed(w, device, "even", 8).step_seconds
    )


def test_the_roofline_takes_the_slower_side():
    w = work("mixtral-8x7b", batch=16)
    flops, read = 16 * count_decode_flops(w.model, 1024), step_bytes(w).total
    slow_memory = decode_speed(w, Device(name="a", bandwidth=1e9, flops={"bf16": 1e18}), "even", 2)
    slow_units = decode_speed(w, Device(name="b", bandwidth=1e18, flops={"bf16": 1e9}), "even", 2)
    assert slow_memory.step_seconds == pytest.approx(read / 2 / 1e9)
    assert slow_memory.bound == "experts"
    assert slow_units.step_seconds == pytest.approx(flops / 2 / 1e9)
    assert slow_units.bound == "compute"


def test_what_dominates_moves_with_batch_and_context():
    device = device_named("h200")
    bounds = [
        decode_speed(work("gpt-oss-20b", "mxfp4", context, batch), device, "even", 8).bound
        for context, batch in ((128, 1), (128, 32), (40_000, 256))
    ]
    assert bounds == ["other weights", "experts", "cache"]
    prompt_like = work("mixtral-8x7b", "bf16", 128, 20_000)
    assert decode_speed(prompt_like, device, "even", 8).bound == "compute"


def test_without_bandwidth_there_is_no_speed_and_without_flops_no_compute():
    w = work("mixtral-8x7b")
    assert decode_speed(w, Device(name="x", memory=1), "even", 1) is None
    mac = decode_speed(w, device_named("m4-max"), "even", 1)
    assert mac.compute_seconds is None
    assert mac.step_seconds == mac.memory_seconds


def test_expert_split_by_hand():
    """Two sequences on four devices: one device reads its quarter of the touched experts and one cache."""
    w = work("mixtral-8x7b", batch=2)
    reads, whole = step_bytes_on(w, "expert", 4), step_bytes(w)
    assert reads.experts == pytest.approx(whole.experts / 4)
    assert reads.other_weights == pytest.approx(whole.other_weights)
    assert reads.cache == pytest.approx(whole.cache / 2)
