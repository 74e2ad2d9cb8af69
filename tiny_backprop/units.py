"""Numbers for people: IEC bytes, SI FLOPs."""

from __future__ import annotations

_BINARY = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")
_DECIMAL = ("", "k", "M", "G", "T", "P")


def _scaled(x: float, base: float, prefixes: tuple[str, ...]) -> str:
    i = 0
    while abs(x) >= base and i < len(prefixes) - 1:
        x, i = x / base, i + 1
    digits = f"{x:.0f}" if i == 0 else f"{x:.3g}" if abs(x) < 999.5 else f"{x:.0f}"
    return f"{digits} {prefixes[i]}"


def format_bytes(n_bytes: float) -> str:
    """Return bytes with an IEC unit and three significant digits.

    Example:
      >>> format_bytes(1536)
      '1.5 KiB'
    """
    return _scaled(n_bytes, 1024.0, _BINARY)


def format_flops(n_flops: float) -> str:
    """Return floating-point operations with an SI prefix and three significant digits.

    Example:
      >>> format_flops(2.5e9)
      '2.5 GFLOP'
    """
    return _scaled(n_flops, 1000.0, _DECIMAL) + "FLOP"
