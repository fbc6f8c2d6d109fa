"""Secrets out of what people read: passwords in URLs, and in any text that quotes a URL (pure)."""

from __future__ import annotations

import re

MASK = "***"
# Our transport of Redis goes by aliases of its own inside Celery; people know the schemes that they configured.
_ALIAS = re.compile(r"\blime(?=(?:redis|rediss|sentinel)\b)")
# scheme://user:password@ and scheme://:password@ ; a password may hold anything but a slash or white space,
# and an unescaped @ in it belongs to it, so the last @ before the path counts. It begins at the ://, so that a long
# line is read once: the scheme does not matter, and looking for it would begin at each of its letters.
_CREDENTIALS = re.compile(r"(?P<head>://[^\s:/]*):(?P<secret>[^\s/]*)@")
_QUERY = re.compile(r"(?P<key>[?&;](?:password|passwd|secret|token|api_key|apikey)=)[^&;\s]+", re.IGNORECASE)


def redact_url(url: str | None) -> str | None:
    """`amqp://u:secret@h//` -> `amqp://u:***@h//`; text without a URL comes back as it is."""
    return None if url is None else redact_text(url)


def redact_text(text: str) -> str:
    """Mask the password of every URL in `text`, and show the schemes that people know."""
    text = _ALIAS.sub("", text)
    return _QUERY.sub(rf"\g<key>{MASK}", _CREDENTIALS.sub(rf"\g<head>:{MASK}@", text))
