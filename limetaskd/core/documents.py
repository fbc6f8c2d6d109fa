"""JSON that somebody else may have written: log lines, saved files, messages."""

from __future__ import annotations

import json
from typing import Any


def loads(text: str | bytes) -> Any:
    """As `json.loads`, but whatever is wrong with the text is a ValueError, deep nesting too."""
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
