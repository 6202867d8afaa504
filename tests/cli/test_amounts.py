import pytest
from hypothesis import given
from hypothesis import strategies as st

from moeworks.cli.amounts import bytes_text, count_text, flops_text, seconds_text


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1 kB"), (70_272, "70.27 kB"), (8e9, "8 GB"), (1.342e12, "1.342 TB")],
)
def test_bytes(value, text):
    assert bytes_text(value) == text


def test_other_units():
    assert flops_text(2.5e11) == "250 GFLOP"
    assert flops_text(1.9789e15, per_second=True) == "1.979 PFLOP/s"
    assert [count_text(n) for n in (41_696, 134_515_008, 1_026_408_209_408)] == [
        "41,696",
        "134.5 M",
        "1.026 T",
    ]
    assert [seconds_text(s) for s in (2e-7, 0.5, 599, 86_400, 200_000)] == [
        "0.2 µs", "500.0 ms", "599.0 s", "24.0 h", "2.3 days",
    ]  # fmt: skip


@given(st.floats(0, 1e20))
def test_texts_are_short_and_near_the_value(value):
    text = bytes_text(value)
    number, unit = text.split()
    size = {"B": 1, "kB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12, "PB": 1e15, "EB": 1e18}[unit]
    assert float(number.replace(",", "")) * size == pytest.approx(value, rel=1e-3, abs=0.51)
