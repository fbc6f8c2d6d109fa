"""JSON that somebody else may have written: log lines, saved files, messages."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any


def loads(text: str | bytes, parse: Callable[[Any], Any] = json.loads) -> Any:
    """As `parse`, but whatever is wrong with the text is a ValueError, deep nesting too."""
    try:
        return parse(text)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
