"""Durations and sizes as people write them, to and from numbers (pure).

Durations are seconds, sizes are bytes. Used for the configuration and for what operators type and read.
"""

from __future__ import annotations

import math
import re

DURATION_ALLOWED = "a duration: seconds, or a number with ms, s, m, h or d, such as 500ms, 30s, 5m, 2h"
SIZE_ALLOWED = "a size: bytes, or a number with KiB, MiB, GiB, TiB, kB, MB, GB or TB, such as 300MiB, 2GiB, 1GB"

# A timer far beyond the life of a machine is a misprint, and some clocks overflow on it.
_MOST_SECONDS = 100 * 365.25 * 86400
_UNITS_S = {"d": 86400.0, "h": 3600.0, "m": 60.0, "s": 1.0, "ms": 0.001}
_NUMBER = re.compile(r"[0-9]{1,30}(?:\.[0-9]{1,30})?")
_DURATION = re.compile(
    r"(?:(?P<d>[0-9.]+)\s*d)?\s*(?:(?P<h>[0-9.]+)\s*h)?\s*(?:(?P<m>[0-9.]+)\s*m(?!s))?\s*"
    r"(?:(?P<s>[0-9.]+)\s*s)?\s*(?:(?P<ms>[0-9.]+)\s*ms)?"
)
_SIZE = re.compile(r"(?P<number>[0-9]{1,30}(?:\.[0-9]{1,30})?)\s*(?P<unit>[kmgt]i?b|b)?", re.IGNORECASE)


def parse_duration(value: object) -> float:
    """Seconds of `30`, `0.5`, `500ms`, `30s`, `5m`, `2h`, `1d` or `1h30m`.

    Raises ValueError, saying what is allowed, for anything else: also below 0, not finite, above 100 years.
    """
    seconds = _duration(value)
    if seconds is None or not math.isfinite(seconds) or not 0 <= seconds <= _MOST_SECONDS:
        raise ValueError(f"must be {DURATION_ALLOWED}")
    return seconds


def _duration(value: object) -> float | None:
    if isinstance(value, bool):
        return None
    if isinstance(value, (int, float)):
        # An int may be too large for a float: compare first.
        return float(value) if value <= _MOST_SECONDS else None
    if not isinstance(value, str):
        return None
    text = value.strip()
    if _NUMBER.fullmatch(text):
        return float(text)
    match = _DURATION.fullmatch(text) if text else None
    if match is None:
        return None
    parts = {unit: number for unit, number in match.groupdict().items() if number is not None}
    if not all(_NUMBER.fullmatch(number) for number in parts.values()):
        return None
    # fsum, and the milliseconds by division: 500ms is 0.5 exactly.
    return math.fsum(
        float(number) / 1000 if unit == "ms" else float(number) * _UNITS_S[unit] for unit, number in parts.items()
    )


def parse_size(value: object) -> int:
    """Bytes of `1048576`, `300MiB`, `2GiB`, `1GB`, `64KiB`, `1.5GiB`; capitals do not matter.

    Raises ValueError, saying what is allowed, for anything else: also below 0 and from 2**63.
    """
    size = _size(value)
    if size is None or not 0 <= size < 2**63:
        raise ValueError(f"must be {SIZE_ALLOWED}")
    return size


def _size(value: object) -> int | None:
    if isinstance(value, int):
        return None if isinstance(value, bool) else value
    if not isinstance(value, str):
        return None
    match = _SIZE.fullmatch(value.strip())
    if match is None:
        return None
    unit = (match["unit"] or "b").lower()
    factor = 1 if unit == "b" else (1024 if unit[1] == "i" else 1000) ** ("kmgt".index(unit[0]) + 1)
    # Whole numbers stay exact, whatever their size.
    return int(match["number"]) * factor if match["number"].isdigit() else int(float(match["number"]) * factor)


def format_duration(seconds: float | None) -> str:
    """For people, in the two largest units: `500ms`, `1.5s`, `30s`, `5m`, `1h30m`, `30d`; None: `-`."""
    if seconds is None:
        return "-"
    if seconds < 0:
        return f"-{format_duration(-seconds)}"
    if 0 < seconds < 0.9995:
        return f"{seconds * 1000:.0f}ms" if seconds >= 0.001 else f"{seconds * 1000:.2g}ms"
    if seconds < 60 and round(seconds, 1) < 60:
        return f"{round(seconds, 1):g}s"
    rest = round(seconds)
    units = [("d", 86400), ("h", 3600), ("m", 60), ("s", 1)]
    first = next(index for index, (_, size) in enumerate(units) if rest >= size)
    text = ""
    for name, size in units[first : first + 2]:
        count, rest = divmod(rest, size)
        text += f"{count}{name}" if count else ""
    return text


def format_size(size_bytes: float | None) -> str:
    """For people, in powers of 1024: `512B`, `300MiB`, `1.5GiB`; None: `-`."""
    if size_bytes is None:
        return "-"
    value = float(size_bytes)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(value) < 1023.95 or (unit == "B" and abs(value) < 1024):
            return f"{round(value, 1):g}{unit}"
        value /= 1024
    return f"{value:.1f}".removesuffix(".0") + "TiB"
