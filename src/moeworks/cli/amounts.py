"""Numbers as people read them, with four digits."""

UNITS = (("E", 1e18), ("P", 1e15), ("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3))


def bytes_text(value: float) -> str:
    """Bytes in decimal units.

    >>> bytes_text(673_150_552_416), bytes_text(70_272), bytes_text(12)
    ('673.2 GB', '70.27 kB', '12 B')
    """
    return _scaled(value, "B")


def flops_text(value: float, per_second: bool = False) -> str:
    """FLOPs, or FLOP/s.

    >>> flops_text(250_457_382_912), flops_text(989.4e12, per_second=True)
    ('250.5 GFLOP', '989.4 TFLOP/s')
    """
    return _scaled(value, "FLOP/s" if per_second else "FLOP")


def count_text(value: float) -> str:
    """A count in the units of parameters and tokens.

    >>> count_text(671_026_404_352), count_text(14.8e12), count_text(512)
    ('671 B', '14.8 T', '512')
    """
    for unit, size in (("T", 1e12), ("B", 1e9), ("M", 1e6)):
        if value >= size:
            return f"{value / size:.4g} {unit}"
    return f"{value:,.0f}"


def seconds_text(value: float) -> str:
    """A time.

    >>> [seconds_text(value) for value in (7e-5, 0.0218, 12, 3600 * 5, 86400 * 54.2)]
    ['70 µs', '21.8 ms', '12.0 s', '5.0 h', '54.2 days']
    """
    if value < 1e-3:
        return f"{value * 1e6:.3g} µs"
    if value < 1:
        return f"{value * 1e3:.1f} ms"
    if value < 600:
        return f"{value:.1f} s"
    return f"{value / 3600:,.1f} h" if value < 2 * 86400 else f"{value / 86400:,.1f} days"


def _scaled(value: float, unit: str) -> str:
    for prefix, size in UNITS:
        if value >= size:
            return f"{value / size:.4g} {prefix}{unit}"
    return f"{value:,.0f} {unit}"
