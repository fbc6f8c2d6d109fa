"""What every process under the daemon does first: take its name, read the settings, open its log."""

from __future__ import annotations

from pathlib import Path

from limetaskd.core.process import name_process
from limetaskd.core.settings import Settings
from limetaskd.core.spec import ProcessSpec
from limetaskd.worker import logs


def begin(spec: ProcessSpec) -> Settings:
    """The settings of now, with the log of this process set up by them.

    Raises OSError or ValueError when the daemon's settings file cannot be read.
    """
    name_process(spec.name)
    settings = Settings.from_json(Path(spec.settings).read_text(encoding="utf-8"))
    logs.set_up(
        spec.name,
        level=settings.log_level,
        path=spec.log,
        own_stdio=True,
        max_message_bytes=settings.log_message_max_bytes,
    )
    return settings
