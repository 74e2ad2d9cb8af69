"""Numbers for people: IEC bytes, SI FLOPs."""

from __future__ import annotations

import re

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


_UNIT_BYTES = {unit.lower(): 1024**i for i, unit in enumerate(_BINARY)}
_UNIT_BYTES |= {f"{prefix}B".lower(): 1000**i for i, prefix in enumerate(_DECIMAL)}


def parse_bytes(text: str) -> int:
    """Return the bytes that a text such as `"2GiB"`, `"1.5 MB"` or `"300"` names.

    Raises:
      ValueError: The text is no number with a unit.

    Example:
      >>> parse_bytes("1.5 KiB")
      1536
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d*)?(?:[eE][+-]?\d+)?)\s*([a-zA-Z]*)\s*", text)
    unit = (match[2] or "B").lower() if match else ""
    if match is None or unit not in _UNIT_BYTES:
        raise ValueError(f"expected bytes such as '2GiB', '500MB' or '300'; found {text!r}")
    n_bytes = float(match[1]) * _UNIT_BYTES[unit]
    if n_bytes >= 2**63:
        raise ValueError(f"{text!r} is more than any memory has: bytes are counted up to 2**63 - 1")
    return int(n_bytes)
