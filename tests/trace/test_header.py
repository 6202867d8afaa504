import pytest

from moeworks.errors import ConfigError, DataError
from moeworks.trace.header import FORMAT, METADATA_KEY, VERSION, TraceHeader, decode_header

HEADER = TraceHeader(
    num_experts=64, top_k=6, layers=(1, 2, 5), fields=("weights", "margin"), model="größe", step=7
)


def test_comes_back_from_the_metadata():
    assert decode_header({METADATA_KEY: HEADER.encode()}, "a") == HEADER


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        ({"num_experts": 0}, "num_experts = 0: must lie in"),
        ({"num_experts": 70_000}, "num_experts = 70000"),
        ({"top_k": 65}, "top_k = 65: must lie between 1 and num_experts = 64"),
        ({"layers": ()}, "at least one"),
        ({"layers": (2, 1)}, "ascending"),
        ({"layers": (1, 1)}, "ascending"),
        ({"layers": (-1, 1)}, "not be negative"),
        ({"fields": ("margin", "weights")}, "must be in the order"),
    ],
)
def test_rules(change, rule):
    with pytest.raises(ConfigError, match=rule):
        TraceHeader(**vars(HEADER) | change)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "not a routing trace"),
        (b"{", "damaged"),
        (b"[]", "damaged"),
        (b"{}", "damaged"),
        (b'{"format": "other", "version": 1}', "is other version 1"),
        (HEADER.encode().replace(b'"version": 1', b'"version": 99'), f"99; this program reads {FORMAT}"),
        (HEADER.encode().replace(b"top_k", b"topk"), "top_?k: "),
        (HEADER.encode().replace(b'"top_k": 6', b'"top_k": 600'), "top_k = 600"),
    ],
)
def test_bad_metadata(content, message):
    metadata = {} if content is None else {METADATA_KEY: content}
    with pytest.raises(DataError, match=message):
        decode_header(metadata, "x.parquet")


def test_version_is_one():
    """Change docs/trace-format.md with it."""
    assert VERSION == 1
