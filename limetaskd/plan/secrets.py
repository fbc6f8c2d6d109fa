"""Settings without their secrets, for people, programs and the comparison of two plans (pure)."""

from __future__ import annotations

from typing import Any

from limetaskd.config.report import is_secret
from limetaskd.config.urls import shown_url
from limetaskd.core.redact import MASK, redact_text


def masked(value: Any, key: str = "") -> Any:
    """`value` with passwords of URLs masked, and everything masked that stands under a key such as `password`."""
    if value is not None and is_secret((key,)):
        return MASK
    if isinstance(value, dict):
        return {name: masked(item, str(name)) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [masked(item, key) for item in value]
    if isinstance(value, str):
        return shown_url(value) if "://" in value else redact_text(value)
    return value
