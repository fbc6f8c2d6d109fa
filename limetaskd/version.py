"""The one place that holds the version: packages, `--version` and the saved state read it here."""

__version__ = "0.1.0"
