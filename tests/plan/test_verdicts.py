from moeworks.families import published
from moeworks.plan.devices import device_named
from moeworks.plan.serving import ServingRequest, plan_serving
from moeworks.plan.training import plan_training
from moeworks.plan.verdicts import serving_verdicts, training_verdicts


def verdicts(name: str, gpu: str, **request) -> str:
    return "\n".join(
        serving_verdicts(plan_serving(published(name), device_named(gpu), ServingRequest(**request)))
    )


def test_weights_dominate_short_contexts_and_the_cache_long_ones():
    assert "weights dominate, over 99%" in verdicts("qwen3-30b-a3b", "h100", context=512)
    assert "the cache dominates" in verdicts("qwen3-30b-a3b", "h100", context=40_000, batch=64)


def test_decode_is_bound_by_bandwidth_or_by_arithmetic():
    slow = verdicts("mixtral-8x7b", "h100")
    assert "bound by memory bandwidth; of what is read: experts" in slow
    assert "The reading takes" in slow
    busy = verdicts("mixtral-8x7b", "laptop-cpu", batch=512, context=64)
    assert "bound by arithmetic" in busy
    assert "The arithmetic takes" in busy


def test_unknown_flops_are_named():
    assert "No peak FLOP/s are known for m4-max" in verdicts("olmoe-1b-7b", "m4-max")


def test_a_plan_that_does_not_fit_says_so():
    assert "This plan does not fit, needs at least" in verdicts("kimi-k2", "rtx-4090", devices=2)


def test_training():
    model, gpu = published("mixtral-8x7b"), device_named("h100")
    options = dict(tokens=10**12, seq_len=4096, mfu=0.4, usable=72e9)
    short = "\n".join(training_verdicts(plan_training(model, gpu, devices=2, **options)))
    assert "Does not fit" in short and "need 11 devices" in short
    enough = training_verdicts(plan_training(model, gpu, devices=64, **options))
    assert len(enough) == 1
    assert enough[0].startswith("78 tokens per active parameter")
