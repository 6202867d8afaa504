import pytest
from hypothesis import given
from hypothesis import strategies as st

from moeworks.errors import ConfigError
from moeworks.plan.units import LARGEST, parse_bytes, parse_count, parse_memory


@pytest.mark.parametrize(
    ("text", "count"),
    [("15T", 15 * 10**12), ("300B", 3 * 10**11), ("1.5m", 1_500_000), ("2_000,000", 2_000_000), (" 7 ", 7)],
)
def test_counts(text, count):
    assert parse_count(text, "tokens") == count


@pytest.mark.parametrize(
    ("text", "size"), [("80GB", 80 * 10**9), ("80gib", 80 * 2**30), ("0.5TB", 5 * 10**11), ("512 B", None)]
)
def test_bytes(text, size):
    if size is None:
        with pytest.raises(ConfigError, match="must be bytes with a unit"):
            parse_bytes(text, "memory")
    else:
        assert parse_bytes(text, "memory") == size


def test_memory_is_bytes_or_parameters():
    assert parse_memory("80GB") == (80 * 10**9, None)
    assert parse_memory("20B-params") == (None, 20 * 10**9)
    assert parse_memory("1.5T-parameters") == (None, 1_500 * 10**9)


@pytest.mark.parametrize("text", ["20B", "huge", "", "GB", "-5GB", "80", "80GBs", "1e9GB", "nanGB"])
def test_memory_without_a_clear_unit_is_an_error_that_shows_both_ways(text):
    with pytest.raises(ConfigError, match=r"gpu_memory = .*80GB or 80GiB.*20B-params"):
        parse_memory(text)


@pytest.mark.parametrize("text", ["0GB", "99999999999TB"])
def test_memory_out_of_range(text):
    with pytest.raises(ConfigError, match="must lie between 1 and"):
        parse_memory(text)


@pytest.mark.parametrize("text", ["", "lots", "-1", "1e12", "12Q", "0", "1.2.3", "B"])
def test_counts_that_are_none(text):
    with pytest.raises(ConfigError, match="tokens = "):
        parse_count(text, "tokens")


@given(st.integers(1, int(LARGEST) // 10**12))
def test_whole_numbers_are_exact_in_every_unit(number):
    assert parse_count(str(number), "n") == pytest.approx(number, abs=0.5, rel=1e-15)
    assert parse_count(f"{number}K", "n") == pytest.approx(number * 1000, rel=1e-15)
