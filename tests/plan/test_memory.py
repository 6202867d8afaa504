import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moeworks.config.count import count_cache_bytes
from moeworks.families import BY_PRESET, published
from moeworks.plan.formats import FORMATS
from moeworks.plan.memory import (
    SPLITS,
    Workload,
    activation_bytes,
    allowed_devices,
    device_load,
    devices_for_parameters,
    devices_needed,
    most_sequences,
)

MODELS = {name: published(name) for name in BY_PRESET}
NAMES = st.sampled_from(sorted(name for name in MODELS if MODELS[name].moe_layers))
GB = 10**9


def work(name: str, dtype: str = "bf16", context: int = 4096, batch: int = 8, kv_bytes: int = 2) -> Workload:
    return Workload(
        model=MODELS[name],
        form=FORMATS[dtype],
        context=context,
        batch=batch,
        kv_bytes=kv_bytes,
        prefill_tokens=4096,
    )


WORK = st.builds(
    work, NAMES, st.sampled_from(sorted(FORMATS)), st.integers(1, 50_000), st.integers(1, 300)
)  # fmt: skip


def test_published_example():
    assert devices_for_parameters(671 * 10**9, 20 * 10**9) == 34
    assert devices_for_parameters(671_026_404_352, 20 * 10**9) == 34
    assert devices_for_parameters(20, 20) == 1


@given(WORK)
def test_on_one_device_every_split_holds_everything(w):
    sequence = count_cache_bytes(w.model, w.context, 2)
    for split in SPLITS:
        load = device_load(w, split, 1)
        assert (load.weights, load.cache) == (w.weights.total, w.batch * sequence)
        assert load.total == load.weights + load.cache + activation_bytes(w)


@given(WORK, st.integers(1, 600), st.sampled_from(sorted(SPLITS)))
def test_parts_together_are_at_least_the_whole(w, devices, split):
    load = device_load(w, split, devices)
    assert devices * load.weights >= w.weights.total
    assert devices * load.cache + devices >= w.batch * w.sequence_bytes
    if split == "even":
        assert devices * load.weights < w.weights.total + devices
        assert devices * load.cache < w.batch * w.sequence_bytes + devices


@given(WORK, st.integers(1, 600), st.sampled_from(sorted(SPLITS)))
def test_more_devices_hold_no_more_each(w, devices, split):
    fewer, more = device_load(w, split, devices), device_load(w, split, devices + 1)
    assert more.weights <= fewer.weights
    assert more.cache <= fewer.cache


@settings(max_examples=40)
@given(NAMES, st.integers(1, 9000), st.integers(1, 9000), st.integers(1, 99), st.sampled_from(sorted(SPLITS)))
def test_needs_grow_with_context_and_batch(name, context, more, batch, split):
    needs = [
        devices_needed(work(name, "fp8", c, b), split, 60 * GB) or 10**9
        for c, b in ((context, batch), (context + more, batch), (context, batch + more))
    ]
    assert needs[0] <= min(needs[1:])


@settings(max_examples=20)
@given(WORK, st.sampled_from(sorted(SPLITS)), st.integers(5, 200))
def test_needed_is_the_smallest_number_that_fits(w, split, gigabytes):
    usable, allowed = gigabytes * GB, allowed_devices(w.model, split, w.batch)
    fits = [
        n
        for n in (allowed if isinstance(allowed, list) else range(1, min(allowed, 700) + 1))
        if device_load(w, split, n).total <= usable
    ]
    needed = devices_needed(w, split, usable)
    assert needed == (fits[0] if fits else None) or (needed or 0) > 700


@settings(max_examples=20)
@given(WORK, st.sampled_from(sorted(SPLITS)), st.integers(1, 64), st.integers(20, 200))
def test_most_sequences_fit_and_one_more_does_not(w, split, devices, gigabytes):
    usable = gigabytes * GB
    most = most_sequences(w, split, devices, usable)

    def fits(batch: int) -> bool:
        more = Workload(
            model=w.model, form=w.form, context=w.context, batch=batch, kv_bytes=2, prefill_tokens=4096
        )
        return device_load(more, split, devices).total <= usable

    assert most == 0 or fits(most)
    assert not fits(most + 1)


def test_deepseek_v3_needs_what_is_said_of_it():
    """FP8 on H200s: one node of eight (DeepSeek's own and vLLM's smallest recipe), for short contexts too."""
    for split in ("even", "expert"):
        assert devices_needed(work("deepseek-v3", "fp8"), split, 0.9 * 141 * GB) in (6, 7)
    assert devices_needed(work("deepseek-v3", "bf16"), "even", 0.9 * 80 * GB) > 18


def test_expert_split_copies_all_but_the_experts():
    w = work("deepseek-v3", "bf16", batch=3)
    rest = w.weights.total - w.weights.experts
    load = device_load(w, "expert", 100)  # three experts on the fullest device, one sequence
    assert load.weights == rest + w.weights.experts * 3 // 256
    assert load.cache == w.sequence_bytes


def test_attention_experts_are_copied_in_the_expert_split():
    w = work("jetmoe-8b")
    attention = 24 * 8 * 2 * 2048 * 2048 * 2
    assert w.spread_expert_bytes == pytest.approx(w.weights.experts - attention)


def test_tensor_split_takes_divisors_of_the_heads():
    assert allowed_devices(MODELS["llama-4-scout"], "tensor", 1) == [1, 2, 4, 5, 8, 10, 20, 40]


def test_nothing_fits_where_the_copies_do_not():
    assert devices_needed(work("kimi-k2"), "expert", 20 * GB) is None
    assert devices_needed(work("deepseek-v3", "fp8", 32_768, 64), "tensor", 0.9 * 141 * GB) is None


def test_activations_by_hand():
    """Mixtral: the widest block is that of the two experts, with gate, up and output."""
    w = work("mixtral-8x7b", context=100, batch=2)
    inner = 2 * (2 * 14_336 + 4096)
    assert activation_bytes(w) == 2 * 200 * (2 * 4096 + inner) + 4 * 2 * 32_000
