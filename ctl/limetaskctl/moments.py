"""Durations as an operator writes them (pure)."""

from __future__ import annotations

_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_MOST_S = 10 * 366 * 86400.0


def duration_s(text: str) -> float | None:
    """`90s`, `30m`, `2h`, `1d` in seconds; None for what is no duration with a unit."""
    unit = next((unit for unit in _UNITS if text.endswith(unit)), None)
    if unit is None:
        return None
    try:
        seconds = float(text.removesuffix(unit)) * _UNITS[unit]
    except ValueError:
        return None
    return seconds if 0 < seconds <= _MOST_S else None
