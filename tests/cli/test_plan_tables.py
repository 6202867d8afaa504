import pytest
from rich.console import Console

from moeworks.cli.plan_tables import device_list, device_words, serving_tables, training_tables
from moeworks.families import published
from moeworks.plan.devices import DEVICES, device_named, with_memory
from moeworks.plan.figures import model_figures
from moeworks.plan.serving import ServingRequest, plan_serving
from moeworks.plan.training import plan_training


def text(*tables, width: int = 80) -> str:
    console = Console(width=width, record=True, quiet=False, file=None)
    with console.capture() as capture:
        for table in tables:
            console.print(table)
    return capture.get()


def serving(name: str, gpu: str, **request) -> str:
    model = published(name)
    plan = plan_serving(model, device_named(gpu), ServingRequest(**request))
    return text(*serving_tables(model, model_figures(model, plan.request.context), plan))


def test_a_device_in_words():
    assert device_words(device_named("m4-max")).startswith("m4-max: 128 GB, 546 GB/s (Apple")
    free = with_memory(None, None, 20 * 10**9)
    assert device_words(free) == "free values: 20 B parameters (given on the command line)"


def test_all_devices_are_listed():
    assert all(name in text(device_list(list(DEVICES.values()))) for name in DEVICES)


def test_nothing_but_what_applies():
    dense = serving("llama-3-8b", "h100")
    assert "experts" not in dense and "Expert-parallel" not in dense
    plain = serving("mixtral-8x7b", "rtx-4090", dtype="int4")
    assert "Expert-parallel" in plain and "without the router's groups" not in plain
    assert "at full link speed" not in plain  # no link is known
    assert "MTP" not in plain
    assert "MTP layers left out" in serving("deepseek-v3", "b200", dtype="fp8")


@pytest.mark.parametrize(("price", "shown"), [(None, False), (2.0, True)])
def test_cost_needs_a_price(price, shown):
    plan = plan_training(
        published("mixtral-8x7b"), device_named("h100"), tokens=10**12, seq_len=4096, devices=64, mfu=0.4,
        price_per_hour=price,
    )  # fmt: skip
    assert ("cost" in text(*training_tables(plan))) == shown


def test_narrow_terminals_lose_no_number():
    model = published("deepseek-v3")
    plan = plan_serving(model, device_named("b200"), ServingRequest(dtype="fp8", batch=32, devices=8))
    tables = list(serving_tables(model, model_figures(model, 8192), plan))
    narrow = text(*tables, width=80)
    assert "…" not in narrow
    for number in ("84.14 GB", "104.7 GB", "4,522", "7.1 ms", "1,048", "3.63"):
        assert number in narrow
