"""Options of `moeworks plan` and what is said about bad ones."""

import pytest

from moeworks.cli.main import main
from moeworks.cli.plan import parse
from moeworks.errors import ConfigError


@pytest.mark.parametrize(
    ("argv", "text"),
    [
        ([], "model: missing; name a folder, a config.json or a preset"),
        (["mixtral-8x7"], "'mixtral-8x7': no such preset, file or folder; did you mean 'mixtral-8x7b'?"),
        (["mixtral-8x7b", "--gpu", "h2000"], "gpu = 'h2000': unknown; did you mean 'h200'?"),
        (
            ["mixtral-8x7b", "--gpu-memory", "20B"],
            "gpu_memory = '20B': must be bytes, as in 80GB or 80GiB, or",
        ),
        (["mixtral-8x7b", "--gpu-memory", "0GB"], "gpu_memory = '0GB': must lie between 1 and"),
        (["mixtral-8x7b", "--dtype", "fp7"], "dtype = 'fp7': unknown; did you mean 'fp8'?"),
        (["mixtral-8x7b", "--kv-dtype", "mxfp4"], "kv_dtype = 'mxfp4': unknown; did you mean 'fp8'?"),
        (["mixtral-8x7b", "--context", "999999999999"], "context = 999999999999: must lie between 1 and"),
        (["mixtral-8x7b", "--context", "0"], "context = 0: must lie between 1 and 100,000,000 tokens"),
        (["mixtral-8x7b", "--batch-size", "0"], "batch = 0: must lie between 1 and 1,000,000"),
        (["mixtral-8x7b", "--gpus", "0"], "gpus = 0: must lie between 1 and"),
        (["mixtral-8x7b", "--gpus-per-node", "0"], "gpus_per_node = 0: must be at least 1"),
        (["mixtral-8x7b", "--memory-fraction", "1.5"], "memory_fraction = 1.5: must lie above 0"),
        (["mixtral-8x7b", "--memory-fraction", "nan"], "memory_fraction = nan: must lie above 0"),
        (["mixtral-8x7b", "--mfu", "0.3"], "--mfu has no effect without --tokens"),
        (["mixtral-8x7b", "--price", "3"], "--price has no effect without --tokens"),
        (["mixtral-8x7b", "--tokens", "lots"], "tokens = 'lots': must be a number, as in 300B, 15T"),
        (["mixtral-8x7b", "--tokens", "1T", "--batch-size", "3"], "--batch-size has no effect with --tokens"),
        (["mixtral-8x7b", "--tokens", "1T", "--mfu", "3"], "mfu = 3.0: must lie above 0 and be at most 1"),
        (["mixtral-8x7b", "--tokens", "1T", "--price", "-1"], "price = -1.0: must not be negative"),
        (["mixtral-8x7b", "--tokens", "1T", "--gpus", "0"], "gpus = 0: must lie between 1 and"),
        (["mixtral-8x7b", "--tokens", "1T", "--gpu", "m4-max"], "'m4-max': its peak FLOP/s are not known"),
    ],
)
def test_bad_input(capsys, argv, text):
    assert main(["plan", *argv]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"moeworks: error: {text}") or text in err
    assert err.count("\n") == 1


def test_parse_alone_checks_what_needs_no_model():
    with pytest.raises(ConfigError, match="gpu = "):
        parse(["nowhere", "--gpu", "zx81"])
    assert parse(["nowhere"]).device.name == "h100"
